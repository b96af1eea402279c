"""``manage.py audit``: checks every equation of the ledger; exit code 1 where one does not hold."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing import audit


class Command(BaseCommand):
    help = "Checks every equation of the ledger against its rows. Exit code 1 and one line a finding where one does not hold."

    def handle(self, *args: Any, **options: Any) -> None:
        findings = audit.run()
        for finding in findings:
            self.stderr.write(f"account {finding.account_id}: {finding.check}: {finding.text}")
        self.stdout.write(f"audit: {len(audit.checks())} checks, {len(findings)} findings")
        if findings:
            sys.exit(1)
