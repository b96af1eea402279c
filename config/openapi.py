"""The OpenAPI document: what drf-spectacular finds, and beside it the endpoints that are plain views, the hot ones, and the problems.

``complete`` is a post-processing hook (``SPECTACULAR_SETTINGS``), ``document`` serves the result. The answers of the hot endpoints are
described here as models; ``tests/test_api_contract.py`` holds real answers against them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe
from drf_spectacular.generators import SchemaGenerator
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from accounts import openings, webhook_api
from accounts.api import PROBLEM_JSON
from accounts.reads import Amount
from analytics import projection_api, scenarios
from billing import selling_api as selling
from billing import top_up_api, widget
from metering import api, ingest
from metering.reads import LayerAnswer

REFERENCE = "#/components/schemas/{model}"
Document = dict[str, Any]


@require_safe
def document(request: HttpRequest) -> HttpResponse:
    """The document, made once by each process."""
    return JsonResponse(_document(), content_type="application/vnd.oai.openapi+json")


@cache
def _document() -> Document:
    schema: Document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return schema


# The shapes -------------------------------------------------------------------------------------------------------------------


class FieldError(BaseModel):
    field: str
    message: str


class Offer(BaseModel):
    """A plan that allows more. `price` null = agreed."""

    plan: str
    name: str
    price: str | None
    currency: str


class Left(BaseModel):
    """What of a limit is left once the work is authorized, null = no limit."""

    layer: str
    meter: str | None
    remaining: int | str | None


class Passed(BaseModel):
    """A soft limit that would have refused the work; `used` is without it, or of `request_size` the tokens asked for."""

    layer: str
    meter: str | None
    limit: int | str | None
    used: int | str | None
    resets_at: datetime | None
    step: str | None = Field(None, description="Of `guard`: what the runaway guard does, `warn`, `degrade`, `slow` or `block`.")
    model: str | None = Field(None, description="Of `guard`: a model that does the same for less.")
    detail: str | None = Field(None, description="Of `guard`: why, with its figures.")


class Problem(BaseModel):
    """What went wrong (RFC 9457). Decide by `code`, never by the words. Some codes bring further members."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    code: str = Field(examples=["insufficient_credits"])
    detail: str
    errors: list[FieldError] | None = Field(None, description="With `invalid_request`: every wrong field.")
    limits: list[LayerAnswer] | None = Field(None, description="With a refused authorization: every layer.")
    resets_at: datetime | None = Field(None, description="With a refused authorization: when the layer that refused starts anew.")
    upgrade: Offer | None = Field(None, description="With a refused authorization: the next plan that would allow it.")
    page: str | None = Field(None, description="With a refused authorization: our page for the customer, what the limit is and the way on.")


class OpenedAccount(BaseModel):
    """An account, new or as it was; `account` is our id of it. `closed_at` null = open."""

    account: str
    external_id: str
    kind: Literal["person", "team", "guest"]
    name: str
    time_zone: str
    created_at: datetime
    closed_at: datetime | None


class WidgetAddress(BaseModel):
    """Where the account's balance can be framed until `expires_at`. The address is the permission: give it to nobody else."""

    account: str
    url: str
    expires_at: datetime


class Authorization(BaseModel):
    """Leave to do the work: `hold` is reserved until `expires_at`, for an answer of `max_output_tokens`: yours, or what was assumed."""

    id: str
    status: Literal["authorized"]
    account: str
    hold: Amount
    unit: str
    max_output_tokens: int
    created_at: datetime
    expires_at: datetime
    limits: list[Left]
    warnings: list[Passed] = Field(description="Soft limits that it has passed. Told once: a repeated call has none.")
    spooled: bool = Field(False, description="Usage tracking is off for a while: nothing is held, and what is captured is charged later.")


class Settlement(BaseModel):
    """How an authorization ended. While a price is missing (`awaiting_price`) there is nothing about money but the hold."""

    id: str
    status: str
    account: str
    unit: str
    hold: Amount
    charged: Amount | None = None
    released: Amount | None = None
    owed: Amount | None = None
    waived: Amount | None = None
    balance: Amount | None = None
    spooled: bool = Field(False, description="It was written down while usage tracking was off, and is charged (`charged`) after that.")
    record: str | None = Field(None, description="Of what was spooled: the usage record that it became.")


class Extension(BaseModel):
    id: str
    status: Literal["authorized"]
    expires_at: datetime
    spooled: bool = False


