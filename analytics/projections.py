"""Projections: what a business would earn in a month with so many users, packs and costs. Pure; :mod:`analytics.scenarios` reads them in.

    project      the month, line by line, with its margin, its break-even and what the rules advise

Amounts are integers of nano-USD, shares parts per million. Costs may be a range: the *best* case has the low end of each, the *worst* the
high one. Every line says how it came about. A share of revenue is rounded to the nano, halves to even; a percentage to two decimals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

PPM = 1_000_000
NANOS = 1_000_000_000
CostKind = Literal["ai", "machine", "fixed", "other"]
Measure = Literal["margin", "plan_margin", "ai_of_credit_revenue", "ai_of_revenue", "machine_of_revenue", "cost_per_user", "cost_of_budget"]
#: How a measure is said, before "is 53 %".
SAID: Mapping[Measure, str] = {
    "margin": "The margin",
    "plan_margin": "The margin",
    "ai_of_credit_revenue": "AI cost of credit revenue",
    "ai_of_revenue": "AI cost of all revenue",
    "machine_of_revenue": "Machine cost of all revenue",
    "cost_per_user": "Cost a user",
    "cost_of_budget": "Cost of the budget",
}


class Range(NamedTuple):
    best: int
    worst: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``users`` at ``price_nanos`` a month, each of whom costs ``cost_nanos``, and ``limit_nanos`` at most by the plan's cost tier."""

    name: str
    users: int
    price_nanos: int
    from_catalog: bool
    cost_nanos: Range | None = None
    cost_kind: CostKind = "ai"
    target_ppm: int | None = None
    limit_nanos: int | None = None
    of_users: str = ""  # how the number came about, e.g. "30 % of 100 users"


@dataclass(frozen=True, slots=True)
class Pack:
    name: str
    sold: int
    price_nanos: int
    from_catalog: bool


@dataclass(frozen=True, slots=True)
class Lump:
    """Revenue as one amount."""

    name: str
    nanos: int
    credits: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """One amount, or (``of_revenue``) so many parts per million of revenue."""

    name: str
    kind: CostKind
    amount: Range
    of_revenue: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Advises to ``act`` where ``measure`` is on the wrong side of ``threshold``: parts per million, or nano-USD of ``cost_per_user``.

    ``threshold`` None: of ``plan_margin``, what the plan's tier aims at."""

    measure: Measure
    wrong: Literal["lt", "gt", "ge"]
    act: str
    threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    plans: Sequence[Plan]
    packs: Sequence[Pack] = ()
    lumps: Sequence[Lump] = ()
    costs: Sequence[Cost] = ()
    budget_nanos: int | None = None
    fee_ppm: int = 0
    fee_nanos: int = 0
    rules: Sequence[Rule] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """``says``: the arithmetic. ``source``: where its price is from."""

    name: str
    amount: Range
    says: str
    source: Literal["catalog", "assumption"]

    @property
    def total(self) -> str:
        """The amount, as people read it."""
        return said(self.amount)


@dataclass(frozen=True, slots=True)
class PlanMargin:
    """The margin on one user's price, in percent; ``at_limit`` if each used all that the tier lets them cost. None where there is none."""

    name: str
    best: Decimal | None
    worst: Decimal | None
    at_limit: Decimal | None


@dataclass(frozen=True, slots=True)
class Advice:
    """``wrong``: the rule fires, and ``act`` is what to do."""

    says: str
    act: str
    wrong: bool


@dataclass(frozen=True, slots=True)
class BreakEven:
    """How many paying users of the same mix bear the fixed cost; None: however many, none do."""

    best: int | None
    worst: int | None
    says: str


@dataclass(frozen=True, slots=True)
class Projection:
    """``margin_after_fees`` takes the payment provider's fee off too: a payment a paying user and a pack; of lumps its share alone."""

    title: str
    revenue: tuple[Line, ...]
    costs: tuple[Line, ...]
    revenue_nanos: int
    cost: Range
    profit: Range
    margin_best: Decimal | None
    margin_worst: Decimal | None
    fees: Line
    margin_after_fees_best: Decimal | None
    margin_after_fees_worst: Decimal | None
    plans: tuple[PlanMargin, ...]
    break_even: BreakEven | None
    advice: tuple[Advice, ...]


