"""Betas, for staff: who is in them, what was measured, and whether they may go on. What is said comes from :mod:`analytics.rollout`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import display

from accounts import acts
from accounts.admin import actor
from accounts.models import Account
from accounts.pages import signed_in
from analytics import cohort_forms, rollout
from analytics.margin import percent
from metering import cohorts
from metering.cohort_models import Cohort, CohortCriterion, CohortFeedback
from pricing.margin_lint import money

FEEDBACK_SHOWN: Final = 50
#: Columns of the members' table.
_OF_MEMBERS: Final = ("ws_up", "provisioning_ok", "latency_ms", "critical_bugs", "cost_per_member")
#: What an act did, and to whose account.
Done = tuple[str, Account | None]


def _advance(cohort: Cohort, values: dict[str, Any], who: str, now: datetime) -> Done:
    after = rollout.advance(cohort_id=cohort.pk, phase=values["phase"], now=now)
    return f"Went from {cohort.get_phase_display()} to {after.get_phase_display()}.", None


def _invite(cohort: Cohort, values: dict[str, Any], who: str, now: datetime) -> Done:
    member = cohorts.invite(cohort_id=cohort.pk, account=values["who"], actor=who, now=now)
    return f"Invited {member}.", member.account


def _onboard(cohort: Cohort, values: dict[str, Any], who: str, now: datetime) -> Done:
    if not cohorts.onboard(member=values["member"], now=now):
        raise cohorts.Refused("That member is onboarded already.")
    return f"Onboarded {values['member']}.", values["member"].account


def _feedback(cohort: Cohort, values: dict[str, Any], who: str, now: datetime) -> Done:
    said = cohorts.feedback(member=values["member"], rating=values["rating"], text=values["text"], actor=who, now=now)
    return f"Noted feedback of {values['member']}: {said}.", values["member"].account


def _measure(cohort: Cohort, values: dict[str, Any], who: str, now: datetime) -> Done:
    metric, member, value = rollout.METRICS[values["metric"]], values["member"], values["value"]
    cohorts.record(cohort=cohort, member=member, metric=values["metric"], value=value, measured_at=now, key=f"staff-{uuid4()}", now=now)
    return f"Recorded {metric.title} {rollout.words(metric.unit, value)}{f' of {member}' if member else ''}.", member and member.account


def _criterion(cohort: Cohort, values: dict[str, Any], who: str, now: datetime) -> Done:
    metric = rollout.METRICS[values["metric"]]
    named = {name: values[name] for name in ("leaves", "metric")}
    one, _ = CohortCriterion.objects.update_or_create(
        cohort=cohort, **named, defaults={name: values[name] for name in ("comparator", "value", "days")}
    )
    shown = f"{metric.title} {one.get_comparator_display()} {rollout.words(metric.unit, one.value)}"
    return f"Leaves {one.get_leaves_display()} only with {shown} over {one.days} days.", None


_ACTS: Final[dict[str, tuple[str, type[Any], Callable[..., Done]]]] = {
    "advance": ("Advance", cohort_forms.AdvanceForm, _advance),
    "invite": ("Invite", cohort_forms.InviteForm, _invite),
    "onboard": ("Onboard", cohort_forms.OnboardForm, _onboard),
    "feedback": ("Note feedback", cohort_forms.FeedbackForm, _feedback),
    "measure": ("Record a measurement", cohort_forms.MeasureForm, _measure),
    "criterion": ("Set a criterion", cohort_forms.CriterionForm, _criterion),
}


@admin.register(Cohort)
class CohortAdmin(acts.Audited, ModelAdmin):  # type: ignore[misc]
    """A cohort is begun here and never deleted; what is done to it are acts of its page."""

    form = cohort_forms.CohortForm
    list_display = ("name", "product", "feature", "phase_", "members_", "phase_at")
    list_filter = ("product", "phase")
    list_select_related = ("product",)
    ordering = ("-begun_at", "-pk")

    @display(description="Phase", ordering="phase", label={"open to everybody": "success"})
    def phase_(self, cohort: Cohort) -> str:
        return str(cohort.get_phase_display())

    @display(description="Invited")
    def members_(self, cohort: Cohort) -> str:
        return f"{cohort.members.count()} of {cohort.capacity}"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Cohort, form: Any, change: bool) -> None:
        rollout.begin(cohort=obj, now=timezone.now())

    def response_add(self, request: HttpRequest, obj: Cohort, post_url_continue: str | None = None) -> HttpResponse:
        return HttpResponseRedirect(_page(obj))

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("<int:cohort_id>/act/<slug:verb>/", view, name="metering_cohort_act"), *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        cohort, now = self._cohort(object_id), timezone.now()
        standing = rollout.look(cohort=cohort, now=now)
        members = [
            (member, [_shown(name, standing.by_member.get(member.pk, {}).get(name)) for name in _OF_MEMBERS])
            for member in cohort.members.select_related("account")
        ]
        context = {
            "title": cohort.name, "now": now, "opts": self.opts, "cohort": cohort, "standing": standing, "members": members,
            "columns": [rollout.METRICS[name].title for name in _OF_MEMBERS], "acts": [(verb, act[0]) for verb, act in _ACTS.items()],
            "stands": [(one, _figure(one.metric, one.found), _figure(one.metric, one.value)) for one in standing.stands],
            "margins": self._margins(request, cohort, standing),
            "feedback": CohortFeedback.objects.filter(member__cohort=cohort).select_related("member__account")[:FEEDBACK_SHOWN],
            "may_change": self.has_change_permission(request),
        }  # fmt: skip
        return TemplateResponse(request, "admin/analytics/cohort.html", self.admin_site.each_context(request) | context)

    def act_view(self, request: HttpRequest, cohort_id: int, verb: str) -> HttpResponse:
        if not self.has_change_permission(request):
            raise PermissionDenied
        if verb not in _ACTS:
            raise Http404
        cohort, now = self._cohort(str(cohort_id)), timezone.now()
        title, form_class, act = _ACTS[verb]
        form = form_class(request.POST or None, cohort=cohort, initial={"phase": cohort.phase, "leaves": cohort.phase})
        if request.method == "POST" and form.is_valid():
            try:
                with transaction.atomic():
                    what, account = act(cohort, form.cleaned_data, actor(request), now)
                    reason = form.cleaned_data.get("reason", "")
                    acts.note(actor=signed_in(request), what=what, now=now, account=account, subject=cohort, reason=reason)
            except cohorts.Refused as error:
                form.add_error(None, str(error))
            else:
                self.message_user(request, what, messages.SUCCESS)
                return HttpResponseRedirect(_page(cohort))
        says = f"{cohort}, {cohort.get_phase_display()}."
        if verb == "advance":
            says = f"{says} {rollout.look(cohort=cohort, now=now).sentence} Opened to everybody, no invitation counts any more."
        context = {
            "title": title, "opts": self.opts, "form": form, "says": says, "button": title, "cancel": _page(cohort),
            "harmless": verb != "advance",
        }  # fmt: skip
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)

    def _cohort(self, object_id: str) -> Cohort:
        known = object_id.isascii() and object_id.isdigit() and len(object_id) < 19
        cohort = Cohort.objects.select_related("product").filter(pk=int(object_id)).first() if known else None
        if cohort is None:
            raise Http404
        return cohort

    def _margins(self, request: HttpRequest, cohort: Cohort, standing: rollout.Standing) -> dict[str, Any] | None:
        """The margin at the measured cost, for those who may see margins."""
        if standing.cost_nanos is None or not request.user.has_perm("analytics.view_margin"):
            return None
        found = rollout.margins(product=cohort.product, feature=cohort.feature, cost_nanos=standing.cost_nanos)
        if found is None:
            return None
        shares = (found.without_fee, found.with_fee)
        without, with_fee = (percent(share.numerator, share.denominator) for share in shares)
        cost = rollout.words("dollars", standing.cost_nanos)
        return {"cost": cost, "price": money(found.price), "without_fee": without, "with_fee": with_fee}


def _page(cohort: Cohort) -> str:
    return reverse("admin:metering_cohort_change", args=[cohort.pk])


def _shown(name: str, value: int | None) -> str:
    return _figure(rollout.METRICS[name], value)


def _figure(metric: rollout.Metric, value: int | None) -> str:
    return "–" if value is None else rollout.words(metric.unit, value)
