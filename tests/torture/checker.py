"""Holds what clients wrote down against the ledger.

    Facts.read   what the ledger has
    judge        what was acknowledged and is lost, what is there twice or was sent by nobody, what has other amounts, what does not add up

An operation without an answer may have happened or not; where it did, it is whole: the audit sees to that, and the sums.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Sum

from analytics import rollups
from billing import audit, ledger
from billing.models import Grant, LedgerEntry, Operation, Wallet
from metering.models import OpenAuthorization, Throttle, UsageRecord
from tests.torture import PRICE_NANOS
from tests.torture.journal import Deed

#: Where an operation is found: ("usage", account, key hash), ("finished", account, id), ("operation", account, verb, key hash),
#: ("object", account, name), ("throttle", account, reason).
Place = tuple[Any, ...]
Says = dict[str, Any]
#: The rare verbs, and whether their amount changes what the account has. (What is frozen is still its.)
OPERATIONS = {"grant": True, "adjust": True, "reverse": True, "refund": True, "freeze": False, "unfreeze": False}


@dataclass(slots=True)
class Facts:
    """What the ledger has of some accounts. ``net_nanos``: balance and what is frozen, less debt, before anything expired."""

    found: dict[Place, list[Says]] = field(default_factory=lambda: defaultdict(list))
    net_nanos: Counter[int] = field(default_factory=Counter)

    @classmethod
    def read(cls, accounts: Collection[int]) -> Facts:
        facts, theirs = cls(), {"account_id__in": list(accounts)}
        open_work = OpenAuthorization.objects.filter(**theirs).values_list("account_id", "key_hash", "id", "hold")
        for account, key, id_, hold in open_work.iterator():
            facts.found["usage", account, key].append({"id": str(id_), "hold": hold})
        finished = UsageRecord.objects.filter(**theirs).values_list("account_id", "key_hash", "id", "hold", "outcome", "price_nanos")
        for account, key, id_, hold, outcome, price in finished.iterator():
            says = {"id": str(id_), "hold": hold, "outcome": outcome, "price": price}
            facts.found["usage", account, key].append(says)
            facts.found["finished", account, str(id_)].append(says)
        operations = Operation.objects.filter(**theirs).values_list("account_id", "verb", "key_hash", "id", "amount")
        for account, verb, key, operation, amount in operations.iterator():
            facts.found["operation", account, verb, key].append({"operation": operation, "amount": amount})
        for account, reason in Throttle.objects.filter(**theirs).values_list("account_id", "reason"):
            facts.found["throttle", account, reason].append({})
        with connection.cursor() as cursor:
            cursor.execute(
                "select account_id, object_ref from usage_object where released_at is null and account_id = any(%s)", [list(accounts)]
            )
            for account, name in cursor.fetchall():
                facts.found["object", account, name].append({})
        for account, balance, debt in Wallet.objects.filter(**theirs).values_list("account_id", "balance", "debt"):
            facts.net_nanos[account] += balance - debt
        for account, frozen in Grant.objects.filter(**theirs).values_list("account_id").annotate(Sum("frozen")):
            facts.net_nanos[account] += frozen
        by_itself = LedgerEntry.objects.filter(**theirs, kind__in=("expiry", "rollover"))
        for account, amount in by_itself.values_list("account_id").annotate(Sum("amount")):
            facts.net_nanos[account] -= amount
        return facts


@dataclass(slots=True)
class Verdict:
    """Everything that is wrong, a line each."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def audit_findings() -> list[str]:
    """What the ledger's audit and the recount of the rollups find."""
    return [f"{finding.check}: account {finding.account_id}: {finding.text}" for finding in audit.run()] + [
        f"rollups: {difference}" for difference in rollups.check()
    ]


def judge(deeds: Sequence[Deed], facts: Facts, overages: Mapping[int, str]) -> Verdict:
    """``deeds`` are those of all clients, each client's in its order; ``overages`` are the accounts' policies."""
    verdict = Verdict()
    claims = [claim for deed in deeds for claim in _claims(deed)]
    for place, says in [*claims, *_objects(deeds).items()]:
        _compare(place, says, facts.found.get(place, []), verdict)
    verdict.violations += [f"{deed} was not what was asked for" for deed in deeds if not _as_asked(deed, overages)]
    sent = {place for deed in deeds for place in _sent(deed.intent)}
    verdict.doubled += [f"{place} was sent by nobody" for place in facts.found if place[0] in ("usage", "operation") and place not in sent]
    expected = _net_nanos(claims, facts)
    for account in overages:
        if facts.net_nanos[account] != expected[account]:
            verdict.violations.append(f"account {account} has {facts.net_nanos[account]} nanos, by the journals {expected[account]}")
    return verdict


