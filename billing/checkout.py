"""Selling: the only module that sends a customer to Stripe to pay, or changes what they pay for.

    buy             a visit to Checkout for a credit pack
    subscribe       the same for a plan, with its trial where the customer never had one
    expire_open     ends the open visits of an account, before something else charges it
    portal          the address of Stripe's customer portal: cards, address, invoices
    preview_change  what a change of plan would cost, and when it would count
    change_plan     changes it: up at once and prorated, down at the end of the period, to the default plan by cancelling
    cancel          ends the subscription at the end of the period
    resume          takes that back
    leave_closed    cancels for accounts that are closed

Nothing is granted from here. What was paid comes back as an event (:mod:`billing.stripe_inbox`); the rows here say what was asked for.

Every verb calls the network, so none is called inside a transaction, and takes no longer than ``DEADLINE_SECONDS``. All raise a subclass of
:class:`Refusal`, each with a stable ``code``; ``Unavailable`` means that Stripe did not answer, and what was asked for may still come about
by itself (:mod:`billing.stripe_requests`). Amounts are in the smallest unit of their currency.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import stripe
import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q

from accounts.models import Account, Membership
from billing import (
    ledger,
    redirects,
    stripe_api,
    stripe_customers,
    stripe_inbox,
    stripe_prices,
    stripe_requests,
    stripe_subscriptions,
    tiers,
)
from billing import subscriptions as plans
from billing.models import Checkout, PlanChange, StripeCustomer, StripeRequest, StripeSubscription, Subscription
from pricing import catalog
from pricing.models import Plan, PlanVersion

DEADLINE_SECONDS: Final = 8.0
MOST_PACKS: Final = 100
#: So many subscriptions of closed accounts are ended at one look.
MOST_LEFT: Final = 100
#: In an address that the customer comes back to, our public id of the visit.
OUR_ID: Final = "{CHECKOUT_ID}"
#: A subscription in any other status has nothing to change: its open invoice is to be paid first, or it is over.
CHANGEABLE: Final = ("active", "trialing")

log = structlog.get_logger(__name__)


class Refusal(Exception):
    """It cannot be done. The message is for the customer."""

    code = "refused"


class NoCustomer(Refusal):
    """A guest, or a closed account, buys nothing."""


class NotOffered(Refusal):
    """The product has no such plan or pack on sale."""

    code = "not_offered"


class PriceUnavailable(Refusal):
    """It is in the catalog, and Stripe does not sell it at that price."""

    code = "price_unavailable"


class AlreadySubscribed(Refusal):
    """One subscription an account: change the plan of the one there is."""

    code = "already_subscribed"


class NotSubscribed(Refusal):
    """There is no subscription to change."""

    code = "not_subscribed"


class NotPossible(Refusal):
    """This change is not possible now. The message says what is."""

    code = "change_not_possible"


class Declined(Refusal):
    """The bank refused the payment; nothing has changed."""

    code = "card_declined"


class KeyReused(Refusal):
    """The Idempotency-Key was used for another purchase."""

    code = "idempotency_key_reused"


class Unavailable(Refusal):
    """Stripe does not answer."""

    code = "dependency_unavailable"


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of plan does. ``due_now_cents`` is charged at once, ``price_cents`` each period from ``effective_at``.

    ``upgrade``: at once. ``downgrade``: at the end of the period, which keeps its plan. ``cancel``: to the default plan at the end of the
    period. ``keep``: the present plan goes on, a downgrade or cancellation to come is undone. ``none``: there is nothing to do.
    """

    kind: Literal["upgrade", "downgrade", "cancel", "keep", "none"]
    plan: PlanVersion
    effective_at: datetime
    due_now_cents: int
    price_cents: int
    currency: str


# Checkout ---------------------------------------------------------------------------------------------------------------------


