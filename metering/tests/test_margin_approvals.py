"""Nothing is sold below a product's floor, and for less than before, by one person alone: not by a file, and not by a lever."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts import approvals
from accounts.models import Approval, User
from metering import levers, margin_approvals
from pricing import catalog_file, margin_terms
from pricing.models import CreditPack, Lever, Product
from tests.factories import make_model

CATALOGS = Path(__file__).parents[2] / "pricing" / "catalogs"
Kind = Lever.Kind

pytestmark = pytest.mark.django_db


def document(slug: str, *changes: tuple[str, Any]) -> catalog_file.Document:
    found = catalog_file.parse((CATALOGS / f"{slug}.toml").read_bytes())
    for path, value in changes:
        found = catalog_file.with_value(found, path.split("."), value)
    return found


@pytest.fixture
def rover() -> Product:
    """With a smaller Enterprise pack than the guide's, so that the guide's is a change for the worse."""
    catalog_file.apply(document("rover", ("packs.enterprise.credit", "80.00")), actor="test")
    return Product.objects.get(slug="rover")


def staff(name: str) -> User:
    return User.objects.create_superuser(f"{name}@example.com", "a long password")


def credit() -> int:
    return CreditPack.objects.filter(slug="enterprise").latest("version").credit_nanos // 10**9


class TestFiles:
    def test_the_first_catalog_of_a_product_is_taken_as_it_is_and_said_to_be_below_the_floor(self) -> None:
        out = StringIO()
        call_command("catalog", "apply", str(CATALOGS / "rover.toml"), actor="ada", stdout=out)
        said = [line.partition("! ")[2] for line in out.getvalue().splitlines() if ": ! " in line]
        assert "Enterprise Pack at the rate card standard: −3.2 % at worst, below the floor of 0 %." in said
        assert len(said) == 3

    def test_what_gets_worse_is_refused_with_the_arithmetic(self, rover: Product) -> None:
        with pytest.raises(catalog_file.BelowFloor) as refusal:
            catalog_file.apply(document("rover"), actor="ada")
        assert [finding.card for finding in refusal.value.findings] == ["standard", "reduced"]
        assert "  in every case, any model: $150.00 of credit ÷ 1.5 (50 % markup) = $100.00 upstream." in refusal.value.problems
        assert credit() == 80

    def test_a_better_price_is_never_refused(self, rover: Product) -> None:
        catalog_file.apply(document("rover"), actor="ada", accepted=True)
        catalog_file.apply(document("rover", ("packs.enterprise.price", "101.00")), actor="ada")
        assert CreditPack.objects.filter(slug="enterprise").latest("version").price_cents == 101_00

    def test_a_second_person_approves_a_file_and_it_takes_effect(self, rover: Product) -> None:
        asker, other = staff("ada"), staff("grace")
        with pytest.raises(CommandError, match="it waits under Approvals for somebody else"):
            call_command("catalog", "apply", str(CATALOGS / "rover.toml"), actor=asker.email, ask="The guide's terms", stdout=StringIO())
        approval = Approval.objects.get()
        assert "Enterprise Pack at the rate card standard: −3.2 % at worst, below the floor of 0 %." in approval.after
        assert credit() == 80
        with pytest.raises(approvals.NotAllowed):
            approvals.approve(approval=approval, actor=asker, now=timezone.now())
        approvals.approve(approval=approval, actor=other, now=timezone.now(), note="for the launch")
        assert credit() == 150
        assert catalog_file.apply(document("rover"), actor="ada") == []

    @pytest.mark.parametrize(("actor", "reason"), [("nobody@example.com", "why"), ("ada@example.com", " "), ("ada@example.com", "x" * 301)])
    def test_who_asks_and_why_are_needed(self, rover: Product, actor: str, reason: str) -> None:
        staff("ada")
        with pytest.raises(CommandError, match="--ask: expected why"):
            call_command("catalog", "apply", str(CATALOGS / "rover.toml"), actor=actor, ask=reason, stdout=StringIO())
        assert not Approval.objects.exists()

    def test_a_price_that_rises_upstream_refuses_nothing(self) -> None:
        model = make_model(input_price=3_000_000_000, output_price=15_000_000_000)
        catalog_file.apply(document("prpm", ("product.expected_model", model)), actor="ada", accepted=True)
        dearer = make_model(input_price=30_000_000_000, output_price=150_000_000_000)
        catalog_file.apply(document("prpm", ("product.expected_model", dearer)), actor="ada")
        found = {one.offer: one for one in margin_terms.look(document("prpm", ("product.expected_model", dearer)), at=timezone.now())}
        assert found["packs.small"].is_below_floor

    def test_lint_shows_everything_on_sale_and_a_file_before_it_is_applied(self, rover: Product) -> None:
        out = StringIO()
        call_command("catalog", "lint", stdout=out)
        assert "Pro Pack at the rate card reduced: −7.2 % at worst, below the floor of 0 %." in out.getvalue()
        assert "Enterprise Pack at the rate card standard: 43.5 % at worst" in out.getvalue()
        out = StringIO()
        call_command("catalog", "lint", str(CATALOGS / "rover.toml"), stdout=out)
        assert "Enterprise Pack at the rate card standard: −3.2 % at worst" in out.getvalue()

    def test_validate_and_diff_warn(self, rover: Product) -> None:
        for verb in ("validate", "diff"):
            out = StringIO()
            call_command("catalog", verb, str(CATALOGS / "rover.toml"), stdout=out)
            assert ": ! Enterprise Pack at the rate card standard: −3.2 % at worst" in out.getvalue()


class TestLevers:
    def pack(self, product: Product, **values: str) -> list[levers.Change]:
        return levers.terms(product=product, section="packs", slug="enterprise", values=values)

    def pull(self, changes: list[levers.Change], kind: Kind = Kind.PACK) -> Lever:
        return levers.pull(kind=kind, changes=changes, token=uuid4(), actor="ada", reason="a sale", now=timezone.now())[0]

    def test_a_lever_that_sells_below_the_floor_is_refused(self, rover: Product) -> None:
        with pytest.raises(levers.InvalidLever, match=r"a second person has to accept it. Enterprise Pack at .* −3.2 % at worst"):
            self.pull(self.pack(rover, credit="150.00"))
        assert not Lever.objects.exists()

    def test_a_second_person_approves_it_and_it_is_audited(self, rover: Product) -> None:
        asker, other, now = staff("ada"), staff("grace"), timezone.now()
        terms: dict[str, Any] = {"kind": Kind.PACK, "changes": self.pack(rover, credit="150.00"), "actor": asker, "reason": "a sale"}
        approval = margin_approvals.ask_lever(**terms, token=uuid4(), now=now)
        with pytest.raises(approvals.AlreadyAsked):
            margin_approvals.ask_lever(**terms, token=uuid4(), now=now)
        assert approval.before == "Rover, enterprise: credit 80.00"
        assert "÷ $100.00 = −3.2 %." in approval.after
        approvals.approve(approval=approval, actor=other, now=now + timedelta(minutes=1))
        assert credit() == 150
        lever = Lever.objects.get()
        assert (lever.actor, lever.reason) == (asker.email, "a sale")
        assert LogEntry.objects.filter(user=other, object_id=str(lever.pk), change_message__startswith="Accepted below the floor").exists()
        assert catalog_file.apply(document("rover"), actor="deployment") == []

    def test_it_cannot_be_approved_once_the_terms_are_others(self, rover: Product) -> None:
        asker, other, now = staff("ada"), staff("grace"), timezone.now()
        changes = self.pack(rover, credit="150.00")
        approval = margin_approvals.ask_lever(kind=Kind.PACK, changes=changes, token=uuid4(), actor=asker, reason="a sale", now=now)
        self.pull(self.pack(rover, credit="70.00"))
        with pytest.raises(approvals.Impossible, match=r"credit is 70\.00 by now, not 80\.00"):
            approvals.approve(approval=approval, actor=other, now=now)
        assert credit() == 70

    def test_undoing_a_better_price_needs_nobody(self) -> None:
        catalog_file.apply(document("rover"), actor="test")
        lever = self.pull(self.pack(Product.objects.get(slug="rover"), price="140.00"))
        levers.undo(lever=lever, actor="grace", reason="too dear", now=timezone.now())
        assert CreditPack.objects.filter(slug="enterprise").latest("version").price_cents == 100_00

    def test_limits_that_a_bulk_lever_raises_above_the_price_are_refused(self) -> None:
        catalog_file.apply(document("prpm"), actor="test")
        product = Product.objects.get(slug="prpm")
        with pytest.raises(levers.InvalidLever, match=r"PRPM. Org Member at its cost limit: −12.9 % at worst"):
            self.pull(levers.cost_limits(percent=20, product=product), Kind.COST_LIMITS)
        self.pull(levers.cost_limits(percent=-20, product=product), Kind.COST_LIMITS)

    def test_prices_that_go_back_need_nobody(self) -> None:
        catalog_file.apply(document("prpm"), actor="test")
        product = Product.objects.get(slug="prpm")
        changes = levers.price_back(product=product, what=["plans.individual", "plans.org_member"])
        assert levers.below_floor(kind=Kind.PRICE_BACK, changes=changes, now=timezone.now()) == []
        self.pull(changes, Kind.PRICE_BACK)

    @pytest.mark.parametrize(
        ("section", "slug", "values", "said"),
        [
            ("packs", "giant", {"price": "1.00"}, "has no pack 'giant'"),
            ("packs", "starter", {"price": "-1"}, "an amount as a string"),
            ("packs", "starter", {"credit": "nan"}, "an amount as a string"),
            ("packs", "starter", {"price": "10.00"}, "Nothing would change"),
            ("plans", "core", {"rate_card": "gold"}, "a rate card of this file"),
            ("rate_cards", "standard", {"multipliers.openai:gpt-5": "2"}, "with multipliers"),
            ("rate_cards", "standard", {"markup_percent": "1e3"}, "a percentage"),
        ],
    )
    def test_garbage_is_refused(self, rover: Product, section: str, slug: str, values: dict[str, str], said: str) -> None:
        with pytest.raises(levers.InvalidLever, match=said):
            self.pull(levers.terms(product=rover, section=section, slug=slug, values=values), Kind.PLAN)
