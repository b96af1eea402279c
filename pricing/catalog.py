"""Reads of what is sold and what it costs, as it was at an instant, compiled for the hot path.

    product, product_by_id     one business and its policies
    plan_version               a plan's terms and allowances; plan_version_by_id the ones somebody is on
    plans                      the plans on offer to everybody
    cost_tier                  how much wholesale cost is allowed
    guard                      what is done about spend that runs away; guarded the products that have one
    flags                      the features that plans of a product grant or withhold
    overridden                 a limit, or what the operator's environment says in its place
    packs, pack                credit on sale
    rate_card, rate_card_by_id how usage becomes a price
    price_book, book_of_rows   what a model costs us

Answers are kept in the process for at most ``MAX_AGE_SECONDS``, so an edit is seen everywhere within that time; :func:`clear` forgets them
at once in this process. What is kept is a whole history, and ``at`` picks from it, so asking about yesterday never changes today's answer.
Inside a transaction nothing is kept or taken from what was kept: a transaction sees its own rows, and only those that last are shared.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, cast

from django.db import connection
from prometheus_client import Counter

from pricing import rating
from pricing.models import CostTier, CreditPack, Entitlement, Guard, Plan, PlanVersion, PriceRow, Product, RateCard

MAX_AGE_SECONDS = 60
#: Model names come from outside: beyond this many answers everything is forgotten and read again.
MAX_ANSWERS = 5_000

READS = Counter("catalog_reads", "Reads of the catalog, by what was read and whether it was kept.", ["kind", "outcome"])


class NotInCatalog(LookupError):
    """No such product, plan or rate card, or none yet at that time."""


class InvalidSetting(ValueError):
    """An environment variable that should be a limit and is no whole number."""


class InvalidModel(ValueError):
    """A model identifier that is not ``provider:model``."""


class Version(Protocol):
    @property
    def valid_from(self) -> datetime: ...


V = TypeVar("V", bound=Version)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a plan. ``limit`` None means no limit, 0 nothing allowed."""

    key: str
    window: str
    limit: int | None
    mode: str


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """A plan version with its allowances. A flag, text or limit that is not there is not part of the plan."""

    version: PlanVersion
    flags: dict[str, bool]
    texts: dict[str, str]
    limits: tuple[Limit, ...]
    cost_tier: CostTier | None

    @property
    def valid_from(self) -> datetime:
        return self.version.valid_from

    def limit(self, key: str, window: str) -> Limit | None:
        """The limit on ``key`` in ``window``, None where the plan does not say."""
        return next((limit for limit in self.limits if limit.key == key and limit.window == window), None)


@dataclass(frozen=True, slots=True)
class Card:
    """A rate card version: its row, and its terms for :func:`pricing.rating.rate`."""

    valid_from: datetime
    row: RateCard
    terms: rating.RateCard


def product(*, slug: str) -> Product:
    """:raises NotInCatalog: no product has this slug."""
    return _kept("product", slug, lambda: _one_product(slug=slug))


def product_by_id(*, product_id: int) -> Product:
    """:raises NotInCatalog: no product has this id."""
    return _kept("product", product_id, lambda: _one_product(id=product_id))


def plan_version(*, product_id: int, slug: str, at: datetime) -> PlanTerms:
    """The version of the plan that is sold at ``at``. Who is on a plan keeps the version of their period: see :func:`plan_version_by_id`.

    :raises NotInCatalog: no such plan, or none yet at that time.
    """
    history = _kept("plan", (product_id, slug), lambda: _History(_plan_terms(plan__product_id=product_id, plan__slug=slug)))
    return history.at(at, f"plan {slug!r}")


def plan_version_by_id(*, plan_version_id: int) -> PlanTerms:
    """:raises NotInCatalog: no plan version has this id."""
    return _first(_kept("plan_version", plan_version_id, lambda: _plan_terms(id=plan_version_id)), f"plan version {plan_version_id}")


def plans(*, product_id: int, at: datetime) -> list[PlanTerms]:
    """The plans on offer to everybody, each in its version of ``at``, the lowest first."""
    on_offer = {"plan__product_id": product_id, "plan__public": True, "plan__available": True}
    versions = _kept("plans", product_id, lambda: sorted(_plan_terms(**on_offer), key=lambda terms: terms.valid_from))
    begun = {terms.version.plan_id: terms for terms in versions if terms.valid_from <= at}
    return sorted(begun.values(), key=lambda terms: (terms.version.plan.rank, terms.version.plan_id))


def cost_tier(*, product_id: int, slug: str) -> CostTier:
    """:raises NotInCatalog: the product has no such tier."""
    return _first(
        _kept("cost_tier", (product_id, slug), lambda: list(CostTier.objects.filter(product_id=product_id, slug=slug))),
        f"cost tier {slug!r}",
    )


@dataclass(frozen=True, slots=True)
class GuardTerms:
    """A guard, and its caps by kind and span, in nanos of the wallet's unit."""

    guard: Guard
    caps: dict[tuple[str, str], int]


