"""Acts on an account that reach beyond its wallet: giving a payment back, another plan, another limit. Each shows first what it would do.

The first two talk to Stripe, so neither runs inside a transaction: what is wanted is a row first (:mod:`billing.stripe_requests`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import structlog
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from accounts import approvals, staff_door
from accounts.admin import actor
from accounts.models import Account
from accounts.pages import signed_in
from analytics.forms import EndOverrideForm, OverrideForm, PlanForm, RefundForm
from billing import checkout, refunds, staff_plans, stripe_api, stripe_inbox, stripe_requests, subscriptions
from billing.models import StripePayment
from metering import overrides
from pricing.admin import cents

if TYPE_CHECKING:
    from analytics.account_page import AccountAdmin

#: So long does an override last unless staff say otherwise.
OVERRIDE_DAYS: Final = 7

log = structlog.get_logger(__name__)


def refund(admin: AccountAdmin, request: HttpRequest, account_id: int, payment_id: str) -> HttpResponse:
    """Gives a payment back, or a part of it: the amount, then what it takes of the credits, then the act."""
    alone = request.user.has_perm("billing.refund_stripepayment")
    account = _account(request, account_id, "billing.refund_stripepayment" if alone else "billing.add_operation")
    payment = StripePayment.objects.select_related("account__product__unit").filter(account=account, pk=payment_id).first()
    if payment is None:
        raise Http404
    now = timezone.now()
    try:
        most = refunds.left(payment=payment)
    except refunds.NotRefundable as error:
        admin.message_user(request, f"{payment} is not given back. {error}", messages.WARNING)
        return _back(account)
    form = RefundForm(request.POST or None, most=most, currency=payment.currency, initial={"token": uuid4()})
    context: dict[str, Any] = {"payment": payment, "paid": cents(payment.paid, payment.currency), "most": cents(most, payment.currency)}
    if form.is_valid() and "edit" not in request.POST:
        said = form.cleaned_data
        if "confirm" in request.POST:
            return _give_back(admin, request, payment, said) if alone else _request(admin, request, payment, said)
        context |= {
            "preview": refunds.preview(payment=payment, cents=said["amount"], now=now), "unit": account.product.unit,
            "amount": cents(said["amount"], payment.currency), "alone": alone,
        }  # fmt: skip
    return admin._page(request, account, f"Refund · {account.name}", "admin/accounts/refund.html", form=form, **context)


def _give_back(admin: AccountAdmin, request: HttpRequest, payment: StripePayment, said: dict[str, Any]) -> HttpResponse:
    now, amount = timezone.now(), cents(said["amount"], payment.currency)
    try:
        asked = refunds.ask(
            payment=payment, cents=said["amount"], mark=said["token"], by=signed_in(request), reason=said["reason"], now=now
        )
        stripe_requests.send(asked, now=now)
    except refunds.NotRefundable as error:
        admin.message_user(request, str(error), messages.WARNING)
    except stripe_requests.Refused as error:
        admin.message_user(request, f"Stripe refused: {error}", messages.ERROR)
    except (stripe_requests.Unanswered, stripe_api.StripeError):
        admin.message_user(request, f"Stripe has not answered yet. The refund of {amount} is sent again by itself.", messages.WARNING)
    else:
        admin.message_user(request, f"{amount} are given back.", messages.SUCCESS)
        try:
            stripe_inbox.look_at(intent=payment.pk, now=now)
        except stripe_api.StripeError as error:  # its event is on its way
            log.warning("payment not read after its refund", payment=payment.pk, why=str(error))
    return _back(payment.account)


def _request(admin: AccountAdmin, request: HttpRequest, payment: StripePayment, said: dict[str, Any]) -> HttpResponse:
    """Of somebody who may not give money back: it waits for somebody who may."""
    try:
        asked = refunds.request(
            payment=payment, cents=said["amount"], mark=said["token"], by=signed_in(request), reason=said["reason"], now=timezone.now()
        )
    except (refunds.NotRefundable, approvals.ApprovalError) as error:
        admin.message_user(request, str(error), messages.WARNING)
        return _back(payment.account)
    admin.message_user(request, f"Nothing is given back yet: somebody else has to approve “{asked}” within a day.", messages.WARNING)
    return HttpResponseRedirect(reverse("admin:accounts_approval_decide", args=[asked.pk]))


def change_plan(admin: AccountAdmin, request: HttpRequest, account_id: int) -> HttpResponse:
    """Puts the account on another plan, after what that does was seen."""
    account, now = _account(request, account_id, "billing.change_subscription"), timezone.now()
    plans = staff_plans.choices(account=account, now=now)
    form = PlanForm(request.POST or None, plans=plans, initial={"token": uuid4()})
    says: list[str] = []
    if form.is_valid() and "edit" not in request.POST:
        said = form.cleaned_data
        try:
            if "confirm" in request.POST:
                staff_plans.move(
                    account=account, plan=said["plan"], until=said["until"], by=signed_in(request), reason=said["reason"], now=now
                )
                admin.message_user(request, f"{account.name} is moved to {dict(plans)[said['plan']]}.", messages.SUCCESS)
                return _back(account)
            says = staff_plans.preview(account=account, plan=said["plan"], until=said["until"], now=now)
        except (staff_plans.NotPossible, checkout.Refusal) as error:
            form.add_error(None, str(error))
    return admin._page(
        request, account, f"Change the plan of {account.name}", "admin/accounts/change_plan.html", form=form, says=says,
        subscription=subscriptions.current(account_id=account.pk), plan=dict(plans).get(form.data.get("plan", "")),
    )  # fmt: skip


def override(admin: AccountAdmin, request: HttpRequest, account_id: int) -> HttpResponse:
    """Sets one limit of the account to another value until a day, after what that does was seen."""
    account, now = _account(request, account_id, "billing.add_limitoverride"), timezone.now()
    choices = overrides.choices(account=account)
    week = now.date() + timedelta(days=OVERRIDE_DAYS)
    form = OverrideForm(request.POST or None, choices=choices, initial={"token": uuid4(), "until": week})
    says: list[str] = []
    if form.is_valid() and "edit" not in request.POST:
        said = form.cleaned_data
        wanted: dict[str, Any] = {"account": account, "meter": said["meter"], "value": said["value"], "ends_at": said["until"], "now": now}
        try:
            if "confirm" in request.POST:
                row = overrides.override(
                    **wanted, token=said["token"], by=signed_in(request), actor=actor(request), reason=said["reason"]
                )  # fmt: skip
                told = f"{overrides.name(row.meter)}: {overrides.said(row.meter, row.value)} until {row.ends_at:%Y-%m-%d %H:%M} UTC."
                admin.message_user(request, told, messages.SUCCESS)
                return _back(account)
            _, says = overrides.check(**wanted)
        except overrides.InvalidOverride as error:
            form.add_error({"ends_at": "until"}.get(error.field, error.field), str(error))
    running = overrides.in_force(account=account, now=now)
    return admin._page(
        request, account, f"Override a limit of {account.name}", "admin/accounts/override.html", form=form, says=says, running=running,
        choices=choices,
    )  # fmt: skip


def end_override(admin: AccountAdmin, request: HttpRequest, account_id: int, override_id: int) -> HttpResponse:
    """Has the plan's limit count again, before the override's date."""
    account, now = _account(request, account_id, "billing.change_limitoverride"), timezone.now()
    found = next((one for one in overrides.in_force(account=account, now=now) if one.row.pk == override_id), None)
    if found is None:
        if not account.limit_overrides.filter(pk=override_id).exists():
            raise Http404
        admin.message_user(request, "It has ended already.", messages.WARNING)
        return _back(account)
    form = EndOverrideForm(request.POST or None)
    if form.is_valid():
        overrides.end(
            account=account,
            override_id=override_id,
            by=signed_in(request),
            actor=actor(request),
            reason=form.cleaned_data["reason"],
            now=now,
        )
        admin.message_user(request, f"{found.name}: the plan counts again.", messages.SUCCESS)
        return _back(account)
    says = f"{found.name}: {found.value} until {found.row.ends_at:%Y-%m-%d %H:%M} UTC, by {found.row.actor}: {found.row.reason}"
    return admin._ask(request, account, "End the override", form, f"{says} — without it: {found.plans}.", "End it now")


def _account(request: HttpRequest, account_id: int, permission: str) -> Account:
    """:raises PermissionDenied: who asks may not. :raises Http404: there is no such account."""
    if not request.user.has_perm(permission):
        raise PermissionDenied
    account = Account.objects.select_related("product__unit").filter(pk=account_id).first()
    if account is None:
        raise Http404
    staff_door.fresh(request, now=timezone.now())
    return account


def _back(account: Account) -> HttpResponse:
    return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account.pk]))
