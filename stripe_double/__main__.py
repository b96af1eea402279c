"""``python -m stripe_double --port 12111 --data var/stripe.sqlite3``: serve until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sqlite3
import sys
import threading
from pathlib import Path

from stripe_double.server import Double


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stripe_double", description="A local double of Stripe, on the loopback only.")
    parser.add_argument("--port", type=int, default=12111, help="0 for any free one (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("var/stripe_double.sqlite3"), help="what it keeps (default: %(default)s)")
    parser.add_argument("--while-stdin", action="store_true", help="stop when standard input ends: with the process that holds it")
    parser.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level, format="stripe_double: %(message)s", stream=sys.stderr)
    try:
        options.data.parent.mkdir(parents=True, exist_ok=True)
        double = Double(port=options.port, data=options.data)
    except (OSError, OverflowError, sqlite3.Error) as error:
        parser.error(f"port {options.port} or file {options.data} cannot be used: {error}")
    server = threading.Thread(target=double.serve_forever)
    server.start()
    sys.stdout.write(f"Stripe double at {double.address} (no real cards, no real money)\n")
    sys.stdout.flush()
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    if options.while_stdin:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    stop.wait()
    double.close()
    server.join()


def _stop_at_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
