"""Accounts are opened once, sign-up opens one, and forgetting a person keeps the money."""

from __future__ import annotations

import threading
import zoneinfo
from collections.abc import Iterator
from datetime import timedelta

import pytest
from allauth.account.models import EmailAddress
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import ProtectedError
from django.test import Client
from pytest_django import Settings

from accounts import api_keys, registration, signals
from accounts.models import Account, ApiKey, Membership, User
from accounts.tests.conftest import NOW, make_account, make_user
from pricing.models import Product
from tests.factories import make_product

PASSWORD = "correct horse battery"


@pytest.fixture
def opened() -> Iterator[list[Account]]:
    """The accounts announced during the test."""
    announced: list[Account] = []

    def hear(sender: object, account: Account, now: object, **_: object) -> None:
        announced.append(account)

    signals.account_opened.connect(hear)
    yield announced
    signals.account_opened.disconnect(hear)


class TestOpenAccount:
    def test_a_new_account_is_announced_once_with_its_owner(self, product: Product, user: User, opened: list[Account]) -> None:
        account = registration.open_account(product=product, external_id="u-1", name="Ada", owner=user, now=NOW)
        assert opened == [account]
        assert account.created_at == NOW
        assert account.memberships.get().user == user

    def test_the_same_external_id_returns_the_account_and_changes_nothing(
        self, product: Product, user: User, opened: list[Account]
    ) -> None:
        first = registration.open_account(product=product, external_id="u-1", name="Ada", now=NOW)
        again = registration.open_account(product=product, external_id="u-1", name="Eve", owner=user, now=NOW + timedelta(days=1))
        assert (again.pk, again.name, again.created_at) == (first.pk, "Ada", NOW)
        assert not Membership.objects.filter(user=user).exists()
        assert len(opened) == 1

    def test_two_products_may_use_the_same_external_id(self, product: Product) -> None:
        other = make_product()
        ids = {registration.open_account(product=one, external_id="u-1", name="Ada", now=NOW).pk for one in (product, other)}
        assert len(ids) == 2

    def test_calls_at_once_open_one_account(self, committed: None, opened: list[Account]) -> None:
        product = make_product()
        start, ids, errors = threading.Barrier(6), [], []

        def call() -> None:
            start.wait()
            try:
                ids.append(registration.open_account(product=product, external_id="u-1", name="Ada", now=NOW).pk)
            except Exception as error:  # noqa: BLE001 (reported by the assertion below)
                errors.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(ids) == 6
        assert len(set(ids)) == 1
        assert len(opened) == 1

    def test_when_a_receiver_fails_no_account_was_opened(self, product: Product) -> None:
        def fail(**_: object) -> None:
            raise RuntimeError("no wallet")

        signals.account_opened.connect(fail)
        try:
            with pytest.raises(RuntimeError, match="no wallet"):
                registration.open_account(product=product, external_id="u-1", name="Ada", now=NOW)
        finally:
            signals.account_opened.disconnect(fail)
        assert not Account.objects.filter(product=product).exists()

    def test_without_a_time_zone_it_is_the_products(self, db: None) -> None:
        assert make_account(make_product(time_zone="Asia/Tokyo")).time_zone == "Asia/Tokyo"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("external_id", ""),
            ("external_id", "acct_0123"),
            ("external_id", "x" * 129),
            ("external_id", "a\x00b"),
            ("external_id", "\ud800"),
            ("name", ""),
            ("name", "x" * 121),
            ("name", "line\nbreak"),
            ("kind", "robot"),
            ("time_zone", "Mars/Olympus"),
            ("time_zone", "europe/paris"),
            ("time_zone", "localtime"),
            ("time_zone", "../../etc/passwd"),
            ("time_zone", "UTC\x00"),
            ("billing_email", "not an address"),
        ],
    )
    def test_garbage_is_refused_by_field(self, product: Product, field: str, value: str) -> None:
        with pytest.raises(registration.InvalidAccount) as refusal:
            make_account(product, owner=None, **{field: value})
        assert refusal.value.field == field
        assert not Account.objects.filter(product=product).exists()

    @pytest.mark.parametrize("zone", ["Mars/Olympus", ""])
    def test_the_database_refuses_a_time_zone_that_it_does_not_know(self, account: Account, zone: str) -> None:
        with pytest.raises(DatabaseError), transaction.atomic():
            Account.objects.filter(pk=account.pk).update(time_zone=zone)

    def test_every_time_zone_that_we_accept_is_known_to_the_database(self, account: Account) -> None:
        refused = []
        for zone in sorted(zoneinfo.available_timezones() - {"Factory", "localtime"}):
            try:
                with transaction.atomic():
                    Account.objects.filter(pk=account.pk).update(time_zone=zone)
            except DatabaseError:
                refused.append(zone)
        assert refused == []

    @pytest.mark.parametrize("external_id", ["", "acct_1"])
    def test_the_database_refuses_an_external_id_that_could_be_ours(self, product: Product, external_id: str) -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            Account.objects.create(product=product, external_id=external_id, name="Ada")


