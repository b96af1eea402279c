"""manage.py second_factor"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from accounts import staff_door
from accounts.models import User


class Command(BaseCommand):
    help = "Forgets the second factor of somebody who lost it: they set up another one when they next open admin. Kept in the audit log."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email", help="Whose second factor.")
        parser.add_argument(
            "--by", metavar="EMAIL", help="Which superuser does it; left out: they themselves, who have the server's shell."
        )
        parser.add_argument("--reason", required=True, help="Why, for the audit log.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not (options["email"] + (options["by"] or "")).isprintable():
            raise CommandError("That is no address.")
        user = User.objects.filter(email=options["email"].lower(), is_active=True).first()
        by = User.objects.filter(email=(options["by"] or options["email"]).lower(), is_active=True, is_superuser=True).first()
        reason = options["reason"].strip()
        if user is None:
            raise CommandError(f"Nobody active signs in as {options['email']}.")
        if by is None:
            raise CommandError("Only a superuser does this: name one with --by.")
        if not reason or len(reason) > 300 or not reason.isprintable():
            raise CommandError("Say why in 1 to 300 characters.")
        if staff_door.forget_factor(user=user, actor=by, reason=reason, now=timezone.now()):
            self.stdout.write(f"{user} sets up a new second factor when they next open admin.")
        else:
            self.stdout.write(f"{user} had no second factor.")
