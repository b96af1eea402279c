"""What growth is reckoned with, for staff: marketing spend to type in, and the hourly rows."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.widgets import UnfoldAdminDateWidget, UnfoldAdminTextInputWidget

from accounts import acts
from accounts.admin import actor
from analytics import alert_metrics, growth, hourly
from analytics.forms import AmountField
from analytics.models import HourlyFigures, MarketingSpend
from pricing.admin import ReadOnlyAdmin, cents

ISO_MONTH = "%Y-%m"


class SpendForm(forms.ModelForm):  # type: ignore[type-arg]
    """What was spent in one month, in US dollars."""

    month = forms.DateField(input_formats=[ISO_MONTH], widget=UnfoldAdminDateWidget(attrs={"type": "month"}, format=ISO_MONTH))
    amount = AmountField(signed=True, label="Amount, in US dollars", help_text="Below zero puts an earlier row right.")
    what = forms.CharField(max_length=200, widget=UnfoldAdminTextInputWidget(), help_text="What for, and where the bill is.")

    class Meta:
        model = MarketingSpend
        fields = ("product", "month", "what")

    def clean_month(self) -> Any:
        month = self.cleaned_data["month"]
        if month > timezone.now().date():
            raise forms.ValidationError("That month has not begun.")
        return month

    def clean_amount(self) -> int:
        amount: int = self.cleaned_data["amount"]
        if amount % growth.NANOS_PER_CENT:
            raise forms.ValidationError("Write at most two digits after the point.")
        return amount


@admin.register(MarketingSpend)
class MarketingSpendAdmin(acts.Audited, ModelAdmin):  # type: ignore[misc]
    """Typed in once, never changed: another row puts one right."""

    form = SpendForm
    list_display = ("month_", "product", "amount_", "what", "entered_by", "entered_at")
    list_filter = ("product",)
    list_select_related = ("product",)
    list_display_links = None

    @display(description="Month", ordering="month")
    def month_(self, spend: MarketingSpend) -> str:
        return f"{spend.month:%B %Y}"

    @display(description="Amount")
    def amount_(self, spend: MarketingSpend) -> str:
        return cents(spend.amount_cents, "usd")

    def get_fields(self, request: HttpRequest, obj: MarketingSpend | None = None) -> tuple[str, ...]:
        return self.list_display if obj else ("product", "month", "amount", "what")

    def has_change_permission(self, request: HttpRequest, obj: MarketingSpend | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: MarketingSpend | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: MarketingSpend, form: Any, change: bool) -> None:
        obj.amount_cents = form.cleaned_data["amount"] // growth.NANOS_PER_CENT
        obj.entered_by, obj.entered_at = actor(request), timezone.now()
        obj.save()


@admin.register(HourlyFigures)
class HourlyFiguresAdmin(ReadOnlyAdmin):
    """How products stood, hour by hour."""

    list_display = ("at", "product", "cost", "revenue", "margin", "active", "near_limit", "throttled")
    list_filter = ("product",)
    list_select_related = ("product",)
    list_display_links = None
    show_full_result_count = False

    @display(description="Cost this month")
    def cost(self, row: HourlyFigures) -> str:
        return alert_metrics.dollars(row.cost_nanos)

    @display(description="Revenue a month")
    def revenue(self, row: HourlyFigures) -> str:
        return alert_metrics.dollars(row.revenue_nanos)

    @display(description="Margin", empty_value="–")
    def margin(self, row: HourlyFigures) -> str | None:
        found = hourly.margin_percent(row)
        return None if found is None else f"{found} %"
