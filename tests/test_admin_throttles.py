"""Staff see who is throttled and who soon will be, lift it for one or for all, and pull levers that they can take back."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from metering import throttles
from metering.models import CostThrottle
from metering.tests.limited import PER_TOKEN, Shop
from metering.throttle_pages import FORMS
from pricing.models import CostTier, Lever, Product
from tests.factories import make_account
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
THROTTLED = "/admin/metering/costthrottle/"
LIFT = "/admin/metering/costthrottle/lift/"
LEVERS = "/admin/pricing/lever/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop() -> Shop:
    """One account at its limit of the billing period; its product has what a catalog file asks for."""
    shop = Shop.new(tier={"monthly_cost_nanos": 100 * PER_TOKEN})
    Product.objects.filter(pk=shop.product.pk).update(burn_order=["purchased"])
    shop.use(tokens=100)
    return shop


def neighbour(shop: Shop, tokens: int) -> Shop:
    other = Shop(make_account(shop.product, credit=100), shop.model)
    if tokens:
        other.use(tokens=tokens)
    return other


def text(client: Client, path: str) -> str:
    page = client.get(path)
    assert page.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.content.decode()))


class TestThrottled:
    def test_the_page_lists_who_is_throttled_and_who_is_above_three_quarters_with_address_cost_tier_and_limit(
        self, superuser: Client, shop: Shop
    ) -> None:
        risky, quiet = neighbour(shop, 80), neighbour(shop, 75)
        risky.account.memberships.create(user=User.objects.create_user(email="risky@example.com"), role="owner")
        page = text(superuser, f"{THROTTLED}?product={shop.product.pk}")
        assert f"1 of 3 active accounts is throttled (33.3 %) of {shop.product}." in page
        assert "The usage limit for this billing period is reached." in page
        assert all(word in page for word in ("risky@example.com", "free-2", "cost/period", "0.0001", "0.00008"))
        assert [one.account for one, _ in superuser.get(THROTTLED).context["at_risk"]] == [shop.account, risky.account]
        assert quiet.account not in [one.account for one, _ in superuser.get(THROTTLED).context["at_risk"]]

    def test_with_nobody_throttled_it_says_so(self, superuser: Client) -> None:
        page = text(superuser, THROTTLED)
        assert "0 of 0 active accounts are throttled ." in page
        assert "Nobody is throttled." in page

    @pytest.mark.parametrize("garbage", ["x", "-1", "9" * 40, "\0", "٣"])
    def test_a_product_that_is_none_shows_every_product(self, superuser: Client, shop: Shop, garbage: str) -> None:
        answer = superuser.get(THROTTLED, {"product": garbage})
        assert (answer.status_code, answer.context["product"]) == (200, None)

    def test_the_account_page_shows_cost_state_and_reason_while_no_credits_were_used_up(self, superuser: Client, shop: Shop) -> None:
        page = text(superuser, reverse("admin:accounts_account_change", args=[shop.account.pk]))
        assert "throttled until" in page
        assert "The usage limit for this billing period is reached." in page
        assert "cost/period free-2" in page
        assert "0.0001" in page

    def test_who_does_not_read_the_margin_report_sees_who_is_throttled_and_not_what_the_work_cost(self, shop: Shop) -> None:
        rights = ("accounts.view_account", "metering.view_costthrottle", "metering.change_throttle")
        support, finance = staff(*rights), staff(*rights, "analytics.view_margin")
        lifted = {"product": shop.product.pk, "reason": "x"}
        account = reverse("admin:accounts_account_change", args=[shop.account.pk])
        for said, cost in ((text(support, THROTTLED), "0.0001"), (text(support, account), "Cost so far")):
            assert "The usage limit for this billing period is reached." in said
            assert cost not in said
        assert "0.0001" not in support.post(LIFT, lifted).content.decode()
        assert "0.0001" in finance.post(LIFT, lifted).content.decode()
        assert "0.0001" in text(finance, THROTTLED)
        assert "Cost so far" in text(finance, account)

    def test_one_account_is_resumed_for_the_rest_of_its_window(self, superuser: Client, shop: Shop) -> None:
        resume = reverse("admin:accounts_account_resume", args=[shop.account.pk])
        assert "when that window ends, the limit does not count" in text(superuser, resume)
        superuser.post(resume, {"reason": "a false positive"})
        assert shop.refused_by() is None
        page = text(superuser, reverse("admin:accounts_account_change", args=[shop.account.pk]))
        assert "cost/period lifted by" in page
        assert "a false positive" in page


class TestLiftForAll:
    def test_all_are_lifted_once_that_was_seen_and_confirmed(self, superuser: Client, shop: Shop) -> None:
        others = [neighbour(shop, 100), neighbour(shop, 10)]
        stranger = Shop.new(tier={"monthly_cost_nanos": 10 * PER_TOKEN})
        stranger.use(tokens=10)
        form = {"product": shop.product.pk, "reason": "the price was wrong"}
        shown = superuser.post(LIFT, form)
        assert (shown.context["count"], shown.context["preview"]) == (2, True)
        assert not CostThrottle.objects.exists()
        assert superuser.post(LIFT, form | {"confirm": "1"}).headers["Location"] == THROTTLED
        assert [one.refused_by() for one in (shop, *others, stranger)] == [None, None, None, "cost"]
        lines = LogEntry.objects.filter(change_message__startswith="Resumed (cost/period until ").values_list("change_message", flat=True)
        assert len(lines) == 2
        assert all(line.endswith(": the price was wrong") for line in lines)
        assert superuser.post(LIFT, form | {"confirm": "1"}, follow=True).content.decode().count("0 accounts may work again") == 1

    def test_who_staff_stopped_stays_stopped_unless_that_is_asked_for(self, superuser: Client, shop: Shop) -> None:
        throttles.stop(account=shop.account, actor="grace@example.com", reason="abuse", ends_at=None, now=timezone.now())
        superuser.post(LIFT, {"product": "", "reason": "all", "confirm": "1"})
        assert shop.refused_by() == "throttle"
        superuser.post(LIFT, {"product": "", "reason": "all", "stops": "on", "confirm": "1"})
        assert shop.refused_by() is None

    @pytest.mark.parametrize("garbage", [{"reason": ""}, {"reason": "\0"}, {"reason": "x" * 301}, {"product": "x"}, {"product": "9" * 30}])
    def test_garbage_lifts_nothing_and_is_said_at_its_field(self, superuser: Client, shop: Shop, garbage: dict[str, str]) -> None:
        answer = superuser.post(LIFT, {"product": "", "reason": "all", "confirm": "1"} | garbage)
        assert set(answer.context["form"].errors) == set(garbage)
        assert shop.refused_by() == "cost"

    def test_it_takes_the_right_to_resume(self, shop: Shop) -> None:
        viewer = staff("metering.view_costthrottle")
        assert [viewer.get(path).status_code for path in (THROTTLED, LIFT)] == [200, 403]
        assert staff("metering.change_throttle").get(LIFT).status_code == 200
        assert staff().get(THROTTLED).status_code == 403
        assert Client().get(LIFT).status_code == 302


def pulled(client: Client, kind: str, **said: Any) -> Any:
    """The whole way: asked, seen, confirmed."""
    form = {"token": str(uuid4()), "reason": "too many are throttled"} | said
    shown = client.post(f"{LEVERS}pull/{kind}/", form)
    assert shown.context["confirm"], shown.context["form"].errors
    return client.post(f"{LEVERS}pull/{kind}/", form | {"confirm": "1", "seen": shown.context["seen"]})


class TestLevers:
    def test_all_limits_go_up_a_fifth_after_the_effect_was_seen_and_back(self, superuser: Client, shop: Shop) -> None:
        token, url = str(uuid4()), f"{LEVERS}pull/cost_limits/"
        form = {"product": shop.product.pk, "percent": "20", "reason": "more than a tenth is throttled", "token": token}
        shown = superuser.post(url, form)
        assert [one.account for one in shown.context["preview"].freed] == [shop.account]
        assert shop.refused_by() == "cost"
        done = superuser.post(url, form | {"confirm": "1", "seen": shown.context["seen"]})
        assert (done.status_code, done.headers["Location"]) == (302, LEVERS)
        assert shop.refused_by() is None
        assert superuser.post(url, form | {"confirm": "1", "seen": shown.context["seen"]}).status_code == 302  # sent twice
        lever = Lever.objects.get()
        listed = text(superuser, LEVERS)
        assert "free-2: monthly cost (USD): 0.0001 → 0.00012" in listed
        assert "in force" in listed
        undo = reverse("admin:pricing_lever_undo", args=[lever.pk])
        assert undo in superuser.get(f"{LEVERS}{lever.pk}/change/").content.decode()
        assert [one.account for one in superuser.get(undo).context["preview"].throttled] == [shop.account]
        assert superuser.post(undo, {"reason": "it was enough"}).context["confirm"] is True
        superuser.post(undo, {"reason": "it was enough", "confirm": "1"})
        assert CostTier.objects.get(product=shop.product).monthly_cost_nanos == 100 * PER_TOKEN
        assert shop.refused_by() == "cost"
        messages = LogEntry.objects.filter(object_id=str(lever.pk)).order_by("pk").values_list("change_message", flat=True)
        assert list(messages) == [
            "Pulled: free-2: monthly cost (USD) 0.0001 → 0.00012; more than a tenth is throttled", "Undone: it was enough"
        ]  # fmt: skip
        assert "It cannot be undone. It was undone by" in superuser.get(undo, follow=True).content.decode()

    def test_what_changed_since_it_was_seen_is_shown_again_and_nothing_is_done(self, superuser: Client, shop: Shop) -> None:
        form = {"product": shop.product.pk, "percent": "20", "reason": "x", "token": str(uuid4())}
        seen = superuser.post(f"{LEVERS}pull/cost_limits/", form).context["seen"]
        CostTier.objects.filter(product=shop.product).update(monthly_cost_nanos=200 * PER_TOKEN)
        again = superuser.post(f"{LEVERS}pull/cost_limits/", form | {"confirm": "1", "seen": seen})
        assert again.status_code == 200
        assert again.context["seen"] != seen
        assert "Something changed since you looked" in again.content.decode()
        assert not Lever.objects.exists()

    def test_one_tier_throttling_request_size_and_prices_have_their_pages(self, superuser: Client, shop: Shop) -> None:
        tier = CostTier.objects.get(product=shop.product)
        assert pulled(superuser, "cost_tier", tier=tier.pk, monthly_cost="0.01", requests_per_hour="5").status_code == 302
        assert pulled(superuser, "throttling", product=shop.product.pk, on="no").status_code == 302
        assert pulled(superuser, "request_size", product=shop.product.pk, tokens="5000").status_code == 302
        tier.refresh_from_db()
        assert (tier.monthly_cost_nanos, tier.requests_per_hour, tier.throttle_on_exceed) == (10_000_000, 5, False)
        assert Product.objects.get(pk=shop.product.pk).max_request_tokens == 5_000
        version = shop.product.plans.get(slug="free").versions.order_by("-valid_from")[0]
        version.pk, version.version, version.price_cents, version.valid_from = None, 9, 500, timezone.now() - timedelta(seconds=1)
        version.save()
        assert pulled(superuser, "price_back", what=[f"{shop.product.slug}:plans.free"]).status_code == 302
        assert Lever.objects.count() == 4

    @pytest.mark.parametrize(
        ("kind", "garbage"),
        [
            ("cost_limits", {"percent": value}) for value in ("", "0.5", "NaN", "-91", "201", "1e1", "\0", "9" * 30)
        ] + [
            ("cost_tier", {"tier": value}) for value in ("", "0", "x", "\0")
        ] + [
            ("throttling", {"on": value}) for value in ("", "maybe")
        ] + [
            ("request_size", {"tokens": value}) for value in ("0", "-1", "x", "9" * 30)
        ] + [
            ("price_back", {"what": value}) for value in ([], ["x"], ["prpm:plans.gold"])
        ] + [
            ("cost_limits", {"reason": value}) for value in ("", "x" * 301)
        ] + [("cost_limits", {"token": "x"})],
    )  # fmt: skip
    def test_garbage_changes_nothing_and_is_said_at_its_field(
        self, superuser: Client, shop: Shop, kind: str, garbage: dict[str, Any]
    ) -> None:
        usual = {"product": shop.product.pk, "percent": "20", "on": "no", "tokens": "9", "reason": "x", "token": str(uuid4()), "what": []}
        form = usual | {"tier": CostTier.objects.get(product=shop.product).pk} | garbage
        answer = superuser.post(f"{LEVERS}pull/{kind}/", form | {"confirm": "1", "seen": ""})
        assert answer.status_code == 200
        assert set(answer.context["form"].errors) == set(garbage)
        assert not Lever.objects.exists()

    @pytest.mark.parametrize("value", ["-1", "two", "1e3", "0.0000000001", "999999.99"])
    def test_an_amount_that_no_catalog_may_have_is_said(self, superuser: Client, shop: Shop, value: str) -> None:
        tier = CostTier.objects.get(product=shop.product)
        form = {"tier": tier.pk, "monthly_cost": value, "reason": "x", "token": str(uuid4())}
        answer = superuser.post(f"{LEVERS}pull/cost_tier/", form)
        assert "expected" in str(answer.context["form"].errors)

    def test_a_lever_of_no_kind_is_none_and_each_act_takes_its_right(self, superuser: Client, shop: Shop) -> None:
        assert superuser.get(f"{LEVERS}pull/everything/").status_code == 404
        assert [superuser.get(f"{LEVERS}pull/{kind}/").status_code for kind in FORMS] == [200] * len(FORMS)
        pulled(superuser, "request_size", product=shop.product.pk, tokens="5000")
        undo = reverse("admin:pricing_lever_undo", args=[Lever.objects.get().pk])
        viewer = staff("pricing.view_lever")
        assert [viewer.get(path).status_code for path in (LEVERS, f"{LEVERS}pull/cost_limits/", undo)] == [200, 403, 403]
        assert "pull/" not in viewer.get(LEVERS).content.decode()
        puller, undoer = staff("pricing.add_lever"), staff("pricing.change_lever")
        assert [client.get(f"{LEVERS}pull/cost_limits/").status_code for client in (puller, undoer)] == [200, 403]
        assert [client.get(undo).status_code for client in (puller, undoer)] == [403, 200]
        assert superuser.get(undo.replace(f"/{Lever.objects.get().pk}/", "/999999/")).status_code == 404
