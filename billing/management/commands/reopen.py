"""``manage.py reopen PRODUCT [--dry-run]``: see :mod:`billing.reopening`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import reopening
from pricing.models import Product

PROGRESS_EVERY = 100


class Command(BaseCommand):
    help = (
        "Gives accounts that have no ledger (after a recovery) their ledger, their plan's credit and the welcome credit. Safe to repeat:"
        " who has a ledger is left alone."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("product", metavar="PRODUCT")
        parser.add_argument("--dry-run", action="store_true", help="Says how many, and changes nothing.")

    def handle(self, *, product: str, dry_run: bool, **options: Any) -> None:
        found = Product.objects.filter(slug=product).first() if "\0" not in product else None
        if found is None:
            raise CommandError(f"There is no product {product!r}.")
        accounts = reopening.lacking(product=found)
        self.stdout.write(f"{len(accounts)} accounts of {found.name} have no ledger.")
        if dry_run:
            return
        for done, account in enumerate(accounts, start=1):
            reopening.reopen(account=account, now=timezone.now())
            if done % PROGRESS_EVERY == 0 or done == len(accounts):
                self.stdout.write(f"{done} of {len(accounts)}")
