"""What is kept of a refusal, how much, and how it is told."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.utils import DatabaseError
from django.test import Client

from accounts import tenancy
from accounts.models import Membership, User
from billing import ledger
from metering import explanation, refusal_explanation, refusals, usage
from metering.limits import Decision, Layer
from metering.models import Refusal
from metering.tests.limited import PER_TOKEN, Shop, plan
from tests.factories import make_account, make_key, make_product

pytestmark = pytest.mark.django_db


def said(shop: Shop, *, staff: bool = True) -> str:
    told = explanation.Told(staff, shop.product.visibility, UTC)  # type: ignore[arg-type]
    steps = [
        refusal_explanation.explain(refusal=refusal, account=shop.account, told=told, now=datetime.now(UTC))
        for refusal in Refusal.objects.filter(account=shop.account)
    ]
    return "\n".join(text for story in steps for step in story for text in (step.text, *step.parts))


class TestTold:
    def test_a_limit_on_cost_has_its_figures_for_staff_and_none_for_customers(self) -> None:
        shop = Shop.new(("messages", "day", 1_000), tier={"daily_cost_nanos": 100 * PER_TOKEN})
        shop.use(tokens=90)
        assert shop.refused_by(tokens=20, feature="chat", user="ada") == "cost"
        text = said(shop)
        assert f": {shop.model}, in the feature chat, for the user ada. The usage limit for this day is reached ($0.0000" in text
        assert "kill switch: passed" in text
        assert "quota (messages/day): passed, 1 of 1,000" in text
        assert "cost (cost/day): refused, $0.0000" in text
        customers = said(shop, staff=False)
        assert "The usage limit for this day is reached." in customers
        assert "0.00009" not in customers

    def test_throttled_without_using_credits_is_a_sentence(self) -> None:
        shop = Shop.new(tier={"daily_cost_nanos": 0})
        assert shop.refused_by() == "cost"
        assert "Credits are not the reason: $1,000.00 were left, and being refused used none of them." in said(shop)
        assert "It ends on " in said(shop)

    def test_a_quota_names_the_plan_that_would_lift_it(self) -> None:
        shop = Shop.new(("messages", "day", 1))
        plan(shop.product, "pro", 2, ("messages", "day", 9))
        shop.use()
        assert shop.refused_by() == "quota"
        assert "The plan Pro would lift it." in said(shop, staff=False)
        assert "quota (messages/day): refused, 1 of 1" in said(shop, staff=False)

    def test_too_little_credit_and_a_stop_by_staff_have_their_own_ways_out(self) -> None:
        shop = Shop.new(credit=0)
        assert shop.refused_by(tokens=5) == "credits"
        assert "More credit lifts it." in said(shop)
        stopped = Shop.new()
        ledger.throttle(account_id=stopped.account.pk, actor="ann", reason="abuse")
        assert stopped.refused_by() == "throttle"
        assert "it ends by itself or when support ends it." in said(stopped)


class TestKept:
    def test_one_row_a_limit_counts_what_is_refused_in_its_window(self) -> None:
        shop = Shop.new(("messages", "day", 0), tier={"daily_cost_nanos": 0})
        for _ in range(3):
            assert shop.refused_by() == "quota"
        [kept] = Refusal.objects.filter(account=shop.account)
        assert (kept.layer, kept.meter, kept.count) == ("quota", "messages/day", 3)
        assert ", 3 times since " in said(shop)

    def test_another_window_begins_to_count_anew(self) -> None:
        shop = Shop.new(("messages", "day", 0))
        shop.refused_by()
        with shop.at(datetime.now(UTC) + timedelta(days=1)):
            shop.refused_by()
        [kept] = Refusal.objects.filter(account=shop.account)
        assert kept.count == 1
        assert kept.first_at == kept.last_at

    def test_in_a_flood_one_is_written_and_those_between_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Outside:
            in_atomic_block = False

            def __getattr__(self, name: str) -> Any:
                return getattr(connection, name)

        account, now = make_account(), datetime.now(UTC)
        layer = Layer("quota", allowed=False, meter="messages/day", limit=0, used=0)
        monkeypatch.setattr(refusals, "connection", Outside())
        for _ in range(100):
            refusals.note(account=account, layer=layer, decision=Decision((layer,)), model="m", feature="", user="", now=now)
        assert Refusal.objects.get(account=account).count == 1
        monkeypatch.setattr(refusals, "SECONDS", 0)
        refusals.note(account=account, layer=layer, decision=Decision((layer,)), model="m", feature="", user="", now=now)
        assert Refusal.objects.get(account=account).count == 101

    def test_what_cannot_be_noted_still_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refusals, "_NOTE", "select no_such_function(" + ", ".join(["%s"] * 13) + ")")
        shop = Shop.new(("messages", "day", 0))
        assert shop.refused_by() == "quota"
        assert not Refusal.objects.filter(account=shop.account).exists()

    def test_an_object_without_a_place_is_kept_too(self) -> None:
        shop = Shop.new(("agents", "count", 0))
        with pytest.raises(usage.Refused):
            usage.reserve(account=shop.account, meter="agents", object_ref="a1", now=datetime.now(UTC))
        assert Refusal.objects.get(account=shop.account).meter == "agents/count"


class TestSurfaces:
    def test_the_api_tells_a_customers_key_no_cost_and_nobody_elses(self, client: Client) -> None:
        shop, other = Shop.new(tier={"daily_cost_nanos": 7}), Shop.new(("messages", "day", 0))
        assert (shop.refused_by(), other.refused_by()) == ("cost", "quota")
        key = make_key(shop.product, account=shop.account, scopes=["usage:read"])
        answer = client.get("/api/v1/usage/refusals", headers={"Authorization": f"Bearer {key}"})
        [item] = answer.json()["items"]
        assert (item["layer"], item["meter"], item["count"]) == ("cost", "cost/day", 1)
        assert "0.000000007" not in answer.content.decode()
        staff = client.get(
            f"/api/v1/usage/refusals?account={shop.account.public_id}", headers={"Authorization": f"Bearer {make_key(shop.product)}"}
        )
        assert "$0.000000007" in staff.content.decode()

    def test_the_customers_page_has_the_story_and_another_accounts_is_missing(self, client: Client) -> None:
        shop = Shop.new(("messages", "day", 0))
        shop.refused_by()
        user = User.objects.create_user("ann@example.com")
        Membership.objects.create(account=shop.account, user=user, role=Membership.Role.OWNER)
        client.force_login(user)
        shown = client.get(f"/a/{shop.account.public_id}/refusals/").content.decode()
        assert "quota (messages/day): refused, 0 of 0" in shown
        assert client.get(f"/a/{Shop.new().account.public_id}/refusals/").status_code == 404

    def test_a_tenants_role_reads_its_own_and_never_the_costs(self) -> None:
        shop, other = Shop.new(("messages", "day", 0)), Shop.new(("messages", "day", 0))
        shop.refused_by()
        other.refused_by()
        with tenancy.acting_as(account=shop.account):
            assert [each.account_id for each in Refusal.objects.defer("costs")] == [shop.account.pk]
        with pytest.raises(DatabaseError, match="permission denied"), tenancy.acting_as(account=shop.account):
            list(Refusal.objects.all())

    def test_staff_read_it_in_admin_and_on_a_terminal(self, admin_client: Client) -> None:
        shop = Shop.new(("messages", "day", 0))
        shop.refused_by()
        kept = Refusal.objects.get(account=shop.account)
        shown = admin_client.get(f"/admin/metering/refusal/{kept.pk}/change/").content.decode()
        assert "What was asked, in this order:" in shown
        out = io.StringIO()
        call_command("explain", shop.account.public_id, stdout=out)
        assert out.getvalue().startswith("1. Refused on ")
        out = io.StringIO()
        call_command("explain", make_account(make_product()).public_id, stdout=out)
        assert out.getvalue() == "Nothing was refused.\n"
        with pytest.raises(CommandError, match="is no account"):
            call_command("explain", "acct_\0")
