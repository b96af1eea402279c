"""The inbox of upstream prices: files, agreement of sources, what a price affects, and models that wait for one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.test import Client
from django.utils import timezone

from analytics import price_desk
from metering import rerating, usage
from metering.tests.limited import Shop
from pricing import price_files, price_import, price_inbox
from pricing.models import PriceProposal, PriceRow
from tests.factories import NANOS, START
from tests.test_admin import staff, superuser
from tests.test_admin_drafts import text

__all__ = ["superuser"]
LIST = "/admin/pricing/priceproposal/"
HEAD = "provider,model,component,price_usd,per_units"

pytestmark = pytest.mark.django_db


def take(rows: str, name: str = "prices.csv") -> price_import.Report:
    return price_inbox.take(f"{HEAD}\n{rows}\n".encode(), name=name, now=timezone.now())


def row(price: int = 3 * NANOS, model: str = "m") -> PriceRow:
    return PriceRow.objects.create(
        provider="openai", model=model, component="input_tokens", price_nanos=price, per_units=10**6, source="book",
        valid=DateTimeTZRange(START, None, "[)"),
    )  # fmt: skip


def used(shop: Shop, *, model: str, tokens: int, at: datetime) -> None:
    [done] = usage.record(events=[usage.Event(f"{model}{tokens}", shop.account, at, model, {"input_tokens": tokens})], now=timezone.now())
    assert not isinstance(done, usage.UsageError)


class TestFiles:
    def test_what_differs_is_proposed_once_and_a_later_file_takes_its_place(self) -> None:
        row()
        assert take("openai,m,input_tokens,3.00,1000000").unchanged == 1
        assert take("openai,m,input_tokens,4.00,1000000").proposed == 1
        assert take("openai,m,input_tokens,4.00,1000000").proposed == 0
        assert take("openai,m,input_tokens,5.00,1000000").proposed == 1
        [proposal] = PriceProposal.objects.all()
        assert (proposal.price_nanos, proposal.source, proposal.previous is not None) == (5 * NANOS, "CSV prices.csv", True)

    def test_of_two_prices_of_one_thing_that_have_both_begun_the_later_one_counts(self) -> None:
        lines = "openai,m,input_tokens,4.00,1000000,\nopenai,m,input_tokens,5.00,1000000,2020-01-01\n"
        report = price_inbox.take(f"{HEAD},valid_from\n{lines}".encode(), name="p.csv", now=timezone.now())
        assert report.proposed == 1
        assert PriceProposal.objects.get().price_nanos == 5 * NANOS

    def test_prices_of_one_thing_for_the_same_time_are_refused_with_their_lines(self) -> None:
        lines = "openai,m,input_tokens,4.00,1000000,,2021-01-01\nopenai,m,input_tokens,5.00,1000000,2020-01-01,\n"
        with pytest.raises(price_files.InvalidPriceFile, match=r"line 3: expected .* of line 2"):
            price_inbox.take(f"{HEAD},valid_from,valid_until\n{lines}".encode(), name="p.csv", now=timezone.now())

    def test_sources_keep_their_own_proposals_and_say_whether_they_agree(self) -> None:
        row()
        take("openai,m,input_tokens,4.00,1000000")
        entry = {"litellm_provider": "openai", "input_cost_per_token": 4.03e-06}
        price_inbox.take(json.dumps({"m": entry}).encode(), name="l.json", now=timezone.now())
        ours = PriceProposal.objects.get(source="CSV prices.csv")
        [quote] = price_import.agree(ours)
        assert (quote.source, quote.agrees, quote.off_ppm) == ("LiteLLM l.json", True, 7_500)
        price_inbox.take(json.dumps({"m": entry | {"input_cost_per_token": 4.05e-06}}).encode(), name="l.json", now=timezone.now())
        [quote] = price_import.agree(ours)
        assert not quote.agrees
        price_import.approve(ids=[ours.pk], actor="ada", reason="their page")
        other = PriceProposal.objects.get(source="LiteLLM l.json")
        assert (other.state, other.reason) == ("rejected", "Another source was approved: their page")

    def test_a_figure_that_only_lost_to_another_source_is_proposed_again_once_the_price_has_changed(self) -> None:
        row()

        def litellm() -> int:
            entry = {"litellm_provider": "openai", "input_cost_per_token": 5e-06}
            return price_inbox.take(json.dumps({"m": entry}).encode(), name="l.json", now=timezone.now()).proposed

        assert litellm() == 1
        take("openai,m,input_tokens,4.00,1000000")
        price_import.approve(ids=[PriceProposal.objects.get(source="CSV prices.csv").pk], actor="ada", reason="their page")
        lost = PriceProposal.objects.filter(state="rejected")
        assert litellm() == 0, "what lost is not said again while the other figure counts"
        lost.update(decided_at=timezone.now() - timedelta(days=30))  # the row that counts began since
        assert litellm() == 1
        PriceProposal.objects.filter(state="pending").delete()
        lost.update(reason="staff found it wrong")
        assert litellm() == 0, "what staff rejected is not said again"

    def test_two_figures_for_one_price_are_not_approved_together(self) -> None:
        row()
        take("openai,m,input_tokens,4.00,1000000")
        price_inbox.take(
            json.dumps({"m": {"litellm_provider": "openai", "input_cost_per_token": 4.4e-06}}).encode(), name="l", now=timezone.now()
        )
        with pytest.raises(price_import.NotApprovable, match="approve one of them"):
            price_import.approve(ids=None, actor="ada", reason="x")

    def test_genai_prices_is_asked_beside_a_file(self) -> None:
        take("openai,gpt-4o,input_tokens,2.50,1000000")
        [quote] = price_import.agree(PriceProposal.objects.get())
        assert quote.source.startswith("genai-prices")
        assert quote.agrees

    def test_a_job_that_proposes_from_genai_prices_leaves_files_alone(self) -> None:
        take("openai,m,input_tokens,4.00,1000000")
        price_import.propose(providers=["openai"], now=timezone.now())
        assert PriceProposal.objects.filter(source="CSV prices.csv").count() == 1

    def test_garbage_changes_nothing_by_command_or_by_page(self, superuser: Client, tmp_path: Path) -> None:
        take("openai,m,input_tokens,4.00,1000000")
        bad = tmp_path / "bad.csv"
        bad.write_text(f"{HEAD}\nopenai,m,input_tokens,6.00,1000000\nopenai,n,input_tokens,-1,1\n")
        with pytest.raises(CommandError, match=r"bad\.csv: line 3: expected a price as a plain decimal"):
            call_command("prices", "import", str(bad))
        with pytest.raises(CommandError, match="No such file"):
            call_command("prices", "import", str(tmp_path / "none"))
        page = superuser.post(f"{LIST}import/", {"file": SimpleUploadedFile("bad.csv", bad.read_bytes())})
        assert "line 3: expected a price" in page.content.decode()
        assert [proposal.price_nanos for proposal in PriceProposal.objects.all()] == [4 * NANOS]

    def test_a_file_is_taken_by_page_and_by_command(self, superuser: Client, tmp_path: Path, capsys: Any) -> None:
        good = tmp_path / "good.csv"
        good.write_text(f"{HEAD}\nopenai,m,input_tokens,6.00,1000000\n")
        page = superuser.post(f"{LIST}import/", {"file": SimpleUploadedFile("good.csv", good.read_bytes())})
        assert "1 proposed" in page.content.decode()
        call_command("prices", "import", str(good))
        assert "0 proposed, 1 as" in capsys.readouterr().out or PriceProposal.objects.count() == 1


class TestDeciding:
    def test_the_page_shows_what_the_price_affects_and_approves_from_a_date(self, superuser: Client) -> None:
        shop = Shop.new()
        row(model="big")
        used(shop, model="openai:big", tokens=2_000_000, at=timezone.now() - timedelta(days=2))
        take("openai,big,input_tokens,4.00,1000000")
        proposal = PriceProposal.objects.get()
        effect = price_inbox.effect_of(proposal, now=timezone.now())
        assert effect is not None
        assert (effect.old_nanos, effect.new_nanos, effect.more_nanos, effect.use.value_nanos) == (
            6 * NANOS,
            8 * NANOS,
            2 * NANOS,
            9 * NANOS,
        )
        chosen = {"action": "approve", "_selected_action": [proposal.pk]}
        page = superuser.post(LIST, chosen).content.decode()
        for said in ("2,000,000", "$6.00", "$8.00", "$9.00"):
            assert said in page
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(second=0, microsecond=0)
        for wrong in ("soon", "2020-01-01T00:00"):
            superuser.post(LIST, chosen | {"confirm": "1", "reason": "x", "effective": wrong})
            assert PriceRow.objects.filter(model="big").count() == 1
        superuser.post(LIST, chosen | {"confirm": "1", "reason": "x", "effective": f"{tomorrow:%Y-%m-%dT%H:%M}"})
        assert [one.valid.lower for one in PriceRow.objects.filter(model="big").order_by("id")] == [START, tomorrow]


class TestWaiting:
    def test_models_without_a_price_are_told_with_their_traffic_and_charged_once_a_price_was_added(self, superuser: Client) -> None:
        shop = Shop.new(late_charging="charge")
        at = timezone.now() - timedelta(hours=2)
        used(shop, model="openai:novel", tokens=1_000, at=at)
        used(shop, model="openai:novel", tokens=500, at=at + timedelta(hours=1))
        [waiting] = price_desk.waiting()
        assert (waiting.model, waiting.uses, waiting.tokens, waiting.accounts, waiting.oldest_at) == ("novel", 2, 1_500, 1, at)
        assert "openai:novel 2 1,500 1" in text(superuser, LIST)
        asked = f"{LIST}add-price/?provider=openai&model=novel"
        form = superuser.get(asked).context["form"]
        said = {"provider": "openai", "model": "novel", "since": form.initial["since"], "input_tokens": "3.00", "source": "their page"}
        for wrong in (
            {"input_tokens": "-1"},
            {"input_tokens": "NaN"},
            {"input_tokens": ""},
            {"since": "soon"},
            {"model": ""},
            {"source": ""},
        ):
            assert superuser.post(asked, said | wrong).status_code == 200
        assert not PriceProposal.objects.exists()
        superuser.post(asked, said)
        proposal = PriceProposal.objects.get()
        assert proposal.source.endswith(": their page")
        price_import.approve(ids=[proposal.pk], actor="ada", reason="new model")
        assert rerating.run(now=timezone.now()).rated == 2
        assert price_desk.waiting() == []

    def test_only_who_decides_on_prices_takes_files_and_adds(self) -> None:
        reader = staff("pricing.view_priceproposal")
        assert reader.get(LIST).status_code == 200
        for path in ("import/", "add-price/"):
            assert reader.get(LIST + path).status_code == 403
