"""The second wall: what the role ``authenticated`` can read, and that nobody inherits somebody else's claims."""

from __future__ import annotations

import json
import threading
import uuid

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import ProgrammingError, connection, transaction
from django.db.models import Model

from accounts import tenancy
from accounts.models import Account, ApiKey, Membership, User
from accounts.tests.conftest import make_account, make_user
from pricing.models import PriceRow, Product, RateCardPrice
from tests.factories import make_product


def seen() -> set[int]:
    """The accounts that the connection can see, with no scoping in code at all."""
    return set(Account.objects.values_list("pk", flat=True))


def role_and_claims() -> tuple[str, str, str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select current_user, coalesce(current_setting('request.jwt.claims', true), ''),"
            " coalesce(current_setting('request.jwt.claim.sub', true), '')"
        )
        row: tuple[str, str, str] = cursor.fetchone()
    return row


class TestWhatIsSeen:
    def test_a_user_sees_the_accounts_they_belong_to_and_no_other(self, product: Product, user: User, account: Account) -> None:
        other = make_account(product, owner=make_user())
        team = make_account(product, owner=user, kind=Account.Kind.TEAM)
        with tenancy.acting_as(user=user):
            assert seen() == {account.pk, team.pk}
            assert not Account.objects.filter(pk=other.pk).exists()

    def test_an_account_sees_itself_and_no_other(self, product: Product, account: Account) -> None:
        make_account(product)
        with tenancy.acting_as(account=account):
            assert seen() == {account.pk}

    def test_memberships_of_other_accounts_are_invisible(self, product: Product, user: User, account: Account) -> None:
        make_account(product, owner=make_user())
        with tenancy.acting_as(user=user):
            assert set(Membership.objects.values_list("account_id", flat=True)) == {account.pk}

    def test_an_inactive_user_sees_nothing(self, user: User, account: Account) -> None:
        User.objects.filter(pk=user.pk).update(is_active=False)
        with tenancy.acting_as(user=user):
            assert seen() == set()

    def test_the_programs_own_role_sees_every_account(self, product: Product, account: Account) -> None:
        other = make_account(product)
        assert {account.pk, other.pk} <= seen()

    @pytest.mark.parametrize("model", [ApiKey, User, Product, PriceRow, RateCardPrice])
    def test_keys_users_policies_and_prices_are_out_of_reach(self, user: User, account: Account, model: type[Model]) -> None:
        with pytest.raises(ProgrammingError, match="permission denied"), tenancy.acting_as(user=user):
            model._default_manager.first()

    @pytest.mark.parametrize("statement", ["update accounts_account set name = 'x'", "delete from accounts_membership"])
    def test_nothing_can_be_written(self, user: User, account: Account, statement: str) -> None:
        with pytest.raises(ProgrammingError, match="permission denied"), tenancy.acting_as(user=user), connection.cursor() as cursor:
            cursor.execute(statement)


class TestClaims:
    @pytest.mark.parametrize(
        "claims",
        [
            "",
            "{",
            "null",
            "42",
            '"text"',
            "[]",
            "{}",
            '{"sub": null}',
            '{"sub": 5}',
            '{"sub": ""}',
            '{"sub": "user-id-here"}',
            '{"sub": "\\u0000"}',
            '{"sub": {"a": 1}}',
            '{"account_id": "%(account)s"}',
            '{"account_id": %(account)s.5}',
            '{"account_id": 1e400}',
            '{"account_id": 99999999999999999999}',
            '{"account_id": null}',
            '{"account_id": [%(account)s]}',
            '{"sub": "%(stranger)s", "account_id": %(account)s}',
            '{"sub": null, "account_id": %(account)s}',
            '{"sub": "%(user)s"} trailing',
            "[" * 20_000,
            '{"a":' * 800 + "1" + "}" * 800,
            '{"sub": "%(user)s", "padding": "' + "x" * 5_000 + '"}',
        ],
    )
    def test_claims_that_say_nothing_clear_show_nothing_and_raise_nothing(self, user: User, account: Account, claims: str) -> None:
        for name in ("account", "user", "stranger"):
            value = {"account": account.pk, "user": user.pk, "stranger": uuid.uuid4()}[name]
            claims = claims.replace(f"%({name})s", str(value))
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true)", [claims])
            assert seen() == set()

    def test_without_any_claims_the_role_sees_nothing(self, account: Account) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("set local role authenticated")
            assert seen() == set()

    def test_the_older_single_claim_is_honoured(self, user: User, account: Account) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("set local role authenticated")
            cursor.execute("select set_config('request.jwt.claim.sub', %s, true)", [str(user.pk)])
            assert seen() == {account.pk}

    def test_the_older_single_claim_never_outranks_the_claims(self, product: Product, user: User, account: Account) -> None:
        other = make_user()
        theirs = make_account(product, owner=other)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select set_config('request.jwt.claim.sub', %s, true)", [str(user.pk)])
            with tenancy.acting_as(user=other):
                assert seen() == {theirs.pk}

    def test_the_chat_documents_check_with_a_name_that_is_no_uuid_shows_nothing(self, account: Account) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("set local role authenticated")
            cursor.execute("set local request.jwt.claim.sub = 'user-id-here'")
            assert seen() == set()

    def test_it_acts_for_exactly_one_saved_user_or_account(self, user: User, account: Account) -> None:
        for arguments in ({}, {"user": user, "account": account}, {"user": AnonymousUser()}, {"account": Account()}):
            with pytest.raises(ValueError, match="act"), tenancy.acting_as(**arguments):
                pass


