"""manage.py explain rec_… | auth_…"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from accounts.models import Account
from billing import ledger
from metering import charges, explanation, usage


class Command(BaseCommand):
    help = (
        "One charge, sentence by sentence, from what is stored, applied again and its seal recomputed. For staff: costs and price rows are"
        " shown. Exit code 1 where it does not re-derive, 2 where there is no such charge."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("record", metavar="ID", help="A usage record (rec_…) or the authorization that it began as (auth_…).")

    def handle(self, *args: Any, **options: Any) -> None:
        account, id_ = _found(options["record"])
        record = charges.record(account, id_)
        if record is None:
            raise CommandError("There is no such usage record.", returncode=2)
        told = explanation.explain(account=account, record=record, burnt=charges.burnt(record), staff=True)
        for number, step in enumerate(told.steps, 1):
            self.stdout.write(f"{number}. {step.text}")
            for part in step.parts:
                self.stdout.write(f"   - {part}")
        for seal in told.charge.stored.seals:
            self.stdout.write(f"Sealed: {seal.text}")
        if not told.holds:
            raise CommandError("The charge does not re-derive.", returncode=1)


def _found(name: str) -> tuple[Account, UUID]:
    try:
        public_id, id_ = usage.split_id(name)
        return Account.objects.select_related("product__unit").get(public_id=public_id), id_
    except (ledger.NotFound, Account.DoesNotExist):
        raise CommandError(f"{name[:80]!r} is no usage record; expected rec_… or auth_….", returncode=2) from None