def buy(
    *, account: Account, pack: str, quantity: int = 1, success_url: str, cancel_url: str, actor: str, now: datetime, key: str | None = None
) -> Checkout:
    """A visit to Checkout for ``quantity`` packs. ``{CHECKOUT_ID}`` in the addresses is replaced by the visit's public id.

    One visit to buy the same thing is open at a time: asked for again it is handed out again, and with other terms the first one ends. With
    ``key`` the same purchase, whatever became of it, is the answer for ever.

    :raises redirects.NotAllowed: an address leads elsewhere.
    """
    if not 1 <= quantity <= MOST_PACKS:
        raise NotPossible(f"Buy from 1 to {MOST_PACKS} packs at a time.")
    command = {"pack": pack, "quantity": quantity, "success_url": success_url, "cancel_url": cancel_url}
    with _asking():
        if known := _of_key(account, key, command):
            return _deliver(known, now)
        _check(account, success_url=success_url, cancel_url=cancel_url)
        try:
            sold = catalog.pack(product_id=account.product_id, slug=pack, at=now)
        except catalog.NotInCatalog as error:
            raise NotOffered(f"There is no pack “{pack[:64]}” on sale.") from error
        price = _price(sold.stripe_price_setting, sold.price_cents, sold.currency, None, sold.name)
        order = Checkout(
            account=account,
            pack=sold,
            thing=f"pack:{sold.slug}",
            name=sold.name if quantity == 1 else f"{quantity} × {sold.name}",
            quantity=quantity,
            amount_cents=sold.price_cents * quantity,
            currency=sold.currency,
            actor=actor,
        )
        line: dict[str, Any] = {"price": price.id}
        if price.amount is None:
            line = {"price_data": {"currency": sold.currency, "product": price.product_id, "unit_amount": sold.price_cents}}
        more = {"mode": "payment", "line_items": [line | {"quantity": quantity}], "invoice_creation": {"enabled": True}}
        return _open(order, more, success_url, cancel_url, now, key, command)


def subscribe(
    *, account: Account, plan: str, success_url: str, cancel_url: str, actor: str, now: datetime, key: str | None = None
) -> Checkout:
    """A visit to Checkout for a plan; see :func:`buy`. A plan with a price per member is subscribed for the members that there are.

    :raises redirects.NotAllowed: an address leads elsewhere.
    :raises AlreadySubscribed: there is a subscription, or one whose first payment is under way.
    """
    command = {"plan": plan, "success_url": success_url, "cancel_url": cancel_url}
    with _asking():
        if known := _of_key(account, key, command):
            return _deliver(known, now)
        _check(account, success_url=success_url, cancel_url=cancel_url)
        version = _plan(account, plan, now)
        _not_subscribed(account, now)
        assert version.price_cents is not None
        price = _price(version.stripe_price_setting, version.price_cents, version.currency, version.interval, version.plan.name)
        quantity = _seats(account, version)
        trial_days = 0 if had_trial(account=account) else version.trial_days
        order = Checkout(
            account=account,
            plan_version=version,
            thing="plan",
            name=version.plan.name,
            quantity=quantity,
            amount_cents=version.price_cents * quantity,
            currency=version.currency,
            trial_days=trial_days,
            actor=actor,
        )
        data: dict[str, Any] = {"metadata": {"account": account.public_id, "checkout": order.public_id}}
        if trial_days:
            data["trial_period_days"] = trial_days
        more = {"mode": "subscription", "line_items": [{"price": price.id, "quantity": quantity}], "subscription_data": data}
        return _open(order, more, success_url, cancel_url, now, key, command)


def expire_open(*, account: Account, now: datetime) -> list[Checkout]:
    """Ends the account's open visits, so that nothing is paid beside what is about to be charged.

    :return: those that could not be ended: the customer has paid, or is paying by a bank that takes its time.
    """
    with _asking():
        found = list(Checkout.objects.filter(account=account, state=Checkout.State.OPEN).order_by("pk"))
        return [checkout for checkout in found if not _expire(checkout, now)]


def had_trial(*, account: Account) -> bool:
    """Whether the customer has had a trial of the product: they have one, of one plan, once, whichever account of theirs has it."""
    owners = Membership.objects.filter(account=account, role=Membership.Role.OWNER).values("user_id")
    owned = Membership.objects.filter(user_id__in=owners, role=Membership.Role.OWNER, account__product_id=account.product_id)
    theirs = Q(account=account) | Q(account_id__in=owned.values("account_id"))
    tried = Checkout.objects.filter(theirs, trial_days__gt=0, state=Checkout.State.PAID)
    subscribed = (StripeSubscription.objects.filter(theirs), Subscription.objects.filter(theirs))
    return tried.exists() or any(rows.filter(trial_ends_at__isnull=False).exists() for rows in subscribed)


