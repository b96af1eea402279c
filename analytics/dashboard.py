"""Admin's first page: the last 30 days at a glance, and what waits for somebody."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Case, Count, QuerySet, Sum, When
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account
from analytics import margin
from analytics.models import Alert
from billing.admin import unit
from metering.models import OpenAuthorization, UsageRecord
from pricing.models import PriceProposal

DAYS = 30
TOP = 5


@dataclass(frozen=True, slots=True)
class Todo:
    """Something that waits for a person, with the rows behind it."""

    count: int
    text: str
    url: str


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Adds the open alerts and the figures to the context of admin's first page, for those who may see them."""
    if request.user.has_perm("analytics.view_alert"):
        alerts = Alert.objects.exclude(state=Alert.State.RESOLVED).select_related("product")
        ranked = alerts.annotate(rank=Case(When(severity="critical", then=0), default=1)).order_by("-state", "rank", "-opened_at")
        context |= {"alerts": ranked[:TOP], "alert_count": alerts.count()}
    if not request.user.has_perm("analytics.view_margin"):
        return context | {"title": "Dashboard"}
    now = timezone.now()
    until = now.date() + timedelta(days=1)
    since = until - timedelta(days=DAYS)
    before = margin.report(by="product", since=since - timedelta(days=DAYS), until=since, limit=1).totals
    days = margin.report(by="day", since=since, until=until)
    accounts = margin.report(by="account", since=since, until=until, limit=TOP)
    return context | {
        "title": "Dashboard",
        "now": now,
        "days": days,
        "change": margin.percent(days.totals.revenue_nanos - before.revenue_nanos, before.revenue_nanos),
        "by_product": margin.report(by="product", since=since, until=until, limit=TOP),
        "by_model": margin.report(by="model", since=since, until=until, limit=TOP),
        "by_account": accounts,
        "accounts": Account.objects.filter(closed_at=None).count(),
        "open_count": OpenAuthorization.objects.filter(state="open").count(),
        "held": [
            (row["held__sum"], unit(row["unit_id"]))
            for row in OpenAuthorization.objects.filter(held__gt=0).values("unit_id").annotate(Sum("held")).order_by("unit_id")
        ],
        "todos": [todo for todo in _todos(now - timedelta(days=DAYS)) if todo.count],
    }


def _todos(since: Any) -> list[Todo]:
    unpriced: QuerySet[UsageRecord] = UsageRecord.objects.filter(outcome="unpriced", event_at__gte=since)
    waiting = OpenAuthorization.objects.exclude(state="open").values("state").annotate(n=Count("pk"))
    states = {row["state"]: row["n"] for row in waiting}
    records, open_ = reverse("admin:metering_usagerecord_changelist"), reverse("admin:metering_openauthorization_changelist")
    return [
        Todo(PriceProposal.objects.filter(state="pending").count(), "price proposals to decide on",
             reverse("admin:pricing_priceproposal_changelist") + "?state__exact=pending"),
        Todo(unpriced.count(), "usage records without a price", f"{records}?outcome__exact=unpriced&within=30"),
        Todo(states.get("awaiting_price", 0), "captures awaiting a price", f"{open_}?state__exact=awaiting_price"),
        Todo(states.get("timed_out", 0), "holds that timed out and still take their capture", f"{open_}?state__exact=timed_out"),
    ]  # fmt: skip
