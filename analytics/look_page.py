"""From the account's page into the customer's own: staff chooses whose eyes, says why, and sees what that person sees, for half an hour."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST
from unfold.widgets import UnfoldAdminSelectWidget

from accounts import impersonation
from accounts.admin import ReasonForm
from accounts.models import Account, Membership
from accounts.pages import signed_in


class PersonField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """One of an account's people, with their role."""

    def label_from_instance(self, obj: Any) -> str:
        return f"{obj.user}, {obj.get_role_display().lower()}"


class LookForm(ReasonForm):
    """Whose eyes, and why."""

    member = PersonField(Membership.objects.none(), label="Look as", empty_label=None, widget=UnfoldAdminSelectWidget)
    field_order = ("member", "reason")

    def __init__(self, *args: Any, account: Account, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["member"]
        assert isinstance(field, PersonField)
        field.queryset = account.memberships.filter(user__is_active=True, user__is_staff=False).select_related("user").order_by("id")


def look(request: HttpRequest, account_id: int) -> tuple[Account, LookForm] | HttpResponse:
    """The form that is to be shown, or the way to the customer's page.

    :raises PermissionDenied: who asks may not look. :raises Http404: there is no such account.
    """
    if not request.user.has_perm(impersonation.PERMISSION):
        raise PermissionDenied
    account = Account.objects.select_related("product").filter(pk=account_id).first()
    if account is None:
        raise Http404
    form = LookForm(request.POST or None, account=account)
    if form.is_valid():
        member = form.cleaned_data["member"]
        try:
            impersonation.begin(
                request=request, actor=signed_in(request), member=member, reason=form.cleaned_data["reason"], now=timezone.now()
            )
        except impersonation.Refused as error:
            form.add_error(None, str(error))
        else:
            return redirect("overview", account.public_id)
    return account, form


@require_POST
def end(request: HttpRequest) -> HttpResponse:
    """Back to the account's page for staff."""
    looking = impersonation.of(request)
    impersonation.end(request=request, actor=signed_in(request), why="stopped", now=timezone.now())
    account = Account.objects.filter(public_id=looking.account).first() if looking else None
    messages.success(request, "You look through nobody’s eyes any more.")
    return HttpResponseRedirect(reverse("admin:accounts_account_change", args=[account.pk]) if account else reverse("admin:index"))
