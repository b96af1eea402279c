"""Shadow enforcement: what limits that only watch would have refused is noted, reported to staff, and promoted to hard in one act."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from analytics import shadow
from billing import subscriptions
from config import roles
from metering import levers, limits, usage
from metering.models import ShadowRefusal
from metering.tests.limited import PER_TOKEN, Shop
from pricing import catalog_file
from pricing.models import Lever, Product
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
REPORT = "/admin/metering/shadowrefusal/"
FILE = "/admin/metering/shadowrefusal/file/"
PROMOTE = "/admin/pricing/lever/pull/promote/"

pytestmark = pytest.mark.django_db


def watched(*terms: Any, **more: Any) -> Shop:
    shop = Shop.new(*terms, **more)
    Product.objects.filter(pk=shop.product.pk).update(burn_order=["purchased"])
    return shop


def rows(shop: Shop) -> list[tuple[Any, ...]]:
    found = ShadowRefusal.objects.filter(account=shop.account).order_by("meter", "window_end")
    return list(found.values_list("meter", "count", "allowed", "most_used"))


def report(**more: Any) -> shadow.Report:
    now = timezone.now()
    return shadow.report(since=now - timedelta(days=30), now=now, **more)


def text(client: Client, path: str) -> str:
    page = client.get(path)
    assert page.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.content.decode()))


class TestNotes:
    def test_each_account_limit_and_window_has_one_row_with_how_often_and_how_much(self) -> None:
        shop = watched(("messages", "day", 2, "shadow"))
        for _ in range(5):
            shop.use(tokens=1_000)
        assert rows(shop) == [("messages/day", 3, 2, 4)]
        row = ShadowRefusal.objects.get()
        assert row.value_nanos == 3 * 1_500 * PER_TOKEN  # half as much again as it costs
        assert row.first_at < row.last_at
        assert row.window_end > row.last_at

    def test_what_is_below_its_limit_soft_hard_or_off_is_not_noted(self) -> None:
        for mode in ("soft", "off"):
            shop = watched(("messages", "day", 1, mode))
            for _ in range(3):
                shop.use()
        shop = watched(("messages", "day", 1, "hard"))
        shop.use()
        assert shop.refused_by() == "quota"
        below = watched(("messages", "day", 3, "shadow"))
        below.use()
        assert not ShadowRefusal.objects.exists()

    def test_a_repeated_key_is_not_noted_twice(self) -> None:
        shop = watched(("messages", "day", 0, "shadow"))
        ask = usage.Ask(model=shop.model, quantities={"input_tokens": 10})
        for _ in range(3):
            usage.authorize(account=shop.account, ask=ask, key="one", now=timezone.now())
        assert rows(shop) == [("messages/day", 1, 0, 0)]

    def test_a_tier_that_only_measures_requests_of_a_size_and_open_work_are_noted_too(self) -> None:
        shop = watched(
            ("request_tokens", "request", 5, "shadow"), ("runs", "open", 0, "shadow"),
            tier={"monthly_cost_nanos": 0, "throttle_on_exceed": False},
        )  # fmt: skip
        shop.use(tokens=10)
        assert [row[0] for row in rows(shop)] == ["cost/period", "request_tokens/request", "runs/open"]

    def test_an_object_too_many_is_noted(self) -> None:
        shop = watched(("agents", "count", 1, "shadow"))
        for name in ("a", "b", "b"):
            usage.reserve(account=shop.account, meter="agents", object_ref=name, now=timezone.now())
        assert rows(shop) == [("agents/count", 1, 1, 2)]

    def test_what_cannot_be_noted_fails_no_call(self) -> None:
        shop = watched(("messages", "day", 0, "shadow"))
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {roles.OWNER}")
            cursor.execute("create trigger no before insert on metering_shadowrefusal for each row execute function refuse_change()")
            cursor.execute("reset role")
        shop.use()
        assert not ShadowRefusal.objects.exists()

    def test_who_passes_no_shadow_limit_pays_nothing_for_it(self) -> None:
        shop = watched(("messages", "day", 100, "shadow"))
        shop.use()
        ask = usage.Ask(model=shop.model, quantities={"input_tokens": 10})
        with connection.execute_wrapper(_no_shadow):
            usage.authorize(account=shop.account, ask=ask, key="two", now=timezone.now())


def _no_shadow(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    assert "shadowrefusal" not in sql
    return execute(sql, params, many, context)


class TestReport:
    def test_the_most_value_is_first_and_no_call_counts_twice_in_the_total(self) -> None:
        small, large = (watched(("messages", "day", 0, "shadow"), ("requests", "hour", 0, "shadow")) for _ in range(2))
        small.use(tokens=10)
        for _ in range(2):
            large.use(tokens=1_000)
        found = report()
        assert (found.accounts, found.calls, found.value_nanos) == (2, 3, 2 * 1_500 * PER_TOKEN + 15 * PER_TOKEN)
        assert [(row.account, row.calls) for row in found.rows] == [
            (large.account.public_id, 2), (large.account.public_id, 2), (small.account.public_id, 1), (small.account.public_id, 1),
        ]  # fmt: skip
        assert all(row.now for row in found.rows)
        assert report(product_id=small.product.pk).accounts == 1
        assert report(limit=1).accounts == 2

    def test_what_is_long_ago_is_left_out_and_what_is_over_is_not_refused_at_once(self) -> None:
        shop = watched(("messages", "day", 0, "shadow"))
        shop.use()
        old = datetime.now(UTC) - timedelta(days=20)
        ShadowRefusal.objects.update(first_at=old, last_at=old, window_end=old)
        assert [row.now for row in report().rows] == [False]
        now = timezone.now()
        assert shadow.report(since=now - timedelta(days=7), now=now).rows == []

    @pytest.mark.parametrize("limit", [0, -1, shadow.MAX_ROWS + 1])
    def test_too_many_rows_are_not_asked_for(self, limit: int) -> None:
        with pytest.raises(ValueError, match="Ask for"):
            report(limit=limit)


class TestPage:
    def test_its_first_sentence_says_who_how_often_and_how_much(self, superuser: Client) -> None:
        assert "Nobody would have been refused in the last 30 days by limits that only watch." in text(superuser, REPORT)
        assert "No limit only watches." in text(superuser, REPORT)
        shop = watched(("messages", "day", 1, "shadow"))
        for _ in range(3):
            shop.use(tokens=1_000_000)
        page = text(superuser, f"{REPORT}?product={shop.product.slug}")
        assert f"1 account would have been refused 2 times in the last 30 days by limits of {shop.product} that only watch." in page
        assert "At most $3 of work, at list value, would not have happened." in page or "At most $3.00 of work" in page
        assert "messages/day" in page
        assert "at once" in page

    @pytest.mark.parametrize("garbage", [{"days": "x"}, {"days": "9" * 40}, {"product": "\0"}, {"product": "none"}, {"days": "٣٠"}])
    def test_garbage_shows_the_usual(self, superuser: Client, garbage: dict[str, str]) -> None:
        answer = superuser.get(REPORT, garbage)
        assert (answer.status_code, answer.context["days"], answer.context["product"]) == (200, 30, None)

    def test_the_file_has_every_row_and_no_formulas(self, superuser: Client) -> None:
        shop = watched(("messages", "day", 0, "shadow"))
        shop.use()
        Account.objects.filter(pk=shop.account.pk).update(name="=1+1")
        body = b"".join(superuser.get(FILE).streaming_content).decode()  # type: ignore[attr-defined]
        heading, row = csv.reader(io.StringIO(body))
        assert heading[:4] == ["account", "name", "product", "limit"]
        assert row[:4] == [shop.account.public_id, "'=1+1", shop.product.slug, "messages/day"]

    def test_it_takes_the_right_to_see_it(self) -> None:
        assert staff("accounts.view_account").get(REPORT).status_code == 403
        assert staff("accounts.view_account").get(FILE).status_code == 403
        assert staff("metering.view_shadowrefusal").get(REPORT).status_code == 200


class TestPromotion:
    def promote(self, client: Client, shop: Shop, meter: str = "messages/day") -> Lever:
        form = {"what": f"{shop.product.slug} {meter}", "reason": "measured long enough", "token": str(uuid4())}
        shown = client.post(PROMOTE, form)
        assert shown.status_code == 200
        self.notes = shown.context["preview"].notes
        assert not Lever.objects.filter(product=shop.product).exists()
        client.post(PROMOTE, form | {"confirm": "1", "seen": shown.context["seen"]})
        return Lever.objects.get(product=shop.product)

    def test_a_plans_limit_refuses_after_a_preview_of_whom_and_is_taken_back(self, superuser: Client) -> None:
        shop = watched(("messages", "day", 1, "shadow"))
        for _ in range(3):
            shop.use()
        lever = self.promote(superuser, shop)
        assert self.notes == (
            "1 account passed it in a window that runs now, and would be refused at once. The first of them: Ada (messages/day, 2 calls)",
        )
        shop.account.refresh_from_db()
        assert shop.refused_by() == "quota"
        assert LogEntry.objects.filter(change_message__contains="measured long enough").count() == 1
        assert levers.shadowed(product=Product.objects.get(pk=shop.product.pk)) == []
        levers.undo(lever=lever, actor="grace", reason="too hard", now=timezone.now())
        shop.account.refresh_from_db()
        assert shop.refused_by() is None

    def test_it_is_for_those_who_keep_an_earlier_version_too_and_for_requests_and_objects(self, superuser: Client) -> None:
        shop = watched(("request_tokens", "request", 5, "shadow"), ("agents", "count", 0, "shadow"))
        shop.use(tokens=10)
        for meter in ("request_tokens/request", "agents/count"):
            product = Product.objects.select_related("unit").get(pk=shop.product.pk)
            levers.pull(
                kind=Lever.Kind.PROMOTE, changes=levers.promote(product=product, meter=meter), token=uuid4(), actor="ada", reason="now",
                now=timezone.now(),
            )  # fmt: skip
        shop.account.refresh_from_db()
        assert shop.refused_by(tokens=10) == "request_size"
        with pytest.raises(usage.Refused):
            usage.reserve(account=shop.account, meter="agents", object_ref="a", now=timezone.now())

    def test_a_tier_that_only_measures_refuses(self, superuser: Client) -> None:
        shop = watched(tier={"daily_cost_nanos": 10 * PER_TOKEN, "throttle_on_exceed": False})
        shop.use(tokens=20)
        assert shop.refused_by() is None
        self.promote(superuser, shop, "cost/day")
        shop.account.refresh_from_db()
        assert shop.refused_by() == "cost"

    def test_applying_the_same_file_again_leaves_it_promoted_and_says_so(self, superuser: Client) -> None:
        shop = watched(("messages", "day", 1, "shadow"))
        file = catalog_file.export(slug=shop.product.slug)
        self.promote(superuser, shop)
        [line] = catalog_file.apply(catalog_file.parse(file), actor="ci")
        assert line.startswith('= product.enforced_meters = ["messages/day"] stays')
        shop.account.refresh_from_db()
        shop.use()
        assert shop.refused_by() == "quota"

    @pytest.mark.parametrize("garbage", [{"what": "x y"}, {"what": ""}, {"what": "\0"}, {"reason": ""}, {"token": "x"}])
    def test_garbage_promotes_nothing(self, superuser: Client, garbage: dict[str, str]) -> None:
        shop = watched(("messages", "day", 1, "shadow"))
        form = {"what": f"{shop.product.slug} messages/day", "reason": "now", "token": str(uuid4()), "confirm": "1", "seen": "x"} | garbage
        assert superuser.post(PROMOTE, form).status_code == 200
        assert not Lever.objects.exists()

    def test_what_is_not_in_shadow_mode_is_not_promoted(self) -> None:
        shop = watched(("messages", "day", 1, "hard"))
        with pytest.raises(levers.InvalidLever, match="no limit 'messages/day' in shadow mode"):
            levers.promote(product=shop.product, meter="messages/day")

    def test_a_file_may_name_only_meters(self) -> None:
        shop = watched(("messages", "day", 1, "shadow"))
        file = catalog_file.export(slug=shop.product.slug).decode()
        with pytest.raises(catalog_file.InvalidCatalog, match="enforced_meters"):
            catalog_file.parse(file.replace("[product]\n", '[product]\nenforced_meters = ["x"]\n').encode())

    def test_limits_in_other_modes_stay_as_they_are(self) -> None:
        shop = watched(("messages", "day", 1, "soft"))
        shop.account.product.enforced_meters = ["messages/day"]
        allowed = subscriptions.allowed(account=shop.account)
        assert allowed is not None
        [limit] = allowed.plan.limits
        assert limits.mode_of(shop.account, limit) == "soft"
