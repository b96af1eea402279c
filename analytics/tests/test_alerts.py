"""An alert is opened once, told once in a cool-down, resolved by itself, and never lost to a metric that fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction

from accounts.models import Fault, WebhookEvent
from analytics import alerts
from analytics.models import Alert, AlertChannel, AlertNotice, AlertRule
from analytics.tests.world import NANOS, World
from billing import ledger
from pricing.models import Product
from tests.factories import make_product

#: A time of its own: what other tests left is of another.
NOW = datetime(2031, 5, 5, 12, tzinfo=UTC)


@pytest.fixture
def channel(db: None) -> AlertChannel:
    return AlertChannel.objects.create(name="Nobody", kind="mail", target="nobody@example.com")


@pytest.fixture
def rule(channel: AlertChannel) -> AlertRule:
    """More than two database errors in five minutes; its cool-down is an hour."""
    alerts.ship()
    AlertRule.objects.update(enabled=False)
    rule = AlertRule.objects.create(
        slug="test", name="Test", metric="database_errors", comparator="gt", threshold=2, window="5m", cool_down_minutes=60
    )
    rule.channels.add(channel)
    return rule


def fail(now: datetime, count: int = 3) -> None:
    Fault.objects.create(kind="database", minute=now.replace(second=0), count=count, about="test")


def look(minutes: int) -> datetime:
    now = NOW + timedelta(minutes=minutes)
    alerts.look(now=now)
    return now


def told(rule: AlertRule) -> list[tuple[int, str]]:
    """What was told, and how many minutes after the beginning."""
    notices = AlertNotice.objects.filter(alert__rule=rule).order_by("queued_at")
    return [((notice.queued_at - NOW) // timedelta(minutes=1), notice.event) for notice in notices]


def states(rule: AlertRule) -> list[str]:
    return list(Alert.objects.filter(rule=rule).order_by("opened_at").values_list("state", flat=True))


class TestFiring:
    def test_it_is_opened_and_told_once_and_resolved_by_itself(self, rule: AlertRule) -> None:
        look(0)
        assert states(rule) == []
        fail(NOW + timedelta(minutes=1))
        look(1)
        look(2)
        assert (states(rule), told(rule)) == (["open"], [(1, "fired")])
        look(7)
        alert = Alert.objects.get(rule=rule)
        assert (alert.state, alert.resolved_by, alert.value, alert.times) == ("resolved", "", 3, 1)
        assert told(rule) == [(1, "fired"), (7, "resolved")]
        notice = AlertNotice.objects.get(alert=alert, event="fired")
        assert (notice.subject, notice.text) == ("[warning] Test", "Database errors in the last 5 minutes: 3, above 2. The last: test.")
        assert AlertNotice.objects.get(alert=alert, event="resolved").text.startswith("It is over: Database errors")

    def test_a_flapping_metric_is_told_to_have_fired_once_in_a_cool_down(self, rule: AlertRule) -> None:
        """Bad for five minutes, good for five, all the time."""
        for minute in range(120):
            if minute % 10 == 0:
                fail(NOW + timedelta(minutes=minute))
            look(minute)
        fired = [minute for minute, event in told(rule) if event == "fired"]
        assert fired == [0, 60]
        assert [event for _, event in told(rule)] == ["fired", "resolved"] * 2
        assert [alert.times for alert in Alert.objects.filter(rule=rule).order_by("opened_at")] == [6, 6]

    def test_what_comes_back_within_the_cool_down_and_stays_is_told_when_that_is_over(self, rule: AlertRule) -> None:
        fail(NOW)
        look(0)
        look(6)
        for minute in range(30, 75, 4):
            fail(NOW + timedelta(minutes=minute))
            look(minute)
        assert told(rule) == [(0, "fired"), (6, "resolved"), (62, "fired")]
        assert states(rule) == ["open"]

    def test_after_the_cool_down_it_is_another_alert(self, rule: AlertRule) -> None:
        for minute in (0, 90):
            fail(NOW + timedelta(minutes=minute))
            look(minute)
            look(minute + 10)
        assert states(rule) == ["resolved", "resolved"]
        assert told(rule) == [(0, "fired"), (10, "resolved"), (90, "fired"), (100, "resolved")]

    def test_without_enough_data_it_neither_fires_nor_resolves(self, rule: AlertRule, world: World) -> None:
        AlertRule.objects.filter(pk=rule.pk).update(
            metric="margin", numerator="cost", denominator="charged", comparator="lt", threshold=500_000, minimum=NANOS, window="1d",
            product=world.product,
        )  # fmt: skip
        look(0)
        assert states(rule) == []
        account = world.account()
        world.grant(account, 100 * NANOS)
        with ledger.clock(at=NOW):
            ledger.record(world.event(account, cost=NANOS, price=NANOS, at=NOW))
        look(1)
        assert states(rule) == ["open"]
        look(60 * 24)  # another day, of which nothing is known
        assert states(rule) == ["open"]
        with ledger.clock(at=NOW + timedelta(days=1)):
            ledger.record(world.event(account, cost=NANOS, price=9 * NANOS, at=NOW + timedelta(days=1)))
        look(60 * 24 + 1)
        assert states(rule) == ["resolved"]

    def test_a_cost_without_any_revenue_fires_as_far_as_it_goes(self, rule: AlertRule, world: World) -> None:
        AlertRule.objects.filter(pk=rule.pk).update(
            metric="margin", numerator="cost", denominator="received", comparator="lt", threshold=0, window="1d", product=world.product
        )
        ledger.record(world.event(world.account(), cost=NANOS, price=0, at=NOW))
        look(0)
        alert = Alert.objects.get(rule=rule)
        assert (
            alert.text == "Rover's margin of the last day is beyond measure (no revenue), below 0 %: payments received $0.00, cost $1.00."
        )

    def test_each_product_has_an_alert_of_its_own_and_one_without_a_threshold_none(self, rule: AlertRule, world: World) -> None:
        AlertRule.objects.filter(pk=rule.pk).update(
            metric="margin", numerator="cost", denominator="charged", comparator="lt", threshold=None, window="1d"
        )
        other, without = World.new(name="Other"), World.new(name="Without")
        Product.objects.filter(pk__in=[world.product.pk, other.product.pk]).update(alert_margin_ppm=500_000)
        for each in (world, other, without):
            ledger.record(each.event(each.account(), cost=NANOS, price=NANOS, at=NOW))
        look(0)
        found = Alert.objects.filter(rule=rule)
        assert {alert.product for alert in found} == {world.product, other.product}
        Product.objects.filter(pk=other.product.pk).update(alert_margin_ppm=None)
        look(1)
        assert Alert.objects.get(rule=rule, product=other.product).resolved_by == "The rule does not watch this any more."

    def test_client_apps_of_the_product_are_told(self, rule: AlertRule, world: World) -> None:
        AlertRule.objects.filter(pk=rule.pk).update(
            metric="margin", numerator="cost", denominator="charged", comparator="lt", threshold=500_000, window="1d", product=world.product
        )
        ledger.record(world.event(world.account(), cost=NANOS, price=NANOS, at=NOW))
        look(0)
        look(1)
        event = WebhookEvent.objects.get(product=world.product, kind="alert.fired")
        assert event.data["text"] == Alert.objects.get(rule=rule).text

    def test_a_metric_that_fails_stops_no_other_and_is_kept_with_its_rule(self, rule: AlertRule) -> None:
        broken = AlertRule.objects.create(slug="a-broken", name="Broken", metric="no_such", comparator="gt", threshold=0)
        fail(NOW)
        look(0)
        broken.refresh_from_db()
        assert (broken.error, broken.looked_at) == ("KeyError: 'no_such'", NOW)
        assert states(rule) == ["open"]


class TestStaff:
    def test_what_is_acknowledged_is_told_no_more_until_it_is_over(self, rule: AlertRule) -> None:
        fail(NOW, 9)
        look(0)
        alert = Alert.objects.get(rule=rule)
        assert alerts.acknowledge(alert_id=alert.pk, actor="ann", note="On it.", now=NOW)
        assert not alerts.acknowledge(alert_id=alert.pk, actor="ben", note="Me too.", now=NOW)
        fail(NOW + timedelta(minutes=4), 9)
        look(4)
        look(20)
        alert.refresh_from_db()
        assert (alert.state, alert.acknowledged_by, alert.note) == ("resolved", "ann", "On it.")
        assert told(rule) == [(0, "fired"), (20, "resolved")]

    def test_what_staff_resolved_comes_again_after_the_cool_down_while_it_is_still_so(self, rule: AlertRule) -> None:
        for minute in range(0, 70, 4):
            fail(NOW + timedelta(minutes=minute))
            look(minute)
            if minute == 0:
                assert alerts.resolve(alert_id=Alert.objects.get(rule=rule).pk, actor="ann", note="No matter.", now=NOW)
        assert states(rule) == ["resolved", "open"]
        assert told(rule) == [(0, "fired"), (4, "resolved"), (60, "fired")]

    def test_a_muted_rule_opens_its_alerts_and_tells_of_them_when_that_is_over(self, rule: AlertRule) -> None:
        alerts.mute(rule=rule, until=NOW + timedelta(minutes=30), actor="ann", reason="We know.", now=NOW)
        for minute in range(0, 40, 4):
            fail(NOW + timedelta(minutes=minute))
            look(minute)
        assert states(rule) == ["open"]
        assert told(rule) == [(32, "fired")]

    @pytest.mark.parametrize("until", [timedelta(0), timedelta(minutes=-1), timedelta(days=31)])
    def test_a_rule_is_not_muted_into_the_past_or_for_ever(self, rule: AlertRule, until: timedelta) -> None:
        with pytest.raises(alerts.InvalidMute):
            alerts.mute(rule=rule, until=NOW + until, actor="ann", reason="We know.", now=NOW)

    def test_a_rule_that_is_turned_off_ends_its_alerts(self, rule: AlertRule) -> None:
        fail(NOW)
        look(0)
        AlertRule.objects.filter(pk=rule.pk).update(enabled=False)
        look(1)
        assert Alert.objects.get(rule=rule).resolved_by == "The rule was turned off."


class TestShipping:
    def test_rules_are_added_once_and_what_staff_made_of_them_stays(self, db: None) -> None:
        assert alerts.ship() > 0
        AlertRule.objects.filter(slug="oldest-hold").update(threshold=1, enabled=False, name="Ours")
        AlertRule.objects.get(slug="dead-letters").channels.clear()
        assert alerts.ship() == 0
        ours = AlertRule.objects.get(slug="oldest-hold")
        assert (ours.threshold, ours.enabled, ours.name) == (1, False, "Ours")
        assert not AlertRule.objects.get(slug="dead-letters").channels.exists()

    def test_a_products_rules_come_with_the_product(self, db: None) -> None:
        Product.objects.filter(slug="rover").update(slug="rover-of-another-test")
        alerts.ship()
        assert not AlertRule.objects.filter(slug__startswith="rover").exists()
        product = make_product()
        Product.objects.filter(pk=product.pk).update(slug="rover")
        assert alerts.ship() == 4
        assert {rule.product for rule in AlertRule.objects.filter(slug__startswith="rover")} == {product}


class TestDatabase:
    def test_there_is_one_open_alert_a_rule_and_product_also_where_that_is_the_site(self, rule: AlertRule) -> None:
        fields: dict[str, Any] = {"rule": rule, "severity": "warning", "text": "x", "value": 1, "opened_at": NOW, "seen_at": NOW}
        Alert.objects.create(**fields)
        with pytest.raises(IntegrityError), transaction.atomic():
            Alert.objects.create(**fields)

    def test_a_channel_that_is_called_has_an_address(self, db: None) -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            AlertChannel.objects.create(name="x", kind="slack", target="")


@pytest.mark.failure(48)
def test_two_looks_at_once_open_one_alert_and_tell_it_once(committed: None) -> None:
    alerts.ship()
    rule = AlertRule.objects.create(slug="twice", name="Twice", metric="database_errors", comparator="gt", threshold=2, window="5m")
    channel = AlertChannel.objects.create(name="Twice", kind="mail", target="nobody@example.com")
    rule.channels.add(channel)
    now = NOW + timedelta(days=9)
    fail(now)

    def once(_: int) -> None:
        try:
            alerts.look(now=now)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(once, range(8)))
    try:
        assert Alert.objects.filter(rule=rule).count() == 1
        assert AlertNotice.objects.filter(channel=channel).count() == 1
    finally:
        AlertRule.objects.update(enabled=False)
        AlertNotice.objects.update(state="dead", done_at=now)
