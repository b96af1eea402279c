"""The money, for staff: grants, operations, subscriptions, Stripe's events. Read-only: the ledger's verbs are the only way to write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any, ClassVar

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList as BaseChangeList
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.views import ChangeList

from accounts.admin import ReasonForm
from accounts.templatetags.amounts import amount, exact_amount
from billing import price_moves, stripe_inbox, stripe_receiver, stripe_requests, top_ups
from billing.balances import ENDS_AT
from billing.models import (
    Agreement,
    AutoTopUp,
    CardDecline,
    Checkout,
    Grant,
    Operation,
    PlanChange,
    PriceMove,
    StripeEvent,
    StripeInvoice,
    StripePayment,
    StripeReconciliation,
    StripeRequest,
    Subscription,
    TopUp,
)
from billing.schedule_page import StoppedSchedules
from pricing.admin import CappedPaginator, ReadOnlyAdmin
from pricing.models import PlanVersion, Unit

for model in apps.get_app_config("djstripe").get_models():  # fifty mirrors of Stripe's objects, which Stripe's own dashboard shows better
    if admin.site.is_registered(model):
        admin.site.unregister(model)


@cache
def unit(pk: int) -> Unit:
    """A wallet's unit; units never change."""
    return Unit.objects.get(pk=pk)


def exactly(nanos: int, in_unit: Unit) -> SafeString:
    """Every digit, dollars with all nine, so that the points of a list stand under each other."""
    return exact_amount(nanos, in_unit, digits=9 if in_unit.code == "USD" else 0, named=True)


def link(page: str, key: object, text: object) -> SafeString:
    """To the admin page of one row."""
    return format_html('<a class="tg-link" href="{}">{}</a>', reverse(f"admin:{page}_change", args=[quote(str(key))]), text)


class AccountChangeList(ChangeList):  # type: ignore[misc]
    """Rows are addressed as ``<account>-<row>``, in the order of their tables' keys."""

    def url_for_result(self, result: Any) -> str:
        url: str = BaseChangeList.url_for_result(self, result)
        return url.replace(str(result.pk), f"{result.account_id}-{result.pk}")


