"""Stops and leniencies in an emergency, thrown by staff with a reason, for four hours unless they say otherwise and for seven days at most.

    covering  what is switched for one account now; in_force  one kind of it
    throw     a switch of a product or an account, until a time
    ask       one of everything: a second person throws it (:mod:`accounts.approvals`)
    end       before its time; a switch is never edited or deleted
    finish    after its end: tells client apps, once

What each kind does, while it is on:

    work           new work of a feature, a product or everything is refused
    provider       new work on the models of one provider is refused
    tracking       usage is written down and neither checked nor charged; it is charged afterwards (:mod:`metering.tracking`)
    balance_check  an account may work without credit; what is captured is charged as ever, by the product's policy on what no hold covers
    throttling     neither a stop of an account nor a limit on wholesale cost refuses; what they would have refused is counted as shadow
    top_ups        no automatic top-up begins; those that are due begin afterwards
    cost_cap       no account may cause more wholesale cost in its period than the cap; a limit that is lower stays

Answers are kept for at most ``MAX_AGE_SECONDS`` and say themselves when they end, so a switch is felt everywhere within that time, and so
is its end, without any job.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from accounts import acts, approvals, webhooks
from accounts.models import Account, Approval, AuditEvent, User
from metering.models import KillSwitch, SpooledUsage
from pricing.models import Entitlement, Product

Kind = KillSwitch.Kind
MAX_AGE_SECONDS = 1.0
MAX_LIFETIME = timedelta(days=7)
DEFAULT_LIFETIME = timedelta(hours=4)
#: A process that read a switch just before its end may write by it this long after.
SETTLING = timedelta(seconds=5)
APPROVAL = "kill_switch"
_kept: tuple[float, list[KillSwitch]] | None = None


@dataclass(frozen=True, slots=True)
class Switches:
    """What is switched for one account, the broadest first."""

    found: tuple[KillSwitch, ...]
    #: Usage that was spooled may not be charged yet, though tracking is on again.
    settling: bool

    def first(self, kind: str, *, feature: str | None = None, provider: str | None = None) -> KillSwitch | None:
        for switch in self.found:
            if switch.kind == kind and switch.feature in ("", feature) and switch.provider in ("", provider):
                return switch
        return None

    def cap(self) -> KillSwitch | None:
        """The lowest cap on an account's wholesale cost in its period."""
        return min(
            (switch for switch in self.found if switch.kind == Kind.COST_CAP), key=lambda switch: switch.cap_nanos or 0, default=None
        )


NOTHING = Switches((), settling=False)


def covering(*, product_id: int, account_id: int | None, now: datetime) -> Switches:
    """Everything that is switched for this account at ``now``; for the product as a whole where no account is given."""
    kept = _switches(now)
    if not kept:
        return NOTHING
    mine = [switch for switch in kept if switch.product_id in (None, product_id) and switch.account_id in (None, account_id)]
    found = tuple(switch for switch in mine if switch.is_in_force(now))
    return Switches(found, any(switch.kind == Kind.TRACKING and switch.over_at <= now for switch in mine))


def in_force(
    *,
    product_id: int,
    now: datetime,
    kind: str = Kind.WORK,
    account_id: int | None = None,
    feature: str | None = None,
    provider: str | None = None,
) -> KillSwitch | None:
    """The broadest switch of this kind that covers this at ``now``."""
    return covering(product_id=product_id, account_id=account_id, now=now).first(kind, feature=feature, provider=provider)


def any_tracking(*, now: datetime) -> bool:
    """Whether usage of anybody is spooled, or was until just now."""
    return any(switch.kind == Kind.TRACKING for switch in _switches(now))


def all_in_force(*, now: datetime) -> list[KillSwitch]:
    """Every switch, the broadest first, as this process knows them."""
    return [switch for switch in _switches(now) if switch.is_in_force(now)]


def covered(*, account: Account, kind: str, at: datetime) -> bool:
    """Whether a switch of this kind covered the account at ``at``, however long ago that was. Reads the table."""
    mine = Q(product=None) | Q(product_id=account.product_id, account=None) | Q(account=account)
    over = Q(ended_at=None, ends_at__gt=at) | Q(ended_at__gt=at)
    return KillSwitch.objects.filter(mine, over, kind=kind, created_at__lte=at).exists()


def effective_cap_nanos(*, limit: int | None, mode: str, cap: int) -> int:
    """What an account may cost in its period while ``cap`` stands beside its own ``limit``: never more than before."""
    return cap if limit is None or mode != Entitlement.Mode.HARD else min(limit, cap)


