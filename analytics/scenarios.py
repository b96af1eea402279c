"""Scenarios: what people write to have a month projected. A file of TOML or JSON, or the same as a request's body.

    parse     a file → scenario, or every problem at once
    compute   the projection of a scenario, with the prices of its product's catalog
    SHIPPED   the examples of the products' documents, by name (``scenario_files``)

Prices of plans and packs are those that the catalog sells at; a scenario's own ``price`` stands in place of one. All else is assumed, and
every line of the projection says which it is. Amounts and percentages are strings of decimals, never floats.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from accounts import api
from analytics import projections
from analytics.projections import PPM, Projection, Range
from pricing import catalog
from pricing.models import PlanVersion, Product

MAX_BYTES: Final = 64 * 1024
MOST_ROWS: Final = 50
MOST_COUNT: Final = 1_000_000_000
_CENT_NANOS: Final = 10_000_000
_FOLDER = Path(__file__).parent / "scenario_files"
SHIPPED: Final[Mapping[str, str]] = {path.stem: path.read_text() for path in sorted(_FOLDER.glob("*.toml"))}


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("Control characters are not allowed.")
    return value


Amount = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", examples=["25.00"], description="US dollars, as a string.")]
Percent = Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,4})?$", examples=["30"], description="As a string.")]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]


class InvalidScenario(Exception):
    """It cannot be computed. ``problems`` has each wrong field and what was expected."""

    def __init__(self, problems: list[dict[str, str]]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{problem['field']}: {problem['message']}" for problem in problems))


class PlanSold(api.Command):
    """How many users a plan has: `users`, or `percent_of_users` of the scenario's, rounded down. Each costs `cost`, up to `cost_high`."""

    users: Count | None = None
    percent_of_users: Percent | None = None
    price: Amount | None = Field(None, description="A month, in place of the catalog's.")
    cost: Amount | None = Field(None, description="What one user costs a month.")
    cost_high: Amount | None = None
    cost_kind: projections.CostKind = "ai"

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.users is None) == (self.percent_of_users is None):
            raise ValueError("give either users or percent_of_users")
        if self.cost_kind == "fixed":
            raise ValueError("a cost of each user is not fixed")
        _ordered(self.cost, self.cost_high, "cost")
        return self


class PackSold(api.Command):
    sold: Count
    price: Amount | None = Field(None, description="In place of the catalog's.")


class OtherRevenue(api.Command):
    """Revenue as one amount; `credits` where credit is sold for it."""

    name: Name
    kind: Literal["credits", "other"] = "other"
    amount: Amount


class OtherCost(api.Command):
    """An `amount` a month, or `percent_of_revenue`, each up to its `_high`. What is `fixed` does not grow with users."""

    name: Name
    kind: projections.CostKind
    amount: Amount | None = None
    amount_high: Amount | None = None
    percent_of_revenue: Percent | None = None
    percent_of_revenue_high: Percent | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.amount is None) == (self.percent_of_revenue is None):
            raise ValueError("give either amount or percent_of_revenue")
        if self.kind == "fixed" and self.percent_of_revenue is not None:
            raise ValueError("a share of revenue is not fixed")
        _ordered(self.amount, self.amount_high, "amount")
        _ordered(self.percent_of_revenue, self.percent_of_revenue_high, "percent_of_revenue")
        return self


class Scenario(api.Command):
    """A month of a business as it might be."""

    title: Name
    product: Slug | None = Field(None, description="Whose catalog has the prices. A product key's own.")
    notes: Annotated[str, Field(max_length=2_000)] = ""
    users: Count | None = Field(None, description="Of which `percent_of_users` are shares.")
    budget: Amount | None = Field(None, description="What all of it may cost.")
    plans: Annotated[dict[Slug, PlanSold], Field(max_length=MOST_ROWS)] = {}
    packs: Annotated[dict[Slug, PackSold], Field(max_length=MOST_ROWS)] = {}
    revenue: Annotated[list[OtherRevenue], Field(max_length=MOST_ROWS)] = []
    costs: Annotated[list[OtherCost], Field(max_length=MOST_ROWS)] = []

    @model_validator(mode="after")
    def _has_users(self) -> Self:
        if self.users is None and any(plan.percent_of_users is not None for plan in self.plans.values()):
            raise ValueError("percent_of_users is of users: say how many there are")
        if not (self.plans or self.packs or self.revenue):
            raise ValueError("nothing is sold: give plans, packs or revenue")
        return self


def parse(text: bytes | str) -> Scenario:
    """A file's scenario; what begins with ``{`` is JSON. :raises InvalidScenario: it is none."""
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise _wrong("file", f"It is longer than {MAX_BYTES // 1024} KiB.")
    try:
        document: Any = api.loads(raw) if raw.lstrip().startswith(b"{") else tomllib.loads(raw.decode())
    except UnicodeDecodeError:
        raise _wrong("file", "It is not UTF-8 text.") from None
    except (api.Problem, tomllib.TOMLDecodeError) as error:
        raise _wrong("file", f"It is neither TOML nor JSON: {error}") from None
    except (ValueError, RecursionError):
        raise _wrong("file", "It is neither TOML nor JSON: a number is too long, or it is nested too deep.") from None
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        raise InvalidScenario(api.field_errors(error)) from None


