"""``manage.py db roles``: the database roles of a managed server, as SQL for its administrator."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection, transaction

from config import roles


class Command(BaseCommand):
    help = "The roles that own, use and read the tables: printed as SQL, or made by --apply with an administrator's DATABASE_URL."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("what", choices=("roles",))
        parser.add_argument("--apply", action="store_true", help="Run the SQL on DATABASE_URL, whose role must be allowed to make roles.")

    def handle(self, *args: Any, apply: bool, **options: Any) -> None:
        if not apply:
            self.stdout.write(roles.administrator_sql())
            return
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(roles.administrator_sql())
        except DatabaseError as error:
            raise CommandError(f"Nothing was changed: {error}") from error
        self.stdout.write(f"Done. Next: give {roles.APP} a password, put it into DATABASE_URL, and run manage.py migrate.")
