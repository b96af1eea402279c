"""Staff looks through a customer's eyes: it reads, with a banner, a reason and an end, and does nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, ApiKey, AuditEvent, Membership, User
from tests.factories import make_account, make_product

pytestmark = pytest.mark.django_db


def person(role: str = "", **fields: Any) -> User:
    user = User.objects.create_user(f"{uuid4().hex[:12]}@example.com", "correct horse battery", **fields)
    if role:
        user.groups.add(Group.objects.get(name=role))
    return user


class Desk:
    """A customer with an owner, and one of staff who looks."""

    def __init__(self, role: str = "support", **staff: Any) -> None:
        self.account = make_account(make_product(flags={"api_access": True}), credit=5)
        self.owner = person()
        self.member = Membership.objects.create(account=self.account, user=self.owner, role="owner")
        self.staff = person(role, is_staff=True, **staff)
        self.client = Client()
        self.client.force_login(self.staff)

    def look(self, member: Membership | None = None, reason: str = "ticket 4711", account: Account | None = None) -> Any:
        url = reverse("admin:accounts_account_look", args=[(account or self.account).pk])
        return self.client.post(url, {"member": (member or self.member).pk, "reason": reason})

    def path(self, page: str = "", account: Account | None = None) -> str:
        return f"/a/{(account or self.account).public_id}/{page}"

    def says(self, path: str, status: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == status, path
        return answer.content.decode()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def lines(desk: Desk) -> list[str]:
    return [event.entry.change_message for event in AuditEvent.objects.filter(account=desk.account, kind="looked").order_by("pk")]


class TestLooking:
    @pytest.mark.failure(100)
    def test_it_shows_what_the_person_sees_under_a_banner_until_it_is_stopped(self, desk: Desk) -> None:
        assert desk.client.get(desk.path()).status_code == 404
        assert desk.look().headers["Location"] == desk.path()
        shown = desk.says(desk.path())
        assert all(word in shown for word in ("$5.00", f"You look as {desk.owner.email}", desk.staff.email, "ticket 4711", "Stop looking"))
        for page in ("usage/", "credits/", "billing/", "team/", "keys/", "settings/"):
            assert "Stop looking" in desk.says(desk.path(page)), page
        ended = desk.client.post(reverse("admin:accounts_account_look_end"))
        assert ended.headers["Location"] == reverse("admin:accounts_account_change", args=[desk.account.pk])
        assert desk.client.get(desk.path()).status_code == 404
        began, over = lines(desk)
        assert began.startswith(f"Began to look as {desk.owner.email}, until ")
        assert over == f"Looks no more as {desk.owner.email}: stopped"
        event = AuditEvent.objects.filter(account=desk.account, kind="looked").earliest("pk")
        assert (event.entry.user, event.reason) == (desk.staff, "ticket 4711")
        desk.client.post(reverse("admin:accounts_account_look_end"))
        assert len(lines(desk)) == 2

    @pytest.mark.failure(100)
    def test_nothing_can_be_done_and_the_page_says_so_plainly(self, desk: Desk) -> None:
        desk.look()
        for page, sent in (
            ("keys/", {"name": "x", "scopes": "usage:read"}), ("buy/", {"pack": "x"}), ("billing/cancel/", {}), ("billing/portal/", {}),
            ("team/", {"form": "invite", "email": "x@example.com", "role": "owner"}), ("settings/", {"form": "details", "name": "x"}),
            ("top-up/", {}), ("", {}),
        ):  # fmt: skip
            for method in ("post", "put", "patch", "delete"):
                answer = getattr(desk.client, method)(desk.path(page), sent)
                assert (answer.status_code, "nothing can be changed or bought" in answer.content.decode()) == (403, True), page
        assert not ApiKey.objects.filter(account=desk.account).exists()
        assert not AuditEvent.objects.filter(account=desk.account).exclude(kind="looked").exists()

    def test_nothing_but_this_account_is_looked_at(self, desk: Desk) -> None:
        other = make_account()
        Membership.objects.create(account=other, user=desk.owner, role="owner")
        desk.look()
        for path in (desk.path(account=other), "/", "/accounts/email/", "/accounts/2fa/recovery-codes/", "/accounts/password/change/",
                     "/invitation/x/"):  # fmt: skip
            assert "at this one account" in desk.says(path, 403), path
        assert desk.client.post("/accounts/logout/").status_code == 403
        assert desk.client.get(reverse("admin:index")).status_code == 200  # their own desk stays theirs
        assert desk.client.get("/health").status_code == 200

    def test_it_is_over_after_half_an_hour(self, desk: Desk) -> None:
        desk.look()
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=29, seconds=50)):
            assert desk.client.get(desk.path()).status_code == 200
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=30, seconds=1)):
            assert "any more" in desk.says(desk.path(), 403)
            assert desk.client.get(desk.path()).status_code == 404
        assert lines(desk)[-1].endswith("its time is over")

    @pytest.mark.parametrize("what", ["right", "staff", "target"])
    def test_it_is_over_with_the_right_to_it(self, desk: Desk, what: str) -> None:
        desk.look()
        if what == "right":
            desk.staff.groups.clear()
        elif what == "staff":
            User.objects.filter(pk=desk.staff.pk).update(is_staff=False)
        else:
            User.objects.filter(pk=desk.owner.pk).update(is_staff=True)
        assert "any more" in desk.says(desk.path(), 403)
        assert lines(desk)[-1].endswith("not allowed any more")

    def test_a_file_that_is_taken_away_names_both(self, desk: Desk) -> None:
        desk.look()
        assert desk.client.get(desk.path("statement.csv")).status_code == 200
        event = AuditEvent.objects.get(account=desk.account, kind="exported")
        assert (event.entry.user, event.impersonator) == (desk.owner, desk.staff)
        assert "statement" in desk.says(reverse("admin:admin_logentry_changelist"))  # support sees its own acts, this among them

    def test_the_customers_last_sign_in_and_session_stay_as_they_were(self, desk: Desk) -> None:
        desk.look()
        desk.says(desk.path())
        desk.owner.refresh_from_db()
        assert desk.owner.last_login is None
        assert desk.client.session["_auth_user_id"] == str(desk.staff.pk)


class TestWho:
    @pytest.mark.parametrize(("role", "status"), [("support", 302), ("finance", 403), ("", 403)])
    def test_support_and_superusers_look(self, role: str, status: int) -> None:
        assert Desk(role).look().status_code == status
        assert Desk("", is_superuser=True).look().status_code == 302

    @pytest.mark.failure(100)
    @pytest.mark.parametrize("fields", [{"is_staff": True}, {"is_superuser": True}, {"is_active": False}])
    def test_nobody_looks_as_staff_or_who_cannot_sign_in(self, desk: Desk, fields: dict[str, bool]) -> None:
        User.objects.filter(pk=desk.owner.pk).update(**fields)
        assert desk.look().status_code == 200
        assert desk.client.get(desk.path()).status_code == 404

    def test_nobody_looks_as_a_member_of_another_account_or_without_a_reason(self, desk: Desk) -> None:
        other = make_account()
        stranger = Membership.objects.create(account=other, user=person(), role="owner")
        for answer in (desk.look(stranger), desk.look(reason=""), desk.look(reason="\0"), desk.look(reason="x" * 301)):
            assert answer.status_code == 200
        assert desk.client.post(reverse("admin:accounts_account_look", args=[desk.account.pk]), {"member": "x"}).status_code == 200
        assert desk.client.post(reverse("admin:accounts_account_look", args=[999_999_999]), {}).status_code == 404
        assert desk.client.get(desk.path()).status_code == 404

    def test_a_closed_account_is_not_looked_at(self, desk: Desk) -> None:
        Account.objects.filter(pk=desk.account.pk).update(closed_at=timezone.now())
        assert "closed" in desk.look().content.decode()

    def test_the_link_is_on_the_accounts_page_for_who_may(self) -> None:
        for role, there in (("support", True), ("finance", False)):
            desk = Desk(role)
            assert (reverse("admin:accounts_account_look", args=[desk.account.pk]) in desk.says(
                reverse("admin:accounts_account_change", args=[desk.account.pk])
            )) == there  # fmt: skip

    def test_it_is_begun_and_stopped_by_a_post_alone(self, desk: Desk) -> None:
        assert desk.client.get(reverse("admin:accounts_account_look", args=[desk.account.pk])).status_code == 200
        assert desk.client.get(reverse("admin:accounts_account_look_end")).status_code == 405
        assert lines(desk) == []
