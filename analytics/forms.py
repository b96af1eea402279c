"""What staff type when they act on a wallet, checked. Amounts are exact decimal strings in the wallet's unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from unfold.widgets import UnfoldAdminDateWidget, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from analytics import margin
from billing import agreements
from billing.models import Agreement
from metering import overrides
from pricing.models import PlanVersion, Product

MAX_NANOS = 2**63 - 1
MAX_YEARS = 10
ISO_DAY = "%Y-%m-%d"  # what a browser's date field reads and sends
#: Where staff's credits may come from: nobody paid for these. What was paid for is granted by its payment.
SOURCES = (("goodwill", "Goodwill"), ("promotion", "Promotion"), ("compensation", "Compensation for a fault"))
_AMOUNT = re.compile(r"([+-]?)([0-9]{1,12})(?:\.([0-9]{1,9}))?")


def parse_amount(text: str) -> int:
    """Nanos of a decimal string with at most nine digits after the point, ASCII digits only.

    :raises ValueError: anything else, or more than the ledger can hold; the message says what to write.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if not found:
        raise ValueError("Write a number such as 12.50, with at most nine digits after the point.")
    sign, whole, part = found.groups()
    nanos = int(whole) * 1_000_000_000 + int((part or "").ljust(9, "0"))
    if nanos > MAX_NANOS:
        raise ValueError("That is more than a wallet can hold (about 9.2 billion).")
    return -nanos if sign == "-" else nanos


class AmountField(forms.CharField):
    """Nanos from a decimal string; never 0."""

    def __init__(self, *, signed: bool, **kwargs: Any) -> None:
        self.signed = signed
        super().__init__(max_length=40, widget=UnfoldAdminTextInputWidget(attrs={"inputmode": "decimal", "autocomplete": "off"}), **kwargs)

    def clean(self, value: Any) -> int:
        text = super().clean(value)
        if not text and not self.required:
            return 0
        try:
            nanos = parse_amount(text)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None
        if nanos == 0 or (nanos < 0 and not self.signed):
            raise forms.ValidationError("Write an amount other than 0." if self.signed else "Write an amount above 0.")
        return nanos


class ReasonForm(forms.Form):
    """Why; and the form's own mark, which makes sending it twice one act."""

    token = forms.UUIDField(widget=forms.HiddenInput)
    reason = forms.CharField(
        max_length=500, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept in the ledger for ever, with your name."
    )


class GrantForm(ReasonForm):
    """Credits for an account."""

    amount = AmountField(signed=False)
    source = forms.ChoiceField(choices=SOURCES, widget=UnfoldAdminSelectWidget)
    last_day = forms.DateField(
        required=False,
        input_formats=[ISO_DAY], label="Last day", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY),
        help_text="The credits expire at the end of this day (UTC). Empty: never.",
    )  # fmt: skip
    field_order = ("token", "amount", "source", "last_day", "reason")

    def clean_last_day(self) -> datetime | None:
        """When the credits expire: midnight after the last day."""
        day = self.cleaned_data["last_day"]
        if day is None:
            return None
        today = timezone.now().date()
        if not today <= day <= today + timedelta(days=366 * MAX_YEARS):
            raise forms.ValidationError(f"Choose today or a later day, at most {MAX_YEARS} years ahead.")
        return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)


class AdjustForm(ReasonForm):
    """A correction, up or down."""

    amount = AmountField(signed=True, help_text="Above 0 adds credits, below 0 takes free ones away.")
    field_order = ("token", "amount", "reason")


class RefundForm(ReasonForm):
    """How much of a payment goes back, in the smallest unit of its currency."""

    amount = forms.RegexField(
        r"^[0-9]{1,9}([.][0-9]{2})?$", widget=UnfoldAdminTextInputWidget(attrs={"inputmode": "decimal", "autocomplete": "off"})
    )
    field_order = ("token", "amount", "reason")

    def __init__(self, *args: Any, most: int, currency: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.most = most
        self.fields["amount"].initial = f"{most // 100}.{most % 100:02d}"
        self.fields["amount"].help_text = f"In {currency.upper()}, such as 12.50."
        self.fields["reason"].help_text = "Kept in the audit log, with your name."

    def clean_amount(self) -> int:
        whole, _, part = self.cleaned_data["amount"].partition(".")
        cents = int(whole) * 100 + int(part or 0)
        if not 0 < cents <= self.most:
            raise forms.ValidationError(f"Write an amount above 0, and at most {self.most // 100}.{self.most % 100:02d}.")
        return cents


class PlanForm(ReasonForm):
    """Another plan for an account; one with a price that nobody pays for is tried until a day."""

    plan = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    until = forms.DateField(
        required=False, input_formats=[ISO_DAY], label="Until the end of",
        widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY),
        help_text="Of a plan with a price that nobody pays for: the last day (UTC) on which it is tried.",
    )  # fmt: skip
    field_order = ("token", "plan", "until", "reason")

    def __init__(self, *args: Any, plans: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["plan"].choices = plans  # type: ignore[attr-defined]
        self.fields["reason"].help_text = "Kept in the audit log, with your name."

    def clean_until(self) -> datetime | None:
        """Midnight after the last day."""
        day = self.cleaned_data["until"]
        if day is None:
            return None
        if not 1 <= day.year <= 9_998:
            raise forms.ValidationError("Write a day such as 2026-12-31.")
        return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)


