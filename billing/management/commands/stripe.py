"""``manage.py stripe inbox``: what came from Stripe and what became of it; ``manage.py stripe replay`` works events again."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count
from django.utils import timezone

from billing import stripe_inbox, stripe_receiver
from billing.models import StripeEvent

MOST = 1_000


class Command(BaseCommand):
    help = "Stripe's events: `inbox` lists them, the newest first; `replay` works some of them again, which is always safe."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        inbox = actions.add_parser("inbox", help="Lists events.")
        inbox.add_argument("--state", choices=StripeEvent.State.values, help="Only those in this state.")
        inbox.add_argument("--limit", type=_limit, default=50, help=f"So many at most, up to {MOST:,} (%(default)s).")
        replay = actions.add_parser("replay", help="Has events worked again.")
        replay.add_argument("events", nargs="*", metavar="EVENT", help="Their ids, evt_….")
        replay.add_argument("--state", choices=("quarantined", "dead"), help=f"All in this state, the oldest {MOST:,}.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "inbox":
            self._inbox(options["state"], options["limit"])
        else:
            self._replay(options["events"], options["state"])

    def _inbox(self, state: str | None, limit: int) -> None:
        counts = dict(StripeEvent.objects.values_list("state").annotate(Count("pk")))
        self.stdout.write(", ".join(f"{each} {counts.get(each, 0):,}" for each in StripeEvent.State.values))
        events = StripeEvent.objects.filter(state=state) if state else StripeEvent.objects.all()
        for event in events.order_by("-received_at", "-pk")[:limit]:
            why = f"  {event.last_error.splitlines()[0][:120]}" if event.last_error else ""
            received = event.received_at.strftime("%Y-%m-%d %H:%M:%S")
            self.stdout.write(f"{received}  {event.state:<11}  {event.event_id}  {event.type} {event.object_id}{why}")

    def _replay(self, ids: list[str], state: str | None) -> None:
        if bool(ids) == bool(state):
            raise CommandError("Name events, or a --state, and not both.")
        if state:
            ids = list(StripeEvent.objects.filter(state=state).order_by("pk").values_list("event_id", flat=True)[:MOST])
        known = set(StripeEvent.objects.filter(event_id__in=[each for each in ids if "\0" not in each]).values_list("event_id", flat=True))
        if missing := [each for each in ids if each not in known]:
            raise CommandError(f"Nothing was done: the inbox has no {', '.join(missing)[:500]}.")
        again = stripe_inbox.work_again(event_ids=ids, now=timezone.now())
        stripe_receiver.ring()
        self.stdout.write(f"{len(again)} event{'' if len(again) == 1 else 's'} to be worked again")


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= MOST):
        raise ArgumentTypeError(f"expected a whole number from 1 to {MOST:,}, got {text[:40]!r}")
    return int(text)
