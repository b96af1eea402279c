"""Plans on pages: the public comparison, what an account is on, and changing it.

    pricing  anybody: a product's plans and packs; a signed-in visitor finds their own marked
    billing  the plan, when it renews, what was charged
    plan     to another plan: what it costs and when it counts, then Checkout, or the change itself
    cancel   what is lost and when, then the cancellation; resume takes it back
    portal   the way to Stripe's page for card, address and invoices

Reading needs nothing but our own rows. What Stripe has to do is asked for by POST, and answered with 503 where Stripe is away.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.shortcuts import render as render_template
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import pages, tenancy
from accounts.models import Account, User
from billing import checkout, offers, stripe_invoices, subscriptions, tiers
from billing.models import Checkout, PlanChange, Subscription
from pricing import catalog, words
from pricing.models import Product

DOCUMENTS: Final = 24
RETRY_SECONDS: Final = 30


@require_safe
@never_cache
def pricing(request: HttpRequest, product_slug: str) -> HttpResponse:
    """``?account=`` names the account to compare for, where a visitor has several of the product."""
    now = timezone.now()
    try:
        product = catalog.product(slug=product_slug)
    except catalog.NotInCatalog:
        raise Http404("There is no such product.") from None
    named = request.GET.get("account")
    mine, subscription = _visitor(request.user, product, named) if isinstance(request.user, User) else ([], None)
    account = next((each for each in mine if named in (None, each.public_id)), None)
    if account is None and named is not None:
        raise Http404("There is no such account here.")
    current = catalog.plan_version_by_id(plan_version_id=subscription.plan_version_id) if subscription else None
    terms = current or catalog.plan_version(product_id=product.pk, slug=product.default_plan, at=now)
    rate_card = (account.rate_card if account else "") or terms.version.rate_card
    plans = offers.plans(product=product, at=now)
    packs = offers.packs(product=product, rate_card=rate_card, at=now)
    return render_template(
        request,
        "pricing/plans.html",
        {
            "product": product,
            "unit": product.unit,
            "account": account,
            "accounts": mine if len(mine) > 1 else [],
            "plans": plans,
            "not_theirs": {each.slug for each in plans if account and tiers.face(account=account, plan=each.slug) != each.slug},
            "current": current and current.version.plan,
            "rows": offers.comparison(product=product, at=now),
            "trials": account is None or not checkout.had_trial(account=account),
            "packs": packs,
            "packs_differ": len({pack.unit_cost_nanos for pack in packs}) > 1,
            "use": offers.use(product=product, rate_card=rate_card, at=now),
        },
    )


def _visitor(user: User, product: Product, named: str | None) -> tuple[list[Account], Subscription | None]:
    """The visitor's open accounts of the product, and what the named one, else the first, is on."""
    with tenancy.acting_as(user=user):
        mine = list(pages.accounts_of(user).filter(product=product, closed_at=None))
        chosen = [account for account in mine if account.public_id == named or named is None][:1]
        return mine, _live().filter(account__in=chosen).first()


def _live() -> QuerySet[Subscription]:
    return Subscription.objects.exclude(status=Subscription.Status.CANCELED)


