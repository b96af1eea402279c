"""Who belongs to an account: the team's pages, act by act and role by role, and invitations from the mail to the membership."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.contrib.admin.models import LogEntry
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import members, registration, tenancy
from accounts.models import Account, Invitation, Mail, Membership, User
from billing.models import StripeSubscription, Subscription
from pricing.models import PlanVersion
from tests import factories

Role = Membership.Role
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROLES = ["owner", "admin", "member", "stranger"]


def make_user(*, verified: bool = True) -> User:
    user = User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")
    EmailAddress.objects.create(user=user, email=user.email, verified=verified, primary=True)
    return user


def join(account: Account, role: str) -> Membership:
    return Membership.objects.create(account=account, user=make_user(), role=role)


def make_team(**fields: Any) -> Account:
    with transaction.atomic():  # a plan's version and its entitlements
        product = factories.make_product(flags={"team_collaboration": True, "white_label": True, "api_access": True})
    return factories.make_account(product, owner=make_user(), kind="team", **fields)


@pytest.fixture
def team(db: None) -> Account:
    return make_team()


def owner_of(account: Account) -> User:
    return account.memberships.filter(role=Role.OWNER).order_by("pk")[0].user


def signed_in(account: Account, role: str) -> Client:
    """Somebody of this role in ``account``, in a browser of their own."""
    client = Client()
    if role == "stranger":
        client.force_login(owner_of(make_team()))
    elif role == "owner":
        client.force_login(owner_of(account))
    else:
        client.force_login(join(account, role).user)
    return client


def invite(account: Account, email: str = "bob@example.com", role: str = "member", now: datetime | None = None) -> Invitation:
    return members.invite(account=account, email=email, role=role, actor=owner_of(account), now=now or datetime.now(UTC))


def link(invitation: Invitation) -> str:
    return f"/invitation/{members.token(invitation)}/"


@pytest.mark.django_db
class TestWhoMayDoWhat:
    """The whole matrix, page by page."""

    @pytest.mark.parametrize("role", ROLES)
    def test_the_team_is_seen_by_all_who_belong_to_it(self, team: Account, role: str) -> None:
        response = signed_in(team, role).get(f"/a/{team.public_id}/team/")
        assert response.status_code == (404 if role == "stranger" else 200)

    @pytest.mark.parametrize("given", ["owner", "admin", "member"])
    @pytest.mark.parametrize("role", ROLES)
    def test_inviting(self, team: Account, role: str, given: str) -> None:
        client = signed_in(team, role)
        response = client.post(f"/a/{team.public_id}/team/", {"form": "invite", "email": "bob@example.com", "role": given})
        expected = {"owner": 302, "admin": 422 if given == "owner" else 302, "member": 403, "stranger": 404}[role]
        assert response.status_code == expected
        assert Invitation.objects.filter(account=team).count() == Mail.objects.filter(account=team).count() == (expected == 302)

    @pytest.mark.parametrize("target", ["owner", "admin", "member"])
    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("act", ["role", "remove"])
    def test_changing_and_removing_somebody(self, team: Account, role: str, target: str, act: str) -> None:
        chosen = join(team, target)
        client = signed_in(team, role)
        path = f"/a/{team.public_id}/team/members/{chosen.pk}/"
        may = role == "owner" or (role == "admin" and target != "owner")
        refused = 404 if role == "stranger" else 403
        assert client.get(path).status_code == (200 if may else refused)
        given = "member" if target != "member" else "admin"
        response = client.post(path, {"form": act} | ({"role": given} if act == "role" else {}))
        assert response.status_code == (302 if may else refused)
        left = Membership.objects.filter(pk=chosen.pk).values_list("role", flat=True).first()
        assert left == (target if not may else given if act == "role" else None)

    @pytest.mark.parametrize("role", ["admin", "member"])
    def test_everybody_but_the_last_owner_may_leave(self, team: Account, role: str) -> None:
        mine = join(team, role)
        client = Client()
        client.force_login(mine.user)
        assert client.post(f"/a/{team.public_id}/team/members/{mine.pk}/", {"form": "remove"}).headers["Location"] == "/"
        assert not Membership.objects.filter(pk=mine.pk).exists()
        assert client.get(f"/a/{team.public_id}/").status_code == 404

    @pytest.mark.parametrize("role", ["admin", "member"])
    def test_nobody_gives_themselves_a_higher_role(self, team: Account, role: str) -> None:
        mine = join(team, role)
        client = Client()
        client.force_login(mine.user)
        response = client.post(f"/a/{team.public_id}/team/members/{mine.pk}/", {"form": "role", "role": "owner"})
        assert response.status_code == 422
        mine.refresh_from_db()
        assert mine.role == role

    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("act", ["resend", "revoke"])
    def test_sending_an_invitation_again_and_taking_it_back(self, team: Account, role: str, act: str) -> None:
        invitation = invite(team)
        client = signed_in(team, role)
        path = f"/a/{team.public_id}/team/invitations/{invitation.pk}/"
        expected = {"owner": 302, "admin": 302, "member": 403, "stranger": 404}[role]
        assert client.get(path).status_code == (200 if expected == 302 else expected)
        assert client.post(path, {"form": act}).status_code == expected
        invitation.refresh_from_db()
        assert (invitation.sent == 2, invitation.revoked_at is not None) == (
            (act == "resend", act == "revoke") if expected == 302 else (False, False)
        )

    def test_an_admin_does_not_touch_the_invitation_of_an_owner(self, team: Account) -> None:
        invitation = invite(team, role="owner")
        path = f"/a/{team.public_id}/team/invitations/{invitation.pk}/"
        assert signed_in(team, "admin").post(path, {"form": "revoke"}).status_code == 403

    @pytest.mark.parametrize("path", ["team/", "team/members/{member}/", "team/invitations/{invitation}/"])
    @pytest.mark.failure(91)
    def test_a_form_without_its_token_and_other_verbs_change_nothing(self, team: Account, path: str) -> None:
        chosen, invitation = join(team, "member"), invite(team)
        address = f"/a/{team.public_id}/" + path.format(member=chosen.pk, invitation=invitation.pk)
        strict = Client(enforce_csrf_checks=True)
        strict.force_login(owner_of(team))
        for form in ("invite", "team", "role", "remove", "resend", "revoke"):
            assert strict.post(address, {"form": form, "role": "admin", "email": "eve@example.com"}).status_code == 403
        assert strict.put(address).status_code in (403, 405)
        assert strict.get(address, {"form": "remove"}).status_code == 200
        assert strict.get(address).headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in strict.get(address).headers["Content-Security-Policy"]
        chosen.refresh_from_db()
        invitation.refresh_from_db()
        assert (chosen.role, invitation.sent, invitation.revoked_at) == ("member", 1, None)

    def test_other_accounts_members_and_invitations_are_not_found_by_their_numbers(self, team: Account) -> None:
        other = make_team()
        client = signed_in(team, "owner")
        for path in (f"members/{join(other, 'member').pk}/", f"invitations/{invite(other).pk}/", "members/999999999999999999/"):
            assert client.get(f"/a/{team.public_id}/team/{path}").status_code == 404
            assert client.post(f"/a/{team.public_id}/team/{path}", {"form": "remove"}).status_code == 404

    def test_who_was_demoted_a_moment_ago_does_nothing_more(self, team: Account) -> None:
        """The page was open; the role is read again under the lock."""
        admin = join(team, "admin")
        Membership.objects.filter(pk=admin.pk).update(role="member")
        with pytest.raises(PermissionDenied):
            members.invite(account=team, email="x@example.com", role="member", actor=admin.user, now=NOW)
        with pytest.raises(PermissionDenied):
            members.remove(membership=team.memberships.get(role="owner"), actor=admin.user, now=NOW)

    def test_more_people_ask_no_more_queries(self, team: Account) -> None:
        client = signed_in(team, "owner")

        def count() -> int:
            with CaptureQueriesContext(connection) as queries:
                assert client.get(f"/a/{team.public_id}/team/").status_code == 200
            return len(queries)

        join(team, "member")
        invite(team)
        few = count()
        for number in range(8):
            join(team, "member")
            invite(team, f"{number}@example.com")
        assert count() == few <= 22

    def test_every_act_leaves_a_line_in_the_audit_log(self, team: Account) -> None:
        owner, chosen = owner_of(team), join(team, "member")
        invitation = invite(team)
        members.resend(invitation=invitation, actor=owner, now=NOW)
        members.revoke(invitation=invitation, actor=owner, now=NOW)
        members.change_role(membership=chosen, role="admin", actor=owner, now=NOW)
        members.remove(membership=chosen, actor=owner, now=NOW)
        lines = LogEntry.objects.filter(object_id=str(team.pk), user=owner).order_by("pk").values_list("change_message", flat=True)
        assert [line.partition(" ")[0] for line in lines] == ["Invited", "Sent", "Revoked", "Made", "Removed"]


@pytest.mark.django_db
class TestTheLastOwner:
    @pytest.mark.parametrize("act", ["role", "remove"])
    def test_neither_leaves_nor_steps_down(self, team: Account, act: str) -> None:
        client, mine = signed_in(team, "owner"), team.memberships.get()
        path = f"/a/{team.public_id}/team/members/{mine.pk}/"
        assert b"An account keeps at least one owner" in client.get(path).content
        response = client.post(path, {"form": act} | ({"role": "admin"} if act == "role" else {}))
        assert response.status_code == 422
        assert team.memberships.get().role == "owner"

    @pytest.mark.parametrize(
        "statement",
        [
            "delete from accounts_membership where account_id = %(account)s",
            "update accounts_membership set role = 'admin' where account_id = %(account)s",
            "update accounts_membership set account_id = %(other)s where account_id = %(account)s",
        ],
    )
    def test_the_database_refuses_too(self, team: Account, statement: str) -> None:
        other = factories.make_account()
        with pytest.raises(IntegrityError, match="would have no owner"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement, {"account": team.pk, "other": other.pk})

    def test_members_and_second_owners_go_as_they_like(self, team: Account) -> None:
        second, member = join(team, "owner"), join(team, "member")
        member.delete()
        second.role = "admin"
        second.save()
        second.delete()
        assert team.memberships.get().role == "owner"

    def test_an_account_that_never_had_an_owner_needs_none(self) -> None:
        account = factories.make_account(kind="team")
        join(account, "member").delete()


@pytest.mark.django_db
class TestInvitations:
    def test_the_mail_goes_to_the_address_with_a_link_that_works(self, team: Account, django_capture_on_commit_callbacks: object) -> None:
        invitation = invite(team, "Bob@Example.com ")
        mail = Mail.objects.get(account=team)
        assert (mail.kind, mail.recipient, mail.context["url"]) == ("invitation", "bob@example.com", link(invitation))

    def test_it_is_accepted_by_the_one_it_is_for(self, team: Account) -> None:
        bob = make_user()
        invitation = invite(team, bob.email, "admin")
        client = Client()
        client.force_login(bob)
        assert f"Join {team.name}".encode() in client.get(link(invitation)).content
        response = client.post(link(invitation), {"form": "accept"}, follow=True)
        assert response.redirect_chain[0][0] == f"/a/{team.public_id}/"
        assert team.memberships.get(user=bob).role == "admin"
        invitation.refresh_from_db()
        assert invitation.accepted_by == bob
        assert client.post(link(invitation), {"form": "accept"}).status_code == 302, "the same person again is led in"

    def test_opening_the_link_accepts_nothing(self, team: Account) -> None:
        bob = make_user()
        invitation = invite(team, bob.email)
        client = Client()
        client.force_login(bob)
        client.get(link(invitation))
        client.head(link(invitation))
        assert not team.memberships.filter(user=bob).exists()

    def test_somebody_else_with_the_link_is_refused(self, team: Account) -> None:
        invitation = invite(team)
        client = Client()
        client.force_login(make_user())
        page = client.get(link(invitation)).content.decode()
        assert "You are signed in as" in page
        assert 'value="accept"' not in page
        assert client.post(link(invitation), {"form": "accept"}).status_code == 403
        assert team.memberships.count() == 1

    def test_an_address_that_is_not_confirmed_is_nobodys(self, team: Account) -> None:
        bob = make_user(verified=False)
        invitation = invite(team, bob.email)
        client = Client()
        client.force_login(bob)
        assert b"Confirm this address" in client.get(link(invitation)).content
        assert client.post(link(invitation), {"form": "accept"}).status_code == 403

    def test_it_ends_after_seven_days(self, team: Account) -> None:
        invitation = invite(team, now=NOW)
        token = members.token(invitation)
        members.read(token=token, now=NOW + timedelta(days=7, seconds=-1))
        with pytest.raises(members.NoInvitation, match="expired"):
            members.read(token=token, now=NOW + timedelta(days=7))

    def test_taken_back_it_is_over(self, team: Account) -> None:
        bob = make_user()
        invitation = invite(team, bob.email)
        members.revoke(invitation=invitation, actor=owner_of(team), now=NOW)
        client = Client()
        client.force_login(bob)
        response = client.post(link(invitation), {"form": "accept"})
        assert response.status_code == 404
        assert b"taken back" in response.content

    def test_sent_again_only_the_newest_link_works(self, team: Account) -> None:
        old = invite(team, now=NOW)
        earlier = members.token(old)
        new = members.resend(invitation=old, actor=owner_of(team), now=NOW + timedelta(days=8))
        later = NOW + timedelta(days=9)
        with pytest.raises(members.NoInvitation, match="newer mail"):
            members.read(token=earlier, now=later)
        assert members.read(token=members.token(new), now=later) == new
        assert Mail.objects.filter(account=team).count() == 2

    def test_inviting_an_address_again_renews_its_invitation(self, team: Account) -> None:
        first = invite(team)
        second = invite(team, "BOB@example.com", "admin")
        assert (second.pk, second.role, second.sent) == (first.pk, "admin", 2)

    @pytest.mark.parametrize("change", ["pk", "sent", "signature", "cut", "longer"])
    def test_an_altered_link_is_none(self, team: Account, change: str) -> None:
        invitation = invite(team)
        other = invite(team, "eve@example.com")
        value, _, signature = members.token(invitation).partition(":")
        altered = {
            "pk": f"{other.pk}.1:{signature}",
            "sent": f"{invitation.pk}.2:{signature}",
            "signature": f"{value}:{signature[::-1]}",
            "cut": f"{value}:{signature[:-1]}",
            "longer": f"{value}:{signature}A",
        }[change]
        with pytest.raises(members.NoInvitation, match="altered"):
            members.read(token=altered, now=datetime.now(UTC))
        assert Client().get(f"/invitation/{altered}/").status_code == 404

    @pytest.mark.parametrize("token", ["x", "1.1:x", "%00", "%ed%a0%80", "9" * 200, "1.1", ":", "..", "１.1:x", "' or 1=1"])
    def test_garbage_for_a_link_is_not_found(self, client: Client, token: str) -> None:
        assert client.get(f"/invitation/{token}/").status_code == 404
        assert client.post(f"/invitation/{token}/", {"form": "accept"}).status_code == 404

    def test_a_member_is_not_invited_and_keeps_their_role_by_an_old_link(self, team: Account) -> None:
        admin = join(team, "admin")
        with pytest.raises(members.Refused, match="member already"):
            invite(team, admin.user.email)
        invitation = invite(team, "second@example.com")
        EmailAddress.objects.create(user=admin.user, email="second@example.com", verified=True)
        members.accept(token=members.token(invitation), user=admin.user, now=datetime.now(UTC))
        admin.refresh_from_db()
        assert admin.role == "admin"

    def test_there_is_a_limit_on_mails(self, team: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        invitation = invite(team, now=NOW)
        for _ in range(members.MAX_SENT - 1):
            invitation = members.resend(invitation=invitation, actor=owner_of(team), now=NOW)
        with pytest.raises(members.Refused, match="5 times"):
            members.resend(invitation=invitation, actor=owner_of(team), now=NOW)
        monkeypatch.setattr(members, "MAX_A_DAY", 2)
        invite(team, "a@example.com", now=NOW)
        with pytest.raises(members.Refused, match="tomorrow"):
            invite(team, "b@example.com", now=NOW)
        monkeypatch.setattr(members, "MAX_OPEN", 2)
        with pytest.raises(members.Refused, match="open invitations"):
            invite(team, "b@example.com", now=NOW)

    def test_a_closed_account_takes_nobody(self, team: Account) -> None:
        invitation = invite(team, now=NOW)
        Account.objects.filter(pk=team.pk).update(closed_at=NOW)
        with pytest.raises(members.NoInvitation):
            members.read(token=members.token(invitation), now=NOW)
        with pytest.raises(members.Refused, match="closed"):
            invite(team, "c@example.com")

    def test_a_tenant_reads_its_own_invitations_alone(self, team: Account) -> None:
        mine, theirs = invite(team), invite(make_team())
        with tenancy.acting_as(user=owner_of(team)):
            assert list(Invitation.objects.values_list("pk", flat=True)) == [mine.pk]
        with tenancy.acting_as(account=theirs.account):
            assert list(Invitation.objects.values_list("pk", flat=True)) == [theirs.pk]

    def test_a_forgotten_person_is_in_no_invitation_and_no_line_of_the_log(self, team: Account) -> None:
        bob, eve = make_user(), make_user()
        invite(make_team(), bob.email)
        members.accept(token=members.token(invite(team, bob.email)), user=bob, now=datetime.now(UTC))
        invite(team, eve.email)
        registration.forget_user(user=User.objects.get(pk=bob.pk), now=NOW)
        assert not Invitation.objects.filter(email=bob.email).exists()
        assert not LogEntry.objects.filter(change_message__contains=bob.email).exists()
        assert Invitation.objects.filter(email=eve.email).exists()


class TestAtOnce:
    """Threads, each with its own connection; nothing is rolled back."""

    def test_the_database_has_the_second_of_two_last_owners_wait_for_the_first(self, committed: None) -> None:
        account = make_team()
        join(account, "owner")
        first, second = account.memberships.all()
        gone, asked = threading.Event(), threading.Event()

        def leave() -> None:
            with transaction.atomic():
                first.delete()
                gone.set()
                asked.wait(10)
                time.sleep(0.5)  # the other has sent its own delete

        def follow() -> None:
            gone.wait(10)
            asked.set()
            second.delete()

        errors = at_once([leave, follow])
        assert [type(error) for error in errors] == [IntegrityError]
        assert list(account.memberships.all()) == [second]

    @pytest.mark.parametrize("checked", [True, False])
    def test_of_two_owners_who_leave_at_once_one_stays(self, committed: None, checked: bool) -> None:
        """``checked`` False: without the code's own check, by the database alone."""
        for _ in range(6):
            account = make_team()
            join(account, "owner")
            owners = list(account.memberships.select_related("user", "account"))

            def leave(mine: Membership) -> None:
                if checked:
                    members.remove(membership=mine, actor=mine.user, now=NOW)
                else:
                    mine.delete()

            errors = at_once([lambda mine=mine: leave(mine) for mine in owners])  # type: ignore[misc]
            assert len(errors) == 1, errors
            assert isinstance(errors[0], members.LastOwner if checked else IntegrityError)
            assert account.memberships.filter(role="owner").count() == 1

    def test_two_who_use_it_at_once_make_one_member(self, committed: None) -> None:
        for _ in range(4):
            account, bob = make_team(), make_user()
            token = members.token(invite(account, bob.email, now=NOW))
            errors = at_once([lambda: members.accept(token=token, user=bob, now=NOW)] * 3)  # noqa: B023
            assert errors == [], "the same person is told the same"
            assert account.memberships.filter(user=bob).count() == 1

    def test_two_people_with_one_address_do_not_both_use_it(self, committed: None) -> None:
        """One has it as a second address. Whoever is later is told so."""
        account, bob, twin = make_team(), make_user(), make_user()
        invitation = invite(account, bob.email, now=NOW)
        token = members.token(invitation)
        errors = at_once([lambda user=user: members.accept(token=token, user=user, now=NOW, proven=True) for user in (bob, twin)])  # type: ignore[misc]
        assert [type(error) for error in errors] == [members.NoInvitation]
        assert account.memberships.count() == 2

    def test_accepted_and_revoked_at_once_it_is_one_of_both(self, committed: None) -> None:
        for _ in range(4):
            account, bob = make_team(), make_user()
            invitation = invite(account, bob.email, now=NOW)
            token, owner = members.token(invitation), owner_of(account)
            at_once(
                [
                    lambda: members.accept(token=token, user=bob, now=NOW),  # noqa: B023
                    lambda: members.revoke(invitation=invitation, actor=owner, now=NOW),  # noqa: B023
                ]
            )
            invitation.refresh_from_db()
            assert (invitation.accepted_at is None) != (invitation.revoked_at is None)
            assert account.memberships.filter(user=bob).exists() == (invitation.accepted_at is not None)


