"""Kill switches for tests, as rows: those for everything with the approval that they need."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from accounts.models import Account, Approval, User
from metering.models import KillSwitch
from pricing.models import Product


def thrown(
    *,
    now: datetime,
    kind: str = "work",
    product: Product | None = None,
    account: Account | None = None,
    reason: str = "an incident",
    minutes: int = 60,
    **more: Any,
) -> KillSwitch:
    """A switch from ``now`` on, for ``minutes``."""
    product = account.product if account else product
    approval = None if product else approved(now)
    return KillSwitch.objects.create(
        kind=kind, product=product, account=account, reason=reason, actor="ada", approval=approval, created_at=now,
        ends_at=now + timedelta(minutes=minutes), **more,
    )  # fmt: skip


def approved(now: datetime) -> Approval:
    ann, bob = (User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery", is_staff=True) for _ in range(2))
    return Approval.objects.create(
        kind="kill_switch", payload={}, after="a switch", reason="test", asked_by=ann, asked_at=now, expires_at=now + timedelta(hours=24),
        state="approved", decided_by=bob, decided_at=now,
    )  # fmt: skip
