"""Which plan an account is on.

    start     puts an account on a plan, or lets it try one
    end       takes it off its plan
    announce  tells client apps what the account has now
    current   the subscription that counts now
    payer     the open account that a request names, its plan read along
    payers    the accounts, open or closed, whose work is reported; payer_of for one
    allowed   what its plan allows, and the rate card that prices its usage; allowed_many for several accounts at once
    forget    forgets what this process keeps of one account's plan, because it changed
    clear     forgets what this process keeps of them

A plan version is kept for the whole subscription: a later version is for later subscribers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar

from django.db import connection, transaction
from prometheus_client import Counter

from accounts import prepared, webhooks
from accounts.models import Account
from billing import ledger, periods
from billing.models import Subscription
from pricing import catalog
from pricing.models import Entitlement, PlanVersion, Product

#: In any other status the plan's allowances do not count.
ENTITLED = (Subscription.Status.ACTIVE, Subscription.Status.TRIALING, Subscription.Status.PAST_DUE)
MAX_AGE_SECONDS = 1.0
MAX_KEPT = 10_000
MONTHS = {PlanVersion.Interval.MONTH: 1, PlanVersion.Interval.YEAR: 12}
SYSTEM = "tollgate"
READS = Counter("account_reads", "Accounts and their plans that were looked up, by whether they were kept.", ["kind", "outcome"])
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What an account may do: the terms of its plan, and the slug of the rate card that prices its usage."""

    plan: catalog.PlanTerms
    rate_card: str
    subscription_id: int
    anchor_at: datetime
    period_start: datetime
    period_end: datetime
    #: Limits that staff set for this account alone, by meter: to how much, and whether that is more than it was.
    overrides: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def limit_of(self, meter: str, own: int | None) -> int | None:
        """How much a limit allows, which is ``own`` by the plan; None is no limit. What staff raised never allows less than the plan does,
        and what they lowered never more: so another plan takes nothing of either away."""
        if meter not in self.overrides:
            return own
        value, raises = self.overrides[meter]
        if own is None:
            return None if raises else value
        return max(own, value) if raises else min(own, value)

    def period_at(self, at: datetime) -> tuple[datetime, datetime]:
        """The billing period that contains ``at``, also while the job that moves the subscription on is late."""
        return running(period=(self.period_start, self.period_end), anchor_at=self.anchor_at, version=self.plan.version, at=at)


def start(*, account: Account, plan: str, now: datetime, trial_ends_at: datetime | None = None) -> Subscription:
    """Puts ``account`` on the version of ``plan`` that is sold at ``now``. A free plan's included credit is granted by itself from now on.

    An account that comes back to a free plan goes on with the calendar that it had there: its periods are counted from the first start, and
    credit or a quota of a period that has begun does not begin anew. With ``trial_ends_at`` the account has a plan with a price until then,
    free and without its included credit, and then the default plan (:mod:`billing.due`).

    :raises catalog.NotInCatalog: the product has no such plan, or none yet.
    :raises IntegrityError: the account has a live subscription.
    """
    terms = catalog.plan_version(product_id=account.product_id, slug=plan, at=now)
    version = terms.version
    if trial_ends_at is not None and (version.price_cents == 0 or trial_ends_at <= now):
        raise ValueError("A trial is of a plan with a price, and ends later.")
    anchor_at = _anchor(account, version, now)
    period = (now, trial_ends_at) if trial_ends_at else periods.period_at(anchor_at, now, months=_months(version))
    with transaction.atomic():
        subscription = Subscription.objects.create(
            account=account,
            plan_version=version,
            status=Subscription.Status.TRIALING if trial_ends_at else Subscription.Status.ACTIVE,
            anchor_at=anchor_at,
            started_at=now,
            current_period_start=period[0],
            current_period_end=period[1],
            trial_ends_at=trial_ends_at,
        )
        if version.price_cents == 0 and version.included_credit_nanos:
            schedule_included_credit(subscription=subscription)
        cap_rollovers(subscription=subscription)
        if account.kind != Account.Kind.GUEST:
            announce(subscription=subscription, now=now)
        transaction.on_commit(lambda: _terms.forget(account.pk))
    return subscription


