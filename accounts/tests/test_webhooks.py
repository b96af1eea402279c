"""Outgoing webhooks: each event is written once with what it tells of."""

from __future__ import annotations

import pytest
from django.db import transaction

from accounts import webhooks
from accounts.models import Account, WebhookEvent
from accounts.tests.conftest import NOW
from pricing.models import Product


def write(account: Account, *, key: str = "1", kind: str = "balance.low") -> None:
    webhooks.queue(account=account, kind=kind, key=key, data={"balance": "2.000000000"}, now=NOW)


class TestQueueing:
    @pytest.mark.failure(80)
    def test_an_event_goes_with_the_transaction_of_what_it_tells(self, account: Account) -> None:
        with transaction.atomic():
            write(account)
            transaction.set_rollback(True)
        assert not WebhookEvent.objects.filter(account=account).exists()

    def test_an_event_of_one_kind_is_written_once_for_what_it_is_about(self, account: Account) -> None:
        for key, kind in (("1", "balance.low"), ("1", "balance.low"), ("2", "balance.low"), ("1", "limit.warning")):
            write(account, key=key, kind=kind)
        assert WebhookEvent.objects.filter(account=account).count() == 3

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
        assert WebhookEvent.objects.get(account=account).data["used"] == 2**70
