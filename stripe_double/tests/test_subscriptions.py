"""Subscriptions by the double's clock: periods, trials, prorations, renewals, dunning, cancellation."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from stripe_double import periods
from stripe_double.tests.conftest import Client

DAY = 86_400
HOUR = 3_600


def at(year: int, month: int, day: int, hour: int = 12) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp())


def day(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d")


def period(subscription: stripe.Subscription) -> tuple[int, int]:
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


def bills(client: Client, subscription: stripe.Subscription) -> list[tuple[int, str | None]]:
    """Total and state of each invoice, oldest first."""
    return [(invoice.total, invoice.status) for invoice in client.v1.invoices.list({"subscription": subscription.id, "limit": 100}).data][
        ::-1
    ]


@pytest.mark.parametrize(
    ("anchor", "ends"),
    [
        (at(2027, 1, 28), ["2027-02-28", "2027-03-28", "2027-04-28"]),
        (at(2027, 1, 29), ["2027-02-28", "2027-03-29", "2027-04-29"]),
        (at(2027, 1, 30), ["2027-02-28", "2027-03-30", "2027-04-30"]),
        (at(2027, 1, 31), ["2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31"]),
        (at(2028, 1, 31), ["2028-02-29", "2028-03-31", "2028-04-30"]),
    ],
)
def test_a_monthly_plan_keeps_its_day_over_short_months(client: Client, anchor: int, ends: list[str]) -> None:
    client.advance(to=anchor)
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    seen = [period(subscription)]
    for _ in ends:
        client.advance(to=seen[-1][1] + 2 * HOUR)
        seen.append(period(client.v1.subscriptions.retrieve(subscription.id)))
    assert [day(end) for _, end in seen[:-1]] == ends
    assert all(before[1] == after[0] for before, after in itertools.pairwise(seen))
    assert bills(client, subscription) == [(2500, "paid")] * (len(ends) + 1)


@given(st.integers(0, 4_000_000_000), st.sampled_from(["day", "week", "month", "year"]), st.integers(1, 12), st.integers(0, 50 * 366 * DAY))
def test_the_period_holds_its_instant_and_borders_on_the_next(anchor: int, interval: str, count: int, later: int) -> None:
    start, end = periods.period(anchor, interval, count, anchor + later)
    assert start <= anchor + later < end
    assert periods.period(anchor, interval, count, end)[0] == end


@pytest.mark.parametrize(
    ("interval", "count", "ends"),
    [
        ("day", 10, "2027-02-10"),
        ("week", 2, "2027-02-14"),
        ("month", 3, "2027-04-30"),
        ("month", 13, "2028-02-29"),
        ("year", 1, "2028-01-31"),
    ],
)
def test_a_period_is_as_many_intervals_as_the_price_says(interval: str, count: int, ends: str) -> None:
    anchor = at(2027, 1, 31)
    assert periods.period(anchor, interval, count, anchor) == (anchor, periods.boundary(anchor, interval, count, 1))
    assert day(periods.period(anchor, interval, count, anchor)[1]) == ends


def test_a_renewal_is_a_draft_for_an_hour_and_then_paid(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    client.advance(to=period(subscription)[1] + 60)
    renewed = client.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert renewed.status == "active"
    assert period(renewed)[0] == period(subscription)[1]
    assert renewed.latest_invoice.status == "draft"  # type: ignore[union-attr]
    client.advance(days=1 / 24)
    invoice = client.v1.invoices.retrieve(str(renewed.latest_invoice.id))  # type: ignore[union-attr]
    assert (invoice.status, invoice.billing_reason, invoice.amount_paid) == ("paid", "subscription_cycle", 2500)
    assert (invoice.lines.data[0].period.start, invoice.lines.data[0].period.end) == period(renewed)
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    assert invoice.parent.subscription_details.subscription == subscription.id


def test_a_year_at_once_renews_twelve_times_in_order(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    client.advance(days=366)
    assert bills(client, subscription) == [(2500, "paid")] * 13
    created = [invoice.created for invoice in client.v1.invoices.list({"limit": 100}).data]
    assert created == sorted(created, reverse=True)


def test_what_happens_at_its_time_says_that_time(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    client.advance(days=45)
    renewal = client.v1.invoices.list({"subscription": subscription.id}).data[0]
    end = period(subscription)[1]
    assert renewal.created == end
    assert renewal.status_transitions.paid_at == end + HOUR
    assert client.v1.events.list({"type": "invoice.paid"}).data[0].created == end + HOUR


def test_the_clock_only_goes_forward(client: Client) -> None:
    assert client.raw("POST", "/_control/clock", b'{"advance": -1}', Content_Type="application/json")[0] == 400
    assert client.raw("POST", "/_control/clock", b'{"advance": "1"}', Content_Type="application/json")[0] == 400


# Trials


def test_a_trial_warns_three_days_before_and_then_is_charged(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id, trial_period_days=14)
    assert (subscription.status, bills(client, subscription)) == ("trialing", [(0, "paid")])
    client.advance(days=10.9)
    assert "customer.subscription.trial_will_end" not in client.events()
    client.advance(days=0.2)
    assert client.events().count("customer.subscription.trial_will_end") == 1
    client.advance(days=3)
    active = client.v1.subscriptions.retrieve(subscription.id)
    assert active.status == "active"
    assert period(active)[0] == subscription.trial_end
    assert bills(client, subscription) == [(0, "paid"), (2500, "paid")]


def test_a_trial_without_a_card_becomes_past_due_when_it_must_pay(client: Client) -> None:
    subscription = client.subscribe(client.customer(card=None).id, client.price(2500).id, trial_period_days=7)
    client.advance(days=7.1)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "past_due"


@pytest.mark.parametrize(("wish", "status"), [("cancel", "canceled"), ("pause", "paused")])
def test_a_trial_without_a_card_ends_as_it_was_asked(client: Client, wish: str, status: str) -> None:
    settings = {"end_behavior": {"missing_payment_method": wish}}
    customer = client.customer(card=None)
    subscription = client.subscribe(customer.id, client.price(2500).id, trial_period_days=7, trial_settings=settings)
    client.advance(days=8)
    assert client.v1.subscriptions.retrieve(subscription.id).status == status
    assert bills(client, subscription) == [(0, "paid")]
    if wish == "pause":
        client.use_card(customer.id, "pm_card_visa")
        assert client.v1.subscriptions.resume(subscription.id).status == "active"
        assert bills(client, subscription) == [(0, "paid"), (2500, "paid")]
        assert "customer.subscription.paused" in client.events()
        assert "customer.subscription.resumed" in client.events()


def test_a_trial_that_is_ended_now_is_charged_now(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id, trial_period_days=14)
    ended = client.v1.subscriptions.update(subscription.id, {"trial_end": "now"})
    assert ended.status == "active"
    assert bills(client, subscription) == [(0, "paid"), (2500, "paid")]


# Changes and proration


def upgrade(client: Client, subscription: stripe.Subscription, price: str, **more: Any) -> stripe.Subscription:
    given: Any = {"items": [{"id": subscription["items"].data[0].id, "price": price}]} | more
    return client.v1.subscriptions.update(subscription.id, given)


@pytest.mark.parametrize("days", [0, 3, 7.5, 29.99])
def test_an_upgrade_costs_the_rest_of_the_difference_and_the_preview_says_so(client: Client, days: float) -> None:
    client.advance(to=at(2027, 4, 1))
    core, pro = client.price(2500, name="Core"), client.price(5000)
    subscription = client.subscribe(client.customer().id, core.id)
    client.advance(days=days)
    now = client.now()
    change: Any = {"items": [{"id": subscription["items"].data[0].id, "price": pro.id}], "proration_behavior": "always_invoice"}
    before = client.v1.invoices.list().data
    preview = client.v1.invoices.create_preview({"subscription": subscription.id, "subscription_details": change | {"proration_date": now}})
    assert client.v1.invoices.list().data == before
    upgrade(client, subscription, pro.id, proration_behavior="always_invoice", proration_date=now)
    invoice = client.v1.invoices.list().data[0]
    start, end = period(subscription)
    expected = [-periods.share(2500, end - now, end - start), periods.share(5000, end - now, end - start)]
    assert [line.amount for line in invoice.lines.data] == [line.amount for line in preview.lines.data] == expected
    assert invoice.total == preview.total == sum(expected)
    assert period(client.v1.subscriptions.retrieve(subscription.id)) == (start, end)


def test_prorations_wait_for_the_renewal_unless_asked(client: Client) -> None:
    core, pro = client.price(2500, name="Core"), client.price(5000)
    subscription = client.subscribe(client.customer().id, core.id)
    client.advance(days=10)
    upgrade(client, subscription, pro.id)
    (credit, debit) = sorted(item.amount for item in client.v1.invoice_items.list().data)
    assert (credit < 0, debit > 0) == (True, True)
    assert bills(client, subscription) == [(2500, "paid")]
    client.advance(to=period(subscription)[1] + 2 * HOUR)
    assert bills(client, subscription)[1] == (5000 + credit + debit, "paid")


def test_a_change_without_proration_costs_nothing_until_the_renewal(client: Client) -> None:
    core, pro = client.price(2500, name="Core"), client.price(5000)
    subscription = client.subscribe(client.customer().id, pro.id)
    upgrade(client, subscription, core.id, proration_behavior="none")
    client.advance(days=32)
    assert bills(client, subscription) == [(5000, "paid"), (2500, "paid")]


def test_a_change_within_a_trial_costs_nothing(client: Client) -> None:
    core, pro = client.price(2500, name="Core"), client.price(5000)
    subscription = client.subscribe(client.customer().id, core.id, trial_period_days=14)
    client.advance(days=5)
    assert upgrade(client, subscription, pro.id).status == "trialing"
    assert client.v1.invoice_items.list().data == []
    client.advance(days=10)
    assert bills(client, subscription) == [(0, "paid"), (5000, "paid")]


def test_there_and_back_at_the_same_instant_costs_nothing(client: Client) -> None:
    core, pro = client.price(2500, name="Core"), client.price(5000)
    subscription = client.subscribe(client.customer().id, core.id)
    client.advance(days=11)
    now = client.now()
    upgrade(client, subscription, pro.id, proration_date=now)
    upgrade(client, subscription, core.id, proration_date=now)
    assert sum(item.amount for item in client.v1.invoice_items.list().data) == 0


def test_the_credit_of_a_downgrade_pays_the_next_invoices(client: Client) -> None:
    core, pro = client.price(1000, name="Core"), client.price(5000)
    customer = client.customer()
    subscription = client.subscribe(customer.id, pro.id)
    upgrade(client, subscription, core.id, proration_behavior="always_invoice")
    balance = client.v1.customers.retrieve(customer.id).balance
    assert balance is not None
    assert -4000 <= balance <= -3990  # a moment of the period may have gone by
    client.advance(days=32)
    renewal = client.v1.invoices.list().data[0]
    assert (renewal.total, renewal.amount_due, renewal.starting_balance, renewal.ending_balance) == (1000, 0, balance, balance + 1000)


def test_another_interval_begins_a_new_period_at_once(client: Client) -> None:
    monthly, yearly = client.price(2500), client.price(25_000, "year", name="Pro, yearly")
    subscription = client.subscribe(client.customer().id, monthly.id)
    client.advance(days=10)
    changed = upgrade(client, subscription, yearly.id)
    start, end = period(changed)
    assert client.now() - 5 <= start <= client.now()
    assert 365 * DAY <= end - start <= 366 * DAY
    total, status = bills(client, subscription)[1]
    assert (status, 23_000 < total < 23_500) == ("paid", True)


def test_seats_are_prorated_by_their_number(client: Client) -> None:
    client.advance(to=at(2027, 4, 1))
    seat = client.price(300, name="Seat")
    subscription = client.subscribe(client.customer().id, seat.id, items=[{"price": seat.id, "quantity": 2}])
    client.advance(days=15)
    item = client.v1.subscription_items.update(subscription["items"].data[0].id, {"quantity": 5, "proration_behavior": "always_invoice"})
    assert item.quantity == 5
    (first, second) = bills(client, subscription)
    assert (first, second[1]) == ((600, "paid"), "paid")
    assert 449 <= second[0] <= 450


def test_a_later_anchor_makes_a_short_first_period(client: Client) -> None:
    client.advance(to=at(2027, 4, 16))
    subscription = client.subscribe(client.customer().id, client.price(3000).id, billing_cycle_anchor=at(2027, 5, 1))
    assert bills(client, subscription)[0][0] in {1499, 1500}
    client.advance(to=at(2027, 5, 2))
    assert [day(instant) for instant in period(client.v1.subscriptions.retrieve(subscription.id))] == ["2027-05-01", "2027-06-01"]
    assert bills(client, subscription)[1] == (3000, "paid")


def test_a_preview_of_the_renewal_and_of_a_new_subscription_change_nothing(client: Client) -> None:
    price, customer = client.price(2500), client.customer()
    new = client.v1.invoices.create_preview({"customer": customer.id, "subscription_details": {"items": [{"price": price.id}]}})
    assert (new.total, client.v1.subscriptions.list().data) == (2500, [])
    subscription = client.subscribe(customer.id, price.id)
    events = client.events()
    renewal = client.v1.invoices.create_preview({"subscription": subscription.id})
    assert (renewal.total, renewal.lines.data[0].period.start) == (2500, period(subscription)[1])
    assert client.events() == events
    client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    with pytest.raises(stripe.InvalidRequestError, match="No upcoming invoices"):
        client.v1.invoices.create_preview({"subscription": subscription.id})


# Payments that fail


@pytest.mark.parametrize(("end", "status"), [("canceled", "canceled"), ("unpaid", "unpaid"), ("past_due", "past_due")])
def test_a_failing_card_is_retried_and_then_gives_up_as_set(client: Client, end: str, status: str) -> None:
    client.control("POST", "/settings", retry_end=end)
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    client.use_card(customer.id, "pm_card_chargeCustomerFail")
    client.advance(days=32)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "past_due"
    invoice = client.v1.invoices.list().data[0]
    assert (invoice.status, invoice.attempt_count) == ("open", 1)
    assert invoice.next_payment_attempt is not None
    for attempts, days in ((2, 3), (3, 5), (4, 7)):
        client.advance(days=days)
        assert client.v1.invoices.retrieve(invoice.id).attempt_count == attempts
    assert client.events().count("invoice.payment_failed") == 4
    last = client.v1.subscriptions.retrieve(subscription.id)
    assert last.status == status
    assert client.v1.invoices.retrieve(invoice.id).next_payment_attempt is None
    if end == "canceled":
        assert last.cancellation_details is not None
        assert last.cancellation_details.reason == "payment_failed"
        assert client.events()[-1] == "customer.subscription.deleted"


def test_paying_what_is_past_due_makes_the_subscription_active(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    client.use_card(customer.id, "pm_card_chargeCustomerFail")
    client.advance(days=32)
    invoice = client.v1.invoices.list().data[0]
    with pytest.raises(stripe.CardError) as refused:
        client.v1.invoices.pay(invoice.id)
    assert (refused.value.code, refused.value.http_status) == ("card_declined", 402)
    assert client.v1.invoices.retrieve(invoice.id).attempt_count == 1  # by hand: the plan of retries stays
    client.use_card(customer.id, "pm_card_visa")
    assert client.v1.invoices.pay(invoice.id).status == "paid"
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"
    client.advance(days=20)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"


def test_a_first_payment_that_fails_leaves_it_incomplete_for_23_hours(client: Client) -> None:
    subscription = client.subscribe(client.customer("pm_card_chargeCustomerFail").id, client.price(2500).id)
    assert subscription.status == "incomplete"
    client.advance(days=23.5 / 24)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "incomplete_expired"
    assert bills(client, subscription) == [(2500, "void")]
    assert client.v1.payment_intents.list().data[0].status == "canceled"


def test_error_if_incomplete_leaves_nothing_behind(client: Client) -> None:
    customer, price = client.customer("pm_card_chargeCustomerFail"), client.price(2500)
    with pytest.raises(stripe.CardError):
        client.subscribe(customer.id, price.id, payment_behavior="error_if_incomplete")
    assert client.v1.subscriptions.list({"status": "all"}).data == []
    assert client.v1.charges.list().data == []


def test_an_incomplete_subscription_is_paid_by_confirming_its_intent(client: Client) -> None:
    subscription = client.subscribe(client.customer(card=None).id, client.price(2500).id, payment_behavior="default_incomplete")
    assert subscription.status == "incomplete"
    intent = client.v1.payment_intents.list().data[0]
    with pytest.raises(stripe.CardError) as refused:
        client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_chargeDeclinedInsufficientFunds"})
    assert refused.value.error is not None
    assert (refused.value.code, refused.value.error.decline_code) == ("card_declined", "insufficient_funds")
    client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_visa"})
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"


# The end


def test_a_canceled_plan_goes_on_to_the_end_of_its_period_and_can_be_kept(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    end = period(subscription)[1]
    leaving = client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    assert (leaving.status, leaving.cancel_at, leaving.cancel_at_period_end) == ("active", end, True)
    staying = client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False})
    assert (staying.cancel_at, staying.canceled_at) == (None, None)
    client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    client.advance(to=end + 1)
    gone = client.v1.subscriptions.retrieve(subscription.id)
    assert (gone.status, gone.ended_at) == ("canceled", end)
    client.advance(days=40)
    assert bills(client, subscription) == [(2500, "paid")]
    assert client.events().count("customer.subscription.deleted") == 1


def test_cancelling_now_with_proration_credits_what_is_left(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(3000).id)
    client.advance(to=sum(period(subscription)) // 2)
    gone = client.v1.subscriptions.cancel(
        subscription.id, {"prorate": True, "invoice_now": True, "cancellation_details": {"feedback": "unused"}}
    )
    assert gone.status == "canceled"
    assert gone.cancellation_details is not None
    assert (gone.cancellation_details.feedback, gone.cancellation_details.reason) == ("unused", "cancellation_requested")
    balance = client.v1.customers.retrieve(customer.id).balance
    assert balance is not None
    assert abs(balance + 1500) <= 1
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        client.v1.subscriptions.cancel(subscription.id)


def test_a_paused_collection_voids_the_renewals(client: Client) -> None:
    subscription = client.subscribe(client.customer().id, client.price(2500).id)
    client.v1.subscriptions.update(subscription.id, {"pause_collection": {"behavior": "void"}})
    client.advance(days=32)
    assert bills(client, subscription) == [(2500, "paid"), (2500, "void")]
    client.v1.subscriptions.update(subscription.id, {"pause_collection": ""})
    client.advance(days=31)
    assert bills(client, subscription)[-1] == (2500, "paid")


def test_deleting_a_customer_ends_the_subscriptions(client: Client) -> None:
    customer = client.customer()
    subscription = client.subscribe(customer.id, client.price(2500).id)
    client.v1.customers.delete(customer.id)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "canceled"
    assert client.v1.customers.retrieve(customer.id).deleted
    assert client.events()[-2:] == ["customer.subscription.deleted", "customer.deleted"]


def test_lists_leave_out_what_has_ended_unless_asked(client: Client) -> None:
    customer, price = client.customer(), client.price(2500)
    old, new = client.subscribe(customer.id, price.id), client.subscribe(customer.id, price.id)
    client.v1.subscriptions.cancel(old.id)
    found = {wish: [one.id for one in client.v1.subscriptions.list({"status": wish}).data] for wish in ("all", "ended", "active")}
    assert found == {"all": [new.id, old.id], "ended": [old.id], "active": [new.id]}
    assert [one.id for one in client.v1.subscriptions.list({"customer": customer.id, "price": price.id}).data] == [new.id]


@pytest.mark.parametrize(
    "wish",
    [
        {"items": []},
        {"items": [{"price": "price_none"}]},
        {"items": [{"quantity": 1}]},
        {"trial_period_days": 0},
        {"trial_period_days": "soon"},
        {"cancel_at": 1},
        {"payment_behavior": "hope"},
        {"default_payment_method": "pm_none"},
        {"metadata": {"k" * 41: "v"}},
        {"colour": "red"},
    ],
)
def test_a_subscription_that_makes_no_sense_is_refused_and_leaves_nothing(client: Client, wish: dict[str, Any]) -> None:
    customer, price = client.customer(), client.price(2500)
    with pytest.raises(stripe.InvalidRequestError):
        client.subscribe(customer.id, price.id, **wish)
    assert client.v1.subscriptions.list({"status": "all"}).data == []
    assert client.v1.invoices.list().data == []


def test_a_one_time_price_is_no_subscription(client: Client) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="one_time"):
        client.subscribe(client.customer().id, client.price(1000, None).id)
