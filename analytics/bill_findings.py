"""What is behind the variances of a bill, pure: the guilty price row, the missing traffic, the unknown model, each in a sentence.

diagnose   the findings of a comparison, the dearest first
implied    the roundest price that explains amounts of a known precision
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

from analytics.bill_variance import Key, Row, Variance

T = TypeVar("T")
K = TypeVar("K")

NANOS = 1_000_000_000
MILLION = 1_000_000
#: Prices that are closer than a thousandth are the same: what is left is rounding of the bill.
SAME_PRICE = Fraction(1, 1_000)
#: What one price comes to may differ by a ten-thousandth from day to day: providers add up what they rounded.
NOISE = Fraction(1, 10_000)
#: Quantities that are closer than a fiftieth moved as one, from one day to the next.
SAME_QUANTITY = Fraction(1, 50)
#: A finding is named from this amount on, nano-USD.
LEAST = 10_000_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """What else is known of a day and model of ours: holds that ended without a capture, records that look like one counted twice."""

    timed_out: int = 0
    duplicates: int = 0


class Kind(StrEnum):
    PRICE = "price"
    UNPRICED = "unpriced"
    SHIFTED = "shifted"
    MISSING = "missing"
    DOUBLED = "doubled"
    UNKNOWN_MODEL = "unknown_model"
    NOT_BILLED = "not_billed"
    UNSPLIT = "unsplit"


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, in a sentence, with what it explains of the difference. ``implied`` (dollars a unit) is what a price row should say."""

    kind: Kind
    model: str
    component: str
    level: str
    first_day: date
    last_day: date
    amount_nanos: int
    text: str
    rows: tuple[Row, ...] = ()
    implied: Decimal | None = None


def diagnose(*, variances: Sequence[Variance], known: Iterable[str], evidence: Mapping[tuple[date, str], Evidence]) -> list[Finding]:
    """The causes, the dearest first. No amount is in two of them; what is in none is too small to name.

    :param known: the models that we price or ever recorded. Others on the bill are listed as unknown.
    """
    names = set(known)
    unknown = [one for one in variances if one.key.model not in names]
    lines = [one for one in variances if one.key.model in names]
    findings = [*_unknown(unknown), *_unsplit(lines), *_prices(lines)]
    moved, rest = _shifted(lines)
    findings += moved
    waiting, rest = _unpriced(rest)
    findings += [*waiting, *_traffic(rest, lines, evidence)]
    return sorted(
        (one for one in findings if abs(one.amount_nanos) >= LEAST or one.kind == Kind.SHIFTED), key=lambda one: -abs(one.amount_nanos)
    )


def _unknown(lines: Sequence[Variance]) -> Iterator[Finding]:
    for model, group in _by(lines, lambda one: one.key.model):
        amount = sum(one.difference_nanos for one in group)
        text = f"{model} is on the bill with {dollars(amount)}, and is no model that we price or ever recorded."
        yield _finding(Kind.UNKNOWN_MODEL, group, amount, text, component="")


def _unsplit(lines: Sequence[Variance]) -> Iterator[Finding]:
    for model, group in _by((one for one in lines if one.billed_quantity is None), lambda one: one.key.model):
        amount = sum(one.unsplit_nanos for one in group)
        text = (
            f"{model}: {dollars(abs(amount))} {'more' if amount > 0 else 'less'} was billed than recorded. The bill states no "
            "quantities for it, so volume and price cannot be told apart: import the usage export beside the costs."
        )
        yield _finding(Kind.UNSPLIT, group, amount, text, component="")


def _prices(lines: Sequence[Variance]) -> Iterator[Finding]:
    """A row that the bill contradicts, over the days on which it contradicts it in the same way."""
    priced = [one for one in lines if one.billed_quantity and one.price is not None and one.key.component]
    for (_, component, _), group in _by(priced, lambda one: one.key[1:]):
        for days, low, high in _runs(group):
            rated = sum(one.quantity or one.billed_quantity or 0 for one in days)
            ours = sum(((one.price or Fraction(0)) * (one.quantity or one.billed_quantity or 0) for one in days), Fraction(0)) / rated
            amount = sum(one.price_nanos for one in days)
            if abs(amount) < LEAST or low * (1 - SAME_PRICE) <= ours <= high * (1 + SAME_PRICE):
                continue
            price = implied(low, high)
            rows = tuple(dict.fromkeys(row for one in days for row in one.rows))
            yield _finding(Kind.PRICE, days, amount, _price_text(days, component, ours, price, rows), rows=rows, implied=price)


def _runs(group: Sequence[Variance]) -> Iterator[tuple[list[Variance], Fraction, Fraction]]:
    """Days in a row that one price explains and that we rated by the same rows, with the bounds of that price in nanos a unit."""
    run: list[Variance] = []
    low = high = Fraction(0)
    for one in group:
        assert one.billed_quantity
        slack = max(Fraction(one.precision_nanos), one.billed_nanos * NOISE)
        least, most = (one.billed_nanos - slack) / one.billed_quantity, (one.billed_nanos + slack) / one.billed_quantity
        if run and max(low, least) <= min(high, most) and one.rows == run[-1].rows:
            run.append(one)
            low, high = max(low, least), min(high, most)
            continue
        if run:
            yield run, low, high
        run, low, high = [one], least, most
    if run:
        yield run, low, high


