"""Replays of a period under a draft, as rows: asked for, worked in the background, cancelled, kept.

    ask         writes one down; whoever is rung works it
    work_next   works the one that was asked for first; None where none waits
    cancel      ends one that is not over
    again       has one that failed or was cancelled worked anew
    activate    applies the draft to the catalog, from a date on

A worker holds a replay for the length of a lease, which each portion of accounts renews. When it is killed the lease runs out and whoever
looks next begins anew: what the first had written is deleted, so a result is always of one piece. Results are written with their portion,
and count only once the replay is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import structlog
import tomli_w
from django.db import transaction
from django.db.models import Q

from analytics.drafts import reading, terms
from analytics.drafts.worlds import NAMED, Figures, Outcome, replay
from analytics.models import DraftReplay, DraftReplayAccount
from pricing import catalog_file, margin_terms
from pricing.models import CatalogChange, Product

State = DraftReplay.State
LEASE: Final = timedelta(minutes=5)
MAX_ATTEMPTS: Final = 3
MAX_DAYS: Final = 366
#: So many replays wait at once.
MAX_WAITING: Final = 20

log = structlog.get_logger(__name__)


class InvalidDraft(ValueError):
    """Such a replay cannot be asked for, or such a draft not be activated; the message says why."""


@dataclass(slots=True)
class Totals:
    """What all accounts come to, and what of it is doubtful. ``checked`` accounts, of which ``wrong`` name those whose uses come to another
    sum than the ledger's."""

    accounts: int = 0
    changed: int = 0
    winners: int = 0
    losers: int = 0
    refused_accounts: int = 0
    refused: int = 0
    refused_value: int = 0
    checked: int = 0
    ledger: int = 0
    replayed: int = 0
    wrong_accounts: int = 0
    old: dict[str, int] = field(default_factory=lambda: asdict(Figures()))
    new: dict[str, int] = field(default_factory=lambda: asdict(Figures()))
    layers: dict[str, int] = field(default_factory=dict)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    seconds: int = 0

    def add(self, outcome: Outcome, *, ledger: int, change: int) -> None:
        self.accounts += 1
        self.changed += not outcome.same
        self.winners += change < 0
        self.losers += change > 0
        for name, figures in (("old", outcome.old), ("new", outcome.new)):
            sums: dict[str, int] = getattr(self, name)
            for each in fields(Figures):
                sums[each.name] += getattr(figures, each.name)
        self.refused_accounts += bool(outcome.refused)
        for layer, said in outcome.refused.items():
            self.layers[layer] = self.layers.get(layer, 0) + said.count
            self.refused += said.count
            self.refused_value += said.value
        self.checked += 1
        self.ledger += ledger
        self.replayed += outcome.replayed


def ask(
    *, product: Product, document: catalog_file.Document, name: str, since: datetime, until: datetime, actor: str, now: datetime
) -> DraftReplay:
    """Writes the replay down, in the caller's transaction.

    :param document: a parsed catalog file of ``product``.
    :raises InvalidDraft: the draft is of another product or has no catalog to be held against, the period is none of the past or longer
        than a year, or too many wait.
    """
    if document["product"]["slug"] != product.slug:
        raise InvalidDraft(f"The draft is of {document['product']['slug']}, not of {product.slug}.")
    if document["unit"]["code"] != product.unit.code:
        raise InvalidDraft(f"The unit of {product} is {product.unit.code} for ever.")
    if not since < until <= now or until - since > timedelta(days=MAX_DAYS):
        raise InvalidDraft(f"Choose a period of the past, of at most {MAX_DAYS} days.")
    if DraftReplay.objects.filter(state__in=[State.WAITING, State.RUNNING]).count() >= MAX_WAITING:
        raise InvalidDraft(f"{MAX_WAITING} replays wait already. Cancel one, or wait.")
    if catalog_file.current(slug=product.slug) is None:
        raise InvalidDraft(f"{product} has no catalog yet.")
    return DraftReplay.objects.create(
        product=product, name=name, document=document, changes="\n".join(catalog_file.diff(document)), since=since, until=until,
        asked_by=actor, asked_at=now,
    )  # fmt: skip


