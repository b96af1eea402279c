"""Throttled accounts and levers, for staff: who is stopped or nearly so, and what to do about one, about all, or about the limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts import approvals
from accounts.admin import actor
from accounts.pages import signed_in
from metering import levers, margin_approvals, throttles
from metering.forms import (
    CostLimitsForm,
    CostTierForm,
    LeverForm,
    LiftForm,
    PackForm,
    PlanForm,
    PriceBackForm,
    PromoteForm,
    RateCardForm,
    RequestSizeForm,
    ThrottlingForm,
    UndoForm,
)
from metering.levers import Change
from pricing.admin import ReadOnlyAdmin
from pricing.margin_lint import Finding
from pricing.models import Lever, Product, Unit

#: So many accounts are shown of each list; how many there are is said.
SHOWN: Final = 200
SAMPLE: Final = 20
DOLLAR: Final = Unit(code="USD", name="US dollar", decimals=2)
#: Each lever's form, and what it does in a sentence.
FORMS: Final[dict[str, tuple[type[LeverForm], str]]] = {
    Lever.Kind.COST_LIMITS: (CostLimitsForm, "Every daily and monthly limit on cost, up or down by a share."),
    Lever.Kind.COST_TIER: (CostTierForm, "The limits of one cost tier."),
    Lever.Kind.THROTTLING: (ThrottlingForm, "Whether reaching a limit on cost stops work, for every tier."),
    Lever.Kind.REQUEST_SIZE: (RequestSizeForm, "The most tokens of one request, on every plan of a product."),
    Lever.Kind.PRICE_BACK: (PriceBackForm, "Plans, packs and rate cards back to the price before. Past charges stay."),
    Lever.Kind.PACK: (PackForm, "The price or the credit of one pack, for who buys it from now on."),
    Lever.Kind.PLAN: (PlanForm, "The price, the included credit or the rate card of one plan, from now on."),
    Lever.Kind.RATE_CARD: (RateCardForm, "The markup or a multiplier of one rate card, for use from now on."),
    Lever.Kind.PROMOTE: (PromoteForm, "A limit that only watches (shadow) refuses from now on, on every plan or tier."),
}


class CostThrottleAdmin(ReadOnlyAdmin):
    """Not a list of rows but who is throttled now, and who soon will be."""

    def get_urls(self) -> list[URLPattern]:
        return [path("lift/", self.admin_site.admin_view(self.lift_view), name="metering_costthrottle_lift"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        now, products = timezone.now(), list(Product.objects.order_by("name"))
        product = next((one for one in products if str(one.pk) == request.GET.get("product")), None)
        throttled, at_risk = throttles.everybody(now=now, product=product), throttles.at_risk(now=now, product=product)
        share = throttles.share(now=now, product=product)
        shown = [one.account for one in throttled[:SHOWN]] + [one.account for one in at_risk[:SHOWN]]
        emails = throttles.addresses(shown)
        context = {
            "title": "Throttled accounts", "opts": self.opts, "now": now, "dollar": DOLLAR, "products": products, "product": product,
            "share": share, "percent": f"{share.ppm // 10_000}.{share.ppm % 10_000 // 1_000}", "shown": SHOWN,
            "throttled": [(one, emails[one.account.pk]) for one in throttled[:SHOWN]], "throttled_count": len(throttled),
            "at_risk": [(one, emails[one.account.pk]) for one in at_risk[:SHOWN]], "at_risk_count": len(at_risk),
        }  # fmt: skip
        return TemplateResponse(request, "admin/metering/throttled.html", self.admin_site.each_context(request) | context)

    def lift_view(self, request: HttpRequest) -> HttpResponse:
        """Lets everybody work again who is throttled, once that was seen and confirmed."""
        if not request.user.has_perm("metering.change_throttle"):
            raise PermissionDenied
        now, back = timezone.now(), reverse("admin:metering_costthrottle_changelist")
        form = LiftForm(request.POST or None, initial={"product": request.GET.get("product", "")[:20]})
        found: list[throttles.Throttled] = []
        preview = form.is_valid() and "edit" not in request.POST
        if form.is_valid():
            said = form.cleaned_data
            found = [
                one
                for one in throttles.everybody(now=now, product=said["product"])
                if (one.stop.meter or said["stops"]) and not one.stop.capped
            ]
            if "confirm" in request.POST:
                lifted = throttles.lift(throttled=found, by=signed_in(request), actor=actor(request), reason=said["reason"], now=now)
                self.message_user(request, f"{lifted} account{'' if lifted == 1 else 's'} may work again.", messages.SUCCESS)
                return HttpResponseRedirect(back)
        context = {
            "title": "Lift all throttles", "opts": self.opts, "form": form, "preview": preview, "found": found[:SAMPLE],
            "count": len({one.account.pk for one in found}), "dollar": DOLLAR, "now": now, "cancel": back,
        }  # fmt: skip
        return TemplateResponse(request, "admin/metering/lift.html", self.admin_site.each_context(request) | context)


class LeverAdmin(ReadOnlyAdmin):
    """Levers are pulled and undone here, never edited or deleted."""

    list_display = ("pulled_at", "kind", "product", "changed", "reason", "actor", "state")
    list_filter = ("kind", "product")
    list_select_related = ("product",)
    list_before_template = "admin/metering/lever_links.html"
    change_form_before_template = "admin/metering/undo_link.html"
    fields = (
        "kind", "product", "changed", "reason", "actor", "pulled_at", "state", "undone_at", "undone_by", "undone_reason", "adopted_at",
    )  # fmt: skip

    @display(description="State", label={"in force": "warning", "undone": "info", "in the file": "success"})
    def state(self, lever: Lever) -> str:
        if lever.undone_at:
            return "undone"
        return "in the file" if lever.adopted_at else "in force"

    @display(description="What changed")
    def changed(self, lever: Lever) -> SafeString:
        said = (Change(lever.product, tuple(where), before, after) for where, before, after in lever.changes)
        return format_html_join("", "<div>{}: {} → {}</div>", ((one.name, one.was, one.becomes) for one in said))

    def get_urls(self) -> list[URLPattern]:
        ours: list[tuple[str, str, Callable[..., HttpResponse]]] = [
            ("pull/<slug:kind>/", "pull", self.pull_view), ("<int:lever_id>/undo/", "undo", self.undo_view),
        ]  # fmt: skip
        return [
            *(path(route, self.admin_site.admin_view(view), name=f"pricing_lever_{name}") for route, name, view in ours),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        found = [(kind, Lever.Kind(kind).label, says) for kind, (_, says) in FORMS.items()]
        return super().changelist_view(request, (extra_context or {}) | {"kinds": found})  # type: ignore[no-any-return]

    def pull_view(self, request: HttpRequest, kind: str) -> HttpResponse:
        """Asks, shows whom it concerns, changes it when that was confirmed and is still so."""
        if not request.user.has_perm("pricing.add_lever"):
            raise PermissionDenied
        if kind not in FORMS:
            raise Http404
        form_class, says = FORMS[kind]
        form, label = form_class(request.POST or None, initial={"token": uuid4()}), Lever.Kind(kind).label
        now, seen, preview, below, far = timezone.now(), "", None, list[Finding](), list[str]()
        if form.is_valid():
            try:
                if "confirm" in request.POST and Lever.objects.filter(token=form.cleaned_data["token"]).exists():
                    return self._done(request, f"This was done already: {label}.")
                changes = form.changes()
                below = levers.below_floor(kind=kind, changes=changes, now=now)
                far = levers.above_cap(kind=kind, changes=changes, now=now)
                seen, preview = _digest(changes, below), levers.preview(changes=changes, now=now)
                if "confirm" in request.POST and request.POST.get("seen") == seen:
                    if below or far:
                        why = margin_approvals.LEVER if below else margin_approvals.CAP
                        return self._ask_second(request, kind, changes, form, why)
                    return self._pull(request, kind, changes, form)
                if "confirm" in request.POST:
                    self.message_user(request, "Something changed since you looked. Look again.", messages.WARNING)
            except (levers.InvalidLever, approvals.ApprovalError) as error:
                form.add_error(None, str(error))
                preview = None
        button = "Ask a second person" if below or far else "Pull the lever"
        context = {"says": f"{says} It holds within a minute, until somebody undoes it.", "button": button, "below": below, "far": far}
        return self._ask(request, f"Pull a lever: {label}", form, None if "edit" in request.POST else preview, seen, **context)

    def _pull(self, request: HttpRequest, kind: str, changes: Sequence[Change], form: LeverForm) -> HttpResponse:
        said = form.cleaned_data
        with transaction.atomic():
            pulled = levers.pull(
                kind=Lever.Kind(kind), changes=changes, token=said["token"], actor=actor(request), reason=said["reason"], now=timezone.now()
            )
            for lever in pulled:
                self.log_addition(request, lever, f"Pulled: {_in_words(lever)}; {said['reason']}")
        return self._done(request, f"{Lever.Kind(kind).label.capitalize()}: changed, and felt within a minute.")

    def _ask_second(self, request: HttpRequest, kind: str, changes: Sequence[Change], form: LeverForm, why: str) -> HttpResponse:
        said, person = form.cleaned_data, signed_in(request)
        approval = margin_approvals.ask_lever(
            kind=Lever.Kind(kind), changes=changes, token=said["token"], actor=person, reason=said["reason"], now=timezone.now(), why=why
        )
        self.message_user(request, "Nothing is changed yet: somebody else has to approve it within a day.", messages.WARNING)
        return HttpResponseRedirect(reverse("admin:accounts_approval_decide", args=[approval.pk]))

    def undo_view(self, request: HttpRequest, lever_id: int) -> HttpResponse:
        """Shows what comes back, or why it cannot."""
        if not request.user.has_perm("pricing.change_lever"):
            raise PermissionDenied
        lever = Lever.objects.select_related("product").filter(pk=lever_id).first()
        if lever is None:
            raise Http404
        form, now = UndoForm(request.POST or None), timezone.now()
        try:
            changes = levers.taken_back(lever=lever)
            if form.is_valid() and "confirm" in request.POST:
                with transaction.atomic():
                    levers.undo(lever=lever, actor=actor(request), reason=form.cleaned_data["reason"], now=now)
                    self.log_change(request, lever, f"Undone: {form.cleaned_data['reason']}")
                return self._done(request, "Undone: all is as it was before, within a minute.")
        except levers.InvalidLever as error:
            self.message_user(request, f"It cannot be undone. {error}", messages.ERROR)
            return HttpResponseRedirect(reverse("admin:pricing_lever_changelist"))
        preview = levers.preview(changes=changes, now=now)
        context = {"says": f"{lever.actor} pulled it: {lever.reason}", "button": "Undo the lever"}
        return self._ask(request, f"Undo: {lever}", form, preview, "", **context)

    def _done(self, request: HttpRequest, message: str) -> HttpResponse:
        self.message_user(request, message, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:pricing_lever_changelist"))

    def _ask(self, request: HttpRequest, title: str, form: Any, preview: levers.Preview | None, seen: str, **context: Any) -> HttpResponse:
        confirm = preview is not None and (bool(seen) or (form.is_bound and form.is_valid()))
        base = {
            "title": title, "opts": self.opts, "form": form, "preview": preview, "confirm": confirm, "seen": seen, "dollar": DOLLAR,
            "sample": SAMPLE, "cancel": reverse("admin:pricing_lever_changelist"), "now": timezone.now(),
        }  # fmt: skip
        return TemplateResponse(request, "admin/metering/lever.html", self.admin_site.each_context(request) | base | context)


def _digest(changes: Sequence[Change], below: Sequence[Finding]) -> str:
    """What was seen: confirming something else is refused."""
    seen = [[[change.product.slug, change.path, change.before, change.after] for change in changes], [one.headline for one in below]]
    return sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:32]


def _in_words(lever: Lever) -> str:
    said = (Change(lever.product, tuple(where), before, after) for where, before, after in lever.changes)
    return "; ".join(f"{one.name} {one.was} → {one.becomes}" for one in said)
