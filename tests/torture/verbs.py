"""What can be done, as the Python face does it. An answer is what a client app would keep of it: ids and amounts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from accounts.models import Account
from analytics import rollups
from billing import ledger
from metering import usage

#: An operation as it is written down: ``do``, ``key``, ``account`` and what else the verb needs.
Intent = dict[str, Any]
Answer = dict[str, Any]
BY: dict[str, Any] = {"actor": "torture", "reason": "torture"}


def record(accounts: dict[int, Account], intent: Intent) -> Answer:
    """One event or a set. :raises AssertionError: one could not be recorded at all."""
    events = [
        usage.Event(key, accounts[account], datetime.fromisoformat(at), intent["model"], {"input_tokens": tokens})
        for account, key, tokens, at in intent["events"]
    ]
    answers = []
    for done in usage.record(events=events, now=timezone.now()):
        assert isinstance(done, ledger.Usage), done
        answers.append({"refused": done.outcome} if done.outcome == "key_reused" else _used(done))
    return {"events": answers, "replayed": any(answer.get("replayed") for answer in answers)}


def _authorize(account: Account, intent: Intent) -> Answer:
    ask = usage.Ask(intent["model"], {"input_tokens": intent["tokens"]})
    done = usage.authorize(account=account, ask=ask, key=intent["key"], now=timezone.now()).usage
    return {"id": str(done.id), "hold": done.hold_nanos, "replayed": done.replayed}


def _grant(account: Account, intent: Intent) -> Answer:
    ends = intent["ends"] and datetime.fromisoformat(intent["ends"])
    rollover = ledger.Rollover(ends + timedelta(seconds=20), cap_nanos=10_000_000, priority=2) if ends and intent["rolls"] else None
    return _done(
        ledger.grant(
            account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=intent["amount"], source="purchased",
            source_key=intent["key"], key=intent["key"], priority=intent["priority"], expires_at=ends, cash_nanos=intent["amount"] // 3,
            fee_nanos=intent["amount"] // 50, rollover=rollover, **BY,
        )
    )  # fmt: skip


def _adjust(account: Account, intent: Intent) -> Answer:
    unit = account.product.unit_id
    return _done(ledger.adjust(account_id=account.pk, unit_id=unit, amount_nanos=intent["amount"], key=intent["key"], **BY))


def _throttle(account: Account, intent: Intent) -> Answer:
    ends_at = datetime.fromisoformat(intent["ends"])
    stopped = ledger.throttle(account_id=account.pk, actor="torture", reason=intent["key"], ends_at=ends_at, key=intent["key"])
    return {} if stopped else {"refused": "too late"}


def _resume(account: Account, intent: Intent) -> Answer:
    ledger.resume(account_id=account.pk, actor="torture")
    return {}


def _sweep(account: Account, intent: Intent) -> Answer:
    """What the calendar's jobs do."""
    ledger.sweep(limit=20)
    ledger.catch_up(after=0, limit=100)
    rollups.fold(limit=1_000)
    return {}


VERBS: dict[str, Callable[[Account, Intent], Answer]] = {
    "authorize": _authorize,
    "capture": lambda account, intent: _used(
        usage.capture(account=account, authorization_id=UUID(intent["id"]), quantities={"input_tokens": intent["tokens"]})
    ),
    "release": lambda account, intent: _used(usage.release(account=account, authorization_id=UUID(intent["id"]))),
    "extend": lambda account, intent: _used(
        usage.extend(account=account, authorization_id=UUID(intent["id"]), lifetime=timedelta(seconds=5))
    ),
    "grant": _grant,
    "adjust": _adjust,
    "refund": lambda account, intent: _done(ledger.refund(refunded=intent["refunded"], paid=100, **_paid(account, intent))),
    "freeze": lambda account, intent: _done(ledger.freeze(**_paid(account, intent))),
    "unfreeze": lambda account, intent: _done(ledger.unfreeze(**_paid(account, intent))),
    "reverse": lambda account, intent: _done(ledger.reverse(account_id=account.pk, usage_id=UUID(intent["id"]), key=intent["key"], **BY)),
    "reserve": lambda account, intent: _placed(
        usage.reserve(account=account, meter="agents", object_ref=intent["object"], now=timezone.now())
    ),
    "unreserve": lambda account, intent: _placed(usage.unreserve(account=account, meter="agents", object_ref=intent["object"])),
    "throttle": _throttle,
    "resume": _resume,
    "sweep": _sweep,
}


def _paid(account: Account, intent: Intent) -> dict[str, Any]:
    return {"account_id": account.pk, "source": "purchased", "source_key": intent["grant"], "key": intent["key"], **BY}


def _used(done: ledger.Usage) -> Answer:
    return {"id": str(done.id), "price": done.price_nanos, "replayed": done.replayed}


def _done(operation: ledger.Operation) -> Answer:
    return {"operation": operation.id, "amount": operation.amount_nanos, "replayed": operation.replayed}


def _placed(answer: tuple[ledger.Places, int | None]) -> Answer:
    return {"replayed": answer[0].replayed}
