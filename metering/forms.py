"""What staff type when they stop work, checked. Times are UTC."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from accounts.models import Account
from metering import kill_switches, levers
from metering.levers import Change
from metering.models import KillSwitch
from pricing import catalog_file
from pricing.models import CostTier, Product

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


def _product(help_text: str = "") -> forms.ModelChoiceField[Product]:
    return forms.ModelChoiceField(
        Product.objects.order_by("name"), required=False, empty_label="Every product", widget=UnfoldAdminSelectWidget, help_text=help_text
    )


class ThrowForm(forms.Form):
    """A kill switch: what is switched, for whom, why and until when."""

    kind = forms.ChoiceField(choices=KillSwitch.Kind.choices, label="What", widget=UnfoldAdminSelectWidget)
    product = _product(help_text="For every product at once a second person is asked.")
    account = forms.CharField(
        max_length=40, required=False, widget=UnfoldAdminTextInputWidget, help_text="Our id of one account, acct_…. Empty: all accounts."
    )
    feature = forms.RegexField(
        r"\A[a-z0-9][a-z0-9_.-]{0,63}\Z", required=False, widget=UnfoldAdminTextInputWidget,
        help_text="Of work, as client apps name it. Empty: all features.",
        error_messages={"invalid": "Write it as client apps do: small letters, digits, “_”, “.” and “-”."},
    )  # fmt: skip
    provider = forms.RegexField(
        r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z", required=False, widget=UnfoldAdminTextInputWidget,
        help_text="Of “Provider off”: as in the price book, such as openai.",
        error_messages={"invalid": "Write it as the price book does, such as openai."},
    )  # fmt: skip
    cap = forms.DecimalField(
        required=False, min_value=0, max_value=1_000_000, decimal_places=9, max_digits=16, label="Cap (USD)",
        widget=UnfoldAdminTextInputWidget,
        help_text="Of the emergency cost cap: what an account may cost us in its billing period. A limit that is lower stays.",
    )  # fmt: skip
    reason = _reason(200)
    ends_at = EndField(within=kill_switches.MAX_LIFETIME)

    def clean_account(self) -> Account | None:
        value = self.cleaned_data["account"]
        if not value:
            return None
        account = Account.objects.select_related("product").filter(public_id=value).first()
        if account is None:
            raise forms.ValidationError("There is no such account.")
        return account

    def wanted(self) -> kill_switches.Wanted:
        said = self.cleaned_data
        cap = said["cap"]
        return kill_switches.Wanted(
            kind=said["kind"], product=said["product"], account=said["account"], feature=said["feature"], provider=said["provider"],
            cap_nanos=None if cap is None else int(cap.scaleb(9)),
        )  # fmt: skip


class StopForm(forms.Form):
    """A stop on one account."""

    reason = _reason(500)
    ends_at = EndField(within=MAX_STOP, required=False, help_text="Empty: until somebody resumes it.")


class LiftForm(forms.Form):
    """Lets all throttled accounts work again."""

    product = _product()
    stops = forms.BooleanField(
        required=False, label="Also those that staff or a guard stopped", widget=UnfoldBooleanSwitchWidget,
        help_text="Without it only limits on cost are lifted.",
    )  # fmt: skip
    reason = _reason(300)


class UndoForm(forms.Form):
    reason = forms.CharField(
        max_length=300, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept in the audit log, with your name."
    )


class LeverForm(UndoForm):
    """What every lever asks. ``token`` makes a form that is sent twice one act."""

    token = forms.UUIDField(widget=forms.HiddenInput)
    field_order: tuple[str, ...] = ()

    def changes(self) -> list[Change]:
        """What the valid form would change. :raises levers.InvalidLever: it cannot be, or nothing would change."""
        raise NotImplementedError


class CostLimitsForm(LeverForm):
    product = _product()
    percent = forms.IntegerField(
        min_value=levers.LEAST_PERCENT, max_value=levers.MOST_PERCENT, widget=UnfoldAdminTextInputWidget(attrs={"inputmode": "text"}),
        label="By how many percent", help_text="20 raises every limit by a fifth, -20 lowers it by a fifth.",
    )  # fmt: skip
    field_order = ("product", "percent", "reason", "token")

    def changes(self) -> list[Change]:
        return levers.cost_limits(percent=self.cleaned_data["percent"], product=self.cleaned_data["product"])


class CostTierForm(LeverForm):
    tier = forms.ModelChoiceField(
        CostTier.objects.select_related("product").order_by("product", "slug"), widget=UnfoldAdminSelectWidget, label="Cost tier"
    )
    monthly_cost = forms.CharField(
        max_length=30, required=False, widget=UnfoldAdminTextInputWidget, label="Cost a month, USD",
        help_text="Such as 2.00, or “unlimited”. Empty: as it is.",
    )  # fmt: skip
    daily_cost = forms.CharField(
        max_length=30, required=False, widget=UnfoldAdminTextInputWidget, label="Cost a day, USD", help_text="Empty: as it is."
    )
    requests_per_hour = forms.CharField(
        max_length=30, required=False, widget=UnfoldAdminTextInputWidget, label="Requests an hour", help_text="Empty: as it is."
    )
    throttle_on_exceed = forms.ChoiceField(
        choices=[("", "as it is"), ("yes", "stops work"), ("no", "is only measured")], required=False, widget=UnfoldAdminSelectWidget,
        label="Reaching a limit on cost",
    )  # fmt: skip
    field_order = ("tier", "monthly_cost", "daily_cost", "requests_per_hour", "throttle_on_exceed", "reason", "token")

    def changes(self) -> list[Change]:
        said, tier = self.cleaned_data, self.cleaned_data["tier"]
        values: dict[str, Any] = {name: said[name] for name in ("monthly_cost", "daily_cost") if said[name]}
        if hourly := said["requests_per_hour"]:
            values["requests_per_hour"] = int(hourly) if hourly.isascii() and hourly.isdigit() else hourly
        if said["throttle_on_exceed"]:
            values["throttle_on_exceed"] = None if said["throttle_on_exceed"] == "yes" else False
        return levers.cost_tier(product=tier.product, slug=tier.slug, values=values)


def _typed(label: str, help_text: str = "Empty: as it is.") -> forms.CharField:
    return forms.CharField(max_length=200, required=False, widget=UnfoldAdminTextInputWidget, label=label, help_text=help_text)


class TermsForm(LeverForm):
    """Terms of one table of the catalog, in the words of its file; what is left empty stays."""

    section: str
    columns: tuple[str, ...]
    what = forms.ChoiceField(widget=UnfoldAdminSelectWidget, label="Which")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["what"].choices = list(_tables(self.section))  # type: ignore[attr-defined]

    def values(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in self.columns if self.cleaned_data[name]}

    def changes(self) -> list[Change]:
        product, _, slug = self.cleaned_data["what"].partition(" ")
        found = Product.objects.select_related("unit").get(slug=product)
        return levers.terms(product=found, section=self.section, slug=slug, values=self.values())


class PackForm(TermsForm):
    section, columns = "packs", ("price", "credit")
    price = _typed("Price", "Such as 100.00. Empty: as it is.")
    credit = _typed("Credit", "In the product's own unit, such as 150.00. Empty: as it is.")
    field_order = ("what", "price", "credit", "reason", "token")


class PlanForm(TermsForm):
    section, columns = "plans", ("price", "included_credit", "rate_card")
    price = _typed("Price", "Such as 25.00. Who subscribes already keeps the price that they pay. Empty: as it is.")
    included_credit = _typed("Included credit")
    rate_card = _typed("Rate card", "Its name in the catalog. Empty: as it is.")
    field_order = ("what", "price", "included_credit", "rate_card", "reason", "token")


class RateCardForm(TermsForm):
    section, columns = "rate_cards", ("markup_percent", "default_multiplier")
    markup_percent = _typed("Markup in percent", "Of a card with a markup, such as 50. Empty: as it is.")
    default_multiplier = _typed("Multiplier of models without their own", "Of a card that counts tokens. Empty: as it is.")
    model = _typed("One model's own", "provider:model, with its multiplier beside it.")
    multiplier = _typed("Its multiplier", "Such as 5.")
    field_order = ("what", "markup_percent", "default_multiplier", "model", "multiplier", "reason", "token")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if bool(cleaned.get("model")) != bool(cleaned.get("multiplier")):
            self.add_error("model", "Give a model and its multiplier, or neither.")
        return cleaned

    def values(self) -> dict[str, Any]:
        said = self.cleaned_data
        return super().values() | ({f"multipliers.{said['model']}": said["multiplier"]} if said["model"] else {})


def _tables(section: str) -> Iterator[tuple[str, str]]:
    """Every table of a section of every product's catalog, with what it says now."""
    shown = {"packs": ("price", "credit"), "plans": ("price", "included_credit"), "rate_cards": ("mode", "markup_percent")}[section]
    for product in Product.objects.order_by("name"):
        for slug, table in (catalog_file.current(slug=product.slug) or {}).get(section, {}).items():
            now = ", ".join(f"{key.replace('_', ' ')} {table[key]}" for key in shown if key in table)
            yield f"{product.slug} {slug}", f"{product.name}: {table.get('name', slug)} ({now})"


