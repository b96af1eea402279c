"""A product with a priced model and accounts that never run out of credit, as the tests make them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from django.db import transaction

from accounts.models import Account
from pricing.models import Product
from tests import factories

ACCOUNTS = 200
CREDIT = 1_000_000


@dataclass
class World:
    product: Product
    model: str
    accounts: list[Account]
    key: str
    #: Accounts in turn, each with a number that was never used before.
    turns: Iterator[tuple[int, Account]] = field(init=False)

    def __post_init__(self) -> None:
        self.turns = ((number, self.accounts[number % len(self.accounts)]) for number in itertools.count())


def make() -> World:
    with transaction.atomic():
        product = factories.make_product()
    accounts = [factories.make_account(product, credit=CREDIT) for _ in range(ACCOUNTS)]
    return World(product, factories.make_model(), accounts, factories.make_key(product, scopes=["usage:write"]))
