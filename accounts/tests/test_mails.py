"""The outbox: written once with what it tells of, sent once, to those who may have it, whatever is wrong with it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.mail import EmailMultiAlternatives
from django.db import ProgrammingError, transaction

from accounts import mail_delivery, mails, tenancy
from accounts.models import Account, Mail
from accounts.tests.conftest import NOW, make_account
from pricing.models import Product

NANOS = 1_000_000_000
AT = datetime(2026, 4, 1, 0, 30, tzinfo=UTC)
#: What each kind of mail may tell.
FACTS: dict[str, dict[str, object]] = {
    "receipt": {
        "paid_cents": 2_500, "currency": "usd", "paid_at": AT, "what": "Credit pack", "granted_nanos": 25 * NANOS,
        "balance_nanos": 27 * NANOS,
    },
    "payment_failed": {"amount_cents": 2_900, "currency": "eur", "plan": "Pro", "retry_at": AT, "until": AT + timedelta(days=7)},
    "trial_ending": {"plan": "Pro", "ends_at": AT, "price_cents": 2_900},
    "limit_warning": {"what": "messages", "window": "day", "percent": 80, "stops": True, "used": 800, "allowed": 1_000, "resets_at": AT},
    "low_balance": {"balance_nanos": 2 * NANOS},
    "account_credits": {"granted_nanos": 5 * NANOS, "expires_at": AT},
    "grace_ending": {"plan": "Pro", "ends_at": AT, "next_plan": "Free"},
    "plan_ended": {"plan": "Pro", "ended_at": AT, "next_plan": "Free", "unpaid": True},
    "top_up_failed": {"amount_cents": 2_000, "currency": "usd", "why": "The card was declined."},
    "invitation": {"invited_by": str(uuid.UUID(int=0)), "role": "admin", "url": "/join/secret-token"},
}  # fmt: skip


def write(account: Account, kind: str = "low_balance", *, key: str = "1", now: datetime = NOW, **more: Any) -> Mail:
    mails.queue(account=account, kind=kind, key=key, context=more.pop("context", FACTS[kind]), now=now, **more)
    return Mail.objects.get(account=account, kind=kind, key=key)


def parts(message: Any) -> tuple[str, str]:
    """The text and the HTML of what was sent."""
    assert isinstance(message, EmailMultiAlternatives)
    return str(message.body), str(message.alternatives[0][0])


def told(mail: Mail) -> tuple[EmailMultiAlternatives, str, str]:
    message = mail_delivery.compose(
        mail=Mail.objects.select_related("account__product__unit").get(pk=mail.pk), recipients=["ada@example.com"]
    )
    return message, *parts(message)


class TestQueue:
    def test_a_key_is_queued_once_whatever_it_says_the_second_time(self, account: Account) -> None:
        first = write(account)
        mails.queue(account=account, kind="low_balance", key="1", context={"balance_nanos": 9}, now=NOW + timedelta(days=1))
        assert Mail.objects.get(account=account) == first
        assert Mail.objects.get(account=account).context == {"balance_nanos": 2 * NANOS}

    def test_another_kind_key_or_account_is_another_mail(self, account: Account, product: Product) -> None:
        write(account), write(account, key="2"), write(account, "plan_ended"), write(make_account(product))
        assert Mail.objects.filter(account__product=product).count() == 4

    @pytest.mark.failure(80)
    def test_what_is_rolled_back_leaves_no_mail(self, account: Account) -> None:
        with transaction.atomic():
            write(account)
            transaction.set_rollback(True)
        assert not Mail.objects.filter(account=account).exists()

    @pytest.mark.parametrize(
        ("kind", "context"),
        [
            ("low_balance", {}),
            ("low_balance", {"balance_nanos": "2"}),
            ("low_balance", {"balance_nanos": True}),
            ("low_balance", {"balance_nanos": 2.5}),
            ("low_balance", {"balance_nanos": 2, "more": 1}),
            ("plan_ended", FACTS["plan_ended"] | {"ended_at": datetime(2026, 1, 1)}),  # noqa: DTZ001
            ("invitation", FACTS["invitation"] | {"url": "javascript:alert(1)"}),
            ("invitation", FACTS["invitation"] | {"url": "//evil.example"}),
            ("invitation", FACTS["invitation"] | {"url": "https://ok.example/\nBcc: x@y.example"}),
            ("invitation", FACTS["invitation"] | {"url": "https://[broken"}),
            ("no_such_kind_of_mail_at_all", {}),
        ],
    )
    def test_facts_that_are_wrong_stop_nobody_and_wait_for_staff(self, account: Account, kind: str, context: dict[str, object]) -> None:
        mails.queue(account=account, kind=kind, key="1", context=context, now=NOW)
        mail = Mail.objects.get(account=account)
        assert (mail.state, mail.context, bool(mail.reason)) == ("dead", {}, True)

    @pytest.mark.parametrize("recipient", ["nobody", "a@b.example\nBcc: c@d.example", "x" * 300 + "@example.com"])
    def test_a_recipient_that_is_no_address_stops_nobody_and_gets_nothing(self, account: Account, recipient: str) -> None:
        mail = write(account, "invitation", recipient=recipient)
        assert (mail.state, mail.recipient) == ("dead", "")

    def test_keys_may_be_anything_and_stay_apart(self, account: Account) -> None:
        for key in ["x" * 5_000, "x" * 5_001, "\0", "\ud800", "é"]:
            mails.queue(account=account, kind="low_balance", key=key, context=FACTS["low_balance"], now=NOW)
            mails.queue(account=account, kind="low_balance", key=key, context=FACTS["low_balance"], now=NOW)
        assert Mail.objects.filter(account=account).count() == 5

    def test_a_tenant_reads_no_mails(self, account: Account) -> None:
        write(account)
        with pytest.raises(ProgrammingError, match="permission denied"), tenancy.acting_as(account=account):
            list(Mail.objects.all())
