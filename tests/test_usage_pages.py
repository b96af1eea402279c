"""The usage page: what is told apart and narrowed, limits, the file of records, and one charge explained."""

from __future__ import annotations

import csv
import io
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from django.http import Http404
from django.test import Client

from accounts import api_keys, exports
from accounts.models import Account, ApiKey, Membership, User
from billing import ledger
from billing.models import Subscription
from metering import breakdown, pages, rerating, usage
from metering.tests import limited
from pricing.models import PriceRow, Product
from tests import factories
from tests.test_pages import text

NANOS = factories.NANOS

pytestmark = pytest.mark.django_db


@pytest.fixture
def user() -> User:
    return User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")


@pytest.fixture
def account(user: User) -> Account:
    return factories.make_account(factories.make_product(visibility="full_breakdown"), credit=10, owner=user)


@pytest.fixture
def signed_in(client: Client, user: User) -> Client:
    client.force_login(user)
    return client


def report(
    account: Account,
    *,
    at: datetime | None = None,
    model: str | None = None,
    tokens: int = 100_000,
    key: ApiKey | None = None,
    **fields: Any,
) -> ledger.Usage:
    """One finished use of 100,000 input tokens: $0.45."""
    at = at or datetime.now(UTC)
    event = usage.Event(secrets.token_hex(8), account, at, model or factories.make_model(), {"input_tokens": tokens}, **fields)
    [answer] = usage.record(events=[event], now=datetime.now(UTC), api_key_id=key.pk if key else None)
    assert isinstance(answer, ledger.Usage)
    return answer


def page(client: Client, account: Account, **query: str) -> Any:
    response = client.get(f"/a/{account.public_id}/usage/", query)
    assert response.status_code == 200, response.status_code
    return response.context


def named(context: Any) -> list[tuple[str, int]]:
    return [(line.name, line.group.nanos) for line in context["lines"]]


