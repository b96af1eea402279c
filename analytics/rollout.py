"""Whether a beta may go on: its criteria, held against what was measured.

    begin      makes a cohort, with the criteria that come with the site for its product and feature
    look       how each criterion stands, and the members' own figures
    advance    goes to the next phase, where nothing blocks it
    margin     what a cost leaves of the plan's price, without and with the payment fee

No data is no consent: a criterion without measurements, or over more days than there has been a cohort, blocks. A phase without criteria
may be left, but for the last step, to everybody. Figures are integers in the metric's unit: parts per million of a share, nano-USD,
milliseconds or a number, rounded down, which changes no comparison by ``≥`` or ``<`` with a whole number.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from django.db import connection, transaction

from analytics import rollups
from metering.cohort_models import Cohort, CohortCriterion
from metering.cohorts import Refused
from pricing.margin_lint import Fee, money, plain
from pricing.models import PlanVersion, Product

Unit = Literal["share", "dollars", "ms", "count", "yes"]
How = Literal["mean", "p95", "sum", "latest", "own"]
PHASES: Final = tuple(Cohort.Phase)
_SCALES: Final[Mapping[Unit, int]] = {"share": 10_000, "dollars": 1_000_000_000, "ms": 1, "count": 1, "yes": 1}
_MOST: Final[Mapping[Unit, int]] = {"share": 1_000_000, "dollars": 10**15, "ms": 10**9, "count": 10**9, "yes": 1}
_FAILS: Final = {"ge": "<", "lt": "≥", "eq": "≠"}
_MONTH_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Metric:
    """``how`` one figure comes of many samples; ``own``: of our own rows, so nobody reports it."""

    title: str
    unit: Unit
    how: How


METRICS: Final[Mapping[str, Metric]] = {
    "onboarded": Metric("members onboarded", "count", "own"),
    "cost_per_member": Metric("cost per active member and month", "dollars", "own"),
    "ws_up": Metric("WS", "share", "mean"),
    "provisioning_ok": Metric("provisioning", "share", "mean"),
    "latency_ms": Metric("latency (p95)", "ms", "p95"),
    "critical_bugs": Metric("critical bugs", "count", "sum"),
    "feedback_incorporated": Metric("feedback incorporated", "yes", "latest"),
    "cost_model_validated": Metric("cost model validated", "yes", "latest"),
    "documentation_complete": Metric("documentation complete", "yes", "latest"),
    "support_ready": Metric("support ready", "yes", "latest"),
}


@dataclass(frozen=True, slots=True)
class Stand:
    """How one criterion stands."""

    metric: Metric
    comparator: str
    value: int
    days: int
    #: None: nothing was measured.
    found: int | None
    #: For how many of the days there has been a cohort.
    covered: int
    text: str = ""

    @property
    def holds(self) -> bool:
        return self.why == ""

    @property
    def why(self) -> str:
        """What blocks; empty where it holds."""
        if self.found is None:
            return f"there is no data of {self.metric.title}"
        met = {"ge": self.found >= self.value, "lt": self.found < self.value, "eq": self.found == self.value}[self.comparator]
        if not met:
            return (
                f"{self.metric.title} {words(self.metric.unit, self.found)} {_FAILS[self.comparator]} {words(self.metric.unit, self.value)}"
            )
        if self.covered < self.days:
            return f"{self.metric.title} is measured over {self.days} days, and the cohort is {self.covered} old"
        return ""


@dataclass(frozen=True, slots=True)
class Margins:
    """What is left of a price, as shares of it."""

    price: Fraction
    without_fee: Fraction
    with_fee: Fraction


@dataclass(frozen=True, slots=True)
class Standing:
    """A cohort as it is: the criteria of its phase, and member → metric → figure."""

    stands: tuple[Stand, ...]
    by_member: Mapping[int, Mapping[str, int]]
    cost_nanos: int | None
    next_phase: str | None

    @property
    def blocked(self) -> str:
        """Why it may not go on; empty where it may."""
        if self.next_phase is None:
            return "it is open to everybody"
        if self.next_phase == Cohort.Phase.EVERYBODY and not self.stands:
            return "there is no criterion for it"
        return "; ".join(stand.why for stand in self.stands if not stand.holds)

    @property
    def sentence(self) -> str:
        if self.next_phase is None:
            return "Open to everybody whose plan has it."
        return f"Blocked because {self.blocked}." if self.blocked else f"Ready for “{Cohort.Phase(self.next_phase).label}”."


# Reckoning --------------------------------------------------------------------------------------------------------------------


def reckon(*, how: How, count: int, total: int, p95: int, latest: int) -> int:
    """The one figure of ``count`` samples, at least one."""
    match how:
        case "mean":
            return total // count
        case "p95":
            return p95
        case "sum":
            return total
        case _:
            return latest


def monthly(costs: Sequence[tuple[int, int]]) -> int | None:
    """The mean of members' costs in 30 days, each from (nano-USD, in so many days), rounded down; None of nobody."""
    return int(sum(Fraction(cost * _MONTH_DAYS, days) for cost, days in costs) / len(costs)) if costs else None


