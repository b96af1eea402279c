"""What an account has, as the next verb of the ledger will find it: read only, nothing is locked or written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import DateTimeField, Value
from django.db.models.functions import Cast, NullIf

from accounts.models import Account
from billing.models import Grant, Wallet

#: ``expires_at`` for Python, which has no infinity: None = never.
ENDS_AT = NullIf("expires_at", Cast(Value("infinity"), DateTimeField()))


@dataclass(frozen=True, slots=True)
class Lot:
    """What is left of one grant, in nanos. ``ends_at`` None = never."""

    id: int
    source: str
    granted: int
    remaining: int
    starts_at: datetime
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class Balance:
    """One wallet, in nanos of its unit. ``lots`` in the order in which they burn."""

    unit_id: int
    balance: int
    held: int
    debt: int
    seq: int
    lots: tuple[Lot, ...]

    @property
    def available(self) -> int:
        return self.balance - self.held


def of_account(account: Account, *, now: datetime) -> list[Balance]:
    """The account's wallets, by unit. What is due at ``now`` counts as expired, except what holds keep alive."""
    grants = Grant.objects.filter(account=account, closed=False, remaining__gt=0).annotate(ends_at=ENDS_AT)
    rows = list(
        grants.order_by("priority", "expires_at", "id").values_list(
            "unit_id", "id", "source", "granted", "remaining", "starts_at", "ends_at"
        )
    )
    balances = []
    for wallet in Wallet.objects.filter(account=account).order_by("unit_id"):
        burnt_first, expired, lots = 0, 0, []
        for unit_id, id_, source, granted, remaining, starts_at, ends_at in rows:
            if unit_id != wallet.unit_id:
                continue
            covered = max(0, min(remaining, wallet.held - burnt_first))
            burnt_first += remaining
            left = covered if ends_at and ends_at <= now else remaining
            expired += remaining - left
            if left:
                lots.append(Lot(id=id_, source=source, granted=granted, remaining=left, starts_at=starts_at, ends_at=ends_at))
        balances.append(
            Balance(
                unit_id=wallet.unit_id,
                balance=wallet.balance - expired,
                held=wallet.held,
                debt=wallet.debt,
                seq=wallet.seq,
                lots=tuple(lots),
            )
        )
    return balances