class Places(BaseModel):
    """How many objects of one kind the account has, and may have; `limit` null = any number."""

    meter: str
    account: str
    used: int
    limit: int | None
    remaining: int | None


class Result(BaseModel):
    """What became of one event: `id`, `account`, `charged` and `unit`, or the `problem` with it. `charged` null = no price yet."""

    index: int = Field(description="The event's place in the batch, from 0.")
    status: Literal["created", "duplicate", "unpriced", "conflict", "invalid"]
    id: str | None = None
    account: str | None = None
    charged: Amount | None = None
    unit: str | None = None
    spooled: bool = Field(False, description="Written down while usage tracking is off: it has its `id` and is charged after that.")
    problem: Problem | None = None


class Results(BaseModel):
    """Every event's own result, in their order, and how many there are of each status."""

    results: list[Result]
    created: int
    duplicate: int
    unpriced: int
    conflict: int
    invalid: int


# The plain endpoints ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    path: str
    id: str
    summary: str
    description: str
    requests: tuple[type[BaseModel], ...]
    answers: tuple[type[BaseModel], ...]
    examples: dict[str, Any]
    problems: dict[int, str]
    parameters: list[Document] = field(default_factory=list)
    body_required: bool = True


_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "The same for every retry of one call: the first answer is given again, with `Idempotency-Replayed: true`.",
    "schema": {"type": "string", "minLength": 1, "maxLength": ingest.MAX_KEY_LENGTH, "pattern": "^[ -~]+$"},
    "example": "chat-7f3a-1",
}
_OPTIONAL_KEY = _KEY | {"required": False, "example": "order-7f3a"}
_ID = {
    "name": "authorization",
    "in": "path",
    "required": True,
    "description": "The `id` that authorize answered.",
    "schema": {"type": "string"},
}
_METER = {
    "name": "meter",
    "in": "path",
    "required": True,
    "description": "What is counted, as the plan names it, e.g. `agents`.",
    "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"},
}
_ENDPOINT = {
    "name": "endpoint",
    "in": "path",
    "required": True,
    "description": "The `id` of an endpoint.",
    "schema": {"type": "string"},
}
_RESOLVED = "`hold_already_resolved`, `hold_expired`: it ended otherwise; `state` says how."

_SELLING = {
    403: "`missing_scope`; `refused`: a guest buys nothing",
    422: "`price_unavailable`: Stripe does not sell it as the catalog says; `redirect_not_allowed`; `invalid_request`",
    503: "`dependency_unavailable`: Stripe or the database did not answer, send the same again after `Retry-After` seconds",
}

