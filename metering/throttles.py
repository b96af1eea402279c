"""Who may begin no work: accounts whose cost has reached a limit of their tier, and accounts that staff or a guard stopped.

    of_account    what stops one account now, what was lifted for it, and how much of its limits on cost it has used
    lifted        the limits on cost that do not count for an account, because staff lifted them
    everybody     all accounts that are throttled now
    at_risk       who has used much of a limit on cost
    share         how many of the active accounts are throttled
    lift          lets accounts work again, in one act
    stop          stops one account; resume lets it go on
    follow        notes who came to be throttled and who no longer is, and tells their client apps

The throttle at 100 % of a limit is no flag: it is what the counter of that window says (:mod:`metering.limits`), so it ends with it, by
itself. What staff lift is a row for (account, meter, window): until that window ends the limit does not count at all, whatever is used.
A throttle is asked for what was used, without the estimates of work under way; what refuses a request counts those too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby, islice
from typing import Literal, TypeAlias, TypeVar

from django.db import transaction
from django.db.models import Min, Q, QuerySet

from accounts import acts, webhooks
from accounts.models import Account, Membership, User
from billing import ledger, subscriptions
from billing.models import LimitOverride
from metering import kill_switches, limits
from metering.kill_switches import Kind
from metering.models import CostThrottle, Throttle, UsageCounter
from pricing.models import CostTier, Entitlement, Product

ACTOR = "tollgate"
#: Who stops an account that spends too fast.
GUARD = "runaway guard"
AT_RISK_PPM = 750_000
#: So many accounts are worked on in one transaction.
CHUNK = 500
_PERIOD = f"cost/{Entitlement.Window.PERIOD}"
_METERS = {f"cost/{Entitlement.Window.DAY}": "daily_cost_nanos", _PERIOD: "monthly_cost_nanos"}
#: What an account has used, and until when that counts, by meter.
Costs: TypeAlias = Mapping[str, tuple[int, datetime]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stop:
    """One reason for which an account may begin no work. ``meter`` is empty where ``actor`` stopped it, else the limit that it has reached.

    Amounts are nano-USD of wholesale cost. ``since`` None: it was not noted yet. ``until`` None: until it is lifted. ``capped``: it is the
    cap of a kill switch, which holds for everybody and is not lifted here.
    """

    reason: str
    actor: str
    since: datetime | None
    until: datetime | None
    meter: str = ""
    used_nanos: int | None = None
    limit_nanos: int | None = None
    capped: bool = False

    @property
    def by(self) -> Literal["cost_limit", "staff", "guard"]:
        """What stops it, without a name."""
        return "cost_limit" if self.meter else _kind(self.actor)


@dataclass(frozen=True, slots=True)
class Throttled:
    account: Account
    stop: Stop


@dataclass(frozen=True, slots=True)
class Spending:
    """How much of a limit on cost an account has used in the window that ends at ``resets_at``. ``enforced``: reaching it stops work."""

    account: Account
    tier: str
    meter: str
    used_nanos: int
    limit_nanos: int
    resets_at: datetime
    enforced: bool
    lifted: bool = False
    capped: bool = False

    @property
    def reached(self) -> bool:
        return self.used_nanos >= self.limit_nanos

    @property
    def throttled(self) -> bool:
        return self.reached and self.enforced and not self.lifted

    @property
    def state(self) -> str:
        """In a word."""
        if self.lifted:
            return "lifted"
        return ("throttled" if self.enforced else "reached, only measured") if self.reached else "within"

    @property
    def ppm(self) -> int:
        """The share that is used, in parts per million; a limit of 0 is used up."""
        return self.used_nanos * 1_000_000 // self.limit_nanos if self.limit_nanos else 1_000_000


@dataclass(frozen=True, slots=True)
class Standing:
    """What stops an account, in the order in which it is asked, what of its limits staff lifted, and how much of each is used."""

    stops: tuple[Stop, ...]
    lifted: tuple[CostThrottle, ...]
    costs: tuple[Spending, ...]

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it, beside limits that it has reached."""
        return any(not stop.meter for stop in self.stops)


