"""``manage.py simulate``: a year of one product on an injected clock, in a database of its own."""

from __future__ import annotations

import logging
import os
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from datetime import time as midnight
from pathlib import Path
from typing import Any, Final, cast

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper

from accounts.models import Account
from analytics.simulation import books, digest, jobs, stripe, year
from config import scratch
from metering import traces
from pricing import catalog, catalog_file
from pricing.models import Product

START: Final = date(2025, 1, 1)
MAX_DAYS, MAX_ACCOUNTS, MAX_SEED = 1_000, 10_000, 2**31
#: Where nobody watches, a line so often.
LINE_SECONDS: Final = 30.0
SHOWN: Final = 20


class Command(BaseCommand):
    help = (
        "Lives a year of one product with simulated customers, through the real code, on a clock of its own: sign-ups, usage, renewals, "
        "declines, refunds, disputes, changes of plan, outages. Prints the profit and loss of each month and the digest of the ledger. "
        "Exit code 1 where the books are not what was paid, the audit finds something, or two manners of running the jobs differ."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("catalog", type=_catalog, metavar="CATALOG", help="A catalog file, or the name of one of pricing/catalogs.")
        parser.add_argument("--days", type=_whole(1, MAX_DAYS), default=365, help="Default: %(default)s.")
        parser.add_argument("--accounts", type=_whole(1, MAX_ACCOUNTS), default=200, help="Default: %(default)s.")
        parser.add_argument(
            "--seed", type=_whole(0, MAX_SEED), default=1, help="The same seed gives the same ledger. Default: %(default)s."
        )
        parser.add_argument("--start", type=_day, default=START, metavar="DATE", help="The first day, in UTC. Default: %(default)s.")
        parser.add_argument(
            "--jobs",
            choices=[*jobs.MANNERS, "all"],
            default="on-time",
            help="How the jobs are run; all: one after the other, and compared.",
        )
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--here", action="store_true", help="Not in a new database but in the configured one, if it has no accounts.")
        where.add_argument("--keep", action="store_true", help="Leave the new database, and say where it is.")
        parser.add_argument("--lines", type=Path, metavar="FILE", help="Write what the digest covers, a line each; with all, a file each.")

    def handle(self, *, keep: bool, here: bool, **options: Any) -> None:
        files = _traces()
        if here:
            if Account.objects.exists():
                raise CommandError("This database has accounts. A simulation moves the clock of all of them: leave --here out.")
            self._live(files, options)
            return
        try:
            with _database(keep=keep, name=f"{options['catalog']['product']['slug']}_{options['seed']}") as name:
                self._live(files, options)
        except scratch.ScratchError as error:
            raise CommandError(f"{error} With --here it runs in the configured database, if that has no accounts.") from error
        if keep:
            self.stdout.write(f"The database is kept. To look at it: DATABASE_URL={scratch.url(name)} manage.py runserver")

    def _live(self, files: list[Path], options: dict[str, Any]) -> None:
        manners = jobs.MANNERS if options["jobs"] == "all" else (options["jobs"],)
        lengths = ", ".join(file.name for file in files) or "measured log-normal distributions (metering/workload.py)"
        self.stdout.write(
            f"{options['catalog']['product']['name']}: {options['days']} days from {options['start']}, {options['accounts']} accounts,"
            f" seed {options['seed']}. Lengths of calls: {lengths}."
        )
        digests = {}
        with _errors() as heard:
            for number, manner in enumerate(manners):
                begun = time.monotonic()
                result = self._simulate(manner, number, files, options)
                digests[manner] = result.digest
                if number == 0:
                    self._report(result)
                self.stdout.write(f"audit   {len(result.findings)} findings")
                self.stdout.write(f"digest  {result.digest}  jobs {manner}, {time.monotonic() - begun:,.0f} s")
                if result.findings:
                    found = [f"account {finding.account_id}: {finding.check}: {finding.text}" for finding in result.findings[:SHOWN]]
                    raise CommandError("\n".join(["The audit finds:", *found]))
        if heard:
            raise CommandError("\n".join([f"{len(heard)} errors were logged:", *heard[:SHOWN]]))
        if len(set(digests.values())) > 1:
            raise CommandError("The digests differ: how the jobs are run has changed what is in the ledger. --lines shows where.")

    def _simulate(self, manner: jobs.Manner, number: int, files: list[Path], options: dict[str, Any]) -> year.Result:
        """One run. Several in one database are of as many products with the same catalog."""
        document = dict(options["catalog"])
        slug = document["product"]["slug"] + (f"_{number}" if number else "")
        document["product"] = document["product"] | {"slug": slug}
        progress = _Progress(self, options["days"], manner)
        try:
            result = year.simulate(
                document=document, start=datetime.combine(options["start"], midnight(), UTC), days=options["days"],
                accounts=options["accounts"], seed=options["seed"], manner=manner, tag=f"s{number}", files=files, on_day=progress,
            )  # fmt: skip
        except (books.CashDiffers, stripe.Refused, year.Wrong, catalog_file.InvalidCatalog, traces.TraceError) as error:
            raise CommandError(str(error)) from error
        if (path := options["lines"]) is not None:
            path = path.with_stem(f"{path.stem}-{manner}") if options["jobs"] == "all" else path
            with open(path, "w") as file:
                file.writelines(f"{line}\n" for line in digest.lines(product_id=Product.objects.get(slug=slug).pk))
        return result

    def _report(self, result: year.Result) -> None:
        self.stdout.write("")
        for line in result.books.table():
            self.stdout.write(line)
        self.stdout.write("US dollars. Every month's cash is what was paid at Stripe less what went back, to the cent.\n")
        width = max(len(name) for name in result.facts)
        for name, number in result.facts.items():
            self.stdout.write(f"{name:<{width}}  {number:>9,}")
        self.stdout.write("refused")
        for layer, number in result.refused.most_common():
            self.stdout.write(f"  {layer:<{width - 2}}  {number:>9,}")
        self.stdout.write("")


class _Progress:
    """A bar where somebody watches, a line now and then elsewhere."""

    def __init__(self, command: BaseCommand, days: int, manner: str) -> None:
        self._out = command.stderr
        self._watched = command.stderr.isatty()
        self._days = days
        self._manner = manner
        self._start = self._said = time.monotonic()

    def __call__(self, day: int) -> None:
        now = time.monotonic()
        text = f"{day / self._days:4.0%}  day {day} of {self._days}, {now - self._start:,.0f} s, jobs {self._manner}"
        if self._watched:
            bar = "█" * (30 * day // self._days)
            self._out.write(f"\r{bar:░<30} {text}\x1b[K", ending="\n" if day >= self._days - 1 else "")
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            self._out.write(text)


@contextmanager
def _database(*, keep: bool, name: str) -> Iterator[str]:
    """A new database, in which this process is from now on; dropped at the end unless it is to be kept."""
    name = f"tollgate_simulated_{name}_{os.getpid()}" if keep else f"{scratch.PREFIX}_{os.getpid()}"
    scratch.clone(name)
    before = connection.settings_dict["NAME"]
    _enter(name)
    try:
        yield name
    finally:
        _enter(before)
        if not keep:
            scratch.drop(name)


def _enter(name: str) -> None:
    connections.close_all()
    cast(DatabaseWrapper, connection).close_pool()
    connection.settings_dict["NAME"] = settings.DATABASES["default"]["NAME"] = name
    catalog.clear()


@contextmanager
def _errors() -> Iterator[list[str]]:
    """What is logged as an error meanwhile: jobs go on after the failure of one account, and a simulation must hear of it."""
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(self.format(record))

    root, handler = logging.getLogger(), Handler(logging.ERROR)
    level, handlers = root.level, root.handlers
    root.handlers = [handler]
    root.setLevel(logging.ERROR)
    try:
        yield heard
    finally:
        root.handlers = handlers
        root.setLevel(level)


def _traces() -> list[Path]:
    """The files that ``TOLLGATE_TRACES`` names: one, or all of a folder."""
    named = os.environ.get("TOLLGATE_TRACES")
    if not named:
        return []
    path = Path(named)
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise CommandError(f"TOLLGATE_TRACES: there is no trace at {path}.")
    return files


def _catalog(text: str) -> catalog_file.Document:
    shipped = settings.BASE_DIR / "pricing" / "catalogs" / f"{text}.toml"
    path = shipped if text.isidentifier() and shipped.is_file() else Path(text)
    try:
        return catalog_file.parse(path.read_bytes())
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in shipped.parent.glob("*.toml")))
        raise ArgumentTypeError(f"{text}: {error.strerror}; expected a file, or one of {known}") from None
    except (catalog_file.InvalidCatalog, ValueError) as error:
        raise ArgumentTypeError(f"{text}: {error}") from None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a date such as 2025-01-31, got {text!r}") from None


def _whole(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:12]) <= most):
            raise ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text[:40]!r}")
        return int(text)

    return whole
