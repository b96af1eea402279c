"""The price book's way in: what upstream prices are said to be → proposals → rows that staff approved.

    read      dated prices of genai-prices' offline data, as stretches of time
    propose   a proposal for each difference from the price book; propose_file the same for a file's prices
    agree     what each source says of a price that is proposed
    approve   proposals become rows; what they replace is closed, or withdrawn if it never began
    reject    a proposal is not taken; the same figure is not proposed again

No figure enters the book unseen, and none that was used is changed: a row is only ever closed or withdrawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from django.db import connection, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange

from pricing import catalog, change_cap
from pricing.models import PriceProposal, PriceRow

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

SOURCES = ("genai-prices",)
#: Sources that differ by no more than this say the same.
AGREES_PPM = 10_000
PROVIDERS = ("anthropic", "openai", "google")
#: How the reason begins of what was not taken because another source's figure was.
_BESIDE = "Another source was approved:"

#: genai-prices' price keys that have a component here, and for how many units their figure is.
COMPONENT_OF_KEY = {
    "input_mtok": ("input_tokens", 1_000_000),
    "output_mtok": ("output_tokens", 1_000_000),
    "cache_read_mtok": ("cached_input_tokens", 1_000_000),
    "cache_write_mtok": ("cache_write_tokens", 1_000_000),
    "cache_write_1h_mtok": ("cache_write_1h_tokens", 1_000_000),
    "input_audio_mtok": ("input_audio_tokens", 1_000_000),
    "output_audio_mtok": ("output_audio_tokens", 1_000_000),
    "cache_audio_read_mtok": ("cached_input_audio_tokens", 1_000_000),
    "web_searches_kcount": ("web_searches", 1_000),
    "audio_hours": ("seconds", 3_600),
    "input_audio_hours": ("seconds", 3_600),
}
#: Calls of provider tools that are neither reported with a response nor metered here.
UNMETERED_KEYS = frozenset({"storage_searches_kcount"})
#: How a service level is asked for in genai-prices' data. "fast" is its second name for priority.
LEVELS: dict[str, dict[str, str]] = {
    "standard": {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


class UnknownProvider(LookupError):
    """The source has no such provider."""


class NotApprovable(Exception):
    """Proposals that cannot become rows; ``problems`` says why, one line each. Nothing was approved."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class AboveCap(NotApprovable):
    """A second person has to approve these: they are above the cap of :mod:`pricing.change_cap`. Nothing was approved."""

    def __init__(self, moves: Iterable[change_cap.Move]) -> None:
        super().__init__([f"{move.words}: above the cap, a second person has to approve it" for move in moves])


class Key(NamedTuple):
    """What has one price at a time."""

    provider: str
    model: str
    component: str
    context_above: int
    service_level: str

    def __str__(self) -> str:
        above = f" above {self.context_above}" if self.context_above else ""
        return f"{self.provider}:{self.model} {self.component}{above} ({self.service_level})"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A price over ``[start, end)``; None is open. ``price_nanos`` (nano-USD) is for ``per_units``."""

    key: Key
    price_nanos: int
    per_units: int
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`propose` did. ``skipped`` has the models whose prices the components cannot express, each with the reason."""

    proposed: int
    unchanged: int
    skipped: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------------
# Reading the source


def read(*, providers: Iterable[str]) -> tuple[list[Stretch], list[str]]:
    """Every dated price of ``providers``, and the models that are left out with the reason.

    A model is left out whole when one of its prices has no component, or a component has two: with that part missing, or taken for
    another, its cost would be wrong. Providers list one price for output and reasoning, so reasoning gets a row of its own at that price.

    :raises UnknownProvider: genai-prices has no such provider.
    """
    from genai_prices.data import providers as known

    by_id = {provider.id: provider for provider in known}
    stretches: list[Stretch] = []
    skipped: list[str] = []
    for provider in providers:
        if provider not in by_id:
            raise UnknownProvider(f"genai-prices has no provider {provider!r}.")
        for model in by_id[provider].models:
            reason = _inexpressible(model)
            try:
                found = [] if reason else list(_stretches(provider, model))
            except _TwoPrices as error:
                found, reason = [], str(error)
            stretches += found
            if reason:
                skipped.append(f"{provider}:{model.id}: {reason}")
    return stretches, skipped