def _price_text(days: Sequence[Variance], component: str, ours: Fraction, price: Decimal, rows: Sequence[Row]) -> str:
    key = days[0].key
    level = f" ({key.level})" if key.level not in ("", "standard") else ""
    named = " and ".join(f"row {row.id}" for row in rows)
    ratio = Fraction(price) * NANOS / ours if ours else None
    times = f", {ratio.numerator} times ours" if ratio is not None and ratio.denominator == 1 and ratio > 1 else ""
    return (
        f"{key.model} {component}{level}: billed at {priced(price, component)}{times}; our price {named or 'of the book'} says "
        f"{priced(Decimal(ours.numerator) / ours.denominator / NANOS, component)}. {_days(days)}."
    )


def _shifted(lines: Sequence[Variance]) -> tuple[list[Finding], list[Variance]]:
    """Traffic that the bill has on one day and we on the next, or the other way round; and the lines that this leaves."""
    found: list[tuple[Variance, Variance]] = []
    used: set[Key] = set()
    for _, group in _by((one for one in lines if one.missing), lambda one: one.key[1:]):
        for one, other in pairwise(group):
            apart = abs(one.missing + other.missing)
            large = min(abs(one.volume_nanos), abs(other.volume_nanos)) >= LEAST
            near = other.key.day - one.key.day == timedelta(days=1) and one.missing * other.missing < 0
            if large and near and apart <= SAME_QUANTITY * abs(one.missing) and not {one.key, other.key} & used:
                used |= {one.key, other.key}
                found.append((one, other))
    findings = []
    for (model, day, later), pairs in _by(found, lambda pair: (pair[0].key.model, pair[0].key.day, pair[0].missing > 0)):
        both = [one for pair in pairs for one in pair]
        billed, recorded = (day, day + timedelta(days=1)) if later else (day + timedelta(days=1), day)
        moved = sum(abs(pair[0].volume_nanos) for pair in pairs)
        text = (
            f"{model}: {dollars(moved)} of traffic that the bill has on {billed} is recorded on {recorded}. Its events carry "
            f"{'a late' if later else 'an early'} time, or the provider's day does not begin at 00:00 UTC."
        )
        findings.append(_finding(Kind.SHIFTED, both, sum(one.volume_nanos for one in both), text, component=""))
    return findings, [one for one in lines if one.key not in used]


def _unpriced(lines: Sequence[Variance]) -> tuple[list[Finding], list[Variance]]:
    """What waits for a price of ours, as far as it explains what is missing; and the lines with only the rest of what they miss."""
    findings: list[Finding] = []
    rest: list[Variance] = []
    parts: list[tuple[Variance, int]] = []
    for one in lines:
        waiting = min(one.unpriced, max(one.missing, 0))
        part = round(Fraction(one.volume_nanos * waiting, one.missing)) if waiting else 0
        parts.append((one, part))
        rest.append(replace(one, volume_nanos=one.volume_nanos - part, quantity=one.quantity + waiting))
    for model, group in _by((pair for pair in parts if pair[1]), lambda pair: pair[0].key.model):
        amount, held = sum(part for _, part in group), [one for one, _ in group]
        text = f"{model}: {dollars(amount)} is recorded without a price. Approve prices for it; it is rated by itself then. {_days(held)}."
        findings.append(_finding(Kind.UNPRICED, held, amount, text, component=""))
    return findings, rest


def _traffic(lines: Sequence[Variance], all_lines: Sequence[Variance], evidence: Mapping[tuple[date, str], Evidence]) -> Iterator[Finding]:
    """Missing and surplus traffic: days of a model in a row with the same trouble become one finding."""
    billed = {one.key.model for one in all_lines if one.billed_nanos or one.billed_quantity}
    troubles: list[tuple[str, date, str, list[Variance]]] = []
    for (model, day), group in _by(lines, lambda one: (one.key.model, one.key.day)):
        if abs(sum(one.volume_nanos for one in group)) < LEAST:
            continue
        troubles.append((model, day, _trouble(group, model in billed), group))
    run: list[tuple[str, date, str, list[Variance]]] = []
    for trouble in sorted(troubles, key=lambda one: one[:3]):
        if run and (run[-1][0], run[-1][2]) == (trouble[0], trouble[2]) and trouble[1] - run[-1][1] == timedelta(days=1):
            run.append(trouble)
            continue
        if run:
            yield _traffic_finding(run, evidence)
        run = [trouble]
    if run:
        yield _traffic_finding(run, evidence)


