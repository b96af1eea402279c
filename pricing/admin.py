"""The catalog, the price book and the price desk, for staff.

Terms are read-only here: a product's come from its catalog file (``manage.py catalog apply``), upstream prices from proposals, which are
approved or rejected here.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextareaWidget

from pricing import price_import
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
)


class ReadOnly:
    """Nobody adds, changes or deletes here, by page or by POST, superusers included."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


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


def per_units(row: PriceRow | PriceProposal | RateCardPrice, unit: str) -> str:
    return f"{decimal(row.price_nanos)} {unit} per {row.per_units:,}"


# What is sold -----------------------------------------------------------------------------------------------------------------


@admin.register(Product)
class ProductAdmin(ReadOnlyAdmin):
    list_display = ("name", "slug", "unit", "default_plan", "overage", "visibility", "target")
    search_fields = ("slug", "name")
    ordering = ("name",)
    list_select_related = ("unit",)

    @display(description="Target margin")
    def target(self, product: Product) -> str:
        return percent(product.target_margin_ppm)


class PlanVersionInline(ReadOnlyInline):
    model = PlanVersion
    fields = ("version", "valid_from", "price", "interval", "included", "rate_card", "trial_days", "notes")
    readonly_fields = ("price", "included")
    show_change_link = True

    def price(self, version: PlanVersion) -> str:
        return cents(version.price_cents, version.currency)

    @display(description="Included credit")
    def included(self, version: PlanVersion) -> str:
        return f"{decimal(version.included_credit_nanos)} {version.plan.product.unit.name}"


@admin.register(Plan)
class PlanAdmin(ReadOnlyAdmin):
    list_display = ("name", "slug", "product", "rank", "public", "available")
    list_filter = ("product", "available")
    search_fields = ("slug", "name")
    list_select_related = ("product",)
    inlines = (PlanVersionInline,)


class EntitlementInline(ReadOnlyInline):
    model = Entitlement
    fields = ("key", "kind", "enabled", "text", "window", "limit", "mode")


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
        return f"{decimal(pack.credit_nanos)} {pack.product.unit.name}"


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
        return per_units(row, row.card.product.unit.name)


@admin.register(RateCard)
class RateCardAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "product", "mode", "markup", "tokens_per_credit", "valid_from")
    list_filter = ("product", "mode")
    search_fields = ("slug",)
    list_select_related = ("product",)
    ordering = ("product", "slug", "-version")
    inlines = (RateCardModelInline, RateCardPriceInline)

    def markup(self, card: RateCard) -> str:
        return percent(card.markup_ppm) if card.mode == RateCard.Mode.MARKUP else "–"


# What we pay ------------------------------------------------------------------------------------------------------------------


@admin.register(PriceRow)
class PriceRowAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "upstream", "service_level", "context_above", "begins", "ends", "source", "withdrawn_at")
    list_filter = ("provider", "service_level", "component")
    search_fields = ("provider", "model")
    ordering = ("provider", "model", "component", "context_above", "service_level", "-valid")

    @display(description="Price")
    def upstream(self, row: PriceRow) -> str:
        return per_units(row, "USD")

    @display(description="From")
    def begins(self, row: PriceRow) -> str:
        return f"{row.valid.lower:%Y-%m-%d %H:%M}"

    @display(description="Until")
    def ends(self, row: PriceRow) -> str:
        return f"{row.valid.upper:%Y-%m-%d %H:%M}" if row.valid.upper else "now on"


class DecisionForm(forms.Form):
    """Why proposals are approved or rejected."""

    reason = forms.CharField(max_length=300, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept with the proposal.")


@admin.register(PriceProposal)
class PriceProposalAdmin(ReadOnlyAdmin):
    """Pending proposals are chosen in the list and decided on a page that shows what changes and asks why."""

    list_display = ("__str__", "before", "after", "service_level", "context_above", "valid_from", "source", "decided_by")
    list_filter = ("state", "provider", "service_level")
    search_fields = ("provider", "model")
    list_select_related = ("previous",)
    actions = ("approve", "reject")

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
        form = DecisionForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            ids = list(chosen.values_list("pk", flat=True))
            decide = price_import.approve if verb == "approve" else price_import.reject
            try:
                count = decide(ids=ids, actor=request.user.get_username()[:150], reason=form.cleaned_data["reason"])
            except price_import.NotApprovable as error:
                form.add_error(None, str(error))
            else:
                decided = "approved" if verb == "approve" else "rejected"
                self.message_user(request, f"{count} proposal{'' if count == 1 else 's'} {decided}.", messages.SUCCESS)
                return None
        context: dict[str, Any] = self.admin_site.each_context(request) | {
            "title": f"{verb.capitalize()} {chosen.count()} price proposal{'' if chosen.count() == 1 else 's'}",
            "opts": self.model._meta,
            "proposals": [(proposal, self.before(proposal), self.after(proposal)) for proposal in chosen],
            "form": form,
            "verb": verb,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/pricing/decide.html", context)


@admin.register(CatalogChange)
class CatalogChangeAdmin(ReadOnlyAdmin):
    list_display = ("product", "applied_at", "effective_at", "actor")
    list_filter = ("product",)
    list_select_related = ("product",)