@dataclass(frozen=True, slots=True)
class Share:
    """``active`` accounts have a limit on cost and asked for work in its present window, or are stopped."""

    throttled: int
    active: int

    @property
    def ppm(self) -> int:
        return self.throttled * 1_000_000 // self.active if self.active else 0


# One account ------------------------------------------------------------------------------------------------------------------


def of_account(*, account: Account, now: datetime) -> Standing:
    stops = [_stopped(row) for row in _stops(now).filter(account=account)]
    if _is_off(account, now):
        stops = []
    free = tuple(_lifted(now).filter(account=account))
    costs = tuple(_costs(account, {row.meter for row in free}, now))
    if any(one.throttled for one in costs):
        began = dict(CostThrottle.objects.filter(account=account, ended_at=None).values_list("meter", "began_at"))
        stops += [replace(_reached(one), since=began.get(one.meter)) for one in costs if one.throttled]
    return Standing(tuple(stops), free, costs)


def _costs(account: Account, free: Collection[str], now: datetime) -> list[Spending]:
    """How much of its limits on cost one account has used."""
    allowed = subscriptions.allowed(account=account)
    watched = _cost_limits(account, allowed, now)
    if not watched or allowed is None:
        return []
    # As quotas: what open work may cost at most has not been used.
    look = ledger.limits(account_id=account.pk, limits=[replace(item.limit, layer="quota") for item in watched])
    ends = [resets_at or now for resets_at in look.resets_at]
    costs = {item.limit.meter: (used, end) for item, used, end in zip(watched, look.used, ends, strict=True)}
    return list(_of(account, allowed, costs, free, now))


def lifted(*, account_id: int, now: datetime) -> frozenset[str]:
    """The meters whose limit staff lifted for this account, in windows that have not ended. The hot path asks once such a limit refused."""
    return frozenset(_lifted(now).filter(account_id=account_id).values_list("meter", flat=True))


def stop(*, account: Account, actor: str, reason: str, ends_at: datetime | None, now: datetime, key: str | None = None) -> bool:
    """Stops the account, in the caller's transaction if there is one, and tells its client app; see :func:`billing.ledger.throttle`."""
    with transaction.atomic():
        if not ledger.throttle(account_id=account.pk, actor=actor, reason=reason, ends_at=ends_at, key=key):
            return False
        row = Throttle.objects.filter(account=account).order_by("-id")[0]
        data = _told(reason, actor, ends_at)
        webhooks.queue(account=account, kind="account.throttled", key=f"stop:{row.id}", data=data, now=now)
    return True


def resume(*, account: Account, actor: str, reason: str, now: datetime) -> bool:
    """Lifts a stop of :func:`stop`, and tells the client app. False where there is none."""
    with transaction.atomic():
        row = _stops(now).filter(account=account).first()
        if not ledger.resume(account_id=account.pk, actor=actor) or row is None:
            return False
        data = _told(reason, actor, None)
        webhooks.queue(account=account, kind="account.unthrottled", key=f"stop:{row.id}", data=data, now=now)
    return True


# Everybody --------------------------------------------------------------------------------------------------------------------


def everybody(*, now: datetime, product: Product | None = None) -> list[Throttled]:
    """Every open account that is throttled, stops first, the longest stopped first."""
    stops = _stops(now, product).select_related("account__product").order_by("id")
    found = [Throttled(row.account, _stopped(row)) for row in stops if not _is_off(row.account, now)]
    return found + [Throttled(one.account, _reached(one)) for one in _spending(now, product, 1_000_000) if one.throttled]


def at_risk(*, now: datetime, product: Product | None = None, ppm: int = AT_RISK_PPM) -> list[Spending]:
    """Who has used more than ``ppm`` of a limit on cost, who most of it first; the throttled too, and who is only measured."""
    return sorted((one for one in _spending(now, product, ppm) if one.ppm > ppm), key=lambda one: (-one.ppm, one.account.pk, one.meter))


def share(*, now: datetime, product: Product | None = None) -> Share:
    """How many accounts are throttled, of those that are active."""
    asked = _counters(now, product).values_list("account_id", flat=True)
    stopped = {row.account.pk for row in everybody(now=now, product=product)}
    return Share(len(stopped), len(stopped | set(asked)))