def plan_for(*, account: Account, now: datetime) -> str:
    """The one plan that the product's customers subscribe to; which face of it the account gets, :mod:`billing.tiers` says.

    :raises NotPossible: there are several, or none.
    """
    offered = Plan.objects.filter(product=account.product, public=True, available=True)
    faces = offered.exclude(member_plan="").values("member_plan")
    paid = offered.filter(versions__price_cents__gt=0, versions__valid_from__lte=now).exclude(slug__in=faces)
    slugs = sorted(set(paid.values_list("slug", flat=True)))
    if len(slugs) != 1:
        raise NotPossible(f"Name the plan: {', '.join(slugs) or 'there is none to subscribe to'}.")
    return str(slugs[0])


def _check(account: Account, **addresses: str) -> None:
    """:raises NoCustomer: :raises redirects.NotAllowed:"""
    if account.kind == Account.Kind.GUEST:
        raise NoCustomer("A guest buys nothing: sign up first.")
    if Account.objects.filter(pk=account.pk, closed_at=None).first() is None:
        raise NoCustomer("The account is closed.")
    for field, url in addresses.items():
        _address(account, url, field)


def _address(account: Account, url: str, field: str) -> str:
    return redirects.check(url, origins=own_origins() | set(account.product.allowed_origins), field=field)


def _plan(account: Account, slug: str, now: datetime) -> PlanVersion:
    """The version on sale. :raises NotOffered: :raises PriceUnavailable: it has no price, or one that is agreed."""
    try:
        version = tiers.offered(account=account, plan=slug, now=now).version
    except catalog.NotInCatalog as error:
        raise NotOffered(f"There is no plan “{slug[:64]}”.") from error
    if not (version.plan.public and version.plan.available):
        raise NotOffered(f"The plan “{slug}” is not offered any more.")
    if version.price_cents is None:
        raise PriceUnavailable(f"The price of {version.plan.name} is agreed per customer: write to us.")
    if version.price_cents == 0:
        raise PriceUnavailable(f"{version.plan.name} costs nothing: there is nothing to pay.")
    return version


def _price(setting: str, amount: int, currency: str, interval: str | None, name: str) -> stripe_api.Price:
    """The price at Stripe, if it is what the catalog says. :raises PriceUnavailable:"""
    price_id = stripe_prices.on_sale(setting)
    wrong = "" if price_id else f"{setting or 'no environment variable'} names no price"
    price = None
    if price_id:
        try:
            price = stripe_api.price(price_id)
        except stripe.InvalidRequestError as error:
            if error.code != "resource_missing":
                raise
            wrong = f"Stripe has no price {price_id}"
    if price is not None:
        chosen = price.amount is None and interval is None and (price.least or 0) <= amount <= (price.most or amount)
        if not price.is_sold:
            wrong = f"{price.id} is archived"
        elif (price.currency, price.interval) != (currency, interval) or not (chosen or price.amount == amount):
            wrong = f"{price.id} is {price.amount} {price.currency} a {price.interval}, the catalog says {amount} {currency} a {interval}"
    if price is None or wrong:
        log.error("price unavailable", what=name, why=wrong)
        raise PriceUnavailable(f"{name} cannot be bought at the moment. We have been told.")
    return price


def _seats(account: Account, version: PlanVersion) -> int:
    return max(1, account.memberships.count()) if version.per_seat else 1


def _not_subscribed(account: Account, now: datetime) -> None:
    """:raises AlreadySubscribed:"""
    for paying in Checkout.objects.filter(account=account, thing="plan", state=Checkout.State.OPEN, completed=True):
        stripe_inbox.look_at(session=str(paying.session_id), now=now)
        paying.refresh_from_db()
        if paying.state == Checkout.State.OPEN:
            raise AlreadySubscribed(f"The first payment for {paying.name} is under way. Wait for the bank, or write to us.")
    if _live(account) is not None:
        raise AlreadySubscribed("The account has a subscription already: change its plan instead.")


def _live(account: Account) -> StripeSubscription | None:
    found = StripeSubscription.objects.filter(account=account).exclude(status__in=stripe_subscriptions.ENDED)
    return found.select_related("plan_version__plan").order_by("-started_at", "-pk").first()