def _anchor(account: Account, version: PlanVersion, now: datetime) -> datetime:
    """From when an account that begins on a plan at ``now`` counts its periods there."""
    former = Subscription.objects.filter(account=account, plan_version__plan=version.plan, stripe=None)
    first = former.order_by("started_at", "pk").first() if version.price_cents == 0 else None
    return first.anchor_at if first else now


def _months(version: PlanVersion) -> int:
    return MONTHS[PlanVersion.Interval(version.interval)]


def end(*, account: Account, now: datetime) -> None:
    """Ends the account's live subscription, if it has one. Credit that it brought, and the schedule of more, are not touched."""
    live = Subscription.objects.filter(account=account).exclude(status=Subscription.Status.CANCELED)
    live.update(status=Subscription.Status.CANCELED, ended_at=now)
    transaction.on_commit(lambda: _terms.forget(account.pk))


def announce(*, subscription: Subscription, now: datetime) -> None:
    """Tells client apps of the account's subscription as it is now, in the caller's transaction. :func:`start` does so by itself; whatever
    else changes a subscription calls this after its last change."""
    data: dict[str, str | int | None] = {
        "plan": subscription.plan_version.plan.slug,
        "status": str(subscription.status),
        "period_start": subscription.current_period_start.isoformat(),
        "period_end": subscription.current_period_end.isoformat(),
        "cancel_at_period_end": subscription.cancel_at_period_end,
        "seats": subscription.seats,
    }
    key = ":".join(map(str, (subscription.pk, now.isoformat(), *data.values())))
    webhooks.queue(account=subscription.account, kind=webhooks.Kind.SUBSCRIPTION_CHANGED, key=key, data=data, now=now)


def schedule_included_credit(*, subscription: Subscription) -> ledger.Operation:
    """Has the ledger grant the plan's included credit at the anchor and in each period after it, by itself.

    It lives for its period; what is left of it then rolls over as the plan says. For plans without a price: paid ones are granted for each
    invoice that was paid. A schedule that the account had before is gone on with, so no period is granted twice.
    """
    account, version = subscription.account, subscription.plan_version
    return ledger.schedule(
        account_id=account.pk,
        unit_id=account.product.unit_id,
        amount_nanos=version.included_credit_nanos,
        source="monthly",
        source_key=str(subscription.pk),
        anchor_at=subscription.anchor_at,
        months=_months(version),
        priority=priority(product=account.product, source="monthly"),
        rollover_periods=version.rollover_periods,
        rollover_cap_nanos=version.rollover_cap_nanos,
        rollover_priority=priority(product=account.product, source="rollover"),
        key=f"monthly:{subscription.pk}",
        actor=SYSTEM,
        reason=f"Included in {version.plan.name}",
        since=subscription.started_at,
    )


def cap_rollovers(*, subscription: Subscription) -> None:
    """Has what rolls over of the account's credit come to no more than its plan says, from now on; what there is above that expires. A plan
    whose credit does not roll over leaves what there is to its end."""
    account, version = subscription.account, subscription.plan_version
    if version.rollover_periods:
        ledger.cap_rollovers(
            account_id=account.pk,
            unit_id=account.product.unit_id,
            cap_nanos=version.rollover_cap_nanos,
            key=f"plan:{subscription.pk}",
            actor=SYSTEM,
            reason=f"{version.plan.name} begins",
        )


def grant_welcome_credit(*, account: Account) -> ledger.Operation:
    """Grants the product's welcome credit, once for ever."""
    return ledger.grant(
        account_id=account.pk,
        unit_id=account.product.unit_id,
        amount_nanos=account.product.welcome_credit_nanos,
        source="welcome",
        source_key="welcome",
        key="welcome",
        actor=SYSTEM,
        reason="Welcome credit",
        priority=priority(product=account.product, source="welcome"),
    )


def running(*, period: tuple[datetime, datetime], anchor_at: datetime, version: PlanVersion, at: datetime) -> tuple[datetime, datetime]:
    """The billing period that contains ``at``: ``period`` as it is stored, or where that is over the one that follows from the anchor."""
    start, end = period
    return period if start <= at < end else periods.period_at(anchor_at, at, months=_months(version))


def priority(*, product: Product, source: str) -> int:
    """Where a grant from ``source`` stands in the product's burn order; a source that it does not name burns before all that it does."""
    return 10 * (product.burn_order.index(source) + 1) if source in product.burn_order else 0


