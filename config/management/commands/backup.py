"""``manage.py backup take|check|restore``: the whole database as a file, and back (config/backups.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from config import backups


class Command(BaseCommand):
    help = "Takes a backup of the whole database, reads one through, or restores one into a new, migrated database."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        take = verbs.add_parser("take", help="write a file, upload it, delete old ones")
        take.add_argument("--folder", default=settings.BACKUP_FOLDER, help="BACKUP_FOLDER, unless given.")
        check = verbs.add_parser("check", help="read a file through")
        check.add_argument("file", type=Path)
        restore = verbs.add_parser("restore", help="put a file into a migrated database without accounts")
        restore.add_argument("file", type=Path)
        restore.add_argument("--url", required=True, help="The database, as an administrator of its server: postgresql://…")

    def handle(self, *, verb: str, **options: Any) -> None:
        try:
            if verb == "take":
                if not options["folder"]:
                    raise CommandError("Say where to: --folder, or BACKUP_FOLDER.")
                done = backups.take(url=backups.url(), folder=Path(options["folder"]), now=timezone.now())
            elif verb == "check":
                done = backups.check(options["file"])
            else:
                done = backups.restore(options["file"], url=options["url"])
        except (backups.NotRestorable, psycopg.Error, OSError, subprocess.SubprocessError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{done.path}: {done.tables} tables, {done.rows:,} rows")
        if verb == "restore":
            self.stdout.write("Next: manage.py audit on it. A restore is over when that exits 0.")