def _inexpressible(model: ModelInfo) -> str:
    """Why a model's prices cannot be rows; empty when they can."""
    from genai_prices.types import StartDateConstraint

    conditions = [*(model.prices if isinstance(model.prices, list) else ()), *(model.price_variants or ())]
    if any(condition.constraint is not None and not isinstance(condition.constraint, StartDateConstraint) for condition in conditions):
        return "its price depends on the time of day"
    prices = (
        [condition.prices for condition in conditions]
        if isinstance(model.prices, list)
        else [model.prices, *(c.prices for c in conditions)]
    )
    keys = {key for price in prices for key, value in vars(price).items() if value is not None}
    unknown = sorted(keys - COMPONENT_OF_KEY.keys() - UNMETERED_KEYS)
    return f"no component for {', '.join(unknown)}" if unknown else ""


def _stretches(provider: str, model: ModelInfo) -> Iterator[Stretch]:
    dated = [price.constraint.start_date for price in model.prices if price.constraint] if isinstance(model.prices, list) else []  # type: ignore[union-attr]
    for level, context in LEVELS.items():
        variants = [variant for variant in model.price_variants or () if variant.when == context]
        if context and not variants:
            continue
        turns = sorted({_midnight(day) for day in [*dated, *(v.constraint.start_date for v in variants if v.constraint)]})  # type: ignore[union-attr]
        prices: dict[Key, list[Stretch]] = {}
        for start, end in zip([None, *turns], [*turns, None], strict=True):
            at = start or datetime(1970, 1, 1, tzinfo=UTC)
            if context and not any(variant.constraint is None or variant.constraint.active(at) for variant in variants):
                continue
            for component, above, price_nanos, per_units in _components(model.get_prices(at, context or None)):
                key = Key(provider, model.id, component, above, level)
                row = Stretch(key, price_nanos, per_units, start, end)
                before = prices.setdefault(key, [])
                if before and before[-1].end == start and _same(before[-1], row):
                    before[-1] = Stretch(key, row.price_nanos, row.per_units, before[-1].start, end)
                else:
                    before.append(row)
        for rows in prices.values():
            yield from rows


class _TwoPrices(Exception):
    """Two keys of the source are one component here, and their figures differ."""


def _components(price: ModelPrice) -> Iterator[tuple[str, int, int, int]]:
    """``(component, context_above, price_nanos, per_units)`` of one set of prices; a figure that is told under two names, once."""
    from genai_prices.types import TieredPrices

    found: dict[tuple[str, int], tuple[int, int]] = {}
    for key, value in vars(price).items():
        if value is None or key in UNMETERED_KEYS:
            continue
        component, per_units = COMPONENT_OF_KEY[key]
        tiers = [(0, value.base), *((tier.start, tier.price) for tier in value.tiers)] if isinstance(value, TieredPrices) else [(0, value)]
        for above, amount in tiers:
            for priced in (component, "reasoning_tokens") if component == "output_tokens" else (component,):
                figure = _exact(amount, per_units)
                if found.setdefault((priced, above), figure) != figure:
                    raise _TwoPrices(f"two prices for {priced}")
    for (component, above), figure in found.items():
        yield component, above, *figure


def _exact(amount: Decimal, per_units: int) -> tuple[int, int]:
    """USD for ``per_units`` as whole nano-USD, for as many units as that takes."""
    numerator, denominator = (amount * 10**9).as_integer_ratio()
    return numerator, per_units * denominator


def _midnight(day: object) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)  # type: ignore[arg-type]


def _same(one: Stretch | PriceRow, other: Stretch | PriceRow | PriceProposal) -> bool:
    return one.price_nanos * other.per_units == other.price_nanos * one.per_units


@cache
def _source() -> str:
    return f"genai-prices {version('genai-prices')}"


# ---------------------------------------------------------------------------------------------------------------------------
# Proposing


@transaction.atomic
def propose(*, providers: Iterable[str] = PROVIDERS, now: datetime, since: datetime | None = None) -> Report:
    """Propose each price from ``now`` on that the price book has not, announced ones included; with ``since``, gaps since then too.

    A pending proposal that the source no longer says is replaced. What staff rejected is not proposed again at the same figure. Prices
    that a product's catalog carries are left to it.

    :raises UnknownProvider: the source has no such provider.
    """
    providers = list(providers)
    stretches, skipped = read(providers=providers)
    mine = PriceProposal.objects.filter(provider__in=providers, source__startswith=SOURCES[0])
    return _propose(stretches, source=_source(), mine=list(mine), skipped=skipped, now=now, since=since)