def _of_key(account: Account, key: str | None, command: Mapping[str, Any]) -> Checkout | None:
    """The purchase that was made under the key. :raises KeyReused: it was another one."""
    known = Checkout.objects.filter(account=account, key=key).first() if key else None
    if known is not None and known.fingerprint != ledger.fingerprint(command):
        raise KeyReused("This Idempotency-Key was used for another purchase.")
    return known


def _open(
    order: Checkout,
    more: Mapping[str, Any],
    success_url: str,
    cancel_url: str,
    now: datetime,
    key: str | None,
    command: Mapping[str, Any],
) -> Checkout:
    """The open visit for this order, or a new one; one on other terms is ended first."""
    account = order.account
    order.created_at, order.key, order.fingerprint = now, key, ledger.fingerprint(command) if key else None
    order.success_url = _address(account, success_url.replace(OUR_ID, order.public_id), "success_url")
    order.cancel_url = _address(account, cancel_url.replace(OUR_ID, order.public_id), "cancel_url")
    customer = stripe_customers.of(account=account, now=now)
    params = dict(more) | {
        "customer": customer.pk,
        "client_reference_id": order.public_id,
        "success_url": order.success_url,
        "cancel_url": order.cancel_url,
        "billing_address_collection": "required",
        "customer_update": {"address": "auto", "name": "auto"},
        "tax_id_collection": {"enabled": True},
    }
    for _ in range(3):
        with transaction.atomic():
            Account.objects.select_for_update(no_key=True).get(pk=account.pk)
            same_key = _of_key(account, key, command)
            found = same_key or Checkout.objects.filter(account=account, thing=order.thing, state="open", completed=False).first()
            if found is None:
                order.save()
                stripe_requests.ask(
                    key=_request_key(order), kind="checkout", path="/v1/checkout/sessions", params=params, account=account, now=now
                )
        if found is None or same_key is not None:
            return _deliver(found or order, now)
        if _terms(found) == _terms(order):
            found = _deliver(found, now)
            if found.state == Checkout.State.OPEN and not found.completed:
                return found
        else:
            _expire(found, now)
        if order.thing == "plan":
            _not_subscribed(account, now)
    raise Unavailable("Another purchase is under way. Try again in a moment.")


def _terms(checkout: Checkout) -> tuple[object, ...]:
    addresses = [url.replace(checkout.public_id, OUR_ID) for url in (checkout.success_url, checkout.cancel_url)]
    return (checkout.pack_id, checkout.plan_version_id, checkout.quantity, checkout.trial_days, *addresses)


def _request_key(checkout: Checkout) -> str:
    return f"checkout:{checkout.public_id}"


def _deliver(checkout: Checkout, now: datetime) -> Checkout:
    """The visit as Stripe says it is; opened there, if that has not been heard of yet."""
    if checkout.state == Checkout.State.OPEN:
        if checkout.session_id:
            stripe_inbox.look_at(session=checkout.session_id, now=now)
        else:
            try:
                stripe_requests.send(StripeRequest.objects.get(key=_request_key(checkout)), now=now)
            except stripe_requests.Refused as error:
                Checkout.objects.filter(pk=checkout.pk, session_id=None).update(state=Checkout.State.FAILED)
                log.error("checkout refused", checkout=checkout.public_id, why=str(error))
                raise PriceUnavailable(f"{checkout.name} cannot be bought at the moment. We have been told.") from error
        checkout.refresh_from_db()
    return checkout


@stripe_requests.answered("checkout")
def _opened(request: StripeRequest, answer: stripe_api.Obj) -> None:
    """The address of the page. How the visit ends is news of Stripe's, and may have come before."""
    truth = stripe_api.as_session(answer)
    checkout = Checkout.objects.select_for_update().get(public_id=request.key.removeprefix("checkout:"))
    checkout.session_id, checkout.url, checkout.expires_at = truth.id, truth.url, truth.expires_at
    if truth.status == "expired":
        checkout.state = Checkout.State.EXPIRED
    checkout.save(update_fields=["session_id", "url", "expires_at", "state"])