OPERATIONS = (
    Operation(
        "/api/v1/billing/widget", "mintWidget", "An address that shows the balance in a frame.",
        "In a product's own sidebar: the address needs no sign-in, is of one account, and ends after an hour, with the key that asked for"
        " it, or with the account. Only pages at the product's allowed origins may frame it.",
        (widget.Mint,), (WidgetAddress,),
        {"A product key": {"account": "customer-42"}, "An account key": {}},
        {403: "`missing_scope`", 404: "`not_found`: no such account of this key"},
    ),
    Operation(
        "/api/v1/accounts", "openAccount", "Open an account, or sign a guest up.",
        "One account for each `external_id`: one that exists is answered as it is. It starts on the product's default plan, with the"
        " welcome credit; a `guest` on the guest plan, without a balance. A guest who is asked for again as a `person` or `team` signs up:"
        " the same account takes the name and address given, the default plan and the welcome credit, once for ever.",
        (openings.Open,), (OpenedAccount,),
        {
            "A guest": {"external_id": "visitor-42", "kind": "guest"},
            "The guest signs up": {"external_id": "visitor-42", "kind": "person", "name": "Ada", "billing_email": "ada@example.com"},
        },
        {403: "`missing_scope`; `refused`: an account key opens none", 422: "`invalid_request`: also where the product has no guests"},
    ),
    Operation(
        "/api/v1/usage/authorize", "authorize", "May this account spend this?",
        "Asks every limit in order and holds the price of the worst case. The answer names each layer and what it has left.",
        (api.Authorize,), (Authorization,),
        {
            "A chat message": {
                "account": "customer-42", "model": "anthropic:claude-sonnet-4-5", "feature": "chat",
                "estimate": {"input_tokens": 2000, "max_output_tokens": 1000},
            }
        },
        {
            402: "`insufficient_credits`", 403: "`not_entitled`, `missing_scope`", 404: "`not_found`: no such account of this key",
            409: "`idempotency_key_reused`", 422: "`request_too_large`, `unknown_model`, `amount_too_large`, `invalid_request`",
            429: "`throttled`, `rate_limited`, `concurrency_limit_reached`, `quota_exceeded`, `cost_limit_reached`",
            503: "`switched_off`, `dependency_unavailable`: again after `Retry-After`",
        },
        [_KEY],
    ),
    Operation(
        "/api/v1/usage/authorizations/{authorization}/capture", "capture", "This is what it used.",
        "Charges what was used, at the prices promised, and gives the rest of the hold back. Repeating it changes nothing. Give either"
        " `quantities` or the provider's own usage object as `provider_usage`.",
        (api.Capture,), (Settlement,),
        {
            "Quantities": {"quantities": {"input_tokens": 1000, "cached_input_tokens": 9000, "output_tokens": 350}},
            "The provider's report": {"provider_usage": {"input_tokens": 1000, "cache_read_input_tokens": 9000, "output_tokens": 350}},
        },
        {404: "`not_found`", 409: _RESOLVED, 422: "`capture_exceeds_hold`, `amount_too_large`, `invalid_request`"},
        [_ID],
    ),
    Operation(
        "/api/v1/usage/authorizations/{authorization}/release", "release", "Nothing was used.", "Gives the whole hold back.",
        (api.Nothing,), (Settlement,), {"No fields": {}}, {404: "`not_found`", 409: _RESOLVED}, [_ID], body_required=False,
    ),
    Operation(
        "/api/v1/usage/authorizations/{authorization}/extend", "extend", "Still at it.",
        "Keeps the hold open for so many seconds from now, never past the product's hard maximum.",
        (api.Extend,), (Extension,), {"Ten minutes more": {"seconds": 600}}, {404: "`not_found`", 409: _RESOLVED}, [_ID],
    ),
    Operation(
        "/api/v1/billing/top-up", "choose_top_up", "Turn automatic top-up on or off, or to other terms.",
        "Below `threshold` the pack is bought with the saved card, as many as bring the account above it, for `daily_cap` a day at most."
        " Repeating it changes nothing.",
        (top_up_api.ChooseTopUp,), (top_up_api.AutoTopUpAnswer,),
        {"On": {"account": "customer-42", "enabled": True, "threshold": "10.00", "pack": "small", "daily_cap": "50.00"}},
        {404: "`not_found`: no such account of this key", 503: "`dependency_unavailable`"},
    ),
    Operation(
        "/api/v1/usage/counters/{meter}", "counter", "Reserve or release an object that the plan limits in number.",
        "Agents, projects, automations: reserve a place before making one, release it when it is deleted. Repeating either changes nothing."
        " What exists stays when a plan allows fewer.",
        (api.Place,), (Places,),
        {"A new agent": {"account": "customer-42", "action": "reserve", "object": "agent-7"}},
        {
            403: "`not_entitled`: the plan has none of them", 404: "`not_found`: no such account, or no such object to release",
            429: "`quota_exceeded`", 503: "`switched_off`, `dependency_unavailable`",
        },
        [_METER],
    ),
    Operation(
        "/api/v1/usage/records", "record", "This was used, without asking.",
        "Charges finished work: one event, a span with OpenTelemetry's `gen_ai.*` attributes, a CloudEvents 1.0 envelope around either, or"
        " a batch of up to 1,000 of them. An event's `id` makes it count once, for ever. In a batch every event is judged alone: the answer"
        " is 200 and has each event's own result.",
        (ingest.Event, ingest.Span, ingest.CloudEvent, api.Batch), (Result, Results),
        {
            "A batch": {
                "events": [
                    {
                        "id": "job-1-step-1", "account": "customer-42", "time": "2026-01-31T12:00:00Z", "model": "openai:gpt-5",
                        "quantities": {"input_tokens": 1200, "output_tokens": 80},
                    }
                ]
            }
        },
        {
            404: "`not_found`: no such account of this key", 409: "`event_id_reused`: the one event's id was used for another",
            422: "`amount_too_large`, `invalid_request`",
        },
    ),
    Operation(
        "/api/v1/billing/checkout", "buy", "Send a customer to Stripe to pay.",
        "A visit to Stripe's hosted Checkout for a plan or a pack: send the customer to its `url`. Credits and plan come when Stripe says"
        " that it is paid, never from the browser. One visit for the same thing is open at a time: it is handed out again, or ended by one"
        " on other terms.",
        (selling.Purchase,), (selling.CheckoutAnswer,),
        {
            "A plan": {
                "account": "customer-42", "plan": "pro", "success_url": "https://app.example.com/done?checkout={CHECKOUT_ID}",
                "cancel_url": "https://app.example.com/pricing",
            },
            "Two packs": {
                "account": "customer-42", "pack": "small", "quantity": 2, "success_url": "https://app.example.com/done",
                "cancel_url": "https://app.example.com/pricing",
            },
        },
        _SELLING | {409: "`already_subscribed`: change the plan instead; `change_not_possible`, `idempotency_key_reused`"}, [_OPTIONAL_KEY],
    ),
    Operation(
        "/api/v1/billing/portal", "portal", "Send a customer to Stripe's portal.",
        "Card, address, VAT id and invoices are kept at Stripe. The portal leads back to `return_url`.",
        (selling.OpenPortal,), (selling.PortalAnswer,),
        {"From the settings": {"account": "customer-42", "return_url": "https://app.example.com/settings"}}, _SELLING,
    ),
    Operation(
        "/api/v1/billing/subscription/change", "changePlan", "Another plan.",
        "A higher plan counts and is charged at once, for the rest of the period; a lower one from the next period on, and what is paid for"
        " is kept until then. The default plan is a cancellation.",
        (selling.ChangePlan,), (selling.ChangeAnswer,), {"To Pro": {"account": "customer-42", "plan": "pro"}},
        _SELLING | {402: "`card_declined`: nothing has changed", 409: "`not_subscribed`, `change_not_possible`"},
    ),
    Operation(
        "/api/v1/billing/subscription/cancel", "cancelSubscription", "End it with the period.",
        "The plan stays until the end of the period that is paid for. `resume` takes it back.",
        (selling.OnlyAccount,), (selling.SubscribedAnswer,), {"By a product key": {"account": "customer-42"}},
        _SELLING | {409: "`not_subscribed`"},
    ),
    Operation(
        "/api/v1/billing/subscription/resume", "resumeSubscription", "Do not end it after all.",
        "Takes a cancellation back, while the period lasts.",
        (selling.OnlyAccount,), (selling.SubscribedAnswer,), {"By a product key": {"account": "customer-42"}},
        _SELLING | {409: "`not_subscribed`"},
    ),
    Operation(
        "/api/v1/playground/subscribe", "playgroundSubscribe", "Subscribe, as PRPM's guide has it.",
        "The same as `/api/v1/billing/checkout` with the plan that the product has; a member of a team pays the member's price.",
        (selling.Subscribe,), (selling.CheckoutAnswer,),
        {"A person": {"successUrl": "https://app.example.com/done", "cancelUrl": "https://app.example.com/pricing"}},
        _SELLING | {409: "`already_subscribed`, `change_not_possible`, `idempotency_key_reused`"}, [_OPTIONAL_KEY],
    ),
    Operation(
        "/api/v1/playground/credits/purchase", "playgroundPurchase", "Buy a pack, as PRPM's guide has it.",
        "The same as `/api/v1/billing/checkout` with one pack.",
        (selling.BuyPackage,), (selling.CheckoutAnswer,),
        {
            "The small pack": {
                "package": "small", "successUrl": "https://app.example.com/done", "cancelUrl": "https://app.example.com/pricing"
            }
        },
        _SELLING | {409: "`idempotency_key_reused`"}, [_OPTIONAL_KEY],
    ),
    Operation(
        "/api/v1/webhooks/endpoints", "register_webhook_endpoint", "Be told what happens.",
        "Registers an address of your app for the kinds of events that it wants, signed as Standard Webhooks says. The answer has the"
        " signing `secret`, this once. The address is `https`, public, and does not redirect.",
        (webhook_api.Register,), (webhook_api.SecretEndpointAnswer,),
        {"Credit and throttles": {"url": "https://app.example.com/tollgate", "kinds": ["balance.low", "account.throttled"]}},
        {403: "`missing_scope`; `refused`: an account key has no webhooks", 409: "`endpoint_exists`: delete it first"},
    ),
    Operation(
        "/api/v1/webhooks/endpoints/{endpoint}/rotate", "rotate_webhook_secret", "A new signing secret.",
        "The answer has it, this once. The former one signs beside it for a day.",
        (webhook_api.NoFields,), (webhook_api.SecretEndpointAnswer,), {"No fields": {}}, {404: "`not_found`"}, [_ENDPOINT],
        body_required=False,
    ),
    Operation(
        "/api/v1/webhooks/endpoints/{endpoint}/test", "test_webhook_endpoint", "Try it.",
        "Queues an event of type `webhook.test` for this endpoint alone.",
        (webhook_api.NoFields,), (webhook_api.QueuedTest,), {"No fields": {}}, {404: "`not_found`"}, [_ENDPOINT],
        body_required=False,
    ),
    Operation(
        "/api/v1/admin/projections", "project", "What would a month earn?",
        "A calculator: so many users, packs and costs, at the prices of the product's catalog. Nothing is stored. Every line says how it"
        " came about, and the product's rules advise.",
        (scenarios.Scenario,), (projection_api.ProjectionAnswer,),
        {
            "Users of two plans, and AI at 40 % of revenue": {
                "title": "Rover: 90 customers", "plans": {"core": {"users": 60}, "pro": {"users": 30}},
                "revenue": [{"name": "Credit packs", "kind": "credits", "amount": "500.00"}],
                "costs": [
                    {"name": "Servers", "kind": "fixed", "amount": "200.00"}, {"name": "AI", "kind": "ai", "percent_of_revenue": "40"}
                ],
            }
        },
        {404: "`not_found`: a `product` that is not the key's"},
    ),
)  # fmt: skip
_BODY_PROBLEMS = {400: "`invalid_json`", 411: "`length_required`", 413: "`body_too_large`", 415: "`unsupported_media_type`"}
_PARAMETER_PROBLEMS = {422: "`invalid_request`: `errors` names every wrong field or parameter"}
_KEY_PROBLEMS = {
    401: "`invalid_key`",
    403: "`missing_scope`",
    404: "`not_found`: nothing like that, or nothing of this key's",
    429: "`rate_limited`: this key asks too often, try again after `Retry-After` seconds",
    503: "`dependency_unavailable`: the database did not answer, send the same again after `Retry-After` seconds",
}


