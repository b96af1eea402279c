"""Backups: what is restored is what was there, to the row; what is not whole is refused; old files go."""

from __future__ import annotations

import shutil
import zipfile
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from analytics.models import JobRun
from config import backups, embedded, upkeep
from config import jobs as table
from tests.factories import make_account

NOW = datetime(2026, 3, 1, 2, tzinfo=UTC)
COUNTS = "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1"


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.BACKUP_FOLDER, settings.BACKUP_COMMAND, settings.BACKUP_KEEP_DAYS = str(tmp_path / "backups"), "", 30
    return tmp_path / "backups"


@pytest.fixture
def administrator(fresh_database: str) -> str:
    """The fresh database, as the embedded server's superuser."""
    servers = embedded.running("test")
    if servers is None:
        pytest.skip("The server is not ours to administrate.")
    return urlsplit(servers.superuser_url)._replace(path=urlsplit(fresh_database).path).geturl()


def all_rows(server: psycopg.Connection) -> dict[str, list[tuple[str]]]:
    tables = [name for (name,) in server.execute(COUNTS).fetchall()]
    return {name: server.execute(f'select t::text from "{name}" t order by 1').fetchall() for name in tables}


@pytest.mark.usefixtures("committed")
class TestRestore:
    def test_a_backup_brings_every_row_and_sequence_back_and_the_books_balance(self, folder: Path, administrator: str) -> None:
        make_account(credit=5)
        taken = backups.take(url=backups.url(), folder=folder, now=NOW)
        assert taken.path.name == "tollgate-20260301T020000Z.zip"
        assert taken.path.stat().st_mode & 0o077 == 0
        out = StringIO()
        call_command("backup", "restore", str(taken.path), "--url", administrator, stdout=out)
        assert f"{taken.tables} tables, {taken.rows:,} rows" in out.getvalue()
        with psycopg.connect(backups.url()) as here, psycopg.connect(administrator) as there:
            here.execute("set role tollgate_owner")
            assert all_rows(there) == all_rows(here)
            sequences = "select sequencename, last_value from pg_sequences where last_value is not null order by 1"
            assert there.execute(sequences).fetchall() == here.execute(sequences).fetchall()
            # What guards the ledger guards it again.
            with pytest.raises(psycopg.errors.RestrictViolation):
                there.execute("delete from ledger_entry")
        with pytest.raises(CommandError, match="has accounts"):
            call_command("backup", "restore", str(taken.path), "--url", administrator)

    def test_what_is_damaged_is_refused_before_anything_is_changed(self, folder: Path, administrator: str, tmp_path: Path) -> None:
        taken = backups.take(url=backups.url(), folder=folder, now=NOW)
        other = tmp_path / "other.zip"
        shutil.copy(taken.path, other)
        data = bytearray(other.read_bytes())
        with zipfile.ZipFile(other) as file:
            largest = max(file.infolist(), key=lambda entry: entry.compress_size)
        data[largest.header_offset + largest.compress_size // 2] ^= 0xFF
        other.write_bytes(data)
        half, text, empty = tmp_path / "half.zip", tmp_path / "text.zip", tmp_path / "empty.zip"
        half.write_bytes(taken.path.read_bytes()[: len(data) // 2])
        text.write_text("select 1;")
        with zipfile.ZipFile(empty, "w") as file:
            file.writestr("manifest.json", "[]")
        for bad in (other, half, text, empty, tmp_path / "none.zip", tmp_path):
            for verb in (["check", str(bad)], ["restore", str(bad), "--url", administrator]):
                with pytest.raises(CommandError):
                    call_command("backup", *verb)

    def test_an_ordinary_role_restores_nothing(self, folder: Path, fresh_database: str) -> None:
        taken = backups.take(url=backups.url(), folder=folder, now=NOW)
        with pytest.raises(backups.NotRestorable, match="administrator"):
            backups.restore(taken.path, url=fresh_database)


@pytest.mark.usefixtures("committed")
class TestJob:
    def test_it_writes_uploads_and_deletes_what_is_older_than_its_days(self, folder: Path, settings: Any, tmp_path: Path) -> None:
        bucket = tmp_path / "bucket"
        bucket.mkdir()
        settings.BACKUP_COMMAND = f"cp {{file}} '{bucket}/'"
        folder.mkdir()
        now = timezone.now()
        recent = f"tollgate-{now - timedelta(days=29):%Y%m%dT%H%M%SZ}.zip"
        old, kept, foreign = (folder / name for name in ("tollgate-20200101T020000Z.zip", recent, "x.zip"))
        for path in (old, kept, foreign):
            path.touch()
        run = table.run_now(job=table.named("back-up"), actor="test", reason="test", clock=timezone.now)
        try:
            assert run is not None
            assert (run.state, run.error) == ("done", "")
            [uploaded] = bucket.iterdir()
            assert backups.check(uploaded).rows == run.rows
            assert {path.name for path in folder.iterdir()} == {kept.name, foreign.name, uploaded.name}
        finally:
            JobRun.objects.all().delete()

    def test_an_upload_that_fails_is_an_error_that_says_why_and_keeps_the_file(self, folder: Path, settings: Any) -> None:
        settings.BACKUP_COMMAND = "cp {file} /no/such/folder/"
        with pytest.raises(CommandError, match="BACKUP_COMMAND exited with 1: cp"):
            call_command("backup", "take")
        assert len(list(folder.iterdir())) == 1

    def test_without_a_folder_it_is_off_and_says_why(self, settings: Any) -> None:
        settings.BACKUP_FOLDER = ""
        assert table.named("back-up").off() == "BACKUP_FOLDER is not set."
        with pytest.raises(CommandError, match="Say where to"):
            call_command("backup", "take", "--folder", "")


@pytest.mark.usefixtures("committed")
def test_the_weekly_upkeep_clears_our_tables_and_gives_the_role_back() -> None:
    assert upkeep.vacuum() > 50
    with connection.cursor() as cursor:
        cursor.execute("select current_user = session_user, current_setting('statement_timeout')")
        assert cursor.fetchone() == (True, "30s")
