"""Terms that are agreed with one customer: price, limits, credit and rate card, as a plan that nobody else can have.

    agree    writes the terms down and puts the account on them, or asks Stripe to
    go_on    goes on with agreements that Stripe has not been told of, or has not answered

Terms are a version of a private plan, made from a plan of the catalog (an *enterprise* plan without a price): so limits, included credit,
rate card and the check of what was paid work as for every plan, and no term is ever edited; other terms are another version. Through Stripe
a price is made there for that version, and the subscription has it: paid by the saved card, or by an invoice that is sent. Without
Stripe the account is on the plan at once and its included credit comes by the calendar, whether the customer pays or not: that is for
staff to see to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import stripe
import structlog
from django.db import transaction
from django.db.models import Q

from accounts.models import Account
from billing import checkout, ledger, stripe_api, stripe_customers, stripe_inbox, stripe_requests, stripe_subscriptions, subscriptions
from billing.models import Agreement, Schedule, StripePrice, StripeSubscription
from pricing import catalog
from pricing.models import Entitlement, Plan, PlanVersion

KIND: Final = "agreement"
BATCH: Final = 100
MAX_PRICE_CENTS: Final = 99_999_999
MAX_LIMIT: Final = 10**15
MAX_CREDIT_NANOS: Final = 10**17
MAX_DAYS_UNTIL_DUE: Final = 90

log = structlog.get_logger(__name__)


class InvalidTerms(ValueError):
    """Such terms cannot be agreed. ``field`` is what is wrong, the message says how."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Terms:
    """``base`` is the slug of the plan whose terms hold where nothing else is said. ``limits`` by meter and window; None is no limit."""

    base: str
    price_cents: int
    included_credit_nanos: int
    collection: str
    interval: str = PlanVersion.Interval.MONTH
    rate_card: str = ""
    cost_tier: str = ""
    days_until_due: int = 30
    limits: Mapping[tuple[str, str], int | None] = field(default_factory=dict)


def check(*, account: Account, terms: Terms, now: datetime) -> catalog.PlanTerms:
    """What the terms are made from. :raises InvalidTerms: a term is out of bounds, or the product has no such thing."""
    if account.kind == Account.Kind.GUEST or account.closed_at is not None:
        raise InvalidTerms("base", "Nothing is agreed with a guest or a closed account.")
    for name, value, most in (
        ("price", terms.price_cents, MAX_PRICE_CENTS),
        ("included_credit", terms.included_credit_nanos, MAX_CREDIT_NANOS),
        ("days_until_due", terms.days_until_due, MAX_DAYS_UNTIL_DUE),
    ):
        if not 0 <= value <= most:
            raise InvalidTerms(name, f"From 0 to {most:,}.")
    if terms.collection not in Agreement.Collection.values:
        raise InvalidTerms("collection", "There is no such way to pay.")
    if terms.interval not in PlanVersion.Interval.values:
        raise InvalidTerms("interval", "A month or a year.")
    try:
        base = catalog.plan_version(product_id=account.product_id, slug=terms.base, at=now)
        catalog.rate_card(product_id=account.product_id, slug=terms.rate_card or base.version.rate_card, at=now)
    except catalog.NotInCatalog as error:
        raise InvalidTerms("rate_card" if "rate card" in str(error) else "base", str(error)) from None
    if terms.cost_tier:
        try:
            catalog.cost_tier(product_id=account.product_id, slug=terms.cost_tier)
        except catalog.NotInCatalog as error:
            raise InvalidTerms("cost_tier", str(error)) from None
    known = {(limit.key, limit.window) for limit in base.limits}
    for (key, window), limit in terms.limits.items():
        if (key, window) not in known:
            raise InvalidTerms(
                "limits", f"The plan has no limit {key}/{window}. It has: {', '.join(sorted('/'.join(each) for each in known))}."
            )
        if limit is not None and not 0 <= limit <= MAX_LIMIT:
            raise InvalidTerms("limits", f"{key}/{window}: from 0 to {MAX_LIMIT:,}, or no limit.")
    paid_at_stripe = StripeSubscription.objects.filter(account=account).exclude(status__in=stripe_subscriptions.ENDED).exists()
    if terms.collection == Agreement.Collection.NONE and paid_at_stripe:
        raise InvalidTerms("collection", "The account pays for a subscription at Stripe. End that first, or have the agreement paid there.")
    if terms.collection != Agreement.Collection.NONE and terms.price_cents == 0:
        raise InvalidTerms("price", "Stripe collects nothing for nothing: agree a price, or no collection.")
    return base


