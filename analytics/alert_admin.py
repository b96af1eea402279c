"""Alerts, their rules and channels, for staff. What is said in words comes from :mod:`analytics.alerts`; nothing here is deleted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Case, IntegerField, QuerySet, Value, When
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from accounts import acts, doorbell
from accounts.admin import ReasonForm, actor
from analytics import alert_metrics, alert_notices, alerts, tasks
from analytics.alert_forms import ChannelForm, MuteForm, NoteForm, RuleForm
from analytics.alert_metrics import METRICS
from analytics.models import Alert, AlertChannel, AlertNotice, AlertRule
from metering.forms import ISO_MINUTE
from pricing.admin import ReadOnlyAdmin

STATES = {"open": "danger", "acknowledged": "warning", "resolved": "success"}
RANK = Case(*(When(state=state, then=Value(rank)) for rank, state in enumerate(STATES)), output_field=IntegerField())
SEVERITIES = {"critical": "danger", "warning": "warning"}


class _NeverDeleted:
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    """Open alerts first. They are acknowledged and resolved here, by those who may change them."""

    list_display = ("text", "state_", "severity_", "opened_at", "seen_at", "product")
    list_filter = ("state", "severity", "product", "rule")
    list_select_related = ("rule", "product")
    search_fields = ("text",)
    ordering = (RANK.asc(), "-opened_at", "-pk")
    show_full_result_count = False
    fieldsets = (
        (None, {"fields": ("text", "state_", "severity_", "about", "look_there", "rule_")}),
        ("When", {"fields": ("opened_at", "seen_at", "times", "resolved_at", "resolved_by_")}),
        ("Who works on it", {"fields": ("acknowledged_by", "acknowledged_at", "note")}),
        ("Who was told", {"fields": ("told_", "notices_")}),
    )
    change_form_before_template = "admin/analytics/alert_acts.html"

    @display(description="State", label=STATES, ordering="state")
    def state_(self, alert: Alert) -> str:
        return str(alert.state)

    @display(description="Severity", label=SEVERITIES)
    def severity_(self, alert: Alert) -> str:
        return str(alert.severity)

    @display(description="About", empty_value="–")
    def about(self, alert: Alert) -> SafeString | None:
        return format_html_join("", "<p>{}</p>", ((row,) for row in alert.rows)) if alert.rows else None

    @display(description="Look there", empty_value="–")
    def look_there(self, alert: Alert) -> SafeString | None:
        return format_html('<a class="tg-link" href="{}">What it was measured on</a>', alert.link) if alert.link else None

    @display(description="Rule")
    def rule_(self, alert: Alert) -> SafeString:
        return format_html(
            '<a class="tg-link" href="{}">{}</a>', reverse("admin:analytics_alertrule_change", args=[alert.rule_id]), alert.rule
        )

    @display(description="Resolved by", empty_value="–")
    def resolved_by_(self, alert: Alert) -> str | None:
        return (alert.resolved_by or "itself: the metric came back") if alert.state == Alert.State.RESOLVED else None

    @display(description="Told last")
    def told_(self, alert: Alert) -> str:
        return f"that it {'fired' if alert.told == 'fired' else 'is over'}" if alert.told else "nothing"

    @display(description="Notices", empty_value="none")
    def notices_(self, alert: Alert) -> SafeString | None:
        notices = alert.notices.select_related("channel").order_by("-queued_at")[:20]
        rows = ((f"{each.queued_at:%Y-%m-%d %H:%M} UTC", each.channel, each.event, each.state, each.error) for each in notices)
        return format_html_join("", "<p>{} {}: {}, {} {}</p>", rows) or None

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("<int:alert_id>/act/<str:verb>/", view, name="analytics_alert_act"), *super().get_urls()]

    def act_view(self, request: HttpRequest, alert_id: int, verb: str) -> HttpResponse:
        acts = {"acknowledge": (alerts.acknowledge, "Acknowledge"), "resolve": (alerts.resolve, "Resolve")}
        if verb not in acts:
            raise Http404
        if not request.user.has_perm("analytics.change_alert"):
            raise PermissionDenied
        alert = Alert.objects.select_related("rule", "product").filter(pk=alert_id).first()
        if alert is None:
            raise Http404
        act, name = acts[verb]
        form = NoteForm(request.POST or None)
        back = reverse("admin:analytics_alert_change", args=[alert.pk])
        if form.is_valid():
            note = form.cleaned_data["note"]
            with transaction.atomic():
                done = act(alert_id=alert.pk, actor=actor(request), note=note, now=timezone.now())
                if done:
                    self.log_change(request, alert, f"{name}d: {note}")
            said = f"{name}d." if done else "Nothing was done: the alert is not open any more."
            self.message_user(request, said, messages.SUCCESS if done else messages.WARNING)
            return HttpResponseRedirect(back)
        if verb == "resolve":
            says = f"{alert.text} While that is still so, it fires again after {alert.rule.cool_down_minutes} minutes."
        else:
            says = f"{alert.text} Nothing more is said of it until it is over."
        return _ask(self, request, f"{name} the alert", form, says, name, back)


@admin.register(AlertRule)
class AlertRuleAdmin(acts.Audited, _NeverDeleted, ModelAdmin):  # type: ignore[misc]
    """Rules are changed, turned off and muted, never deleted."""

    form = RuleForm
    list_display = ("name", "fires", "over", "product_", "severity_", "state", "looked_at")
    list_filter = ("enabled", "severity", "product")
    list_select_related = ("product",)
    list_per_page = 100
    search_fields = ("name", "slug")
    ordering = ("name",)
    change_form_before_template = "admin/analytics/rule_acts.html"

    @display(description="Fires when")
    def fires(self, rule: AlertRule) -> str:
        metric = METRICS.get(rule.metric)
        if metric is None:
            return f"unknown metric {rule.metric}"
        threshold = "the product's alert margin" if rule.threshold is None else alert_metrics.words(metric.unit, rule.threshold)
        return f"{metric.title} {rule.get_comparator_display()} {threshold}"

    @display(description="Over")
    def over(self, rule: AlertRule) -> str:
        return str(rule.get_window_display())

    @display(description="Product")
    def product_(self, rule: AlertRule) -> str:
        metric = METRICS.get(rule.metric)
        return str(rule.product.name) if rule.product else "each" if metric and metric.each else "the site"

    @display(description="Severity", label=SEVERITIES)
    def severity_(self, rule: AlertRule) -> str:
        return str(rule.severity)

    @display(description="State", label={"on": "success", "off": "info", "muted": "warning", "fails": "danger"})
    def state(self, rule: AlertRule) -> str:
        if not rule.enabled:
            return "off"
        if rule.error:
            return "fails"
        return "muted" if rule.muted_until and rule.muted_until > timezone.now() else "on"

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> str:
        """Before and after of each field, as they are written."""
        if add:
            return "Added."
        changes = [f"{field}: {_shown(form.initial.get(field))} → {_shown(form.data.get(field))}" for field in form.changed_data]
        return "; ".join(changes) or "Nothing changed."

    def get_urls(self) -> list[URLPattern]:
        mute, unmute = (self.admin_site.admin_view(view) for view in (self.mute_view, self.unmute_view))
        return [
            path("<int:rule_id>/mute/", mute, name="analytics_alertrule_mute"),
            path("<int:rule_id>/unmute/", unmute, name="analytics_alertrule_unmute"),
            *super().get_urls(),
        ]

    def mute_view(self, request: HttpRequest, rule_id: int) -> HttpResponse:
        rule, now = self._rule(request, rule_id), timezone.now()
        form = MuteForm(request.POST or None, initial={"until": f"{now + timedelta(hours=4):{ISO_MINUTE}}"})
        if form.is_valid():
            until, reason = form.cleaned_data["until"], form.cleaned_data["reason"]
            with transaction.atomic():
                alerts.mute(rule=rule, until=until, actor=actor(request), reason=reason, now=now)
                self.log_change(request, rule, f"Muted until {until:%Y-%m-%d %H:%M} UTC: {reason}")
            self.message_user(request, f"Muted: {rule}.", messages.SUCCESS)
            return HttpResponseRedirect(self._page(rule))
        says = "Its alerts are still opened, shown here and resolved; nobody is told of them until then. What is still so then is told."
        return _ask(self, request, f"Mute “{rule}”", form, says, "Mute", self._page(rule))

    def unmute_view(self, request: HttpRequest, rule_id: int) -> HttpResponse:
        rule = self._rule(request, rule_id)
        form = ReasonForm(request.POST or None)
        if form.is_valid():
            with transaction.atomic():
                alerts.unmute(rule=rule)
                self.log_change(request, rule, f"Unmuted: {form.cleaned_data['reason']}")
            self.message_user(request, f"Told again: {rule}.", messages.SUCCESS)
            return HttpResponseRedirect(self._page(rule))
        says = f"It was muted by {rule.muted_by}: {rule.mute_reason}" if rule.muted_until else "It is not muted."
        return _ask(self, request, f"Unmute “{rule}”", form, says, "Unmute", self._page(rule))

    def _rule(self, request: HttpRequest, rule_id: int) -> AlertRule:
        if not request.user.has_perm("analytics.change_alertrule"):
            raise PermissionDenied
        rule = AlertRule.objects.filter(pk=rule_id).first()
        if rule is None:
            raise Http404
        return rule

    def _page(self, rule: AlertRule) -> str:
        return reverse("admin:analytics_alertrule_change", args=[rule.pk])


@admin.register(AlertChannel)
class AlertChannelAdmin(acts.Audited, _NeverDeleted, ModelAdmin):  # type: ignore[misc]
    """Where alerts are told. A channel is turned off, never deleted: its notices are history."""

    form = ChannelForm
    list_display = ("name", "kind", "where", "enabled", "last")
    change_form_before_template = "admin/analytics/channel_acts.html"

    @display(description="Where")
    def where(self, channel: AlertChannel) -> str:
        """A webhook's address is a secret: who has it can write there."""
        match channel.kind:
            case AlertChannel.Kind.MAIL:
                return ", ".join(alert_notices.recipients(channel=channel)) or "nobody: ALERT_EMAILS is empty"
            case AlertChannel.Kind.SENTRY:
                return "SENTRY_DSN"
        return f"{channel.target[:24]}…"

    @display(description="Last notice", empty_value="none yet")
    def last(self, channel: AlertChannel) -> str | None:
        notice = channel.notices.order_by("-queued_at").first()
        return f"{notice.event}: {notice.state} {notice.error}".strip() if notice else None

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> str:
        return "Added." if add else f"Changed: {', '.join(form.changed_data) or 'nothing'}."

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.test_view)
        return [path("<int:channel_id>/test/", view, name="analytics_alertchannel_test"), *super().get_urls()]

    def test_view(self, request: HttpRequest, channel_id: int) -> HttpResponse:
        if not request.user.has_perm("analytics.change_alertchannel"):
            raise PermissionDenied
        channel = AlertChannel.objects.filter(pk=channel_id).first()
        if channel is None:
            raise Http404
        back = reverse("admin:analytics_alertchannel_change", args=[channel.pk])
        if request.method == "POST":
            with transaction.atomic():
                alerts.test_fire(channel=channel, actor=actor(request), now=timezone.now())
                self.log_change(request, channel, "Sent a test.")
            doorbell.ring(tasks.send_alert_notices)
            self.message_user(request, "A test is on its way. What became of it stands here as the last notice.", messages.SUCCESS)
            return HttpResponseRedirect(back)
        says = "One notice goes to this channel, marked as a test."
        return _ask(self, request, f"Test “{channel}”", forms.Form(), says, "Send a test", back)


