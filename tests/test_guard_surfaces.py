"""The runaway guard as client apps, customers and staff meet it: answers, pages, and who may release what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from accounts import tenancy
from accounts.models import Account
from metering.models import GuardState, GuardStep, Spend
from metering.tests.limited import PER_TOKEN, Shop
from metering.tests.test_prompts import owner, words
from tests.factories import make_account, make_model
from tests.test_admin import staff, superuser
from tests.test_limits_api import App

__all__ = ["superuser"]
pytestmark = pytest.mark.django_db
PRICE = PER_TOKEN * 3 // 2


def held(shop: Shop, step: int, *, kind: str = "session", ref: str = "s", **more: Any) -> GuardState:
    """A step in force, as the job leaves it."""
    now = datetime.now(UTC)
    figures = {"spent_nanos": 12 * 10**9, "usual_nanos": 10**9, "available_nanos": 6 * 10**9, "peak_nanos": 12 * 10**9}
    blocked = {"blocked_until": now + timedelta(minutes=20), "releases_at": now + timedelta(minutes=20)} if step == 4 else {}
    return GuardState.objects.create(
        account=shop.account, kind=kind, ref=ref, step=step, since=now, looked_at=now, window_minutes=10, **figures | blocked | more
    )


class TestApi:
    def test_a_warning_comes_with_the_leave_to_work(self) -> None:
        shop = Shop.new()
        shop.guard()
        held(shop, 1)
        answer = App(shop).authorize(session="s")
        assert answer.status_code == 200
        [warning] = answer.json()["warnings"]
        assert (warning["layer"], warning["step"], warning["model"]) == ("guard", "warn", None)
        assert warning["detail"].startswith("This session has spent $12.00 in 10 minutes; usual is $1.00 at most.")

    def test_a_dear_model_is_refused_with_the_name_of_a_cheaper_one_which_passes(self) -> None:
        shop = Shop.new()
        cheap = make_model(input_price=1_000_000, output_price=0)
        shop.guard(degrade_at_ppm=5_000_000, floor_nanos=1, cheaper_models=[cheap])
        held(shop, 2)
        refused = App(shop).authorize(session="s")
        body = refused.json()
        assert (refused.status_code, body["code"], body["step"], body["model"]) == (429, "model_degraded", "degrade", cheap)
        assert App(shop).authorize(session="s", model=body["model"]).status_code == 200

    def test_a_slowed_session_hears_when_to_come_back(self) -> None:
        shop = Shop.new()
        shop.guard(slow_at_ppm=5_000_000, floor_nanos=1, slow_per_minute=1)
        held(shop, 3)
        app = App(shop)
        assert app.authorize(session="s").status_code == 200
        refused = app.authorize(session="s")
        assert (refused.status_code, refused.json()["code"]) == (429, "slowed_down")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60

    def test_a_blocked_session_is_refused_until_its_end_and_another_is_not(self) -> None:
        shop = Shop.new()
        shop.guard()
        held(shop, 4)
        refused = App(shop).authorize(session="s")
        assert (refused.status_code, refused.json()["code"], refused.json()["step"]) == (429, "throttled", "block")
        assert 1_100 <= int(refused.headers["Retry-After"]) <= 1_200
        assert App(shop).authorize(session="t").status_code == 200

    def test_a_cap_that_never_begins_anew_asks_nobody_to_come_back(self) -> None:
        shop = Shop.new()
        shop.guard(("run", "lifetime", 5 * PRICE), ("run", "day", 50 * PRICE))
        app = App(shop)
        first = app.authorize(tokens=5, run="r").json()
        assert {"layer": "cap", "meter": "spend:run/lifetime", "remaining": "0.000000000"} in first["limits"]
        refused = app.authorize(run="r")
        assert (refused.status_code, refused.json()["code"], refused.json()["layer"]) == (429, "spend_cap_reached", "cap")
        assert "Retry-After" not in refused.headers
        assert "resets_at" not in refused.json()


def spending(client: Client, account: Account, role: str = "owner") -> str:
    client.force_login(owner(account, role))
    response = client.get(f"/a/{account.public_id}/spending/")
    assert response.status_code == 200
    return words(response.content).partition("> ")[2]


class TestPage:
    def test_it_says_what_is_held_why_and_until_when_and_who_spent_what_of_the_caps(self, client: Client) -> None:
        shop = Shop.new(credit=100)
        shop.guard(("member", "day", 1_000_000 * PRICE), ("pool", "period", 9_000_000 * PRICE), ("run", "lifetime", 9_000_000 * PRICE))
        shop.use(tokens=400_000, user="ada")
        shop.use(tokens=200_000, user="bob")
        held(shop, 4, ref="agent-7")
        GuardStep.objects.create(
            account=shop.account,
            kind="session",
            ref="agent-7",
            before=0,
            step=4,
            mode="hard",
            at=datetime.now(UTC),
            actor="guard",
            reason="why",
        )
        said = spending(client, shop.account, "member")
        assert said.startswith("Spending is unusual")
        assert "Session agent-7 blocked This session has spent $12.00 in 10 minutes; usual is $1.00 at most." in said
        assert "Each member may spend $1.50 a day" in said
        assert "ada $0.60" in said
        assert "bob $0.30" in said
        assert "The whole account may spend $13.50 a billing period" in said
        assert "Ada $0.90" in said
        assert "Each run may spend $13.50 in all Nothing is spent of it yet." in said
        assert "Session agent-7: blocked why" in said

    def test_without_a_guard_or_in_shadow_nothing_of_it_is_told(self, client: Client) -> None:
        shop = Shop.new()
        assert spending(client, shop.account).startswith("Spending is not watched")
        shop.guard(("pool", "day", 5), mode="shadow")
        held(shop, 4)
        assert spending(client, shop.account).startswith("Spending is not watched")

    def test_calm_is_told_as_that(self, client: Client) -> None:
        shop = Shop.new()
        shop.guard()
        assert spending(client, shop.account).startswith("Spending is as usual")

    def test_a_stranger_has_no_such_page_and_a_tenant_reads_only_its_own_rows(self, client: Client) -> None:
        shop = Shop.new()
        shop.guard(("pool", "day", 100 * PRICE))
        shop.use()
        held(shop, 1)
        other = make_account(shop.product)
        client.force_login(owner(other))
        assert client.get(f"/a/{shop.account.public_id}/spending/").status_code == 404
        with tenancy.acting_as(account=other):
            assert [model.objects.count() for model in (GuardState, GuardStep, Spend)] == [0, 0, 0]
        with tenancy.acting_as(account=shop.account):
            assert [model.objects.count() for model in (GuardState, Spend)] == [1, 1]

    def test_a_refusal_leads_to_why(self, client: Client) -> None:
        shop = Shop.new()
        shop.guard(("pool", "day", 0))
        client.force_login(owner(shop.account))
        said = words(client.get(f"/a/{shop.account.public_id}/limit/?meter=spend:pool/day").content).partition("> ")[2]
        assert said.startswith("What may be spent here is spent")
        assert "See who spends what" in said
        assert client.get(f"/a/{shop.account.public_id}/").status_code == 200


class TestStaff:
    def test_a_step_is_shown_with_its_figures_and_released_with_a_reason(self, superuser: Client) -> None:
        shop = Shop.new()
        shop.guard()
        state = held(shop, 4)
        listed = superuser.get("/admin/metering/guardstate/").content.decode()
        assert "blocked" in listed
        shown = superuser.get(f"/admin/metering/guardstate/{state.pk}/change/").content.decode()
        assert "This session has spent $12.00 in 10 minutes" in shown
        assert f"/admin/metering/guardstate/{state.pk}/release/" in shown
        asked = superuser.get(f"/admin/metering/guardstate/{state.pk}/release/").content.decode()
        assert "unless it spends more than" in asked
        assert shop.refused_by(session="s") == "guard"
        done = superuser.post(f"/admin/metering/guardstate/{state.pk}/release/", {"reason": "They told us of it."})
        assert done.status_code == 302
        assert shop.refused_by(session="s") is None
        step = GuardStep.objects.get(account=shop.account)
        assert (step.before, step.step, step.reason) == (4, 0, "They told us of it.")
        assert "@example.com" in step.actor
        assert LogEntry.objects.get(object_id=str(state.pk)).change_message == "Released from blocked: They told us of it."
        again = superuser.post(f"/admin/metering/guardstate/{state.pk}/release/", {"reason": "Again."}, follow=True).content.decode()
        assert "There is no step to end" in again

    @pytest.mark.parametrize("reason", ["", "   ", "\0", "x" * 501])
    def test_nothing_is_released_without_a_reason(self, superuser: Client, reason: str) -> None:
        shop = Shop.new()
        shop.guard()
        state = held(shop, 4)
        assert superuser.post(f"/admin/metering/guardstate/{state.pk}/release/", {"reason": reason}).status_code == 200
        assert GuardState.objects.get(pk=state.pk).step == 4

    def test_only_who_may_change_it_releases(self) -> None:
        shop = Shop.new()
        state = held(shop, 4)
        looker = staff("metering.view_guardstate")
        assert looker.get(f"/admin/metering/guardstate/{state.pk}/change/").status_code == 200
        assert looker.post(f"/admin/metering/guardstate/{state.pk}/release/", {"reason": "r"}).status_code == 403
        assert looker.get("/admin/metering/guardstate/999999/release/").status_code == 403

    def test_a_step_is_neither_added_edited_nor_deleted_by_hand(self, superuser: Client) -> None:
        state = held(Shop.new(), 4)
        for path in ("add/", f"{state.pk}/delete/"):
            assert superuser.get(f"/admin/metering/guardstate/{path}").status_code == 403
        superuser.post(f"/admin/metering/guardstate/{state.pk}/change/", {"step": 0})
        assert GuardState.objects.get(pk=state.pk).step == 4
