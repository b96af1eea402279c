"""What Stripe has and what we have, compared in both directions. One verb, :func:`run`.

Where our row is missing or says something else, the object is read and taken over as an event about it would have it: a payment that never
came to our ears is granted, a cancellation is applied, and what is there already is found there. What no reading can put right is reported:
money without credits, credits without money, and what is nobody's. A second run finds nothing to heal.

Objects are listed from ``since`` on. Older ones are compared where they may still change: subscriptions that are not over, purchases that
are open, disputes that were, and what was refunded or disputed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import stripe
import structlog
from django.db import connection
from django.db.models import Exists, OuterRef, Q
from prometheus_client import Counter

from billing import stripe_api, stripe_inbox, stripe_prices, stripe_subscriptions
from billing.models import (
    Checkout,
    Grant,
    StripeCustomer,
    StripeEvent,
    StripeInvoice,
    StripePayment,
    StripeReconciliation,
    StripeSubscription,
)

#: So long back a run by itself looks at least, and at most; Stripe's events are kept for as long.
LEAST, MOST = timedelta(days=3), timedelta(days=30)
OVERLAP = timedelta(days=1)
EVERY = timedelta(days=1)
#: For so long a run that is not finished may still be at work, or Stripe is left alone.
PATIENCE = timedelta(hours=1)
MAX_PROBLEMS = 1_000

log = structlog.get_logger(__name__)
FOUND = Counter("stripe_reconciled", "What comparing with Stripe found, by what became of it.", ["outcome"])


def run_due(*, now: datetime) -> StripeReconciliation | None:
    """Runs where a day has passed since the last run that was finished began; None where none has. Looks back to there, and a day more."""
    recent = Q(started_at__gt=now - EVERY, finished_at__isnull=False) | Q(started_at__gt=now - PATIENCE)
    if StripeReconciliation.objects.filter(recent).exists():
        return None
    last = StripeReconciliation.objects.filter(finished_at__isnull=False).order_by("-started_at").first()
    back = min(max(LEAST, OVERLAP + (now - last.started_at if last else LEAST)), MOST)
    return run(since=now - back, now=now)


def run(*, since: datetime, now: datetime) -> StripeReconciliation:
    """Compares and heals. Calls the network, so not inside a transaction; each object that is taken over has one of its own.

    :raises stripe.StripeError: Stripe does not answer. The row of the run stays unfinished; what was healed stays healed.
    """
    row = StripeReconciliation.objects.create(since=since, started_at=now)
    found = _Findings(now)
    for compare in (_subscriptions, _invoices, _payments, _changed_payments, _checkouts, _customers):
        compare(found, since)
    found.problems = list(dict.fromkeys([*found.problems, *_unsettled(since)]))
    row.finished_at = _clock()
    row.compared, row.healed, row.problems = found.compared, found.healed, found.problems[:MAX_PROBLEMS]
    row.save()
    FOUND.labels("healed").inc(len(found.healed))
    FOUND.labels("problem").inc(len(found.problems))
    if found.problems:
        log.error("stripe and we differ", run=row.pk, problems=found.problems[:20], count=len(found.problems))
    return row


class _Findings:
    def __init__(self, now: datetime) -> None:
        self.now = now
        self.compared = 0
        self.healed: list[str] = []
        self.problems: list[str] = []
        self.customers = set(StripeCustomer.objects.values_list("pk", flat=True))

    def look(self, object_id: str, ours: Callable[[], Any], **which: str) -> None:
        """Takes an object over; it was healed if ``ours`` is another then."""
        before = ours()
        try:
            state, reason = stripe_inbox.look_at(**which, now=self.now)
        except stripe.InvalidRequestError as error:
            if error.code != "resource_missing":
                raise
            self.problems.append(f"{object_id} is not at Stripe any more.")
            return
        except stripe_api.Unsettled as error:
            self.problems.append(f"{object_id}: {error}")
            return
        except stripe.StripeError:
            raise
        except Exception as error:
            log.error("object of Stripe's not taken over", object_id=object_id, exc_info=error)
            self.problems.append(f"{object_id} cannot be taken over: {type(error).__name__}: {error}"[:500])
            return
        if ours() != before:
            self.healed.append(object_id)
        elif state == StripeEvent.State.QUARANTINED:
            self.problems.append(f"{object_id}: {reason}")


def _row(model: Any, pk: object) -> Callable[[], Any]:
    fields = [field.attname for field in model._meta.concrete_fields if field.attname != "read_number"]
    return lambda: model.objects.filter(pk=pk).values_list(*fields).first()


def _subscriptions(found: _Findings, since: datetime) -> None:
    """All that are not over, at Stripe and here."""
    known = {each.pk: each for each in StripeSubscription.objects.exclude(status__in=stripe_subscriptions.ENDED)}
    for theirs in stripe_api.listed("subscriptions"):
        if theirs["customer"] not in found.customers:
            continue
        found.compared += 1
        ours = known.pop(theirs["id"], None)
        if ours is None or not _same_subscription(ours, theirs):
            found.look(theirs["id"], _row(StripeSubscription, theirs["id"]), subscription=theirs["id"])
    for id_ in known:  # over at Stripe, or not there
        found.compared += 1
        found.look(id_, _row(StripeSubscription, id_), subscription=id_)


def _same_subscription(ours: StripeSubscription, theirs: stripe_api.Obj) -> bool:
    items = theirs["items"]["data"]
    times = [min(item["current_period_start"] for item in items), max(item["current_period_end"] for item in items)]
    return (
        ours.status == theirs["status"]
        and (ours.price_id, ours.quantity) in [(item["price"]["id"], item.get("quantity") or 1) for item in items]
        and [int(ours.current_period_start.timestamp()), int(ours.current_period_end.timestamp())] == times
        and ours.cancel_at_period_end == (theirs["cancel_at_period_end"] or theirs.get("cancel_at") is not None)
    )


def _invoices(found: _Findings, since: datetime) -> None:
    known = {each.pk: each for each in StripeInvoice.objects.filter(Q(created_at__gte=since) | Q(status="open"))}
    for theirs in stripe_api.listed("invoices", created={"gte": int(since.timestamp())}):
        ours = known.pop(theirs["id"], None)
        if theirs["status"] in (None, "draft") or theirs["customer"] not in found.customers:
            continue
        found.compared += 1
        if ours is None or (ours.status, ours.total, ours.paid) != (theirs["status"], theirs["total"], theirs["amount_paid"]):
            found.look(theirs["id"], _row(StripeInvoice, theirs["id"]), invoice=theirs["id"])
    for id_ in known:  # made before, and open when we last looked
        found.compared += 1
        found.look(id_, _row(StripeInvoice, id_), invoice=id_)


def _payments(found: _Findings, since: datetime) -> None:
    known = {each.pk: each for each in StripePayment.objects.filter(created_at__gte=since, pk__startswith="pi_")}
    for theirs in stripe_api.listed("payment_intents", created={"gte": int(since.timestamp())}, expand=["data.latest_charge"]):
        paid = theirs["amount_received"] if theirs["status"] == "succeeded" else 0
        ours = known.pop(theirs["id"], None)
        if theirs.get("customer") not in found.customers:
            if paid:
                payer = theirs.get("customer") or "nobody"
                found.problems.append(f"{theirs['id']}, {paid} {theirs['currency']}, was paid by {payer}, who is no customer of ours.")
            continue
        found.compared += 1
        if ours is None and not (paid or theirs["status"] in ("canceled", "processing") or theirs.get("last_payment_error")):
            continue  # nobody has tried to pay
        charge = theirs.get("latest_charge") or {}
        refunded = charge.get("amount_refunded", 0) if paid else 0
        disputed = bool(charge.get("disputed"))  # such were compared with their disputes
        if ours is None or (ours.status, ours.paid) != (theirs["status"], paid) or (ours.refunded != refunded and not disputed):
            found.look(theirs["id"], _row(StripePayment, theirs["id"]), intent=theirs["id"])
    for id_ in known:
        found.compared += 1
        found.look(id_, _row(StripePayment, id_), intent=id_)


def _changed_payments(found: _Findings, since: datetime) -> None:
    """Whose refunds or disputes are new, or whose disputes were open: the payments may be as old as they like."""
    changed = set(StripePayment.objects.filter(disputed=True, pk__startswith="pi_").values_list("pk", flat=True))
    for kind in ("refunds", "disputes"):
        for each in stripe_api.listed(kind, created={"gte": int(since.timestamp())}):
            if each.get("payment_intent"):
                changed.add(each["payment_intent"])
    for id_ in sorted(changed):
        found.compared += 1
        found.look(id_, _row(StripePayment, id_), intent=id_)


def _checkouts(found: _Findings, since: datetime) -> None:
    """Purchases that are open here."""
    visits = Checkout.objects.filter(state=Checkout.State.OPEN, session_id__isnull=False).order_by("pk")
    for pk, session_id in visits.values_list("pk", "session_id"):
        found.compared += 1
        found.look(str(session_id), _row(Checkout, pk), session=str(session_id))


def _customers(found: _Findings, since: datetime) -> None:
    """Ours that Stripe has no longer: their account can buy nothing."""
    for customer in StripeCustomer.objects.filter(created_at__gte=since).select_related("account"):
        found.compared += 1
        if not stripe_api.has_customer(customer.pk):
            found.problems.append(f"{customer.pk}, the customer of {customer.account.public_id}, is not at Stripe any more.")


def _unsettled(since: datetime) -> Iterable[str]:
    """What our own rows say is not right, and no reading can put right."""
    for payment in StripePayment.objects.filter(created_at__gte=since).exclude(note="").order_by("created_at"):
        yield f"{payment.pk}: {payment.note}"
    paid_for = StripePayment.objects.filter(pk=OuterRef("source_key"), account_id=OuterRef("account_id"), paid__gt=0)
    sold = Grant.objects.defer("expires_at").filter(source="purchased", starts_at__gte=since, root_id=None)
    by_stripe = Q(source_key__startswith="pi_") | Q(source_key__startswith="in_")
    for grant in sold.filter(by_stripe, ~Exists(paid_for)).select_related("account").order_by("id"):
        yield f"Grant {grant.pk} of {grant.account.public_id} has no payment {grant.source_key}."
    for each in StripeSubscription.objects.exclude(status__in=stripe_subscriptions.ENDED).select_related("account__product"):
        if stripe_prices.plan_version(product=each.account.product, price_id=each.price_id, at=each.current_period_start) is None:
            yield f"The price {each.price_id} of {each.pk} is of no plan."


def _clock() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        [now] = cursor.fetchone()
    return now  # type: ignore[no-any-return]
