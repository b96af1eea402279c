"""Tells customers, and their client apps, that much of a limit is used, or that little credit is left.

    look   looks at the accounts that used something since the last look, some of them a transaction

Asked by a job, never by a charge: the fold of the rollups notes whose usage it took (``analytics/sql/used_lately.sql``), and here each of
those accounts is looked at once, as it is now. What there is to say is queued in the transaction that crosses the account off.

**Limits** of a day, a billing period or a lifetime warn at 75, 80, 90 and 100 %; wholesale cost of a period at the shares that its cost
tier names and at 100 %, cost of a day at 100 %. Only the highest threshold that is reached is told, once a window and size of the limit;
falling below one and reaching it again is not told again. Limits that only watch (``shadow``), those of an hour, of open work and of
objects are not told.

**Credit** is low when less than a fifth is left of what the wallet held after credit last came, and is told once until credit comes again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import structlog
from django.db import transaction

from accounts import api, mails, webhooks
from accounts.models import Account, Mail
from analytics.models import UsedLately
from billing import balances, ledger, periods, subscriptions
from billing.models import Grant, Operation
from metering import limits
from pricing.models import Entitlement

BATCH = 100
PERCENTS = (75, 80, 90, 100)
LOW_SHARE = 5  # a fifth
_WINDOWS = (Entitlement.Window.DAY, Entitlement.Window.PERIOD, Entitlement.Window.LIFETIME)

log = structlog.get_logger(__name__)


def look(*, now: datetime, batch: int = BATCH) -> int:
    """Looks at up to ``batch`` accounts, in one transaction; returns how many. Two at once look at different ones.

    An account that cannot be looked at is logged and crossed off too: the next time it uses something it is looked at again.
    """
    with transaction.atomic():
        due = UsedLately.objects.select_for_update(skip_locked=True).order_by("pk")
        account_ids = list(due.values_list("pk", flat=True)[:batch])
        accounts = Account.objects.select_related("product__unit").filter(pk__in=account_ids, closed_at=None)
        for account in accounts.exclude(kind=Account.Kind.GUEST).order_by("pk"):
            try:
                with transaction.atomic():
                    warn(account=account, now=now)
            except Exception as error:
                log.error("account not looked at", account=account.public_id, exc_info=error)
        UsedLately.objects.filter(pk__in=account_ids).delete()
    return len(account_ids)


def warn(*, account: Account, now: datetime) -> None:
    """Queues what there is to tell ``account``, in the caller's transaction."""
    allowed = subscriptions.allowed(account=account)
    if allowed is not None:
        _limits(account, allowed, now)
    _credit(account, now)


def _limits(account: Account, allowed: subscriptions.Allowed, now: datetime) -> None:
    watched = [
        item
        for item in limits.counted(account=account, allowed=allowed, counts=None, cost_nanos=0, now=now)
        if item.limit.meter.rpartition("/")[2] in _WINDOWS and item.limit.allowed > 0 and item.mode != Entitlement.Mode.SHADOW
    ]
    if not watched:
        return
    # As quotas: what open work may cost at most has not been used.
    found = ledger.limits(account_id=account.pk, limits=[replace(item.limit, layer="quota") for item in watched])
    for item, used, resets_at in zip(watched, found.used, found.resets_at, strict=True):
        reached = [ppm for ppm in _thresholds(item, allowed) if used * 1_000_000 >= item.limit.allowed * ppm]
        if reached:
            ends_at = None if resets_at == periods.LIFETIME[1] else resets_at
            _tell(account, allowed, item, used, ends_at, max(reached), now)


def _thresholds(item: limits.Counted, allowed: subscriptions.Allowed) -> set[int]:
    """Parts per million of the limit."""
    if item.limit.layer != "cost":
        return {percent * 10_000 for percent in PERCENTS}
    tier = allowed.plan.cost_tier
    whole_period = tier is not None and item.limit.meter.endswith(f"/{Entitlement.Window.PERIOD}")
    return {1_000_000, *(tier.warn_at_ppm if tier is not None and whole_period else [])}


def _tell(
    account: Account, allowed: subscriptions.Allowed, item: limits.Counted, used: int, ends_at: datetime | None, ppm: int, now: datetime
) -> None:
    """Once a window, size of the limit and threshold, and none below one that was told."""
    meter, of = item.limit.meter, item.limit.allowed
    about = f"{meter}:{ends_at.isoformat() if ends_at else 'ever'}:{of}:"
    told = Mail.objects.filter(account=account, kind=Mail.Kind.LIMIT_WARNING, key__startswith=about).values_list("key", flat=True)
    if any(int(key.removeprefix(about)) >= ppm for key in told):
        return
    what, _, window = meter.rpartition("/")
    higher = limits.upgrade(account=account, allowed=allowed, layer=limits.Layer(item.limit.layer, meter=meter, limit=of), now=now)
    context: dict[str, object] = {
        "what": what.replace("_", " "),
        "window": window,
        "percent": min(used * 100 // of, 100),
        "stops": item.mode == Entitlement.Mode.HARD,
        "used": used,
        "allowed": of,
        "resets_at": ends_at,
        "upgrade": higher.name if higher else "",
    }
    if item.limit.layer == "cost":  # what usage costs us is not the customer's to see
        context |= {"what": "", "used": None, "allowed": None}
    key = f"{about}{ppm}"
    mails.queue(account=account, kind=Mail.Kind.LIMIT_WARNING, key=key, context=context, now=now, useless_at=ends_at)
    hidden = item.limit.layer == "cost"
    data: dict[str, str | int | None] = {
        "layer": item.limit.layer,
        "meter": meter,
        "percent": min(used * 100 // of, 100),
        "used": None if hidden else used,
        "allowed": None if hidden else of,
        "stops": item.mode == Entitlement.Mode.HARD,
        "resets_at": ends_at.isoformat() if ends_at else None,
    }
    kind = webhooks.Kind.LIMIT_REACHED if ppm >= 1_000_000 else webhooks.Kind.LIMIT_WARNING
    webhooks.queue(account=account, kind=kind, key=key, data=data, now=now)


def _credit(account: Account, now: datetime) -> None:
    unit_id = account.product.unit_id
    lots = Grant.objects.filter(account=account, unit_id=unit_id).order_by().values("pk")
    came = Operation.objects.filter(account=account, verb="grant", grant_id__in=lots).order_by("-pk").first()
    wallet = next((wallet for wallet in balances.of_account(account, now=now) if wallet.unit_id == unit_id), None)
    if came is None or wallet is None or (wallet.balance > 0 and wallet.balance * LOW_SHARE >= came.balance_after):
        return
    context = {"balance_nanos": wallet.balance}
    mails.queue(account=account, kind=Mail.Kind.LOW_BALANCE, key=str(came.pk), context=context, now=now)
    data = {"balance": api.amount(wallet.balance), "unit": account.product.unit.code}
    webhooks.queue(account=account, kind=webhooks.Kind.BALANCE_LOW, key=str(came.pk), data=data, now=now)
