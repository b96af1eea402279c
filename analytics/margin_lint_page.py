"""The margin lint: everything on sale, what it earns at best, as expected and at worst, and what would bring it to its target."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from pricing import catalog_file, margin_lint, margin_terms
from pricing.margin_lint import Case, Finding
from pricing.models import Product


@dataclass(frozen=True, slots=True)
class Row:
    """A finding as the table shows it."""

    finding: Finding

    @property
    def margins(self) -> list[tuple[str, bool]]:
        """Best, expected and worst, and whether that is a loss."""
        cases: tuple[Case | None, ...] = self.finding.cases or (None, None, None)
        return [
            ("–", False) if case is None or case.margin is None else (margin_lint.percent(case.margin), case.margin < 0) for case in cases
        ]

    @property
    def target(self) -> str:
        return _bound(self.finding, "target")

    @property
    def floor(self) -> str:
        return _bound(self.finding, "floor")

    @property
    def is_bad(self) -> bool:
        return self.finding.is_below_floor or self.finding.is_loss

    @property
    def verdict(self) -> str:
        finding = self.finding
        if finding.is_below_floor:
            return "below the floor"
        if finding.is_loss:
            return "a loss"
        return "below the target" if finding.is_below_target else ""


def margin_lint_view(request: HttpRequest) -> HttpResponse:
    """Every product as it is on sale now, with the arithmetic of what loses; of one product, of everything. Reads alone."""
    if not request.user.has_perm("analytics.view_margin"):
        raise PermissionDenied
    now, shown = timezone.now(), []
    products = [product for product in Product.objects.order_by("name") if request.GET.get("product", product.slug) == product.slug]
    for product in products:
        document = catalog_file.current(slug=product.slug)
        if document is not None:
            rows = [Row(finding) for finding in margin_terms.worst_first(margin_terms.look(document, at=now))]
            shown.append((product, rows))
    every = [row.finding for _, rows in shown for row in rows]
    context = {
        "title": "Margin lint", "products": shown, "below": sum(one.is_below_floor for one in every),
        "losses": sum(one.is_loss and not one.is_below_floor for one in every), "count": len(every), "chosen": "product" in request.GET,
    }  # fmt: skip
    return TemplateResponse(request, "admin/analytics/margin_lint.html", admin.site.each_context(request) | context)


def _bound(finding: Finding, name: str) -> str:
    share = finding.target if name == "target" else finding.floor
    return "–" if share is None else margin_lint.percent(share, 0)
