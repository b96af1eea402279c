"""POST /api/v1/admin/projections: a calculator. The body is a scenario (:mod:`analytics.scenarios`); nothing is stored."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from pydantic import BaseModel, ConfigDict, Field

from accounts import api, api_keys, reads
from analytics import projections, scenarios
from pricing import catalog


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class AmountRange(_Figures):
    """US dollars. `best` is the case in which every cost is at its low end."""

    best: reads.Amount
    worst: reads.Amount


class ProjectedLine(_Figures):
    name: str
    amount: AmountRange
    says: str = Field(description="How it came about: `60 × $25 = $1,500`.")
    source: str = Field(description="Where the price is from: `catalog` or `assumption`.")


class ProjectedPlan(_Figures):
    """Margins on one user's price, in percent. `at_limit`: if each used all that their cost tier allows."""

    name: str
    best: str | None
    worst: str | None
    at_limit: str | None


class ProjectedAdvice(_Figures):
    says: str
    act: str = Field(description="What to do; empty where all is well.")
    wrong: bool


class BreakEvenAnswer(_Figures):
    """Paying users of the same mix that bear the fixed cost; null: none do, however many."""

    best: int | None
    worst: int | None
    says: str


class ProjectionAnswer(reads.Answer):
    """A month as it would be. Percentages have two decimals; null of nothing."""

    title: str
    revenue: list[ProjectedLine]
    costs: list[ProjectedLine]
    total_revenue: reads.Amount
    total_cost: AmountRange
    profit: AmountRange
    margin_best: str | None
    margin_worst: str | None
    fees: ProjectedLine = Field(description="Of the payment provider; not in `total_cost`.")
    margin_after_fees_best: str | None
    margin_after_fees_worst: str | None
    plans: list[ProjectedPlan]
    break_even: BreakEvenAnswer | None
    advice: list[ProjectedAdvice]


@api.endpoint(scope="admin:read")
def project(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    """The projection of a scenario at the prices of the key's product."""
    scenario = api.parse(request, scenarios.Scenario)
    own = catalog.product_by_id(product_id=principal.product_id).slug
    if scenario.product not in (None, own):
        raise api.Problem(404, "not_found", "No such product.")
    try:
        found = scenarios.compute(scenario=scenario.model_copy(update={"product": own}), now=timezone.now())
    except scenarios.InvalidScenario as error:
        raise api.Problem(422, "invalid_request", "Some fields are wrong.", errors=error.problems) from None
    return api.as_json(answer(found).model_dump(mode="json"))


def answer(found: projections.Projection) -> ProjectionAnswer:
    """What the API and the command's ``--json`` say of it."""
    plans = [
        ProjectedPlan(name=plan.name, best=_text(plan.best), worst=_text(plan.worst), at_limit=_text(plan.at_limit)) for plan in found.plans
    ]
    return ProjectionAnswer(
        title=found.title, revenue=[_line(line) for line in found.revenue], costs=[_line(line) for line in found.costs],
        total_revenue=found.revenue_nanos, total_cost=_range(found.cost), profit=_range(found.profit), fees=_line(found.fees), plans=plans,
        break_even=None if found.break_even is None else BreakEvenAnswer.model_validate(found.break_even),
        advice=[ProjectedAdvice.model_validate(each) for each in found.advice],
        margin_best=_text(found.margin_best), margin_worst=_text(found.margin_worst),
        margin_after_fees_best=_text(found.margin_after_fees_best), margin_after_fees_worst=_text(found.margin_after_fees_worst),
    )  # fmt: skip


def _line(line: projections.Line) -> ProjectedLine:
    return ProjectedLine(name=line.name, amount=_range(line.amount), says=line.says, source=line.source)


def _range(amount: projections.Range) -> AmountRange:
    return AmountRange(best=amount.best, worst=amount.worst)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