def addresses(accounts: Iterable[Account]) -> dict[int, str]:
    """Where to write to: the billing address, else that of the first owner; by account id."""
    found = {account.pk: account.billing_email for account in accounts}
    owners = Membership.objects.filter(account_id__in=found, role=Membership.Role.OWNER).order_by("-pk")
    first = dict(owners.values_list("account_id", "user__email"))
    return {id_: email or first.get(id_, "") for id_, email in found.items()}


def spending(*, now: datetime, product: Product, tiers: Mapping[str, CostTier]) -> list[tuple[Spending | None, Spending | None]]:
    """What accounts on ``tiers``, by slug, have used of each limit as it is, and what it would be of the limits given; None: no limit."""
    found: list[tuple[Spending | None, Spending | None]] = []
    stored = {tier.slug: tier for tier in CostTier.objects.filter(product=product)}
    for account, allowed, costs, free in _accounts(now, product, None):
        theirs = allowed.plan.cost_tier
        if theirs is not None and theirs.slug in tiers:
            changed = replace(allowed, plan=replace(allowed.plan, cost_tier=_shared(tiers[theirs.slug], theirs, stored[theirs.slug])))
            before, after = ({one.meter: one for one in _of(account, terms, costs, free, now)} for terms in (allowed, changed))
            found += [(before.get(meter), after.get(meter)) for meter in sorted(before.keys() | after.keys())]
    return found


