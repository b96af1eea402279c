"""The runaway guard: an agent in a loop is noticed within a minute, and stopped before it has burnt what was meant for a month.

    watch      looks at everybody who spent something lately, once a minute, and takes or ends steps
    terms      the policy that an account is under; None: none, and nothing here costs anything
    standing   the step that holds for one call
    pace       lets a slowed subject begin so many calls a minute
    release    a person ends a step, and says why
    why        a step in words, with its figures

What is unusual is learned for each account: the median of the busiest windows of its last days (:func:`metering.ladder.usual`). A step is
taken against whoever makes the spend unusual: a session that does so alone, else an API key, else the account; what they spent does not
count against the wider one too. The ladder itself is :mod:`metering.ladder`, the policy is the product's (:class:`pricing.models.Guard`).

Caps (so much for a run, a member, a key …) need no job: the ledger asks them under the account's lock (:mod:`metering.limits`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import connection, transaction
from django.db.models import F, Q, Sum
from django.db.models.functions import Coalesce, Greatest
from prometheus_client import Counter

from accounts import mails, webhooks
from accounts.models import Account, Mail, WebhookEvent
from accounts.templatetags.amounts import plain_amount
from billing import balances, ledger, subscriptions
from metering import ladder, throttles
from metering.ladder import Step
from metering.models import GuardPeak, GuardState, GuardStep, Throttle, UsageRecord
from pricing import catalog
from pricing.catalog import GuardTerms
from pricing.models import Guard, Unit

ACTOR = throttles.GUARD
MAX_AGE_SECONDS = 1.0
#: What is usual is learned from so many days before today.
DAYS = 14
#: Peaks are kept so long, for a person who asks what was usual then.
KEPT = timedelta(days=60)
#: A step that no look has confirmed for so long holds nobody up: the job has stopped.
STALE = timedelta(minutes=15)
#: A subject that nothing has been held against for so long is forgotten; its history stays.
FORGOTTEN = timedelta(days=2)

log = structlog.get_logger(__name__)
STEPS = Counter("guard_steps", "Steps that the runaway guard took or ended, by the step and the policy's mode.", ["step", "mode"])

_STATE = tuple(field.name for field in fields(ladder.State))
_NARROWEST = {GuardState.Kind.SESSION: 0, GuardState.Kind.KEY: 1, GuardState.Kind.ACCOUNT: 2}


def terms(*, account: Account, allowed: subscriptions.Allowed | None) -> GuardTerms | None:
    """The guard of the account's plan, or else of its product."""
    slug = (allowed.plan.version.plan.guard if allowed else "") or account.product.guard
    return catalog.guard(product_id=account.product_id, slug=slug) if slug else None


def policy(guard: Guard) -> ladder.Policy | None:
    """The ladder of a guard; None where it has caps alone."""
    begins = {
        step: factor
        for step, factor in (
            (Step.WARN, guard.warn_at_ppm),
            (Step.DEGRADE, guard.degrade_at_ppm),
            (Step.SLOW, guard.slow_at_ppm),
            (Step.BLOCK, guard.block_at_ppm),
        )
        if factor is not None
    }
    if guard.floor_nanos is None or not (begins or guard.warn_empty_minutes):
        return None
    return ladder.Policy(
        floor_nanos=guard.floor_nanos,
        begins=begins,
        window=timedelta(minutes=guard.window_minutes),
        calm=timedelta(minutes=guard.calm_minutes),
        block=timedelta(minutes=guard.block_minutes),
        release_below_ppm=guard.release_below_ppm,
        empty=None if guard.warn_empty_minutes is None else timedelta(minutes=guard.warn_empty_minutes),
    )


# For one call -----------------------------------------------------------------------------------------------------------------

_kept: tuple[float, Mapping[int, list[GuardState]]] | None = None


def standing(*, account_id: int, api_key_id: int | None, session: str | None, now: datetime) -> GuardState | None:
    """The highest step in force for a call of this session and key, as it was a second ago at most; of equal ones the narrowest.

    Ask only where the account has a policy.
    """
    mine = {(GuardState.Kind.ACCOUNT, ""), (GuardState.Kind.KEY, str(api_key_id)), (GuardState.Kind.SESSION, session or "")}
    found = [state for state in _in_force(now).get(account_id, ()) if (state.kind, state.ref) in mine and holds(state, now=now)]
    return min(found, key=lambda state: (-state.step, _NARROWEST[GuardState.Kind(state.kind)]), default=None)