def _expire(checkout: Checkout, now: datetime) -> bool:
    """Ends an open visit; False where the customer has finished it."""
    checkout = _deliver(checkout, now)
    if checkout.state == Checkout.State.OPEN and not checkout.completed:
        address = f"/v1/checkout/sessions/{checkout.session_id}"
        request = stripe_requests.ask(
            key=f"expire:{checkout.public_id}", kind="expire", path=f"{address}/expire", changes=address, params={},
            account=checkout.account, now=now,
        )  # fmt: skip
        try:
            stripe_requests.send(request, now=now)
        except stripe_requests.Refused as error:  # it was finished, or over, a moment before
            log.info("checkout not open any more", checkout=checkout.public_id, why=str(error))
        stripe_inbox.look_at(session=str(checkout.session_id), now=now)
        checkout.refresh_from_db()
    return checkout.state in (Checkout.State.EXPIRED, Checkout.State.FAILED)


# The portal, and changes of the subscription ----------------------------------------------------------------------------------


def portal(*, account: Account, return_url: str, now: datetime) -> str:
    """The address of Stripe's page where the customer changes card and address, and sees invoices. It leads back to ``return_url``.

    :raises redirects.NotAllowed: that leads elsewhere.
    """
    with _asking():
        _check(account, return_url=return_url)
        return_url = _address(account, return_url, "return_url")
        return stripe_api.portal(customer_id=stripe_customers.of(account=account, now=now).pk, return_url=return_url)


def coming_change(*, account: Account) -> PlanChange | None:
    """The move to a lower plan that the account's subscription is waiting for."""
    live = _live(account)
    return stripe_subscriptions.coming(live) if live else None


def preview_change(*, account: Account, plan: str, now: datetime) -> Change:
    """What :func:`change_plan` would do now, to the cent."""
    with _asking():
        _check(account)
        return _decide(account, plan, now).change


def change_plan(*, account: Account, plan: str, actor: str, now: datetime) -> Change:
    """Puts the subscription on another plan. An upgrade is charged and counts at once; a lower plan is charged and counts from the next
    period on, the paid one is kept until then; the default plan means :func:`cancel`. A later upgrade or cancellation undoes a downgrade.

    :raises Declined: the bank refused the upgrade; nothing has changed.
    """
    with _asking():
        _check(account)
        way = _decide(account, plan, now)
        if way.change.kind == "cancel":
            _cancel(way.live, way.truth, now)
        elif way.change.kind == "keep":
            coming = stripe_subscriptions.coming(way.live)
            _update(way.live, _restored(way.truth, coming) | {"cancel_at_period_end": False}, now)
        elif way.change.kind == "upgrade":
            _upgrade(way, _plan_change(way, way.truth.period[0], actor, now), now)
        elif way.change.kind == "downgrade":
            change = _plan_change(way, way.truth.period[1], actor, now)
            _update(way.live, {"items": [way.item], "proration_behavior": "none", "cancel_at_period_end": False}, now, before=change.save)
        return way.change


def _plan_change(way: _Way, keeps_until: datetime, actor: str, now: datetime) -> PlanChange:
    """The row that says which version a change sells; not saved yet."""
    waiting = stripe_subscriptions.waiting(way.live)
    return PlanChange(
        account=way.live.account, subscription_id=way.live.pk, from_version=way.held,
        from_price_id=waiting.from_price_id if waiting else way.live.price_id, to_version=way.change.plan, to_price_id=way.item["price"],
        keeps_until=keeps_until, actor=actor, created_at=now,
    )  # fmt: skip


def _upgrade(way: _Way, change: PlanChange, now: datetime) -> None:
    """What is prorated is what was paid for, not what was to come: that is put back first, and what was to come where this is refused."""
    waiting = stripe_subscriptions.waiting(way.live)
    if waiting is not None:
        _update(way.live, _restored(way.truth, waiting), now)
    terms = {"proration_behavior": "always_invoice", "payment_behavior": "error_if_incomplete", "cancel_at_period_end": False}
    try:
        _update(way.live, {"items": [way.item]} | terms, now, before=change.save)
    except stripe_requests.Refused:
        if waiting is not None:
            _update(way.live, {"items": [{"id": way.truth.item_id, "price": waiting.to_price_id}], "proration_behavior": "none"}, now)
        raise


def cancel(*, account: Account, actor: str, now: datetime) -> Subscription | None:
    """Ends the subscription at the end of the period that is paid for; a downgrade to come is undone. Returns what counts now."""
    with _asking():
        live = _subscribed(account)
        stripe_inbox.look_at(subscription=live.pk, now=now)
        log.info("subscription canceled", account=account.public_id, subscription=live.pk, actor=actor)
        _cancel(live, stripe_api.subscription(live.pk), now)
        return plans.current(account_id=account.pk)


