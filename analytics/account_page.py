"""The account's page for staff: all of one customer on one page, and what staff may do about it.

Acts go through the ledger's verbs. Each form carries a token, so that sending it twice is one act, and shows its effect before it is
confirmed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

from django.contrib import messages
from django.contrib.admin import EmptyFieldListFilter
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import display

from accounts import acts, approvals, registration, staff_door
from accounts.admin import MembershipInline, actor
from accounts.admin import ReasonForm as KeptReasonForm
from accounts.models import Account, Approval
from accounts.pages import signed_in
from accounts.templatetags.amounts import amount, plain_amount
from analytics import account_acts, account_search, account_sections, look_page
from analytics.forms import AdjustForm, AgreeForm, GrantForm, ReasonForm
from billing import agreements, balances, ledger, staff_credit
from metering import throttles
from metering.admin import charged
from metering.forms import StopForm
from metering.models import OpenAuthorization, UsageRecord
from pricing import catalog
from pricing.models import Plan

DAY = "%Y-%m-%d %H:%M"


@dataclass(frozen=True, slots=True)
class Effect:
    """What an act would make of a wallet (nanos of its unit)."""

    before: int
    after: int
    debt_before: int
    debt_after: int


class AccountAdmin(acts.Audited, ModelAdmin):  # type: ignore[misc]
    """Accounts are opened and renamed here; their money moves by the acts on their page."""

    list_display = ("name", "kind", "product", "available", "debt", "external_id", "opened")
    list_filter = ("product", "kind", ("closed_at", EmptyFieldListFilter))
    search_fields = ("name",)
    search_help_text = (
        "A name, an email address, an account’s id (ours or the client’s), an API key’s beginning, an id at Stripe (customer, payment,"
        " charge, invoice), a usage record’s id or Idempotency-Key."
    )
    show_full_result_count = False
    list_select_related = ("product__unit",)
    ordering = ("-id",)
    fields = (
        "product", "external_id", "public_id", "name", "kind", "billing_email", "time_zone", "rate_card", "cost_tier", "created_at",
        "closed_at",
    )  # fmt: skip
    readonly_fields = ("public_id", "created_at")
    inlines = (MembershipInline,)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("wallets__unit")

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Account], search_term: str) -> tuple[QuerySet[Account], bool]:
        """As the search box of the dashboard finds them; other pages that choose an account by name ask here too."""
        if not search_term.strip():
            return queryset, False
        return queryset.filter(pk__in=account_search.find(search_term).accounts), False

    @display(description="Available")
    def available(self, account: Account) -> SafeString | str:
        return next((amount(wallet.available, wallet.unit, cut=True) for wallet in account.wallets.all()), "–")

    @display(description="Opened", ordering="id")
    def opened(self, account: Account) -> str:
        return f"{account.created_at:%Y-%m-%d}" + (" · closed" if account.closed_at else "")

    @display(description="Debt")
    def debt(self, account: Account) -> SafeString | str:
        return next((amount(wallet.debt, wallet.unit) for wallet in account.wallets.all() if wallet.debt), "–")

    def has_delete_permission(self, request: HttpRequest, obj: Account | None = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Account | None = None) -> tuple[str, ...]:
        return (*self.readonly_fields, "product", "external_id", "kind") if obj else (*self.readonly_fields, "closed_at")

    def get_inlines(self, request: HttpRequest, obj: Account | None) -> Any:
        return self.inlines if obj else ()

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None) -> HttpResponse:
        try:
            return super().add_view(request, form_url, extra_context)  # type: ignore[no-any-return]
        except (registration.InvalidAccount, catalog.NotInCatalog) as error:
            self.message_user(request, f"No account was opened. {error}", messages.ERROR)
            return HttpResponseRedirect(request.path)

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: bool) -> None:
        """A new account is opened as everywhere else: with its ledger, its plan and its welcome credit."""
        if change:
            super().save_model(request, obj, form, change)
            return
        opened = registration.open_account(
            product=obj.product, external_id=obj.external_id, name=obj.name, kind=obj.kind, billing_email=obj.billing_email,
            time_zone=obj.time_zone, now=timezone.now(),
        )  # fmt: skip
        obj.pk, obj.public_id, obj.created_at = opened.pk, opened.public_id, opened.created_at
        if obj.rate_card or obj.cost_tier:
            Account.objects.filter(pk=opened.pk).update(rate_card=obj.rate_card, cost_tier=obj.cost_tier)

    def get_urls(self) -> list[URLPattern]:
        views: list[tuple[str, str, Callable[..., HttpResponse]]] = [
            ("find/", "find", self.find_view),
            ("<int:account_id>/edit/", "edit", self.edit_view),
            ("<int:account_id>/grant/", "grant", self.grant_view),
            ("<int:account_id>/adjust/", "adjust", self.adjust_view),
            ("<int:account_id>/agree/", "agree", self.agree_view),
            ("<int:account_id>/stop/", "stop", self.stop_view),
            ("<int:account_id>/resume/", "resume", self.resume_view),
            ("<int:account_id>/look/", "look", self.look_view),
            ("look/end/", "look_end", look_page.end),
            ("<int:account_id>/reverse/<uuid:usage_id>/", "reverse", self.reverse_view),
            ("<int:account_id>/override/", "override", partial(account_acts.override, self)),
            ("<int:account_id>/override/<int:override_id>/end/", "end_override", partial(account_acts.end_override, self)),
            ("<int:account_id>/refund/<str:payment_id>/", "refund", partial(account_acts.refund, self)),
            ("<int:account_id>/plan/", "plan", partial(account_acts.change_plan, self)),
        ]
        ours = [path(route, self.admin_site.admin_view(view), name=f"accounts_account_{name}") for route, name, view in views]
        return ours + super().get_urls()  # type: ignore[no-any-return]

    # Finding ------------------------------------------------------------------------------------------------------------------

    def find_view(self, request: HttpRequest) -> HttpResponse:
        """To the one account, or the one use, that was meant; to the list where it may be several, or none."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        text = request.GET.get("q", "")
        found = account_search.find(text)
        if found.note:
            self.message_user(request, found.note, messages.INFO)
        if len(found.accounts) != 1:
            if not found.accounts and not found.note and text.strip():
                self.message_user(request, f"Nothing is known by “{text.strip()[:100]}”.", messages.WARNING)
            several = f"?{urlencode({'q': text})}" if found.accounts else ""
            return HttpResponseRedirect(reverse("admin:accounts_account_changelist") + several)
        [account_id] = found.accounts
        if found.use is not None and request.user.has_perm("metering.view_usagerecord"):
            for model in (UsageRecord, OpenAuthorization):
                if model.objects.filter(account_id=account_id, pk=found.use).exists():
                    key = f"{account_id}-{found.use}"
                    return HttpResponseRedirect(reverse(f"admin:metering_{model._meta.model_name}_change", args=[key]))
        return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account_id]))

    # The page -----------------------------------------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Everything about one account. Its fields are edited on a page of their own."""
        account = self.get_object(request, object_id)
        if account is None:
            return super().change_view(request, object_id, form_url, extra_context)  # type: ignore[no-any-return]
        if not self.has_view_or_change_permission(request, account):
            raise PermissionDenied
        if request.method != "GET":
            return HttpResponse(status=405, headers={"Allow": "GET"})
        context = account_sections.everything(account, request=request, now=timezone.now())
        return self._page(request, account, account.name, "admin/accounts/account_page.html", **context)

    def edit_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        return super().change_view(request, str(account_id))  # type: ignore[no-any-return]

    # The acts -----------------------------------------------------------------------------------------------------------------

    def grant_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Adds credits that nobody paid for."""
        account = self._acting_on(request, account_id)

        def wanted(cleaned: dict[str, Any]) -> staff_credit.Wanted:
            return staff_credit.Wanted(
                account=account, verb="grant", amount_nanos=cleaned["amount"], mark=str(cleaned["token"]), source=cleaned["source"],
                expires_at=cleaned["last_day"],
            )  # fmt: skip

        return self._give(request, account, "Grant credits", GrantForm, wanted)

    def adjust_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Corrects the wallet, up or down."""
        account = self._acting_on(request, account_id)

        def wanted(cleaned: dict[str, Any]) -> staff_credit.Wanted:
            return staff_credit.Wanted(account=account, verb="adjust", amount_nanos=cleaned["amount"], mark=str(cleaned["token"]))

        return self._give(request, account, "Adjust the wallet", AdjustForm, wanted)

    def _give(
        self, request: HttpRequest, account: Account, title: str, form_class: type[ReasonForm],
        wanted: Callable[[dict[str, Any]], staff_credit.Wanted],
    ) -> HttpResponse:  # fmt: skip
        """By this person alone, or with a second one; the preview says which."""
        person = signed_in(request)

        def act(cleaned: dict[str, Any]) -> str | Approval:
            return staff_credit.give(wanted=wanted(cleaned), actor=person, reason=cleaned["reason"], now=timezone.now())

        def asks(cleaned: dict[str, Any]) -> bool:
            return staff_credit.above_cap(wanted=wanted(cleaned), actor=person, now=timezone.now())

        return self._act(request, account, title, form_class, act, asks=asks)

    def reverse_view(self, request: HttpRequest, account_id: int, usage_id: UUID) -> HttpResponse:
        """Undoes the whole charge of one usage record."""
        account = self._acting_on(request, account_id)
        record = (
            UsageRecord.objects.select_related("model", "feature").filter(account_id=account.pk, pk=usage_id, price_nanos__gt=0).first()
        )
        if record is None:
            raise Http404

        def act(cleaned: dict[str, Any]) -> str:
            done = ledger.reverse(
                account_id=account.pk, usage_id=usage_id, key=f"staff:{cleaned['token']}", actor=actor(request), reason=cleaned["reason"]
            )
            said = f"The charge of {self._amount(account, done.amount_nanos)} was {_was(done)}reversed."
            if not done.replayed:
                acts.note(
                    actor=signed_in(request), account=account, what=said, kind=acts.Kind.MONEY, reason=cleaned["reason"],
                    before={"usage record": str(usage_id)}, now=timezone.now(),
                )  # fmt: skip
            return said

        return self._act(request, account, "Reverse this charge", ReasonForm, act, record=record, charged=charged(record))

    def agree_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Agrees terms with one customer: a price, limits and credit that nobody else has."""
        account = self._acting_on(request, account_id, "billing.change_subscription")
        plans = Plan.objects.filter(product=account.product, available=True).order_by("-rank")
        form = AgreeForm(request.POST or None, plans=[(plan.slug, plan.name) for plan in plans], initial={"token": uuid4()})
        if form.is_valid():
            said, now = form.cleaned_data, timezone.now()
            try:
                agreements.agree(
                    account=account,
                    terms=form.terms(),
                    key=f"agreement:{said['token']}",
                    actor=actor(request),
                    reason=said["reason"],
                    now=now,
                )
            except agreements.InvalidTerms as error:
                form.add_error({"included_credit": "credit"}.get(error.field, error.field), str(error))
            else:
                self.log_change(request, account, f"Terms agreed: {said['price']} a {said['interval']}; {said['reason']}")
                return self._done(request, account, True, "The terms are agreed. Where Stripe collects, it is told within a minute.", "")
        says = (
            "The account leaves its plan for these terms. Outside of Stripe they hold at once; through Stripe the customer is charged,"
            " or sent an invoice, within a minute. Terms are never edited: agree others instead."
        )
        return self._ask(request, account, f"Agree terms with {account.name}", form, says, "Agree the terms")

    def stop_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Refuses all new work of the account."""
        account = self._stopping(request, account_id, "metering.add_throttle")
        form = StopForm(request.POST or None)
        if form.is_valid():
            said = form.cleaned_data
            with transaction.atomic():
                stopped = throttles.stop(
                    account=account, actor=actor(request), reason=said["reason"], ends_at=said["ends_at"], now=timezone.now()
                )
                if stopped:
                    self.log_change(request, account, f"Stopped: {said['reason']}")
            return self._done(request, account, stopped, f"{account} is stopped.", f"The end is over by now: {account} is not stopped.")
        says = "New work of the account is refused at once, with the reason. Work that has begun is still captured and charged."
        return self._ask(request, account, f"Stop {account.name}", form, says, "Stop the account")

    def resume_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Lets a throttled account work again, whatever stops it."""
        account = self._stopping(request, account_id, "metering.change_throttle")
        now = timezone.now()
        stops = throttles.of_account(account=account, now=now).stops
        form = KeptReasonForm(request.POST or None)
        if form.is_valid():
            throttled = [throttles.Throttled(account, stop) for stop in stops]
            reason, user = form.cleaned_data["reason"], signed_in(request)
            lifted = throttles.lift(throttled=throttled, by=user, actor=actor(request), reason=reason, now=now)
            return self._done(request, account, lifted > 0, f"{account} works again.", f"{account} was not stopped.")
        until = [f"{stop.until:{DAY}}" for stop in stops if stop.meter]
        says = "The account may begin new work at once." + "".join(
            f" Until {end} UTC, when that window ends, the limit does not count for it, whatever it uses." for end in until
        )
        return self._ask(request, account, f"Resume {account.name}", form, says, "Resume the account")

    def look_view(self, request: HttpRequest, account_id: int) -> HttpResponse:
        """Into the customer's own pages, through the eyes of one of its people."""
        shown = look_page.look(request, account_id)
        if isinstance(shown, HttpResponse):
            return shown
        account, form = shown
        says = (
            "For half an hour you see this account as that person does. You can change nothing there, and buy nothing."
            if form.fields["member"].queryset.exists()  # type: ignore[attr-defined]
            else "Nobody signs in for this account, so there are no eyes to look through: a client app acts for it."
        )
        return self._ask(request, account, f"Look at {account.name} as its people do", form, says, "Look")

    def _done(self, request: HttpRequest, account: Account, done: bool, yes: str, no: str) -> HttpResponse:
        """Back to the account, saying what came of it."""
        self.message_user(request, yes if done else no, messages.SUCCESS if done else messages.WARNING)
        return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account.pk]))

    def _stopping(self, request: HttpRequest, account_id: int, permission: str) -> Account:
        """:raises PermissionDenied: who asks may not. :raises Http404: there is no such account."""
        if not request.user.has_perm(permission):
            raise PermissionDenied
        account = Account.objects.select_related("product").filter(pk=account_id).first()
        if account is None:
            raise Http404
        return account

    def _ask(self, request: HttpRequest, account: Account, title: str, form: Any, says: str, button: str) -> HttpResponse:
        cancel = reverse("admin:accounts_account_change", args=[account.pk])
        return self._page(request, account, title, "admin/metering/ask.html", form=form, says=says, button=button, cancel=cancel)

    def _act(
        self, request: HttpRequest, account: Account, title: str, form_class: type[ReasonForm],
        act: Callable[[dict[str, Any]], str | Approval],
        record: UsageRecord | None = None, asks: Callable[[dict[str, Any]], bool] = lambda cleaned: False, **context: Any,
    ) -> HttpResponse:  # fmt: skip
        """Asks, shows the effect, acts when that was confirmed."""
        form = form_class(request.POST or None, initial={"token": uuid4()})
        effect = None
        if form.is_valid():
            gain = record.price_nanos or 0 if record else form.cleaned_data["amount"]
            effect = _effect(account, gain)
            if effect.after < 0:
                form.add_error("amount", f"Only {plain_amount(effect.before, account.product.unit, cut=True)} is free.")
            elif "confirm" in request.POST:
                try:
                    with transaction.atomic():
                        done = act(form.cleaned_data)
                except (ledger.LedgerError, approvals.ApprovalError, ValueError) as error:
                    form.add_error(None, str(error))
                else:
                    if isinstance(done, Approval):
                        said = f"Nothing has moved yet: somebody else has to approve “{done}” within a day."
                        self.message_user(request, said, messages.WARNING)
                        return HttpResponseRedirect(reverse("admin:accounts_approval_decide", args=[done.pk]))
                    self.message_user(request, done, messages.SUCCESS)
                    return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account.pk]))
        preview = form.is_bound and not form.errors and "edit" not in request.POST
        return self._page(
            request, account, f"{title} · {account.name}", "admin/accounts/act.html",
            act=title, form=form, preview=preview, effect=effect, record=record, unit=account.product.unit,
            asks=preview and asks(form.cleaned_data), **context,
        )  # fmt: skip

    def _acting_on(self, request: HttpRequest, account_id: int, permission: str = "billing.add_operation") -> Account:
        """:raises PermissionDenied: who asks may not move money. :raises Http404: there is no such account."""
        if not request.user.has_perm(permission):
            raise PermissionDenied
        account = Account.objects.select_related("product__unit").filter(pk=account_id).first()
        if account is None:
            raise Http404
        staff_door.fresh(request, now=timezone.now())
        return account

    def _page(self, request: HttpRequest, account: Account, title: str, template: str, **context: Any) -> TemplateResponse:
        base = {"title": title, "opts": self.opts, "account": account, "original": account, "now": timezone.now()}
        return TemplateResponse(request, template, self.admin_site.each_context(request) | base | context)

    def _amount(self, account: Account, nanos: int) -> str:
        return plain_amount(nanos, account.product.unit)


def _effect(account: Account, gain: int) -> Effect:
    """What is free before and after ``gain``, debt repaid first, as things stand."""
    found = balances.of_account(account, now=timezone.now())
    wallet = next((wallet for wallet in found if wallet.unit_id == account.product.unit_id), None)
    free, debt = (wallet.available, wallet.debt) if wallet else (0, 0)
    repaid = min(debt, max(gain, 0))
    return Effect(before=free, after=free + gain - repaid, debt_before=debt, debt_after=debt - repaid)


def _was(done: ledger.Operation) -> str:
    return "already " if done.replayed else ""
