"""Staff sees every mail and what became of it, sends one again or sets it aside with a reason, and looks at what each kind says."""

from __future__ import annotations

import re
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.core import mail as django_mail
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import mail_delivery, mails
from accounts.models import Account, Mail, User
from pricing.models import Product
from tests.factories import NANOS, make_account, make_product
from tests.test_admin import staff

pytestmark = pytest.mark.django_db
LIST = reverse("admin:accounts_mail_changelist")
PREVIEWS = reverse("admin:accounts_mail_previews")


@pytest.fixture
def account() -> Account:
    return make_account(make_product(), billing_email="ada@example.com")


def write(account: Account, key: str = "1") -> Mail:
    context = {"balance_nanos": 2 * NANOS}
    mails.queue(account=account, kind="low_balance", key=key, context=context, now=timezone.now())
    return Mail.objects.get(account=account, key=key)


def decide(client: Client, verb: str, mail: Mail, **fields: str) -> str:
    return client.post(LIST, {"action": verb, "_selected_action": str(mail.pk), **fields}, follow=True).content.decode()


class TestOutbox:
    def test_a_mail_shows_what_it_says_to_whom_and_why_it_was_not_sent(self, account: Account) -> None:
        client = staff("accounts.view_mail")
        mail = write(account)
        Mail.objects.filter(pk=mail.pk).update(state="dead", reason="SMTPServerDisconnected: gone", done_at=timezone.now())
        assert "SMTPServerDisconnected: gone" in client.get(LIST).content.decode()
        page = client.get(reverse("admin:accounts_mail_change", args=[mail.pk])).content.decode()
        assert "$2.00 of credit is left" in page
        assert client.post(reverse("admin:accounts_mail_change", args=[mail.pk]), {"reason": "x"}).status_code == 403

    def test_a_mail_whose_facts_are_gone_is_shown_all_the_same(self, account: Account) -> None:
        mail = write(account)
        Mail.objects.filter(pk=mail.pk).update(context={})
        page = staff("accounts.view_mail").get(reverse("admin:accounts_mail_change", args=[mail.pk]))
        assert "These are not the facts of a low_balance mail" in unescape(page.content.decode())

    def test_a_dead_mail_is_sent_again_with_a_reason_that_is_kept(self, account: Account) -> None:
        client = staff("accounts.view_mail", "accounts.change_mail")
        mail = write(account)
        Mail.objects.filter(pk=mail.pk).update(state="dead", attempts=12, done_at=timezone.now())
        asked = decide(client, "send_again", mail)
        assert "Send again: 1 mail" in asked
        Mail.objects.get(pk=mail.pk, state="dead")
        assert "This field is required" in decide(client, "send_again", mail, confirm="1", reason="")
        assert "Send again: 1 of 1 mail." in decide(client, "send_again", mail, confirm="1", reason="the server is back")
        assert mail_delivery.send_next(now=timezone.now()) is not None
        assert Mail.objects.get(pk=mail.pk).state == "sent"
        assert "Send again: the server is back" in LogEntry.objects.latest("pk").change_message

    def test_a_mail_is_set_aside(self, account: Account) -> None:
        client = staff("accounts.view_mail", "accounts.change_mail")
        mail = write(account)
        decide(client, "set_aside", mail, confirm="1", reason="a mistake")
        mail.refresh_from_db()
        assert (mail.state, mail.reason) == ("suppressed", "Set aside: a mistake")

    def test_who_may_only_look_decides_nothing(self, account: Account) -> None:
        mail = write(account)
        decide(staff("accounts.view_mail"), "set_aside", mail, confirm="1", reason="x")
        mail.refresh_from_db()
        assert mail.state == "pending"
        assert staff().get(LIST).status_code == 403

    def test_an_accounts_page_leads_to_its_mails_alone(self, account: Account) -> None:
        mine, other = write(account), write(make_account(make_product()))
        client = staff("accounts.view_mail", "accounts.view_account")
        page = client.get(reverse("admin:accounts_account_change", args=[account.pk])).content.decode()
        [link] = re.findall(rf'href="({LIST}\?[^"]+)"', page)
        listed = client.get(unescape(link)).content.decode()
        assert reverse("admin:accounts_mail_change", args=[mine.pk]) in listed
        assert reverse("admin:accounts_mail_change", args=[other.pk]) not in listed


class TestPreviews:
    @pytest.fixture
    def product(self) -> Product:
        return make_product(brand_colour="#aa2244", support_email="help@rover.example")

    @pytest.mark.parametrize("kind", Mail.Kind.values)
    def test_every_kind_is_shown_as_text_and_in_a_sandbox_as_html(self, product: Product, kind: str) -> None:
        answer = staff("accounts.view_mail").get(PREVIEWS, {"product": product.slug, "kind": kind})
        page = answer.content.decode()
        [frame] = re.findall(r'<iframe class="tg-mail" title="[^"]+" sandbox srcdoc="([^"]*)">', page)
        html = unescape(frame)
        assert html.startswith("<!doctype html>")
        assert "#aa2244" in html
        assert "help@rover.example" in page
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert len(answer.content) < 100_000
        assert not Mail.objects.exists()

    def test_it_is_sent_to_who_asks_and_to_nobody_else_each_time_as_another_mail(self, product: Product) -> None:
        client = staff("accounts.view_mail")
        address = f"{PREVIEWS}?product={product.slug}&kind=receipt"
        for _ in range(2):
            assert "Sent to" in client.post(address, follow=True).content.decode()
        first, second = django_mail.outbox
        assert first.to == [User.objects.get(pk=client.session["_auth_user_id"]).email]
        assert first.subject.startswith("[Preview] Your receipt from")
        assert first.extra_headers["Message-ID"] != second.extra_headers["Message-ID"]

    def test_a_mail_server_that_is_away_is_said_on_the_page(self, product: Product, settings: object) -> None:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"  # type: ignore[attr-defined]
        settings.EMAIL_PORT = 9  # type: ignore[attr-defined]
        page = staff("accounts.view_mail").post(f"{PREVIEWS}?product={product.slug}", follow=True).content.decode()
        assert "It could not be sent. ConnectionRefusedError" in page

    @pytest.mark.parametrize("query", [{"kind": "nothing"}, {"kind": "\0"}, {"product": "no-such"}, {"product": "\0"}])
    def test_garbage_is_not_found(self, product: Product, query: dict[str, str]) -> None:
        assert staff("accounts.view_mail").get(PREVIEWS, query).status_code == 404

    def test_who_may_not_see_mails_sees_no_preview(self, product: Product) -> None:
        assert staff().get(PREVIEWS).status_code == 403
        assert staff().post(PREVIEWS).status_code == 403
        assert django_mail.outbox == []
