"""Keys: what is stored, who gets in, and how soon a revoked key is out everywhere."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from pytest_django.fixtures import DjangoAssertNumQueries as Queries

from accounts import api_keys
from accounts.models import Account, ApiKey
from accounts.tests.conftest import NOW, make_account
from pricing.models import Product
from tests.factories import make_product


@pytest.fixture
def issued(product: Product) -> api_keys.Issued:
    return api_keys.issue(product=product, name="server", scopes=["usage:write"], now=NOW)


class TestIssue:
    def test_a_token_is_recognisable_and_carries_190_random_bits(self, issued: api_keys.Issued) -> None:
        assert re.fullmatch(r"tg_live_[A-Za-z0-9]{32}", issued.token)
        assert issued.key.prefix == issued.token[:14]

    def test_the_database_has_the_digest_and_nowhere_the_token(self, issued: api_keys.Issued) -> None:
        with connection.cursor() as cursor:
            cursor.execute("select digest, row_to_json(k)::text from accounts_apikey k where id = %s", [issued.key.pk])
            digest, row = cursor.fetchone()
        assert bytes(digest) == hashlib.sha256(issued.token.encode()).digest()
        assert issued.token[14:] not in row

    def test_no_two_tokens_are_alike(self, product: Product) -> None:
        assert len({api_keys.issue(product=product, name="k", scopes=["usage:read"], now=NOW).token for _ in range(50)}) == 50

    @pytest.mark.parametrize(
        "wrong",
        [
            {"scopes": []},
            {"scopes": ["usage:delete"]},
            {"scopes": ["usage:write", ""]},
            {"name": ""},
            {"name": "  "},
            {"name": "x" * 121},
            {"name": "a\x00b"},
            {"expires_at": NOW},
        ],
    )
    def test_a_key_that_makes_no_sense_is_refused(self, product: Product, wrong: dict[str, object]) -> None:
        with pytest.raises(api_keys.InvalidGrant):
            api_keys.issue(**{"product": product, "name": "k", "scopes": ["usage:read"], "now": NOW} | wrong)  # type: ignore[arg-type]
        assert not ApiKey.objects.filter(product=product).exists()

    def test_an_account_key_is_never_for_another_products_account(self, account: Account) -> None:
        other = make_product()
        with pytest.raises(api_keys.InvalidGrant):
            api_keys.issue(product=other, account=account, name="k", scopes=["usage:read"], now=NOW)
        with pytest.raises(IntegrityError, match="api_key_account_of_its_product"), transaction.atomic():
            ApiKey.objects.create(product=other, account=account, name="k", prefix="tg_live_x", digest=b"0" * 32, scopes=["usage:read"])

    def test_an_account_key_never_reads_as_staff(self, product: Product, account: Account) -> None:
        with pytest.raises(api_keys.InvalidGrant):
            api_keys.issue(product=product, account=account, name="k", scopes=["admin:read"], now=NOW)
        with pytest.raises(IntegrityError, match="api_key_account_keys_read_no_admin"), transaction.atomic():
            ApiKey.objects.create(product=product, account=account, name="k", prefix="p", digest=b"1" * 32, scopes=["admin:read"])

    @pytest.mark.parametrize("wrong", [{"scopes": []}, {"scopes": ["everything"]}, {"digest": b"short"}])
    def test_the_database_refuses_unknown_scopes_and_anything_but_a_digest(self, product: Product, wrong: dict[str, object]) -> None:
        fields = {"product": product, "name": "k", "prefix": "p", "digest": b"2" * 32, "scopes": ["usage:read"]}
        with pytest.raises(DatabaseError), transaction.atomic():
            ApiKey.objects.create(**fields | wrong)


class TestAuthenticate:
    def test_a_product_key_acts_for_its_product(self, product: Product, issued: api_keys.Issued) -> None:
        principal = api_keys.authenticate(token=issued.token, now=NOW)
        assert (principal.product_id, principal.account_id, principal.key_id) == (product.pk, None, issued.key.pk)

    def test_an_account_key_acts_for_its_account(self, product: Product, account: Account) -> None:
        issued = api_keys.issue(product=product, account=account, name="k", scopes=["usage:read"], now=NOW)
        assert api_keys.authenticate(token=issued.token, now=NOW).account_id == account.pk

    @pytest.mark.parametrize(
        "token",
        [
            "",
            "tg_live_",
            "tg_live_" + "A" * 32,
            "tg_live_" + "é" * 32,
            "tg_live_" + "\x00" * 32,
            "sk_live_" + "A" * 32,
            "x" * 100_000,
            "\ud800" * 40,
        ],
    )
    def test_whatever_is_no_key_is_refused(self, db: None, token: str) -> None:
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=token, now=NOW)

    def test_the_refusal_does_not_say_whether_the_key_exists(self, issued: api_keys.Issued) -> None:
        api_keys.revoke(key=issued.key, now=NOW)
        messages = set()
        for token in (issued.token, "tg_live_" + "A" * 32):
            with pytest.raises(api_keys.InvalidKey) as refusal:
                api_keys.authenticate(token=token, now=NOW)
            messages.add(str(refusal.value))
        assert len(messages) == 1

    def test_a_key_ends_at_its_expiry_to_the_instant_also_when_it_was_just_read(self, product: Product) -> None:
        end = NOW + timedelta(minutes=1)
        token = api_keys.issue(product=product, name="k", scopes=["usage:read"], now=NOW, expires_at=end).token
        api_keys.authenticate(token=token, now=end - timedelta(milliseconds=1))
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=token, now=end)

    def test_a_closed_accounts_key_is_refused(self, product: Product, account: Account) -> None:
        token = api_keys.issue(product=product, account=account, name="k", scopes=["usage:read"], now=NOW).token
        Account.objects.filter(pk=account.pk).update(closed_at=NOW)
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=token, now=NOW)

    def test_a_missing_scope_is_named(self, issued: api_keys.Issued) -> None:
        principal = api_keys.authenticate(token=issued.token, now=NOW)
        principal.require("usage:write")
        with pytest.raises(api_keys.MissingScope, match="usage:read") as refusal:
            principal.require("usage:read")
        assert refusal.value.scope == "usage:read"

    def test_within_a_second_nothing_is_read_again(self, issued: api_keys.Issued, django_assert_num_queries: Queries) -> None:
        api_keys.authenticate(token=issued.token, now=NOW)
        with django_assert_num_queries(0):
            api_keys.authenticate(token=issued.token, now=NOW + timedelta(milliseconds=999))
        with django_assert_num_queries(1):
            api_keys.authenticate(token=issued.token, now=NOW + timedelta(seconds=1))

    def test_a_clock_set_back_makes_it_read_again(self, issued: api_keys.Issued, django_assert_num_queries: Queries) -> None:
        api_keys.authenticate(token=issued.token, now=NOW)
        with django_assert_num_queries(1):
            api_keys.authenticate(token=issued.token, now=NOW - timedelta(hours=1))

    def test_the_cache_is_bounded_and_unknown_tokens_do_not_enter_it(
        self, issued: api_keys.Issued, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(api_keys, "CACHE_KEYS", 2)
        for _ in range(5):
            other = api_keys.issue(product=issued.key.product, name="k", scopes=["usage:read"], now=NOW)
            api_keys.authenticate(token=other.token, now=NOW)
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token="tg_live_" + "A" * 32, now=NOW)
        assert len(api_keys._cache) <= 2


class TestRevoke:
    def test_another_processs_revocation_holds_after_a_second(self, committed: None) -> None:
        issued = api_keys.issue(product=make_product(), name="k", scopes=["usage:read"], now=NOW)
        api_keys.authenticate(token=issued.token, now=NOW)
        done = subprocess.run(
            [sys.executable, "-c", _REVOKE, connection.settings_dict["NAME"], str(issued.key.pk)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=issued.token, now=NOW + timedelta(seconds=api_keys.CACHE_SECONDS))

    def test_the_process_that_revokes_refuses_at_once(self, committed: None) -> None:
        issued = api_keys.issue(product=make_product(), name="k", scopes=["usage:read"], now=NOW)
        api_keys.authenticate(token=issued.token, now=NOW)
        api_keys.revoke(key=issued.key, now=NOW)
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=issued.token, now=NOW)

    def test_revoking_twice_keeps_the_first_time(self, issued: api_keys.Issued) -> None:
        api_keys.revoke(key=issued.key, now=NOW)
        api_keys.revoke(key=issued.key, now=NOW + timedelta(days=1))
        assert ApiKey.objects.get(pk=issued.key.pk).revoked_at == NOW


class TestLastUse:
    def _last_used(self, issued: api_keys.Issued) -> object:
        return ApiKey.objects.get(pk=issued.key.pk).last_used_at

    def test_it_is_noted_at_most_once_a_minute(self, issued: api_keys.Issued) -> None:
        for seconds, expected in ((0, 0), (30, 0), (59, 0), (60, 60), (90, 60), (600, 600)):
            api_keys.authenticate(token=issued.token, now=NOW + timedelta(seconds=seconds))
            assert self._last_used(issued) == NOW + timedelta(seconds=expected)

    def test_a_row_that_somebody_else_holds_does_not_slow_the_request(self, committed: None) -> None:
        issued = api_keys.issue(product=make_product(), name="k", scopes=["usage:read"], now=NOW)
        locked, answered = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic():
                ApiKey.objects.select_for_update().get(pk=issued.key.pk)
                locked.set()
                answered.wait(20)
            connection.close()

        holder = threading.Thread(target=hold)
        holder.start()
        assert locked.wait(20)
        with connection.cursor() as cursor:
            cursor.execute("set lock_timeout = '200ms'")
        try:
            assert api_keys.authenticate(token=issued.token, now=NOW).key_id == issued.key.pk
        finally:
            with connection.cursor() as cursor:
                cursor.execute("reset lock_timeout")
            answered.set()
            holder.join()
        assert self._last_used(issued) is None


class TestCommand:
    def run(self, *arguments: str) -> str:
        out = io.StringIO()
        call_command("api_key", *arguments, stdout=out, stderr=io.StringIO())
        return out.getvalue()

    def test_issue_prints_a_working_token_once_and_list_never(self, product: Product) -> None:
        token = self.run("issue", product.slug, "server", "--scope", "usage:write", "--scope", "usage:read").strip()
        key = ApiKey.objects.get(product=product)
        assert api_keys.authenticate(token=token, now=key.created_at).scopes == {"usage:write", "usage:read"}
        listed = self.run("list", product.slug)
        assert key.prefix in listed
        assert token not in listed

    def test_an_account_key_is_issued_by_either_id(self, product: Product, account: Account) -> None:
        for name in (account.public_id, account.external_id):
            self.run("issue", product.slug, "k", "--scope", "usage:read", "--account", name, "--days", "30")
        assert list(ApiKey.objects.values_list("account_id", flat=True).filter(product=product)) == [account.pk, account.pk]

    def test_revoke_ends_the_key_and_takes_it_from_the_list(self, product: Product, issued: api_keys.Issued) -> None:
        self.run("revoke", issued.key.prefix)
        assert issued.key.prefix not in self.run("list", product.slug)
        assert "revoked" in self.run("list", product.slug, "--all")

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["destroy"],
            ["issue"],
            ["issue", "no-such-product", "k", "--scope", "usage:read"],
            ["issue", "{product}", "k"],
            ["issue", "{product}", "k", "--scope", "root"],
            ["issue", "{product}", "", "--scope", "usage:read"],
            ["issue", "{product}", "k", "--scope", "usage:read", "--account", "acct_nobody"],
            ["issue", "{product}", "k", "--scope", "usage:read", "--days", "0"],
            ["issue", "{product}", "k", "--scope", "usage:read", "--days", "５x"],
            ["issue", "{product}", "k", "--scope", "usage:read", "--days", "99999999999999999999"],
            ["revoke", "tg_live_nobody"],
            ["revoke", ""],
            ["list", "no-such-product"],
        ],
    )
    def test_garbage_is_answered_with_a_sentence_and_changes_nothing(self, product: Product, arguments: list[str]) -> None:
        with pytest.raises(CommandError):
            self.run(*[argument.format(product=product.slug) for argument in arguments])
        assert not ApiKey.objects.filter(product=product).exists()

    def test_an_account_of_another_product_is_not_found(self, product: Product) -> None:
        theirs = make_account(make_product())
        with pytest.raises(CommandError, match="no account"):
            self.run("issue", product.slug, "k", "--scope", "usage:read", "--account", theirs.public_id)


_REVOKE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings.test"
import django
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
django.setup()
from django.utils import timezone
from accounts import api_keys
from accounts.models import ApiKey
api_keys.revoke(key=ApiKey.objects.get(pk=int(sys.argv[2])), now=timezone.now())
"""
