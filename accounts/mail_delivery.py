"""Sends what is due of the outbox. One verb for the worker, :func:`send_next`; :func:`compose` also serves staff's preview.

A worker takes a lease on the mail, sends outside of any transaction, and marks the row. If it is killed between the two, the mail goes out
once more when the lease is over, with the same Message-ID, by which mail programs know it for the same. Failures are tried again later and
later; after ``MAX_ATTEMPTS`` the mail is dead, shown to staff, and no other waits for it.

Who gets it is decided when it is sent: the address that the row names (invitations), else the account's billing address, else its
owners. Closed accounts and forgotten people get nothing: the row stays, with the reason.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from email.utils import formataddr, parseaddr
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.db import transaction
from django.db.models import F, Q
from django.template import Context
from django.template.loader import get_template
from django.utils import timezone
from prometheus_client import Counter

from accounts import letters
from accounts.models import Mail, Membership

MAX_ATTEMPTS = 12
FIRST_DELAY = timedelta(seconds=30)
LONGEST_DELAY = timedelta(hours=4)
#: For so long nobody else sends a mail that is being sent: longer than a mail server that answers slowly may take.
LEASE = timedelta(minutes=5)
MAX_RECIPIENTS = 20
_ADDRESS = re.compile(r"[^\s<>\"'(,;:]+@[^\s<>\"'),;:]+")

State = Mail.State

log = structlog.get_logger(__name__)
MAILS = Counter("mails", "Attempts to send a mail, by what became of it.", ["outcome"])


class Undeliverable(Exception):
    """There is nobody whom this mail may be sent to. The message says why."""


def send_next(*, now: datetime) -> Mail | None:
    """Sends the pending mail that is due first and nobody else is sending; None where there is none. Opens its own transactions."""
    mail = _claim(now)
    if mail is None or mail.state != State.PENDING:
        return mail
    try:
        message = compose(mail=mail, recipients=recipients(mail=mail, now=now))
    except Undeliverable as error:
        _finish(mail, State.SUPPRESSED, str(error), now)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is kept with the mail, and the next mail must not wait for it)
        _failed(mail, error, now)
    else:
        try:
            message.send()
        except Exception as error:  # noqa: BLE001 (as above)
            _failed(mail, error, now)
        else:
            _sent(mail, message.to, now)
    MAILS.labels(mail.state).inc()
    return mail


def recipients(*, mail: Mail, now: datetime) -> list[str]:
    """Whom ``mail`` goes to. :raises Undeliverable: nobody may get it, or it comes too late."""
    if mail.account.closed_at is not None:
        raise Undeliverable("The account is closed.")
    if mail.useless_at is not None and mail.useless_at <= now:
        raise Undeliverable("It would come too late.")
    if mail.recipient or mail.account.billing_email:
        return [mail.recipient or mail.account.billing_email]
    owners = Membership.objects.filter(account=mail.account, role=Membership.Role.OWNER, user__is_active=True)
    found = list(owners.order_by("pk").values_list("user__email", flat=True)[:MAX_RECIPIENTS])
    if not found:
        raise Undeliverable("The account has neither a billing address nor an owner.")
    return found


def compose(*, mail: Mail, recipients: list[str]) -> EmailMultiAlternatives:
    """``mail`` in words, text and HTML, from its product and in its account's time zone."""
    account, product = mail.account, mail.account.product
    with timezone.override(account.time_zone):
        letter = letters.from_json(mail.kind, mail.context).letter(letters.Desk(account))
        context = {
            "letter": letter,
            "account": account,
            "account_name": letters.line(account.name),
            "product": product,
            "invited": mail.kind == Mail.Kind.INVITATION,
        }
        text = get_template("mail/letter.txt").template.render(Context(context, autoescape=False))  # type: ignore[attr-defined]
        html = get_template("mail/letter.html").render(context)
    message = EmailMultiAlternatives(
        subject=letters.line(letter.subject),
        body=text,
        from_email=formataddr((letters.line(product.name), parseaddr(settings.DEFAULT_FROM_EMAIL)[1])),
        to=recipients,
        reply_to=[product.support_email] if product.support_email else None,
        headers={"Message-ID": message_id(mail), "Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All"},
    )
    message.attach_alternative(html, "text/html")
    return message


def message_id(mail: Mail) -> str:
    """The same for each attempt at one sending, so that a mail which went out twice is known to be one."""
    return f"<{mail.kind}.{mail.pk}.{mail.sendings}@{urlsplit(settings.PUBLIC_URL).hostname}>"


def _claim(now: datetime) -> Mail | None:
    """Takes the next due mail for the length of a lease. One whose workers never came back as often as is allowed is dead."""
    with transaction.atomic():
        due = Mail.objects.select_related("account__product__unit").filter(state=State.PENDING, next_attempt_at__lte=now)
        mail = due.select_for_update(skip_locked=True, of=("self",)).order_by("next_attempt_at", "pk").first()
        if mail is None:
            return None
        mail.attempts += 1
        mail.next_attempt_at = now + LEASE
        Mail.objects.filter(pk=mail.pk).update(attempts=mail.attempts, next_attempt_at=mail.next_attempt_at)
        if mail.attempts > MAX_ATTEMPTS:
            _finish(mail, State.DEAD, mail.reason or "Its workers never came back.", now)
    return mail


def _mine(mail: Mail) -> Q:
    """The row, as long as nobody else took it: the number of the attempt fences off a worker whose lease is over."""
    return Q(pk=mail.pk, state=State.PENDING, attempts=mail.attempts)


def _finish(mail: Mail, state: State, reason: str, now: datetime) -> None:
    Mail.objects.filter(_mine(mail)).update(state=state, reason=reason, done_at=now)
    mail.state, mail.reason, mail.done_at = state, reason, now
    if state == State.DEAD:
        log.error("mail needs staff", mail=mail.pk, kind=mail.kind, why=reason)


def _sent(mail: Mail, to: list[str], now: datetime) -> None:
    """An invitation's link is a key: once it is sent, only who got it has it."""
    kept = {} if mail.kind == Mail.Kind.INVITATION else mail.context
    Mail.objects.filter(_mine(mail)).update(state=State.SENT, reason="", done_at=now, sent_to=to, sendings=F("sendings") + 1, context=kept)
    mail.state, mail.sent_to, mail.done_at = State.SENT, to, now


def _failed(mail: Mail, error: Exception, now: datetime) -> None:
    """Keeps the error, without anybody's address, and tries again later or never."""
    reason = letters.line(_ADDRESS.sub("…", f"{type(error).__name__}: {error}"))
    log.warning("mail failed", mail=mail.pk, kind=mail.kind, attempt=mail.attempts, error=type(error).__name__)
    if mail.attempts >= MAX_ATTEMPTS:
        _finish(mail, State.DEAD, reason, now)
        return
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (mail.attempts - 1))
    Mail.objects.filter(_mine(mail)).update(reason=reason, next_attempt_at=now + delay)
    mail.reason, mail.next_attempt_at = reason, now + delay