def margin(*, price_cents: int, cost_nanos: int, fee: Fee) -> Margins:
    """Of one month's price, above 0."""
    price, cost = Fraction(price_cents, 100), Fraction(cost_nanos, 10**9)
    return Margins(price, (price - cost) / price, (price - cost - fee.of(price)) / price)


def words(unit: Unit, value: int) -> str:
    """``93.8 %``, ``$15.00``, ``5,000 ms``, ``12``, ``yes``."""
    match unit:
        case "share":
            return f"{plain(Fraction(value, 10_000))} %"
        case "dollars":
            return money(Fraction(value, 10**9))
        case "ms":
            return f"{value:,} ms"
        case "yes":
            return "yes" if value else "no"
        case _:
            return f"{value:,}"


def parse(*, unit: Unit, text: str) -> int:
    """What staff write (``95 %``, ``$15``, ``5000 ms``, ``yes``), in the unit.

    :raises ValueError: it is none of these, below 0, too much, or finer than the unit.
    """
    plainly = text.strip().removeprefix("$").removesuffix("%").removesuffix("ms").strip().replace(",", "")
    if unit == "yes":
        plainly = {"yes": "1", "no": "0"}.get(plainly.lower(), plainly)
    try:
        number = Decimal(plainly)
    except InvalidOperation:
        raise ValueError(f"“{text[:20]}” is no number.") from None
    if not number.is_finite() or not 0 <= number <= _MOST[unit]:
        raise ValueError(f"Write a number from 0 to {words(unit, _MOST[unit])}.")
    scaled = number * _SCALES[unit]
    if scaled != int(scaled) or scaled > _MOST[unit]:
        raise ValueError(f"Write a number from 0 to {words(unit, _MOST[unit])}, not finer than it is shown.")
    return int(scaled)


# Of a cohort ------------------------------------------------------------------------------------------------------------------


@cache
def shipped() -> Mapping[str, Mapping[str, Any]]:
    """Product → feature → its capacity and criteria."""
    return tomllib.loads((Path(__file__).parent / "cohort_criteria.toml").read_text())


def begin(*, cohort: Cohort, now: datetime) -> Cohort:
    """Saves a new cohort, in its first phase, with the criteria that come for it."""
    cohort.phase, cohort.begun_at, cohort.phase_at = Cohort.Phase.INTERNAL, now, now
    with transaction.atomic():
        cohort.save()
        for leaves, metric, comparator, value, days, text in (
            shipped().get(cohort.product.slug, {}).get(cohort.feature, {}).get("criteria", ())
        ):
            CohortCriterion.objects.create(
                cohort=cohort, leaves=leaves, metric=metric, comparator=comparator, days=days, text=text,
                value=parse(unit=METRICS[metric].unit, text=value),
            )  # fmt: skip
    return cohort


