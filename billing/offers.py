"""What a product has on offer, as its pages show it.

plans       the plans side by side, each with what it gives, in words
comparison  the same as a table: a row a term, a cell a plan
packs       credit on sale, with its bonus and what one unit of it costs
use         how use is charged, as far as the product's visibility lets a page say
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import chain
from math import ceil, floor

from accounts.templatetags.amounts import plain_amount
from pricing import catalog, rating, words
from pricing.models import CreditPack, Entitlement, PlanVersion, Product, RateCard

NANOS_PER_CENT = 10_000_000
_TOLD = (Entitlement.Mode.SOFT, Entitlement.Mode.HARD)
_SHOWN_COMPONENTS = ("input_tokens", "output_tokens", "cached_input_tokens")


@dataclass(frozen=True, slots=True)
class PlanOffer:
    """``price`` and ``every`` read together: "$25", "a month". ``price`` is empty where it is agreed per customer. ``lacks`` is what its
    limits of 0 say: no gift.
    """

    slug: str
    name: str
    rank: int
    version: PlanVersion
    price: str
    every: str
    gives: tuple[str, ...]
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One term of every plan, in the order of the plans. A cell is a text, or whether the plan has it at all."""

    name: str
    cells: tuple[str | bool, ...]


@dataclass(frozen=True, slots=True)
class PackOffer:
    """``bonus_percent`` is what comes on top of the list value of the price, whole percents, cut. ``unit_cost_nanos`` is what one unit of
    the wallet costs in this pack, in nano-USD, rounded up to a cent, of a credit to a hundredth of one. ``tokens`` is how far it goes,
    where a credit is a number of tokens.
    """

    pack: CreditPack
    price: str
    bonus_percent: int
    unit_cost_nanos: int
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What a million tokens of a model cost, in nanos of the wallet's unit: read, written, read again. None where it has no such price."""

    model: str
    prices: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """How use is charged: a sentence, and a table of models where the rate card has prices of its own."""

    sentence: str
    models: tuple[ModelPrice, ...] = ()


def plans(*, product: Product, at: datetime) -> list[PlanOffer]:
    """The plans on offer to everybody, the lowest first."""
    return [offer(terms=terms, product=product) for terms in catalog.plans(product_id=product.pk, at=at)]


def offer(*, terms: catalog.PlanTerms, product: Product) -> PlanOffer:
    version = terms.version
    cents = version.price_cents
    price = "" if cents is None else words.money(cents, currency=version.currency)
    every = "" if cents is None else words.interval(version)
    lacks = tuple(words.lack(limit) for limit in _limits(terms) if limit.limit == 0)
    return PlanOffer(version.plan.slug, version.plan.name, version.plan.rank, version, price, every, tuple(_gives(terms, product)), lacks)


def _gives(terms: catalog.PlanTerms, product: Product) -> Iterator[str]:
    if credit := _credit(terms, product):
        yield f"{credit}{' of credit' if product.unit.code == 'USD' else ''} each {terms.version.interval}"
    if rollover := _rollover(terms, product):
        yield rollover
    yield from (words.allowance(limit) for limit in _limits(terms) if limit.limit != 0)
    if terms.cost_tier and terms.cost_tier.requests_per_hour is not None:
        yield f"{terms.cost_tier.requests_per_hour:,} requests an hour"
    yield from (f"{text[:1].upper()}{text[1:]} {words.name(key)}" for key, text in sorted(terms.texts.items()))
    yield from (words.title(key) for key, on in sorted(terms.flags.items()) if on)


def _limits(terms: catalog.PlanTerms) -> list[catalog.Limit]:
    return [limit for limit in terms.limits if limit.mode in _TOLD]


def _credit(terms: catalog.PlanTerms, product: Product) -> str:
    return plain_amount(terms.version.included_credit_nanos, product.unit) if terms.version.included_credit_nanos else ""


def _rollover(terms: catalog.PlanTerms, product: Product) -> str:
    version = terms.version
    if not version.rollover_periods or version.rollover_cap_nanos == 0 or not version.included_credit_nanos:
        return ""
    long = f"a {version.interval}" if version.rollover_periods == 1 else f"{version.rollover_periods} {version.interval}s"
    cap = "" if version.rollover_cap_nanos is None else f", at most {plain_amount(version.rollover_cap_nanos, product.unit)}"
    return f"Unused credit lives on for {long}{cap}"


def comparison(*, product: Product, at: datetime) -> list[Row]:
    """Every term that a plan of the product names. Empty where there are fewer than two plans to compare."""
    offered = catalog.plans(product_id=product.pk, at=at)
    return list(_rows(offered, product)) if len(offered) > 1 else []


