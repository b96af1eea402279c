"""Sign-up by allauth: a new user gets a person account of the product that the address names, or joins the team that invited them."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core.exceptions import ImmediateHttpResponse
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest
from django.shortcuts import redirect
from django.utils import timezone

from accounts import acts, members, registration, sign_up
from accounts.models import AuditEvent, User
from pricing.models import Product

EMAIL_LENGTH = 254


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # allauth has no type hints
    """``/accounts/signup/?product=<slug>``; without the parameter, ``registration.product_for`` decides.

    ``?invitation=<token>`` is an invitation's link: who signs up by it, with the address that it was sent to, has shown that the address is
    theirs, belongs to the team at once, and gets no account of their own.
    """

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """No: allauth then shows ``account/signup_closed.html``."""
        if sign_up.invitation(request):
            return True
        try:
            _product(request)
        except registration.UnknownProduct:
            return False
        return True

    def post_login(self, request: HttpRequest, user: User, **kwargs: Any) -> Any:
        """Staff's log-ins are in the audit log; a superuser's is for emergencies, and staff is alerted of it."""
        if user.is_staff:
            what = "Signed in as superuser" if user.is_superuser else "Signed in"
            acts.note(actor=user, subject=user, what=what, kind=AuditEvent.Kind.SIGNED_IN, now=timezone.now())
        return super().post_login(request, user, **kwargs)

    def clean_email(self, email: str) -> str:
        """allauth would cut a longer address off at the column's length and sign up somebody else's."""
        if len(email) > EMAIL_LENGTH:
            raise ValidationError(f"Write an address of at most {EMAIL_LENGTH} characters.", code="max_length")
        return email

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        token = sign_up.invitation(request)
        product = None if token else _product(request)
        with transaction.atomic():
            super().save_user(request, user, form, commit=True)
            if product is None:
                self._join(request, user, token)
            else:
                registration.open_account(
                    product=product,
                    external_id=str(user.pk),
                    name=_name(user.email),
                    owner=user,
                    billing_email=user.email,
                    now=timezone.now(),
                )
        return user

    def _join(self, request: HttpRequest, user: User, token: str) -> None:
        """:raises ImmediateHttpResponse: the invitation has ended since the form was checked; nobody signed up. Its page says why."""
        try:
            members.accept(token=token, user=user, now=timezone.now(), proven=True)
        except members.NoInvitation as error:
            raise ImmediateHttpResponse(redirect("invitation", token)) from error
        self.stash_verified_email(request, user.email)


def _product(request: HttpRequest) -> Product:
    return registration.product_for(slug=request.GET.get("product", ""), host=request.get_host())


def _name(email: str) -> str:
    """What stands before the @; quoted addresses may hold more than a name may."""
    local_part = email.rpartition("@")[0]
    return "".join(filter(str.isprintable, local_part))[:120] or email
