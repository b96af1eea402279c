"""What is due for accounts that nobody touches: the jobs' way to what every verb of the ledger does first for its own account.

    apply          expires, rolls over and grants what is due
    close_windows  ends stops whose time is over, and forgets the counters of windows that ended

Neither changes what anybody may do or owes: the ledger decides by the time, not by what these wrote. They change when rows are written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from django.db import DatabaseError, connection, transaction
from django.db.models import DateTimeField, Func

from accounts.models import Account
from billing import ledger
from billing.models import Wallet

BATCH = 100


def apply(*, given_up: Collection[str], failed: Callable[[str, Exception], None]) -> int:
    """Applies what is due by the clock of the database; returns for how many accounts. Opens its own transactions.

    A batch that fails is done account by account; ``failed`` is told of each that does, by its public id, and those in ``given_up`` are
    left out. Late, twice or at once with another: the same end.

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


def _due(after: int) -> list[int]:
    clock = Func(function="app_now", output_field=DateTimeField())
    due = Wallet.objects.filter(due_at__lte=clock, account_id__gt=after).order_by("account_id")
    return list(due.values_list("account_id", flat=True).distinct()[:BATCH])


def _catch_up(account_id: int) -> None:
    ledger.catch_up(after=account_id - 1, limit=1)


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
