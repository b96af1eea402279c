"""What we recorded on a bill's days, as a bill is compared with it: by day, model, component and service level, with the price rows.

    groups               the records of these days, added up where they differ in their quantities alone
    recorded             their cost by component, and what else is known of a day
    of_book              the price of what we recorded nothing of
    look_for_duplicates  records that look like one counted twice

Time goes with the records of the bill's days, whatever else there is. Days are UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Final, NamedTuple

from django.db import connection, transaction

from analytics import rollups
from analytics.bill_findings import LEAST, Evidence
from analytics.bill_variance import Key, Recorded, Row, Variance
from pricing.models import PriceRow
from pricing.rating import COMPONENTS

#: So many suspicious days and models are searched for records that look counted twice.
_LOOKS: Final = 62


class Group(NamedTuple):
    """Records of a day that differ in their quantities alone, added up."""

    day: date
    model_id: int
    level: str
    state: str
    price_ids: list[int] | None
    records: int
    cost_nanos: int
    quantities: list[int]


def groups(*, since: date, until: date, models: list[int]) -> list[Group]:
    """What was used of ``models`` from ``since`` up to but without ``until``, but for what customers used with keys of their own."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("set local statement_timeout = '5min'")
        cursor.execute(rollups.query("bill_captured"), {"start": midnight(since), "end": midnight(until), "models": models})
        found = [
            Group(day, model, level, state, rows, records, int(cost), [int(quantity) for quantity in quantities])
            for day, model, level, state, rows, records, cost, quantities in cursor.fetchall()
        ]
    # Used with the customer's own key: on the customer's bill. Nothing was rated by a row of ours.
    return [one for one in found if one.state != "priced" or one.price_ids]


def recorded(*, groups: Sequence[Group], names: Mapping[int, str]) -> tuple[list[Recorded], dict[tuple[date, str], Evidence]]:
    """Each group's cost by component: in proportion to quantity × price, cumulative and cut, so that the parts sum to what was recorded."""
    rows = {row.pk: row for row in PriceRow.objects.filter(pk__in={pk for group in groups for pk in group.price_ids or ()})}
    found: list[Recorded] = []
    evidence: dict[tuple[date, str], Evidence] = {}
    for group in groups:
        name = names[group.model_id]
        if group.state == "timed_out":
            before = evidence.get((group.day, name), Evidence())
            evidence[group.day, name] = Evidence(before.timed_out + group.records)
            continue
        used = {component: quantity for component, quantity in zip(COMPONENTS, group.quantities, strict=True) if quantity}
        if group.state == "unpriced":
            found += [Recorded(Key(group.day, name, part, group.level), 0, 0, (), quantity) for part, quantity in used.items()]
            continue
        of = {
            rows[pk].component: Row(pk, rows[pk].price_nanos, rows[pk].per_units, rows[pk].catalog)
            for pk in group.price_ids or ()
            if pk in rows
        }
        exact = {part: quantity * of[part].price if part in of else Fraction(0) for part, quantity in used.items()}
        total, so_far, given = sum(exact.values(), Fraction(0)), Fraction(0), 0
        for part, quantity in used.items():
            so_far += exact[part]
            upto = group.cost_nanos if not total or so_far == total else so_far * group.cost_nanos // total
            key = Key(group.day, name, part, group.level)
            found.append(Recorded(key, quantity, int(upto) - given, ((of[part], quantity),) if part in of else ()))
            given = int(upto)
    return found, evidence


def of_book(*, book: Sequence[PriceRow], key: Key) -> Row | None:
    """The price book's row of a key that we recorded nothing of."""
    at, level = midnight(key.day) + timedelta(hours=12), key.level or "standard"
    for row in book:
        if (row.model, row.component, row.service_level) == (key.model, key.component, level) and at in row.valid:
            return Row(row.pk, row.price_nanos, row.per_units, row.catalog)
    return None


def look_for_duplicates(*, variances: Iterable[Variance], ids: Mapping[str, list[int]], evidence: dict[tuple[date, str], Evidence]) -> None:
    """Adds to ``evidence`` how many records of days with a surplus look like one counted twice."""
    surplus = sorted({(one.key.day, one.key.model) for one in variances if one.volume_nanos <= -LEAST})
    for day, model in surplus[:_LOOKS]:
        with connection.cursor() as cursor:
            cursor.execute(
                rollups.query("bill_duplicates"),
                {"start": midnight(day), "end": midnight(day + timedelta(days=1)), "models": ids.get(model, [])},
            )
            [(same,)] = cursor.fetchall()
        if same:
            evidence[day, model] = Evidence(evidence.get((day, model), Evidence()).timed_out, same)


def midnight(day: date) -> datetime:
    """When ``day`` begins, in UTC."""
    return datetime.combine(day, time(), tzinfo=UTC)
