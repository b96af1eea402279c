"""Tells staff of alerts, on the channels of their rules. A notice is a row of :class:`AlertNotice`, written with the alert it tells of.

    send_next   sends the notice that is due first
    send_again  has notices that were given up sent anew
    recipients  who gets the mails of a channel

Not the customers' outbox: that writes to accounts, by what their people may know, and a stop of it must not silence the alert that says so.
A worker takes a lease, sends outside of any transaction, and marks the row; killed between the two, it leads to one more notice, with the
same id. Failures are tried again later and later; after ``MAX_ATTEMPTS`` the notice is dead, shown to staff, and no other waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import sentry_sdk
import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Q
from django.urls import reverse
from prometheus_client import Counter

from accounts import letters, outbound
from analytics.models import AlertChannel, AlertNotice

MAX_ATTEMPTS = 10
FIRST_DELAY = timedelta(seconds=30)
LONGEST_DELAY = timedelta(hours=1)
#: For so long nobody else sends a notice that is being sent: longer than mail and webhooks may take.
LEASE = timedelta(minutes=2)
SENTRY_SECONDS = 5

Kind, State = AlertChannel.Kind, AlertNotice.State

log = structlog.get_logger(__name__)
NOTICES = Counter("alert_notices", "Attempts to tell staff of an alert, by kind of channel and what became of it.", ["kind", "outcome"])


class NotSent(Exception):
    """The channel did not take it. The message says why, without its address."""


def send_next(*, now: datetime) -> AlertNotice | None:
    """Sends the pending notice that is due first and nobody else is sending; None where there is none. Opens its own transactions."""
    notice = _claim(now)
    if notice is None or notice.state != State.PENDING:
        return notice
    try:
        _send(notice)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is kept with the notice, and the next one must not wait for it)
        _failed(notice, error, now)
    else:
        _finish(notice, State.SENT, "", now)
    NOTICES.labels(notice.channel.kind, notice.state).inc()
    return notice


def send_again(*, notice_ids: Collection[UUID], now: datetime) -> list[AlertNotice]:
    """Makes those of these notices pending again that were given up, in the caller's transaction; returns them."""
    dead = list(AlertNotice.objects.select_for_update().filter(pk__in=notice_ids, state=State.DEAD).order_by("pk"))
    for notice in dead:
        notice.state, notice.attempts, notice.next_attempt_at, notice.done_at = State.PENDING, 0, now, None
        notice.save(update_fields=["state", "attempts", "next_attempt_at", "done_at"])
    return dead


def recipients(*, channel: AlertChannel) -> list[str]:
    """The channel's own addresses, or those of the setting."""
    own = [address.strip() for address in channel.target.split(",") if address.strip()]
    return own or list(settings.ALERT_EMAILS)


def _send(notice: AlertNotice) -> None:
    """:raises NotSent: the channel did not take it."""
    match notice.channel.kind:
        case Kind.MAIL:
            _mail(notice)
        case Kind.SENTRY:
            _sentry(notice)
        case Kind.SLACK:
            links = f"\n<{_link(notice)}|Open it>" if notice.alert_id else ""
            _post(notice, {"text": f"*{_slack(notice.subject)}*\n{_slack(notice.text)}{links}"})
        case Kind.WEBHOOK:
            _post(notice, _facts(notice))


def _mail(notice: AlertNotice) -> None:
    to = recipients(channel=notice.channel)
    if not to:
        raise NotSent("Nobody is named: give the channel addresses, or set ALERT_EMAILS.")
    rows = "".join(f"\n  {row}" for row in (notice.alert.rows if notice.alert else []))
    about = f"\n\nIt is about:{rows}" if rows else ""
    link = f"\n\n{_link(notice)}" if notice.alert_id else ""
    EmailMessage(
        subject=letters.line(notice.subject),
        body=f"{notice.text}{about}{link}\n",
        to=to,
        headers={
            "Message-ID": f"<alert.{notice.pk}@{urlsplit(settings.PUBLIC_URL).hostname}>",
            "Auto-Submitted": "auto-generated",
            "X-Auto-Response-Suppress": "All",
        },
    ).send()


