"""Sign-up by allauth: a new user gets a person account of the product that the address names."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from accounts import registration
from accounts.models import User
from pricing.models import Product

EMAIL_LENGTH = 254


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # allauth has no type hints
    """``/accounts/signup/?product=<slug>``; without the parameter, ``registration.product_for`` decides."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """No: allauth then shows ``account/signup_closed.html``."""
        try:
            _product(request)
        except registration.UnknownProduct:
            return False
        return True

    def clean_email(self, email: str) -> str:
        """allauth would cut a longer address off at the column's length and sign up somebody else's."""
        if len(email) > EMAIL_LENGTH:
            raise ValidationError(f"Write an address of at most {EMAIL_LENGTH} characters.", code="max_length")
        return email

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        product = _product(request)
        with transaction.atomic():
            super().save_user(request, user, form, commit=True)
            registration.open_account(
                product=product,
                external_id=str(user.pk),
                name=_name(user.email),
                owner=user,
                billing_email=user.email,
                now=timezone.now(),
            )
        return user


def _product(request: HttpRequest) -> Product:
    return registration.product_for(slug=request.GET.get("product", ""), host=request.get_host())


def _name(email: str) -> str:
    """What stands before the @; quoted addresses may hold more than a name may."""
    local_part = email.rpartition("@")[0]
    return "".join(filter(str.isprintable, local_part))[:120] or email