class Within(admin.SimpleListFilter):
    """The last week, unless more or less is asked for, or one account."""

    title = "time"
    parameter_name = "within"
    field: ClassVar[str]
    days: ClassVar[dict[str | None, int]] = {None: 7, "1": 1, "30": 30}

    def __init__(self, request: HttpRequest, *args: Any) -> None:
        self.one_account = "account__id__exact" in request.GET
        super().__init__(request, *args)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "Last 24 hours"), ("30", "Last 30 days"), ("all", "All")]

    def choices(self, changelist: Any) -> Iterator[Any]:
        first, *others = super().choices(changelist)
        yield first | {"display": "All of the account" if self.one_account else "Last 7 days"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value not in self.days or (value is None and self.one_account):
            return queryset
        return queryset.filter(**{f"{self.field}__gte": timezone.now() - timedelta(days=self.days[value])})


def within(name: str) -> type[Within]:
    """The filter over the time ``name``."""
    return type("Within", (Within,), {"field": name})


class LedgerAdmin(ReadOnlyAdmin):
    """Rows of the ledger, newest first; each is found by its account."""

    show_full_result_count = False
    paginator = CappedPaginator
    sortable_by = ()
    search_fields = ("=account__public_id", "=account__external_id", "=account__name")
    search_help_text = "An account's id, the client's own id of it, or its whole name."
    list_select_related: Any = ("account__product",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[AccountChangeList]:
        return AccountChangeList

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response: HttpResponse = super().change_view(request, object_id, form_url, (extra_context or {}) | {"show_history": False})
        return response

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Model | None:
        account, _, row = object_id.partition("-")
        try:
            found: Model | None = self.get_queryset(request).filter(account_id=int(account), pk=row).first()
        except (ValueError, ValidationError):
            return None
        return found


@admin.register(Grant)
class GrantAdmin(LedgerAdmin):
    list_display = ("account", "source", "granted_", "remaining_", "starts_at", "expires", "cash", "state")
    list_filter = (within("starts_at"), "source", "closed", "account__product")
    list_select_related = ("account__product", "unit")
    ordering = ("-starts_at", "-id")
    fields = (
        "account",
        "source",
        "source_key",
        "granted_",
        "remaining_",
        "frozen_",
        "clawed_",
        "priority",
        "starts_at",
        "expires",
        "cash",
        "fee",
        "state",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Grant]:
        found: QuerySet[Grant] = super().get_queryset(request)
        return found.defer("expires_at").annotate(ends_at=ENDS_AT)

    @display(description="Granted")
    def granted_(self, grant: Grant) -> SafeString:
        return amount(grant.granted, grant.unit)

    @display(description="Left")
    def remaining_(self, grant: Grant) -> SafeString:
        return amount(grant.remaining, grant.unit, cut=True)

    @display(description="Frozen by a dispute")
    def frozen_(self, grant: Grant) -> SafeString:
        return amount(grant.frozen, grant.unit)

    @display(description="Taken back by refunds")
    def clawed_(self, grant: Grant) -> SafeString:
        return amount(grant.clawed, grant.unit)

    @display(description="State", label={"open": "success", "finished": "info"})
    def state(self, grant: Grant) -> str:
        return "finished" if grant.closed else "open"

    @display(description="Expires", empty_value="never")
    def expires(self, grant: Any) -> datetime | None:
        ends_at: datetime | None = grant.ends_at
        return ends_at

    @display(description="Cash paid")
    def cash(self, grant: Grant) -> str:
        return _cash(grant.cash_nanos, grant.currency)

    @display(description="Payment fee")
    def fee(self, grant: Grant) -> str:
        return _cash(grant.fee_nanos, grant.currency)


@admin.register(Operation)
class OperationAdmin(LedgerAdmin):
    list_display = ("created_at", "account", "verb", "amount_", "actor", "reason")
    list_filter = (within("created_at"), "verb", "account__product")
    ordering = ("-created_at", "-id")
    list_select_related = ("account__product__unit",)
    fields = ("created_at", "account", "verb", "amount_", "actor", "reason", "target", "grant_")

    @display(description="Amount")
    def amount_(self, operation: Operation) -> SafeString:
        return exactly(operation.amount, operation.account.product.unit)

    @display(description="Grant", empty_value="none")
    def grant_(self, operation: Operation) -> SafeString | None:
        key = f"{operation.account_id}-{operation.grant_id}"
        return link("billing_grant", key, f"Grant {operation.grant_id}") if operation.grant_id else None


@admin.register(Subscription)
class SubscriptionAdmin(StoppedSchedules):
    list_display = ("account", "plan_version", "status", "current_period_start", "current_period_end", "cancel_at_period_end")
    list_filter = ("status", "account__product")
    list_select_related = ("account__product", "plan_version__plan__product")
    search_fields = ("=account__public_id", "=account__external_id", "=account__name")
    ordering = ("-started_at",)


STATES = {"pending": "info", "done": "success", "ignored": "", "quarantined": "warning", "dead": "danger"}


@admin.register(StripeEvent)
class StripeEventAdmin(ReadOnlyAdmin):
    """The inbox. What is quarantined or dead waits here for staff; working any event again is safe."""

    list_display = ("received_at", "type", "object_id", "event_id", "state_", "attempts", "short_error")
    list_filter = ("state", "endpoint", "livemode")
    show_full_result_count = False
    paginator = CappedPaginator
    search_fields = ("=event_id", "=object_id", "=type")
    search_help_text = "An event's id (evt_…), its object's id (pi_…, sub_…, in_…), or a whole type."
    ordering = ("-received_at", "-pk")
    actions = ("work_again", "set_aside")
    fields = (
        "event_id", "type", "object_id", "state_", "last_error", "attempts", "next_attempt_at", "done_at", "received_at", "created_at",
        "endpoint", "api_version", "livemode", "body",
    )  # fmt: skip

    @display(description="State", label=STATES)
    def state_(self, event: StripeEvent) -> str:
        return event.state

    @display(description="Why", empty_value="–")
    def short_error(self, event: StripeEvent) -> str | None:
        return event.last_error[:100] or None

    @display(description="As it was signed")
    def body(self, event: StripeEvent) -> SafeString:
        try:
            shown = json.dumps(json.loads(event.payload), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            shown = event.payload
        return format_html('<pre class="tg-pre">{}</pre>', shown)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_stripeevent")

    @action(description="Work again…", permissions=["decide"])
    def work_again(self, request: HttpRequest, chosen: QuerySet[StripeEvent]) -> HttpResponse | None:
        return self._decide(request, chosen, "work_again", "Work again")

    @action(description="Set aside…", permissions=["decide"])
    def set_aside(self, request: HttpRequest, chosen: QuerySet[StripeEvent]) -> HttpResponse | None:
        return self._decide(request, chosen, "set_aside", "Set aside")

    def _decide(self, request: HttpRequest, chosen: QuerySet[StripeEvent], verb: str, title: str) -> HttpResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            reason, now = form.cleaned_data["reason"], timezone.now()
            ids = list(chosen.values_list("event_id", flat=True))
            with transaction.atomic():
                if verb == "work_again":
                    decided = stripe_inbox.work_again(event_ids=ids, now=now)
                else:
                    decided = stripe_inbox.set_aside(event_ids=ids, reason=reason, now=now)
                for event in decided:
                    self.log_change(request, event, f"{title}: {reason}")
            stripe_receiver.ring()
            of_all = f"{len(decided)} of {len(ids)} event{'' if len(ids) == 1 else 's'}"
            self.message_user(request, f"{title}: {of_all}.", messages.SUCCESS)
            return None
        context: dict[str, Any] = self.admin_site.each_context(request) | {
            "title": f"{title}: {chosen.count()} event{'' if chosen.count() == 1 else 's'}",
            "opts": self.opts,
            "events": chosen,
            "form": form,
            "verb": verb,
            "button": title,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/billing/decide_events.html", context)


class StripeAdmin(ReadOnlyAdmin):
    """What Stripe last said, the newest first; each row is found by its id there or by its account."""

    show_full_result_count = False
    paginator = CappedPaginator
    sortable_by = ()
    search_fields: tuple[str, ...] = ("=id", "=account__public_id", "=account__external_id", "=account__name")
    search_help_text = "Stripe's id of it, or an account's id, the client's own id of it, or its whole name."
    list_select_related = ("account__product",)
    ordering = ("-created_at", "-pk")


@admin.register(StripeInvoice)
class StripeInvoiceAdmin(StripeAdmin):
    list_display = ("created_at", "account", "number_", "status_", "description", "total_", "page")
    list_filter = (within("created_at"), "status", "account__product")
    search_fields = (*StripeAdmin.search_fields, "=number")
    fields = (
        "account", "id", "number", "status_", "description", "total_", "tax_", "paid_", "created_at", "period_start", "period_end", "page",
        "pdf",
    )  # fmt: skip

    @display(description="Number", empty_value="none yet")
    def number_(self, invoice: StripeInvoice) -> str | None:
        return invoice.number or None

    @display(description="Status", label={"paid": "success", "open": "warning", "uncollectible": "danger", "void": "info"})
    def status_(self, invoice: StripeInvoice) -> str:
        return invoice.status

    @display(description="Total")
    def total_(self, invoice: StripeInvoice) -> str:
        return _cents(invoice.total, invoice.currency)

    @display(description="Tax in it")
    def tax_(self, invoice: StripeInvoice) -> str:
        return _cents(invoice.tax, invoice.currency)

    @display(description="Paid")
    def paid_(self, invoice: StripeInvoice) -> str:
        return _cents(invoice.paid, invoice.currency)

    @display(description="At Stripe", empty_value="–")
    def page(self, invoice: StripeInvoice) -> SafeString | None:
        return _outward(invoice.hosted_invoice_url, "Invoice")

    @display(description="PDF", empty_value="–")
    def pdf(self, invoice: StripeInvoice) -> SafeString | None:
        return _outward(invoice.invoice_pdf, "PDF")


@admin.register(StripePayment)
class StripePaymentAdmin(StripeAdmin):
    list_display = ("created_at", "account", "id", "status", "description", "paid_", "refunded_", "disputed", "page")
    list_filter = (within("created_at"), "status", "disputed", ("note", admin.EmptyFieldListFilter), "account__product")
    fields = ("account", "id", "status", "description", "paid_", "refunded_", "disputed", "note", "created_at", "page")

    @display(description="Paid")
    def paid_(self, payment: StripePayment) -> str:
        return _cents(payment.paid, payment.currency)

    @display(description="Refunded or lost")
    def refunded_(self, payment: StripePayment) -> str:
        return _cents(payment.refunded, payment.currency)

    @display(description="At Stripe", empty_value="–")
    def page(self, payment: StripePayment) -> SafeString | None:
        return _outward(payment.receipt_url, "Receipt")


@admin.register(StripeReconciliation)
class StripeReconciliationAdmin(ReadOnlyAdmin):
    """Comparisons with Stripe, the newest first."""

    list_display = ("started_at", "finished_at", "since", "compared", "healed_", "problems_")
    fields = ("started_at", "finished_at", "since", "compared", "healed_ids", "problem_lines")
    show_full_result_count = False

    @display(description="Healed")
    def healed_(self, run: StripeReconciliation) -> int:
        return len(run.healed)

    @display(description="For staff")
    def problems_(self, run: StripeReconciliation) -> int:
        return len(run.problems)

    @display(description="What we had missed")
    def healed_ids(self, run: StripeReconciliation) -> SafeString:
        return format_html('<pre class="tg-pre">{}</pre>', "\n".join(run.healed) or "nothing")

    @display(description="For staff")
    def problem_lines(self, run: StripeReconciliation) -> SafeString:
        return format_html('<pre class="tg-pre">{}</pre>', "\n".join(run.problems) or "nothing")


def _outward(url: str, text: str) -> SafeString | None:
    known = url.startswith(("https://", "http://127.0.0.1:"))
    return format_html('<a class="tg-link" href="{}" rel="noreferrer">{}</a>', url, text) if known else None


def _cents(amount_cents: int, currency: str) -> str:
    """As ``_cash``, of cents; a real nothing is shown as one."""
    sign, cents = ("-" if amount_cents < 0 else ""), abs(amount_cents)
    return f"{sign}{cents // 100:,}.{cents % 100:02d} {currency.upper()}"


REQUEST_STATES = {"no answer yet": "info", "Done": "success", "Refused": "", "for staff to look at": "danger"}


@admin.register(StripeRequest)
class StripeRequestAdmin(ReadOnlyAdmin):
    """What we asked of Stripe, and what it answered. What is stuck waits here for staff."""

    list_display = ("created_at", "account", "kind", "path", "state_", "attempts", "next_attempt_at", "short_error")
    list_filter = (within("created_at"), "state", "kind")
    list_select_related = ("account__product",)
    show_full_result_count = False
    paginator = CappedPaginator
    search_fields = ("=key", "=answer_id", "=account__public_id", "=account__external_id")
    search_help_text = "A request's key, the id of what it made (cus_…, cs_…), or an account's id."
    ordering = ("-created_at", "-pk")
    actions = ("send_again",)
    fields = (
        "created_at", "account", "kind", "path", "changes", "asked", "state_", "last_error", "answer_id", "key", "round", "attempts",
        "sent_at", "next_attempt_at", "finished_at",
    )  # fmt: skip

    @display(description="State", label=REQUEST_STATES)
    def state_(self, request: StripeRequest) -> str:
        return request.get_state_display()

    @display(description="Why", empty_value="–")
    def short_error(self, request: StripeRequest) -> str | None:
        return request.last_error[:100] or None

    @display(description="What we asked for")
    def asked(self, request: StripeRequest) -> SafeString:
        return format_html('<pre class="tg-pre">{}</pre>', json.dumps(request.params, indent=2, ensure_ascii=False))

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_striperequest")

    @action(description="Send again…", permissions=["decide"])
    def send_again(self, request: HttpRequest, chosen: QuerySet[StripeRequest]) -> HttpResponse | None:
        """What has no answer is due at once; what is stuck, under a new key: then staff have looked that it did not happen."""
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            ids = list(chosen.values_list("pk", flat=True))
            with transaction.atomic():
                decided = stripe_requests.retry(request_ids=ids, now=timezone.now())
                for each in decided:
                    self.log_change(request, each, f"Send again: {form.cleaned_data['reason']}")
            of_all = f"{len(decided)} of {len(ids)} request{'' if len(ids) == 1 else 's'}"
            self.message_user(request, f"Send again: {of_all}, within a minute.", messages.SUCCESS)
            return None
        context: dict[str, Any] = self.admin_site.each_context(request) | {
            "title": f"Send again: {chosen.count()} request{'' if chosen.count() == 1 else 's'}",
            "opts": self.opts,
            "requests": chosen,
            "form": form,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/billing/send_again.html", context)


@admin.register(Checkout)
class CheckoutAdmin(ReadOnlyAdmin):
    """Visits to Stripe's Checkout, and how they ended."""

    list_display = ("created_at", "account", "name", "price", "state", "completed", "actor")
    list_filter = (within("created_at"), "state", "account__product")
    list_select_related = ("account__product",)
    show_full_result_count = False
    paginator = CappedPaginator
    search_fields = ("=public_id", "=session_id", "=account__public_id", "=account__external_id")
    search_help_text = "A checkout's id (co_…), its session's (cs_…), or an account's."
    ordering = ("-created_at", "-pk")
    exclude = ("url", "fingerprint", "read_number")

    @display(description="Price")
    def price(self, checkout: Checkout) -> str:
        return _cash(checkout.amount_cents * 10_000_000, checkout.currency)


@admin.register(PlanChange)
class PlanChangeAdmin(ReadOnlyAdmin):
    """Moves to another plan; lower ones wait for the end of the period that is paid for."""

    list_display = ("created_at", "account", "from_version", "to_version", "keeps_until", "actor")
    list_filter = (within("created_at"), "account__product")
    list_select_related = ("account__product", "from_version__plan__product", "to_version__plan__product")
    search_fields = ("=subscription_id", "=account__public_id", "=account__external_id")
    search_help_text = "A subscription's id (sub_…), or an account's."
    ordering = ("-created_at", "-pk")


class PaidTwice(admin.SimpleListFilter):
    """The customer paid by hand while a top-up was charged."""

    title = "paid by hand too"
    parameter_name = "paid_twice"
    reasons: ClassVar[dict[str, str]] = {"refunded": top_ups.PAID_TWICE, "undecided": top_ups.UNDECIDED}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("refunded", "Both were paid, the top-up was refunded"), ("undecided", "Both were paid, staff decide")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[TopUp]) -> QuerySet[TopUp]:
        reason = self.reasons.get(self.value() or "")
        return queryset.filter(reason=reason) if reason else queryset


class OfAccountAdmin(ReadOnlyAdmin):
    """Found by their account."""

    show_full_result_count = False
    paginator = CappedPaginator
    search_fields: tuple[str, ...] = ("=account__public_id", "=account__external_id", "=account__name")
    search_help_text = "An account's id, the client's own id of it, or its whole name."
    list_select_related: Any = ("account__product__unit",)


@admin.register(TopUp)
class TopUpAdmin(OfAccountAdmin):
    """Automatic purchases of credit, and why there were none."""

    list_display = ("created_at", "account", "bought", "amount_", "state_", "reason", "card")
    list_filter = (within("created_at"), "state", PaidTwice, "account__product")
    list_select_related = ("account__product__unit", "pack")
    search_fields = (*OfAccountAdmin.search_fields, "=invoice_id")
    search_help_text = "An account's id, the client's own id of it, its whole name, or an invoice's id (in_…)."
    ordering = ("-created_at", "-pk")
    fields = (
        "account", "state_", "reason", "bought", "amount_", "credit", "card", "invoice", "by_hand", "day", "created_at", "charged_at",
        "finished_at", "attempts", "next_attempt_at",
    )  # fmt: skip

    @display(description="Bought", empty_value="nothing")
    def bought(self, top_up: TopUp) -> str | None:
        return f"{top_up.copies} × {top_up.pack.name}" if top_up.pack else None

    @display(description="Charged")
    def amount_(self, top_up: TopUp) -> str:
        return _cash(top_up.amount_cents * 10_000_000, top_up.currency)

    @display(description="Credit")
    def credit(self, top_up: TopUp) -> SafeString:
        return amount(top_up.credit_nanos, top_up.account.product.unit)

    @display(description="State", label={"pending": "info", "paid": "success", "declined": "danger", "refunded": "warning"})
    def state_(self, top_up: TopUp) -> tuple[str, str]:
        return top_up.state, top_up.get_state_display()

    @display(description="Invoice", empty_value="none")
    def invoice(self, top_up: TopUp) -> SafeString | str | None:
        known = StripeInvoice.objects.filter(pk=top_up.invoice_id).exists()
        return link("billing_stripeinvoice", top_up.invoice_id, top_up.invoice_id) if known else top_up.invoice_id or None

    @display(description="Paid by hand meanwhile", empty_value="nothing")
    def by_hand(self, top_up: TopUp) -> SafeString | None:
        theirs = top_ups.paid_by_hand(top_up)
        return link("billing_checkout", theirs.pk, theirs) if theirs else None


@admin.register(AutoTopUp)
class AutoTopUpAdmin(OfAccountAdmin):
    """What customers chose for themselves: when to buy, what, and how much a day."""

    list_display = ("account", "is_on", "threshold", "pack", "daily_cap", "changed_at", "changed_by")
    list_filter = ("enabled", "account__product")
    ordering = ("-changed_at",)
    fields = ("account", "is_on", "threshold", "pack", "daily_cap", "today", "declines", "changed_at", "changed_by", "look_again_at")

    @display(description="Is", label={"on": "success", "off": "info"})
    def is_on(self, rule: AutoTopUp) -> str:
        return "on" if rule.enabled else "off"

    @display(description="Below")
    def threshold(self, rule: AutoTopUp) -> SafeString:
        return amount(rule.threshold_nanos, rule.account.product.unit)

    @display(description="At most a day (UTC)")
    def daily_cap(self, rule: AutoTopUp) -> str:
        return top_ups.dollars(rule.daily_cap_cents)

    @display(description="Of it today")
    def today(self, rule: AutoTopUp) -> str:
        return top_ups.dollars(top_ups.spent_cents(rule.account, now=timezone.now()))

    @display(description="Declined cards", empty_value="none")
    def declines(self, rule: AutoTopUp) -> str | None:
        found = CardDecline.objects.filter(account_id=rule.account_id, declines__gt=0).order_by("pk")
        told = [
            f"{each.declines} in a row, {f'tried again at {each.retry_at:%Y-%m-%d %H:%M} UTC' if each.retry_at else 'not tried again'}"
            for each in found
        ]
        return "; ".join(told) or None


@admin.register(Agreement)
class AgreementAdmin(OfAccountAdmin):
    """Terms of one customer. They are agreed on the account's page."""

    list_display = ("created_at", "account", "terms", "price", "collection", "state", "actor", "reason")
    list_filter = (within("created_at"), "collection", ("last_error", admin.EmptyFieldListFilter), "account__product")
    list_select_related = ("account__product__unit", "plan_version__plan__product")
    ordering = ("-pk",)
    fields = (
        "account", "terms", "price", "credit", "collection", "days_until_due", "state", "last_error", "next_attempt_at", "actor", "reason",
        "created_at",
    )  # fmt: skip

    @display(description="Terms")
    def terms(self, agreement: Agreement) -> SafeString:
        return link("pricing_plan", agreement.plan_version.plan_id, agreement.plan_version)

    @display(description="Price")
    def price(self, agreement: Agreement) -> str:
        return _price(agreement.plan_version)

    @display(description="Credit in it")
    def credit(self, agreement: Agreement) -> SafeString:
        return amount(agreement.plan_version.included_credit_nanos, agreement.account.product.unit)

    @display(description="State", label={"in force": "success", "on its way to Stripe": "info", "refused by Stripe": "danger"})
    def state(self, agreement: Agreement) -> str:
        if agreement.next_attempt_at is not None:
            return "on its way to Stripe"
        return "refused by Stripe" if agreement.last_error else "in force"


@admin.register(PriceMove)
class PriceMoveAdmin(ReadOnlyAdmin):
    """New prices for those who subscribe already; they are planned by ``manage.py plan_price``."""

    list_display = ("created_at", "to_version", "price", "effective_at", "state", "actor", "reason")
    list_filter = (within("created_at"), "to_version__plan__product")
    list_select_related = ("to_version__plan__product",)
    search_fields = ("=to_version__plan__slug",)
    search_help_text = "A plan's slug."
    ordering = ("-pk",)
    actions = ("cancel",)
    fields = ("to_version", "price", "effective_at", "state", "to_come", "actor", "reason", "created_at", "canceled_by", "canceled_at")

    @display(description="New price")
    def price(self, move: PriceMove) -> str:
        return _price(move.to_version)

    @display(description="State", label={"canceled": "", "being announced": "info", "announced": "success"})
    def state(self, move: PriceMove) -> str:
        if move.canceled_at is not None:
            return "canceled"
        return "announced" if move.announced_to is None else "being announced"

    @display(description="To come")
    def to_come(self, move: PriceMove) -> str:
        return price_moves.preview(to=move.to_version).sentence if move.canceled_at is None else "nothing"

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_pricemove")

    @action(description="Cancel…", permissions=["decide"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[PriceMove]) -> HttpResponse | None:
        """Who was moved already keeps the new price."""
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            with transaction.atomic():
                canceled = [each for each in chosen if price_moves.cancel(move=each, actor=request.user.get_username(), now=timezone.now())]
                for each in canceled:
                    self.log_change(request, each, f"Canceled: {form.cleaned_data['reason']}")
            self.message_user(request, f"Canceled: {len(canceled)}.", messages.SUCCESS)
            return None
        context: dict[str, Any] = self.admin_site.each_context(request) | {
            "title": "Cancel price moves",
            "opts": self.opts,
            "moves": [(move, self.price(move), self.to_come(move)) for move in chosen],
            "form": form,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/billing/cancel_moves.html", context)


def _price(version: PlanVersion) -> str:
    per = " a member" if version.per_seat else ""
    return f"{_cents(version.price_cents or 0, version.currency)} a {version.interval}{per}"


def _cash(nanos: int, currency: str) -> str:
    return amount(nanos, Unit(code=currency.strip().upper(), name=currency, decimals=2)) if nanos else "–"
