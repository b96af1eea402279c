"""Buying credits: the packs, the way to Checkout, and the page that the customer comes back to.

    buy       the packs of the account's product; POST goes to Checkout
    checkout  one visit to Checkout, as far as Stripe has confirmed it

Nobody is believed to have paid because they are here: the page says what our row says, and that follows Stripe's events.
"""

from __future__ import annotations

from typing import Final

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts import pages
from accounts.models import Account
from billing import balances, checkout, offers, plan_pages
from billing.models import Checkout, Grant, Subscription
from pricing import catalog
from pricing.models import PlanVersion

PURCHASES: Final = 10
#: How often a pending page looks again by itself, and after how many seconds at first; then it waits for the visitor.
LOOKS: Final = 30
LOOK_SECONDS: Final = 3


class OrderForm(forms.Form):
    """What is bought. The pack itself is checked against what is on sale."""

    pack = forms.CharField(max_length=64, error_messages={"required": "Choose a pack."})
    quantity = forms.IntegerField(
        min_value=1, max_value=checkout.MOST_PACKS, initial=1, label="How many", help_text=f"Up to {checkout.MOST_PACKS} packs at a time."
    )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def buy(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?pack=`` chooses one beforehand."""
    now = timezone.now()
    with pages.tenant(request, public_id, managing=request.method == "POST") as account:
        manages = pages.manages(pages.signed_in(request), account)
        wallets = balances.of_account(account, now=now)
        subscription = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED).first()
        purchases = list(Checkout.objects.filter(account=account, pack__isnull=False)[:PURCHASES])
    product = account.product = catalog.product_by_id(product_id=account.product_id)
    form = OrderForm(request.POST) if request.method == "POST" else OrderForm(initial={"pack": request.GET.get("pack", ""), "quantity": 1})
    if form.is_bound and form.is_valid():
        back = plan_pages.checkout_address(request, account)
        try:
            order = checkout.buy(
                account=account,
                pack=form.cleaned_data["pack"],
                quantity=form.cleaned_data["quantity"],
                success_url=back,
                cancel_url=f"{back}?left=1",
                actor=pages.signed_in(request).email,
                now=now,
            )
        except checkout.Unavailable:
            return plan_pages.unavailable(request, account, now)
        except checkout.Refusal as error:
            form.add_error("pack", str(error))
        else:
            return redirect(order.url or reverse("checkout", args=[public_id, order.public_id]))
    terms = catalog.plan_version_by_id(plan_version_id=subscription.plan_version_id) if subscription else None
    terms = terms or catalog.plan_version(product_id=product.pk, slug=product.default_plan, at=now)
    rate_card = account.rate_card or terms.version.rate_card
    packs = offers.packs(product=product, rate_card=rate_card, at=now)
    response = pages.render(
        request,
        "billing/buy.html",
        account=account,
        now=now,
        context={
            "unit": product.unit,
            "wallet": _wallet(account, wallets),
            "packs": packs,
            "packs_differ": len({pack.unit_cost_nanos for pack in packs}) > 1,
            "form": form,
            "purchases": purchases,
            "manages": manages,
        },
    )
    response.status_code = 422 if form.is_bound else 200
    return response


@require_safe
@never_cache
@login_required
def visit(request: HttpRequest, public_id: str, checkout_id: str) -> HttpResponse:
    """``?left=1``: by the link that leaves the payment page. ``?look=`` counts how often a pending page has looked again by itself."""
    now = timezone.now()
    looks = _looks(request)
    with pages.tenant(request, public_id) as account:
        found = Checkout.objects.filter(account=account, public_id=checkout_id).first()
        if found is None:
            raise Http404("There is no such purchase.")
        manages = pages.manages(pages.signed_in(request), account)
        wallets = balances.of_account(account, now=now)
        since = Grant.objects.filter(account=account, source="purchased", starts_at__gte=found.created_at)
        granted = since.order_by("-pk").values_list("granted", flat=True).first() if found.pack_id else None
    product = account.product = catalog.product_by_id(product_id=account.product_id)
    pending = found.state == Checkout.State.OPEN and "left" not in request.GET
    refreshes = pending and looks < LOOKS
    response = pages.render(
        request,
        "billing/checkout.html",
        account=account,
        now=now,
        context={
            "checkout": found,
            "plan": PlanVersion.objects.select_related("plan").get(pk=found.plan_version_id).plan if found.plan_version_id else None,
            "unit": product.unit,
            "wallet": _wallet(account, wallets),
            "granted": granted,
            "pending": pending,
            "refreshes": refreshes,
            "manages": manages,
        },
    )
    if refreshes:
        response.headers["Refresh"] = f"{LOOK_SECONDS + looks // 5}; url={request.path}?look={looks + 1}"
    return response


def _looks(request: HttpRequest) -> int:
    """``?look=``. :raises Http404: anything but a whole number of up to three digits."""
    text = request.GET.get("look", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise Http404("There is no such page.")
    return int(text)


def _wallet(account: Account, wallets: list[balances.Balance]) -> balances.Balance | None:
    return next((wallet for wallet in wallets if wallet.unit_id == account.product.unit_id), None)