# Throwing ---------------------------------------------------------------------------------------------------------------------


class InvalidSwitch(ValueError):
    """Such a switch cannot be thrown. The message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a switch is to switch. ``cap_nanos`` is nano-USD of wholesale cost a period."""

    kind: str = Kind.WORK
    product: Product | None = None
    account: Account | None = None
    feature: str = ""
    provider: str = ""
    cap_nanos: int | None = None

    @property
    def is_global(self) -> bool:
        return self.product is None and self.account is None

    def row(self) -> KillSwitch:
        """The switch that it would be, unsaved."""
        product = self.account.product if self.account else self.product
        return KillSwitch(
            kind=self.kind, product=product, account=self.account, feature=self.feature, provider=self.provider, cap_nanos=self.cap_nanos
        )


def check(*, wanted: Wanted, now: datetime) -> None:
    """:raises InvalidSwitch: it says too much or too little for its kind, or the same one is in force."""
    if wanted.feature and wanted.kind != Kind.WORK:
        raise InvalidSwitch("Only work is stopped feature by feature.")
    if bool(wanted.provider) != (wanted.kind == Kind.PROVIDER):
        raise InvalidSwitch("Name the provider that is off." if wanted.kind == Kind.PROVIDER else "This kind is not of one provider.")
    if (wanted.cap_nanos is not None) != (wanted.kind == Kind.COST_CAP):
        raise InvalidSwitch("Say how much may be used." if wanted.kind == Kind.COST_CAP else "Only a cost cap has an amount.")
    if wanted.account and wanted.product and wanted.account.product_id != wanted.product.pk:
        raise InvalidSwitch(f"{wanted.account} is not of {wanted.product}.")
    row = wanted.row()
    same = KillSwitch.objects.filter(
        kind=row.kind, product=row.product, account=row.account, feature=row.feature, provider=row.provider, ended_at=None, ends_at__gt=now
    )
    if same.exists():
        raise InvalidSwitch("This is switched off already. End that switch first.")


def throw(*, wanted: Wanted, reason: str, actor: str, ends_at: datetime, now: datetime, approval: Approval | None = None) -> KillSwitch:
    """Switches it until ``ends_at``. What is of no product and no account needs its ``approval``: see :func:`ask`.

    :raises InvalidSwitch: see :func:`check`; or it would end before it begins, after ``MAX_LIFETIME``, or is everybody's and not approved.
    """
    if not now < ends_at <= now + MAX_LIFETIME:
        raise InvalidSwitch(f"A switch ends within {MAX_LIFETIME.days} days.")
    if wanted.is_global and approval is None:
        raise InvalidSwitch("A switch for everything needs a second person.")
    switch = wanted.row()
    switch.reason, switch.actor, switch.created_at, switch.ends_at, switch.approval = reason, actor, now, ends_at, approval
    with transaction.atomic():
        with connection.cursor() as cursor:  # of two who throw the same at once, the second finds the first
            cursor.execute("select pg_advisory_xact_lock(0, hashtext('kill switch'))")
        check(wanted=wanted, now=now)
        switch.save(force_insert=True)
        _tell(switch, "on", now)
        transaction.on_commit(_forget)
    return switch


def ask(*, wanted: Wanted, reason: str, actor: User, lifetime: timedelta, now: datetime) -> Approval:
    """Asks a second person for a switch of everything; it begins when they approve, and lasts for ``lifetime`` from then.

    :raises InvalidSwitch: see :func:`check`; or it would last too long.
    :raises approvals.NotAllowed, approvals.AlreadyAsked:
    """
    if not timedelta(0) < lifetime <= MAX_LIFETIME:
        raise InvalidSwitch(f"A switch ends within {MAX_LIFETIME.days} days.")
    check(wanted=wanted, now=now)
    same = {"kind": str(wanted.kind), "feature": wanted.feature, "provider": wanted.provider, "cap_nanos": wanted.cap_nanos}
    payload = same | {"minutes": round(lifetime.total_seconds() / 60)}
    return approvals.ask(kind=APPROVAL, payload=payload, same=same, actor=actor, reason=reason, now=now)


def end(*, switch: KillSwitch, actor: str, now: datetime) -> bool:
    """Lets things go on as before. False where the switch has ended."""
    with transaction.atomic():
        ended = KillSwitch.objects.filter(pk=switch.pk, ended_at=None, ends_at__gt=now).update(ended_at=now, ended_by=actor)
        if ended:
            _tell(switch, "off", now)
            transaction.on_commit(_forget)
    return ended == 1