def work_next(*, now: datetime) -> DraftReplay | None:
    """Opens its own transactions. What goes wrong is kept with the replay and not raised again."""
    taken = _take(now)
    if taken is None:
        return None
    begun = time.monotonic()

    def clock() -> datetime:
        return now + timedelta(seconds=time.monotonic() - begun)

    def goes_on(done: int, total: int) -> bool:
        return bool(_mine(taken).update(done=done, total=total, lease_until=clock() + LEASE))

    try:
        totals = run(taken, goes_on=goes_on)
    except Exception as error:
        log.error("replay under a draft failed", replay=taken.pk, exc_info=error)
        _mine(taken).update(state=State.FAILED, lease_until=None, ended_at=clock(), error=f"{type(error).__name__}: {error}"[:2_000])
    else:
        if totals is not None:
            totals.seconds = round(time.monotonic() - begun)
            _mine(taken).update(state=State.DONE, lease_until=None, ended_at=clock(), summary=asdict(totals), error="")
    taken.refresh_from_db()
    return taken


def run(asked: DraftReplay, *, goes_on: Callable[[int, int], bool]) -> Totals | None:
    """Works a replay from its beginning, a portion a transaction; None once ``goes_on(done, total)`` says no after a portion."""
    DraftReplayAccount.objects.filter(replay=asked).delete()
    draft = terms.compare(product=asked.product, document=asked.document)
    reader = reading.Reader(draft=draft, since=asked.since, until=asked.until)
    portions = reading.portions(product_id=asked.product_id, since=asked.since, until=asked.until)
    total, done, totals = sum(portion.uses for portion in portions), 0, Totals()
    if not goes_on(0, total):
        return None
    for portion in portions:
        with transaction.atomic():
            done += _work(asked, reader, portion, totals)
            if not goes_on(min(done, total), total):
                transaction.set_rollback(True)
                return None
    return totals


def cancel(*, replay: DraftReplay, actor: str, now: datetime) -> bool:
    """False where it was over already. Its worker stops after the portion that it is at."""
    live = DraftReplay.objects.filter(pk=replay.pk, state__in=[State.WAITING, State.RUNNING])
    return bool(live.update(state=State.CANCELLED, lease_until=None, ended_at=now, ended_by=actor))


def again(*, replay: DraftReplay) -> bool:
    """False where it is not over, or was done."""
    over = DraftReplay.objects.filter(pk=replay.pk, state__in=[State.FAILED, State.CANCELLED])
    return bool(over.update(state=State.WAITING, ended_at=None, ended_by="", error="", attempts=0, done=0))


def preview(*, replay: DraftReplay) -> list[str]:
    """What activating the draft changes, as the catalog is now; empty: nothing, it is the catalog."""
    return catalog_file.diff(_document(replay))


def below_floor(*, replay: DraftReplay, at: datetime) -> list[str]:
    """What the draft would sell below the product's floor, and for less than now, with the arithmetic: a second person must accept it."""
    before = catalog_file.current(slug=replay.product.slug)
    return margin_terms.report(margin_terms.refused(before, _document(replay), at=at)) if before else []


def activate(*, replay: DraftReplay, effective: datetime, actor: str, now: datetime) -> list[str]:
    """Applies the draft to the catalog, its new terms from ``effective`` on; the lines of what changed.

    The caller opens the transaction and writes the line in the audit log.

    :raises InvalidDraft: the replay is not done, was activated before, changes nothing, or the time is over.
    :raises catalog_file.BelowFloor: see :func:`below_floor`.
    :raises catalog_file.InvalidCatalog: the catalog has moved on so that the draft cannot be applied any more.
    """
    locked = DraftReplay.objects.select_for_update().get(pk=replay.pk)
    if locked.state != State.DONE:
        raise InvalidDraft("Only a draft that was replayed to the end is activated.")
    if locked.applied_id is not None:
        raise InvalidDraft("This draft was activated before.")
    if effective < now:
        raise InvalidDraft("Choose a time that is not over: what was charged stays as it was.")
    lines = catalog_file.apply(_document(locked), actor=actor, effective=effective)
    if not any(not line.startswith("=") for line in lines):
        raise InvalidDraft("The draft changes nothing: the catalog says the same.")
    locked.applied = CatalogChange.objects.filter(product=locked.product_id).latest("id")
    locked.save(update_fields=["applied"])
    return lines


