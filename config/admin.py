"""Admin's page of jobs: how each stands, and what staff may do about it; and staff's roles. They stand on top because their tables do."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import display

from accounts import acts
from accounts.admin import ReasonForm, actor
from accounts.models import Account
from analytics import jobs
from analytics.models import AuditFinding, JobRun
from config import jobs as table
from config import staff_roles, tasks
from pricing.admin import CappedPaginator, ReadOnlyAdmin

STATES = {"waiting": "info", "running": "info", "done": "success", "failed": "danger"}
#: So many subjects that were given up are shown with the jobs.
GIVEN_UP_SHOWN = 50


@admin.register(JobRun)
class JobRunAdmin(ReadOnlyAdmin):
    """The list without a filter is the page of jobs; with one it is the runs."""

    list_display = ("job", "subject", "due_at", "state_", "started_at", "took", "rows", "attempts", "short_error")
    list_filter = ("job", "state")
    search_fields = ("=job", "=subject")
    search_help_text = "A job's name, or the public id of what failed."
    show_full_result_count = False
    paginator = CappedPaginator
    fields = (
        "job", "subject", "due_at", "late_at", "state_", "error", "rows", "attempts", "started_at", "ended_at", "next_attempt_at", "worker",
        "lease_until", "fence", "actor", "reason",
    )  # fmt: skip

    @display(description="State", label=STATES)
    def state_(self, run: JobRun) -> str:
        return run.state

    @display(description="Took", empty_value="–")
    def took(self, run: JobRun) -> str | None:
        return f"{(run.ended_at - run.started_at).total_seconds():.1f} s" if run.started_at and run.ended_at else None

    @display(description="Error", empty_value="–")
    def short_error(self, run: JobRun) -> str | None:
        return run.error[:100] or None

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("run/<str:name>/", view(self.run_view), name="analytics_jobrun_run"),
            path("again/<int:run_id>/", view(self.again_view), name="analytics_jobrun_again"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.GET:
            return super().changelist_view(request, {"title": "Runs of jobs", **(extra_context or {})})  # type: ignore[no-any-return]
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = timezone.now()
        found = jobs.standings(jobs=table.JOBS, now=now)
        given_up = JobRun.objects.filter(state=JobRun.State.FAILED).exclude(subject="").order_by("-ended_at")
        context = {
            "title": "Jobs",
            "opts": self.opts,
            "standings": sorted(found, key=lambda each: not each.bad),
            "bad": sum(each.bad for each in found),
            "given_up": given_up[:GIVEN_UP_SHOWN],
            "findings": AuditFinding.objects.filter(gone_at=None).count(),
            "may_run": self.has_run_permission(request),
            "now": now,
        }
        return TemplateResponse(request, "admin/config/jobs.html", self.admin_site.each_context(request) | context)

    def has_run_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("analytics.change_jobrun")

    def run_view(self, request: HttpRequest, name: str) -> HttpResponse:
        if not self.has_run_permission(request):
            raise PermissionDenied
        try:
            job = table.named(name)
        except jobs.UnknownJob as error:
            raise Http404(str(error)) from None
        form = ReasonForm(request.POST or None)
        if off := job.off():
            self.message_user(request, f"{job.name} is off: {off}", messages.WARNING)
            return self._back()
        if form.is_valid():
            with transaction.atomic():
                run = jobs.ask(job=job, actor=actor(request), reason=form.cleaned_data["reason"], now=timezone.now())
                self.log_change(request, run, f"Run now: {form.cleaned_data['reason']}")
            tasks.ring(job)
            self.message_user(request, f"A worker runs {job.name} as soon as it is free. This page says how it went.", messages.SUCCESS)
            return self._back()
        says = f"{job.what} It runs beside its schedule ({job.schedule}); what was done already is found done."
        return self._ask(request, f"Run {job.name} now", form, says, "Run it now")

    def again_view(self, request: HttpRequest, run_id: int) -> HttpResponse:
        if not self.has_run_permission(request):
            raise PermissionDenied
        run = JobRun.objects.filter(pk=run_id).exclude(subject="").first()
        if run is None:
            raise Http404
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            with transaction.atomic():
                tried = jobs.again(run=run, now=timezone.now())
                if tried:
                    self.log_change(request, run, f"Try again: {form.cleaned_data['reason']}")
            if tried:
                self.message_user(request, f"{run.job} tries {run.subject} again with its next run.", messages.SUCCESS)
            else:
                self.message_user(request, f"{run.subject} was not given up any more.", messages.WARNING)
            return self._back()
        name = Account.objects.filter(public_id=run.subject).values_list("name", flat=True).first()
        says = f"{run.job} left out {run.subject}{f' ({name})' if name else ''} after {run.attempts} attempts. The last error: {run.error}"
        return self._ask(request, f"Try {run.subject} again", form, says, "Try again")

    def _ask(self, request: HttpRequest, title: str, form: ReasonForm, says: str, button: str) -> HttpResponse:
        context = {"title": title, "opts": self.opts, "form": form, "says": says, "button": button, "harmless": True}
        context["cancel"] = reverse("admin:analytics_jobrun_changelist")
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)

    def _back(self) -> HttpResponse:
        return HttpResponseRedirect(reverse("admin:analytics_jobrun_changelist"))


@admin.register(Group)
class GroupAdmin(acts.Audited, BaseGroupAdmin, ModelAdmin):  # type: ignore[misc]
    """Staff's roles. The program's own are what its table says; whoever needs another makes one."""

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return (obj is None or obj.name not in staff_roles.ROLES) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return (obj is None or obj.name not in staff_roles.ROLES) and super().has_delete_permission(request, obj)


@admin.register(AuditFinding)
class AuditFindingAdmin(ReadOnlyAdmin):
    """What the audit found. A finding closes itself with the first audit that does not see it any more."""

    list_display = ("check_name", "account_id", "text", "first_seen_at", "last_seen_at", "gone_at")
    list_filter = (("gone_at", admin.EmptyFieldListFilter), "check_name")
    search_fields = ("=account_id", "check_name")
    fields = ("check_name", "account_id", "text", "first_seen_at", "last_seen_at", "gone_at")
    show_full_result_count = False
    paginator = CappedPaginator
