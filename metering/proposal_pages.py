"""The inbox of upstream prices as staff have it: what one person alone may not approve is asked of a second one."""

from __future__ import annotations

from datetime import datetime

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from accounts import approvals
from accounts.pages import signed_in
from metering import price_approvals
from pricing import price_import
from pricing.admin import ApprovalForm, PriceProposalAdmin


class AskingProposalAdmin(PriceProposalAdmin):
    def above_cap(
        self, request: HttpRequest, *, ids: list[int], effective: datetime | None, reason: str, form: ApprovalForm
    ) -> HttpResponse | None:
        try:
            approval = price_approvals.ask(ids=ids, effective=effective, actor=signed_in(request), reason=reason, now=timezone.now())
        except (approvals.ApprovalError, price_import.NotApprovable) as error:
            form.add_error(None, str(error))
            return None
        self.message_user(request, "Nothing is changed yet: somebody else has to approve it within a day.", messages.WARNING)
        return HttpResponseRedirect(reverse("admin:accounts_approval_decide", args=[approval.pk]))
