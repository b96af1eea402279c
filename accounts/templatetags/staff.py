"""What admin's first page says about its own door."""

from __future__ import annotations

from django import template
from django.conf import settings
from django.template.context import Context
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()


@register.simple_tag(takes_context=True)
def staff_note(context: Context) -> SafeString | str:
    """That staff's second factor is off here."""
    request = context.get("request")
    if settings.STAFF_MFA_REQUIRED or request is None or request.path != reverse("admin:index"):
        return ""
    return format_html('<p class="tg-note">{}</p>', "Staff’s second factor is off here (STAFF_MFA_REQUIRED): a password is enough.")
