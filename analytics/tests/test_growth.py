"""MRR, its movements, churn and what a customer is worth: each rule of decision 0065 by itself, and the sums on random histories."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import registration
from accounts.models import Account
from analytics import growth, risk, rollups
from analytics.models import HourlyFigures, MarketingSpend, SubscriptionTerm
from analytics.tests.subscribers import APRIL, MONTH, account, change, day, end, plan, subscribe
from analytics.tests.world import World
from billing import ledger
from billing.models import Agreement, StripeCustomer, Subscription
from billing.tests.stripe_stub import Stub, new
from billing.tests.test_stripe_inbox import stub
from billing.tests.test_stripe_payments import happen
from pricing.models import Product
from tests.factories import NANOS, give, make_product

__all__ = ["stub"]  # a fixture
pytestmark = pytest.mark.django_db
CENT = NANOS // 100


@pytest.fixture
def product() -> Product:
    return make_product()


def mrr(product: Product, at: datetime) -> int:
    return growth.mrr(at=at, product_id=product.pk)


def moved(product: Product, since: datetime = MONTH, until: datetime = APRIL) -> dict[str, int]:
    found = growth.movements(since=since, until=until, product_id=product.pk)
    return {each.kind: each.nanos for each in found if each.count}


class TestMrr:
    def test_it_stands_from_the_instant_after_it_began_until_it_ends(self, product: Product) -> None:
        one = subscribe(account(product), plan(product, 2_000), at=day(5))
        assert [mrr(product, at) for at in (day(4), day(5), day(6))] == [0, 0, 20 * NANOS]
        end(one, at=day(20))
        assert [mrr(product, at) for at in (day(6), day(20), day(21))] == [20 * NANOS, 20 * NANOS, 0]

    def test_a_year_is_twelve_months_rounded_down_to_the_nano_and_members_count(self, product: Product) -> None:
        subscribe(account(product), plan(product, 10_000, interval="year"), at=day(5))
        assert mrr(product, APRIL) == 8_333_333_333
        subscribe(account(product), plan(product, 700, per_seat=True), at=day(5), seats=3)
        assert mrr(product, APRIL) == 8_333_333_333 + 21 * NANOS
        subscribe(account(product), plan(product, 500), at=day(5), seats=3)
        assert mrr(product, APRIL) == 8_333_333_333 + 26 * NANOS

    @pytest.mark.parametrize(
        ("discount", "before", "after"),
        [
            ({"discount_ppm": 250_000}, 2_250, 2_250),
            ({"discount_cents": 500}, 2_500, 2_500),
            ({"discount_ppm": 500_000, "discount_cents": 300, "discount_ends_at": day(15)}, 1_200, 3_000),
            ({"discount_ppm": 1_000_000}, 0, 0),
            ({"discount_cents": 9_999, "discount_ends_at": day(15)}, 0, 3_000),
        ],
    )
    def test_what_is_taken_off_every_invoice_is_taken_off_until_it_ends(
        self, product: Product, discount: dict[str, Any], before: int, after: int
    ) -> None:
        subscribe(account(product), plan(product, 3_000), at=day(5), discount=discount)
        assert (mrr(product, day(10)), mrr(product, day(16))) == (before * CENT, after * CENT)

    def test_trials_free_plans_other_currencies_and_what_nobody_pays_for_are_not_in_it(self, product: Product) -> None:
        subscribe(account(product), plan(product, 2_000), at=day(5), status="trialing")
        subscribe(account(product), plan(product, 0), at=day(5))
        subscribe(account(product), plan(product, None), at=day(5))
        subscribe(account(product), plan(product, 2_000, currency="eur"), at=day(5))
        given_by_staff = subscribe(account(product), plan(product, 2_000), at=day(5))
        change(given_by_staff, at=day(5), stripe=None)
        assert mrr(product, APRIL) == 0
        Agreement.objects.create(
            account=given_by_staff.account, plan_version=given_by_staff.plan_version, collection="none", key="k", actor="ada",
            reason="agreed", created_at=day(5),
        )  # fmt: skip
        assert mrr(product, APRIL) == 20 * NANOS

    def test_an_unpaid_plan_counts_until_its_grace_is_over_whether_or_not_anybody_looked(self, product: Product) -> None:
        one = subscribe(account(product), plan(product, 2_000), at=day(5))
        change(one, at=day(10), status="past_due", grace_ends_at=day(17))
        assert [mrr(product, at) for at in (day(11), day(17), day(18))] == [20 * NANOS, 20 * NANOS, 0]
        change(one, at=day(16), status="active", grace_ends_at=None)
        assert mrr(product, day(18)) == 20 * NANOS

    def test_the_past_stays_as_it_was_when_seats_discount_and_plan_change(self, product: Product) -> None:
        small, large = plan(product, 1_000, per_seat=True), plan(product, 4_000)
        one = subscribe(account(product), small, at=day(2))
        change(one, at=day(5), seats=4)
        change(one, at=day(8), seats=2)
        assert one.stripe is not None
        one.stripe.discount_ppm = 500_000
        one.stripe.save()
        change(one, at=day(11), seats=2)  # the subscription is aligned with every reading
        end(one, at=day(14))
        subscribe(one.account, large, at=day(14))
        assert [mrr(product, day(at)) // NANOS for at in (3, 6, 9, 12, 15)] == [10, 40, 20, 10, 40]

    def test_it_is_what_the_risk_page_says_subscriptions_bring(self, product: Product) -> None:
        subscribe(account(product), plan(product, 10_000, interval="year", per_seat=True), at=day(5), seats=2)
        subscribe(account(product), plan(product, 1_900), at=day(5), status="past_due")
        assert mrr(product, APRIL) == risk.look(product=product, now=APRIL).subscriptions_nanos > 0

    def test_plans_are_told_apart_and_products_too_and_all_of_them_are_the_sum(self, product: Product) -> None:
        small, large = plan(product, 1_000, name="Small"), plan(product, 5_000, name="Large")
        other = make_product()
        before = growth.mrr(at=APRIL)
        for version in (small, small, large):
            subscribe(account(product), version, at=day(5))
        subscribe(account(other), plan(other, 700), at=day(5))
        found = growth.standing(at=APRIL, product_id=product.pk)
        assert (found.mrr_nanos, found.accounts) == (70 * NANOS, 3)
        assert found.plans == (growth.Plan("Large", 50 * NANOS, 1), growth.Plan("Small", 20 * NANOS, 2))
        assert growth.mrr(at=APRIL) == before + 77 * NANOS
        assert growth.standing(at=APRIL, product_id=make_product().pk) == growth.Standing(0, 0, ())


class TestTerms:
    """What the trigger keeps of a subscription."""

    def terms(self, one: Subscription) -> list[tuple[datetime, datetime | None, str, int]]:
        found = SubscriptionTerm.objects.filter(subscription=one).order_by("from_at")
        return list(found.values_list("from_at", "until_at", "status", "seats"))

    def test_a_row_begins_when_something_changes_that_counts_and_not_otherwise(self, product: Product) -> None:
        one = subscribe(account(product), plan(product, 1_000), at=day(1))
        change(one, at=day(3), cancel_at_period_end=True)
        change(one, at=day(4), seats=2)
        change(one, at=day(4), seats=3)
        assert self.terms(one) == [(day(1), day(4), "active", 1), (day(4), None, "active", 3)]

    def test_an_end_that_was_earlier_than_what_was_written_since_takes_that_back(self, product: Product) -> None:
        one = subscribe(account(product), plan(product, 1_000), at=day(1))
        change(one, at=day(9), seats=2)
        end(one, at=day(6))
        assert self.terms(one) == [(day(1), day(6), "active", 1)]
        end(one, at=day(1))
        assert self.terms(one) == []

    def test_one_that_comes_back_leaves_a_hole(self, product: Product) -> None:
        one = subscribe(account(product), plan(product, 1_000), at=day(1))
        end(one, at=day(6))
        change(one, at=day(9), status="active", ended_at=None)
        assert self.terms(one) == [(day(1), day(6), "active", 1), (day(9), None, "active", 1)]

    def test_a_coupon_of_stripe_that_lasts_is_read_with_its_end_and_one_that_holds_once_is_none(self, product: Product, stub: Stub) -> None:
        version = plan(product, 3_000, stripe_price_setting="STRIPE_GROWTH_PRICE_ID")
        who = account(product)
        StripeCustomer.objects.create(account=who, id=new("cus"))
        ends = int(APRIL.timestamp())

        def coupon(duration: str, **off: Any) -> dict[str, Any]:
            end = ends if duration == "repeating" else None
            return {"id": new("di"), "end": end, "source": {"type": "coupon", "coupon": {"duration": duration, **off}}}

        discounts = [
            coupon("once", percent_off=90.0), coupon("repeating", percent_off=20.0), coupon("forever", percent_off=12.5),
            coupon("forever", amount_off=100, currency="usd"), coupon("forever", amount_off=700, currency="eur"),
        ]  # fmt: skip
        begun = int(day(5).timestamp())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STRIPE_GROWTH_PRICE_ID", "price_growth")
            subscription = stub.subscription(
                who.stripe_customer.pk, "price_growth", start=begun, end=ends, discounts=discounts, currency="usd"
            )
            assert happen(("customer.subscription.created", subscription)) == [("done", "")]
        [term] = SubscriptionTerm.objects.filter(account=who, plan_version=version)
        assert (term.discount_ppm, term.discount_cents, term.discount_ends_at) == (300_000, 100, APRIL)
        assert mrr(product, day(6)) == 20 * NANOS


class TestMovements:
    def test_each_change_has_its_name_and_they_add_up(self, product: Product) -> None:
        small, large = plan(product, 1_000, per_seat=True), plan(product, 4_000)
        one = subscribe(account(product), small, at=day(2))
        change(one, at=day(4), seats=3)
        change(one, at=day(6), seats=2)
        end(one, at=day(8))
        subscribe(one.account, large, at=day(12))
        assert moved(product) == {
            "new": 10 * NANOS, "expansion": 20 * NANOS, "contraction": -10 * NANOS, "churned": -20 * NANOS, "reactivated": 40 * NANOS,
        }  # fmt: skip
        assert moved(product, APRIL, APRIL + timedelta(days=30)) == {}

    def test_a_plan_that_follows_another_at_once_is_one_change(self, product: Product) -> None:
        one = subscribe(account(product), plan(product, 1_000), at=day(2, month=2))
        end(one, at=day(8))
        subscribe(one.account, plan(product, 2_500), at=day(8))
        assert moved(product) == {"expansion": 15 * NANOS}

    def test_a_discount_that_ends_is_an_expansion_and_a_grace_that_ends_is_churn(self, product: Product) -> None:
        discount = {"discount_ppm": 500_000, "discount_ends_at": day(15)}
        one = subscribe(account(product), plan(product, 2_000), at=day(2, month=2), discount=discount)
        change(one, at=day(20), status="past_due", grace_ends_at=day(27))
        assert moved(product) == {"expansion": 10 * NANOS, "churned": -20 * NANOS}

    def test_what_happens_at_midnight_belongs_to_the_month_that_begins(self, product: Product) -> None:
        subscribe(account(product), plan(product, 2_000), at=APRIL)
        assert (mrr(product, APRIL), moved(product)) == (0, {})
        assert moved(product, APRIL, APRIL + timedelta(microseconds=1)) == {"new": 20 * NANOS}

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_on_any_history_they_add_up_to_the_difference_and_so_do_their_parts(self, product: Product, data: st.DataObject) -> None:
        hours = st.integers(0, 24 * 40)
        mine = make_product()
        versions = [plan(mine, 999), plan(mine, 10_001, interval="year", per_seat=True), plan(mine, 2_500), plan(mine, 0)]
        for _ in range(data.draw(st.integers(1, 3))):
            who, at = account(mine), MONTH + timedelta(hours=data.draw(hours))
            for _ in range(data.draw(st.integers(1, 3))):
                discount = {
                    "discount_ppm": data.draw(st.sampled_from([0, 333_333, 1_000_000])),
                    "discount_ends_at": data.draw(st.sampled_from([None, at + timedelta(hours=20)])),
                }
                one = subscribe(who, data.draw(st.sampled_from(versions)), at=at, discount=discount)
                for _ in range(data.draw(st.integers(0, 2))):
                    at += timedelta(hours=data.draw(st.integers(0, 30)))
                    status = data.draw(st.sampled_from(["active", "past_due", "trialing"]))
                    change(one, at=at, seats=data.draw(st.integers(1, 4)), status=status)
                at += timedelta(hours=data.draw(st.integers(1, 60)))
                end(one, at=at)
                at += timedelta(hours=data.draw(st.sampled_from([0, 0, 1, 30])))
        first, middle, last = sorted(MONTH + timedelta(hours=data.draw(hours)) for _ in range(3))

        def of(since: datetime, until: datetime) -> dict[str, int]:
            return {each.kind: each.nanos for each in growth.movements(since=since, until=until, product_id=mine.pk)}

        assert sum(of(first, last).values()) == mrr(mine, last) - mrr(mine, first)
        assert of(first, last) == {kind: nanos + of(middle, last)[kind] for kind, nanos in of(first, middle).items()}
        ever = of(MONTH - timedelta(days=1), MONTH + timedelta(days=400))
        assert sum(ever.values()) == 0
        assert ever["new"] >= 0 >= ever["churned"]
        assert ever["expansion"] >= 0 >= ever["contraction"]


class TestChurn:
    def test_it_is_of_those_who_paid_when_the_period_began(self, product: Product) -> None:
        version = plan(product, 1_000, per_seat=True)
        old = [subscribe(account(product), version, at=day(1, month=2), seats=4) for _ in range(8)]
        end(old[0], at=day(9))
        change(old[1], at=day(9), seats=1)
        change(old[2], at=day(9), seats=9)
        away_and_back = old[3]
        end(away_and_back, at=day(9))
        subscribe(away_and_back.account, version, at=day(11), seats=4)
        end(subscribe(account(product), version, at=day(9)), at=day(20))  # came and left
        found = growth.churn(since=MONTH, until=APRIL, product_id=product.pk)
        assert found == growth.Churn(accounts=8, lost=1, mrr_nanos=320 * NANOS, lost_nanos=70 * NANOS)
        assert (found.percent, found.revenue_percent) == (Decimal("12.50"), Decimal("21.88"))

    def test_of_nobody_there_is_none(self, product: Product) -> None:
        found = growth.churn(since=MONTH, until=APRIL, product_id=product.pk)
        assert (found.percent, found.revenue_percent) == (None, None)


class TestCreditRevenue:
    def test_it_is_what_packs_sold_for_less_refunds_on_their_day_in_utc(self, product: Product) -> None:
        who = account(product)
        with ledger.clock(at=datetime(2026, 3, 31, 23, 59, tzinfo=UTC)):
            give(who, 10 * NANOS, cash_nanos=9 * NANOS, currency="usd", source_key="pi_1")
            give(who, 10 * NANOS, cash_nanos=0, source="promotion")
            give(who, 10 * NANOS, cash_nanos=8 * NANOS, currency="eur")
        march: dict[str, Any] = {"since": date(2026, 3, 1), "until": date(2026, 4, 1), "product_id": product.pk}
        assert growth.credit_revenue(**march) == 9 * NANOS
        ledger.refund(account_id=who.pk, source="purchased", source_key="pi_1", refunded=1, paid=3, key="r", actor="t", reason="t")
        assert growth.credit_revenue(**march) == 6_000_000_001  # a third of the credits, rounded down, and of the cash behind them
        assert growth.credit_revenue(since=date(2026, 4, 1), until=date(2026, 5, 1), product_id=product.pk) == 0


class TestEconomics:
    def economics(self, product: Product) -> growth.Economics:
        return growth.economics(of=growth.period(month=MONTH.date(), now=day(20, month=6)), product_id=product.pk)

    def test_a_customers_worth_and_cost_follow_from_the_months_figures(self) -> None:
        world = World.new()
        product, version = world.product, plan(world.product, 2_000)
        old = [subscribe(account(product), version, at=day(1, month=2)) for _ in range(4)]
        end(old[0], at=day(9))
        subscribe(account(product), version, at=day(10))
        buyer = world.account()
        with ledger.clock(at=day(10)):
            give(buyer, 30 * NANOS, cash_nanos=30 * NANOS, currency="usd")
        ledger.record(event=world.event(buyer, cost=22 * NANOS, price=25 * NANOS, at=day(11)))
        rollups.fold()
        MarketingSpend.objects.create(
            product=product, month=date(2026, 3, 1), amount_cents=5_000, what="ads", entered_by="a", entered_at=APRIL
        )
        MarketingSpend.objects.create(
            product=product, month=date(2026, 3, 1), amount_cents=-600, what="ads", entered_by="a", entered_at=APRIL
        )
        MarketingSpend.objects.create(
            product=product, month=date(2026, 4, 1), amount_cents=900, what="ads", entered_by="a", entered_at=APRIL
        )
        hour: dict[str, Any] = dict.fromkeys(("cost_nanos", "subscriptions_nanos", "packs_nanos", "active", "near_limit", "throttled"), 0)
        for at, gifts in ((MONTH, 7), (MONTH + timedelta(hours=1), NANOS), (APRIL, NANOS), (APRIL + timedelta(hours=1), 7)):
            HourlyFigures.objects.create(product=product, at=at, gifts_cost_nanos=gifts, **hour)

        found = self.economics(product)
        assert (found.revenue_nanos, found.cost_nanos, found.payers, found.won) == (110 * NANOS, 22 * NANOS, 5, 2)
        assert (found.margin_percent, found.arpu_nanos) == (Decimal("80.00"), 22 * NANOS)
        assert (found.gifts_nanos, found.marketing_nanos, found.cac_nanos) == (2 * NANOS, 44 * NANOS, 23 * NANOS)
        # 17.60 of margin a payer and month, for the four months that a churn of a quarter lets expect
        assert (found.ltv_nanos, found.ltv_to_cac) == (70_400_000_000, Decimal("3.06"))

    def test_what_is_not_known_is_none_and_never_a_division_by_zero(self, product: Product) -> None:
        found = self.economics(product)
        assert (found.arpu_nanos, found.cac_nanos, found.ltv_nanos, found.ltv_to_cac, found.margin_percent) == (None,) * 5

    def test_a_month_that_has_not_begun_is_refused_and_the_present_one_ends_now(self) -> None:
        with pytest.raises(ValueError, match="not begun"):
            growth.period(month=date(2026, 4, 1), now=APRIL)
        found = growth.period(month=date(2026, 3, 17), now=day(20))
        assert (found.month, found.since, found.until, found.end, found.under_way) == (
            date(2026, 3, 1),
            MONTH,
            day(20),
            date(2026, 3, 21),
            True,
        )
        whole = growth.period(month=date(2026, 3, 17), now=APRIL)
        assert (whole.until, whole.end, whole.under_way) == (APRIL, date(2026, 4, 1), False)


def test_an_account_that_opens_has_its_free_plan_noted(product: Product) -> None:
    made: Account = registration.open_account(product=product, external_id="x", name="Ada", now=day(3))
    assert SubscriptionTerm.objects.get(account=made).from_at == day(3)
