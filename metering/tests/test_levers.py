"""Levers: felt at once by everybody they are for and by nobody else, seen before, taken back exactly, and not undone by a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from billing import subscriptions
from metering import levers, throttles
from metering.levers import Change
from metering.tests.limited import PER_TOKEN, Shop, dollars
from pricing import catalog, catalog_file
from pricing.models import CatalogChange, CostTier, Lever, PlanVersion, Product, RateCard
from tests.factories import make_account

CATALOGS = Path(__file__).parents[2] / "pricing" / "catalogs"
NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
Kind = Lever.Kind

pytestmark = pytest.mark.django_db


def document(slug: str) -> catalog_file.Document:
    """A shipped catalog without its floor, under which levers need a second person: see test_margin_approvals.py."""
    shipped = catalog_file.parse((CATALOGS / f"{slug}.toml").read_bytes())
    return catalog_file.with_value(shipped, ["product", "floor_margin_percent"], None)


@pytest.fixture
def prpm() -> Product:
    catalog_file.apply(document("prpm"), actor="test")
    return Product.objects.get(slug="prpm")


def pull(kind: str, changes: Sequence[Change], **more: Any) -> Lever:
    terms: dict[str, Any] = {"token": uuid4(), "actor": "ada", "reason": "too many are throttled", "now": timezone.now()} | more
    return levers.pull(kind=Kind(kind), changes=changes, **terms)[0]


def limits(product: Product) -> dict[str, tuple[int | None, int | None]]:
    return {tier.slug: (tier.monthly_cost_nanos, tier.daily_cost_nanos) for tier in CostTier.objects.filter(product=product)}


def undo(lever: Lever) -> list[Change]:
    return levers.undo(lever=lever, actor="grace", reason="a mistake", now=timezone.now())


BEFORE = {
    "free": (dollars("0.50"), dollars("0.10")),
    "prpm_plus_individual": (dollars("5"), dollars("1")),
    "prpm_plus_org": (dollars("2.50"), dollars("0.50")),
    "unlimited": (None, None),
}


class TestCostLimits:
    @pytest.mark.parametrize(("percent", "free", "org"), [(20, ("0.60", "0.12"), ("3", "0.60")), (-20, ("0.40", "0.08"), ("2", "0.40"))])
    def test_all_limits_go_up_or_down_by_a_fifth_and_exactly_back(
        self, prpm: Product, percent: int, free: tuple[str, str], org: tuple[str, str]
    ) -> None:
        lever = pull("cost_limits", levers.cost_limits(percent=percent, product=prpm))
        assert limits(prpm)["free"] == tuple(map(dollars, free))
        assert limits(prpm)["prpm_plus_org"] == tuple(map(dollars, org))
        assert limits(prpm)["unlimited"] == (None, None)
        undo(lever)
        assert limits(prpm) == BEFORE

    def test_of_everywhere_it_is_one_act_and_undone_in_one(self, prpm: Product) -> None:
        catalog_file.apply(document("elite"), actor="test")
        elite = Product.objects.get(slug="elite")
        before = limits(elite)
        lever = pull("cost_limits", levers.cost_limits(percent=20, product=None))
        assert Lever.objects.filter(token=lever.token).count() == Product.objects.filter(cost_tiers__isnull=False).distinct().count()
        assert limits(elite) != before
        undo(lever)
        assert (limits(elite), limits(prpm)) == (before, BEFORE)

    @pytest.mark.parametrize("percent", [0, -91, 201])
    def test_a_share_of_nothing_or_beyond_reason_is_refused(self, prpm: Product, percent: int) -> None:
        with pytest.raises(levers.InvalidLever, match="Give a share"):
            levers.cost_limits(percent=percent, product=prpm)

    def test_the_preview_names_who_would_be_throttled_and_who_freed_and_is_right(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 100 * PER_TOKEN})
        others = [Shop(make_account(shop.product, credit=100), shop.model) for _ in range(2)]
        catalog_ready(shop.product)
        with shop.at(NOON):
            for one, tokens in zip((shop, *others), (100, 90, 10), strict=True):
                one.now = NOON
                one.use(tokens=tokens)
            up, down = (levers.cost_limits(percent=percent, product=shop.product) for percent in (20, -20))
            freed = levers.preview(changes=up, now=NOON)
            assert ([one.account for one in freed.freed], freed.throttled, freed.accounts) == ([shop.account], (), 3)
            throttled = levers.preview(changes=down, now=NOON)
            assert ([one.account for one in throttled.throttled], throttled.freed) == ([others[0].account], ())
            pull("cost_limits", down)
            assert [one.account for one in throttles.everybody(now=NOON, product=shop.product)] == [shop.account, others[0].account]
            assert (others[0].refused_by(), others[1].refused_by()) == ("cost", None)


def catalog_ready(product: Product) -> None:
    """What a product that was made by hand lacks of a catalog file."""
    Product.objects.filter(pk=product.pk).update(burn_order=["purchased"])


class TestOneTier:
    def test_the_org_limit_goes_from_2_50_to_2_00_at_once_and_nothing_else_changes(self, prpm: Product) -> None:
        pull("cost_tier", levers.cost_tier(product=prpm, slug="prpm_plus_org", values={"monthly_cost": "2.00"}))
        assert limits(prpm) == BEFORE | {"prpm_plus_org": (dollars("2"), dollars("0.50"))}
        change = CatalogChange.objects.filter(product=prpm)[0]
        assert (change.actor, change.diff) == ("ada", '~ cost_tiers.prpm_plus_org.monthly_cost = "2.50" → "2.00"')

    def test_a_tier_may_measure_without_blocking_and_block_again(self, prpm: Product) -> None:
        tier = CostTier.objects.get(product=prpm, slug="free")
        lever = pull("cost_tier", levers.cost_tier(product=prpm, slug="free", values={"throttle_on_exceed": False}))
        tier.refresh_from_db()
        assert tier.throttle_on_exceed is False
        undo(lever)
        tier.refresh_from_db()
        assert tier.throttle_on_exceed is True

    @pytest.mark.parametrize("value", ["-1", "two", "1e3", "", "0.0000000001", 2, None, "999999.99"])
    def test_a_limit_that_no_file_may_have_is_refused_and_changes_nothing(self, prpm: Product, value: Any) -> None:
        changes = levers.cost_tier(product=prpm, slug="free", values={"monthly_cost": value})
        with pytest.raises(levers.InvalidLever, match="monthly_cost"):
            pull("cost_tier", changes)
        assert (limits(prpm), Lever.objects.count()) == (BEFORE, 0)

    def test_a_tier_that_is_none_and_a_change_that_is_none_are_refused(self, prpm: Product) -> None:
        with pytest.raises(levers.InvalidLever, match="no cost tier"):
            levers.cost_tier(product=prpm, slug="gold", values={"monthly_cost": "1"})
        with pytest.raises(levers.InvalidLever, match="Nothing would change"):
            levers.cost_tier(product=prpm, slug="free", values={"monthly_cost": "0.50"})


class TestThrottling:
    def test_throttling_goes_off_for_every_tier_in_one_act_and_on_again(self, prpm: Product) -> None:
        lever = pull("throttling", levers.throttling(on=False, product=prpm))
        assert set(CostTier.objects.filter(product=prpm).values_list("throttle_on_exceed", flat=True)) == {False}
        undo(lever)
        assert CostTier.objects.filter(product=prpm, throttle_on_exceed=False).get().slug == "unlimited"  # as its file has it


class TestRequestSize:
    def test_a_smaller_request_size_is_for_who_is_on_a_plan_already_and_comes_back_exactly(self) -> None:
        shop = Shop.new(("request_tokens", "request", 20_000))
        catalog_ready(shop.product)
        lever = pull("request_size", levers.request_size(tokens=10_000, product=shop.product))
        shop.product.refresh_from_db()
        assert [shop.refused_by(tokens=tokens) for tokens in (10_000, 10_001)] == [None, "request_size"]
        refused = shop.refusal(tokens=10_001)
        assert refused is not None
        assert refused.reason == "The request has 10001 tokens; for now the product allows 10000."
        undo(lever)
        shop.product.refresh_from_db()
        assert [shop.refused_by(tokens=tokens) for tokens in (20_000, 20_001)] == [None, "request_size"]

    def test_it_never_raises_what_a_plan_allows_and_limits_a_plan_that_has_none(self) -> None:
        small, free = Shop.new(("request_tokens", "request", 100)), Shop.new()
        for shop in (small, free):
            shop.product.max_request_tokens = 1_000
        assert [small.refused_by(tokens=tokens) for tokens in (100, 101)] == [None, "request_size"]
        assert [free.refused_by(tokens=tokens) for tokens in (1_000, 1_001)] == [None, "request_size"]

    @pytest.mark.parametrize("mode", ["soft", "shadow", "off"])
    def test_it_refuses_also_where_the_plan_only_warns(self, mode: str) -> None:
        shop = Shop.new(("request_tokens", "request", 10, mode))
        shop.product.max_request_tokens = 20
        assert [shop.refused_by(tokens=tokens) for tokens in (11, 20, 21)] == [None, None, "request_size"]

    @pytest.mark.parametrize("tokens", [0, -1, 2**31])
    def test_a_size_that_no_file_may_have_is_refused(self, prpm: Product, tokens: int) -> None:
        with pytest.raises(levers.InvalidLever, match="max_request_tokens"):
            pull("request_size", levers.request_size(tokens=tokens, product=prpm))


class TestPriceBack:
    def test_prpms_prices_go_back_to_5_and_2_dollars_for_who_subscribes_from_now_on(self, prpm: Product) -> None:
        versions = PlanVersion.objects.filter(plan__product=prpm).count()
        lever = pull("price_back", levers.price_back(product=prpm, what=["plans.individual", "plans.org_member"]))
        now = timezone.now()
        sold = {slug: catalog.plan_version(product_id=prpm.pk, slug=slug, at=now).version for slug in ("individual", "org_member", "free")}
        assert {slug: version.price_cents for slug, version in sold.items()} == {"individual": 5_00, "org_member": 2_00, "free": 0}
        assert (sold["individual"].version, sold["individual"].cost_tier and sold["individual"].cost_tier.slug) == (
            2,
            "prpm_plus_individual",
        )
        assert PlanVersion.objects.filter(plan__product=prpm).count() == versions + 2  # the versions before are still there
        undo(lever)
        assert catalog.plan_version(product_id=prpm.pk, slug="individual", at=timezone.now()).version.price_cents == 6_00

    def test_a_later_version_goes_back_to_the_one_before_it_and_not_to_an_older_price(self, prpm: Product) -> None:
        for price in ("7.00", "8.00"):
            changed = catalog_file.with_value(document("prpm"), ["plans", "individual", "price"], price)
            later = catalog_file.with_value(changed, ["plans", "individual", "notes"], price)
            catalog_file.apply(later, actor="test", effective=timezone.now() + timedelta(seconds=int(price[0])))
        [back] = levers.former_prices(product=prpm)["plans.individual"]
        assert (back.before, back.after) == ("8.00", "7.00")

    def test_a_version_that_is_only_scheduled_must_be_dealt_with_first(self, prpm: Product) -> None:
        changed = catalog_file.with_value(document("prpm"), ["plans", "individual", "price"], "7.00")
        catalog_file.apply(changed, actor="test", effective=timezone.now() + timedelta(days=1))
        with pytest.raises(levers.InvalidLever, match="after its version of"):
            pull("price_back", levers.price_back(product=prpm, what=["plans.individual"]))

    def test_a_rate_card_goes_back_whole_and_what_was_charged_stays(self) -> None:
        shop = Shop.new()
        catalog_ready(shop.product)
        used = shop.use(tokens=1_000_000)
        assert used.price_nanos == 1_500_000_000
        RateCard.objects.create(
            product=shop.product, slug="standard", version=2, valid_from=timezone.now(), mode="markup", markup_ppm=900_000
        )
        [change] = levers.former_prices(product=shop.product)["rate_cards.standard"]
        assert (change.before["markup_percent"], change.after["markup_percent"]) == ("90", "50")
        shop.now = timezone.now() + timedelta(seconds=1)
        assert shop.use(tokens=1_000_000).price_nanos == 1_900_000_000

    def test_what_never_had_another_price_cannot_go_back(self, prpm: Product) -> None:
        assert set(levers.former_prices(product=prpm)) == {"plans.individual", "plans.org_member"}
        with pytest.raises(levers.InvalidLever, match=r"no earlier price of plans\.free"):
            levers.price_back(product=prpm, what=["plans.free"])

    def test_the_preview_says_what_staff_have_to_do_at_stripe(self, prpm: Product) -> None:
        found = levers.preview(changes=levers.price_back(product=prpm, what=["plans.individual"]), now=timezone.now())
        [note] = found.notes
        assert note.startswith("individual: nobody can buy it before STRIPE_PRPM_PLUS_PRICE_ID names the price of 5.00 at Stripe")


class TestOnceAndBack:
    def test_the_same_token_again_changes_nothing(self, prpm: Product) -> None:
        token = uuid4()
        first = pull("cost_limits", levers.cost_limits(percent=20, product=prpm), token=token)
        again = pull("cost_limits", levers.cost_limits(percent=20, product=prpm), token=token)
        assert (first.pk, limits(prpm)["free"][0]) == (again.pk, dollars("0.60"))

    def test_what_changed_since_the_preview_is_refused_and_named(self, prpm: Product) -> None:
        changes = levers.cost_limits(percent=20, product=prpm)
        pull("cost_tier", levers.cost_tier(product=prpm, slug="free", values={"monthly_cost": "0.70"}))
        with pytest.raises(levers.InvalidLever, match=r"free: monthly cost \(USD\) is 0.70 by now, not 0.50. ada changed the catalog last"):
            pull("cost_limits", changes)
        assert limits(prpm)["prpm_plus_org"] == BEFORE["prpm_plus_org"]  # all or nothing

    def test_undoing_is_refused_where_a_term_changed_since_and_says_which(self, prpm: Product) -> None:
        first = pull("cost_limits", levers.cost_limits(percent=20, product=prpm))
        second = pull("cost_tier", levers.cost_tier(product=prpm, slug="free", values={"monthly_cost": "0.70"}))
        with pytest.raises(levers.InvalidLever, match=r"free: monthly cost \(USD\) is 0.70 by now, not 0.60"):
            undo(first)
        undo(second)
        undo(first)
        assert limits(prpm) == BEFORE

    def test_it_is_undone_once(self, prpm: Product) -> None:
        lever = pull("cost_limits", levers.cost_limits(percent=20, product=prpm))
        undo(lever)
        with pytest.raises(levers.InvalidLever, match="undone by grace"):
            undo(lever)
        lever.refresh_from_db()
        assert (lever.undone_by, lever.undone_reason) == ("grace", "a mistake")


class TestDeployments:
    def test_applying_the_file_leaves_a_lever_in_force_and_says_so(self, prpm: Product) -> None:
        pull("cost_tier", levers.cost_tier(product=prpm, slug="prpm_plus_org", values={"monthly_cost": "2.00"}))
        lines = catalog_file.diff(document("prpm"))
        assert lines == catalog_file.apply(document("prpm"), actor="deployment")
        [line] = lines
        assert line.startswith('= cost_tiers.prpm_plus_org.monthly_cost = "2.00" stays (ada pulled a lever on ')
        assert line.endswith('the file says "2.50"')
        assert limits(prpm)["prpm_plus_org"][0] == dollars("2")

    def test_what_else_the_file_changes_is_applied(self, prpm: Product) -> None:
        pull("cost_tier", levers.cost_tier(product=prpm, slug="prpm_plus_org", values={"monthly_cost": "2.00"}))
        catalog_file.apply(catalog_file.with_value(document("prpm"), ["cost_tiers", "free", "monthly_cost"], "0.55"), actor="deployment")
        assert (limits(prpm)["free"][0], limits(prpm)["prpm_plus_org"][0]) == (dollars("0.55"), dollars("2"))

    def test_a_lever_that_the_file_has_taken_over_is_over(self, prpm: Product) -> None:
        lever = pull("cost_tier", levers.cost_tier(product=prpm, slug="prpm_plus_org", values={"monthly_cost": "2.00"}))
        taken = catalog_file.with_value(document("prpm"), ["cost_tiers", "prpm_plus_org", "monthly_cost"], "2.00")
        assert catalog_file.apply(taken, actor="deployment") == []
        with pytest.raises(levers.InvalidLever, match="says the same"):
            undo(lever)
        catalog_file.apply(document("prpm"), actor="deployment")  # now the file decides again
        assert limits(prpm) == BEFORE

    def test_an_undone_lever_holds_nothing(self, prpm: Product) -> None:
        undo(pull("cost_limits", levers.cost_limits(percent=20, product=prpm)))
        assert catalog_file.apply(document("prpm"), actor="deployment") == []

    def test_a_product_wide_size_that_the_file_leaves_out_stays_too(self, prpm: Product) -> None:
        pull("request_size", levers.request_size(tokens=5_000, product=prpm))
        catalog_file.apply(document("prpm"), actor="deployment")
        prpm.refresh_from_db()
        assert prpm.max_request_tokens == 5_000


def test_who_is_on_a_tier_of_their_own_counts_there_in_the_preview(prpm: Product) -> None:
    account = make_account(prpm)
    account.cost_tier = "prpm_plus_org"
    account.save()
    make_account(prpm)
    found = levers.preview(
        changes=levers.cost_tier(product=prpm, slug="prpm_plus_org", values={"monthly_cost": "2.00"}), now=timezone.now()
    )
    assert found.accounts == 1
    assert subscriptions.allowed(account=account) is not None


@pytest.mark.parametrize("slug", sorted(path.stem for path in CATALOGS.glob("*.toml")))
def test_every_tier_with_a_monthly_limit_names_the_shares_that_it_warns_at(slug: str) -> None:
    for name, tier in document(slug).get("cost_tiers", {}).items():
        shares = [Decimal(share) for share in tier.get("warn_at_percent", [])]
        if tier["monthly_cost"] != catalog_file.UNLIMITED:
            assert shares, name
        assert shares == sorted(set(shares))
        assert all(0 < share <= 100 for share in shares)
