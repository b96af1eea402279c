"""The double of Stripe that ``make run`` starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings

from config import local_stripe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIPE_DOUBLE_FOLDER", str(tmp_path / "stripe"))
    return tmp_path / "stripe"


@contextmanager
def running(database: str, port: int = 8_000) -> Iterator[dict[str, str]]:
    servers = {"DATABASE_URL": database, "REDIS_URL": settings.REDIS_URL, "DJANGO_SETTINGS_MODULE": "config.settings.local"}
    with local_stripe.running(port=port, environment=os.environ | servers) as stripe:
        yield stripe


def endpoints(stripe: dict[str, str]) -> list[str]:
    return [each["url"] for each in local_stripe._ask(stripe["STRIPE_API_HOST"], "GET", "/v1/webhook_endpoints")["data"]]


def test_it_finds_everything_again_at_its_second_start_and_ends_with_us(folder: Path, fresh_database: str) -> None:
    assert local_stripe.remembered() == {}
    with running(fresh_database) as first:
        address = first["STRIPE_API_HOST"]
        customer = local_stripe._ask(address, "POST", "/v1/customers", {"email": "ada@example.com"})["id"]
        assert local_stripe.cards(address)["4242424242424242"] == "succeeds"
        with running(fresh_database) as beside:  # `make demo` while `make run` runs
            assert beside == first
        assert local_stripe._answers(address)
    assert not local_stripe._answers(address)
    assert local_stripe.remembered() == first
    with running(fresh_database, port=8_001) as second:
        assert second == first
        assert local_stripe._ask(address, "GET", f"/v1/customers/{customer}")["email"] == "ada@example.com"
        assert endpoints(second) == ["http://127.0.0.1:8001/api/v1/billing/webhook"]
    (folder / "environment").unlink()
    with running(fresh_database) as third:
        assert len(endpoints(third)) == 1
        assert third["STRIPE_WEBHOOK_SECRET"] not in ("", first["STRIPE_WEBHOOK_SECRET"])


def test_where_its_port_is_taken_it_takes_another(folder: Path, fresh_database: str) -> None:
    with running(fresh_database) as first:
        address = first["STRIPE_API_HOST"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        taken.listen()
        with running(fresh_database) as second:
            assert second["STRIPE_API_HOST"] != address
            assert second | {"STRIPE_API_HOST": address} == first


def test_catalogs_that_cannot_be_pushed_end_it_in_words(folder: Path) -> None:
    with (
        pytest.raises(local_stripe.LocalStripeError, match="did not get into the double"),
        running("postgresql://nobody:none@127.0.0.1:1/none"),
    ):
        pass


def test_a_folder_that_cannot_be_used_ends_it_in_words(folder: Path, fresh_database: str) -> None:
    (folder / "stripe.sqlite3").mkdir(parents=True)
    with pytest.raises(local_stripe.LocalStripeError, match="did not start"), running(fresh_database):
        pass


def test_the_double_ends_when_whoever_started_it_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stripe_double", "--while-stdin", "--port", "0", "--data", str(tmp_path / "stripe.sqlite3")]
    double = subprocess.Popen(command, cwd=settings.BASE_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert double.stdin is not None
    assert double.stdout is not None
    assert double.stdout.readline().startswith(b"Stripe double at http://127.0.0.1:")
    double.stdin.close()
    assert double.wait(timeout=20) == 0
    double.stdout.close()
