"""The numbers by which usage rows refer to models and features. Names come from outside, so each is made the first time it is seen."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from django.db import connection

from metering.models import Feature, UsageModel
from pricing import catalog

MAX_KEPT = 10_000
_kept: dict[Hashable, int] = {}
K = TypeVar("K", bound=Hashable)


def model_id(model: str) -> int:
    """The number of ``provider:name``. :raises catalog.InvalidModel: it is not of that form."""
    return _number(model, _model_id)


def feature_id(product_id: int, slug: str | None) -> int | None:
    """The number of a product's feature; None for none."""
    return (
        None
        if slug is None
        else _number((product_id, slug), lambda key: Feature.objects.get_or_create(product_id=key[0], slug=key[1])[0].pk)
    )


def _model_id(model: str) -> int:
    provider, name = catalog.split_model(model)
    return UsageModel.objects.get_or_create(provider=provider, name=name)[0].pk


def _number(key: K, make: Callable[[K], int]) -> int:
    number = _kept.get(key)
    if number is None:
        number = make(key)
        if not connection.in_atomic_block:  # what a transaction made may be rolled back
            if len(_kept) >= MAX_KEPT:
                _kept.clear()
            _kept[key] = number
    return number
