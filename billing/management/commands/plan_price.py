"""``manage.py plan_price preview | move | cancel | list``: a new price for those who subscribe already."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from billing import price_moves
from billing.management import arguments
from billing.models import PriceMove
from pricing.models import PlanVersion


class Command(BaseCommand):
    help = (
        "A new price in a catalog is for new subscribers; those who subscribe already keep theirs unless they are moved. `preview` says"
        " whom a move to the plan's newest version would concern, `move` plans it from a date on, `cancel` takes it back."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("list", help="The moves that are planned.")
        for name, what in (("preview", "Whom it would concern."), ("move", "Plans the move."), ("cancel", "Takes it back.")):
            action = actions.add_parser(name, help=what)
            action.add_argument("plan", metavar="PRODUCT/PLAN", type=_plan)
            if name != "preview":
                action.add_argument("--actor", required=True, type=arguments.words)
            if name == "move":
                action.add_argument("--from", dest="effective_at", required=True, type=arguments.instant, metavar="TIME")
                action.add_argument("--reason", required=True, type=arguments.words)

    def handle(self, *, action: str, **options: Any) -> None:
        if action == "list":
            for move in PriceMove.objects.filter(canceled_at=None).select_related("to_version__plan__product"):
                self.stdout.write(
                    f"{move}, by {move.actor}: {move.reason}; {price_moves.preview(to=move.to_version).subscriptions} to come"
                )
            return
        product, slug = options["plan"]
        versions = PlanVersion.objects.select_related("plan__product").filter(plan__product__slug=product, plan__slug=slug)
        newest = versions.filter(valid_from__lte=timezone.now()).order_by("-version").first()
        if newest is None:
            raise CommandError(f"There is no plan {product}/{slug} on sale.")
        if action == "cancel":
            planned = PriceMove.objects.filter(to_version=newest, canceled_at=None).first()
            if planned is None or not price_moves.cancel(move=planned, actor=options["actor"], now=timezone.now()):
                raise CommandError("No such move is planned.")
            self.stdout.write(f"{planned} is canceled. Who was moved already keeps the new price.")
            return
        found = price_moves.preview(to=newest)
        self.stdout.write(f"{newest}: {found.sentence}")
        if action == "move":
            try:
                move = price_moves.plan(
                    to=newest, effective_at=options["effective_at"], actor=options["actor"], reason=options["reason"], now=timezone.now()
                )
            except price_moves.InvalidMove as error:
                raise CommandError(str(error)) from None
            self.stdout.write(f"{move} is planned.")


def _plan(text: str) -> tuple[str, str]:
    product, slash, slug = text.partition("/")
    if not slash or not product or not slug or "\0" in text:
        raise ArgumentTypeError(f"{text!r} is no plan; write it as product/plan.")
    return product, slug
