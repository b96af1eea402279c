"""Alerts: rules over metrics, and what staff hear of them.

    look         looks at every rule once; a job, each minute
    ship         adds the rules that come with the site and are not there yet
    acknowledge  somebody works on it: nothing more is said until it is over
    resolve      staff say that it is over; while it is not, it comes again after the rule's cool-down
    mute         a rule's alerts are kept and not told, until a time
    unmute       they are told again

**What fires.** A rule asks its metric, of each product for itself or of the site. On the wrong side of the threshold it has one alert, open
until the metric is back; then that is resolved by itself. Not enough data neither fires nor resolves.

**What is told.** That it fired at once, and that it is over at once. A metric that comes back within the cool-down opens the same alert
again, in silence; if it is still there when the cool-down is over, it is told again. So an alert is told to have fired once in a cool-down
at most, and nobody is left believing that all is well.

Each rule has a transaction of its own, under its row's lock, which writes the alert and the notices of it together; they are sent
afterwards (:mod:`analytics.alert_notices`). A metric that fails stops no other rule: its rule keeps the error, and a rule watches for
that.
"""

from __future__ import annotations

import operator
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from django.db import transaction

from accounts import webhooks
from accounts.models import Fault, WebhookEvent
from analytics import alert_metrics
from analytics.alert_metrics import Ask, Metric, Reading
from analytics.models import Alert, AlertChannel, AlertNotice, AlertRule
from pricing.models import Product

#: Faults are counted in minutes; so long they are kept.
KEEP_FAULTS = timedelta(days=35)
MAX_MUTE = timedelta(days=30)
DEFAULT_CHANNEL = "Staff, by mail"

State, Told, Comparator = Alert.State, Alert.Told, AlertRule.Comparator
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    Comparator.BELOW: operator.lt,
    Comparator.AT_MOST: operator.le,
    Comparator.ABOVE: operator.gt,
    Comparator.AT_LEAST: operator.ge,
}

log = structlog.get_logger(__name__)


class InvalidMute(ValueError):
    """A rule cannot be muted so. The message says why."""


def look(*, now: datetime) -> int:
    """Looks at every rule that is on; returns at how many. Two at once look at different ones."""
    ship()
    products = list(Product.objects.order_by("pk"))
    rules = AlertRule.objects.filter(enabled=True).order_by("pk").values_list("pk", flat=True)
    looked = sum(_look_at(rule_id, products, now) for rule_id in rules)
    _resolve(Alert.objects.filter(rule__enabled=False), "The rule was turned off.", now)
    Fault.objects.filter(minute__lt=now - KEEP_FAULTS).delete()
    return looked


def ship() -> int:
    """Adds the rules of ``alert_rules.toml`` that are not there; returns how many. Those of a product that is not there wait for it.

    What is there stays as it is, whatever staff made of it.
    """
    known = set(AlertRule.objects.values_list("slug", flat=True))
    missing = {slug: terms for slug, terms in _shipped().items() if slug not in known}
    if not missing:
        return 0
    products = {product.slug: product for product in Product.objects.filter(slug__in=[terms.get("product") for terms in missing.values()])}
    added = 0
    for slug, terms in missing.items():
        product = terms.get("product")
        if product is not None and product not in products:
            continue
        with transaction.atomic():
            values = terms | {"product": products[product] if product else None}
            rule, new = AlertRule.objects.get_or_create(slug=slug, defaults=values)
            if new:
                added += 1
                channel, _ = AlertChannel.objects.get_or_create(name=DEFAULT_CHANNEL, defaults={"kind": AlertChannel.Kind.MAIL})
                rule.channels.add(channel)
    return added


def acknowledge(*, alert_id: int, actor: str, note: str, now: datetime) -> bool:
    """Says that ``actor`` works on it, and what they know. False where it is not open any more."""
    open_ = Alert.objects.filter(pk=alert_id, state=State.OPEN)
    return open_.update(state=State.ACKNOWLEDGED, acknowledged_at=now, acknowledged_by=actor, note=note) == 1


def resolve(*, alert_id: int, actor: str, note: str, now: datetime) -> bool:
    """Ends it by hand. False where it was over."""
    unresolved = Alert.objects.filter(pk=alert_id).exclude(state=State.RESOLVED)
    return unresolved.update(state=State.RESOLVED, resolved_at=now, resolved_by=actor, note=note) == 1


