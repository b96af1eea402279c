"""manage.py rerate"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from metering import rerating


class Command(BaseCommand):
    help = "Rates usage that had no price and has one now, each record once. The job rate-unpriced does the same every ten minutes."

    def handle(self, *args: Any, **options: Any) -> None:
        tally = rerating.run(now=timezone.now())
        self.stdout.write(f"rerate: {tally.rated} rated ({tally.absorbed} at the product's expense), {tally.waiting} still without a price")
        if tally.failed:
            raise CommandError(f"{tally.failed} could not be charged; the log says why.")
