"""What happens by itself when its time has come, in the order of the times: each thing once, in a transaction of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from stripe_double import checkout, collection, errors, subscriptions
from stripe_double.store import Obj, Store

log = logging.getLogger(__name__)

ACTIONS: dict[str, tuple[str, Callable[[Store, Obj], object]]] = {
    "renew": ("subscription", subscriptions.renew),
    "cancel": ("subscription", subscriptions.cancel_planned),
    "expire": ("subscription", subscriptions.expire),
    "trial_will_end": ("subscription", subscriptions.trial_will_end),
    "finalize": ("invoice", subscriptions.finalize_due),
    "retry": ("invoice", collection.retry),
    "settle": ("payment_intent", checkout.settle),
    "expire_session": ("checkout.session", checkout.expire),
}


def run(store: Store, until: int) -> int:
    """Do everything that is due by ``until``, also what becomes due on the way; how many things that was."""
    count = 0
    with store.lock:
        while due := store.next_due(until):
            seq, at, action, id = due
            kind, act = ACTIONS[action]
            with store.transaction(at=at):
                store.sql("delete from due where seq = ?", seq)
                try:
                    act(store, store.get(kind, id))
                except errors.StripeError as error:
                    if error.body["error"].get("code") != "resource_missing":
                        raise
                    log.info("%s of %s has nothing to do any more: %s", action, id, error)
            count += 1
    return count


def advance(store: Store, to: int) -> int:
    """Move the double's clock forward to ``to``, doing what is due on the way."""
    with store.lock:
        now = store.now()
        if to < now:
            raise errors.invalid("The clock only goes forward.", param="to")
        count = run(store, to)
        store.set("clock_offset", store.setting("clock_offset") + to - now)
    return count


class Ticker(threading.Thread):
    """The clock also goes by itself."""

    def __init__(self, store: Store):
        super().__init__(name="ticker", daemon=True)
        self._store = store
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            try:
                run(self._store, self._store.now())
            except Exception:
                log.exception("Something that was due could not be done")
