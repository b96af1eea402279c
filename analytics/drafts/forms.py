"""What staff type when they ask for a replay under a draft, or activate one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import tomli_w
from django import forms
from django.utils import timezone
from unfold.widgets import UnfoldAdminDateWidget, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from analytics.forms import ISO_DAY
from metering.forms import ISO_MINUTE
from pricing import catalog_file
from pricing.models import Product

#: So many terms can be changed without writing a file.
TERMS: Final = (1, 2, 3)
MAX_AHEAD: Final = timedelta(days=366)
_SECTIONS: Final = ("rate_cards", "plans", "packs", "cost_tiers")
_NO_TERMS: Final = frozenset(("name", "notes", "rank", "public", "guard", "currency", "stripe_product", "stripe_price_setting"))


def last_month(now: datetime) -> tuple[datetime, datetime]:
    """The calendar month before this one, in UTC."""
    until = datetime.combine(now.astimezone(UTC).date().replace(day=1), time(), tzinfo=UTC)
    return (until - timedelta(days=1)).replace(day=1), until


class AskForm(forms.Form):
    """A period, and a draft: a whole catalog file, or some terms of the catalog as it is. ``document`` once it is valid."""

    name = forms.CharField(max_length=120, widget=UnfoldAdminTextInputWidget, help_text="What this draft is called, e.g. “Markup 60 %”.")
    since = forms.DateField(
        input_formats=[ISO_DAY], label="First day", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY)
    )
    last_day = forms.DateField(
        input_formats=[ISO_DAY], label="Last day", widget=UnfoldAdminDateWidget(attrs={"type": "date"}, format=ISO_DAY), help_text="UTC."
    )
    file = forms.FileField(
        required=False, label="Catalog file", help_text="A whole catalog file (TOML), e.g. the current one, changed. Or change terms below."
    )
    document: catalog_file.Document

    def __init__(self, *args: Any, product: Product, current: catalog_file.Document, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.product, self.current = product, current
        choices = [("", "–"), *((json.dumps(path), f"{'.'.join(path)} (now {_shown(said)})") for path, said in _terms(current))]
        for number in TERMS:
            self.fields[f"term_{number}"] = forms.ChoiceField(
                choices=choices, required=False, label=f"Term {number}", widget=UnfoldAdminSelectWidget
            )
            self.fields[f"value_{number}"] = forms.CharField(
                max_length=120, required=False, label=f"Term {number} becomes", widget=UnfoldAdminTextInputWidget
            )

    def clean_last_day(self) -> date:
        day: date = self.cleaned_data["last_day"]
        if day >= timezone.now().date():
            raise forms.ValidationError("Choose a period of the past: a day before today.")
        return day

    def clean(self) -> dict[str, Any]:
        said: dict[str, Any] = super().clean() or {}
        if said.get("since") and said.get("last_day"):
            said["begins"], said["ends"] = _midnight(said["since"]), _midnight(said["last_day"]) + timedelta(days=1)
        changed = {number: str(said[f"term_{number}"]) for number in TERMS if said.get(f"term_{number}")}
        if said.get("file") and changed:
            self.add_error("file", "Choose either a file or terms, not both.")
        elif said.get("file"):
            self._read(said["file"].read(catalog_file.MAX_BYTES + 1), "file")
        elif not self.errors:
            document = self.current
            for number, path in changed.items():
                where = json.loads(path)
                document = catalog_file.with_value(
                    document, where, _typed(where, catalog_file.value(self.current, where), said[f"value_{number}"])
                )
            self._read(tomli_w.dumps(document).encode(), f"value_{max(changed, default=1)}")
        return said

    def _read(self, text: bytes, where: str) -> None:
        try:
            self.document = catalog_file.parse(text)
        except catalog_file.InvalidCatalog as error:
            for problem in error.problems[:20]:
                self.add_error(where, problem)
            return
        if self.document["product"]["slug"] != self.product.slug:
            self.add_error(where, f"The file is of {self.document['product']['slug']}, not of {self.product.slug}.")


class ActivateForm(forms.Form):
    """From when on the draft counts, and why."""

    effective = forms.DateTimeField(
        input_formats=[ISO_MINUTE], label="From (UTC)", widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
        help_text="Usage of that time and later is charged by the draft; earlier usage by the terms of its own time.",
    )  # fmt: skip
    reason = forms.CharField(max_length=300, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Kept in the audit log.")

    def clean_effective(self) -> datetime:
        at: datetime = self.cleaned_data["effective"]
        now = timezone.now()
        if not now < at <= now + MAX_AHEAD:
            raise forms.ValidationError("Choose a time ahead, within a year.")
        return at


def _terms(document: catalog_file.Document) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every term that a charge, a limit or a price depends on."""
    for section in _SECTIONS:
        yield from _leaves(document.get(section, {}), (section,))


def _leaves(content: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(content, dict):
        for key, inner in content.items():
            if key not in _NO_TERMS:
                yield from _leaves(inner, (*path, key))
    elif not isinstance(content, list):
        yield path, content


def _shown(said: Any) -> str:
    return str(said).lower() if isinstance(said, bool) else str(said)


def _typed(path: list[str], before: Any, written: str) -> Any:
    """What was written, as the file would have it: counts are numbers there, amounts texts. What is neither, the file's own check names."""
    text = written.strip()
    if isinstance(before, bool):
        return {"true": True, "false": False}.get(text, text)
    counts = isinstance(before, int) or "entitlements" in path or path[-1] == "requests_per_hour"
    return int(text) if counts and text.isascii() and text.isdigit() and len(text) <= 18 else text


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)
