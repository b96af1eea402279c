"""A feature's beta: until it is open to everybody, only invited accounts whose plan has it may use it.

    closed    what is said to an account that is not invited
    invite    lets an account in
    onboard   notes that a member works with it
    feedback  keeps what a member said
    record    keeps a measurement

A feature without a cohort is open to every plan that has it. Whether it may open to more is for :mod:`analytics.rollout`. Who is invited is
read at most once a second, as :mod:`metering.feature_flags` are. Each act writes its row in a transaction of its own or the caller's.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from django.contrib.postgres.aggregates import ArrayAgg
from django.db import connection, transaction
from django.db.models import Q

from accounts.models import Account
from metering import kill_switches
from metering.cohort_models import Cohort, CohortFeedback, CohortMember, CohortSample

#: So long a measurement is kept: longer than any criterion looks back.
KEPT = timedelta(days=100)
#: A client's clock may be so much ahead.
AHEAD = timedelta(minutes=5)
#: Product and feature → the cohort's name and the invited accounts.
Gates = dict[tuple[int, str], tuple[str, frozenset[int]]]
_kept: tuple[float, Gates] | None = None


class Refused(Exception):
    """It cannot be done. The message says why."""


def closed(*, account: Account, feature: str) -> str | None:
    """Why the feature is not open to the account yet; None where it is, as far as cohorts decide."""
    gate = _gates().get((account.product_id, feature))
    return None if gate is None or account.pk in gate[1] else f"For now {feature} is only open to those invited to “{gate[0]}”."


def _gates() -> Gates:
    """Every feature that only invited accounts may use."""
    global _kept
    if connection.in_atomic_block or _kept is None or time.monotonic() - _kept[0] > kill_switches.MAX_AGE_SECONDS:
        read_at = time.monotonic()
        invited = ArrayAgg("members__account_id", filter=Q(members__isnull=False), default=[])
        rows = Cohort.objects.exclude(phase=Cohort.Phase.EVERYBODY).values_list("product_id", "feature", "name").annotate(invited=invited)
        found = {(product, feature): (name, frozenset(accounts)) for product, feature, name, accounts in rows}
        if connection.in_atomic_block:  # what a transaction sees is its own
            return found
        _kept = (read_at, found)
    return _kept[1]


def invite(*, cohort_id: int, account: Account, actor: str, now: datetime) -> CohortMember:
    """:raises Refused: the cohort is full or over, or the account is in it, closed, or another product's."""
    with transaction.atomic():
        cohort = Cohort.objects.select_for_update().get(pk=cohort_id)
        if account.product_id != cohort.product_id or account.closed_at is not None:
            raise Refused("That account is closed, or another product's.")
        if cohort.phase == Cohort.Phase.EVERYBODY:
            raise Refused("It is open to everybody: nobody needs an invitation any more.")
        if cohort.members.filter(account=account).exists():
            raise Refused("That account is invited already.")
        if cohort.members.count() >= cohort.capacity:
            raise Refused(f"The cohort is full: {cohort.capacity} accounts are invited.")
        return CohortMember.objects.create(cohort=cohort, account=account, invited_at=now, invited_by=actor)


def onboard(*, member: CohortMember, now: datetime) -> bool:
    """Whether it was not so yet."""
    return bool(CohortMember.objects.filter(pk=member.pk, onboarded_at=None).update(onboarded_at=now))


def feedback(*, member: CohortMember, rating: int, text: str, actor: str, now: datetime) -> CohortFeedback:
    """``rating``: 1 to 5."""
    return CohortFeedback.objects.create(member=member, rating=rating, text=text, noted_by=actor, noted_at=now)


def record(*, cohort: Cohort, member: CohortMember | None, metric: str, value: int, measured_at: datetime, key: str, now: datetime) -> bool:
    """Keeps a measurement, and drops those of the cohort that are too old; whether the key is new. A repeated key changes nothing.

    :raises Refused: it is of the future, or older than what is kept.
    """
    if not now - KEPT <= measured_at <= now + AHEAD:
        raise Refused(f"A measurement may be up to {KEPT.days} days old, and not of the future.")
    with transaction.atomic():
        CohortSample.objects.filter(cohort=cohort, measured_at__lt=now - KEPT).delete()
        _, new = CohortSample.objects.get_or_create(
            cohort=cohort, key=key, defaults={"member": member, "metric": metric, "value": value, "measured_at": measured_at}
        )
    return new
