"""GET and POST /api/v1/billing/top-up: what an account's automatic top-up is, what it did, and what it is to be."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Final

import stripe
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from pydantic import Field
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import api, api_keys, reads, tenancy
from accounts.models import Account
from billing import top_ups
from billing.models import AutoTopUp, TopUp
from pricing.models import CreditPack

SHOWN: Final = 20
#: Columns that tenants may not read.
HIDDEN: Final = ("fingerprint", "invoice_id", "attempts", "next_attempt_at")
_UNITS = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", examples=["10.00"])]
_DOLLARS = Annotated[str, Field(pattern=r"^[0-9]{1,7}(\.[0-9]{1,2})?$", examples=["50.00"])]


class TopUpAnswer(reads.Answer):
    """One automatic purchase, or why there was none (`skipped`). While it is `pending` its credit counts as funds."""

    id: str
    state: TopUp.State
    reason: str
    pack: str | None
    copies: int
    price: str
    currency: str
    credits: reads.Amount
    card: str
    day: date
    created_at: datetime
    finished_at: datetime | None


class AutoTopUpAnswer(reads.Answer):
    """What is bought below which `threshold` of credits; `daily_cap` and `spent_today` in US dollars, days in UTC."""

    account: str
    enabled: bool
    threshold: reads.Amount | None
    pack: str | None
    daily_cap: str | None
    spent_today: str
    items: list[TopUpAnswer]


class ChooseTopUp(api.Command):
    """All of it, each time. `threshold` in the product's unit, `daily_cap` in US dollars. Turning it on needs a saved card."""

    account: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    enabled: bool
    threshold: _UNITS
    pack: Annotated[str, Field(min_length=1, max_length=64)]
    daily_cap: _DOLLARS


class AutoTopUpView(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="top_up", parameters=reads.parameters(reads.OfAccount), responses=AutoTopUpAnswer)
    def get(self, request: Request) -> Response:
        """The account's automatic top-up: its terms, what it did lately, and why it did not."""
        return _answer(self.account(request, self.asked(request, reads.OfAccount))).response()


@api.endpoint(scope="billing:write")
def choose(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    """Repeating it changes nothing."""
    body = api.parse(request, ChooseTopUp)
    account = api.account_for(principal, body.account)
    try:
        top_ups.choose(
            account=account,
            enabled=body.enabled,
            threshold_nanos=_integer(body.threshold, 9),
            pack=body.pack,
            daily_cap_cents=_integer(body.daily_cap, 2),
            actor=f"key {principal.key_id}",
            now=timezone.now(),
        )
    except top_ups.InvalidTopUp as error:
        raise api.Problem(422, "invalid_request", str(error), errors=[{"field": error.field, "message": str(error)}]) from error
    except stripe.StripeError as error:
        raise api.Problem(503, "dependency_unavailable", "The payment provider does not answer. Nothing has changed.") from error
    return api.as_json(_answer(account).model_dump(mode="json"))


def _answer(account: Account) -> AutoTopUpAnswer:
    with tenancy.acting_as(account=account):
        rule = AutoTopUp.objects.filter(account=account).first()
        rows = list(TopUp.objects.filter(account=account).defer(*HIDDEN).order_by("-created_at")[:SHOWN])
    slugs = dict(CreditPack.objects.filter(pk__in={row.pack_id for row in rows if row.pack_id}).values_list("pk", "slug"))
    terms: dict[str, Any] = {"enabled": False, "threshold": None, "pack": None, "daily_cap": None}
    if rule is not None:
        cap = _decimal(rule.daily_cap_cents)
        terms = {"enabled": rule.enabled, "threshold": rule.threshold_nanos, "pack": rule.pack, "daily_cap": cap}
    return AutoTopUpAnswer(
        account=account.public_id,
        spent_today=_decimal(top_ups.spent_cents(account, now=timezone.now())),
        items=[
            TopUpAnswer(
                id=str(row.pk),
                state=TopUp.State(row.state),
                reason=row.reason,
                pack=slugs.get(row.pack_id or 0),
                copies=row.copies,
                price=_decimal(row.amount_cents),
                currency=row.currency,
                credits=row.credit_nanos,
                card=row.card,
                day=row.day,
                created_at=row.created_at,
                finished_at=row.finished_at,
            )
            for row in rows
        ],
        **terms,
    )


def _integer(text: str, digits: int) -> int:
    whole, _, part = text.partition(".")
    return int(whole + part.ljust(digits, "0"))


def _decimal(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"
