"""/api/v1/webhooks/endpoints: where a client app is told what happens. With product keys only: an endpoint hears of every account.

The secret of an endpoint is in the answers that make one, and in no other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from pydantic import Field
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import api, api_keys, reads, webhook_endpoints, webhooks
from accounts.models import WebhookEndpoint
from pricing import catalog

Kind = Literal[
    "balance.low", "limit.warning", "limit.reached", "account.throttled", "account.unthrottled", "guard.changed", "subscription.changed",
    "top_up.failed", "kill_switch.changed", "alert.fired",
]  # fmt: skip


class Register(api.Command):
    """An `https` address of your app, and what it is to be told of."""

    url: Annotated[str, Field(min_length=1, max_length=2000, examples=["https://app.example.com/tollgate"])]
    kinds: Annotated[list[Kind], Field(min_length=1, max_length=20)]
    description: Annotated[str, Field(max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""


class NoFields(api.Command):
    """No fields."""


class EndpointAnswer(reads.Answer):
    """An endpoint. `disabled_at` null = it is told; else `disabled_reason` says why not."""

    id: str
    url: str
    description: str
    kinds: list[str]
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str
    failing_since: datetime | None

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_shown(endpoint))


class SecretEndpointAnswer(EndpointAnswer):
    """An endpoint with its new signing `secret`, which is shown this once."""

    secret: str


class EndpointsAnswer(reads.Answer):
    """The product's endpoints, the oldest first."""

    items: list[EndpointAnswer]


class QueuedTest(reads.Answer):
    """The event that was queued; its `id` comes as `webhook-id`."""

    id: str
    type: str


class Endpoints(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="webhook_endpoints", responses=EndpointsAnswer)
    def get(self, request: Request) -> Response:
        """Where the client app is told what happens."""
        self.asked(request, reads.Query)
        standing = _standing(reads.principal(request))
        return EndpointsAnswer(items=[EndpointAnswer.of(endpoint) for endpoint in standing]).response()


class Endpoint(APIView):
    http_method_names = ["delete"]
    permission_classes = [api.HasScope.of("billing:write")]

    @extend_schema(operation_id="delete_webhook_endpoint", request=None, responses=EndpointAnswer)
    def delete(self, request: Request, endpoint: str) -> Response:
        """Sends nothing there ever again."""
        if request.query_params:
            raise api.Problem(422, "invalid_request", "There are no parameters.", errors=[])
        found = _find(reads.principal(request), endpoint)
        webhook_endpoints.delete(endpoint=found, now=timezone.now())
        return EndpointAnswer.of(found).response()


@api.endpoint(scope="billing:write")
def register(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, Register)
    _product_keys_only(principal)
    try:
        created = webhook_endpoints.create(
            product=catalog.product_by_id(product_id=principal.product_id),
            url=body.url,
            kinds=body.kinds,
            description=body.description,
            created_by=f"key {principal.key_id}",
            now=timezone.now(),
        )
    except webhook_endpoints.InvalidEndpoint as error:
        raise api.Problem(422, "invalid_request", str(error), errors=[{"field": error.field, "message": str(error)}]) from error
    except webhook_endpoints.KnownEndpoint as error:
        raise api.Problem(409, "endpoint_exists", str(error)) from error
    return _with_secret(created.endpoint, created.secret)


@api.endpoint(scope="billing:write")
def rotate(request: HttpRequest, principal: api_keys.Principal, endpoint: str) -> HttpResponse:
    if request.body:
        api.parse(request, NoFields)
    found = _find(principal, endpoint)
    return _with_secret(found, webhook_endpoints.rotate(endpoint=found, now=timezone.now()))


@api.endpoint(scope="billing:write")
def send_test(request: HttpRequest, principal: api_keys.Principal, endpoint: str) -> HttpResponse:
    if request.body:
        api.parse(request, NoFields)
    event = webhooks.queue_test(endpoint=_find(principal, endpoint), now=timezone.now())
    return api.as_json({"id": event.public_id, "type": event.kind})


def _product_keys_only(principal: api_keys.Principal) -> None:
    if principal.account_id is not None:
        raise api.Problem(403, "refused", "Webhooks are the product's: an account key has none.")


def _standing(principal: api_keys.Principal) -> list[WebhookEndpoint]:
    """:raises Problem: 403 for an account key."""
    _product_keys_only(principal)
    return list(WebhookEndpoint.objects.filter(product_id=principal.product_id, deleted_at=None).order_by("pk"))


def _find(principal: api_keys.Principal, public_id: str) -> WebhookEndpoint:
    """:raises Problem: 403 for an account key, 404 where the product has no such endpoint."""
    found = next((endpoint for endpoint in _standing(principal) if endpoint.public_id == public_id), None)
    if found is None:
        raise api.Problem(404, "not_found", "No such endpoint.")
    return found


def _with_secret(endpoint: WebhookEndpoint, secret: str) -> HttpResponse:
    answer = SecretEndpointAnswer(secret=secret, **_shown(endpoint))
    return api.as_json(answer.model_dump(mode="json"), headers={"Cache-Control": "no-store"})


def _shown(endpoint: WebhookEndpoint) -> dict[str, Any]:
    names = ("url", "description", "kinds", "created_at", "disabled_at", "disabled_reason", "failing_since")
    return {"id": endpoint.public_id} | {name: getattr(endpoint, name) for name in names}