def file_of(replay: DraftReplay) -> bytes:
    """The draft as a catalog file."""
    return tomli_w.dumps(replay.document).encode()


def _document(replay: DraftReplay) -> catalog_file.Document:
    """Checked again: a row is no promise that its rules still hold."""
    return catalog_file.parse(file_of(replay))


def _take(now: datetime) -> DraftReplay | None:
    with transaction.atomic():
        due = Q(state=State.WAITING) | Q(state=State.RUNNING, lease_until__lte=now)
        rows = (
            DraftReplay.objects.select_for_update(skip_locked=True, of=("self",)).select_related("product__unit").filter(due).order_by("id")
        )
        taken = rows.first()
        if taken is None:
            return None
        taken.fence += 1
        if taken.attempts >= MAX_ATTEMPTS:
            taken.state, taken.lease_until, taken.ended_at = State.FAILED, None, now
            taken.error = taken.error or "Its workers never came back."
        else:
            taken.attempts += 1
            taken.state, taken.started_at, taken.lease_until, taken.done = State.RUNNING, now, now + LEASE, 0
        taken.save()
    return taken if taken.state == State.RUNNING else None


def _mine(taken: DraftReplay) -> Any:
    return DraftReplay.objects.filter(pk=taken.pk, state=State.RUNNING, fence=taken.fence)


def _work(asked: DraftReplay, reader: reading.Reader, portion: reading.Portion, totals: Totals) -> int:
    """One portion, in the caller's transaction; how many uses it had."""
    openings = reader.openings(portion.accounts)
    outcomes = {}
    done = 0
    for account_id, uses in groupby(reader.uses(portion.accounts, openings), key=itemgetter(0)):
        outcome = replay(openings[account_id], (use for _, use in uses), since=asked.since, until=asked.until)
        outcomes[account_id] = outcome
        done += outcome.old.records
    for account_id, opening in openings.items():
        if account_id not in outcomes:
            outcomes[account_id] = replay(opening, (), since=asked.since, until=asked.until)
    books = reader.ledger(list(outcomes))
    rows = []
    for account_id, outcome in sorted(outcomes.items()):
        taken, faults = books.get(account_id, (0, []))
        change = _pays(outcome.new) - _pays(outcome.old)
        totals.add(outcome, ledger=taken, change=change)
        if outcome.wrong or outcome.stored != taken or outcome.replayed != taken:
            totals.wrong_accounts += 1
            if len(totals.wrong) < NAMED:
                named = [str(id_) for id_ in dict.fromkeys([*faults, *outcome.faults])][:NAMED]
                totals.wrong.append({"account": account_id, "ledger": taken, "replayed": outcome.replayed, "records": named})
        if outcome.old.records or not outcome.same or any(asdict(outcome.old).values()):
            rows.append(_row(asked, outcome, change))
    DraftReplayAccount.objects.bulk_create(rows, batch_size=1_000)
    return done


def _pays(figures: Figures) -> int:
    """What the customer pays, at list value: usage, and the plan."""
    return figures.value + figures.plan_cents * reading.NANOS_PER_CENT


def _row(asked: DraftReplay, outcome: Outcome, change: int) -> DraftReplayAccount:
    refused = {
        layer: {"count": said.count, "value": said.value, "first": _iso(said.first), "last": _iso(said.last)}
        for layer, said in sorted(outcome.refused.items())
    }
    return DraftReplayAccount(
        replay=asked, account_id=outcome.account_id, change_nanos=change, old=asdict(outcome.old), new=asdict(outcome.new), refused=refused,
        refused_count=sum(said.count for said in outcome.refused.values()),
        first_refused_at=min((said.first for said in outcome.refused.values()), default=None),
    )  # fmt: skip


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")
