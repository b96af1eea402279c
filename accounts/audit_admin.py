"""The audit log, for staff: searched, filtered, read line by line, taken away as CSV. Who may not see all of it sees their own acts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts import exports
from accounts.models import AuditEvent, User
from pricing.admin import CappedPaginator, ReadOnlyAdmin

#: What an address may filter by, beside the columns.
FILTERS = ("user__id__exact", "audit__account__id__exact", "audit__impersonator__id__exact", "audit__request_id", "object_id")
HEADINGS = ("when", "who", "through whose eyes", "kind", "what of", "which", "account", "what", "reason", "before", "after", "request")


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnlyAdmin):
    """Append-only: the database refuses anything else, whoever asks."""

    list_display = ("action_time", "who", "kind", "about", "object_repr", "account_", "message")
    list_filter = ("audit__kind", "content_type")
    search_fields = ("object_repr", "change_message", "audit__reason", "user__email", "=audit__account__public_id", "=audit__request_id")
    search_help_text = "A word of what was done or why, somebody's address, an account's id, or a request's."
    list_select_related = ("user", "content_type", "audit__account__product", "audit__impersonator")
    ordering = ("-pk",)
    sortable_by = ()
    show_full_result_count = False
    paginator = CappedPaginator
    fields = ("action_time", "who", "kind", "about", "object_repr", "account_", "message", "reason", "changed", "request_")
    list_before_template = "admin/accounts/audit_export.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[LogEntry]:
        found: QuerySet[LogEntry] = super().get_queryset(request)
        if request.user.has_perm("accounts.view_auditevent"):
            return found
        person = cast(User, request.user)
        return found.filter(Q(user=person) | Q(audit__impersonator=person))

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup in FILTERS or super().lookup_allowed(lookup, value, request)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return _elsewhere(request) or super().changelist_view(request, extra_context)

    @display(description="Who")
    def who(self, entry: LogEntry) -> SafeString | str:
        event = _event(entry)
        through = format_html(" through the eyes of {}", entry.user) if event and event.impersonator else ""
        person = event.impersonator if event and event.impersonator else entry.user
        field = "audit__impersonator" if through else "user"
        return format_html('<a class="tg-link" href="?{}__id__exact={}">{}</a>{}', field, person.pk, person, through)

    @display(description="Kind")
    def kind(self, entry: LogEntry) -> str:
        event = _event(entry)
        return event.get_kind_display() if event else entry.get_action_flag_display().lower()

    @display(description="Of", empty_value="–")
    def about(self, entry: LogEntry) -> str | None:
        return entry.content_type.name if entry.content_type else None

    @display(description="Account", empty_value="–")
    def account_(self, entry: LogEntry) -> SafeString | None:
        event = _event(entry)
        if event is None or event.account is None:
            return None
        return format_html('<a class="tg-link" href="?audit__account__id__exact={}">{}</a>', event.account_id, event.account)

    @display(description="What")
    def message(self, entry: LogEntry) -> str:
        return entry.get_change_message() or entry.get_action_flag_display()

    @display(description="Reason", empty_value="–")
    def reason(self, entry: LogEntry) -> str | None:
        event = _event(entry)
        return (event.reason if event else "") or None

    @display(description="Before and after", empty_value="–")
    def changed(self, entry: LogEntry) -> SafeString | None:
        rows = _changed(_event(entry))
        return render_to_string("admin/accounts/audit_changes.html", {"rows": rows}) if rows else None

    @display(description="Request", empty_value="–")
    def request_(self, entry: LogEntry) -> SafeString | None:
        event = _event(entry)
        if event is None or not event.request_id:
            return None
        return format_html(
            '<a class="tg-link" href="{}?audit__request_id={}"><code>{}</code></a>', _list(), event.request_id, event.request_id
        )

    # The file -----------------------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        return [path("export/", self.admin_site.admin_view(self.export_view), name="admin_logentry_export"), *super().get_urls()]

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """What the list shows with the same address, the latest ``exports.MAX_ROWS`` lines of it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if elsewhere := _elsewhere(request):
            return elsewhere
        try:
            found = self.get_changelist_instance(request).queryset
        except IncorrectLookupParameters:
            return HttpResponseRedirect(_list())
        whole = not found.values("pk")[exports.MAX_ROWS :].exists()
        name = f"audit-log{'' if whole else f'_latest-{exports.MAX_ROWS}-rows'}.csv"
        return exports.download(_file(found), name=name)


def _file(found: QuerySet[LogEntry]) -> Iterator[Sequence[exports.Cell]]:
    yield HEADINGS
    for entry in found[: exports.MAX_ROWS].iterator(chunk_size=2_000):
        event = _event(entry)
        rows = _changed(event)
        yield (
            entry.action_time, str(event.impersonator if event and event.impersonator else entry.user),
            str(entry.user) if event and event.impersonator else None, event.kind if event else None,
            entry.content_type.name if entry.content_type else None, entry.object_repr,
            event.account.public_id if event and event.account else None, entry.get_change_message(), event.reason if event else None,
            "; ".join(f"{name}: {before}" for name, before, _ in rows), "; ".join(f"{name}: {after}" for name, _, after in rows),
            event.request_id if event else None,
        )  # fmt: skip


def _event(entry: LogEntry) -> AuditEvent | None:
    """A line's particulars; None for one that is older than they are."""
    event: AuditEvent | None = getattr(entry, "audit", None)
    return event


def _changed(event: AuditEvent | None) -> list[tuple[str, Any, Any]]:
    if event is None:
        return []
    names = dict.fromkeys([*event.before, *event.after])
    return [(name, event.before.get(name, ""), event.after.get(name, "")) for name in names]


def _elsewhere(request: HttpRequest) -> HttpResponse | None:
    """Back to the whole list, from an address with what no line can hold."""
    return HttpResponseRedirect(_list()) if any("\0" in value for value in request.GET.values()) else None


def _list() -> str:
    return reverse("admin:admin_logentry_changelist")