def current(*, account_id: int) -> Subscription | None:
    """The account's live subscription; None where it has none."""
    live = Subscription.objects.exclude(status=Subscription.Status.CANCELED)
    return live.select_related("account", "plan_version__plan").filter(account_id=account_id).first()


def payer(product_id: int, name: str | int) -> Account | None:
    """The open account that a request names; see :func:`payers`. A closed one begins nothing."""
    account = payer_of(product_id, name)
    return account if account and account.closed_at is None else None


def payer_of(product_id: int, name: str | int) -> Account | None:
    """The account, open or closed, whose work a request reports; see :func:`payers`."""
    return payers(product_id, [name]).get(name)


def payers(product_id: int, names: Collection[str | int]) -> dict[str | int, Account]:
    """The product's accounts with these names, ours (``acct_…``) or the client app's own, or with these primary keys; closed ones too:
    work that was done, or begun, before an account closed is paid for.

    What their plans allow is read along, in one query a kind of name, so :func:`allowed` need not ask again. Accounts too are kept for
    ``MAX_AGE_SECONDS``, and one object may be handed to several requests: it is to be read.
    """
    kept, terms = _kept()
    found: dict[str | int, Account] = {}
    wanted: dict[str, list[str | int]] = {}
    for name in names:
        account = kept.get((product_id, name))
        if account is not None:
            found[name] = account
        else:
            column = "id" if isinstance(name, int) else "public_id" if name.startswith("acct_") else "external_id"
            wanted.setdefault(column, []).append(name)
    for column, missing in wanted.items():
        read_at = time.monotonic()
        # One name is not asked for as a list of one: for that the server would plan anew each time.
        named = _PAYERS[column] + (" = %s" if len(missing) == 1 else " = any(%s)")
        for row in prepared.rows(named, [product_id, missing[0] if len(missing) == 1 else missing]):
            account = Account.from_db(connection.alias, _ACCOUNT_FIELDS, row[: len(_ACCOUNT_FIELDS)])
            found[getattr(account, column)] = account
            kept.keep((product_id, getattr(account, column)), account, read_at)
            if row[len(_ACCOUNT_FIELDS)] is not None:
                terms.keep(account.pk, row[len(_ACCOUNT_FIELDS) :], read_at)
    if found:
        product = catalog.product_by_id(product_id=product_id)
        for account in found.values():
            account.product = product
    return found


def allowed(*, account: Account) -> Allowed | None:
    """What the account's plan allows; None where no subscription counts."""
    return allowed_many(accounts=[account]).get(account.pk)


def allowed_many(*, accounts: Collection[Account]) -> dict[int, Allowed]:
    """What their plans allow, by account id, in at most one query; an account that no subscription counts for is not in it.

    What was read less than ``MAX_AGE_SECONDS`` ago is not read again: a change is felt within that time, a first subscription at once.
    """
    _, kept = _kept()
    by_id = {account.pk: account for account in accounts}
    found = {id_: terms for id_ in by_id if (terms := kept.get(id_)) is not None}
    if missing := [id_ for id_ in by_id if id_ not in found]:
        read_at = time.monotonic()
        for id_, *terms in prepared.rows(_ENTITLED_TERMS, [missing]):
            found[id_] = terms
            kept.keep(id_, terms, read_at)
    return {id_: _allowed(by_id[id_], *terms) for id_, terms in found.items()}


def forget(*, account: Account) -> None:
    """For whoever changed what counts for the account: this process knows once the transaction is done, others within a second."""
    transaction.on_commit(lambda: _terms.forget(account.pk))


def clear() -> None:
    """Forgets every account and plan that this process keeps: for whoever moves the clock, by which they are kept for a second."""
    _payers.clear()
    _terms.clear()


def _allowed(
    account: Account,
    id_: int,
    plan_version_id: int,
    anchor_at: datetime,
    start: datetime,
    end: datetime,
    seats: int,
    lapsed_at: datetime | None,
    overrides: Mapping[str, Sequence[int]] | None,
) -> Allowed:
    """``lapsed_at``: when a plan that is not paid, or a trial, ended, while the job that makes it so is late: the default plan counts since
    then. ``overrides``: see :class:`Allowed`."""
    plan = catalog.plan_version_by_id(plan_version_id=plan_version_id)
    if lapsed_at is not None:
        default = catalog.product_by_id(product_id=account.product_id).default_plan
        plan, seats = catalog.plan_version(product_id=account.product_id, slug=default, at=lapsed_at), 1
        anchor_at = _anchor(account, plan.version, lapsed_at)
        start, end = periods.period_at(anchor_at, lapsed_at, months=_months(plan.version))
    if account.cost_tier:
        plan = replace(plan, cost_tier=catalog.cost_tier(product_id=account.product_id, slug=account.cost_tier))
    if seats > 1 and plan.version.per_seat:
        plan = _for_members(plan, seats, own_tier=not account.cost_tier)
    return Allowed(plan, account.rate_card or plan.version.rate_card, id_, anchor_at, start, end, overrides or {})


