"""The outbox: written once with what it tells of, sent once, to those who may have it, whatever is wrong with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from html import unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core import mail as django_mail
from django.core.mail import EmailMultiAlternatives
from django.db import ProgrammingError, connection, connections, transaction
from django.urls import resolve

from accounts import colours, letters, mail_delivery, mails, registration, tasks, tenancy
from accounts.models import Account, Mail, Membership, User
from accounts.tests.conftest import NOW, make_account, make_user
from accounts.tests.post_office import PostOffice, opened
from pricing.models import Product, Unit
from tests.factories import make_product

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
    "price_change": {"plan": "Pro", "old_cents": 600, "new_cents": 700, "currency": "usd", "interval": "month", "effective_at": AT},
    "invitation": {"invited_by": str(uuid.UUID(int=0)), "role": "admin", "url": "/join/secret-token"},
    "guard": {
        "step": "block",
        "subject": "session",
        "ref": "agent-7",
        "reason": "This session has spent $12.40 in 10 minutes; usual is $1.10 at most.",
        "ends_at": datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
    },
}  # fmt: skip


#: So far ahead that no other test's mail, and no bell, is in the way.
LATER = datetime(2126, 1, 1, tzinfo=UTC)
SEND_ONE = """
import django
django.setup()
from datetime import datetime
from django.conf import settings
settings.EMAIL_BACKEND, settings.EMAIL_HOST, settings.EMAIL_PORT = "django.core.mail.backends.smtp.EmailBackend", "127.0.0.1", {port}
from accounts import mail_delivery
mail_delivery.send_next(now=datetime.fromisoformat("{now}"))
"""


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


def sent(mail: Mail, now: datetime = NOW) -> Mail:
    """What became of ``mail``, the one that is due."""
    found = mail_delivery.send_next(now=now)
    assert found is not None
    assert found.pk == mail.pk
    return Mail.objects.get(pk=mail.pk)


def own_account(**fields: Any) -> Account:
    return make_account(make_product(), billing_email=f"{uuid.uuid4().hex}@example.com", **fields)


def at_the(office: PostOffice, settings: Any) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", office.port


def in_a_thread(now: datetime) -> int | None:
    try:
        mail = mail_delivery.send_next(now=now)
        return mail.pk if mail else None
    finally:
        connections.close_all()


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


class TestRecipients:
    def test_a_mail_goes_to_the_billing_address(self, account: Account) -> None:
        Account.objects.filter(pk=account.pk).update(billing_email="pay@example.com")
        assert sent(write(account)).sent_to == ["pay@example.com"]

    def test_without_one_it_goes_to_every_owner_who_may_sign_in(self, account: Account, user: User) -> None:
        other, gone = make_user(), make_user(is_active=False)
        for each, role in ((other, "owner"), (gone, "owner"), (make_user(), "admin"), (make_user(), "member")):
            Membership.objects.create(account=account, user=each, role=role)
        assert sent(write(account)).sent_to == [user.email, other.email]

    def test_an_explicit_recipient_is_the_only_one(self, account: Account) -> None:
        Account.objects.filter(pk=account.pk).update(billing_email="pay@example.com")
        assert sent(write(account, "invitation", recipient="new@example.com")).sent_to == ["new@example.com"]

    def test_nobody_to_send_to_is_written_down(self, product: Product) -> None:
        mail = sent(write(make_account(product)))
        assert (mail.state, mail.reason) == ("suppressed", "The account has neither a billing address nor an owner.")
        assert django_mail.outbox == []

    def test_a_closed_account_gets_nothing(self, account: Account) -> None:
        mail = write(account)
        Account.objects.filter(pk=account.pk).update(closed_at=NOW)
        found = sent(mail)
        assert (found.state, found.reason) == ("suppressed", "The account is closed.")
        assert django_mail.outbox == []

    def test_what_comes_too_late_is_not_sent(self, account: Account) -> None:
        assert sent(write(account, key="late", useless_at=NOW)).state == "suppressed"
        assert sent(write(account, key="still", useless_at=NOW + timedelta(seconds=1))).state == "sent"


class TestForgetting:
    def test_a_forgotten_person_gets_nothing_and_nothing_of_them_is_kept(self, product: Product, user: User) -> None:
        account = make_account(product, owner=user, billing_email=user.email)
        done, waiting = sent(write(account)), write(account, key="2")
        assert done.sent_to == [user.email]
        registration.forget_user(user=user, now=NOW)
        for mail in (done, waiting):
            mail.refresh_from_db()
            assert (mail.sent_to, mail.recipient, mail.context) == ([], "", {})
        assert (waiting.state, waiting.reason) == ("suppressed", "The person was forgotten.")
        assert mail_delivery.send_next(now=NOW + timedelta(days=1)) is None

    def test_a_forgotten_members_team_goes_on_and_its_other_owners_get_its_mails(self, product: Product, user: User) -> None:
        other = make_user()
        team = make_account(product, owner=user, kind="team", billing_email=user.email)
        Membership.objects.create(account=team, user=other, role="owner")
        before = sent(write(team))
        invited = write(team, "invitation", recipient=user.email)
        registration.forget_user(user=user, now=NOW)
        before.refresh_from_db()
        invited.refresh_from_db()
        assert (before.sent_to, before.context) == ([], FACTS["low_balance"])
        assert (invited.state, invited.recipient, invited.context) == ("suppressed", "", {})
        assert sent(write(team, key="2")).sent_to == [other.email]

    def test_who_invited_is_not_named_once_they_are_forgotten(self, account: Account, user: User) -> None:
        User.objects.filter(pk=user.pk).update(first_name="Grace", last_name="Hopper")
        mail = write(account, "invitation", recipient="new@example.com", context=FACTS["invitation"] | {"invited_by": user.pk})
        assert "Grace Hopper asks you to join Ada" in told(mail)[1]
        registration.forget_user(user=user, now=NOW)
        assert "Grace" not in repr(Mail.objects.filter(pk=mail.pk).values().get())


class TestSending:
    def test_it_is_sent_once_and_says_so(self, account: Account, user: User) -> None:
        mail = sent(write(account))
        assert (mail.state, mail.sendings, mail.attempts, mail.done_at, mail.reason) == ("sent", 1, 1, NOW, "")
        assert mail_delivery.send_next(now=NOW + timedelta(days=9)) is None
        [message] = django_mail.outbox
        assert message.to == [user.email]
        assert message.extra_headers["Auto-Submitted"] == "auto-generated"

    def test_an_invitations_link_is_forgotten_once_it_was_sent(self, account: Account) -> None:
        mail = sent(write(account, "invitation", recipient="new@example.com"))
        assert "https://testserver/join/secret-token" in parts(django_mail.outbox[0])[0]
        assert mail.context == {}
        assert mails.send_again(mail_ids=[mail.pk], now=NOW) == []

    def test_a_failure_is_tried_again_later_and_later_and_then_given_up(self, account: Account, settings: Any) -> None:
        account_mail = write(account)
        now, delays = NOW, []
        with opened() as office:
            at_the(office, settings)
            office.refuse = "451 not now, ada@example.com"
            for _ in range(mail_delivery.MAX_ATTEMPTS):
                found = sent(account_mail, now)
                delays.append((found.next_attempt_at - now).total_seconds())
                assert mail_delivery.send_next(now=found.next_attempt_at - timedelta(seconds=1)) is None or found.state == "dead"
                now = found.next_attempt_at
        assert delays[:4] == [30, 60, 120, 240]
        assert max(delays) == 4 * 60 * 60
        assert (found.state, found.sendings) == ("dead", 0)
        assert "451" in found.reason
        assert "ada@example.com" not in found.reason
        assert mail_delivery.send_next(now=NOW + timedelta(days=99)) is None

    @pytest.mark.failure(82)
    def test_a_mail_that_always_fails_holds_up_no_other(self, account: Account) -> None:
        for number in range(4):
            poisoned = write(account, key=f"poison {number}")
            Mail.objects.filter(pk=poisoned.pk).update(context={"balance_nanos": "\N{PILE OF POO}", "more": []})
        fine = write(account, key="fine", now=NOW + timedelta(seconds=1))
        rounds = [mail_delivery.send_next(now=NOW + timedelta(seconds=2)) for _ in range(6)]
        assert [mail and mail.state for mail in rounds] == ["pending"] * 4 + ["sent", None]
        fine.refresh_from_db()
        assert fine.state == "sent"

    def test_the_worker_goes_home_when_the_mail_server_is_away(self, account: Account, settings: Any) -> None:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9  # nobody listens there
        for number in range(tasks.FAILURES + 5):
            write(account, key=str(number))
        assert tasks.send_mails() == 0
        assert Mail.objects.filter(account=account, attempts=0).count() == 5 - 1  # it notices on the next one

    def test_what_staff_sends_again_is_another_mail_to_mail_programs(self, account: Account) -> None:
        mail = sent(write(account))
        assert [chosen.pk for chosen in mails.send_again(mail_ids=[mail.pk], now=NOW)] == [mail.pk]
        sent(mail)
        first, second = (message.extra_headers["Message-ID"] for message in django_mail.outbox)
        assert first != second

    def test_what_is_set_aside_is_never_sent_and_what_was_sent_cannot_be(self, account: Account) -> None:
        done, waiting = sent(write(account)), write(account, key="2")
        aside = mails.set_aside(mail_ids=[done.pk, waiting.pk], reason="a mistake", now=NOW)
        assert [mail.pk for mail in aside] == [waiting.pk]
        assert mail_delivery.send_next(now=NOW) is None
        waiting.refresh_from_db()
        assert (waiting.state, waiting.reason) == ("suppressed", "Set aside: a mistake")

    def test_a_worker_that_fails_after_its_lease_is_over_takes_the_mail_from_nobody(self, account: Account) -> None:
        write(account)
        slow = mail_delivery._claim(NOW)
        fast = mail_delivery._claim(NOW + mail_delivery.LEASE)
        assert slow is not None
        assert fast is not None
        mail_delivery._failed(slow, TimeoutError(), NOW + mail_delivery.LEASE)
        now = Mail.objects.get(pk=fast.pk)
        assert (now.attempts, now.next_attempt_at, now.reason) == (2, fast.next_attempt_at, "")

    def test_a_mail_whose_workers_always_die_is_given_up(self, account: Account) -> None:
        mail = write(account)
        Mail.objects.filter(pk=mail.pk).update(attempts=mail_delivery.MAX_ATTEMPTS)
        found = sent(mail)
        assert (found.state, found.reason) == ("dead", "Its workers never came back.")
        assert django_mail.outbox == []


@pytest.mark.usefixtures("committed")
class TestCommitted:
    """What only shows with several connections, and over a real SMTP conversation."""

    def test_a_committed_mail_is_sent_by_the_bell_alone(self) -> None:
        account = own_account()
        write(account, now=datetime.now(UTC))
        assert Mail.objects.get(account=account).state == "sent"

    @pytest.mark.failure(78)
    def test_two_senders_at_once_send_once(self, settings: Any) -> None:
        mail = write(own_account(), now=LATER)
        busy, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            busy.set()
            assert go_on.wait(30)

        with opened() as office, ThreadPoolExecutor(1) as other:
            at_the(office, settings)
            office.on_mail = wait
            first = other.submit(in_a_thread, LATER)
            assert busy.wait(30)
            second = mail_delivery.send_next(now=LATER + timedelta(seconds=1))
            go_on.set()
            assert (first.result(), second) == (mail.pk, None)
            assert len(office.got) == 1
        mail.refresh_from_db()
        assert (mail.state, mail.sendings) == ("sent", 1)

    @pytest.mark.failure(77, 81)
    def test_a_worker_that_is_killed_after_sending_leads_to_one_more_mail_with_the_same_message_id(self, settings: Any) -> None:
        mail = write(own_account(), now=LATER)
        database = urlsplit(settings.DATABASE_URL)._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
        with opened() as office:
            at_the(office, settings)
            with subprocess.Popen(
                [sys.executable, "-c", SEND_ONE.format(port=office.port, now=LATER)],
                env=os.environ | {"DATABASE_URL": database},
            ) as worker:
                office.on_mail = worker.kill  # the mail is on its way, the row not marked
                worker.wait(60)
            office.on_mail = lambda: None
            assert mail_delivery.send_next(now=LATER + mail_delivery.LEASE - timedelta(seconds=1)) is None
            again = mail_delivery.send_next(now=LATER + mail_delivery.LEASE)
            assert again is not None
            assert (again.pk, again.state) == (mail.pk, "sent")
            assert mail_delivery.send_next(now=LATER + timedelta(days=9)) is None
            first, second = office.got
            assert first["Message-ID"] == second["Message-ID"] == mail_delivery.message_id(mail)

    def test_a_worker_whose_lease_is_over_marks_nothing(self, settings: Any) -> None:
        mail = write(own_account(), now=LATER)
        with opened() as office, ThreadPoolExecutor(1) as other:
            at_the(office, settings)
            busy, go_on = threading.Event(), threading.Event()

            def wait() -> None:
                office.on_mail = lambda: None
                busy.set()
                assert go_on.wait(30)

            office.on_mail = wait
            slow = other.submit(in_a_thread, LATER)
            assert busy.wait(30)
            fast = mail_delivery.send_next(now=LATER + mail_delivery.LEASE)
            go_on.set()
            assert (slow.result(), fast and fast.pk) == (mail.pk, mail.pk)
        mail.refresh_from_db()
        assert (mail.state, mail.sendings, mail.done_at) == ("sent", 1, LATER + mail_delivery.LEASE)

    def test_a_real_mail_server_gets_both_parts_and_one_envelope(self, settings: Any) -> None:
        account = own_account(name="Zoë 🦊 <b>Ltd</b>")
        with opened() as office:
            at_the(office, settings)
            write(account, now=LATER)
            assert in_a_thread(LATER) is not None
            [message] = office.got
            assert office.senders[0].startswith("mail FROM:<billing@localhost>")
            assert office.recipients == [f"rcpt TO:<{account.billing_email}>"]
        assert message["From"] == f"{account.product.name} <billing@localhost>"
        assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
        text, html = (part.get_content() for part in message.iter_parts())
        assert "Zoë 🦊 <b>Ltd</b>" in text
        assert "Zoë 🦊 &lt;b&gt;Ltd&lt;/b&gt;" in html

    def test_resend_is_told_by_a_key_that_two_attempts_are_one_mail(self, settings: Any) -> None:
        asked: list[tuple[str | None, dict[str, Any]]] = []

        class Resend(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.headers["Idempotency-Key"], body))
                self.send_response(200 if len(asked) > 1 else 500)
                self.end_headers()
                self.wfile.write(b'{"id": "1"}')

            def log_message(self, format: str, *args: object) -> None:
                """Requests are the test's own: nothing to log."""

        mail = write(own_account(), now=LATER)
        with HTTPServer(("127.0.0.1", 0), Resend) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            settings.EMAIL_BACKEND = "accounts.resend.EmailBackend"
            settings.ANYMAIL = {"RESEND_API_KEY": "re_1", "RESEND_API_URL": f"http://127.0.0.1:{server.server_port}/"}
            assert sent(mail, LATER).state == "pending"
            assert sent(mail, LATER + mail_delivery.FIRST_DELAY).state == "sent"
            server.shutdown()
            thread.join()
        [(first, body), (second, again)] = asked
        assert first == second == mail_delivery.message_id(mail)
        assert body == again
        assert body["to"] == [mail.account.billing_email]


