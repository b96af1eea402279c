"""The inbox of upstream prices, for staff: files come in, models that wait for a price are told, and what is missing is added."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from pricing import catalog, price_files, price_inbox
from pricing.models import PriceProposal

#: The components that are asked for, and for how many units.
ASKED: Final = (
    ("input_tokens", 1_000_000), ("output_tokens", 1_000_000), ("cached_input_tokens", 1_000_000), ("cache_write_tokens", 1_000_000),
    ("seconds", 3_600),
)  # fmt: skip
PERMISSION: Final = "pricing.change_priceproposal"


class UploadForm(forms.Form):
    file = forms.FileField(
        label="Price file",
        help_text="LiteLLM's JSON, or CSV with the headings provider, model, component, price_usd, per_units. Taken whole or not at all.",
    )


class AddForm(forms.Form):
    """What a model costs upstream. Output is also what reasoning costs."""

    provider = forms.CharField(max_length=64, widget=UnfoldAdminTextInputWidget, help_text="As usage names it, e.g. openai.")
    model = forms.CharField(max_length=128, widget=UnfoldAdminTextInputWidget)
    since = forms.DateTimeField(
        label="From (UTC)", input_formats=["%Y-%m-%dT%H:%M"], widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
        help_text="Usage of that time and later is rated with it: no later than what waits.",
    )  # fmt: skip
    source = forms.CharField(
        max_length=120,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Where the figures come from, e.g. the provider's page.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for component, per_units in ASKED:
            self.fields[component] = forms.DecimalField(
                required=False, min_value=0, max_value=1_000_000, max_digits=18, decimal_places=9, widget=UnfoldAdminTextInputWidget,
                label=f"{component.replace('_', ' ').capitalize()}, USD per {per_units:,}",
            )  # fmt: skip
        self.order_fields(["provider", "model", "since", *(component for component, _ in ASKED), "source"])

    def clean(self) -> dict[str, Any]:
        said: dict[str, Any] = super().clean() or {}
        try:
            catalog.split_model(f"{said.get('provider', '')}:{said.get('model', '')}")
        except catalog.InvalidModel as error:
            self.add_error("model", str(error))
        if not self.errors and not self.prices():
            self.add_error(None, "Write at least one price.")
        return said

    def prices(self) -> dict[str, tuple[int, int]]:
        """By component, nano-USD for so many units."""
        found = {}
        for component, per_units in ASKED:
            said: Decimal | None = self.cleaned_data.get(component)
            if said is not None:
                found[component] = int(said.scaleb(9)), per_units
        if "output_tokens" in found:
            found["reasoning_tokens"] = found["output_tokens"]
        return found


class InboxPages:
    """The pages beside the list of proposals."""

    admin_site: Any
    opts: Any
    list_before_template = "admin/pricing/inbox.html"

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("import/", view(self.import_view), name="pricing_priceproposal_import"),
            path("add-price/", view(self.add_price_view), name="pricing_priceproposal_add_price"),
            *super().get_urls(),  # type: ignore[misc]
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {"waiting": price_inbox.waits(), "may_decide": request.user.has_perm(PERMISSION)}
        found: HttpResponse = super().changelist_view(request, (extra_context or {}) | context)  # type: ignore[misc]
        return found

    def import_view(self, request: HttpRequest) -> HttpResponse:
        """Proposes what a file says otherwise than the book; the book does not change."""
        if not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        form, report = UploadForm(request.POST or None, request.FILES or None), None
        if form.is_valid():
            file = form.cleaned_data["file"]
            try:
                report = price_inbox.take(file.read(price_files.MAX_BYTES + 1), name=file.name, now=timezone.now())
            except price_files.InvalidPriceFile as error:
                for problem in error.problems:
                    form.add_error("file", problem)
        return self._inbox(request, "Take a price file", form, "import_prices", report=report)

    def add_price_view(self, request: HttpRequest) -> HttpResponse:
        """Proposes a price that staff found out, for somebody to approve."""
        if not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        asked = {name: request.GET.get(name, "")[:128] for name in ("provider", "model")}
        oldest = next(
            (one.oldest_at for one in price_inbox.waits() if {"provider": one.provider, "model": one.model} == asked), timezone.now()
        )
        since = oldest.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        form = AddForm(request.POST or None, initial=asked | {"since": f"{since:%Y-%m-%dT%H:%M}"})
        if form.is_valid():
            said = form.cleaned_data
            with transaction.atomic():
                count = price_inbox.add(
                    prices=form.prices(), provider=said["provider"], model=said["model"], since=_utc(said["since"]),
                    actor=request.user.get_username(), why=said["source"], now=timezone.now(),
                )  # fmt: skip
            messages.success(request, f"{count} proposed. Approve them here: usage that waits is then charged within ten minutes.")
            asked_for = f"?state__exact={PriceProposal.State.PENDING}&q={said['model']}"
            return HttpResponseRedirect(reverse("admin:pricing_priceproposal_changelist") + asked_for)
        return self._inbox(request, "Add a price", form, "add_price")

    def _inbox(self, request: HttpRequest, title: str, form: forms.Form, template: str, **more: Any) -> HttpResponse:
        context = self.admin_site.each_context(request) | {"title": title, "opts": self.opts, "form": form} | more
        return TemplateResponse(request, f"admin/pricing/{template}.html", context)


def _utc(at: datetime) -> datetime:
    return at.astimezone(UTC)
