"""Gives accounts that have no ledger what opening one gives: after a recovery that brought accounts back and not their balances.

    lacking   the accounts of a product that have no ledger
    reopen    gives one its ledger, its plan's credit and the welcome credit

Nobody is given anything twice: an account that has a ledger is left alone, and each grant has the key that it had the first time.
"""

from __future__ import annotations

from datetime import datetime

from django.db import transaction

from accounts.models import Account
from billing import ledger, subscriptions
from pricing.models import Product


def lacking(*, product: Product) -> list[Account]:
    """Those that are open, the oldest first."""
    accounts = {account.pk: account for account in product.accounts.select_related("product__unit").filter(closed_at=None).order_by("pk")}
    return [accounts[id_] for id_ in sorted(ledger.unopened(account_ids=list(accounts)))]


def reopen(*, account: Account, now: datetime) -> None:
    """In one transaction. What was paid for is not granted here: ``manage.py stripe reconcile`` finds it."""
    guest = account.kind == Account.Kind.GUEST
    with transaction.atomic():
        ledger.open_account(account_id=account.pk)
        current = subscriptions.current(account_id=account.pk)
        if current is None:
            subscriptions.start(account=account, plan=account.product.guest_plan if guest else account.product.default_plan, now=now)
        elif current.plan_version.price_cents == 0 and current.plan_version.included_credit_nanos:
            subscriptions.schedule_included_credit(subscription=current)
        if not guest and account.product.welcome_credit_nanos:
            subscriptions.grant_welcome_credit(account=account)
