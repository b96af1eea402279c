"""The roles of staff: two groups, whose rights are the table below. Superusers have every right and belong to no group.

    establish   makes the groups and gives each exactly its rights; ``manage.py migrate`` does, so a deployment brings changes of the table
    ROLES       role → rights

A role that fits nobody here is a group of one's own, made in admin: these two are the program's. That somebody needs another person's
approval is no right: see :mod:`accounts.approvals`. What each role sees and does, cell by cell, is in ``tests/test_matrix.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from django.contrib.auth.models import Group, Permission
from django.db import transaction

#: What whoever talks to customers looks at: what they have, what they used and paid, why they were refused. No cost, no margin.
_CUSTOMERS: Final = """
    accounts: account apikey brand mail approval
    billing: grant operation subscription stripeinvoice stripepayment checkout topup autotopup agreement pricemove planchange limitoverride
    metering: usagerecord openauthorization costthrottle guardstate spooledusage refusal
    analytics: entry
    pricing: product plan planversion entitlement creditpack
    admin: logentry
"""
#: What whoever answers for the money looks at besides.
_MONEY: Final = """
    accounts: auditevent
    billing: stripeevent striperequest stripereconciliation
    metering: shadowrefusal killswitch cohort
    analytics: margin alert alertrule alertchannel alertnotice providerbill jobrun auditfinding draftreplay
    analytics: marketingspend billmapping hourlyfigures review
    pricing: ratecard ratecardmodel ratecardprice pricerow priceproposal catalogchange lever
"""


_SUPPORT: Final = """
    accounts: view_user view_membership view_webhookendpoint view_webhookevent view_webhookdelivery change_apikey change_mail
    accounts: impersonate_account
    billing: add_operation
    metering: change_throttle change_guardstate
"""
_FINANCE: Final = """
    accounts: change_account change_apikey change_mail
    billing: add_operation approve_operation refund_stripepayment change_subscription change_pricemove change_stripeevent
    billing: change_striperequest add_limitoverride change_limitoverride
    metering: add_throttle change_throttle change_guardstate add_cohort change_cohort
    analytics: change_alert add_providerbill add_draftreplay change_draftreplay add_marketingspend add_review
    analytics: add_billmapping change_billmapping
    pricing: change_priceproposal add_lever change_lever
"""


def _rights(table: str, verb: str = "") -> frozenset[str]:
    lines = (line.split(":") for line in table.strip().splitlines())
    return frozenset(f"{app.strip()}.{verb}{name}" for app, names in lines for name in names.split())


ROLES: Final[Mapping[str, frozenset[str]]] = {
    "support": _rights(_CUSTOMERS, "view_") | _rights(_SUPPORT),
    "finance": _rights(_CUSTOMERS, "view_") | _rights(_MONEY, "view_") | _rights(_FINANCE),
}


def establish() -> None:
    """Again changes nothing.

    :raises LookupError: a right of the table does not exist, which is a mistake in the table.
    """
    known = {f"{right.content_type.app_label}.{right.codename}": right for right in Permission.objects.select_related("content_type")}
    with transaction.atomic():
        for role, rights in ROLES.items():
            if missing := rights - known.keys():
                raise LookupError(f"There is no right {', '.join(sorted(missing))}, which the role {role} has.")
            group, _ = Group.objects.get_or_create(name=role)
            group.permissions.set([known[right] for right in rights])
