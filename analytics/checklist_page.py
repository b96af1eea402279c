"""The checklists, for staff: what holds, what does not and why; what nobody can measure is ticked here, with a note."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.pages import signed_in
from analytics import checklists
from analytics.models import ChecklistTick
from pricing.admin import ReadOnlyAdmin


class TickForm(forms.Form):
    """Why it holds, or does not."""

    note = forms.CharField(max_length=300, widget=UnfoldAdminTextInputWidget(), help_text="Kept with your name, and in the audit log.")


@admin.register(ChecklistTick)
class ChecklistAdmin(ReadOnlyAdmin):
    """Not a list of rows but the lists, each with how its items stand now."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.tick_view)
        return [path("tick/<slug:checklist>/<slug:item>/<str:verb>/", view, name="analytics_checklist_tick"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = timezone.now()
        chosen = checklists.LISTS.get(request.GET.get("list", "")) or next(iter(checklists.LISTS.values()))
        stands = checklists.look(checklist=chosen, now=now)
        context = {
            "title": "Checklists", "opts": self.opts, "chosen": chosen, "lists": checklists.LISTS.values(), "stands": stands,
            "holding": sum(1 for one in stands if one.holds), "open": [one for one in stands if not one.holds],
        }  # fmt: skip
        return TemplateResponse(request, "admin/analytics/checklist.html", self.admin_site.each_context(request) | context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return self.changelist_view(request)

    def tick_view(self, request: HttpRequest, checklist: str, item: str, verb: str) -> HttpResponse:
        """Asks why, and ticks or unticks."""
        if not request.user.has_perm("analytics.add_checklisttick"):
            raise PermissionDenied
        found = checklists.LISTS.get(checklist)
        one = next((one for one in found.items if one.slug == item and not one.check), None) if found else None
        if one is None or verb not in ("done", "open"):
            raise Http404
        back = f"{reverse('admin:analytics_checklisttick_changelist')}?list={checklist}"
        form = TickForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            note = form.cleaned_data["note"]
            checklists.tick(checklist=checklist, item=item, done=verb == "done", note=note, user=signed_in(request), now=timezone.now())
            self.message_user(request, "Noted.", messages.SUCCESS)
            return HttpResponseRedirect(back)
        context = {
            "title": one.says, "opts": self.opts, "form": form, "says": "It holds." if verb == "done" else "It does not hold any more.",
            "button": "Tick" if verb == "done" else "Untick", "cancel": back, "harmless": True,
        }  # fmt: skip
        return TemplateResponse(request, "admin/metering/ask.html", self.admin_site.each_context(request) | context)
