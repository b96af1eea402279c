"""Rates what was used before it had a price, once it has one: each record and each waiting capture exactly once.

    run   looks at everything that waits for a price

A price counts for usage of its own time alone: whoever prices a model late writes a row that is valid from when it was first used. Usage
that no row covers goes on waiting, and nothing is guessed for it. What is charged so late is the product's policy (``late_charging``): up
to ``late_charging_max_hours`` after the event the account pays; after that, or where the product absorbs, the cost is stored and the
price waived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db import connection
from django.db.models import Exists, OuterRef, Q

from accounts.models import Account
from billing import ledger
from billing.models import UsageRating
from metering import usage
from metering.models import OpenAuthorization, UsageRecord
from pricing import rating
from pricing.models import Product

PAGE = 500

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Tally:
    """How many were rated, how many of those at the product's expense, how many still wait, and how many could not be charged."""

    rated: int = 0
    absorbed: int = 0
    waiting: int = 0
    failed: int = 0


def log_failed(account: str, error: Exception) -> None:
    log.error("usage cannot be rated", account=account, exc_info=error)


def run(*, now: datetime, failed: Callable[[str, Exception], None] = log_failed) -> Tally:
    """Rates all that can be rated, an account's oldest first, each in its own transaction. Late, twice or at once: the same end.

    One that fails is tried again with the next run and stops no other; ``failed`` is told of it, by the public id of its account.

    :raises django.db.DatabaseError: the database is gone.
    """
    tally = Tally()
    for record in _unpriced():
        _try(record, record.event_at, now, tally, failed)
    for waiting in OpenAuthorization.objects.filter(state=OpenAuthorization.State.AWAITING_PRICE).select_related(
        "model", "account__product"
    ):
        _try(waiting, waiting.created_at, now, tally, failed)
    return tally


def charges_late(*, product: Product, at: datetime, now: datetime) -> bool:
    """Whether the product still charges work of ``at`` when its price is known only ``now``."""
    late = now - at > timedelta(hours=product.late_charging_max_hours)
    return product.late_charging == Product.LateCharging.CHARGE and not late


def _unpriced() -> Iterator[UsageRecord]:
    """Every record without a price, by account and age, a page at a time."""
    rated = UsageRating.objects.filter(account_id=OuterRef("account_id"), usage_id=OuterRef("id"))
    rows = UsageRecord.objects.filter(~Exists(rated), outcome=UsageRecord.Outcome.UNPRICED).select_related("model", "account__product")
    after = Q()
    while page := list(rows.filter(after).order_by("account_id", "id")[:PAGE]):
        yield from page
        last = page[-1]
        after = Q(account_id=last.account_id, id__gt=last.id) | Q(account_id__gt=last.account_id)


def _try(
    work: UsageRecord | OpenAuthorization, at: datetime, now: datetime, tally: Tally, failed: Callable[[str, Exception], None]
) -> None:
    account = work.account
    charged = charges_late(product=account.product, at=at, now=now)
    try:
        if isinstance(work, UsageRecord):
            _rate(work, account, charged)
        else:
            _capture(work, account, charged)
    except rating.UnpricedUsage:
        tally.waiting += 1
    except ledger.AlreadyResolved:  # its client app was faster
        return
    except (ledger.AmountOverflow, usage.InvalidUsage) as error:
        log.error("usage cannot be charged", account=account.public_id, usage=str(work.id), reason=str(error))
        tally.failed += 1
    except Exception as error:  # whatever it is, the others' usage does not wait for it
        if not connection.in_atomic_block and not connection.is_usable():
            raise
        failed(account.public_id, error)
        tally.failed += 1
    else:
        tally.rated += 1
        tally.absorbed += not charged


def _rate(record: UsageRecord, account: Account, charged: bool) -> None:
    found = usage.rate_again(
        account=account,
        model=str(record.model),
        quantities=_quantities(record.quantities),
        at=record.event_at,
        service_level=record.service_level or "standard",
        rate_card_id=record.rate_card_id,
    )
    ledger.rate(
        account_id=account.pk,
        usage_id=record.id,
        rate_card_id=found.rate_card_id,
        price_ids=found.price_ids,
        unit_id=found.unit_id,
        charge=found.charge,
        charged=charged,
    )


def _capture(waiting: OpenAuthorization, account: Account, charged: bool) -> None:
    """The capture that its client app made, at the promised prices and the one that was missing. Nobody is there any more to be refused."""
    captured = waiting.captured or []
    found = usage.rate_again(
        account=account,
        model=str(waiting.model),
        quantities=_quantities(captured),
        at=waiting.created_at,
        service_level="standard",
        rate_card_id=waiting.rate_card_id,
        promised=waiting.price_ids or (),
    )
    overage = "cap" if account.product.overage == Product.Overage.REJECT else account.product.overage
    ledger.capture(
        account_id=account.pk,
        authorization_id=waiting.id,
        quantities=captured,
        price_ids=found.price_ids,
        charge=found.charge,
        overage=overage if charged else "absorb",
    )


def _quantities(array: list[int]) -> dict[str, int]:
    return {name: quantity for name, quantity in zip(rating.COMPONENTS, array, strict=False) if quantity}