def finish(*, now: datetime) -> int:
    """Tells of each switch that is over, and stops looking at it; returns how many. One of tracking waits until its usage is charged."""
    finished = 0
    for switch in KillSwitch.objects.select_related("product").filter(finished_at=None, created_at__lte=now):
        if switch.over_at + SETTLING > now or (switch.kind == Kind.TRACKING and spooled_under(switch).exists()):
            continue
        with transaction.atomic():
            if KillSwitch.objects.filter(pk=switch.pk, finished_at=None).update(finished_at=now):
                _tell(switch, "off", switch.over_at)
                finished += 1
    return finished


def spooled_under(switch: KillSwitch) -> Any:
    """What was reported to accounts that this switch covers, waits to be charged, and has not failed."""
    mine = SpooledUsage.objects.filter(state=SpooledUsage.State.WAITING, error="")
    if switch.account_id:
        return mine.filter(account_id=switch.account_id)
    return mine.filter(account__product_id=switch.product_id) if switch.product_id else mine


def _tell(switch: KillSwitch, state: str, now: datetime) -> None:
    """Client apps of every product that is touched hear of it, once."""
    data = {
        "kind": switch.kind, "state": state, "feature": switch.feature or None, "provider": switch.provider or None,
        "account": switch.account.public_id if switch.account else None, "reason": switch.reason,
        "ends_at": switch.over_at.isoformat() if state == "on" else now.isoformat(),
    }  # fmt: skip
    for product in [switch.product] if switch.product else Product.objects.order_by("pk"):
        webhooks.queue(account=switch.account, product=product, kind="kill_switch.changed", key=f"{switch.pk}:{state}", data=data, now=now)


# The second person ------------------------------------------------------------------------------------------------------------


def _wanted(payload: Mapping[str, Any]) -> Wanted:
    return Wanted(kind=payload["kind"], feature=payload["feature"], provider=payload["provider"], cap_nanos=payload["cap_nanos"])


def _change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    row, minutes = _wanted(payload).row(), payload["minutes"]
    accounts = Account.objects.filter(closed_at=None).count()
    others = [str(switch) for switch in KillSwitch.objects.filter(kind=row.kind, ended_at=None, ends_at__gt=now)]
    before = f"Of this kind is switched: {', '.join(others) or 'nothing'}. It would touch {accounts:,} accounts."
    return approvals.Change(before=before, after=f"{row}, for {minutes // 60} h {minutes % 60:02} min")


def _carry_out(approval: Approval, actor: User, now: datetime) -> str:
    ends_at = now + timedelta(minutes=approval.payload["minutes"])
    try:
        switch = throw(
            wanted=_wanted(approval.payload), reason=approval.reason[:200], actor=approval.asked_by.get_username()[:150], ends_at=ends_at,
            approval=approval, now=now,
        )  # fmt: skip
    except InvalidSwitch as error:
        raise approvals.Impossible(str(error)) from error
    acts.note(
        actor=actor, subject=switch, what=f"Approved until {ends_at:%Y-%m-%d %H:%M} UTC: {switch.reason}", reason=switch.reason,
        kind=AuditEvent.Kind.ADDED, now=now,
    )  # fmt: skip
    return f"{switch}, until {ends_at:%Y-%m-%d %H:%M} UTC."


approvals.register(
    kind=APPROVAL,
    act=approvals.Act(name="A kill switch for everything", permission="metering.add_killswitch", change=_change, carry_out=_carry_out),
)


# What is kept -----------------------------------------------------------------------------------------------------------------


def _forget() -> None:
    """What this process did, it knows at once."""
    global _kept
    _kept = None


def _switches(now: datetime) -> list[KillSwitch]:
    """Every switch that has not ended at ``now``, and those of tracking whose usage is not charged yet; the broadest first."""
    global _kept
    if connection.in_atomic_block or _kept is None or time.monotonic() - _kept[0] > MAX_AGE_SECONDS:
        read_at = time.monotonic()
        wanted = Q(ended_at=None, ends_at__gt=now) | Q(kind=Kind.TRACKING, finished_at=None)
        rows = KillSwitch.objects.select_related("product", "account__product", "approval__decided_by").filter(wanted)
        found = list(rows.order_by("-product_id", "-account_id", "feature", "id"))
        if connection.in_atomic_block:  # what a transaction sees is its own
            return found
        _kept = (read_at, found)
    return _kept[1]