def _for_members(plan: catalog.PlanTerms, seats: int, *, own_tier: bool) -> catalog.PlanTerms:
    """A plan that is paid per member allows as much for each: the members share it. The size of one request stays, and a tier that staff
    assigned to the account is the whole account's."""
    tier = plan.cost_tier
    if tier is not None and own_tier:
        tier = copy(tier)
        for name in ("monthly_cost_nanos", "daily_cost_nanos", "requests_per_hour"):
            limit = getattr(tier, name)
            setattr(tier, name, None if limit is None else limit * seats)
    each = (
        limit if limit.limit is None or limit.window == Entitlement.Window.REQUEST else replace(limit, limit=limit.limit * seats)
        for limit in plan.limits
    )
    return replace(plan, cost_tier=tier, limits=tuple(each))


#: Looking a label up takes longer than the rest of a hit.
_COUNTS = {kind: (READS.labels(kind, "hit").inc, READS.labels(kind, "miss").inc) for kind in ("account", "plan", "transaction")}


class _Kept(Generic[K, V]):
    """Answers that are no older than ``MAX_AGE_SECONDS``."""

    def __init__(self, kind: str = "transaction") -> None:
        self._answers: dict[K, tuple[float, V]] = {}
        self._hit, self._miss = _COUNTS[kind]

    def get(self, key: K) -> V | None:
        kept = self._answers.get(key)
        if kept is None or time.monotonic() - kept[0] >= MAX_AGE_SECONDS:
            self._miss()
            return None
        self._hit()
        return kept[1]

    def keep(self, key: K, value: V, read_at: float) -> None:
        if len(self._answers) >= MAX_KEPT:
            self._answers.clear()
        self._answers[key] = (read_at, value)

    def forget(self, key: K) -> None:
        self._answers.pop(key, None)

    def clear(self) -> None:
        self._answers.clear()


_Payers: TypeAlias = _Kept[tuple[int, str | int], Account]
_Terms: TypeAlias = _Kept[int, Sequence[Any]]
_payers: _Payers = _Kept("account")
_terms: _Terms = _Kept("plan")


def _kept() -> tuple[_Payers, _Terms]:
    """What is known; to a transaction, which sees its own rows, nothing is."""
    return (_Kept(), _Kept()) if connection.in_atomic_block else (_payers, _terms)


_LAPSED_AT = "case when coalesce(s.grace_ends_at, s.trial_ends_at) <= app_now() then coalesce(s.grace_ends_at, s.trial_ends_at) end"
_OVERRIDES = (
    "(select json_object_agg(o.meter, json_build_array(o.value, coalesce(o.value > o.was, false))) from billing_limitoverride o"
    " where o.account_id = s.account_id and o.ended_at is null and o.ends_at > app_now())"
)
_TERMS = f"s.id, s.plan_version_id, s.anchor_at, s.current_period_start, s.current_period_end, s.seats, {_LAPSED_AT}, {_OVERRIDES}"
_ENTITLED = f"s.status in {tuple(status.value for status in ENTITLED)}"
_ENTITLED_TERMS = f"select s.account_id, {_TERMS} from billing_subscription s where s.account_id = any(%s::bigint[]) and {_ENTITLED}"  # noqa: S608
_ACCOUNT_FIELDS = [field.attname for field in Account._meta.concrete_fields]
_PAYERS = {
    column: f"select {', '.join(f'a.{name}' for name in _ACCOUNT_FIELDS)}, {_TERMS}"  # noqa: S608 (our own columns)
    f" from accounts_account a left join billing_subscription s on s.account_id = a.id and {_ENTITLED}"
    f" where a.product_id = %s and a.{column}"
    for column in ("id", "public_id", "external_id")
}
