"""What staff write on a cohort's page."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Q
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from accounts.admin import ReasonForm
from accounts.models import Account
from analytics import rollout
from metering.cohort_models import Cohort, CohortCriterion, CohortMember
from pricing import catalog


class CohortForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new cohort of a feature that a plan of the product has."""

    class Meta:
        model = Cohort
        fields = ("product", "feature", "name", "capacity")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        product, feature = cleaned.get("product"), cleaned.get("feature")
        if product and feature and feature not in catalog.flags(product_id=product.pk):
            self.add_error("feature", f"No plan of {product} names that feature.")
        if not 1 <= (cleaned.get("capacity") or 1) <= 1_000:
            self.add_error("capacity", "Write 1 to 1,000.")
        return cleaned


class _Of(ReasonForm):
    """A form about one cohort, which says why."""

    def __init__(self, *args: Any, cohort: Cohort, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cohort = cohort
        self.order_fields([*(name for name in self.fields if name != "reason"), "reason"])


class AdvanceForm(_Of):
    """Why it goes on. Sent back with the phase that was seen."""

    phase = forms.CharField(widget=forms.HiddenInput())


class InviteForm(_Of):
    """An account by its id, the app's id of it, or the address of somebody in it."""

    who = forms.CharField(
        label="Account or e-mail",
        max_length=254,
        widget=UnfoldAdminTextInputWidget(),
        help_text="The account's id, the app's id of it, or the address of one of its people.",
    )

    def clean_who(self) -> Account:
        text = self.cleaned_data["who"].strip()
        named = Q(public_id=text) | Q(external_id=text) | Q(memberships__user__email__iexact=text) | Q(billing_email__iexact=text)
        found = list(Account.objects.filter(named, product=self.cohort.product_id, closed_at=None).distinct()[:2])
        if not found:
            raise forms.ValidationError(f"{self.cohort.product} has no open account of that.")
        if len(found) > 1:
            raise forms.ValidationError("Several accounts have that. Write the account's id.")
        return found[0]


class _OfMember(_Of):
    member = forms.ModelChoiceField(CohortMember.objects.none(), widget=UnfoldAdminSelectWidget())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["member"].queryset = self.cohort.members.select_related("account")  # type: ignore[attr-defined]


class OnboardForm(_OfMember):
    """Who works with it now."""


class FeedbackForm(_OfMember):
    """What a member said."""

    rating = forms.TypedChoiceField(choices=[(n, f"{n} of 5") for n in range(5, 0, -1)], coerce=int, widget=UnfoldAdminSelectWidget())
    text = forms.CharField(label="What they said", max_length=2_000, widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.fields["reason"]


class _OfMetric(_Of):
    """A metric, and a value in its unit."""

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        metric = rollout.METRICS.get(cleaned.get("metric", ""))
        if metric and cleaned.get("value"):
            try:
                cleaned["value"] = rollout.parse(unit=metric.unit, text=cleaned["value"])
            except ValueError as error:
                self.add_error("value", str(error))
        return cleaned


class MeasureForm(_OfMetric):
    """What was measured, of one member or of the cohort as a whole."""

    metric = forms.ChoiceField(
        choices=[(slug, each.title) for slug, each in rollout.METRICS.items() if each.how != "own"], widget=UnfoldAdminSelectWidget()
    )
    member = forms.ModelChoiceField(
        CohortMember.objects.none(), required=False, empty_label="The cohort as a whole", widget=UnfoldAdminSelectWidget()
    )
    value = forms.CharField(
        max_length=20, widget=UnfoldAdminTextInputWidget(), help_text="A share as 93.8 %, latency as 1200 ms, a count as 0, or yes and no."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["member"].queryset = self.cohort.members.select_related("account")  # type: ignore[attr-defined]


class CriterionForm(_OfMetric):
    """What has to be so before a phase is left; the one of that metric and phase is replaced."""

    leaves = forms.ChoiceField(
        label="Before it leaves",
        choices=[each for each in Cohort.Phase.choices if each[0] != Cohort.Phase.EVERYBODY],
        widget=UnfoldAdminSelectWidget(),
    )
    metric = forms.ChoiceField(choices=[(slug, each.title) for slug, each in rollout.METRICS.items()], widget=UnfoldAdminSelectWidget())
    comparator = forms.ChoiceField(choices=CohortCriterion.Comparator.choices, widget=UnfoldAdminSelectWidget())
    value = forms.CharField(
        max_length=20, widget=UnfoldAdminTextInputWidget(), help_text="A share as 95 %, money as $15, latency as 5000 ms, a count, or yes."
    )
    days = forms.IntegerField(
        min_value=1, max_value=90, initial=7, help_text="Over so many days up to now.", widget=UnfoldAdminTextInputWidget()
    )