def _trouble(group: Sequence[Variance], on_the_bill: bool) -> str:
    if sum(one.volume_nanos for one in group) > 0:
        return "less" if any(one.quantity for one in group) else "none"
    if not on_the_bill:
        return "unbilled"
    some = [one for one in group if one.billed_quantity]
    if not some:
        return "unbilled day"
    ratios = {round(Fraction(one.quantity, one.billed_quantity)) for one in some if one.billed_quantity and one.missing}
    exact = all(
        abs(one.quantity - max(ratios) * one.billed_quantity) <= SAME_QUANTITY * one.quantity
        for one in some
        if one.billed_quantity and one.missing
    )
    return f"times {max(ratios)}" if len(ratios) == 1 and max(ratios) > 1 and exact else "more"


def _traffic_finding(run: Sequence[tuple[str, date, str, list[Variance]]], evidence: Mapping[tuple[date, str], Evidence]) -> Finding:
    model, trouble = run[0][0], run[0][2]
    lines = [one for _, _, _, group in run for one in group]
    amount = sum(one.volume_nanos for one in lines)
    known = [evidence.get((day, model), Evidence()) for _, day, _, _ in run]
    timed_out, duplicates = sum(one.timed_out for one in known), sum(one.duplicates for one in known)
    quantities = _quantities(lines)
    hint = ""
    if amount > 0 and timed_out:
        hint = (
            f" {timed_out:,} hold{'s' if timed_out != 1 else ''} of it timed out and {'were' if timed_out != 1 else 'was'} never captured."
        )
    elif amount < 0 and duplicates:
        hint = f" {duplicates:,} record{'' if duplicates == 1 else 's'} of it equal{'s' * (duplicates == 1)} another in all but the key."
    says = {
        "none": (Kind.MISSING, f"the bill has {quantities}, and nothing is recorded"),
        "less": (Kind.MISSING, f"the bill has {quantities} more than is recorded"),
        "more": (Kind.DOUBLED, f"{quantities} more is recorded than billed"),
        "unbilled": (Kind.NOT_BILLED, f"{quantities} is recorded, and the model is not on the bill"),
        "unbilled day": (Kind.NOT_BILLED, f"{quantities} is recorded, and the bill has nothing of it"),
    }
    kind, said = says.get(trouble) or (Kind.DOUBLED, f"{trouble.removeprefix('times ')} times what was billed is recorded")
    return _finding(kind, lines, amount, f"{model}: {said}, {dollars(abs(amount))}. {_days(lines)}.{hint}", component="")


def _quantities(lines: Sequence[Variance]) -> str:
    sums: dict[str, int] = defaultdict(int)
    for one in lines:
        sums[one.key.component] += abs(one.missing)
    return ", ".join(f"{quantity:,} {component.replace('_', ' ')}" for component, quantity in sums.items() if quantity)


def _finding(
    kind: Kind, lines: Sequence[Variance], amount: int, text: str, *, component: str | None = None, rows: tuple[Row, ...] = (),
    implied: Decimal | None = None,
) -> Finding:  # fmt: skip
    key, days = lines[0].key, [one.key.day for one in lines]
    level = key.level if component is None else ""
    return Finding(
        kind, key.model, key.component if component is None else component, level, min(days), max(days), amount, text, rows, implied
    )


def _by(rows: Iterable[T], key: Callable[[T], K]) -> Iterator[tuple[K, list[T]]]:
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    yield from groups.items()


# Words --------------------------------------------------------------------------------------------------------------------------


def implied(low: Fraction, high: Fraction) -> Decimal:
    """The roundest price from ``low`` to ``high`` (nanos a unit), in dollars a unit: what a price list would say."""
    middle = (low + high) / 2
    for exponent in range(12, -13, -1):
        step = Fraction(10) ** exponent
        nearest = round(middle / step) * step
        if low <= nearest <= high:
            return Decimal(nearest.numerator) / nearest.denominator / NANOS
    return Decimal(middle.numerator) / middle.denominator / NANOS


def priced(price: Decimal, component: str) -> str:
    """``$2.50 per 1,000,000``; what is no token, per unit."""
    per = MILLION if component.endswith("_tokens") else 1
    amount = f"{(price * per).quantize(Decimal(1).scaleb(-9)):f}".rstrip("0")
    whole, _, part = amount.partition(".")
    return f"${int(whole):,}.{part.ljust(2, '0')} per {per:,}"


def dollars(nanos: int) -> str:
    """To the cent, halves up; of less than a cent every digit."""
    cents = (abs(nanos) + 5_000_000) // 10_000_000
    sign = "\N{MINUS SIGN}" if nanos < 0 else ""
    if nanos and not cents:
        return f"{sign}${Decimal(abs(nanos)).scaleb(-9).normalize():f}"
    return f"{sign}${cents // 100:,}.{cents % 100:02}"


def _days(lines: Sequence[Variance]) -> str:
    days = sorted({one.key.day for one in lines})
    return f"On {days[0]}" if len(days) == 1 else f"On {len(days)} days from {days[0]} to {days[-1]}"
