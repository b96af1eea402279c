"""The way into the price book: nothing enters unseen, nothing that was used changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from itertools import pairwise
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.utils import timezone
from genai_prices import Usage, calc_price
from genai_prices.data import providers
from genai_prices.types import ModelPrice

from pricing import catalog, price_import, rating
from pricing.models import PriceProposal, PriceRow
from pricing.price_import import Key, Stretch

INPUT = Key("acme", "m", "input_tokens", 0, "standard")
PAST = datetime(2025, 1, 1, tzinfo=UTC)
AT_COST = rating.RateCard(id=1, mode="pass_through")


@pytest.fixture(scope="module")
def source() -> tuple[list[Stretch], list[str]]:
    return price_import.read(providers=price_import.PROVIDERS)


class TestReading:
    def figures(self, source: tuple[list[Stretch], list[str]], model: str, level: str = "standard") -> dict[tuple[str, int], Decimal]:
        """USD per unit of a model now."""
        now = timezone.now()
        return {
            (stretch.key.component, stretch.key.context_above): Decimal(stretch.price_nanos) / stretch.per_units / 10**9
            for stretch in source[0]
            if f"{stretch.key.provider}:{stretch.key.model}" == model
            and stretch.key.service_level == level
            and (stretch.start is None or stretch.start <= now)
            and (stretch.end is None or now < stretch.end)
        }

    def test_sonnet_has_every_component_with_its_long_context_price(self, source: tuple[list[Stretch], list[str]]) -> None:
        million = Decimal(10**6)
        assert self.figures(source, "anthropic:claude-sonnet-4-5") == {
            ("input_tokens", 0): 3 / million,
            ("input_tokens", 200_000): 6 / million,
            ("cached_input_tokens", 0): Decimal("0.3") / million,
            ("cached_input_tokens", 200_000): Decimal("0.6") / million,
            ("cache_write_tokens", 0): Decimal("3.75") / million,
            ("cache_write_tokens", 200_000): Decimal("7.5") / million,
            ("cache_write_1h_tokens", 0): 6 / million,
            ("cache_write_1h_tokens", 200_000): 12 / million,
            ("output_tokens", 0): 15 / million,
            ("output_tokens", 200_000): Decimal("22.5") / million,
            ("reasoning_tokens", 0): 15 / million,
            ("reasoning_tokens", 200_000): Decimal("22.5") / million,
            ("web_searches", 0): Decimal(10) / 1_000,
        }

    def test_a_batch_has_all_its_components_the_unlisted_ones_at_the_standard_price(self, source: tuple[list[Stretch], list[str]]) -> None:
        batch = self.figures(source, "openai:gpt-4o", "batch")
        assert batch["input_tokens", 0] * 10**6 == Decimal("1.25")
        assert batch["cached_input_tokens", 0] * 10**6 == Decimal("1.25")

    def test_a_price_cut_ends_one_stretch_and_begins_the_next(self, source: tuple[list[Stretch], list[str]]) -> None:
        cut = datetime(2025, 6, 10, tzinfo=UTC)
        o3 = [stretch for stretch in source[0] if stretch.key == Key("openai", "o3", "input_tokens", 0, "standard")]
        assert [(stretch.start, stretch.end, stretch.price_nanos // 10**9) for stretch in o3] == [(None, cut, 10), (cut, None, 2)]

    def test_what_did_not_change_is_one_stretch(self, source: tuple[list[Stretch], list[str]]) -> None:
        cached = [stretch for stretch in source[0] if stretch.key == Key("openai", "o3", "cached_input_tokens", 0, "standard")]
        assert [(stretch.start, stretch.end) for stretch in cached] == [(None, None)]

    def test_stretches_of_one_key_never_overlap(self, source: tuple[list[Stretch], list[str]]) -> None:
        by_key: dict[Key, list[Stretch]] = {}
        for stretch in source[0]:
            by_key.setdefault(stretch.key, []).append(stretch)
        for stretches in by_key.values():
            for before, after in pairwise(stretches):
                assert before.end is not None
                assert after.start is not None
                assert before.end <= after.start

    def test_a_model_with_a_price_that_has_no_component_is_left_out_whole(self, source: tuple[list[Stretch], list[str]]) -> None:
        left_out = {text.split(": ")[0] for text in source[1]}
        assert "openai:gpt-image-1: no component for cache_image_read_mtok, input_image_mtok" in source[1]
        assert left_out.isdisjoint({f"{stretch.key.provider}:{stretch.key.model}" for stretch in source[0]})

    def test_every_provider_of_the_source_can_be_read_with_one_price_for_a_component_at_a_time(self) -> None:
        stretches, _ = price_import.read(providers=[provider.id for provider in providers])
        ends: dict[price_import.Key, datetime | None] = {}
        for stretch in stretches:
            assert stretch.key not in ends or ends[stretch.key] == stretch.start, stretch
            ends[stretch.key] = stretch.end
        assert len({stretch.key.provider for stretch in stretches}) > 20

    def test_a_component_with_two_figures_leaves_its_model_out_and_one_told_twice_does_not(self) -> None:
        told_twice = ModelPrice(audio_hours=Decimal("0.18"), input_audio_hours=Decimal("0.18"))
        assert list(price_import._components(told_twice)) == [("seconds", 0, 180_000_000, 3_600)]
        with pytest.raises(price_import._TwoPrices, match="two prices for seconds"):
            list(price_import._components(ModelPrice(audio_hours=Decimal("0.18"), input_audio_hours=Decimal("0.09"))))

    def test_an_exact_figure_may_need_more_units(self) -> None:
        assert price_import._exact(Decimal("0.0375"), 1_000_000) == (37_500_000, 1_000_000)
        assert price_import._exact(Decimal("0.00000000015"), 1) == (3, 20)

    def test_an_unknown_provider_is_refused(self) -> None:
        with pytest.raises(price_import.UnknownProvider, match="'acme'"):
            price_import.read(providers=["acme"])


@pytest.mark.django_db
class TestFirstImport:
    def test_all_of_three_providers_are_proposed_and_approved_in_seconds_and_cost_what_the_source_says(self) -> None:
        began = time.monotonic()
        report = price_import.propose(now=timezone.now())
        assert not PriceRow.objects.exists()
        assert price_import.approve(ids=None, actor="ada", reason="first import") == report.proposed > 1_000
        assert time.monotonic() - began < 5
        now = timezone.now()
        assert price_import.propose(now=now).proposed == 0
        usage = {"input_tokens": 1_000, "cached_input_tokens": 9_000, "output_tokens": 500}
        for model in ("anthropic:claude-sonnet-4-5", "anthropic:claude-haiku-4-5", "openai:gpt-4o", "openai:o3", "google:gemini-2.5-pro"):
            provider, name = catalog.split_model(model)
            cost = rating.rate(card=AT_COST, book=catalog.price_book(model=model, at=now), model=model, quantities=usage).cost_nanos
            said = calc_price(
                Usage(input_tokens=10_000, cache_read_tokens=9_000, output_tokens=500),
                name,
                provider_id=provider,
                genai_request_timestamp=now,
            )
            assert cost == said.total_price * 10**9

    def test_rovers_example_holds_on_imported_prices(self) -> None:
        price_import.propose(providers=["anthropic"], now=timezone.now())
        price_import.approve(ids=None, actor="ada", reason="first import")
        model = "anthropic:claude-sonnet-4-5"
        rated = rating.rate(
            card=rating.RateCard(id=1, mode="markup", markup_ppm=500_000),
            book=catalog.price_book(model=model, at=timezone.now()),
            model=model,
            quantities={"input_tokens": 100_000},
        )
        assert (rated.cost_nanos, rated.price_nanos) == (300_000_000, 450_000_000)

    def test_with_since_the_book_has_the_prices_of_then(self) -> None:
        price_import.propose(providers=["openai"], now=timezone.now(), since=PAST)
        price_import.approve(ids=None, actor="ada", reason="history")
        prices = [
            catalog.price_book(model="openai:o3", at=at).levels["standard"][0].prices["input_tokens"].price_nanos // 10**9
            for at in (PAST, datetime(2025, 6, 10, tzinfo=UTC) - timedelta(seconds=1), datetime(2025, 6, 10, tzinfo=UTC), timezone.now())
        ]
        assert prices == [10, 10, 2, 2]
        assert catalog.price_book(model="openai:o3", at=PAST - timedelta(seconds=1)).levels == {}
        assert price_import.propose(providers=["openai"], now=timezone.now(), since=PAST).proposed == 0


@pytest.mark.django_db
class TestLater:
    """A source of our own making, so that it can change its mind. The clock of the guard is the transaction's: everything is later."""

    @pytest.fixture
    def say(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., price_import.Report]:
        def say(*stretches: Stretch, **more: Any) -> price_import.Report:
            monkeypatch.setattr(price_import, "read", lambda *, providers: (list(stretches), []))
            return price_import.propose(providers=["acme"], now=self.now(), **more)

        return say

    def now(self) -> datetime:
        with connection.cursor() as cursor:
            cursor.execute("SELECT transaction_timestamp()")
            started: datetime = cursor.fetchone()[0]
        return started

    def approve(self, **more: Any) -> int:
        return price_import.approve(**{"ids": None, "actor": "ada", "reason": "checked"} | more)

    def seen(self, *at: datetime) -> list[int | None]:
        rows = PriceRow.objects.filter(provider="acme", withdrawn_at=None)
        return [next((row.price_nanos for row in rows if moment in row.valid), None) for moment in at]

    def test_a_change_closes_the_old_row_where_the_new_one_begins(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        self.approve(effective=PAST)
        assert say(Stretch(INPUT, 2, 1, None, None)).proposed == 1
        assert PriceProposal.objects.get(state="pending").previous == PriceRow.objects.get()
        soon = self.now() + timedelta(days=1)
        self.approve(effective=soon)
        assert self.seen(PAST, soon - timedelta(microseconds=1), soon) == [3, 3, 2]

    def test_the_same_figure_in_other_units_is_no_change(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        self.approve(effective=PAST)
        assert say(Stretch(INPUT, 3_000, 1_000, None, None)).proposed == 0

    def test_the_past_of_a_price_is_never_changed(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        self.approve(effective=PAST)
        say(Stretch(INPUT, 2, 1, None, None))
        for effective in (self.now() - timedelta(days=1), PAST, PAST - timedelta(days=1)):
            with pytest.raises(price_import.NotApprovable, match="the past stays"):
                self.approve(effective=effective)
        assert self.seen(PAST, self.now()) == [3, 3]

    def test_an_announced_price_begins_when_it_was_announced_for(self, say: Callable[..., price_import.Report]) -> None:
        soon = self.now() + timedelta(days=30)
        assert say(Stretch(INPUT, 3, 1, None, soon), Stretch(INPUT, 4, 1, soon, None)).proposed == 2
        self.approve()
        assert self.seen(self.now(), soon - timedelta(microseconds=1), soon) == [3, 3, 4]
        assert say(Stretch(INPUT, 3, 1, None, soon), Stretch(INPUT, 4, 1, soon, None)).proposed == 0

    def test_an_announcement_taken_back_never_was(self, say: Callable[..., price_import.Report]) -> None:
        soon = self.now() + timedelta(days=30)
        say(Stretch(INPUT, 3, 1, None, soon), Stretch(INPUT, 4, 1, soon, None))
        self.approve()
        assert say(Stretch(INPUT, 3, 1, None, None)).proposed == 1
        self.approve()
        assert self.seen(self.now(), soon, soon + timedelta(days=1)) == [3, 3, 3]
        assert PriceRow.objects.get(price_nanos=4).withdrawn_at is not None

    def test_a_change_before_an_announced_one_keeps_both(self, say: Callable[..., price_import.Report]) -> None:
        soon, between = self.now() + timedelta(days=30), self.now() + timedelta(days=10)
        say(Stretch(INPUT, 3, 1, None, soon), Stretch(INPUT, 4, 1, soon, None))
        self.approve(effective=PAST)
        say(Stretch(INPUT, 2, 1, None, soon), Stretch(INPUT, 4, 1, soon, None))
        self.approve(effective=between)
        assert self.seen(PAST, between - timedelta(microseconds=1), between, soon) == [3, 3, 2, 4]
        assert catalog.book_of_rows(
            model="acme:m", row_ids=[PriceRow.objects.earliest("id").id]
        ).levels  # what was charged with it is explained

    def test_an_announcement_approved_after_its_day_begins_now(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        self.approve(effective=PAST)
        soon = self.now() + timedelta(days=1)
        say(Stretch(INPUT, 3, 1, None, soon), Stretch(INPUT, 4, 1, soon, None))
        PriceProposal.objects.filter(state="pending").update(valid_from=self.now() - timedelta(days=1))
        self.approve()
        assert self.seen(self.now() - timedelta(microseconds=1), self.now()) == [3, 4]

    def test_what_is_pending_follows_the_source(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        assert say(Stretch(INPUT, 3, 1, None, None)).proposed == 0
        assert say(Stretch(INPUT, 2, 1, None, None)).proposed == 1
        assert [proposal.price_nanos for proposal in PriceProposal.objects.all()] == [2]
        say()
        assert not PriceProposal.objects.exists()

    def test_a_rejected_figure_is_not_proposed_again_but_another_is(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        assert price_import.reject(ids=None, actor="ada", reason="a typing error upstream") == 1
        assert say(Stretch(INPUT, 3, 1, None, None)).proposed == 0
        assert say(Stretch(INPUT, 2, 1, None, None)).proposed == 1
        rejected = PriceProposal.objects.get(state="rejected")
        assert (rejected.decided_by, rejected.reason) == ("ada", "a typing error upstream")
        assert not PriceRow.objects.exists()

    def test_a_proposal_is_decided_once(self, say: Callable[..., price_import.Report]) -> None:
        say(Stretch(INPUT, 3, 1, None, None))
        proposal = PriceProposal.objects.get()
        assert self.approve(ids=[proposal.id, proposal.id]) == 1
        for decide in (self.approve, price_import.reject):
            with pytest.raises(price_import.NotApprovable, match="no pending proposal has this id"):
                decide(ids=[proposal.id, 10**9], actor="ada", reason="again")

    def test_all_are_approved_or_none(self, say: Callable[..., price_import.Report]) -> None:
        output = INPUT._replace(component="output_tokens")
        say(Stretch(INPUT, 3, 1, None, None))
        self.approve(effective=PAST)
        say(Stretch(INPUT, 2, 1, None, None), Stretch(output, 9, 1, None, None))
        with pytest.raises(price_import.NotApprovable):
            self.approve(effective=PAST)
        assert PriceRow.objects.count() == 1
        assert PriceProposal.objects.filter(state="pending").count() == 2

    def test_a_proposal_that_ends_before_it_would_begin_is_refused(self, say: Callable[..., price_import.Report]) -> None:
        soon = self.now() + timedelta(days=1)
        say(Stretch(INPUT, 3, 1, None, soon))
        with pytest.raises(price_import.NotApprovable, match="before it would begin"):
            self.approve(effective=soon)

    def test_a_gap_of_the_past_is_filled_only_when_it_is_asked_for(self, say: Callable[..., price_import.Report]) -> None:
        cut = PAST + timedelta(days=100)
        stretches = (Stretch(INPUT, 9, 1, None, cut), Stretch(INPUT, 3, 1, cut, None))
        assert say(*stretches).proposed == 1
        assert say(*stretches, since=PAST).proposed == 2
        self.approve()
        assert self.seen(PAST - timedelta(days=1), PAST, cut, self.now()) == [None, 9, 3, 3]

    def test_a_price_that_a_catalog_carries_is_left_to_the_catalog(self, say: Callable[..., price_import.Report]) -> None:
        seconds = INPUT._replace(component="seconds")
        valid = DateTimeTZRange(PAST, None)
        PriceRow.objects.create(**seconds._asdict(), price_nanos=3, per_units=1, valid=valid, source="test", catalog="rover")
        assert say(Stretch(seconds, 2, 1, None, None), Stretch(INPUT, 2, 1, None, None)).proposed == 1
        assert PriceProposal.objects.get().component == "input_tokens"


@pytest.mark.django_db
class TestCommand:
    def run(self, *arguments: Any) -> str:
        out = StringIO()
        call_command("prices", *map(str, arguments), stdout=out)
        return out.getvalue()

    def test_prices_are_proposed_listed_and_decided(self) -> None:
        assert "left out: google:" in self.run("propose", "--providers", "anthropic, google")
        listed = self.run("list")
        assert "anthropic:claude-sonnet-4-5 input_tokens above 200000 (standard) new → $6 per 1,000,000" in listed
        first, second = PriceProposal.objects.filter(valid_from=None).order_by("id")[:2]
        assert self.run("approve", first.id, "--actor", "ada", "--reason", "checked", "--effective", "2026-01-01") == "1 approved.\n"
        assert PriceRow.objects.get().valid.lower == datetime(2026, 1, 1, tzinfo=UTC)
        assert self.run("reject", second.id, "--actor", "ada", "--reason", "wrong") == "1 rejected.\n"
        assert "approved." in self.run("approve", "--all", "--actor", "ada", "--reason", "checked")
        assert self.run("list") == "0 pending.\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["propose", "--providers", "acme"],
            ["propose", "--providers", " , "],
            ["propose", "--source", "rumour"],
            ["propose", "--since", "yesterday"],
            ["propose", "--since", "0001-01-01T00:00:00+23:00"],
            ["approve", "--actor", "ada", "--reason", "x"],
            ["approve", "1", "--all", "--actor", "ada", "--reason", "x"],
            ["approve", "--all", "--actor", " ", "--reason", "x"],
            ["approve", "--all", "--actor", "ada", "--reason", " "],
            ["approve", "--all", "--actor", "ada", "--reason", "x" * 301],
            ["approve", "--all", "--actor", "a" * 151, "--reason", "x"],
            ["approve", "--all", "--actor", "ada"],
            ["approve", "--all", "--reason", "x"],
            ["approve", "seven", "--actor", "ada", "--reason", "x"],
            ["approve", "1000000", "--actor", "ada", "--reason", "x"],
            ["approve", 10**24, "--actor", "ada", "--reason", "x"],
            ["approve", "-1", "--actor", "ada", "--reason", "x"],
            ["reject", "1000000", "--actor", "ada", "--reason", "x"],
            ["approve", "--all", "--actor", "ada", "--reason", "x", "--effective", "NaN"],
            ["forget"],
            [],
        ],
    )
    def test_garbage_is_refused_and_decides_nothing(self, arguments: list[str]) -> None:
        with pytest.raises(CommandError):
            self.run(*arguments)
        assert not PriceRow.objects.exists()
