"""Usage, for staff: finished work and what is open. Read-only; a charge is undone by a reversal, never by an edit."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.admin import ReasonForm, actor
from accounts.models import ApiKey
from accounts.templatetags.amounts import exact_amount
from billing.admin import LedgerAdmin, exactly, link, unit, within
from billing.models import LedgerEntry, Operation
from metering import charges, kill_switches
from metering.forms import ISO_MINUTE, ThrowForm
from metering.models import CostThrottle, KillSwitch, OpenAuthorization, UsageRecord
from metering.throttle_pages import CostThrottleAdmin, LeverAdmin
from pricing import catalog, rating
from pricing.admin import ReadOnlyAdmin
from pricing.models import Lever, RateCard, Unit
from pricing.rating import COMPONENTS

admin.site.register(CostThrottle, CostThrottleAdmin)
admin.site.register(Lever, LeverAdmin)
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
        if record.price_nanos is None or record.rate_card_id is None or record.outcome not in charges.USED:
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
            (line, Decimal(line.price_nanos).scaleb(-9).normalize(), charges.exact(line.cost), charges.exact(line.charge)) for line in found
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


@admin.register(KillSwitch)
class KillSwitchAdmin(ReadOnlyAdmin):
    """Switches are thrown and ended here, never edited or deleted."""

    list_display = ("__str__", "reason", "actor", "created_at", "ends_at", "state", "ended_by")
    list_filter = ("product",)
    list_select_related = ("product",)
    search_fields = ("feature", "reason", "actor")
    fields = ("product", "feature", "reason", "actor", "created_at", "ends_at", "state", "ended_at", "ended_by")
    change_form_before_template = "admin/metering/end_link.html"

    @display(description="State", label={"in force": "danger", "ended": "info", "ran out": "info"})
    def state(self, switch: KillSwitch) -> str:
        if switch.ended_at:
            return "ended"
        return "in force" if switch.ends_at > timezone.now() else "ran out"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("metering.add_killswitch")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.end_view)
        return [path("<int:switch_id>/end/", view, name="metering_killswitch_end"), *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        now = timezone.now()
        form = ThrowForm(request.POST or None, initial={"ends_at": f"{now + timedelta(hours=4):{ISO_MINUTE}}"})
        if form.is_valid():
            try:
                switch = kill_switches.throw(**form.cleaned_data, actor=actor(request), now=now)
            except kill_switches.InvalidSwitch as error:
                form.add_error(None, str(error))
            else:
                self.log_addition(request, switch, f"Thrown until {switch.ends_at:%Y-%m-%d %H:%M} UTC: {switch.reason}")
                self.message_user(request, f"Switched off: {switch}.", messages.SUCCESS)
                return HttpResponseRedirect(reverse("admin:metering_killswitch_changelist"))
        says = "New work of it is refused within a second, with the reason. Work that has begun is still captured and charged."
        return self._ask(request, "Throw a kill switch", form, says, "Switch it off")

    def end_view(self, request: HttpRequest, switch_id: int) -> HttpResponse:
        if not request.user.has_perm("metering.change_killswitch"):
            raise PermissionDenied
        switch = KillSwitch.objects.select_related("product").filter(pk=switch_id).first()
        if switch is None:
            raise Http404
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            if kill_switches.end(switch=switch, actor=actor(request), now=timezone.now()):
                self.log_change(request, switch, f"Ended: {form.cleaned_data['reason']}")
                self.message_user(request, f"On again: {switch}.", messages.SUCCESS)
            else:
                self.message_user(request, f"The switch on {switch} had ended already.", messages.WARNING)
            return HttpResponseRedirect(reverse("admin:metering_killswitch_changelist"))
        says = f"Work goes on within a second. It was switched off by {switch.actor}: {switch.reason}"
        return self._ask(request, f"End the kill switch on {switch}", form, says, "Switch it on")

    def _ask(self, request: HttpRequest, title: str, form: Any, says: str, button: str) -> HttpResponse:
        context = {"title": title, "opts": self.opts, "form": form, "says": says, "button": button}
        context["cancel"] = reverse("admin:metering_killswitch_changelist")
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)
