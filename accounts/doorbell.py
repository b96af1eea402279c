"""The doorbell: asks a worker to look at a queue that PostgreSQL keeps. Ringing is a courtesy: each queue's sweeper looks every minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from celery import Task
from kombu.exceptions import OperationalError as BrokerError

#: After the broker did not answer, nobody waits for it for so long.
QUIET_SECONDS = 60

log = structlog.get_logger(__name__)
_quiet_until = 0.0
_muffled = False


@contextmanager
def muffled() -> Iterator[None]:
    """Nobody is rung inside, in this whole process: for simulations, whose queues no worker looks at."""
    global _muffled
    _muffled = True
    try:
        yield
    finally:
        _muffled = False


def ring(task: Task[..., object], *arguments: str) -> None:
    """Has a worker run ``task`` now. Never raises because of the broker."""
    global _quiet_until
    if _muffled or time.monotonic() < _quiet_until:
        return
    try:
        task.apply_async(args=arguments, retry=False)
    except BrokerError as error:
        _quiet_until = time.monotonic() + QUIET_SECONDS
        log.warning("doorbell not rung", task=task.name, exc_info=error)
