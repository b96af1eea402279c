"""What staff type and upload of a provider's bill, checked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from unfold.widgets import UnfoldAdminDateWidget, UnfoldAdminFileFieldWidget, UnfoldAdminSelectWidget

from analytics import bill_files
from analytics.bill_models import BillMapping
from analytics.forms import ISO_DAY, AmountField
from analytics.models import ProviderBill
from metering.models import UsageModel


class BillForm(forms.ModelForm):  # type: ignore[type-arg]
    """A provider's bill: whole days, and what was billed for usage."""

    since = forms.DateField(
        input_formats=[ISO_DAY], label="First day", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    last_day = forms.DateField(
        input_formats=[ISO_DAY], label="Last day", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    billed = AmountField(signed=False, label="Billed, in US dollars", help_text="For usage alone: without tax, credits and fees.")

    class Meta:
        model = ProviderBill
        fields = ("provider",)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        since, last = cleaned.get("since"), cleaned.get("last_day")
        if since and last:
            if not since <= last < timezone.now().date():
                self.add_error("last_day", "Choose a day from the first on that is over.")
            elif ProviderBill.objects.filter(
                provider=cleaned.get("provider"), since=since, until=last + timedelta(days=1), digest=""
            ).exists():
                self.add_error("last_day", "There is a bill of this provider for these days already.")
        return cleaned


class UploadForm(forms.Form):
    """The files of one bill. What is in them is checked by :mod:`analytics.bill_files`."""

    provider = forms.ChoiceField(widget=UnfoldAdminSelectWidget())
    costs = forms.FileField(
        label="Costs", widget=UnfoldAdminFileFieldWidget(attrs={"accept": ".csv,.tsv,text/csv"}), help_text="The amounts, as CSV in UTF-8."
    )
    usage = forms.FileField(
        label="Usage",
        required=False,
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": ".csv,.tsv,text/csv"}),
        help_text="The quantities, where the costs have none: without them volume and price cannot be told apart.",
    )
    mapping = forms.ModelChoiceField(
        queryset=BillMapping.objects.all(),
        required=False,
        empty_label="An export of the provider's own",
        label="Columns",
        widget=UnfoldAdminSelectWidget(),
        help_text="For a file that is no export of OpenAI or Anthropic: make a mapping of its columns first.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known = sorted({*bill_files.EXPORTS, *UsageModel.objects.values_list("provider", flat=True).distinct()})
        self.fields["provider"].choices = [(name, name) for name in known]  # type: ignore[attr-defined]

    def clean_costs(self) -> tuple[str, bytes]:
        return _file(self.cleaned_data["costs"])

    def clean_usage(self) -> tuple[str, bytes] | None:
        upload = self.cleaned_data["usage"]
        return _file(upload) if upload else None


class MappingForm(forms.ModelForm):  # type: ignore[type-arg]
    """A mapping whose words all mean something."""

    class Meta:
        model = BillMapping
        fields = (
            "slug", "delimiter", "decimal_comma", "day_column", "day_format", "model_column", "component_column", "quantity_column",
            "quantity_scale", "amount_column", "currency_column", "components",
        )  # fmt: skip

    def clean_components(self) -> dict[str, str]:
        said = self.cleaned_data["components"] or {}
        if not isinstance(said, dict) or len(said) > 100 or any(not isinstance(value, str) for value in said.values()):
            raise ValidationError('Write an object of at most 100 words, such as {"Prompt": "input_tokens", "Tax": "other"}.')
        if wrong := sorted({value for value in said.values() if value not in bill_files.MEANINGS}):
            raise ValidationError(f"{', '.join(wrong)[:200]}: no component. There are {', '.join(bill_files.MEANINGS)}.")
        return said

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("component_column") and not cleaned.get("components"):
            self.add_error("components", "Say what each word of the component column means.")
        named = [cleaned.get(f"{part}_column") for part in ("day", "model", "component", "quantity", "amount", "currency")]
        if len([name for name in named if name]) != len({name for name in named if name}):
            self.add_error(None, "Two of the columns have one name.")
        return cleaned


def _file(upload: Any) -> tuple[str, bytes]:
    if (upload.size or 0) > bill_files.MAX_BYTES:
        raise ValidationError(f"The file is larger than {bill_files.MAX_BYTES // 1024 // 1024} MB. Import it by months.")
    return str(upload.name)[:100], upload.read()