def mute(*, rule: AlertRule, until: datetime, actor: str, reason: str, now: datetime) -> None:
    """Tells nobody of ``rule``'s alerts until then. Those that are still there then are told.

    :raises InvalidMute: it would end before it begins, or after ``MAX_MUTE``.
    """
    if not now < until <= now + MAX_MUTE:
        raise InvalidMute(f"A rule is muted for {MAX_MUTE.days} days at most.")
    rule.muted_until, rule.muted_by, rule.mute_reason = until, actor, reason
    rule.save(update_fields=["muted_until", "muted_by", "mute_reason"])


def unmute(*, rule: AlertRule) -> None:
    rule.muted_until, rule.muted_by, rule.mute_reason = None, "", ""
    rule.save(update_fields=["muted_until", "muted_by", "mute_reason"])


def threshold_of(rule: AlertRule, product: Product | None) -> int | None:
    """Its own, or the product's alert margin; None where neither says one."""
    return rule.threshold if rule.threshold is not None else product.alert_margin_ppm if product is not None else None


def sentence(*, rule: AlertRule, product: Product | None, value: Fraction | int, detail: str) -> str:
    """``PRPM's margin of the last 30 days is 61.3 %, below 70 %: payments received $100.00, cost $38.70.``"""
    metric, threshold = alert_metrics.METRICS[rule.metric], threshold_of(rule, product)
    assert threshold is not None
    said, bound = alert_metrics.words(metric.unit, value), alert_metrics.words(metric.unit, threshold)
    beyond = f", {rule.get_comparator_display()} {bound}"
    if metric.unit == "count":
        owner = f"{product.name}, " if product else ""
        head = f"{owner}{metric.title}{_span(rule, 'in') if metric.within else ''}: {said}{beyond if rule.threshold else ''}. "
    else:
        owner = f"{product.name}'s " if product else "the "
        head = f"{owner}{metric.title}{_span(rule, 'of') if metric.within else ''} is {said}{beyond}: "
    return f"{head[0].upper()}{head[1:]}{detail}".strip(" :.") + "."


def queue(*, alert: Alert | None, channels: Sequence[AlertChannel], event: str, subject: str, text: str, now: datetime) -> None:
    """Writes down what ``channels`` are to hear, in the caller's transaction."""
    notices = [
        AlertNotice(channel=channel, alert=alert, event=event, subject=subject[:200], text=text, next_attempt_at=now, queued_at=now)
        for channel in channels
    ]
    AlertNotice.objects.bulk_create(notices)


def test_fire(*, channel: AlertChannel, actor: str, now: datetime) -> None:
    """Has ``channel`` told that this is a test, in the caller's transaction."""
    text = f"A test of the channel {channel.name}, asked for by {actor}. Nothing is wrong."
    queue(alert=None, channels=[channel], event="test", subject=f"[test] {channel.name}", text=text, now=now)


# One rule -----------------------------------------------------------------------------------------------------------------------


def _look_at(rule_id: int, products: Sequence[Product], now: datetime) -> bool:
    """False where somebody has looked at it later than ``now``, or is looking. Metrics are read outside of the transaction that uses them:
    inside, nothing of the catalog would be kept between one account and the next."""
    try:
        rule = AlertRule.objects.select_related("product").get(pk=rule_id)
        watched = _subjects(rule, alert_metrics.METRICS[rule.metric], products)
        window = AlertRule.Window(rule.window)
        readings = [
            (product, alert_metrics.read(metric=rule.metric, ask=Ask(product, window, now, rule.numerator, rule.denominator, rule.minimum)))
            for product in watched
        ]
        with transaction.atomic():
            unlocked = AlertRule.objects.select_for_update(skip_locked=True, of=("self",)).filter(pk=rule_id, enabled=True)
            locked = unlocked.exclude(looked_at__gt=now).first()
            if locked is None or _asks(locked) != _asks(rule):  # staff changed it meanwhile: what was read answers another question
                return False
            for product, reading in readings:
                _weigh(locked, product, reading, now)
            others = Alert.objects.filter(rule=locked).exclude(product__in=[product for product in watched if product])
            _resolve(others.exclude(product=None) if None in watched else others, "The rule does not watch this any more.", now)
            locked.looked_at, locked.error = now, ""
            locked.save(update_fields=["looked_at", "error"])
    except Exception as error:
        log.error("alert rule not looked at", rule=rule_id, exc_info=error)
        AlertRule.objects.filter(pk=rule_id).update(looked_at=now, error=f"{type(error).__name__}: {error}"[:300])
    return True


def _asks(rule: AlertRule) -> tuple[object, ...]:
    """What of a rule decides its question."""
    return rule.metric, rule.numerator, rule.denominator, rule.minimum, rule.window, rule.product_id, rule.threshold, rule.comparator


