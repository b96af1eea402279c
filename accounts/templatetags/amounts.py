"""Amounts and instants as people read them: short in the text, exact on hover, always with the unit.

Amounts are nanos (10⁻⁹) of a unit; nothing here goes through a float. Short amounts are the nearest, so that cost and margin add up to
revenue; what is left is cut (``cut=True``): a page never says that more is left than is. An amount smaller than the unit's last digit shows
its first two digits that are not zero, never 0.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django import template
from django.template import Context
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString

from pricing import words
from pricing.models import Unit

register = template.Library()

NANOS = 1_000_000_000
MINUS = "\N{MINUS SIGN}"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def exact(nanos: int, *, decimals: int) -> str:
    """Every digit of ``abs(nanos)``, at least ``decimals`` of them after the point: ``1,234.50``, ``0.0000045``."""
    whole, part = divmod(abs(nanos), NANOS)
    digits = f"{part:09}"
    digits = digits[:decimals] + digits[decimals:].rstrip("0")
    return f"{whole:,}.{digits}" if digits else f"{whole:,}"


def short(nanos: int, *, decimals: int, cut: bool = False) -> str:
    """``abs(nanos)`` to ``decimals`` digits after the point, halves up or cut; of less than one such digit, two significant ones."""
    unit = 10 ** (9 - decimals)
    value = abs(nanos)
    if 0 < value < unit:
        unit = 10 ** max(len(str(value)) - 2, 0)
    return exact((value if cut else value + unit // 2) // unit * unit, decimals=decimals)


def with_unit(number: str, *, unit: Unit, negative: bool = False) -> str:
    """``$4.72``, ``−82 credits``, ``1 credit``, ``3.00 EUR``."""
    sign = MINUS if negative else ""
    if unit.code == "USD":
        return f"{sign}${number}"
    return f"{sign}{number}{NO_BREAK_SPACE}{unit_name(number, unit=unit)}"


def unit_name(number: str, *, unit: Unit) -> str:
    """``credit`` or ``credits``; a currency keeps its code."""
    if len(unit.code) == 3:
        return unit.code
    return unit.name if number == "1" else f"{unit.name}s"


@register.simple_tag
def amount(nanos: int, unit: Unit, cut: bool = False) -> SafeString:
    """Short, with the exact amount on hover."""
    return _data(nanos, unit, plain_amount(nanos, unit, cut))


@register.simple_tag
def plain_amount(nanos: int, unit: Unit, cut: bool = False) -> str:
    """Short, as text alone: for attributes and SVG titles."""
    return with_unit(short(nanos, decimals=unit.decimals, cut=cut), unit=unit, negative=nanos < 0)


@register.simple_tag
def plain_number(nanos: int, unit: Unit) -> str:
    """Short, without its unit: for a column that names it."""
    return short(nanos, decimals=unit.decimals)


@register.simple_tag
def figure(nanos: int, unit: Unit, cut: bool = False) -> SafeString:
    """For the one large number of a page: the unit's name is set smaller."""
    number = short(nanos, decimals=unit.decimals, cut=cut)
    sign = MINUS if nanos < 0 else ""
    if unit.code == "USD":
        return _data(nanos, unit, f"{sign}${number}")
    return _data(nanos, unit, format_html("{}{} <small>{}</small>", sign, number, unit_name(number, unit=unit)))


@register.simple_tag
def exact_amount(nanos: int, unit: Unit, digits: int = 0, signed: bool = False, named: bool = False) -> SafeString:
    """Every digit, those beyond the unit's own set fainter and filled to ``digits``, so that a column's points stand under each other.

    ``named`` writes the unit behind it where it has no sign of its own: in a column of several units, and outside of tables.
    """
    number = exact(nanos, decimals=max(unit.decimals, digits))
    point = number.find(".")
    cut = len(number) if point < 0 else point + 1 + unit.decimals if unit.decimals else point
    sign = MINUS if nanos < 0 else "+" if signed and nanos > 0 else ""
    dollar = "$" if unit.code == "USD" else ""
    name = f"{NO_BREAK_SPACE}{unit_name(number, unit=unit)}" if named and not dollar else ""
    return format_html('{}{}{}<span class="fine">{}</span>{}', sign, dollar, number[:cut], number[cut:], name)


