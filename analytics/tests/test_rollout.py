"""Betas: their criteria held against what was measured, without a database; and the cohorts of staff, with one."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest
from django.contrib.admin.models import LogEntry
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from analytics import rollout
from analytics.rollout import METRICS, Stand, Standing
from analytics.tests.world import World
from billing import ledger
from metering import cohorts
from metering.cohort_models import Cohort, CohortCriterion, CohortMember, CohortSample
from metering.tests.limited import Shop, plan
from pricing.margin_lint import Fee
from pricing.models import Product
from tests.factories import make_account
from tests.test_admin import staff, superuser, text

__all__ = ["superuser"]  # a fixture
NANOS = 1_000_000_000
STRIPE = Fee(Fraction(29, 1000), Fraction(30, 100))


def stand(metric: str, comparator: str, value: str, found: str | None, *, days: int = 7, covered: int = 7) -> Stand:
    unit = METRICS[metric].unit
    measured = None if found is None else rollout.parse(unit=unit, text=found)
    return Stand(METRICS[metric], comparator, rollout.parse(unit=unit, text=value), days, measured, covered)


class TestCriteria:
    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (stand("ws_up", "ge", "95 %", "93.8 %"), "WS 93.8 % < 95 %"),
            (stand("ws_up", "ge", "95 %", "95 %"), ""),
            (stand("ws_up", "ge", "95 %", "94.9999 %"), "WS 94.9999 % < 95 %"),
            (stand("latency_ms", "lt", "5000 ms", "5,000 ms"), "latency (p95) 5,000 ms ≥ 5,000 ms"),
            (stand("latency_ms", "lt", "5000 ms", "4999"), ""),
            (stand("cost_per_member", "lt", "$15", "15"), "cost per active member and month $15.00 ≥ $15.00"),
            (stand("cost_per_member", "lt", "$15", "14.99"), ""),
            (stand("critical_bugs", "eq", "0", "1"), "critical bugs 1 ≠ 0"),
            (stand("critical_bugs", "eq", "0", None), "there is no data of critical bugs"),
            (stand("critical_bugs", "eq", "0", "0", covered=3), "critical bugs is measured over 7 days, and the cohort is 3 old"),
            (stand("support_ready", "eq", "yes", "no"), "support ready no ≠ yes"),
        ],
    )
    def test_each_says_what_blocks_and_no_data_does(self, given: Stand, why: str) -> None:
        assert (given.why, given.holds) == (why, why == "")

    def test_the_sentence_names_all_that_blocks_and_nothing_else(self) -> None:
        good, bad, none = stand("ws_up", "ge", "95", "99"), stand("ws_up", "ge", "95", "93.8"), stand("latency_ms", "lt", "5000", None)
        assert Standing((good, bad, none), {}, None, "everybody").sentence == (
            "Blocked because WS 93.8 % < 95 %; there is no data of latency (p95)."
        )
        assert Standing((good,), {}, None, "everybody").sentence == "Ready for “open to everybody”."
        assert Standing((), {}, None, "everybody").sentence == "Blocked because there is no criterion for it."
        assert Standing((), {}, None, "invited").blocked == ""
        assert Standing((), {}, None, None).sentence == "Open to everybody whose plan has it."

    def test_one_figure_comes_of_many_samples(self) -> None:
        samples = {"count": 3, "total": 2_000_000, "p95": 7, "latest": 1}
        assert [rollout.reckon(how=how, **samples) for how in ("mean", "p95", "sum", "latest")] == [666_666, 7, 2_000_000, 1]

    def test_cost_is_a_mean_over_members_of_thirty_days_each(self) -> None:
        assert rollout.monthly([(10 * NANOS, 30), (2 * NANOS, 3)]) == 15 * NANOS
        assert rollout.monthly([]) is None

    @pytest.mark.parametrize(("cost", "without", "with_fee"), [(15, "0.7", "0.665"), (11, "0.78", "0.745"), (5, "0.9", "0.865")])
    def test_the_margin_of_fifty_dollars_is_shown_with_and_without_the_fee(self, cost: int, without: str, with_fee: str) -> None:
        found = rollout.margin(price_cents=5_000, cost_nanos=cost * NANOS, fee=STRIPE)
        assert (found.without_fee, found.with_fee) == (Fraction(without), Fraction(with_fee))

    @pytest.mark.parametrize("garbage", ["", "x", "-1", "nan", "inf", "1e99", "101 %", "0.00001", "٣٪", "$", "1 2"])
    def test_garbage_is_no_share(self, garbage: str) -> None:
        with pytest.raises(ValueError, match="number"):
            rollout.parse(unit="share", text=garbage)

    def test_what_comes_with_the_site_is_sound(self) -> None:
        for features in rollout.shipped().values():
            for each in features.values():
                assert each["capacity"] == 10
                for leaves, metric, comparator, value, days, words in each["criteria"]:
                    rollout.parse(unit=METRICS[metric].unit, text=value)
                    assert leaves in Cohort.Phase
                    assert comparator in CohortCriterion.Comparator
                    assert 1 <= days <= 90
                    assert words


class Beta:
    """Elite's, of a shop whose plan has cloud machines."""

    def __init__(self, *, days_ago: int = 28, capacity: int = 10) -> None:
        self.now = timezone.now()
        self.shop = Shop.new(flags={"cloud_execution": True})
        Product.objects.filter(pk=self.shop.product.pk).update(slug="elite")
        self.product = Product.objects.get(pk=self.shop.product.pk)
        made = Cohort(product=self.product, feature="cloud_execution", name="Cloud beta", capacity=capacity)
        self.cohort = rollout.begin(cohort=made, now=self.now - timedelta(days=days_ago))

    def invited(self, account: Account | None = None) -> CohortMember:
        account = account or make_account(self.product)
        return cohorts.invite(cohort_id=self.cohort.pk, account=account, actor="ada", now=self.now - timedelta(days=20))

    def measured(self, metric: str, *values: int, member: CohortMember | None = None) -> None:
        for number, value in enumerate(values):
            cohorts.record(
                cohort=self.cohort, member=member, metric=metric, value=value, measured_at=self.now - timedelta(hours=1 + number),
                key=f"{metric}-{number}", now=self.now,
            )  # fmt: skip

    def advance(self) -> str:
        before = Cohort.objects.get(pk=self.cohort.pk).phase
        self.cohort = rollout.advance(cohort_id=self.cohort.pk, phase=before, now=self.now)
        return self.cohort.phase