@admin.register(AlertNotice)
class AlertNoticeAdmin(ReadOnlyAdmin):
    """What was told where, and what could not be."""

    list_display = ("subject", "channel", "event", "state_", "attempts", "queued_at", "error")
    list_filter = ("state", "event", "channel")
    list_select_related = ("channel",)
    show_full_result_count = False
    ordering = ("-queued_at",)
    fields = ("subject", "text", "channel", "event", "state_", "attempts", "error", "queued_at", "next_attempt_at", "done_at")
    actions = ("send_again",)

    @display(description="State", label={"pending": "info", "sent": "success", "dead": "danger"})
    def state_(self, notice: AlertNotice) -> str:
        return str(notice.state)

    def has_again_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("analytics.change_alert")

    @action(description="Send again", permissions=["again"])
    def send_again(self, request: HttpRequest, chosen: QuerySet[AlertNotice]) -> None:
        with transaction.atomic():
            again = alert_notices.send_again(notice_ids=list(chosen.values_list("pk", flat=True)), now=timezone.now())
            for notice in again:
                self.log_change(request, notice, "Sent again.")
        doorbell.ring(tasks.send_alert_notices)
        self.message_user(request, f"Sent again: {len(again)}. Only what was given up is.", messages.SUCCESS)


def _shown(value: object) -> str:
    """A field of a form, as one reads it in the log."""
    if isinstance(value, list):
        return ", ".join(str(each) for each in value) or "nothing"
    return str(value) if value not in (None, "") else "nothing"


def _ask(page: Any, request: HttpRequest, title: str, form: Any, says: str, button: str, cancel: str) -> HttpResponse:
    context = {"title": title, "opts": page.opts, "form": form, "says": says, "button": button, "cancel": cancel}
    return TemplateResponse(request, "admin/metering/ask.html", page.admin_site.each_context(request) | context)
