"""The sign-up form, which knows invitations: ``/accounts/signup/?invitation=<token>``."""

from __future__ import annotations

from typing import Any

from allauth.account.forms import SignupForm
from allauth.core import context
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils import timezone

from accounts import members


class SignUpForm(SignupForm):  # type: ignore[misc]  # allauth has no type hints
    """allauth's own. By an invitation only the address that it was sent to signs up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if token := invitation(context.request):
            try:
                self.fields["email"].initial = members.read(token=token, now=timezone.now()).email
            except members.NoInvitation:
                return  # said when the form is sent

    def clean_email(self) -> str:
        email: str = super().clean_email()
        if token := invitation(context.request):
            try:
                invited = members.read(token=token, now=timezone.now()).email
            except members.NoInvitation as error:
                raise ValidationError(str(error), code="invitation") from error
            if email != invited:
                raise ValidationError(f"This invitation is for {invited}.", code="invitation")
        return email


def invitation(request: HttpRequest) -> str:
    """The token of the invitation that a sign-up comes by, empty where it comes by none."""
    return str(request.GET.get("invitation", ""))
