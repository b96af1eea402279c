"""Checklists of the documents: success of a deployment, launch, roadmap, stages of growth (``checklists.toml``).

    LISTS   every list with its items
    look    how each item of a list stands now
    tick    staff say that an item holds, or no longer does, with a note

An item with a check is looked at each time and never ticked; the others stand as staff left them. Ticks are rows: who, when and why stays.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Final

from django.conf import settings
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core import checks
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor

from accounts.models import User
from analytics import alert_metrics, jobs
from analytics.alert_metrics import Ask, Window
from analytics.models import AlertChannel, AuditFinding, ChecklistTick, JobRun
from billing.models import StripeEvent, StripeSubscription
from metering.models import CostThrottle, Throttle
from pricing.models import Product
from pricing.rating import PPM


@dataclass(frozen=True, slots=True)
class Item:
    """``check`` names what is looked at, against ``value`` in the metric's unit; empty: staff tick it."""

    slug: str
    says: str
    check: str = ""
    value: int = 0


@dataclass(frozen=True, slots=True)
class Checklist:
    slug: str
    title: str
    product: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Stands:
    """How an item stands. ``holds`` None: there is nothing to measure yet. ``why`` says what was found, or who ticked it."""

    item: Item
    holds: bool | None
    why: str


class UnknownItem(LookupError):
    """No such item, or one that is measured and not ticked."""


def _read() -> Mapping[str, Checklist]:
    found = tomllib.loads((Path(__file__).parent / "checklists.toml").read_text())
    lists = {}
    for slug, said in found.items():
        title, product = said.pop("title"), said.pop("product", "")
        lists[slug] = Checklist(slug, title, product, tuple(Item(name, **one) for name, one in said.items()))
    return lists


def look(*, checklist: Checklist, now: datetime) -> list[Stands]:
    """Every item in order. Reads alone."""
    ticks: dict[str, ChecklistTick] = {}
    for tick in ChecklistTick.objects.filter(checklist=checklist.slug).order_by("pk"):
        ticks[tick.item] = tick
    product = Product.objects.filter(slug=checklist.product).first() if checklist.product else None
    return [_measured(item, checklist, product, now) if item.check else _ticked(item, ticks.get(item.slug)) for item in checklist.items]


@transaction.atomic
def tick(*, checklist: str, item: str, done: bool, note: str, user: User, now: datetime) -> ChecklistTick:
    """:raises UnknownItem: there is no such item, or it is measured."""
    found = LISTS.get(checklist)
    if found is None or not any(one.slug == item and not one.check for one in found.items):
        raise UnknownItem(f"{checklist} has no item {item} to tick.")
    made = ChecklistTick.objects.create(
        checklist=checklist, item=item, done=done, note=note, actor=user.get_username()[:150], ticked_at=now
    )
    LogEntry.objects.create(
        user=user, content_type=ContentType.objects.get_for_model(ChecklistTick), object_id=str(made.pk), object_repr=str(made)[:200],
        action_flag=CHANGE, change_message=f"{'Ticked' if done else 'Unticked'}: {note}", action_time=now,
    )  # fmt: skip
    return made


def _ticked(item: Item, tick: ChecklistTick | None) -> Stands:
    if tick is None:
        return Stands(item, None, "nobody has said so yet")
    return Stands(item, tick.done, f"{tick.note} ({tick.actor}, {tick.ticked_at:%Y-%m-%d})")


def _measured(item: Item, checklist: Checklist, product: Product | None, now: datetime) -> Stands:
    if checklist.product and product is None:
        return Stands(item, None, f"there is no product {checklist.product} yet")
    holds, why = _CHECKS[item.check](item, product, now)
    return Stands(item, holds, why)


# What is measured ---------------------------------------------------------------------------------------------------------------

_Found = tuple[bool | None, str]


def _subscriptions(item: Item, product: Product | None, now: datetime) -> _Found:
    made = StripeSubscription.objects.filter(account__product=product).count()
    dead = StripeEvent.objects.filter(state=StripeEvent.State.DEAD, type__startswith="customer.subscription").count()
    return made >= item.value and not dead, f"{made:,} subscriptions, {dead:,} of their events failed"


def _cost_accuracy(item: Item, product: Product | None, now: datetime) -> _Found:
    reading = alert_metrics.read(metric="cost_accuracy", ask=Ask(None, Window.THIRTY_DAYS, now))
    if reading.value is None:
        return None, "no provider's bill of the last 30 days is imported"
    return reading.value <= item.value, reading.detail


