"""What client apps report about finished work, as it arrives, and what of it we understand.

    read         events, from HTTP or a file, as metering's own; each is judged alone
    reported     a provider's own usage object as quantities

An event arrives in one of three shapes, and in any mix of them:

* plain (:class:`Event`): our names, with our ``quantities`` or the provider's ``usage`` object as it came;
* a span (:class:`Span`): the ``gen_ai.*`` attributes of OpenTelemetry's semantic conventions;
* a CloudEvents 1.0 envelope (:class:`CloudEvent`) around either.

Nothing is guessed: a shape that is not understood whole is refused, naming the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from accounts import api
from accounts.models import Account
from billing import subscriptions
from metering import usage
from pricing import provider_usage, rating

MAX_KEY_LENGTH = 255
_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")

# Words ------------------------------------------------------------------------------------------------------------------------


def printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have printable characters only")
    return value


Quantity = Annotated[int, Field(ge=0, le=rating.MAX_QUANTITY)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(printable)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Model = Annotated[str, StringConstraints(min_length=3, max_length=193, pattern=r"^[^:\s]+:\S+$"), AfterValidator(printable)]
Meter = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
#: What of each meter of the plan a request is; without it, one message.
Counts = Annotated[dict[Meter, Annotated[int, Field(ge=0, le=1_000)]], Field(max_length=8)]
ServiceLevel = Literal["standard", "batch", "priority", "flex"]


class Quantities(api.Command):
    """What was used, in disjoint parts: a cached token is not also an input token, reasoning is not also output."""

    input_tokens: Quantity = 0
    output_tokens: Quantity = 0
    cached_input_tokens: Quantity = 0
    cache_write_tokens: Quantity = 0
    cache_write_1h_tokens: Quantity = 0
    reasoning_tokens: Quantity = 0
    input_audio_tokens: Quantity = 0
    output_audio_tokens: Quantity = 0
    cached_input_audio_tokens: Quantity = 0
    images: Quantity = 0
    seconds: Quantity = 0
    gb_months: Quantity = 0
    requests: Quantity = 0
    egress_gb: Quantity = 0
    web_searches: Quantity = 0

    def used(self) -> dict[str, int]:
        return {name: quantity for name, quantity in self if quantity}


class Used(api.Command):
    """What a call used: our ``quantities``, or the provider's own ``usage`` object as it came."""

    quantities: Quantities | None = None
    provider_usage: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Used:
        if (self.quantities is None) == (self.provider_usage is None):
            raise ValueError("give quantities or provider_usage, and only one of them")
        return self


Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY_LENGTH), AfterValidator(printable)]

# Shapes -----------------------------------------------------------------------------------------------------------------------


