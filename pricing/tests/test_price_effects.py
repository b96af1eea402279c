"""Who approves upstream prices is told what they bring under its floor, and is never stopped."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.utils import timezone

from pricing import catalog_file, price_effects
from pricing.models import PriceProposal, PriceRow

PRPM = Path(__file__).parents[1] / "catalogs" / "prpm.toml"
SONNET = "claude-sonnet-4-5"

pytestmark = pytest.mark.django_db


def proposed(model: str, dollars_in: int, dollars_out: int, *, above: int = 0) -> list[PriceProposal]:
    return [
        PriceProposal.objects.create(
            provider="anthropic", model=model, component=component, price_nanos=dollars * 10**9, per_units=10**6, context_above=above,
            source="test", proposed_at=timezone.now(),
        )
        for component, dollars in (("input_tokens", dollars_in), ("output_tokens", dollars_out))
    ]  # fmt: skip


def approve() -> str:
    out = StringIO()
    call_command("prices", "approve", all=True, actor="ada", reason="their list", stdout=out)
    return out.getvalue()


@pytest.fixture(autouse=True)
def prpm() -> None:
    catalog_file.apply(catalog_file.parse(PRPM.read_bytes()), actor="test")


def fallen(proposals: list[PriceProposal]) -> list[str]:
    return [finding.offer for _, finding in price_effects.fallen(proposals=proposals, at=timezone.now())]


def test_a_price_tells_what_falls_under_the_floor_by_it_and_not_what_was_there_before() -> None:
    assert fallen(proposed(SONNET, 1, 3)) == []
    PriceProposal.objects.all().delete()
    proposed(SONNET, 3, 15)
    said = approve()
    assert "! PRPM Playground: Medium Pack at the rate card tokens: −3.4 % at worst, below the floor of 0 %." in said
    assert said.endswith("2 approved.\n")
    assert fallen(proposed(SONNET, 4, 20)) == ["packs.small"]  # the other two were there before


def test_one_component_is_taken_with_the_others_of_the_book() -> None:
    proposed(SONNET, 3, 15)
    approve()
    [_, output] = proposed(SONNET, 3, 30)
    assert fallen([output]) == ["packs.small", "plans.org_member", "plans.individual"]


def test_a_price_of_long_contexts_or_of_another_model_changes_nothing() -> None:
    proposed(SONNET, 3, 15)
    approve()
    assert fallen(proposed(SONNET, 300, 1500, above=200_000)) == []
    assert fallen(proposed("claude-nobody-uses", 300, 1500)) == []


def test_a_price_that_rises_is_never_refused() -> None:
    proposed(SONNET, 300, 1500)
    assert "Small Pack" in approve()
    assert PriceRow.objects.filter(model=SONNET).count() == 2
