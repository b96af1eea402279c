"""What the account's page shows, and what can be done from it.

ACTS         the links at its head: whoever adds an act to an account adds its link here
everything   the page's context, in a number of queries that does not grow with what the account has
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest
from django.urls import reverse

from accounts.models import Account, WebhookEvent
from accounts.templatetags.amounts import sub_digits
from analytics import margin
from billing import balances, stripe_dashboard, subscriptions
from billing.admin import unit
from billing.balances import ENDS_AT
from billing.models import Grant, LedgerEntry, Operation, StripeCustomer
from metering import overrides, pages, standing, throttles
from metering.admin import charged, earned
from metering.models import CostThrottle, OpenAuthorization, Throttle, UsageRecord
from pricing.admin import cents

#: So many rows of everything; a link leads to all of them.
SHOWN: Final = 10
DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Act:
    """A link to something that staff do to an account, for those with ``permission``, where it is ``offered`` as the account stands."""

    text: str
    url: Callable[[Account], str]
    permission: str
    offered: Callable[[throttles.Standing], bool] = lambda standing: True


def _on_page(name: str) -> Callable[[Account], str]:
    return lambda account: reverse(f"admin:accounts_account_{name}", args=[account.pk])


#: In the order of the page; the first is what is done most.
ACTS: Final[list[Act]] = [
    Act("Grant credits", _on_page("grant"), "billing.add_operation"),
    Act("Adjust", _on_page("adjust"), "billing.add_operation"),
    Act("Change plan…", _on_page("plan"), "billing.change_subscription"),
    Act("Agree terms…", _on_page("agree"), "billing.change_subscription"),
    Act("Override a limit…", _on_page("override"), "billing.add_limitoverride"),
    Act("Issue an API key", lambda account: f"{reverse('admin:accounts_apikey_add')}?account={account.public_id}", "accounts.add_apikey"),
    Act("Resume…", _on_page("resume"), "metering.change_throttle", offered=lambda standing: bool(standing.stops)),
    Act("Stop…", _on_page("stop"), "metering.add_throttle", offered=lambda standing: not standing.stopped),
    Act("Edit", _on_page("edit"), "accounts.change_account"),
    Act("Look as a customer…", _on_page("look"), "accounts.impersonate_account"),
]


@dataclass(frozen=True, slots=True)
class AtStripe:
    """One object of the account at Stripe: ``url`` is its page in Stripe's dashboard, empty where there is none."""

    what: str
    id: str
    url: str
    says: str
    at: datetime | None
    #: Of a payment, how much is not given back.
    left: int = 0


def everything(account: Account, *, request: HttpRequest, now: datetime) -> dict[str, Any]:
    """The context of the page, for who asks."""
    until = now.date() + timedelta(days=1)
    subscription = subscriptions.current(account_id=account.pk)
    stands = throttles.of_account(account=account, now=now)
    memberships = list(account.memberships.select_related("user").order_by("id")[:SHOWN])
    keys = list(account.api_keys.order_by("revoked_at", "-id")[:SHOWN])
    used = _usage(account)
    seen = [membership.user.last_login for membership in memberships] + [key.last_used_at for key in keys]
    seen += [record.recorded_at for record, *_ in used["records"][:1]]
    return used | _ledger(account, now) | _told(account) | {
        "acts": [(act.text, act.url(account)) for act in ACTS if request.user.has_perm(act.permission) and act.offered(stands)],
        "unit": account.product.unit,
        "subscription": subscription,
        "period_ends": subscription and pages.period(subscription, now)[1],
        "month": margin.account(account_id=account.pk, since=until - timedelta(days=DAYS), until=until),
        "throttles": Throttle.objects.filter(account=account).order_by("-id")[:SHOWN],
        "standing": stands,
        "limits": [limit for limit in standing.of_account(account, product=account.product, now=now).limits if not limit.hidden],
        "overrides": overrides.in_force(account=account, now=now),
        "cost_throttles": CostThrottle.objects.filter(account=account)[:SHOWN],
        "keys": keys,
        "memberships": memberships,
        "seen_at": max(filter(None, seen), default=None),
        "at_stripe": _at_stripe(account),
    }  # fmt: skip


