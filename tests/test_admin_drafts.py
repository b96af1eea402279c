"""Replays under a draft, on staff's pages: asked for, read, taken away, activated; garbage is named beside its field."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from accounts import approvals
from accounts.models import Approval, User
from analytics.drafts import replays
from analytics.models import DraftReplay
from analytics.tests.test_draft_replays import document, shop, used, worked
from metering.tests.limited import Shop
from pricing import catalog_file
from pricing.models import CreditPack, Product, RateCard
from tests.factories import NANOS, START
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
LIST = "/admin/analytics/draftreplay/"
MARKUP = '["rate_cards", "standard", "markup_percent"]'

pytestmark = pytest.mark.django_db


@pytest.fixture
def made() -> Shop:
    shopped = shop(credit=10)
    used(shopped, 1, 1_000)
    return shopped


def text(client: Client, path: str) -> str:
    """What a page says, without its tags."""
    page = client.get(path)
    assert page.status_code == 200
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page.content.decode())))


def asked(**more: Any) -> dict[str, Any]:
    return {"name": "Dearer", "since": "2026-05-01", "last_day": "2026-05-31", "term_1": MARKUP, "value_1": "60"} | more


def ask(client: Client, made: Shop, **more: Any) -> Any:
    return client.post(f"{LIST}new/?product={made.product.slug}", asked(**more))


class TestAsking:
    def test_a_term_is_changed_without_a_file_and_the_page_shows_how_far_it_is(self, superuser: Client, made: Shop) -> None:
        page = superuser.get(f"{LIST}new/?product={made.product.slug}")
        assert "rate_cards.standard.markup_percent (now 50)" in page.content.decode()
        response = ask(superuser, made)
        replay = DraftReplay.objects.get()
        assert response.url == f"{LIST}{replay.pk}/change/"
        assert replay.changes == '~ rate_cards.standard.markup_percent = "50" → "60"'
        waiting = superuser.get(response.url)
        assert "It waits for a worker" in waiting.content.decode()
        assert waiting["Refresh"] == "2"
        assert replays.work_next(now=timezone.now()) is not None
        done = superuser.get(response.url)
        assert "Refresh" not in done
        assert "the margin on usage would have been 37.5 % instead of 33.3 %" in text(superuser, response.url)
        assert LogEntry.objects.filter(object_id=str(replay.pk), change_message__contains="Asked for").count() == 1

    def test_the_catalog_file_of_today_says_that_nothing_changes_and_that_the_ledger_agrees(self, superuser: Client, made: Shop) -> None:
        file = SimpleUploadedFile("x.toml", catalog_file.export(slug=made.product.slug))
        response = ask(superuser, made, term_1="", value_1="", file=file)
        assert replays.work_next(now=timezone.now()) is not None
        said = text(superuser, response.url)
        assert "The draft changes nothing" in said
        assert "comes to the ledger's $0.00 15 to the nano, for each of 1 account" in said

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"value_1": "minus one"}, "a percentage as a string"),
            ({"value_1": "1e3"}, "a percentage as a string"),
            ({"value_1": "NaN"}, "a percentage as a string"),
            ({"value_1": "-5"}, "a percentage as a string"),
            ({"value_1": "9" * 80}, "a percentage as a string"),
            ({"value_1": ""}, "a percentage as a string"),
            ({"term_1": '["product", "slug"]'}, "Select a valid choice"),
            ({"term_1": "garbage"}, "Select a valid choice"),
            ({"since": "2026-06-01"}, "Choose a period of the past"),
            ({"last_day": "9999-12-31"}, "Choose a period of the past"),
            ({"since": "yesterday"}, "Enter a valid date"),
            ({"name": ""}, "This field is required"),
            ({"file": SimpleUploadedFile("x.toml", b"\xff\xfe")}, "either a file or terms"),
            ({"term_1": "", "file": SimpleUploadedFile("x.toml", b"\xff\xfe")}, "not UTF-8"),
            ({"term_1": "", "file": SimpleUploadedFile("x.toml", b"[product\n")}, "not TOML"),
            ({"term_1": "", "file": SimpleUploadedFile("x.toml", b"#" * (1024 * 1024 + 1))}, "at most"),
        ],
    )
    def test_garbage_is_named_and_nothing_is_asked_for(self, superuser: Client, made: Shop, more: dict[str, Any], message: str) -> None:
        page = ask(superuser, made, **more)
        assert page.status_code == 200
        assert message in page.content.decode()
        assert not DraftReplay.objects.exists()

    def test_a_file_of_another_product_is_refused(self, superuser: Client, made: Shop) -> None:
        file = SimpleUploadedFile("x.toml", catalog_file.export(slug=shop().product.slug))
        assert "The file is of" in ask(superuser, made, term_1="", file=file).content.decode()

    def test_only_who_may_asks_cancels_and_activates(self, made: Shop) -> None:
        replay = worked(made, document(made, rate_cards__standard__markup_percent="60"))
        reader = staff("analytics.view_draftreplay")
        assert reader.get(f"{LIST}{replay.pk}/change/").status_code == 200
        assert ask(reader, made).status_code == 403
        for act in ("cancel", "again", "activate"):
            assert reader.post(f"{LIST}{replay.pk}/{act}/").status_code == 403
        nobody = staff("billing.view_grant")
        for path in ("change/", "file/", "draft/"):
            assert nobody.get(f"{LIST}{replay.pk}/{path}").status_code == 403

    @pytest.mark.parametrize(
        "path", ["999999/change/", "abc/change/", "9" * 40 + "/change/", "999999/file/", "999999/activate/", "new/?product=x"]
    )
    def test_what_is_not_there_is_not_found(self, superuser: Client, path: str) -> None:
        assert superuser.get(LIST + path).status_code == 404


class TestResults:
    def test_every_account_is_in_the_file_with_exact_amounts(self, superuser: Client, made: Shop) -> None:
        made.account.name = "=SUM(A1)"
        made.account.save()
        replay = worked(made, document(made, rate_cards__standard__markup_percent="60"))
        response = superuser.get(f"{LIST}{replay.pk}/file/")
        [row] = csv.DictReader(io.StringIO(b"".join(response).decode()))
        assert (row["value_old"], row["value_new"], row["pays_more_usd"], row["records_new"]) == (
            "0.001500000",
            "0.001600000",
            "0.000100000",
            "1",
        )
        assert row["name"] == "'=SUM(A1)"

    def test_a_waiting_one_is_cancelled_and_begun_anew(self, superuser: Client, made: Shop) -> None:
        ask(superuser, made)
        replay = DraftReplay.objects.get()
        superuser.post(f"{LIST}{replay.pk}/cancel/")
        assert "It was cancelled" in text(superuser, f"{LIST}{replay.pk}/change/")
        assert superuser.get(f"{LIST}{replay.pk}/cancel/").status_code == 405
        superuser.post(f"{LIST}{replay.pk}/again/")
        assert replays.work_next(now=timezone.now()) is not None
        assert "It was over already" in superuser.post(f"{LIST}{replay.pk}/cancel/", follow=True).content.decode()

    def test_the_list_shows_state_and_margin(self, superuser: Client, made: Shop) -> None:
        worked(made, document(made, rate_cards__standard__markup_percent="60"))
        assert "33.3 % → 37.5 %" in text(superuser, LIST)

    def test_it_is_activated_once_seen_and_confirmed_with_a_reason(self, superuser: Client, made: Shop) -> None:
        replay = worked(made, document(made, rate_cards__standard__markup_percent="60"))
        path, tomorrow = f"{LIST}{replay.pk}/activate/", datetime.now(UTC) + timedelta(days=1)
        said = {"effective": tomorrow.strftime("%Y-%m-%dT%H:%M"), "reason": "AI cost above half of revenue"}
        assert 'markup_percent = "50" → "60"' in text(superuser, path)
        assert "Activate</button>" in superuser.post(path, said).content.decode()
        assert not DraftReplay.objects.exclude(applied=None).exists()
        for wrong in ("2020-01-01T00:00", "2990-01-01T00:00", "soon", ""):
            page = superuser.post(path, said | {"effective": wrong, "confirm": "1"})
            assert page.status_code == 200
        assert not DraftReplay.objects.exclude(applied=None).exists()
        superuser.post(path, said | {"confirm": "1"})
        replay.refresh_from_db()
        assert replay.applied is not None
        assert replay.applied.effective_at == tomorrow.replace(second=0, microsecond=0)
        assert LogEntry.objects.filter(object_id=str(replay.pk), change_message__contains="AI cost above half").count() == 1
        assert superuser.get(path).status_code == 404

    def test_what_sells_below_the_floor_waits_for_a_second_person_with_its_arithmetic(self, superuser: Client, made: Shop) -> None:
        Product.objects.filter(pk=made.product.pk).update(floor_margin_ppm=300_000, expected_model=made.model)
        pack = {"slug": "small", "name": "Small", "valid_from": START, "price_cents": 1_000, "credit_nanos": 10 * NANOS}
        CreditPack.objects.create(product=made.product, **pack)
        replay = worked(made, document(made, rate_cards__standard__markup_percent="10"))
        path, tomorrow = f"{LIST}{replay.pk}/activate/", datetime.now(UTC) + timedelta(days=1)
        said = {"effective": tomorrow.strftime("%Y-%m-%dT%H:%M"), "reason": "To win them back", "confirm": "1"}
        assert "a second person has to accept it" in text(superuser, path)
        superuser.post(path, said)
        approval = Approval.objects.get()
        assert (approval.state, approval.reason) == ("pending", "To win them back")
        assert RateCard.objects.filter(product=made.product).count() == 1
        other = User.objects.create_superuser("second@example.com", "correct horse battery")
        approvals.approve(approval=approval, actor=other, now=timezone.now())
        card = RateCard.objects.get(product=made.product, version=2)
        assert (card.markup_ppm, card.valid_from) == (100_000, tomorrow.replace(second=0, microsecond=0))