def complete(result: Document, generator: object, request: object, public: bool) -> Document:
    """Adds the plain endpoints and the problems. Called by drf-spectacular."""
    requests: set[type[BaseModel]] = {model for operation in OPERATIONS for model in operation.requests}
    answers: set[type[BaseModel]] = {Problem, *(model for operation in OPERATIONS for model in operation.answers)}
    schemas = result["components"].setdefault("schemas", {})
    schemas |= _schemas(requests, "validation") | _schemas(answers, "serialization")
    schemas["Batch"]["properties"]["events"]["items"] = _either((ingest.Event, ingest.Span, ingest.CloudEvent))
    for operation in OPERATIONS:
        result["paths"].setdefault(operation.path, {})["post"] = _described(operation)
    for methods in result["paths"].values():
        for method in methods.values():
            keyless = method.get("security") == [{}]
            _add_problems(method["responses"], _PARAMETER_PROBLEMS if keyless else _PARAMETER_PROBLEMS | _KEY_PROBLEMS)
    result["paths"] = dict(sorted(result["paths"].items()))
    return result


def _described(operation: Operation) -> Document:
    responses: Document = {
        "200": {
            "description": "",
            "headers": {
                "Idempotency-Replayed": {"description": "`true` for a repeated call.", "schema": {"type": "string", "enum": ["true"]}}
            },
            "content": {"application/json": {"schema": _either(operation.answers)}},
        }
    }
    _add_problems(responses, _BODY_PROBLEMS | operation.problems)
    examples = {name: {"value": value} for name, value in operation.examples.items()}
    return {
        "operationId": operation.id,
        "summary": operation.summary,
        "description": operation.description,
        "tags": [operation.path.split("/")[3]],
        "security": [{"apiKey": []}],
        "parameters": operation.parameters,
        "requestBody": {
            "required": operation.body_required,
            "content": {"application/json": {"schema": _either(operation.requests), "examples": examples}},
        },
        "responses": responses,
    }


def _add_problems(responses: Document, codes: dict[int, str]) -> None:
    for status, description in sorted(codes.items()):
        responses.setdefault(str(status), _problem(description))
    responses.setdefault("default", _problem("Any other problem."))


def _problem(description: str) -> Document:
    return {"description": description, "content": {PROBLEM_JSON: {"schema": _reference(Problem)}}}


def _either(models: tuple[type[BaseModel], ...]) -> Document:
    references = [_reference(model) for model in models]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _reference(model: type[BaseModel]) -> Document:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _schemas(models: set[type[BaseModel]], mode: JsonSchemaMode) -> Document:
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schema = models_json_schema([(model, mode) for model in ordered], ref_template=REFERENCE)
    definitions: Document = schema["$defs"]
    return definitions
