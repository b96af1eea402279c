"""What staff write of alert rules, channels and providers' bills, checked. Values are written in the metric's own unit."""

from __future__ import annotations

import secrets
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import EmailValidator
from django.utils.text import slugify
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from accounts import outbound
from analytics import alert_metrics, alerts
from analytics.alert_metrics import COSTS, METRICS, REVENUES
from analytics.models import AlertChannel, AlertRule
from metering.forms import EndField

MAX_ADDRESSES = 20
EMPTY = [("", "–")]


class RuleForm(forms.ModelForm):  # type: ignore[type-arg]
    """A rule whose parts fit each other: a metric is given the sums it takes, a window it has, and a threshold in its unit."""

    metric = forms.ChoiceField(choices=[(name, metric.title) for name, metric in METRICS.items()], widget=UnfoldAdminSelectWidget)
    numerator = forms.ChoiceField(
        choices=[*EMPTY, *COSTS.items()], required=False, widget=UnfoldAdminSelectWidget, label="Cost", help_text="For metrics of money."
    )
    denominator = forms.ChoiceField(
        choices=[*EMPTY, *REVENUES.items()],
        required=False,
        widget=UnfoldAdminSelectWidget,
        label="Revenue",
        help_text="For shares of revenue.",
    )
    threshold = forms.CharField(
        max_length=40, required=False, widget=UnfoldAdminTextInputWidget,
        help_text="70 for 70 %, 500 for $500, 25 h, or a number. Empty, of a margin: each product's own alert margin.",
    )  # fmt: skip
    minimum = forms.CharField(
        max_length=40, required=False, widget=UnfoldAdminTextInputWidget, label="Not enough data below",
        help_text="Dollars of cost or revenue, or how many accounts or events, without which nothing is judged.",
    )  # fmt: skip

    class Meta:
        model = AlertRule
        fields = (
            "name", "metric", "numerator", "denominator", "comparator", "threshold", "minimum", "window", "product", "severity", "channels",
            "cool_down_minutes", "enabled",
        )  # fmt: skip
        widgets = {"channels": UnfoldAdminCheckboxSelectMultipleWidget}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rule, metric = self.instance, METRICS.get(self.instance.metric)
        if rule.pk and metric is not None:
            self.initial["threshold"] = "" if rule.threshold is None else alert_metrics.written(unit=metric.unit, value=rule.threshold)
            unit = alert_metrics.unit_of_minimum(metric)
            self.initial["minimum"] = alert_metrics.written(unit=unit, value=rule.minimum) if rule.minimum else ""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        metric = METRICS.get(cleaned.get("metric", ""))
        if metric is None:
            return cleaned
        for field, wanted in (("numerator", metric.sums >= 1), ("denominator", metric.sums == 2)):
            if wanted and not cleaned.get(field):
                self.add_error(field, "Choose which: this metric is of money.")
            elif not wanted:
                cleaned[field] = ""
        if cleaned.get("window") and cleaned["window"] not in metric.windows:
            self.add_error("window", f"This metric looks back {', '.join(window.label for window in metric.windows)}.")
        if cleaned.get("product") and not metric.each:
            self.add_error("product", "This metric is of the whole site.")
        cleaned["threshold"] = self._parsed("threshold", metric.unit, required=metric.name != "margin")
        minimum = self._parsed("minimum", alert_metrics.unit_of_minimum(metric), required=False)
        cleaned["minimum"] = minimum or 0
        if cleaned["minimum"] < 0:
            self.add_error("minimum", "Write 0 or more.")
        return cleaned

    def _parsed(self, field: str, unit: alert_metrics.Unit, *, required: bool) -> int | None:
        text = str(self.cleaned_data.get(field) or "").strip()
        if not text:
            if required:
                self.add_error(field, "Write a threshold.")
            return None
        try:
            return alert_metrics.parse(unit=unit, text=text)
        except ValueError as error:
            self.add_error(field, str(error))
            return None

    def save(self, commit: bool = True) -> Any:
        if not self.instance.slug:
            self.instance.slug = f"{slugify(self.instance.name)[:50].strip('-') or 'rule'}-{secrets.token_hex(3)}"
        return super().save(commit)


class ChannelForm(forms.ModelForm):  # type: ignore[type-arg]
    """A channel whose target is of its kind. An address that is called is looked up here, and again whenever it is called."""

    class Meta:
        model = AlertChannel
        fields = ("name", "kind", "target", "enabled")
        widgets = {"target": UnfoldAdminTextareaWidget(attrs={"rows": 2})}

    def clean_target(self) -> str:
        return str(self.cleaned_data["target"]).strip()

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        target = cleaned.get("target", "")
        try:
            match cleaned.get("kind"):
                case AlertChannel.Kind.MAIL:
                    addresses = [address.strip() for address in target.split(",") if address.strip()]
                    if len(addresses) > MAX_ADDRESSES:
                        raise ValidationError(f"Write at most {MAX_ADDRESSES} addresses.")
                    for address in addresses:
                        EmailValidator(f"“{address}” is no mail address.")(address)
                case AlertChannel.Kind.SENTRY:
                    if target:
                        raise ValidationError("Sentry's address is the setting SENTRY_DSN. Leave this empty.")
                case AlertChannel.Kind.SLACK | AlertChannel.Kind.WEBHOOK:
                    outbound.check(target)
        except (ValidationError, outbound.Refused) as error:
            self.add_error("target", error if isinstance(error, ValidationError) else str(error))
        return cleaned


class NoteForm(forms.Form):
    """What staff know of an alert."""

    note = forms.CharField(
        max_length=500,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Kept with the alert and in the audit log, with your name.",
    )


class MuteForm(forms.Form):
    """How long a rule is not told of, and why."""

    until = EndField(within=alerts.MAX_MUTE)
    reason = forms.CharField(
        max_length=200,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Kept with the rule and in the audit log, with your name.",
    )