def holds(state: GuardState, *, now: datetime) -> bool:
    """Whether a step is in force at ``now``: a block until its end, the others while the job looks."""
    if state.step == Step.BLOCK:
        return state.blocked_until is not None and now < state.blocked_until
    return state.step != Step.NONE and now < state.looked_at + STALE


def pace(*, state: GuardState, per_minute: int, now: datetime, take: bool = True) -> datetime | None:
    """Takes a token of a slowed subject's bucket; None where it had one, else when it will have one.

    The bucket holds half a minute's calls. It is one row, so that all processes take from the same; ``take`` False only looks.
    """
    interval = timedelta(minutes=1) / per_minute
    ahead = interval * max(per_minute // 2 - 1, 0)
    if take:
        free = GuardState.objects.filter(Q(slow_next_at=None) | Q(slow_next_at__lte=now + ahead), pk=state.pk)
        if free.update(slow_next_at=Greatest(Coalesce(F("slow_next_at"), now), now) + interval):
            return None
    next_at = GuardState.objects.filter(pk=state.pk).values_list("slow_next_at", flat=True).first()
    return None if next_at is None or next_at <= now + ahead else next_at - ahead


def why(state: GuardState, *, unit: Unit) -> str:
    """``This session has spent 12.40 USD in 10 minutes; usual are 1.10 USD at most. At this speed the credit is gone in 25 minutes.``"""
    whose = {"account": "This account has", "key": "This API key has", "session": "This session has"}[state.kind]
    spent, usual_ = (plain_amount(nanos, unit, True) for nanos in (state.spent_nanos, state.usual_nanos))
    said = f"{whose} spent {spent} in {state.window_minutes} minutes; usual is {usual_} at most."
    lasts = _lasts(state)
    return said if lasts is None else f"{said} At this speed the credit is gone in {lasts}."


def _lasts(state: GuardState) -> str | None:
    if state.spent_nanos <= 0 or state.available_nanos is None:
        return None
    minutes = max(state.available_nanos, 0) * state.window_minutes // state.spent_nanos
    if minutes >= 2 * 24 * 60:
        return f"{minutes // (24 * 60):,} days"
    if minutes >= 120:
        return f"{minutes // 60} hours"
    return f"{minutes} minute{'' if minutes == 1 else 's'}"


def _in_force(now: datetime) -> Mapping[int, list[GuardState]]:
    """Every step in force, by account. They are few: they are the runaways."""
    global _kept
    if connection.in_atomic_block or _kept is None or time.monotonic() - _kept[0] > MAX_AGE_SECONDS:
        read_at = time.monotonic()
        found: dict[int, list[GuardState]] = defaultdict(list)
        for state in GuardState.objects.exclude(step=Step.NONE):
            found[state.account_id].append(state)
        if connection.in_atomic_block:  # what a transaction sees is its own
            return found
        _kept = (read_at, found)
    return _kept[1]


# Every minute -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spender:
    """What one subject spent in the window, without what a narrower subject with a step of its own spent."""

    kind: GuardState.Kind
    ref: str
    spent_nanos: int


def watch(*, now: datetime) -> int:
    """Looks at every guarded account that spent something lately or has a step; returns how many steps were taken or ended.

    Each account is a transaction of its own. Late, twice or at once with another: a look changes nothing that the same look had changed.
    """
    products = catalog.guarded()
    guards = {(guard.product_id, guard.slug): guard for guard in Guard.objects.filter(product_id__in=products)}
    changed = 0
    seen: set[int] = set()
    for minutes in sorted({guard.window_minutes for guard in guards.values() if policy(guard) is not None}):
        spent = _spent(products, timedelta(minutes=minutes), now)
        for account, terms_ in _guarded(spent.keys(), minutes):
            seen.add(account.pk)
            changed += _look(account, terms_, spent[account.pk], now)
    pending = GuardState.objects.filter(~Q(step=Step.NONE) | Q(excused_until__isnull=False)).exclude(account_id__in=seen)
    left = {account.pk: account for account in Account.objects.select_related("product__unit").filter(guard_states__in=pending)}
    allowed = subscriptions.allowed_many(accounts=left.values())
    for account in left.values():
        changed += _look(account, terms(account=account, allowed=allowed.get(account.pk)), 0, now)
    GuardPeak.objects.filter(day__lt=(now - KEPT).date()).delete()
    idle = GuardState.objects.filter(step=Step.NONE, excused_until=None, looked_at__lt=now - FORGOTTEN)
    idle.filter(Q(blocked_until=None) | Q(blocked_until__lt=now - FORGOTTEN)).delete()
    return changed


def _spent(products: Collection[int], window: timedelta, now: datetime) -> dict[int, int]:
    """What each account of ``products`` was charged for work of the window that ends ``now``, where that is more than nothing."""
    rows = UsageRecord.objects.filter(event_at__gt=now - window, event_at__lte=now, price_nanos__gt=0, account__product_id__in=products)
    return dict(rows.order_by().values_list("account_id").annotate(spent=Sum("price_nanos")))


def _guarded(account_ids: Collection[int], minutes: int) -> Iterable[tuple[Account, GuardTerms]]:
    """Those of these accounts whose ladder looks at windows of so many minutes."""
    accounts = list(Account.objects.select_related("product__unit").filter(pk__in=account_ids, closed_at=None).order_by("pk"))
    allowed = subscriptions.allowed_many(accounts=accounts)
    for account in accounts:
        found = terms(account=account, allowed=allowed.get(account.pk))
        if found is not None and found.guard.window_minutes == minutes and policy(found.guard) is not None:
            yield account, found


def _look(account: Account, terms_: GuardTerms | None, total: int, now: datetime) -> int:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtext('runaway guard'), hashtext(%s))", [account.public_id])
        rules = policy(terms_.guard) if terms_ else None
        states = {(state.kind, state.ref): state for state in GuardState.objects.filter(account=account)}
        if terms_ is None or rules is None:
            return sum(_off(account, state, now) for state in states.values() if state.step or state.excused_until)
        minutes = terms_.guard.window_minutes
        if total:
            cursor.execute("select guard_peaks(%s, %s, %s, %s)", [now.date(), minutes, [account.pk], [total]])
        if not states and not _worth_a_look(rules, total):
            return 0
        peaks = GuardPeak.objects.filter(
            account=account, window_minutes=minutes, day__lt=now.date(), day__gte=now.date() - timedelta(days=DAYS)
        )
        usual = ladder.usual(daily_peaks=list(peaks.values_list("peak_nanos", flat=True))) or 0
        looker = _Look(account, terms_, rules, max(usual, rules.floor_nanos), _available(account, now), now)
        spenders = _spenders(account, rules, looker, states, now)
        return sum(looker.at(states.get((spender.kind, spender.ref)), spender) for spender in spenders)


