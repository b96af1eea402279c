"""Acts that need two people: another one approves, within a day, and it happens once, with its lines in the audit log, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import approvals
from accounts.models import Approval, User
from pricing.models import Unit

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
KIND = "test_name_a_unit"
DAY = timedelta(hours=24)


def _change(payload: Mapping[str, Any], now: datetime) -> approvals.Change:
    name = Unit.objects.filter(code=payload["code"]).values_list("name", flat=True).first()
    return approvals.Change(before=f"It is called {name}.", after=f"Call {payload['code']} {payload['name']}")


def _carry_out(approval: Approval, actor: User, now: datetime) -> str:
    """Names a unit, and fails after it has done so where the name is none."""
    done = Unit.objects.filter(code=approval.payload["code"]).update(name=approval.payload["name"])
    if not done or approval.payload["name"] == "impossible":
        raise approvals.Impossible("That is no name.")
    return f"{approval.payload['code']} is called {approval.payload['name']}."


@pytest.fixture(autouse=True)
def act() -> Iterator[None]:
    approvals.register(kind=KIND, act=approvals.Act("A unit's name", "pricing.change_product", _change, _carry_out))
    yield
    del approvals._acts[KIND]


def person(*permissions: str, **fields: Any) -> User:
    user = User.objects.create_user(f"{uuid4().hex}@example.com", "correct horse battery", **{"is_staff": True} | fields)
    for permission in permissions or ("pricing.change_product",):
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def unit() -> Unit:
    return Unit.objects.create(code=f"u{uuid4().hex[:6]}", name="before")


def ask(actor: User, code: str, name: str = "after", now: datetime = NOON) -> Approval:
    return approvals.ask(kind=KIND, payload={"code": code, "name": name}, actor=actor, reason="it is time", now=now)


@pytest.mark.django_db
class TestTwoPeople:
    def test_another_person_approves_and_it_is_done_once_with_a_line_in_the_log_for_each(self) -> None:
        ann, bob, named = person(), person(), unit()
        approval = ask(ann, named.code)
        named.refresh_from_db()
        assert named.name == "before"
        assert approval.before == "It is called before."
        assert approvals.approve(approval=approval, actor=bob, now=NOON, note="fine") == f"{named.code} is called after."
        named.refresh_from_db()
        assert named.name == "after"
        with pytest.raises(approvals.NotPending, match="decided already"):
            approvals.approve(approval=approval, actor=person(), now=NOON)
        lines = LogEntry.objects.filter(object_id=str(approval.pk)).order_by("id").values_list("user", "change_message")
        assert list(lines) == [
            (ann.pk, f"Asked for: Call {named.code} after. it is time"),
            (bob.pk, f"Approved: {named.code} is called after. fine"),
        ]

    def test_nobody_approves_what_they_asked_for_and_the_database_says_so_too(self) -> None:
        ann = person()
        approval = ask(ann, unit().code)
        with pytest.raises(approvals.NotAllowed, match="Somebody else"):
            approvals.approve(approval=approval, actor=ann, now=NOON)
        with pytest.raises(IntegrityError, match="approval_by_another"), transaction.atomic():
            Approval.objects.filter(pk=approval.pk).update(state="approved", decided_by=ann, decided_at=NOON)
        assert Approval.objects.get(pk=approval.pk).is_pending(NOON)

    @pytest.mark.parametrize("late", [timedelta(0), timedelta(microseconds=1), timedelta(days=9)])
    def test_it_runs_out_after_a_day_and_the_database_says_so_too(self, late: timedelta) -> None:
        approval, bob = ask(person(), unit().code), person()
        with pytest.raises(approvals.NotPending, match="within a day"):
            approvals.approve(approval=approval, actor=bob, now=NOON + DAY + late)
        with pytest.raises(approvals.NotPending, match="within a day"):
            approvals.refuse(approval=approval, actor=bob, now=NOON + DAY + late, note="no")
        with pytest.raises(IntegrityError, match="approval_in_time"), transaction.atomic():
            Approval.objects.filter(pk=approval.pk).update(state="approved", decided_by=bob, decided_at=NOON + DAY + late)
        assert approvals.approve(approval=approval, actor=bob, now=NOON + DAY - timedelta(microseconds=1))

    @pytest.mark.parametrize("fields", [{"is_staff": False}, {"is_active": False}])
    def test_only_active_staff_with_the_acts_right_ask_or_decide(self, fields: dict[str, bool]) -> None:
        code = unit().code
        approval = ask(person(), code)
        for stranger in (person(**fields), person("pricing.view_product")):
            with pytest.raises(approvals.NotAllowed, match=r"pricing\.change_product"):
                ask(stranger, code, "another")
            with pytest.raises(approvals.NotAllowed, match=r"pricing\.change_product"):
                approvals.approve(approval=approval, actor=stranger, now=NOON)
            with pytest.raises(approvals.NotAllowed, match=r"pricing\.change_product"):
                approvals.refuse(approval=approval, actor=stranger, now=NOON, note="no")
        assert Approval.objects.get(pk=approval.pk).is_pending(NOON)

    def test_what_is_refused_is_never_done_and_who_asked_may_take_it_back(self) -> None:
        ann, bob = person(), person()
        for who in (ann, bob):
            named = unit()
            approval = ask(ann, named.code)
            approvals.refuse(approval=approval, actor=who, now=NOON, note="not now")
            with pytest.raises(approvals.NotPending):
                approvals.approve(approval=approval, actor=bob, now=NOON)
            named.refresh_from_db()
            assert named.name == "before"

    def test_the_same_is_asked_for_once_at_a_time(self) -> None:
        ann, bob, code = person(), person(), unit().code
        first = ask(ann, code)
        with pytest.raises(approvals.AlreadyAsked, match=ann.email):
            ask(bob, code)
        approvals.refuse(approval=first, actor=ann, now=NOON, note="wait")
        second = ask(bob, code)
        assert ask(ann, code, now=NOON + DAY).pk > second.pk  # that one has run out

    def test_an_act_that_cannot_be_done_changes_nothing_and_still_waits(self) -> None:
        named, bob = unit(), person()
        approval = ask(person(), named.code, "impossible")
        with pytest.raises(approvals.Impossible, match="no name"):
            approvals.approve(approval=approval, actor=bob, now=NOON)
        named.refresh_from_db()
        assert named.name == "before"
        assert Approval.objects.get(pk=approval.pk).is_pending(NOON)
        assert LogEntry.objects.filter(object_id=str(approval.pk)).count() == 1

    def test_what_was_asked_for_and_what_was_decided_never_change(self) -> None:
        approval, bob = ask(person(), unit().code), person()
        rows = Approval.objects.filter(pk=approval.pk)
        for change in ({"payload": {"code": "x"}}, {"after": "x"}, {"asked_by": bob}, {"expires_at": NOON + 9 * DAY}):
            with pytest.raises(IntegrityError, match="never changes"), transaction.atomic():
                rows.update(**change)
        approvals.refuse(approval=approval, actor=bob, now=NOON, note="no")
        with pytest.raises(IntegrityError, match="was decided"), transaction.atomic():
            rows.update(state="pending", decided_by=None, decided_at=None)
        with pytest.raises(IntegrityError, match="are kept"), transaction.atomic():
            rows.delete()

    def test_a_kind_is_registered_once(self) -> None:
        with pytest.raises(ValueError, match="already"):
            approvals.register(kind=KIND, act=approvals.act(kind=KIND))


@pytest.mark.usefixtures("committed")
class TestAtOnce:
    def test_of_two_people_who_approve_at_once_one_does_it(self) -> None:
        code = unit().code
        approval, people, said = ask(person(), code), [person(), person(), person()], []
        ready = threading.Barrier(len(people))

        def approve(who: User) -> None:
            ready.wait()
            try:
                said.append(approvals.approve(approval=approval, actor=who, now=NOON))
            except approvals.NotPending as error:
                said.append(str(error))
            finally:
                connection.close()

        threads = [threading.Thread(target=approve, args=[who]) for who in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said) == sorted([f"{code} is called after.", *["It was decided already."] * 2])
        assert LogEntry.objects.filter(object_id=str(approval.pk), change_message__startswith="Approved").count() == 1

    def test_of_the_same_asked_for_by_three_at_once_one_waits(self) -> None:
        code, people, said = unit().code, [person(), person(), person()], []
        ready = threading.Barrier(len(people))

        def want(who: User) -> None:
            ready.wait()
            try:
                said.append(str(ask(who, code)))
            except approvals.AlreadyAsked:
                said.append("waits")
            finally:
                connection.close()

        threads = [threading.Thread(target=want, args=[who]) for who in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said) == sorted([f"Call {code} after", "waits", "waits"])
        assert Approval.objects.filter(payload__code=code).count() == 1


@pytest.mark.django_db
class TestPages:
    RIGHTS = ("accounts.view_approval", "pricing.change_product")

    def signed_in(self, user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    def page(self, approval: Approval) -> str:
        return reverse("admin:accounts_approval_decide", args=[approval.pk])

    def test_the_page_shows_before_and_after_and_what_changed_meanwhile_and_approves(self) -> None:
        ann, bob, named = person(*self.RIGHTS), person(*self.RIGHTS), unit()
        approval = ask(ann, named.code, now=timezone.now())
        Unit.objects.filter(pk=named.pk).update(name="meanwhile")
        client = self.signed_in(bob)
        listed = client.get(reverse("admin:accounts_approval_changelist")).content.decode()
        assert all(word in listed for word in (f"Call {named.code} after", "it is time", ann.email, "waiting"))
        shown = client.get(self.page(approval)).content.decode()
        assert all(word in shown for word in ("It is called before.", "It is called meanwhile.", f"Call {named.code} after", ann.email))
        assert self.page(approval) in client.get(reverse("admin:accounts_approval_change", args=[approval.pk])).content.decode()
        assert client.post(self.page(approval), {"decision": "approve", "note": ""}).status_code == 302
        named.refresh_from_db()
        assert named.name == "after"
        assert "approved it" in client.get(self.page(approval)).content.decode()
        again = client.post(self.page(approval), {"decision": "approve", "note": ""})
        assert (again.status_code, "decided already" in again.content.decode()) == (200, True)

    def test_who_asked_is_shown_no_button_to_approve_and_the_post_is_refused(self) -> None:
        ann = person(*self.RIGHTS)
        approval = ask(ann, unit().code, now=timezone.now())
        client = self.signed_in(ann)
        shown = client.get(self.page(approval)).content.decode()
        assert ("Approve: it happens" in shown, "Take it back" in shown) == (False, True)
        assert client.post(self.page(approval), {"decision": "approve"}).status_code == 403
        assert client.post(self.page(approval), {"decision": "refuse", "note": "my mistake"}).status_code == 302
        assert Approval.objects.get(pk=approval.pk).state == "refused"

    def test_only_staff_who_may_see_and_do_it_decide(self) -> None:
        approval = ask(person(), unit().code, now=timezone.now())
        for who, get, post in (
            (person("pricing.change_product"), 403, 403),
            (person("accounts.view_approval"), 200, 403),
            (person(*self.RIGHTS, is_staff=False), 302, 302),
        ):
            client = self.signed_in(who)
            answers = client.get(self.page(approval)).status_code, client.post(self.page(approval), {"decision": "approve"}).status_code
            assert answers == (get, post)
        assert Approval.objects.get(pk=approval.pk).state == "pending"

    @pytest.mark.parametrize(
        "garbage",
        [{}, {"decision": ""}, {"decision": "both"}, {"decision": "refuse", "note": "  "}, {"decision": "refuse", "note": "\0"},
         {"decision": "approve", "note": "x" * 301}],
    )  # fmt: skip
    def test_garbage_decides_nothing(self, garbage: dict[str, str]) -> None:
        approval = ask(person(), unit().code, now=timezone.now())
        client = self.signed_in(person(*self.RIGHTS))
        assert client.post(self.page(approval), {"csrf": "x"} | garbage).status_code == 200
        assert Approval.objects.get(pk=approval.pk).state == "pending"
        assert client.get(self.page(approval).replace(str(approval.pk), "999999")).status_code == 404
