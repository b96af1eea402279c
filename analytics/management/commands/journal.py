"""``manage.py journal --since 2026-03-01 --until 2026-04-01 [--product rover]``: see :mod:`analytics.journal`."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import exports
from analytics import journal, margin
from pricing.models import Product


class Command(BaseCommand):
    help = "Write the journal of recognised revenue as CSV: deferred revenue, revenue, breakage, fees, promotion, by day and product."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--since", type=_day, required=True, help="The first UTC day, as 2026-03-01.")
        parser.add_argument("--until", type=_day, required=True, help="The first UTC day that is not in it any more.")
        parser.add_argument("--product", help="The slug of a product; all, unless given.")

    def handle(self, *args: Any, since: date, until: date, product: str | None, **options: Any) -> None:
        one = None
        if product is not None:
            one = Product.objects.filter(slug=product).first() if "\0" not in product else None
            if one is None:
                raise CommandError(f"There is no product {product[:100]!r}.")
        try:
            found = journal.lines(since=since, until=until, product=one)
        except margin.InvalidPeriod as error:
            raise CommandError(str(error)) from None
        for part in exports.text(journal.cells(found)):
            self.stdout.write(part, ending="")


def _day(text: str) -> date:
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ArgumentTypeError("Write a day as 2026-03-31.")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
