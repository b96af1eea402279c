"""What customers do to their accounts leaves a line in the audit log beside staff's acts: who, when, and what."""

from __future__ import annotations

from datetime import datetime

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType

from accounts.models import Account, User


def note(*, account: Account, actor: User, what: str, now: datetime) -> None:
    """Within the transaction of the act, so that there is neither an act without its line nor a line without its act."""
    LogEntry.objects.create(
        user=actor,
        content_type=ContentType.objects.get_for_model(Account),
        object_id=str(account.pk),
        object_repr=str(account)[:200],
        action_flag=CHANGE,
        change_message=what,
        action_time=now,
    )
