"""Parameters as Stripe takes them: ``items[0][price]=price_1``, where an empty value unsets and an unknown name is an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import parse_qsl

from stripe_double import errors

FIELDS_AT_MOST = 1000
DEPTH_AT_MOST = 8


def decode(text: str) -> dict[str, Any]:
    """Nested dictionaries of strings; a list is a dictionary whose keys are its positions.

    :raises StripeError: 400 for anything that is no form.
    """
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=FIELDS_AT_MOST)
    except (ValueError, UnicodeDecodeError) as error:
        raise errors.invalid("Invalid request: the body or query is no valid form encoding.") from error
    values: dict[str, Any] = {}
    for name, value in pairs:
        head, *rest = name.replace("]", "").split("[")
        if name.count("[") != name.count("]") or not head or len(rest) > DEPTH_AT_MOST:
            raise errors.invalid(f"Invalid parameter name: {name[:100]}", param=name[:100])
        into, keys = values, [head, *rest]
        for position, key in enumerate(keys):
            key = key or str(len(into))
            if position == len(keys) - 1:
                if key in into:
                    raise errors.invalid(f"Parameter given twice: {name[:100]}", param=name[:100])
                into[key] = value
            else:
                into = into.setdefault(key, {})
                if not isinstance(into, dict):
                    raise errors.invalid(f"Invalid hash: {name[:100]}", param=name[:100])
    return values


class Params:
    """One level of parameters. Each name that is asked for counts as known; :meth:`unknown` lists the others."""

    def __init__(self, values: dict[str, Any], path: str = ""):
        self._values = values
        self._path = path
        self._known: set[str] = set()
        self._children: dict[str, Params] = {}

    def path(self, name: str) -> str:
        return f"{self._path}[{name}]" if self._path else name

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str | None = None, *, choices: Sequence[str] = (), longest: int = 5000) -> str | None:
        """The value, ``default`` when absent, None when empty."""
        self._known.add(name)
        value = self._values.get(name, default)
        if not isinstance(value, str | None):
            raise errors.invalid(f"Invalid string: {self.path(name)}", param=self.path(name))
        if value and len(value) > longest:
            raise errors.invalid(f"{self.path(name)} is longer than {longest} characters.", param=self.path(name))
        if value and choices and value not in choices:
            raise errors.invalid(f"Invalid {self.path(name)}: must be one of {', '.join(choices)}", param=self.path(name))
        return value or None

    def need(self, name: str, *, choices: Sequence[str] = ()) -> str:
        value = self.text(name, choices=choices)
        if value is None:
            raise errors.invalid(f"Missing required param: {self.path(name)}.", param=self.path(name), code="parameter_missing")
        return value

    def number(self, name: str, default: int | None = None, *, least: int = -(10**8) + 1, most: int = 10**11) -> int | None:
        value = self.text(name)
        if value is None:
            return default
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise errors.invalid(f"Invalid integer: {value[:100]}", param=self.path(name), code="parameter_invalid_integer")
        if not least <= int(value) <= most:
            raise errors.invalid(
                f"{self.path(name)} must be from {least} to {most}.", param=self.path(name), code="parameter_invalid_integer"
            )
        return int(value)

    def need_number(self, name: str, *, least: int = 0, most: int = 99_999_999) -> int:
        self.need(name)
        value = self.number(name, least=least, most=most)
        assert value is not None
        return value

    def decimal(self, name: str, *, least: Decimal, most: Decimal) -> Decimal | None:
        value = self.text(name)
        try:
            number = None if value is None else Decimal(value)
        except InvalidOperation as error:
            raise errors.invalid(f"Invalid decimal: {self.path(name)}", param=self.path(name)) from error
        if number is not None and not (number.is_finite() and least <= number <= most):
            raise errors.invalid(f"{self.path(name)} must be from {least} to {most}.", param=self.path(name))
        return number

    def flag(self, name: str, default: bool = False) -> bool:
        return self.text(name, choices=("true", "false")) == "true" if self.has(name) else default

    def child(self, name: str) -> Params | None:
        """The hash ``name``; None when absent or unset by an empty value."""
        self._known.add(name)
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, dict):
            raise errors.invalid(f"Invalid hash: {self.path(name)}", param=self.path(name))
        return self._children.setdefault(name, Params(value, self.path(name)))

    def children(self, name: str) -> list[Params]:
        """The list of hashes ``name``."""
        holder = self.child(name)
        if holder is None:
            return []
        found = [holder.child(key) for key in holder._values]
        if None in found:
            raise errors.invalid(f"Invalid array: {self.path(name)}", param=self.path(name))
        return [child for child in found if child]

    def texts(self, name: str) -> list[str]:
        """The list of strings ``name``; one string alone counts as a list."""
        if isinstance(self._values.get(name), str):
            return [value] if (value := self.text(name)) else []
        holder = self.child(name)
        return [] if holder is None else [holder.need(key) for key in holder._values]

    def metadata(self, before: dict[str, str] | None = None, name: str = "metadata") -> dict[str, str]:
        """``before`` with what was sent put over it: an empty value deletes a key, an empty ``metadata`` deletes them all."""
        merged = {} if self._values.get(name) == "" else dict(before or {})
        holder = self.child(name)
        for key in holder._values if holder else ():
            assert holder is not None
            value = holder.text(key, longest=500)
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = value
        if len(merged) > 50 or any(len(key) > 40 for key in merged):
            raise errors.invalid("Metadata has at most 50 keys of at most 40 characters.", param=self.path(name))
        return merged

    def put(self, into: dict[str, Any], *names: str) -> None:
        """Copy those of these strings that were sent; an empty one becomes None."""
        into |= {name: self.text(name) for name in names if self.has(name)}

    def as_sent(self) -> dict[str, Any]:
        return self._values

    def known(self, *names: str) -> None:
        """Names that Stripe knows and that mean nothing here."""
        self._known |= set(names)
        for name in names:
            self._children.pop(name, None)

    def unknown(self) -> Iterator[str]:
        for name in self._values:
            if name not in self._known:
                yield self.path(name)
            elif name in self._children:
                yield from self._children[name].unknown()
