"""``manage.py reconcile_bill FILE… --provider openai``: a provider's bill against our record. See :mod:`analytics.bills`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from analytics import bill_files, bills
from analytics.bill_findings import dollars
from analytics.bill_models import BillMapping


class Command(BaseCommand):
    help = "Import a provider's bill and say what differs from our record, and why. Exits 1 where it is off by more than allowed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "files", nargs="+", metavar="FILE", help="The costs export, and the usage export where the costs have no quantities."
        )
        parser.add_argument("--provider", required=True, help="As models name it: openai, anthropic.")
        parser.add_argument("--mapping", help="A column mapping, for a file that is no known export.")
        parser.add_argument("--actor", default="reconcile_bill", help="Who imports it; kept with the bill.")
        parser.add_argument("--dry-run", action="store_true", help="Compare and store nothing.")

    def handle(self, *args: Any, files: list[str], provider: str, mapping: str | None, actor: str, dry_run: bool, **options: Any) -> None:
        columns = None
        if mapping is not None:
            columns = BillMapping.objects.filter(slug=mapping).first()
            if columns is None:
                raise CommandError(f"There is no column mapping {mapping[:64]!r}.")
        if not 0 < len(actor.strip()) <= 150 or not 0 < len(provider) <= 64:
            raise CommandError("Expected a provider (at most 64 characters) and who imports it (at most 150).")
        now = timezone.now()
        try:
            bill = bills.prepared(files=[_file(name) for name in files], provider=provider, mapping=columns, today=now.date())
            found = bills.compared(provider=provider, since=bill.since, until=bill.until, lines=bill.lines)
            proposed = []
            if not dry_run:
                kept = bills.import_(bill=bill, actor=actor.strip(), user=None, now=now)
                proposed = [finding.proposed for finding in kept.findings.all()]
        except (bill_files.UnreadableBill, bills.AlreadyImported) as error:
            raise CommandError(str(error)) from None
        self.stdout.write(found.sentence)
        if found.billed_nanos != found.recorded_nanos:
            unsplit = f", not split {dollars(found.unsplit_nanos)}" if found.unsplit_nanos else ""
            self.stdout.write(f"Volume {dollars(found.volume_nanos)}, price {dollars(found.price_nanos)}{unsplit}.")
        for number, finding in enumerate(found.findings):
            self.stdout.write(f"- {dollars(finding.amount_nanos)}: {finding.text} {proposed[number] if proposed else ''}".rstrip())
        if bill.others:
            self.stdout.write("Not compared: " + ", ".join(f"{words} {dollars(nanos)}" for words, nanos in bill.others) + ".")
        if not bills.green(found.billed_nanos, found.recorded_nanos, found.threshold_ppm):
            sys.exit(1)


def _file(name: str) -> tuple[str, bytes]:
    try:
        with Path(name).open("rb") as file:
            return Path(name).name[:100], file.read(bill_files.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CommandError(f"{name[:200]!r} cannot be read: {error}") from None
