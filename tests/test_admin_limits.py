"""Staff stop and resume: kill switches and stopped accounts, with a reason and a name, felt by client apps, kept for ever."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Approval
from billing import ledger
from metering import kill_switches
from metering.models import KillSwitch, Throttle
from metering.tests.limited import Shop
from tests.factories import make_account
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
THROW = "/admin/metering/killswitch/add/"
LIST = "/admin/metering/killswitch/"
NO_TIMES = ["", "soon", "2026-13-40T00:00", "2026-01-01", "0000-00-00T00:00", "9999-12-31T23:59", "1970-01-01T00:00", "٣", "\0", "1" * 400]
NO_REASONS = ["", "   ", "\0", "x" * 501]

pytestmark = pytest.mark.django_db


def minute(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M}"


def thrown(**more: Any) -> dict[str, Any]:
    said = {"kind": "work", "product": "", "account": "", "feature": "", "provider": "", "cap": "", "reason": "provider outage"}
    return said | {"ends_at": minute(timezone.now() + timedelta(hours=1))} | more


@pytest.fixture
def shop() -> Shop:
    return Shop.new()


class TestKillSwitches:
    def throw(self, client: Client, **form: Any) -> Any:
        """What staff do: they look whom it touches, and say it again."""
        shown = client.post(THROW, thrown(**form))
        preview = (shown.context or {}).get("preview")
        return client.post(THROW, thrown(**form) | {"confirm": preview.token}) if preview else shown

    def test_a_thrown_switch_stops_the_feature_and_is_kept_with_who_and_why(self, superuser: Client, shop: Shop) -> None:
        assert shop.refused_by(feature="chat") is None
        done = self.throw(superuser, product=shop.product.pk, feature="chat")
        assert (done.status_code, done.headers["Location"]) == (302, LIST)
        assert [shop.refused_by(feature=feature) for feature in ("chat", None)] == ["kill_switch", None]
        switch = KillSwitch.objects.get(product=shop.product)
        assert "@example.com" in switch.actor
        assert LogEntry.objects.get(object_id=str(switch.pk)).change_message.startswith("Thrown until ")
        listed = superuser.get(LIST).content.decode()
        assert all(word in listed for word in (f"{shop.product.name}: chat", "provider outage", "in force", switch.actor))

    def test_whom_it_touches_is_shown_first_and_what_is_thrown_is_what_was_shown(self, superuser: Client, shop: Shop) -> None:
        shop.use(tokens=5)
        spender = Shop(make_account(shop.product, credit=1), shop.model)
        spender.record(spender.event(tokens=20))
        shown = superuser.post(THROW, thrown(product=shop.product.pk, kind="cost_cap", cap="0.00001"))
        preview = shown.context["preview"]
        assert (preview.accounts, preview.plans, preview.uses, preview.cost_nanos) == (2, (("Free", 2),), 2, 25_000)
        assert [(each.account, each.used_nanos) for each in preview.named] == [(spender.account, 20_000)]
        text = shown.content.decode()
        assert all(word in text for word in ("2 accounts", "cut 1 off at once", str(spender.account), "Throw it"))
        assert not KillSwitch.objects.exists()
        other = superuser.post(THROW, thrown(product=shop.product.pk, kind="cost_cap", cap="0") | {"confirm": preview.token})
        assert (other.status_code, other.context["preview"].cut_off) == (200, 2)
        assert not KillSwitch.objects.exists()
        assert (
            superuser.post(THROW, thrown(product=shop.product.pk, kind="cost_cap", cap="0.00001") | {"confirm": preview.token}).status_code
            == 302
        )
        assert KillSwitch.objects.get().cap_nanos == 10_000
        assert [each.refused_by() for each in (shop, spender)] == [None, "cost"]

    def test_one_for_everything_is_thrown_by_the_second_person_only_and_every_page_says_so(self, superuser: Client, shop: Shop) -> None:
        asked = self.throw(superuser, kind="work", reason="the bank is on fire")
        approval = Approval.objects.get()
        decide = reverse("admin:accounts_approval_decide", args=[approval.pk])
        assert (asked.status_code, asked.headers["Location"]) == (302, decide)
        assert not KillSwitch.objects.exists()
        assert "already asked" not in superuser.get(decide).content.decode()
        assert "1 act wait" in superuser.get("/admin/").content.decode()
        assert superuser.post(decide, {"decision": "approve"}).status_code == 403
        assert "asked for the same" in self.throw(superuser, kind="work", reason="again").content.decode()
        second = staff("accounts.view_approval", "metering.add_killswitch")
        assert second.post(decide, {"decision": "approve", "note": "agreed"}).status_code == 302
        switch = KillSwitch.objects.get()
        assert (switch.approval, switch.product, switch.reason) == (approval, None, "the bank is on fire")
        assert timedelta(minutes=58) < switch.ends_at - timezone.now() <= timedelta(hours=1)
        assert shop.refused_by() == "kill_switch"
        lines = LogEntry.objects.filter(content_type__model="killswitch").values_list("user__email", "change_message")
        [(who, line)] = list(lines)
        assert (who, line.startswith("Approved until")) == (str(Approval.objects.get().decided_by), True)
        for page in ("/admin/", LIST, "/admin/accounts/account/", THROW, reverse("admin:pricing_product_changelist")):
            banner = superuser.get(page).content.decode()
            assert all(word in banner for word in ("Work stopped: everything", "the bank is on fire", switch.actor, who)), page
        assert "the bank is on fire" in staff().get("/admin/").content.decode()
        assert "bank" not in Client().get("/admin/login/").content.decode()
        assert kill_switches.end(switch=switch, actor="ada", now=timezone.now())
        assert "tg-banner" not in superuser.get("/admin/").content.decode()

    def test_an_account_alone_is_switched_by_its_id(self, superuser: Client, shop: Shop) -> None:
        other = Shop(make_account(shop.product, credit=1), shop.model)
        assert self.throw(superuser, account=shop.account.public_id).status_code == 302
        assert [each.refused_by() for each in (shop, other)] == ["kill_switch", None]
        assert str(shop.account) in superuser.get(LIST).content.decode()

    def test_the_form_proposes_four_hours_and_accepts_seven_days_at_most(self, superuser: Client, shop: Shop) -> None:
        page = superuser.get(THROW)
        proposed = datetime.fromisoformat(page.context["form"].initial["ends_at"] + "+00:00")
        assert timedelta(hours=3, minutes=58) < proposed - timezone.now() <= timedelta(hours=4)
        week = timezone.now() + timedelta(days=7)
        assert self.throw(superuser, product=shop.product.pk, ends_at=minute(week + timedelta(minutes=2))).status_code == 200
        assert not KillSwitch.objects.exists()
        assert self.throw(superuser, product=shop.product.pk, ends_at=minute(week - timedelta(minutes=1))).status_code == 302

    def test_a_form_sent_twice_throws_one_switch(self, superuser: Client, shop: Shop) -> None:
        assert [self.throw(superuser, product=shop.product.pk).status_code for _ in range(2)] == [302, 200]
        assert KillSwitch.objects.count() == 1

    def test_an_ended_switch_lets_work_go_on_and_ends_once(self, superuser: Client, shop: Shop) -> None:
        self.throw(superuser, product=shop.product.pk)
        switch = KillSwitch.objects.get()
        end = reverse("admin:metering_killswitch_end", args=[switch.pk])
        assert end in superuser.get(f"{LIST}{switch.pk}/change/").content.decode()
        assert "provider outage" in superuser.get(end).content.decode()
        assert superuser.post(end, {"reason": ""}).status_code == 200
        assert shop.refused_by() == "kill_switch"
        superuser.post(end, {"reason": "the provider is back"})
        first = KillSwitch.objects.get()
        superuser.post(end, {"reason": "again"})
        assert shop.refused_by() is None
        assert KillSwitch.objects.get().ended_at == first.ended_at is not None
        messages = LogEntry.objects.filter(object_id=str(switch.pk)).order_by("id").values_list("change_message", flat=True)
        assert list(messages)[1:] == ["Ended: the provider is back"]
        assert end not in superuser.get(f"{LIST}{switch.pk}/change/").content.decode()

    def test_a_switch_is_never_edited_or_deleted(self, superuser: Client, shop: Shop) -> None:
        self.throw(superuser, product=shop.product.pk)
        before = KillSwitch.objects.values().get()
        superuser.post(f"{LIST}{before['id']}/change/", thrown(reason="another"))
        superuser.post(f"{LIST}{before['id']}/delete/", {"post": "yes"})
        superuser.post(LIST, {"action": "delete_selected", "_selected_action": before["id"], "post": "yes"})
        assert KillSwitch.objects.values().get() == before

    @pytest.mark.parametrize(
        "garbage",
        [
            *({"ends_at": value} for value in NO_TIMES), *({"reason": value} for value in [*NO_REASONS, "x" * 201]),
            *({"feature": value} for value in ("Chat", "a b", "a\n", "٣", "x" * 65, "-", "\0", "a/b")),
            *({"product": value} for value in ("0", "x", "-1", "9" * 30, "\0", "٣")),
            *({"kind": value} for value in ("", "drop", "\0", "WORK")),
            *({"account": value} for value in ("0", "acct_" + "0" * 20, "\0", "x" * 41, "' or 1=1")),
            *({"provider": value} for value in ("a b", "\0", "x" * 65, "-", "a:b")),
            *({"cap": value} for value in ("-1", "ten", "NaN", "Infinity", "1e9", "1.0000000001", "\0", "1000001")),
        ],
    )  # fmt: skip
    def test_a_form_with_garbage_throws_nothing_and_says_so_at_its_field(self, superuser: Client, garbage: dict[str, str]) -> None:
        answer = superuser.post(THROW, thrown(**garbage) | {"confirm": "x"})
        assert answer.status_code == 200
        assert set(answer.context["form"].errors) == set(garbage)
        assert not KillSwitch.objects.exists()
        assert not Approval.objects.exists()

    @pytest.mark.parametrize(
        "form", [{"kind": "provider"}, {"kind": "cost_cap"}, {"cap": "1"}, {"provider": "acme"}, {"kind": "tracking", "feature": "chat"}]
    )
    def test_what_does_not_fit_its_kind_is_refused_in_words(self, superuser: Client, shop: Shop, form: dict[str, str]) -> None:
        answer = self.throw(superuser, product=shop.product.pk, **form)
        assert (answer.status_code, len(answer.context["form"].non_field_errors())) == (200, 1)
        assert not KillSwitch.objects.exists()

    def test_staff_need_the_right_for_each_act(self, shop: Shop) -> None:
        viewer, thrower = staff("metering.view_killswitch"), staff("metering.view_killswitch", "metering.add_killswitch")
        assert viewer.post(THROW, thrown()).status_code == 403
        assert self.throw(thrower, product=shop.product.pk).status_code == 302
        end = reverse("admin:metering_killswitch_end", args=[KillSwitch.objects.get().pk])
        assert [client.post(end, {"reason": "x"}).status_code for client in (viewer, thrower)] == [403, 403]
        assert staff("metering.change_killswitch").post(end, {"reason": "x"}).status_code == 302
        assert staff("metering.change_killswitch").get(end.replace(str(KillSwitch.objects.get().pk), "999999")).status_code == 404
        assert Client().post(THROW, thrown()).status_code == 302  # to the sign-in
        assert KillSwitch.objects.count() == 1


class TestStops:
    def page(self, shop: Shop, act: str = "change") -> str:
        return reverse(f"admin:accounts_account_{act}", args=[shop.account.pk])

    def test_a_stopped_account_is_refused_until_it_is_resumed_and_its_page_tells_the_story(self, superuser: Client, shop: Shop) -> None:
        assert self.page(shop, "stop") in superuser.get(self.page(shop)).content.decode()
        assert "captured" in superuser.get(self.page(shop, "stop")).content.decode()
        done = superuser.post(self.page(shop, "stop"), {"reason": "unpaid & <b>odd</b>", "ends_at": ""})
        assert (done.status_code, done.headers["Location"]) == (302, self.page(shop))
        refused = shop.refusal()
        assert refused is not None
        assert refused.reason == "The account is stopped: unpaid & <b>odd</b>"
        shown = superuser.get(self.page(shop)).content.decode()
        assert "unpaid &amp; &lt;b&gt;odd&lt;/b&gt;" in shown
        assert self.page(shop, "resume") in shown
        assert self.page(shop, "stop") not in shown
        assert superuser.post(self.page(shop, "resume"), {"reason": "paid"}).status_code == 302
        assert shop.refused_by() is None
        [stop] = Throttle.objects.filter(account=shop.account)
        assert stop.actor == stop.lifted_by != ""
        messages = LogEntry.objects.filter(object_id=str(shop.account.pk)).order_by("id").values_list("change_message", flat=True)
        assert list(messages) == ["Stopped: unpaid & <b>odd</b>", f"Resumed (a stop by {stop.actor}): paid"]
        assert "Stops" in superuser.get(self.page(shop)).content.decode()

    def test_a_stop_may_have_an_end(self, superuser: Client, shop: Shop) -> None:
        end = (timezone.now() + timedelta(hours=2)).replace(second=0, microsecond=0)
        superuser.post(self.page(shop, "stop"), {"reason": "abuse", "ends_at": minute(end)})
        layer = shop.refusal()
        assert layer is not None
        assert layer.resets_at == end

    def test_a_stop_whose_end_comes_before_it_does_stops_and_logs_nothing(self, superuser: Client, shop: Shop) -> None:
        end = (timezone.now() + timedelta(minutes=2)).replace(second=0, microsecond=0)
        with ledger.clock(at=end):
            answer = superuser.post(self.page(shop, "stop"), {"reason": "abuse", "ends_at": minute(end)}, follow=True)
        assert "is not stopped" in answer.content.decode()
        assert not Throttle.objects.filter(account=shop.account).exists()
        assert not LogEntry.objects.filter(object_id=str(shop.account.pk)).exists()

    def test_resuming_what_is_not_stopped_changes_and_logs_nothing(self, superuser: Client, shop: Shop) -> None:
        answer = superuser.post(self.page(shop, "resume"), {"reason": "why not"}, follow=True)
        assert "was not stopped" in answer.content.decode()
        assert not LogEntry.objects.filter(object_id=str(shop.account.pk)).exists()

    @pytest.mark.parametrize(
        "garbage", [*({"ends_at": value} for value in NO_TIMES if value), *({"reason": value} for value in NO_REASONS)]
    )
    def test_a_form_with_garbage_stops_nobody_and_says_so_at_its_field(
        self, superuser: Client, shop: Shop, garbage: dict[str, str]
    ) -> None:
        answer = superuser.post(self.page(shop, "stop"), {"reason": "abuse", "ends_at": ""} | garbage)
        assert answer.status_code == 200
        assert set(answer.context["form"].errors) == set(garbage)
        assert shop.refused_by() is None

    def test_staff_need_the_right_for_each_act(self, shop: Shop) -> None:
        stop, resume = self.page(shop, "stop"), self.page(shop, "resume")
        stopper, resumer = staff("metering.add_throttle"), staff("metering.change_throttle")
        assert [client.post(stop, {"reason": "x"}).status_code for client in (staff("accounts.view_account"), resumer)] == [403, 403]
        assert not Throttle.objects.filter(account=shop.account).exists()
        assert stopper.post(stop, {"reason": "x"}).status_code == 302
        assert [client.post(resume, {"reason": "x"}).status_code for client in (stopper, resumer)] == [403, 302]
        assert stopper.get(stop.replace(f"/{shop.account.pk}/", "/999999999/")).status_code == 404
