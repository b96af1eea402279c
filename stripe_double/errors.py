"""Errors in Stripe's shape: an HTTP status and an ``error`` object with a type, a code and the parameter at fault."""

from __future__ import annotations

from typing import Any


class StripeError(Exception):
    """An answer that is not 200. What the request did before it is undone, unless ``keeps`` (a declined charge stays on record)."""

    def __init__(self, status: int, type: str, message: str, *, keeps: bool = False, headers: dict[str, str] | None = None, **more: Any):
        super().__init__(message)
        self.status = status
        self.keeps = keeps
        self.headers = headers or {}
        self.body = {"error": {"message": message, "type": type} | {name: value for name, value in more.items() if value is not None}}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> StripeError:
    return StripeError(status, "invalid_request_error", message, param=param, code=code)


def missing_resource(kind: str, id: str, *, param: str | None = "id") -> StripeError:
    noun = kind.rpartition(".")[2]
    return invalid(f"No such {noun}: '{id}'", param=param, code="resource_missing", status=404 if param == "id" else 400)


def declined(error: dict[str, Any], **objects: Any) -> StripeError:
    """402 for the card error that is on record in a payment or setup intent, which rides along."""
    more = {name: value for name, value in error.items() if name not in {"message", "type"}}
    return StripeError(402, "card_error", error["message"], keeps=True, **more, **objects)
