"""manage.py explain_decision ACCOUNT [--model provider:model --input-tokens N --max-output-tokens N --feature F]"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import api
from accounts.models import Account
from billing import subscriptions
from metering import limits, overrides, usage
from pricing import rating

_SAID = ("feature", "user", "session", "run")
HEADINGS = ("layer", "meter", "mode", "limit", "used", "left", "resets (UTC)", "says")


class Command(BaseCommand):
    help = (
        "Why an account may work, or may not: every layer in the order in which it is asked, who decides, when that ends and which plan "
        "would lift it. Nothing is held or counted. Exit code 1 where the work would be refused, 2 where the question is wrong."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("account", metavar="ACCOUNT", help="Our id (acct_…) or the client's own.")
        parser.add_argument("--product", help="Slug of the product, where several have an account of that name.")
        parser.add_argument("--model", help="What would be called, as provider:model (default: what is left, without a request).")
        parser.add_argument("--input-tokens", type=_tokens, help="How many tokens would go in.")
        parser.add_argument("--max-output-tokens", type=_tokens, help="How many may come out (default: as many as usual).")
        parser.add_argument("--feature", help="The feature of the product that would work.")
        parser.add_argument("--user", type=_name, help="Who would work, as the client app names them: for the caps of members.")
        parser.add_argument("--session", type=_name, help="The session: for caps, and for the runaway guard.")
        parser.add_argument("--run", type=_name, help="The run: for caps.")
        parser.add_argument("--key-id", type=_number, help="The number of the API key: for caps, and for the runaway guard.")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        account = _account(options["account"], options["product"])
        ask = _ask(options)
        try:
            decision = usage.decide(account=account, ask=ask, now=now, api_key_id=options["key_id"])
        except usage.UnknownModel as error:
            raise CommandError(f"REFUSED: {error}", returncode=1) from error
        except usage.UsageError as error:
            raise CommandError(str(error), returncode=2) from error
        allowed = subscriptions.allowed(account=account)
        plan = allowed.plan.version.plan.name if allowed else "none"
        self.stdout.write(f"{account.name} ({account.public_id}) of {account.product.name}, plan: {plan}, {now:%Y-%m-%d %H:%M:%S} UTC\n\n")
        rows = [HEADINGS, *(_row(layer, decision, account.product.unit.code) for layer in decision.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (
                text.rjust(width) if 3 <= place <= 5 else text.ljust(width)
                for place, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            self.stdout.write("  " + "  ".join(cells).rstrip())
        self.stdout.write("")
        for one in overrides.in_force(account=account, now=now):
            self.stdout.write(
                f"{one.row.meter} is {one.value} until {one.row.ends_at:%Y-%m-%d %H:%M} UTC, where the plan says {one.plans}: "
                f"{one.row.actor} set it, {one.row.reason}"
            )
        for layer in decision.passed:
            if layer.name == "guard":
                advice = f" It ends {_until(layer.resets_at, now)}." if layer.resets_at else " It ends when spending is low again."
                self.stdout.write(f"guard, {layer.step}: {layer.reason}{advice}")
        refusal = decision.refusal
        if refusal is None:
            self.stdout.write("ALLOWED: no layer refuses.")
            return
        offer = limits.upgrade(account=account, allowed=allowed, layer=refusal, now=now)
        ends = f" It ends {_until(refusal.resets_at, now)}." if refusal.resets_at else ""
        way_out = f" The plan {offer.name} ({offer.plan}) would lift it." if offer else " No plan of the product would lift it."
        raise CommandError(f"REFUSED by {refusal.name}: {refusal.reason}{ends}{way_out}", returncode=1)


def _row(layer: limits.Layer, decision: limits.Decision, unit: str) -> tuple[str, ...]:
    says = "yes" if layer.allowed else "REFUSES" if layer == decision.refusal else "refuses too" if layer.mode == "hard" else "only noted"
    ends = f"{layer.resets_at:%Y-%m-%d %H:%M}" if layer.resets_at else ""
    amounts = (_amount(layer, value, unit) for value in (layer.limit, layer.used, layer.remaining))
    return (layer.name, layer.meter or "", str(layer.mode), *amounts, ends, says)


def _amount(layer: limits.Layer, value: int | None, unit: str) -> str:
    """Cost is wholesale, in dollars; credits are in the wallet's unit."""
    if value is None:
        return ""
    match layer.name:
        case "cost":
            return f"{api.amount(value)} USD"
        case "credits" | "cap":
            return f"{api.amount(value)} {unit}"
    return f"{value:,}"


def _until(end: datetime, now: datetime) -> str:
    minutes = max(int((end - now).total_seconds() // 60), 0)
    days, hours = divmod(minutes // 60, 24)
    return f"{end:%Y-%m-%d %H:%M} UTC, in {f'{days} d ' if days else ''}{f'{hours} h ' if hours else ''}{minutes % 60} min"


def _account(name: str, product: str | None) -> Account:
    named = {"public_id": name} if name.startswith("acct_") else {"external_id": name}
    found = Account.objects.filter(**named) if "\0" not in name else Account.objects.none()
    if product is not None:
        found = found.filter(product__slug=product) if "\0" not in product else found.none()
    accounts = list(found.select_related("product__unit").order_by("product__slug")[:10])
    if not accounts:
        raise CommandError(f"There is no account {name!r}{f' of {product!r}' if product else ''}.", returncode=2)
    if len(accounts) > 1:
        raise CommandError(
            f"{name!r} is an account of {', '.join(account.product.slug for account in accounts)}: say --product.", returncode=2
        )
    return accounts[0]


def _ask(options: dict[str, Any]) -> usage.Ask | None:
    if options["model"] is None:
        if any(options[name] is not None for name in ("input_tokens", "max_output_tokens", *_SAID)):
            raise CommandError("Name the --model that would be called.", returncode=2)
        return None
    output = options["max_output_tokens"]
    quantities = {"input_tokens": options["input_tokens"] or 0} | ({} if output is None else {"output_tokens": output})
    return usage.Ask(options["model"], quantities, **{name: options[name] for name in _SAID}, open_ended=output is None)


def _name(text: str) -> str:
    if not (text.isprintable() and 1 <= len(text) <= 128):
        raise ArgumentTypeError(f"expected a name of 1 to 128 characters, got {text[:40]!r}")
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ArgumentTypeError(f"expected a key's number, got {text!r}")
    return int(text)


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:14]) <= rating.MAX_QUANTITY):
        raise ArgumentTypeError(f"expected a number of tokens from 0 to {rating.MAX_QUANTITY:,}, got {text!r}")
    return int(text)
