"""Objects against the typed classes of Stripe's SDK: every key declared, every required key there, every value of its type."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal, Union

from stripe import StripeObject
from stripe._list_object import ListObject
from stripe._object_classes import OBJECT_CLASSES

UNION = Union


def problems(obj: dict[str, Any]) -> list[str]:
    """What is wrong with an object of the API, by its own ``object``; [] when it keeps the contract."""
    if obj["object"] not in OBJECT_CLASSES:
        return [f"no such object: {obj['object']}"]
    module, name = OBJECT_CLASSES[obj["object"]]
    return list(_check(obj, getattr(importlib.import_module(module), name), obj["object"]))


@functools.cache
def _names(module: str) -> dict[str, Any]:
    """What annotations of the module may refer to, the imports for type checkers included."""
    loaded = sys.modules[module]
    names = dict(vars(loaded))
    assert loaded.__file__
    with open(loaded.__file__) as source:
        tree = ast.parse(source.read())
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and statement.module:
                    found = importlib.import_module(statement.module)
                    names |= {alias.asname or alias.name: getattr(found, alias.name) for alias in statement.names}
    return names


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    """The declared fields of a class with their types."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("stripe.") and base is not StripeObject:
            stand_in = type(base.__name__, (), {"__annotations__": inspect.get_annotations(base)})
            hints = typing.get_type_hints(stand_in, globalns=_names(base.__module__))
            found |= {name: hint for name, hint in hints.items() if not name.startswith("_") and name != "OBJECT_NAME"}
    return found


def _check(value: Any, declared: Any, path: str) -> Iterator[str]:
    origin, arms = typing.get_origin(declared), typing.get_args(declared)
    if origin is UNION:
        yield from _check_union(value, arms, path)
    elif origin is Literal:
        if value not in arms:
            yield f"{path}: {value!r} is not one of {arms[:12]}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
        else:
            for position, entry in enumerate(value):
                yield from _check(entry, arms[0], f"{path}[{position}]")
    elif origin is ListObject:
        wrong = not isinstance(value, dict) or set(value) != {"object", "data", "has_more", "url"} or value["object"] != "list"
        if wrong:
            yield f"{path}: {value!r} is no list object"
        else:
            yield from _check(value["data"], list[arms[0]], f"{path}.data")  # type: ignore[valid-type]
    elif origin is not None:  # UntypedStripeObject[...]: keys of one's own
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no hash"
        elif "object" in value and arms[0] is Any:  # the object of an event
            yield from (f"{path}: {problem}" for problem in problems(value))
        else:
            for name, entry in value.items() if arms[0] is not Any else ():
                yield from _check(entry, arms[0], f"{path}.{name}")
    elif isinstance(declared, type) and issubclass(declared, StripeObject):
        yield from _check_object(value, declared, path)
    else:
        expected = {float: (int, float), Decimal: (str,)}.get(declared, (declared,))
        if not isinstance(value, expected) or (isinstance(value, bool) and declared is not bool):
            yield f"{path}: {value!r} is no {declared.__name__}"


def _check_union(value: Any, arms: tuple[Any, ...], path: str) -> Iterator[str]:
    """One arm must fit. Stripe's open enums are Union[Literal, str]; a double knows the values, so the Literal decides."""
    rest = [arm for arm in arms if arm is not type(None)]
    if value is None:
        if len(rest) == len(arms):
            yield f"{path} is null"
        return
    if any(typing.get_origin(arm) is Literal for arm in rest):
        rest = [arm for arm in rest if arm is not str]
    if isinstance(value, dict) and "object" in value:
        rest = [arm for arm in rest if getattr(arm, "OBJECT_NAME", value["object"]) == value["object"]]
    found = [list(_check(value, arm, path)) for arm in rest]
    if [] not in found:
        yield from min(found, key=len, default=[f"{path}: {value!r} fits none of {rest}"])


def _check_object(value: Any, cls: type, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no {cls.__name__}"
        return
    fields = _fields(cls)
    for name, entry in value.items():
        if name not in fields:
            yield f"{path}.{name} is not declared"
        else:
            yield from _check(entry, fields[name], f"{path}.{name}")
    for name, declared in fields.items():
        if name not in value and type(None) not in typing.get_args(declared) and not value.get("deleted"):
            yield f"{path}.{name} is missing"
