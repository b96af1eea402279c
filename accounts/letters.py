"""The words of every mail. Each kind is a class of the facts it tells, whose :meth:`letter` says them once, for text and HTML alike.

A fact is a ``str``, ``int``, ``bool`` or ``datetime``, or None where it may be unknown. ``*_cents`` are in the smallest unit of
``currency``, ``*_nanos`` nanos of the product's unit. ``url`` and ``*_url`` are whole addresses, or paths of this site. A person is told by
their id, never by their name: :meth:`Desk.person` asks for it when the mail is written.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format

from accounts.models import Account, Mail, User
from accounts.templatetags import amounts
from pricing.models import Unit

#: Texts in a mail are cut to so many characters: a name may be anything that a client app made up.
LONGEST_TEXT = 200
NANOS_PER_CENT = 10_000_000


class InvalidContext(ValueError):
    """These are not the facts of this kind of mail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What a mail says: the one thing first, then the figures, one thing to do, and what else is good to know."""

    subject: str
    heading: str
    paragraphs: tuple[str, ...]
    rows: tuple[tuple[str, str], ...] = ()
    button: tuple[str, str]
    notes: tuple[str, ...] = ()


class Desk:
    """What every letter is written with: whose it is, and how amounts, instants, people and pages are written there."""

    def __init__(self, account: Account) -> None:
        self.account, self.product = account, account.product

    def amount(self, nanos: int, *, cut: bool = False) -> str:
        return amounts.plain_amount(nanos, self.product.unit, cut)

    def money(self, cents: int, currency: str) -> str:
        return amounts.plain_amount(cents * NANOS_PER_CENT, Unit(code=currency.upper(), name=currency, decimals=2))

    def at(self, instant: datetime) -> str:
        """``1 April 2026, 14:00 CEST``, in the account's time zone."""
        local = timezone.localtime(instant)
        zone = local.tzname() or ""
        return f"{date_format(local, 'j F Y, H:i')} {zone if zone[:1].isalpha() else f'UTC{zone}'}"

    def page(self, name: str) -> str:
        """A page of the account."""
        return settings.PUBLIC_URL + reverse(name, args=[self.account.public_id])

    def link(self, url: str) -> str:
        return settings.PUBLIC_URL + url if url.startswith("/") else url

    def person(self, user_id: str) -> str:
        """Their name, or else their address; nobody in particular where they were forgotten."""
        found = User.objects.filter(pk=user_id, is_active=True).first()
        return line(found.get_full_name() or found.email) if found else "Somebody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A payment came. ``what`` was bought; ``granted_nanos`` of credit came of it, ``balance_nanos`` are there now (None: not known)."""

    paid_cents: int
    currency: str
    paid_at: datetime
    what: str
    granted_nanos: int = 0
    balance_nanos: int | None = None
    expires_at: datetime | None = None
    receipt_url: str = ""

    def letter(self, desk: Desk) -> Letter:
        paid = desk.money(self.paid_cents, self.currency)
        rows = [("Paid", paid), ("For", self.what), ("Date", desk.at(self.paid_at))]
        if self.granted_nanos:
            rows.append(("Credit added", desk.amount(self.granted_nanos)))
            if self.expires_at is not None:
                rows.append(("Use it before", desk.at(self.expires_at)))
        if self.balance_nanos is not None:
            rows.append(("Credit you have now", desk.amount(self.balance_nanos, cut=True)))
        return Letter(
            subject=f"Your receipt from {desk.product.name}: {paid}",
            heading="Thank you for your payment",
            paragraphs=(f"We received {paid}.{' The credit is in your account and can be used.' if self.granted_nanos else ''}",),
            rows=tuple(rows),
            button=("Open the receipt", desk.link(self.receipt_url)) if self.receipt_url else ("See your payments", desk.page("billing")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFailed:
    """A payment for a plan failed. ``retry_at``: when it is tried again; None: not by itself. ``until``: how long the plan lasts unpaid;
    None: not known."""

    amount_cents: int
    currency: str
    plan: str
    retry_at: datetime | None = None
    until: datetime | None = None

    def letter(self, desk: Desk) -> Letter:
        due = desk.money(self.amount_cents, self.currency)
        again = f"We try the card again on {desk.at(self.retry_at)}. To be sure" if self.retry_at else f"To keep {self.plan}"
        lasts = f"You keep {self.plan} until {desk.at(self.until)}." if self.until else f"You keep {self.plan} meanwhile."
        return Letter(
            subject=f"Your payment to {desk.product.name} did not go through",
            heading="Your payment did not go through",
            paragraphs=(
                f"We could not take {due} for {self.plan} from your card. {lasts}",
                f"{again}, check the card or use another one.",
            ),
            rows=(("Due", due), ("Plan", self.plan), *((("Plan lasts until", desk.at(self.until)),) if self.until else ())),
            button=("Check your card", desk.page("billing")),
            notes=("If you have changed the card already, there is nothing more to do.",),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnding:
    """A trial is about to end. ``price_cents`` per ``interval`` come after it; None: agreed with the customer."""

    plan: str
    ends_at: datetime
    price_cents: int | None = None
    currency: str = "usd"
    interval: str = "month"

    def letter(self, desk: Desk) -> Letter:
        costs = (
            f"{desk.money(self.price_cents, self.currency)} a {self.interval}" if self.price_cents is not None else "the price we agreed"
        )
        return Letter(
            subject=f"Your trial of {self.plan} ends soon",
            heading=f"Your trial of {self.plan} ends on {desk.at(self.ends_at)}",
            paragraphs=(
                f"After that, {self.plan} goes on for {costs}, charged to your card.",
                "If you do not want it, cancel before then: nothing is charged.",
            ),
            rows=(("Trial ends", desk.at(self.ends_at)), ("Then", costs[:1].upper() + costs[1:])),
            button=("Look at your plan", desk.page("billing")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWarning:
    """Much of a limit is used. ``what`` is counted; empty: the plan's allowance of usage, whose figures are not told. ``window`` is day,
    period or lifetime. ``stops``: work is refused once it is reached. ``upgrade`` is a plan with more of it, if there is one.
    """

    what: str
    window: str
    percent: int
    stops: bool
    used: int | None = None
    allowed: int | None = None
    resets_at: datetime | None = None
    upgrade: str = ""

    _WHOSE: ClassVar[Mapping[str, str]] = {"day": "today’s ", "period": "this billing period’s ", "lifetime": "your "}

    def letter(self, desk: Desk) -> Letter:
        what = f"{self._WHOSE[self.window]}{self.what or 'usage allowance'}"
        reached = self.percent >= 100
        used = f"You have used {'all' if reached else f'{self.percent}%'} of {what}"
        until = f"it resets on {desk.at(self.resets_at)}" if self.resets_at else "you change to a plan with more of it"
        if not self.stops:
            consequence = "Nothing is stopped: you can go on working."
        elif reached:
            consequence = f"New work is refused until {until}."
        else:
            consequence = f"Once all of it is used, new work is refused until {until}."
        rows: list[tuple[str, str]] = []
        if self.used is not None and self.allowed is not None:
            rows.append(("Used", f"{self.used:,} of {self.allowed:,} {self.what}"))
        if self.resets_at is not None:
            rows.append(("Resets", desk.at(self.resets_at)))
        return Letter(
            subject=used,
            heading=used,
            paragraphs=(consequence, *((f"{self.upgrade} allows more.",) if self.upgrade else ())),
            rows=tuple(rows),
            button=("See your plan", desk.page("billing")) if self.upgrade else ("See your usage", desk.page("usage")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LowBalance:
    """Little credit is left."""

    balance_nanos: int

    def letter(self, desk: Desk) -> Letter:
        left = desk.amount(self.balance_nanos, cut=True)
        none = self.balance_nanos <= 0
        said = "Your credit is used up" if none else f"{left} of credit is left"
        return Letter(
            subject=f"{said} at {desk.product.name}",
            heading=said,
            paragraphs=(
                "New work is refused until you add credit." if none else "When it is used up, new work is refused until you add credit.",
            ),
            button=("Add credit", desk.page("buy")),
            notes=("We write this once, and again only after new credit has come and gone.",),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCredits:
    """Credit that nobody paid for came: a welcome, or an announcement."""

    granted_nanos: int
    balance_nanos: int | None = None
    expires_at: datetime | None = None

    def letter(self, desk: Desk) -> Letter:
        granted = desk.amount(self.granted_nanos)
        rows = [("Credit added", granted)]
        if self.balance_nanos is not None:
            rows.append(("Credit you have now", desk.amount(self.balance_nanos, cut=True)))
        if self.expires_at is not None:
            rows.append(("Use it before", desk.at(self.expires_at)))
        return Letter(
            subject="Your account credits",
            heading=f"{granted} of credit is in your account",
            paragraphs=(
                f"You can use it for everything at {desk.product.name}. It costs you nothing.",
                "What is left of it, and what it was used for, is always on your credits page.",
            ),
            rows=tuple(rows),
            button=("See your credits", desk.page("credits")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceEnding:
    """A plan is still unpaid, and is about to end for it: at ``ends_at`` the account goes to ``next_plan``."""

    plan: str
    ends_at: datetime
    next_plan: str

    def letter(self, desk: Desk) -> Letter:
        return Letter(
            subject=f"Your plan {self.plan} ends soon: it is not paid",
            heading=f"Your plan {self.plan} ends on {desk.at(self.ends_at)}",
            paragraphs=(
                f"Your payment for {self.plan} has still not gone through. Unless it does by then, your account goes to {self.next_plan}.",
                "To keep your plan, check the card or use another one.",
            ),
            rows=(("Plan", self.plan), ("Ends", desk.at(self.ends_at)), ("Then", self.next_plan)),
            button=("Check your card", desk.page("billing")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEnded:
    """A plan ended; the account is on ``next_plan`` since ``ended_at``. ``unpaid``: because it was not paid."""

    plan: str
    ended_at: datetime
    next_plan: str
    unpaid: bool = False

    def letter(self, desk: Desk) -> Letter:
        why = " because it was not paid" if self.unpaid else ""
        return Letter(
            subject=f"Your plan {self.plan} has ended",
            heading=f"Your plan {self.plan} has ended",
            paragraphs=(
                f"It ended on {desk.at(self.ended_at)}{why}. Your account is on {self.next_plan} now.",
                "Credit that you bought stays yours. You can take the plan again at any time.",
            ),
            rows=(("Ended", self.plan), ("On", desk.at(self.ended_at)), ("Now", self.next_plan)),
            button=("Look at the plans", desk.page("billing")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUpFailed:
    """An automatic top-up failed. ``why`` is the bank's word, if it gave one; ``retry_at`` None: it is not tried again by itself."""

    amount_cents: int
    currency: str
    balance_nanos: int | None = None
    why: str = ""
    retry_at: datetime | None = None

    def letter(self, desk: Desk) -> Letter:
        due = desk.money(self.amount_cents, self.currency)
        again = f"We try again on {desk.at(self.retry_at)}." if self.retry_at else "We do not try again by ourselves."
        rows = [("Top-up", due)]
        if self.why:
            rows.append(("Your bank says", self.why))
        if self.balance_nanos is not None:
            rows.append(("Credit you have now", desk.amount(self.balance_nanos, cut=True)))
        return Letter(
            subject=f"Your top-up at {desk.product.name} did not go through",
            heading="Your automatic top-up did not go through",
            paragraphs=(
                f"Your credit is low, and we could not take {due} from your card. Nothing was charged.",
                f"{again} You can check the card or add credit yourself.",
            ),
            rows=tuple(rows),
            button=("Check your card", desk.page("billing")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceChange:
    """A plan will cost something else from the first renewal at or after ``effective_at``. Cents are each interval's, for all seats."""

    plan: str
    old_cents: int
    new_cents: int
    currency: str
    interval: str
    effective_at: datetime

    def letter(self, desk: Desk) -> Letter:
        old, new = desk.money(self.old_cents, self.currency), desk.money(self.new_cents, self.currency)
        return Letter(
            subject=f"The price of {self.plan} at {desk.product.name} changes",
            heading=f"{self.plan} will cost {new} a {self.interval}",
            paragraphs=(
                f"You pay {old} a {self.interval} today. From your first renewal on or after {desk.at(self.effective_at)} it is {new}.",
                "You need not do anything. If you would rather not go on, cancel before that renewal; what you have paid for stays yours.",
            ),
            rows=(("Today", f"{old} a {self.interval}"), ("Then", f"{new} a {self.interval}"), ("From", desk.at(self.effective_at))),
            button=("Look at your plan", desk.page("billing")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Somebody is asked to join. ``invited_by`` is a user's id; ``url`` is where to accept, and is forgotten once it was sent."""

    invited_by: str
    role: str
    url: str
    expires_at: datetime | None = None

    def letter(self, desk: Desk) -> Letter:
        account = line(desk.account.name)
        role = f"{'an' if self.role[:1] in 'aeiou' else 'a'} {self.role}"
        return Letter(
            subject=f"Join {account} on {desk.product.name}",
            heading=f"You are invited to {account}",
            paragraphs=(f"{desk.person(self.invited_by)} asks you to join {account} on {desk.product.name} as {role}.",),
            rows=(("Invitation ends", desk.at(self.expires_at)),) if self.expires_at else (),
            button=("Join the team", desk.link(self.url)),
            notes=("If you do not know who that is, ignore this mail: nothing happens.",),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardNotice:
    """Spending is far above the usual. ``step`` is what is done: warn, degrade, slow or block; ``subject`` account, key or session, by
    its name ``ref``. ``reason`` has the figures. ``ends_at``: of a block. Without ``refuses`` nothing is stopped."""

    step: str
    subject: str
    ref: str
    reason: str
    ends_at: datetime | None = None
    refuses: bool = True

    _DONE: ClassVar[Mapping[str, str]] = {
        "warn": "Nothing is stopped yet: you can go on working.",
        "degrade": "Until it is calm again, work is asked to use a model that costs less.",
        "slow": "Until it is calm again, only a few calls a minute may begin.",
        "block": "New work of it is refused until it is calm again.",
    }

    def letter(self, desk: Desk) -> Letter:
        blocked = self.step == "block" and self.refuses
        said = "Unusual spending was stopped" if blocked else "Your spending is unusually high"
        rows = [("Where", {"account": "The whole account", "key": f"API key {self.ref}", "session": f"Session {self.ref}"}[self.subject])]
        if self.ends_at is not None and self.refuses:
            rows.append(("Ends", desk.at(self.ends_at)))
        return Letter(
            subject=f"{said} at {desk.product.name}",
            heading=said,
            paragraphs=(self.reason, self._DONE[self.step if self.refuses else "warn"]),
            rows=tuple(rows),
            button=("See your spending", desk.page("spending")),
            notes=(
                "If a program of yours runs in a loop, stop it. If this is work that you want done, tell support: they end it at once.",
            ),
        )


Facts: typing.TypeAlias = (
    Receipt
    | PaymentFailed
    | TrialEnding
    | LimitWarning
    | LowBalance
    | AccountCredits
    | GraceEnding
    | PlanEnded
    | TopUpFailed
    | PriceChange
    | Invitation
    | GuardNotice
)
FACTS: Mapping[str, type[Facts]] = {
    Mail.Kind.RECEIPT: Receipt,
    Mail.Kind.PAYMENT_FAILED: PaymentFailed,
    Mail.Kind.TRIAL_ENDING: TrialEnding,
    Mail.Kind.LIMIT_WARNING: LimitWarning,
    Mail.Kind.LOW_BALANCE: LowBalance,
    Mail.Kind.ACCOUNT_CREDITS: AccountCredits,
    Mail.Kind.GRACE_ENDING: GraceEnding,
    Mail.Kind.PLAN_ENDED: PlanEnded,
    Mail.Kind.TOP_UP_FAILED: TopUpFailed,
    Mail.Kind.PRICE_CHANGE: PriceChange,
    Mail.Kind.INVITATION: Invitation,
    Mail.Kind.GUARD: GuardNotice,
}


def to_json(kind: str, context: Mapping[str, object]) -> dict[str, Any]:
    """``context`` as it is stored. :raises InvalidContext: a fact is missing, unknown or of another type, or there is no such kind."""
    if kind not in FACTS:
        raise InvalidContext(f"There is no kind of mail {kind!r}.")
    hints = typing.get_type_hints(FACTS[kind])
    known = {each.name: each for each in fields(FACTS[kind])}
    if unknown := context.keys() - known.keys():
        raise InvalidContext(f"A {kind} mail tells nothing of {', '.join(sorted(unknown))}.")
    if missing := {name for name, each in known.items() if each.default is MISSING} - context.keys():
        raise InvalidContext(f"A {kind} mail needs {', '.join(sorted(missing))}.")
    return {name: _stored(name, value, hints[name]) for name, value in context.items()}


def from_json(kind: str, stored: Mapping[str, Any]) -> Facts:
    """The facts of a stored mail. :raises InvalidContext: they are not those of its kind, as it is now."""
    hints = typing.get_type_hints(FACTS[kind])
    try:
        told = {
            name: datetime.fromisoformat(value) if value and datetime in _types(hints[name]) else value for name, value in stored.items()
        }
        facts: Callable[..., Facts] = FACTS[kind]
        return facts(**told)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidContext(f"These are not the facts of a {kind} mail: {error}") from error


def line(text: str) -> str:
    """``text`` as one line that can stand in a header: no control characters, no surrogates, not endless."""
    shown = " ".join("".join(character if character.isprintable() else " " for character in text[: 4 * LONGEST_TEXT]).split())
    return shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 1] + "…"


def _types(hint: Any) -> tuple[type, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _stored(name: str, value: object, hint: Any) -> object:
    allowed = _types(hint)
    if isinstance(value, UUID) and str in allowed:
        return str(value)
    if type(value) not in allowed and not (isinstance(value, str) and str in allowed):
        raise InvalidContext(f"{name} is {value!r}, expected {' or '.join(each.__name__ for each in allowed)}.")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidContext(f"{name} has no time zone.")
        return value.isoformat()
    if isinstance(value, str) and (name == "url" or name.endswith("_url")):
        return _address(name, value)
    return line(value) if isinstance(value, str) else value


def _address(name: str, value: str) -> str:
    """A path of ours, or an address elsewhere. A link that a mail client would run as a script is none."""
    if not value:
        return value
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise InvalidContext(f"{name} is no address.") from error
    whole = parts.scheme in ("https", "http") and parts.hostname
    if not value.isprintable() or " " in value or len(value) > 2_000 or not (whole or (value.startswith("/") and not parts.netloc)):
        raise InvalidContext(f"{name} is no address.")
    return value