class TestToldApart:
    def test_by_model_feature_and_user_each_adds_up_to_the_same_total(self, signed_in: Client, account: Account) -> None:
        one, two = factories.make_model(), factories.make_model()
        report(account, model=one, feature="chat", user="ada")
        report(account, model=two, feature="chat", user="bob", tokens=200_000)
        report(account, model=two)
        cent = 10**7
        assert named(page(signed_in, account)) == [(two, 135 * cent), (one, 45 * cent)]
        assert named(page(signed_in, account, by="feature")) == [("chat", 135 * cent), ("No feature named", 45 * cent)]
        assert named(page(signed_in, account, by="user")) == [("bob", 90 * cent), ("No user named", 45 * cent), ("ada", 45 * cent)]
        for by in breakdown.COLUMNS:
            context = page(signed_in, account, by=by)
            assert context["total"] == 180 * cent
            assert sum(context["days"][-1].parts) == (180 * cent if len(context["lines"]) > 1 else 0)

    def test_by_key_names_the_accounts_own_and_the_products_none(self, signed_in: Client, account: Account) -> None:
        own = api_keys.issue(product=account.product, account=account, name="laptop", scopes=["usage:write"], now=datetime.now(UTC)).key
        theirs = api_keys.issue(product=account.product, name="inner secret", scopes=["usage:write"], now=datetime.now(UTC)).key
        report(account, key=own)
        report(account, key=theirs, tokens=200_000)
        context = page(signed_in, account, by="key")
        assert [name for name, _ in named(context)] == [account.product.name, f"laptop ({own.prefix}…)"]
        assert "inner secret" not in text(signed_in, account, "usage/?by=key")

    def test_only_what_there_is_several_of_is_offered(self, signed_in: Client, account: Account) -> None:
        report(account, user="ada")
        assert [name for name, *_ in page(signed_in, account)["apart"]] == ["model"]
        report(account, user="bob", feature="chat")
        assert [name for name, *_ in page(signed_in, account)["apart"]] == ["model", "feature", "user"]
        api_keys.issue(product=account.product, account=account, name="laptop", scopes=["usage:write"], now=datetime.now(UTC))
        assert [name for name, *_ in page(signed_in, account)["apart"]] == ["model", "feature", "user", "key"]

    def test_of_very_many_groups_the_dearest_are_named_and_the_rest_is_one(
        self, signed_in: Client, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(breakdown, "MAX_GROUPS", 3)
        for number in range(6):
            report(account, user=f"user-{number}", tokens=1_000 * (number + 1), model=factories.make_model())
        for by in ("user", "model"):
            context = page(signed_in, account, by=by)
            assert len(context["lines"]) == 4
            assert context["lines"][-1].name == "All others"
            assert sum(nanos for _, nanos in named(context)) == context["total"] == 21_000 * 4_500
        assert [name for name, _ in named(page(signed_in, account, by="user"))][:3] == ["user-5", "user-4", "user-3"]

    def test_the_chart_has_one_colour_a_group_and_its_table_one_column(self, signed_in: Client, account: Account) -> None:
        for number in range(7):
            report(account, model=factories.make_model(), tokens=10_000 * (number + 1))
        html = signed_in.get(f"/a/{account.public_id}/usage/").content.decode()
        chart = html[html.index('class="chart"') : html.index("</svg>", html.index('class="chart"'))]
        assert re.findall(r'<path class="(s\d)"', chart) == [f"s{number}" for number in range(breakdown.MAX_SERIES + 1)]
        days = html[html.index("Show every day") : html.index("</details>", html.index("Show every"))]
        assert days.count("<th ") == 3 + breakdown.MAX_SERIES + 1

    def test_a_price_that_came_later_counts_and_is_shown(self, signed_in: Client, account: Account) -> None:
        name = f"late-{secrets.token_hex(4)}"
        report(account, model=f"acme:{name}")
        assert "price pending" in text(signed_in, account, "usage/")
        PriceRow.objects.create(
            provider="acme", model=name, component="input_tokens", price_nanos=3 * NANOS, valid=(factories.START, None), source="test"
        )
        rerating.run(now=datetime.now(UTC))
        assert page(signed_in, account)["total"] == 450_000_000
        assert "price pending" not in text(signed_in, account, "usage/")


class TestRange:
    def test_the_billing_period_is_the_subscriptions(self, signed_in: Client, account: Account) -> None:
        now = datetime.now(UTC)
        start = now - timedelta(days=1)
        Subscription.objects.filter(account=account).update(
            anchor_at=start, current_period_start=start, current_period_end=start + timedelta(days=30)
        )
        report(account, at=start + timedelta(minutes=1))
        report(account, at=start - timedelta(minutes=1))
        context = page(signed_in, account, days="period")
        assert (context["total"], context["count"]) == (450_000_000, 1)
        assert len(context["days"]) == 2

    def test_a_years_period_is_drawn_by_the_week_and_stays_small(self, signed_in: Client, account: Account) -> None:
        now = datetime.now(UTC)
        start = now - timedelta(days=360)
        Subscription.objects.filter(account=account).update(
            anchor_at=start, current_period_start=start, current_period_end=start + timedelta(days=365)
        )
        for number in range(40):
            report(account, at=now - timedelta(days=9 * number), model=factories.make_model())
        response = signed_in.get(f"/a/{account.public_id}/usage/?days=period")
        assert response.context["count"] == 40
        assert len(response.context["days"]) == 52
        assert len(response.content) < 100_000
        assert b"Week from" in response.content

    def test_ninety_full_days_of_many_models_stay_below_a_hundred_kilobytes(self, signed_in: Client, account: Account) -> None:
        now = datetime.now(UTC)
        models = [factories.make_model() for _ in range(12)]
        events = [
            usage.Event(
                secrets.token_hex(8), account, now - timedelta(days=number // 12, minutes=5), models[number % 12], {"input_tokens": 999}
            )
            for number in range(90 * 12)
        ]
        for start in range(0, len(events), 1000):
            list(usage.record(events=events[start : start + 1000], now=now))
        response = signed_in.get(f"/a/{account.public_id}/usage/?days=90")
        assert response.context["count"] >= 1068
        assert len(response.content) < 100_000


class TestNarrowed:
    def test_a_filter_keeps_in_every_address_of_the_page(self, signed_in: Client, account: Account) -> None:
        one, two = factories.make_model(), factories.make_model()
        for _ in range(30):
            report(account, model=one, feature="chat", user="ada", tokens=10)
        report(account, model=two, feature="chat")
        context = page(signed_in, account, model=one, days="7")
        assert context["count"] == 30
        assert {use.model for use in context["uses"]} == {one}
        said = [query for _, query, _ in context["ranges"] + context["apart"]] + [context["query"]]
        assert {parse_qs(query)["model"][0] for query in said} == {one}
        html = signed_in.get(f"/a/{account.public_id}/usage/", {"model": one, "days": "7"}).content.decode()
        assert f"usage.csv?days=7&amp;by=model&amp;model={quote(one, safe='')}" in html
        older = re.search(r'href="\?([^"]+)#records">Older', html)
        assert older is not None
        assert f"model={quote(one, safe='')}" in older[1]

    def test_filters_combine_and_one_without_a_value_means_those_without_one(self, signed_in: Client, account: Account) -> None:
        model = factories.make_model()
        report(account, model=model, feature="chat")
        report(account, model=model)
        report(account, feature="chat")
        assert page(signed_in, account, model=model, feature="chat")["count"] == 1
        assert page(signed_in, account, model=model, feature="")["count"] == 1
        assert page(signed_in, account, feature="")["count"] == 1

    def test_a_name_that_only_others_use_is_answered_like_one_that_nobody_does(self, signed_in: Client, account: Account) -> None:
        theirs = factories.make_account(credit=10)
        secret = factories.make_model()
        report(theirs, model=secret)
        found = []
        for name in (secret, "acme:nobodys"):
            html = signed_in.get(f"/a/{account.public_id}/usage/", {"model": name}).content.decode()
            found.append(re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", html.replace(name, "").replace(quote(name, safe=""), "")))
        assert found[0] == found[1]

    @pytest.mark.parametrize(
        "query", ["by=", "by=cost", "by=session", "days=9", "model=%00", "feature=%0a", "user=" + "a" * 201, "model=a%7f", "from=x"]
    )
    def test_garbage_is_not_found(self, signed_in: Client, account: Account, query: str) -> None:
        for path in ("usage/", "usage.csv"):
            if not (path == "usage.csv" and query.startswith("from")):
                assert signed_in.get(f"/a/{account.public_id}/{path}?{query}").status_code == 404


class TestLimits:
    def on_plan_with(self, user: User, *terms: limited.Term) -> Account:
        product = factories.make_product()
        limited.plan_version(product.plans.get(), *terms)
        return factories.make_account(product, credit=10, owner=user)

    def test_each_says_what_is_used_of_what_and_when_it_begins_anew(self, signed_in: Client, user: User) -> None:
        account = self.on_plan_with(
            user, ("messages", "day", 5), ("agents", "count", 3), ("tasks", "open", None), ("chats", "period", 2, "soft"),
            ("secret_trial", "day", 9, "shadow"), ("gone", "day", 9, "off"), ("request_tokens", "request", 8_000),
        )  # fmt: skip
        usage.reserve(account=account, meter="agents", object_ref="a", now=datetime.now(UTC))
        for _ in range(2):
            report(account, counts={"messages": 1, "chats": 1})
        said = text(signed_in, account, "usage/")
        said = said[said.index("Limits of your plan") : said.index("every use") if "every use" in said else said.index("Records")]
        assert "Messages a day" in said
        assert "2 of 5" in said
        assert re.search(r"Agents 1 of 3", said)
        assert "Tasks at a time No limit" in said
        assert "Chats a billing period reached, work goes on" in said
        assert "Tokens a request up to 8,000" in said
        assert re.search(r"resets in \d+ (minute|hour)", said)
        assert "trial" not in said
        assert "Gone" not in said

    def test_what_the_plan_has_none_of_is_said_so_with_the_way_on(self, signed_in: Client, user: User) -> None:
        account = self.on_plan_with(user, ("automations", "count", 0), ("messages", "day", 0))
        limited.plan(account.product, "pro", 9, ("automations", "count", 5))
        said = text(signed_in, account, "usage/")
        assert "Automations How to get them not in your plan" in said
        assert "Messages a day How to get them not in your plan" in said
        assert "of 0" not in said
        assert "reached" not in said
        where = f"/a/{account.public_id}/limit/?meter=automations/count"
        assert where.encode() in signed_in.get(f"/a/{account.public_id}/usage/").content
        on = text(signed_in, account, where.partition(f"{account.public_id}/")[2])
        assert "Your plan does not include automations" in on
        assert "gives you: 5 automations" in on
        assert "delete one" not in on

    def test_a_stopped_account_is_told_why(self, signed_in: Client, account: Account) -> None:
        ledger.throttle(account_id=account.pk, reason="Too many failed payments.", actor="t", key="k", ends_at=None)
        assert "Work is stopped. The account is stopped: Too many failed payments." in text(signed_in, account, "usage/")

    def test_a_limit_on_cost_never_says_how_much_it_is(self, signed_in: Client, user: User) -> None:
        product = factories.make_product()
        limited.plan_version(product.plans.get(), tier={"daily_cost_nanos": 777_777_777, "requests_per_hour": 4_321})
        account = factories.make_account(product, credit=10, owner=user)
        report(account)
        html = signed_in.get(f"/a/{account.public_id}/usage/").content.decode()
        assert "Fair use a day" in html
        assert "0.77" not in html
        assert "777" not in html
        assert "1 of 4,321" in html


class TestFile:
    def rows(self, client: Client, account: Account, **query: str) -> list[dict[str, str]]:
        response = client.get(f"/a/{account.public_id}/usage.csv", query)
        assert response.status_code == 200
        return list(csv.DictReader(io.StringIO(response.getvalue().decode(), newline="")))

    def test_every_record_of_the_range_is_in_it_once_the_latest_first(
        self, signed_in: Client, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages, "_CHUNK", 10)
        done = [report(account, tokens=number + 1).id for number in range(25)]
        report(account, at=datetime.now(UTC) - timedelta(days=20))
        rows = self.rows(signed_in, account, days="7")
        assert [row["record"] for row in rows] == [usage.public_id(account, id_, kind="rec") for id_ in reversed(done)]
        assert len(self.rows(signed_in, account)) == 26

    def test_amounts_are_exact_and_times_utc(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(credit=10, owner=user, time_zone="Asia/Tokyo")
        report(account, tokens=1)
        [row] = self.rows(signed_in, account)
        assert (row["charged"], row["unit"]) == ("0.000004500", "USD")
        assert row["event_at"].endswith("+00:00")

    def test_filters_hold_in_it_too(self, signed_in: Client, account: Account) -> None:
        report(account, feature="chat")
        report(account)
        assert [row["feature"] for row in self.rows(signed_in, account, feature="chat")] == ["chat"]

    @pytest.mark.failure(90)
    def test_names_that_client_apps_made_up_are_no_formulas(self, signed_in: Client, account: Account) -> None:
        report(account, user="=1+1", session="@SUM(A1)", run="+1")
        [row] = self.rows(signed_in, account)
        assert (row["user"], row["session"], row["run"]) == ("'=1+1", "'@SUM(A1)", "'+1")

    def test_columns_are_those_that_the_visibility_allows(self, signed_in: Client, user: User) -> None:
        columns = {}
        for visibility in Product.Visibility.values:
            account = factories.make_account(factories.make_product(visibility=visibility), credit=10, owner=user)
            report(account, tokens=123_457)
            [row] = self.rows(signed_in, account)
            columns[visibility] = {name for name in row if "token" in name}
            assert ("123457" in row.values()) == (visibility != "depletion_only")
            assert "cost" not in " ".join(row)
        assert columns["depletion_only"] == set()
        assert columns["amount"] == {"tokens_in", "tokens_out"}
        assert "cached_input_tokens" in columns["full_breakdown"]

    def test_a_cut_file_says_so_in_its_name(self, signed_in: Client, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(3):
            report(account)
        whole = signed_in.get(f"/a/{account.public_id}/usage.csv").headers["Content-Disposition"]
        assert "rows" not in whole
        monkeypatch.setattr(exports, "MAX_ROWS", 2)
        response = signed_in.get(f"/a/{account.public_id}/usage.csv")
        assert "_latest-2-rows.csv" in response.headers["Content-Disposition"]
        assert len(response.getvalue().splitlines()) == 3

    def test_who_lost_their_place_while_it_was_sent_gets_no_more_and_no_clean_end(
        self, client: Client, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        member = User.objects.create_user(f"{secrets.token_hex(6)}@example.com")
        Membership.objects.create(account=account, user=member, role=Membership.Role.MEMBER)
        client.force_login(member)
        monkeypatch.setattr(pages, "_CHUNK", 2)
        monkeypatch.setattr(exports, "_ROWS_A_WRITE", 1)
        for _ in range(6):
            report(account)
        stream = iter(client.get(f"/a/{account.public_id}/usage.csv"))
        assert len([next(stream) for _ in range(3)]) == 3
        Membership.objects.filter(account=account, user=member).delete()
        with pytest.raises(Http404):
            list(stream)


class TestExplain:
    def told(self, client: Client, account: Account, done: ledger.Usage) -> str:
        return text(client, account, f"usage/{usage.public_id(account, done.id, kind='rec')}/")

    def test_full_breakdown_goes_from_the_components_to_the_ledger(self, signed_in: Client, account: Account) -> None:
        factories.give(account, 200_000_000, source="welcome", priority=10)
        ask = usage.Ask(
            model=factories.make_model(), quantities={"input_tokens": 100_000, "output_tokens": 10_000}, feature="chat", user="ada"
        )
        held = usage.authorize(account=account, ask=ask, key="k", now=datetime.now(UTC))
        done = usage.capture(account=account, authorization_id=held.usage.id, quantities={"input_tokens": 100_000, "output_tokens": 1})
        said = self.told(signed_in, account, done)
        for sentence in (
            "Charged $0.45 00225",
            "in the feature chat, for the user ada",
            "It took 100,000 input tokens and 1 output token.",
            "$0.675 of your credit was reserved for it",
            "$0.2249775 of that was not needed and came back",
            "rate card standard, version 1",
            "Input tokens 100,000 4.5 for 1,000,000 0.45",
            "Output tokens 1 22.5 for 1,000,000 0.0000225",
            "Together 0.4500225",
            "That is the price: nothing had to be rounded.",
            "Welcome credit entry 3",
            "−$0.20 00000",
            "Purchased credit entry 4",
            "−$0.25 00225",
        ):
            assert sentence in said, (sentence, said)

    def test_the_page_and_the_api_tell_the_same(self, signed_in: Client, account: Account) -> None:
        done = report(account, tokens=77_777)
        headers = {"Authorization": f"Bearer {factories.make_key(account.product, scopes=['usage:read'])}"}
        name = usage.public_id(account, done.id, kind="rec")
        answer = Client().get(f"/api/v1/usage/records/{name}/explain", headers=headers).json()
        context = signed_in.get(f"/a/{account.public_id}/usage/{name}/").context
        assert answer["rating"]["exact"] == context["exact"]
        assert [line["charge"] for line in answer["rating"]["lines"]] == [line["charge"] for line in context["lines"]]
        assert [burnt["seq"] for burnt in answer["burnt"]] == [entry.seq for entry, _ in context["burnt"]]

    def test_what_is_told_follows_the_visibility(self, signed_in: Client, user: User) -> None:
        said = {}
        for visibility in Product.Visibility.values:
            account = factories.make_account(factories.make_product(visibility=visibility), credit=10, owner=user)
            said[visibility] = self.told(signed_in, account, report(account, tokens=123_457))
        assert "123,457" not in said["depletion_only"]
        assert "token" not in said["depletion_only"]
        assert "rate card" not in said["depletion_only"]
        assert "Purchased credit" in said["depletion_only"]
        assert "123,457 tokens in" in said["amount"]
        assert "4.5" not in said["amount"].replace("4.50", "")
        assert "4.5 for 1,000,000" in said["full_breakdown"]
        assert not [visibility for visibility, words in said.items() if "0.370" in words]  # what we pay

    def test_the_one_rounding_is_said(self, signed_in: Client, user: User) -> None:
        product = factories.make_product(visibility="amount", quantum_nanos=10_000_000)
        account = factories.make_account(product, credit=2, owner=user)
        said = self.told(signed_in, account, report(account, tokens=12_345))
        assert "What it took comes to $0.0555525. The total is rounded up, once," in said
        assert "to a multiple of $0.01: $0.06." in said

    def test_a_minimum_a_waiver_and_debt_are_said(self, signed_in: Client, user: User) -> None:
        product = factories.make_product(visibility="amount", minimum_nanos=NANOS, overage="cap")
        account = factories.make_account(product, credit=2, owner=user)
        assert "A use costs at least $1.00" in self.told(signed_in, account, report(account, tokens=1))
        ask = usage.Ask(model=factories.make_model(), quantities={"input_tokens": 1})
        held = usage.authorize(account=account, ask=ask, key="k", now=datetime.now(UTC))
        done = usage.capture(account=account, authorization_id=held.usage.id, quantities={"input_tokens": 500_000})
        assert "$1.25 of the price was let go: no more than was reserved is charged." in self.told(signed_in, account, done)
        assert "$1.00 is owed" in self.told(signed_in, account, report(account, tokens=1))

    def test_what_was_given_back_is_said(self, signed_in: Client, account: Account) -> None:
        done = report(account)
        ledger.reverse(account_id=account.pk, usage_id=done.id, key="k", actor="staff", reason="inner words")
        said = self.told(signed_in, account, done)
        assert "the whole charge of $0.45 was given back" in said
        assert "inner words" not in said

    def test_work_without_a_price_or_without_work_is_not_charged(self, signed_in: Client, account: Account) -> None:
        assert "Not charged yet" in self.told(signed_in, account, report(account, model="acme:nobody-priced-this"))
        ask = usage.Ask(model=factories.make_model(), quantities={"input_tokens": 100_000})
        held = usage.authorize(account=account, ask=ask, key="k", now=datetime.now(UTC))
        done = usage.release(account=account, authorization_id=held.usage.id)
        said = self.told(signed_in, account, done)
        assert "and did not" in said
        assert "$0.45 of that came back" in said

    @pytest.mark.failure(92)
    def test_somebody_elses_record_and_garbage_are_the_same_missing_page(self, signed_in: Client, account: Account) -> None:
        theirs = factories.make_account(credit=10)
        their_record = usage.public_id(theirs, report(theirs).id, kind="rec")
        mine = usage.public_id(account, report(account).id, kind="rec")
        wrong = [
            f"a/{account.public_id}/usage/{their_record}/",
            f"a/{theirs.public_id}/usage/{their_record}/",
            f"a/{account.public_id}/usage/{mine[:-1]}{'0' if mine[-1] != '0' else '1'}/",
            f"a/{account.public_id}/usage/rec_{'0' * 52}/",
            f"a/{account.public_id}/usage/auth_{'0' * 52}/",
            f"a/{account.public_id}/usage/rec_%00/",
            f"a/{account.public_id}/usage/{mine.upper()}/",
        ]
        answers = [signed_in.get(f"/{path}") for path in wrong]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.content for answer in answers}) == 1
        assert signed_in.get(f"/a/{account.public_id}/usage/{mine}/").status_code == 200

    def test_a_visitor_is_sent_to_sign_in(self, client: Client, account: Account) -> None:
        path = f"/a/{account.public_id}/usage/{usage.public_id(account, report(account).id, kind='rec')}/"
        assert client.get(path).headers["Location"] == f"/accounts/login/?next={path}"


class TestErrors:
    @pytest.mark.failure(92)
    @pytest.mark.parametrize(
        ("where", "what"),
        [("usage/", "metering.breakdown.read"), ("usage.csv", "metering.breakdown.records"), ("credits/", "billing.balances.of_account"),
         ("statement/", "billing.statements.of_period"), ("statement.csv", "billing.statements.of_period")],
    )  # fmt: skip
    def test_a_mistake_of_ours_tells_nothing_of_our_inside(
        self, signed_in: Client, account: Account, where: str, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret detail of table wallet")

        monkeypatch.setattr(what, fail)
        signed_in.raise_request_exception = False
        response = signed_in.get(f"/a/{account.public_id}/{where}")
        assert response.status_code == 500
        assert b"Something went wrong here" in response.content
        assert b"secret" not in response.content
        assert "Content-Disposition" not in response.headers
