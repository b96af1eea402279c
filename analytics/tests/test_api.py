"""GET /api/v1/admin/margin: a product's own figures, exact strings, and every wrong question named."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import pytest
from django.test import RequestFactory
from django.utils import timezone

from accounts import api_keys
from analytics import margin
from analytics.api import MarginView
from analytics.tests.world import World
from billing import ledger

FIGURES = {
    "records": 1,
    "tokens": 120,
    "cost": "0.300000000",
    "revenue": "0.450000000",
    "margin": "0.150000000",
    "margin_percent": "33.33",
    "cash": "0.000000000",
    "fee": "0.000000000",
    "cash_margin": "-0.300000000",
    "cash_margin_percent": None,
}


def key(world: World, scopes: Collection[str] = ("admin:read",)) -> str:
    return api_keys.issue(product=world.product, name="margin", scopes=scopes, now=timezone.now()).token


def ask(token: str, query: str = "") -> tuple[int, Any]:
    request = RequestFactory().get(f"/api/v1/admin/margin?{query}", headers={"Authorization": f"Bearer {token}"} if token else None)
    response: Any = MarginView.as_view()(request)
    if hasattr(response, "render"):
        response.render()

    return response.status_code, json.loads(response.content)


@pytest.fixture
def used(world: World) -> World:
    ledger.record(world.event(world.account(), cost=300_000_000, price=450_000_000))
    return world


def test_a_product_key_reads_its_products_margin_in_exact_strings(used: World) -> None:
    status, body = ask(key(used), "since=2026-03-01&until=2026-04-01")
    assert status == 200
    assert body == {
        "by": "model",
        "since": "2026-03-01",
        "until": "2026-04-01",
        "product": used.product.slug,
        "totals": FIGURES,
        "groups": 1,
        "rows": [FIGURES | {"key": str(used.models[0]), "label": str(used.models[0])}],
    }


def test_another_products_usage_is_not_in_it_and_its_name_not_found(used: World) -> None:
    other = World.new()
    status, body = ask(key(other), "since=2026-03-01&until=2026-04-01&by=product")
    assert (status, body["rows"], body["totals"]["revenue"]) == (200, [], "0.000000000")
    assert body["totals"]["margin_percent"] is None
    assert ask(key(other), f"product={used.product.slug}")[0] == 404


@pytest.mark.parametrize("by", margin.BYS)
def test_every_grouping_answers_with_the_fee_in_and_the_least_first(used: World, by: str) -> None:
    status, body = ask(key(used), f"since=2026-03-01&until=2026-04-01&by={by}&fees=1&order=least")
    assert (status, body["totals"]["margin"], len(body["rows"])) == (200, "0.150000000", 1)


def test_without_dates_it_is_the_last_thirty_days_with_today(used: World) -> None:
    ledger.record(used.event(used.account(), cost=1, price=2, at=timezone.now()))
    assert ask(key(used))[1]["totals"]["revenue"] == "0.000000002"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=colour", "by"),
        ("by=", "by"),
        ("order=best", "order"),
        ("fees=yes", "fees"),
        ("fees=", "fees"),
        ("colour=red", "colour"),
        ("by=day&by=model", "by"),
        ("since=yesterday", "since"),
        ("since=20260301", "since"),
        ("since=2026-02-30", "since"),
        ("since=٢٠٢٦-03-01", "since"),
        ("until=2026-03-01T00:00:00", "until"),
        ("since=2026-03-02&until=2026-03-01", "since"),
        ("since=0001-01-01&until=9999-12-31", "since"),
        ("until=0001-01-01", "since"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=５", "limit"),
        ("limit=1e3", "limit"),
        ("product=%00", "product"),
        (f"limit={10**24}", "limit"),
    ],
)
def test_a_wrong_question_is_422_with_its_field(world: World, query: str, field: str) -> None:
    status, body = ask(key(world), query)
    assert (status, body["code"]) == (422, "invalid_request")
    assert [error["field"] for error in body["errors"]] == [field]


def test_without_a_key_401_and_without_the_scope_403(world: World) -> None:
    assert (ask("")[0], ask("tg_live_" + "x" * 32)[0]) == (401, 401)
    status, body = ask(key(world, ["usage:read"]))
    assert (status, body["code"]) == (403, "missing_scope")
