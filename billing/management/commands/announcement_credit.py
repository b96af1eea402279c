"""``manage.py announcement_credit PRODUCT --opened-before TIME --actor NAME [--dry-run]``: see :mod:`billing.announcements`."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.templatetags.amounts import plain_amount
from billing import announcements
from billing.management import arguments
from pricing.models import Product

PROGRESS_EVERY = 100


class Command(BaseCommand):
    help = (
        "Grants a product's `announcement_credit` to the accounts that were there before it charged, once each for ever, and mails them."
        " One that broke off is finished by the next: who has it is passed over, and so is who was welcomed with credit."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("product", metavar="PRODUCT")
        parser.add_argument(
            "--opened-before", required=True, type=arguments.instant, metavar="TIME", help="Accounts opened earlier, ISO 8601."
        )
        parser.add_argument("--actor", required=True, type=arguments.words, help="Who grants it; stays in the ledger.")
        parser.add_argument("--dry-run", action="store_true", help="Says how many and how much, and grants nothing.")

    def handle(self, *, product: str, opened_before: datetime, actor: str, dry_run: bool, **options: Any) -> None:
        found = Product.objects.select_related("unit").filter(slug=product).first() if "\0" not in product else None
        if found is None:
            raise CommandError(f"There is no product {product!r}.")
        if not found.announcement_credit_nanos:
            raise CommandError(f"{found.name} has no announcement_credit in its catalog.")
        due = announcements.due(product=found, opened_before=opened_before)
        total, nanos = due.count(), found.announcement_credit_nanos
        each, together = plain_amount(nanos, found.unit), plain_amount(nanos * total, found.unit)
        self.stdout.write(f"{total} accounts of {found.name}, {each} each: {together}")
        if dry_run:
            return
        for done, account in enumerate(due.select_related("product__unit").iterator(chunk_size=PROGRESS_EVERY), start=1):
            announcements.grant(account=account, actor=actor, now=timezone.now())
            if done % PROGRESS_EVERY == 0 or done == total:
                self.stdout.write(f"{done} of {total}")
