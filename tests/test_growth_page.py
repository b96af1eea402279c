"""Admin's growth page: what it says, that each figure leads to its rows, its files, and garbage."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from analytics import growth_rows, hourly
from analytics.models import MarketingSpend
from analytics.tests.subscribers import account, change, end, plan, subscribe
from pricing.models import Product
from tests.factories import NANOS, give, make_product
from tests.test_admin import staff, superuser, text

__all__ = ["superuser"]  # a fixture
pytestmark = pytest.mark.django_db
PAGE, ROWS, FILE = (reverse(f"admin:analytics_growth{part}") for part in ("", "_rows", "_file"))


def words(client: Client, url: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text(client, url)))


def body(client: Client, query: str) -> list[str]:
    answer: Any = client.get(FILE + query)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    return [re.sub(r"\.0+\b", "", line) for line in b"".join(answer.streaming_content).decode().splitlines()]


@pytest.fixture
def product() -> Product:
    """Three customers at $20: one who came this month, one who left, one who does not pay; a trial, a pack, an hour."""
    product, now = make_product(), timezone.now()
    this = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    before = this - timedelta(days=10)
    soon = this + (now - this) / 2
    version = plan(product, 2_000, name="Pro <b>")
    new, left, late = (account(product, at=before) for _ in range(3))
    subscribe(new, version, at=soon)
    end(subscribe(left, version, at=before), at=soon)
    change(subscribe(late, version, at=before), at=soon, status="past_due")
    end(subscribe(account(product, at=before), version, at=before, status="trialing"), at=soon)
    give(new, 9 * NANOS, cash_nanos=9 * NANOS, currency="usd")
    hourly.measure(now=now)
    return product


def test_it_says_what_comes_in_and_each_figure_leads_to_its_rows(superuser: Client, product: Product) -> None:
    query = f"?product={product.slug}"
    seen = words(superuser, PAGE + query)
    assert f"2 customers of {product} pay $40.00 a month now, + $0.00 in" in seen
    assert "MRR $40.00 $40.00 when the month began" in seen
    assert "Churn 50.00 % 1 of 2 customers; target under 5 %. 50.00 % of revenue" in seen
    assert "Trials converted 0 of 1 that ended" in seen
    assert "Failed payments 1 0 recovered, 0 lost, 1 open" in seen
    assert "New customers 1 $20.00 Customers who pay more 0 $0.00" in seen
    assert "Pro &lt;b&gt; 2 $40.00" in seen
    page = text(superuser, PAGE + query)
    links = set(re.findall(r'href="(/admin/analytics/margin/growth/[^"]+)"', page))
    assert {link.split("what=")[1].split("&")[0] for link in links if "what=" in link} == {*growth_rows.WHATS, "months", "cohorts", "hours"}
    for link in links:
        assert superuser.get(link.replace("&amp;", "&")).status_code == 200
    counts = {what: text(superuser, f"{ROWS}{query}&what={what}").count("/change/") for what in growth_rows.WHATS}
    assert counts == {
        "paying": 2, "new": 1, "expansion": 0, "contraction": 0, "churned": 1, "reactivated": 0, "lost": 1, "packs": 1, "trials": 1,
        "unpaid": 1,
    }  # fmt: skip


def test_the_files_have_the_rows_with_exact_amounts(superuser: Client, product: Product) -> None:
    query = f"?product={product.slug}"
    now = timezone.now()
    months = body(superuser, query + "&what=months")
    assert months[0].startswith("month,mrr_usd,new_usd,")
    assert months[-1] == f"{now:%Y-%m},40,20,0,0,-20,0,1,0,0,1,0"
    [_, row] = body(superuser, query + "&what=lost")
    assert row.split(",")[1:3] + row.split(",")[4:] == ["Ada", product.slug, "20", "0", ""]
    assert body(superuser, query + "&what=hours")[1].split(",")[2:6] == ["0", "40", "9", "100"]
    cohorts = body(superuser, query + "&what=cohorts")
    assert cohorts[1].split(",")[1:] == ["4", "0", "0", "2", "40", "0"]
    assert cohorts[2].split(",")[1:] == ["4", "1", "0", "2", "40", "9"]


@pytest.mark.parametrize("query", ["", "?product=nobody&month=13", "?product=%00&month=2026-99", "?month=1999-01", "?month=9999-12&x=1"])
def test_garbage_shows_every_product_this_month(superuser: Client, query: str) -> None:
    assert "a month now" in words(superuser, PAGE + query)


@pytest.mark.parametrize("what", ["", "%00", "WHATS", "usage", "new'--"])
def test_there_are_no_rows_of_what_is_no_figure(superuser: Client, what: str) -> None:
    assert superuser.get(f"{ROWS}?what={what}").status_code == 404
    assert superuser.get(f"{FILE}?what={what}").status_code == 404


def test_only_who_may_see_the_margin_sees_any_of_it() -> None:
    nobody, somebody = staff("accounts.view_account"), staff("analytics.view_margin")
    for url in (PAGE, ROWS + "?what=new", FILE + "?what=new"):
        assert nobody.get(url).status_code == 403
        assert somebody.get(url).status_code == 200
        assert Client().get(url).status_code == 302


class TestSpend:
    ADD = reverse("admin:analytics_marketingspend_add")

    def add(self, client: Client, for_: Product, **said: str) -> Any:
        return client.post(self.ADD, {"product": for_.pk, "month": "2026-03", "amount": "12.50", "what": "ads"} | said)

    def test_it_is_typed_in_by_somebody_and_put_right_by_another_row(self, superuser: Client) -> None:
        product = make_product()
        assert self.add(superuser, product).status_code == 302
        assert self.add(superuser, product, amount="-2.50").status_code == 302
        found = MarketingSpend.objects.filter(product=product).order_by("pk")
        assert [(f"{row.month}", row.amount_cents, row.what) for row in found] == [
            ("2026-03-01", 1_250, "ads"),
            ("2026-03-01", -250, "ads"),
        ]
        assert "@example.com" in found[0].entered_by
        listed = words(superuser, reverse("admin:analytics_marketingspend_changelist"))
        assert "March 2026" in listed
        url = reverse("admin:analytics_marketingspend_change", args=[found[0].pk])
        superuser.post(url, {"product": product.pk, "month": "2026-03", "amount": "9", "what": "less"})
        assert superuser.post(url.replace("change", "delete"), {"post": "yes"}).status_code in (403, 404)
        assert MarketingSpend.objects.filter(product=product, amount_cents=1_250, what="ads").exists()

    @pytest.mark.parametrize(
        "said",
        [
            {"month": "2026-13"}, {"month": "9999-12"}, {"month": ""}, {"amount": "0"}, {"amount": "1.005"}, {"amount": "nan"},
            {"amount": "1e5"}, {"amount": "9" * 30}, {"what": ""}, {"what": "x" * 201}, {"what": "a\0b"}, {"product": "0"},
        ],
    )  # fmt: skip
    def test_garbage_is_refused_beside_its_field(self, superuser: Client, said: dict[str, str]) -> None:
        product = make_product()
        answer = self.add(superuser, product, **said)
        assert answer.status_code == 200
        assert answer.context["adminform"].form.errors.keys() == said.keys()
        assert not MarketingSpend.objects.filter(product=product).exists()
