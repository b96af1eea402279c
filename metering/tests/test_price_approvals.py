"""An upstream price is moved by one person alone only so far: above the cap another of staff approves it, as it was asked for."""

from __future__ import annotations

from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import approvals
from accounts.models import Approval, AuditEvent, User
from metering import price_approvals
from pricing import change_cap, price_import
from pricing.models import PriceProposal, PriceRow
from tests.factories import NANOS, START

LIST = "/admin/pricing/priceproposal/"
WHAT = {"provider": "openai", "component": "input_tokens", "per_units": 10**6}


def boss(name: str) -> User:
    return User.objects.create_superuser(f"{name}@example.com", "correct horse battery")


def row(price: int, model: str = "m", since: datetime = START, until: datetime | None = None) -> PriceRow:
    valid = DateTimeTZRange(since, until, "[)")
    return PriceRow.objects.create(**WHAT, model=model, price_nanos=price * NANOS, source="book", valid=valid)


def proposal(price: int, model: str = "m", **more: Any) -> PriceProposal:
    return PriceProposal.objects.create(
        **WHAT, model=model, price_nanos=price * NANOS, source="test", proposed_at=timezone.now(), **more
    )  # fmt: skip


def approve(*proposals: PriceProposal) -> int:
    return price_import.approve(ids=[one.pk for one in proposals], actor="ada", reason="their page")


def ask(*proposals: PriceProposal, by: User, effective: datetime | None = None) -> Approval:
    ids = [one.pk for one in proposals]
    return price_approvals.ask(ids=ids, effective=effective, actor=by, reason="their page", now=timezone.now())


def price(model: str = "m") -> int:
    return next(one.price_nanos for one in PriceRow.objects.filter(model=model, withdrawn_at=None) if timezone.now() in one.valid) // NANOS


class TestCap:
    @pytest.mark.parametrize(
        ("before", "after", "above", "said"),
        [
            (10, 15, False, "+50 %"),
            (1_000_000, 1_500_001, True, "+50.1 %"),
            (10, 5, False, "−50 %"),
            (1_000_000, 499_999, True, "−50.1 %"),
            (3, 5, True, "+66.7 %"),
            (0, 1, True, "from nothing"),
            (1, 0, True, "−100 %"),
            (0, 0, False, "the same"),
            (7, 7, False, "0 %"),
            (1, 2_001, True, "+200,000 %"),
        ],
    )
    def test_is_exact_in_both_directions(self, before: int, after: int, above: bool, said: str) -> None:
        figures = {"before": Fraction(before), "after": Fraction(after)}
        assert change_cap.exceeded(**figures) == above
        assert change_cap.share(**figures) == said

    @pytest.mark.parametrize(("cap", "above"), [(0, True), (100, False), (99, True), (None, False)])
    def test_is_the_settings(self, settings: Any, cap: int | None, above: bool) -> None:
        settings.PRICE_CHANGE_CAP_PERCENT = cap
        assert change_cap.exceeded(before=Fraction(1), after=Fraction(2)) == above

    @pytest.mark.parametrize(("cap", "above"), [(999_999, True), (None, False)])
    def test_zero_is_above_every_cap_but_none(self, settings: Any, cap: int | None, above: bool) -> None:
        settings.PRICE_CHANGE_CAP_PERCENT = cap
        assert change_cap.exceeded(before=Fraction(1), after=Fraction(0)) == above


