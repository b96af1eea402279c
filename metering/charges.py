"""One charge, and why it is what it is: what the API and the customer's pages tell of it, from the same rows.

    of, used   an account's finished work; that which counts in a stretch of time
    record     one of them
    burnt      the ledger entries of its charge, each with the source of its grant
    rated      its price by the terms that it was promised at, applied again
    reversal   how it was given back, if it was

The first three read an account's own rows: call them behind both walls (:mod:`accounts.tenancy`). The others read terms and names, which
no tenant's role may: call them after the wall, with a row from behind it. What an account's customers are told of a price follows its
product's visibility; what the work cost us is never read here but where ``staff`` asks for the lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any
from uuid import UUID

import structlog
from django.db.models import BigIntegerField, F, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce

from accounts.models import Account
from billing.models import Grant, LedgerEntry, Operation, UsageRating
from metering import usage
from metering.models import UsageRecord
from pricing import catalog, rating
from pricing.models import Product, RateCard

#: Work that was done; the other outcomes used nothing.
USED = (UsageRecord.Outcome.CAPTURED, UsageRecord.Outcome.RECORDED, UsageRecord.Outcome.UNPRICED)
#: When work counts: when it was done, or when it was recorded if its own period was closed by then.
COUNTED_AT = Coalesce("counted_at", "event_at")
#: What was charged for a record: by itself, or by the rating that it got later.
CHARGED = Coalesce(
    "price_nanos",
    Subquery(UsageRating.objects.filter(account_id=OuterRef("account_id"), usage_id=OuterRef("id")).values("price_nanos")),
    output_field=BigIntegerField(),
)
log = structlog.get_logger(__name__)


def quantity(components: Iterable[str]) -> Any:
    """Σ of some components of a record, as an expression; arrays end with their last component that is not 0."""
    positions = (rating.COMPONENTS.index(component) for component in sorted(components))
    return reduce(add, (Coalesce(F(f"quantities__{position}"), Value(0), output_field=BigIntegerField()) for position in positions))


TOKENS = quantity(rating.TOKEN_COMPONENTS)


@dataclass(frozen=True, slots=True)
class Rated:
    """How a price came about: ``exact`` (nanos, a fraction) is rounded up once, to a multiple of ``quantum``, and is at least ``minimum``.

    ``price`` is what the stored terms give when they are applied again, ``reproduces`` whether that is what was charged (and waived).
    ``lines`` is None where the visibility hides them; a line's ``cost`` is for staff alone.
    """

    rate_card: str
    version: int
    mode: str
    exact: Fraction
    quantum: int
    minimum: int
    price: int
    reproduces: bool
    lines: tuple[rating.Line, ...] | None


def of(account: Account) -> QuerySet[UsageRecord]:
    """The account's finished work, without what it cost us: that column is closed to tenants."""
    return UsageRecord.objects.filter(account_id=account.pk).defer("cost_nanos")


def used(account: Account, since: datetime, until: datetime) -> QuerySet[UsageRecord]:
    """Work that counts in ``[since, until)``."""
    own = Q(counted_at=None, event_at__gte=since, event_at__lt=until)
    return UsageRecord.objects.filter(own | Q(counted_at__gte=since, counted_at__lt=until), account_id=account.pk, outcome__in=USED)


def record(account: Account, id_: UUID) -> UsageRecord | None:
    """One of the account's usage records, with the rating that it got later; None where there is none."""
    return next(iter(with_ratings(account, list(of(account).filter(id=id_)))), None)


def with_ratings(account: Account, records: list[UsageRecord]) -> list[UsageRecord]:
    """Lays over the records that had no price the ratings that came later."""
    unpriced = [record.id for record in records if record.outcome == UsageRecord.Outcome.UNPRICED]
    ratings = UsageRating.objects.filter(account_id=account.pk, usage_id__in=unpriced).defer("cost_nanos") if unpriced else ()
    found = {later.usage_id: later for later in ratings}
    for record in records:
        if later := found.get(record.id):
            record.outcome = UsageRecord.Outcome.RECORDED
            for name in ("price_nanos", "waived_nanos", "first_seq", "entries", "rate_card_id", "unit_id", "price_ids"):
                setattr(record, name, getattr(later, name))
    return records


def quantities(array: list[int]) -> dict[str, int]:
    """What was used, by component, in the order of :data:`pricing.rating.COMPONENTS`."""
    return {name: quantity for name, quantity in zip(rating.COMPONENTS, array, strict=False) if quantity}


def burnt(record: UsageRecord) -> list[tuple[LedgerEntry, str | None]]:
    """The ledger entries of the record's charge, in order, each with where its grant came from (None: the movement is of debt)."""
    if record.first_seq is None or record.unit_id is None:
        return []
    entries = LedgerEntry.objects.filter(
        account_id=record.account_id, unit_id=record.unit_id, seq__gte=record.first_seq, seq__lt=record.first_seq + record.entries
    ).order_by("seq")
    found = list(entries.defer("fee_nanos"))
    grants = Grant.objects.filter(account_id=record.account_id, id__in=[entry.grant_id for entry in found if entry.grant_id])
    sources = dict(grants.values_list("id", "source"))
    return [(entry, None if entry.grant_id is None else sources[entry.grant_id]) for entry in found]


def rated(record: UsageRecord, *, model: str, visibility: Product.Visibility, staff: bool = False) -> Rated | None:
    """The stored rate card and price rows, applied again; None where nothing was rated or may not be seen.

    Seen from ``amount`` on, the lines with ``full_breakdown``; ``staff`` sees all.
    """
    if record.price_nanos is None or record.rate_card_id is None or record.outcome not in USED:
        return None
    if visibility == Product.Visibility.DEPLETION_ONLY and not staff:
        return None
    card = catalog.rate_card_by_id(rate_card_id=record.rate_card_id)
    row = RateCard.objects.get(pk=record.rate_card_id)
    book = catalog.book_of_rows(model=model, row_ids=record.price_ids or ())
    terms: dict[str, Any] = {
        "card": card,
        "book": book,
        "model": model,
        "quantities": usage.folded(quantities(record.quantities), book),
        "service_level": next(iter(book.levels), "standard"),
    }
    lines = rating.explain(**terms)
    price = rating.rate(**terms).price_nanos
    reproduces = price == record.price_nanos + record.waived_nanos
    if not reproduces:
        log.error("charge not reproduced", usage=str(record.id), price_nanos=price, charged_nanos=record.price_nanos)
    return Rated(
        rate_card=row.slug,
        version=row.version,
        mode=row.mode,
        exact=sum((line.charge for line in lines), Fraction()),
        quantum=card.quantum_nanos,
        minimum=card.minimum_nanos,
        price=price,
        reproduces=reproduces,
        lines=lines if staff or visibility == Product.Visibility.FULL_BREAKDOWN else None,
    )


def reversal(record: UsageRecord) -> Operation | None:
    """The act that gave the whole charge back; None where nobody did. Who and why are staff's."""
    acts = Operation.objects.filter(account_id=record.account_id, verb="reverse", target=record.id)
    return acts.only("id", "account_id", "created_at", "amount").first()


def exact(nanos: Fraction) -> str:
    """Nanos as a decimal string with every digit there is, or as a fraction (``1/3``) where the digits never end."""
    value = nanos / rating.NANOS
    rest, digits = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        digits = max(digits, count)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    whole, part = divmod(value.numerator * 10**digits // value.denominator, 10**digits)
    return f"{whole}.{part:0{digits}d}" if digits else str(whole)
