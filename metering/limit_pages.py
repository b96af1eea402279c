"""Where a refusal sends a customer: which limit it was, when it ends and what would lift it; and the last refusals, in sentences."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import pages
from billing import balances
from metering import explanation, prompts, refusal_explanation
from metering.models import Refusal
from pricing import catalog
from pricing.models import Product


@require_safe
@never_cache
@login_required
def limit(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?meter=`` names the limit (``messages/day``) or the feature that was refused; without it, whatever stops the account now."""
    now = timezone.now()
    meter = request.GET.get("meter")
    with pages.tenant(request, public_id) as account:
        manages = pages.manages(pages.signed_in(request), account)
        wallets = balances.of_account(account, now=now)
    account.product = catalog.product_by_id(product_id=account.product_id)
    if meter is None:
        found = prompts.reached(account=account, now=now)
    else:
        prompt = prompts.of(account=account, meter=meter, now=now)
        if prompt is None:
            raise Http404("There is no such limit.")
        found = [prompt]
    return pages.render(
        request,
        "billing/limit.html",
        account=account,
        now=now,
        context={
            "prompt": next(iter(found), None),
            "more": found[1:],
            "manages": manages,
            "unit": account.product.unit,
            "wallet": next((wallet for wallet in wallets if wallet.unit_id == account.product.unit_id), None),
        },
    )


@require_safe
@never_cache
@login_required
def refusals(request: HttpRequest, public_id: str) -> HttpResponse:
    """The last refusal by each limit: what was asked, by which figures, when it ends and what would lift it."""
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        kept = list(Refusal.objects.filter(account=account).defer("costs"))
    account.product = catalog.product_by_id(product_id=account.product_id)
    told = explanation.Told(False, Product.Visibility(account.product.visibility), explanation.zone_of(account))
    said = [refusal_explanation.explain(refusal=refusal, account=account, told=told, now=now) for refusal in kept]
    return pages.render(request, "billing/refusals.html", account=account, now=now, context={"refusals": said})
