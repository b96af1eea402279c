"""Credit that staff give or take by hand: alone up to the product's cap, above it with a second person.

    give         carries it out, or asks for it where it is above the cap
    above_cap    whether this person needs a second one for it

The cap is of what one person alone gives and takes on one account in 24 hours, so that many small acts are no way around it. Whoever asks
needs ``billing.add_operation``, whoever approves ``billing.approve_operation``. A form's mark is the ledger's key: sent twice, asked
twice or approved twice, it is one movement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from django.db import transaction
from django.db.models import Sum
from django.db.models.functions import Abs

from accounts import acts, approvals
from accounts.models import Account, Approval, AuditEvent, User
from accounts.templatetags.amounts import plain_amount
from billing import balances, ledger, subscriptions
from billing.models import Operation

KIND = "staff_credit"
WINDOW = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A grant of ``amount_nanos`` (> 0) of the wallet's unit from ``source``, or an adjustment by it (≠ 0). ``mark`` is the form's own."""

    account: Account
    verb: Literal["grant", "adjust"]
    amount_nanos: int
    mark: str
    source: str = ""
    expires_at: datetime | None = None


def above_cap(*, wanted: Wanted, actor: User, now: datetime) -> bool:
    """Whether ``actor`` cannot do this alone, with what they alone gave and took on the account in the last 24 hours."""
    cap = wanted.account.product.staff_credit_cap_nanos
    if cap is None:
        return False
    mine = Operation.objects.filter(account=wanted.account, verb__in=("grant", "adjust"), actor=_name(actor), created_at__gt=now - WINDOW)
    others = mine.exclude(key_hash=ledger.key_hash(_key(wanted)))
    return (others.aggregate(sum=Sum(Abs("amount")))["sum"] or 0) + abs(wanted.amount_nanos) > cap


def give(*, wanted: Wanted, actor: User, reason: str, now: datetime) -> str | Approval:
    """What was done, in words, with its line in the audit log; or the request that waits for a second person.

    :raises ledger.LedgerError, ValueError: the ledger cannot, see its verbs.
    :raises approvals.NotAllowed, approvals.AlreadyAsked: it is above the cap and cannot be asked for.
    """
    with transaction.atomic():
        User.objects.select_for_update(no_key=True).get(pk=actor.pk)  # of two acts at once the second sees the first
        if not above_cap(wanted=wanted, actor=actor, now=now):
            return _carry_out(wanted, by=actor, actor=_name(actor), reason=reason, now=now)
        payload = {
            "account": wanted.account.public_id, "verb": wanted.verb, "amount": wanted.amount_nanos, "mark": wanted.mark,
            "source": wanted.source, "expires_at": wanted.expires_at.isoformat() if wanted.expires_at else None,
        }  # fmt: skip
        same = {key: payload[key] for key in ("account", "verb", "amount")}
        return approvals.ask(kind=KIND, payload=payload, same=same, actor=actor, reason=reason[:300], now=now)


def _carry_out(wanted: Wanted, *, by: User, actor: str, reason: str, now: datetime) -> str:
    """The movement in the name of ``actor``, and its line in that of ``by``."""
    account, unit = wanted.account, wanted.account.product.unit
    before = _free(account, now)
    if wanted.verb == "grant":
        done = ledger.grant(
            account_id=account.pk, unit_id=unit.pk, amount_nanos=wanted.amount_nanos, source=wanted.source, source_key=wanted.mark,
            key=_key(wanted), actor=actor, reason=reason, priority=subscriptions.priority(product=account.product, source=wanted.source),
            expires_at=wanted.expires_at,
        )  # fmt: skip
    else:
        done = ledger.adjust(
            account_id=account.pk, unit_id=unit.pk, amount_nanos=wanted.amount_nanos, key=_key(wanted), actor=actor, reason=reason
        )
    said = _words(wanted, plain_amount(done.amount_nanos, unit), "already " if done.replayed else "")
    if not done.replayed:
        acts.note(
            actor=by, account=account, what=said, kind=AuditEvent.Kind.MONEY, reason=reason, now=now,
            before={"can be spent": before}, after={"can be spent": _free(account, now)},
        )  # fmt: skip
    return said


def _words(wanted: Wanted, amount: str, already: str = "") -> str:
    return f"{amount} {already}granted." if wanted.verb == "grant" else f"The wallet was {already}adjusted by {amount}."


def _free(account: Account, now: datetime, *, gain: int = 0) -> str:
    found = next((each for each in balances.of_account(account, now=now) if each.unit_id == account.product.unit_id), None)
    free, debt = (found.available, found.debt) if found else (0, 0)
    return plain_amount(free + gain - min(debt, max(gain, 0)), account.product.unit)


def _name(actor: User) -> str:
    return actor.get_username()[:150]


def _key(wanted: Wanted) -> str:
    return f"staff:{wanted.mark}"


# The second person ------------------------------------------------------------------------------------------------------------


def _account(payload: Mapping[str, Any]) -> Account:
    return Account.objects.select_related("product__unit").get(public_id=payload["account"])


def _wanted(payload: Mapping[str, Any]) -> Wanted:
    expires_at = datetime.fromisoformat(payload["expires_at"]) if payload["expires_at"] else None
    return Wanted(
        account=_account(payload), verb=payload["verb"], amount_nanos=payload["amount"], mark=payload["mark"], source=payload["source"],
        expires_at=expires_at,
    )  # fmt: skip


def _change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    wanted = _wanted(payload)
    account, unit = wanted.account, wanted.account.product.unit
    cap = account.product.staff_credit_cap_nanos
    limit = f" One person alone may move {plain_amount(cap, unit)} a day there." if cap is not None else ""
    what = f"Grant {plain_amount(wanted.amount_nanos, unit)}" if wanted.verb == "grant" else ""
    until = f", until {wanted.expires_at:%Y-%m-%d %H:%M} UTC" if wanted.expires_at else ""
    return approvals.Change(
        before=f"{account} ({account.public_id}) can spend {_free(account, now)},"
        f" and {_free(account, now, gain=wanted.amount_nanos)} afterwards.{limit}",
        after=(f"{what} to {account}, from {wanted.source}{until}" if what else
               f"Adjust the wallet of {account} by {plain_amount(wanted.amount_nanos, unit)}"),
    )  # fmt: skip


def _approved(approval: Approval, actor: User, now: datetime) -> str:
    try:
        wanted = _wanted(approval.payload)
        both = f"{approval.asked_by.get_username()}, approved by {actor.get_username()}"[:150]
        return _carry_out(wanted, by=actor, actor=both, reason=approval.reason, now=now)
    except (ledger.LedgerError, ValueError) as error:
        raise approvals.Impossible(str(error)) from error


approvals.register(
    kind=KIND,
    act=approvals.Act(
        name="Credit above the cap of one person", permission="billing.add_operation", decides="billing.approve_operation",
        change=_change, carry_out=_approved, account=_account,
    ),
)  # fmt: skip