class ThrottlingForm(LeverForm):
    product = _product()
    on = forms.ChoiceField(
        choices=[("no", "is only measured"), ("yes", "stops work")], widget=UnfoldAdminSelectWidget, label="Reaching a limit on cost"
    )
    field_order = ("product", "on", "reason", "token")

    def changes(self) -> list[Change]:
        return levers.throttling(on=self.cleaned_data["on"] == "yes", product=self.cleaned_data["product"])


class RequestSizeForm(LeverForm):
    product = _product()
    tokens = forms.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, widget=UnfoldAdminTextInputWidget(attrs={"inputmode": "numeric"}),
        label="Most tokens of one request", help_text="It never raises what a plan allows. Empty: as each plan says.",
    )  # fmt: skip
    field_order = ("product", "tokens", "reason", "token")

    def changes(self) -> list[Change]:
        return levers.request_size(tokens=self.cleaned_data["tokens"], product=self.cleaned_data["product"])


class PromoteForm(LeverForm):
    what = forms.ChoiceField(
        widget=UnfoldAdminSelectWidget,
        label="Which limit",
        help_text="Limits that only watch so far, and the report says whom they would refuse.",
    )
    field_order = ("what", "reason", "token")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        products = Product.objects.order_by("name")
        self.fields["what"].choices = [  # type: ignore[attr-defined]
            (f"{product.slug} {meter}", f"{product}: {meter}") for product in products for meter in levers.shadowed(product=product)
        ]

    def changes(self) -> list[Change]:
        slug, _, meter = self.cleaned_data["what"].partition(" ")
        return levers.promote(product=Product.objects.select_related("unit").get(slug=slug), meter=meter)


class PriceBackForm(LeverForm):
    what = forms.MultipleChoiceField(
        widget=UnfoldAdminCheckboxSelectMultipleWidget, label="What goes back", help_text="Prices of one product at a time."
    )
    field_order = ("what", "reason", "token")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["what"].choices = list(_former())  # type: ignore[attr-defined]

    def clean_what(self) -> list[str]:
        chosen: list[str] = self.cleaned_data["what"]
        if len({name.partition(":")[0] for name in chosen}) > 1:
            raise forms.ValidationError("Choose prices of one product at a time.")
        return chosen

    def changes(self) -> list[Change]:
        slug = self.cleaned_data["what"][0].partition(":")[0]
        what = [name.partition(":")[2] for name in self.cleaned_data["what"]]
        return levers.price_back(product=Product.objects.select_related("unit").get(slug=slug), what=what)


def _former() -> Iterator[tuple[str, str]]:
    for product in Product.objects.select_related("unit").order_by("name"):
        for name, changes in levers.former_prices(product=product).items():
            said = "; ".join(f"{change.name}: {change.was} → {change.becomes}" for change in changes)
            yield f"{product.slug}:{name}", f"{product.name}, {said}"
