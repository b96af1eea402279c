"""Webhooks for staff: where they go, what became of each, and sending again."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from accounts import webhook_delivery, webhook_endpoints, webhooks
from accounts.admin import STATES, ReasonForm, actor
from accounts.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from pricing.admin import CappedPaginator, ReadOnlyAdmin
from pricing.models import Product

#: What staff do to an endpoint, as the button says it, and what it means.
ACTS = {
    "rotate": ("Make a new secret", "The new secret is shown once. The former one signs beside it for a day."),
    "test": ("Send a test event", "One event of the kind webhook.test is sent to this endpoint alone."),
    "disable": ("Disable", "Nothing more is sent there; what waits is suppressed as it comes due."),
    "enable": ("Enable", "Events are sent there again from now on. What was not delivered meanwhile is yours to send again."),
    "remove": ("Delete", "Nothing is sent there ever again. What was sent stays readable."),
}


class EndpointForm(forms.Form):
    product = forms.ModelChoiceField(Product.objects.order_by("name"), widget=UnfoldAdminSelectWidget)
    url = forms.CharField(
        max_length=2000,
        label="Address",
        widget=UnfoldAdminTextInputWidget,
        help_text="https://…, reachable from the internet.",
    )
    kinds = forms.MultipleChoiceField(
        choices=[(kind, kind) for kind in webhook_endpoints.KINDS], widget=UnfoldAdminCheckboxSelectMultipleWidget, label="Tell it of"
    )
    description = forms.CharField(max_length=120, required=False, widget=UnfoldAdminTextInputWidget)


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(ReadOnlyAdmin):
    """Endpoints are registered here or over the API; an address is never edited."""

    list_display = ("url", "product", "state", "kinds_", "failing_since", "created_at")
    list_filter = ("product", ("disabled_at", admin.EmptyFieldListFilter), ("deleted_at", admin.EmptyFieldListFilter))
    list_select_related = ("product",)
    search_fields = ("=public_id", "url")
    ordering = ("-pk",)
    fields = (
        "public_id", "url", "product", "description", "kinds_", "state", "disabled_reason", "failures", "failing_since", "quiet_until_",
        "former_secret_until", "created_at", "created_by", "disabled_at", "deleted_at",
    )  # fmt: skip
    change_form_before_template = "admin/accounts/endpoint_acts.html"

    @display(description="Told of")
    def kinds_(self, endpoint: WebhookEndpoint) -> str:
        return ", ".join(endpoint.kinds)

    @display(description="Left alone until", empty_value="–")
    def quiet_until_(self, endpoint: WebhookEndpoint) -> datetime | None:
        return endpoint.quiet_until

    @display(description="Former secret signs until", empty_value="–")
    def former_secret_until(self, endpoint: WebhookEndpoint) -> datetime | None:
        return endpoint.previous_until

    @display(description="State", label={"enabled": "success", "failing": "warning", "disabled": "danger", "deleted": "info"})
    def state(self, endpoint: WebhookEndpoint) -> str:
        if endpoint.deleted_at:
            return "deleted"
        if endpoint.disabled_at:
            return "disabled"
        return "failing" if endpoint.failing_since else "enabled"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("accounts.add_webhookendpoint")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("<int:endpoint_id>/act/<slug:act>/", view, name="accounts_webhookendpoint_act"), *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = EndpointForm(request.POST or None)
        if form.is_valid():
            try:
                created = webhook_endpoints.create(**form.cleaned_data, created_by=actor(request), now=timezone.now())
            except webhook_endpoints.InvalidEndpoint as error:
                form.add_error(error.field, str(error))
            except webhook_endpoints.KnownEndpoint as error:
                form.add_error("url", str(error))
            else:
                self.log_addition(request, created.endpoint, f"Registered for {', '.join(created.endpoint.kinds)}.")
                return self._secret(request, created.endpoint, created.secret)
        return self._page(request, "Register an endpoint", "admin/accounts/add_endpoint.html", form=form)

    def act_view(self, request: HttpRequest, endpoint_id: int, act: str) -> HttpResponse:
        """One of ``ACTS``, with a reason, after its page has said what it does."""
        if not request.user.has_perm("accounts.change_webhookendpoint"):
            raise PermissionDenied
        endpoint = WebhookEndpoint.objects.select_related("product").filter(pk=endpoint_id, deleted_at=None).first()
        if endpoint is None or act not in ACTS:
            raise Http404
        button, meaning = ACTS[act]
        form = ReasonForm(request.POST or None)
        if not form.is_valid():
            return self._page(request, f"{button}: {endpoint.url}", "admin/accounts/act_on_endpoint.html", form=form, endpoint=endpoint,
                              button=button, meaning=meaning, danger=act in ("disable", "remove"))  # fmt: skip
        reason, now, secret = form.cleaned_data["reason"], timezone.now(), ""
        with transaction.atomic():
            match act:
                case "rotate":
                    secret = webhook_endpoints.rotate(endpoint=endpoint, now=now)
                case "test":
                    webhooks.queue_test(endpoint=endpoint, now=now)
                case "disable":
                    webhook_endpoints.disable(endpoint=endpoint, reason=f"By staff: {reason}", now=now)
                case "enable":
                    webhook_endpoints.enable(endpoint=endpoint)
                case "remove":
                    webhook_endpoints.delete(endpoint=endpoint, now=now)
            self.log_change(request, endpoint, f"{button}: {reason}")
        if secret:
            return self._secret(request, endpoint, secret)
        self.message_user(request, f"{button}: done.", messages.SUCCESS)
        if act == "test":
            return HttpResponseRedirect(reverse("admin:accounts_webhookdelivery_changelist") + f"?endpoint__id__exact={endpoint.pk}")
        return HttpResponseRedirect(reverse("admin:accounts_webhookendpoint_change", args=[endpoint.pk]))

    def _secret(self, request: HttpRequest, endpoint: WebhookEndpoint, secret: str) -> HttpResponse:
        response = self._page(request, "Signing secret", "admin/accounts/endpoint_secret.html", endpoint=endpoint, secret=secret)
        response.headers["Cache-Control"] = "no-store"
        return response

    def _page(self, request: HttpRequest, title: str, template: str, **context: Any) -> TemplateResponse:
        return TemplateResponse(request, template, self.admin_site.each_context(request) | {"title": title, "opts": self.opts} | context)


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnlyAdmin):
    """What happened, whether anybody was told or not."""

    list_display = ("created_at", "kind", "product", "account", "public_id", "addressed_at")
    list_filter = ("kind", "product")
    list_select_related = ("product", "account__product")
    show_full_result_count = False
    paginator = CappedPaginator
    search_fields = ("=public_id", "=account__public_id", "=account__external_id")
    ordering = ("-created_at", "-pk")
    fields = ("public_id", "kind", "product", "account", "key", "created_at", "addressed_at", "body")

    @display(description="What is sent")
    def body(self, event: WebhookEvent) -> SafeString:
        shown = json.dumps(json.loads(webhook_delivery.body(event)), indent=2, ensure_ascii=False)
        return format_html('<pre class="tg-pre">{}</pre>', shown)


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnlyAdmin):
    """Each event to each endpoint: what became of it, and sending it again."""

    list_display = ("queued_at", "kind", "account", "address", "state_", "attempts", "last_status", "reason")
    list_filter = ("state", "event__kind", "endpoint__product")
    list_select_related = ("event__account__product", "event__product", "endpoint__product")
    show_full_result_count = False
    paginator = CappedPaginator
    search_fields = ("=event__public_id", "=event__account__public_id", "=endpoint__public_id")
    search_help_text = "The id of an event, an endpoint or an account."
    ordering = ("-queued_at", "-pk")
    actions = ("send_again", "set_aside")
    fields = (
        "event", "endpoint", "state_", "reason", "last_status", "attempts", "next_attempt_at", "queued_at", "done_at",
    )  # fmt: skip

    @display(description="State", label=STATES | {"delivered": "success"})
    def state_(self, delivery: WebhookDelivery) -> str:
        return delivery.state

    @display(description="Kind")
    def kind(self, delivery: WebhookDelivery) -> str:
        return delivery.event.kind

    @display(description="Account", empty_value="–")
    def account(self, delivery: WebhookDelivery) -> str | None:
        return str(delivery.event.account) if delivery.event.account else None

    @display(description="To")
    def address(self, delivery: WebhookDelivery) -> str:
        return delivery.endpoint.url

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup == "endpoint__id__exact" or cast(bool, super().lookup_allowed(lookup, value, request))

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.change_webhookdelivery")

    @action(description="Send again…", permissions=["decide"])
    def send_again(self, request: HttpRequest, chosen: QuerySet[WebhookDelivery]) -> HttpResponse | None:
        return self._decide(request, chosen, "send_again", "Send again")

    @action(description="Set aside…", permissions=["decide"])
    def set_aside(self, request: HttpRequest, chosen: QuerySet[WebhookDelivery]) -> HttpResponse | None:
        return self._decide(request, chosen, "set_aside", "Set aside")

    def _decide(self, request: HttpRequest, chosen: QuerySet[WebhookDelivery], verb: str, title: str) -> HttpResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            reason, now, ids = form.cleaned_data["reason"], timezone.now(), list(chosen.values_list("pk", flat=True))
            with transaction.atomic():
                if verb == "send_again":
                    decided = webhooks.send_again(delivery_ids=ids, now=now)
                else:
                    decided = webhooks.set_aside(delivery_ids=ids, reason=reason, now=now)
                for delivery in decided:
                    self.log_change(request, delivery, f"{title}: {reason}")
            self.message_user(request, f"{title}: {len(decided)} of {len(ids)}.", messages.SUCCESS)
            return None
        context = {"deliveries": chosen, "form": form, "verb": verb, "button": title, "checkbox": ACTION_CHECKBOX_NAME}
        context |= {"title": f"{title}: {chosen.count()}", "opts": self.opts}
        return TemplateResponse(request, "admin/accounts/decide_deliveries.html", self.admin_site.each_context(request) | context)
