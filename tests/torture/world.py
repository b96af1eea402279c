"""Where the torture happens: three products, one for each overage policy, each with one hot account and some others."""

from __future__ import annotations

import io
from dataclasses import dataclass

from django.core.management import call_command

from metering.tests.limited import Shop
from tests.factories import make_account

OVERAGES = ("charge", "cap", "reject")
OTHERS = 5
#: Limits of every kind are counted; those on open work and on objects are reached.
TERMS = (("messages", "day", 10**9, "shadow"), ("messages", "lifetime", 10**9), ("tasks", "open", 10), ("agents", "count", 8))
TIER = {"requests_per_hour": 10**9, "daily_cost_nanos": 10**17, "monthly_cost_nanos": 10**17}
#: Holds that nobody resolves run out while the torture goes on.
HOLD_SECONDS = 4


@dataclass(frozen=True, slots=True)
class World:
    """``hot`` and ``others`` are accounts by id, with the overage policy of their product."""

    model: str
    hot: dict[int, str]
    others: dict[int, str]

    @property
    def accounts(self) -> dict[int, str]:
        return self.hot | self.others


def migrate() -> None:
    call_command("migrate", interactive=False, verbosity=0, stdout=io.StringIO())


def make() -> World:
    """The products and accounts, without any credit."""
    hot: dict[int, str] = {}
    others: dict[int, str] = {}
    for overage in OVERAGES:
        shop = Shop.new(*TERMS, tier=TIER, credit=0, overage=overage, hold_lifetime_seconds=HOLD_SECONDS)
        hot[shop.account.pk] = overage
        others |= {make_account(shop.product).pk: overage for _ in range(OTHERS)}
    return World(shop.model, hot, others)