class OverrideForm(ReasonForm):
    """One limit of one account, set to another value until a day."""

    meter = forms.ChoiceField(label="Limit", widget=UnfoldAdminSelectWidget)
    value = forms.CharField(
        max_length=40, label="Allows now", widget=UnfoldAdminTextInputWidget(attrs={"inputmode": "decimal", "autocomplete": "off"}),
        help_text="A whole number; of a limit on cost, dollars of what it costs us, such as 12.50. 0 allows nothing.",
    )  # fmt: skip
    until = forms.DateField(
        input_formats=[ISO_DAY], label="Until the end of", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY),
        help_text="The last day (UTC). Then the plan’s limit counts again by itself.",
    )  # fmt: skip
    field_order = ("token", "meter", "value", "until", "reason")

    def __init__(self, *args: Any, choices: Mapping[str, overrides.Choice], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["meter"].choices = [(one.meter, f"{one.name}: {one.said(one.own)}") for one in choices.values()]  # type: ignore[attr-defined]
        self.fields["reason"].help_text = "Kept in the audit log, with your name."

    def clean_until(self) -> datetime:
        """Midnight after the last day."""
        day = self.cleaned_data["until"]
        if not 1 <= day.year <= 9_998:
            raise forms.ValidationError("Write a day such as 2026-12-31.")
        return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)

    def clean_value(self) -> int:
        """Nano-USD of a limit on cost, else a count."""
        text = self.cleaned_data["value"]
        if overrides.is_cost(self.cleaned_data.get("meter", "")):
            try:
                nanos = parse_amount(text)
            except ValueError as error:
                raise forms.ValidationError(str(error)) from None
            if nanos < 0:
                raise forms.ValidationError("Write an amount from 0.")
            return nanos
        if not re.fullmatch(r"[0-9]{1,16}", text, re.ASCII):
            raise forms.ValidationError("Write a whole number such as 500.")
        return int(text)


class EndOverrideForm(forms.Form):
    """Why the plan's limit counts again."""

    reason = forms.CharField(
        max_length=500, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept in the audit log, with your name."
    )


class MarginForm(forms.Form):
    """Which margin to show."""

    by = forms.ChoiceField(choices=[(by, f"By {by}") for by in margin.BYS], required=False, widget=forms.HiddenInput)
    order = forms.ChoiceField(
        choices=[("revenue", "Most revenue first"), ("least", "What earns least first")], required=False, widget=UnfoldAdminSelectWidget
    )
    fees = forms.BooleanField(required=False, label="Payment fees are a cost")
    since = forms.DateField(
        required=False, input_formats=[ISO_DAY], label="From", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    last_day = forms.DateField(
        required=False, input_formats=[ISO_DAY], label="To", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    product = forms.ModelChoiceField(
        Product.objects.order_by("name"), to_field_name="slug", required=False, empty_label="All products", widget=UnfoldAdminSelectWidget
    )


class AgreeForm(ReasonForm):
    """Terms for one customer. Limits that are not named stay those of the plan that they start from."""

    base = forms.ChoiceField(
        label="Starts from", widget=UnfoldAdminSelectWidget, help_text="The plan whose terms hold where nothing is said."
    )
    price = forms.RegexField(
        r"^[0-9]{1,6}(\.[0-9]{2})?$", widget=UnfoldAdminTextInputWidget, help_text="Each interval, in the plan's currency, e.g. 1200.00."
    )
    interval = forms.ChoiceField(choices=PlanVersion.Interval.choices, widget=UnfoldAdminSelectWidget)
    credit = AmountField(
        signed=False, required=False, label="Included credit", help_text="Each interval, in the wallet's unit. Empty: none."
    )
    rate_card = forms.CharField(required=False, max_length=64, widget=UnfoldAdminTextInputWidget, help_text="Empty: the plan's.")
    cost_tier = forms.CharField(required=False, max_length=64, widget=UnfoldAdminTextInputWidget, help_text="Empty: the plan's.")
    limits = forms.CharField(
        required=False, max_length=2_000, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="One a line: concurrent_tasks/open = 40, or = unlimited.",
    )  # fmt: skip
    collection = forms.ChoiceField(choices=Agreement.Collection.choices, widget=UnfoldAdminSelectWidget)
    days_until_due = forms.IntegerField(min_value=0, max_value=90, initial=30, help_text="Of an invoice that is sent.")
    confirm = forms.BooleanField(label="Put the account on these terms now, and have the price collected.")
    field_order = (
        "token", "base", "price", "interval", "credit", "rate_card", "cost_tier", "limits", "collection", "days_until_due", "reason",
        "confirm",
    )  # fmt: skip

    def __init__(self, *args: Any, plans: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["base"].choices = plans  # type: ignore[attr-defined]
        self.fields["reason"].help_text = "Kept with the agreement, with your name."

    def clean_credit(self) -> int:
        return self.cleaned_data["credit"] or 0

    def clean_limits(self) -> dict[tuple[str, str], int | None]:
        found: dict[tuple[str, str], int | None] = {}
        for line in filter(None, (line.strip() for line in self.cleaned_data["limits"].splitlines())):
            said = re.fullmatch(r"([a-z0-9_-]{1,64})/([a-z]{1,10}) *= *([0-9]{1,15}|unlimited)", line, re.ASCII)
            if said is None:
                raise forms.ValidationError(f"“{line[:80]}” is no limit; write concurrent_tasks/open = 40.")
            found[said[1], said[2]] = None if said[3] == "unlimited" else int(said[3])
        return found

    def terms(self) -> agreements.Terms:
        said = self.cleaned_data
        whole, _, part = said["price"].partition(".")
        return agreements.Terms(
            base=said["base"], price_cents=int(whole + part.ljust(2, "0")), included_credit_nanos=said["credit"], interval=said["interval"],
            collection=said["collection"], rate_card=said["rate_card"], cost_tier=said["cost_tier"], days_until_due=said["days_until_due"],
            limits=said["limits"],
        )  # fmt: skip
