"""manage.py spool FILE --product SLUG"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from accounts import api
from billing import ledger
from metering import ingest, tracking, usage
from pricing.models import Product

LINES: Final = 500
MAX_LINE_BYTES: Final = 64 * 1024
MAX_SHOWN: Final = 50
PROGRESS_SECONDS: Final = 2.0

#: A line of the file: its number, and what it holds or what is wrong with it.
Line = tuple[int, Any | api.Problem]


class Command(BaseCommand):
    help = (
        "Records a file of events, one JSON object a line, in the shapes that POST /api/v1/usage/records takes. Every event counts once, "
        "for ever: the same file again, whole or in part, changes nothing that is recorded. Exit code 1 where a line was refused."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE", help="JSON lines, UTF-8.")
        parser.add_argument("--product", required=True, help="Slug of the product whose accounts the events name.")
        parser.add_argument("--from-line", type=int, default=1, metavar="N", help="Where to go on after a break (%(default)s).")

    def handle(self, *args: Any, **options: Any) -> None:
        product = Product.objects.filter(slug=options["product"]).first()
        if product is None:
            known = ", ".join(Product.objects.order_by("slug").values_list("slug", flat=True)) or "none"
            raise CommandError(f"There is no product “{options['product']}”; there are: {known}.")
        tally: Counter[str] = Counter()
        reached, said = options["from_line"], time.monotonic()
        try:
            for lines in _pages(options["file"], reached):
                self._record(lines, product, tally)
                reached = lines[-1][0] + 1
                if time.monotonic() - said >= PROGRESS_SECONDS:
                    said = time.monotonic()
                    self.stderr.write(f"{reached - 1:,} lines: {_summary(tally)}")
        except OSError as error:
            raise CommandError(f"{options['file']}: {error.strerror or error}") from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(f"The database is away. --from-line {reached} goes on. ({error})") from error
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. --from-line {reached} goes on.", returncode=130) from None
        self.stdout.write(f"spool: {_summary(tally)}")
        if tally["invalid"] or tally["conflict"]:
            raise CommandError(f"{tally['invalid'] + tally['conflict']} lines were refused; the others are recorded.")

    def _record(self, lines: list[Line], product: Product, tally: Counter[str]) -> None:
        items = [item for _, item in lines if not isinstance(item, api.Problem)]
        read = iter(ingest.read(items, product_id=product.pk))
        events = [(number, item if isinstance(item, api.Problem) else next(read)) for number, item in lines]
        good = [event for _, event in events if isinstance(event, usage.Event)]
        answers = iter(tracking.record(events=good, now=timezone.now()))
        for number, event in events:
            answer = next(answers) if isinstance(event, usage.Event) else event
            if isinstance(answer, tracking.Spooled) and answer.outcome != "key_reused":
                tally["duplicate" if answer.replayed else "created"] += 1
            elif isinstance(answer, ledger.Usage) and answer.outcome != "key_reused":
                tally["duplicate" if answer.replayed else "unpriced" if answer.state == "unpriced" else "created"] += 1
            else:
                self._refused(number, answer, tally)

    def _refused(self, number: int, answer: Exception | ledger.Usage | tracking.Spooled, tally: Counter[str]) -> None:
        conflict = not isinstance(answer, Exception)
        tally["conflict" if conflict else "invalid"] += 1
        shown = tally["conflict"] + tally["invalid"]
        if shown <= MAX_SHOWN:
            self.stderr.write(f"line {number}: {'its id was used before, for another event' if conflict else _why(answer)}")
        elif shown == MAX_SHOWN + 1:
            self.stderr.write("Further refused lines are only counted.")


def _pages(path: Path, first: int) -> Iterator[list[Line]]:
    """The lines from ``first`` on, without empty ones, ``LINES`` at a time."""
    page: list[Line] = []
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if number < first or not line.strip():
                continue
            page.append((number, _parsed(line)))
            if len(page) == LINES:
                yield page
                page = []
    if page:
        yield page


def _lines(file: Any) -> Iterator[bytes]:
    """Lines of at most ``MAX_LINE_BYTES``; of a longer one its beginning, one byte too long, and the rest is passed over."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _parsed(line: bytes) -> Any | api.Problem:
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        return api.Problem(422, "invalid_request", f"The line has more than {MAX_LINE_BYTES} bytes.")
    try:
        return api.loads(line)
    except api.Problem as problem:
        return problem


def _why(error: Any) -> str:
    """The problem in words, with the fields that are wrong."""
    fields = error.members.get("errors", ()) if isinstance(error, api.Problem) else ()
    return "; ".join(f"{field['field']}: {field['message']}" for field in fields) or str(error)


def _summary(tally: Counter[str]) -> str:
    return ", ".join(f"{tally[name]:,} {name}" for name in ("created", "duplicate", "unpriced", "conflict", "invalid"))
