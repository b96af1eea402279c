"""The second person for upstream prices above the cap of one: proposals that :func:`pricing.price_import.approve` refused.

    ask    these proposals, from then on, all or none

Approved with a note, they are rows of the price book in the name of both. What was asked for is not done where a price that it replaces, or
a proposal of it, is another by now: it is to be refused, and asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from django.db import transaction

from accounts import approvals
from accounts.models import Approval, User
from pricing import change_cap, price_import
from pricing.models import PriceProposal, PriceRow

KIND: Final = "prices_above_cap"
PERMISSION: Final = "pricing.change_priceproposal"
#: So many prices are named; how many more there are is said.
NAMED: Final = 50


def ask(*, ids: Iterable[int] | None, effective: datetime | None, actor: User, reason: str, now: datetime) -> Approval:
    """``ids`` None: all that are pending. The same proposals from the same time on wait once.

    :raises price_import.NotApprovable: as things are, nobody could approve them.
    :raises approvals.NotAllowed, approvals.AlreadyAsked:
    """
    pending = PriceProposal.objects.filter(state=PriceProposal.State.PENDING)
    wanted = sorted(pending.values_list("pk", flat=True) if ids is None else set(ids))
    with transaction.atomic():  # what could not be approved now is said to who asks, not to who answers
        price_import.approve(ids=wanted, actor=str(actor), reason=reason, effective=effective, accepted=True)
        transaction.set_rollback(True)
    same = {"ids": wanted, "effective": effective.isoformat() if effective else None}
    payload = same | {"seen": sorted(map(str, _moves(same, now)))}
    return approvals.ask(kind=KIND, payload=payload, same=same, actor=actor, reason=reason[:300], now=now)


def _effective(payload: Mapping[str, Any]) -> datetime | None:
    return datetime.fromisoformat(payload["effective"]) if payload["effective"] else None


def _moves(payload: Mapping[str, Any], now: datetime, *, lock: bool = False) -> list[change_cap.Move]:
    """Those that are pending, what is above the cap first."""
    proposals = list(PriceProposal.objects.filter(pk__in=payload["ids"], state=PriceProposal.State.PENDING))
    rows = PriceRow.objects.filter(provider__in={one.provider for one in proposals}, withdrawn_at=None).order_by("id")
    book = list(rows.select_for_update() if lock else rows)
    found = change_cap.moves(proposals=proposals, rows=book, effective=_effective(payload) or now, now=now)
    return sorted(found, key=lambda move: move.too_far is None)


def _change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    moves = _moves(payload, now)
    begins = f" from {payload['effective'][:16].replace('T', ' ')} UTC" if payload["effective"] else ""
    before = "As the price book is. Above the cap, one person alone changes no price."
    if sorted(map(str, moves)) != payload["seen"]:
        before = "Something of it is another by now than when it was asked for: it cannot be approved any more. Refuse it, and ask again."
    count = len(payload["ids"])
    return approvals.Change(before=before, after="\n".join([f"{count} upstream price{'' if count == 1 else 's'}{begins}", *_named(moves)]))


def _named(moves: Sequence[change_cap.Move]) -> list[str]:
    more = len(moves) - NAMED
    return [move.words for move in moves[:NAMED]] + ([f"and {more} more"] if more > 0 else [])


def _approved(approval: Approval, actor: User, now: datetime) -> str:
    payload = approval.payload
    if not approval.note:
        raise approvals.Impossible("Say in the note why you approve it.")
    moves = _moves(payload, now, lock=True)
    if gone := sorted(set(payload["seen"]) - set(map(str, moves))):
        raise approvals.Impossible(f"It is not any more what was asked for: {'; '.join(gone[:3])}. Refuse it, and ask again.")
    both = f"{approval.asked_by.get_username()}, approved by {actor.get_username()}"[:150]
    try:
        price_import.approve(ids=payload["ids"], actor=both, reason=approval.reason, effective=_effective(payload), accepted=True)
    except price_import.NotApprovable as error:
        raise approvals.Impossible(str(error)) from error
    return "; ".join(_named(moves)) + "."


approvals.register(
    kind=KIND,
    act=approvals.Act(name="Upstream prices above the cap of one person", permission=PERMISSION, change=_change, carry_out=_approved),
)