@pytest.mark.django_db
class TestSigningUpByInvitation:
    def sign_up(self, client: Client, token: str, email: str) -> object:
        password = "a long enough phrase"
        return client.post(f"/accounts/signup/?invitation={token}", {"email": email, "password1": password, "password2": password})

    def test_who_signs_up_by_the_link_is_in_and_has_a_confirmed_address(self, team: Account, client: Client) -> None:
        invitation = invite(team, "bob@example.com", "admin")
        page = client.get(link(invitation)).content.decode()
        address = re.search(r'href="(/accounts/signup/\?invitation=[^"]+)"', page)
        assert address is not None
        assert b'value="bob@example.com"' in client.get(address[1]).content
        response = self.sign_up(client, members.token(invitation), "Bob@example.com")
        assert response.status_code == 302  # type: ignore[attr-defined]
        bob = User.objects.get(email="bob@example.com")
        assert EmailAddress.objects.get(user=bob).verified
        assert [(each.account_id, each.role) for each in bob.memberships.all()] == [(team.pk, "admin")]
        assert client.get("/").headers["Location"] == f"/a/{team.public_id}/"

    def test_another_address_than_the_invited_one_is_told_so(self, team: Account, client: Client) -> None:
        invitation = invite(team)
        response = self.sign_up(client, members.token(invitation), "eve@example.com")
        assert b"This invitation is for bob@example.com" in response.content  # type: ignore[attr-defined]
        assert not User.objects.filter(email="eve@example.com").exists()

    @pytest.mark.parametrize("token", ["x", "1.1:abc", "%00"])
    def test_a_link_that_is_none_opens_no_account(self, client: Client, token: str) -> None:
        factories.make_product()
        response = self.sign_up(client, token, "eve@example.com")
        assert response.status_code == 200  # type: ignore[attr-defined]
        assert not User.objects.filter(email="eve@example.com").exists()

    def test_an_invitation_that_ends_while_the_form_is_checked_leaves_no_user(
        self, team: Account, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        invitation = invite(team)
        token = members.token(invitation)
        accept = members.accept

        def late(**arguments: object) -> Membership:
            members.revoke(invitation=invitation, actor=owner_of(team), now=NOW)
            return accept(**arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(members, "accept", late)
        response = self.sign_up(client, token, "bob@example.com")
        assert response.status_code == 302  # type: ignore[attr-defined]
        assert not User.objects.filter(email="bob@example.com").exists()

    def test_a_second_one_does_not_sign_up_by_a_used_link(self, team: Account, client: Client) -> None:
        invitation = invite(team)
        self.sign_up(client, members.token(invitation), "bob@example.com")
        User.objects.filter(email="bob@example.com").update(email="bob-moved@example.com")
        EmailAddress.objects.filter(email="bob@example.com").update(email="bob-moved@example.com")
        response = self.sign_up(Client(), members.token(invitation), "bob@example.com")
        assert b"was used already" in response.content  # type: ignore[attr-defined]


@pytest.mark.django_db
class TestTeamAccounts:
    def test_a_person_becomes_a_team_where_the_plan_has_collaboration(self) -> None:
        account = factories.make_account(factories.make_product(flags={"team_collaboration": True}), owner=make_user())
        client = signed_in(account, "owner")
        assert client.post(f"/a/{account.public_id}/team/", {"form": "team"}).status_code == 302
        account.refresh_from_db()
        assert account.kind == "team"
        assert client.post(f"/a/{account.public_id}/team/", {"form": "team"}).status_code == 302, "again: no change"

    @pytest.mark.parametrize("flags", [{"team_collaboration": False}, {}])
    def test_not_where_the_plan_has_none(self, flags: dict[str, bool]) -> None:
        account = factories.make_account(factories.make_product(flags=flags), owner=make_user())
        client = signed_in(account, "owner")
        assert b"Your plan is for one person" in client.get(f"/a/{account.public_id}/team/").content
        assert client.post(f"/a/{account.public_id}/team/", {"form": "team"}).status_code == 403

    def test_an_admin_does_not_make_a_team_of_it(self) -> None:
        account = factories.make_account(factories.make_product(flags={"team_collaboration": True}), owner=make_user())
        assert signed_in(account, "admin").post(f"/a/{account.public_id}/team/", {"form": "team"}).status_code == 403

    def test_a_plan_sold_by_the_seat_is_one_for_a_team(self) -> None:
        account = seated(quantity=2)
        client = signed_in(account, "owner")
        assert client.post(f"/a/{account.public_id}/team/", {"form": "team"}).status_code == 302

    def test_where_a_product_sells_seats_one_becomes_a_team_first_and_invites_once_they_are_paid(self) -> None:
        account = seated(quantity=2)
        free = PlanVersion.objects.get(plan__product=account.product, version=1)
        Subscription.objects.filter(account=account).update(plan_version=free, stripe=None)
        client, path = signed_in(account, "owner"), f"/a/{account.public_id}/team/"
        invitation = {"form": "invite", "email": "a@example.com", "role": "member"}
        assert client.post(path, {"form": "team"}).status_code == 302
        assert b"A team pays for each member" in client.get(path).content
        assert client.post(path, invitation).status_code == 403
        Subscription.objects.filter(account=account).update(plan_version=PlanVersion.objects.get(plan=free.plan, version=2))
        assert client.post(path, invitation).status_code == 302

    @pytest.mark.parametrize(
        ("quantity", "others", "words"),
        [
            (1, 0, "1 member × $3 = $3 a month for Free. Seats follow"),
            (3, 0, "1 member × $3 = $3 a month for Free. 3 are paid for now; that follows within minutes."),
            (1, 2, "3 members × $3 = $9 a month for Free. 1 is paid for now; that follows within minutes."),
        ],
    )
    def test_paid_seats_are_set_against_members(self, quantity: int, others: int, words: str) -> None:
        account = seated(quantity=quantity)
        for _ in range(others):
            join(account, "member")
        page = re.sub(r"<[^>]+>", "", signed_in(account, "owner").get(f"/a/{account.public_id}/team/").content.decode())
        assert words in " ".join(page.split())

    def test_only_managers_are_told_how_seats_follow_and_a_plan_that_staff_gave_costs_nobody(self) -> None:
        account = seated(quantity=1)
        path = f"/a/{account.public_id}/team/"
        join(account, "member")
        assert [b"Seats follow members" in signed_in(account, role).get(path).content for role in ("owner", "member")] == [True, False]
        Subscription.objects.filter(account=account).update(stripe=None)
        assert b"a month" not in signed_in(account, "owner").get(path).content

    def test_a_team_whose_plan_lapsed_keeps_its_people_and_invites_nobody(self) -> None:
        product = factories.make_product(flags={"team_collaboration": False})
        account = factories.make_account(product, owner=make_user(), kind="team")
        client, chosen = signed_in(account, "owner"), join(account, "member")
        assert b"Your plan has no team." in client.get(f"/a/{account.public_id}/team/").content
        response = client.post(f"/a/{account.public_id}/team/", {"form": "invite", "email": "a@example.com", "role": "member"})
        assert response.status_code == 403
        assert client.post(f"/a/{account.public_id}/team/members/{chosen.pk}/", {"form": "remove"}).status_code == 302

    def test_where_no_plan_speaks_of_teams_a_team_may_invite(self) -> None:
        account = factories.make_account(owner=make_user(), kind="team")
        response = signed_in(account, "owner").post(
            f"/a/{account.public_id}/team/", {"form": "invite", "email": "a@example.com", "role": "member"}
        )
        assert response.status_code == 302


@pytest.mark.django_db
class TestGarbage:
    @pytest.mark.parametrize(
        "sent",
        [
            {"email": ""}, {"email": "no address"}, {"email": "a@b@c"}, {"email": "a\x00@example.com"},
            {"email": f"{'x' * 300}@example.com"}, {"email": "a@example.com\nBcc: b@example.com"},
            {"role": ""}, {"role": "root"}, {"role": "owner\x00"}, {"role": "OWNER"},
        ],
    )  # fmt: skip
    def test_in_the_invitation_form_is_said_beside_its_field(self, team: Account, sent: dict[str, str]) -> None:
        response = signed_in(team, "owner").post(
            f"/a/{team.public_id}/team/", {"form": "invite", "email": "bob@example.com", "role": "member"} | sent
        )
        assert response.status_code == 422
        assert b"errorlist" in response.content
        assert not Invitation.objects.filter(account=team).exists()

    @pytest.mark.failure(87)
    @pytest.mark.parametrize("extra", ["account", "is_staff", "expires_at", "user", "kind"])
    def test_a_field_that_does_not_belong_to_the_form_is_refused(self, team: Account, extra: str) -> None:
        client = signed_in(team, "owner")
        sent = {"form": "invite", "email": "bob@example.com", "role": "member", extra: "1"}
        response = client.post(f"/a/{team.public_id}/team/", sent)
        assert response.status_code == 422
        assert b"does not belong to it" in response.content
        chosen = join(team, "member")
        path = f"/a/{team.public_id}/team/members/{chosen.pk}/"
        assert client.post(path, {"form": "role", "role": "admin", extra: "1"}).status_code == 422
        assert client.post(path, {"form": "remove", extra: "1"}).status_code == 422
        chosen.refresh_from_db()
        assert chosen.role == "member"

    @pytest.mark.parametrize("form", ["", "nothing", "remove\x00"])
    def test_a_form_that_there_is_none_of_does_nothing(self, team: Account, form: str) -> None:
        chosen = join(team, "member")
        client = signed_in(team, "owner")
        assert client.post(f"/a/{team.public_id}/team/members/{chosen.pk}/", {"form": form}).status_code == 422
        assert client.post(f"/a/{team.public_id}/team/", {"form": form}).status_code == 422
        assert Membership.objects.filter(pk=chosen.pk).exists()

    @pytest.mark.parametrize("role", ["", "root", "member\x00"])
    def test_a_role_that_is_none_is_given_to_nobody(self, team: Account, role: str) -> None:
        chosen = join(team, "member")
        response = signed_in(team, "owner").post(f"/a/{team.public_id}/team/members/{chosen.pk}/", {"form": "role", "role": role})
        assert response.status_code == 422
        with pytest.raises(members.Refused):
            members.change_role(membership=chosen, role=role, actor=owner_of(team), now=NOW)


def seated(*, quantity: int) -> Account:
    """An account whose plan is paid by the seat, for so many."""
    product = factories.make_product()
    version = PlanVersion.objects.get(plan__product=product)
    seats = PlanVersion.objects.create(
        plan=version.plan, version=2, valid_from=factories.START + timedelta(days=1), price_cents=300, per_seat=True, rate_card="standard"
    )
    account = factories.make_account(product, owner=make_user())
    paid = StripeSubscription.objects.create(
        id=f"sub_{secrets.token_hex(6)}", account=account, status="active", price_id="price_x", quantity=quantity, plan_version=seats,
        anchor_at=NOW, current_period_start=NOW, current_period_end=NOW + timedelta(days=31), started_at=NOW, read_number=1,
    )  # fmt: skip
    Subscription.objects.filter(account=account).update(plan_version=seats, stripe=paid, seats=quantity)
    return account


def at_once(acts: list[Callable[[], object]]) -> list[Exception]:
    """Runs ``acts`` in threads that start together; what they raised."""
    start, errors = threading.Barrier(len(acts)), []

    def run(act: Callable[[], object]) -> None:
        start.wait()
        try:
            act()
        except Exception as error:  # noqa: BLE001 (handed back)
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[act]) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.django_db
class TestStaff:
    @pytest.mark.parametrize("change", [{"role": "member"}, {"DELETE": "on"}])
    def test_is_told_that_an_account_keeps_an_owner(self, team: Account, change: dict[str, str]) -> None:
        client = Client()
        client.force_login(User.objects.create_superuser(f"{secrets.token_hex(6)}@example.com", "x"))
        mine = team.memberships.get()
        row = {"id": str(mine.pk), "account": str(team.pk), "user": str(mine.user_id), "role": "owner"} | change
        fields = {"name": "Ada", "time_zone": "UTC", "memberships-TOTAL_FORMS": "1", "memberships-INITIAL_FORMS": "1"}
        response = client.post(
            f"/admin/accounts/account/{team.pk}/edit/", fields | {f"memberships-0-{name}": value for name, value in row.items()}
        )
        assert response.status_code == 200
        assert b"would have no owner" in response.content
        assert team.memberships.get().role == "owner"
