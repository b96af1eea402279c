"""One limit of one account, set by staff to another value until a date.

    choices    the limits of the account's plan that can be overridden, as they are without it
    check      what would be overridden, and what should be known of it
    override   sets one; it counts within a second and ends by itself, by time alone
    end        ends one before its date
    in_force   what is overridden now

The row is read with the plan's terms (:mod:`billing.subscriptions`), so whatever asks for a limit knows it. Its mode stays the plan's: what
only watches goes on watching. See decision 0070.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from accounts import acts
from accounts.models import Account, User
from accounts.templatetags.amounts import plain_amount
from billing import subscriptions
from billing.models import LimitOverride
from metering import limits
from metering.explanation import DOLLAR
from pricing import catalog_file, margin_terms, words
from pricing.models import Entitlement, PlanVersion

MAX_LIMIT: Final = 10**15
MAX_DAYS: Final = 366


class InvalidOverride(ValueError):
    """Such an override changes nothing, or cannot be. ``field`` is what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Choice:
    """A limit as it is without an override: nano-USD of a ``cost``, else a count; None is no limit."""

    meter: str
    own: int | None
    mode: str

    @property
    def name(self) -> str:
        return name(self.meter)

    def said(self, value: int | None) -> str:
        return said(self.meter, value)


@dataclass(frozen=True, slots=True)
class InForce:
    """An override, and what the plan says by now: None is no limit; ``void`` where the plan has no such limit any more."""

    row: LimitOverride
    own: int | None
    void: bool

    @property
    def is_cost(self) -> bool:
        return is_cost(self.row.meter)

    @property
    def name(self) -> str:
        return name(self.row.meter)

    @property
    def value(self) -> str:
        return said(self.row.meter, self.row.value)

    @property
    def plans(self) -> str:
        return "no such limit" if self.void else said(self.row.meter, self.own)


def name(meter: str) -> str:
    """``Messages a day``, ``Cost a billing period``."""
    key, _, window = meter.partition("/")
    text = f"{words.meter(key, window)} {words.per(window)}".rstrip()
    return text[:1].upper() + text[1:]


def said(meter: str, value: int | None) -> str:
    if value is None:
        return "no limit"
    return plain_amount(value, DOLLAR) if is_cost(meter) else f"{value:,}"


def is_cost(meter: str) -> bool:
    return meter.startswith("cost/")


def choices(*, account: Account) -> dict[str, Choice]:
    """By meter, in the order of the plan; none where the account has no plan. Limits that are off are none."""
    allowed = subscriptions.allowed(account=account)
    if allowed is None:
        return {}
    found: dict[str, Choice] = {}
    for limit in allowed.plan.limits:
        mode = limits.mode_of(account, limit)
        if mode != Entitlement.Mode.OFF:
            meter = f"{limit.key}/{limit.window}"
            found[meter] = Choice(meter, limit.limit, mode)
    if (tier := allowed.plan.cost_tier) is not None:
        measured = Entitlement.Mode.HARD if tier.throttle_on_exceed else Entitlement.Mode.SHADOW
        found["cost/day"] = Choice("cost/day", tier.daily_cost_nanos, measured)
        found["cost/period"] = Choice("cost/period", tier.monthly_cost_nanos, measured)
        hourly, there = tier.requests_per_hour, found.get("requests/hour")
        if there is None or there.own is None or (hourly is not None and hourly < there.own):
            found["requests/hour"] = Choice("requests/hour", hourly, Entitlement.Mode.HARD)
    return found


def check(*, account: Account, meter: str, value: int, ends_at: datetime, now: datetime) -> tuple[Choice, list[str]]:
    """The limit, and sentences on what setting it to ``value`` means.

    :raises InvalidOverride: the account has no such limit, nothing would change, or a figure is out of bounds.
    """
    if account.closed_at is not None:
        raise InvalidOverride("meter", "The account is closed.")
    choice = choices(account=account).get(meter)
    if choice is None:
        raise InvalidOverride("meter", "The account’s plan has no such limit.")
    if not 0 <= value <= MAX_LIMIT:
        raise InvalidOverride("value", f"From 0 to {choice.said(MAX_LIMIT)}.")
    if value == choice.own:
        raise InvalidOverride("value", f"The plan allows {choice.said(value)} already.")
    if not now < ends_at <= now + timedelta(days=MAX_DAYS + 1):
        raise InvalidOverride("ends_at", f"Choose today or a later day, at most {MAX_DAYS} days ahead.")
    return choice, list(_known(account, choice, value))