def _shared(tier: CostTier, theirs: CostTier, stored: CostTier) -> CostTier:
    """``tier`` for as many members as share the stored one."""
    seats = next((getattr(theirs, name) // getattr(stored, name) for name in _METERS.values() if getattr(stored, name)), 1)
    each = {name: None if getattr(tier, name) is None else getattr(tier, name) * seats for name in _METERS.values()}
    return CostTier(slug=tier.slug, throttle_on_exceed=tier.throttle_on_exceed, **each)


# Lifting ----------------------------------------------------------------------------------------------------------------------


def lift(*, throttled: Sequence[Throttled], by: User, actor: str, reason: str, now: datetime) -> int:
    """Lets these accounts work again; returns how many. Each has a line in the audit log; ``CHUNK`` of them are one transaction.

    A limit on cost that is lifted does not count until its window ends. Who is not throttled any more is left alone: twice is once. So is
    who is capped by a kill switch: end the switch.
    """
    done = 0
    for chunk in _chunks(sorted(throttled, key=lambda one: one.account.pk)):
        with transaction.atomic():
            for account, theirs in groupby(chunk, key=lambda one: one.account):
                said = [what for one in theirs if (what := _lift(one, actor, reason, now))]
                if said:
                    acts.note(account=account, actor=by, what=f"Resumed ({', '.join(said)}): {reason}", now=now)
                    done += 1
    return done


def _lift(one: Throttled, actor: str, reason: str, now: datetime) -> str:
    """What was lifted, in words; nothing where it is lifted already."""
    account, stopped = one.account, one.stop
    if not stopped.meter:
        return f"a stop by {stopped.actor}" if resume(account=account, actor=actor, reason=reason, now=now) else ""
    assert stopped.until is not None
    assert stopped.limit_nanos is not None
    assert stopped.used_nanos is not None
    if stopped.capped or stopped.meter in lifted(account_id=account.pk, now=now):
        return ""
    row, _ = CostThrottle.objects.get_or_create(
        account=account,
        meter=stopped.meter,
        window_end=stopped.until,
        ended_at=None,
        defaults={"limit_nanos": stopped.limit_nanos, "used_nanos": stopped.used_nanos, "began_at": now},
    )
    _end([row], by=actor, reason=reason, lifted=True, at=now, now=now)
    return f"{stopped.meter} until {stopped.until:%Y-%m-%d %H:%M} UTC"


# What is noted ----------------------------------------------------------------------------------------------------------------


def follow(*, now: datetime) -> int:
    """Notes who reached a limit on cost since the last time, ends the notes of who is throttled no more; returns how many of both.

    A note changes no decision; it is the history, and what client apps are told. Late or twice: the same end, with the time of the window.
    """
    over = list(CostThrottle.objects.filter(ended_at=None, window_end__lte=now).select_related("account").order_by("pk"))
    for chunk in _chunks(over):
        with transaction.atomic():
            for row in chunk:
                _end([row], by=ACTOR, reason="Its window has ended.", lifted=False, at=row.window_end, now=now)
    reached = {(one.account.pk, one.meter, one.resets_at): one for one in _spending(now, None, 1_000_000) if one.throttled}
    noted = {
        (row.account_id, row.meter, row.window_end): row for row in CostThrottle.objects.filter(ended_at=None).select_related("account")
    }
    gone = [row for key, row in noted.items() if key not in reached]
    for rows in _chunks(gone):
        with transaction.atomic():
            _end(rows, by=ACTOR, reason="The limit is not reached any more.", lifted=False, at=now, now=now)
    new = [one for key, one in reached.items() if key not in noted]
    for fresh in _chunks(new):
        with transaction.atomic():
            for one in fresh:
                _note(one, now)
    return len(over) + len(gone) + len(new)


def _note(one: Spending, now: datetime) -> None:
    row, made = CostThrottle.objects.get_or_create(
        account=one.account,
        meter=one.meter,
        window_end=one.resets_at,
        ended_at=None,
        defaults={"limit_nanos": one.limit_nanos, "used_nanos": one.used_nanos, "began_at": now},
    )
    if made:
        data = _told(_reason(one.meter), ACTOR, one.resets_at) | {"meter": one.meter, "by": "cost_limit"}
        webhooks.queue(account=one.account, kind="account.throttled", key=f"cost:{row.pk}", data=data, now=now)


def _end(rows: Sequence[CostThrottle], *, by: str, reason: str, lifted: bool, at: datetime, now: datetime) -> None:
    """In the caller's transaction. What somebody else ended meanwhile stays as it is."""
    for row in rows:
        ours = CostThrottle.objects.filter(pk=row.pk, ended_at=None)
        if ours.update(ended_at=at, ended_by=by, reason=reason, lifted=lifted):
            data = _told(reason, by, None) | {"meter": row.meter}
            webhooks.queue(account=row.account, kind="account.unthrottled", key=f"cost:{row.pk}", data=data, now=now)


def _told(reason: str, actor: str, until: datetime | None) -> dict[str, str | int | None]:
    """What a client app hears: no amounts, what its usage costs is the operator's figure; nobody's name."""
    return {
        "reason": reason,
        "by": "tollgate" if actor == ACTOR else _kind(actor),
        "until": until.isoformat() if until else None,
        "meter": None,
    }


def _kind(actor: str) -> Literal["staff", "guard"]:
    return "guard" if actor == GUARD else "staff"


# Reading ----------------------------------------------------------------------------------------------------------------------


def _stops(now: datetime, product: Product | None = None) -> QuerySet[Throttle]:
    of = {"account__product": product} if product else {}
    return Throttle.objects.filter(Q(ends_at=None) | Q(ends_at__gt=now), lifted_at=None, account__closed_at=None, **of)


def _is_off(account: Account, now: datetime) -> bool:
    """Whether a kill switch has throttling off for the account. Kept for a second, like all that is switched."""
    switch = kill_switches.in_force(kind=Kind.THROTTLING, product_id=account.product_id, account_id=account.pk, now=now)
    return switch is not None


def _stopped(row: Throttle) -> Stop:
    return Stop(row.reason, row.actor, row.created_at, row.ends_at)


def _reached(one: Spending) -> Stop:
    reason = "Usage is limited for everybody for the moment." if one.capped else _reason(one.meter)
    return Stop(reason, ACTOR, None, one.resets_at, one.meter, one.used_nanos, one.limit_nanos, one.capped)


def _reason(meter: str) -> str:
    return f"The usage limit for this {'day' if meter.endswith('/day') else 'billing period'} is reached."


def _lifted(now: datetime) -> QuerySet[CostThrottle]:
    return CostThrottle.objects.filter(lifted=True, window_end__gt=now)


def _counters(now: datetime, product: Product | None) -> QuerySet[UsageCounter]:
    """What open accounts have used in windows of cost that contain ``now``."""
    of = {"account__product": product} if product else {}
    return UsageCounter.objects.filter(meter__in=_METERS, window_start__lte=now, window_end__gt=now, account__closed_at=None, **of)


def _spending(now: datetime, product: Product | None, ppm: int) -> Iterator[Spending]:
    for account, allowed, costs, free in _accounts(now, product, ppm):
        yield from _of(account, allowed, costs, free, now)


def _accounts(
    now: datetime, product: Product | None, ppm: int | None
) -> Iterator[tuple[Account, subscriptions.Allowed, Costs, Collection[str]]]:
    """Accounts with what they have used and what was lifted for them; with ``ppm`` only who may have used that much of a limit.

    No limit is lower than the lowest of the product's tiers, or than what staff set for the account: who is below that is left out by the
    database.
    """
    least = Q() if ppm is None else Q(pk__in=[])
    if ppm is not None:
        for of, meter, limit in _lowest(product, now):
            least |= of & Q(meter=meter, used__gte=max(limit * ppm // 1_000_000, 1))
    rows = _counters(now, product).filter(least).select_related("account__product").order_by("account_id", "meter")
    grouped = ((account, list(theirs)) for account, theirs in groupby(rows.iterator(CHUNK), key=lambda row: row.account))
    for chunk in _chunks(grouped):
        plans = subscriptions.allowed_many(accounts=[account for account, _ in chunk])
        free: dict[int, set[str]] = {}
        for account_id, meter in _lifted(now).filter(account_id__in=plans).values_list("account_id", "meter"):
            free.setdefault(account_id, set()).add(meter)
        for account, theirs in chunk:
            if account.pk in plans:
                costs = {row.meter: (row.used, row.window_end) for row in theirs}
                yield account, plans[account.pk], costs, free.get(account.pk, ())


def _lowest(product: Product | None, now: datetime) -> Iterator[tuple[Q, str, int]]:
    """The lowest limit on cost of each product and meter; in an emergency, its cap, which may be of everybody or of one account."""
    tiers = CostTier.objects.filter(product=product) if product else CostTier.objects.all()
    for meter, column in _METERS.items():
        lowest = tiers.filter(**{f"{column}__isnull": False}).values_list("product_id").annotate(Min(column)).order_by()
        for product_id, limit in lowest:
            yield Q(account__product_id=product_id), meter, limit
    lowered = LimitOverride.objects.filter(meter__in=_METERS, ended_at=None, ends_at__gt=now)
    for account_id, meter, limit in lowered.values_list("account_id", "meter", "value"):
        yield Q(account_id=account_id), meter, limit
    for switch in kill_switches.all_in_force(now=now):
        if switch.kind == Kind.COST_CAP and switch.cap_nanos is not None:
            of = (
                {"account_id": switch.account_id}
                if switch.account_id
                else {"account__product_id": switch.product_id}
                if switch.product_id
                else {}
            )
            yield Q(**of), _PERIOD, switch.cap_nanos


def _of(account: Account, allowed: subscriptions.Allowed, costs: Costs, free: Collection[str], now: datetime) -> Iterator[Spending]:
    tier = allowed.plan.cost_tier
    for item in _cost_limits(account, allowed, now):
        meter = item.limit.meter
        if meter in costs:
            used, ends = costs[meter]
            if item.cap is not None:
                ends = min(ends, item.cap.over_at)
            enforced, lifted = item.mode == Entitlement.Mode.HARD, meter in free and item.cap is None  # a cap holds for everybody
            slug, capped = tier.slug if tier else "", item.cap is not None
            yield Spending(account, slug, meter, used, item.limit.allowed, ends, enforced, lifted, capped)


def _cost_limits(account: Account, allowed: subscriptions.Allowed | None, now: datetime) -> list[limits.Counted]:
    """As the hot path knows them, with what is switched for the account. A limit of 0 allows nothing anyhow, and is no throttle."""
    switches = kill_switches.covering(product_id=account.product_id, account_id=account.pk, now=now)
    found = limits.counted(account=account, allowed=allowed, counts={}, cost_nanos=0, now=now, switches=switches)
    return [item for item in found if item.limit.layer == "cost" and item.limit.allowed > 0]


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of at most ``CHUNK``."""
    left = iter(items)
    while chunk := list(islice(left, CHUNK)):
        yield chunk
