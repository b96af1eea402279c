"""What every API endpoint shares: bearer keys in, strict JSON in, problems (RFC 9457) out.

    endpoint         wraps a plain Django view: method, key, scope, problems. For the hot path.
    Problem          an error with its status and stable ``code``; raise it anywhere below a view
    parse            a JSON body as a checked pydantic model
    BearerKey, HasScope, problem_handler   the same for Django REST framework

Input never causes a 500: what cannot be parsed is 400, what is parsed but wrong 422 with every wrong field named.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import orjson
import structlog
from django.core.exceptions import RequestDataTooBig
from django.core.serializers.json import DjangoJSONEncoder
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, ConfigDict, ValidationError
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts import api_keys, edge_limit, faults
from accounts.models import Account, Fault
from pricing import catalog

MAX_BODY_BYTES = 1024 * 1024
MAX_DEPTH = 32
PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 1

log = structlog.get_logger(__name__)
_Model = TypeVar("_Model", bound=BaseModel)


class Problem(Exception):
    """An error that the caller is told about. ``members`` are further fields of the body."""

    def __init__(self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def body(self) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        } | self.members

    def response(self) -> HttpResponse:
        return as_json(self.body(), status=self.status, headers=self.headers, content_type=PROBLEM_JSON)


class Command(BaseModel):
    """A request body: unknown fields are refused, and nothing is converted ("5" is no number, true is no 1)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def endpoint(*, scope: str, methods: tuple[str, ...] = ("POST",)) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """Wraps ``view(request, principal, …)``: 405 for other methods, 401 and 403 by its key, problems as responses."""

    def wrap(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @csrf_exempt
        @functools.wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            try:
                if request.method not in methods:
                    allowed = ", ".join(methods)
                    raise Problem(405, "method_not_allowed", f"Use {allowed}.", headers={"Allow": allowed})
                principal = principal_of(request)
                principal.require(scope)
                return view(request, principal, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 (problem_of raises what it does not know again)
                return problem_of(error).response()

        return wrapped

    return wrap


def principal_of(request: HttpRequest) -> api_keys.Principal:
    """Whom the request's bearer key stands for. Asked once a request: it counts against the key's edge rate limit.

    :raises InvalidKey: no header, another scheme, or no good key.
    :raises TooManyRequests: the key asks too often.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise api_keys.InvalidKey
    principal = api_keys.authenticate(token=token.strip(), now=timezone.now())
    edge_limit.check(key_id=principal.key_id)
    return principal


def problem_of(error: Exception) -> Problem:
    """The problem that an error of any endpoint is answered with; an error that is a bug is raised again."""
    match error:
        case Problem():
            return error
        case api_keys.InvalidKey():
            return Problem(401, "invalid_key", str(error), headers={"WWW-Authenticate": "Bearer"})
        case api_keys.MissingScope():
            return Problem(403, "missing_scope", str(error), scope=error.scope)
        case edge_limit.TooManyRequests():
            return Problem(429, "rate_limited", str(error), headers={"Retry-After": str(error.retry_after_seconds)}, layer="edge")
        case RequestDataTooBig():
            return Problem(413, "body_too_large", f"A body has at most {MAX_BODY_BYTES} bytes.")
        case OperationalError() | InterfaceError() | PoolTimeout():
            log.error("database unavailable", exc_info=error)
            faults.note(kind=Fault.Kind.DATABASE, about=type(error).__name__, now=timezone.now())
            return Problem(503, "dependency_unavailable", "Try again in a moment.", headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    raise error


def open_account(product_id: int, name: str | int) -> Account | None:
    """The product's open account with this name, ours (``acct_…``) or the client's own, or with this primary key."""
    column = "pk" if isinstance(name, int) else "public_id" if name.startswith("acct_") else "external_id"
    account = Account.objects.filter(product_id=product_id, closed_at=None, **{column: name}).first()
    if account is not None:
        account.product = catalog.product_by_id(product_id=product_id)  # kept in the process, with its unit
    return account


def account_for(
    principal: api_keys.Principal, name: str | None, *, find: Callable[[int, str | int], Account | None] = open_account
) -> Account:
    """The account that a request names by our id or the client's own; an account key needs no name.

    :raises Problem: 422 where a product key names none; 404 where there is none, or not one of this key's.
    """
    known = principal.account_id if name is None else name
    if known is None:
        raise no_such_account(None)
    account = find(principal.product_id, known)
    if account is None or principal.account_id not in (None, account.pk):
        raise no_such_account(name or "")
    return account


def no_such_account(name: str | None) -> Problem:
    """What a request is told that names no account (None), or one that is not its key's."""
    if name is None:
        message = "A product key must name the account."
        return Problem(422, "invalid_request", "Name the account.", errors=[{"field": "account", "message": message}])
    return Problem(404, "not_found", "No such account.")


def amount(nanos: int) -> str:
    """Nanos as an exact decimal string: 450000000 → ``0.450000000``."""
    sign = "-" if nanos < 0 else ""
    whole, part = divmod(abs(nanos), 1_000_000_000)
    return f"{sign}{whole}.{part:09d}"


def as_json(body: Mapping[str, Any], *, content_type: str = "application/json", **response: Any) -> HttpResponse:
    """``body`` as a response: as Django would write it, in a tenth of the time."""
    text = orjson.dumps(body, default=_ENCODER.default, option=orjson.OPT_PASSTHROUGH_DATETIME)
    return HttpResponse(text, content_type=content_type, **response)


_ENCODER = DjangoJSONEncoder()

# Strict JSON ------------------------------------------------------------------------------------------------------------------


def parse(request: HttpRequest, model: type[_Model]) -> _Model:
    """The request's body as ``model``.

    :raises Problem: 411 no length, 413 too long, 415 no JSON by its header, 400 no strict JSON, 422 wrong fields, each in ``errors``.
    """
    return check(read(request), model)


def check(value: Any, model: type[_Model]) -> _Model:
    """A JSON value as ``model``. :raises Problem: 422, with every wrong field named."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Problem(422, "invalid_request", "Some fields are wrong.", errors=field_errors(error)) from None


def field_errors(error: ValidationError) -> list[dict[str, str]]:
    """The wrong fields of a command, in words; what was sent is not repeated."""
    return [
        {"field": ".".join(str(part) for part in item["loc"]) or "body", "message": item["msg"]}
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def read(request: HttpRequest) -> Any:
    """The request's body as strict JSON: UTF-8, no duplicate or control-character keys, no NaN, at most ``MAX_DEPTH`` deep.

    :raises Problem: 411, 413, 415 or 400.
    """
    if "Transfer-Encoding" in request.headers:
        raise Problem(411, "length_required", "Send the body whole, with its Content-Length.")
    if int(request.headers.get("Content-Length") or 0) > MAX_BODY_BYTES or len(request.body) > MAX_BODY_BYTES:
        raise Problem(413, "body_too_large", f"A body has at most {MAX_BODY_BYTES} bytes.")
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem(415, "unsupported_media_type", "Send application/json.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Send the body uncompressed.")
    return loads(request.body)


def loads(body: bytes) -> Any:
    """Strict JSON, see :func:`read`. :raises Problem: 400."""
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=Decimal)
        if "\\u" in text:  # nothing else brings in what _check looks for, beside depth
            _check(value)
        elif text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
    except (ValueError, ArithmeticError, RecursionError) as error:
        detail = error.args[0] if isinstance(error, _NotStrict) else "The body is no JSON."
        raise Problem(400, "invalid_json", detail) from None
    return value


class _NotStrict(ValueError):
    """JSON that other parsers would read differently, or that cannot be stored or sent back."""


def _check(value: Any) -> None:
    """Walks the value: not too deep, no NUL, no half of a surrogate pair."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and ("\0" in item or any("\ud800" <= character <= "\udfff" for character in item)):
                raise _NotStrict("The body has a NUL character or half of a surrogate pair.")
        level = inner
    if level:
        raise _too_deep()


def _check_depth(value: Any) -> None:
    """Not too deep. Looks at objects and lists alone: a batch is mostly numbers and text."""
    level = [value]
    for _ in range(MAX_DEPTH - 1):
        contents = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [inner for content in contents for inner in content if isinstance(inner, dict | list)]
    if any(level):
        raise _too_deep()


def _too_deep() -> _NotStrict:
    return _NotStrict(f"The body is nested more than {MAX_DEPTH} deep.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _NotStrict("The body has a key twice.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _NotStrict(f"{name} is no JSON.")


# Django REST framework --------------------------------------------------------------------------------------------------------


class BearerKey(BaseAuthentication):
    """Authenticates by API key: ``request.auth`` is the :class:`api_keys.Principal`."""

    def authenticate(self, request: Request) -> tuple[None, api_keys.Principal] | None:
        return None, principal_of(request._request)

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class BearerKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "accounts.api.BearerKey"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "A product key or an account key."}


class HasScope(BasePermission):
    """``HasScope.of("usage:read")``: the key must have the scope."""

    scope: str

    @classmethod
    def of(cls, scope: str) -> type[HasScope]:
        return type("HasScope", (cls,), {"scope": scope})

    def has_permission(self, request: Request, view: object) -> bool:
        request.auth.require(self.scope)  # type: ignore[union-attr]
        return True


def problem_handler(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """Django REST framework's exceptions as problems."""
    match error:
        case exceptions.APIException():
            codes = {
                400: "invalid_request",
                404: "not_found",
                405: "method_not_allowed",
                406: "not_acceptable",
                415: "unsupported_media_type",
            }
            return Problem(error.status_code, codes.get(error.status_code, "refused"), str(error.detail)).response()
    if isinstance(error, Http404):
        return Problem(404, "not_found", "No such object.").response()
    return problem_of(error).response()
