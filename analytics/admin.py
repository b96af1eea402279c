"""Admin's own pages: accounts, the ledger, the margin report, and the machinery of the site."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.views import ChangeList
from waffle import get_waffle_flag_model, get_waffle_sample_model, get_waffle_switch_model
from waffle.admin import FlagAdmin as BaseFlagAdmin
from waffle.admin import SwitchAdmin as BaseSwitchAdmin

from accounts import acts
from accounts.models import Account
from analytics import alert_admin as alert_admin  # registers its pages
from analytics import bill_admin as bill_admin  # and these
from analytics import billing_events_page, growth_page, margin, margin_lint_page, projection_page, revenue_page, review_page, risk_page
from analytics import checklist_page as checklist_page  # and these
from analytics import cohort_admin as cohort_admin  # and these
from analytics import growth_admin as growth_admin  # and these
from analytics.account_page import AccountAdmin
from analytics.drafts.page import DraftReplayAdmin
from analytics.forms import MarginForm
from analytics.models import DraftReplay, Entry, Margin
from analytics.shadow_page import ShadowRefusalAdmin
from billing.admin import LedgerAdmin, exactly, link, within
from metering.models import ShadowRefusal
from pricing.admin import ReadOnlyAdmin

DAYS = 30
ROWS = 200
#: So many models that earn least are named.
LEAST = 3

admin.site.disable_action("delete_selected")  # what is deleted is looked at one by one
admin.site.register(Account, AccountAdmin)
admin.site.register(DraftReplay, DraftReplayAdmin)
admin.site.register(ShadowRefusal, ShadowRefusalAdmin)
# Staff sign in where everybody does: with the second step, and with limited attempts.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]


@admin.register(Entry)
class EntryAdmin(LedgerAdmin):
    list_display = ("recorded_at", "account", "kind", "amount_", "debt_", "balance", "seq")
    list_filter = (within("recorded_at"), "kind", "account__product")
    list_select_related = ("account__product", "unit")
    ordering = ("-recorded_at", "-seq")
    fields = (
        "account",
        "seq",
        "kind",
        "amount_",
        "debt_",
        "balance",
        "debt_after_",
        "grant_",
        "use",
        "operation_",
        "effective_at",
        "recorded_at",
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> Any:
        return ChangeList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Entry | None:
        try:
            account, unit, seq = map(int, object_id.split("-"))
        except ValueError:
            return None
        found: Entry | None = self.get_queryset(request).filter(account_id=account, unit_id=unit, seq=seq).first()
        return found

    @display(description="Amount")
    def amount_(self, entry: Entry) -> SafeString:
        return exactly(entry.amount, entry.unit)

    @display(description="Debt")
    def debt_(self, entry: Entry) -> SafeString | str:
        return exactly(entry.debt_delta, entry.unit) if entry.debt_delta else "–"

    @display(description="Balance after")
    def balance(self, entry: Entry) -> SafeString:
        return exactly(entry.balance_after, entry.unit)

    @display(description="Debt after")
    def debt_after_(self, entry: Entry) -> SafeString:
        return exactly(entry.debt_after, entry.unit)

    @display(description="Grant", empty_value="none")
    def grant_(self, entry: Entry) -> SafeString | None:
        return link("billing_grant", f"{entry.account_id}-{entry.grant_id}", f"Grant {entry.grant_id}") if entry.grant_id else None

    @display(description="Use", empty_value="none")
    def use(self, entry: Entry) -> SafeString | None:
        return link("metering_usagerecord", f"{entry.account_id}-{entry.usage_id}", entry.usage_id) if entry.usage_id else None

    @display(description="Operation", empty_value="none")
    def operation_(self, entry: Entry) -> SafeString | None:
        key = f"{entry.account_id}-{entry.operation_id}"
        return link("billing_operation", key, f"Operation {entry.operation_id}") if entry.operation_id else None


@admin.register(Margin)
class MarginAdmin(ReadOnlyAdmin):
    """Not a list of rows but the report; beside it risk and projections."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("risk/", view(risk_page.risk_view), name="analytics_risk"),
            path("lint/", view(margin_lint_page.margin_lint_view), name="analytics_margin_lint"),
            path("reviews/", view(review_page.review_view), name="analytics_reviews"),
            path("growth/", view(growth_page.growth_view), name="analytics_growth"),
            path("growth/rows/", view(growth_page.rows_view), name="analytics_growth_rows"),
            path("growth/file/", view(growth_page.file_view), name="analytics_growth_file"),
            path("revenue/", view(revenue_page.revenue_view), name="analytics_revenue"),
            path("revenue/journal.csv", view(revenue_page.journal_view), name="analytics_journal"),
            path("projection/", view(projection_page.projection_view), name="analytics_projection"),
            path("billing-log/", view(billing_events_page.billing_events_view), name="analytics_billing_log"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = timezone.now()
        form = MarginForm(request.GET)
        context: dict[str, Any] = {"title": "Margin", "opts": self.opts, "form": form, "now": now, "report": None}
        if form.is_valid():
            chosen = form.cleaned_data
            last_day = chosen["last_day"] or now.date()
            try:
                period: dict[str, Any] = {
                    "since": chosen["since"] or last_day - timedelta(days=DAYS - 1),
                    "until": last_day + timedelta(days=1),
                    "product_id": chosen["product"].pk if chosen["product"] else None,
                }
                shown = {"since": period["since"], "last_day": last_day, "product": chosen["product"] and chosen["product"].slug}
                by: margin.By = chosen["by"] or "model"
                order: margin.Order = chosen["order"] or "revenue"
                fees = chosen["fees"]
                report = margin.report(by=by, limit=ROWS, order=order, fees=fees, **period)
                context |= {
                    "form": MarginForm(initial=shown | {"by": by, "order": order, "fees": fees}),
                    "report": report, "order": order, "fees": fees, "last_day": last_day, "bys": margin.BYS,
                    "days": margin.report(by="day", fees=fees, **period),
                    "least": margin.report(by="model", limit=LEAST, order="least", fees=fees, **period).rows,
                }  # fmt: skip
            except (margin.InvalidPeriod, OverflowError) as error:
                form.add_error("since", str(error))
        return TemplateResponse(request, "admin/analytics/margin.html", self.admin_site.each_context(request) | context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return self.changelist_view(request)


for switch in (get_waffle_flag_model(), get_waffle_sample_model(), get_waffle_switch_model()):
    admin.site.unregister(switch)


@admin.register(get_waffle_flag_model())
class FlagAdmin(acts.Audited, BaseFlagAdmin, ModelAdmin):  # type: ignore[misc]
    pass


@admin.register(get_waffle_switch_model())
class SwitchAdmin(acts.Audited, BaseSwitchAdmin, ModelAdmin):  # type: ignore[misc]
    pass
