"""What a catalog sells, held against what it costs: the findings of :mod:`pricing.margin_lint` about a whole catalog document.

    find        every pack, included credit and cost limit of a document, with the prices and the mix that it is given
    look        the same, with the price book of ``at`` and the mix that was observed, or that the catalog expects
    refused     what a change of the document may not do without a second person
    at_limit    what one customer leaves who costs as much as a limit allows
    report      findings as lines of text

Every pack is looked at under every rate card that a plan may burn it by. Nothing here writes; everything but :func:`look` and
:func:`refused` is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from pricing import catalog, margin_lint, rating
from pricing.margin_lint import Fee, Finding, Mix, NoRate, Rates

Document = dict[str, Any]
Books = Mapping[str, rating.Book]
_UNLIMITED, _CUSTOM = "unlimited", "custom"
_LIMITS = ("monthly_cost", "daily_cost")
_MONTHS = {"month": 1, "year": 12}

#: What customers of a product (its slug) used lately, None where nothing is known. Whoever counts usage says so once, at the start.
_observed: list[Callable[[str, datetime], Mix | None]] = []


def observe(function: Callable[[str, datetime], Mix | None]) -> None:
    """Names the function that knows what customers use; the last one counts."""
    _observed[:] = [function]


def look(document: Document, *, at: datetime) -> list[Finding]:
    """The findings of a document at ``at``, the worst first within each offer's kind."""
    mix = mix_of(document, at=at)
    return find(document, books=_books(document, mix, at), mix=mix)


def refused(before: Document, after: Document, *, at: datetime) -> list[Finding]:
    """What changing ``before`` into ``after`` may not bring about alone. Both are computed with the same prices and the same mix, so a
    price that rose upstream never refuses anything. A plan may always go back to the ``legacy_price`` that was kept for it."""
    mix = mix_of(after, at=at)
    books = _books(before, mix, at) | _books(after, mix, at)
    found = [*find(after, books=books, mix=mix), *raised(before, after)]
    there = find(before, books=books, mix=mix)
    back = {
        f"plans.{slug}"
        for slug, plan in after["plans"].items()
        if plan | {"price": ""} == before["plans"].get(slug, {}) | {"price": ""} and plan["price"] == plan.get("legacy_price")
    }
    return [finding for finding in margin_lint.refused(before=there, after=found) if finding.offer not in back]


def mix_of(document: Document, *, at: datetime) -> Mix | None:
    """What customers used lately; where nothing is known, what the catalog expects; None where it does not say."""
    product = document["product"]
    share = Fraction(product.get("expected_input_percent", "60")) / 100
    for function in _observed:
        mix = function(product["slug"], at)
        if mix is not None:
            return replace(mix, input_share=share)
    return expected_mix(document)


def expected_mix(document: Document) -> Mix | None:
    product = document["product"]
    model = product.get("expected_model")
    if not model:
        return None
    share = Fraction(product.get("expected_input_percent", "60")) / 100
    return Mix({model: 1}, share, f"Nothing was used lately: the catalog expects {model}.")


def find(document: Document, *, books: Books, mix: Mix | None) -> list[Finding]:
    """Every finding about what a document sells."""
    reader = _Reader(document, books, mix)
    return [*reader.packs(), *reader.plans()]


def raised(before: Document, after: Document) -> list[Finding]:
    """Limits on cost that a cap would raise; see :func:`pricing.margin_lint.cap`."""
    found: list[Finding] = []
    for key in _LIMITS:
        limits, prices = {}, {}
        for slug, tier in after.get("cost_tiers", {}).items():
            old = before.get("cost_tiers", {}).get(slug)
            if old is not None and old[key] != tier[key]:
                path = f"cost_tiers.{slug}.{key}"
                limits[path] = (_limit(old[key]), _limit(tier[key]))
                paid = [
                    Fraction(plan["price"]) / _MONTHS[plan.get("interval", "month")]
                    for plan in after["plans"].values()
                    if plan.get("cost_tier") == slug and plan["price"] != _CUSTOM
                ]
                if paid:
                    prices[path] = max(paid)
        found += margin_lint.cap(limits=limits, price=prices)
    return found


def report(findings: Iterable[Finding], *, arithmetic: bool = True) -> list[str]:
    """A headline a finding; with ``arithmetic``, indented, its sentences, what was assumed and what would help."""
    lines = []
    for finding in findings:
        lines.append(finding.headline)
        if arithmetic:
            for case in finding.different:
                name = case.name if len(finding.different) > 1 else "in every case"
                lines += [f"  {name}, {case.model}: {said}" for said in case.says]
            lines += [f"  Assumed: {said}" for said in finding.assumptions]
            lines += [f"  {said}" for said in finding.change]
    return lines


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Below the floor first, then losses, then below the target, then the rest; what cannot be computed last."""
    return sorted(
        findings,
        key=lambda one: (not one.is_below_floor, not one.is_loss, not one.is_below_target, one.margin is None, one.margin or Fraction(0)),
    )


def models(document: Document, mix: Mix | None) -> set[str]:
    """The models whose upstream prices the findings need."""
    named = {model for card in document.get("rate_cards", {}).values() for key in ("multipliers", "prices") for model in card.get(key, ())}
    counted = any(card["mode"] in ("credit_rate", "price_book") for card in document.get("rate_cards", {}).values())
    return named | (set(mix.tokens) if mix and counted else set())


def _books(document: Document, mix: Mix | None, at: datetime) -> dict[str, rating.Book]:
    return {model: catalog.price_book(model=model, at=at) for model in sorted(models(document, mix))}


def at_limit(document: Document, *, name: str, price: Fraction, limit: Fraction, months: int) -> Finding:
    """What ``price`` dollars for ``months`` months leave, each of ``limit`` dollars of cost, by the product's fee and margins."""
    product = document["product"]
    target, floor = (_share(product.get(f"{which}_margin_percent")) for which in ("target", "floor"))
    return margin_lint.at_limit(
        offer="", name=name, price=price, limit=limit, months=months, is_enforced=True, fee=_fee(product), target=target, floor=floor
    )  # fmt: skip


