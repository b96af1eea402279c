"""The catalog file: one TOML file has everything that a product sells and by which rules.

    parse      text → document, or every problem at once
    export     what the database has now → text
    diff       what applying a document would change
    apply      makes the database have it, in one transaction
    pull       changes single terms at once, as a lever of staff; what they are now: value

A *document* is the file as plain data in canonical form: amounts as decimal strings, defaults left out, tables in the order of the
export. So file and database are compared as documents, and ``export`` after ``apply`` gives a canonical file back byte for byte.

Terms are never edited: whatever decides a charge (a plan's price and allowances, a pack, a rate card, a price) gets a new version or row
from ``effective`` on. Policies of the product, cost tiers, guards and a plan's name, rank, visibility and guard are changed in place.

Where staff have pulled a **lever** (:class:`pricing.models.Lever`), a file that still says otherwise leaves those terms alone, and the
lines say so (``=``): a deployment must not undo what somebody did in an emergency. The lever ends when it is undone, or when a file says
the same.

What a change would sell below the product's **floor** is refused (:class:`BelowFloor`) unless a second person accepted it: see
:mod:`pricing.margin_terms`. The first catalog of a product is taken as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import tomli_w
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import connection, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange

from pricing import catalog, margin_terms, rating
from pricing.margin_lint import Finding
from pricing.models import (
    CREDIT_SOURCES,
    SLUG_PATTERN,
    CatalogChange,
    CostTier,
    CreditPack,
    Entitlement,
    Guard,
    GuardCap,
    Lever,
    Plan,
    PlanVersion,
    PriceRow,
    Product,
    RateCard,
    RateCardModel,
    RateCardPrice,
    Unit,
)
from pricing.rating import COMPONENTS, TOKEN_COMPONENTS

Document = dict[str, Any]
MAX_BYTES = 1024 * 1024
MAX_BIGINT = 2**63 - 1
MAX_INTEGER = 2**31 - 1
UNLIMITED = "unlimited"
_SECTIONS = ("product", "unit", "cost_tiers", "guards", "rate_cards", "plans", "packs")
CUSTOM = "custom"
METER = r"[a-z0-9][a-z0-9_-]{0,63}/(?:request|open|hour|day|period|lifetime|count)"


class InvalidCatalog(Exception):
    """The file cannot be applied. ``problems`` has one line for each thing wrong: where it is, and what was expected."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class BelowFloor(InvalidCatalog):
    """It would sell something below the product's floor, and for less than before. ``problems`` are the arithmetic of ``findings``."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__(margin_terms.report(findings))


class _Expected(Exception):
    """A value is not what its field takes; the text says what is."""


# ---------------------------------------------------------------------------------------------------------------------------
# The kinds of values: how each is written in a file, and what the database keeps


@dataclass(frozen=True)
class Kind:
    """``parse`` turns a file's value into a column's, or raises ``_Expected``; ``show`` is its inverse, given the unit's decimals."""

    parse: Callable[[Any], Any]
    show: Callable[[Any, int], Any] = lambda value, _decimals: value


def _decimal(value: Any, *, digits: int, expected: str, most: int = MAX_BIGINT) -> int:
    """A decimal string as an integer of 10⁻ᵈⁱᵍⁱᵗˢ, at most ``most``. Never through float, never rounded."""
    match = re.fullmatch(r"([0-9]{1,12})(?:\.([0-9]+))?", value) if isinstance(value, str) else None
    if match is None or len(match[2] or "") > digits:
        raise _Expected(expected)
    if re.fullmatch(r"9{5,}(\.9+)?", value):
        raise _Expected(f'a real amount; a limit that is none is written "{UNLIMITED}"')
    number = int(match[1] + (match[2] or "").ljust(digits, "0"))
    if number > most:
        raise _Expected(f"at most {most // 10**digits}")
    return number


def _show_decimal(number: int, digits: int, least: int) -> str:
    whole, part = divmod(number, 10**digits)
    shown = f"{part:0{digits}}".rstrip("0").ljust(least, "0")
    return f"{whole}.{shown}" if shown else str(whole)


def _amount(value: Any) -> int:
    return _decimal(value, digits=9, expected='an amount as a string with at most 9 decimals, e.g. "25.00"')


def _cents(value: Any) -> int:
    return _decimal(value, digits=2, expected='an amount as a string with at most 2 decimals, e.g. "25.00"', most=MAX_INTEGER)


def _percent(value: Any) -> int:
    return _decimal(value, digits=4, expected='a percentage as a string with at most 4 decimals, e.g. "2.9"', most=MAX_INTEGER)


def _multiplier(value: Any) -> int:
    number = _decimal(value, digits=6, expected='a factor as a string with at most 6 decimals, e.g. "5"', most=MAX_INTEGER)
    if number == 0:
        raise _Expected("a factor above 0")
    return number


