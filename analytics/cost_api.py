"""GET /api/v1/admin/cost-analytics/summary: six figures of a product's month, with the names and the number format of PRPM's guide."""

from __future__ import annotations

from fractions import Fraction

from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.request import Request

from accounts import api, reads
from accounts.models import ApiKey
from analytics import risk
from pricing.models import Product

_CENT_NANOS = 10_000_000
_AMOUNT = {"type": "number", "multipleOf": 0.01}
_COUNT = {"type": "integer", "minimum": 0}


class CostSummaryView(reads.Read):
    authentication_classes = [api.BearerKey]
    permission_classes = [api.HasScope.of(ApiKey.Scope.ADMIN_READ)]

    @extend_schema(
        operation_id="costSummary",
        tags=["admin"],
        parameters=reads.parameters(reads.Query),
        responses=OpenApiResponse(
            {
                "type": "object",
                "required": ["totalMonthlyRevenue", "totalMonthlyCost", "overallMargin", "activeUsers", "throttledUsers", "highRiskUsers"],
                "properties": {
                    "totalMonthlyRevenue": _AMOUNT | {"description": "Subscriptions that are paid, a month, and packs bought this month."},
                    "totalMonthlyCost": _AMOUNT | {"description": "What usage cost us this month, in UTC."},
                    "overallMargin": {
                        "type": ["number", "null"],
                        "multipleOf": 0.01,
                        "description": "Revenue minus cost in percent of revenue; null where nothing comes in.",
                    },
                    "activeUsers": _COUNT | {"description": "Accounts that used something this month."},
                    "throttledUsers": _COUNT | {"description": "Accounts that may begin no work now."},
                    "highRiskUsers": _COUNT | {"description": "At 90 % of a limit on cost or more, or costing what they pay or more."},
                },
                "additionalProperties": False,
            },
            examples=[
                OpenApiExample(
                    "Twenty subscribers",
                    {
                        "totalMonthlyRevenue": 120.00, "totalMonthlyCost": 8.50, "overallMargin": 92.92, "activeUsers": 20,
                        "throttledUsers": 0, "highRiskUsers": 1,
                    },
                )
            ],
        ),
    )  # fmt: skip
    def get(self, request: Request) -> HttpResponse:
        """What the key's product takes and costs this month. JSON numbers in US dollars, to the nearest cent, halves to even."""
        self.asked(request, reads.Query)
        month = risk.look(product=Product.objects.get(pk=reads.principal(request).product_id), now=timezone.now())
        figures = {
            "totalMonthlyRevenue": _cents(month.revenue_nanos),
            "totalMonthlyCost": _cents(month.cost_nanos),
            "overallMargin": "null" if month.margin_percent is None else str(month.margin_percent),
            "activeUsers": str(month.active),
            "throttledUsers": str(month.throttled_accounts),
            "highRiskUsers": str(len(month.high_risk)),
        }
        body = ", ".join(f'"{name}": {value}' for name, value in figures.items())
        return HttpResponse(f"{{{body}}}", content_type="application/json")

    def get_exception_handler(self):  # type: ignore[no-untyped-def]
        return api.problem_handler


def _cents(nanos: int) -> str:
    """As a JSON number with two decimals; no float is ever made of it."""
    cents = round(Fraction(nanos, _CENT_NANOS))
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"
