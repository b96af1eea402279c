"""``manage.py holds report``: see :mod:`metering.hold_report`."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from metering import hold_report, traces
from metering.hold_report import Figures, Line, Lines
from metering.traces import Broken, Row
from pricing import rating
from pricing.models import Product

_DOLLARS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")
_HEADER: Final = ("calls", "false refusals", "overshoot", "hold ÷ charge", "worst case: false refusals", "hold ÷ charge")


class Command(BaseCommand):
    help = (
        "How well holds fit what is charged: false refusals (the charge would have fitted), overshoot (charges above their hold) and mean "
        "hold ÷ mean charge, beside the same with the worst case always. Of this database, or of traces of calls replayed without any."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=("report",))
        parser.add_argument("--product", help="Slug of the one product to report (default: all).")
        parser.add_argument("--days", type=_integer(1, 3_660), default=7, help="Work authorized in the last so many days (%(default)s).")
        parser.add_argument("--trace", type=Path, action="append", metavar="FILE", help="A trace instead of the database; may be repeated.")
        for name, default, what in (
            ("--input-price", "3", "a million tokens in"),
            ("--output-price", "15", "a million tokens out"),
            ("--credit", "1", "each customer's credit"),
        ):
            parser.add_argument(name, type=_dollars, default=_dollars(default), help=f"With --trace: {what}, in USD ({default}).")
        parser.add_argument(
            "--behind",
            type=_integer(1, 1_000_000),
            default=1,
            help="With --trace: look up what was learned once in so many calls (%(default)s).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["trace"]:
            if options["product"]:
                raise CommandError("A trace is of no product: give --trace or --product.")
            self._trace(options)
        else:
            self._database(options["product"], timedelta(days=options["days"]))

    def _trace(self, options: dict[str, Any]) -> None:
        try:
            lines = hold_report.of_trace(
                self._rows(options["trace"]),
                input_nanos=options["input_price"],
                output_nanos=options["output_price"],
                credit_nanos=options["credit"],
                behind=options["behind"],
            )
        except traces.TraceError as error:
            raise CommandError(str(error)) from error
        except rating.QuantityOverflow as error:
            raise CommandError(f"A call cannot be priced: {error}") from error
        if not lines:
            raise CommandError("The trace has no calls.")
        self._table(("feature", "held for"), lines)

    def _rows(self, paths: list[Path]) -> Iterator[Row]:
        broken = 0
        for path in paths:
            for row in traces.read(path):
                if isinstance(row, Broken):
                    broken += 1
                else:
                    yield row
        if broken:
            self.stderr.write(f"{broken:,} lines are no calls and were left out.")

    def _database(self, slug: str | None, span: timedelta) -> None:
        products = list(Product.objects.select_related("unit").order_by("slug"))
        known = ", ".join(product.slug for product in products) or "none"
        if slug is not None:
            products = [product for product in products if product.slug == slug]
            if not products:
                raise CommandError(f"There is no product “{slug}”; there are: {known}.")
        since = timezone.now() - span
        for product in products:
            lines = hold_report.of_records(product=product, since=since)
            self.stdout.write(f"{product.slug}, in {product.unit.code}, the last {span.days} days")
            if lines:
                self._table(("model", "feature", "output said by"), lines)
            else:
                self.stdout.write("  no captures")

    def _table(self, names: tuple[str, ...], lines: Lines) -> None:
        rows = [(*names, *_HEADER)]
        rows += [(*about, *_cells(line)) for about, line in sorted(lines.items())]
        by_last: dict[str, Line] = {}
        for about, line in sorted(lines.items()):
            by_last.setdefault(about[-1], Line()).add(line)
        rows += [(*["all"] * (len(names) - 1), last, *_cells(line)) for last, line in by_last.items()]
        rows.append((*["all"] * (len(names) - 1), "", *_cells(hold_report.total(lines))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (
                cell.ljust(width) if place < len(names) else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            self.stdout.write(f"  {'  '.join(cells)}".rstrip())


def _cells(line: Line) -> tuple[str, ...]:
    held, worst = line.held, line.worst
    return f"{held.calls:,}", _refused(held), _percent(held.over, held.calls), _ratio(held), _refused(worst), _ratio(worst)


def _refused(figures: Figures) -> str:
    return _percent(figures.refused, figures.asked)


def _percent(part: int, whole: int) -> str:
    return f"{Decimal(100 * part) / whole:.2f} %" if whole else "–"


def _ratio(figures: Figures) -> str:
    return f"{Decimal(figures.hold_nanos) / figures.charge_nanos:.2f}" if figures.charge_nanos else "–"


def _dollars(text: str) -> int:
    """Nano-USD."""
    if not _DOLLARS.fullmatch(text):
        raise ArgumentTypeError(f"expected US dollars such as 0.25, got {text!r}")
    return int(Decimal(text) * rating.NANOS)


def _integer(least: int, most: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:12]) <= most):
            raise ArgumentTypeError(f"expected an integer from {least} to {most}, got {text!r}")
        return int(text)

    return integer