def resume(*, account: Account, actor: str, now: datetime) -> Subscription | None:
    """Takes a cancellation back that has not come about yet. Returns what counts now."""
    with _asking():
        live = _subscribed(account)
        log.info("subscription resumed", account=account.public_id, subscription=live.pk, actor=actor)
        if stripe_api.subscription(live.pk).cancel_at_period_end:
            _update(live, {"cancel_at_period_end": False}, now)
        else:
            stripe_inbox.look_at(subscription=live.pk, now=now)
        return plans.current(account_id=account.pk)


def leave_closed(*, now: datetime) -> int:
    """Ends what closed accounts would go on paying for, at the end of the periods that they paid for; returns how many subscriptions.
    What Stripe does not answer is sent again by the outbox, or found at the next look."""
    left = StripeSubscription.objects.filter(account__closed_at__isnull=False, cancel_at_period_end=False)
    left = left.exclude(status__in=stripe_subscriptions.ENDED).select_related("account__product", "plan_version__plan")
    ended = 0
    for live in left.order_by("pk")[:MOST_LEFT]:
        try:
            with _asking():
                _cancel(live, stripe_api.subscription(live.pk), now)
                stripe_inbox.look_at(subscription=live.pk, now=now)
            ended += 1
        except Refusal as error:
            log.error("a closed account's subscription goes on", account=live.account.public_id, subscription=live.pk, why=str(error))
    return ended


@dataclass(frozen=True, slots=True)
class _Way:
    """How a change is to be made. ``held``: the version that counts until then."""

    change: Change
    live: StripeSubscription
    truth: stripe_api.Subscription
    held: PlanVersion
    item: dict[str, Any]


def _subscribed(account: Account) -> StripeSubscription:
    """:raises NotSubscribed:"""
    live = _live(account)
    if live is None:
        raise NotSubscribed("There is no subscription to change.")
    return live


def _decide(account: Account, plan: str, now: datetime) -> _Way:
    """:raises NotSubscribed: :raises NotOffered: :raises PriceUnavailable: :raises NotPossible:"""
    live = _subscribed(account)
    stripe_inbox.look_at(subscription=live.pk, now=now)
    live, truth = _subscribed(account), stripe_api.subscription(live.pk)
    held = stripe_subscriptions.counts(live)
    if held is None:
        raise NotPossible("The subscription is at a price that no plan has. Write to us.")
    coming = stripe_subscriptions.coming(live)
    end = truth.period[1]
    if plan == account.product.default_plan:
        default = catalog.plan_version(product_id=account.product_id, slug=plan, at=now).version
        kind: Literal["cancel", "none"] = "none" if truth.cancel_at_period_end else "cancel"
        return _Way(Change(kind, default, end, 0, default.price_cents or 0, default.currency), live, truth, held, {})
    if truth.status not in CHANGEABLE:
        raise NotPossible("The last invoice is not paid. Pay it first, in the billing portal.")
    if tiers.face(account=account, plan=plan) == held.plan.slug:
        same = coming is None and not truth.cancel_at_period_end
        change = Change("none" if same else "keep", held, now, 0, (held.price_cents or 0) * live.quantity, held.currency)
        return _Way(change, live, truth, held, {})
    version = _plan(account, plan, now)
    assert version.price_cents is not None
    cents = version.price_cents * _seats(account, version)
    if coming is not None and coming.to_version.plan_id == version.plan_id and not truth.cancel_at_period_end:
        return _Way(Change("none", version, end, 0, cents, version.currency), live, truth, held, {})
    price = _price(version.stripe_price_setting, version.price_cents, version.currency, version.interval, version.plan.name)
    item = {"id": truth.item_id, "price": price.id, "quantity": _seats(account, version)}
    if (version.plan.rank, version.price_cents) > (held.plan.rank, held.price_cents or 0):
        due = _due(live, truth, item) if truth.status == "active" else 0
        return _Way(Change("upgrade", version, now, due, cents, version.currency), live, truth, held, item)
    if version.interval != held.interval:
        raise NotPossible(
            f"{version.plan.name} is paid by the {version.interval}: cancel, and subscribe to it when the {held.interval} is over."
        )
    return _Way(Change("downgrade", version, end, 0, cents, version.currency), live, truth, held, item)


