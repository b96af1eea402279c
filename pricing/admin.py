"""The catalog, the price book and the price desk, for staff.

Terms are read-only here: a product's come from its catalog file (``manage.py catalog apply``), upstream prices from proposals, which are
approved or rejected here.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from pricing import price_effects, price_import, price_inbox
from pricing.inbox_page import InboxPages
from pricing.models import (
    CatalogChange,
    CreditPack,
    Entitlement,
    Plan,
    PlanVersion,
    PriceProposal,
    PriceRow,
    Product,
    RateCard,
    RateCardModel,
    RateCardPrice,
    Unit,
)

#: Of so many proposals at once it is told what others say of them and what they affect.
EXPLAINED = 10
DOLLAR = Unit(code="USD", name="US dollar", decimals=2)


class ReadOnly:
    """Nobody adds, changes or deletes here, by page or by POST, superusers included."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than a hundred pages: the cost of a page does not grow with history."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        counted: int = rows[: 100 * self.per_page].count()
        return counted


class ReadOnlyAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    actions: Any = None
    list_per_page = 50


class ReadOnlyInline(ReadOnly, TabularInline):  # type: ignore[misc]
    extra = 0
    can_delete = False


def decimal(nanos: int | None) -> str:
    """Nanos as people write them: ``3``, ``0.0375``; a dash for none."""
    return "–" if nanos is None else f"{Decimal(nanos).scaleb(-9).normalize():,f}"


def percent(ppm: int | None) -> str:
    return "–" if ppm is None else f"{Decimal(ppm).scaleb(-4).normalize():f} %"


def cents(amount: int | None, currency: str) -> str:
    return "by agreement" if amount is None else f"{Decimal(amount).scaleb(-2):,.2f} {currency.upper()}"


def in_unit(nanos: int, unit: Unit) -> str:
    """``12.00 USD``, ``100 credits``, with every digit that is not 0."""
    whole = f"{Decimal(nanos).scaleb(-9):,.{unit.decimals}f}"
    number = whole if nanos % 10 ** (9 - unit.decimals) == 0 else decimal(nanos)
    if len(unit.code) == 3:
        return f"{number} {unit.code}"
    return f"{number} {unit.name}{'' if number == '1' else 's'}"


