"""Accounts with credit, for demonstrations and replays: each product has its demo accounts number 1, 2, 3 and so on."""

from __future__ import annotations

from datetime import datetime

from accounts import registration
from accounts.models import Account
from billing import ledger, subscriptions
from pricing.models import Product

_SOURCE = "staff"


def account(*, product: Product, number: int, name: str, credit_nanos: int, credit_key: str, now: datetime) -> Account:
    """Demo account ``number`` of ``product``, opened if need be, with ``credit_nanos`` (> 0) granted to it once a ``credit_key``.

    :raises ledger.KeyReused: another amount was granted under this key.
    """
    found = registration.open_account(product=product, external_id=f"demo-{number:05d}", name=name, now=now)
    ledger.grant(
        account_id=found.pk,
        unit_id=product.unit_id,
        amount_nanos=credit_nanos,
        source=_SOURCE,
        source_key=credit_key,
        key=credit_key,
        actor="manage.py",
        reason="Demonstration credit",
        priority=subscriptions.priority(product=product, source=_SOURCE),
    )
    return found
