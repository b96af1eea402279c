"""The forms of an account's pages. They refuse what they do not know, so that nothing rides along (``balance``, ``kind``)."""

from __future__ import annotations

import zoneinfo
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from accounts import logos
from accounts.models import Account, ApiKey, Brand, Membership
from accounts.templatetags.amounts import thousands

#: What every form may carry beside its own fields: the token against forgery, and which of a page's forms it is.
_CARRIED: Final = frozenset({"csrfmiddlewaretoken", "form"})
_CONTINENTS: Final = (
    "Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific",
)  # fmt: skip


class StrictForm(forms.Form):
    """A form that is wrong where it is sent with a field that it has not. ``named`` is what its button says, in ``form``."""

    named = ""

    @classmethod
    def of(cls, request: HttpRequest, **kwargs: Any) -> Any:
        """Bound where the request sends this form, else empty."""
        sent = request.method == "POST" and request.POST.get("form", "") == cls.named
        return cls(request.POST, request.FILES, **kwargs) if sent else cls(**kwargs)

    def clean(self) -> dict[str, Any] | None:
        unknown = (set(self.data) | set(self.files)) - set(self.fields) - _CARRIED
        if unknown:
            raise ValidationError("The form was sent with something that does not belong to it. Open the page again.", code="unknown")
        return super().clean()


class InviteForm(StrictForm):
    named = "invite"
    email = forms.EmailField(label="Email address", max_length=254)
    role = forms.ChoiceField(label="Role")

    def __init__(self, *args: Any, roles: Iterable[Membership.Role], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["role"].choices = [(role.value, role.label) for role in roles]  # type: ignore[attr-defined]


class TeamForm(StrictForm):
    """The button that makes a person's account a team's."""

    named = "team"


class RoleForm(StrictForm):
    named = "role"
    role = forms.ChoiceField(label="Role")

    def __init__(self, *args: Any, roles: Iterable[Membership.Role], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["role"].choices = [(role.value, role.label) for role in roles]  # type: ignore[attr-defined]


class RemoveForm(StrictForm):
    named = "remove"


class ResendForm(StrictForm):
    named = "resend"


class RevokeForm(StrictForm):
    named = "revoke"


class AcceptForm(StrictForm):
    named = "accept"


class KeyForm(StrictForm):
    """A new API key of an account. ``expires`` is in days; empty = never."""

    named = "key"
    LIFETIMES: Final = (("30", "in 30 days"), ("90", "in 90 days"), ("365", "in a year"), ("", "never"))
    name = forms.CharField(max_length=120, help_text="Where you will use it, such as “production backend”.")
    scopes = forms.MultipleChoiceField(
        label="It may",
        choices=[],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one thing that the key may do."},
    )
    expires = forms.ChoiceField(choices=LIFETIMES, required=False, initial="365", help_text="A key that leaks does harm until it ends.")

    def __init__(self, *args: Any, scopes: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["scopes"].choices = list(scopes.items())  # type: ignore[attr-defined]

    def expires_at(self, now: datetime) -> datetime | None:
        days = self.cleaned_data["expires"]
        return now + timedelta(days=int(days)) if days else None


class DetailsForm(StrictForm):
    named = "details"
    name = forms.CharField(max_length=120)
    billing_email = forms.EmailField(
        label="Billing address",
        required=False,
        max_length=254,
        help_text="Receipts and warnings go there; without one, to the owners.",
    )
    time_zone = forms.ChoiceField(
        help_text="Daily limits begin anew at midnight here. A change counts from the next day on: the running one ends as it began."
    )

    def __init__(self, *args: Any, account: Account, **kwargs: Any) -> None:
        kwargs["initial"] = {"name": account.name, "billing_email": account.billing_email, "time_zone": account.time_zone}
        super().__init__(*args, **kwargs)
        self.fields["time_zone"].choices = time_zones(account.time_zone)  # type: ignore[attr-defined]


class BrandForm(StrictForm):
    """``logo`` is checked by its content; its name and the type that the browser claims say nothing."""

    named = "brand"
    colour = forms.RegexField(
        r"(?i)^#[0-9a-f]{6}\Z",
        required=False,
        max_length=7,
        strip=True,
        error_messages={"invalid": "Write a colour such as #0f766e."},
        help_text="Such as #0f766e. Empty: as our own pages are.",
    )
    logo = forms.FileField(required=False, help_text=f"PNG, JPEG or WebP, at most {logos.MAX_BYTES // 1024} KB. It is shown 24 px high.")
    remove_logo = forms.BooleanField(label="Remove the present logo", required=False)

    def __init__(self, *args: Any, brand: Brand | None, **kwargs: Any) -> None:
        kwargs["initial"] = {"colour": brand.colour if brand else ""}
        super().__init__(*args, **kwargs)
        if brand is None or not brand.logo_digest:
            del self.fields["remove_logo"]

    def clean_colour(self) -> str:
        return str(self.cleaned_data["colour"]).lower()

    def clean_logo(self) -> logos.Logo | None:
        upload = self.cleaned_data["logo"]
        return read_logo(upload) if upload else None


def read_logo(upload: Any) -> logos.Logo:
    """The uploaded file as a logo. :raises ValidationError: it is none."""
    if upload.size > logos.MAX_BYTES:
        raise ValidationError(f"The file has {thousands(upload.size // 1024 + 1)} KB; a logo has at most {logos.MAX_BYTES // 1024} KB.")
    try:
        return logos.check(upload.read())
    except logos.NoLogo as error:
        raise ValidationError(str(error)) from error


def time_zones(present: str) -> Sequence[tuple[str, Collection[tuple[str, str]] | str]]:
    """Choices of places, by continent; the present zone is among them whatever it is."""
    places = sorted(name for name in zoneinfo.available_timezones() if name.partition("/")[0] in _CONTINENTS and "/" in name)
    grouped = [
        (continent, [(name, name.partition("/")[2].replace("_", " ").replace("/", ", ")) for name in names])
        for continent, names in groupby(places, key=lambda name: name.partition("/")[0])
    ]
    first = {"UTC": "UTC", present: present} if present not in places else {"UTC": "UTC"}
    return [*first.items(), *grouped]


#: What each scope lets an account's own key do, in words. Product keys' scopes are never offered.
SCOPES: Final = {
    ApiKey.Scope.USAGE_WRITE.value: "report work, which is charged to this account",
    ApiKey.Scope.USAGE_READ.value: "read usage, limits and explanations",
    ApiKey.Scope.BILLING_READ.value: "read the balance, the ledger, the plan and invoices",
    ApiKey.Scope.BILLING_WRITE.value: "start checkouts and open the billing portal",
}
