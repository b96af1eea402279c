"""The log of billing: the ledger's acts, Stripe's events, subscriptions and changes of plan in one list, the newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from accounts.models import Account
from analytics import rollups

ROWS: Final = 50
KINDS: Final = {"credit": "Credit", "stripe": "Stripe", "plan": "Plans"}
#: What somebody needs who reads it: each source's own right.
PERMISSIONS: Final = ("billing.view_operation", "billing.view_stripeevent", "billing.view_subscription")


@dataclass(frozen=True, slots=True)
class Event:
    """One line. ``account_id`` None: what Stripe announced is of no account that we know. ``key`` names the row on admin's ``page``."""

    at: datetime
    kind: str
    what: str
    account_id: int | None
    who: str
    why: str
    page: str
    key: str
    account: str | None
    product: str | None

    @property
    def url(self) -> str:
        return reverse(f"admin:{self.page}_change", args=[quote(self.key)])


def billing_events_view(request: HttpRequest) -> HttpResponse:
    """A page of it; ``before`` is where the next one begins. Garbage is the usual."""
    if not request.user.has_perms(PERMISSIONS):
        raise PermissionDenied
    now = timezone.now()
    kind = request.GET.get("kind", "") if request.GET.get("kind") in KINDS else ""
    wanted = request.GET.get("account", "")
    account = Account.objects.filter(public_id=wanted).first() if wanted.isprintable() else None
    found = _events(before=_before(request.GET.get("before", "")) or now, kind=kind, account=account)
    asked = {"kind": kind, "account": account.public_id if account else ""}
    older = {name: value for name, value in asked.items() if value} | ({"before": found[-1].at.isoformat()} if found else {})
    context: dict[str, Any] = {
        "title": "Billing log", "now": now, "events": found, "kinds": KINDS, "kind": kind, "account": account,
        "older": f"?{urlencode(older)}" if len(found) == ROWS else "", "first": "before" not in request.GET,
    }  # fmt: skip
    return TemplateResponse(request, "admin/analytics/billing_events.html", admin.site.each_context(request) | context)


def _before(text: str) -> datetime | None:
    try:
        found = parse_datetime(text)
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None and found.year > 1 else None


def _events(*, before: datetime, kind: str, account: Account | None) -> list[Event]:
    asked: dict[str, Any] = {"before": before, "kind": kind, "account": account.pk if account else None, "limit": ROWS}
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("billing_events"), asked)
        return [Event(*row) for row in cursor.fetchall()]
