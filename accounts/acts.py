"""The audit log: one line for each act of staff, and for what customers do to their accounts.

    note      writes a line, in the transaction of the act: neither an act without its line nor a line without its act
    Audited   the same for pages of admin that save a model: what changed, from what to what
    forget    takes a person's address out of every line
    remember  middleware: lines know the request they come from, and who looks through whose eyes

A line is a row of Django's own log (who, when, what), which admin's pages write by themselves, and an :class:`AuditEvent` beside it (why,
before and after, from where), which this module adds to each of them. Nobody changes or deletes either: triggers refuse it
(``accounts/sql/acts.sql``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import FieldDoesNotExist
from django.db import connection
from django.db.models import Model, QuerySet
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse

from accounts.models import Account, AuditEvent, User

Kind = AuditEvent.Kind
#: So much of a value is kept.
MAX_VALUE = 500
#: What is never written down, not even in part.
_SECRET = ("password", "secret", "token", "digest", "recovery")
_KINDS = {ADDITION: Kind.ADDED, CHANGE: Kind.CHANGED, DELETION: Kind.DELETED}
_FLAGS = {Kind.ADDED: ADDITION, Kind.ASKED: ADDITION, Kind.DELETED: DELETION}


@dataclass(frozen=True, slots=True)
class _Particulars:
    """What the next line says beside Django's own."""

    kind: str | None = None
    account_id: int | None = None
    reason: str = ""
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


_request: ContextVar[HttpRequest | None] = ContextVar("request", default=None)
_about: ContextVar[_Particulars | None] = ContextVar("about", default=None)


def note(
    *, actor: User, what: str, now: datetime, account: Account | None = None, subject: Model | None = None, kind: str = Kind.CHANGED,
    reason: str = "", before: Mapping[str, Any] | None = None, after: Mapping[str, Any] | None = None,
) -> LogEntry:  # fmt: skip
    """Writes that ``actor`` did ``what`` to ``subject`` (left out: to ``account``), within the caller's transaction."""
    about = subject or account
    particulars = _Particulars(kind, account.pk if account else None, reason, before or {}, after or {})
    with _particularly(particulars):
        return LogEntry.objects.create(
            user=actor,
            content_type=ContentType.objects.get_for_model(about) if about else None,
            object_id=str(about.pk) if about else None,
            object_repr=str(about or what)[:200],
            action_flag=_FLAGS.get(Kind(kind), CHANGE),
            change_message=what,
            action_time=now,
        )


def forget(*, address: str, forgotten: str) -> None:
    """``forgotten`` (``forgotten-`` and the person's id) stands for ``address`` in every line, within the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute("select audit_forget(%s, %s)", [address, forgotten])


def remember(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware, behind the one that finds out who is signed in."""

    def middleware(request: HttpRequest) -> HttpResponse:
        token = _request.set(request)
        try:
            return get_response(request)
        finally:
            _request.reset(token)

    return middleware


def present() -> tuple[User, HttpRequest] | None:
    """Who acts in the present request, and the request; None where there is none, or nobody is signed in."""
    request = _request.get()
    user = getattr(request, "user", None)
    return (user, request) if request is not None and isinstance(user, User) else None


class Audited:
    """For a ``ModelAdmin`` that adds, changes or deletes: its lines say from what to what."""

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        request.audited = changes(form, formsets or ())  # type: ignore[attr-defined]
        return super().construct_change_message(request, form, formsets, add)  # type: ignore[misc]

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        with _particularly(_of(request, Kind.ADDED)):
            return super().log_addition(request, obj, message)  # type: ignore[misc]

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        with _particularly(_of(request, Kind.CHANGED)):
            return super().log_change(request, obj, message)  # type: ignore[misc]


def changes(form: Any, formsets: Any) -> tuple[dict[str, str], dict[str, str]]:
    """What was sent, before and after, as people read it; of rows below the form as well. Secrets are left out."""
    before, after = _of_form(form, "")
    for formset in formsets:
        for row in formset.forms:
            if row.instance.pk is None or not row.has_changed():
                continue
            name = f"{formset.model._meta.verbose_name} {row.instance}: "
            if row in getattr(formset, "deleted_forms", ()):
                before[name.removesuffix(": ")] = "there"
                after[name.removesuffix(": ")] = "deleted"
                continue
            old, new = _of_form(row, name)
            before, after = before | old, after | new
    return before, after


def _of_form(form: Any, prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    before, after = {}, {}
    for name in form.changed_data:
        hidden = any(word in name.lower() for word in _SECRET)
        old, new = form.initial.get(name), form.cleaned_data.get(name)
        before[prefix + name] = "•••" if hidden else _shown(_read(form, name, old))
        after[prefix + name] = "•••" if hidden else _shown(new)
    return before, after


def _read(form: Any, name: str, value: Any) -> Any:
    """The row behind a key."""
    queryset = getattr(form.fields.get(name), "queryset", None)
    if value is None or queryset is None or isinstance(value, Model | list | QuerySet):
        return value
    return queryset.model._base_manager.filter(pk=value).first() or value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple | set | QuerySet):
        return ", ".join(sorted(map(str, value)))[:MAX_VALUE]
    return str(value)[:MAX_VALUE]


def _of(request: HttpRequest, kind: str) -> _Particulars:
    before, after = getattr(request, "audited", ({}, {}))
    return _Particulars(kind, before=before, after=after)


@contextmanager
def _particularly(about: _Particulars) -> Iterator[None]:
    token = _about.set(about)
    try:
        yield
    finally:
        _about.reset(token)


@receiver(post_save, sender=LogEntry, dispatch_uid="audit")
def _complete(instance: LogEntry, created: bool, raw: bool, **kwargs: Any) -> None:
    """Each new line of Django's log gets its particulars."""
    if not created or raw:
        return
    about, request = _about.get() or _Particulars(), _request.get()
    AuditEvent.objects.create(
        entry=instance,
        kind=about.kind or _KINDS[instance.action_flag],
        account_id=about.account_id or _account_of(instance),
        impersonator=getattr(request, "impersonator", None),
        reason=about.reason,
        before=dict(about.before),
        after=dict(about.after),
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", ""))[:64],
    )


def _account_of(entry: LogEntry) -> int | None:
    """Whose the changed row is, where it is one account's."""
    model = entry.content_type.model_class() if entry.content_type else None
    if model is None or entry.object_id is None:
        return None
    if model is Account:
        return int(entry.object_id)
    try:
        field = model._meta.get_field("account")
    except FieldDoesNotExist:
        return None
    if field.related_model is not Account:
        return None
    found: int | None = model._base_manager.filter(pk=entry.object_id).values_list("account_id", flat=True).first()
    return found