def _worth_a_look(rules: ladder.Policy, total: int) -> bool:
    """Whether any step could begin, with the usual at its least."""
    return ladder.reached(policy=rules, usual_nanos=0, spent_nanos=total, available_nanos=0) > Step.NONE


def _available(account: Account, now: datetime) -> int | None:
    wallets = balances.of_account(account, now=now)
    return next((wallet.available for wallet in wallets if wallet.unit_id == account.product.unit_id), None)


def _spenders(
    account: Account, rules: ladder.Policy, looker: _Look, states: Mapping[tuple[str, str], GuardState], now: datetime
) -> list[_Spender]:
    """Every subject to look at, the narrowest first. What a narrower one with a step spent is not held against the wider one."""
    rows = UsageRecord.objects.filter(account=account, event_at__gt=now - rules.window, event_at__lte=now, price_nanos__gt=0)
    sessions: dict[str, int] = defaultdict(int)
    keys: dict[str, int] = defaultdict(int)
    total = 0
    lines = list(rows.order_by().values_list("session_ref", "api_key_id").annotate(spent=Sum("price_nanos")))
    for session, _, spent in lines:
        sessions[session or ""] += spent
    taken = {ref for ref, spent in sessions.items() if ref and looker.would(states.get(("session", ref)), spent)}
    for session, key, spent in lines:
        if session not in taken:
            keys["" if key is None else str(key)] += spent
    held = {ref for ref, spent in keys.items() if ref and looker.would(states.get(("key", ref)), spent)}
    total = sum(spent for ref, spent in keys.items() if ref not in held)
    known = {kind: {ref for known_kind, ref in states if known_kind == kind} for kind in ("session", "key")}
    return [
        *(_Spender(GuardState.Kind.SESSION, ref, sessions.get(ref, 0)) for ref in sorted(taken | known["session"])),
        *(_Spender(GuardState.Kind.KEY, ref, keys.get(ref, 0)) for ref in sorted(held | known["key"])),
        _Spender(GuardState.Kind.ACCOUNT, "", total),
    ]


