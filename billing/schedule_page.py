"""Schedules of credit that were stopped because they were about to grant too often, for staff: why, and letting them go on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from django import forms
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.widgets import UnfoldBooleanSwitchWidget

from accounts.admin import ReasonForm, actor
from accounts.templatetags.amounts import plain_amount
from billing import ledger, periods
from billing.models import Grant, Schedule
from pricing.admin import ReadOnlyAdmin

SHOWN: Final = 200
MAX_MISSED: Final = 24


class RestartForm(ReasonForm):
    grants = forms.BooleanField(
        required=False, widget=UnfoldBooleanSwitchWidget, label="Grant what it missed",
        help_text="Off: it goes on with the next period that begins, and what it missed is yours to grant or not.",
    )  # fmt: skip
    key = forms.UUIDField(widget=forms.HiddenInput)
    field_order = ("grants", "reason", "key")


class StoppedSchedules(ReadOnlyAdmin):
    """Two pages beside the list of subscriptions: schedules have no page of their own."""

    def get_urls(self) -> list[URLPattern]:
        views = (("stopped/", "stopped", self.stopped_view), ("stopped/<int:account_id>/<int:unit_id>/", "restart", self.restart_view))
        ours = [path(route, self.admin_site.admin_view(view), name=f"billing_schedule_{name}") for route, name, view in views]
        return [*ours, *super().get_urls()]

    def stopped_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        stopped = Schedule.objects.filter(stopped_at__isnull=False).select_related("account__product", "unit").order_by("-stopped_at")
        context = {"title": "Stopped schedules", "opts": self.opts, "stopped": stopped[:SHOWN], "count": stopped.count(), "shown": SHOWN}
        context["now"] = timezone.now()
        return TemplateResponse(request, "admin/billing/schedules.html", self.admin_site.each_context(request) | context)

    def restart_view(self, request: HttpRequest, account_id: int, unit_id: int) -> HttpResponse:
        """Says what it missed, and lets it go on."""
        if not request.user.has_perm("billing.change_subscription"):
            raise PermissionDenied
        stopped = Schedule.objects.select_related("account", "unit").filter(stopped_at__isnull=False)
        schedule = stopped.filter(account_id=account_id, unit_id=unit_id).first()
        if schedule is None:
            raise Http404
        back = reverse("admin:billing_schedule_stopped")
        form = RestartForm(request.POST or None, initial={"key": uuid4()})
        if form.is_valid():
            said = form.cleaned_data
            with transaction.atomic():
                ledger.restart_schedule(
                    account_id=account_id, unit_id=unit_id, grants=said["grants"], key=f"staff:{said['key']}", actor=actor(request),
                    reason=said["reason"],
                )  # fmt: skip
                how = "with what it missed" if said["grants"] else "with its next period"
                self.log_change(request, schedule.account, f"Credit schedule goes on {how}: {said['reason']}")
            self.message_user(request, f"The schedule of {schedule.account} goes on {how}.")
            return HttpResponseRedirect(back)
        found = missed(schedule=schedule, now=timezone.now())
        days = ", ".join(f"{moment:%Y-%m-%d}" for moment in found) or "none"
        each = plain_amount(schedule.amount, schedule.unit)
        says = (
            f"Stopped on {schedule.stopped_at:%Y-%m-%d %H:%M} UTC. {schedule.stopped_because} Each period is {each}; missed so far: {days}."
        )
        context = {"title": f"Let the schedule of {schedule.account} go on", "opts": self.opts, "form": form, "says": says}
        context |= {"button": "Let it go on", "cancel": back}
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)


def missed(*, schedule: Schedule, now: datetime) -> list[datetime]:
    """When the periods began that a stopped schedule has not granted and would now, the first ``MAX_MISSED`` of them."""
    granted = Grant.objects.filter(account_id=schedule.account_id, source=schedule.source, source_key__startswith=f"{schedule.source_key}:")
    last = granted.order_by("-starts_at").values_list("starts_at", flat=True).first()
    number, found = schedule.skipped + schedule.granted, list[datetime]()
    while len(found) < MAX_MISSED:
        begins = periods.anniversary(schedule.anchor_at.astimezone(UTC), months=number * schedule.months)
        if begins > now or (schedule.ends_at is not None and begins >= schedule.ends_at):
            break
        if last is None or begins > last:
            found.append(begins)
        number += 1
    return found
