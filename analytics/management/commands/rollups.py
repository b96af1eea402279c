"""``manage.py rollups fold | check | rebuild``: see :mod:`analytics.rollups`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from analytics import books, rollups, tasks

SHOWN = 50


class Command(BaseCommand):
    help = "Fold what was charged into the rollups, check them against the records, or rebuild them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=("fold", "check", "rebuild"))

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        match action:
            case "fold":
                self.stdout.write(f"{tasks.fold_rollups()} deltas folded.")
            case "rebuild":
                self.stdout.write(
                    f"Rebuilt from the records; {rollups.rebuild()} rows changed. The books of {books.rebuild()} wallets are new."
                )
            case "check":
                differences = [*map(str, rollups.check()), *books.check()]
                for difference in differences[:SHOWN]:
                    self.stderr.write(difference)
                if differences:
                    self.stderr.write(f"{len(differences)} rows are not what the records say. manage.py rollups rebuild puts them right.")
                    sys.exit(1)
                self.stdout.write("The rollups are what the records say.")
