"""The review lists, for staff: what to look at today, this week and this month, and who did."""

from __future__ import annotations

from typing import Any, Final

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from accounts import acts
from accounts.admin import actor
from accounts.models import User
from analytics import reviews
from analytics.models import Review

NEWEST: Final = 20


class ReviewForm(forms.Form):
    note = forms.CharField(max_length=500, required=False)


def review_view(request: HttpRequest) -> HttpResponse:
    """All lists; a POST says that one point was gone through."""
    if not request.user.has_perm("analytics.view_review"):
        raise PermissionDenied
    now = timezone.now()
    if request.method == "POST":
        if not request.user.has_perm("analytics.add_review"):
            raise PermissionDenied
        return _record(request)
    lists = [(title, reviews.read(of=of, now=now)) for of, title in reviews.LISTS.items()]
    context: dict[str, Any] = {
        "title": "Reviews", "now": now, "lists": lists, "newest": Review.objects.all()[:NEWEST],
        "waiting": sum(point.review is None for (_, points) in lists[:3] for point in points),
    }  # fmt: skip
    return TemplateResponse(request, "admin/analytics/reviews.html", admin.site.each_context(request) | context)


def _record(request: HttpRequest) -> HttpResponse:
    item = next((one for one in reviews.ITEMS if one.slug == request.POST.get("item")), None)
    if item is None:
        raise Http404("There is no such point.")
    form = ReviewForm(request.POST)
    if not form.is_valid():
        messages.error(request, f"Not noted: {form.errors['note'][0]}")
    else:
        now, note = timezone.now(), form.cleaned_data["note"]
        assert isinstance(request.user, User)
        with transaction.atomic():
            review = reviews.record(item=item, note=note, actor=actor(request), now=now)
            acts.note(actor=request.user, what=f"Went through: {item.title}", now=now, subject=review, reason=note)
        messages.success(request, f"Noted: {item.title}, by {review.reviewed_by}.")
    return HttpResponseRedirect(reverse("admin:analytics_reviews"))