class TestSignUp:
    def sign_up(self, client: Client, address: str, email: str, password: str = PASSWORD) -> int:
        fields = {"email": email, "password1": password, "password2": password}
        return client.post(address, fields).status_code

    def test_it_opens_a_person_account_of_the_product_in_the_address(self, client: Client, product: Product, opened: list[Account]) -> None:
        assert self.sign_up(client, f"/accounts/signup/?product={product.slug}", "Ada@Example.com") == 302
        user = User.objects.get(email="ada@example.com")
        account = Account.objects.get(product=product)
        assert (account.external_id, account.kind, account.name) == (str(user.pk), "person", "ada")
        assert account.memberships.get().role == "owner"
        assert opened == [account]

    def test_when_the_account_cannot_be_opened_there_is_no_user_either(self, client: Client, product: Product) -> None:
        def fail(**_: object) -> None:
            raise RuntimeError("no wallet")

        signals.account_opened.connect(fail)
        try:
            with pytest.raises(RuntimeError):
                self.sign_up(client, f"/accounts/signup/?product={product.slug}", "ada@example.com")
        finally:
            signals.account_opened.disconnect(fail)
        assert not User.objects.filter(email="ada@example.com").exists()

    def test_an_unknown_product_is_said_before_anything_is_typed(self, client: Client, product: Product) -> None:
        response = client.get("/accounts/signup/?product=no-such-product")
        assert "account/signup_closed.html" in [template.name for template in response.templates]
        self.sign_up(client, "/accounts/signup/?product=no-such-product", "ada@example.com")
        assert not User.objects.filter(email="ada@example.com").exists()

    @pytest.mark.parametrize("email", ["", "no-address", "a@b", "x" * 300 + "@example.com", "a\x00b@example.com", "<b>@example.com"])
    def test_garbage_is_answered_beside_the_field(self, client: Client, product: Product, email: str) -> None:
        assert self.sign_up(client, f"/accounts/signup/?product={product.slug}", email) == 200
        assert not Account.objects.filter(product=product).exists()

    @pytest.mark.parametrize("email", ["x" * 242 + "@example.com", '"a\x01b"@example.com'])
    def test_an_address_too_odd_for_a_name_still_signs_up(self, client: Client, product: Product, email: str) -> None:
        assert self.sign_up(client, f"/accounts/signup/?product={product.slug}", email) == 302
        assert Account.objects.get(product=product).billing_email == email

    def test_a_known_address_gets_no_second_account_and_is_not_told(self, client: Client, product: Product, user: User) -> None:
        EmailAddress.objects.create(user=user, email=user.email, verified=True, primary=True)
        assert self.sign_up(client, f"/accounts/signup/?product={product.slug}", user.email) == 302
        assert User.objects.filter(email=user.email).count() == 1
        assert not Account.objects.filter(product=product).exists()


class TestWhichProduct:
    def test_the_name_decides_before_the_host(self, db: None) -> None:
        hosted = make_product(allowed_origins=["https://chat.example"])
        named = make_product()
        assert registration.product_for(slug=named.slug, host="chat.example") == named
        assert registration.product_for(slug="", host="chat.example") == hosted

    @pytest.mark.parametrize("slug", ["no-such", "a\x00b", "%", "x" * 10_000])
    def test_an_unknown_name_is_never_another_product(self, db: None, slug: str) -> None:
        make_product()
        with pytest.raises(registration.UnknownProduct):
            registration.product_for(slug=slug, host="testserver")

    def test_among_several_products_none_is_guessed(self, db: None) -> None:
        make_product(), make_product()
        with pytest.raises(registration.UnknownProduct):
            registration.product_for(slug="", host="elsewhere.example")

    def test_the_default_product_takes_who_names_none(self, db: None, settings: Settings) -> None:
        default = make_product()
        make_product()
        settings.DEFAULT_PRODUCT = default.slug
        assert registration.product_for(slug="", host="elsewhere.example") == default

    def test_the_only_product_needs_no_name(self, product: Product) -> None:
        assert registration.choose_product([product], slug="", host="elsewhere.example") == product
        with pytest.raises(registration.UnknownProduct):
            registration.choose_product([], slug="", host="elsewhere.example")


class TestForgetUser:
    def test_the_person_is_gone_and_the_accounts_are_not(self, product: Product, user: User, account: Account) -> None:
        email = user.email
        EmailAddress.objects.create(user=user, email=email, verified=True, primary=True)
        key = api_keys.issue(product=product, account=account, name="k", scopes=["usage:read"], now=NOW, created_by=email)
        registration.forget_user(user=user, now=NOW)
        registration.forget_user(user=user, now=NOW + timedelta(days=1))
        account.refresh_from_db()
        user.refresh_from_db()
        assert (account.name, account.billing_email, account.closed_at) == ("Forgotten", "", NOW)
        assert not user.is_active
        assert not user.has_usable_password()
        assert email not in (user.email, ApiKey.objects.get(pk=key.key.pk).created_by)
        assert not EmailAddress.objects.filter(email=email).exists()
        assert account.memberships.get().user == user
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=key.token, now=NOW + timedelta(minutes=1))

    def test_what_others_use_too_stays_open(self, product: Product, user: User) -> None:
        team = make_account(product, owner=user, kind="team")
        shared = make_account(product, owner=user)
        Membership.objects.create(account=shared, user=make_user())
        registration.forget_user(user=user, now=NOW)
        assert list(Account.objects.filter(pk__in=[team.pk, shared.pk]).values_list("closed_at", flat=True)) == [None, None]

    def test_open_sessions_end(self, client: Client, user: User, account: Account) -> None:
        client.force_login(user)
        registration.forget_user(user=user, now=NOW)
        assert client.get("/accounts/email/").status_code == 302

    def test_a_user_with_an_account_is_never_deleted(self, user: User, account: Account) -> None:
        with pytest.raises(ProtectedError):
            user.delete()

    def test_an_account_with_a_key_is_never_deleted(self, product: Product, account: Account) -> None:
        api_keys.issue(product=product, account=account, name="k", scopes=["usage:read"], now=NOW)
        with pytest.raises(ProtectedError):
            account.delete()


def test_two_users_never_share_an_address_in_another_spelling(user: User) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create(email=user.email.upper())
