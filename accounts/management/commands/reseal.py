"""manage.py reseal: seals every stored secret anew by the newest key, so that the former one can go."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from accounts import sealing
from accounts.models import WebhookEndpoint


class Command(BaseCommand):
    help = "Seals the signing secrets of webhooks anew by the first of ENCRYPTION_KEY, or else by SECRET_KEY. May be run again."

    def handle(self, *args: Any, **options: Any) -> None:
        done, lost = 0, []
        for id_ in list(WebhookEndpoint.objects.values_list("pk", flat=True)):
            with transaction.atomic():
                endpoint = WebhookEndpoint.objects.select_for_update().get(pk=id_)
                try:
                    endpoint.secret = sealing.reseal(endpoint.secret)
                    endpoint.previous_secret = endpoint.previous_secret and sealing.reseal(endpoint.previous_secret)
                except sealing.Unreadable:
                    lost.append(endpoint.public_id)
                    continue
                endpoint.save(update_fields=["secret", "previous_secret"])
                done += 1
        self.stdout.write(f"{done} endpoint{'' if done == 1 else 's'} sealed anew.")
        if lost:
            raise CommandError(f"No key opens the secrets of {', '.join(lost)}: give these endpoints new ones.")