@transaction.atomic
def propose_file(*, stretches: Iterable[Stretch], source: str, now: datetime, skipped: Iterable[str] = ()) -> Report:
    """Propose each price of a file that the price book has not. What this source proposed before for the same prices is replaced; proposals
    of other sources stay, and what the file does not name stays as it is.

    :param source: where the figures come from, in words: its first word tells one source from another.
    """
    found = list(stretches)
    keys = {stretch.key for stretch in found}
    earlier = PriceProposal.objects.filter(provider__in={key.provider for key in keys}, source__startswith=source.split()[0])
    return _propose(found, source=source, mine=[row for row in earlier if _key(row) in keys], skipped=skipped, now=now, since=None)


def _propose(
    stretches: list[Stretch], *, source: str, mine: list[PriceProposal], skipped: Iterable[str], now: datetime, since: datetime | None
) -> Report:
    providers = {stretch.key.provider for stretch in stretches}
    book = _book(PriceRow.objects.filter(provider__in=providers, withdrawn_at=None))
    carried = {key for key, rows in book.items() if any(row.catalog and row.valid.upper is None for row in rows)}
    stretches = [stretch for stretch in stretches if stretch.key not in carried]
    wanted = [proposal for stretch in stretches for proposal in _differences(stretch, book.get(stretch.key, []), now=now, since=since)]
    for proposal in wanted:
        proposal.source = source
    decided = PriceProposal.objects.filter(provider__in=providers, state=PriceProposal.State.REJECTED)
    rejected = {_figure(row) for row in decided if stands(row, book.get(_key(row), []))}
    wanted = [proposal for proposal in wanted if _figure(proposal) not in rejected]
    kept = {_figure(proposal) for proposal in wanted}
    pending = [proposal for proposal in mine if proposal.state == PriceProposal.State.PENDING]
    PriceProposal.objects.filter(id__in=[proposal.id for proposal in pending if _figure(proposal) not in kept]).delete()
    there = {_figure(proposal) for proposal in pending}
    new = [proposal for proposal in wanted if _figure(proposal) not in there]
    PriceProposal.objects.bulk_create(new, batch_size=1000)
    return Report(proposed=len(new), unchanged=len(stretches) - len(wanted), skipped=tuple(skipped))


def stands(rejected: PriceProposal, rows: Iterable[PriceRow]) -> bool:
    """Whether the same figure is still not proposed again. What staff rejected never is; what only lost to another source is once the price
    has changed since: ``rows`` are those of its key that were not withdrawn."""
    if not rejected.reason.startswith(_BESIDE) or rejected.decided_at is None:
        return True
    since = max(rejected.decided_at, rejected.valid_from or rejected.decided_at)
    return not any(row.valid.lower > since for row in rows)


@dataclass(frozen=True, slots=True)
class Quote:
    """What a source says a price is now. ``off_ppm`` is how far that is from the figure in question, None where that is 0 and this is not;
    up to ``AGREES_PPM`` they agree."""

    source: str
    price_nanos: int
    per_units: int
    off_ppm: int | None

    @property
    def agrees(self) -> bool:
        return self.off_ppm is not None and self.off_ppm <= AGREES_PPM


def agree(proposal: PriceProposal) -> list[Quote]:
    """What the others say of the price that is proposed: genai-prices, and what is pending from files."""
    key, at = _key(proposal), proposal.valid_from or proposal.proposed_at
    said = [(row.source, row.price_nanos, row.per_units) for row in _pending_beside(proposal)]
    if not proposal.source.startswith(SOURCES[0]) and key.provider in PROVIDERS:
        for stretch in _known(key.provider):
            if stretch.key == key and (stretch.start is None or stretch.start <= at) and (stretch.end is None or at < stretch.end):
                said.append((_source(), stretch.price_nanos, stretch.per_units))
    return [Quote(source, nanos, units, _off(nanos, units, proposal)) for source, nanos, units in dict.fromkeys(said)]


def _pending_beside(proposal: PriceProposal) -> list[PriceProposal]:
    """What other sources propose for the same price and time, and nobody has decided."""
    same = PriceProposal.objects.filter(state=PriceProposal.State.PENDING, valid_from=proposal.valid_from, **_key(proposal)._asdict())
    return list(same.exclude(pk=proposal.pk).exclude(source=proposal.source).order_by("pk"))