@dataclass(frozen=True, slots=True)
class _Look:
    """One account at one moment."""

    account: Account
    terms: GuardTerms
    rules: ladder.Policy
    usual_nanos: int
    available_nanos: int | None
    now: datetime

    def would(self, state: GuardState | None, spent: int) -> bool:
        """Whether a subject that spent so much has a step after this look, or is excused from one."""
        after = self._after(state, spent)
        return after.step > Step.NONE or after.excused_until is not None

    def at(self, row: GuardState | None, spender: _Spender) -> int:
        """Writes what became of one subject; 1 where its step changed."""
        if row is not None and row.step == Step.BLOCK and self._lifted(row):
            _set(row, ladder.release(state=_state(row), now=self.now))
            row.save()
        after = self._after(row, spender.spent_nanos)
        if row is None:
            if after == ladder.State():
                return 0
            row = GuardState(account=self.account, kind=spender.kind, ref=spender.ref)
        before = Step(row.step)
        began = after.step > before or (after.step == Step.BLOCK and row.blocked_until != after.blocked_until)
        _set(row, after)
        row.looked_at, row.window_minutes = self.now, self.terms.guard.window_minutes
        row.spent_nanos, row.usual_nanos, row.available_nanos = spender.spent_nanos, self.usual_nanos, self.available_nanos
        row.releases_at = ladder.releases_at(policy=self.rules, state=after)
        row.save()
        if after.step == before and not began:
            return 0
        reason = why(row, unit=self.account.product.unit)
        _changed(self.account, row, before, self.terms.guard.mode, ACTOR, reason, self.now)
        if row.kind == GuardState.Kind.ACCOUNT and self.terms.guard.mode == Guard.Mode.HARD:
            if began and after.step == Step.BLOCK:
                _stop(self.account, row, reason, self.now)
            elif before == Step.BLOCK:
                _resume(self.account, row, ACTOR, self.now)
        return 1

    def _after(self, row: GuardState | None, spent: int) -> ladder.State:
        return ladder.climb(
            policy=self.rules,
            state=_state(row) if row else ladder.State(),
            usual_nanos=self.usual_nanos,
            spent_nanos=spent,
            available_nanos=self.available_nanos,
            now=self.now,
        )

    def _lifted(self, row: GuardState) -> bool:
        """Whether a person has lifted the guard's stop of the account elsewhere: that releases it."""
        if row.kind != GuardState.Kind.ACCOUNT:
            return False
        mine = Throttle.objects.filter(account=self.account, actor=ACTOR, created_at__gte=row.since).order_by("-id").first()
        return mine is not None and mine.lifted_at is not None and mine.lifted_by not in (ACTOR, subscriptions.SYSTEM)


def _off(account: Account, row: GuardState, now: datetime) -> int:
    """The account is no longer guarded: whatever holds it ends."""
    before = Step(row.step)
    _set(row, ladder.State())
    row.releases_at, row.looked_at = None, now
    row.save()
    if before == Step.NONE:
        return 0
    _changed(account, row, before, _mode(row), ACTOR, "The account is no longer guarded.", now)
    if before == Step.BLOCK and row.kind == GuardState.Kind.ACCOUNT:
        _resume(account, row, ACTOR, now)
    return 1


# By a person ------------------------------------------------------------------------------------------------------------------


class NothingToRelease(ValueError):
    """The subject has no step now."""