def agree(*, account: Account, terms: Terms, key: str, actor: str, reason: str, now: datetime) -> Agreement:
    """Writes the terms down, once for each ``key``, and without Stripe puts the account on them. Opens its own transaction; through Stripe
    :func:`go_on` does the rest.

    :raises InvalidTerms:
    """
    with transaction.atomic():
        account = Account.objects.select_for_update(of=("self",)).select_related("product").get(pk=account.pk)
        if known := Agreement.objects.filter(key=key).first():
            return known
        base = check(account=account, terms=terms, now=now)
        version = _version(account, base, terms, now)
        through_stripe = terms.collection != Agreement.Collection.NONE
        agreement = Agreement.objects.create(
            account=account,
            plan_version=version,
            collection=terms.collection,
            days_until_due=terms.days_until_due,
            key=key,
            actor=actor,
            reason=reason,
            created_at=now,
            next_attempt_at=now if through_stripe else None,
        )
        if not through_stripe:
            _start(account, version, agreement, now)
    return agreement


def go_on(*, now: datetime) -> int:
    """Tells Stripe of agreements that it has not heard of; returns how many it took. Calls the network."""
    due = (
        Agreement.objects.filter(next_attempt_at__lte=now)
        .select_related("account__product", "plan_version__plan")
        .order_by("next_attempt_at")
    )
    taken = list(due[:BATCH])
    for agreement in taken:
        try:
            _subscribe(agreement, now)
        except stripe_requests.Refused as error:
            _stop(agreement, str(error))
        except (checkout.Refusal, stripe_requests.Unanswered, stripe.StripeError) as error:
            Agreement.objects.filter(pk=agreement.pk).update(last_error=str(error)[:500], next_attempt_at=now + stripe_requests.LEASE)
        else:
            Agreement.objects.filter(pk=agreement.pk).update(last_error="", next_attempt_at=None)
    return len(taken)


def _version(account: Account, base: catalog.PlanTerms, terms: Terms, now: datetime) -> PlanVersion:
    """The next version of the account's own plan."""
    sold = base.version
    slug = f"{terms.base[:40]}-{account.public_id.removeprefix('acct_')}"
    plan, _ = Plan.objects.get_or_create(
        product_id=account.product_id,
        slug=slug,
        defaults={"name": sold.plan.name, "rank": sold.plan.rank, "public": False, "available": False},
    )
    latest = plan.versions.order_by("-version").first()
    tier = catalog.cost_tier(product_id=account.product_id, slug=terms.cost_tier) if terms.cost_tier else base.cost_tier
    version = PlanVersion.objects.create(
        plan=plan,
        version=latest.version + 1 if latest else 1,
        valid_from=now,
        price_cents=terms.price_cents,
        currency=sold.currency,
        interval=terms.interval,
        included_credit_nanos=terms.included_credit_nanos,
        rollover_cap_nanos=sold.rollover_cap_nanos,
        rollover_periods=sold.rollover_periods,
        rate_card=terms.rate_card or sold.rate_card,
        alternative_rate_cards=sold.alternative_rate_cards,
        cost_tier=tier,
        charge_automatically=terms.collection == Agreement.Collection.CARD,
        notes=f"Agreed with {account.public_id}.",
    )
    for entitlement in Entitlement.objects.filter(plan_version=sold):
        agreed = terms.limits.get((entitlement.key, entitlement.window), entitlement.limit)
        if (entitlement.key, entitlement.window) in terms.limits:
            entitlement.setting = ""  # what was agreed is not replaced by the environment
        entitlement.pk, entitlement.plan_version, entitlement.limit = None, version, agreed
        entitlement.save(force_insert=True)
    return version