def project(*, scenario: Scenario) -> Projection:
    """The month of ``scenario``. Nothing is read and nothing is written."""
    revenue = tuple(_revenue(scenario))
    total = sum(line.amount.best for line in revenue)
    kinds = tuple(_costs(scenario, total))
    costs = tuple(line for _, line in kinds)
    cost = _sum(line.amount for line in costs)
    profit = Range(total - cost.best, total - cost.worst)
    fees = _fees(scenario, total)
    return Projection(
        scenario.title, revenue, costs, total, cost, profit, percent(profit.best, total), percent(profit.worst, total), fees,
        percent(profit.best - fees.amount.best, total), percent(profit.worst - fees.amount.worst, total),
        tuple(_plan_margin(plan) for plan in scenario.plans if plan.price_nanos and plan.cost_nanos), _break_even(scenario, total, kinds),
        tuple(_advice(scenario, total, kinds)),
    )  # fmt: skip


def _revenue(scenario: Scenario) -> Iterator[Line]:
    for plan in scenario.plans:
        yield _sold(plan.name, plan.users, plan.price_nanos, plan.from_catalog, f" ({plan.of_users})" if plan.of_users else "")
    for pack in scenario.packs:
        yield _sold(pack.name, pack.sold, pack.price_nanos, pack.from_catalog, "")
    for lump in scenario.lumps:
        yield Line(lump.name, Range(lump.nanos, lump.nanos), dollars(lump.nanos), "assumption")


def _sold(name: str, count: int, price_nanos: int, from_catalog: bool, of: str) -> Line:
    nanos = count * price_nanos
    says = f"{count:,}{of} × {dollars(price_nanos)} = {dollars(nanos)}"
    return Line(name, Range(nanos, nanos), says, "catalog" if from_catalog else "assumption")


def _costs(scenario: Scenario, revenue: int) -> Iterator[tuple[CostKind, Line]]:
    for plan in scenario.plans:
        if plan.cost_nanos is not None:
            amount = Range(plan.users * plan.cost_nanos.best, plan.users * plan.cost_nanos.worst)
            says = f"{plan.users:,} × {said(plan.cost_nanos)} = {said(amount)}"
            yield plan.cost_kind, Line(f"{plan.name} users", amount, says, "assumption")
    for cost in scenario.costs:
        if cost.of_revenue:
            amount = Range(*(round(Fraction(revenue * ppm, PPM)) for ppm in cost.amount))
            shares = " to ".join(dict.fromkeys(f"{_plain(ppm, 4)} %" for ppm in cost.amount))
            yield cost.kind, Line(cost.name, amount, f"{shares} of {dollars(revenue)} = {said(amount)}", "assumption")
        else:
            yield cost.kind, Line(cost.name, cost.amount, said(cost.amount), "assumption")


def _fees(scenario: Scenario, revenue: int) -> Line:
    payments = sum(plan.users for plan in scenario.plans if plan.price_nanos) + sum(pack.sold for pack in scenario.packs)
    nanos = round(Fraction(revenue * scenario.fee_ppm, PPM)) + payments * scenario.fee_nanos
    says = f"{_plain(scenario.fee_ppm, 4)} % of {dollars(revenue)} + {payments:,} × {dollars(scenario.fee_nanos)} = {dollars(nanos)}"
    return Line("Payment fees", Range(nanos, nanos), says, "catalog")


def _plan_margin(plan: Plan) -> PlanMargin:
    assert plan.cost_nanos is not None
    at_limit = None if plan.limit_nanos is None else percent(plan.price_nanos - plan.limit_nanos, plan.price_nanos)
    best, worst = (percent(plan.price_nanos - cost, plan.price_nanos) for cost in plan.cost_nanos)
    return PlanMargin(plan.name, best, worst, at_limit)


