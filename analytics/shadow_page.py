"""Shadow enforcement, for staff: the report, its file, and the way to make a limit refuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone

from accounts import exports
from analytics import shadow
from metering import levers
from metering.admin import DOLLAR
from pricing.admin import ReadOnlyAdmin
from pricing.models import Product

DAYS: Final = (7, 30, 90)
ROWS: Final = 200
_HEADINGS: Final = (
    "account", "name", "product", "limit", "layer", "calls", "list_value_usd", "most_used", "allowed", "windows", "first_at", "last_at",
)  # fmt: skip


class ShadowRefusalAdmin(ReadOnlyAdmin):
    """Not a list of rows but whom limits that only watch would have refused."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.file_view)
        return [path("file/", view, name="metering_shadowrefusal_file"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked, products = self._asked(request), list(Product.objects.order_by("name"))
        watched = [(one, levers.shadowed(product=one)) for one in products if asked["product"] in (None, one)]
        context = {
            "title": "Shadow limits", "opts": self.opts, "dollar": DOLLAR, "products": products, "all_days": DAYS, "shown": ROWS, **asked,
            "report": self._report(asked, limit=ROWS), "watched": [(one, meters) for one, meters in watched if meters],
        }  # fmt: skip
        return TemplateResponse(request, "admin/analytics/shadow.html", self.admin_site.each_context(request) | context)

    def file_view(self, request: HttpRequest) -> StreamingHttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = self._asked(request)
        return exports.download(_cells(self._report(asked, limit=shadow.MAX_ROWS)), name=f"shadow-limits-{asked['days']}-days.csv")

    def _asked(self, request: HttpRequest) -> dict[str, Any]:
        """What was asked for; garbage is the usual."""
        days = next((one for one in DAYS if str(one) == request.GET.get("days")), 30)
        product = next((one for one in Product.objects.all() if one.slug == request.GET.get("product")), None)
        return {"days": days, "product": product, "now": timezone.now()}

    def _report(self, asked: dict[str, Any], *, limit: int) -> shadow.Report:
        product_id = asked["product"].pk if asked["product"] else None
        return shadow.report(since=asked["now"] - timedelta(days=asked["days"]), now=asked["now"], product_id=product_id, limit=limit)


def _cells(report: shadow.Report) -> Iterator[Sequence[exports.Cell]]:
    yield _HEADINGS
    for row in report.rows:
        yield (
            row.account, row.name, row.product, row.meter, row.layer, row.calls, exports.Nanos(row.value_nanos), row.most_used, row.allowed,
            row.windows, row.first_at, row.last_at,
        )  # fmt: skip