def _subjects(rule: AlertRule, metric: Metric, products: Sequence[Product]) -> list[Product | None]:
    """Whom the rule asks about: None is the site. A product without a threshold is not asked about."""
    if not metric.each:
        return [None]
    mine = [rule.product] if rule.product else products
    return [product for product in mine if threshold_of(rule, product) is not None]


def _weigh(rule: AlertRule, product: Product | None, reading: Reading, now: datetime) -> None:
    alert = Alert.objects.select_for_update(of=("self",)).filter(rule=rule, product=product).order_by("-opened_at", "-pk").first()
    if reading.value is not None:
        if _COMPARE[rule.comparator](reading.value, threshold_of(rule, product)):
            alert = _fires(rule, product, alert, reading, reading.value, now) or alert
        elif alert is not None and alert.state != State.RESOLVED:
            alert.state, alert.resolved_at, alert.resolved_by = State.RESOLVED, now, ""
            alert.save(update_fields=["state", "resolved_at", "resolved_by"])
    if alert is not None:
        _tell(rule, alert, now)


def _fires(rule: AlertRule, product: Product | None, last: Alert | None, reading: Reading, value: Fraction, now: datetime) -> Alert | None:
    """The alert that says so: the one there is, the last one opened again, or a new one; None while staff's own resolution holds."""
    cool_down = timedelta(minutes=rule.cool_down_minutes)
    if last is not None and last.state == State.RESOLVED:
        assert last.resolved_at is not None
        if last.resolved_by and now < last.resolved_at + cool_down:
            return None
        if last.resolved_by or now >= (last.told_at or last.opened_at) + cool_down:
            last = None
        else:
            last.state = State.ACKNOWLEDGED if last.acknowledged_at else State.OPEN
            last.resolved_at, last.times = None, last.times + 1
    alert = last or Alert(rule=rule, product=product, opened_at=now)
    alert.text = sentence(rule=rule, product=product, value=value, detail=reading.detail)
    alert.value, alert.rows, alert.link = round(value), list(reading.rows), reading.link[:300]
    alert.severity, alert.seen_at = rule.severity, now
    alert.save()
    return alert


def _tell(rule: AlertRule, alert: Alert, now: datetime) -> None:
    """What its channels do not know yet, unless the rule is muted, or they heard that it fired within the cool-down."""
    over = alert.state == State.RESOLVED
    news = Told.RESOLVED if over else Told.FIRED
    if alert.told == news or (over and alert.told == Told.NOTHING) or alert.state == State.ACKNOWLEDGED:
        return
    if rule.muted_until is not None and now < rule.muted_until:
        return
    if not over and alert.told_at is not None and now < alert.told_at + timedelta(minutes=rule.cool_down_minutes):
        return
    event = str(news)
    what = "over" if over else str(alert.severity)
    subject = f"[{what}] {rule.name}" + (f" ({alert.product.name})" if alert.product else "")
    ended = f"Resolved by {alert.resolved_by}: {alert.note}" if alert.resolved_by else "It is over"
    text = f"{ended}: {alert.text}" if over else alert.text
    queue(alert=alert, channels=list(rule.channels.filter(enabled=True)), event=event, subject=subject, text=text, now=now)
    if not over and alert.product is not None:
        _tell_client_apps(rule, alert, now)
    alert.told, alert.told_at = news, alert.told_at if over else now
    alert.save(update_fields=["told", "told_at"])


def _tell_client_apps(rule: AlertRule, alert: Alert, now: datetime) -> None:
    """The product's own endpoints, of those that want to hear of it."""
    data: dict[str, str | int | None] = {
        "alert": alert.pk,
        "rule": rule.slug,
        "severity": str(alert.severity),
        "text": alert.text,
        "opened_at": alert.opened_at.isoformat(),
    }
    key = f"{alert.pk}:{now.isoformat()}"
    webhooks.queue(account=None, product=alert.product, kind=WebhookEvent.Kind.ALERT_FIRED, key=key, data=data, now=now)


def _resolve(alerts: Any, why: str, now: datetime) -> None:
    """Ends alerts that nobody looks at any more."""
    alerts.exclude(state=State.RESOLVED).update(state=State.RESOLVED, resolved_at=now, resolved_by=why)


def _span(rule: AlertRule, preposition: str) -> str:
    if rule.window == AlertRule.Window.MONTH:
        return f" {preposition} this month"
    return f" {preposition} the last {rule.get_window_display()}"


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    """The rules of ``alert_rules.toml`` by slug, as fields of :class:`AlertRule`; ``product`` is a slug."""
    return tomllib.loads((Path(__file__).parent / "alert_rules.toml").read_text())
