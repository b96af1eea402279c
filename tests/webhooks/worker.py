"""One worker of the flood: works the inbox until somebody kills it. Importing this module sets Django up."""

from __future__ import annotations

import time

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.utils import timezone  # noqa: E402

from billing import stripe_inbox  # noqa: E402

IDLE_SECONDS = 0.02


def run(stripe_host: str) -> None:
    settings.STRIPE_API_HOST = stripe_host
    while True:
        if stripe_inbox.work_next(now=timezone.now()) is None:
            time.sleep(IDLE_SECONDS)