def _or(word: str, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``word`` stands for NULL."""

    def parsed(value: Any) -> Any:
        if value == word:
            return None
        try:
            return parse(value)
        except _Expected as error:
            raise _Expected(f'{error}, or "{word}"') from None

    return parsed


def _show_or(word: str, show: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    return lambda value, decimals: word if value is None else show(value, decimals)


def _integer(least: int, most: int) -> Kind:
    def parse(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _Expected(f"a whole number from {least} to {most}")
        if re.fullmatch(r"9{5,}", str(value)):
            raise _Expected(f'a real number; a limit that is none is written "{UNLIMITED}"')
        return value

    return Kind(parse)


def _text(pattern: str, expected: str, most: int = 120) -> Kind:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > most or not re.fullmatch(pattern, value):
            raise _Expected(f"{expected}, at most {most} characters")
        return value

    return Kind(parse)


def _choice(*choices: str) -> Kind:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _Expected(f"one of {', '.join(choices)}")
        return value

    return Kind(parse)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Expected("true or false")
    return value


def _list(item: Kind) -> Kind:
    def parse(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _Expected("a list")
        parsed = [item.parse(entry) for entry in value]
        if len(set(parsed)) != len(parsed):
            raise _Expected("a list without repetitions")
        return parsed

    return Kind(parse, lambda values, decimals: [item.show(value, decimals) for value in values])


def _time_zone(value: Any) -> str:
    if not isinstance(value, str) or value not in zoneinfo.available_timezones():
        raise _Expected("a time zone, e.g. Europe/Berlin")
    return value


def _email(value: Any) -> str:
    try:
        validate_email(value)
    except (ValidationError, TypeError):
        raise _Expected("an email address") from None
    return str(value)


def _origin(value: Any) -> str:
    parts = urlsplit(value) if isinstance(value, str) and value.isprintable() and len(value) <= 200 else None
    local = parts is not None and parts.hostname in ("localhost", "127.0.0.1")
    if (
        parts is None
        or not parts.hostname
        or parts.username is not None
        or f"{parts.scheme}://{parts.netloc}" != value
        or parts.scheme not in (("https", "http") if local else ("https",))
    ):
        raise _Expected("an origin, e.g. https://app.example.com")
    return str(value)


def _model(value: Any) -> str:
    try:
        catalog.split_model(value)
    except (catalog.InvalidModel, AttributeError):
        raise _Expected("provider:model") from None
    return str(value)


SLUG = _text(SLUG_PATTERN, "lower-case letters, digits, - and _", 64)
NAME = _text(r".*\S.*", "a text")
SETTING = _text(r"[A-Z][A-Z0-9_]*", "the name of an environment variable", 80)
NOTES = _text(r".*\S.*", "a text", 2000)
USD = Kind(_amount, lambda nanos, _decimals: _show_decimal(nanos, 9, 2))
UNIT_AMOUNT = Kind(_amount, lambda nanos, decimals: _show_decimal(nanos, 9, decimals))
CENTS = Kind(_cents, lambda cents, _decimals: _show_decimal(cents, 2, 2))
PERCENT = Kind(_percent, lambda ppm, _decimals: _show_decimal(ppm, 4, 0))
FACTOR = Kind(_multiplier, lambda ppm, _decimals: _show_decimal(ppm, 6, 0))
BOOLEAN = Kind(_flag)
USD_OR_UNLIMITED = Kind(_or(UNLIMITED, _amount), _show_or(UNLIMITED, USD.show))
UNIT_OR_UNLIMITED = Kind(_or(UNLIMITED, _amount), _show_or(UNLIMITED, UNIT_AMOUNT.show))
CENTS_OR_CUSTOM = Kind(_or(CUSTOM, _cents), _show_or(CUSTOM, CENTS.show))
COUNT = _integer(0, MAX_INTEGER)
COUNT_OR_UNLIMITED = Kind(_or(UNLIMITED, COUNT.parse), _show_or(UNLIMITED, COUNT.show))
LIMIT = Kind(_or(UNLIMITED, _integer(0, MAX_BIGINT).parse), _show_or(UNLIMITED, COUNT.show))
CURRENCY = _choice("usd", "eur", "gbp")

# ---------------------------------------------------------------------------------------------------------------------------
# The fields of each table

REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """A key of a table and its column. An optional key is left out of the document when it has its default."""

    key: str
    column: str
    kind: Kind
    default: Any = REQUIRED


PRODUCT = (
    Field("slug", "slug", SLUG),
    Field("name", "name", NAME),
    Field("default_plan", "default_plan", SLUG),
    Field("guest_plan", "guest_plan", SLUG, ""),
    Field("guard", "guard", SLUG, ""),
    Field("time_zone", "time_zone", Kind(_time_zone), "UTC"),
    Field("visibility", "visibility", _choice(*Product.Visibility.values)),
    Field("overage", "overage", _choice(*Product.Overage.values)),
    Field("late_charging", "late_charging", _choice(*Product.LateCharging.values)),
    Field("late_charging_max_hours", "late_charging_max_hours", _integer(0, 24 * 365), 48),
    Field("hold_lifetime_seconds", "hold_lifetime_seconds", _integer(1, 86_400), 900),
    Field("hold_max_seconds", "hold_max_seconds", _integer(1, 86_400), 86_400),
    Field("grace_days", "grace_days", _integer(0, 90), 7),
    Field("minimum_balance", "minimum_balance_nanos", UNIT_AMOUNT, 0),
    Field("work_in_debt", "work_in_debt", BOOLEAN, False),
    Field("max_request_tokens", "max_request_tokens", _integer(1, MAX_INTEGER), None),
    Field("enforced_meters", "enforced_meters", _list(_text(METER, 'a meter and its window, e.g. "messages/day"', 80)), []),
    Field("welcome_credit", "welcome_credit_nanos", UNIT_AMOUNT, 0),
    Field("announcement_credit", "announcement_credit_nanos", UNIT_AMOUNT, 0),
    Field("staff_credit_cap", "staff_credit_cap_nanos", UNIT_AMOUNT, None),
    Field("burn_order", "burn_order", _list(_choice(*CREDIT_SOURCES))),
    Field("allowed_origins", "allowed_origins", _list(Kind(_origin)), []),
    Field("support_email", "support_email", Kind(_email), ""),
    Field("brand_colour", "brand_colour", _text(r"#[0-9a-f]{6}", "a colour such as #1a2b3c", 7), ""),
    Field("target_margin_percent", "target_margin_ppm", PERCENT, None),
    Field("alert_margin_percent", "alert_margin_ppm", PERCENT, None),
    Field("floor_margin_percent", "floor_margin_ppm", PERCENT, None),
    Field("payment_fee_percent", "payment_fee_ppm", PERCENT, 0),
    Field("payment_fee", "payment_fee_cents", CENTS, 0),
    Field("expected_model", "expected_model", Kind(_model), ""),
    Field("expected_input_percent", "expected_input_ppm", PERCENT, 600_000),
    Field("notes", "notes", NOTES, ""),
)
UNIT = (
    Field("code", "code", _text(r"USD|[a-z0-9_-]+\.[a-z0-9_-]+", '"USD" or "<product>.<name>"', 64)),
    Field("name", "name", _text(r".*\S.*", "a text", 64)),
    Field("decimals", "decimals", _integer(0, 9)),
)
COST_TIER = (
    Field("monthly_cost", "monthly_cost_nanos", USD_OR_UNLIMITED),
    Field("daily_cost", "daily_cost_nanos", USD_OR_UNLIMITED),
    Field("requests_per_hour", "requests_per_hour", COUNT_OR_UNLIMITED),
    Field("throttle_on_exceed", "throttle_on_exceed", BOOLEAN, True),
    Field("warn_at_percent", "warn_at_ppm", _list(PERCENT), []),
    Field("target_margin_percent", "target_margin_ppm", PERCENT, None),
    Field("staff_only", "staff_only", BOOLEAN, False),
    Field("notes", "notes", NOTES, ""),
)
GUARD = (
    Field("mode", "mode", _choice(*Guard.Mode.values), "hard"),
    Field("window_minutes", "window_minutes", _integer(1, 60), 10),
    Field("floor", "floor_nanos", UNIT_AMOUNT, None),
    Field("warn_at", "warn_at_ppm", FACTOR, None),
    Field("degrade_at", "degrade_at_ppm", FACTOR, None),
    Field("slow_at", "slow_at_ppm", FACTOR, None),
    Field("block_at", "block_at_ppm", FACTOR, None),
    Field("warn_empty_minutes", "warn_empty_minutes", _integer(1, 100_000), None),
    Field("release_below_percent", "release_below_ppm", PERCENT, 500_000),
    Field("calm_minutes", "calm_minutes", _integer(1, 1440), 10),
    Field("block_minutes", "block_minutes", _integer(1, 1440), 30),
    Field("slow_per_minute", "slow_per_minute", _integer(1, 1000), 6),
    Field("dear_models", "dear_models", _choice(*Guard.Dear.values), "refuse"),
    Field("cheaper_models", "cheaper_models", _list(Kind(_model)), []),
    Field("notes", "notes", NOTES, ""),
)
STEPS = ("warn_at", "degrade_at", "slow_at", "block_at")
RATE_CARD = (
    Field("mode", "mode", _choice(*RateCard.Mode.values)),
    Field("markup_percent", "markup_ppm", PERCENT, 0),
    Field("tokens_per_credit", "tokens_per_credit", _integer(1, MAX_INTEGER), None),
    Field("default_multiplier", "default_multiplier_ppm", FACTOR, None),
    Field("quantum", "quantum_nanos", UNIT_AMOUNT, 1),
    Field("minimum", "minimum_nanos", UNIT_AMOUNT, 0),
    Field("credit_value", "credit_value_nanos", USD, 1_000_000_000),
    Field("notes", "notes", NOTES, ""),
)
PLAN = (
    Field("name", "name", NAME),
    Field("rank", "rank", _integer(0, 1000)),
    Field("public", "public", BOOLEAN, True),
    Field("member_plan", "member_plan", SLUG, ""),
    Field("guard", "guard", SLUG, ""),
)
PLAN_VERSION = (
    Field("price", "price_cents", CENTS_OR_CUSTOM),
    Field("currency", "currency", CURRENCY, "usd"),
    Field("interval", "interval", _choice(*PlanVersion.Interval.values), "month"),
    Field("per_seat", "per_seat", BOOLEAN, False),
    Field("trial_days", "trial_days", _integer(0, 730), 0),
    Field("included_credit", "included_credit_nanos", UNIT_AMOUNT),
    Field("rollover_cap", "rollover_cap_nanos", UNIT_OR_UNLIMITED, None),
    Field("rollover_periods", "rollover_periods", _integer(0, 120), 0),
    Field("rate_card", "rate_card", SLUG),
    Field("alternative_rate_cards", "alternative_rate_cards", _list(SLUG), []),
    Field("cost_tier", "cost_tier", SLUG, None),
    Field("stripe_product", "stripe_product", NAME, ""),
    Field("stripe_price_setting", "stripe_price_setting", SETTING, ""),
    Field("legacy_price", "legacy_price_cents", CENTS, None),
    Field("charge_automatically", "charge_automatically", BOOLEAN, True),
    Field("notes", "notes", NOTES, ""),
)
PACK = (
    Field("name", "name", NAME),
    Field("price", "price_cents", CENTS),
    Field("currency", "currency", CURRENCY, "usd"),
    Field("credit", "credit_nanos", UNIT_AMOUNT),
    Field("expires_after_days", "expires_after_days", _integer(1, 36_500), None),
    Field("stripe_price_setting", "stripe_price_setting", SETTING, ""),
    Field("notes", "notes", NOTES, ""),
)
PRICE = (
    Field("provider", "provider", _text(r"[^\s:]+", "a provider's name without spaces or colons", 64)),
    Field("model", "model", _text(r"\S+", "a name without spaces", 128)),
    Field("component", "component", _choice(*(name for name in COMPONENTS if name not in TOKEN_COMPONENTS))),
    Field("price", "price_nanos", USD),
    Field("per", "per_units", _integer(1, 10**12), 1),
    Field("source", "source", _text(r".*\S.*", "a text that says where the figure comes from", 200)),
)
ENTITLEMENT_TEXT = NAME
MODE = _choice(*Entitlement.Mode.values)
RETAIL_PER = _integer(1, 10**12)
PRICED_PER = 1_000_000

# ---------------------------------------------------------------------------------------------------------------------------
# Text → document


def parse(text: bytes) -> Document:
    """The document of a file.

    :raises InvalidCatalog: with every problem found; a syntax error hides what comes after it.
    """
    if len(text) > MAX_BYTES:
        raise InvalidCatalog([f"the file has {len(text)} bytes; expected at most {MAX_BYTES}"])
    try:
        raw = tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise InvalidCatalog([f"line {line}: not UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidCatalog([f"not TOML: {error}"]) from None
    except RecursionError:
        raise InvalidCatalog(["not TOML: nested too deeply"]) from None
    except ValueError:  # Python's own: int() refuses thousands of digits
        raise InvalidCatalog(["not TOML: a number has too many digits"]) from None
    return _Reader().read(raw)


def _found(value: Any) -> str:
    """A wrong value in at most 80 characters, whatever it is."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else f"a list of {len(value)}"
    if type(value) is int and abs(value) > MAX_BIGINT:
        return "a larger number"
    return json.dumps(value, default=str, ensure_ascii=False)[:80]


class _NoTable(dict[str, Any]):
    """Stands for a table that is not there."""


class _Reader:
    """Checks a raw file against the tables above and turns it into canonical form, collecting problems on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.decimals = 2

    def read(self, raw: dict[str, Any]) -> Document:
        sections = ("product", "unit", "cost_tiers", "guards", "rate_cards", "plans", "packs", "prices")
        self.refuse_unknown("", raw, sections)
        unit = self.fields("unit", self.table("unit", raw.get("unit")), UNIT)
        if isinstance(unit.get("decimals"), int):
            self.decimals = unit["decimals"]
        document: Document = {"product": self.fields("product", self.table("product", raw.get("product")), PRODUCT), "unit": unit}
        document["cost_tiers"] = self.each("cost_tiers", raw, lambda path, table: self.fields(path, table, COST_TIER))
        document["guards"] = self.each("guards", raw, self.guard)
        document["rate_cards"] = self.each("rate_cards", raw, self.rate_card)
        document["plans"] = self.each("plans", raw, self.plan)
        document["packs"] = self.each("packs", raw, lambda path, table: self.fields(path, table, PACK))
        document["prices"] = self.prices(raw.get("prices", []))
        if not self.problems:
            self.check(document)
        if self.problems:
            raise InvalidCatalog(self.problems)
        return _ordered(document)

    def problem(self, path: str, expected: str, found: Any = None) -> None:
        self.problems.append(f"{path}: expected {expected}" + ("" if found is None else f"; found {_found(found)}"))

    def table(self, path: str, raw: Any) -> dict[str, Any]:
        """``raw`` if it is a table; otherwise a problem, and a table whose keys cause no further ones."""
        if isinstance(raw, dict):
            return raw
        self.problem(path, "a table", raw)
        return _NoTable()

    def refuse_unknown(self, path: str, raw: dict[str, Any], known: tuple[str, ...]) -> None:
        for key in raw:
            if key not in known:
                self.problem(f"{path}.{key}".lstrip("."), f"one of {', '.join(known)}; this key is unknown")

    def each(self, section: str, raw: dict[str, Any], read: Callable[[str, dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        found = {}
        for slug, table in self.table(section, raw.get(section, {})).items():
            path = f"{section}.{slug}"
            self.value(path, slug, SLUG)
            found[slug] = read(path, self.table(path, table))
        return found

    def value(self, path: str, value: Any, kind: Kind) -> Any:
        """The canonical form of a value, None after a problem."""
        try:
            return kind.show(kind.parse(value), self.decimals)
        except _Expected as error:
            self.problem(path, str(error), value)
            return None

    def fields(self, path: str, raw: dict[str, Any], fields: tuple[Field, ...], also: tuple[str, ...] = ()) -> dict[str, Any]:
        self.refuse_unknown(path, raw, (*(field.key for field in fields), *also))
        found = {}
        for field in fields:
            if field.key not in raw:
                if field.default is REQUIRED and not isinstance(raw, _NoTable):
                    self.problem(f"{path}.{field.key}", "a value; this key is required")
                continue
            value = self.value(f"{path}.{field.key}", raw[field.key], field.kind)
            if field.default is REQUIRED or value != _shown_default(field, self.decimals):
                found[field.key] = value
        return found

    def guard(self, path: str, raw: dict[str, Any]) -> dict[str, Any]:
        guard = self.fields(path, raw, GUARD, also=("caps",))
        caps, kinds = {}, tuple(GuardCap.Kind.values)
        tables = self.table(f"{path}.caps", raw.get("caps", {}))
        self.refuse_unknown(f"{path}.caps", tables, kinds)
        for kind in kinds:
            if kind in tables:
                caps[kind] = self.caps(f"{path}.caps.{kind}", self.table(f"{path}.caps.{kind}", tables[kind]))
        return guard | ({"caps": caps} if caps else {})

    def caps(self, path: str, raw: dict[str, Any]) -> dict[str, Any]:
        spans = tuple(GuardCap.Span.values)
        self.refuse_unknown(path, raw, spans)
        if not raw and not isinstance(raw, _NoTable):
            self.problem(path, f"a cap for at least one of {', '.join(spans)}")
        return {span: self.value(f"{path}.{span}", raw[span], UNIT_AMOUNT) for span in spans if span in raw}

    def rate_card(self, path: str, raw: dict[str, Any]) -> dict[str, Any]:
        card = self.fields(path, raw, RATE_CARD, also=("multipliers", "markup_percents", "prices"))
        for key, kind in (("multipliers", FACTOR), ("markup_percents", PERCENT)):
            if key in raw:
                card[key] = {
                    self.model(f"{path}.{key}", model): self.value(f"{path}.{key}.{model}", value, kind)
                    for model, value in self.table(f"{path}.{key}", raw[key]).items()
                }
        if "prices" in raw:
            card["prices"] = {
                self.model(f"{path}.prices", model): self.retail(f"{path}.prices.{model}", prices)
                for model, prices in self.table(f"{path}.prices", raw["prices"]).items()
            }
        return card

    def model(self, path: str, model: str) -> str:
        try:
            catalog.split_model(model)
        except catalog.InvalidModel:
            self.problem(path, "provider:model", model)
        return model

    def retail(self, path: str, raw: Any) -> dict[str, Any]:
        table = self.table(path, raw)
        self.refuse_unknown(path, table, ("per", *COMPONENTS))
        found = {key: self.value(f"{path}.{key}", value, UNIT_AMOUNT) for key, value in table.items() if key in COMPONENTS}
        if not found and not isinstance(table, _NoTable):
            self.problem(path, "at least one price")
        per = self.value(f"{path}.per", table.get("per", PRICED_PER), RETAIL_PER)
        return found if per == PRICED_PER else {"per": per} | found

    def plan(self, path: str, raw: dict[str, Any]) -> dict[str, Any]:
        plan = self.fields(path, raw, PLAN + PLAN_VERSION, also=("entitlements",))
        entitlements: dict[str, Any] = {}
        for key, value in self.table(f"{path}.entitlements", raw.get("entitlements", {})).items():
            here = f"{path}.entitlements.{key}"
            self.value(here, key, SLUG)
            if isinstance(value, dict):
                entitlements[key] = self.limits(here, value)
            elif isinstance(value, bool):
                entitlements[key] = value
            elif isinstance(value, str):
                entitlements[key] = self.value(here, value, ENTITLEMENT_TEXT)
            else:
                self.problem(here, "true, false, a text, or a table of limits such as {day = 100}", value)
        if entitlements:
            plan["entitlements"] = entitlements
        return plan

    def limits(self, path: str, raw: dict[str, Any]) -> dict[str, Any]:
        windows = tuple(Entitlement.Window.values)
        self.refuse_unknown(path, raw, (*windows, "mode", "setting"))
        found = {window: self.value(f"{path}.{window}", raw[window], LIMIT) for window in windows if window in raw}
        if not found:
            self.problem(path, f"a limit for at least one of {', '.join(windows)}")
        mode = self.value(f"{path}.mode", raw.get("mode", Entitlement.Mode.HARD.value), MODE)
        if mode != Entitlement.Mode.HARD:
            found["mode"] = mode
        if "setting" in raw:
            found["setting"] = self.setting(f"{path}.setting", raw["setting"], windows=len(found.keys() & set(windows)))
        return found

    def setting(self, path: str, raw: Any, *, windows: int) -> Any:
        """The environment variable that replaces a limit; what it says here is checked too, before anything relies on it."""
        if windows > 1:
            self.problem(path, "one window beside it; the variable has one number")
        name = self.value(path, raw, SETTING)
        if name is not None:
            try:
                catalog.overridden(limit=None, setting=name)
            except catalog.InvalidSetting as error:
                self.problems.append(f"{path}: {error}")
        return name

    def prices(self, raw: Any) -> list[dict[str, Any]]:
        if not isinstance(raw, list):
            self.problem("prices", "tables written as [[prices]]", raw)
            return []
        return [self.fields(f"prices[{index}]", self.table(f"prices[{index}]", row), PRICE) for index, row in enumerate(raw)]

    def check(self, document: Document) -> None:
        """What no single value can say."""
        product, plans, cards = document["product"], document["plans"], document["rate_cards"]
        self.check_product(product, document["unit"])
        self.check_guest_plan(product.get("guest_plan"), plans, cards)
        if product["default_plan"] not in plans:
            self.problem("product.default_plan", f"a plan of this file ({', '.join(plans) or 'there is none'})", product["default_plan"])
        ranks: dict[int, str] = {}
        for slug, plan in plans.items():
            path = f"plans.{slug}"
            if plan["rank"] in ranks:
                self.problem(f"{path}.rank", f"another rank than plans.{ranks[plan['rank']]} has", plan["rank"])
            ranks[plan["rank"]] = slug
            for card in (plan["rate_card"], *plan.get("alternative_rate_cards", ())):
                if card not in cards:
                    self.problem(f"{path}.rate_card", f"a rate card of this file ({', '.join(cards) or 'there is none'})", card)
            if plan.get("member_plan", slug) not in plans.keys() - ({slug} if "member_plan" in plan else set()):
                self.problem(f"{path}.member_plan", "another plan of this file", plan["member_plan"])
            tier = plan.get("cost_tier")
            if tier is not None and tier not in document["cost_tiers"]:
                self.problem(f"{path}.cost_tier", "a cost tier of this file", tier)
            if plan.get("guard") not in (None, *document["guards"]):
                self.problem(f"{path}.guard", "a guard of this file", plan["guard"])
            if "rollover_cap" in plan and not plan.get("rollover_periods"):
                self.problem(f"{path}.rollover_cap", "rollover_periods above 0 beside it")
        if product.get("guard") not in (None, *document["guards"]):
            self.problem("product.guard", "a guard of this file", product["guard"])
        for slug, guard in document["guards"].items():
            self.check_guard(f"guards.{slug}", guard)
        for slug, card in cards.items():
            self.check_rate_card(f"rate_cards.{slug}", card)
        for slug, pack in document["packs"].items():
            for key in ("price", "credit"):
                if not _amount(pack[key]):
                    self.problem(f"packs.{slug}.{key}", "more than 0", pack[key])
        keys = [_price_key(row) for row in document["prices"]]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                self.problem(f"prices[{index}]", f"one price for {key}; there is one before")

    def check_product(self, product: dict[str, Any], unit: dict[str, Any]) -> None:
        if unit["code"] != "USD" and not unit["code"].startswith(f"{product['slug']}."):
            self.problem("unit.code", f'"USD" or "{product["slug"]}.<name>"', unit["code"])
        if unit["code"] == "USD" and (unit["name"], unit["decimals"]) != ("US dollar", 2):
            self.problem("unit", 'the name "US dollar" and 2 decimals for USD')
        if product.get("hold_max_seconds", 86_400) < product.get("hold_lifetime_seconds", 900):
            self.problem("product.hold_max_seconds", "at least hold_lifetime_seconds", product["hold_max_seconds"])
        if _percent(product.get("expected_input_percent", "60")) > 1_000_000:
            self.problem("product.expected_input_percent", "at most 100", product["expected_input_percent"])

    def check_guest_plan(self, slug: str | None, plans: dict[str, Any], cards: dict[str, Any]) -> None:
        """A guest has no balance, so nothing may be charged or granted; the plan is for nobody else."""
        if slug is None:
            return
        plan = plans.get(slug)
        if plan is None:
            self.problem("product.guest_plan", f"a plan of this file ({', '.join(plans)})", slug)
            return
        if cards.get(plan["rate_card"], {}).get("mode") not in (RateCard.Mode.INCLUDED, RateCard.Mode.BYO):
            self.problem(f"plans.{slug}.rate_card", "a card of mode included or byo; guests have no balance", plan["rate_card"])
        if plan["price"] == CUSTOM or _cents(plan["price"]) or _amount(plan["included_credit"]):
            self.problem(f"plans.{slug}", 'the price "0.00" and no included_credit; it is the guest plan')
        if plan.get("public", True):
            self.problem(f"plans.{slug}.public", "false; guests are put on it and nobody buys it")

    def check_guard(self, path: str, guard: dict[str, Any]) -> None:
        """A higher step begins later, no step is ordinary use, and none begins at nothing."""
        steps = [(key, _multiplier(guard[key])) for key in STEPS if key in guard]
        if steps and not all(later > earlier for (_, earlier), (_, later) in itertools.pairwise([("", 1_000_000), *steps])):
            self.problem(path, f"factors above 1 in rising order for {', '.join(key for key, _ in steps)}")
        if (steps or "warn_empty_minutes" in guard) and not _amount(guard.get("floor", "0")):
            self.problem(f"{path}.floor", "an amount above 0; below it nothing is unusual")
        if not 0 < _percent(guard.get("release_below_percent", "50")) < 1_000_000:
            self.problem(f"{path}.release_below_percent", "more than 0 and less than 100", guard["release_below_percent"])
        if "floor" in guard and not _amount(guard["floor"]) and not steps:
            self.problem(f"{path}.floor", "an amount above 0", guard["floor"])

    def check_rate_card(self, path: str, card: dict[str, Any]) -> None:
        mode = card["mode"]
        for key, only in (
            ("markup_percent", "markup"),
            ("markup_percents", "markup"),
            ("tokens_per_credit", "credit_rate"),
            ("default_multiplier", "credit_rate"),
            ("multipliers", "credit_rate"),
            ("prices", "price_book"),
        ):
            if key in card and mode != only:
                self.problem(f"{path}.{key}", f"nothing; only mode {only} has it and this card's is {mode}")
        for key, only in (("tokens_per_credit", "credit_rate"), ("prices", "price_book")):
            if mode == only and not card.get(key):
                self.problem(f"{path}.{key}", f"a value; mode {only} requires it")
        quantum, minimum = _amount(card.get("quantum", "0.000000001")), _amount(card.get("minimum", "0"))
        if quantum == 0:
            self.problem(f"{path}.quantum", "more than 0")
        elif minimum % quantum:
            self.problem(f"{path}.minimum", "a multiple of quantum", card["minimum"])
        if _amount(card.get("credit_value", "1")) == 0:
            self.problem(f"{path}.credit_value", "more than 0")


def _shown_default(field: Field, decimals: int) -> Any:
    """A default in canonical form. NULL means left out, unless the kind has a word for it."""
    try:
        return field.kind.show(field.default, decimals)
    except TypeError:
        return None


def _ordered(document: Document) -> Document:
    """The one order of a document, whatever order the file or the database had. Empty sections are left out."""
    ordered = dict(document)
    ordered["cost_tiers"] = dict(sorted(document["cost_tiers"].items()))
    ordered["guards"] = dict(sorted(document["guards"].items()))
    ordered["rate_cards"] = {slug: _ordered_card(card) for slug, card in sorted(document["rate_cards"].items())}
    ordered["plans"] = {
        slug: plan | ({"entitlements": dict(sorted(plan["entitlements"].items()))} if "entitlements" in plan else {})
        for slug, plan in sorted(document["plans"].items(), key=lambda item: item[1]["rank"])
    }
    ordered["packs"] = dict(sorted(document["packs"].items(), key=lambda item: (_cents(item[1]["price"]), item[0])))
    ordered["prices"] = sorted(document["prices"], key=_price_key)
    return {section: content for section, content in ordered.items() if content}


def _ordered_card(card: dict[str, Any]) -> dict[str, Any]:
    models = {key: dict(sorted(card[key].items())) for key in ("multipliers", "markup_percents", "prices") if card.get(key)}
    if "prices" in models:
        order = ("per", *COMPONENTS)
        models["prices"] = {
            model: dict(sorted(prices.items(), key=lambda item: order.index(item[0]))) for model, prices in models["prices"].items()
        }
    return {key: value for key, value in card.items() if key not in ("multipliers", "markup_percents", "prices")} | models


def _price_key(row: Mapping[str, Any]) -> str:
    return f"{row['provider']}:{row['model']} {row['component']}"


# ---------------------------------------------------------------------------------------------------------------------------
# Database → document → text


def export(*, slug: str) -> bytes:
    """The catalog file of a product as the database has it, versions that are scheduled for later included.

    :raises catalog.NotInCatalog: no such product.
    """
    document = current(slug=slug)
    if document is None:
        raise catalog.NotInCatalog(f"There is no product {slug!r}.")
    return tomli_w.dumps(document).encode()


def current(*, slug: str) -> Document | None:
    """The document of a product, None if there is no such product."""
    product = Product.objects.select_related("unit").filter(slug=slug).first()
    if product is None:
        return None
    decimals = product.unit.decimals
    plans = {}
    for plan in Plan.objects.filter(product=product, available=True):
        version = plan.versions.select_related("cost_tier").order_by("-valid_from").first()
        if version is not None:
            plans[plan.slug] = _shown(plan, PLAN, decimals) | _plan_version_document(version, decimals)
    return _ordered(
        {
            "product": _shown(product, PRODUCT, decimals),
            "unit": _shown(product.unit, UNIT, decimals),
            "cost_tiers": {tier.slug: _shown(tier, COST_TIER, decimals) for tier in CostTier.objects.filter(product=product)},
            "guards": {guard.slug: _guard_document(guard, decimals) for guard in Guard.objects.filter(product=product)},
            "rate_cards": {card.slug: _card_document(card, decimals) for card in _latest(RateCard, product)},
            "plans": plans,
            "packs": {pack.slug: _shown(pack, PACK, decimals) for pack in _latest(CreditPack, product) if pack.available},
            "prices": [_shown(row, PRICE, decimals) for row in _carried(product.slug).values()],
        }
    )


def shown_card(row: RateCard, decimals: int) -> dict[str, Any]:
    """The table of one version of a rate card."""
    return _card_document(row, decimals)


def shown_pack(row: CreditPack, decimals: int) -> dict[str, Any]:
    """The table of one version of a pack."""
    return _shown(row, PACK, decimals)


def tier_columns(table: dict[str, Any]) -> dict[str, Any]:
    """The columns of a cost tier of this table. :raises InvalidCatalog: a value that no file may have."""
    try:
        return _columns(table, COST_TIER)
    except _Expected as error:
        raise InvalidCatalog([f"expected {error}"]) from error


def pack_columns(table: dict[str, Any]) -> dict[str, Any]:
    """The columns of a pack of this table, which a parsed document has."""
    return _columns(table, PACK)


def product_columns(table: dict[str, Any]) -> dict[str, Any]:
    """The columns of the product of a parsed document."""
    return _columns(table, PRODUCT)


def shown_plan_version(version: PlanVersion, decimals: int) -> dict[str, Any]:
    """The table of one version of a plan, without the plan's own name and rank."""
    return _plan_version_document(version, decimals)


def card_terms(table: dict[str, Any]) -> rating.RateCard:
    """A rate card of a parsed document, ready to rate with; it is no row, and its id is 0."""
    columns = _columns(table, RATE_CARD)
    columns.pop("notes")
    retail = {
        model: rating.compile_table(
            rating.Price(component, _amount(price), prices.get("per", PRICED_PER))
            for component, price in prices.items()
            if component != "per"
        )
        for model, prices in table.get("prices", {}).items()
    }
    return rating.RateCard(
        id=0,
        **columns,
        markups={model: PERCENT.parse(said) for model, said in table.get("markup_percents", {}).items()},
        multipliers={model: FACTOR.parse(said) for model, said in table.get("multipliers", {}).items()},
        retail=retail,
    )


def _shown(row: Any, fields: tuple[Field, ...], decimals: int) -> dict[str, Any]:
    found = {}
    for field in fields:
        value = getattr(row, field.column)
        if isinstance(value, CostTier):
            value = value.slug
        if field.default is REQUIRED or value != field.default:
            found[field.key] = field.kind.show(value, decimals)
    return found


def _plan_version_document(version: PlanVersion, decimals: int) -> dict[str, Any]:
    entitlements: dict[str, Any] = {}
    for row in version.entitlements.all():
        if row.kind == Entitlement.Kind.FLAG:
            entitlements[row.key] = bool(row.enabled)
        elif row.kind == Entitlement.Kind.TEXT:
            entitlements[row.key] = row.text
        else:
            limits = entitlements.setdefault(row.key, {})
            limits[row.window] = LIMIT.show(row.limit, decimals)
            if row.mode != Entitlement.Mode.HARD:
                limits["mode"] = row.mode
            if row.setting:
                limits["setting"] = row.setting
    order = (*Entitlement.Window.values, "mode", "setting")
    entitlements = {
        key: dict(sorted(value.items(), key=lambda item: order.index(item[0]))) if isinstance(value, dict) else value
        for key, value in entitlements.items()
    }
    return _shown(version, PLAN_VERSION, decimals) | ({"entitlements": entitlements} if entitlements else {})


def _guard_document(guard: Guard, decimals: int) -> dict[str, Any]:
    rows = {(cap.kind, cap.span): UNIT_AMOUNT.show(cap.most_nanos, decimals) for cap in guard.caps.all()}
    caps = {
        kind: {span: rows[kind, span] for span in GuardCap.Span.values if (kind, span) in rows}
        for kind in GuardCap.Kind.values
        if any(capped == kind for capped, _ in rows)
    }
    return _shown(guard, GUARD, decimals) | ({"caps": caps} if caps else {})


def _card_document(card: RateCard, decimals: int) -> dict[str, Any]:
    document = _shown(card, RATE_CARD, decimals)
    document["multipliers"] = {str(row): FACTOR.show(row.multiplier_ppm, 0) for row in card.models.all() if row.multiplier_ppm is not None}
    document["markup_percents"] = {str(row): PERCENT.show(row.markup_ppm, 0) for row in card.models.all() if row.markup_ppm is not None}
    prices: dict[str, dict[str, Any]] = {}
    for row in card.prices.all():
        retail = prices.setdefault(f"{row.provider}:{row.model}", {})
        retail[row.component] = UNIT_AMOUNT.show(row.price_nanos, decimals)
        if row.per_units != PRICED_PER:
            retail["per"] = row.per_units
    document["prices"] = prices
    return _ordered_card({key: value for key, value in document.items() if value != {}})


def _latest(model: Any, product: Product) -> list[Any]:
    """The newest version of each slug, scheduled ones included."""
    return list(model.objects.filter(product=product).order_by("slug", "-valid_from").distinct("slug"))


def _carried(slug: str) -> dict[str, PriceRow]:
    """The open price rows that this product's catalog carries."""
    rows = PriceRow.objects.filter(catalog=slug, withdrawn_at=None, valid__upper_inf=True)
    return {f"{row.provider}:{row.model} {row.component}": row for row in rows}


# ---------------------------------------------------------------------------------------------------------------------------
# Document → database


def diff(document: Document) -> list[str]:
    """What applying would change, a line each: ``+`` comes, ``-`` goes, ``~`` changes; ``=`` stays as a lever has it. Empty when the
    database has it already."""
    document, kept, _ = _with_levers(document)
    return [*kept, *_changes(document)]


def _changes(document: Document) -> list[str]:
    before = dict(_flat(current(slug=document["product"]["slug"]) or {}))
    after = dict(_flat(document))
    lines = []
    for path in [*after, *(path for path in before if path not in after)]:
        old, new = before.get(path), after.get(path)
        if path not in before:
            lines.append(f"+ {path} = {_written(new)}")
        elif path not in after:
            lines.append(f"- {path} = {_written(old)}")
        elif old != new:
            lines.append(f"~ {path} = {_written(old)} → {_written(new)}")
    return lines


def value(document: Document, path: Sequence[str]) -> Any:
    """What a document says there, None where it leaves it out."""
    found: Any = document
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def with_value(document: Document, path: Sequence[str], said: Any) -> Document:
    """The document that says ``said`` there; None is left out. Where it has no such table it stays as it is."""
    if len(path) > 1:
        inner = document.get(path[0])
        return document | {path[0]: with_value(inner, path[1:], said)} if isinstance(inner, dict) else document
    return {key: old for key, old in document.items() if key != path[0]} | ({path[0]: said} if said is not None else {})


def _with_levers(document: Document) -> tuple[Document, list[str], list[int]]:
    """The document with the terms of the levers in force, a line for each that the file says otherwise, and the levers that it agrees
    with: they are over."""
    said = document
    levers = list(Lever.objects.filter(product__slug=document["product"]["slug"], undone_at=None, adopted_at=None).order_by("pk"))
    latest = {tuple(path): (after, lever) for lever in levers for path, _, after in lever.changes}
    kept = []
    for path, (after, lever) in latest.items():
        there = value(said, path)
        if there != after and value(said, path[:-1]) is not None:
            document = with_value(document, path, after)
            why = f"{lever.actor} pulled a lever on {lever.pulled_at:%Y-%m-%d %H:%M} UTC"
            kept.append(f"= {'.'.join(path)} = {_written(after)} stays ({why}); the file says {_written(there)}")
    agreed = [lever.pk for lever in levers if all(value(said, path) == latest[tuple(path)][0] for path, _, _ in lever.changes)]
    if kept:
        document = _ordered({section: document.get(section, {}) for section in _SECTIONS} | {"prices": document.get("prices", [])})
    return document, kept, agreed


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _flat(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            name = f'"{key}"' if re.search(r"[^\w-]", key) else key
            yield from _flat(value, f"{path}.{name}" if path else name)
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        for row in content:
            yield from _flat(row, f"{path}[{_price_key(row)}]")
    else:
        yield path, content


@transaction.atomic
def apply(document: Document, *, actor: str, effective: datetime | None = None, accepted: bool = False) -> list[str]:
    """Make the database have ``document``; the lines of :func:`diff`. Applying it again changes nothing.

    :param accepted: a second person accepted what it sells below the floor.
    :param effective: when new terms begin; by default now, by the database's clock. What exists already is never changed into the
        past: only the first version of something may begin before now.
    :raises InvalidCatalog: the document contradicts what must not change (unit, a removed rate card or cost tier, a scheduled version,
        a price that another catalog or the import carries).
    :raises BelowFloor: see there.
    """
    now = alone()
    document, kept, agreed = _with_levers(document)
    lines = _changes(document)
    before = current(slug=document["product"]["slug"]) if lines and not accepted else None
    if before is not None:
        _hold_floor(before, document, effective or now)
    Lever.objects.filter(pk__in=agreed).update(adopted_at=now)
    if lines:
        _write(document, lines, actor=actor, now=now, effective=effective or now)
    return [*kept, *lines]


@transaction.atomic
def pull(slug: str, changes: Iterable[tuple[Sequence[str], Any]], *, actor: str, accepted: bool = False) -> list[str]:
    """Changes single terms of a product from now on, each a path and what the file would say there; the lines of :func:`diff`.

    The caller writes the lever down, in the same transaction.

    :param accepted: a second person accepted what it sells below the floor; or it is taken back to what was in force.
    :raises InvalidCatalog: a file that said so would be refused.
    :raises BelowFloor: see there.
    :raises catalog.NotInCatalog: no such product.
    """
    now = alone()
    before, document = changed(slug, changes)
    lines = _changes(document)
    if lines:
        if not accepted:
            _hold_floor(before, document, now)
        _write(document, lines, actor=actor, now=now, effective=now)
    return lines


def changed(slug: str, changes: Iterable[tuple[Sequence[str], Any]]) -> tuple[Document, Document]:
    """The product's document as it is, and as it would be with these terms; nothing is written.

    :raises InvalidCatalog: a file that said so would be refused.
    :raises catalog.NotInCatalog: no such product.
    """
    before = current(slug=slug)
    if before is None:
        raise catalog.NotInCatalog(f"There is no product {slug!r}.")
    document = before
    for path, said in changes:
        document = with_value(document, path, said)
    return before, parse(tomli_w.dumps(document).encode())


def _hold_floor(before: Document, document: Document, at: datetime) -> None:
    """:raises BelowFloor: see there."""
    if below := margin_terms.refused(before, document, at=at):
        raise BelowFloor(below)


def alone() -> datetime:
    """Waits until no other transaction changes a catalog, until this one ends; the database's time."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(0, hashtext('catalog apply'))")
        cursor.execute("SELECT clock_timestamp()")  # after the wait: what the last one wrote began before it
        now: datetime = cursor.fetchone()[0]
    return now


def _write(document: Document, lines: list[str], *, actor: str, now: datetime, effective: datetime) -> None:
    product = _Writer(document, now=now, effective=effective).write()
    CatalogChange.objects.create(
        product=product,
        actor=actor,
        applied_at=now,
        effective_at=effective,
        digest=hashlib.sha256(tomli_w.dumps(document).encode()).hexdigest(),
        diff="\n".join(lines),
    )
    catalog.clear()
    transaction.on_commit(catalog.clear)


class _Writer:
    """Writes a document's rows, collecting what must not change on the way."""

    def __init__(self, document: Document, *, now: datetime, effective: datetime) -> None:
        self.document = document
        self.now = now
        self.effective = effective
        self.before = current(slug=document["product"]["slug"]) or {}
        self.problems: list[str] = []

    def write(self) -> Product:
        product = self.product()
        self.refuse_removal("cost_tiers", "accounts may be on it; set its limits instead")
        self.refuse_removal("rate_cards", "accounts may be on it")
        for slug, tier in self.section("cost_tiers"):
            CostTier.objects.update_or_create(product=product, slug=slug, defaults=_columns(tier, COST_TIER))
        for slug, guard in self.section("guards"):
            self.guard(product, slug, guard)
        gone = Guard.objects.filter(product=product).exclude(slug__in=self.document.get("guards", {}))
        Plan.objects.filter(product=product, guard__in=list(gone.values_list("slug", flat=True))).update(
            guard=""
        )  # plans no longer on offer
        gone.delete()
        for slug, card in self.section("rate_cards"):
            self.rate_card(product, slug, card)
        for slug, plan in self.section("plans"):
            self.plan(product, slug, plan)
        for slug, pack in self.section("packs"):
            self.pack(product, slug, pack)
        Plan.objects.filter(product=product, available=True).exclude(slug__in=self.document.get("plans", {})).update(available=False)
        CreditPack.objects.filter(product=product, available=True).exclude(slug__in=self.document.get("packs", {})).update(available=False)
        self.prices(product)
        if self.problems:
            raise InvalidCatalog(self.problems)
        return product

    def section(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        return list(self.document.get(name, {}).items())

    def unchanged(self, section: str, slug: str, *, without: tuple[Field, ...] = ()) -> bool:
        """Whether the database's latest version has these terms already."""
        ignored = {field.key for field in without}
        sides = [side.get(section, {}).get(slug) for side in (self.before, self.document)]
        return sides[0] is not None and all(
            sides[0].get(key) == sides[1].get(key) for key in (sides[0].keys() | sides[1].keys()) if key not in ignored
        )

    def refuse_removal(self, section: str, why: str) -> None:
        for slug in self.before.get(section, {}):
            if slug not in self.document.get(section, {}):
                self.problems.append(f"{section}.{slug}: expected to be kept; {why}")

    def may_begin(self, path: str, latest: Any) -> int:
        """The number of the new version after ``latest``."""
        if latest is None:
            return 1
        if latest.valid_from >= self.effective:
            self.problems.append(f"{path}: expected an effective time after its version of {latest.valid_from.isoformat()}")
        elif self.effective < self.now:
            self.problems.append(f"{path}: expected an effective time that is not in the past; what was charged stays as it was")
        return int(latest.version) + 1

    def product(self) -> Product:
        unit_columns = _columns(self.document["unit"], UNIT)
        columns = _columns(self.document["product"], PRODUCT)
        before = self.before.get("unit", {}).get("code")
        if before not in (None, unit_columns["code"]):
            raise InvalidCatalog([f"unit.code: expected {before!r}; the unit of a product is fixed for ever"])
        unit, _ = Unit.objects.update_or_create(code=unit_columns["code"], defaults=unit_columns)
        product, _ = Product.objects.update_or_create(slug=columns["slug"], defaults=columns | {"unit": unit})
        return product

    def guard(self, product: Product, slug: str, guard: dict[str, Any]) -> None:
        row, _ = Guard.objects.update_or_create(product=product, slug=slug, defaults=_columns(guard, GUARD))
        row.caps.all().delete()
        GuardCap.objects.bulk_create(
            GuardCap(guard=row, kind=kind, span=span, most_nanos=_amount(most))
            for kind, spans in guard.get("caps", {}).items()
            for span, most in spans.items()
        )

    def rate_card(self, product: Product, slug: str, card: dict[str, Any]) -> None:
        if self.unchanged("rate_cards", slug):
            return
        latest = RateCard.objects.filter(product=product, slug=slug).order_by("-valid_from").first()
        version = self.may_begin(f"rate_cards.{slug}", latest)
        if self.problems:
            return
        row = RateCard.objects.create(product=product, slug=slug, version=version, valid_from=self.effective, **_columns(card, RATE_CARD))
        for key, column, kind in (("multipliers", "multiplier_ppm", FACTOR), ("markup_percents", "markup_ppm", PERCENT)):
            for model, value in card.get(key, {}).items():
                provider, name = catalog.split_model(model)
                RateCardModel.objects.create(card=row, provider=provider, model=name, **{column: kind.parse(value)})
        RateCardPrice.objects.bulk_create(
            RateCardPrice(
                card=row,
                provider=catalog.split_model(model)[0],
                model=catalog.split_model(model)[1],
                component=component,
                price_nanos=_amount(price),
                per_units=prices.get("per", PRICED_PER),
            )
            for model, prices in card.get("prices", {}).items()
            for component, price in prices.items()
            if component != "per"
        )

    def plan(self, product: Product, slug: str, document: dict[str, Any]) -> None:
        plan, _ = Plan.objects.update_or_create(product=product, slug=slug, defaults=_columns(document, PLAN) | {"available": True})
        latest = plan.versions.order_by("-valid_from").first()
        if latest is not None and self.unchanged("plans", slug, without=PLAN):
            return
        version = self.may_begin(f"plans.{slug}", latest)
        if self.problems:
            return
        columns = _columns(document, PLAN_VERSION)
        if columns["cost_tier"] is not None:
            columns["cost_tier"] = CostTier.objects.get(product=product, slug=columns["cost_tier"])
        row = PlanVersion.objects.create(plan=plan, version=version, valid_from=self.effective, **columns)
        Entitlement.objects.bulk_create(_entitlements(row, document.get("entitlements", {})))

    def pack(self, product: Product, slug: str, document: dict[str, Any]) -> None:
        latest = CreditPack.objects.filter(product=product, slug=slug).order_by("-valid_from").first()
        if latest is not None and self.unchanged("packs", slug):
            return
        version = self.may_begin(f"packs.{slug}", latest)
        if self.problems:
            return
        CreditPack.objects.create(product=product, slug=slug, version=version, valid_from=self.effective, **_columns(document, PACK))

    def prices(self, product: Product) -> None:
        carried = _carried(product.slug)
        wanted = {_price_key(row): _columns(row, PRICE) for row in self.document.get("prices", [])}
        for key, row in carried.items():
            if key not in wanted or any(getattr(row, column) != value for column, value in wanted[key].items()):
                if row.valid.lower >= self.effective or self.effective < self.now:
                    self.problems.append(
                        f"prices[{key}]: expected an effective time after {row.valid.lower.isoformat()} and not in the past"
                    )
                    continue
                row.valid = DateTimeTZRange(row.valid.lower, self.effective, "[)")
                row.save(update_fields=["valid"])
            else:
                del wanted[key]
        if self.problems:
            return
        for key, columns in wanted.items():
            other = PriceRow.objects.filter(
                provider=columns["provider"], model=columns["model"], component=columns["component"], withdrawn_at=None
            )
            taken = other.filter(valid__overlap=DateTimeTZRange(self.effective, None, "[)")).first()
            if taken is not None:
                owner = f"the catalog of {taken.catalog}" if taken.catalog else "the price import"
                self.problems.append(f"prices[{key}]: expected to be priced once; {owner} has this price")
                continue
            PriceRow.objects.create(valid=DateTimeTZRange(self.effective, None, "[)"), catalog=product.slug, **columns)


def _entitlements(version: PlanVersion, document: dict[str, Any]) -> Iterator[Entitlement]:
    for key, value in document.items():
        if isinstance(value, bool):
            yield Entitlement(plan_version=version, key=key, kind=Entitlement.Kind.FLAG, enabled=value)
        elif isinstance(value, str):
            yield Entitlement(plan_version=version, key=key, kind=Entitlement.Kind.TEXT, text=value)
        else:
            for window, limit in value.items():
                if window not in ("mode", "setting"):
                    yield Entitlement(
                        plan_version=version,
                        key=key,
                        kind=Entitlement.Kind.LIMIT,
                        window=window,
                        limit=LIMIT.parse(limit),
                        mode=value.get("mode", Entitlement.Mode.HARD),
                        setting=value.get("setting", ""),
                    )


def _columns(document: dict[str, Any], fields: tuple[Field, ...]) -> dict[str, Any]:
    """The columns of a table of a document, defaults filled in."""
    return {field.column: field.kind.parse(document[field.key]) if field.key in document else field.default for field in fields}
