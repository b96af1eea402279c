"""Staff see top-ups, agreements and price moves: what happened is found, nothing is edited, a move is canceled with a reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from accounts.models import Account
from billing import agreements, price_moves, top_ups
from billing.models import Agreement, AutoTopUp, CardDecline, Checkout, PriceMove, TopUp
from pricing.models import CreditPack, PlanVersion
from tests.factories import NANOS, START, make_account
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
pytestmark = pytest.mark.django_db
NOW = datetime.now(UTC)


@pytest.fixture
def account() -> Account:
    return make_account()


@pytest.fixture
def pack(account: Account) -> CreditPack:
    return CreditPack.objects.create(
        product=account.product, slug="small", name="Small", valid_from=START, price_cents=500, credit_nanos=6 * NANOS
    )


@pytest.fixture(autouse=True)
def rule(account: Account, pack: CreditPack) -> AutoTopUp:
    return AutoTopUp.objects.create(
        account=account, enabled=True, threshold_nanos=10 * NANOS, pack=pack.slug, daily_cap_cents=5_000, changed_at=NOW,
        changed_by="ada@example.com", look_again_at=NOW,
    )  # fmt: skip


def top_up(account: Account, state: str, reason: str = "", **fields: Any) -> TopUp:
    pack = CreditPack.objects.get(product=account.product)
    terms = {"pack": pack, "copies": 2, "amount_cents": 1_000, "credit_nanos": 12 * NANOS} if state != "skipped" else {}
    times = {"created_at": NOW, "charged_at": NOW + timedelta(seconds=5), "finished_at": NOW + timedelta(seconds=6)}
    return TopUp.objects.create(
        account=account, state=state, reason=reason, day=NOW.date(), card="Visa ending 4242", **terms | times | fields
    )


def page(client: Client, name: str, query: str = "") -> str:
    answer = client.get(reverse(f"admin:billing_{name}_changelist") + query)
    assert answer.status_code == 200, (name, query)
    return answer.content.decode()


def shown(client: Client, row: Model) -> str:
    answer = client.get(reverse(f"admin:billing_{row._meta.model_name}_change", args=[row.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


class TestTopUps:
    @pytest.mark.failure(73)
    def test_both_were_paid_and_one_was_refunded_is_found_with_what_was_paid_by_hand(self, superuser: Client, account: Account) -> None:
        twice = top_up(account, "refunded", top_ups.PAID_TWICE)
        other = top_up(account, "refunded")
        open_case = top_up(account, "paid", top_ups.UNDECIDED)
        visit = Checkout.objects.create(
            account=account, pack=CreditPack.objects.get(product=account.product), thing="pack:small", name="Small", amount_cents=500,
            currency="usd", state="paid", completed=True, actor="ada", created_at=NOW + timedelta(seconds=2),
        )  # fmt: skip
        found = page(superuser, "topup", "?paid_twice=refunded")
        assert [str(each.pk) in found for each in (twice, other, open_case)] == [True, False, False]
        assert str(open_case.pk) in page(superuser, "topup", "?paid_twice=undecided")
        assert all(str(each.pk) in page(superuser, "topup", "?paid_twice=garbage") for each in (twice, other, open_case))
        assert visit.public_id in shown(superuser, twice)

    def test_each_is_found_by_account_and_invoice_with_its_state_and_why(self, superuser: Client, account: Account) -> None:
        top_up(account, "declined", "Your card was declined.", invoice_id="in_1", charged_at=None)
        top_up(account, "skipped", "There is no saved card.", charged_at=None)
        for query in (f"?q={account.public_id}", f"?q={account.external_id}"):
            found = page(superuser, "topup", query)
            assert all(words in found for words in ("2 × Small", "Your card was declined.", "not charged", "There is no saved card."))
        assert "There is no saved card." not in page(superuser, "topup", "?q=in_1")
        assert "Your card" not in page(superuser, "topup", "?q=in_2")

    def test_one_under_way_has_a_page(self, superuser: Client, account: Account) -> None:
        assert "in_9" in shown(superuser, top_up(account, "pending", charged_at=None, finished_at=None, invoice_id="in_9"))

    def test_what_the_customer_chose_is_shown_with_todays_charges_and_declined_cards(
        self, superuser: Client, account: Account, rule: AutoTopUp
    ) -> None:
        top_up(account, "paid")
        CardDecline.objects.create(account=account, fingerprint="a", declines=3)
        CardDecline.objects.create(account=account, fingerprint="b", declines=1, retry_at=NOW)
        found = shown(superuser, rule)
        assert all(words in found for words in ("$50.00", "$10.00", "3 in a row, not tried again", f"{NOW:%H:%M} UTC", "ada@example.com"))
        assert "$50.00" in page(superuser, "autotopup", f"?q={account.public_id}")


def agreed(account: Account) -> Agreement:
    terms = agreements.Terms(base="free", price_cents=120_000, included_credit_nanos=900 * NANOS, collection="none")
    return agreements.agree(account=account, terms=terms, key="k", actor="ann", reason="signed on Monday", now=NOW)


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "in force"),
        ({"next_attempt_at": NOW, "last_error": "timeout"}, "on its way to Stripe"),
        ({"last_error": "No such card."}, "refused by Stripe"),
    ],
)
def test_an_agreement_is_shown_with_its_price_and_whether_stripe_has_it(
    superuser: Client, account: Account, fields: dict[str, Any], state: str
) -> None:
    agreement = agreed(account)
    Agreement.objects.filter(pk=agreement.pk).update(**fields)
    found = page(superuser, "agreement", f"?q={account.public_id}")
    assert all(words in found for words in ("1,200.00 USD a month", "signed on Monday", state))
    assert "900" in shown(superuser, agreement)


class TestPriceMoves:
    @pytest.fixture
    def move(self, account: Account) -> PriceMove:
        version = PlanVersion.objects.get(plan__product=account.product)
        newer = PlanVersion.objects.create(
            plan=version.plan, version=2, valid_from=NOW, price_cents=1_200, rate_card="standard", per_seat=True
        )
        return PriceMove.objects.create(
            to_version=newer, effective_at=NOW + timedelta(days=30), actor="ann", reason="thin margin", created_at=NOW, announced_to=""
        )

    def test_one_is_canceled_with_a_reason_after_its_effect_was_shown(self, superuser: Client, move: PriceMove) -> None:
        address = reverse("admin:billing_pricemove_changelist")
        act = {"action": "cancel", "_selected_action": [move.pk]}
        preview = superuser.post(address, act).content.decode()
        assert "12.00 USD a month a member" in preview
        assert price_moves.preview(to=move.to_version).sentence in preview
        superuser.post(address, act | {"confirm": "1", "reason": ""})
        move.refresh_from_db()
        assert move.canceled_at is None
        for _ in range(2):
            superuser.post(address, act | {"confirm": "1", "reason": "a customer left"})
        move.refresh_from_db()
        assert move.canceled_by
        assert LogEntry.objects.filter(change_message__contains="Canceled: a customer left").count() == 1
        assert "canceled" in page(superuser, "pricemove")
        assert "nothing" in shown(superuser, move)

    def test_who_may_only_look_cancels_none(self, move: PriceMove) -> None:
        looker = staff("billing.view_pricemove")
        assert "being announced" in page(looker, "pricemove")
        act = {"action": "cancel", "_selected_action": [move.pk], "confirm": "1", "reason": "x"}
        looker.post(reverse("admin:billing_pricemove_changelist"), act)
        move.refresh_from_db()
        assert move.canceled_at is None


def test_nobody_edits_adds_or_deletes_any_of_them(superuser: Client, account: Account, rule: AutoTopUp) -> None:
    for row in (top_up(account, "paid"), rule, agreed(account)):
        name = f"admin:billing_{row._meta.model_name}"
        for action, arguments in (("change", [row.pk]), ("delete", [row.pk]), ("add", [])):
            assert superuser.post(reverse(f"{name}_{action}", args=arguments), {"post": "yes"}).status_code == 403
        for garbage in ("x", "0", "9" * 30, "%00"):
            assert superuser.get(reverse(f"{name}_changelist") + f"?q={garbage}&state=%FF&within=never").status_code in (200, 302)