def duration(seconds: int) -> str:
    """In the largest unit that leaves nothing over: ``24 hours``, ``15 minutes``, ``90 seconds``."""
    count, name = next((seconds // size, name) for name, size in (("hour", 3600), ("minute", 60), ("second", 1)) if seconds % size == 0)
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def level(row: PriceRow | PriceProposal) -> str:
    """``standard``; ``batch, contexts above 200,000 tokens``."""
    return row.service_level + (f", contexts above {row.context_above:,} tokens" if row.context_above else "")


def per_units(row: PriceRow | PriceProposal, unit: str) -> str:
    return f"{decimal(row.price_nanos)} {unit} per {row.per_units:,}"


# What is sold -----------------------------------------------------------------------------------------------------------------


@admin.register(Product)
class ProductAdmin(ReadOnlyAdmin):
    list_display = ("name", "slug", "unit", "default_plan", "overage", "visibility", "target")
    search_fields = ("slug", "name")
    ordering = ("name",)
    list_select_related = ("unit",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "name",
                    "slug",
                    "unit",
                    "default_plan",
                    "guest_plan",
                    "time_zone",
                    "support_email",
                    "brand_colour",
                    "allowed_origins",
                    "notes",
                )
            },
        ),
        ("What customers see and pay", {"fields": ("visibility", "overage", "late_charging", "late_hours", "grace", "burn_order")}),
        ("Credit that it gives", {"fields": ("welcome", "announcement", "staff_cap")}),
        ("Open work", {"fields": ("least_balance", "work_in_debt", "hold_lifetime", "hold_max")}),
        ("Margin", {"fields": ("target", "alert", "floor", "payment_fee", "expected")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What we mean to earn is for those who read the margin report."""
        return (
            self.fieldsets if request.user.has_perm("analytics.view_margin") else [each for each in self.fieldsets if each[0] != "Margin"]
        )

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        shown = self.list_display
        return shown if request.user.has_perm("analytics.view_margin") else tuple(name for name in shown if name != "target")

    @display(description="Latest report that is charged")
    def late_hours(self, product: Product) -> str:
        return f"{duration(product.late_charging_max_hours * 3600)} after the event"

    @display(description="A plan that is not paid lasts for")
    def grace(self, product: Product) -> str:
        return duration(product.grace_days * 86_400) if product.grace_days else "no time"

    @display(description="Welcome credit, once")
    def welcome(self, product: Product) -> str:
        return in_unit(product.welcome_credit_nanos, product.unit)

    @display(description="Launch credit, for earlier accounts")
    def announcement(self, product: Product) -> str:
        return in_unit(product.announcement_credit_nanos, product.unit)

    @display(description="One of staff alone, an account and day", empty_value="any amount")
    def staff_cap(self, product: Product) -> str | None:
        return None if product.staff_credit_cap_nanos is None else in_unit(product.staff_credit_cap_nanos, product.unit)

    @display(description="Least balance to start work")
    def least_balance(self, product: Product) -> str:
        return in_unit(product.minimum_balance_nanos, product.unit)

    @display(description="A hold lasts")
    def hold_lifetime(self, product: Product) -> str:
        return duration(product.hold_lifetime_seconds)

    @display(description="Extended at most to")
    def hold_max(self, product: Product) -> str:
        return duration(product.hold_max_seconds)

    @display(description="Target margin")
    def target(self, product: Product) -> str:
        return percent(product.target_margin_ppm)

    @display(description="Alert below")
    def alert(self, product: Product) -> str:
        return percent(product.alert_margin_ppm)

    @display(description="Never below")
    def floor(self, product: Product) -> str:
        return percent(product.floor_margin_ppm)

    @display(description="Expected where nothing was used")
    def expected(self, product: Product) -> str:
        return f"{product.expected_model or 'no model'}, {percent(product.expected_input_ppm)} of the tokens input"

    @display(description="Payment fee, for estimates")
    def payment_fee(self, product: Product) -> str:
        return f"{percent(product.payment_fee_ppm)} + {cents(product.payment_fee_cents, 'usd')} a payment"


class PlanVersionInline(ReadOnlyInline):
    model = PlanVersion
    fields = ("version", "valid_from", "price", "interval", "included", "rate_card", "trial_days", "notes")
    readonly_fields = ("price", "included")
    show_change_link = True

    def price(self, version: PlanVersion) -> str:
        return cents(version.price_cents, version.currency)

    @display(description="Included credit")
    def included(self, version: PlanVersion) -> str:
        return in_unit(version.included_credit_nanos, version.plan.product.unit)


@admin.register(Plan)
class PlanAdmin(ReadOnlyAdmin):
    list_display = ("name", "slug", "product", "rank", "public", "available")
    list_filter = ("product", "available")
    search_fields = ("slug", "name")
    list_select_related = ("product",)
    inlines = (PlanVersionInline,)


class EntitlementInline(ReadOnlyInline):
    model = Entitlement
    fields = ("key", "kind", "enabled", "text", "window", "limit", "setting", "mode")


@admin.register(PlanVersion)
class PlanVersionAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "valid_from", "price", "rate_card")
    list_filter = ("plan__product",)
    list_select_related = ("plan__product",)
    inlines = (EntitlementInline,)

    def price(self, version: PlanVersion) -> str:
        return cents(version.price_cents, version.currency)

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        return {}  # reached from its plan


@admin.register(CreditPack)
class CreditPackAdmin(ReadOnlyAdmin):
    list_display = ("name", "slug", "product", "version", "price", "credit", "valid_from", "available")
    list_filter = ("product", "available")
    search_fields = ("slug", "name")
    list_select_related = ("product__unit",)
    ordering = ("product", "price_cents", "-version")

    def price(self, pack: CreditPack) -> str:
        return cents(pack.price_cents, pack.currency)

    @display(description="Credit")
    def credit(self, pack: CreditPack) -> str:
        return in_unit(pack.credit_nanos, pack.product.unit)


class RateCardModelInline(ReadOnlyInline):
    model = RateCardModel
    fields = ("provider", "model", "term")
    readonly_fields = ("term",)

    def term(self, row: RateCardModel) -> str:
        return f"× {decimal((row.multiplier_ppm or 0) * 1000)}" if row.multiplier_ppm else f"+ {percent(row.markup_ppm)}"


class RateCardPriceInline(ReadOnlyInline):
    model = RateCardPrice
    fields = ("provider", "model", "component", "retail")
    readonly_fields = ("retail",)

    def retail(self, row: RateCardPrice) -> str:
        unit = row.card.product.unit
        return f"{in_unit(row.price_nanos, unit)} per {row.per_units:,}"


@admin.register(RateCard)
class RateCardAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "product", "mode", "markup", "tokens_per_credit", "valid_from")
    list_filter = ("product", "mode")
    search_fields = ("slug",)
    list_select_related = ("product__unit",)
    ordering = ("product", "slug", "-version")
    inlines = (RateCardModelInline, RateCardPriceInline)
    fieldsets = (
        (None, {"fields": ("product", "slug", "version", "valid_from", "mode", "notes")}),
        ("How a price comes about", {"fields": ("markup", "tokens_per_credit", "multiplier", "rounding", "least", "value")}),
    )

    def markup(self, card: RateCard) -> str:
        return percent(card.markup_ppm) if card.mode == RateCard.Mode.MARKUP else "–"

    @display(description="Multiplier of other models", empty_value="–")
    def multiplier(self, card: RateCard) -> str | None:
        if card.mode != RateCard.Mode.CREDIT_RATE:
            return None
        return f"× {decimal(card.default_multiplier_ppm * 1000)}" if card.default_multiplier_ppm else "none: such models are refused"

    @display(description="Rounded up to a multiple of")
    def rounding(self, card: RateCard) -> str:
        return f"{in_unit(card.quantum_nanos, card.product.unit)}, once a usage record"

    @display(description="Least price of a use")
    def least(self, card: RateCard) -> str:
        return in_unit(card.minimum_nanos, card.product.unit)

    @display(description="List value")
    def value(self, card: RateCard) -> str:
        return f"{decimal(card.credit_value_nanos)} USD a {card.product.unit.name}"


# What we pay ------------------------------------------------------------------------------------------------------------------


@admin.register(PriceRow)
class PriceRowAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "upstream", "level", "begins", "ends", "source")
    list_filter = ("provider", "service_level", "component")
    search_fields = ("provider", "model")
    ordering = ("provider", "model", "component", "context_above", "service_level", "-valid")

    fields = ("provider", "model", "component", "upstream", "level", "begins", "ends", "source", "catalog", "recorded_at")

    @display(description="Service level")
    def level(self, row: PriceRow) -> str:
        return level(row)

    @display(description="Price")
    def upstream(self, row: PriceRow) -> str:
        return per_units(row, "USD")

    @display(description="From")
    def begins(self, row: PriceRow) -> str:
        return f"{row.valid.lower:%Y-%m-%d %H:%M} UTC"

    @display(description="Until")
    def ends(self, row: PriceRow) -> str:
        if row.withdrawn_at:
            return f"withdrawn {row.withdrawn_at:%Y-%m-%d %H:%M} UTC"
        return f"{row.valid.upper:%Y-%m-%d %H:%M} UTC" if row.valid.upper else "open"


class DecisionForm(forms.Form):
    """Why proposals are approved or rejected."""

    reason = forms.CharField(max_length=300, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept with the proposal.")


class ApprovalForm(DecisionForm):
    """And from when on."""

    effective = forms.DateTimeField(
        required=False, label="From (UTC)", input_formats=["%Y-%m-%dT%H:%M"],
        widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
        help_text="When prices without a date of their own begin. Empty: now.",
    )  # fmt: skip


class PriceProposalAdmin(InboxPages, ReadOnlyAdmin):
    """Pending proposals are chosen in the list and decided on a page that shows what changes and asks why.

    ``metering`` registers it, with what happens above the cap of one person: approvals are not known here.
    """

    list_display = ("__str__", "before", "after", "level", "valid_from", "source", "decided_by")
    list_filter = ("state", "provider", "service_level")
    search_fields = ("provider", "model")
    list_select_related = ("previous",)
    actions = ("approve", "reject")

    fields = (
        "provider", "model", "component", "level", "before", "after", "valid_from", "valid_until", "source", "state", "proposed_at",
        "decided_at", "decided_by", "reason",
    )  # fmt: skip

    @display(description="Service level")
    def level(self, proposal: PriceProposal) -> str:
        return level(proposal)

    @display(description="In the price book")
    def before(self, proposal: PriceProposal) -> str:
        return per_units(proposal.previous, "USD") if proposal.previous else "nothing"

    @display(description="Proposed")
    def after(self, proposal: PriceProposal) -> str:
        return per_units(proposal, "USD")

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("pricing.change_priceproposal")

    @action(description="Approve…", permissions=["decide"])
    def approve(self, request: HttpRequest, chosen: QuerySet[PriceProposal]) -> HttpResponse | None:
        return self._decide(request, chosen, "approve")

    @action(description="Reject…", permissions=["decide"])
    def reject(self, request: HttpRequest, chosen: QuerySet[PriceProposal]) -> HttpResponse | None:
        return self._decide(request, chosen, "reject")

    def _decide(self, request: HttpRequest, chosen: QuerySet[PriceProposal], verb: str) -> HttpResponse | None:
        form: Any = (ApprovalForm if verb == "approve" else DecisionForm)(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            ids = list(chosen.values_list("pk", flat=True))
            by: dict[str, Any] = {"ids": ids, "actor": request.user.get_username()[:150], "reason": form.cleaned_data["reason"]}
            try:
                if verb == "approve":
                    count = price_import.approve(effective=form.cleaned_data["effective"], **by)
                else:
                    count = price_import.reject(**by)
            except price_import.AboveCap:
                said = form.cleaned_data
                asked = self.above_cap(request, ids=ids, effective=said["effective"], reason=said["reason"], form=form)
                if asked is not None:
                    return asked
            except price_import.NotApprovable as error:
                form.add_error(None, str(error))
            else:
                decided = "approved" if verb == "approve" else "rejected"
                self.message_user(request, f"{count} proposal{'' if count == 1 else 's'} {decided}.", messages.SUCCESS)
                return None
        now = timezone.now()
        effective = form.cleaned_data.get("effective") if form.is_bound and hasattr(form, "cleaned_data") else None
        context: dict[str, Any] = self.admin_site.each_context(request) | {
            "title": f"{verb.capitalize()} {chosen.count()} price proposal{'' if chosen.count() == 1 else 's'}",
            "opts": self.model._meta,
            "proposals": [(proposal, self.before(proposal), self.after(proposal)) for proposal in chosen],
            "beside": [
                (proposal, price_import.agree(proposal), price_inbox.effect_of(proposal, now=now)) for proposal in chosen[:EXPLAINED]
            ],
            "explained": EXPLAINED,
            "dollar": DOLLAR,
            "form": form,
            "verb": verb,
            "checkbox": ACTION_CHECKBOX_NAME,
            "fallen": price_effects.fallen(proposals=chosen, at=now) if verb == "approve" else [],
            "above": price_import.above_cap(proposals=chosen, effective=effective, now=now) if verb == "approve" else [],
            "cap": settings.PRICE_CHANGE_CAP_PERCENT,
        }
        return TemplateResponse(request, "admin/pricing/decide.html", context)

    def above_cap(
        self, request: HttpRequest, *, ids: list[int], effective: datetime | None, reason: str, form: ApprovalForm
    ) -> HttpResponse | None:
        """Asks a second person; None with the error at ``form``, where nobody can be asked."""
        raise NotImplementedError


@admin.register(CatalogChange)
class CatalogChangeAdmin(ReadOnlyAdmin):
    list_display = ("product", "applied_at", "effective_at", "actor")
    list_filter = ("product",)
    list_select_related = ("product",)
    fields = ("product", "actor", "applied_at", "effective_at", "file", "changes")

    @display(description="SHA-256 of the file")
    def file(self, change: CatalogChange) -> SafeString:
        return format_html('<span class="tg-pre">{}</span>', change.digest)

    @display(description="Changes")
    def changes(self, change: CatalogChange) -> SafeString:
        return format_html('<pre class="tg-pre">{}</pre>', change.diff)