@require_safe
@never_cache
@login_required
def billing(request: HttpRequest, public_id: str) -> HttpResponse:
    now = timezone.now()
    with pages.tenant(request, public_id) as account:
        manages = pages.manages(pages.signed_in(request), account)
        subscription = _live().filter(account=account).first()
        documents = stripe_invoices.documents(account=account, limit=DOCUMENTS)
    product = catalog.product_by_id(product_id=account.product_id)
    offer = _offer(subscription, product)
    paid_for = subscription is not None and subscription.stripe_id is not None
    change = checkout.coming_change(account=account) if paid_for else None
    return pages.render(
        request,
        "billing/billing.html",
        account=account,
        now=now,
        context={
            "subscription": subscription,
            "plan": offer,
            "until": _until(subscription, now),
            "change": change,
            "next_charge": _next_charge(subscription, change),
            "default_plan": _default(product, now),
            "documents": documents,
            "manages": manages,
            "sells": bool(catalog.packs(product_id=product.pk, at=now)),
        },
    )


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def plan(request: HttpRequest, public_id: str, slug: str) -> HttpResponse:
    """GET shows what the change does; POST does it. What was shown comes back with the POST: where it would cost more by now, or do
    something else, it is shown anew and nothing is done.
    """
    now = timezone.now()
    with pages.tenant(request, public_id, managing=True) as account:
        subscription = _live().filter(account=account).first()
    product = account.product = catalog.product_by_id(product_id=account.product_id)
    try:
        terms = tiers.offered(account=account, plan=slug, now=now)
    except catalog.NotInCatalog:
        raise Http404("There is no such plan.") from None
    chosen, current = offers.offer(terms=terms, product=product), _offer(subscription, product)
    change, refusal, status = None, "", 200
    try:
        if subscription is not None and subscription.stripe_id:
            change = checkout.preview_change(account=account, plan=slug, now=now)
            if change.kind == "cancel":
                return redirect("cancel", public_id)
            if change.kind == "none":
                messages.info(request, f"There is nothing to change: {chosen.name} is what you have or have chosen.")
                return redirect("billing", public_id)
            if request.method == "POST" and _as_shown(request, change):
                return _changed(request, account, slug, now)
        elif request.method == "POST":
            return redirect(_subscribe(request, account, slug, now).url or reverse("billing", args=[public_id]))
    except checkout.Unavailable:
        return unavailable(request, account, now)
    except checkout.Refusal as error:
        refusal, status = str(error), 409
    lower = current is not None and current.rank > chosen.rank
    context = {
        "plan": chosen,
        "current": current,
        "change": change,
        "changed_since": request.method == "POST" and not refusal,
        "refusal": refusal,
        "lost": [each for each in current.gives if each not in chosen.gives] if lower and current else [],
        "trial_days": 0 if checkout.had_trial(account=account) else terms.version.trial_days,
    }
    response = pages.render(request, "billing/plan.html", account=account, now=now, context=context)
    response.status_code = status
    return response


def _as_shown(request: HttpRequest, change: checkout.Change) -> bool:
    """Whether the visitor has seen what would be done, at no lower a price."""
    kind, due = request.POST.get("kind"), request.POST.get("due", "")
    return kind == change.kind and due.isascii() and due.isdigit() and len(due) <= 12 and change.due_now_cents <= int(due)


def _subscribe(request: HttpRequest, account: Account, slug: str, now: datetime) -> Checkout:
    back = checkout_address(request, account)
    actor = pages.signed_in(request).email
    return checkout.subscribe(account=account, plan=slug, success_url=back, cancel_url=f"{back}?left=1", actor=actor, now=now)


def _changed(request: HttpRequest, account: Account, slug: str, now: datetime) -> HttpResponse:
    done = checkout.change_plan(account=account, plan=slug, actor=pages.signed_in(request).email, now=now)
    name = done.plan.plan.name
    told = {"upgrade": f"You are on {name} now.", "keep": f"You keep {name}."}
    messages.success(request, told.get(done.kind, f"You change to {name} at the end of this period."))
    return redirect("billing", account.public_id)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def cancel(request: HttpRequest, public_id: str) -> HttpResponse:
    now = timezone.now()
    with pages.tenant(request, public_id, managing=True) as account:
        subscription = _live().filter(account=account).first()
    product = account.product = catalog.product_by_id(product_id=account.product_id)
    current, default = _offer(subscription, product), _default(product, now)
    if subscription is None or current is None or not subscription.stripe_id or subscription.cancel_at_period_end:
        messages.info(request, "There is nothing to cancel.")
        return redirect("billing", public_id)
    if request.method == "POST":
        try:
            checkout.cancel(account=account, actor=pages.signed_in(request).email, now=now)
        except checkout.Unavailable:
            return unavailable(request, account, now)
        except checkout.Refusal as error:
            messages.error(request, str(error))
        else:
            messages.success(request, f"{current.name} is canceled. You keep it until the end of this period.")
        return redirect("billing", public_id)
    kept = default.gives if default else ()
    return pages.render(
        request,
        "billing/cancel.html",
        account=account,
        now=now,
        context={
            "plan": current,
            "default_plan": default,
            "subscription": subscription,
            "until": _until(subscription, now),
            "lost": [each for each in current.gives if each not in kept],
            "kept": kept,
        },
    )


