"""Plants every bug of :mod:`tests.mutants`, or those whose names contain the words given, and prints which test killed it.

The bugs are planted in a copy of the working tree, one at a time, and run on servers of their own (``var/mutants``). Exit code 1: one
survived, so a test is missing. Errors, not results: a bug that no longer applies, tests that fail without any bug.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from config import embedded
from tests.mutants import MUTANTS, ROOT, Mutant


class NoResult(Exception):
    """The tests could not be run, or fail without a bug."""


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.name for word in words)]
    if not chosen:
        sys.exit(f"No mutant's name contains {' '.join(words)!r}.")
    chosen.sort(key=lambda mutant: mutant.file.endswith(".sql"))  # first those that share one migrated database
    servers = embedded.borrow("mutants", durable=False)
    environment = os.environ | {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "PYTHONDONTWRITEBYTECODE": "1",  # two edits in one second would look the same to the cache
    }
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy(tree)
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if failed := first_failure(tree, tests, environment):
            raise NoResult(f"{failed} fails without any bug.")
        width = max(len(mutant.name) for mutant in chosen)
        for mutant in chosen:
            began = time.monotonic()
            killer = hunt(tree, mutant, environment)
            survivors += killer is None
            print(
                f"{mutant.name:{width}}  {mutant.file:26}  {time.monotonic() - began:5.1f} s  {killer or 'SURVIVED'}",
                flush=True,
            )
    print(f"\n{len(chosen)} planted, {survivors} survived.")
    return 1 if survivors else 0


def hunt(tree: Path, mutant: Mutant, environment: dict[str, str]) -> str | None:
    """Plants the bug, runs its tests, takes it out again. The test that failed, None if none did."""
    path = tree / mutant.file
    whole = path.read_text()
    path.write_text(mutant.plant(whole))
    try:
        return first_failure(tree, mutant.tests, environment)
    finally:
        path.write_text(whole)


def first_failure(tree: Path, tests: list[str] | tuple[str, ...], environment: dict[str, str]) -> str | None:
    """The first test that fails, None if all pass. :raises NoResult: pytest itself failed, for instance in migrating."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if run.returncode == 0:
        return None
    if run.returncode != 1 or failed is None:
        raise NoResult(f"pytest ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return failed[1]


def copy(target: Path) -> None:
    """The working tree as it is, what git ignores left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in sorted({name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
