"""Django's ``migrate``, as the owner of the tables; then the app role's rights (config/roles.py), and staff's roles."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import ProgrammingError, connections, transaction
from django.db.backends.utils import CursorWrapper

from config import roles, staff_roles


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        with connection.cursor() as cursor:
            as_owner = _may_become_owner(cursor)
            try:
                cursor.execute(roles.tenant_role_sql())
            except ProgrammingError as error:
                raise CommandError(
                    f"The role '{roles.TENANT}' is missing. An administrator makes it: manage.py db roles. ({error})"
                ) from error
            if as_owner:
                cursor.execute(f"set role {roles.OWNER}")
            else:
                self.stderr.write(
                    self.style.WARNING(f"No role '{roles.OWNER}' here: one role owns and uses the tables. See manage.py db roles.")
                )
        try:
            super().handle(*args, **options)
            if not (options["plan"] or options["check_unapplied"] or options["app_label"]):
                staff_roles.establish()
            if as_owner:
                with transaction.atomic(using=options["database"]), connection.cursor() as cursor:
                    cursor.execute(roles.grants_sql())
        finally:
            if as_owner:
                with connection.cursor() as cursor:
                    cursor.execute("reset role")


def _may_become_owner(cursor: CursorWrapper) -> bool:
    cursor.execute(roles.MAY_BE_OWNER, [roles.OWNER])
    return bool(cursor.fetchone()[0])
