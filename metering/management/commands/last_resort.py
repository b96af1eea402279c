"""``manage.py last_resort PRODUCT --to FOLDER --actor NAME --reason TEXT [--export-only]``: see :mod:`metering.last_resort`."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing.management import arguments
from metering import last_resort
from pricing.models import Product


class Command(BaseCommand):
    help = (
        "Writes everything about a product to CSV files and has the module step aside: usage is spooled, nothing is checked, nobody is"
        " topped up, for seven days at most. Nothing is deleted. End the switches in admin to go on; what was spooled is then charged."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("product", metavar="PRODUCT")
        parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="Where the files go; none of them may be there yet.")
        parser.add_argument("--actor", required=True, type=arguments.words, help="Who does it; kept with the switches.")
        parser.add_argument("--reason", required=True, type=arguments.words, help="Client apps are told.")
        parser.add_argument("--export-only", action="store_true", help="Writes the files and switches nothing.")

    def handle(self, *, product: str, to: Path, actor: str, reason: str, export_only: bool, **options: Any) -> None:
        found = Product.objects.filter(slug=product).first() if "\0" not in product else None
        if found is None:
            raise CommandError(f"There is no product {product!r}.")
        try:
            for file in last_resort.export(product=found, folder=to):
                self.stdout.write(f"{file.path}: {file.rows:,} rows")
        except (OSError, ValueError) as error:
            raise CommandError(f"Nothing was switched: {error}") from error
        if export_only:
            return
        for switch in last_resort.disable(product=found, reason=reason, actor=actor, now=timezone.now()):
            self.stdout.write(f"{switch}, until {switch.ends_at:%Y-%m-%d %H:%M} UTC")