class _Reader:
    """One document, its fee, its margins and the rates of its cards."""

    def __init__(self, document: Document, books: Books, mix: Mix | None) -> None:
        self.document = document
        self.product = document["product"]
        self.books = books
        self.mix = mix
        self.fee = _fee(self.product)
        self.target, self.floor = (_share(self.product.get(f"{name}_margin_percent")) for name in ("target", "floor"))
        self.cards: dict[str, Rates | str] = {slug: self.rates(card) for slug, card in document.get("rate_cards", {}).items()}

    def rates(self, card: dict[str, Any]) -> Rates | str:
        try:
            return margin_lint.rates(card=_card(card), books=self.books, mix=self.mix)
        except NoRate as error:
            return str(error)

    def packs(self) -> Iterator[Finding]:
        used = [card for plan in self.document["plans"].values() for card in (plan["rate_card"], *plan.get("alternative_rate_cards", ()))]
        cards = [slug for slug in dict.fromkeys(used) if self.document["rate_cards"][slug]["mode"] not in margin_lint.NO_COST]
        for slug, pack in self.document.get("packs", {}).items():
            for card in cards:
                yield self.credit(f"packs.{slug}", "credit", pack, pack["credit"], card, ())

    def plans(self) -> Iterator[Finding]:
        for slug, plan in self.document["plans"].items():
            if plan["price"] == _CUSTOM:
                continue
            offer, tier = f"plans.{slug}", self.document.get("cost_tiers", {}).get(plan.get("cost_tier"), {})
            limit = _limit(tier.get("monthly_cost", _UNLIMITED))
            if Fraction(plan["included_credit"]):
                notes = () if limit is None else (f"The cost limit of {margin_lint.money(limit)} a month may stop use before.",)
                for card in dict.fromkeys((plan["rate_card"], *plan.get("alternative_rate_cards", ()))):
                    if self.document["rate_cards"][card]["mode"] not in margin_lint.NO_COST:
                        yield self.credit(offer, "included credit", plan, plan["included_credit"], card, notes)
            if limit is not None:
                target = _share(tier.get("target_margin_percent"))
                yield margin_lint.at_limit(
                    offer=offer, name=f"{plan['name']} at its cost limit", price=Fraction(plan["price"]), limit=limit,
                    months=_MONTHS[plan.get("interval", "month")], is_enforced=tier.get("throttle_on_exceed", True), fee=self.fee,
                    target=self.target if target is None else target, floor=self.floor,
                )  # fmt: skip

    def credit(self, offer: str, about: str, table: dict[str, Any], amount: str, card: str, notes: tuple[str, ...]) -> Finding:
        rates, name = self.cards[card], table["name"] + ("" if about == "credit" else f", {about}")
        if isinstance(rates, str):
            return Finding(offer, about, name, card, target=self.target, floor=self.floor, unknown=f"cannot be computed, {rates}")
        if table.get("currency", "usd") != "usd":
            return Finding(offer, about, name, card, unknown=f"sold in {table['currency'].upper()}, while costs are in dollars.")
        return margin_lint.credit(
            offer=offer, about=about, name=name, card=card, price=Fraction(table["price"]), amount=Fraction(amount), shown=self.shown,
            rates=rates, fee=self.fee, target=self.target, floor=self.floor, assumptions=notes,
        )  # fmt: skip

    def shown(self, amount: Fraction) -> str:
        """``$150.00``; ``600 credits``."""
        unit = self.document["unit"]
        return (
            margin_lint.money(amount)
            if unit["code"] == "USD"
            else f"{margin_lint.plain(amount)} {unit['name']}{'' if amount == 1 else 's'}"
        )


def _card(card: dict[str, Any]) -> rating.RateCard:
    """A rate card of a document, as rating takes it. Rounding and minimum are left out: see :mod:`pricing.margin_lint`."""
    retail = {
        model: rating.compile_table(
            rating.Price(component, _nanos(price), prices.get("per", 1_000_000))
            for component, price in prices.items()
            if component != "per"
        )
        for model, prices in card.get("prices", {}).items()
    }
    return rating.RateCard(
        id=0,
        mode=card["mode"],
        markup_ppm=_ppm(card.get("markup_percent", "0"), 10**4),
        tokens_per_credit=card.get("tokens_per_credit"),
        default_multiplier_ppm=_ppm(card["default_multiplier"], 10**6) if "default_multiplier" in card else None,
        credit_value_nanos=_nanos(card.get("credit_value", "1")),
        markups={model: _ppm(value, 10**4) for model, value in card.get("markup_percents", {}).items()},
        multipliers={model: _ppm(value, 10**6) for model, value in card.get("multipliers", {}).items()},
        retail=retail,
    )


def _fee(product: dict[str, Any]) -> Fee:
    return Fee(Fraction(product.get("payment_fee_percent", "0")) / 100, Fraction(product.get("payment_fee", "0")))


def _ppm(value: str, scale: int) -> int:
    return int(Fraction(value) * scale)


def _nanos(value: str) -> int:
    return int(Fraction(value) * rating.NANOS)


def _share(percent: str | None) -> Fraction | None:
    return None if percent is None else Fraction(percent) / 100


def _limit(value: str) -> Fraction | None:
    return None if value == _UNLIMITED else Fraction(value)