@pytest.mark.django_db
class TestCohorts:
    def test_elites_weeks_from_internal_users_to_everybody(self) -> None:
        beta = Beta()
        shop, member = beta.shop, beta.invited()
        assert shop.refused_by(feature="cloud_execution") == "entitlement"
        assert (beta.advance(), len(beta.cohort.criteria.all())) == ("invited", 10)
        with pytest.raises(cohorts.Refused, match=r"^Blocked because members onboarded 0 < 5\.$"):
            beta.advance()
        for each in [member, *(beta.invited() for _ in range(4))]:
            assert cohorts.onboard(member=each, now=beta.now)
            assert not cohorts.onboard(member=each, now=beta.now)
        assert beta.advance() == "monitor"
        beta.measured("ws_up", 1_000_000, 876_000, member=member)
        with pytest.raises(cohorts.Refused, match=r"WS 93\.8 % < 95 %; there is no data of latency"):
            beta.advance()
        beta.measured("ws_up", *[1_000_000] * 10)  # of the same keys, two change nothing
        beta.measured("latency_ms", *range(4_000, 4_100))
        for metric, value in [("critical_bugs", 0), *((name, 1) for name, each in METRICS.items() if each.unit == "yes")]:
            beta.measured(metric, value)
        with pytest.raises(cohorts.Refused, match="no data of cost per active member and month"):
            beta.advance()
        standing = rollout.look(cohort=beta.cohort, now=beta.now)
        assert {one.metric.title: one.found for one in standing.stands} | {"WS": 0} == {
            "members onboarded": 5, "WS": 0, "latency (p95)": 4_094, "cost per active member and month": None, "critical bugs": 0,
            "feedback incorporated": 1, "cost model validated": 1, "documentation complete": 1, "support ready": 1,
        }  # fmt: skip
        assert standing.by_member[member.pk]["ws_up"] == 938_000
        give_cost(beta, member, 6 * NANOS)
        assert rollout.look(cohort=beta.cohort, now=beta.now).cost_nanos == 6 * NANOS * 30 // 21
        assert beta.advance() == "everybody"
        assert shop.refused_by(feature="cloud_execution") is None
        with pytest.raises(cohorts.Refused, match="it is open to everybody"):
            beta.advance()

    def test_only_the_invited_whose_plan_has_it_may_use_it(self) -> None:
        beta = Beta()
        layer = beta.shop.refusal(feature="cloud_execution")
        assert layer is not None
        assert (layer.reason, layer.switched) == ("For now cloud_execution is only open to those invited to “Cloud beta”.", True)
        assert beta.shop.refused_by(feature="browser") is None
        beta.invited(beta.shop.account)
        assert beta.shop.refused_by(feature="cloud_execution") is None
        other = Shop.new(flags={"cloud_execution": False})
        made = Cohort(product=other.product, feature="cloud_execution", name="Other", capacity=1)
        cohort = rollout.begin(cohort=made, now=beta.now)
        cohorts.invite(cohort_id=cohort.pk, account=other.account, actor="ada", now=beta.now)
        layer = other.refusal(feature="cloud_execution")
        assert layer is not None
        assert not layer.switched
        assert "does not include" in layer.reason

    def test_no_more_are_invited_than_there_is_room_for_and_nobody_elses(self) -> None:
        beta = Beta(capacity=1)
        with pytest.raises(cohorts.Refused, match="another product's"):
            beta.invited(make_account())
        member = beta.invited()
        with pytest.raises(cohorts.Refused, match="invited already"):
            beta.invited(member.account)
        with pytest.raises(cohorts.Refused, match="full: 1 accounts"):
            beta.invited()

    def test_measurements_are_once_by_key_and_old_ones_go(self) -> None:
        beta = Beta()
        beta.measured("ws_up", 5)
        beta.measured("ws_up", 7)
        assert [one.value for one in CohortSample.objects.all()] == [5]
        for days in (101, -1):
            with pytest.raises(cohorts.Refused, match="up to 100 days old"):
                cohorts.record(
                    cohort=beta.cohort, member=None, metric="ws_up", value=1, measured_at=beta.now - timedelta(days=days), key="x",
                    now=beta.now,
                )  # fmt: skip
        later = beta.now + timedelta(days=101)
        assert cohorts.record(cohort=beta.cohort, member=None, metric="ws_up", value=1, measured_at=later, key="y", now=later)
        assert [one.value for one in CohortSample.objects.all()] == [1]

    def test_a_phase_is_left_once_and_a_feature_has_one_cohort(self) -> None:
        beta = Beta()
        rollout.advance(cohort_id=beta.cohort.pk, phase="internal", now=beta.now)
        with pytest.raises(cohorts.Refused, match="another phase by now"):
            rollout.advance(cohort_id=beta.cohort.pk, phase="internal", now=beta.now)
        with pytest.raises(IntegrityError), transaction.atomic():
            rollout.begin(cohort=Cohort(product=beta.product, feature="cloud_execution", name="Again", capacity=1), now=beta.now)


