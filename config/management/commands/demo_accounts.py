"""manage.py demo_accounts"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from allauth.account.models import EmailAddress
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from accounts.models import Membership, User
from accounts.templatetags.amounts import plain_amount
from billing.models import Wallet
from metering import demo
from pricing.models import Product
from pricing.rating import NANOS

PASSWORD: Final = "tollgate-demo"  # noqa: S105 -- printed, and only ever set on a developer's machine
STAFF: Final = "admin@tollgate.example"


@dataclass(frozen=True, slots=True)
class Customer:
    """Who owns demo account 1 of a product. ``credit`` is in units of its wallet."""

    product: str
    name: str
    email: str
    credit: int


CUSTOMERS: Final = (
    Customer("rover", "Ada Lovelace", "ada@rover.example", 25),
    Customer("prpm", "Grace Hopper", "grace@prpm.example", 200),
    Customer("supabase_chat", "Alan Turing", "alan@chat.example", 10),
    Customer("elite", "Katherine Johnson", "katherine@elite.example", 15),
    Customer("teach_charlie", "Barbara Liskov", "barbara@charlie.example", 20),
)


class Command(BaseCommand):
    help = "Makes the demo log-ins, one staff user and a customer of each product with credit, and prints them. Again changes nothing."

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEMO_LOG_INS:
            raise CommandError("Demo log-ins have a known password: they are made only with the settings of a developer's machine.")
        now = timezone.now()
        products = {product.slug: product for product in Product.objects.select_related("unit")}
        missing = [customer.product for customer in CUSTOMERS if customer.product not in products]
        if missing:
            raise CommandError(f"There is no product {', '.join(missing)}; run manage.py catalog apply pricing/catalogs/*.toml first.")
        with transaction.atomic():
            _user(STAFF, "Demo Staff", staff=True)
            rows = [("Staff", STAFF, "every product, at /admin/", "")]
            for customer in CUSTOMERS:
                product = products[customer.product]
                rows.append(("Customer", customer.email, product.name, _balance(customer, product, now)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        self.stdout.write(f"Demo log-ins, all with the password {PASSWORD}")
        for row in rows:
            self.stdout.write("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _balance(customer: Customer, product: Product, now: datetime) -> str:
    """Makes the customer and says what the account has."""
    user = _user(customer.email, customer.name)
    account = demo.account(
        product=product, number=1, name=customer.name, credit_nanos=customer.credit * NANOS, credit_key="demo:customer", now=now
    )
    Membership.objects.get_or_create(account=account, user=user, defaults={"role": Membership.Role.OWNER, "created_at": now})
    available = Wallet.objects.get(account=account, unit=product.unit).available
    return plain_amount(available, product.unit, cut=True)


def _user(email: str, name: str, *, staff: bool = False) -> User:
    """The user of this address, with the demo password and a verified address. A password that is right already is left alone: a new
    one would end the sessions."""
    first, _, last = name.partition(" ")
    user, _ = User.objects.get_or_create(email=email, defaults={"first_name": first, "last_name": last})
    user.is_staff = user.is_superuser = staff
    user.is_active = True
    if not user.check_password(PASSWORD):
        user.set_password(PASSWORD)
    user.save()
    EmailAddress.objects.update_or_create(user=user, email=email, defaults={"verified": True, "primary": True})
    return user
