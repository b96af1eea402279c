"""What billing does when an account is opened: its ledger, its plan, the welcome credit; a guest gets the last two when it signs up. In the
opening's transaction, and in that of the sign-up."""

from datetime import datetime

from django.dispatch import receiver

from accounts import mails
from accounts.models import Account, Mail
from accounts.signals import account_opened, guest_signed_up
from billing import ledger, subscriptions


@receiver(account_opened)
def open_ledger(*, account: Account, now: datetime, **_: object) -> None:
    ledger.open_account(account_id=account.pk)
    if account.kind == Account.Kind.GUEST:
        subscriptions.start(account=account, plan=account.product.guest_plan, now=now)
    else:
        _welcome(account, now)


@receiver(guest_signed_up)
def leave_guest_plan(*, account: Account, now: datetime, **_: object) -> None:
    subscriptions.end(account=account, now=now)
    _welcome(account, now)


def _welcome(account: Account, now: datetime) -> None:
    """The default plan, and the welcome credit with its mail."""
    subscriptions.start(account=account, plan=account.product.default_plan, now=now)
    if account.product.welcome_credit_nanos:
        granted = subscriptions.grant_welcome_credit(account=account)
        context = {"granted_nanos": granted.amount_nanos, "balance_nanos": granted.balance_nanos}
        mails.queue(account=account, kind=Mail.Kind.ACCOUNT_CREDITS, key="welcome", context=context, now=now)