def _off(nanos: int, units: int, proposal: PriceProposal) -> int | None:
    """How far ``nanos`` for ``units`` is from the proposal's figure, in parts per million of that, rounded up."""
    ours, theirs = proposal.price_nanos * units, nanos * proposal.per_units
    return (0 if theirs == 0 else None) if ours == 0 else -(-abs(theirs - ours) * 1_000_000 // ours)


@cache
def _known(provider: str) -> list[Stretch]:
    """What genai-prices says of a provider: the same for as long as it is installed."""
    return read(providers=[provider])[0]


def _differences(stretch: Stretch, rows: list[PriceRow], *, now: datetime, since: datetime | None) -> Iterator[PriceProposal]:
    if stretch.end is not None and stretch.end <= now:
        if since is None or stretch.end <= since:
            return
        start = max(since, stretch.start) if stretch.start else since
        if not any(row.valid.lower < stretch.end and (row.valid.upper is None or row.valid.upper > start) for row in rows):
            yield _proposal(stretch, start, None, now)
        return
    begins = max(now, stretch.start) if stretch.start else now
    edges = {edge for row in rows for edge in (row.valid.lower, row.valid.upper) if edge is not None}
    for at in [begins, *sorted(edge for edge in edges if begins < edge and (stretch.end is None or edge < stretch.end))]:
        row = next((row for row in rows if at in row.valid), None)
        if row is None or not _same(row, stretch):
            valid_from = None if at == now else at
            if since is not None and at == now and row is None:
                valid_from = max([since, *([stretch.start] if stretch.start else []), *(edge for edge in edges if edge <= now)])
            yield _proposal(stretch, valid_from, row, now)
            return


def _proposal(stretch: Stretch, valid_from: datetime | None, previous: PriceRow | None, now: datetime) -> PriceProposal:
    return PriceProposal(
        **stretch.key._asdict(),
        price_nanos=stretch.price_nanos,
        per_units=stretch.per_units,
        valid_from=valid_from,
        valid_until=stretch.end,
        previous=previous,
        source=_source(),
        proposed_at=now,
    )


def _figure(proposal: PriceProposal) -> tuple[object, ...]:
    return (*_key(proposal), proposal.valid_from, proposal.valid_until, proposal.price_nanos, proposal.per_units)


def _key(row: PriceRow | PriceProposal) -> Key:
    return Key(row.provider, row.model, row.component, row.context_above, row.service_level)


def _book(rows: Iterable[PriceRow]) -> dict[Key, list[PriceRow]]:
    book: dict[Key, list[PriceRow]] = {}
    for row in rows:
        book.setdefault(_key(row), []).append(row)
    return book


# ---------------------------------------------------------------------------------------------------------------------------
# Deciding


@transaction.atomic
def approve(*, ids: Iterable[int] | None, actor: str, reason: str, effective: datetime | None = None, accepted: bool = False) -> int:
    """Make rows of these proposals, of all pending ones with ``ids=None``; how many. All or none.

    :param effective: when proposals without a date of their own begin; by default now, by the database's clock. Earlier than now only
        where the book has nothing yet: what it has is never changed into the past.
    :param accepted: a second person approved what is above the cap.
    :raises AboveCap: one of them changes a price by more than one person alone may, and nobody else approved it.
    :raises NotApprovable: an unknown or decided proposal, or one that would change the past.
    """
    proposals = _undecided(ids)
    now = _database_now()
    found = PriceRow.objects.select_for_update().filter(provider__in={p.provider for p in proposals}, withdrawn_at=None)
    rows = list(found.order_by("id"))
    if not accepted and (moves := change_cap.far(proposals=proposals, rows=rows, effective=effective or now, now=now)):
        raise AboveCap(moves)
    plan = _Plan(_book(rows), now)
    begun: dict[tuple[Key, datetime | None], int] = {}
    for proposal in proposals:
        other = begun.setdefault((_key(proposal), proposal.valid_from), proposal.id)
        if other != proposal.id:
            plan.problems.append(f"{proposal.id} {_key(proposal)}: {other} is for the same price and time; approve one of them")
    for _, group in groupby(sorted(proposals, key=_key), key=_key):
        for proposal in sorted(group, key=lambda p: p.valid_from or effective or now):
            plan.add(proposal, effective or now)
    if plan.problems:
        raise NotApprovable(plan.problems)
    PriceRow.objects.bulk_update(plan.withdrawn, ["withdrawn_at"], batch_size=500)
    PriceRow.objects.bulk_update([row for row in plan.closed if row.withdrawn_at is None], ["valid"], batch_size=500)
    PriceRow.objects.bulk_create(plan.new, batch_size=1000)
    _decide(proposals, PriceProposal.State.APPROVED, actor, reason, now)
    approved = {(_key(proposal), proposal.valid_from) for proposal in proposals}
    pending = PriceProposal.objects.filter(state=PriceProposal.State.PENDING, provider__in={p.provider for p in proposals})
    beside = [other for other in pending if (_key(other), other.valid_from) in approved]
    _decide(beside, PriceProposal.State.REJECTED, actor, f"{_BESIDE} {reason}"[:300], now)
    catalog.clear()
    transaction.on_commit(catalog.clear)
    return len(proposals)


def above_cap(*, proposals: Iterable[PriceProposal], effective: datetime | None, now: datetime) -> list[change_cap.Move]:
    """Those that one person alone may not approve, as the book is now."""
    chosen = list(proposals)
    rows = PriceRow.objects.filter(
        provider__in={one.provider for one in chosen}, model__in={one.model for one in chosen}, withdrawn_at=None
    )
    return change_cap.far(proposals=chosen, rows=rows, effective=effective or now, now=now)


@transaction.atomic
def reject(*, ids: Iterable[int] | None, actor: str, reason: str) -> int:
    """Decide against these proposals, against all pending ones with ``ids=None``; how many.

    :raises NotApprovable: an unknown or decided proposal.
    """
    proposals = _undecided(ids)
    _decide(proposals, PriceProposal.State.REJECTED, actor, reason, _database_now())
    return len(proposals)


class _Plan:
    """What approving does to the rows of the book, worked out before any of it is written."""

    def __init__(self, book: dict[Key, list[PriceRow]], now: datetime) -> None:
        self.book = book
        self.now = now
        self.new: list[PriceRow] = []
        self.closed: list[PriceRow] = []
        self.withdrawn: list[PriceRow] = []
        self.problems: list[str] = []

    def add(self, proposal: PriceProposal, effective: datetime) -> None:
        key, end = _key(proposal), proposal.valid_until
        start = proposal.valid_from or effective
        rows = self.book.setdefault(key, [])
        if proposal.valid_from is not None and start < self.now and any(self.now in row.valid for row in rows):
            start = self.now  # approved after the announced date had come
        if end is not None and end <= start:
            self.problems.append(f"{proposal.id} {key}: it ends {end.isoformat()}, before it would begin {start.isoformat()}")
            return
        for row in [row for row in rows if row.valid.lower < (end or datetime.max.replace(tzinfo=UTC))]:
            if row.valid.upper is not None and row.valid.upper <= start:
                continue
            if row.valid.lower > self.now and row.valid.lower >= start:
                self.withdraw(row, rows)
            elif row.valid.lower >= start or start < self.now:
                self.problems.append(f"{proposal.id} {key}: row {row.id} is in use from {row.valid.lower.isoformat()}; the past stays")
                return
            else:
                self.close(row, start, rows)
        fields = key._asdict() | {"price_nanos": proposal.price_nanos, "per_units": proposal.per_units, "source": proposal.source}
        self.insert(PriceRow(valid=DateTimeTZRange(start, end, "[)"), **fields), rows)

    def insert(self, row: PriceRow, rows: list[PriceRow]) -> None:
        rows.append(row)
        self.new.append(row)

    def withdraw(self, row: PriceRow, rows: list[PriceRow]) -> None:
        rows.remove(row)
        if row in self.new:
            self.new.remove(row)
        else:
            row.withdrawn_at = self.now
            self.withdrawn.append(row)

    def close(self, row: PriceRow, at: datetime, rows: list[PriceRow]) -> None:
        """End ``row`` at ``at``. A row that has an end already is withdrawn, and a copy of it up to ``at`` takes its place."""
        until = DateTimeTZRange(row.valid.lower, at, "[)")
        if row.pk is None or row.valid.upper is None:
            if row.pk is not None:
                self.closed.append(row)
            row.valid = until
            return
        copied = {name: getattr(row, name) for name in ("price_nanos", "per_units", "source", "catalog")}
        self.withdraw(row, rows)
        self.insert(PriceRow(valid=until, **_key(row)._asdict(), **copied), rows)


def _undecided(ids: Iterable[int] | None) -> list[PriceProposal]:
    pending = PriceProposal.objects.select_for_update().filter(state=PriceProposal.State.PENDING)
    if ids is None:
        return list(pending)
    wanted = list(dict.fromkeys(ids))
    found = {proposal.id: proposal for proposal in pending.filter(id__in=wanted)}
    missing = [f"{number}: no pending proposal has this id" for number in wanted if number not in found]
    if missing:
        raise NotApprovable(missing)
    return [found[number] for number in wanted]


def _decide(proposals: list[PriceProposal], state: str, actor: str, reason: str, now: datetime) -> None:
    ids = [proposal.id for proposal in proposals]
    PriceProposal.objects.filter(id__in=ids).update(state=state, decided_at=now, decided_by=actor, reason=reason)


def _database_now() -> datetime:
    """The transaction's start, which the guard of the price book compares with."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT transaction_timestamp()")
        started: datetime = cursor.fetchone()[0]
    return started
