"""One charge, and why it is what it is: what the API and the customer's pages tell of it, from the same rows.

    of, used   an account's finished work; that which counts in a stretch of time
    record     one of them
    burnt      the ledger entries of its charge, each with the grant that it came from
    rated      its price by the terms that it was promised at, applied again
    reversal   how it was given back, if it was

All but the last two read an account's own rows: call them behind both walls (:mod:`accounts.tenancy`). Those two read terms and names,
which no tenant's role may: call them after the wall, with a row from behind it. :mod:`metering.explanation` says all of it in sentences,
and how much of it may be said to whom.
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

from django.db.models import BigIntegerField, F, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce

from accounts.models import Account
from billing.models import Grant, LedgerEntry, Operation, UsageRating
from metering import usage
from metering.models import UsageRecord
from pricing import catalog, rating
from pricing.models import RateCard

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


def quantity(components: Iterable[str]) -> Any:
    """Σ of some components of a record, as an expression; arrays end with their last component that is not 0."""
    positions = (rating.COMPONENTS.index(component) for component in sorted(components))
    return reduce(add, (Coalesce(F(f"quantities__{position}"), Value(0), output_field=BigIntegerField()) for position in positions))


TOKENS = quantity(rating.TOKEN_COMPONENTS)


@dataclass(frozen=True, slots=True)
class Rated:
    """How a price came about: ``exact`` (nanos, a fraction) is rounded up once, to a multiple of ``card.quantum_nanos``, and is at least
    ``card.minimum_nanos``.

    ``price``, ``cost`` and ``value`` are what the stored terms give when they are applied again. Cost, lines and card are whole here: who
    may not see them is not told of them.
    """

    rate_card: str
    version: int
    card: rating.RateCard
    exact: Fraction
    price: int
    cost: int
    value: int
    lines: tuple[rating.Line, ...]


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


def burnt(record: UsageRecord) -> list[tuple[LedgerEntry, Grant | None]]:
    """The ledger entries of the record's charge, in order, each with its grant (None: the movement is of debt)."""
    if record.first_seq is None or record.unit_id is None:
        return []
    entries = LedgerEntry.objects.filter(
        account_id=record.account_id, unit_id=record.unit_id, seq__gte=record.first_seq, seq__lt=record.first_seq + record.entries
    ).order_by("seq")
    found = list(entries.defer("fee_nanos"))
    grants = Grant.objects.filter(account_id=record.account_id, id__in=[entry.grant_id for entry in found if entry.grant_id])
    by_id = {grant.pk: grant for grant in grants.only("id", "source")}
    return [(entry, None if entry.grant_id is None else by_id[entry.grant_id]) for entry in found]


def rated(record: UsageRecord, *, model: str) -> Rated | None:
    """The stored rate card and price rows, applied again; None where nothing was rated.

    :raises catalog.NotInCatalog, rating.UnpricedUsage, rating.InvalidQuantity: what it was rated at, or by, cannot be read any more.
    """
    if record.price_nanos is None or record.rate_card_id is None or record.outcome not in USED:
        return None
    card = catalog.rate_card_by_id(rate_card_id=record.rate_card_id)
    row = RateCard.objects.get(pk=record.rate_card_id)
    book = catalog.book_of_rows(model=model, row_ids=record.price_ids or ())
    terms = again(card=card, book=book, used=record.quantities)
    lines, found = rating.explain(**terms), rating.rate(**terms)
    return Rated(
        rate_card=row.slug,
        version=row.version,
        card=card,
        exact=sum((line.charge for line in lines), Fraction()),
        price=found.price_nanos,
        cost=found.cost_nanos,
        value=found.list_value_nanos,
        lines=lines,
    )


def again(*, card: rating.RateCard, book: rating.Book, used: list[int]) -> dict[str, Any]:
    """What :mod:`pricing.rating` is asked to rate a record once more: ``book`` has its price rows and no others."""
    level = next(iter(book.levels), "standard")
    return {"card": card, "book": book, "model": book.model, "quantities": usage.folded(quantities(used), book), "service_level": level}


def reversal(record: UsageRecord) -> Operation | None:
    """The act that gave the whole charge back; None where nobody did. Who and why are staff's, and read where they are asked for."""
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
