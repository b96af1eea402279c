"""What every GET of the API shares: checked query parameters, the account they name, answers that are their own schema.

    Read         a view that answers GET; ``asked`` checks its query, ``account`` finds whose rows it is about
    Query, Page  query parameters: unknown, repeated and wrong ones are refused (422), each named
    Answer       a response body; amounts are given in nanos and leave as exact decimal strings

A view scopes its rows by the account *and* evaluates them inside :func:`accounts.tenancy.acting_as`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Final, Self, TypeVar

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import api, api_keys
from accounts.models import Account

MAX_PAGE: Final = 100
_Q = TypeVar("_Q", bound=BaseModel)


def _digits(value: object) -> object:
    """Query strings are text: ``5`` is a number; ``５``, ``+5``, ``5.0`` and ``1_0`` are none."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= 19):
            raise ValueError("Write a whole number in the digits 0 to 9.")
        return int(value)
    return value


def _instant(value: object) -> object:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("Write an instant as 2026-01-31T12:00:00Z (a + in the address is written %2B).") from None
        if value.tzinfo is None:
            raise ValueError("Say the time zone, e.g. 2026-01-31T12:00:00Z.")
        if not 2000 <= value.year < 2200:
            raise ValueError("Write a year from 2000 to 2199.")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("Control characters are not allowed.")
    return value


def _decimal(nanos: int) -> str:
    return api.amount(nanos)


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Number = Annotated[int, BeforeValidator(_digits)]
Instant = Annotated[datetime, BeforeValidator(_instant)]
#: Nanos inside, a decimal string with nine digits outside.
Amount = Annotated[
    int,
    PlainSerializer(_decimal, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^-?[0-9]+\.[0-9]{9}$", "examples": ["0.450000000"]}, mode="serialization"),
]


class Query(BaseModel):
    """Query parameters; here: none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OfAccount(Query):
    """Query parameters of an account's data."""

    account: Text | None = Field(None, description="Our id (`acct_…`) or your own id of the account. An account key needs none.")


class Page(OfAccount):
    """Query parameters of an account's list, newest first."""

    limit: Annotated[Number, Field(ge=1, le=MAX_PAGE)] = 50


class Between(BaseModel):
    """A stretch of time, beside other query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Instant | None = Field(None, description="From this instant on.")
    until: Instant | None = Field(None, description="Until just before this instant.")

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("since must be before until")
        return self


class Answer(BaseModel):
    """A response body. A field that was not given is left out."""

    model_config = ConfigDict(frozen=True)

    def response(self) -> Response:
        return Response(self.model_dump(mode="json", exclude_unset=True))


class Read(APIView):
    """Answers GET and HEAD with the rows of one account."""

    http_method_names = ["get", "head"]

    def asked(self, request: Request, query: type[_Q]) -> _Q:
        """The checked query parameters. :raises Problem: 422, with every unknown, repeated or wrong one named."""
        values = request.query_params
        repeated = [{"field": name, "message": "Give it once."} for name in values if len(values.getlist(name)) > 1]
        if repeated:
            raise api.Problem(422, "invalid_request", "Some fields are wrong.", errors=repeated)
        return api.check(values.dict(), query)

    def account(self, request: Request, query: OfAccount) -> Account:
        """The account that is asked about. :raises Problem: 422 unnamed, 404 where it is not one of this key's."""
        return api.account_for(principal(request), query.account)


def principal(request: Request) -> api_keys.Principal:
    """Whom the bearer key stands for."""
    assert isinstance(request.auth, api_keys.Principal)
    return request.auth


def by_method(*, get: Callable[..., HttpResponseBase], post: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """One path, two views; the OpenAPI document finds ``get``, a view of the framework's."""

    @wraps(get)
    def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        match request.method:
            case "GET" | "HEAD":
                return get(request, *args, **kwargs)
            case "POST":
                return post(request, *args, **kwargs)
        return api.Problem(405, "method_not_allowed", "Use GET or POST.", headers={"Allow": "GET, HEAD, POST"}).response()

    return view


def parameters(query: type[BaseModel]) -> list[OpenApiParameter]:
    """The query parameters as OpenAPI describes them."""
    schema = query.model_json_schema()
    return [
        OpenApiParameter(name, _type(field), description=field.get("description", ""), required=name in schema.get("required", []))
        for name, field in schema["properties"].items()
    ]


def _type(field: dict[str, Any]) -> dict[str, Any]:
    """A field's JSON schema; a parameter is left out, never null."""
    given = next((choice for choice in field.get("anyOf", []) if choice.get("type") != "null"), field)
    kept = {key: value for key, value in (field | given).items() if key not in ("anyOf", "title", "description")}
    return {key: value for key, value in kept.items() if not (key == "default" and value is None)}
