"""What staff type when they stop work, checked. Times are UTC."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from metering import kill_switches
from pricing.models import Product

#: What a browser's field for date and time reads and sends.
ISO_MINUTE = "%Y-%m-%dT%H:%M"
MAX_STOP = timedelta(days=366)


class EndField(forms.DateTimeField):
    """When a stop ends: a minute from now at the earliest, at most ``within`` ahead."""

    def __init__(self, *, within: timedelta, **kwargs: Any) -> None:
        self.within = within
        widget = UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"})
        super().__init__(input_formats=[ISO_MINUTE], widget=widget, label="Ends (UTC)", **kwargs)

    def clean(self, value: Any) -> datetime | None:
        end: datetime | None = super().clean(value)
        now = timezone.now()
        if end is not None and not now + timedelta(minutes=1) <= end <= now + self.within:
            raise forms.ValidationError(f"Choose a time at least a minute and at most {self.within.days} days ahead.")
        return end


def _reason(maximum: int) -> forms.CharField:
    return forms.CharField(
        max_length=maximum, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Client apps are told. Kept, with your name."
    )


class ThrowForm(forms.Form):
    """A kill switch."""

    product = forms.ModelChoiceField(
        Product.objects.order_by("name"), required=False, empty_label="Every product", widget=UnfoldAdminSelectWidget
    )
    feature = forms.RegexField(
        r"\A[a-z0-9][a-z0-9_.-]{0,63}\Z", required=False, widget=UnfoldAdminTextInputWidget,
        help_text="As client apps name it. Empty: all features.",
        error_messages={"invalid": "Write it as client apps do: small letters, digits, “_”, “.” and “-”."},
    )  # fmt: skip
    reason = _reason(200)
    ends_at = EndField(within=kill_switches.MAX_LIFETIME)


class StopForm(forms.Form):
    """A stop on one account."""

    reason = _reason(500)
    ends_at = EndField(within=MAX_STOP, required=False, help_text="Empty: until somebody resumes it.")
