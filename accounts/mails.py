"""The mails that the site sends by itself, as rows. :mod:`accounts.mail_delivery` makes letters of them and sends them.

    queue        writes a mail down in the caller's transaction, once for each (account, kind, key)
    send_again   has staff's choice sent anew
    set_aside    takes mails out of the queue for good
    forget       empties what rows say of people who are forgotten

The row is written with what it tells of, so there is neither a mail of what never happened nor silence about what did; a repeated key
changes nothing, in whatever order things come. Nothing that is wrong with a mail ever stops its caller: facts that are not those of its
kind leave a dead row for staff. What each kind tells is in :mod:`accounts.letters`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from hashlib import sha256

import structlog
from django.core.exceptions import ValidationError
from django.core.validators import EmailValidator, MaxLengthValidator
from django.db import transaction
from django.db.models import Q

from accounts import doorbell, letters, tasks
from accounts.models import Account, Mail

State = Mail.State
KIND_LENGTH, KEY_LENGTH, ADDRESS_LENGTH = 20, 200, 254

log = structlog.get_logger(__name__)


def queue(
    *,
    account: Account,
    kind: str,
    key: str,
    context: Mapping[str, object],
    now: datetime,
    recipient: str = "",
    useless_at: datetime | None = None,
) -> None:
    """Writes a mail down, in the caller's transaction; a worker is rung when that commits. A known (account, kind, key) changes nothing.

    :param key: what it is about: a payment, a period and threshold.
    :param context: the facts of the kind, as :mod:`accounts.letters` names them.
    :param recipient: the only address it goes to; empty: the account's own.
    :param useless_at: from then on it is not sent any more.
    """
    try:
        for check in (EmailValidator(), MaxLengthValidator(ADDRESS_LENGTH)) if recipient else ():
            check(recipient)
        stored, state, reason = letters.to_json(kind, context), State.PENDING, ""
    except (letters.InvalidContext, ValidationError) as error:
        stored, state, reason, recipient = {}, State.DEAD, letters.line(str(error)), ""
        log.error("mail cannot be sent", kind=kind, account=account.public_id, why=reason)
    mail = Mail(
        account=account,
        kind=kind[:KIND_LENGTH],
        key=key if len(key) <= KEY_LENGTH and key.isprintable() else sha256(key.encode(errors="replace")).hexdigest(),
        recipient=recipient,
        context=stored,
        state=state,
        reason=reason,
        next_attempt_at=now,
        useless_at=useless_at,
        queued_at=now,
        done_at=now if state == State.DEAD else None,
    )
    Mail.objects.bulk_create([mail], ignore_conflicts=True)
    transaction.on_commit(ring, robust=True)


def ring() -> None:
    """Asks a worker to send what is due."""
    doorbell.ring(tasks.send_mails)


def send_again(*, mail_ids: Collection[int], now: datetime) -> list[Mail]:
    """Makes these mails pending again, whatever became of them before; returns them. Not those whose facts are gone."""
    with transaction.atomic():
        chosen = list(Mail.objects.select_for_update().filter(pk__in=mail_ids).exclude(context={}).order_by("pk"))
        for mail in chosen:
            mail.state, mail.attempts, mail.next_attempt_at, mail.done_at = State.PENDING, 0, now, None
            mail.save(update_fields=["state", "attempts", "next_attempt_at", "done_at"])
        transaction.on_commit(ring, robust=True)
    return chosen


def set_aside(*, mail_ids: Collection[int], reason: str, now: datetime) -> list[Mail]:
    """Has these mails never sent, unless they were already; returns those that were not."""
    with transaction.atomic():
        waiting = Mail.objects.select_for_update().filter(pk__in=mail_ids, state__in=[State.PENDING, State.DEAD])
        chosen = list(waiting.order_by("pk"))
        for mail in chosen:
            mail.state, mail.reason, mail.done_at = State.SUPPRESSED, f"Set aside: {reason}", now
            mail.save(update_fields=["state", "reason", "done_at"])
    return chosen


def forget(*, addresses: Collection[str], accounts: Collection[Account], now: datetime) -> None:
    """Empties what rows say of forgotten people: ``addresses``, and all that ``accounts`` were told. In the caller's transaction."""
    why = "The person was forgotten."
    theirs = Mail.objects.filter(Q(recipient__in=addresses) | Q(account__in=accounts))
    theirs.filter(state=State.PENDING).update(state=State.SUPPRESSED, reason=why, done_at=now)
    theirs.update(recipient="", context={})
    Mail.objects.filter(Q(sent_to__overlap=list(addresses)) | Q(account__in=accounts)).update(sent_to=[])
