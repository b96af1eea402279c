"""Accounts from before their product charged are given its announcement credit: once each, told by a mail, however often it is run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import Account, Mail
from billing import announcements, ledger
from billing.models import Grant, Operation
from pricing.models import Product
from tests.factories import NANOS, make_account, make_product

pytestmark = pytest.mark.django_db
LAUNCH = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def product() -> Product:
    return make_product(announcement_credit_nanos=5 * NANOS, guest_plan="free", burn_order=["welcome", "announcement", "purchased"])


def run(product: Product, *options: str, opened_before: datetime = LAUNCH) -> str:
    out = StringIO()
    call_command("announcement_credit", product.slug, "--opened-before", opened_before.isoformat(), "--actor", "ada", *options, stdout=out)
    return out.getvalue()


def given(account: Account) -> list[int]:
    return list(Grant.objects.filter(account=account, source="announcement").values_list("granted", flat=True))


def test_each_account_has_it_once_with_who_gave_it_and_its_mail(product: Product) -> None:
    accounts = [make_account(product) for _ in range(3)]
    assert run(product) == f"3 accounts of {product.name}, $5.00 each: $15.00\n3 of 3\n"
    assert run(product) == f"0 accounts of {product.name}, $5.00 each: $0.00\n"
    for account in accounts:
        assert given(account) == [5 * NANOS]
        act = Operation.objects.get(account=account, verb="grant")
        assert (act.actor, act.reason) == ("ada", "Launch credit")
        [mail] = Mail.objects.filter(account=account)
        assert (mail.kind, mail.context) == ("account_credits", {"granted_nanos": 5 * NANOS, "balance_nanos": 5 * NANOS})


def test_who_is_new_was_welcomed_has_closed_or_is_a_guest_gets_none(product: Product) -> None:
    now = timezone.now()
    guest, closed, late = make_account(product, kind="guest"), make_account(product), make_account(product)
    Account.objects.filter(pk=closed.pk).update(closed_at=now)
    Account.objects.filter(pk=late.pk).update(created_at=LAUNCH)
    Product.objects.filter(pk=product.pk).update(welcome_credit_nanos=10 * NANOS)
    product.refresh_from_db()
    others = [make_account(product), make_account(make_product(announcement_credit_nanos=NANOS))]
    assert run(product).startswith("0 accounts")
    assert [given(account) for account in (guest, closed, late, *others)] == [[]] * 5


def test_one_that_broke_off_is_finished_by_the_next_also_after_the_amount_was_changed(product: Product) -> None:
    first, second = make_account(product), make_account(product)
    announcements.grant(account=first, actor="ada", now=timezone.now())
    Product.objects.filter(pk=product.pk).update(announcement_credit_nanos=7 * NANOS)
    product.refresh_from_db()
    assert run(product).startswith("1 accounts")
    assert (given(first), given(second)) == ([5 * NANOS], [7 * NANOS])


def test_two_at_once_grant_once(product: Product) -> None:
    """The other run had the account on its list too."""
    account = make_account(product)
    now = timezone.now()
    assert not announcements.grant(account=account, actor="ada", now=now).replayed
    assert announcements.grant(account=account, actor="ada", now=now).replayed
    account.product.announcement_credit_nanos = 6 * NANOS
    with pytest.raises(ledger.KeyReused):
        announcements.grant(account=account, actor="ada", now=now)
    assert (given(account), Mail.objects.filter(account=account).count()) == ([5 * NANOS], 1)


def test_a_dry_run_says_how_much_and_grants_nothing(product: Product) -> None:
    account = make_account(product)
    assert run(product, "--dry-run") == f"1 accounts of {product.name}, $5.00 each: $5.00\n"
    assert (given(account), Mail.objects.filter(account=account).count()) == ([], 0)


@pytest.mark.parametrize(
    "options",
    [
        ["no-such-product", "--opened-before", "2026-01-01", "--actor", "ada"],
        ["rover\0", "--opened-before", "2026-01-01", "--actor", "ada"],
        ["PRODUCT", "--actor", "ada"],
        ["PRODUCT", "--opened-before", "yesterday", "--actor", "ada"],
        ["PRODUCT", "--opened-before", "0001-01-01T00:00:00+14:00", "--actor", "ada"],
        ["PRODUCT", "--opened-before", "2026-01-01"],
        ["PRODUCT", "--opened-before", "2026-01-01", "--actor", " "],
        ["PRODUCT", "--opened-before", "2026-01-01", "--actor", "a\nb"],
    ],
)
def test_garbage_is_refused(product: Product, options: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("announcement_credit", *[product.slug if option == "PRODUCT" else option for option in options])


def test_a_product_without_such_credit_gives_none() -> None:
    with pytest.raises(CommandError, match="no announcement_credit"):
        run(make_product())
