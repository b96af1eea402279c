"""POST /api/v1/accounts: opens the account of a person, a team or a guest, and signs a guest up."""

from __future__ import annotations

from typing import Annotated, Literal

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from pydantic import Field

from accounts import api, api_keys, registration
from pricing import catalog


class Open(api.Command):
    """Asks for the account that the client app calls `external_id`. Everybody but a guest needs a `name`."""

    external_id: Annotated[str, Field(min_length=1, max_length=128)]
    kind: Literal["person", "team", "guest"]
    name: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    billing_email: Annotated[str, Field(max_length=254)] = ""
    time_zone: Annotated[str, Field(max_length=64, examples=["Europe/Paris"])] = ""


@api.endpoint(scope="billing:write")
def accounts(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, Open)
    if principal.account_id is not None:
        raise api.Problem(403, "refused", "An account key acts for its own account and opens none.")
    try:
        account = registration.open_account(
            product=catalog.product_by_id(product_id=principal.product_id),
            external_id=body.external_id,
            name=body.name or ("Guest" if body.kind == "guest" else ""),
            kind=body.kind,
            billing_email=body.billing_email,
            time_zone=body.time_zone,
            now=timezone.now(),
        )
    except registration.InvalidAccount as error:
        raise api.Problem(422, "invalid_request", str(error), errors=[{"field": error.field, "message": str(error)}]) from error
    return JsonResponse(
        {
            "account": account.public_id,
            "external_id": account.external_id,
            "kind": account.kind,
            "name": account.name,
            "time_zone": account.time_zone,
            "created_at": account.created_at,
            "closed_at": account.closed_at,
        }
    )
