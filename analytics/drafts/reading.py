"""What happened in a period, as :mod:`analytics.drafts.worlds` wants it: accounts as the period begins, and their uses, rated twice.

    portions    a product's accounts in portions of about as many uses
    Reader      reads a portion: openings, uses, and what the ledger says of them

A use is rated by the terms that it was charged at, which must give the charge that the books have, and by the draft's. Uses come from a
cursor of the server, an account's in order of time, in the caller's transaction.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db import connection

from accounts.models import Account
from analytics import rollups
from analytics.drafts import terms
from analytics.drafts.worlds import NAMED, NEVER, Charge, Lot, Movement, Opening, Span, TopUp, Use, window_at
from analytics.drafts.worlds import Terms as PlanTerms
from billing import subscriptions
from billing.models import AutoTopUp, Subscription
from billing.models import TopUp as BoughtTopUp
from metering.models import Feature, UsageModel
from pricing import catalog, catalog_file, rating
from pricing.models import RateCard

#: A portion has about so many uses, and at most so many accounts.
PORTION_USES: Final = 20_000
PORTION_ACCOUNTS: Final = 500
ROWS_A_FETCH: Final = 5_000
NANOS_PER_CENT: Final = 10_000_000
_numbers = count(1)
#: A plan's terms in both worlds, and its included credit in both.
_Version: TypeAlias = tuple[PlanTerms, PlanTerms, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Portion:
    """Some accounts, and about how many uses they had."""

    accounts: list[int]
    uses: int


@dataclass(frozen=True, slots=True)
class Terms:
    """How a use is rated: with which card, price book and service level."""

    card: rating.RateCard
    book: rating.Book
    level: str
    folds: bool


def portions(*, product_id: int, since: datetime, until: datetime) -> list[Portion]:
    """The product's accounts in portions, by id."""
    with connection.cursor() as cursor:
        days = {"first": since.astimezone(UTC).date(), "last": until.astimezone(UTC).date()}
        cursor.execute(rollups.query("draft_accounts"), {"product": product_id, **days})
        rows = cursor.fetchall()
    found: list[Portion] = []
    accounts: list[int] = []
    uses = 0
    for account_id, records in rows:
        accounts.append(account_id)
        uses += max(records, 0)
        if uses >= PORTION_USES or len(accounts) >= PORTION_ACCOUNTS:
            found.append(Portion(accounts, uses))
            accounts, uses = [], 0
    return [*found, Portion(accounts, uses)] if accounts else found


