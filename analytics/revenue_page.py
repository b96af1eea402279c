"""The revenue page: where every dollar went that customers paid, the sum that proves itself, and the journal to take away."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Final

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.utils import timezone
from unfold.widgets import UnfoldAdminDateWidget, UnfoldAdminSelectWidget

from accounts import exports
from analytics import journal, margin, recognition
from analytics.templatetags.margins import DOLLAR
from pricing.models import Product

ISO_DAY: Final = "%Y-%m-%d"
DAYS: Final = 30
ROWS: Final = 200


class RevenueForm(forms.Form):
    """Which stretch, whose, and in which rows."""

    by = forms.ChoiceField(choices=[(by, f"By {by}") for by in recognition.BYS], required=False, widget=forms.HiddenInput)
    since = forms.DateField(
        required=False, input_formats=[ISO_DAY], label="From", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    last_day = forms.DateField(
        required=False, input_formats=[ISO_DAY], label="To", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    product = forms.ModelChoiceField(
        Product.objects.order_by("name"), to_field_name="slug", required=False, empty_label="All products", widget=UnfoldAdminSelectWidget
    )


def revenue_view(request: HttpRequest) -> HttpResponse:
    """The report of a stretch; reads alone."""
    form, asked = _asked(request)
    context: dict[str, Any] = {"title": "Revenue", "form": form, "report": None, "dollar": DOLLAR, "bys": recognition.BYS}
    if asked is not None:
        period, product = asked["period"], asked["product"]
        whose = product and product.pk
        by: recognition.By = form.cleaned_data["by"] or "product"
        try:
            context |= {
                "report": recognition.report(**period, by=by, product_id=whose, limit=ROWS),
                "last_day": asked["last_day"], "now": recognition.outstanding(product_id=whose, at=timezone.now()),
                "product": product,
                "form": RevenueForm(initial={**period, "by": by, "last_day": asked["last_day"], "product": product and product.slug}),
            }  # fmt: skip
        except (margin.InvalidPeriod, OverflowError) as error:
            form.add_error("since", str(error))
    return TemplateResponse(request, "admin/analytics/revenue.html", admin.site.each_context(request) | context)


def journal_view(request: HttpRequest) -> HttpResponseBase:
    """The same stretch as a journal, a file."""
    form, asked = _asked(request)
    if asked is not None:
        try:
            lines = journal.lines(**asked["period"], product=asked["product"])
        except (margin.InvalidPeriod, OverflowError) as error:
            form.add_error("since", str(error))
        else:
            whose = asked["product"].slug if asked["product"] else "all-products"
            name = f"journal_{whose}_{asked['period']['since']}_{asked['last_day']}.csv"
            return exports.download(journal.cells(lines), name=name)
    context = {"title": "Revenue", "form": form, "report": None, "bys": recognition.BYS}
    return TemplateResponse(request, "admin/analytics/revenue.html", admin.site.each_context(request) | context)


def _asked(request: HttpRequest) -> tuple[RevenueForm, dict[str, Any] | None]:
    """The form, and what it asks for; None where it is wrong. :raises PermissionDenied: they may not see margins."""
    if not request.user.has_perm("analytics.view_margin"):
        raise PermissionDenied
    form = RevenueForm(request.GET)
    if not form.is_valid():
        return form, None
    last_day: date = form.cleaned_data["last_day"] or timezone.now().date()
    try:
        period = {"since": form.cleaned_data["since"] or last_day - timedelta(days=DAYS - 1), "until": last_day + timedelta(days=1)}
    except OverflowError as error:
        form.add_error("since", str(error))
        return form, None
    return form, {"period": period, "last_day": last_day, "product": form.cleaned_data["product"]}