@require_POST
@never_cache
@login_required
def resume(request: HttpRequest, public_id: str) -> HttpResponse:
    now = timezone.now()
    with pages.tenant(request, public_id, managing=True) as account:
        pass
    account.product = catalog.product_by_id(product_id=account.product_id)
    try:
        checkout.resume(account=account, actor=pages.signed_in(request).email, now=now)
    except checkout.Unavailable:
        return unavailable(request, account, now)
    except checkout.Refusal as error:
        messages.error(request, str(error))
    else:
        messages.success(request, "You keep your plan: it renews as before.")
    return redirect("billing", public_id)


@require_POST
@never_cache
@login_required
def portal(request: HttpRequest, public_id: str) -> HttpResponse:
    now = timezone.now()
    with pages.tenant(request, public_id, managing=True) as account:
        pass
    account.product = catalog.product_by_id(product_id=account.product_id)
    back = request.build_absolute_uri(reverse("billing", args=[public_id]))
    try:
        return redirect(checkout.portal(account=account, return_url=back, now=now))
    except checkout.Unavailable:
        return unavailable(request, account, now)
    except checkout.Refusal as error:
        messages.error(request, str(error))
        return redirect("billing", public_id)


def unavailable(request: HttpRequest, account: Account, now: datetime) -> HttpResponse:
    """503: Stripe does not answer."""
    page = request.resolver_match.url_name if request.resolver_match else ""
    again = reverse("billing", args=[account.public_id]) if page in ("resume", "portal") else request.path
    response = pages.render(request, "billing/unavailable.html", account=account, now=now, context={"again": again})
    response.status_code = 503
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response


def checkout_address(request: HttpRequest, account: Account) -> str:
    """Where Checkout sends back to: the page of the visit, whose id is not known yet."""
    address = reverse("checkout", args=[account.public_id, "co_" + "0" * 20])
    return request.build_absolute_uri(address).replace("co_" + "0" * 20, checkout.OUR_ID)


def _offer(subscription: Subscription | None, product: Product) -> offers.PlanOffer | None:
    if subscription is None:
        return None
    return offers.offer(terms=catalog.plan_version_by_id(plan_version_id=subscription.plan_version_id), product=product)


def _default(product: Product, now: datetime) -> offers.PlanOffer | None:
    """What an account is on once its plan has ended."""
    try:
        return offers.offer(terms=catalog.plan_version(product_id=product.pk, slug=product.default_plan, at=now), product=product)
    except catalog.NotInCatalog:
        return None


def _next_charge(subscription: Subscription | None, change: PlanChange | None) -> str:
    """What the next period costs, before tax and discounts; empty where nothing is charged by itself."""
    if subscription is None or not subscription.stripe_id or subscription.cancel_at_period_end:
        return ""
    version = change.to_version if change else catalog.plan_version_by_id(plan_version_id=subscription.plan_version_id).version
    cents = (version.price_cents or 0) * (subscription.seats if version.per_seat else 1)
    return words.money(cents, currency=version.currency) if cents else ""


def _until(subscription: Subscription | None, now: datetime) -> datetime | None:
    """The end of the period that contains ``now``, also where nobody has turned the page yet."""
    if subscription is None:
        return None
    stored = (subscription.current_period_start, subscription.current_period_end)
    if subscription.cancel_at_period_end:
        return stored[1]
    version = catalog.plan_version_by_id(plan_version_id=subscription.plan_version_id).version
    return subscriptions.running(period=stored, anchor_at=subscription.anchor_at, version=version, at=now)[1]
