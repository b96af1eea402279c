"""What every page of admin says about kill switches."""

from __future__ import annotations

from typing import Any

from django import template
from django.template.context import Context
from django.utils import timezone

from accounts.models import Approval
from metering import kill_switches

register = template.Library()


@register.inclusion_tag("admin/metering/banner.html", takes_context=True)
def switch_banner(context: Context) -> dict[str, Any]:
    """Every switch in force, and how many acts wait for a second person: for staff who are signed in, each by their right to see it."""
    user, now = getattr(context.get("request"), "user", None), timezone.now()
    if user is None or not (user.is_active and user.is_staff):
        return {}
    waiting = 0
    if user.has_perm("accounts.view_approval"):
        waiting = Approval.objects.filter(state=Approval.State.PENDING, expires_at__gt=now).count()
    return {"switches": kill_switches.all_in_force(now=now), "waiting": waiting, "perms": context.get("perms"), "now": now}
