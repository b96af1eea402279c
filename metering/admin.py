"""Usage, for staff: finished work and what is open. Read-only; a charge is undone by a reversal, never by an edit."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.templatetags.amounts import amount
from billing.admin import LedgerAdmin, unit, within
from billing.models import LedgerEntry, Operation
from metering.models import OpenAuthorization, UsageRecord
from pricing.models import Unit
from pricing.rating import COMPONENTS

DOLLAR = Unit(code="USD", name="US dollar", decimals=2)
OUTCOMES = {
    "captured": "success", "recorded": "success", "released": "info", "timed out": "warning", "unpriced": "danger",
}  # fmt: skip


def components(quantities: list[int]) -> str:
    """``1,200 input tokens, 300 output tokens``."""
    used = [(name, quantity) for name, quantity in zip(COMPONENTS, quantities, strict=False) if quantity]
    return ", ".join(f"{quantity:,} {name.replace('_', ' ')}" for name, quantity in used) or "nothing"


@admin.register(UsageRecord)
class UsageRecordAdmin(LedgerAdmin):
    list_display = ("event_at", "account", "model", "feature", "outcome_", "cost", "price", "margin")
    list_filter = (within("recorded_at"), "outcome", "account__product")
    list_select_related = ("account__product", "model", "feature")
    ordering = ("-recorded_at", "-id")
    fieldsets = (
        (None, {"fields": ("account", "outcome_", "model", "feature", "used", "event_at", "recorded_at")}),
        ("What it came to", {"fields": ("price", "cost", "value", "margin", "waived", "held", "movements", "reversal")}),
        (
            "How it was rated",
            {"fields": ("rate_card_id", "price_ids", "authorized_at", "api_key_id", "user_ref", "session_ref", "run_ref")},
        ),
    )
    change_form_before_template = "admin/metering/reverse_link.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRecord]:
        found: QuerySet[UsageRecord] = super().get_queryset(request)
        reversals = Operation.objects.filter(account_id=OuterRef("account_id"), verb="reverse", target=OuterRef("pk"))
        return found.annotate(is_reversed=Exists(reversals))

    @display(description="Outcome", label=OUTCOMES)
    def outcome_(self, record: UsageRecord) -> str:
        return record.get_outcome_display().lower()

    @display(description="Used")
    def used(self, record: UsageRecord) -> str:
        return components(record.quantities)

    @display(description="Price")
    def price(self, record: UsageRecord) -> str:
        return charged(record)

    @display(description="Cost", empty_value="–")
    def cost(self, record: UsageRecord) -> str | None:
        return None if record.cost_nanos is None else amount(record.cost_nanos, DOLLAR)

    @display(description="List value", empty_value="–")
    def value(self, record: UsageRecord) -> str | None:
        return None if record.value_nanos is None else amount(record.value_nanos, DOLLAR)

    @display(description="Margin", empty_value="–")
    def margin(self, record: Any) -> str | None:
        nanos = earned(record, reversed_=record.is_reversed)
        return None if nanos is None else amount(nanos, DOLLAR)

    @display(description="Waived (above the hold)", empty_value="–")
    def waived(self, record: UsageRecord) -> str | None:
        return amount(record.waived_nanos, unit(record.unit_id)) if record.unit_id and record.waived_nanos else None

    @display(description="Held before", empty_value="–")
    def held(self, record: UsageRecord) -> str | None:
        return amount(record.hold, unit(record.unit_id)) if record.unit_id and record.hold else None

    @display(description="Ledger entries", empty_value="none")
    def movements(self, record: UsageRecord) -> SafeString | None:
        if not record.entries or record.first_seq is None or record.unit_id is None:
            return None
        entries = LedgerEntry.objects.filter(
            account_id=record.account_id, unit_id=record.unit_id, seq__gte=record.first_seq, seq__lt=record.first_seq + record.entries
        )
        return render_to_string("admin/metering/movements.html", {"entries": entries.select_related("unit").order_by("seq")})

    @display(description="Reversed", empty_value="no")
    def reversal(self, record: UsageRecord) -> str | None:
        found = Operation.objects.filter(account_id=record.account_id, verb="reverse", target=record.pk).first()
        return f"{found.created_at:%Y-%m-%d %H:%M} UTC by {found.actor}: {found.reason}" if found else None


def charged(record: UsageRecord) -> str:
    """What the customer was charged, in the wallet's unit."""
    if record.price_nanos is None:
        return "not priced yet"
    return amount(record.price_nanos, unit(record.unit_id)) if record.unit_id else "not charged"


def earned(record: UsageRecord, *, reversed_: bool) -> int | None:
    """List value minus cost, in nano-USD; None without a price. A reversal takes the value back and leaves the cost."""
    if record.value_nanos is None or record.cost_nanos is None:
        return None
    return (0 if reversed_ else record.value_nanos) - record.cost_nanos


@admin.register(OpenAuthorization)
class OpenAuthorizationAdmin(LedgerAdmin):
    list_display = ("created_at", "account", "model", "feature", "state", "held_", "expires_at")
    list_filter = ("state", "account__product")
    list_select_related = ("account__product", "model", "feature")
    ordering = ("-created_at",)
    fields = (
        "account",
        "state",
        "model",
        "feature",
        "held_",
        "asked",
        "created_at",
        "expires_at",
        "hard_expires_at",
        "user_ref",
        "session_ref",
        "run_ref",
    )

    @display(description="Held", empty_value="–")
    def held_(self, authorization: OpenAuthorization) -> str | None:
        return amount(authorization.held, unit(authorization.unit_id)) if authorization.unit_id else None

    @display(description="Asked for")
    def asked(self, authorization: OpenAuthorization) -> str:
        return components(authorization.quantities)
