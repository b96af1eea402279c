"""Usage, for staff: finished work and what is open. Read-only; a charge is undone by a reversal, never by an edit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.models import ApiKey
from accounts.templatetags.amounts import exact_amount
from billing.admin import LedgerAdmin, exactly, link, unit, within
from billing.models import LedgerEntry, Operation
from metering import reads
from metering.models import OpenAuthorization, UsageRecord
from pricing import catalog, rating
from pricing.models import RateCard, Unit
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
        ("How it was rated", {"fields": ("terms", "lines")}),
        ("Where it came from", {"fields": ("authorized_at", "key", "user_ref", "session_ref", "run_ref")}),
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
        return None if record.cost_nanos is None else exactly(record.cost_nanos, DOLLAR)

    @display(description="List value", empty_value="–")
    def value(self, record: UsageRecord) -> str | None:
        return None if record.value_nanos is None else exactly(record.value_nanos, DOLLAR)

    @display(description="Margin", empty_value="–")
    def margin(self, record: Any) -> str | None:
        nanos = earned(record, reversed_=record.is_reversed)
        return None if nanos is None else exactly(nanos, DOLLAR)

    @display(description="Waived (above the hold)", empty_value="–")
    def waived(self, record: UsageRecord) -> str | None:
        return exactly(record.waived_nanos, unit(record.unit_id)) if record.unit_id and record.waived_nanos else None

    @display(description="Held before", empty_value="–")
    def held(self, record: UsageRecord) -> str | None:
        return exactly(record.hold, unit(record.unit_id)) if record.unit_id and record.hold else None

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

    @display(description="Rate card", empty_value="none")
    def terms(self, record: UsageRecord) -> SafeString | None:
        card = RateCard.objects.filter(pk=record.rate_card_id).first() if record.rate_card_id else None
        return None if card is None else link("pricing_ratecard", card.pk, f"{card}, {card.get_mode_display()}")

    @display(description="Components", empty_value="nothing was rated")
    def lines(self, record: UsageRecord) -> SafeString | None:
        """The stored rate card and price rows, applied again: what each component cost and what it was charged at."""
        if record.price_nanos is None or record.rate_card_id is None or record.outcome not in reads.USED:
            return None
        model, names = str(record.model), zip(COMPONENTS, record.quantities, strict=False)
        try:
            card = catalog.rate_card_by_id(rate_card_id=record.rate_card_id)
            book = catalog.book_of_rows(model=model, row_ids=record.price_ids or ())
            found = rating.explain(
                card=card, book=book, model=model, quantities={name: quantity for name, quantity in names if quantity},
                service_level=next(iter(book.levels), "standard"),
            )  # fmt: skip
        except (catalog.NotInCatalog, rating.UnpricedUsage) as error:
            return format_html('<span class="bad">The terms that this was rated at cannot be read: {}</span>', error)
        rows = [
            (line, Decimal(line.price_nanos).scaleb(-9).normalize(), reads.exact(line.cost), reads.exact(line.charge)) for line in found
        ]
        return render_to_string("admin/metering/lines.html", {"rows": rows, "card": card, "unit": record.unit_id and unit(record.unit_id)})

    @display(description="API key", empty_value="none")
    def key(self, record: UsageRecord) -> SafeString | None:
        key = ApiKey.objects.filter(pk=record.api_key_id).first() if record.api_key_id else None
        return None if key is None else link("accounts_apikey", key.pk, key)


def charged(record: UsageRecord, *, digits: int = 9) -> str:
    """What the customer was charged, in the wallet's unit, to the last digit."""
    if record.price_nanos is None:
        return "not priced yet"
    return exact_amount(record.price_nanos, unit(record.unit_id), digits=digits, named=True) if record.unit_id else "not charged"


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
        return exactly(authorization.held, unit(authorization.unit_id)) if authorization.unit_id else None

    @display(description="Asked for")
    def asked(self, authorization: OpenAuthorization) -> str:
        return components(authorization.quantities)