def _rows(offered: Sequence[catalog.PlanTerms], product: Product) -> Iterator[Row]:
    if any(terms.version.included_credit_nanos for terms in offered):
        each = [f"{credit} a {terms.version.interval}" if (credit := _credit(terms, product)) else False for terms in offered]
        yield Row("Included credit", tuple(each))
    if any(terms.version.trial_days for terms in offered):
        yield Row("Free trial", tuple(f"{terms.version.trial_days} days" if terms.version.trial_days else False for terms in offered))
    for key, window in dict.fromkeys((limit.key, limit.window) for terms in offered for limit in _limits(terms)):
        heading = f"{words.title(words.meter(key, window))} {words.per(window)}".rstrip()
        yield Row(heading, tuple(_limit_cell(terms.limit(key, window), window) for terms in offered))
    hourly = [terms.cost_tier.requests_per_hour if terms.cost_tier else None for terms in offered]
    if any(limit is not None for limit in hourly):
        yield Row("Requests an hour", tuple("Unlimited" if limit is None else f"{limit:,}" for limit in hourly))
    for key in sorted(set(chain.from_iterable(terms.texts for terms in offered))):
        texts = [terms.texts.get(key, "") for terms in offered]
        yield Row(words.title(key), tuple(text[:1].upper() + text[1:] or False for text in texts))
    for key in sorted(set(chain.from_iterable(terms.flags for terms in offered))):
        yield Row(words.title(key), tuple(terms.flags.get(key, False) for terms in offered))


def _limit_cell(limit: catalog.Limit | None, window: str) -> str | bool:
    """Without the limit a plan has no such objects, but uses are not counted."""
    if limit is None and window == Entitlement.Window.COUNT:
        return False
    if limit is None or limit.limit is None or limit.mode not in _TOLD:
        return "Unlimited"
    return f"{limit.limit:,}" if limit.limit else False


def packs(*, product: Product, rate_card: str, at: datetime) -> list[PackOffer]:
    """The packs on sale, the cheapest first, as ``rate_card`` (a slug) values a unit.

    :raises catalog.NotInCatalog: there is no such card.
    """
    on_sale = catalog.packs(product_id=product.pk, at=at)
    if not on_sale:
        return []
    card = catalog.rate_card(product_id=product.pk, slug=rate_card, at=at)
    return [_pack(pack, card, product) for pack in on_sale]


def _pack(pack: CreditPack, card: rating.RateCard, product: Product) -> PackOffer:
    price_nanos = pack.price_cents * NANOS_PER_CENT
    list_value = Fraction(pack.credit_nanos * card.credit_value_nanos, rating.NANOS)
    digit = NANOS_PER_CENT if product.unit.code == "USD" else NANOS_PER_CENT // 100
    tells = product.visibility != Product.Visibility.DEPLETION_ONLY
    tokens = pack.credit_nanos * card.tokens_per_credit // rating.NANOS if tells and card.tokens_per_credit else None
    return PackOffer(
        pack=pack,
        price=words.money(pack.price_cents, currency=pack.currency),
        bonus_percent=max(floor((list_value / price_nanos - 1) * 100), 0),
        unit_cost_nanos=ceil(Fraction(price_nanos * rating.NANOS, pack.credit_nanos * digit)) * digit,
        tokens=tokens,
    )


def use(*, product: Product, rate_card: str, at: datetime) -> Use | None:
    """None where the visibility policy tells nothing but what was used up.

    :raises catalog.NotInCatalog: there is no such card.
    """
    if product.visibility == Product.Visibility.DEPLETION_ONLY:
        return None
    card = catalog.rate_card(product_id=product.pk, slug=rate_card, at=at)
    match card.mode:
        case RateCard.Mode.CREDIT_RATE:
            return Use(_credit_rate(card, product))
        case RateCard.Mode.PASS_THROUGH:
            return Use("AI usage is charged at what the provider asks, without a markup.")
        case RateCard.Mode.INCLUDED | RateCard.Mode.BYO:
            return Use("Use itself is part of the plan: nothing is charged for it.")
        case RateCard.Mode.PRICE_BOOK if product.visibility == Product.Visibility.FULL_BREAKDOWN:
            return Use("You pay for what you use, by the token.", tuple(_models(card)))
    return None


def _credit_rate(card: rating.RateCard, product: Product) -> str:
    one = plain_amount(rating.NANOS, product.unit)
    dearest = max(card.multipliers.values(), default=rating.PPM)
    dearer = f" The largest models count up to {Fraction(dearest, rating.PPM)} times." if dearest > rating.PPM else ""
    least = plain_amount(card.minimum_nanos, product.unit) if card.minimum_nanos else ""
    return f"{one} is {card.tokens_per_credit:,} tokens{f'; a request takes at least {least}' if least else ''}.{dearer}"


def _models(card: rating.RateCard) -> Iterator[ModelPrice]:
    for model, table in sorted(card.retail.items()):
        rates = (table.rates.get(component) for component in _SHOWN_COMPONENTS)
        yield ModelPrice(model, tuple(None if rate is None else _per_million(rate[0], table.denominator) for rate in rates))


def _per_million(rate: int, denominator: int) -> int:
    return ceil(Fraction(rate * 1_000_000, denominator))