def release(*, state: GuardState, actor: str, reason: str, now: datetime) -> GuardStep:
    """Ends a step at once, in the caller's transaction or its own. It does not come back for the same spending: for a day, nothing is done
    about this subject unless it spends twice as much in a window as the most of this spike.

    :raises NothingToRelease: it has none.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        account = Account.objects.select_related("product__unit").get(pk=state.account_id)
        cursor.execute("select pg_advisory_xact_lock(hashtext('runaway guard'), hashtext(%s))", [account.public_id])
        row = GuardState.objects.get(pk=state.pk)
        if row.step == Step.NONE:
            raise NothingToRelease("There is no step to end: it has ended by itself.")
        before, mode = Step(row.step), _mode(row)
        _set(row, ladder.release(state=_state(row), now=now))
        row.releases_at = None
        row.save()
        done = _changed(account, row, before, mode, actor, reason, now)
        if before == Step.BLOCK and row.kind == GuardState.Kind.ACCOUNT:
            _resume(account, row, actor, now)
    return done


# Parts ------------------------------------------------------------------------------------------------------------------------


def _state(row: GuardState) -> ladder.State:
    told: dict[str, Any] = {name: getattr(row, name) for name in _STATE}
    return ladder.State(**told | {"step": Step(row.step)})


def _set(row: GuardState, state: ladder.State) -> None:
    for name in _STATE:
        setattr(row, name, int(state.step) if name == "step" else getattr(state, name))


def _mode(row: GuardState) -> str:
    """How the step in force was taken: who heard nothing of it hears nothing of its end."""
    steps = GuardStep.objects.filter(account_id=row.account_id, kind=row.kind, ref=row.ref).order_by("-pk")
    return steps.values_list("mode", flat=True).first() or Guard.Mode.HARD


def _changed(account: Account, row: GuardState, before: Step, mode: str, actor: str, reason: str, now: datetime) -> GuardStep:
    """Writes the change down, and tells the customer and their app of it, unless the policy only watches."""
    done = GuardStep.objects.create(
        account=account, kind=row.kind, ref=row.ref, before=before, step=row.step, mode=mode, at=now, actor=actor, reason=reason[:500]
    )
    STEPS.labels(row.get_step_display(), mode).inc()
    log.warning("guard changed", account=account.public_id, kind=row.kind, ref=row.ref, before=before.name, step=row.step, mode=mode)
    if mode == Guard.Mode.SHADOW:
        return done
    step = Step(row.step)
    webhooks.queue(
        account=account,
        kind=WebhookEvent.Kind.GUARD_CHANGED,
        key=str(done.pk),
        data={
            "subject": row.kind,
            "ref": row.ref,
            "before": before.name.lower(),
            "step": step.name.lower(),
            "reason": reason,
            "releases_at": row.releases_at.isoformat() if row.releases_at else None,
        },
        now=now,
    )
    if step > before or (step == before == Step.BLOCK):
        context: dict[str, object] = {
            "step": step.name.lower(),
            "subject": row.kind,
            "ref": row.ref,
            "reason": reason,
            "ends_at": row.blocked_until if step == Step.BLOCK else None,
            "refuses": mode == Guard.Mode.HARD,
        }
        # Once an hour and step: a loop that begins a session for each call is one thing to tell.
        key = f"{now:%Y-%m-%dT%H}:{step.name.lower()}"
        mails.queue(account=account, kind=Mail.Kind.GUARD, key=key, context=context, now=now, useless_at=now + timedelta(days=1))
    return done


def _stop(account: Account, row: GuardState, reason: str, now: datetime) -> None:
    key = f"guard:{row.pk}:{row.since}"
    with connection.cursor() as cursor:
        hashed = ledger.key_hash("throttle", key)
        cursor.execute("select guard_stop(%s, %s, %s, %s, %s)", [account.pk, hashed, ACTOR, reason[:500], row.blocked_until])
        [stopped] = cursor.fetchone()
    if stopped:
        until = row.blocked_until.isoformat() if row.blocked_until else None
        data = {"reason": reason, "by": "guard", "until": until, "meter": None}
        webhooks.queue(account=account, kind=WebhookEvent.Kind.ACCOUNT_THROTTLED, key=key, data=data, now=now)


def _resume(account: Account, row: GuardState, by: str, now: datetime) -> None:
    """Ends the guard's own stop, and tells the client app, unless there was none or somebody else's is in force."""
    with connection.cursor() as cursor:
        cursor.execute("select guard_resume(%s, %s, %s)", [account.pk, ACTOR, by])
    last = Throttle.objects.filter(account=account).order_by("-id").first()
    if last is None or last.actor != ACTOR:
        return
    key = f"guard:{row.pk}:{row.blocked_until}:{by}:{now}"
    data = {"reason": "The block is over.", "by": "guard" if by == ACTOR else "staff", "until": None, "meter": None}
    webhooks.queue(account=account, kind=WebhookEvent.Kind.ACCOUNT_UNTHROTTLED, key=key, data=data, now=now)