def _compare(place: Place, says: Says | None, found: Sequence[Says], verdict: Verdict) -> None:
    if says is None:
        verdict.doubled += [f"{place} was refused and is there: {there}" for there in found]
    elif not found:
        verdict.lost.append(f"{place} was acknowledged: {says}")
    elif len(found) > 1:
        verdict.doubled.append(f"{place} is there {len(found)} times: {found}")
    elif any(found[0].get(name) != value for name, value in says.items()):
        verdict.violations.append(f"{place} was acknowledged as {says} and is {found[0]}")


def _sent(intent: dict[str, Any]) -> Iterator[Place]:
    """Where an operation may be found."""
    if "events" in intent:
        yield from (("usage", account, _usage_key(key)) for account, key, _, _ in intent["events"])
    elif intent["do"] == "authorize":
        yield "usage", intent["account"], _usage_key(intent["key"])
    elif intent["do"] in OPERATIONS:
        yield "operation", intent["account"], intent["do"], ledger.key_hash(intent["key"])


def _claims(deed: Deed) -> Iterator[tuple[Place, Says | None]]:
    """What must be where, if the answer was true; None: nothing may be there."""
    intent, answer = deed.intent, deed.answer
    if answer is None:
        return
    account, do, places = intent["account"], intent["do"], list(_sent(intent))
    if "events" in intent:
        for place, said in zip(places, answer["events"], strict=True):
            if "refused" not in said:
                yield place, {"id": said["id"], "price": said["price"], "outcome": "recorded"}
    elif do in ("capture", "release"):
        outcome = answer.get("refused", f"{do}d")
        if outcome in ("captured", "released"):  # also where another client was faster
            yield ("finished", account, intent["id"]), {"outcome": outcome} | ({} if "refused" in answer else {"price": answer["price"]})
    elif "refused" in answer:
        yield from ((place, None) for place in places)
    elif do == "throttle":
        yield ("throttle", account, intent["key"]), {}
    else:
        yield from ((place, {name: said for name, said in answer.items() if name != "replayed"}) for place in places)


def _as_asked(deed: Deed, overages: Mapping[int, str]) -> bool:
    """Whether the answer has the amounts that follow from the question."""
    intent, answer = deed.intent, deed.answer
    if answer is None or "refused" in answer:
        return True
    match intent["do"]:
        case "record" | "batch":
            said = zip(intent["events"], answer["events"], strict=True)
            return all("refused" in each or each["price"] == tokens * PRICE_NANOS for (_, _, tokens, _), each in said)
        case "authorize":
            return bool(answer["hold"] == intent["tokens"] * PRICE_NANOS)
        case "capture":
            price = intent["tokens"] * PRICE_NANOS
            return bool(answer["price"] == (min(price, intent["hold"]) if overages[intent["account"]] == "cap" else price))
        case "grant" | "adjust":
            return bool(answer["amount"] == intent["amount"])
    return True


def _objects(deeds: Sequence[Deed]) -> dict[Place, Says | None]:
    """How the clients' objects must be: by the last answer about each, unless a question is open."""
    last: dict[Place, Says | None] = {}
    for deed in deeds:
        if deed.intent["do"] in ("reserve", "unreserve"):
            place = ("object", deed.intent["account"], deed.intent["object"])
            if deed.answer is None:
                last.pop(place, None)
            else:
                last[place] = {} if deed.intent["do"] == "reserve" and "refused" not in deed.answer else None
    return last


def _net_nanos(claims: Sequence[tuple[Place, Says | None]], facts: Facts) -> Counter[int]:
    """What each account must have: by the answers where there are, else by the ledger."""
    effects: dict[Place, int] = {}
    by_the_ledger = ((place, found[0]) for place, found in facts.found.items())
    for place, says in [*claims, *by_the_ledger]:
        if says and says.get("price") is not None:
            effects.setdefault(("finished", place[1], says["id"] if place[0] == "usage" else place[2]), -says["price"])
        elif says and place[0] == "operation" and OPERATIONS[place[2]]:
            effects.setdefault(place, says["amount"])
    nets: Counter[int] = Counter()
    for place, amount in effects.items():
        nets[place[1]] += amount
    return nets


def _usage_key(key: str) -> UUID:
    return ledger.key_hash("usage", key)
