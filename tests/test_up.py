"""``manage.py up``: what ``make run`` and ``make demo`` do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,1000,100
this line is broken
2023-11-16 18:15:47.6805900,2000,0
"""


def test_a_demonstration_on_a_fresh_database_ends_with_the_report_of_the_trace(fresh_database: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace_conv.csv"
    trace.write_text(TRACE)
    done = subprocess.run(
        [sys.executable, "manage.py", "up", "--demo", "--trace", str(trace)],
        cwd=settings.BASE_DIR,
        env=os.environ
        | {"DATABASE_URL": fresh_database, "REDIS_URL": settings.REDIS_URL, "DJANGO_SETTINGS_MODULE": "config.settings.local"}
        | {"STRIPE_SECRET_KEY": "", "STRIPE_WEBHOOK_SECRET": "", "STRIPE_DOUBLE_FOLDER": str(tmp_path / "stripe")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "task_enqueued" not in done.stdout + done.stderr
    assert "djstripe.W002" not in done.stderr
    assert f"{trace}:3: 1 cells; expected 3" in done.stderr
    assert "2: 1 captured, 1 released, 0 refused, 0 failed" in done.stdout
    assert "charged      0.006750000 USD" in done.stdout  # (1,000 × $3 + 100 × $15) per million, and half as much again
    assert re.search(r"audit        clean, \d+ checks", done.stdout)
    assert len(done.stdout.splitlines()) < 60  # the catalogs' hundreds of terms are not listed
    assert re.search(r"^STRIPE_PRICE_CORE_MONTHLY=price_\w+$", (tmp_path / "stripe" / "environment").read_text(), re.MULTILINE)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "1e3", "８０", "web", "9" * 5_000])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(CommandError, match="expected a port"):
        call_command("up", f"--port={port}")


def test_a_port_that_is_taken_is_told_before_anything_is_done() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CommandError, match=r"in use\. PORT=8001 make run"):
            call_command("up", "--port", str(taken.getsockname()[1]))


@pytest.mark.parametrize(("arguments", "said"), [(["--trace", "x.csv"], "belongs to --demo"), (["--demo", "--trace", "x.csv"], "no x")])
def test_a_trace_that_is_not_there_or_not_asked_for_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call_command("up", *arguments)


def test_mails_of_a_developers_machine_are_files_unless_there_is_a_key_for_sending_them() -> None:
    script = "from django.conf import settings; print(settings.EMAIL_BACKEND, getattr(settings, 'EMAIL_FILE_PATH', None))"
    folder = str(settings.BASE_DIR / "var" / "mail")
    for key, said in (
        ("", ["django.core.mail.backends.filebased.EmailBackend", folder]),
        ("re_key", ["accounts.resend.EmailBackend", "None"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=settings.BASE_DIR,
            env=os.environ
            | {"DATABASE_URL": "postgres://nobody@localhost/none", "REDIS_URL": settings.REDIS_URL, "RESEND_API_KEY": key}
            | {"DJANGO_SETTINGS_MODULE": "config.settings.local"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.split() == said