@pytest.mark.django_db
class TestOnePerson:
    def test_changes_a_price_up_to_the_cap_and_not_beyond(self) -> None:
        row(4)
        assert approve(proposal(6)) == 1
        assert price() == 6
        row(4, "n")
        with pytest.raises(price_import.AboveCap, match=r"n input_tokens \(standard\): \$4 per 1,000,000 → \$7 per 1,000,000 \(\+75 %\)"):
            approve(proposal(7, "n"))
        assert price("n") == 4

    def test_takes_a_first_price_and_one_of_the_past_at_any_figure(self) -> None:
        assert approve(proposal(900)) == 1
        row(2, "n")
        since = timezone.now() - timedelta(days=20)
        past = proposal(90, "n", valid_from=since, valid_until=since + timedelta(days=11))
        assert price_import.above_cap(proposals=[past], effective=None, now=timezone.now()) == []

    def test_gets_no_further_in_small_steps_of_one_day(self) -> None:
        row(4)
        approve(proposal(5))
        with pytest.raises(price_import.AboveCap, match=r"\(\+40 %\), after \$4 per 1,000,000 within a day"):
            approve(proposal(7))
        row(4, "n", until=timezone.now() - timedelta(hours=25))
        row(5, "n", since=timezone.now() - timedelta(hours=25))
        assert approve(proposal(7, "n")) == 1

    def test_announces_no_price_beyond_it_and_does_not_wait_for_the_old_one_to_end(self) -> None:
        row(4)
        with pytest.raises(price_import.AboveCap):
            approve(proposal(9, valid_from=timezone.now() + timedelta(days=30)))
        row(4, "n", until=timezone.now() - timedelta(days=2))
        with pytest.raises(price_import.AboveCap):
            approve(proposal(9, "n"))

    def test_approves_all_or_none(self) -> None:
        row(4), row(4, "n")  # fmt: skip
        with pytest.raises(price_import.AboveCap):
            approve(proposal(5), proposal(9, "n"))
        assert (price(), price("n")) == (4, 4)


@pytest.mark.django_db
class TestSecondPerson:
    def test_sees_what_moves_approves_with_a_note_and_it_is_in_the_name_of_both(self) -> None:
        ada, grace, now = boss("ada"), boss("grace"), timezone.now()
        row(4), row(4, "n")  # fmt: skip
        approval = ask(proposal(5, "n"), proposal(9), proposal(3, "new"), by=ada)
        assert approval.after.splitlines() == [
            "3 upstream prices",
            "openai:m input_tokens (standard): $4 per 1,000,000 → $9 per 1,000,000 (+125 %)",
            "openai:n input_tokens (standard): $4 per 1,000,000 → $5 per 1,000,000 (+25 %)",
            "openai:new input_tokens (standard): new, $3 per 1,000,000",
        ]
        with pytest.raises(approvals.NotAllowed, match="Somebody else"):
            approvals.approve(approval=approval, actor=ada, note="mine", now=now)
        with pytest.raises(approvals.Impossible, match="Say in the note"):
            approvals.approve(approval=approval, actor=grace, now=now)
        assert price() == 4
        approvals.approve(approval=approval, actor=grace, note="I read their page", now=now)
        assert (price(), price("n"), price("new")) == (9, 5, 3)
        assert set(PriceProposal.objects.values_list("decided_by", "reason")) == {
            ("ada@example.com, approved by grace@example.com", "their page")
        }
        kinds = AuditEvent.objects.filter(kind__in=["asked", "approved"]).order_by("pk").values_list("kind", "reason")
        assert list(kinds) == [("asked", "their page"), ("approved", "I read their page")]

    def test_is_asked_once_for_the_same(self) -> None:
        ada, grace, one = boss("ada"), boss("grace"), proposal(9)
        row(4)
        ask(one, by=ada)
        with pytest.raises(approvals.AlreadyAsked, match="asked for the same"):
            ask(one, by=grace)
        assert Approval.objects.count() == 1

    def test_cannot_approve_once_the_price_is_another(self) -> None:
        ada, grace = boss("ada"), boss("grace")
        row(4)
        approval = ask(proposal(9, valid_from=timezone.now() + timedelta(days=9)), by=ada)
        approve(proposal(5))
        assert "cannot be approved any more" in approvals.change(approval=approval, now=timezone.now()).before
        with pytest.raises(approvals.Impossible, match=r"not any more what was asked for: openai:m .*\$4 per 1,000,000 → \$9"):
            approvals.approve(approval=approval, actor=grace, note="yes", now=timezone.now())
        assert price() == 5

    def test_cannot_approve_what_was_decided(self) -> None:
        row(4)
        one = proposal(9)
        approval = ask(one, by=boss("ada"))
        price_import.reject(ids=[one.pk], actor="ada", reason="wrong")
        with pytest.raises(approvals.Impossible, match="not any more what was asked for"):
            approvals.approve(approval=approval, actor=boss("grace"), note="yes", now=timezone.now())
        assert price() == 4

    def test_is_not_asked_for_what_could_not_be_approved(self) -> None:
        row(4)
        with pytest.raises(price_import.NotApprovable, match="the past stays"):
            ask(proposal(9), by=boss("ada"), effective=timezone.now() - timedelta(hours=1))
        assert not Approval.objects.exists()

    def test_may_refuse_and_nothing_changes(self) -> None:
        row(4)
        approvals.refuse(approval=ask(proposal(9), by=boss("ada")), actor=boss("grace"), note="A typing error", now=timezone.now())
        assert price() == 4
        assert PriceProposal.objects.get().state == "pending"

    @pytest.mark.parametrize("ids", [[0], [-1], [2**31 - 1]])
    def test_is_not_asked_for_what_does_not_exist(self, ids: list[int]) -> None:
        with pytest.raises(price_import.NotApprovable, match="no pending proposal has this id"):
            price_approvals.ask(ids=ids, effective=None, actor=boss("ada"), reason="x", now=timezone.now())


