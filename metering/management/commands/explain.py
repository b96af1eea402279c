"""manage.py explain rec_… | auth_… | acct_…"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import UTC
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts.models import Account
from billing import ledger
from metering import charges, explanation, refusal_explanation, usage
from metering.models import Refusal
from pricing.models import Product


class Command(BaseCommand):
    help = (
        "One charge, sentence by sentence, from what is stored, applied again and its seal recomputed; or the last refusals of an account."
        " For staff: costs and price rows are shown. Exit code 1 where a charge does not re-derive, 2 where there is no such thing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "record", metavar="ID", help="A usage record (rec_…), the authorization that it began as (auth_…), or an account (acct_…)."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["record"].startswith("acct_"):
            self._refusals(options["record"])
            return
        account, id_ = _found(options["record"])
        record = charges.record(account, id_)
        if record is None:
            raise CommandError("There is no such usage record.", returncode=2)
        told = explanation.explain(account=account, record=record, burnt=charges.burnt(record), staff=True)
        self._write(told.steps)
        for seal in told.charge.stored.seals:
            self.stdout.write(f"Sealed: {seal.text}")
        if not told.holds:
            raise CommandError("The charge does not re-derive.", returncode=1)

    def _refusals(self, public_id: str) -> None:
        account = Account.objects.select_related("product__unit").filter(public_id=public_id).first() if "\0" not in public_id else None
        if account is None:
            raise CommandError(f"{public_id[:80]!r} is no account.", returncode=2)
        kept = list(Refusal.objects.filter(account=account))
        told = explanation.Told(True, Product.Visibility(account.product.visibility), UTC)
        for refusal in kept:
            self._write(refusal_explanation.explain(refusal=refusal, account=account, told=told, now=timezone.now()))
            self.stdout.write("")
        if not kept:
            self.stdout.write("Nothing was refused.")

    def _write(self, steps: Sequence[explanation.Step]) -> None:
        for number, step in enumerate(steps, 1):
            self.stdout.write(f"{number}. {step.text}")
            for part in step.parts:
                self.stdout.write(f"   - {part}")


def _found(name: str) -> tuple[Account, UUID]:
    try:
        public_id, id_ = usage.split_id(name)
        return Account.objects.select_related("product__unit").get(public_id=public_id), id_
    except (ledger.NotFound, Account.DoesNotExist):
        raise CommandError(f"{name[:80]!r} is no usage record; expected rec_… or auth_….", returncode=2) from None
