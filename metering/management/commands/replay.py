"""manage.py replay FILE… | --generated"""

from __future__ import annotations

import re
import secrets
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import api_keys
from accounts.models import Account, ApiKey
from billing import audit, ledger
from metering import demo, replay, traces, workload
from metering.traces import Broken, Row
from pricing import rating
from pricing.models import Product

MAX_SHOWN: Final = 10
LINE_SECONDS: Final = 10
_RUN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Command(BaseCommand):
    help = (
        "Drives every call of LLM usage traces (Azure 2023, BurstGPT) through the API, authorize and capture, and reports what it came to. "
        "The same run id, files and options again change nothing. Exit code 1 where the audit finds anything or a request failed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="Traces, or folders of them (*.csv).")
        parser.add_argument("--generated", action="store_true", help=f"The generated workload of {workload.ROWS} calls instead of files.")
        parser.add_argument("--product", default="rover", help="Slug of the product (default: %(default)s).")
        parser.add_argument("--accounts", type=_integer(1, 10_000), default=50, help="How many accounts share the calls (%(default)s).")
        parser.add_argument(
            "--credit",
            type=_integer(1, 1_000_000_000),
            default=100,
            help="What each account is given once a run, in units of its wallet (%(default)s).",
        )
        parser.add_argument("--model", default="anthropic:claude-sonnet-4-5", help="Which model the calls were made to (%(default)s).")
        parser.add_argument("--run-id", type=_run_id, help="Names the run; the same one again changes nothing (default: a new one).")
        parser.add_argument("--concurrency", type=_integer(1, 64), default=8, help="Calls at a time (%(default)s).")
        parser.add_argument("--url", type=_url, default="http://localhost:8000", help="Where the API is (%(default)s).")
        parser.add_argument("--key", help="A product key with usage:write (default: one made for this run and revoked after it).")
        parser.add_argument("--limit", type=_integer(1, 100_000_000), help="Only the first so many rows.")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        run_id = options["run_id"] or f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        product = Product.objects.filter(slug=options["product"]).select_related("unit").first()
        if product is None:
            known = ", ".join(Product.objects.values_list("slug", flat=True)) or "none"
            raise CommandError(f"There is no product “{options['product']}”; there are: {known}.")
        source = _Source(files=options["files"], generated=options["generated"], limit=options["limit"], on_broken=self._broken)
        accounts = _accounts(product, options["accounts"], credit_nanos=options["credit"] * rating.NANOS, run_id=run_id, now=now)
        issued = None if options["key"] else _key(product, run_id, now)
        self.stdout.write(f"Replaying {source.name} as run {run_id}: {options['url']}, {product.name}, {len(accounts)} accounts")
        target = replay.Target(
            url=options["url"],
            key=issued.token if issued else options["key"],
            model=options["model"],
            accounts=[account.external_id for account in accounts],
            run_id=run_id,
        )
        start = time.monotonic()
        try:
            tally = replay.run(
                source.rows(), target=target, concurrency=options["concurrency"], on_progress=_Progress(self, source.estimate, start)
            )
        except (replay.Unreachable, traces.TraceError) as error:
            raise CommandError(f"{error}\n--run-id {run_id} continues this run.") from error
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. --run-id {run_id} continues this run.", returncode=130) from None
        finally:
            if issued:
                api_keys.revoke(key=issued.key, now=timezone.now())
        seconds = time.monotonic() - start
        booked = replay.booked(account_ids=[account.pk for account in accounts], run_id=run_id)
        findings = audit.run()
        agrees = _agrees(tally, booked)
        self._report(tally, booked, findings, agrees, source=source, seconds=seconds, unit=product.unit.code)
        faults = [
            (findings, f"the audit has {len(findings)} findings"),
            (tally.failed, f"{tally.failed.total()} rows failed"),
            (agrees is False, "charges, usage records and ledger entries differ"),
        ]
        if any(found for found, _ in faults):
            raise CommandError("; ".join(text for found, text in faults if found) + ".")

    def _broken(self, path: Path, broken: Broken, count: int) -> None:
        if count <= MAX_SHOWN:
            self.stderr.write(f"{path}:{broken.line}: {broken.reason}")
        elif count == MAX_SHOWN + 1:
            self.stderr.write("Further broken rows are only counted.")

    def _report(
        self,
        tally: replay.Tally,
        booked: replay.Booked,
        findings: list[audit.Finding],
        agrees: bool | None,
        *,
        source: _Source,
        seconds: float,
        unit: str,
    ) -> None:
        margin = booked.value_nanos - booked.cost_nanos
        percent = f"{Decimal(100 * margin) / booked.value_nanos:.2f} %" if booked.value_nanos else "nothing"
        lines = [
            (
                "rows",
                f"{tally.rows:,}: {tally.captured:,} captured, {tally.released:,} released, {tally.refused.total():,} refused,"
                f" {tally.failed.total():,} failed; {tally.replayed:,} had been done before",
            ),
            ("broken rows", f"{source.broken:,}"),
            ("requests", f"{tally.requests:,}, of which {tally.retries:,} retries"),
            ("time", f"{seconds:,.1f} s, {tally.requests / seconds:,.0f} requests/s"),
            ("tokens", f"{tally.input_tokens:,} in, {tally.output_tokens:,} out"),
            ("charged", f"{_amount(tally.charged_nanos)} {unit}"),
            ("cost", f"{_amount(booked.cost_nanos)} USD"),
            ("margin", f"{_amount(margin)} USD, {percent} of the list value"),
            *(("refused", f"{count:,} × {code}") for code, count in tally.refused.most_common()),
            *(("failed", f"{count:,} × {what}") for what, count in tally.failed.most_common(MAX_SHOWN)),
            *(("", example) for example in tally.examples),
            ("authorize", _latency(tally.authorize_micros)),
            ("capture", _latency(tally.capture_micros)),
            ("ledger", _comparison(tally, booked, agrees, unit)),
            ("audit", f"{len(findings)} findings" if findings else f"clean, {len(audit.checks())} checks"),
            *(("", f"account {finding.account_id}: {finding.check}: {finding.text}") for finding in findings[:MAX_SHOWN]),
        ]
        for name, text in lines:
            self.stdout.write(f"  {name:<12} {text}")


class _Source:
    """The numbered rows of files, or the generated ones. Broken rows are reported, counted, and keep their number."""

    def __init__(self, *, files: list[Path], generated: bool, limit: int | None, on_broken: Callable[[Path, Broken, int], None]) -> None:
        if generated == bool(files):
            raise CommandError("Name trace files, or use --generated.")
        self._files: list[Path] = []
        for path in files:
            found = sorted(path.glob("*.csv")) if path.is_dir() else [path]
            if not found:
                raise CommandError(f"{path} has no *.csv file.")
            self._files += found
        self._limit = limit
        self._on_broken = on_broken
        self.broken = 0
        self.name = ", ".join(path.name for path in self._files) or "the generated workload"
        try:
            for path in self._files:
                next(traces.read(path), None)  # a file that is no trace is refused before anything is driven
            self.estimate = sum(map(_lines, self._files)) if self._files else workload.ROWS
        except (traces.TraceError, OSError) as error:
            raise CommandError(str(error)) from error
        if limit:
            self.estimate = min(self.estimate, limit) if self._files else limit

    def rows(self) -> Iterator[tuple[int, Row]]:
        for number, (path, row) in enumerate(self._all()):
            if number == self._limit:
                return
            if isinstance(row, Broken):
                self.broken += 1
                self._on_broken(path, row, self.broken)
            else:
                yield number, row

    def _all(self) -> Iterator[tuple[Path, Row | Broken]]:
        if not self._files:
            yield from ((Path(), row) for row in workload.generate(rows=self._limit or workload.ROWS))
        for path in self._files:
            yield from ((path, row) for row in traces.read(path))


class _Progress:
    """A bar where somebody watches, a line now and then elsewhere."""

    def __init__(self, command: BaseCommand, estimate: int, start: float) -> None:
        self._out = command.stderr
        self._watched = command.stderr.isatty()
        self._estimate = estimate
        self._start = self._said = start

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        share = min(done / self._estimate, 1.0) if self._estimate else 1.0
        rate = done / max(now - self._start, 0.001)
        text = f"{share:4.0%}  {done:,} of {self._estimate:,} rows, {rate:,.0f}/s"
        if self._watched:
            self._out.write(f"\r{'█' * int(share * 30):░<30} {text}\x1b[K", ending="\n" if done >= self._estimate else "")
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            self._out.write(text)


def _accounts(product: Product, count: int, *, credit_nanos: int, run_id: str, now: datetime) -> list[Account]:
    try:
        return [
            demo.account(
                product=product,
                number=number,
                name=f"Demo {number}",
                credit_nanos=credit_nanos,
                credit_key=f"replay:{run_id}",
                now=now,
            )
            for number in range(1, count + 1)
        ]
    except ledger.KeyReused as error:
        raise CommandError(f"Run {run_id} gave its accounts another --credit before.") from error


def _key(product: Product, run_id: str, now: datetime) -> api_keys.Issued:
    return api_keys.issue(
        product=product,
        name=f"Replay {run_id}",
        scopes=[ApiKey.Scope.USAGE_WRITE],
        now=now,
        created_by="manage.py",
        expires_at=now + timedelta(days=1),
    )


def _agrees(tally: replay.Tally, booked: replay.Booked) -> bool | None:
    """Whether the answers, the usage records and the ledger entries have one sum; None where the run has rows that this call left out."""
    if booked.price_nanos != booked.entries_nanos:
        return False
    if booked.records > tally.captured:
        return None
    return booked.records == tally.captured and tally.charged_nanos == booked.price_nanos


def _comparison(tally: replay.Tally, booked: replay.Booked, agrees: bool | None, unit: str) -> str:
    sums = f"Σ usage records {_amount(booked.price_nanos)}, Σ ledger entries {_amount(booked.entries_nanos)} {unit}"
    if agrees is None:
        return f"{sums}; the run has {booked.records - tally.captured:,} more records than were captured here"
    return f"{sums}: {'the same to the nano' if agrees else 'THEY DIFFER'}"


def _latency(micros: replay.Micros) -> str:
    return "  ".join(f"p{percent} {replay.percentile(micros, percent) / 1000:.1f} ms" for percent in (50, 95, 99)) if micros else "–"


def _amount(nanos: int) -> str:
    sign = "-" if nanos < 0 else ""
    whole, part = divmod(abs(nanos), rating.NANOS)
    return f"{sign}{whole:,}.{part:09d}"


def _lines(path: Path) -> int:
    """About how many rows a file has, for the progress bar: its lines without the header."""
    breaks, end = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            breaks, end = breaks + chunk.count(b"\n"), chunk[-1:]
    return max(breaks - (end == b"\n"), 0)


def _integer(least: int, most: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:12]) <= most):
            raise ArgumentTypeError(f"expected an integer from {least} to {most}, got {text!r}")
        return int(text)

    return integer


def _run_id(text: str) -> str:
    if not _RUN_ID.fullmatch(text):
        raise ArgumentTypeError("expected 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise ArgumentTypeError(f"expected an address such as http://localhost:8000, got {text!r}")
    return text.rstrip("/")
