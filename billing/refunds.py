"""Money that staff give back, through Stripe, and what that takes back of the credits that it paid for.

    left      how much of a payment may still be given back
    preview   what giving some of it back would take
    ask       writes the refund into the outbox, with who and why; :func:`billing.stripe_requests.send` gives it back
    request   whoever may not give back asks somebody who may; approved, it is in the outbox

Nothing is taken from a wallet here: the payment is read anew once Stripe has answered, or by the event that it sends, and the ledger
follows it (:mod:`billing.stripe_payments`). Amounts of money are in the smallest unit of their currency, credit is nanos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from accounts import acts, approvals
from accounts.models import Account, Approval, User
from accounts.templatetags.amounts import plain_amount
from billing import balances, stripe_payments, stripe_requests
from billing.models import Grant, Operation, StripePayment, StripeRequest

KIND: Final = "refund"
#: Stripe's own word for why, on the customer's statement.
_REASON: Final = "requested_by_customer"


class NotRefundable(Exception):
    """This cannot be given back, or not so much of it. The message says why, as people read it."""


@dataclass(frozen=True, slots=True)
class Preview:
    """``taken`` credits go: ``free_before`` becomes ``free_after``, and ``debt_before`` ``debt_after``. The payment's fee stays a cost."""

    taken: int
    free_before: int
    free_after: int
    debt_before: int
    debt_after: int


def left(*, payment: StripePayment) -> int:
    """What is not given back yet, nor on its way. :raises NotRefundable: nothing of it can be."""
    if not payment.pk.startswith("pi_"):
        raise NotRefundable("It was paid from credit that the customer has at Stripe: give it back there, as credit.")
    if payment.status != "succeeded":
        raise NotRefundable(f"It is {payment.status.replace('_', ' ')}: nothing was paid.")
    if payment.disputed:
        raise NotRefundable("The bank disputes it: a refund now would be paid twice. Answer the dispute at Stripe.")
    asked: dict[str, int] = dict.fromkeys(StripeRequest.State.values, 0)
    of_it = StripeRequest.objects.filter(kind=KIND, account_id=payment.account_id, params__payment_intent=payment.pk)
    for state, params in of_it.values_list("state", "params"):
        asked[state] += params["amount"]
    under_way = asked[StripeRequest.State.PENDING] + asked[StripeRequest.State.STUCK]
    found = payment.paid - max(payment.refunded, asked[StripeRequest.State.DONE]) - under_way
    if found <= 0:
        raise NotRefundable("All of it was given back already, or is on its way.")
    return found


def preview(*, payment: StripePayment, cents: int, now: datetime) -> Preview:
    """What the wallet loses, as things stand. What customers spent meanwhile becomes debt, repaid by the next credit that arrives."""
    due = {lot.pk: max(0, lot.granted * (payment.refunded + cents) // payment.paid - lot.refunded) for lot in _lots(payment)}
    taken = sum(due.values())
    unit_id = payment.account.product.unit_id
    wallet = next((one for one in balances.of_account(payment.account, now=now) if one.unit_id == unit_id), None)
    free, debt = (wallet.available, wallet.debt) if wallet else (0, 0)
    return Preview(taken, free, max(0, free - taken), debt, debt + max(0, taken - free))


def ask(*, payment: StripePayment, cents: int, mark: UUID, by: User, reason: str, now: datetime) -> StripeRequest:
    """The refund's row in the outbox, and its line in the audit log, in one transaction. ``mark`` is the form's: twice is once.

    :raises NotRefundable: see there.
    """
    key = f"refund:{mark}"
    with transaction.atomic():
        account = Account.objects.get(pk=payment.account_id)
        locked = StripePayment.objects.select_for_update().get(pk=payment.pk)
        if (asked := StripeRequest.objects.filter(key=key).first()) is not None:
            if (asked.params["payment_intent"], asked.params["amount"]) != (locked.pk, cents):
                raise NotRefundable(
                    f"This form gave {_money(asked.params['amount'], locked.currency)} back already. Open it anew for more."
                )
            return asked
        if not 0 < cents <= left(payment=locked):
            raise NotRefundable(f"At most {_money(left(payment=locked), locked.currency)} can be given back.")
        params = {"payment_intent": locked.pk, "amount": cents, "reason": _REASON}
        request = stripe_requests.ask(key=key, kind=KIND, path="/v1/refunds", params=params, account=account, now=now)
        what = f"Refund of {_money(cents, locked.currency)} of {locked.pk}: {reason}"
        acts.note(account=account, actor=by, what=what, kind=acts.Kind.MONEY, reason=reason, now=now)
    return request


def request(*, payment: StripePayment, cents: int, mark: UUID, by: User, reason: str, now: datetime) -> Approval:
    """Asks a second person to give ``cents`` of it back; the same of one payment is asked for once.

    :raises NotRefundable: see :func:`left`.
    :raises approvals.NotAllowed, approvals.AlreadyAsked:
    """
    if not 0 < cents <= left(payment=payment):
        raise NotRefundable(f"At most {_money(left(payment=payment), payment.currency)} can be given back.")
    same = {"payment": payment.pk, "cents": cents}
    return approvals.ask(kind=KIND, payload=same | {"mark": str(mark)}, same=same, actor=by, reason=reason[:300], now=now)


def _asked(payload: Mapping[str, Any]) -> StripePayment:
    return StripePayment.objects.select_related("account__product__unit").get(pk=payload["payment"])


def _change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    payment, cents = _asked(payload), payload["cents"]
    seen, unit = preview(payment=payment, cents=cents, now=now), payment.account.product.unit
    return approvals.Change(
        before=f"{payment.account} paid {_money(payment.paid, payment.currency)} by {payment.pk}, and can spend"
        f" {plain_amount(seen.free_before, unit)}. It takes {plain_amount(seen.taken, unit)} of that"
        + (f", and leaves a debt of {plain_amount(seen.debt_after, unit)}." if seen.debt_after else "."),
        after=f"Give {_money(cents, payment.currency)} back to {payment.account}",
    )


def _approved(approval: Approval, actor: User, now: datetime) -> str:
    """Into the outbox, which is sent within a minute: nobody talks to Stripe while this is decided."""
    payload = approval.payload
    try:
        ask(payment=_asked(payload), cents=payload["cents"], mark=UUID(payload["mark"]), by=actor, reason=approval.reason, now=now)
    except NotRefundable as error:
        raise approvals.Impossible(str(error)) from error
    return f"{approval.after}: it is on its way."


approvals.register(
    kind=KIND,
    act=approvals.Act(
        name="A refund", permission="billing.add_operation", decides="billing.refund_stripepayment", change=_change, carry_out=_approved,
        account=lambda payload: _asked(payload).account,
    ),
)  # fmt: skip


def _lots(payment: StripePayment) -> Sequence[Grant]:
    """What was granted for it: a pack by its own id, a plan's credit by the act that granted it, which names the payment."""
    named = Operation.objects.filter(
        account_id=payment.account_id, verb="grant", actor=stripe_payments.ACTOR, reason__endswith=f", {payment.pk}"
    )
    return list(Grant.objects.defer("expires_at").filter(account_id=payment.account_id, pk__in=named.values("grant_id")))


def _money(cents: int, currency: str) -> str:
    return f"{cents // 100:,}.{cents % 100:02d} {currency.upper()}"
