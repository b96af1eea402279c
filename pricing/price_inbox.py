"""The inbox of upstream prices: files come in, staff add what is missing, and what is proposed stands beside what it affects.

    take        the prices of a file become proposals
    add         staff propose a price that is missing
    effect_of   what a proposal would have cost and saved lately, where usage is known
    waits       models that were used and have no price

This app knows no usage: what was used is told by whoever knows, once, at the program's start (:func:`heed`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from math import ceil

from django.db import transaction

from pricing import price_files, price_import
from pricing.models import PriceProposal, PriceRow


@dataclass(frozen=True, slots=True)
class Use:
    """What of one component of a model was used lately at one service level, and the list value of all that the model was used for, in
    nano-USD."""

    quantity: int
    value_nanos: int
    days: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What lately was used of what a proposal prices, at the price of now and at the proposed one, in nano-USD, rounded up."""

    use: Use
    old_nanos: int | None
    new_nanos: int

    @property
    def more_nanos(self) -> int | None:
        return None if self.old_nanos is None else self.new_nanos - self.old_nanos


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that was used and has no price for all of it."""

    provider: str
    model: str
    uses: int
    tokens: int
    accounts: int
    oldest_at: datetime


_uses: list[Callable[[str, str, str, str, datetime], Use]] = []
_waiting: list[Callable[[], list[Waiting]]] = []


def heed(*, use: Callable[[str, str, str, str, datetime], Use], waiting: Callable[[], list[Waiting]]) -> None:
    """Asks these from now on: what of a provider's model was used (component, service level, now), and which models wait for a price."""
    _uses[:], _waiting[:] = [use], [waiting]


def providers() -> set[str]:
    """Those that the price book or an import knows."""
    return {*price_import.PROVIDERS, *PriceRow.objects.values_list("provider", flat=True).distinct()}


def take(data: bytes, *, name: str, now: datetime) -> price_import.Report:
    """Proposes what a file says otherwise than the book. Opens its own transaction.

    :raises price_files.InvalidPriceFile: nothing of it was proposed.
    """
    found = price_files.read(data, providers=providers() | {waiting.provider for waiting in waits()})
    source = f"{found.kind} {''.join(letter if letter.isprintable() else '?' for letter in name)[:150]}"
    return price_import.propose_file(stretches=found.stretches, source=source, now=now, skipped=found.skipped)


@transaction.atomic
def add(*, prices: dict[str, tuple[int, int]], provider: str, model: str, since: datetime, actor: str, why: str, now: datetime) -> int:
    """Proposes what staff found out: by component, nano-USD for so many units, from ``since`` on; how many were new. They are approved
    like any other, which charges what waited."""
    stretches = [
        price_import.Stretch(price_import.Key(provider, model, component, 0, "standard"), nanos, units, since, None)
        for component, (nanos, units) in prices.items()
    ]
    made = 0
    for stretch in stretches:
        _, new = PriceProposal.objects.get_or_create(
            state=PriceProposal.State.PENDING, valid_from=since, source=f"Staff {actor}: {why}"[:200], **stretch.key._asdict(),
            defaults={"price_nanos": stretch.price_nanos, "per_units": stretch.per_units, "proposed_at": now},
        )  # fmt: skip
        made += new
    return made


def effect_of(proposal: PriceProposal, *, now: datetime) -> Effect | None:
    """None where nobody tells what was used."""
    for ask in _uses:
        use = ask(proposal.provider, proposal.model, proposal.component, proposal.service_level, now)
        before = proposal.previous
        old = None if before is None else ceil(Fraction(use.quantity * before.price_nanos, before.per_units))
        return Effect(use, old, ceil(Fraction(use.quantity * proposal.price_nanos, proposal.per_units)))
    return None


def waits() -> list[Waiting]:
    """Most traffic first; empty where nobody tells."""
    return [each for ask in _waiting for each in ask()]
