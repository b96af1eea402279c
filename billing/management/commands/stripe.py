"""``manage.py stripe inbox | replay | missing | reconcile | push-catalog``: what came from Stripe, and what it is to sell."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

import stripe
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count
from django.utils import timezone

from billing import reconciliation, stripe_api, stripe_catalog, stripe_inbox, stripe_receiver
from billing.models import StripeEvent
from pricing.models import Product

MOST = 1_000
MOST_DAYS = 30


class Command(BaseCommand):
    help = (
        "Stripe's events: `inbox` lists them, the newest first; `replay` works some of them again, which is always safe; `missing` asks"
        " Stripe which it made that never came, and with --store takes them in; `reconcile` compares the objects"
        " themselves; `push-catalog` has Stripe sell what our catalogs sell."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        inbox = actions.add_parser("inbox", help="Lists events.")
        inbox.add_argument("--state", choices=StripeEvent.State.values, help="Only those in this state.")
        inbox.add_argument("--limit", type=_limit, default=50, help=f"So many at most, up to {MOST:,} (%(default)s).")
        replay = actions.add_parser("replay", help="Has events worked again.")
        replay.add_argument("events", nargs="*", metavar="EVENT", help="Their ids, evt_….")
        replay.add_argument("--state", choices=("quarantined", "dead"), help=f"All in this state, the oldest {MOST:,}.")

        missing = actions.add_parser(
            "missing", help="Compares Stripe's events with the inbox. Exit code 1 where some are missing and stay so."
        )
        missing.add_argument("--days", type=_days, default=3, help=f"How far back, up to {MOST_DAYS} days (%(default)s).")
        missing.add_argument("--store", action="store_true", help="Take in what is missing, as if it had been delivered.")

        reconcile = actions.add_parser(
            "reconcile",
            help="Compares Stripe's subscriptions, invoices, payments, refunds, disputes and customers with ours, takes over what we"
            " missed, and lists the rest. Exit code 1 where there is a rest.",
        )
        reconcile.add_argument("--days", type=_days, default=3, help=f"How far back, up to {MOST_DAYS} days (%(default)s).")

        push = actions.add_parser(
            "push-catalog",
            help="Makes the products and prices of plans and packs at Stripe, and prints the lines for our environment. Done again, it does"
            " nothing again; a changed price is made anew, and the old one stays for those who pay it.",
        )
        push.add_argument("products", nargs="*", metavar="PRODUCT", help="Their slugs (all products).")
        push.add_argument("--dry-run", action="store_true", help="Only say what it would take.")
        push.add_argument("--live", action="store_true", help="With a live key: yes, really.")

    def handle(self, *args: Any, **options: Any) -> None:
        match options["action"]:
            case "inbox":
                self._inbox(options["state"], options["limit"])
            case "replay":
                self._replay(options["events"], options["state"])
            case "missing":
                self._missing(options["days"], store=options["store"])
            case "reconcile":
                self._reconcile(options["days"])
            case "push-catalog":
                self._push_catalog(options["products"], dry_run=options["dry_run"], live=options["live"])

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

    def _missing(self, days: int, *, store: bool) -> None:
        now = timezone.now()
        compared = absent = 0
        try:
            for event in stripe_api.events(since=now - timedelta(days=days)):
                compared += 1
                if not StripeEvent.objects.filter(event_id=event["id"]).exists():
                    absent += 1
                    self.stdout.write(f"missing: {event['id']}  {event['type']}")
                    if store:
                        stripe_receiver.store(stripe_receiver.parse(json.dumps(event)), endpoint="manage.py stripe missing", now=now)
        except stripe.StripeError as error:
            raise CommandError(f"Stripe does not answer: {error}") from error
        self.stdout.write(f"{compared:,} events of the last {days} days compared, {absent:,} missing{', stored now' if store else ''}")
        if absent and not store:
            sys.exit(1)

    def _reconcile(self, days: int) -> None:
        now = timezone.now()
        try:
            run = reconciliation.run(since=now - timedelta(days=days), now=now)
        except stripe.StripeError as error:
            raise CommandError(f"Stripe does not answer; what was healed until then stays healed: {error}") from error
        for each in run.healed:
            self.stdout.write(f"healed: {each}")
        for each in run.problems:
            self.stdout.write(f"for staff: {each}")
        self.stdout.write(f"{run.compared:,} compared, {len(run.healed):,} healed, {len(run.problems):,} for staff")
        if run.problems:
            sys.exit(1)

    def _push_catalog(self, slugs: list[str], *, dry_run: bool, live: bool) -> None:
        """Everything but the environment lines is printed as a comment, so that the output can be appended to a file of them."""
        if settings.STRIPE_LIVE_MODE and not (live or dry_run):
            raise CommandError("This key sells for real money. Look with --dry-run first, then say --live.")
        products = list(Product.objects.filter(slug__in=[each for each in slugs if "\0" not in each]) if slugs else Product.objects.all())
        if unknown := set(slugs) - {product.slug for product in products}:
            raise CommandError(f"Nothing was done: there is no product {', '.join(sorted(unknown))[:500]}.")
        pushed: list[stripe_catalog.Pushed] = []
        try:
            for product in sorted(products, key=lambda each: each.slug):
                pushed += stripe_catalog.push(product=product, now=timezone.now(), dry_run=dry_run)
        except stripe_catalog.NotOurs as error:
            raise CommandError(str(error)) from error
        except stripe.StripeError as error:
            raise CommandError(f"Stripe does not answer as it should; what was done until then stays, do it again: {error}") from error
        steps = [step for each in pushed for step in each.steps]
        for step in steps:
            self.stdout.write(f"# {'would ' if dry_run else ''}{step}")
        self.stdout.write(f"# {len(pushed)} plans and packs, {len(steps)} changes at Stripe{' to make' if dry_run else ''}")
        for name, value in stripe_catalog.settings(pushed).items():
            self.stdout.write(f"{name}={value}")


def _days(text: str) -> int:
    return _integer(text, MOST_DAYS)


def _limit(text: str) -> int:
    return _integer(text, MOST)


def _integer(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= most):
        raise ArgumentTypeError(f"expected a whole number from 1 to {most:,}, got {text[:40]!r}")
    return int(text)
