"""The second person for what sells below a product's floor, a lever or a whole catalog file that :mod:`pricing.margin_terms` refused, and
for a lever that moves a price above the cap (:mod:`metering.term_caps`).

    ask_lever   these terms, as a lever would change them
    ask_file    this document, as ``manage.py catalog apply`` would

Approved, it takes effect at once, with who asked as its author; the arithmetic stands with the approval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import tomli_w

from accounts import acts, approvals
from accounts.models import Approval, AuditEvent, User
from metering import levers
from pricing import catalog, catalog_file, margin_terms
from pricing.margin_lint import Finding
from pricing.models import Lever, Product

LEVER, FILE, CAP = "lever_below_floor", "catalog_below_floor", "lever_above_cap"
PERMISSION = "pricing.add_lever"


def ask_lever(
    *, kind: Lever.Kind, changes: Sequence[levers.Change], token: UUID, actor: User, reason: str, now: datetime, why: str = LEVER
) -> Approval:
    """``why`` is ``LEVER`` or ``CAP``.

    :raises approvals.NotAllowed, approvals.AlreadyAsked:
    """
    said = [[change.product.slug, list(change.path), change.before, change.after] for change in changes]
    payload = {"kind": str(kind), "token": str(token), "changes": said}
    same = {"kind": str(kind), "changes": said}
    return approvals.ask(kind=why, payload=payload, same=same, actor=actor, reason=reason, now=now)


def ask_file(*, document: catalog_file.Document, effective: datetime | None, actor: User, reason: str, now: datetime) -> Approval:
    """:raises approvals.NotAllowed, approvals.AlreadyAsked:"""
    payload = {"text": tomli_w.dumps(document), "effective": effective.isoformat() if effective else None}
    return approvals.ask(kind=FILE, payload=payload, actor=actor, reason=reason, now=now)


# Levers -----------------------------------------------------------------------------------------------------------------------


def _changes(payload: Mapping[str, Any]) -> list[levers.Change]:
    products = {product.slug: product for product in Product.objects.select_related("unit")}
    return [levers.Change(products[slug], tuple(path), before, after) for slug, path, before, after in payload["changes"]]


def _lever_change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    changes = _changes(payload)
    try:
        found = levers.below_floor(kind=payload["kind"], changes=changes, now=now)
        far = levers.above_cap(kind=payload["kind"], changes=changes, now=now)
    except levers.InvalidLever as error:
        return approvals.Change(before=str(error), after=_terms(changes))
    return approvals.Change(before=_terms(changes, before=True), after="\n".join([_terms(changes), *far, *margin_terms.report(found)]))


def _pull(approval: Approval, actor: User, now: datetime) -> str:
    payload = approval.payload
    if approval.kind == CAP and not approval.note:
        raise approvals.Impossible("Say in the note why you approve it.")
    accepted = "above the cap" if approval.kind == CAP else "below the floor"
    try:
        pulled = levers.pull(
            kind=Lever.Kind(payload["kind"]), changes=_changes(payload), token=UUID(payload["token"]), accepted=True,
            actor=approval.asked_by.get_username()[:150], reason=approval.reason, now=now,
        )  # fmt: skip
    except levers.InvalidLever as error:
        raise approvals.Impossible(str(error)) from error
    for lever in pulled:
        said = [(".".join(path), was, is_) for path, was, is_ in lever.changes]
        acts.note(
            actor=actor, subject=lever, what=f"Accepted {accepted}: {_terms(_changes(payload))}; {lever.reason}", reason=lever.reason,
            kind=AuditEvent.Kind.ADDED, before={path: was for path, was, _ in said}, after={path: is_ for path, _, is_ in said}, now=now,
        )  # fmt: skip
    return f"{_terms(_changes(payload))}."


def _terms(changes: Sequence[levers.Change], *, before: bool = False) -> str:
    """``Rover, enterprise: credit 150.00``, of several products and terms together."""
    return "; ".join(f"{one.product}, {one.name} {one.was if before else one.becomes}" for one in changes)


def _arithmetic(findings: Sequence[Finding]) -> str:
    return "\n".join(margin_terms.report(findings))


# Files ------------------------------------------------------------------------------------------------------------------------


def _file_change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    document = catalog_file.parse(payload["text"].encode())
    there = catalog_file.current(slug=document["product"]["slug"])
    found = margin_terms.refused(there, document, at=now) if there else []
    begins = f" from {payload['effective']}" if payload["effective"] else ""
    after = [f"The catalog file of {document['product']['name']}{begins}, which sells below the floor", *catalog_file.diff(document)]
    return approvals.Change(before="", after="\n".join(after) + f"\n{_arithmetic(found)}")


def _apply(approval: Approval, actor: User, now: datetime) -> str:
    payload = approval.payload
    document = catalog_file.parse(payload["text"].encode())
    effective = datetime.fromisoformat(payload["effective"]) if payload["effective"] else None
    try:
        lines = catalog_file.apply(document, actor=approval.asked_by.get_username()[:150], effective=effective, accepted=True)
    except (catalog_file.InvalidCatalog, catalog.NotInCatalog) as error:
        raise approvals.Impossible(str(error)) from error
    return f"The catalog file of {document['product']['name']}, {len(lines)} changes."


approvals.register(
    kind=LEVER,
    act=approvals.Act(name="Terms below the product's floor", permission=PERMISSION, change=_lever_change, carry_out=_pull),
)
approvals.register(
    kind=CAP,
    act=approvals.Act(name="A price above the cap of one person", permission=PERMISSION, change=_lever_change, carry_out=_pull),
)
approvals.register(
    kind=FILE,
    act=approvals.Act(name="A catalog file below the product's floor", permission=PERMISSION, change=_file_change, carry_out=_apply),
)