def look(*, cohort: Cohort, now: datetime) -> Standing:
    """How the cohort's present phase stands at ``now``."""
    criteria = [one for one in cohort.criteria.all() if one.leaves == cohort.phase]
    samples = {days: _samples(cohort, days, now) for days in {7, *(one.days for one in criteria)}}
    costs = _costs(cohort, 28, now)
    own = {"onboarded": cohort.members.exclude(onboarded_at=None).count()}
    stands = []
    for one in criteria:
        metric = METRICS[one.metric]
        if one.metric == "cost_per_member":
            found = monthly(list(_costs(cohort, one.days, now).values()))
        else:
            found = own[one.metric] if metric.how == "own" else samples[one.days].get((one.metric, None))
        covered = one.days if metric.how == "latest" or one.metric == "onboarded" else min(one.days, (now - cohort.begun_at).days)
        stands.append(Stand(metric, one.comparator, one.value, one.days, found, covered, one.text))
    by_member: dict[int, dict[str, int]] = {}
    for (name, member), value in samples[7].items():
        if member is not None:
            by_member.setdefault(member, {})[name] = value
    for member, each in costs.items():
        by_member.setdefault(member, {})["cost_per_member"] = monthly([each]) or 0
    place = PHASES.index(Cohort.Phase(cohort.phase)) + 1
    return Standing(tuple(stands), by_member, monthly(list(costs.values())), PHASES[place].value if place < len(PHASES) else None)


def advance(*, cohort_id: int, phase: str, now: datetime) -> Cohort:
    """Leaves ``phase`` for the next one.

    :raises Refused: something blocks it, or the cohort is in another phase by now.
    """
    with transaction.atomic():
        cohort = Cohort.objects.select_for_update(of=("self",)).get(pk=cohort_id)
        if cohort.phase != phase:
            raise Refused("The cohort is in another phase by now.")
        standing = look(cohort=cohort, now=now)
        if standing.blocked or standing.next_phase is None:
            raise Refused(f"Blocked because {standing.blocked}.")
        cohort.phase, cohort.phase_at = standing.next_phase, now
        cohort.save(update_fields=["phase", "phase_at"])
    return cohort


def margins(*, product: Product, feature: str, cost_nanos: int) -> Margins | None:
    """What ``cost_nanos`` a month leaves of the newest monthly price in dollars of a plan that has the feature; None where none is sold."""
    sold = PlanVersion.objects.filter(
        plan__product=product, entitlements__key=feature, entitlements__enabled=True, price_cents__gt=0, currency="usd",
        interval=PlanVersion.Interval.MONTH,
    )  # fmt: skip
    price = sold.order_by("-valid_from", "-pk").values_list("price_cents", flat=True).first()
    fee = Fee(Fraction(product.payment_fee_ppm, 10**6), Fraction(product.payment_fee_cents, 100))
    return margin(price_cents=price, cost_nanos=cost_nanos, fee=fee) if price else None


def _samples(cohort: Cohort, days: int, now: datetime) -> dict[tuple[str, int | None], int]:
    """Metric and member (None: all of them) → the figure over the last ``days``."""
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("cohort_samples"), {"cohort": cohort.pk, "since": now - timedelta(days=days), "until": now})
        return {
            (metric, None if whole else member): reckon(how=METRICS[metric].how, count=count, total=total, p95=p95, latest=latest)
            for metric, member, whole, count, total, p95, latest in cursor.fetchall()
            if metric in METRICS and (whole or member is not None)
        }


def _costs(cohort: Cohort, days: int, now: datetime) -> dict[int, tuple[int, int]]:
    """Member who used anything → nano-USD, and the days in which."""
    until = now.date()
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("cohort_costs"), {"cohort": cohort.pk, "since": until - timedelta(days=days - 1), "until": until})
        return {member: (cost, in_days) for member, cost, in_days in cursor.fetchall()}