def guard(*, product_id: int, slug: str) -> GuardTerms | None:
    """The guard of this name; None where the product has none, or no longer: a plan that was read a minute ago may still name it."""
    return next(iter(_kept("guard", (product_id, slug), lambda: _guards(product_id, slug))), None)


def guarded() -> list[int]:
    """The products some or all of whose accounts are guarded."""
    named = Plan.objects.exclude(guard="").values_list("product_id", flat=True)
    return sorted({*Product.objects.exclude(guard="").values_list("id", flat=True), *named})


def flags(*, product_id: int) -> frozenset[str]:
    """Every feature that a plan of the product grants or withholds, in any version."""
    named = Entitlement.objects.filter(plan_version__plan__product_id=product_id, kind=Entitlement.Kind.FLAG)
    return _kept("flags", product_id, lambda: frozenset(named.values_list("key", flat=True)))


def overridden(*, limit: int | None, setting: str) -> int | None:
    """What the environment variable ``setting`` says in place of ``limit``, where it names one that is set and not empty.

    :raises InvalidSetting: it says something else than a whole number from 0.
    """
    value = os.environ.get(setting, "") if setting else ""
    if not value:
        return limit
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise InvalidSetting(f"The environment variable {setting} is {value[:40]!r}; expected a whole number from 0, at most 18 digits.")
    return int(value)


def packs(*, product_id: int, at: datetime) -> list[CreditPack]:
    """The packs on sale at ``at``, each in its version of that time, the cheapest first."""
    rows = _kept("packs", product_id, lambda: list(CreditPack.objects.filter(product_id=product_id, available=True).order_by("valid_from")))
    on_sale = {row.slug: row for row in rows if row.valid_from <= at}
    return sorted(on_sale.values(), key=lambda row: (row.price_cents, row.slug))


def pack(*, product_id: int, slug: str, at: datetime) -> CreditPack:
    """:raises NotInCatalog: no such pack is on sale at that time."""
    return _first([row for row in packs(product_id=product_id, at=at) if row.slug == slug], f"pack {slug!r} on sale")


def rate_card(*, product_id: int, slug: str, at: datetime) -> rating.RateCard:
    """The terms of the rate card at ``at``.

    :raises NotInCatalog: no such card, or none yet at that time.
    """
    history = _kept("rate_card", (product_id, slug), lambda: _History(_cards(product_id=product_id, slug=slug)))
    return history.at(at, f"rate card {slug!r}").terms


def rate_card_by_id(*, rate_card_id: int) -> rating.RateCard:
    """The terms of one version, as promised at an authorization.

    :raises NotInCatalog: no rate card has this id.
    """
    return _first(_kept("rate_card_version", rate_card_id, lambda: _cards(id=rate_card_id)), f"rate card {rate_card_id}").terms


def price_book(*, model: str, at: datetime) -> rating.Book:
    """Every price of ``model`` (``provider:model``) that is valid at ``at``. A model that nobody has priced has an empty book.

    :raises InvalidModel: not ``provider:model``.
    """
    provider, name = split_model(model)
    prices = _kept("price_book", model, lambda: _Prices(model, PriceRow.objects.filter(provider=provider, model=name, withdrawn_at=None)))
    return prices.at(at)


def book_of_rows(*, model: str, row_ids: Iterable[int]) -> rating.Book:
    """The book made of just these rows of ``model``, withdrawn ones too: what was promised, and how a stored charge is explained."""
    provider, name = split_model(model)
    wanted = tuple(row_ids)

    def compiled() -> rating.Book:
        rows = PriceRow.objects.filter(provider=provider, model=name, id__in=wanted)
        return rating.compile_book(model=model, prices=[_price(row) for row in rows])

    return _kept("book_of_rows", (model, wanted), compiled)


def split_model(model: str) -> tuple[str, str]:
    """``provider:model`` split at the first colon; the model's own name may have more.

    :raises InvalidModel: a part is missing, too long (64 and 128 characters) or has characters that do not print.
    """
    provider, _, name = model.partition(":")
    if not provider or not name or len(provider) > 64 or len(name) > 128 or not model.isprintable():
        raise InvalidModel(f"{model[:200]!r} is no model identifier; expected provider:model, e.g. anthropic:claude-sonnet-4-5.")
    return provider, name


def clear() -> None:
    """Forget every kept answer of this process."""
    _answers.clear()


_answers: dict[tuple[str, Any], tuple[float, Any]] = {}


def _kept(kind: str, key: Any, load: Callable[[], T]) -> T:
    if connection.in_atomic_block:
        READS.labels(kind, "transaction").inc()
        return load()
    answer = _answers.get((kind, key))
    if answer is not None and time.monotonic() - answer[0] <= MAX_AGE_SECONDS:
        _HITS[kind].inc()
        return cast(T, answer[1])
    READS.labels(kind, "miss").inc()
    read_at = time.monotonic()
    loaded = load()
    if len(_answers) >= MAX_ANSWERS:
        _answers.clear()
    _answers[kind, key] = (read_at, loaded)
    return loaded


