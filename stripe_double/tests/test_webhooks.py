"""Deliveries: signed, wanted, retried, replayed, in spite of a restart."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import stripe

from stripe_double.server import Double
from stripe_double.tests.conftest import Client, Receiver


def listen(client: Client, receiver: Receiver, *types: str) -> stripe.WebhookEndpoint:
    wanted: Any = list(types) or ["*"]
    return client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": wanted})


def types(got: list[tuple[bytes, str]]) -> list[str]:
    return [json.loads(body)["type"] for body, _ in got]


def delivered(client: Client, id: str) -> bool:
    """Whether the event has no delivery left, waiting for a moment for the answer to be written down."""
    for _ in range(200):
        if client.v1.events.retrieve(id).pending_webhooks == 0:
            return True
        time.sleep(0.02)
    return False


def test_an_event_arrives_signed_and_whole(client: Client, receiver: Receiver) -> None:
    endpoint = listen(client, receiver)
    customer = client.v1.customers.create({"name": "Ada"})
    ((body, signature),) = receiver.wait(lambda got: len(got) == 1)
    event = stripe.Webhook.construct_event(body, signature, str(endpoint.secret))
    assert (event.type, event.api_version, event.data.object["id"]) == ("customer.created", "2026-05-27.dahlia", customer.id)
    assert abs(int(signature.split(",")[0].removeprefix("t=")) - time.time()) < 5
    assert delivered(client, event.id)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body.replace(b"Ada", b"Eve"), signature, str(endpoint.secret))
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body, signature, "whsec_other")


def test_the_signature_says_the_real_time_whatever_the_doubles_clock_says(client: Client, receiver: Receiver) -> None:
    client.advance(days=400)
    endpoint = listen(client, receiver)
    client.v1.customers.create({"name": "Ada"})
    ((body, signature),) = receiver.wait(lambda got: len(got) == 1)
    stripe.Webhook.construct_event(body, signature, str(endpoint.secret), tolerance=300)
    assert abs(int(signature.split(",")[0].removeprefix("t=")) - time.time()) < 60  # the SDK lets any future pass
    assert json.loads(body)["created"] > time.time() + 399 * 86_400


def test_the_secret_is_shown_once(client: Client, receiver: Receiver) -> None:
    endpoint = listen(client, receiver)
    assert str(endpoint.secret).startswith("whsec_")
    _, again, _ = client.raw("GET", f"/v1/webhook_endpoints/{endpoint.id}")
    assert "secret" not in again


def test_each_endpoint_gets_what_it_wants_with_its_own_secret(client: Client, receiver: Receiver) -> None:
    customers, prices = listen(client, receiver, "customer.created"), listen(client, receiver, "price.created", "product.created")
    assert customers.secret != prices.secret
    client.price(2500)
    client.v1.customers.create({"name": "Ada"})
    client.v1.coupons.create({"percent_off": 5})
    got = receiver.wait(lambda got: len(got) == 3)
    assert sorted(types(got)) == ["customer.created", "price.created", "product.created"]
    for body, signature in got:
        mine, other = (customers, prices) if b"customer.created" in body else (prices, customers)
        stripe.Webhook.construct_event(body, signature, str(mine.secret))
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, signature, str(other.secret))


@pytest.mark.parametrize("refusal", [500, 404, 302])
def test_a_delivery_that_is_refused_comes_again_the_same(client: Client, receiver: Receiver, refusal: int) -> None:
    client.control("POST", "/settings", webhook_retry_seconds=0)
    listen(client, receiver)
    receiver.says[:] = [refusal, refusal]
    client.v1.customers.create({"name": "Ada"})
    got = receiver.wait(lambda got: len(got) == 3)
    assert len({body for body, _ in got}) == 1
    assert delivered(client, json.loads(got[0][0])["id"])
    (delivery,) = client.control("GET", "/deliveries")["deliveries"]
    assert (delivery["attempts"], delivery["status"], delivery["next_at"]) == (3, 200, None)


def test_it_gives_up_after_the_last_attempt(client: Client, receiver: Receiver) -> None:
    client.control("POST", "/settings", webhook_retry_seconds=0, webhook_attempts=3)
    listen(client, receiver)
    receiver.says[:] = [500] * 10
    client.v1.customers.create({"name": "Ada"})
    receiver.wait(lambda got: len(got) == 3)
    time.sleep(0.3)
    assert len(receiver.got) == 3
    assert client.v1.events.list().data[0].pending_webhooks == 1


def test_nobody_listening_is_tried_again_later(client: Client, receiver: Receiver) -> None:
    client.control("POST", "/settings", webhook_retry_seconds=60)
    client.v1.webhook_endpoints.create({"url": "http://127.0.0.1:9/nobody", "enabled_events": ["*"]})
    client.v1.customers.create({"name": "Ada"})
    for _ in range(200):
        (delivery,) = client.control("GET", "/deliveries")["deliveries"]
        if delivery["attempts"]:
            break
        time.sleep(0.02)
    assert (delivery["attempts"], delivery["status"]) == (1, 0)
    assert 50 < delivery["next_at"] - time.time() < 61


def test_paused_deliveries_wait_and_then_all_come(client: Client, receiver: Receiver) -> None:
    listen(client, receiver)
    client.control("POST", "/settings", webhooks_paused=True)
    client.subscribe(client.customer().id, client.price(2500).id)
    time.sleep(0.2)
    assert receiver.got == []
    client.control("POST", "/settings", webhooks_paused=False)
    got = receiver.wait(lambda got: len(got) >= len(client.events()))
    assert sorted(types(got)) == sorted(client.events())


def test_an_event_can_be_sent_again(client: Client, receiver: Receiver) -> None:
    endpoint = listen(client, receiver)
    client.v1.customers.create({"name": "Ada"})
    ((body, _),) = receiver.wait(lambda got: len(got) == 1)
    assert client.control("POST", f"/events/{json.loads(body)['id']}/resend") == {"resent_to": [endpoint.id]}
    receiver.wait(lambda got: len(got) == 2 and json.loads(got[1][0])["id"] == json.loads(body)["id"])


def test_a_rolled_secret_signs_with_both_while_the_old_one_is_kept(client: Client, receiver: Receiver) -> None:
    endpoint = listen(client, receiver)
    new = client.control("POST", f"/webhook_endpoints/{endpoint.id}/roll", keep_old=True)["secret"]
    client.v1.customers.create({"name": "Ada"})
    ((body, signature),) = receiver.wait(lambda got: len(got) == 1)
    for secret in (new, endpoint.secret):
        stripe.Webhook.construct_event(body, signature, str(secret))
    client.control("POST", f"/webhook_endpoints/{endpoint.id}/roll", keep_old=False)
    client.v1.customers.create({"name": "Grace"})
    body, signature = receiver.wait(lambda got: len(got) == 2)[1]
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body, signature, str(endpoint.secret))


def test_an_endpoint_can_have_the_secret_that_the_product_knows(client: Client, receiver: Receiver) -> None:
    endpoint = listen(client, receiver)
    client.control("POST", f"/webhook_endpoints/{endpoint.id}/secret", secret="whsec_known_to_both")
    client.v1.customers.create({"name": "Ada"})
    ((body, signature),) = receiver.wait(lambda got: len(got) == 1)
    stripe.Webhook.construct_event(body, signature, "whsec_known_to_both")
    assert (
        client.raw("POST", f"/_control/webhook_endpoints/{endpoint.id}/secret", b'{"secret": 1}', Content_Type="application/json")[0] == 400
    )


def test_a_disabled_or_deleted_endpoint_gets_nothing(client: Client, receiver: Receiver) -> None:
    off, gone = listen(client, receiver), listen(client, receiver)
    client.v1.webhook_endpoints.update(off.id, {"disabled": True})
    client.v1.webhook_endpoints.delete(gone.id)
    client.v1.customers.create({"name": "Ada"})
    time.sleep(0.2)
    assert receiver.got == []
    assert client.v1.events.list().data[0].pending_webhooks == 0


@pytest.mark.parametrize(
    "url", ["https://example.com/hook", "ftp://localhost/", "http://169.254.169.254/", "//localhost", "http://localhost:x/", ""]
)
def test_it_delivers_to_this_machine_only(client: Client, url: str) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.webhook_endpoints.create({"url": url, "enabled_events": ["*"]})


def test_events_are_listed_by_type_and_time(client: Client) -> None:
    client.price(2500)
    then = client.now() + 10
    client.advance(to=then)
    client.v1.customers.create({"name": "Ada"})
    assert [event.type for event in client.v1.events.list({"types": ["price.created", "customer.created"]}).data] == [
        "customer.created",
        "price.created",
    ]
    assert [event.type for event in client.v1.events.list({"created": {"gte": then}}).data] == ["customer.created"]
    assert [event.type for event in client.v1.events.list({"created": {"lt": then}, "type": "product.created"}).data] == ["product.created"]


def test_deliveries_survive_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    data = tmp_path / "kept.sqlite3"
    for paused in (True, False):
        running = Double(port=0, data=data)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        client = Client(running.address)
        client.control("POST", "/settings", webhooks_paused=paused)
        if paused:
            listen(client, receiver)
            client.v1.customers.create({"name": "Ada"})
        else:
            assert types(receiver.wait(lambda got: len(got) == 1)) == ["customer.created"]
        running.close()
        thread.join()
