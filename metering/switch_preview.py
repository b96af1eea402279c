"""Whom a kill switch would touch, before anybody throws it: how many accounts on which plans, what they spent in the last day, and, of a
cost cap, whom it would cut off at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from django.db.models import Count, QuerySet, Sum

from accounts.models import Account
from billing import ledger, subscriptions
from billing.models import Subscription
from metering import kill_switches, throttles
from metering.kill_switches import Kind, Wanted
from metering.models import KillSwitch, OpenAuthorization, UsageRecord
from pricing.models import Entitlement

#: So many accounts are looked at for a cap, and so many of those that it would cut off are named.
MAX_LOOKED = 20_000
MAX_NAMED = 20
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class CutOff:
    """An account that has used the cap already. Amounts are nano-USD; ``limit_nanos`` is the one of its own that refuses, None = none."""

    account: Account
    used_nanos: int
    limit_nanos: int | None


@dataclass(frozen=True, slots=True)
class Preview:
    """``what`` is the switch in words. ``plans`` are names with how many live subscriptions; ``cost_nanos`` (nano-USD, wholesale) and
    ``uses`` are of the last day; ``stopped`` are accounts throttled now, by anybody or a limit on cost, which a switch on throttling lets
    go. ``token`` names what was shown.
    """

    what: str
    accounts: int
    plans: tuple[tuple[str, int], ...]
    uses: int
    cost_nanos: int
    open_work: int
    stopped: int
    cut_off: int
    named: tuple[CutOff, ...]
    looked_at_all: bool
    token: str

    @property
    def live(self) -> int:
        """Live subscriptions."""
        return sum(count for _, count in self.plans)


def of(*, wanted: Wanted, now: datetime) -> Preview:
    """Reads only."""
    row = wanted.row()
    accounts = _accounts(row)
    live = Subscription.objects.filter(account__in=accounts).exclude(status=Subscription.Status.CANCELED)
    plans = live.values_list("plan_version__plan__name").annotate(count=Count("pk")).order_by("-count", "plan_version__plan__name")
    used = UsageRecord.objects.filter(account__in=accounts, recorded_at__gte=now - timedelta(days=1)).aggregate(
        uses=Count("pk"), cost=Sum("cost_nanos")
    )
    cut_off, looked_at_all = _cut_off(accounts, row.cap_nanos, now) if row.cap_nanos is not None else ([], True)
    return Preview(
        what=str(row),
        accounts=accounts.count(),
        plans=tuple(plans),
        uses=used["uses"],
        cost_nanos=used["cost"] or 0,
        open_work=OpenAuthorization.objects.filter(account__in=accounts, state=OpenAuthorization.State.OPEN).count(),
        stopped=_stopped(row, now) if row.kind == Kind.THROTTLING else 0,
        cut_off=len(cut_off),
        named=tuple(sorted(cut_off, key=lambda each: -each.used_nanos)[:MAX_NAMED]),
        looked_at_all=looked_at_all,
        token=_token(row),
    )


def _accounts(row: KillSwitch) -> QuerySet[Account]:
    """Those that it covers and that may work."""
    everybody = Account.objects.filter(closed_at=None)
    if row.account_id:
        return everybody.filter(pk=row.account_id)
    return everybody.filter(product_id=row.product_id) if row.product_id else everybody


def _stopped(row: KillSwitch, now: datetime) -> int:
    """Those that it covers and that are throttled now, the capped excepted: a cap stays."""
    throttled = {one.account.pk for one in throttles.everybody(now=now, product=row.product) if not one.stop.capped}
    return len(throttled & {row.account_id}) if row.account_id else len(throttled)


def _cut_off(accounts: QuerySet[Account], cap: int, now: datetime) -> tuple[list[CutOff], bool]:
    """Who has used the cap in their period and is not refused by a limit of their own already; and whether everybody was looked at."""
    found: list[CutOff] = []
    looked = list(accounts.select_related("product").order_by("pk")[: MAX_LOOKED + 1])
    for start in range(0, min(len(looked), MAX_LOOKED), _CHUNK):
        chunk = {account.pk: account for account in looked[start : start + _CHUNK]}
        plans = subscriptions.allowed_many(accounts=chunk.values())
        periods = {id_: allowed.period_at(now) for id_, allowed in plans.items()}
        for id_, used in ledger.costs(windows=periods).items():
            tier = plans[id_].plan.cost_tier
            own = plans[id_].limit_of("cost/period", tier.monthly_cost_nanos) if tier and tier.throttle_on_exceed else None
            mode = Entitlement.Mode.HARD if own is not None else Entitlement.Mode.OFF
            effective = kill_switches.effective_cap_nanos(limit=own, mode=mode, cap=cap)
            if used >= effective and (own is None or used < own):
                found.append(CutOff(chunk[id_], used, own))
    return found, len(looked) <= MAX_LOOKED


def _token(row: KillSwitch) -> str:
    """The same for the same switch, so that what is thrown is what was shown."""
    said = (row.kind, row.product_id, row.account_id, row.feature, row.provider, row.cap_nanos)
    return sha256(repr(said).encode()).hexdigest()[:16]
