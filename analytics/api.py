"""GET /api/v1/admin/margin: what a product earned, for its operator's own programs."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import api, reads
from accounts.models import ApiKey
from analytics import margin
from pricing.models import Product

DEFAULT_DAYS = 30
DEFAULT_ROWS = 100
MAX_ROWS = 1_000


def _day(value: object) -> object:
    """Query strings are text: only ``2026-03-31`` is a day, none of ISO 8601's other spellings."""
    if isinstance(value, str):
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError("Write a day as 2026-03-31.")
        return date.fromisoformat(value)
    return value


Day = Annotated[date, BeforeValidator(_day)]


class MarginQuery(reads.Query):
    """What of the margin is asked for."""

    by: margin.By = Field("model", description="What each row is about.")
    since: Day | None = Field(None, description=f"First UTC day; by default {DEFAULT_DAYS} days before `until`.")
    until: Day | None = Field(None, description="First UTC day that is not counted any more; by default tomorrow.")
    product: reads.Text | None = Field(None, description="The key's own product; another one is not found.")
    order: margin.Order = Field("revenue", description="`revenue`, or `least`: what earns least of its revenue comes first.")
    fees: Literal["0", "1"] = Field("0", description="1: the payment fee of the burnt credits is a cost of both margins.")
    limit: Annotated[reads.Number, Field(ge=1, le=MAX_ROWS)] = DEFAULT_ROWS


class MarginFigures(BaseModel):
    """Exact sums in US dollars."""

    model_config = ConfigDict(frozen=True)

    records: int
    tokens: int | None = Field(description="Null in rows by user or pack, whose requests may be shared.")
    cost: reads.Amount = Field(description="What we paid upstream.")
    revenue: reads.Amount = Field(description="List value of what was charged, reversals taken off.")
    margin: reads.Amount = Field(description="Revenue minus cost, and minus the fee with `fees=1`.")
    margin_percent: str | None = Field(description="Margin per revenue, two decimals; null where nothing was charged.")
    cash: reads.Amount = Field(description="What was paid for the credits that were burnt.")
    fee: reads.Amount = Field(description="What of that cash the payment provider kept.")
    cash_margin: reads.Amount = Field(description="Cash minus cost, and minus the fee with `fees=1`.")
    cash_margin_percent: str | None = Field(description="Cash margin per cash, two decimals; null where nothing was paid.")


class MarginRow(MarginFigures):
    """One group's sums."""

    key: str = Field(
        description="Model, account id, account id/user, product, product/plan, source/pack, month, day or product/feature; empty for "
        "usage without a feature or plan, or charged to no credits."
    )
    label: str


class MarginAnswer(reads.Answer):
    """Days in order, other groups by revenue. `totals` counts all `groups`, also those that `limit` leaves out of `rows`."""

    by: margin.By
    since: date
    until: date
    product: str
    totals: MarginFigures
    groups: int
    rows: list[MarginRow]


class MarginView(reads.Read):
    """The margin of the key's product. Live: what was charged a moment ago is in it."""

    authentication_classes = [api.BearerKey]
    permission_classes = [api.HasScope.of(ApiKey.Scope.ADMIN_READ)]

    @extend_schema(operation_id="margin", tags=["admin"], parameters=reads.parameters(MarginQuery), responses=MarginAnswer)
    def get(self, request: Request) -> Response:
        query = self.asked(request, MarginQuery)
        product = Product.objects.get(pk=request.auth.product_id)  # type: ignore[union-attr] # BearerKey sets a principal
        if query.product not in (None, product.slug):
            raise api.Problem(404, "not_found", "No such product.")
        try:
            until = query.until or timezone.now().date() + timedelta(days=1)
            since = query.since or until - timedelta(days=DEFAULT_DAYS)
            report = margin.report(
                by=query.by, since=since, until=until, product_id=product.pk, limit=query.limit, order=query.order, fees=query.fees == "1"
            )
        except (margin.InvalidPeriod, OverflowError) as error:
            raise api.Problem(
                422, "invalid_request", "Some fields are wrong.", errors=[{"field": "since", "message": str(error)}]
            ) from None
        return MarginAnswer(
            by=report.by, since=report.since, until=report.until, product=product.slug,
            totals=MarginFigures(**_figures(report.totals)), groups=report.groups,
            rows=[MarginRow(key=row.key, label=row.label, **_figures(row)) for row in report.rows],
        ).response()  # fmt: skip

    def get_exception_handler(self):  # type: ignore[no-untyped-def]
        return api.problem_handler


def _figures(row: margin.Row) -> dict[str, Any]:
    return {
        "records": row.records, "tokens": row.tokens, "cost": row.cost_nanos, "revenue": row.revenue_nanos, "margin": row.margin_nanos,
        "margin_percent": None if row.margin_percent is None else str(row.margin_percent), "cash": row.cash_nanos, "fee": row.fee_nanos,
        "cash_margin": row.cash_margin_nanos,
        "cash_margin_percent": None if row.cash_margin_percent is None else str(row.cash_margin_percent),
    }  # fmt: skip