class Work(api.Command):
    """What every event says of the work: ``id`` makes it count once, for ever."""

    id: Key
    account: Name | None = None
    time: Annotated[AwareDatetime, Field(strict=False)]
    feature: Slug | None = None
    service_level: ServiceLevel = "standard"
    user: Name | None = None
    session: Name | None = None
    run: Name | None = None
    counts: Counts | None = None

    @model_validator(mode="before")
    @classmethod
    def _time_is_text(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "time" in data and not (isinstance(data["time"], str) and _DATE.match(data["time"])):
            raise ValueError("time must be RFC 3339 text with a zone")
        return data


class Event(Work, Used):
    """Finished work: ``id`` makes it count once, for ever."""

    model: Model


class Span(Work):
    """Finished work as OpenTelemetry describes it: ``attributes`` are those of the span of one call to a model.

    Read are ``gen_ai.provider.name`` (or ``gen_ai.system``), ``gen_ai.response.model`` (or ``gen_ai.request.model``),
    ``gen_ai.usage.input_tokens`` and ``output_tokens``, of the input what was read from and written to a cache, and
    ``gen_ai.conversation.id``, which is the session where none is given. Other attributes are not about usage and are ignored.
    """

    attributes: dict[str, Any]


class CloudEvent(BaseModel):
    """A CloudEvents 1.0 envelope; ``data`` is an event without ``id`` and ``time``. Its key is source and id. Extensions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)
    specversion: Literal["1.0"]
    id: Key
    source: Key
    type: str
    time: str
    data: dict[str, Any]

    @field_validator("data")
    @classmethod
    def _leaves_id_and_time_to_the_envelope(cls, data: dict[str, Any]) -> dict[str, Any]:
        if "id" in data or "time" in data:
            raise ValueError("id and time are the envelope's")
        return data


# Reading ----------------------------------------------------------------------------------------------------------------------

#: An event, or why it is none.
Read: TypeAlias = usage.Event | api.Problem | usage.InvalidUsage


def read(items: Sequence[Any], *, product_id: int, account_id: int | None = None) -> list[Read]:
    """Each of ``items``, which are parsed JSON, as an event of the product, in their order.

    :param account_id: the only account whose events are read, and whose they are when they name none.
    """
    parsed = [_parsed(item) for item in items]
    names = {body.account for _, body in (each for each in parsed if isinstance(each, tuple))}
    accounts = _accounts(names, product_id, account_id)
    return [each if isinstance(each, Exception) else _event(*each, accounts) for each in parsed]


def reported(model: str, report: Mapping[str, Any]) -> dict[str, int]:
    """The quantities of a provider's own usage object. :raises usage.InvalidUsage: it cannot be read."""
    try:
        return provider_usage.normalise(provider=model.partition(":")[0], usage=report)
    except provider_usage.UnreadableUsage as error:
        raise usage.InvalidUsage("provider_usage", str(error)) from error


def _parsed(item: Any) -> tuple[str, Event | Span] | api.Problem:
    """An item's key and content, or what is wrong with it."""
    source = ""
    try:
        if isinstance(item, dict) and "specversion" in item:
            envelope = api.check(item, CloudEvent)
            source = envelope.source
            item = {"id": envelope.id, "time": envelope.time} | envelope.data
        body = api.check(item, Span) if isinstance(item, dict) and "attributes" in item else api.check(item, Event)
    except api.Problem as error:
        return error
    return (f"cloudevent:{len(source)}:{source}:{body.id}" if source else f"event:{body.id}"), body


def _event(key: str, body: Event | Span, accounts: Mapping[str | None, Account | None]) -> Read:
    account = accounts.get(body.account)
    if account is None:
        return api.no_such_account(body.account)
    session = body.session
    try:
        if isinstance(body, Span):
            model, quantities = _traced(body.attributes)
            session = session or _text(body.attributes, "gen_ai.conversation.id")
        else:
            model = body.model
            quantities = body.quantities.used() if body.quantities else reported(model, body.provider_usage or {})
    except usage.InvalidUsage as error:
        return error
    return usage.Event(
        key, account, body.time, model, quantities, body.feature, body.service_level, body.user, session, body.run, body.counts
    )


def _accounts(names: Iterable[str | None], product_id: int, account_id: int | None) -> Mapping[str | None, Account | None]:
    """The accounts of these names, open or closed, ours or the client app's own."""
    if account_id is not None:
        only = subscriptions.payer_of(product_id, account_id)
        return {name: only for name in names if only and name in (None, only.public_id, only.external_id)}
    found = subscriptions.payers(product_id, [name for name in names if name is not None])
    return {name: found.get(name) for name in names if name is not None}


# OpenTelemetry ----------------------------------------------------------------------------------------------------------------

#: ``gen_ai.provider.name`` → the provider as the price book calls it, where they differ.
_PROVIDERS = {
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "x_ai": "x-ai",
}
_MODEL = re.compile(r"[^:\s]+:\S+")


def _traced(attributes: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """The model and the quantities of a span. Its input contains what was read from a cache and written to one, so those are taken out.

    :raises usage.InvalidUsage: an attribute is missing, or is not what the conventions say.
    """
    provider = _text(attributes, "gen_ai.provider.name", "gen_ai.system")
    name = _text(attributes, "gen_ai.response.model", "gen_ai.request.model")
    if provider is None or name is None:
        missing = "gen_ai.provider.name" if provider is None else "gen_ai.response.model"
        raise usage.InvalidUsage(f"attributes.{missing}", f"{missing} is missing.")
    model = f"{_PROVIDERS.get(provider, provider)}:{name}"
    if len(model) > 193 or not _MODEL.fullmatch(model) or not model.isprintable():
        raise usage.InvalidUsage("attributes.gen_ai.response.model", "The provider and the model together are no model's name.")
    whole = _count(attributes, "gen_ai.usage.input_tokens", required=True)
    cached = _count(attributes, "gen_ai.usage.cache_read.input_tokens")
    written = _count(attributes, "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens")
    if whole < cached + written:
        raise usage.InvalidUsage("attributes.gen_ai.usage.input_tokens", f"{whole} is less than its cached parts, {cached} and {written}.")
    quantities = {
        "input_tokens": whole - cached - written,
        "output_tokens": _count(attributes, "gen_ai.usage.output_tokens"),
        "cached_input_tokens": cached,
        "cache_write_tokens": written,
    }
    return model, {component: quantity for component, quantity in quantities.items() if quantity}


def _text(attributes: Mapping[str, Any], *names: str) -> str | None:
    """The first of these attributes that is there."""
    for name in names:
        if (value := attributes.get(name)) is not None:
            if not isinstance(value, str) or not 1 <= len(value) <= 128 or not value.isprintable():
                raise usage.InvalidUsage(f"attributes.{name}", f"{name} must be 1 to 128 printable characters.")
            return value
    return None


def _count(attributes: Mapping[str, Any], *names: str, required: bool = False) -> int:
    for name in names:
        if (value := attributes.get(name)) is not None:
            if type(value) is not int or not 0 <= value <= rating.MAX_QUANTITY:
                raise usage.InvalidUsage(f"attributes.{name}", f"{name} must be a whole number from 0 to {rating.MAX_QUANTITY}.")
            return value
    if required:
        raise usage.InvalidUsage(f"attributes.{names[0]}", f"{names[0]} is missing.")
    return 0
