"""Projections: the documents' tables to the cent from the shipped catalogs, advice at its edges, and garbage that is told what is wrong."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from analytics import projections, scenarios
from analytics.projections import NANOS, Range
from pricing import catalog, catalog_file
from pricing.models import Product
from tests.factories import START, make_account, make_key, make_product
from tests.test_admin import staff, superuser

__all__ = ["superuser"]  # a fixture
pytestmark = pytest.mark.django_db
CATALOGS = Path(__file__).parents[2] / "pricing" / "catalogs"
API = "/api/v1/admin/projections"
PAGE = "/admin/analytics/margin/projection/"


@pytest.fixture
def catalogs(db: None) -> None:
    for name in ("rover", "prpm", "elite", "teach_charlie"):
        catalog_file.apply(catalog_file.parse((CATALOGS / f"{name}.toml").read_bytes()), actor="ada", effective=START)
    catalog.clear()


def projected(text: str) -> projections.Projection:
    return scenarios.compute(scenario=scenarios.parse(scenarios.SHIPPED.get(text, text)), now=timezone.now())


def dollars(best: str, worst: str = "") -> Range:
    return Range(*(int(Decimal(amount) * NANOS) for amount in (best, worst or best)))


def fired(found: projections.Projection) -> list[str]:
    return [f"{each.says} {each.act}" for each in found.advice if each.wrong]


@pytest.mark.usefixtures("catalogs")
class TestDocuments:
    def test_rovers_example_earns_1550_dollars_at_44_percent(self) -> None:
        found = projected("rover")
        assert [line.says for line in found.revenue] == ["60 × $25 = $1,500", "30 × $50 = $1,500", "$500"]
        assert [line.source for line in found.revenue] == ["catalog", "catalog", "assumption"]
        assert [line.says for line in found.costs] == ["$200", "10 % of $3,500 = $350", "40 % of $3,500 = $1,400"]
        assert (found.revenue_nanos, found.cost, found.profit) == (3_500 * NANOS, dollars("1950"), dollars("1550"))
        assert (found.margin_best, found.margin_worst) == (Decimal("44.29"), Decimal("44.29"))
        assert round(Decimal("44.29")) == 44
        assert fired(found) == [
            "AI cost of credit revenue is 280 %; it should be at most 50 %. Raise the markup.",
            "Machine cost of all revenue is 10 %; it should be below 10 %. Watch the sandboxes: they are to cost less than this.",
        ]

    def test_rovers_fixed_cost_is_borne_by_8_to_10_paying_users(self) -> None:
        found = projected("rover_break_even").break_even
        assert found is not None
        assert (found.best, found.worst) == (8, 10)
        assert found.says == "$100 of fixed cost ÷ $12.50 to $10 that a paying user leaves"

    def test_prpms_hundred_users_earn_375_30_at_83_4_percent(self) -> None:
        found = projected("prpm")
        assert [line.says for line in found.revenue] == ["60 × $6 = $360", "30 × $3 = $90", "10 × $0 = $0"]
        assert [line.says for line in found.costs] == ["60 × $0.92 = $55.20", "30 × $0.60 = $18", "10 × $0.15 = $1.50"]
        assert (found.revenue_nanos, found.cost, found.profit) == (450 * NANOS, dollars("74.70"), dollars("375.30"))
        assert found.margin_best == Decimal("83.40")

    def test_prpms_plans_show_their_margin_at_the_limit_beside_the_target_of_83_percent(self) -> None:
        found = projected("prpm")
        assert [(plan.name, plan.best, plan.at_limit) for plan in found.plans] == [
            ("PRPM+ Individual", Decimal("84.67"), Decimal("16.67")),
            ("PRPM+ Org Member", Decimal("80.00"), Decimal("16.67")),
        ]
        assert fired(found) == [
            "The margin on PRPM+ Org Member is 80 %; it should be at least 83 %. Lower the tier's cost limit or raise the plan's price."
        ]
        poor = projected(scenarios.SHIPPED["prpm"].replace("0.92", "1.20"))
        assert fired(poor)[0] == "The margin is 79.67 %; it should be at least 80 %. The goal is missed: look at the costliest accounts."

    def test_elites_hundred_users_earn_78_to_90_percent_of_5000_dollars(self) -> None:
        found = projected("elite")
        assert (found.revenue_nanos, found.cost) == (5_000 * NANOS, dollars("500", "1100"))
        assert (found.margin_worst, found.margin_best) == (Decimal("78.00"), Decimal("90.00"))
        assert (found.margin_after_fees_worst, found.margin_after_fees_best) == (Decimal("74.50"), Decimal("86.50"))
        assert found.costs[0].says == "100 × $5 to $11 = $500 to $1,100"
        assert fired(found) == []
        dear = projected(scenarios.SHIPPED["elite"].replace("11.00", "15.00"))
        assert fired(dear)[1] == "Cost a user is $15; it should be below $15. Do not leave the beta."

    @pytest.mark.parametrize(
        ("users", "mrr", "says"),
        [
            (100, "1265", ["30 (30 % of 100 users) × $29 = $870", "5 (5 % of 100 users) × $79 = $395"]),
            (300, "3795", ["90 (30 % of 300 users) × $29 = $2,610", "15 (5 % of 300 users) × $79 = $1,185"]),
            (500, "6325", ["150 (30 % of 500 users) × $29 = $4,350", "25 (5 % of 500 users) × $79 = $1,975"]),
        ],
    )
    def test_teach_charlies_scenarios_and_its_operating_cost_within_the_budget(self, users: int, mrr: str, says: list[str]) -> None:
        found = projected(f"teach_charlie_{users}")
        assert (found.revenue_nanos, [line.says for line in found.revenue]) == (int(mrr) * NANOS, says)
        assert found.cost == dollars("10", "185")
        assert [(each.says, each.wrong) for each in found.advice] == [("Cost of the budget is 37 %; it should be at most 100 %.", False)]
        over = projected(scenarios.SHIPPED[f"teach_charlie_{users}"].replace("185.00", "500.01"))
        assert fired(over) == ["Cost of the budget is 100 %; it should be at most 100 %. Cut operating cost or raise the budget."]


ROVER = """
title = "Rover"
product = "rover"
[packs.starter]
sold = 100
[[costs]]
name = "AI"
kind = "ai"
amount = "%s"
[[costs]]
name = "Sandboxes"
kind = "machine"
amount = "%s"
"""


@pytest.mark.usefixtures("catalogs")
class TestAdvice:
    @pytest.mark.parametrize(
        ("ai", "machine", "advice"),
        [
            ("530.00", "0.00", ["AI cost of credit revenue is 53 %; it should be at most 50 %. Raise the markup."]),
            ("500.00", "99.99", []),
            ("500.00", "100.00", ["Watch the sandboxes"]),
            ("0.00", "150.00", ["Watch the sandboxes"]),
            ("0.00", "150.01", ["Watch the sandboxes", "Hibernate sandboxes sooner."]),
            ("500.00", "150.01", ["Watch the sandboxes", "Hibernate sandboxes sooner.", "Raise subscription prices or shorten trials."]),
        ],
    )
    def test_rovers_rules_fire_just_past_their_edge(self, ai: str, machine: str, advice: list[str]) -> None:
        said = [each for each in fired(projected(ROVER % (ai, machine))) if "all revenue is 53" not in each]
        assert len(said) == len(advice)
        assert all(part in whole for part, whole in zip(advice, said, strict=True))

    def test_a_product_without_rules_of_its_own_is_held_to_its_catalogs_margins(self) -> None:
        product = make_product(target_margin_ppm=500_000, alert_margin_ppm=200_000)
        costs = [{"name": "c", "kind": "other", "amount": "60"}]
        text = json.dumps({"title": "x", "product": product.slug, "revenue": [{"name": "r", "amount": "100"}], "costs": costs})
        assert fired(projected(text)) == ["The margin is 40 %; it should be at least 50 %. It misses the product's target."]


class TestArithmetic:
    @given(
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12)), max_size=5),
        st.lists(st.tuples(st.integers(0, 2 * 10**6), st.integers(0, 2 * 10**6)), max_size=3),
    )
    def test_lines_add_up_and_the_best_case_is_never_worse(self, plans: list[Any], shares: list[Any]) -> None:
        sold = [projections.Plan("p", users, price, True, Range(cost, cost + more)) for users, price, cost, more in plans]
        costs = [projections.Cost("c", "ai", Range(min(share), max(share)), of_revenue=True) for share in shares]
        found = projections.project(scenario=projections.Scenario("t", sold, costs=costs))
        assert found.revenue_nanos == sum(line.amount.best for line in found.revenue)
        for case in (0, 1):
            assert found.cost[case] == sum(line.amount[case] for line in found.costs)
            assert found.profit[case] + found.cost[case] == found.revenue_nanos
        assert found.profit.best >= found.profit.worst

    def test_nobody_who_pays_or_nothing_that_is_left_never_breaks_even(self) -> None:
        fixed = [projections.Cost("rent", "fixed", Range(NANOS, NANOS))]
        nobody = projections.project(scenario=projections.Scenario("t", [], costs=fixed))
        assert (nobody.break_even, nobody.margin_best) == (None, None)
        loss = projections.project(scenario=projections.Scenario("t", [projections.Plan("p", 3, 5, True, Range(5, 6))], costs=fixed))
        assert loss.break_even is not None
        assert (loss.break_even.best, loss.break_even.worst) == (None, None)


TITLE = "title = 'x'\n"
CORE = TITLE + "[plans.core]\nusers = 1"
REVENUE = TITLE + "[[revenue]]\nname = 'r'\namount = '1'\n"
GARBAGE = [
    "",
    "\0",
    "title",
    "= 1",
    "{",
    "[]",
    '{"title": 1}',
    TITLE + "title = 'y'",
    "[" * 5_000,
    "x = " + "9" * 6_000,
    "\ud800",
    "title = '" + "x" * 70_000 + "'",
    "title = 'x'",
    "title = ''\n[plans.core]\nusers = 1",
    TITLE + "[plans.core]\nusers = -1",
    TITLE + "[plans.core]\nusers = 1.5",
    TITLE + "[plans.core]\nusers = true",
    TITLE + "[plans.core]\nusers = 10000000000",
    CORE + "\nprice = 25",
    CORE + "\nprice = '-1'",
    CORE + "\nprice = '1e9'",
    CORE + "\nprice = 'NaN'",
    CORE + "\nprice = '٣'",
    CORE + "\nprice = '1\\n'",
    CORE + "\ncolour = 'red'",
    TITLE + "[plans.core]\npercent_of_users = '30'",
    CORE + "\npercent_of_users = '30'",
    TITLE + "[plans.'Core!']\nusers = 1",
    CORE + "\ncost = '2'\ncost_high = '1'",
    CORE + "\ncost_high = '1'",
    CORE,
    TITLE + "[packs.small]\nsold = 1",
    TITLE + "product = 'nobody'\n[plans.core]\nusers = 1",
    CORE + "\ncost = '1'\ncost_kind = 'fixed'",
    REVENUE + "[[costs]]\nname = 'c'\nkind = 'fixed'",
    "title = \"a\\u0007\"\n[plans.core]\nusers = 1\nprice = '1'",
    REVENUE + "[[costs]]\nname = 'c'\nkind = 'fixed'\npercent_of_revenue = '5'",
]


class TestGarbage:
    @pytest.mark.parametrize("text", GARBAGE)
    def test_a_scenario_that_is_none_is_refused_with_what_is_wrong_where(self, text: str) -> None:
        with pytest.raises(scenarios.InvalidScenario) as raised:
            projected(text)
        assert raised.value.problems
        assert all(problem["field"] and problem["message"] for problem in raised.value.problems)

    @pytest.mark.usefixtures("catalogs")
    def test_every_plan_and_pack_that_the_catalog_has_not_is_named_at_once(self) -> None:
        with pytest.raises(scenarios.InvalidScenario) as raised:
            projected("title = 'x'\nproduct = 'rover'\n[plans.gold]\nusers = 1\n[plans.enterprise]\nusers = 1\n[packs.huge]\nsold = 1")
        assert [problem["field"] for problem in raised.value.problems] == ["plans.gold", "plans.enterprise.price", "packs.huge"]

    @given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: ("title = 'x'\n" + text).encode(errors="replace")))
    def test_nothing_that_is_written_fails_otherwise(self, raw: bytes) -> None:
        with contextlib.suppress(scenarios.InvalidScenario):
            assert scenarios.parse(raw).title


@pytest.mark.usefixtures("catalogs")
class TestApi:
    def ask(self, body: Any, *, slug: str = "rover", scopes: list[str] | None = None) -> tuple[int, Any]:
        key = make_key(Product.objects.get(slug=slug), scopes=scopes)
        raw = body if isinstance(body, str) else json.dumps(body)
        answer = Client().post(API, raw, content_type="application/json", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code, json.loads(answer.content)

    def test_it_answers_in_exact_strings_with_the_arithmetic(self) -> None:
        status, body = self.ask(json.loads(scenarios.parse(scenarios.SHIPPED["rover"]).model_dump_json(exclude_defaults=True)))
        assert status == 200
        assert body["profit"] == {"best": "1550.000000000", "worst": "1550.000000000"}
        assert (body["total_revenue"], body["margin_best"], body["revenue"][0]["says"]) == ("3500.000000000", "44.29", "60 × $25 = $1,500")

    def test_a_wrong_body_is_422_with_its_field_and_another_product_404(self) -> None:
        assert self.ask("{")[0] == 400
        status, body = self.ask({"title": "x", "plans": {"gold": {"users": 1}}})
        assert (status, body["code"], body["errors"][0]["field"]) == (422, "invalid_request", "plans.gold")
        assert self.ask({"title": "x"})[1]["code"] == "invalid_request"
        assert self.ask({"title": "x", "product": "prpm", "plans": {"free": {"users": 1}}})[0] == 404

    def test_it_needs_the_scope(self) -> None:
        assert self.ask({"title": "x"}, scopes=["usage:read"])[0] == 403
        account = make_key(Product.objects.get(slug="rover"), account=make_account(Product.objects.get(slug="rover")))
        assert Client().post(API, {}, headers={"Authorization": f"Bearer {account}"}).status_code == 403


@pytest.mark.usefixtures("catalogs")
class TestCommand:
    def run(self, *arguments: str) -> str:
        out = StringIO()
        call_command("project", *arguments, stdout=out)
        return out.getvalue()

    def test_an_example_is_shown_saved_changed_and_computed_from_its_file(self, tmp_path: Path) -> None:
        saved = tmp_path / "mine.toml"
        saved.write_text(self.run("rover", "--show").replace("users = 60", "users = 61"))
        assert "61 × $25 = $1,525 [catalog]" in self.run(str(saved))
        assert "Margin: 44.29 %" in self.run("rover")
        assert "! AI cost of credit revenue is 280 %" in self.run("rover")
        assert json.loads(self.run("elite", "--json"))["margin_worst"] == "78.00"

    @pytest.mark.parametrize("name", ["nobody.toml", "", "\0", "/", "x" * 5_000])
    def test_a_file_that_is_not_there_is_an_error(self, name: str) -> None:
        with pytest.raises(CommandError, match="is no example, and cannot be read"):
            self.run(name)

    def test_a_wrong_file_is_an_error_with_its_fields(self, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.toml"
        wrong.write_text("title = 'x'\n[plans.core]\nusers = -1")
        with pytest.raises(CommandError, match=r"plans\.core\.users: "):
            self.run(str(wrong))


@pytest.mark.usefixtures("catalogs")
class TestPage:
    def test_an_example_is_computed_with_its_arithmetic_and_advice(self, superuser: Client) -> None:
        page = superuser.get(PAGE, {"example": "rover"}).content.decode()
        for text in ("Rover: 100 users: $1,550 a month, a margin of 44.29 %.", "60 × $25 = $1,500", "Raise the markup."):
            assert text in page

    def test_what_is_posted_is_computed_and_saved_as_a_file(self, superuser: Client) -> None:
        text = scenarios.SHIPPED["prpm"].replace("users = 60", "users = 61")
        assert "61 × $6 = $366" in superuser.post(PAGE, {"scenario": text}).content.decode()
        saved = superuser.post(PAGE, {"scenario": text, "save": "1"})
        assert saved.headers["Content-Disposition"] == 'attachment; filename="scenario.toml"'
        assert scenarios.parse(saved.content) == scenarios.parse(text)

    @pytest.mark.parametrize(
        "text", ["", "\0", "<script>alert(1)</script>", "title = '<script>'", "title = 'x'\nproduct = 'rover'\n[plans.gold]\nusers = 1"]
    )
    def test_garbage_is_an_error_beside_the_field(self, superuser: Client, text: str) -> None:
        for more in ({}, {"save": "1"}):
            page = superuser.post(PAGE, {"scenario": text} | more)
            if "Content-Disposition" not in page.headers:
                assert page.status_code == 200
                assert 'role="alert"' in page.content.decode()
                assert "<script>alert" not in page.content.decode()
        assert superuser.get(PAGE, {"example": "\0"}).status_code == 200

    def test_only_who_may_see_the_margin_sees_it(self) -> None:
        assert staff("accounts.view_account").get(PAGE).status_code == 403
        assert staff("analytics.view_margin").get(PAGE).status_code == 200