def _due(live: StripeSubscription, truth: stripe_api.Subscription, item: Mapping[str, Any]) -> int:
    """What an upgrade would be charged at once: from the price that was paid for, also while another one waits."""
    due = stripe_api.preview(subscription_id=live.pk, item=item, proration="always_invoice").due
    if waiting := stripe_subscriptions.waiting(live):
        paid_for = {"id": truth.item_id, "price": waiting.from_price_id}
        due -= stripe_api.preview(subscription_id=live.pk, item=paid_for, proration="always_invoice").total
    return max(0, due)


def _restored(truth: stripe_api.Subscription, waiting: PlanChange | None) -> dict[str, Any]:
    """The terms that undo what is ``waiting``; none where nothing is."""
    if waiting is None:
        return {}
    return {"items": [{"id": truth.item_id, "price": waiting.from_price_id}], "proration_behavior": "none"}


def _cancel(live: StripeSubscription, truth: stripe_api.Subscription, now: datetime) -> None:
    if not truth.cancel_at_period_end:
        _update(live, _restored(truth, stripe_subscriptions.coming(live)) | {"cancel_at_period_end": True}, now)


def _update(live: StripeSubscription, params: Mapping[str, Any], now: datetime, *, before: Callable[[], None] | None = None) -> None:
    """Changes the subscription at Stripe, and our rows with it. ``before`` writes what must stand before the call."""
    address = f"/v1/subscriptions/{live.pk}"
    with transaction.atomic():
        if before is not None:
            before()
        request = stripe_requests.ask(
            key=f"plan:{live.pk}:{secrets.token_hex(8)}", kind="plan", path=address, changes=address, params=params, account=live.account,
            now=now,
        )  # fmt: skip
    stripe_requests.send(request, now=now)
    try:
        stripe_inbox.look_at(subscription=live.pk, now=now)
    except stripe.StripeError as error:  # it has changed, and its event is on its way
        log.warning("subscription not read after its change", subscription=live.pk, why=str(error))
    live.refresh_from_db()


@stripe_requests.answered("plan")
def _heard(request: StripeRequest, answer: stripe_api.Obj) -> None:
    """A downgrade that Stripe heard of late, in a period that was paid for meanwhile, keeps its plan until the end of that one."""
    if "items" not in request.params or request.params["proration_behavior"] != "none":
        return
    ends_at = max(datetime.fromtimestamp(item["current_period_end"], tz=UTC) for item in answer["items"]["data"])
    price_id = request.params["items"][0]["price"]
    late = PlanChange.objects.filter(subscription_id=answer["id"], created_at=request.created_at, to_price_id=price_id)
    change = late.filter(keeps_until__lt=ends_at).first()
    if change is None:
        return
    customers = StripeCustomer.objects.select_for_update(of=("self",)).select_related("account__product")
    customer = customers.get(account_id=change.account_id)
    change.keeps_until = ends_at
    change.save(update_fields=["keeps_until"])
    stripe_subscriptions.align(customer=customer, now=request.finished_at or request.created_at)


# What is shared ---------------------------------------------------------------------------------------------------------------


def own_origins() -> set[str]:
    """Where our own pages are: the public address, and the hosts that are not patterns."""
    hosts = [host for host in settings.ALLOWED_HOSTS if "*" not in host and not host.startswith(".")]
    ways = ("https://{}",) if settings.SECURE_SSL_REDIRECT else ("https://{}", "http://{}" + redirects.ANY_PORT)
    return {settings.PUBLIC_URL} | {way.format(host) for host in hosts for way in ways}


@contextmanager
def _asking() -> Iterator[None]:
    """Turns what Stripe says into refusals, within the deadline."""
    try:
        with stripe_api.within(DEADLINE_SECONDS):
            yield
    except stripe_requests.Declined as error:
        raise Declined(str(error).partition(": ")[2] or "The card was declined.") from error
    except stripe_requests.Refused as error:
        log.error("stripe refused", why=str(error))
        raise Unavailable("The payment provider refused. We have been told; try again later.") from error
    except (stripe_requests.Unanswered, stripe.StripeError) as error:
        log.warning("stripe unavailable", why=str(error))
        raise Unavailable("The payment provider does not answer. Try again in a moment.") from error
