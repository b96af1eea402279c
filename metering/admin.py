"""Usage, for staff: finished work and what is open. Read-only; a charge is undone by a reversal, never by an edit."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, cast

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts import approvals
from accounts.admin import ReasonForm, actor
from accounts.models import ApiKey, User
from accounts.templatetags.amounts import exact_amount, sub_digits
from billing.admin import LedgerAdmin, exactly, link, unit, within
from billing.models import Operation
from metering import charges, explanation, guard, kill_switches, ladder, refusal_explanation, switch_preview, usage
from metering.forms import ISO_MINUTE, ThrowForm
from metering.models import CostThrottle, GuardState, GuardStep, KillSwitch, OpenAuthorization, Refusal, SpooledUsage, UsageRecord
from metering.proposal_pages import AskingProposalAdmin
from metering.throttle_pages import CostThrottleAdmin, LeverAdmin
from pricing import rating
from pricing.admin import CappedPaginator, ReadOnlyAdmin
from pricing.models import Lever, PriceProposal, Product, RateCard, Unit
from pricing.rating import COMPONENTS

admin.site.register(CostThrottle, CostThrottleAdmin)
admin.site.register(Lever, LeverAdmin)
admin.site.register(PriceProposal, AskingProposalAdmin)
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
    list_filter = (within("event_at"), "outcome", "account__product")  # by the time that is indexed
    list_select_related = ("account__product", "model", "feature")
    ordering = ("-recorded_at", "-id")
    fieldsets = (
        (
            None,
            {"fields": ("account", "outcome_", "model", "feature", "price", "cost", "value", "margin", "terms", "event_at", "recorded_at")},
        ),
        ("Where it came from", {"fields": ("authorized_at", "key", "user_ref", "session_ref", "run_ref")}),
    )
    change_form_before_template = "admin/metering/explained.html"

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        return self._for(request, self.list_display)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return [(name, {"fields": self._for(request, options["fields"])}) for name, options in self.fieldsets]

    def _for(self, request: HttpRequest, fields: Any) -> tuple[str, ...]:
        """What we pay, and so what is left of the price, is for those who read the margin report."""
        hidden = () if request.user.has_perm("analytics.view_margin") else ("cost", "value", "margin", "terms", "lines")
        return tuple(field for field in fields if field not in hidden)

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRecord]:
        found: QuerySet[UsageRecord] = super().get_queryset(request)
        reversals = Operation.objects.filter(account_id=OuterRef("account_id"), verb="reverse", target=OuterRef("pk"))
        return found.annotate(is_reversed=Exists(reversals))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """One charge, sentence by sentence; the fields of the row stand below."""
        record = self.get_object(request, object_id)
        if record is None or not self.has_view_permission(request, record):
            return super().change_view(request, object_id, form_url, extra_context)
        assert isinstance(record, UsageRecord)
        [found] = charges.with_ratings(record.account, [record])
        costs = request.user.has_perm("analytics.view_margin")
        explained = explanation.explain(account=record.account, record=found, burnt=charges.burnt(found), staff=True, margins=costs)
        context = {
            "costs": costs,
            "explained": explained,
            "record_id": usage.public_id(record.account, record.pk, kind="rec"),
            "lines": [_line(line) for line in explained.rated.lines] if explained.rated else (),
            "burnt": [(entry, grant, f"{record.account_id}-{entry.grant_id}") for entry, grant in explained.charge.burnt],
            "digits": sub_digits([entry.amount for entry, _ in explained.charge.burnt]),
        }
        return super().change_view(request, object_id, form_url, (extra_context or {}) | context)

    @display(description="Outcome", label=OUTCOMES)
    def outcome_(self, record: UsageRecord) -> str:
        return record.get_outcome_display().lower()

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

    @display(description="Rate card", empty_value="none")
    def terms(self, record: UsageRecord) -> SafeString | None:
        card = RateCard.objects.filter(pk=record.rate_card_id).first() if record.rate_card_id else None
        return None if card is None else link("pricing_ratecard", card.pk, f"{card}, {card.get_mode_display()}")

    @display(description="API key", empty_value="none")
    def key(self, record: UsageRecord) -> SafeString | None:
        key = ApiKey.objects.filter(pk=record.api_key_id).first() if record.api_key_id else None
        return None if key is None else link("accounts_apikey", key.pk, key)


def _line(line: rating.Line) -> tuple[rating.Line, str, str, str]:
    """One component as the table of a charge has it: what we pay for it, its cost, its charge."""
    return line, charges.exact(Fraction(line.price_nanos)), charges.exact(line.cost), charges.exact(line.charge)


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

    list_display = ("__str__", "reason", "actor", "second", "created_at", "ends_at", "state", "ended_by")
    list_filter = ("kind", "product")
    list_select_related = ("product", "account__product", "approval__decided_by")
    search_fields = ("feature", "provider", "reason", "actor", "=account__public_id")
    fields = (
        "kind", "product", "account", "feature", "provider", "cap", "reason", "actor", "second", "created_at", "ends_at", "state",
        "ended_at", "ended_by", "finished_at",
    )  # fmt: skip
    change_form_before_template = "admin/metering/end_link.html"

    @display(description="State", label={"in force": "danger", "ended": "info", "ran out": "info"})
    def state(self, switch: KillSwitch) -> str:
        if switch.ended_at:
            return "ended"
        return "in force" if switch.ends_at > timezone.now() else "ran out"

    @display(description="Approved by", empty_value="–")
    def second(self, switch: KillSwitch) -> str | None:
        return str(switch.approval.decided_by) if switch.approval else None

    @display(description="Cap", empty_value="–")
    def cap(self, switch: KillSwitch) -> str | None:
        return None if switch.cap_nanos is None else exactly(switch.cap_nanos, DOLLAR)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("metering.add_killswitch")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.end_view)
        return [path("<int:switch_id>/end/", view, name="metering_killswitch_end"), *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Asked twice: first it shows whom it would touch, and only the same switch, said again, is thrown."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        now = timezone.now()
        proposed = now + kill_switches.DEFAULT_LIFETIME
        initial = {"ends_at": f"{proposed:{ISO_MINUTE}}", "cap": ""} | request.GET.dict()
        form = ThrowForm(request.POST or None, initial=initial)
        context: dict[str, Any] = {"title": "Throw a kill switch", "opts": self.opts, "form": form}
        context["cancel"] = reverse("admin:metering_killswitch_changelist")
        if form.is_valid():
            wanted = form.wanted()
            try:
                kill_switches.check(wanted=wanted, now=now)
                preview = switch_preview.of(wanted=wanted, now=now)
                if request.POST.get("confirm") == preview.token:
                    return self._throw(request, form, wanted, now)
                context |= {"preview": preview, "dollar": DOLLAR}
            except (kill_switches.InvalidSwitch, approvals.AlreadyAsked) as error:
                form.add_error(None, str(error))
        return TemplateResponse(request, "admin/metering/throw.html", self.admin_site.each_context(request) | context)

    def _throw(self, request: HttpRequest, form: ThrowForm, wanted: kill_switches.Wanted, now: datetime) -> HttpResponse:
        reason, ends_at = form.cleaned_data["reason"], form.cleaned_data["ends_at"]
        if wanted.is_global:
            person = cast(User, request.user)
            approval = kill_switches.ask(wanted=wanted, reason=reason, actor=person, lifetime=ends_at - now, now=now)
            self.message_user(
                request, f"Nothing is switched yet: somebody else has to approve “{approval}” within a day.", messages.WARNING
            )
            return HttpResponseRedirect(reverse("admin:accounts_approval_decide", args=[approval.pk]))
        with transaction.atomic():
            switch = kill_switches.throw(wanted=wanted, reason=reason, actor=actor(request), ends_at=ends_at, now=now)
            self.log_addition(request, switch, f"Thrown until {switch.ends_at:%Y-%m-%d %H:%M} UTC: {switch.reason}")
        self.message_user(request, f"{switch}.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:metering_killswitch_changelist"))

    def end_view(self, request: HttpRequest, switch_id: int) -> HttpResponse:
        if not request.user.has_perm("metering.change_killswitch"):
            raise PermissionDenied
        switch = KillSwitch.objects.select_related("product", "account__product").filter(pk=switch_id).first()
        if switch is None:
            raise Http404
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            with transaction.atomic():
                ended = kill_switches.end(switch=switch, actor=actor(request), now=timezone.now())
                if ended:
                    self.log_change(request, switch, f"Ended: {form.cleaned_data['reason']}")
            if ended:
                self.message_user(request, f"It is over: {switch}.", messages.SUCCESS)
            else:
                self.message_user(request, f"It had ended already: {switch}.", messages.WARNING)
            return HttpResponseRedirect(reverse("admin:metering_killswitch_changelist"))
        says = f"Within a second everything is as it was before. {switch.actor} threw it: {switch.reason}"
        context = {"title": f"End: {switch}", "opts": self.opts, "form": form, "says": says, "button": "End it"}
        context["cancel"] = reverse("admin:metering_killswitch_changelist")
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)


@admin.register(Refusal)
class RefusalAdmin(ReadOnlyAdmin):
    """The last refusal of each account by each limit, told in sentences."""

    list_display = ("last_at", "account", "layer", "meter", "count", "reason")
    list_filter = ("layer", "account__product")
    list_select_related = ("account__product__unit",)
    search_fields = ("=account__public_id", "=account__external_id", "model", "user")
    search_help_text = "An account's id, a model, or a user."
    show_full_result_count = False
    paginator = CappedPaginator
    fields = ("account", "layer", "meter", "model", "feature", "user", "count", "first_at", "last_at", "resets_at")
    change_form_before_template = "admin/metering/refusal.html"

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        refusal = self.get_object(request, object_id)
        context: dict[str, Any] = {}
        if refusal is not None and self.has_view_permission(request, refusal):
            costs = request.user.has_perm("analytics.view_margin")
            told = explanation.Told(True, Product.Visibility(refusal.account.product.visibility), UTC, costs)
            context["steps"] = refusal_explanation.explain(refusal=refusal, account=refusal.account, told=told, now=timezone.now())
        response: HttpResponse = super().change_view(request, object_id, form_url, (extra_context or {}) | context)
        return response


STATES = {"open": "info", "waiting": "warning", "done": "success", "released": "info"}


@admin.register(SpooledUsage)
class SpooledUsageAdmin(ReadOnlyAdmin):
    """What was reported while usage tracking was off, and what became of it."""

    list_display = ("at", "account", "what", "state_", "reported_at", "done_at", "why")
    list_filter = ("state", "what", "account__product")
    list_select_related = ("account__product",)
    show_full_result_count = False
    paginator = CappedPaginator
    ordering = ("-at", "-id")
    fields = (
        "account", "what", "state_", "at", "spooled_at", "reported_at", "done_at", "error", "ref", "authorization_id", "record_id",
        "command", "quantities",
    )  # fmt: skip

    @display(description="State", label=STATES)
    def state_(self, spooled: SpooledUsage) -> str:
        return spooled.state

    @display(description="Why not yet", empty_value="–")
    def why(self, spooled: SpooledUsage) -> str | None:
        return spooled.error[:100] or None


@admin.register(GuardState)
class GuardStateAdmin(ReadOnlyAdmin):
    """Where accounts, keys and sessions stand with the runaway guard. Steps are taken by the job, and ended here or by themselves."""

    list_display = ("account", "kind", "ref", "step_", "spent", "usual", "looked_at", "ends")
    list_filter = ("step", "kind", "account__product")
    list_select_related = ("account__product__unit",)
    search_fields = ("ref", "=account__public_id", "=account__external_id")
    search_help_text = "A session, a key's number, or an account's id."
    fieldsets = (
        (None, {"fields": ("account", "kind", "ref", "step_", "why", "since", "ends", "excused")}),
        ("At the last look", {"fields": ("looked_at", "spent", "usual", "peak", "available", "blocks")}),
        ("What was done", {"fields": ("history",)}),
    )
    change_form_before_template = "admin/metering/release_link.html"

    @display(
        description="Step", label={"none": "info", "warned": "warning", "cheaper model": "warning", "slowed": "danger", "blocked": "danger"}
    )
    def step_(self, state: GuardState) -> str:
        return state.get_step_display()

    @display(description="Why")
    def why(self, state: GuardState) -> str:
        return guard.why(state, unit=state.account.product.unit)

    @display(description="Ends", empty_value="when spending is low again")
    def ends(self, state: GuardState) -> str | None:
        if not state.step:
            return "–"
        return f"{state.releases_at:%Y-%m-%d %H:%M} UTC" if state.releases_at else None

    @display(description="Excused", empty_value="no")
    def excused(self, state: GuardState) -> str | None:
        if state.excused_until is None:
            return None
        most = exactly(state.excused_nanos, state.account.product.unit)
        return f"until {state.excused_until:%Y-%m-%d %H:%M} UTC, up to {most} in {state.window_minutes} minutes"

    @display(description="Spent in the window")
    def spent(self, state: GuardState) -> str:
        return exactly(state.spent_nanos, state.account.product.unit)

    @display(description="Usual at most")
    def usual(self, state: GuardState) -> str:
        return exactly(state.usual_nanos, state.account.product.unit)

    @display(description="Most of this spike")
    def peak(self, state: GuardState) -> str:
        return exactly(state.peak_nanos, state.account.product.unit)

    @display(description="Could be spent", empty_value="no wallet is charged")
    def available(self, state: GuardState) -> str | None:
        return None if state.available_nanos is None else exactly(state.available_nanos, state.account.product.unit)

    @display(description="Steps, the newest first", empty_value="none")
    def history(self, state: GuardState) -> SafeString | None:
        steps = GuardStep.objects.filter(account_id=state.account_id, kind=state.kind, ref=state.ref)[:50]
        return render_to_string("admin/metering/guard_steps.html", {"steps": steps, "now": timezone.now()}) if steps else None

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.release_view)
        return [path("<int:state_id>/release/", view, name="metering_guardstate_release"), *super().get_urls()]

    def release_view(self, request: HttpRequest, state_id: int) -> HttpResponse:
        """Ends a step at once."""
        if not request.user.has_perm("metering.change_guardstate"):
            raise PermissionDenied
        state = GuardState.objects.select_related("account__product__unit").filter(pk=state_id).first()
        if state is None:
            raise Http404
        back = reverse("admin:metering_guardstate_change", args=[state_id])
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            reason = form.cleaned_data["reason"]
            try:
                with transaction.atomic():
                    guard.release(state=state, actor=actor(request), reason=reason, now=timezone.now())
                    self.log_change(request, state, f"Released from {state.get_step_display()}: {reason}")
            except guard.NothingToRelease as error:
                self.message_user(request, str(error), messages.WARNING)
            else:
                self.message_user(request, f"Released: {state}.", messages.SUCCESS)
            return HttpResponseRedirect(back)
        most = exactly(ladder.EXCUSED_TIMES * state.peak_nanos, state.account.product.unit)
        says = (
            f"{guard.why(state, unit=state.account.product.unit)} It works again at once, and for a day nothing is done about it unless it"
            f" spends more than {most} in {state.window_minutes} minutes."
        )
        context = {"title": f"Release {state}", "opts": self.opts, "form": form, "says": says, "button": "Release it", "cancel": back}
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)
