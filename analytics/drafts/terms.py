"""A draft of a product's catalog, ready to be applied to usage that was: what it changes, and nothing else.

    compare    a draft beside the catalog as it is
    Draft      the rate card of a use, the terms of a plan, a pack and the price book, under it

Only what the draft says otherwise than the catalog is replaced; everything else stays as it was when the work was done, version by version.
So a draft that is the catalog of today replays last month as it was, whatever was changed in the middle of it. Terms that were agreed
with one customer are nobody else's plan, and stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analytics.drafts.worlds import Limit, Terms
from metering import limits
from pricing import catalog, catalog_file, rating
from pricing.models import Entitlement, PlanVersion, Product

Table = dict[str, Any]
_WINDOWS = frozenset(("hour", "day", "period", "lifetime"))


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack before and after; cash in cents, credit in nanos."""

    old_cents: int
    old_credit: int
    new_cents: int
    new_credit: int


class Draft:
    """What a draft document says otherwise than the catalog."""

    def __init__(self, *, product: Product, current: Table, document: Table) -> None:
        self.product, self.current, self.document = product, current, document

    def changed(self, section: str) -> dict[str, Table]:
        """The tables of a section that are otherwise, or new, in the draft."""
        before = self.current.get(section, {})
        return {slug: table for slug, table in self.document.get(section, {}).items() if before.get(slug) != table}

    # Rate cards and prices ------------------------------------------------------------------------------------------------------

    @cached_property
    def cards(self) -> dict[str, rating.RateCard]:
        """The draft's rate cards that are otherwise."""
        return {slug: catalog_file.card_terms(table) for slug, table in self.changed("rate_cards").items()}

    def card(self, slug: str) -> rating.RateCard:
        """A card of the draft. :raises KeyError: it has none of this name."""
        return self.cards.get(slug) or catalog_file.card_terms(self.document["rate_cards"][slug])

    def moves(self, plan: str) -> tuple[str, str] | None:
        """The rate card that a plan had and the one that it has in the draft, where that is another."""
        before, after = (side.get("plans", {}).get(plan, {}).get("rate_card") for side in (self.current, self.document))
        return (before, after) if before and after and before != after else None

    @cached_property
    def prices(self) -> dict[str, dict[str, rating.Price]]:
        """By model, the upstream prices that the draft's ``[[prices]]`` say otherwise."""
        before = {(row["provider"], row["model"], row["component"]): row for row in self.current.get("prices", [])}
        found: dict[str, dict[str, rating.Price]] = {}
        for row in self.document.get("prices", []):
            key = row["provider"], row["model"], row["component"]
            if key not in before or _figure(before[key]) != _figure(row):
                found.setdefault(f"{key[0]}:{key[1]}", {})[key[2]] = rating.Price(key[2], *_figure(row))
        return found

    def book(self, book: rating.Book) -> rating.Book:
        """A price book with the draft's prices in the place of its own; the same one where it has none of them."""
        said = self.prices.get(book.model)
        if not said:
            return book
        rows = [price for tables in book.levels.values() for table in tables for price in table.prices.values()]
        known = {(price.component, price.context_above, price.service_level): price for price in rows}
        kept = [price for price in known.values() if price.component not in said]
        return rating.compile_book(model=book.model, prices=[*kept, *said.values()])

    # Plans and packs ------------------------------------------------------------------------------------------------------------

    @cached_property
    def _changes(self) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
        """By plan, each term that is otherwise: its path, and what it becomes (None: it goes)."""
        before, after = self.current.get("plans", {}), self.document.get("plans", {})
        found = {slug: list(_differences(before[slug], table)) for slug, table in after.items() if slug in before}
        return {slug: changes for slug, changes in found.items() if changes}

    def plan(self, slug: str, table: Table) -> Table:
        """The terms that somebody on some version of a plan has under the draft, from those that they have."""
        for path, said in self._changes.get(slug, ()):
            table = _with(table, path, said)
        return table

    def terms(self, *, table: Table, seats: int, paid: bool, draft: bool) -> Terms:
        """A plan's table as limits. ``paid``: its price is collected."""
        document = self.document if draft else self.current
        product = catalog_file.product_columns(document["product"])
        enforced = frozenset(product["enforced_meters"])
        entitlements = table.get("entitlements", {})
        found = list(_limits(entitlements, enforced))
        size = next((limit.limit for limit in found if limit.window == "request" and limit.key == "request_tokens"), None)
        sizes = [size for size in (size, product["max_request_tokens"]) if size is not None]
        tier = document.get("cost_tiers", {}).get(table.get("cost_tier"))
        if tier is not None:
            found += _tier_limits(catalog_file.tier_columns(tier))
        price = table["price"]
        cents = (
            None if price == catalog_file.CUSTOM or not paid else catalog_file.CENTS.parse(price) * (seats if table.get("per_seat") else 1)
        )
        counted = sorted((limit for limit in found if limit.window in _WINDOWS), key=lambda limit: limits.ORDER.index(limit.layer))
        return Terms(
            limits=tuple(counted),
            request_tokens=min(sizes, default=None),
            withheld=self._features - {key for key, value in entitlements.items() if value is True},
            price_cents=cents,
            least_balance=product["minimum_balance_nanos"],
            work_in_debt=product["work_in_debt"],
        )

    @cached_property
    def _features(self) -> frozenset[str]:
        """What plans of the product grant or withhold, in any version and in the draft."""
        plans = self.document.get("plans", {}).values()
        drafted = {key for plan in plans for key, value in plan.get("entitlements", {}).items() if isinstance(value, bool)}
        return catalog.flags(product_id=self.product.pk) | drafted

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """The packs that are otherwise in the draft."""
        before, found = self.current.get("packs", {}), {}
        for slug, table in self.changed("packs").items():
            if slug in before:
                old, new = catalog_file.pack_columns(before[slug]), catalog_file.pack_columns(table)
                found[slug] = Pack(old["price_cents"], old["credit_nanos"], new["price_cents"], new["credit_nanos"])
        return found

    def bought(self, *, credit: int, cents: int) -> tuple[int, int]:
        """What copies of a pack, told by their credit and price, are under the draft: credit and cents; the same where it is another."""
        for pack in self.packs.values():
            copies, rest = divmod(credit, pack.old_credit)
            if copies and not rest and cents == copies * pack.old_cents:
                return copies * pack.new_credit, copies * pack.new_cents
        return credit, cents


