"""Accounts with credit, for demonstrations and replays."""

from __future__ import annotations

from datetime import datetime

from accounts import registration
from accounts.models import Account, User
from billing import ledger, subscriptions
from pricing.models import Product

_SOURCE = "staff"


def account(
    *,
    product: Product,
    external_id: str,
    name: str,
    credit_nanos: int,
    credit_key: str,
    now: datetime,
    kind: str = Account.Kind.PERSON,
    owner: User | None = None,
) -> Account:
    """The account of this external id, opened if need be, with ``credit_nanos`` (> 0) granted to it once a ``credit_key``.

    :raises ledger.KeyReused: another amount was granted under this key.
    :raises registration.InvalidAccount: see there.
    """
    found = registration.open_account(product=product, external_id=external_id, name=name, now=now, kind=kind, owner=owner)
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