@pytest.mark.django_db
class TestWords:
    @pytest.mark.parametrize("kind", Mail.Kind.values)
    def test_every_kind_has_text_and_html_that_say_the_same_and_link_to_us(self, account: Account, kind: str) -> None:
        message, text, html = told(write(account, kind))
        read = unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))
        squeezed = " ".join(read.split())
        for paragraph in text.split("\n--\n")[0].splitlines():
            name, _, value = paragraph.partition(": ")
            assert " ".join(name.removesuffix(":").split()) in squeezed or paragraph.startswith("https://"), paragraph
            assert " ".join(value.split()) in squeezed, paragraph
        links = re.findall(r'href="([^"]+)"', html)
        assert all(unescape(link).startswith(("https://testserver/", "mailto:")) for link in links)
        assert unescape(links[0]) in text
        assert "\n" not in message.subject
        assert "None" not in text + html

    @pytest.mark.parametrize("kind", Mail.Kind.values)
    def test_every_link_leads_to_a_page(self, account: Account, kind: str) -> None:
        _, text, _ = told(write(account, kind))
        path = re.findall(r"https://testserver(/\S*)", text)[0]
        if kind != "invitation":
            assert resolve(path).url_name

    @pytest.mark.parametrize("kind", Mail.Kind.values)
    def test_no_mail_asks_for_anything_from_elsewhere_or_is_large(self, account: Account, kind: str) -> None:
        _, _, html = told(write(account, kind))
        assert not re.search(r"<img|<script|<link|@import|url\(|src=", html)
        assert len(html.encode()) < 20_000
        assert "prefers-color-scheme: dark" in html

    @pytest.mark.parametrize("kind", Mail.Kind.values)
    def test_a_mail_needs_no_more_than_its_required_facts(self, account: Account, kind: str) -> None:
        required = {each.name for each in fields(letters.FACTS[kind]) if each.default is MISSING}
        _, text, html = told(write(account, kind, context={name: FACTS[kind][name] for name in required}))
        assert "None" not in text + html

    def test_times_are_the_accounts_and_name_its_zone(self, account: Account) -> None:
        Account.objects.filter(pk=account.pk).update(time_zone="Asia/Dubai")
        _, text, html = told(write(account, "plan_ended"))
        assert "It ended on 1 April 2026, 04:30 UTC+04 because it was not paid." in text
        assert "1 April 2026, 04:30 UTC+04" in html
        Account.objects.filter(pk=account.pk).update(time_zone="Europe/Paris")
        assert "1 April 2026, 02:30 CEST" in told(write(account, "plan_ended"))[1]

    def test_amounts_are_written_as_on_the_pages(self, account: Account) -> None:
        unit, _ = Unit.objects.get_or_create(code="mails.credit", defaults={"name": "credit", "decimals": 0})
        credited = make_account(make_product(unit=unit))
        assert "3,500\N{NO-BREAK SPACE}credits" in told(write(credited, context={"balance_nanos": 3_500 * NANOS}))[1]
        assert "$1.99" in told(write(account, context={"balance_nanos": 1_999_999_999}))[1]
        assert "29.00\N{NO-BREAK SPACE}EUR" in told(write(account, "payment_failed"))[1]

    def test_a_mail_is_the_products_own(self) -> None:
        product = make_product(brand_colour="#ffee00", support_email="help@rover.example")
        message, text, html = told(write(make_account(product)))
        assert message.from_email == f"{product.name} <billing@localhost>"
        assert message.reply_to == ["help@rover.example"]
        assert "help@rover.example" in text
        [ground, ink] = re.findall(r"background-color:(#[0-9a-f]{6});color:(#[0-9a-f]{6})", html)[0]
        assert colours.contrast(ground, ink) >= colours.READABLE
        assert ground == "#ffee00"

    def test_names_are_text_in_html_and_cannot_make_headers(self) -> None:
        product = make_product(support_email="help@rover.example")
        Product.objects.filter(pk=product.pk).update(name="Rover\r\nBcc: spy@example.com")
        account = make_account(product)
        Account.objects.filter(pk=account.pk).update(name="<script>alert(1)</script>\r\nX: y")
        mail = write(account, "invitation", recipient="new@example.com")
        message, _, html = told(mail)
        assert "<script>" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt; X: y" in html
        raw = message.message()
        assert raw["Bcc"] is None
        assert raw["X"] is None
        assert "\n" not in str(raw["From"]) + str(raw["Subject"])

    @pytest.mark.parametrize("name", ["x" * 10_000, "é" * 10_000, "🦊" * 10_000, "\n" * 10_000, "a\u202eb\ud800\0c" * 2_000])
    def test_endless_and_unprintable_names_are_cut_and_cleaned(self, account: Account, name: str) -> None:
        mail = write(account, "plan_ended", context=FACTS["plan_ended"] | {"plan": name})
        assert mail.state == "pending"
        message, text, _ = told(mail)
        assert len(message.subject) < 300
        assert "\u202e" not in text
        message.message().as_bytes()

    def test_a_limit_that_stops_nothing_or_is_reached_says_so(self, account: Account) -> None:
        facts = FACTS["limit_warning"]
        soft = told(write(account, "limit_warning", key="a", context=facts | {"stops": False}))[1]
        assert soft.startswith("You have used 80% of today’s messages\n")
        assert "Nothing is stopped" in soft
        full = told(write(account, "limit_warning", key="b", context=facts | {"percent": 100}))[1]
        assert full.startswith("You have used all of today’s messages\n")
        assert "New work is refused until it resets on 1 April 2026, 00:30 UTC." in full
        ever = told(write(account, "limit_warning", key="c", context=facts | {"window": "lifetime", "resets_at": None}))[1]
        assert "Once all of it is used, new work is refused until you change to a plan with more of it." in ever
        cost = told(write(account, "limit_warning", key="d", context={"what": "", "window": "period", "percent": 91, "stops": True}))[1]
        assert "You have used 91% of this billing period’s usage allowance" in cost