def _start(account: Account, version: PlanVersion, agreement: Agreement, now: datetime) -> None:
    """Without Stripe: the plan now, and its included credit by the calendar from now on."""
    unit_id = account.product.unit_id
    subscriptions.end(account=account, now=now)
    running = Schedule.objects.filter(Q(ends_at=None) | Q(ends_at__gt=now), account=account, unit_id=unit_id).first()
    if running is not None:
        ledger.end_schedule(
            account_id=account.pk, unit_id=unit_id, ends_at=now, key=f"{agreement.key}:{running.source_key}", actor=agreement.actor,
            reason=f"Agreed: {version}",
        )  # fmt: skip
    started = subscriptions.start(account=account, plan=version.plan.slug, now=now)
    if version.price_cents and version.included_credit_nanos:
        subscriptions.schedule_included_credit(subscription=started)


def _subscribe(agreement: Agreement, now: datetime) -> None:
    """The price of the agreed version at Stripe, and the account's subscription at that price."""
    account = agreement.account
    price = _price(agreement, now)
    checkout.expire_open(account=account, now=now)  # what was paid there is known then, and nothing more is subscribed to there
    live = StripeSubscription.objects.filter(account=account).exclude(status__in=stripe_subscriptions.ENDED).order_by("-started_at").first()
    collected: dict[str, Any] = {"collection_method": "charge_automatically"}
    if agreement.collection == Agreement.Collection.INVOICE:
        collected = {"collection_method": "send_invoice", "days_until_due": agreement.days_until_due}
    if live is None:
        customer = stripe_customers.of(account=account, now=now)
        params = {"customer": customer.pk, "items": [{"price": price, "quantity": 1}], "off_session": True} | collected
        request = stripe_requests.ask(
            key=f"{agreement.key}:subscription",
            kind=f"{KIND}_subscription",
            path="/v1/subscriptions",
            params=params,
            account=account,
            now=now,
        )
        subscription_id = stripe_requests.send(request, now=now)["id"]
    else:
        subscription_id = live.pk
        address = f"/v1/subscriptions/{live.pk}"
        item = {"id": stripe_api.subscription(live.pk).item_id, "price": price, "quantity": 1}
        request = stripe_requests.ask(
            key=f"{agreement.key}:change", kind=f"{KIND}_change", path=address, changes=address,
            params={"items": [item], "proration_behavior": "create_prorations", "cancel_at_period_end": False} | collected, account=account,
            now=now,
        )  # fmt: skip
        stripe_requests.send(request, now=now)
    stripe_inbox.look_at(subscription=subscription_id, now=now)
    log.info("agreed terms are at stripe", account=account.public_id, plan=str(agreement.plan_version), subscription=subscription_id)


def _price(agreement: Agreement, now: datetime) -> str:
    version = agreement.plan_version
    known = StripePrice.objects.filter(plan_version=version).first()
    if known is not None:
        return known.pk
    params = {
        "currency": version.currency,
        "unit_amount": version.price_cents,
        "recurring": {"interval": version.interval},
        "product_data": {"name": f"{agreement.account.product.name} {version.plan.name}"},
    }
    key = f"{agreement.key}:price"
    request = stripe_requests.ask(key=key, kind=f"{KIND}_price", path="/v1/prices", params=params, account=agreement.account, now=now)
    made = stripe_requests.send(request, now=now)
    StripePrice.objects.get_or_create(pk=made["id"], defaults={"plan_version": version})
    return str(made["id"])


def _stop(agreement: Agreement, why: str) -> None:
    Agreement.objects.filter(pk=agreement.pk).update(last_error=why[:500], next_attempt_at=None)
    log.error("agreed terms refused by stripe", account=agreement.account.public_id, why=why)
