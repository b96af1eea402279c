"""manage.py api_key issue|revoke|list"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import api_keys
from accounts.models import Account, ApiKey
from pricing.models import Product


class Command(BaseCommand):
    help = "Issues, revokes and lists API keys."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)

        issue = commands.add_parser("issue", help="Make a key and print it, once.")
        issue.add_argument("product", help="Slug of the product.")
        issue.add_argument("name", help="What the key is for.")
        issue.add_argument("--scope", action="append", required=True, choices=ApiKey.Scope.values, dest="scopes", help="Repeat for more.")
        issue.add_argument("--account", help="An account key: our id (acct_…) or the product's external id.")
        issue.add_argument("--days", type=_days, help="Let the key expire after so many days.")

        revoke = commands.add_parser("revoke", help="End a key; refused everywhere within a second.")
        revoke.add_argument("prefix", help="What list shows, e.g. tg_live_Ab12Cd.")

        listing = commands.add_parser("list", help="The keys that still work.")
        listing.add_argument("product", nargs="?", help="Only this product's.")
        listing.add_argument("--all", action="store_true", help="Also revoked and expired keys.")

    def handle(self, *args: Any, command: str, **options: Any) -> None:
        {"issue": self._issue, "revoke": self._revoke, "list": self._list}[command](options)

    def _issue(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        product = _product(options["product"])
        try:
            issued = api_keys.issue(
                product=product,
                account=_account(product, options["account"]) if options["account"] else None,
                name=options["name"],
                scopes=options["scopes"],
                now=now,
                created_by="manage.py",
                expires_at=now + timedelta(days=options["days"]) if options["days"] else None,
            )
        except api_keys.InvalidGrant as error:
            raise CommandError(str(error)) from error
        self.stderr.write("This key is shown once. Only its SHA-256 is stored.")
        self.stdout.write(issued.token)

    def _revoke(self, options: dict[str, Any]) -> None:
        keys = list(ApiKey.objects.filter(prefix=options["prefix"], revoked_at=None))
        if len(keys) != 1:
            raise CommandError(f"{len(keys)} working keys begin with “{options['prefix']}”; manage.py api_key list shows them.")
        api_keys.revoke(key=keys[0], now=timezone.now())
        self.stdout.write(f"Revoked {keys[0].name}.")

    def _list(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        keys = ApiKey.objects.select_related("product", "account")
        if options["product"]:
            keys = keys.filter(product=_product(options["product"]))
        for key in keys:
            state = "revoked" if key.revoked_at else "expired" if key.expires_at and key.expires_at <= now else "works"
            if state == "works" or options["all"]:
                owner = key.account.public_id if key.account else "every account"
                used = f"{key.last_used_at:%Y-%m-%d %H:%M} UTC" if key.last_used_at else "never used"
                self.stdout.write(f"{key.prefix}  {state:7}  {key.product.slug}  {owner}  {','.join(key.scopes)}  {used}  {key.name}")


def _product(slug: str) -> Product:
    product = Product.objects.filter(slug=slug).first()
    if product is None:
        raise CommandError(
            f"There is no product “{slug}”; there are: {', '.join(Product.objects.values_list('slug', flat=True)) or 'none'}."
        )
    return product


def _account(product: Product, name: str) -> Account:
    account = Account.objects.filter(product=product, **{"public_id" if name.startswith("acct_") else "external_id": name}).first()
    if account is None:
        raise CommandError(f"{product.slug} has no account “{name}”.")
    return account


def _days(text: str) -> int:
    try:
        days = int(text)
    except ValueError:
        days = 0
    if not 1 <= days <= 3650:
        raise ArgumentTypeError("a whole number of days from 1 to 3650")
    return days
