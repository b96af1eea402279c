"""``manage.py up``: everything that ``make run`` and ``make demo`` do once the packages are there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from config import local_stripe
from pricing import price_import

WEB_SECONDS = 60
#: What our processes count together, for /metrics.
METRICS = settings.BASE_DIR / "var" / "metrics"
STOP_SECONDS = 20
#: The workload's run: the same name each time, so that starting again charges nothing again.
RUN_ID = "welcome"
WORKLOAD_ROWS = 2_000
ACTOR = "manage.py up"
#: Of a changed catalog; the first start would print hundreds of lines.
CHANGES_SHOWN = 10
#: What a machine with few cores has a use for.
THREADS = min(8, 2 * (os.cpu_count() or 1) + 1)


class Command(BaseCommand):
    help = (
        "Migrate, load the five catalogs and the price book, make the demo accounts, start a double of Stripe unless there is a key for "
        "the real one, then serve web, worker and beat and send the demo workload through them. With --demo: only a web server, the "
        "workload's report, and the end."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        port = os.environ.get("PORT") or "8000"
        parser.add_argument("--port", type=_port, default=port, help="Where the web server listens (default: %(default)s).")
        parser.add_argument("--demo", action="store_true", help="Replay once against a web server of its own, report, and stop.")
        parser.add_argument("--trace", type=Path, metavar="FILE", help="With --demo: replay this, not the generated workload.")

    def handle(self, *, port: int, demo: bool, trace: Path | None, **options: Any) -> None:
        if trace and not (demo and trace.exists()):
            raise CommandError(f"--trace: there is no {trace}." if demo else "--trace belongs to --demo.")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopping us stops what we started
        if not demo:
            _bind(port)
        if not os.environ.get("LOG_LEVEL"):
            logging.getLogger().setLevel(logging.WARNING)  # as our children log: what we do is told in sentences
        log_ins = self._prepare()
        with contextlib.suppress(KeyboardInterrupt):
            port = _any_port() if demo else port
            with self._stripe(port) as stripe:
                if demo:
                    self._demo(port, stripe, trace)
                else:
                    self._serve(port, stripe, log_ins)

    def _prepare(self) -> str:
        """The demo log-ins, to be printed. Everything here may be done again: what is there already stays as it is."""
        self._say("Migrating")
        call_command("migrate", interactive=False, verbosity=0)
        self._say("Loading the catalogs and the price book")
        catalogs = sorted((settings.BASE_DIR / "pricing" / "catalogs").glob("*.toml"))
        changes = StringIO()
        call_command("catalog", "apply", *catalogs, actor=ACTOR, stdout=changes)
        lines = [line for line in changes.getvalue().splitlines() if not line.endswith(": nothing to change")]
        for line in lines[:CHANGES_SHOWN] + ([f"… and {len(lines) - CHANGES_SHOWN} more"] if len(lines) > CHANGES_SHOWN else []):
            self.stdout.write(line)
        call_command("prices", "propose", stdout=StringIO())  # its list of what it left out is for those who decide
        count = price_import.approve(ids=None, actor=ACTOR, reason="The prices that Tollgate comes with", accepted=True)
        self.stdout.write(f"{count} approved.")
        self._say("Making the demo accounts")
        log_ins = StringIO()
        call_command("demo_accounts", stdout=log_ins)
        return log_ins.getvalue()

    @contextlib.contextmanager
    def _stripe(self, port: int) -> Iterator[dict[str, str]]:
        """What our processes are to know of Stripe: nothing more than we do where the operator gave a key, else of a double."""
        if not getattr(settings, "STRIPE_DOUBLE", False):
            yield {}
            return
        self._say("Starting a double of Stripe")
        try:
            with local_stripe.running(port=port, environment=_environment(port)) as stripe:
                yield stripe
        except local_stripe.LocalStripeError as error:
            raise CommandError(str(error)) from error

    def _serve(self, port: int, stripe: dict[str, str], log_ins: str) -> None:
        url = f"http://localhost:{port}"
        shutil.rmtree(METRICS, ignore_errors=True)
        with _running([sys.executable, "-m", "honcho", "start"], port=port, **stripe) as services:
            self._await(services, port)
            self._say(f"Tollgate is at {url}: sign in there, staff at {url}/admin/, API at {url}/api/docs. Ctrl-C stops it.")
            self.stdout.write(log_ins)
            if folder := getattr(settings, "EMAIL_FILE_PATH", None):
                self._say(f"Mails go to nobody: each is a file in {os.path.relpath(folder)}")
            if stripe:
                self._say(f"STRIPE IS A TEST DOUBLE at {stripe['STRIPE_API_HOST']}: no real cards, no real money. Card numbers to type:")
                for number, says in local_stripe.cards(stripe["STRIPE_API_HOST"]).items():
                    self.stdout.write(f"  {_grouped(number):<20} {says}")
            self.stdout.flush()
            traces = os.environ.get("TOLLGATE_TRACES")
            source = [traces] if traces else ["--generated"]
            workload = [sys.executable, "manage.py", "replay", *source, "--limit", str(WORKLOAD_ROWS), "--run-id", RUN_ID]
            with _running([*workload, "--url", f"http://127.0.0.1:{port}"], port=port, **stripe):
                services.wait()
        raise CommandError("One of web, worker and beat ended; its last lines are above.")

    def _demo(self, port: int, stripe: dict[str, str], trace: Path | None) -> None:
        web = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
        with _running(
            [*web, "--blocking-threads", str(THREADS), "--no-ws", "--log-level", "warning", "config.wsgi:application"], port=port, **stripe
        ) as service:
            self._await(service, port)
            call_command("replay", str(trace.absolute()) if trace else "--generated", "--url", f"http://127.0.0.1:{port}")

    def _await(self, service: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + WEB_SECONDS
        while time.monotonic() < deadline:
            if service.poll() is not None:
                raise CommandError("The web server ended before it answered; its last lines are above.")
            with contextlib.suppress(OSError, urllib.error.HTTPError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
                return
            time.sleep(0.1)
        raise CommandError(f"The web server did not answer within {WEB_SECONDS} seconds.")

    def _say(self, text: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(text))
        self.stdout.flush()


def _environment(port: int) -> dict[str, str]:
    """Our children's: the servers that we hold, and the web server's port."""
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PORT": str(port),
        "PROMETHEUS_MULTIPROC_DIR": os.environ.get("PROMETHEUS_MULTIPROC_DIR") or str(METRICS),
        "WEB_THREADS": os.environ.get("WEB_THREADS", str(THREADS)),
        "LOG_LEVEL": os.environ.get("LOG_LEVEL", "WARNING"),
    }


@contextlib.contextmanager
def _running(command: list[str], *, port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a child, with these variables besides, stopped at the end whatever happened."""
    child = subprocess.Popen(command, cwd=settings.BASE_DIR, env=_environment(port) | variables)  # noqa: S603 -- our own commands
    try:
        yield child
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C hurries nobody
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _grouped(number: str) -> str:
    """A card's sixteen digits by four, as on the card; other numbers as they are."""
    return " ".join(number[at : at + 4] for at in range(0, 16, 4)) if len(number) == 16 else number


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65_535):
        raise ArgumentTypeError(f"expected a port from 1 to 65535, got {text[:20]!r}")
    return int(text)


def _bind(port: int) -> None:
    """:raises CommandError: nobody may listen there, or somebody does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CommandError(f"Port {port}: {error.strerror}. PORT=8001 make run uses another.") from error


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