def _usage(account: Account) -> dict[str, Any]:
    """The last finished work, with what was reversed of it, and what is open."""
    records = list(UsageRecord.objects.filter(account=account).select_related("model", "feature").order_by("-recorded_at")[:SHOWN])
    reversed_ = set(
        Operation.objects.filter(account=account, verb="reverse", target__in=[r.pk for r in records]).values_list("target", flat=True)
    )
    digits = sub_digits([nanos or 0 for record in records for nanos in (record.price_nanos, record.cost_nanos)])
    return {
        "digits": digits,
        "records": [
            (
                record,
                f"{account.pk}-{record.pk}",
                charged(record, digits=digits),
                earned(record, reversed_=record.pk in reversed_),
                record.pk in reversed_,
            )
            for record in records
        ],
        "open": OpenAuthorization.objects.filter(account=account).select_related("model", "feature").order_by("-created_at")[:SHOWN],
    }


def _ledger(account: Account, now: datetime) -> dict[str, Any]:
    """Wallets, what is left of grants, the last entries, and what people did."""
    entries = list(LedgerEntry.objects.filter(account=account).select_related("unit").order_by("-recorded_at", "-seq")[:SHOWN])
    grants = Grant.objects.filter(account=account, closed=False, remaining__gt=0).defer("expires_at").annotate(ends_at=ENDS_AT)
    return {
        "wallets": [(wallet, unit(wallet.unit_id)) for wallet in balances.of_account(account, now=now)],
        "grants": grants.select_related("unit")[: 2 * SHOWN],
        "entries": entries,
        "entry_digits": sub_digits([value for entry in entries for value in (entry.amount, entry.balance_after)]),
        "operations": Operation.objects.filter(account=account).order_by("-id")[:SHOWN],
    }


def _told(account: Account) -> dict[str, Any]:
    """What the customer was mailed, what its client apps were told, and what people did to the account."""
    of_accounts = ContentType.objects.get_for_model(Account)
    acts = LogEntry.objects.filter(audit__account=account).select_related("user").order_by("-pk")
    return {
        "mails": account.mails.order_by("-queued_at", "-pk")[:SHOWN],
        "events": WebhookEvent.objects.filter(account=account).prefetch_related("deliveries").order_by("-created_at", "-pk")[:SHOWN],
        "acts_done": [(entry, entry.get_change_message() or entry.get_action_flag_display()) for entry in acts[:SHOWN]],
        "account_type": of_accounts.pk,
    }


def _at_stripe(account: Account) -> list[AtStripe]:
    """Its customer, its subscriptions, and its last payments and invoices there."""
    found = [
        AtStripe("Customer", one.pk, stripe_dashboard.page(one.pk), "", one.created_at)
        for one in StripeCustomer.objects.filter(account=account)
    ]
    found += [
        AtStripe("Subscription", one.pk, stripe_dashboard.page(one.pk), one.status.replace("_", " "), one.started_at)
        for one in account.stripe_subscriptions.order_by("-started_at")[:SHOWN]
    ]
    for payment in account.stripe_payments.order_by("-created_at")[:SHOWN]:
        paid = f"{cents(payment.paid, payment.currency)} {payment.status.replace('_', ' ')}"
        back = f", {cents(payment.refunded, payment.currency)} given back" if payment.refunded else ""
        says = f"{paid}{back}{', disputed' if payment.disputed else ''}"
        left = payment.paid - payment.refunded if payment.status == "succeeded" and not payment.disputed else 0
        found.append(AtStripe("Payment", payment.pk, stripe_dashboard.page(payment.pk), says, payment.created_at, left))
    for invoice in account.stripe_invoices.order_by("-created_at")[:SHOWN]:
        says = f"{invoice.number or 'no number yet'}: {cents(invoice.total, invoice.currency)} {invoice.status}"
        found.append(AtStripe("Invoice", invoice.pk, stripe_dashboard.page(invoice.pk), says, invoice.created_at))
    return found