def _break_even(scenario: Scenario, revenue: int, costs: Sequence[tuple[CostKind, Line]]) -> BreakEven | None:
    """Of the same mix of plans, packs and costs. None without a fixed cost or without paying users."""
    paying = sum(plan.users for plan in scenario.plans if plan.price_nanos)
    fixed = _sum(line.amount for kind, line in costs if kind == "fixed")
    variable = _sum(line.amount for kind, line in costs if kind != "fixed")
    if not paying or not fixed.worst:
        return None
    each = [Fraction(revenue - cost, paying) for cost in variable]
    best, worst = (-(-Fraction(cost) // left) if left > 0 else None for cost, left in zip(fixed, each, strict=True))
    left = " to ".join(dict.fromkeys(dollars(round(nanos / 10_000_000) * 10_000_000) for nanos in each))
    return BreakEven(best, worst, f"{said(fixed)} of fixed cost ÷ {left} that a paying user leaves")


def _advice(scenario: Scenario, revenue: int, costs: Sequence[tuple[CostKind, Line]]) -> Iterator[Advice]:
    """Of the worst case."""
    by_kind = {kind: sum(line.amount.worst for each, line in costs if each == kind) for kind, _ in costs}
    cost = sum(by_kind.values())
    users = sum(plan.users for plan in scenario.plans)
    from_credits = sum(lump.nanos for lump in scenario.lumps if lump.credits) + sum(pack.sold * pack.price_nanos for pack in scenario.packs)
    measured: dict[Measure, Fraction | None] = {
        "margin": _share(revenue - cost, revenue),
        "ai_of_credit_revenue": _share(by_kind.get("ai", 0), from_credits),
        "ai_of_revenue": _share(by_kind.get("ai", 0), revenue),
        "machine_of_revenue": _share(by_kind.get("machine", 0), revenue),
        "cost_per_user": Fraction(cost, users) if users else None,
        "cost_of_budget": _share(cost, scenario.budget_nanos or 0),
    }
    for rule in scenario.rules:
        if rule.measure == "plan_margin":
            for plan in scenario.plans:
                threshold = plan.target_ppm if rule.threshold is None else rule.threshold
                if plan.cost_nanos is not None and plan.price_nanos and threshold is not None:
                    share = Fraction(PPM * (plan.price_nanos - plan.cost_nanos.worst), plan.price_nanos)
                    yield _advised(rule, f"The margin on {plan.name}", share, threshold)
        elif (value := measured[rule.measure]) is not None and rule.threshold is not None:
            yield _advised(rule, SAID[rule.measure], value, rule.threshold)


def _advised(rule: Rule, said: str, value: Fraction, threshold: int) -> Advice:
    wrong = {"lt": value < threshold, "gt": value > threshold, "ge": value >= threshold}[rule.wrong]
    bound = {"lt": "at least", "gt": "at most", "ge": "below"}[rule.wrong]
    amounts = rule.measure == "cost_per_user"
    shown, of = (
        (dollars(round(value)), dollars(threshold)) if amounts else (f"{_plain(round(value / 100), 2)} %", f"{_plain(threshold, 4)} %")
    )
    return Advice(f"{said} is {shown}; it should be {bound} {of}.", rule.act if wrong else "", wrong)


def percent(part: int, whole: int) -> Decimal | None:
    """``part`` of ``whole`` in percent, to two decimals, halves to even; None of nothing."""
    return Decimal(round(Fraction(10_000 * part, whole))).scaleb(-2) if whole else None


def dollars(nanos: int) -> str:
    """``$1,500``, ``$74.70``, ``$0.0005``: every digit that is not zero."""
    whole, part = divmod(abs(nanos), NANOS)
    digits = f"{part:09}".rstrip("0")
    return f"{'−' if nanos < 0 else ''}${whole:,}" + (f".{digits.ljust(2, '0')}" if digits else "")


def said(amount: Range) -> str:
    """``$5 to $11``; one amount where both are the same."""
    return " to ".join(dict.fromkeys(map(dollars, amount)))


def _plain(number: int, digits: int) -> str:
    """``number`` of 10⁻ᵈⁱᵍⁱᵗˢ, without zeros at the end."""
    whole, part = divmod(abs(number), 10**digits)
    decimals = f"{part:0{digits}}".rstrip("0")
    return f"{'−' if number < 0 else ''}{whole:,}" + (f".{decimals}" if decimals else "")


def _share(part: int, whole: int) -> Fraction | None:
    return Fraction(PPM * part, whole) if whole > 0 else None


def _sum(amounts: Iterator[Range]) -> Range:
    found = list(amounts)
    return Range(sum(each.best for each in found), sum(each.worst for each in found))