#: Looking a label up takes longer than the rest of a hit.
_HITS = {
    kind: READS.labels(kind, "hit")
    for kind in (
        "product",
        "plan",
        "plan_version",
        "plans",
        "cost_tier",
        "guard",
        "flags",
        "packs",
        "rate_card",
        "rate_card_version",
        "price_book",
        "book_of_rows",
    )
}


class _History(Generic[V]):
    """Versions, each valid from its own time until the next one's."""

    __slots__ = ("starts", "versions")

    def __init__(self, versions: Sequence[V]) -> None:
        self.versions = sorted(versions, key=lambda version: version.valid_from)
        self.starts = [version.valid_from for version in self.versions]

    def at(self, at: datetime, what: str) -> V:
        position = bisect_right(self.starts, at)
        if position == 0:
            raise NotInCatalog(f"There is no {what} at {at.isoformat()}.")
        return self.versions[position - 1]


class _Prices:
    """A model's rows. They change only at the ends of their ranges, so one compiled book serves each stretch between two of them."""

    __slots__ = ("books", "model", "rows", "turns")

    def __init__(self, model: str, rows: Iterable[PriceRow]) -> None:
        self.model = model
        self.rows = list(rows)
        self.turns = sorted({turn for row in self.rows for turn in (row.valid.lower, row.valid.upper) if turn is not None})
        self.books: dict[int, rating.Book] = {}

    def at(self, at: datetime) -> rating.Book:
        stretch = bisect_right(self.turns, at)
        book = self.books.get(stretch)
        if book is None:
            book = rating.compile_book(model=self.model, prices=[_price(row) for row in self.rows if at in row.valid])
            self.books[stretch] = book
        return book


def _one_product(**lookup: object) -> Product:
    found = Product.objects.select_related("unit").filter(**lookup).first()
    if found is None:
        raise NotInCatalog(f"There is no product with {lookup}.")
    return found


def _plan_terms(**lookup: object) -> list[PlanTerms]:
    versions = PlanVersion.objects.select_related("plan", "cost_tier").prefetch_related("entitlements").filter(**lookup)
    return [_terms(version, list(version.entitlements.all())) for version in versions]


def _terms(version: PlanVersion, entitlements: list[Entitlement]) -> PlanTerms:
    return PlanTerms(
        version=version,
        flags={row.key: bool(row.enabled) for row in entitlements if row.kind == Entitlement.Kind.FLAG},
        texts={row.key: row.text for row in entitlements if row.kind == Entitlement.Kind.TEXT},
        limits=tuple(
            Limit(row.key, row.window, overridden(limit=row.limit, setting=row.setting), row.mode)
            for row in sorted(entitlements, key=lambda row: (row.key, row.window))
            if row.kind == Entitlement.Kind.LIMIT
        ),
        cost_tier=version.cost_tier,
    )


def _guards(product_id: int, slug: str) -> list[GuardTerms]:
    rows = Guard.objects.prefetch_related("caps").filter(product_id=product_id, slug=slug)
    return [GuardTerms(row, {(cap.kind, cap.span): cap.most_nanos for cap in row.caps.all()}) for row in rows]


def _cards(**lookup: object) -> list[Card]:
    rows = RateCard.objects.prefetch_related("models", "prices").filter(**lookup)
    return [Card(row.valid_from, row, _card_terms(row)) for row in rows]


def _card_terms(row: RateCard) -> rating.RateCard:
    models = list(row.models.all())
    retail: dict[str, list[rating.Price]] = {}
    for price in row.prices.all():
        retail.setdefault(f"{price.provider}:{price.model}", []).append(rating.Price(price.component, price.price_nanos, price.per_units))
    return rating.RateCard(
        id=row.id,
        mode=row.mode,
        markup_ppm=row.markup_ppm,
        tokens_per_credit=row.tokens_per_credit,
        default_multiplier_ppm=row.default_multiplier_ppm,
        quantum_nanos=row.quantum_nanos,
        minimum_nanos=row.minimum_nanos,
        credit_value_nanos=row.credit_value_nanos,
        markups={f"{model.provider}:{model.model}": model.markup_ppm for model in models if model.markup_ppm is not None},
        multipliers={f"{model.provider}:{model.model}": model.multiplier_ppm for model in models if model.multiplier_ppm is not None},
        retail={model: rating.compile_table(prices) for model, prices in retail.items()},
    )


def _price(row: PriceRow) -> rating.Price:
    return rating.Price(row.component, row.price_nanos, row.per_units, row.id, row.context_above, row.service_level)


def _first(found: Sequence[T], what: str) -> T:
    if not found:
        raise NotInCatalog(f"There is no {what}.")
    return found[0]