def _margin(item: Item, product: Product | None, now: datetime) -> _Found:
    ask = Ask(product, Window.THIRTY_DAYS, now, numerator="cost", denominator="received")
    reading = alert_metrics.read(metric="margin", ask=ask)
    if reading.value is None:
        return None, "nothing was received or spent in the last 30 days"
    return reading.value >= item.value, f"{_percent(reading.value)} in the last 30 days: {reading.detail}"


def _throttled_share(item: Item, product: Product | None, now: datetime) -> _Found:
    reading = alert_metrics.read(metric="throttled_share", ask=Ask(product, Window.THIRTY_DAYS, now))
    if reading.value is None:
        return None, "nobody is active"
    return reading.value < item.value, reading.detail


def _throttled_once(item: Item, product: Product | None, now: datetime) -> _Found:
    assert product is not None
    free = {"account__product": product, "account__subscriptions__plan_version__plan__slug": product.default_plan}
    if Throttle.objects.filter(**free).exists() or CostThrottle.objects.filter(**free).exists():
        return True, f"an account on the plan {product.default_plan} was throttled"
    return None, f"no account on the plan {product.default_plan} was throttled yet"


def _audited(item: Item, product: Product | None, now: datetime) -> _Found:
    last = JobRun.objects.filter(job="audit", subject="", state=JobRun.State.DONE).order_by("-ended_at").first()
    open_ = AuditFinding.objects.filter(gone_at=None).count()
    if last is None or last.ended_at is None:
        return None, "no audit was finished yet"
    return not open_ and now - last.ended_at < timedelta(days=2), f"{open_:,} findings open; last audit {last.ended_at:%Y-%m-%d %H:%M} UTC"


def _webhooks(item: Item, product: Product | None, now: datetime) -> _Found:
    failed = StripeEvent.objects.filter(state__in=[StripeEvent.State.DEAD, StripeEvent.State.QUARANTINED]).count()
    late = StripeEvent.objects.filter(state=StripeEvent.State.PENDING, received_at__lt=now - timedelta(minutes=15)).count()
    if not StripeEvent.objects.exists():
        return None, "no event came yet"
    return not failed and not late, f"{failed:,} given up, {late:,} waiting for over a quarter of an hour"


def _jobs(item: Item, product: Product | None, now: datetime) -> _Found:
    late, failed = jobs.late(now=now).count(), jobs.given_up(since=now - timedelta(days=1)).count()
    if not JobRun.objects.filter(state=JobRun.State.DONE).exists():
        return None, "no job ran yet"
    return not late and not failed, f"{late:,} late, {failed:,} given up in the last day"


def _environment(item: Item, product: Product | None, now: datetime) -> _Found:
    found = checks.run_checks(include_deployment_checks=True)
    wrong = [one for one in found if one.level >= checks.WARNING]
    named = ", ".join(dict.fromkeys(one.id or "?" for one in wrong))[:200]
    return not wrong, f"manage.py check --deploy finds {named or 'nothing'}"


def _schema(item: Item, product: Product | None, now: datetime) -> _Found:
    executor = MigrationExecutor(connection)
    waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return not waiting, f"{len(waiting):,} migrations wait" if waiting else "every migration is applied"


def _monitoring(item: Item, product: Product | None, now: datetime) -> _Found:
    channels = AlertChannel.objects.filter(enabled=True, rules__enabled=True).distinct()
    told = [str(one) for one in channels if one.kind != AlertChannel.Kind.MAIL or one.target or settings.ALERT_EMAILS]
    return bool(told), f"alerts go to {', '.join(told)[:200]}" if told else "alerts reach nobody: set ALERT_EMAILS or make a channel"


def _admin(item: Item, product: Product | None, now: datetime) -> _Found:
    return True, "you are reading it"


def _backups(item: Item, product: Product | None, now: datetime) -> _Found:
    last = JobRun.objects.filter(job="back-up", subject="", state=JobRun.State.DONE).order_by("-ended_at").first()
    if last is None or last.ended_at is None:
        return False, "no backup was taken yet: set BACKUP_FOLDER"
    return now - last.ended_at < timedelta(days=2), f"the last one on {last.ended_at:%Y-%m-%d %H:%M} UTC"


def _percent(ppm: Fraction) -> str:
    return f"{round(Fraction(ppm, PPM // 100))} %"


_CHECKS: Final[Mapping[str, Callable[[Item, Product | None, datetime], _Found]]] = {
    "subscriptions": _subscriptions, "cost_accuracy": _cost_accuracy, "margin": _margin, "throttled_share": _throttled_share,
    "throttled_once": _throttled_once, "audited": _audited, "webhooks": _webhooks, "jobs": _jobs, "environment": _environment,
    "schema": _schema, "monitoring": _monitoring, "admin": _admin, "backups": _backups,
}  # fmt: skip
LISTS: Final = _read()
