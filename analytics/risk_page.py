"""The risk page: who costs too much this month, and, for who asks support, why they are throttled with credits left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from accounts.models import Account
from accounts.templatetags.amounts import plain_amount
from analytics import risk
from analytics.templatetags.margins import DOLLAR
from billing import balances
from metering import throttles
from pricing.models import Product

#: So many accounts are shown of each list; how many there are is said.
SHOWN: Final = 100
EXPLAINED: Final = 20
WINDOWS: Final = {"cost/day": "today", "cost/period": "in this billing period"}


@dataclass(frozen=True, slots=True)
class Explained:
    """Why an account is throttled, in sentences that support may send on, but for what it costs us."""

    account: Account
    sentences: tuple[str, ...]


def risk_view(request: HttpRequest) -> HttpResponse:
    """One product's month; the first product's where none is named. Reads alone."""
    if not request.user.has_perm("analytics.view_margin"):
        raise PermissionDenied
    now, products = timezone.now(), list(Product.objects.order_by("name", "pk"))
    product = next((one for one in products if one.slug == request.GET.get("product")), products[0] if products else None)
    context: dict[str, Any] = {
        "title": "Risk", "products": products, "product": product, "now": now, "dollar": DOLLAR, "shown": SHOWN,
        "rules": risk.RULES,
    }  # fmt: skip
    if product is not None:
        month = risk.look(product=product, now=now)
        context |= {
            "month": month, "health": month.health, "at_risk": month.at_risk[:SHOWN], "explained_most": EXPLAINED,
            "explained": list(explain(month.throttled[:EXPLAINED], now=now)),
        }  # fmt: skip
    return TemplateResponse(request, "admin/analytics/risk.html", admin.site.each_context(request) | context)


def explain(throttled: tuple[throttles.Throttled, ...], *, now: datetime) -> Iterator[Explained]:
    """What to say of each. Somebody with credits left is told that these are not what stops them."""
    for one in throttled:
        stop, account = one.stop, one.account
        if not stop.meter:
            until = f"until {stop.until:%Y-%m-%d %H:%M} UTC" if stop.until else "until somebody resumes it"
            yield Explained(account, (f"Stopped by {stop.actor} {until}: {stop.reason}", _left(account, now)))
            continue
        assert stop.used_nanos is not None
        assert stop.limit_nanos is not None
        used, limit = plain_amount(stop.used_nanos, DOLLAR), plain_amount(stop.limit_nanos, DOLLAR)
        ends = f"on {stop.until:%Y-%m-%d at %H:%M} UTC" if stop.until else "when the window ends"
        yield Explained(
            account,
            (
                f"What it used {WINDOWS.get(stop.meter, 'in this window')} cost us {used}; its cost tier allows {limit}.",
                _left(account, now),
                f"It works again by itself {ends}; resuming it lifts the limit until then.",
            ),
        )


def _left(account: Account, now: datetime) -> str:
    """What the wallet has to do with it: nothing."""
    left = next((one.available for one in balances.of_account(account, now=now) if one.unit_id == account.product.unit_id), 0)
    if left <= 0:
        return "It has no credits left either: after the throttle it needs a top-up."
    return f"Its credits are not the reason: {plain_amount(left, account.product.unit, True)} are left and none are lost."
