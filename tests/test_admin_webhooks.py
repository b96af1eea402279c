"""Staff register endpoints, see what became of each event, and send again what was lost, each with a reason."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from accounts import webhook_endpoints, webhooks
from accounts.models import User, WebhookDelivery, WebhookEndpoint, WebhookEvent
from pricing.models import Product
from tests.factories import make_product

pytestmark = pytest.mark.django_db
URL = "https://127.0.0.1:8443/hook"


@pytest.fixture(autouse=True)
def local(settings: Settings) -> None:
    settings.OUTBOUND_TO_LOCALHOST = True


@pytest.fixture
def product() -> Product:
    return make_product()


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser(f"{uuid4().hex}@example.com", "correct horse battery"))
    return client


@pytest.fixture
def endpoint(product: Product) -> WebhookEndpoint:
    return webhook_endpoints.create(product=product, url=URL, kinds=["alert.fired"], created_by="a test", now=timezone.now()).endpoint


def act(endpoint: WebhookEndpoint, verb: str) -> str:
    return reverse("admin:accounts_webhookendpoint_act", args=[endpoint.pk, verb])


class TestEndpoints:
    def test_an_endpoint_is_registered_and_its_secret_shown_once(self, staff: Client, product: Product) -> None:
        add = reverse("admin:accounts_webhookendpoint_add")
        assert staff.get(add).status_code == 200
        response = staff.post(add, {"product": product.pk, "url": URL, "kinds": ["balance.low", "alert.fired"], "description": "live"})
        [secret] = re.findall(r"whsec_[A-Za-z0-9+/=]+", response.content.decode().replace("&#x3D;", "="))
        endpoint = WebhookEndpoint.objects.get(product=product)
        assert webhook_endpoints.signing_secrets(endpoint=endpoint, now=timezone.now()) == [secret]
        assert "no-store" in response.headers["Cache-Control"]
        page = staff.get(reverse("admin:accounts_webhookendpoint_change", args=[endpoint.pk])).content.decode()
        assert "whsec_" not in page
        assert endpoint.secret not in page
        assert LogEntry.objects.filter(object_id=str(endpoint.pk), change_message__contains="Registered").exists()

    @pytest.mark.parametrize(
        "wrong",
        [{"url": ""}, {"url": "http://example.com/"}, {"url": "https://10.0.0.1/"}, {"url": "https://a b/"}, {"kinds": []},
         {"kinds": ["webhook.test"]}, {"kinds": ["nonsense"]}, {"product": "0"}, {"product": "x"}, {"description": "x" * 121}],
    )  # fmt: skip
    def test_garbage_is_an_error_beside_its_field(self, staff: Client, product: Product, wrong: dict[str, object]) -> None:
        form = {"product": product.pk, "url": URL, "kinds": ["balance.low"]} | wrong
        response = staff.post(reverse("admin:accounts_webhookendpoint_add"), form)
        assert response.status_code == 200
        assert list(response.context["form"].errors) == list(wrong)
        assert not WebhookEndpoint.objects.filter(product=product).exists()

    def test_each_act_is_explained_needs_a_reason_and_is_in_the_audit_log(self, staff: Client, endpoint: WebhookEndpoint) -> None:
        former = webhook_endpoints.signing_secrets(endpoint=endpoint, now=timezone.now())[0]
        for verb, title in (("rotate", "Make a new secret"), ("disable", "Disable"), ("enable", "Enable"), ("remove", "Delete")):
            assert title in staff.get(act(endpoint, verb)).content.decode()
            staff.post(act(endpoint, verb), {"reason": ""})
            assert not LogEntry.objects.filter(object_id=str(endpoint.pk), change_message__startswith=title).exists()
            response = staff.post(act(endpoint, verb), {"reason": "Asked for."})
            assert LogEntry.objects.get(object_id=str(endpoint.pk), change_message=f"{title}: Asked for.")
            endpoint.refresh_from_db()
            if verb == "rotate":
                assert response.status_code == 200
                assert webhook_endpoints.signing_secrets(endpoint=endpoint, now=timezone.now())[1] == former
            assert (endpoint.disabled_at is not None) == (verb == "disable")
        assert endpoint.deleted_at is not None
        assert staff.get(act(endpoint, "enable")).status_code == 404

    def test_a_test_event_is_queued_for_this_endpoint_alone(self, staff: Client, endpoint: WebhookEndpoint) -> None:
        staff.post(act(endpoint, "test"), {"reason": "Does it work?"})
        assert WebhookEvent.objects.get(kind="webhook.test", product=endpoint.product).deliveries.get().endpoint == endpoint

    def test_an_act_or_an_endpoint_that_there_is_not_is_404(self, staff: Client, endpoint: WebhookEndpoint) -> None:
        assert staff.get(act(endpoint, "explode")).status_code == 404
        endpoint.pk = 0
        assert staff.post(act(endpoint, "remove"), {"reason": "x"}).status_code == 404

    def test_staff_without_the_permission_do_nothing(self, endpoint: WebhookEndpoint) -> None:
        client = Client()
        client.force_login(User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery", is_staff=True))
        for url in (reverse("admin:accounts_webhookendpoint_add"), act(endpoint, "rotate"), act(endpoint, "remove")):
            assert client.post(url, {"reason": "x"}).status_code == 403


class TestDeliveries:
    @pytest.fixture
    def delivery(self, endpoint: WebhookEndpoint) -> WebhookDelivery:
        event = webhooks.queue_test(endpoint=endpoint, now=timezone.now())
        event.deliveries.update(state="dead", done_at=timezone.now(), reason="It answered 500.", attempts=18)
        return event.deliveries.get()

    def decide(self, client: Client, delivery: WebhookDelivery, verb: str, **more: str) -> str:
        url = reverse("admin:accounts_webhookdelivery_changelist")
        return client.post(url, {"action": verb, "_selected_action": [delivery.pk], **more}, follow=True).content.decode()

    def test_a_dead_delivery_is_sent_again_after_its_page_and_a_reason(self, staff: Client, delivery: WebhookDelivery) -> None:
        assert "It answered 500." in self.decide(staff, delivery, "send_again")
        self.decide(staff, delivery, "send_again", confirm="1", reason="")
        delivery.refresh_from_db()
        assert delivery.state == "dead"
        assert "Send again: 1 of 1." in self.decide(staff, delivery, "send_again", confirm="1", reason="They are back.")
        delivery.refresh_from_db()
        assert (delivery.state, delivery.attempts, delivery.done_at) == ("pending", 0, None)
        assert LogEntry.objects.get(object_id=str(delivery.pk), change_message="Send again: They are back.")

    def test_a_dead_delivery_is_set_aside(self, staff: Client, delivery: WebhookDelivery) -> None:
        self.decide(staff, delivery, "set_aside", confirm="1", reason="No longer wanted.")
        delivery.refresh_from_db()
        assert (delivery.state, delivery.reason) == ("suppressed", "Set aside: No longer wanted.")

    def test_each_page_answers(self, staff: Client, delivery: WebhookDelivery) -> None:
        for name, row in (("webhookdelivery", delivery), ("webhookevent", delivery.event), ("webhookendpoint", delivery.endpoint)):
            assert staff.get(reverse(f"admin:accounts_{name}_changelist")).status_code == 200
            assert staff.get(reverse(f"admin:accounts_{name}_change", args=[row.pk])).status_code == 200
        listed = staff.get(reverse("admin:accounts_webhookdelivery_changelist"), {"endpoint__id__exact": delivery.endpoint_id})
        assert URL in listed.content.decode()
