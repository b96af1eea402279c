"""The double of Stripe that `manage.py up` starts where no Stripe key was given: its process, and what ours need to know of it.

    running      a double, ready to sell to one web server, until the block ends
    remembered   what the last one was, for other commands on this machine

All it keeps is in one folder: its data, so that the next start finds every customer and subscription again, and the environment by which
it is reached. It ends with the process that started it, however that ends; while it lives, a second `up` uses it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent
KEY = "sk_test_" + "0" * 24
PORT = 12_111
WEBHOOK = "/api/v1/billing/webhook"
TIMEOUT_SECONDS = 10
STOP_SECONDS = 10


class LocalStripeError(Exception):
    """The double could not be started, or does not do as it is told. The message says why."""


def remembered() -> dict[str, str]:
    """The environment of the last double, running or not; empty where there never was one."""
    try:
        lines = (_folder() / "environment").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


@contextlib.contextmanager
def running(*, port: int, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment for our processes, while a double sells what our catalogs sell and tells the web server at ``port`` of it.

    :raises LocalStripeError:
    """
    _folder().mkdir(parents=True, exist_ok=True)
    address = remembered().get("STRIPE_API_HOST", "")
    with contextlib.ExitStack() as stack:
        if not _answers(address):
            address = stack.enter_context(_started(address))
        known = remembered() | {"STRIPE_API_HOST": address, "STRIPE_SECRET_KEY": KEY}
        known["STRIPE_WEBHOOK_SECRET"] = _endpoint(address, port, known.get("STRIPE_WEBHOOK_SECRET", ""))
        known |= _push_catalogs(environment | known)
        _remember(known)
        yield known


def cards(address: str) -> dict[str, str]:
    """The card numbers that the double's pages take, and what each does."""
    return dict(_ask(address, "GET", "/_control/cards"))


@contextlib.contextmanager
def _started(before: str) -> Iterator[str]:
    """A process of its own, if it may at the address that it had before."""
    port = urllib.parse.urlsplit(before).port or PORT
    command = [sys.executable, "-m", "stripe_double", "--while-stdin", "--data", str(_folder() / "stripe.sqlite3")]
    child = subprocess.Popen(  # noqa: S603 -- our own command
        [*command, "--port", str(port if _free(port) else 0)],
        cwd=BASE_DIR,
        stdin=subprocess.PIPE,  # it lives as long as this is open
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us, who stop it last
    )
    assert child.stdout is not None
    address = next((word for word in child.stdout.readline().split() if word.startswith("http://")), None)
    if address is None:
        child.wait()
        raise LocalStripeError("The double of Stripe did not start; its last lines are above.")
    try:
        yield address
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _endpoint(address: str, port: int, secret: str) -> str:
    """Has the double send everything to the web server at ``port``. Returns the secret that it signs with."""
    url = f"http://127.0.0.1:{port}{WEBHOOK}"
    found = _ask(address, "GET", "/v1/webhook_endpoints?limit=100")["data"]
    ours = next((each for each in found if urllib.parse.urlsplit(each["url"]).path == WEBHOOK), None)
    if ours is None:
        return str(_ask(address, "POST", "/v1/webhook_endpoints", {"url": url, "enabled_events[0]": "*"})["secret"])
    if ours["url"] != url:
        _ask(address, "POST", f"/v1/webhook_endpoints/{ours['id']}", {"url": url})
    if secret:
        _ask(address, "POST", f"/_control/webhook_endpoints/{ours['id']}/secret", {"secret": secret})
        return secret
    return str(_ask(address, "POST", f"/_control/webhook_endpoints/{ours['id']}/roll", {"keep_old": False})["secret"])


def _push_catalogs(environment: dict[str, str]) -> dict[str, str]:
    """The settings that name the prices."""
    command = [sys.executable, "manage.py", "stripe", "push-catalog"]
    pushed = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True)  # noqa: S603 -- our own command
    if pushed.returncode:
        raise LocalStripeError(f"The catalogs did not get into the double of Stripe: {pushed.stderr.strip()[-1_000:]}")
    return dict(line.split("=", 1) for line in pushed.stdout.splitlines() if not line.startswith("#"))


def _remember(environment: dict[str, str]) -> None:
    partial = _folder() / "environment.partial"
    partial.touch(0o600)
    partial.write_text("".join(f"{name}={value}\n" for name, value in sorted(environment.items())))
    partial.rename(_folder() / "environment")


def _folder() -> Path:
    return Path(os.environ.get("STRIPE_DOUBLE_FOLDER") or BASE_DIR / "var" / "stripe").absolute()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _answers(address: str) -> bool:
    with contextlib.suppress(LocalStripeError):
        return bool(address and _ask(address, "GET", "/_control"))
    return False


def _ask(address: str, method: str, path: str, wish: dict[str, Any] | None = None) -> Any:
    """The double's switches take JSON, its API takes forms."""
    control = path.startswith("/_control")
    body = None if wish is None else json.dumps(wish).encode() if control else urllib.parse.urlencode(wish).encode()
    headers = {"Authorization": f"Bearer {KEY}"}
    headers["Content-Type"] = "application/json" if control else "application/x-www-form-urlencoded"
    request = urllib.request.Request(address + path, body, headers, method=method)  # noqa: S310 -- an address that we made
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise LocalStripeError(f"The double of Stripe at {address} does not answer: {error}") from error
