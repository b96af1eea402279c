"""What accounts cost and pay this month, and which of them are a risk.

    look      a product's month: its totals, its costliest accounts, and everybody who is at risk
    RULES     what makes an account a risk (``risk_rules.toml``)

The month is the calendar month in UTC so far, of the rollups; limits on cost count in their own windows (:mod:`metering.throttles`).
Amounts are nano-USD. *Revenue* is what a month brings in: subscriptions that are paid, at their price a month, and packs bought this month.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, get_args

from django.db import connection

from accounts.models import Account
from analytics import margin, rollups
from metering import throttles
from pricing.models import Product

PPM: Final = 1_000_000
COSTLIEST: Final = 10
Measure = Literal["limit_used", "cost_share"]


class Level(StrEnum):
    HIGH = "high_risk"
    MEDIUM = "medium_risk"
    LOW = "low_risk"

    @property
    def label(self) -> str:
        """``high``."""
        return self.value.removesuffix("_risk")


@dataclass(frozen=True, slots=True)
class Rule:
    """``at_least`` parts per million of ``measure`` make the ``level``; None: what the product's alert margin leaves for cost, and more."""

    level: Level
    measure: Measure
    says: str
    at_least: int | None = None

    def threshold(self, product: Product) -> int | None:
        """None where the rule does not hold for the product's accounts."""
        if self.at_least is not None:
            return self.at_least
        return None if product.alert_margin_ppm is None else PPM - product.alert_margin_ppm + 1


def _rules(text: str) -> tuple[Rule, ...]:
    rules = tuple(Rule(**row | {"level": Level(row["level"])}) for row in tomllib.loads(text)["rules"])
    assert all(rule.measure in get_args(Measure) for rule in rules)
    return rules


RULES: Final = _rules((Path(__file__).parent / "risk_rules.toml").read_text())


@dataclass(frozen=True, slots=True)
class AccountCost:
    """One account's month. ``limit``: of the limits on cost that it has nearly used up, the fullest; ``rule``: what makes it a risk."""

    account: Account
    cost_nanos: int
    subscription_nanos: int
    packs_nanos: int
    limit: throttles.Spending | None
    rule: Rule | None

    @property
    def level(self) -> Level:
        return self.rule.level if self.rule else Level.LOW

    @property
    def revenue_nanos(self) -> int:
        return self.subscription_nanos + self.packs_nanos


@dataclass(frozen=True, slots=True)
class Health:
    """Accounts that cost us anything this month, how many of all accounts are throttled, and what those with a cost come to in US dollars:
    the average with four decimals, the total with two, halves to even; no average of nobody."""

    with_cost: int
    throttled: int
    average: Decimal | None
    total: Decimal


@dataclass(frozen=True, slots=True)
class Month:
    """``costliest`` and ``at_risk`` are the costliest first; at risk are those whose level is not low, the high ones first."""

    since: date
    active: int
    with_cost: int
    cost_nanos: int
    subscriptions_nanos: int
    packs_nanos: int
    throttled: tuple[throttles.Throttled, ...]
    costliest: tuple[AccountCost, ...]
    at_risk: tuple[AccountCost, ...]

    @property
    def revenue_nanos(self) -> int:
        return self.subscriptions_nanos + self.packs_nanos

    @property
    def margin_percent(self) -> Decimal | None:
        """Of revenue, to two decimals; None where nothing comes in."""
        return margin.percent(self.revenue_nanos - self.cost_nanos, self.revenue_nanos)

    @property
    def throttled_accounts(self) -> int:
        """An account that is throttled for two reasons is one."""
        return len({one.account.pk for one in self.throttled})

    @property
    def high_risk(self) -> tuple[AccountCost, ...]:
        return tuple(one for one in self.at_risk if one.level == Level.HIGH)

    @property
    def health(self) -> Health:
        average = _dollars(Fraction(self.cost_nanos, self.with_cost), 4) if self.with_cost else None
        return Health(self.with_cost, self.throttled_accounts, average, _dollars(Fraction(self.cost_nanos), 2))


def look(*, product: Product, now: datetime) -> Month:
    """The product's month up to ``now``. Reads rollups, counters and who pays; time grows with accounts, not with what they used."""
    since = now.astimezone(UTC).date().replace(day=1)
    until = date(since.year + since.month // 12, since.month % 12 + 1, 1)
    limits = _fullest(product, now)
    shares = [found for rule in RULES if rule.measure == "cost_share" and (found := rule.threshold(product)) is not None]
    asked: dict[str, Any] = {
        "product": product.pk, "since": since, "until": until, "limit": COSTLIEST, "accounts": list(limits), "share": min(shares),
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("month_costs"), asked)
        [_, active, with_cost, cost, subscriptions, packs], *rows = cursor.fetchall()
    accounts = Account.objects.select_related("product").in_bulk([row[0] for row in rows])
    judged = [_account(accounts[row[0]], row[3:], limits.get(row[0]), product) for row in rows]
    order = list(Level)
    return Month(
        since, active, with_cost, cost, subscriptions, packs,
        throttled=tuple(throttles.everybody(now=now, product=product)),
        costliest=tuple(one for one in judged if one.cost_nanos > 0)[:COSTLIEST],
        at_risk=tuple(sorted((one for one in judged if one.rule), key=lambda one: order.index(one.level))),
    )  # fmt: skip


def _fullest(product: Product, now: datetime) -> dict[int, throttles.Spending]:
    """By account, the limit on cost of which most is used, of the accounts that a rule may name for it."""
    least = min(rule.at_least for rule in RULES if rule.measure == "limit_used" and rule.at_least is not None)
    found: dict[int, throttles.Spending] = {}
    for one in throttles.at_risk(now=now, product=product, ppm=least - 1):
        found.setdefault(one.account.pk, one)
    return found


def _account(account: Account, figures: Any, limit: throttles.Spending | None, product: Product) -> AccountCost:
    cost, subscription, packs = figures
    pays = subscription + packs
    measured: dict[Measure, Fraction | None] = {
        "limit_used": Fraction(limit.ppm) if limit else None,
        "cost_share": Fraction(PPM * cost, pays) if pays > 0 else None,
    }
    rule = next((rule for rule in RULES if _holds(measured[rule.measure], rule.threshold(product))), None)
    return AccountCost(account, cost, subscription, packs, limit, rule)


def _holds(value: Fraction | None, threshold: int | None) -> bool:
    return value is not None and threshold is not None and value >= threshold


def _dollars(nanos: Fraction, decimals: int) -> Decimal:
    return Decimal(round(nanos * 10**decimals / 10**9)).scaleb(-decimals)
