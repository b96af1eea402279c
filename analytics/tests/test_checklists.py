"""The checklists: every item of the documents, measured ones by what there is, the others by who ticked them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError, transaction
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts.models import User
from analytics import alerts, checklists
from analytics.models import AuditFinding, ChecklistTick, JobRun, ProviderBill
from billing.models import StripeEvent
from metering.models import CostThrottle
from pricing.models import Product
from tests.factories import make_account, make_product
from tests.test_admin import staff, superuser

__all__ = ["superuser"]  # a fixture
pytestmark = pytest.mark.django_db
PAGE = "/admin/analytics/checklisttick/"


def stands(name: str) -> dict[str, checklists.Stands]:
    return {one.item.slug: one for one in checklists.look(checklist=checklists.LISTS[name], now=timezone.now())}


def ran(job: str) -> None:
    now = timezone.now()
    JobRun.objects.create(job=job, due_at=now, late_at=now + timedelta(hours=1), next_attempt_at=now, state="done", ended_at=now)


@pytest.fixture
def prpm() -> Product:
    product = make_product()
    Product.objects.filter(pk=product.pk).update(slug="prpm")
    return Product.objects.get(pk=product.pk)


class TestLists:
    def test_they_have_the_items_of_the_documents(self) -> None:
        assert [(name, len(one.items)) for name, one in checklists.LISTS.items()] == [
            ("success", 8), ("launch", 16), ("roadmap", 4), ("stage-100", 4), ("stage-1000", 4),
        ]  # fmt: skip
        assert {item.check for one in checklists.LISTS.values() for item in one.items} - {""} == set(checklists._CHECKS)

    def test_without_the_product_or_anything_done_nothing_holds_by_itself(self) -> None:
        assert {one.holds for one in stands("success").values()} == {None}
        assert stands("success")["margin"].why == "there is no product prpm yet"
        assert {slug: one.holds for slug, one in stands("launch").items() if one.item.check and slug != "environment"} == {
            "schema": True, "monitoring": False, "admin": True, "backups": False,
        }  # fmt: skip

    def test_success_is_measured(self, prpm: Product) -> None:
        found = stands("success")
        assert {slug: one.holds for slug, one in found.items()} == {
            "subscriptions": False, "cost-accuracy": None, "throttling": None, "figures": None, "webhooks": None, "margin": None,
            "throttled": None, "jobs": None,
        }  # fmt: skip
        account, now = make_account(prpm), timezone.now()
        ran("audit")
        StripeEvent.objects.create(
            event_id="evt_1", endpoint="/", payload="{}", received_at=now, next_attempt_at=now, state="done", done_at=now
        )
        today = now.date()
        ProviderBill.objects.create(
            provider=account.public_id, since=today - timedelta(days=2), until=today, billed_nanos=10**9, entered_by="ada", entered_at=now
        )
        CostThrottle.objects.create(
            account=account, meter="cost/day", window_end=now, limit_nanos=1, used_nanos=1, began_at=now - timedelta(hours=1)
        )
        found = stands("success")
        assert found["throttling"].holds
        assert (found["figures"].holds, found["webhooks"].holds, found["jobs"].holds, found["cost-accuracy"].holds) == (
            True,
            True,
            True,
            False,
        )
        AuditFinding.objects.create(check_name="x", text="x", first_seen_at=now, last_seen_at=now)
        StripeEvent.objects.update(state="dead")
        JobRun.objects.create(job="fold-rollups", due_at=now, late_at=now - timedelta(hours=1), next_attempt_at=now)
        found = stands("success")
        assert (found["figures"].holds, found["webhooks"].holds, found["jobs"].holds) == (False, False, False)
        assert found["jobs"].why == "1 late, 0 given up in the last day"

    def test_backups_and_alerts_are_measured(self, settings: Settings) -> None:
        settings.ALERT_EMAILS = ["ops@example.com"]
        alerts.ship()
        ran("back-up")
        found = stands("launch")
        assert (found["monitoring"].holds, found["backups"].holds) == (True, True)
        JobRun.objects.filter(job="back-up").update(ended_at=timezone.now() - timedelta(days=3))
        assert stands("launch")["backups"].holds is False


class TestTicks:
    def test_staff_tick_what_nobody_can_measure_with_a_note_that_stays(self, superuser: Client) -> None:
        page = superuser.get(PAGE, {"list": "launch"}).content.decode()
        assert "Ready to launch: " in page
        assert "nobody has said so yet" in page
        address = f"{PAGE}tick/launch/dns/done/"
        assert superuser.post(address, {"note": ""}).status_code == 200
        assert superuser.post(address, {"note": "dig says so"}, follow=True).status_code == 200
        one = stands("launch")["dns"]
        assert one.holds
        assert one.why.startswith("dig says so (")
        assert LogEntry.objects.get().get_change_message() == "Ticked: dig says so"
        superuser.post(f"{PAGE}tick/launch/dns/open/", {"note": "moved"})
        assert stands("launch")["dns"].holds is False
        assert ChecklistTick.objects.count() == 2
        with pytest.raises(DatabaseError), transaction.atomic():
            ChecklistTick.objects.all().delete()

    def test_what_is_measured_or_unknown_is_not_ticked(self, superuser: Client) -> None:
        for address in ("launch/schema/done", "launch/nothing/done", "nothing/dns/done", "launch/dns/maybe"):
            assert superuser.post(f"{PAGE}tick/{address}/", {"note": "x"}).status_code == 404
        user = User.objects.create_user("ada@example.com")
        with pytest.raises(checklists.UnknownItem):
            checklists.tick(checklist="launch", item="schema", done=True, note="x", user=user, now=timezone.now())
        assert superuser.get(PAGE, {"list": "\0"}).status_code == 200
        assert not ChecklistTick.objects.exists()

    def test_only_who_may_sees_and_ticks(self) -> None:
        reader = staff("analytics.view_checklisttick")
        assert "Tick…" not in reader.get(PAGE, {"list": "launch"}).content.decode()
        assert reader.post(f"{PAGE}tick/launch/dns/done/", {"note": "x"}).status_code == 403
        assert staff("accounts.view_account").get(PAGE).status_code == 403
