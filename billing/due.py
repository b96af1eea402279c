"""What is due for accounts that nobody touches: the jobs' way to what every verb of the ledger does first for its own account.

    apply          expires, rolls over and grants what is due
    close_windows  ends stops whose time is over, and forgets the counters of windows that ended
    renew          begins the next period of plans that nobody pays for at Stripe, and ends trials of them

None changes what anybody may do or owes: the ledger decides by the time, not by what these wrote, and so does
:func:`billing.subscriptions.allowed`. They change when rows are written. Each account is a transaction of its own, with the due time as the
effective time: late, twice, at once with another, or again after a worker died in the middle, the end is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime

from django.db import DatabaseError, connection, transaction
from django.db.models import DateTimeField, Func, QuerySet

from accounts import mails
from accounts.models import Account, Mail
from billing import ledger, periods, subscriptions
from billing.models import Subscription, Wallet
from pricing.models import Plan, PlanVersion

BATCH = 100


def apply(*, given_up: Collection[str], failed: Callable[[str, Exception], None]) -> int:
    """Applies what is due by the clock of the database; returns for how many accounts. Opens its own transactions.

    A batch that fails is gone on with account by account; ``failed`` is told of each that does, by its public id, and those in
    ``given_up`` are left out. Late, twice or at once with another: the same end.

    :raises django.db.DatabaseError: the database is gone.
    """
    done, after = 0, 0
    while account_ids := _due(after):
        try:
            ledger.catch_up(after=account_ids[0] - 1, limit=len(account_ids))
            done += len(account_ids)
        except DatabaseError:
            done += sum(1 for _ in _one_by_one(account_ids, given_up, failed, _catch_up))
        after = account_ids[-1]
    return done


def close_windows(*, given_up: Collection[str], failed: Callable[[str, Exception], None]) -> int:
    """Tidies up after time that has passed; returns for how many accounts. As :func:`apply` in everything else."""
    done, after = 0, 0
    while account_ids := ledger.with_closed_windows(after=after, limit=BATCH):
        done += sum(1 for _ in _one_by_one(account_ids, given_up, failed, ledger.close_windows))
        after = account_ids[-1]
    return done


def renew(*, now: datetime, given_up: Collection[str], failed: Callable[[str, Exception], None]) -> int:
    """Moves every plan without Stripe whose period is over on to the period that contains ``now``, and ends trials that are over; returns
    how many. As :func:`apply` in everything else."""
    done, tried = 0, set[int]()
    while rows := list(
        _over(now).exclude(pk__in=tried).exclude(account__public_id__in=given_up).values_list("pk", "account__public_id")[:BATCH]
    ):
        for pk, account in rows:
            try:
                done += _renew(pk, now)
            except Exception as error:  # whatever it is, the next account's plan does not wait for it
                if not connection.in_atomic_block and not connection.is_usable():
                    raise
                tried.add(pk)
                failed(account, error)
    return done


def _over(now: datetime) -> QuerySet[Subscription]:
    running = Subscription.objects.exclude(status=Subscription.Status.CANCELED)
    return running.filter(stripe=None, current_period_end__lte=now).order_by("current_period_end", "pk")


@transaction.atomic
def _renew(pk: int, now: datetime) -> bool:
    """False where somebody else was faster."""
    locked = _over(now).select_for_update(of=("self",)).select_related("account__product", "plan_version__plan")
    subscription = locked.filter(pk=pk).first()
    if subscription is None:
        return False
    if subscription.trial_ends_at is not None:
        _end_trial(subscription, subscription.trial_ends_at, now)
        return True
    months = subscriptions.MONTHS[PlanVersion.Interval(subscription.plan_version.interval)]
    start, end = periods.period_at(subscription.anchor_at, now, months=months)
    subscription.current_period_start, subscription.current_period_end = start, end
    subscription.save(update_fields=["current_period_start", "current_period_end"])
    if subscription.account.closed_at is None and subscription.account.kind != Account.Kind.GUEST:
        subscriptions.announce(subscription=subscription, now=now)
    return True


def _end_trial(trial: Subscription, ended_at: datetime, now: datetime) -> None:
    """The default plan takes over at the moment at which the trial was over, however late we are."""
    account = trial.account
    subscriptions.end(account=account, now=ended_at)
    if account.closed_at is not None:
        return
    subscriptions.start(account=account, plan=account.product.default_plan, now=ended_at)
    next_plan = Plan.objects.get(product=account.product, slug=account.product.default_plan).name
    context = {"plan": trial.plan_version.plan.name, "ended_at": ended_at, "next_plan": next_plan}
    mails.queue(account=account, kind=Mail.Kind.PLAN_ENDED, key=f"trial:{trial.pk}", context=context, now=now)


def _due(after: int) -> list[int]:
    clock = Func(function="app_now", output_field=DateTimeField())
    due = Wallet.objects.filter(due_at__lte=clock, account_id__gt=after).order_by("account_id")
    return list(due.values_list("account_id", flat=True).distinct()[:BATCH])


def _catch_up(account_id: int) -> None:
    ledger.apply_due(account_id=account_id)


def _one_by_one(
    account_ids: Collection[int], given_up: Collection[str], failed: Callable[[str, Exception], None], verb: Callable[[int], object]
) -> Iterator[int]:
    """The accounts for which ``verb`` succeeded."""
    names = dict(Account.objects.filter(pk__in=account_ids).values_list("pk", "public_id"))
    for account_id in account_ids:
        if names[account_id] in given_up:
            continue
        try:
            with transaction.atomic():
                verb(account_id)
        except DatabaseError as error:
            if not connection.in_atomic_block and not connection.is_usable():
                raise
            failed(names[account_id], error)
        else:
            yield account_id