class Reader:
    """Reads for one draft and one period; keeps what is the same for many accounts."""

    def __init__(self, *, draft: terms.Draft, since: datetime, until: datetime) -> None:
        self.draft, self.product, self.since, self.until = draft, draft.product, since, until
        self.decimals = draft.product.unit.decimals
        self.models = {row.pk: str(row) for row in UsageModel.objects.all()}
        self.features = {row.pk: row.slug for row in Feature.objects.filter(product=draft.product)}
        self.slugs = dict(RateCard.objects.filter(product=draft.product).values_list("id", "slug"))
        self.cards: dict[int, rating.RateCard] = {}
        self.books: dict[tuple[int, tuple[int, ...]], rating.Book] = {}
        self.terms: dict[tuple[Any, ...], tuple[Terms, Terms | None]] = {}
        self.versions: dict[tuple[int, int, bool], _Version] = {}

    # Accounts as the period begins ----------------------------------------------------------------------------------------------

    def openings(self, accounts: Sequence[int]) -> dict[int, Opening]:
        """Every one of ``accounts``."""
        spans, rules = self._spans(accounts), self._rules(accounts)
        lots, movements = self._credits(accounts, spans, set(rules))
        wallets = {row[0]: row[1:] for row in self._rows("draft_wallets", accounts)}
        zones = dict(Account.objects.filter(pk__in=accounts).values_list("pk", "time_zone"))
        for account_id in accounts:
            extra = self._granted_anew(spans[account_id])
            movements[account_id] = sorted([*movements[account_id], *extra], key=lambda movement: movement.at)
        found = {}
        for account_id in accounts:
            debt, cap = wallets.get(account_id, (0, None))
            old, new = rules.get(account_id, (None, None))
            found[account_id] = Opening(
                account_id, ZoneInfo(zones[account_id]), spans[account_id], lots[account_id], debt, cap, movements[account_id], {}, old, new
            )
        begun = self._begun(found)
        return {key: replace(opening, used=begun[key]) if key in begun else opening for key, opening in found.items()}

    def _spans(self, accounts: Sequence[int]) -> dict[int, list[Span]]:
        rows = Subscription.objects.filter(account_id__in=accounts, started_at__lt=self.until).select_related("plan_version__plan")
        found: dict[int, list[Span]] = defaultdict(list)
        for row in rows.select_related("plan_version__plan", "plan_version__cost_tier").order_by("account_id", "started_at", "pk"):
            ends = row.ended_at or NEVER
            if ends <= self.since:
                continue
            version = row.plan_version
            paid = (
                row.trial_ends_at is None and bool(version.price_cents) and (row.stripe_id is not None or version.plan.available is False)
            )
            key = (version.pk, row.seats, paid)
            if key not in self.versions:
                table = terms.plan_table(version, self.decimals)
                becomes = self.draft.plan(version.plan.slug, table)
                self.versions[key] = (
                    self.draft.terms(table=table, seats=row.seats, paid=paid, draft=False),
                    self.draft.terms(table=becomes, seats=row.seats, paid=paid, draft=True),
                    (_credit(table), _credit(becomes)),
                )
            old, new, included = self.versions[key]
            months = subscriptions.MONTHS[version.interval]  # type: ignore[index]
            period = (row.current_period_start, row.current_period_end)
            found[row.account_id].append(Span(row.started_at, ends, row.anchor_at, months, period, old, new, version.plan.slug, included))
        return found

    def _rules(self, accounts: Sequence[int]) -> dict[int, tuple[TopUp | None, TopUp | None]]:
        """The top-up rules that are on, as they are now."""
        on_sale = {pack.slug: pack for pack in catalog.packs(product_id=self.product.pk, at=self.until)}
        priority = subscriptions.priority(product=self.product, source="purchased")
        found: dict[int, tuple[TopUp | None, TopUp | None]] = {}
        for rule in AutoTopUp.objects.filter(account_id__in=accounts, enabled=True):
            pack = on_sale.get(rule.pack)
            if pack is None:
                continue
            after = None if pack.expires_after_days is None else timedelta(days=pack.expires_after_days)
            old = TopUp(rule.threshold_nanos, pack.price_cents, pack.credit_nanos, rule.daily_cap_cents, priority, after)
            new = self.draft.packs.get(rule.pack)
            drafted = replace(old, price_cents=new.new_cents, credit=new.new_credit) if new else old
            found[rule.account_id] = (old, drafted if rule.pack in self.draft.document.get("packs", {}) else None)
        return found

    def _credits(
        self, accounts: Sequence[int], spans: dict[int, list[Span]], ruled: set[int]
    ) -> tuple[dict[int, list[Lot]], dict[int, list[Movement]]]:
        """What was there, and what came and went. What a rule bought is left to the rule."""
        opening: dict[int, list[Lot]] = defaultdict(list)
        known: dict[tuple[int, int], tuple[Lot, str, int, int]] = {}
        for account_id, id_, source, granted, priority, expires_at, cash, rolls_until, rolls_cap, rolls_priority, left in self._rows(
            "draft_lots", accounts
        ):
            rolls = (rolls_until, rolls_cap, rolls_priority) if rolls_until is not None else None
            lot = Lot(priority, expires_at or NEVER, id_, left, rolls, source == "rollover")
            known[account_id, id_] = lot, source, granted, cash
            if left > 0:
                opening[account_id].append(lot)
        bought = self._topped_up(ruled)
        movements: dict[int, list[Movement]] = defaultdict(list)
        for account_id, grant_id, at, amount in self._rows("draft_movements", accounts):
            lot, source, granted, cash = known[account_id, grant_id]
            arrives = amount > 0 and amount == granted and lot.left <= 0
            if not arrives:
                movements[account_id].append(Movement(at, lot, amount, amount, arrives=False))
                continue
            if source == "purchased" and _take(bought[account_id], amount, at):
                continue
            new, old_cents, new_cents = amount, 0, 0
            if source == "purchased":
                old_cents = cash // NANOS_PER_CENT
                new, new_cents = self.draft.bought(credit=amount, cents=old_cents)
            elif source == "monthly":
                new = self._included(spans[account_id], amount)
            movements[account_id].append(Movement(at, lot, amount, new, old_cents, new_cents))
        return opening, movements

    def _included(self, spans: Sequence[Span], amount: int) -> int:
        """A plan's included credit under the draft, in as many times as there was of it."""
        for span in spans:
            if span.included[0] != span.included[1] and span.included[0] and amount % span.included[0] == 0:
                return amount // span.included[0] * span.included[1]
        return amount

    def _granted_anew(self, spans: Sequence[Span]) -> Iterator[Movement]:
        """The included credit of plans that had none, as each period begins; it lives for the period."""
        priority = subscriptions.priority(product=self.product, source="monthly")
        for span in spans:
            if span.included[0] or not span.included[1]:
                continue
            begins, ends = span.period_at(max(span.begins, self.since))
            while begins < min(self.until, span.ends):
                if begins >= max(self.since, span.begins):
                    yield Movement(begins, Lot(priority, ends, 2**61 + next(_numbers), 0), 0, span.included[1])
                begins, ends = span.period_at(ends)

    def _begun(self, openings: dict[int, Opening]) -> dict[int, dict[str, int]]:
        asked: list[tuple[int, str, datetime]] = []
        for account_id, opening in openings.items():
            span = next((span for span in opening.spans if span.begins <= self.since), None)
            if span is None:
                continue
            for key, window in sorted({(limit.key, limit.window) for limit in (*span.old.limits, *span.new.limits)}):
                begins = window_at(window, self.since, span, opening.zone)[0]
                if begins < self.since:
                    asked.append((account_id, f"{key}/{window}", begins))
        found: dict[int, dict[str, int]] = defaultdict(dict)
        if asked:
            begun, meters, starts = (list(column) for column in zip(*asked, strict=True))
            with connection.cursor() as cursor:
                cursor.execute(rollups.query("draft_begun"), {"begun": begun, "meters": meters, "starts": starts, "since": self.since})
                for account_id, meter, used in cursor.fetchall():
                    found[account_id][meter] = used
        return found

    def _topped_up(self, accounts: set[int]) -> dict[int, list[tuple[int, datetime]]]:
        found: dict[int, list[tuple[int, datetime]]] = defaultdict(list)
        paid = BoughtTopUp.objects.filter(account_id__in=accounts, state__in=[BoughtTopUp.State.PAID, BoughtTopUp.State.REFUNDED])
        for row in paid.filter(created_at__lt=self.until, created_at__gte=self.since - timedelta(days=2)):
            found[row.account_id].append((row.credit_nanos, row.created_at))
        return found

    # Uses -------------------------------------------------------------------------------------------------------------------------

    def uses(self, accounts: Sequence[int], openings: dict[int, Opening]) -> Iterator[tuple[int, Use]]:
        """The accounts' uses, each account's in order of time."""
        plans = {key: tuple(dict.fromkeys(span.plan for span in opening.spans)) for key, opening in openings.items()}
        named: dict[str, dict[str, int]] = {}
        for row in self._streamed(accounts):
            account_id, id_, at, model_id, feature_id, card_id, price_ids, array, level, counts, cost, price, value, waived = row
            quantities = {name: quantity for name, quantity in zip(rating.COMPONENTS, array, strict=False) if quantity}
            key = (card_id, model_id, tuple(price_ids or ()), level, plans.get(account_id, ()))
            found = self.terms.get(key)
            if found is None:
                found = self.terms[key] = self._terms(*key, at)
            was, becomes = found
            old = _rated(was, quantities, waived)
            new = old if becomes is was else _rated(becomes, quantities, waived) if becomes else None
            if counts is not None and counts not in named:
                named[counts] = json.loads(counts)
            tokens = sum(quantity for name, quantity in quantities.items() if name in rating.TOKEN_COMPONENTS)
            said = None if counts is None else named[counts]
            stored = Charge(cost, price, value)
            feature = self.features.get(feature_id, "") if feature_id else ""
            yield account_id, Use(id_, at, feature, tokens, said, stored, old, new)

    def _streamed(self, accounts: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """Rows from a cursor of the server. By the accounts' index: a summary of time blocks would read everybody's."""
        connection.ensure_connection()
        assert connection.connection is not None
        with connection.cursor() as plain:
            plain.execute("set local enable_bitmapscan = off")
        with connection.connection.cursor(name=f"draft_uses_{next(_numbers)}") as cursor:
            cursor.itersize = ROWS_A_FETCH
            asked = {"accounts": list(accounts), "since": self.since, "until": self.until}
            cursor.execute(rollups.query("draft_uses"), asked)
            yield from cursor

    def _terms(
        self, card_id: int, model_id: int, price_ids: tuple[int, ...], level: str | None, plans: tuple[str, ...], at: datetime
    ) -> tuple[Terms, Terms | None]:
        """How such a use was rated, and how it would be; the same object where the draft changes nothing of it."""
        card = self.cards.get(card_id)
        if card is None:
            card = self.cards[card_id] = catalog.rate_card_by_id(rate_card_id=card_id)
        model = self.models[model_id]
        book = self.books.get((model_id, price_ids))
        if book is None:
            book = self.books[model_id, price_ids] = catalog.book_of_rows(model=model, row_ids=price_ids)
        was = _terms_of(card, book, level)
        slug = before = self.slugs.get(card_id, "")
        for plan in plans:
            moved = self.draft.moves(plan)
            if moved is not None and moved[0] == slug:
                slug = moved[1]
                break
        try:
            becomes = self.draft.card(slug) if slug != before else self.draft.cards.get(slug, card)
        except KeyError:
            return was, None
        if card.mode == "byo" and becomes.mode != "byo":
            book = catalog.price_book(model=model, at=at)
        drafted = self.draft.book(book)
        if becomes is card and drafted is book:
            return was, was
        return was, _terms_of(becomes, drafted, level)

    # The books --------------------------------------------------------------------------------------------------------------------

    def ledger(self, accounts: Sequence[int]) -> dict[int, tuple[int, list[UUID]]]:
        """By account, what the ledger took for the period's uses, and the first records that say otherwise."""
        return {account_id: (taken, faults or []) for account_id, taken, faults in self._rows("draft_ledger", accounts, limit=NAMED)}

    def _rows(self, name: str, accounts: Sequence[int], **more: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            asked = {"accounts": list(accounts), "since": self.since, "until": self.until, "unit": self.product.unit_id, **more}
            cursor.execute(rollups.query(name), asked)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _credit(table: terms.Table) -> int:
    return int(catalog_file.UNIT_AMOUNT.parse(table["included_credit"]))


def _terms_of(card: rating.RateCard, book: rating.Book, level: str | None) -> Terms:
    folds = not any("reasoning_tokens" in table.rates for tables in book.levels.values() for table in tables)
    return Terms(card, book, level or next(iter(book.levels), "standard"), folds)


def _rated(found: Terms, quantities: dict[str, int], waived: int) -> Charge | None:
    """What a use comes to, less what was waived of it; None where no price covers it."""
    if found.folds and "reasoning_tokens" in quantities:
        quantities = dict(quantities)
        reasoning = quantities.pop("reasoning_tokens")
        quantities["output_tokens"] = quantities.get("output_tokens", 0) + reasoning
    try:
        rated = rating.rate(card=found.card, book=found.book, model=found.book.model, quantities=quantities, service_level=found.level)
    except (rating.UnpricedUsage, rating.QuantityOverflow):
        return None
    if not waived:
        return Charge(rated.cost_nanos, rated.price_nanos, rated.list_value_nanos)
    price = max(0, rated.price_nanos - waived)
    return Charge(rated.cost_nanos, price, price * found.card.credit_value_nanos // rating.NANOS)


def _take(bought: list[tuple[int, datetime]], amount: int, at: datetime) -> bool:
    """Whether a purchase was a top-up's; each top-up is one purchase."""
    for index, (credit, asked_at) in enumerate(bought):
        if credit == amount and asked_at <= at <= asked_at + timedelta(days=2):
            del bought[index]
            return True
    return False
