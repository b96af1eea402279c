"""Providers' bills, for staff: typed in, or uploaded, looked at and imported; and what comparing them found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import display

from accounts import acts, exports
from accounts.admin import actor
from accounts.exports import Nanos
from accounts.pages import signed_in
from analytics import alert_metrics, bill_findings, bills
from analytics.bill_files import UnreadableBill
from analytics.bill_forms import BillForm, MappingForm, UploadForm
from analytics.bill_models import BillComparison, BillMapping, BillUpload
from analytics.bill_variance import Variance
from analytics.models import ProviderBill
from analytics.templatetags.margins import DOLLAR
from pricing.models import PriceProposal

#: So many days of models are shown, of those that are off; all are in the file.
SHOWN = 60
KEPT = timedelta(days=1)
CHIPS = {
    "price": "wrong price", "unpriced": "no price", "shifted": "other day", "missing": "missing", "doubled": "too much",
    "unknown_model": "unknown model", "not_billed": "not billed", "unsplit": "not split",
}  # fmt: skip


class Line(NamedTuple):
    """A line of a comparison, wherever it comes from."""

    day: date
    model: str
    component: str
    level: str
    billed_quantity: int | None
    billed_nanos: int
    quantity: int
    unpriced_quantity: int
    recorded_nanos: int
    volume_nanos: int
    price_nanos: int
    unsplit_nanos: int


@dataclass(slots=True)
class Sum:
    """Lines added up: of a model, or of a model's day."""

    name: Any
    threshold_ppm: int
    billed_nanos: int = 0
    recorded_nanos: int = 0
    volume_nanos: int = 0
    price_nanos: int = 0
    unsplit_nanos: int = 0
    days: dict[date, Sum] = field(default_factory=dict)
    quiet: int = 0

    def add(self, line: Line) -> None:
        self.billed_nanos += line.billed_nanos
        self.recorded_nanos += line.recorded_nanos
        self.volume_nanos += line.volume_nanos
        self.price_nanos += line.price_nanos
        self.unsplit_nanos += line.unsplit_nanos

    @property
    def difference_nanos(self) -> int:
        return self.billed_nanos - self.recorded_nanos

    @property
    def only_unsplit(self) -> bool:
        return bool(self.unsplit_nanos) and not self.volume_nanos and not self.price_nanos

    @property
    def green(self) -> bool:
        return bills.green(self.billed_nanos, self.recorded_nanos, self.threshold_ppm)


