"""One client: thinks of an operation, writes it down, sends it until it is answered, writes the answer down.

An operation that was not answered is sent again as it was, under the same key: at once after a lost connection, first of all after
``kill -9``.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from django.db import IntegrityError, InterfaceError, OperationalError, connection
from django.utils import timezone

from accounts import edge_limit
from accounts.models import Account
from billing import ledger
from metering import usage
from metering.models import OpenAuthorization
from tests.torture import verbs
from tests.torture.journal import Journal
from tests.torture.verbs import Answer, Intent
from tests.torture.world import World

T = TypeVar("T")
PAUSE_SECONDS = 0.05
HOT_SHARE = 0.6
#: How often each operation is thought of, relative to the others. One that has nothing to work on yet becomes an authorize.
WEIGHTS = {
    "authorize": 26, "capture": 22, "release": 5, "extend": 4, "record": 10, "batch": 4, "grant": 12, "adjust": 2, "refund": 3, "freeze": 2,
    "unfreeze": 2, "reverse": 3, "reserve": 4, "unreserve": 3, "throttle": 1, "resume": 1, "sweep": 2,
}  # fmt: skip


def run(path: Path, number: int, life: int, seed: int, world: World) -> None:
    """Works until it is killed, or its parent was. ``life`` counts how often this client was started."""
    logging.disable()  # lost connections are what this is about
    parent = os.getppid()
    worker = Worker(Journal(path), world, number, Random(f"{seed}/{number}/{life}"), prefix=f"{number}-{life}")
    worker.resume()
    while os.getppid() == parent:
        worker.work()


class Worker:
    """What a client knows: the last things it did, each of which it may go on with."""

    def __init__(self, journal: Journal, world: World, number: int, draw: Random, *, prefix: str) -> None:
        self.journal, self.world, self.number, self.draw = journal, world, number, draw
        self._prefix, self._count = prefix, 0
        self._accounts: dict[int, Account] = {}
        self._held: deque[Intent] = deque(maxlen=40)
        self._charged: deque[Intent] = deque(maxlen=40)
        self._granted: deque[Intent] = deque(maxlen=10)
        self._recorded: deque[list[Any]] = deque(maxlen=40)
        for deed in journal.deeds:
            self._remember(deed.intent, deed.answer)

    def resume(self) -> None:
        """Asks again what was not answered before it was killed."""
        for deed in self.journal.deeds:
            if deed.answer is None:
                self.carry_out(deed.intent, tries=1)

    def work(self) -> None:
        intent, _ = self._until_answered(self._think)
        self.journal.intend(intent)
        self.carry_out(intent)

    def carry_out(self, intent: Intent, *, tries: int = 0) -> None:
        answer, lost = self._until_answered(lambda: self._send(intent))
        self.journal.answered(intent, answer, tries + lost)
        self._remember(intent, answer)

    def _until_answered(self, ask: Callable[[], T]) -> tuple[T, int]:
        """The answer, and how often it was asked for in vain."""
        tries = 0
        while True:
            try:
                return ask(), tries
            except (OperationalError, InterfaceError):
                connection.close()
                tries += 1
                time.sleep(PAUSE_SECONDS)

    def _send(self, intent: Intent) -> Answer:
        edge_limit.check(key_id=self.number)
        if not self._accounts:
            self._accounts = Account.objects.select_related("product__unit").in_bulk(list(self.world.accounts))
        try:
            if "events" in intent:
                return verbs.record(self._accounts, intent)
            return verbs.VERBS[intent["do"]](self._accounts[intent["account"]], intent)
        except usage.Refused as error:
            return {"refused": error.layer.name}
        except ledger.AlreadyResolved as error:
            return {"refused": error.state}
        except (ledger.AlreadyReversed, ledger.HoldExceeded, ledger.InsufficientCredits, ledger.NotFound) as error:
            return {"refused": type(error).__name__}
        except IntegrityError:  # a grant that was to end in the future when it was written down
            if intent.get("ends") is None or datetime.fromisoformat(intent["ends"]) > timezone.now():
                raise
            return {"refused": "too late"}

    def _remember(self, intent: Intent, answer: Answer | None) -> None:
        if answer is None or "refused" in answer:
            return
        match intent["do"]:
            case "authorize":
                self._held.append(intent | answer)
            case "capture" if answer["price"]:
                self._charged.append({"account": intent["account"], "id": answer["id"]})
            case "grant":
                self._granted.append(intent)
            case "record" | "batch":
                self._recorded.extend(intent["events"])
                said = zip(intent["events"], answer["events"], strict=True)
                self._charged.extend({"account": event[0], "id": each["id"]} for event, each in said if "refused" not in each)

    # What next ----------------------------------------------------------------------------------------------------------------

    def _think(self) -> Intent:
        """The next operation, whole: whatever becomes of it, it is this one that is sent again."""
        self._count += 1
        draw, key = self.draw, f"{self._prefix}-{self._count}"
        [do] = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        intent = {"do": do, "key": key, "account": self._anybody()}
        match do:
            case "capture" | "release" | "extend" if held := self._some_hold():
                tokens = held["tokens"]
                used = {"tokens": draw.choice([0, tokens // 2, tokens, tokens, tokens * 3])} if do == "capture" else {}
                return intent | {name: held[name] for name in ("account", "id", "hold")} | used
            case "record":
                return intent | {"model": self.world.model, "events": [self._event(key)]}
            case "batch":
                return intent | {"model": self.world.model, "events": self._events(key)}
            case "grant":
                terms = {"ends": self._soon(2, 20) if draw.random() < 0.5 else None, "rolls": draw.random() < 0.5}
                return intent | {"amount": draw.randint(1, 40_000_000), "priority": draw.randint(1, 3)} | terms
            case "adjust":
                return intent | {"amount": draw.choice([-1, 1]) * draw.randint(1, 2_000_000)}
            case "refund" | "freeze" | "unfreeze" if self._granted:
                granted = draw.choice(self._granted)
                return intent | {"account": granted["account"], "grant": granted["key"], "refunded": draw.randint(0, 100)}
            case "reverse" if self._charged:
                return intent | draw.choice(self._charged)
            case "reserve" | "unreserve":  # objects of its own: the last answer says how they are
                return intent | {"account": draw.choice(list(self.world.hot)), "object": f"{self.number}-{draw.randrange(6)}"}
            case "throttle":
                return intent | {"ends": self._soon(0.1, 0.5)}
            case "resume" | "sweep":
                return intent
        return intent | {"do": "authorize", "model": self.world.model, "tokens": draw.randint(1, 2_000)}

    def _anybody(self) -> int:
        return self.draw.choice(list(self.world.hot if self.draw.random() < HOT_SHARE else self.world.others))

    def _soon(self, least_seconds: float, most_seconds: float) -> str:
        return (timezone.now() + timedelta(seconds=self.draw.uniform(least_seconds, most_seconds))).isoformat()

    def _some_hold(self) -> Intent | None:
        """A hold of its own, now and then one that it resolved before; or one that another client may be about to resolve."""
        if self._held and self.draw.random() < 0.9:
            return self.draw.choice(self._held) if self.draw.random() < 0.1 else self._held.pop()
        account = self.draw.choice(list(self.world.hot))
        rival = OpenAuthorization.objects.filter(account_id=account).order_by("key_hash").first()
        return {"account": account, "id": str(rival.pk), "hold": rival.hold, "tokens": rival.quantities[0]} if rival else None

    def _event(self, key: str) -> list[Any]:
        """An event as it is written down: whose, its key, its tokens, when."""
        return [self._anybody(), key, self.draw.randint(1, 100), timezone.now().isoformat()]

    def _events(self, key: str) -> list[list[Any]]:
        """A set in which some events come twice or came before, and some keys were used for something else."""
        events = [self._event(f"{key}-{number}") for number in range(self.draw.randint(2, 120))]
        known = [*events, *self._recorded]
        events += self.draw.choices(known, k=len(events) // 5)
        events += [[account, used, tokens + 1, at] for account, used, tokens, at in self.draw.choices(known, k=2)]
        self.draw.shuffle(events)
        return events