def _sentry(notice: AlertNotice) -> None:
    """One issue a rule and product, however often it fires."""
    if sentry_sdk.get_client().transport is None:
        raise NotSent("Sentry is not set up: SENTRY_DSN is empty.")
    with sentry_sdk.new_scope() as scope:
        alert = notice.alert
        scope.fingerprint = ["alert", alert.rule.slug if alert else "test", str(alert.product_id) if alert else ""]
        scope.set_context("alert", _facts(notice))
        scope.capture_message(notice.subject, level="error" if notice.event == "fired" else "info")
    sentry_sdk.flush(timeout=SENTRY_SECONDS)


def _post(notice: AlertNotice, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json", "Webhook-Id": str(notice.pk)}
    answer = outbound.post(url=notice.channel.target, body=json.dumps(body).encode(), headers=headers)
    if not 200 <= answer.status < 300:
        raise NotSent(f"It answered {answer.status}.")


def _facts(notice: AlertNotice) -> dict[str, Any]:
    alert = notice.alert
    facts: dict[str, Any] = {
        "event": f"alert.{notice.event}",
        "subject": notice.subject,
        "text": notice.text,
        "at": notice.queued_at.isoformat(),
    }
    if alert is not None:
        facts |= {
            "alert": alert.pk,
            "rule": alert.rule.slug,
            "severity": alert.severity,
            "product": alert.product.slug if alert.product else None,
            "rows": alert.rows,
            "link": _link(notice),
        }
    return facts


def _link(notice: AlertNotice) -> str:
    return settings.PUBLIC_URL + reverse("admin:analytics_alert_change", args=[notice.alert_id])


def _slack(text: str) -> str:
    """Text that is not ours (names of models, of accounts) calls nobody and hides no link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _claim(now: datetime) -> AlertNotice | None:
    """Takes the next due notice for the length of a lease. One whose workers never came back as often as is allowed is dead."""
    with transaction.atomic():
        due = AlertNotice.objects.select_related("channel", "alert__rule", "alert__product")
        due = due.filter(state=State.PENDING, next_attempt_at__lte=now)
        notice = due.select_for_update(skip_locked=True, of=("self",)).order_by("next_attempt_at", "queued_at").first()
        if notice is None:
            return None
        notice.attempts += 1
        notice.next_attempt_at = now + LEASE
        AlertNotice.objects.filter(pk=notice.pk).update(attempts=notice.attempts, next_attempt_at=notice.next_attempt_at)
        if notice.attempts > MAX_ATTEMPTS:
            _finish(notice, State.DEAD, notice.error or "Its workers never came back.", now)
    return notice


def _finish(notice: AlertNotice, state: AlertNotice.State, error: str, now: datetime) -> None:
    AlertNotice.objects.filter(_mine(notice)).update(state=state, error=error, done_at=now)
    notice.state, notice.error, notice.done_at = state, error, now
    if state == State.DEAD:
        log.error("alert not told", notice=str(notice.pk), channel=notice.channel.name, why=error)


def _failed(notice: AlertNotice, error: Exception, now: datetime) -> None:
    why = str(error) if isinstance(error, NotSent | outbound.Refused | outbound.Unreachable) else type(error).__name__
    log.warning("alert not told yet", notice=str(notice.pk), channel=notice.channel.name, attempt=notice.attempts, why=why)
    if notice.attempts >= MAX_ATTEMPTS:
        _finish(notice, State.DEAD, why, now)
        return
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (notice.attempts - 1))
    AlertNotice.objects.filter(_mine(notice)).update(error=why, next_attempt_at=now + delay)
    notice.error, notice.next_attempt_at = why, now + delay


def _mine(notice: AlertNotice) -> Q:
    """The row, as long as nobody else took it: the number of the attempt fences off a worker whose lease is over."""
    return Q(pk=notice.pk, state=State.PENDING, attempts=notice.attempts)