def sub_digits(amounts: list[int]) -> int:
    """How many digits after the point the most precise of ``amounts`` (nanos) needs."""
    return max((len(f"{abs(nanos) % NANOS:09}".rstrip("0")) for nanos in amounts), default=0)


@register.simple_tag
def dollars(nanos: int) -> str:
    """Nano-USD: what something costs, beside amounts of the wallet's own unit."""
    return f"${exact(nanos, decimals=2)}"


@register.simple_tag
def cents(amount: int, currency: str) -> str:
    """A price, a charge or an invoice: ``$25``, ``12.50 EUR``."""
    return words.money(amount, currency=currency)


@register.filter
def unit_heading(unit: Unit) -> str:
    """The unit as a column's heading: ``USD``, ``credits``."""
    return unit_name("", unit=unit)


@register.filter
def after_folded(unit: Unit) -> SafeString | str:
    """The unit behind an amount whose column has folded away with its heading, on a phone; a dollar has its sign."""
    return "" if unit.code == "USD" else format_html('<span class="only-folded"> {}</span>', unit_heading(unit))


_SOURCES = {
    "monthly": "Plan credit", "purchased": "Purchased credit", "welcome": "Welcome credit", "announcement": "Launch credit",
    "staff": "Credit from support", "goodwill": "Goodwill credit", "promotion": "Promotional credit", "adjustment": "Correction",
}  # fmt: skip


@register.filter
def source_name(source: str) -> str:
    """Where a grant came from: ``Welcome credit``."""
    return _SOURCES.get(source, source.replace("_", " ").capitalize())


@register.filter
def entry_name(kind: str, source: str) -> str:
    """What a ledger entry did, in a customer's words; a grant is called by its source."""
    return source_name(source) if kind == "grant" and source else kind.replace("_", " ").capitalize()


_SUMS = {
    "grant": "Credit added", "usage": "Used", "expiry": "Expired", "rollover": "Rolled over", "refund": "Refunds",
    "freeze": "Frozen by disputes", "unfreeze": "Given back after disputes", "reversal": "Charges given back", "adjustment": "Corrections",
    "debt": "Used beyond the balance", "debt_repaid": "Debt repaid",
}  # fmt: skip


@register.filter
def sums_name(kind: str) -> str:
    """What the ledger entries of one kind did together."""
    return _SUMS[kind]


@register.filter
def thousands(number: int) -> str:
    return f"{number:,}"


@register.simple_tag(takes_context=True)
def when(context: Context, instant: datetime) -> SafeString:
    """``in 12 days``, ``3 hours ago``; the exact instant, in the active time zone, on hover. Needs ``now`` in the context."""
    now: datetime = context["now"]
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', instant.astimezone(UTC).isoformat(), spelt_out(instant), relative(instant, now=now)
    )


@register.simple_tag
def on(instant: datetime, form: str = "j M Y") -> SafeString:
    """The date, or what ``form`` (Django's) says; the exact instant on hover."""
    local = timezone.localtime(instant)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', instant.astimezone(UTC).isoformat(), spelt_out(instant), date_format(local, form)
    )


def spelt_out(instant: datetime) -> str:
    """``1 April 2026, 00:00:00 UTC`` in the active time zone."""
    local = timezone.localtime(instant)
    return f"{date_format(local, 'j F Y, H:i:s')} {local.tzname()}"


def relative(instant: datetime, *, now: datetime) -> str:
    """How far ``instant`` is from ``now`` in its largest unit, cut to whole ones; beyond 60 days the date."""
    distance = abs(instant - now)
    if distance < timedelta(minutes=1):
        return "just now" if instant <= now else "in a moment"
    if distance >= timedelta(days=60):
        return date_format(timezone.localtime(instant), "j M Y")
    units = (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1)))
    name, unit = next((name, unit) for name, unit in units if distance >= unit)
    count = distance // unit
    text = f"{count}{NO_BREAK_SPACE}{name}{'s' if count > 1 else ''}"
    return f"{text} ago" if instant <= now else f"in {text}"


def _data(nanos: int, unit: Unit, text: str) -> SafeString:
    sign = "-" if nanos < 0 else ""
    value = exact(nanos, decimals=unit.decimals)
    return format_html('<data value="{}" title="{}{} {}">{}</data>', sign + value.replace(",", ""), sign, value, unit.code, text)
