"""Staff see what is wrong in words, act on it with a note, and cannot write a rule that makes no sense."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core import mail as django_mail
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Fault
from analytics import alerts, tasks
from analytics.models import Alert, AlertChannel, AlertNotice, AlertRule, ProviderBill
from tests.factories import make_product
from tests.test_admin import GARBAGE, staff, superuser, text

__all__ = ["superuser"]  # a fixture
pytestmark = pytest.mark.django_db

#: A rule as the form sends it.
RULE: dict[str, Any] = {
    "name": "Too many errors", "metric": "database_errors", "numerator": "", "denominator": "", "comparator": "gt", "threshold": "5",
    "minimum": "", "window": "5m", "product": "", "severity": "critical", "cool_down_minutes": "60", "enabled": "on",
}  # fmt: skip
MONEY = {"metric": "margin", "numerator": "cost", "denominator": "received", "comparator": "lt", "threshold": "70 %", "window": "30d"}


@pytest.fixture
def alert(db: None) -> Alert:
    """A real one: three database errors a moment ago."""
    alerts.ship()
    AlertRule.objects.exclude(slug="database-errors").update(enabled=False)
    Fault.objects.create(kind="database", minute=timezone.now(), count=30, about="OperationalError")
    alerts.look(now=timezone.now())
    return Alert.objects.get(rule__slug="database-errors")


def act(alert: Alert, verb: str) -> str:
    return reverse("admin:analytics_alert_act", args=[alert.pk, verb])


def log(obj: Any) -> list[str]:
    return [entry.get_change_message() for entry in LogEntry.objects.filter(object_id=str(obj.pk)).order_by("-pk")]


class TestAlerts:
    def test_the_first_page_and_the_list_say_what_is_wrong_open_ones_first(self, superuser: Client, alert: Alert) -> None:
        assert alert.text in text(superuser, reverse("admin:index"))
        page = text(superuser, reverse("admin:analytics_alert_changelist"))
        assert alert.text in page
        assert "Acknowledge…" in text(superuser, reverse("admin:analytics_alert_change", args=[alert.pk]))

    def test_it_is_acknowledged_and_resolved_with_a_note_and_a_line_in_the_log(self, superuser: Client, alert: Alert) -> None:
        assert alert.text in text(superuser, act(alert, "acknowledge"))
        superuser.post(act(alert, "acknowledge"), {"note": "The disk was full."})
        alert.refresh_from_db()
        assert (alert.state, alert.note) == ("acknowledged", "The disk was full.")
        superuser.post(act(alert, "resolve"), {"note": "It is not any more."})
        alert.refresh_from_db()
        assert (alert.state, alert.note) == ("resolved", "It is not any more.")
        assert log(alert) == ["Resolved: It is not any more.", "Acknowledged: The disk was full."]
        assert "Acknowledge…" not in text(superuser, reverse("admin:analytics_alert_change", args=[alert.pk]))
        superuser.post(act(alert, "resolve"), {"note": "Twice."})
        assert len(log(alert)) == 2

    @pytest.mark.parametrize("note", ["", " ", "x" * 501, "\0"])
    def test_nothing_is_done_without_a_note(self, superuser: Client, alert: Alert, note: str) -> None:
        assert superuser.post(act(alert, "acknowledge"), {"note": note}).status_code == 200
        alert.refresh_from_db()
        assert alert.state == "open"

    def test_who_may_only_look_does_not_act(self, alert: Alert) -> None:
        looker = staff("analytics.view_alert")
        assert alert.text in text(looker, reverse("admin:index"))
        assert "Acknowledge…" not in text(looker, reverse("admin:analytics_alert_change", args=[alert.pk]))
        assert looker.post(act(alert, "resolve"), {"note": "x"}).status_code == 403
        assert staff().get(reverse("admin:analytics_alert_changelist")).status_code == 403
        assert alert.text not in text(staff(), reverse("admin:index"))

    @pytest.mark.parametrize("verb", ["delete", "nonsense", "acknowledge%00"])
    def test_an_act_that_there_is_not_is_not_found(self, superuser: Client, alert: Alert, verb: str) -> None:
        assert superuser.get(f"/admin/analytics/alert/{alert.pk}/act/{verb}/").status_code in (403, 404)
        assert superuser.post(reverse("admin:analytics_alert_act", args=[999_999_999, "resolve"]), {"note": "x"}).status_code == 404
        assert Alert.objects.filter(pk=alert.pk).exists()


class TestRules:
    def save(self, client: Client, rule: Any = None, **fields: Any) -> Any:
        url = reverse("admin:analytics_alertrule_change", args=[rule.pk]) if rule else reverse("admin:analytics_alertrule_add")
        return client.post(url, RULE | fields)

    def test_a_rule_is_written_in_the_units_that_people_use_and_shown_in_them_again(self, superuser: Client) -> None:
        product = make_product()
        assert self.save(superuser, **MONEY, minimum="12.50", product=product.pk).status_code == 302
        rule = AlertRule.objects.get(name="Too many errors")
        assert (rule.threshold, rule.minimum, rule.product) == (700_000, 12_500_000_000, product)
        page = text(superuser, reverse("admin:analytics_alertrule_change", args=[rule.pk]))
        assert 'value="70"' in page
        assert 'value="12.5"' in page
        assert self.save(superuser, rule, metric="oldest_hold", threshold="90 min").status_code == 302
        rule.refresh_from_db()
        assert (rule.threshold, rule.numerator) == (5_400, "")

    def test_a_change_leaves_before_and_after_in_the_log(self, superuser: Client) -> None:
        self.save(superuser, **MONEY)
        rule = AlertRule.objects.get(name="Too many errors")
        self.save(superuser, rule, **MONEY | {"threshold": "65"}, severity="warning")
        assert log(rule)[0] == "threshold: 70 → 65; severity: critical → warning"

    @pytest.mark.parametrize("threshold", [each for each in GARBAGE if each not in ("0", "9300000000")] + ["5.5", "5 h", "$5", "5 %"])
    def test_a_threshold_of_garbage_is_refused_beside_its_field(self, superuser: Client, threshold: str) -> None:
        response = self.save(superuser, threshold=threshold)
        assert response.status_code == 200
        assert response.context["adminform"].form.errors
        assert not AlertRule.objects.filter(name="Too many errors").exists()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("metric", "nonsense"), ("metric", ""), ("comparator", "eq"), ("window", "2h"), ("severity", "mild"),
            ("cool_down_minutes", "0"), ("cool_down_minutes", "-1"), ("cool_down_minutes", "10081"),
            ("cool_down_minutes", "x"), ("product", "999999999"),
            ("minimum", "-5"), ("minimum", "many"), ("channels", "999999999"), ("name", ""), ("name", "x" * 121), ("name", "\0"),
        ],
    )  # fmt: skip
    def test_a_rule_that_cannot_be_is_refused(self, superuser: Client, field: str, value: str) -> None:
        response = self.save(superuser, **{field: value})
        assert response.status_code == 200
        assert response.context["adminform"].form.errors

    @pytest.mark.parametrize(
        "fields",
        [
            MONEY | {"numerator": ""}, MONEY | {"denominator": ""}, MONEY | {"numerator": "received"}, MONEY | {"denominator": "cost"},
            MONEY | {"window": "5m"}, {"metric": "webhook_silence", "threshold": "1 d", "window": "5m"},
        ],
    )  # fmt: skip
    def test_parts_that_do_not_fit_each_other_are_refused(self, superuser: Client, fields: dict[str, str]) -> None:
        assert self.save(superuser, **fields).status_code == 200

    def test_a_rule_of_the_site_is_of_no_product_and_nobody_deletes_one(self, superuser: Client, alert: Alert) -> None:
        assert self.save(superuser, product=make_product().pk).status_code == 200
        assert superuser.post(reverse("admin:analytics_alertrule_delete", args=[alert.rule_id]), {"post": "yes"}).status_code == 403
        assert superuser.post(reverse("admin:analytics_alert_delete", args=[alert.pk]), {"post": "yes"}).status_code == 403

    def test_it_is_muted_for_a_while_with_a_reason_and_unmuted(self, superuser: Client, alert: Alert) -> None:
        rule, url = alert.rule, reverse("admin:analytics_alertrule_mute", args=[alert.rule_id])
        until = timezone.now() + timedelta(hours=2)
        superuser.post(url, {"until": f"{until:%Y-%m-%dT%H:%M}", "reason": "We move the disk."})
        rule.refresh_from_db()
        assert (rule.mute_reason, rule.muted_until is not None) == ("We move the disk.", True)
        assert "Muted until" in text(superuser, reverse("admin:analytics_alertrule_change", args=[rule.pk]))
        superuser.post(reverse("admin:analytics_alertrule_unmute", args=[rule.pk]), {"reason": "Done."})
        rule.refresh_from_db()
        assert rule.muted_until is None
        assert [line.partition(":")[0].partition(" until")[0] for line in log(rule)] == ["Unmuted", "Muted"]

    @pytest.mark.parametrize("until", ["", "now", "2001-01-01T00:00", "2999-01-01T00:00", "\0"])
    def test_it_is_not_muted_into_the_past_for_ever_or_until_garbage(self, superuser: Client, alert: Alert, until: str) -> None:
        url = reverse("admin:analytics_alertrule_mute", args=[alert.rule_id])
        assert superuser.post(url, {"until": until, "reason": "x"}).status_code == 200
        assert AlertRule.objects.get(pk=alert.rule_id).muted_until is None

    def test_the_list_says_what_each_rule_watches(self, superuser: Client, alert: Alert) -> None:
        page = text(superuser, reverse("admin:analytics_alertrule_changelist"))
        assert "age of the oldest open hold above 25 h" in page
        assert "margin below the product&#x27;s alert margin" in page


class TestChannels:
    def save(self, client: Client, **fields: str) -> Any:
        return client.post(
            reverse("admin:analytics_alertchannel_add"), {"name": "Ours", "kind": "mail", "target": "", "enabled": "on"} | fields
        )

    @pytest.mark.parametrize(
        ("kind", "target"),
        [
            ("mail", "nobody"), ("mail", "a@example.com,b@"), ("mail", "a@example.com\nBcc: b@example.com"), ("slack", ""),
            ("slack", "http://hooks.example.com/x"), ("slack", "https://127.0.0.1/x"), ("webhook", "https://user:pass@example.com/"),
            ("webhook", "https://169.254.169.254/latest"), ("webhook", "javascript:alert(1)"), ("sentry", "https://example.com"),
            ("pager", ""),
            ("mail", ",".join(f"a{number}@example.com" for number in range(21))),
        ],
    )  # fmt: skip
    def test_a_target_that_cannot_be_is_refused(self, superuser: Client, kind: str, target: str) -> None:
        assert self.save(superuser, kind=kind, target=target).status_code == 200
        assert not AlertChannel.objects.filter(name="Ours").exists()

    def test_a_test_is_sent_by_a_button_and_what_became_of_it_is_shown(self, superuser: Client) -> None:
        assert self.save(superuser, target="ann@example.com").status_code == 302
        channel = AlertChannel.objects.get(name="Ours")
        url = reverse("admin:analytics_alertchannel_test", args=[channel.pk])
        assert "One notice goes to this channel" in text(superuser, url)
        assert not AlertNotice.objects.filter(channel=channel).exists()
        superuser.post(url)
        tasks.send_alert_notices()
        assert [message.to for message in django_mail.outbox] == [["ann@example.com"]]
        assert "test: sent" in text(superuser, reverse("admin:analytics_alertchannel_changelist"))
        assert staff("analytics.view_alertchannel").post(url).status_code == 403

    def test_what_was_given_up_is_sent_again(self, superuser: Client, alert: Alert) -> None:
        notice = AlertNotice.objects.get(alert=alert)
        AlertNotice.objects.filter(pk=notice.pk).update(state="dead", done_at=timezone.now())
        page = reverse("admin:analytics_alertnotice_changelist")
        superuser.post(page, {"action": "send_again", "_selected_action": [str(notice.pk)]})
        assert AlertNotice.objects.get(pk=notice.pk).state in ("pending", "sent")
        assert log(notice) == ["Sent again."]


class TestBills:
    BILL = {"provider": "openai", "since": "2026-01-01", "last_day": "2026-01-31", "billed": "1234.56"}

    def save(self, client: Client, **fields: str) -> Any:
        return client.post(reverse("admin:analytics_providerbill_add"), self.BILL | fields)

    def test_a_bill_is_typed_in_once_and_never_changed(self, superuser: Client) -> None:
        assert self.save(superuser).status_code == 302
        bill = ProviderBill.objects.get()
        assert (str(bill.since), str(bill.until), bill.billed_nanos) == ("2026-01-01", "2026-02-01", 1_234_560_000_000)
        assert "$1,234.56" in text(superuser, reverse("admin:analytics_providerbill_changelist"))
        assert self.save(superuser).status_code == 200
        assert superuser.post(reverse("admin:analytics_providerbill_change", args=[bill.pk]), self.BILL).status_code == 403

    @pytest.mark.parametrize("billed", [each for each in GARBAGE if each not in ("9300000000",)])
    def test_an_amount_of_garbage_is_refused(self, superuser: Client, billed: str) -> None:
        assert self.save(superuser, billed=billed).status_code == 200
        assert not ProviderBill.objects.exists()

    @pytest.mark.parametrize(
        ("since", "last_day"), [("", ""), ("2026-02-01", "2026-01-01"), ("2026-01-01", "2999-01-01"), ("31.12.", "x"), ("\0", "\0")]
    )
    def test_days_that_cannot_be_are_refused(self, superuser: Client, since: str, last_day: str) -> None:
        assert self.save(superuser, since=since, last_day=last_day).status_code == 200
        assert not ProviderBill.objects.exists()
