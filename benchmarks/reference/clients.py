"""What the clients do with the references. See :mod:`benchmarks.crowd`."""

from __future__ import annotations

import importlib
import io
import random
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from benchmarks.reference.models import Account, Authorization, Delta, Entry, Grant, Usage, Wallet

CREDIT = 10**15
HORDAK_ACCOUNTS = 200
PRICE = 7_402_500
COST = 4_935_000
HOLD = 27_540_000
Call = Callable[[], object]


def make(*, accounts: int) -> None:
    call_command("migrate", interactive=False, verbosity=0, run_syncdb=True, stdout=io.StringIO())
    hordak = importlib.import_module("hordak.models")
    made = Account.objects.bulk_create([Account() for _ in range(accounts)])
    Wallet.objects.bulk_create([Wallet(account=account, balance=CREDIT) for account in made])
    Grant.objects.bulk_create([Grant(account=account, granted=CREDIT, remaining=CREDIT, cash=CREDIT) for account in made])
    for number in range(min(accounts, HORDAK_ACCOUNTS) + 1):
        kind = hordak.AccountType.liability if number else hordak.AccountType.income
        hordak.Account.objects.create(name=f"Account {number}", code=str(number), type=kind, currencies=["USD"])


def authorize(*, hot: bool, count: int) -> None:
    """Open authorizations for :func:`capture` to take; not measured."""
    Authorization.objects.all().delete()
    draw, now = random.Random(0), timezone.now()
    ids = list(Account.objects.order_by("id").values_list("id", flat=True)[: 1 if hot else None])
    chosen = [draw.choice(ids) for _ in range(count)]
    Authorization.objects.bulk_create(
        [
            Authorization(
                account_id=account, key_hash=uuid.uuid4(), fingerprint=uuid.uuid4(), hold=HOLD, model_id=1, feature_id=1, rate_card_id=1,
                price_ids=[1, 2], quantities=[1_000, 1_024], created_at=now, expires_at=now + timedelta(hours=1),
            )
            for account in chosen
        ]
    )  # fmt: skip
    for account, open_count in Counter(chosen).items():
        Account.objects.filter(pk=account).update(open_count=open_count)
        Wallet.objects.filter(account_id=account).update(held=open_count * HOLD)


def capture(*, client: int, shares: int) -> Call:
    """What the ledger's capture does, step by step through the ORM; each client its own share of what is open, until there is no more."""
    mine = iter(list(Authorization.objects.order_by("key_hash").values_list("account_id", "id"))[client::shares])

    def call() -> None:
        account_id, id_ = next(mine)
        _capture(account_id, id_)

    return call


def transfer(*, client: int, hot: bool) -> Call:
    """django-hordak's transfer from a customer's account to the one of income."""
    draw = random.Random(client)
    income, *customers = importlib.import_module("hordak.models").Account.objects.order_by("id")
    amount = importlib.import_module("moneyed").Money("0.01", "USD")
    return lambda: (customers[0] if hot else draw.choice(customers)).transfer_to(income, amount)


@transaction.atomic
def _capture(account_id: int, id_: uuid.UUID) -> None:
    account = Account.objects.select_for_update().get(pk=account_id)
    now = timezone.now()
    held = Authorization.objects.get(account=account, pk=id_)
    if Usage.objects.filter(account=account, key_hash=held.key_hash).exists():
        return
    wallet = Wallet.objects.get(account=account)
    wallet.held -= held.hold
    grants = list(Grant.objects.filter(account=account, closed=False, remaining__gt=0).order_by("priority", "expires_at", "id"))
    if any(grant.expires_at and grant.expires_at <= now for grant in grants):
        raise RuntimeError("No grant of the benchmark expires.")
    usage = Usage.objects.create(
        id=held.id, account=account, key_hash=held.key_hash, fingerprint=held.fingerprint, hold=held.hold, model_id=held.model_id,
        feature_id=held.feature_id, rate_card_id=held.rate_card_id, price_ids=held.price_ids, quantities=[1_000, 129],
        created_at=held.created_at, expires_at=held.expires_at, event_at=now, cost=COST, price=PRICE, balance_after=wallet.balance - PRICE,
    )  # fmt: skip
    left = PRICE
    for grant in grants:
        part = min(left, grant.remaining)
        cash = (
            grant.cash * (grant.granted - grant.remaining + part) // grant.granted
            - grant.cash * (grant.granted - grant.remaining) // grant.granted
        )
        grant.remaining -= part
        grant.closed = grant.remaining == 0
        grant.save(update_fields=["remaining", "closed"])
        wallet.balance -= part
        wallet.seq += 1
        Entry.objects.create(
            account=account,
            seq=wallet.seq,
            grant=grant,
            usage=usage,
            amount=-part,
            balance_after=wallet.balance,
            cash=cash,
            recorded_at=now,
        )
        left -= part
        if left == 0:
            break
    wallet.save(update_fields=["balance", "held", "seq"])
    Delta.objects.create(
        account=account,
        day=now.date(),
        model_id=held.model_id,
        feature_id=held.feature_id,
        tokens=1_129,
        cost=COST,
        price=PRICE,
        cash=PRICE,
    )
    held.delete()
    account.open_count -= 1
    account.save(update_fields=["open_count"])