def compare(*, product: Product, document: catalog_file.Document) -> Draft:
    """:raises catalog.NotInCatalog: the product has no catalog."""
    current = catalog_file.current(slug=product.slug)
    if current is None:
        raise catalog.NotInCatalog(f"There is no product {product.slug!r}.")
    return Draft(product=product, current=current, document=document)


def plan_table(version: PlanVersion, decimals: int) -> Table:
    """A version's terms as the catalog file writes them."""
    return catalog_file.shown_plan_version(version, decimals)


def _limits(entitlements: Mapping[str, Any], enforced: frozenset[str]) -> Iterator[Limit]:
    """The limits that refuse; those that only watch or warn are no part of a replay."""
    for key, said in entitlements.items():
        if not isinstance(said, dict):
            continue
        for window, value in said.items():
            if window in ("mode", "setting"):
                continue
            mode = said.get("mode", Entitlement.Mode.HARD)
            hard = mode == Entitlement.Mode.HARD or (mode == Entitlement.Mode.SHADOW and f"{key}/{window}" in enforced)
            limit = catalog.overridden(limit=catalog_file.LIMIT.parse(value), setting=said.get("setting", ""))
            if hard and limit is not None:
                yield Limit("requests" if key == "requests" else "quota", key, window, limit)


def _tier_limits(tier: Mapping[str, Any]) -> Iterator[Limit]:
    if tier["requests_per_hour"] is not None:
        yield Limit("requests", "requests", "hour", tier["requests_per_hour"])
    if tier["throttle_on_exceed"]:
        for window, most in (("day", tier["daily_cost_nanos"]), ("period", tier["monthly_cost_nanos"])):
            if most is not None:
                yield Limit("cost", "cost", window, most)


def _figure(row: Mapping[str, Any]) -> tuple[int, int]:
    return catalog_file.USD.parse(row["price"]), row.get("per", 1)


def _differences(before: Table, after: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key in (before.keys() | after.keys()) - {"name", "rank", "public", "member_plan", "guard", "notes"}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, (*path, key))
        elif old != new:
            yield (*path, key), new


def _with(table: Table, path: tuple[str, ...], said: Any) -> Table:
    if len(path) > 1:
        inner = table.get(path[0])
        return table | {path[0]: _with(inner if isinstance(inner, dict) else {}, path[1:], said)}
    return {key: value for key, value in table.items() if key != path[0]} | ({} if said is None else {path[0]: said})