def override(
    *, account: Account, meter: str, value: int, ends_at: datetime, token: UUID, by: User, actor: str, reason: str, now: datetime
) -> LimitOverride:
    """Sets the limit, in a transaction of its own, with its line in the audit log. One of the same limit that runs ends with it. The same
    ``token`` again changes nothing.

    :raises InvalidOverride: see :func:`check`.
    """
    with transaction.atomic():
        account = Account.objects.select_for_update(of=("self",)).select_related("product").get(pk=account.pk)
        if done := LimitOverride.objects.filter(token=token).first():
            return done
        choice, _ = check(account=account, meter=meter, value=value, ends_at=ends_at, now=now)
        former = LimitOverride.objects.filter(account=account, meter=meter, ended_at=None).first()
        before: dict[str, Any] = {meter: choice.said(choice.own)}
        if former is not None:
            if former.ends_at > now:
                before = {meter: choice.said(former.value), "until": _day(former.ends_at)}
            LimitOverride.objects.filter(pk=former.pk).update(ended_at=min(former.ends_at, now), ended_by=actor)
        row = LimitOverride.objects.create(
            account=account, meter=meter, value=value, was=choice.own, created_at=now, ends_at=ends_at, actor=actor, reason=reason,
            token=token,
        )  # fmt: skip
        told = "" if is_cost(meter) else f", {choice.said(value)}"  # everybody who sees the account reads it: no figure of what it costs us
        acts.note(
            actor=by, account=account, what=f"Limit overridden: {choice.name}{told} until {_day(ends_at)}", reason=reason,
            before=before, after={meter: choice.said(value), "until": _day(ends_at)}, now=now,
        )  # fmt: skip
        subscriptions.forget(account=account)
    return row


def end(*, account: Account, override_id: int, by: User, actor: str, reason: str, now: datetime) -> bool:
    """Ends one before its date, in a transaction of its own, with its line in the audit log. False where it has ended already."""
    with transaction.atomic():
        account = Account.objects.select_for_update(of=("self",)).select_related("product").get(pk=account.pk)
        found = next((one for one in in_force(account=account, now=now) if one.row.pk == override_id), None)
        if found is None:
            return False
        LimitOverride.objects.filter(pk=override_id).update(ended_at=now, ended_by=actor)
        acts.note(
            actor=by, account=account, what=f"Override of a limit ended: {found.name}", reason=reason,
            before={found.row.meter: found.value, "until": _day(found.row.ends_at)}, after={found.row.meter: found.plans}, now=now,
        )  # fmt: skip
        subscriptions.forget(account=account)
    return True


def in_force(*, account: Account, now: datetime) -> list[InForce]:
    """What is overridden now, the newest first."""
    rows = list(LimitOverride.objects.filter(account=account, ended_at=None, created_at__lte=now, ends_at__gt=now))
    plans: Mapping[str, Choice] = choices(account=account) if rows else {}
    return [InForce(row, plans[row.meter].own if row.meter in plans else None, row.meter not in plans) for row in rows]


def _known(account: Account, choice: Choice, value: int) -> list[str]:
    """What staff should know before."""
    says = [f"{choice.name}: {choice.said(value)} instead of {choice.said(choice.own)}, felt within a second."]
    raises = choice.own is not None and value > choice.own
    if choice.mode != Entitlement.Mode.HARD:
        says.append("The limit only watches or warns: it refuses nothing, whatever it is.")
    elif not raises and not is_cost(choice.meter):
        says.append("What is used already counts: if that is more, new work is refused at once.")
    most = account.product.max_request_tokens
    if choice.meter == "request_tokens/request" and most is not None and most < value:
        says.append(f"The product allows at most {most:,} tokens of a request on every plan, and that stays.")
    if raises and choice.meter == "cost/period":
        says += _margin(account, value)
    return says


def _margin(account: Account, value: int) -> list[str]:
    """What is earned where the raised limit on cost is used up, as the margin lint says it of a plan; nothing where nothing can be said."""
    allowed = subscriptions.allowed(account=account)
    if allowed is None:
        return []
    version, document = allowed.plan.version, catalog_file.current(slug=account.product.slug)
    if document is None or version.price_cents is None or version.currency != "usd" or version.per_seat:
        return []
    price, months = Fraction(version.price_cents, 100), subscriptions.MONTHS[PlanVersion.Interval(version.interval)]
    found = margin_terms.at_limit(
        document, name=f"{version.plan.name} at this limit", price=price, limit=Fraction(value, 10**9), months=months
    )  # fmt: skip
    return [found.headline, *found.change]


def _day(ends_at: datetime) -> str:
    return f"{ends_at:%Y-%m-%d %H:%M} UTC"