class TestAfterwards:
    def test_role_and_claims_end_with_the_block_inside_another_transaction(self, user: User, account: Account) -> None:
        before = role_and_claims()
        with transaction.atomic():
            with tenancy.acting_as(user=user):
                assert role_and_claims()[0] == "authenticated"
            assert role_and_claims() == before

    def test_an_error_in_the_block_ends_them_too(self, user: User, account: Account) -> None:
        before = role_and_claims()
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), tenancy.acting_as(user=user):
                raise ZeroDivisionError
            assert role_and_claims() == before

    def test_a_database_error_in_the_block_ends_them_too(self, user: User, account: Account) -> None:
        before = role_and_claims()
        with transaction.atomic():
            with pytest.raises(ProgrammingError), tenancy.acting_as(user=user):
                User.objects.first()
            assert role_and_claims() == before

    def test_one_block_within_another_gives_the_first_back(self, product: Product, user: User, account: Account) -> None:
        other = make_user()
        theirs = make_account(product, owner=other)
        with tenancy.acting_as(user=user):
            with tenancy.acting_as(user=other):
                assert seen() == {theirs.pk}
            assert seen() == {account.pk}

    def test_the_next_borrower_of_a_pooled_connection_finds_nothing(self, committed: None) -> None:
        user = make_user()
        make_account(make_product(), owner=user)
        assert connection.settings_dict["OPTIONS"]["pool"], "this test is about the pool"
        before = role_and_claims()
        connection.close()
        with tenancy.acting_as(user=user):
            backend = _backend()
        connection.close()  # gives the connection back to the pool
        for _ in range(20):
            if _backend() == backend:
                break
            connection.close()
        else:
            pytest.fail("the pool never lent the same connection again")
        assert role_and_claims() == before

    def test_the_next_borrower_finds_nothing_after_an_error_either(self, committed: None) -> None:
        user = make_user()
        make_account(make_product(), owner=user)
        before = role_and_claims()
        with pytest.raises(ProgrammingError), tenancy.acting_as(user=user):
            User.objects.first()
        connection.close()
        for _ in range(10):
            assert role_and_claims() == before
            connection.close()

    def test_threads_at_once_see_their_own_accounts_only(self, committed: None) -> None:
        product = make_product()
        owners = [make_user() for _ in range(8)]
        accounts = {owner.pk: make_account(product, owner=owner).pk for owner in owners}
        before = role_and_claims()
        start = threading.Barrier(len(owners))
        wrong: list[object] = []

        def read(owner: User) -> None:
            start.wait()
            try:
                for _ in range(25):
                    with tenancy.acting_as(user=owner):
                        if seen() != {accounts[owner.pk]}:
                            wrong.append((owner.pk, seen()))
                    if role_and_claims() != before:
                        wrong.append(role_and_claims())
                    connection.close()
            except Exception as error:  # noqa: BLE001 (reported by the assertion below)
                wrong.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=read, args=[owner]) for owner in owners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_claims_are_json_that_postgrest_would_have_set(user: User, account: Account) -> None:
    with tenancy.acting_as(user=user):
        assert json.loads(role_and_claims()[1]) == {"sub": str(user.pk)}
    with tenancy.acting_as(account=account):
        assert json.loads(role_and_claims()[1]) == {"account_id": account.pk}


def _backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
    return pid
