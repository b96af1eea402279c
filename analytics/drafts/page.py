"""Replays under a draft, for staff: asked for, watched, read, taken away as a file, and activated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import timedelta
from fractions import Fraction
from typing import Any, Final

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.decorators import display

from accounts import approvals, doorbell, exports
from accounts.admin import actor
from accounts.models import Account
from accounts.pages import signed_in
from analytics import tasks
from analytics.drafts import replays
from analytics.drafts.forms import TERMS, ActivateForm, AskForm, last_month
from analytics.drafts.reading import NANOS_PER_CENT
from analytics.drafts.worlds import Figures
from analytics.models import DraftReplay, DraftReplayAccount
from analytics.templatetags.margins import DOLLAR
from metering import margin_approvals
from metering.forms import ISO_MINUTE
from pricing import catalog_file
from pricing.admin import ReadOnlyAdmin
from pricing.models import Product

#: So many accounts are shown of each list; all of them are in the file.
SHOWN: Final = 25
#: While it is worked, the page asks again after so many seconds.
REFRESH_SECONDS: Final = 2
#: What each figure is called, and its unit: list value and cost in USD, cash in cents, credits in the product's unit, or a number.
FIGURES: Final = (
    ("records", "Uses", "number"),
    ("value", "Charged, at list value", "dollars"),
    ("price", "Charged, in credits", "unit"),
    ("cost", "Cost upstream", "dollars"),
    ("plan_cents", "Plans", "cents"),
    ("pack_cents", "Packs", "cents"),
    ("top_ups", "Automatic top-ups", "number"),
    ("top_up_cents", "Paid by top-ups", "cents"),
    ("breakage", "Credits that expired unused", "unit"),
    ("debt", "Owed at the end", "unit"),
)
#: What a replay takes for granted. Whoever reads its figures reads these.
ASSUMPTIONS: Final = (
    "Nobody uses more or less because of a price, nobody leaves, and nobody buys more packs than they did, but by their top-up rule.",
    "What was refused at the time is in no record: a looser limit shows no further usage.",
    "What the draft refuses is not done: it costs nothing, and is not done later or on another model.",
    "Limits that refuse count (hard ones, and shadow ones that the product enforces). Open work, concurrency, kill switches, stops and "
    "limits that staff lifted are not replayed; a request is as large as what it used.",
    "Everybody on a plan gets its draft terms from the first day; agreed terms of single customers stay. A subscription counts with the "
    "plan version and the seats that it has now.",
    "What the draft does not change stays as it was when the work was done, also where the catalog changed in the middle of the period.",
    "Credits arrived when they did; a changed pack is bought as often as it was, and top-up rules are those of today.",
)


class DraftReplayAdmin(ReadOnlyAdmin):
    """Each replay is a page of its own: its progress, then its result."""

    list_display = ("name", "product", "period", "state_", "outcome", "asked_by", "asked_at")
    list_filter = ("product", "state")
    list_select_related = ("product",)
    search_fields = ("name",)
    list_before_template = "admin/analytics/draft_links.html"

    @display(description="Period")
    def period(self, replay: DraftReplay) -> str:
        return f"{replay.since:%Y-%m-%d} to {replay.until - timedelta(seconds=1):%Y-%m-%d}"

    @display(
        description="State",
        label={"done": "success", "running": "info", "waiting": "info", "failed": "danger", "cancelled": "warning", "activated": "success"},
    )
    def state_(self, replay: DraftReplay) -> str:
        return "activated" if replay.applied_id else str(replay.state)

    @display(description="Margin", empty_value="–")
    def outcome(self, replay: DraftReplay) -> str | None:
        if replay.state != DraftReplay.State.DONE:
            return f"{replay.percent} %" if replay.state == DraftReplay.State.RUNNING else None
        return f"{margin_percent(replay.summary['old'])} → {margin_percent(replay.summary['new'])}"

    def get_urls(self) -> list[URLPattern]:
        ours: list[tuple[str, str, Callable[..., Any]]] = [
            ("new/", "new", self.new_view), ("<int:pk>/file/", "file", self.file_view), ("<int:pk>/draft/", "draft", self.draft_view),
            ("<int:pk>/cancel/", "cancel", self.cancel_view), ("<int:pk>/again/", "again", self.again_view),
            ("<int:pk>/activate/", "activate", self.activate_view),
        ]  # fmt: skip
        return [
            *(path(route, self.admin_site.admin_view(view), name=f"analytics_draftreplay_{name}") for route, name, view in ours),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        products = Product.objects.order_by("name")
        return super().changelist_view(request, (extra_context or {}) | {"products": products})  # type: ignore[no-any-return]

    def new_view(self, request: HttpRequest) -> HttpResponse:
        """Asks for a period and a draft; nothing is charged or changed by a replay."""
        if not request.user.has_perm("analytics.add_draftreplay"):
            raise PermissionDenied
        product = Product.objects.select_related("unit").filter(slug=request.GET.get("product", "")).first()
        current = catalog_file.current(slug=product.slug) if product else None
        if product is None or current is None:
            raise Http404
        now = timezone.now()
        begins, ends = last_month(now)
        initial = {"since": begins.date(), "last_day": (ends - timedelta(days=1)).date()}
        form = AskForm(request.POST or None, request.FILES or None, initial=initial, product=product, current=current)
        if form.is_valid():
            said = form.cleaned_data
            try:
                with transaction.atomic():
                    replay = replays.ask(
                        product=product, document=form.document, name=said["name"], since=said["begins"], until=said["ends"],
                        actor=actor(request), now=now,
                    )  # fmt: skip
                    self.log_addition(request, replay, f"Asked for: {replay.changes[:300] or 'the catalog as it is'}")
                    transaction.on_commit(lambda: doorbell.ring(tasks.replay_drafts))
            except replays.InvalidDraft as error:
                form.add_error(None, str(error))
            else:
                return HttpResponseRedirect(reverse("admin:analytics_draftreplay_change", args=[replay.pk]))
        context = {"title": f"Replay {product} under a draft", "opts": self.opts, "form": form, "product": product, "terms": TERMS}
        return self._page(request, "draft_new", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """How far it is; once it is done, what it found."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        replay = self._replay(object_id)
        context: dict[str, Any] = {
            "title": replay.name, "opts": self.opts, "replay": replay, "lines": replay.changes.splitlines(), "assumptions": ASSUMPTIONS,
            "last_day": replay.until - timedelta(seconds=1), "now": timezone.now(), "dollar": DOLLAR, "unit": replay.product.unit,
            "may_change": request.user.has_perm("analytics.change_draftreplay"),
            "may_activate": request.user.has_perm("pricing.add_catalogchange"),
        }  # fmt: skip
        if replay.state == DraftReplay.State.DONE:
            context |= result(replay)
        response = self._page(request, "draft_result", context)
        if replay.state in (DraftReplay.State.WAITING, DraftReplay.State.RUNNING):
            response["Refresh"] = str(REFRESH_SECONDS)
        return response

    def file_view(self, request: HttpRequest, pk: int) -> StreamingHttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        replay = self._replay(pk)
        if replay.state != DraftReplay.State.DONE:
            raise Http404
        return exports.download(_cells(replay), name=f"replay-{replay.pk}.csv")

    def draft_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The draft as a catalog file."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        replay = self._replay(pk)
        headers = {"Content-Disposition": f'attachment; filename="{replay.product.slug}.toml"', "X-Content-Type-Options": "nosniff"}
        return HttpResponse(replays.file_of(replay), content_type="application/toml; charset=utf-8", headers=headers)

    def cancel_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self._act(
            request,
            pk,
            lambda replay: replays.cancel(replay=replay, actor=actor(request), now=timezone.now()),
            "Cancelled.",
            "It was over already.",
        )

    def again_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self._act(request, pk, lambda replay: replays.again(replay=replay), "It begins anew.", "It is not over, or was done.")

    def _act(self, request: HttpRequest, pk: int, act: Callable[[DraftReplay], bool], done: str, late: str) -> HttpResponse:
        if not request.user.has_perm("analytics.change_draftreplay"):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        replay = self._replay(pk)
        with transaction.atomic():
            changed = act(replay)
            if changed:
                self.log_change(request, replay, done)
                transaction.on_commit(lambda: doorbell.ring(tasks.replay_drafts))
        self.message_user(request, done if changed else late, messages.SUCCESS if changed else messages.WARNING)
        return HttpResponseRedirect(reverse("admin:analytics_draftreplay_change", args=[pk]))

    def activate_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Shows what the catalog would become, and makes it so from a time ahead once that was confirmed."""
        if not request.user.has_perm("pricing.add_catalogchange"):
            raise PermissionDenied
        replay, now = self._replay(pk), timezone.now()
        if replay.state != DraftReplay.State.DONE or replay.applied_id:
            raise Http404
        back = reverse("admin:analytics_draftreplay_change", args=[pk])
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        form = ActivateForm(request.POST or None, initial={"effective": tomorrow.strftime(ISO_MINUTE)})
        if form.is_valid() and "confirm" in request.POST:
            said = form.cleaned_data
            try:
                with transaction.atomic():
                    lines = replays.activate(replay=replay, effective=said["effective"], actor=actor(request), now=now)
                    self.log_change(
                        request,
                        replay,
                        f"Activated from {said['effective']:%Y-%m-%d %H:%M} UTC: {'; '.join(lines)[:500]}. {said['reason']}",
                    )
            except catalog_file.BelowFloor:
                try:
                    approval = margin_approvals.ask_file(
                        document=replay.document, effective=said["effective"], actor=signed_in(request), reason=said["reason"], now=now
                    )
                except approvals.ApprovalError as error:
                    form.add_error(None, str(error))
                else:
                    self.message_user(request, "Nothing is changed yet: somebody else has to approve it within a day.", messages.WARNING)
                    return HttpResponseRedirect(reverse("admin:accounts_approval_decide", args=[approval.pk]))
            except (replays.InvalidDraft, catalog_file.InvalidCatalog) as error:
                form.add_error(None, str(error))
            else:
                self.message_user(request, f"The draft counts from {said['effective']:%Y-%m-%d %H:%M} UTC on.", messages.SUCCESS)
                return HttpResponseRedirect(back)
        context = {
            "title": f"Activate: {replay.name}", "opts": self.opts, "replay": replay, "form": form, "cancel": back,
            "lines": replays.preview(replay=replay), "below": replays.below_floor(replay=replay, at=now),
            "confirm": form.is_bound and form.is_valid() and "edit" not in request.POST,
        }  # fmt: skip
        return self._page(request, "draft_activate", context)

    def _replay(self, pk: str | int) -> DraftReplay:
        if not str(pk).isascii() or not str(pk).isdigit() or len(str(pk)) > 18:
            raise Http404
        replay = DraftReplay.objects.select_related("product__unit", "applied").filter(pk=int(pk)).first()
        if replay is None:
            raise Http404
        return replay

    def _page(self, request: HttpRequest, name: str, context: dict[str, Any]) -> TemplateResponse:
        return TemplateResponse(request, f"admin/analytics/{name}.html", self.admin_site.each_context(request) | context)


def result(replay: DraftReplay) -> dict[str, Any]:
    """What the page says of a replay that is done."""
    said = replay.summary
    old, new = said["old"], said["new"]
    rows = replay.accounts.select_related("account")
    changed = rows.exclude(change_nanos=0)
    return {
        "said": said,
        "same": not said["changed"],
        "pays": _pays(new) - _pays(old),
        "pays_old": _pays(old),
        "pays_new": _pays(new),
        "margin_old": margin_percent(old),
        "margin_new": margin_percent(new),
        "figures": [(label, kind, old[name], new[name], new[name] - old[name]) for name, label, kind in FIGURES if old[name] or new[name]],
        "earned": (_margin(old), _margin(new), _margin(new) - _margin(old)),
        "layers": sorted(said["layers"].items(), key=lambda item: -item[1]),
        "losers": changed.filter(change_nanos__gt=0).order_by("-change_nanos", "account_id")[:SHOWN],
        "winners": changed.filter(change_nanos__lt=0).order_by("change_nanos", "account_id")[:SHOWN],
        "refused": rows.filter(refused_count__gt=0).order_by("-refused_count", "account_id")[:SHOWN],
        "wrong": _named(said["wrong"]),
        "shown": SHOWN,
    }


def _named(wrong: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict(Account.objects.filter(pk__in=[each["account"] for each in wrong]).values_list("pk", "public_id"))
    return [each | {"account": names.get(each["account"], each["account"])} for each in wrong]


def margin_percent(figures: dict[str, int]) -> str:
    """Of list value, to a tenth; a dash where nothing was charged."""
    if not figures["value"]:
        return "–"
    share = round(Fraction(_margin(figures) * 1000, figures["value"]))
    sign = "\N{MINUS SIGN}" if share < 0 else ""
    return f"{sign}{abs(share) // 10}.{abs(share) % 10} %"


def _margin(figures: dict[str, int]) -> int:
    return figures["value"] - figures["cost"]


def _pays(figures: dict[str, int]) -> int:
    return figures["value"] + figures["plan_cents"] * NANOS_PER_CENT


def _cells(replay: DraftReplay) -> Iterator[Sequence[exports.Cell]]:
    names = [each.name for each in fields(Figures)]
    yield (
        "account", "name", "pays_more_usd", "refused", "first_refused_at", "refused_by",
        *(f"{name.replace('cents', 'paid')}_{side}" for name in names for side in ("old", "new")),
    )  # fmt: skip
    rows: Iterator[DraftReplayAccount] = replay.accounts.select_related("account").order_by("-change_nanos", "account_id").iterator(1_000)
    for row in rows:
        yield (
            row.account.public_id, row.account.name, exports.Nanos(row.change_nanos), row.refused_count, row.first_refused_at,
            "; ".join(f"{layer} {said['count']}× {said['first']} to {said['last']}" for layer, said in row.refused.items()),
            *(_cell(name, side[name]) for name in names for side in (row.old, row.new)),
        )  # fmt: skip


def _cell(name: str, value: int) -> exports.Cell:
    if name.endswith("cents"):
        return exports.Nanos(value * NANOS_PER_CENT)
    return value if name in ("records", "top_ups") else exports.Nanos(value)
