"""What upstream prices do to what is sold: which packs, plans and limits fall under their product's floor once these proposals hold.

A cost that rises is never refused, since it is paid either way; who approves it is told what it costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from pricing import catalog, catalog_file, margin_terms, rating
from pricing.margin_lint import Finding
from pricing.models import PriceProposal, Product


def fallen(*, proposals: Iterable[PriceProposal], at: datetime) -> list[tuple[Product, Finding]]:
    """What is below its floor with these prices in place of those of ``at``, and is not without them. Proposals for later, or that end,
    are taken as if all held at once."""
    proposed: dict[str, list[rating.Price]] = {}
    for one in proposals:
        price = rating.Price(one.component, one.price_nanos, one.per_units, 0, one.context_above, one.service_level)
        proposed.setdefault(f"{one.provider}:{one.model}", []).append(price)
    found = []
    for product in Product.objects.order_by("name"):
        document = catalog_file.current(slug=product.slug)
        if document is None:
            continue
        mix = margin_terms.mix_of(document, at=at)
        models = margin_terms.models(document, mix)
        if models.isdisjoint(proposed):
            continue
        books: Mapping[str, rating.Book] = {model: catalog.price_book(model=model, at=at) for model in models}
        with_them = {model: _with(book, proposed.get(model, ())) for model, book in books.items()}
        before = {one.key for one in margin_terms.find(document, books=books, mix=mix) if one.is_below_floor}
        after = margin_terms.find(document, books=with_them, mix=mix)
        found += [(product, one) for one in after if one.is_below_floor and one.key not in before]
    return found


def _with(book: rating.Book, prices: Iterable[rating.Price]) -> rating.Book:
    """The book with these prices, each in place of its own component, context and service level."""
    there = [price for tables in book.levels.values() for table in tables for price in table.prices.values()]
    rows = {(price.component, price.context_above, price.service_level): price for price in (*there, *prices)}
    return rating.compile_book(model=book.model, prices=rows.values())