@pytest.mark.django_db
class TestSurfaces:
    def client(self, user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    def test_the_page_warns_asks_once_and_another_approves(self) -> None:
        ada, grace = self.client(boss("ada")), self.client(boss("grace"))
        row(4)
        form: dict[str, Any] = {"action": "approve", "_selected_action": [proposal(9).pk]}
        shown = ada.post(LIST, form).content.decode()
        assert "1 price moves by more than 50 %, or from or to zero." in shown
        assert "Ask a second person" in shown
        asked = ada.post(LIST, form | {"confirm": "1", "reason": "their page"})
        approval = Approval.objects.get()
        assert asked["Location"] == reverse("admin:accounts_approval_decide", args=[approval.pk])
        again = ada.post(LIST, form | {"confirm": "1", "reason": "their page"})
        assert "asked for the same" in again.content.decode()
        assert "(+125 %)" in grace.get(asked["Location"]).content.decode()
        grace.post(asked["Location"], {"decision": "approve", "note": ""})
        assert price() == 4
        grace.post(asked["Location"], {"decision": "approve", "note": "I looked"})
        assert price() == 9

    def test_within_the_cap_the_page_says_nothing_of_it_and_one_person_is_enough(self) -> None:
        ada = self.client(boss("ada"))
        row(4)
        form: dict[str, Any] = {"action": "approve", "_selected_action": [proposal(5).pk]}
        assert "second person" not in ada.post(LIST, form).content.decode()
        ada.post(LIST, form | {"confirm": "1", "reason": "their page"})
        assert price() == 5

    def test_the_command_refuses_and_asks_where_it_is_told_to(self) -> None:
        boss("ada")
        row(4)
        said: dict[str, Any] = {"actor": "ada@example.com", "reason": "their page"}
        with pytest.raises(CommandError, match="--ask asks a second person") as refusal:
            call_command("prices", "approve", str(proposal(9).pk), **said)
        assert "(+125 %)" in str(refusal.value)
        with pytest.raises(CommandError, match="the email of a member of staff"):
            call_command("prices", "approve", all=True, ask=True, **said | {"actor": "nobody"})
        for match in ("it waits under Approvals", "asked for the same"):
            with pytest.raises(CommandError, match=match):
                call_command("prices", "approve", all=True, ask=True, **said)
        assert (Approval.objects.count(), price()) == (1, 4)