def compute(*, scenario: Scenario, now: datetime) -> Projection:
    """The projection, at the prices of ``now``.

    :raises InvalidScenario: there is no such product, plan or pack, or one without a price in US dollars.
    """
    product = None
    problems: list[dict[str, str]] = []
    if scenario.product is not None:
        try:
            product = catalog.product(slug=scenario.product)
        except catalog.NotInCatalog:
            raise _wrong("product", f"There is no product {scenario.product}.") from None
    plans, packs = [], []
    for slug, sold in scenario.plans.items():
        try:
            plans.append(_plan(slug, sold, scenario, product, now))
        except InvalidScenario as error:
            problems += error.problems
    for slug, pack in scenario.packs.items():
        try:
            packs.append(_pack(slug, pack, product, now))
        except InvalidScenario as error:
            problems += error.problems
    if problems:
        raise InvalidScenario(problems)
    return projections.project(
        scenario=projections.Scenario(
            scenario.title, plans, packs,
            [projections.Lump(each.name, _nanos(each.amount), each.kind == "credits") for each in scenario.revenue],
            [_cost(each) for each in scenario.costs],
            None if scenario.budget is None else _nanos(scenario.budget),
            product.payment_fee_ppm if product else 0, product.payment_fee_cents * _CENT_NANOS if product else 0,
            list(_rules_of(product)),
        )
    )  # fmt: skip


def _plan(slug: str, sold: PlanSold, scenario: Scenario, product: Product | None, now: datetime) -> projections.Plan:
    version, name = None, slug
    if product is not None:
        try:
            version = catalog.plan_version(product_id=product.pk, slug=slug, at=now).version
        except catalog.NotInCatalog:
            raise _wrong(f"plans.{slug}", f"{product} has no plan {slug}.") from None
        name = version.plan.name
    price = _nanos(sold.price) if sold.price is not None else _monthly(version)
    if price is None:
        raise _wrong(f"plans.{slug}.price", "The catalog has no price for it in US dollars: give one.")
    users, of_users = sold.users, ""
    if sold.percent_of_users is not None:
        assert scenario.users is not None
        users = scenario.users * _scaled(sold.percent_of_users, 4) // PPM
        of_users = f"{sold.percent_of_users} % of {scenario.users:,} users"
    assert users is not None
    tier = version.cost_tier if version else None
    return projections.Plan(
        name, users, price, sold.price is None, None if sold.cost is None else _range(sold.cost, sold.cost_high, 9), sold.cost_kind,
        tier.target_margin_ppm if tier else None, tier.monthly_cost_nanos if tier else None, of_users,
    )  # fmt: skip


def _monthly(version: PlanVersion | None) -> int | None:
    """Of a yearly price the twelfth, rounded down."""
    if version is None or version.price_cents is None or version.currency != "usd":
        return None
    return version.price_cents * _CENT_NANOS // (12 if version.interval == PlanVersion.Interval.YEAR else 1)


def _pack(slug: str, sold: PackSold, product: Product | None, now: datetime) -> projections.Pack:
    name, price = slug, None
    if product is not None:
        try:
            pack = catalog.pack(product_id=product.pk, slug=slug, at=now)
        except catalog.NotInCatalog:
            raise _wrong(f"packs.{slug}", f"{product} sells no pack {slug}.") from None
        name, price = pack.name, pack.price_cents * _CENT_NANOS if pack.currency == "usd" else None
    price = _nanos(sold.price) if sold.price is not None else price
    if price is None:
        raise _wrong(f"packs.{slug}.price", "The catalog has no price for it in US dollars: give one.")
    return projections.Pack(name, sold.sold, price, sold.price is None)


def _cost(cost: OtherCost) -> projections.Cost:
    if cost.percent_of_revenue is not None:
        return projections.Cost(cost.name, cost.kind, _range(cost.percent_of_revenue, cost.percent_of_revenue_high, 4), of_revenue=True)
    assert cost.amount is not None
    return projections.Cost(cost.name, cost.kind, _range(cost.amount, cost.amount_high, 9))


@cache
def _rules() -> Mapping[str, list[projections.Rule]]:
    text = (Path(__file__).parent / "advice_rules.toml").read_text()
    return {slug: [projections.Rule(**row) for row in rows] for slug, rows in tomllib.loads(text).items()}


def _rules_of(product: Product | None) -> Iterator[projections.Rule]:
    """The product's own rules; of one without, the margins that its catalog names."""
    if product is None:
        return
    if product.slug in _rules():
        yield from _rules()[product.slug]
        return
    for threshold, act in ((product.target_margin_ppm, "It misses the product's target."), (product.alert_margin_ppm, "Raise prices.")):
        if threshold is not None:
            yield projections.Rule("margin", "lt", act, threshold)


def _ordered(low: str | None, high: str | None, name: str) -> None:
    if high is not None and (low is None or _scaled(high, 9) < _scaled(low, 9)):
        raise ValueError(f"{name}_high goes with a {name} that is not above it")


def _range(low: str, high: str | None, digits: int) -> Range:
    return Range(_scaled(low, digits), _scaled(low if high is None else high, digits))


def _nanos(amount: str) -> int:
    return _scaled(amount, 9)


def _scaled(text: str, digits: int) -> int:
    """A decimal string as an integer of 10⁻ᵈⁱᵍⁱᵗˢ; the pattern allows no more digits than that."""
    whole, _, part = text.partition(".")
    return int(whole + part.ljust(digits, "0"))


def _wrong(field: str, message: str) -> InvalidScenario:
    return InvalidScenario([{"field": field, "message": message}])
