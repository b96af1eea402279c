"""Outgoing webhooks: each event is written once with what it tells of."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.db import transaction
from pytest_django import Settings

from accounts import webhook_delivery, webhook_endpoints, webhooks
from accounts.models import Account, WebhookEvent
from accounts.tests.conftest import NOW
from accounts.tests.webhook_page import PAGE, documented
from pricing.models import Product


def write(account: Account, *, key: str = "1", kind: str = "balance.low") -> None:
    webhooks.queue(account=account, kind=kind, key=key, data={"balance": "2.000000000"}, now=NOW)


class TestQueueing:
    @pytest.mark.failure(80)
    def test_an_event_goes_with_the_transaction_of_what_it_tells(self, account: Account) -> None:
        with transaction.atomic():
            write(account)
            transaction.set_rollback(True)
        assert not WebhookEvent.objects.filter(account=account, kind="balance.low").exists()

    def test_an_event_of_one_kind_is_written_once_for_what_it_is_about(self, account: Account) -> None:
        for key, kind in (("1", "balance.low"), ("1", "balance.low"), ("2", "balance.low"), ("1", "limit.warning")):
            write(account, key=key, kind=kind)
        assert WebhookEvent.objects.filter(account=account).exclude(kind="subscription.changed").count() == 3

    def test_an_event_of_a_whole_product_is_written_once_too(self, product: Product) -> None:
        for _ in range(2):
            webhooks.queue(account=None, product=product, kind="kill_switch.changed", key="7:on", data={"state": "on"}, now=NOW)
        event = WebhookEvent.objects.get(product=product)
        assert event.account is None
        assert event.public_id.startswith("evt_")

    def test_an_unknown_kind_or_an_event_of_nobody_is_a_mistake_of_the_code(self, account: Account) -> None:
        with pytest.raises(ValueError, match="not a valid"):
            write(account, kind="balance.lowish")
        with pytest.raises(ValueError, match="of an account or of a product"):
            webhooks.queue(account=None, kind="alert.fired", key="1", data={}, now=NOW)

    @pytest.mark.parametrize("text", ["nul\0", "\ud800", "é" * 10_000])
    def test_no_text_in_it_stops_its_caller(self, account: Account, text: str) -> None:
        webhooks.queue(account=account, kind="limit.warning", key=text, data={"what": text, "at": None, "used": 2**70}, now=NOW)
        assert WebhookEvent.objects.get(account=account, kind="limit.warning").data["used"] == 2**70


class TestPage:
    """docs/webhooks.md, by which client apps are written."""

    def test_it_shows_every_kind_there_is_and_no_other(self) -> None:
        assert set(documented()) == set(WebhookEvent.Kind.values)

    def test_its_examples_are_what_an_event_can_hold(self) -> None:
        for data in documented().values():
            assert data
            assert all(isinstance(value, str | int | None) for value in data.values())

    def test_its_python_verifies_what_we_sign_and_nothing_else(self, product: Product) -> None:
        example = re.findall(r"```python\n(.*?)\n```", PAGE.read_text(), re.DOTALL)[1]
        namespace: dict[str, Any] = {}
        exec(compile(example, "docs/webhooks.md", "exec"), namespace)
        verify, secrets, now = namespace["verify"], [webhook_endpoints._new_secret() for _ in range(2)], datetime.now(UTC)
        event = WebhookEvent(kind="balance.low", product=product, data={"name": "é"}, created_at=now)
        body = webhook_delivery.body(event)
        headers = webhook_delivery.headers(event=event, body=body, secrets=secrets, now=now)
        assert verify(body, headers, secrets[0])
        assert verify(body, headers, secrets[1])
        assert not verify(body + b" ", headers, secrets[0])
        assert not verify(body, headers, webhook_endpoints._new_secret())
        old = webhook_delivery.headers(event=event, body=body, secrets=secrets, now=now - timedelta(seconds=301))
        assert not verify(body, old, secrets[0])


class TestReseal:
    def test_it_seals_anew_by_the_newest_key_and_names_what_no_key_opens(self, product: Product, settings: Settings) -> None:
        settings.OUTBOUND_TO_LOCALHOST = True
        old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
        settings.ENCRYPTION_KEYS = [old]
        created = webhook_endpoints.create(product=product, url="https://127.0.0.1/", kinds=["balance.low"], created_by="a test", now=NOW)
        second = webhook_endpoints.rotate(endpoint=created.endpoint, now=NOW)
        settings.ENCRYPTION_KEYS = [new, old]
        call_command("reseal", stdout=StringIO())
        settings.ENCRYPTION_KEYS = [new]
        created.endpoint.refresh_from_db()
        assert webhook_endpoints.signing_secrets(endpoint=created.endpoint, now=NOW) == [second, created.secret]
        settings.ENCRYPTION_KEYS = [old]
        with pytest.raises(CommandError, match=created.endpoint.public_id):
            call_command("reseal", stdout=StringIO())
