"""The numbers by which usage rows refer to models and features. Names come from outside, so each is made the first time it is seen.

A number and its name are for ever, so both are kept in the process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from django.db import connection

from metering.models import Feature, UsageModel
from pricing import catalog

MAX_KEPT = 10_000
_kept: dict[Hashable, Any] = {}
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def model_id(model: str) -> int:
    """The number of ``provider:name``. :raises catalog.InvalidModel: it is not of that form."""
    return _known(model, _model_id)


def model_name(id_: int) -> str:
    """``provider:name`` of the model with this number."""
    return _known(id_, lambda id_: str(UsageModel.objects.get(pk=id_)))


def feature_id(product_id: int, slug: str | None) -> int | None:
    """The number of a product's feature; None for none."""
    return (
        None
        if slug is None
        else _known((product_id, slug), lambda key: Feature.objects.get_or_create(product_id=key[0], slug=key[1])[0].pk)
    )


def _model_id(model: str) -> int:
    provider, name = catalog.split_model(model)
    return UsageModel.objects.get_or_create(provider=provider, name=name)[0].pk


def _known(key: K, read: Callable[[K], V]) -> V:
    value: V | None = _kept.get(key)
    if value is None:
        value = read(key)
        if not connection.in_atomic_block:  # what a transaction made may be rolled back
            if len(_kept) >= MAX_KEPT:
                _kept.clear()
            _kept[key] = value
    return value
