"""Staff's second factor, by real codes; money moves only shortly after one showed who one is; and looking through a customer's eyes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import struct
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from accounts.models import AuditEvent, User
from billing.models import Wallet
from tests.factories import NANOS, make_account

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"
ADMIN = "/admin/"


@pytest.fixture(autouse=True)
def required(settings: Settings) -> None:
    settings.STAFF_MFA_REQUIRED = True


def code(secret: str, *, at: float) -> str:
    """RFC 6238, as an app on a phone does it."""
    digest = hmac.digest(base64.b32decode(secret), struct.pack(">Q", int(at) // 30), hashlib.sha1)
    start = digest[-1] & 15
    return f"{(struct.unpack('>I', digest[start : start + 4])[0] & 0x7FFFFFFF) % 1_000_000:06}"


def person(role: str = "support", **fields: Any) -> User:
    user = User.objects.create_user(f"{uuid4().hex[:12]}@example.com", PASSWORD, **({"is_staff": True} | fields))
    EmailAddress.objects.create(user=user, email=user.email, verified=True, primary=True)
    if role:
        user.groups.add(Group.objects.get(name=role))
    return user


def sign_in(user: User, client: Client | None = None) -> tuple[Client, Any]:
    client = client or Client()
    return client, client.post(reverse("account_login"), {"login": user.email, "password": PASSWORD})


def set_up(user: User) -> tuple[Client, str]:
    """Signs in, is sent to set it up, confirms the password, scans, types the first code, and shows it. Returns what the phone knows."""
    client, _ = sign_in(user)
    sent = client.get(ADMIN)
    assert (sent.status_code, sent.headers["Location"]) == (302, reverse("mfa_activate_totp"))
    asked = client.get(sent.headers["Location"])
    if asked.status_code == 302:
        client.post(asked.headers["Location"], {"password": PASSWORD})
    assert b"second factor" in client.get(reverse("mfa_activate_totp")).content
    secret = client.session["mfa.totp.secret"]
    assert client.post(reverse("mfa_activate_totp"), {"code": code(secret, at=time.time())}).status_code == 302
    return client, secret


def through(user: User) -> tuple[Client, str]:
    """All the way into admin."""
    client, secret = set_up(user)
    asked = client.get(ADMIN)
    assert asked.headers["Location"] == f"{reverse('mfa_reauthenticate')}?next=%2Fadmin%2F"
    assert client.post(asked.headers["Location"], {"code": code(secret, at=time.time())}).headers["Location"] == ADMIN
    return client, secret


class TestSecondFactor:
    def test_staff_set_it_up_and_are_in(self) -> None:
        client, _ = through(person())
        assert client.get(ADMIN).status_code == 200
        assert client.get(reverse("mfa_view_recovery_codes")).status_code == 200

    @pytest.mark.parametrize("method", ["get", "post"])
    def test_no_page_of_admin_opens_before_nor_takes_anything(self, method: str) -> None:
        account, boss = make_account(credit=1), person("", is_superuser=True)
        client, _ = sign_in(boss)
        for url in (ADMIN, reverse("admin:accounts_account_grant", args=[account.pk]), reverse("admin:admin_logentry_export"), "/admin/x/"):
            answer = getattr(client, method)(url, {"amount": "1"})
            assert (answer.status_code, answer.headers["Location"]) == (302, reverse("mfa_activate_totp"))

    def test_customers_and_their_pages_ask_for_none(self) -> None:
        account, ada = make_account(), person("", is_staff=False)
        account.memberships.create(user=ada)
        client, answer = sign_in(ada)
        assert answer.headers["Location"] == "/"
        assert client.get(f"/a/{account.public_id}/").status_code == 200

    def test_the_next_log_in_wants_the_code_and_each_code_opens_once(self) -> None:
        user = person()
        _, secret = through(user)
        now = time.time() + 30  # the phone is half a minute ahead, which is let pass
        client, asked = sign_in(user)
        assert asked.headers["Location"] == reverse("mfa_authenticate")
        assert client.get(ADMIN).status_code == 302
        for wrong in ("", "000000" if code(secret, at=now) != "000000" else "111111", code(secret, at=now - 300), "abc", "9" * 400, "\0"):
            assert client.post(asked.headers["Location"], {"code": wrong}).status_code == 200, wrong
        assert client.post(asked.headers["Location"], {"code": code(secret, at=now)}).status_code == 302
        assert client.get(ADMIN).status_code == 200
        thief, asked = sign_in(user)
        assert thief.post(asked.headers["Location"], {"code": code(secret, at=now)}).status_code == 200
        assert thief.get(ADMIN).status_code == 302

    def test_a_recovery_code_opens_once(self) -> None:
        user = person()
        through(user)
        spare = Authenticator.objects.get(user=user, type="recovery_codes").wrap().get_unused_codes()[0]
        for status in (302, 200):
            client, asked = sign_in(user)
            assert client.post(asked.headers["Location"], {"code": spare}).status_code == status

    def test_it_is_off_where_the_settings_say_so_and_the_first_page_says_that(self, settings: Settings) -> None:
        settings.STAFF_MFA_REQUIRED = False
        client, _ = sign_in(person())
        shown = client.get(ADMIN)
        assert (shown.status_code, b"second factor is off" in shown.content) == (200, True)
        settings.STAFF_MFA_REQUIRED = True
        assert b"second factor is off" not in through(person())[0].get(ADMIN).content


class TestFresh:
    def test_money_moves_only_shortly_after_one_showed_who_one_is(self) -> None:
        account = make_account(credit=1)
        client, _ = through(person())
        url = reverse("admin:accounts_account_grant", args=[account.pk])
        form = {"token": str(uuid4()), "amount": "2", "source": "goodwill", "last_day": "", "reason": "x", "confirm": "1"}
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=5, seconds=1)):
            assert client.get(ADMIN).status_code == 200
            asked = client.post(url, form)
            assert asked.headers["Location"].startswith(reverse("account_reauthenticate"))
            assert Wallet.objects.get(account=account).available == NANOS
            assert client.post(asked.headers["Location"], {"password": "wrong"}).status_code == 200
            done = client.post(asked.headers["Location"], {"password": PASSWORD})  # and what was sent goes on
            assert done.headers["Location"] == reverse("admin:accounts_account_change", args=[account.pk])
            assert Wallet.objects.get(account=account).available == 3 * NANOS
            assert client.get(url).status_code == 200


class TestLostPhone:
    def run(self, *arguments: str) -> str:
        out = io.StringIO()
        call_command("second_factor", *arguments, stdout=out)
        return out.getvalue()

    def test_a_superuser_lets_somebody_set_up_another_one_and_the_log_says_why(self) -> None:
        user, boss = person(), person("", is_superuser=True)
        client, _ = through(user)
        assert "sets up a new" in self.run(user.email, "--by", boss.email, "--reason", "the phone fell into the lake")
        assert client.get(ADMIN).headers["Location"] == reverse("mfa_activate_totp")
        told = AuditEvent.objects.get(reason="the phone fell into the lake")
        assert told.entry.user == boss
        assert "had no second factor" in self.run(user.email, "--by", boss.email, "--reason", "again")
        assert "sets up" in self.run(self.with_factor().email, "--reason", "the only superuser lost it")

    def with_factor(self) -> User:
        boss = person("", is_superuser=True)
        set_up(boss)
        return boss

    @pytest.mark.parametrize(
        "arguments",
        [["nobody@example.com", "--reason", "x"], ["{user}", "--reason", "x"], ["{user}", "--by", "{user}", "--reason", "x"],
         ["{boss}", "--reason", " "], ["{boss}", "--reason", "x" * 301], ["{boss}", "--reason", "a\nb"], ["\0", "--reason", "x"]],
    )  # fmt: skip
    def test_garbage_forgets_nothing(self, arguments: list[str]) -> None:
        user, boss = person(), self.with_factor()
        with pytest.raises(CommandError):
            self.run(*(each.format(user=user.email, boss=boss.email) for each in arguments))
        assert Authenticator.objects.filter(user=boss).exists()
