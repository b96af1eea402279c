"""Admin's first page: how the business stands, of one product or of all, and what waits for somebody. Everyone sees what their role may."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from django.db.models import Case, Count, Sum, When
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account
from analytics import jobs, margin, overview, rollups
from analytics.models import Alert, AuditFinding
from billing.admin import unit
from billing.models import StripeEvent, StripeRequest
from metering import throttles
from metering.models import OpenAuthorization, UsageRecord
from pricing.admin import percent
from pricing.models import PriceProposal, Product

PERIODS: Final = (7, 30, 90)
DAYS: Final = 30
#: So many alerts are shown; how many there are is said.
ALERTS: Final = 5
#: Jobs that were given up in so many hours are told.
RECENT_HOURS: Final = 24


@dataclass(frozen=True, slots=True)
class Todo:
    """Something that waits for a person, with the rows behind it."""

    count: int
    text: str
    url: str


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Adds what the first page shows, for those who may see it."""
    may, now = request.user.has_perm, timezone.now()
    products = list(Product.objects.order_by("name", "pk"))
    product = next((one for one in products if one.slug == request.GET.get("product")), None)
    days = next((one for one in PERIODS if str(one) == request.GET.get("days")), DAYS)
    context |= {
        "title": "Dashboard", "now": now, "products": products, "product": product, "days_shown": days, "periods": PERIODS,
        "todos": [todo for todo in _todos(request, now - timedelta(days=DAYS)) if todo.count], "links": _links(product, days, now),
    }  # fmt: skip
    if may("analytics.view_alert"):
        alerts = Alert.objects.exclude(state=Alert.State.RESOLVED).select_related("product")
        ranked = alerts.annotate(rank=Case(When(severity="critical", then=0), default=1)).order_by("-state", "rank", "-opened_at")
        context |= {"alerts": ranked[:ALERTS], "alert_count": alerts.count()}
    if may("analytics.view_jobrun"):
        late, given_up = jobs.late(now=now).count(), jobs.given_up(since=now - timedelta(hours=RECENT_HOURS)).count()
        context |= {"jobs": {"late": late, "given_up": given_up, "bad": late + given_up}}
    if may("accounts.view_account"):
        open_accounts = Account.objects.filter(closed_at=None, **({"product": product} if product else {}))
        context |= {"accounts": open_accounts.count()}
    if may("metering.view_openauthorization"):
        held = OpenAuthorization.objects.filter(**({"account__product": product} if product else {}))
        sums = held.filter(held__gt=0).values("unit_id").annotate(Sum("held")).order_by("unit_id")
        context |= {"open_count": held.filter(state="open").count(), "held": [(row["held__sum"], unit(row["unit_id"])) for row in sums]}
    if may("analytics.view_margin"):
        found = overview.look(products=products, one=product, days=days, now=now)
        revenue, was = found.days.totals.revenue_nanos, found.before.revenue_nanos
        context |= {
            "found": found, "change": margin.percent(revenue - was, was), "missed": _missed(product, found.days.totals),
            "target": percent(product.target_margin_ppm) if product and product.target_margin_ppm is not None else "",
            "folded_at": rollups.folded_at(),
        }  # fmt: skip
    elif may("metering.view_costthrottle"):
        stopped = throttles.everybody(now=now, product=product)
        context |= {"throttled": len({one.account.pk for one in stopped})}
    return context


def _missed(product: Product | None, totals: margin.Row) -> bool:
    """Whether a product that has a target charged something and earned less of it."""
    if product is None or product.target_margin_ppm is None:
        return False
    return totals.margin_nanos * 1_000_000 < totals.revenue_nanos * product.target_margin_ppm


def _links(product: Product | None, days: int, now: datetime) -> dict[str, str]:
    """Where the rows behind each figure are."""
    last_day = now.date()
    of_margin: dict[str, object] = {"since": last_day - timedelta(days=days - 1), "last_day": last_day}
    of_product: dict[str, object] = {}
    if product is not None:
        of_margin["product"], of_product["account__product__id__exact"] = product.slug, product.pk
    within = {1: "1", 7: "", 30: "30"}.get(days, "all")

    def to(name: str, **query: object) -> str:
        found = urlencode({key: value for key, value in query.items() if value != ""})
        return reverse(f"admin:{name}") + (f"?{found}" if found else "")

    return {
        "margin": to("analytics_margin_changelist", by="product", **of_margin),
        "margin_days": to("analytics_margin_changelist", by="day", **of_margin),
        "models": to("analytics_margin_changelist", by="model", **of_margin),
        "account_margins": to("analytics_margin_changelist", by="account", **of_margin),
        "growth": to("analytics_growth", **({"product": product.slug} if product else {})),
        "revenue": to("analytics_revenue", **of_margin),
        "packs": to("billing_grant_changelist", source="purchased", within=within, **of_product),
        "payments": to("billing_stripepayment_changelist", within=within, **of_product),
        "usage": to("metering_usagerecord_changelist", within=within, **of_product),
        "grants": to("billing_grant_changelist", closed__exact=0, within="all", **of_product),
        "accounts": to("accounts_account_changelist", **({"product__id__exact": product.pk} if product else {})),
        "throttled": to("metering_costthrottle_changelist", **({"product": product.pk} if product else {})),
        "risk": to("analytics_risk", **({"product": product.slug} if product else {})),
        "alerts": to("analytics_alert_changelist"),
        "jobs": to("analytics_jobrun_changelist"),
        "refresh": to("analytics_jobrun_changelist") + "run/fold-rollups/",
        "open": to("metering_openauthorization_changelist", state__exact="open", **of_product),
    }  # fmt: skip


def _todos(request: HttpRequest, since: datetime) -> Iterator[Todo]:
    """What waits, of what this person may see."""
    may = request.user.has_perm
    if may("pricing.view_priceproposal"):
        pending = PriceProposal.objects.filter(state="pending").count()
        yield Todo(pending, "price proposals to decide on", reverse("admin:pricing_priceproposal_changelist") + "?state__exact=pending")
    if may("metering.view_usagerecord"):
        unpriced = UsageRecord.objects.filter(outcome="unpriced", event_at__gte=since).count()
        records = reverse("admin:metering_usagerecord_changelist")
        yield Todo(unpriced, "usage records without a price", f"{records}?outcome__exact=unpriced&within=30")
    if may("metering.view_openauthorization"):
        waiting = OpenAuthorization.objects.exclude(state="open").values("state").annotate(n=Count("pk"))
        states, open_ = {row["state"]: row["n"] for row in waiting}, reverse("admin:metering_openauthorization_changelist")
        yield Todo(states.get("awaiting_price", 0), "captures awaiting a price", f"{open_}?state__exact=awaiting_price")
        yield Todo(states.get("timed_out", 0), "holds that timed out and still take their capture", f"{open_}?state__exact=timed_out")
    if may("billing.view_stripeevent"):
        events = StripeEvent.objects.filter(state__in=[StripeEvent.State.DEAD, StripeEvent.State.QUARANTINED]).count()
        yield Todo(events, "Stripe events that were set aside", reverse("admin:billing_stripeevent_changelist") + "?state__exact=dead")
    if may("billing.view_striperequest"):
        stuck = StripeRequest.objects.filter(state=StripeRequest.State.STUCK).count()
        yield Todo(stuck, "requests that Stripe never answered", reverse("admin:billing_striperequest_changelist") + "?state__exact=stuck")
    if may("analytics.view_auditfinding"):
        findings = AuditFinding.objects.filter(gone_at=None).count()
        yield Todo(findings, "things that the audit found wrong", reverse("admin:analytics_auditfinding_changelist"))