@admin.register(ProviderBill)
class ProviderBillAdmin(acts.Audited, ModelAdmin):  # type: ignore[misc]
    """What providers billed: typed in or imported once, never changed."""

    form = BillForm
    list_display = ("provider", "since", "last_day", "billed", "recorded", "entered_by", "entered_at")
    list_filter = ("provider",)
    list_before_template = "admin/analytics/bill_links.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProviderBill]:
        latest = BillComparison.objects.filter(bill=OuterRef("pk")).order_by("-pk")
        found: QuerySet[ProviderBill] = super().get_queryset(request)
        return found.annotate(recorded_nanos=Subquery(latest.values("recorded_nanos")[:1]))

    @display(description="Last day")
    def last_day(self, bill: ProviderBill) -> date:
        return bill.until - timedelta(days=1)

    @display(description="Billed")
    def billed(self, bill: ProviderBill) -> str:
        return alert_metrics.dollars(bill.billed_nanos)

    @display(description="Recorded", empty_value="typed in")
    def recorded(self, bill: ProviderBill) -> str | None:
        nanos: int | None = getattr(bill, "recorded_nanos", None)
        return None if nanos is None else alert_metrics.dollars(nanos)

    def get_fields(self, request: HttpRequest, obj: ProviderBill | None = None) -> tuple[str, ...]:
        return self.list_display if obj else ("provider", "since", "last_day", "billed")

    def has_change_permission(self, request: HttpRequest, obj: ProviderBill | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ProviderBill | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ProviderBill, form: Any, change: bool) -> None:
        said = form.cleaned_data
        obj.since, obj.until, obj.billed_nanos = said["since"], said["last_day"] + timedelta(days=1), said["billed"]
        obj.entered_by, obj.entered_at = actor(request), timezone.now()
        obj.save()

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("upload/", view(self.upload_view), name="analytics_providerbill_upload"),
            path("upload/<uuid:upload_id>/", view(self.preview_view), name="analytics_providerbill_preview"),
            path("<int:bill_id>/again/", view(self.again_view), name="analytics_providerbill_again"),
            path("<int:bill_id>/file/", view(self.file_view), name="analytics_providerbill_file"),
            *super().get_urls(),
        ]

    def upload_view(self, request: HttpRequest) -> HttpResponse:
        """Takes the files and shows what is in them; nothing of a file that cannot be read is kept."""
        self._may_add(request)
        form = UploadForm(request.POST or None, request.FILES or None)
        if request.method == "POST" and form.is_valid():
            said, now = form.cleaned_data, timezone.now()
            files = [one for one in (said["costs"], said["usage"]) if one]
            try:
                bills.prepared(files=files, provider=said["provider"], mapping=said["mapping"], today=now.date())
            except UnreadableBill as error:
                for problem in error.problems:
                    form.add_error("costs", problem)
            else:
                BillUpload.objects.filter(uploaded_at__lt=now - KEPT).delete()
                upload = BillUpload.objects.create(
                    provider=said["provider"], mapping=said["mapping"], names=[name for name, _ in files],
                    contents=[content for _, content in files], uploaded_by=actor(request), uploaded_at=now,
                )  # fmt: skip
                return HttpResponseRedirect(reverse("admin:analytics_providerbill_preview", args=[upload.pk]))
        context = {"title": "Import a provider's bill", "opts": self.opts, "form": form}
        return TemplateResponse(request, "admin/analytics/bill_upload.html", self.admin_site.each_context(request) | context)

    def preview_view(self, request: HttpRequest, upload_id: UUID) -> HttpResponse:
        """What importing would store. POST does, as the files and our record are then; or forgets the files."""
        self._may_add(request)
        upload = BillUpload.objects.select_related("mapping").filter(pk=upload_id).first()
        if upload is None:
            self.message_user(request, "This upload was imported or forgotten. Upload the files again.", messages.WARNING)
            return HttpResponseRedirect(reverse("admin:analytics_providerbill_upload"))
        if "forget" in request.POST:
            upload.delete()
            return HttpResponseRedirect(reverse("admin:analytics_providerbill_changelist"))
        now = timezone.now()
        files = [(name, bytes(content)) for name, content in zip(upload.names, upload.contents, strict=True)]
        try:
            bill = bills.prepared(files=files, provider=upload.provider, mapping=upload.mapping, today=now.date())
            if "import" in request.POST:
                with transaction.atomic():
                    kept = bills.import_(bill=bill, actor=actor(request), user=signed_in(request), now=now)
                    upload.delete()
                self.message_user(request, "The bill is imported.", messages.SUCCESS)
                return HttpResponseRedirect(reverse("admin:analytics_providerbill_change", args=[kept.bill_id]))
            found = bills.compared(provider=bill.provider, since=bill.since, until=bill.until, lines=bill.lines)
        except bills.AlreadyImported as error:
            self.message_user(request, str(error), messages.WARNING)
            upload.delete()
            return HttpResponseRedirect(reverse("admin:analytics_providerbill_change", args=[error.bill.pk]))
        except UnreadableBill as error:  # its mapping was changed meanwhile, or it comes to too much
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(reverse("admin:analytics_providerbill_upload"))
        context = {
            "title": f"Preview: {bill.provider}, {bill.since} to {bill.until - timedelta(days=1)}", "preview": True, "source": bill.source,
            "sentence": found.sentence, "others": bill.others,
            "findings": [_said(one.kind, one.amount_nanos, one.text) for one in found.findings],
        } | _shown(map(_line, found.variances), found.threshold_ppm, [one.amount_nanos for one in found.findings])  # fmt: skip
        return self._render(request, context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The result of an imported bill; one that was typed in has no lines."""
        bill = self.get_object(request, object_id)
        comparison = bill and bill.comparisons.first()
        if bill is None or comparison is None or not self.has_view_permission(request, bill):
            shown: HttpResponse = super().change_view(request, object_id, form_url, extra_context)
            return shown
        findings = list(comparison.findings.all())
        others = bill.lines.filter(other=True).values_list("model", "amount_nanos")
        context = {
            "title": f"Bill of {bill.provider}, {bill.since} to {bill.until - timedelta(days=1)}", "bill": bill, "comparison": comparison,
            "source": bill.source, "sentence": bills.verdict(bill.billed_nanos, comparison.recorded_nanos, comparison.threshold_ppm),
            "others": _added(others), "findings": [_said(one.kind, one.amount_nanos, one.text, one.proposed) for one in findings],
            "earlier": bill.comparisons.count() - 1, "proposals": _proposals(request, bill),
        } | _shown(_stored(comparison), comparison.threshold_ppm, [one.amount_nanos for one in findings])  # fmt: skip
        return self._render(request, context)

    def again_view(self, request: HttpRequest, bill_id: int) -> HttpResponse:
        """Compares an imported bill with our record of now."""
        self._may_add(request)
        bill = ProviderBill.objects.exclude(digest="").filter(pk=bill_id).first()
        if bill is None:
            raise Http404
        if request.method == "POST":
            bills.compare_again(bill=bill, actor=actor(request), user=signed_in(request), now=timezone.now())
            self.message_user(request, "Compared again.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:analytics_providerbill_change", args=[bill.pk]))

    def file_view(self, request: HttpRequest, bill_id: int) -> HttpResponseBase:
        """Every line of the last comparison, as CSV."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        comparison = BillComparison.objects.filter(bill_id=bill_id).select_related("bill").first()
        if comparison is None:
            raise Http404
        heading = (
            "day (UTC)", "model", "component", "service level", "billed quantity", "billed (USD)", "recorded quantity", "unpriced quantity",
            "recorded (USD)", "volume variance (USD)", "price variance (USD)", "not split (USD)",
        )  # fmt: skip
        rows = (
            (
                line.day.isoformat(), line.model, line.component, line.level, line.billed_quantity, Nanos(line.billed_nanos), line.quantity,
                line.unpriced_quantity, Nanos(line.recorded_nanos), Nanos(line.volume_nanos), Nanos(line.price_nanos),
                Nanos(line.unsplit_nanos),
            )
            for line in _stored(comparison)
        )  # fmt: skip
        return exports.download([heading, *rows], name=f"bill-{comparison.bill_id}.csv")

    def _may_add(self, request: HttpRequest) -> None:
        if not self.has_add_permission(request):
            raise PermissionDenied

    def _render(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        base = self.admin_site.each_context(request) | {"opts": self.opts, "dollar": DOLLAR, "shown": SHOWN, "now": timezone.now()}
        return TemplateResponse(request, "admin/analytics/bill.html", base | context)


@admin.register(BillMapping)
class BillMappingAdmin(acts.Audited, ModelAdmin):  # type: ignore[misc]
    """What the columns of other providers' files mean."""

    form = MappingForm
    list_display = ("slug", "day_column", "model_column", "component_column", "quantity_column", "amount_column")

    def has_delete_permission(self, request: HttpRequest, obj: BillMapping | None = None) -> bool:
        return False


def _line(one: Variance) -> Line:
    return Line(
        *one.key, one.billed_quantity, one.billed_nanos, one.quantity, one.unpriced, one.recorded_nanos, one.volume_nanos, one.price_nanos,
        one.unsplit_nanos,
    )  # fmt: skip


def _stored(comparison: BillComparison) -> list[Line]:
    found = comparison.variances.values_list(*Line._fields)
    return list(map(Line._make, found))


def _shown(lines: Iterable[Line], threshold_ppm: int, explained: Sequence[int]) -> dict[str, Any]:
    """Models, the farthest apart first, each with its days that are off, and the sums."""
    total = Sum("", threshold_ppm)
    models: dict[str, Sum] = {}
    for line in lines:
        model = models.setdefault(line.model, Sum(line.model, threshold_ppm))
        day = model.days.setdefault(line.day, Sum(line.day, threshold_ppm))
        for each in (total, model, day):
            each.add(line)
    ordered = sorted(models.values(), key=lambda one: (-abs(one.difference_nanos), one.name))
    left = SHOWN
    for model in ordered:
        off = {day: one for day, one in sorted(model.days.items()) if not one.green}
        model.quiet = len(model.days) - len(off)
        model.days = dict(list(off.items())[: max(left, 0)])
        left -= len(off)
    return {"total": total, "models": ordered, "cut": left < 0, "rest": total.difference_nanos - sum(explained)}


def _said(kind: str, amount_nanos: int, text: str, proposed: str = "") -> dict[str, Any]:
    return {"chip": CHIPS[kind], "amount": bill_findings.dollars(amount_nanos), "text": text, "proposed": proposed}


def _added(others: Iterable[tuple[str, int | None]]) -> list[tuple[str, int]]:
    sums: dict[str, int] = {}
    for words, nanos in others:
        sums[words] = sums.get(words, 0) + (nanos or 0)
    return sorted(sums.items(), key=lambda one: (-abs(one[1]), one[0]))


def _proposals(request: HttpRequest, bill: ProviderBill) -> str:
    """Where the proposals wait that this bill raised, for who may see them."""
    if not request.user.has_perm("pricing.view_priceproposal"):
        return ""
    waiting = PriceProposal.objects.filter(provider=bill.provider, state=PriceProposal.State.PENDING, source__startswith="bill of ")
    address = reverse("admin:pricing_priceproposal_changelist")
    return f"{address}?state__exact=pending&provider={bill.provider}" if waiting.exists() else ""
