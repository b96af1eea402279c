"""What billing does when an account is opened: its ledger, the product's default plan, the welcome credit. In the opening's transaction."""

from datetime import datetime

from django.dispatch import receiver

from accounts.models import Account
from accounts.signals import account_opened
from billing import ledger, subscriptions


@receiver(account_opened)
def open_ledger(*, account: Account, now: datetime, **_: object) -> None:
    ledger.open_account(account_id=account.pk)
    subscriptions.start(account=account, plan=account.product.default_plan, now=now)
    if account.product.welcome_credit_nanos:
        subscriptions.grant_welcome_credit(account=account)
