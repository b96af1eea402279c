"""The credit of accounts that were there before their product charged: granted once an account, and told by a mail.

due    the accounts that have it coming
grant  gives it to one of them
"""

from __future__ import annotations

from datetime import datetime

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from accounts import mails
from accounts.models import Account, Mail
from billing import ledger, subscriptions
from billing.models import Grant
from pricing.models import Product

SOURCE = "announcement"


def due(*, product: Product, opened_before: datetime) -> QuerySet[Account]:
    """The open accounts from before ``opened_before`` (exclusive) that have had neither this credit nor a welcome; guests pay nothing."""
    given = Grant.objects.filter(account=OuterRef("pk"), source__in=(SOURCE, "welcome"))
    open_ = Account.objects.filter(product=product, created_at__lt=opened_before, closed_at=None).exclude(kind=Account.Kind.GUEST)
    return open_.exclude(Exists(given)).order_by("pk")


def grant(*, account: Account, actor: str, now: datetime) -> ledger.Operation:
    """Grants the product's announcement credit and queues its mail, in one transaction that it opens. Again it changes nothing.

    :raises ledger.KeyReused: the account was granted another amount before.
    """
    with transaction.atomic():
        granted = ledger.grant(
            account_id=account.pk,
            unit_id=account.product.unit_id,
            amount_nanos=account.product.announcement_credit_nanos,
            source=SOURCE,
            source_key=SOURCE,
            key=SOURCE,
            actor=actor,
            reason="Launch credit",
            priority=subscriptions.priority(product=account.product, source=SOURCE),
        )
        context = {"granted_nanos": granted.amount_nanos, "balance_nanos": granted.balance_nanos}
        mails.queue(account=account, kind=Mail.Kind.ACCOUNT_CREDITS, key=SOURCE, context=context, now=now)
    return granted