def give_cost(beta: Beta, member: CohortMember, cost: int) -> None:
    world = World.new()
    world.product = beta.product
    ledger.record(world.event(member.account, cost=cost, price=0, at=beta.now))


@pytest.mark.django_db
class TestPages:
    ADD = "/admin/metering/cohort/add/"

    def act(self, client: Client, beta: Beta, verb: str, **values: object) -> str:
        response = client.post(f"/admin/metering/cohort/{beta.cohort.pk}/act/{verb}/", {"reason": "week 2", **values}, follow=True)
        assert response.status_code == 200
        return response.content.decode()

    def test_staff_begin_a_cohort_with_the_criteria_that_come_with_the_site(self, superuser: Client) -> None:
        shop = Shop.new(flags={"cloud_execution": True})
        Product.objects.filter(pk=shop.product.pk).update(slug="elite")
        form = {"product": shop.product.pk, "feature": "cloud_execution", "name": "Cloud beta", "capacity": 10}
        for garbage in (
            {"feature": "unheard_of"},
            {"feature": "Ä b"},
            {"capacity": "0"},
            {"capacity": "x"},
            {"capacity": "1001"},
            {"name": ""},
        ):
            assert superuser.post(self.ADD, form | garbage).status_code == 200, garbage
        assert superuser.post(self.ADD, form).status_code == 302
        cohort = Cohort.objects.get()
        assert (cohort.phase, cohort.criteria.count()) == ("internal", 10)
        shown = text(superuser, f"/admin/metering/cohort/{cohort.pk}/change/")
        assert "Ready for “invited”" in shown
        assert "Nobody is invited" in shown
        assert "0 of 10" in text(superuser, "/admin/metering/cohort/")

    def test_every_act_is_done_with_its_reason_in_the_log(self, superuser: Client) -> None:
        beta = Beta()
        assert "Invited" in self.act(superuser, beta, "invite", who=beta.shop.account.public_id)
        member = beta.cohort.members.get()
        assert "Onboarded" in self.act(superuser, beta, "onboard", member=member.pk)
        assert "onboarded already" in self.act(superuser, beta, "onboard", member=member.pk)
        assert "Slow &lt;b&gt;" in self.act(superuser, beta, "feedback", member=member.pk, rating=2, text="Slow <b>")
        assert "93.8 %" in self.act(superuser, beta, "measure", metric="ws_up", member=member.pk, value="93.8 %")
        assert "invited" in self.act(superuser, beta, "advance", phase="internal")
        assert "members onboarded 1 &lt; 5" in self.act(superuser, beta, "advance", phase="invited")
        self.act(superuser, beta, "criterion", leaves="invited", metric="onboarded", comparator="ge", value="1", days="1")
        self.act(superuser, beta, "criterion", leaves="invited", metric="ws_up", comparator="ge", value="95 %", days="1")
        assert "Blocked because WS 93.8 % &lt; 95 %." in text(superuser, f"/admin/metering/cohort/{beta.cohort.pk}/change/")
        lines = list(LogEntry.objects.filter(object_id=str(beta.cohort.pk)).order_by("pk").values_list("change_message", "audit__reason"))
        assert [line[0].split()[0] for line in lines] == ["Invited", "Onboarded", "Noted", "Recorded", "Went", "Leaves", "Leaves"]
        assert [line[1] for line in lines] == ["week 2", "week 2", "", *["week 2"] * 4]

    def test_the_page_shows_the_margin_with_and_without_the_fee_to_those_who_may_see_it(self, superuser: Client) -> None:
        beta = Beta()
        plan(beta.product, "elite", 51, flags={"cloud_execution": True})  # of 5,000 cents
        Product.objects.filter(pk=beta.product.pk).update(payment_fee_ppm=29_000, payment_fee_cents=30)
        give_cost(beta, beta.invited(), 7 * NANOS)
        shown = " ".join(text(superuser, f"/admin/metering/cohort/{beta.cohort.pk}/change/").split())
        assert "At the measured $10.00 a member and month, a price of $50.00 leaves a margin of 80.00 %, or 76.50 % after" in shown
        assert "after the payment fee" not in text(staff("metering.view_cohort"), f"/admin/metering/cohort/{beta.cohort.pk}/change/")

    @pytest.mark.parametrize(
        ("verb", "values"),
        [
            ("invite", {"who": ""}), ("invite", {"who": "nobody@example.com"}), ("invite", {"who": "x\x00"}), ("onboard", {"member": "x"}),
            ("feedback", {"member": "1", "rating": "6", "text": "x"}), ("measure", {"metric": "ws_up", "value": "101 %"}),
            ("measure", {"metric": "cost_per_member", "value": "1"}), ("measure", {"metric": "ws_up", "value": "\u00bd"}),
            ("advance", {"phase": "everybody"}), ("advance", {}), ("advance", {"phase": "internal", "reason": ""}),
            ("criterion", {"leaves": "everybody", "metric": "x", "comparator": "gt", "value": "-", "days": "0"}),
        ],
    )  # fmt: skip
    def test_garbage_changes_nothing(self, superuser: Client, verb: str, values: dict[str, str]) -> None:
        beta = Beta()
        self.act(superuser, beta, verb, **values)
        assert not LogEntry.objects.exists()
        assert not beta.cohort.members.exists()
        assert beta.cohort.criteria.count() == 10

    def test_only_who_may_sees_and_acts(self, superuser: Client) -> None:
        beta = Beta()
        page, act = f"/admin/metering/cohort/{beta.cohort.pk}/change/", f"/admin/metering/cohort/{beta.cohort.pk}/act/invite/"
        assert staff().get(page).status_code == 403
        viewer = staff("metering.view_cohort")
        assert (viewer.get(page).status_code, viewer.get(act).status_code, viewer.post(act).status_code) == (200, 403, 403)
        assert "Invite…" not in text(viewer, page)
        for missing in (
            page.replace(f"/{beta.cohort.pk}/", "/999999/"),
            act.replace("invite", "x"),
            page.replace(f"/{beta.cohort.pk}/", "/%C2%B2/"),
        ):
            assert superuser.get(missing).status_code == 404, missing
        assert superuser.post(page.replace("change", "delete"), {"post": "yes"}).status_code == 403
