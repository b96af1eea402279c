"""Customers' pages: what they say, who may read them (each wall alone), and that garbage is a 404."""

from __future__ import annotations

import inspect
import re
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import get_resolver
from pytest_django import Settings

from accounts import pages, registration, tenancy
from accounts.models import Account, Membership, User
from accounts.templatetags import amounts, charts
from billing import ledger, widget
from billing.models import LedgerEntry, Subscription
from metering import usage
from metering.models import UsageRecord
from pricing.models import Product, Unit
from tests import factories

NANOS = factories.NANOS
PATHS = ("", "usage/", "usage.csv", "credits/", "statement/", "statement.csv")
#: In a test each of the two walls around a page's reads takes six (savepoint, role, claims, account, and back), and the catalog, which the
#: overview's look at the limits reads, is not kept.
MOST_QUERIES = 48

pytestmark = pytest.mark.django_db


@pytest.fixture
def user() -> User:
    return User.objects.create_user(f"{secrets.token_hex(6)}@example.com", "correct horse battery")


@pytest.fixture
def account(user: User) -> Account:
    return factories.make_account(credit=10, owner=user)


@pytest.fixture
def signed_in(client: Client, user: User) -> Client:
    client.force_login(user)
    return client


def use(account: Account, *, count: int = 1, at: datetime | None = None, model: str | None = None, **quantities: int) -> list[ledger.Usage]:
    """``count`` records of 100,000 input tokens at $4.50 per million: $0.45 each."""
    now = datetime.now(UTC)
    model = model or factories.make_model()
    events = [
        usage.Event(
            key=secrets.token_hex(8), account=account, at=at or now, model=model, quantities=quantities or {"input_tokens": 100_000}
        )
        for _ in range(count)
    ]
    answers = list(usage.record(events=events, now=now))
    assert all(isinstance(answer, ledger.Usage) for answer in answers), answers
    return answers  # type: ignore[return-value]


def text(client: Client, account: Account, path: str = "") -> str:
    """The page's words, without markup."""
    response = client.get(f"/a/{account.public_id}/{path}")
    assert response.status_code == 200, response.status_code
    if response.streaming:
        return response.getvalue().decode()
    main = response.content.decode().partition("<main")[2].partition("</main>")[0]
    words = re.sub(r"<title>.*?</title>|<[^>]+>", " ", main)
    return re.sub(r" ([.,])", r"\1", " ".join(words.replace("\N{NO-BREAK SPACE}", " ").split()))


class TestOverview:
    def test_the_first_line_is_what_is_left(self, signed_in: Client, account: Account) -> None:
        use(account, count=2)
        page = text(signed_in, account)
        assert "Left to spend $9.10 You used $0.90 since" in page

    def test_what_is_held_is_not_left(self, signed_in: Client, account: Account) -> None:
        ask = usage.Ask(model=factories.make_model(), quantities={"input_tokens": 100_000})
        usage.authorize(account=account, ask=ask, key="k", now=datetime.now(UTC))
        page = text(signed_in, account)
        assert "Left to spend $9.55" in page
        assert "$0.45 more is reserved for work in progress" in page

    def test_debt_is_said_before_everything(self, signed_in: Client, account: Account) -> None:
        use(account, input_tokens=3_000_000)
        page = text(signed_in, account)
        assert page.index("You owe $3.50") < page.index("Left to spend $0.00")

    def test_nothing_left_says_what_to_do(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(owner=user)
        factories.give(account, 450_000_000)
        use(account)
        page = text(signed_in, account)
        assert "Nothing is left. New work is refused until you add credit. " in page, "no period of this plan brings any"
        assert "How to add credit" in page

    def test_credit_that_is_due_to_expire_is_not_left_though_no_job_ran(self, signed_in: Client, account: Account) -> None:
        now = datetime.now(UTC)
        with ledger.clock(at=now - timedelta(days=2)):
            factories.give(account, 5 * NANOS, source="welcome", expires_at=now - timedelta(days=1))
        page = text(signed_in, account)
        assert "Left to spend $10.00" in page
        assert "Welcome credit" not in page

    def test_a_period_that_nobody_turned_shows_the_one_that_follows(self, signed_in: Client, account: Account) -> None:
        now = datetime.now(UTC)
        start = now - timedelta(days=40)
        Subscription.objects.filter(account=account).update(
            anchor_at=start, current_period_start=start, current_period_end=start + timedelta(days=30)
        )
        assert "Next period in" in text(signed_in, account)

    def test_credit_from_staff_is_named_in_the_customers_words(self, signed_in: Client, account: Account) -> None:
        factories.give(account, 5 * NANOS, source="staff", priority=10)
        use(account)
        assert "Credit from support $4.55 of $5.00" in text(signed_in, account)
        assert "Usage · credit from support" in text(signed_in, account, "statement/")

    def test_recent_uses_are_to_the_last_digit_so_that_their_points_stand_in_line(self, signed_in: Client, account: Account) -> None:
        use(account)
        use(account, input_tokens=1_001)
        shown = re.findall(r"\$0\.\d\d<span class=\"fine\">(\d+)", signed_in.get(f"/a/{account.public_id}/").content.decode())
        assert shown == ["45045", "00000"]

    def test_grants_say_when_they_expire(self, signed_in: Client, account: Account) -> None:
        factories.give(account, 5 * NANOS, source="welcome", priority=10, expires_at=datetime.now(UTC) + timedelta(days=9, minutes=1))
        page = text(signed_in, account)
        assert "Welcome credit $5.00 of $5.00 expires in 9 days" in page
        assert "Purchased credit $10.00 of $10.00 never expires" in page
        assert "Next to expire: $5.00, in 9 days" in page

    def test_an_account_without_a_wallet_is_told_so(self, signed_in: Client, user: User) -> None:
        assert "No credit has come in yet" in text(signed_in, factories.make_account(owner=user))

    def test_a_closed_account_can_still_be_read(self, signed_in: Client, account: Account) -> None:
        Account.objects.filter(pk=account.pk).update(closed_at=datetime.now(UTC))
        assert "This account was closed" in text(signed_in, account)


class TestUsage:
    def test_days_and_models_add_up(self, signed_in: Client, account: Account) -> None:
        first, second = factories.make_model(), factories.make_model()
        now = datetime.now(UTC)
        use(account, count=2, model=first)
        use(account, model=second, at=now - timedelta(days=3))
        use(account, model=second, at=now - timedelta(days=20))
        page = text(signed_in, account, "usage/?days=7")
        assert "$1.35 in 3 uses" in page
        assert f"{first} 2 uses 200,000 0 $0.90" in page
        assert "$1.80 in 4 uses" in text(signed_in, account, "usage/")

    def test_a_day_is_the_accounts_own(self, signed_in: Client, account: Account) -> None:
        Account.objects.filter(pk=account.pk).update(time_zone="Pacific/Kiritimati")
        at = datetime.now(UTC) - timedelta(days=2)
        use(account, at=at)
        local = at + timedelta(hours=14)
        row = re.search(rf"{local:%a} {local.day} {local:%b %Y} 1 \$0\.45", text(signed_in, account, "usage/"))
        assert row is not None

    def test_pages_of_records_meet_without_gap_or_overlap(self, signed_in: Client, account: Account) -> None:
        answers = use(account, count=60, input_tokens=10)
        seen: list[uuid.UUID] = []
        address = f"/a/{account.public_id}/usage/"
        while address:
            response = signed_in.get(address)
            older = response.context["older"]
            seen += [use.at for use in response.context["uses"]]
            address = f"/a/{account.public_id}/usage/?from={older}" if older else ""
        assert len(seen) == len(answers)

    @pytest.mark.parametrize("path", ["usage/", "credits/", "statement/"])
    def test_every_charge_links_to_its_explanation(self, signed_in: Client, account: Account, path: str) -> None:
        use(account, count=3)
        [wanted] = use(account, model=(model := factories.make_model()))
        link = f"/a/{account.public_id}/usage/{usage.public_id(account, wanted.id, kind='rec')}/"
        assert link in signed_in.get(f"/a/{account.public_id}/{path}").content.decode()
        assert signed_in.get(link).context["use"].model == model

    def test_a_record_without_a_price_says_so(self, signed_in: Client, account: Account) -> None:
        use(account, model="acme:nobody-priced-this")
        assert "price pending" in text(signed_in, account, "usage/")

    def test_released_work_is_no_use(self, signed_in: Client, account: Account) -> None:
        ask = usage.Ask(model=factories.make_model(), quantities={"input_tokens": 100_000})
        held = usage.authorize(account=account, ask=ask, key="k", now=datetime.now(UTC))
        usage.release(account=account, authorization_id=held.usage.id)
        assert "Nothing used in these 30 days" in text(signed_in, account, "usage/")


class TestStatement:
    def test_every_movement_has_its_exact_line_and_balance(self, signed_in: Client, account: Account) -> None:
        use(account, input_tokens=1)
        page = text(signed_in, account, "statement/")
        assert "−$0.00 00045" in page
        assert "$9.99 99955" in page
        assert "Purchased credit +$10.00 00000 $10.00 00000" in page

    def test_debt_is_a_line_of_its_own(self, signed_in: Client, account: Account) -> None:
        use(account, input_tokens=3_000_000)
        assert "owed more: +$3.50" in text(signed_in, account, "statement/")

    def test_pages_show_every_entry_once(self, signed_in: Client, account: Account) -> None:
        use(account, count=119, input_tokens=10)
        seqs = []
        for number in (1, 2, 3):
            response = signed_in.get(f"/a/{account.public_id}/statement/?page={number}")
            seqs += [movement.entry.seq for movement in response.context["movements"]]
        assert seqs == list(range(1, 121))
        assert signed_in.get(f"/a/{account.public_id}/statement/?page=4").status_code == 404

    def test_several_wallets_each_have_a_statement(self, signed_in: Client, account: Account) -> None:
        credit = Unit.objects.create(code=f"{secrets.token_hex(3)}.credit", name="credit", decimals=0)
        ledger.grant(
            account_id=account.pk, unit_id=credit.pk, amount_nanos=7 * NANOS, source="welcome", source_key="k", key="k", actor="t",
            reason="t", priority=0,
        )  # fmt: skip
        assert "$10.00" in text(signed_in, account, "statement/")
        assert "+7" in text(signed_in, account, f"statement/?unit={credit.code}")
        assert "Also left 7 credits" in text(signed_in, account)


class TestVisibility:
    def page(self, client: Client, user: User, visibility: Product.Visibility) -> str:
        account = factories.make_account(factories.make_product(visibility=visibility), credit=10, owner=user)
        use(account, input_tokens=123_457, output_tokens=7_919)
        return " ".join(text(client, account, path) for path in PATHS)

    def test_depletion_only_shows_amounts_and_no_quantity(self, signed_in: Client, user: User) -> None:
        page = self.page(signed_in, user, Product.Visibility.DEPLETION_ONLY)
        assert "$0.73" in page
        assert "123,457" not in page
        assert "7,919" not in page
        assert "token" not in page.lower()

    def test_amount_shows_the_tokens_in_and_out(self, signed_in: Client, user: User) -> None:
        page = self.page(signed_in, user, Product.Visibility.AMOUNT)
        assert "123,457" in page
        assert "123,457 input tokens" not in page

    def test_full_breakdown_shows_every_component(self, signed_in: Client, user: User) -> None:
        page = self.page(signed_in, user, Product.Visibility.FULL_BREAKDOWN)
        assert "123,457 input tokens · 7,919 output tokens" in page

    def test_no_page_shows_what_we_pay(self, signed_in: Client, user: User) -> None:
        """$0.489156 is the wholesale cost of these quantities; the price is half as much again."""
        assert "0.489" not in self.page(signed_in, user, Product.Visibility.FULL_BREAKDOWN)


class TestWhoMayRead:
    @pytest.mark.parametrize("path", PATHS)
    def test_a_visitor_is_sent_to_sign_in_and_back(self, client: Client, account: Account, path: str) -> None:
        response = client.get(f"/a/{account.public_id}/{path}")
        assert response.status_code == 302
        assert response.headers["Location"] == f"/accounts/login/?next=/a/{account.public_id}/{path}"

    @pytest.mark.parametrize("path", PATHS)
    def test_somebody_elses_account_looks_like_none(self, signed_in: Client, path: str) -> None:
        theirs = factories.make_account(credit=10, owner=User.objects.create_user(f"{secrets.token_hex(6)}@example.com"))
        foreign = signed_in.get(f"/a/{theirs.public_id}/{path}")
        missing = signed_in.get(f"/a/acct_{'0' * 20}/{path}")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.content == missing.content

    @pytest.mark.parametrize("path", PATHS)
    def test_the_first_wall_holds_without_row_level_security(self, signed_in: Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def no_wall(**_: object) -> Iterator[None]:
            yield

        monkeypatch.setattr(tenancy, "acting_as", no_wall)
        theirs = factories.make_account(credit=10)
        assert signed_in.get(f"/a/{theirs.public_id}/{path}").status_code == 404

    @pytest.mark.parametrize("path", PATHS)
    def test_the_second_wall_holds_without_scoping_in_code(self, signed_in: Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "accounts_of", lambda user: Account.objects.all())
        theirs = factories.make_account(credit=10)
        assert signed_in.get(f"/a/{theirs.public_id}/{path}").status_code == 404

    def test_ledger_rows_are_behind_the_second_wall_too(self, user: User, account: Account) -> None:
        theirs = factories.make_account(credit=10)
        use(theirs)
        with tenancy.acting_as(user=user):
            assert set(LedgerEntry.objects.values_list("account_id", flat=True)) == {account.pk}
            assert not UsageRecord.objects.filter(account=theirs).values("id").exists()

    @pytest.mark.parametrize("path", PATHS)
    def test_every_member_reads_and_nobody_writes(self, client: Client, account: Account, path: str) -> None:
        member = User.objects.create_user(f"{secrets.token_hex(6)}@example.com")
        Membership.objects.create(account=account, user=member, role=Membership.Role.MEMBER)
        client.force_login(member)
        assert client.get(f"/a/{account.public_id}/{path}").status_code == 200
        for method in (client.post, client.put, client.delete, client.patch):
            assert method(f"/a/{account.public_id}/{path}").status_code == 405

    @pytest.mark.parametrize("path", PATHS)
    def test_pages_are_kept_in_no_cache(self, signed_in: Client, account: Account, path: str) -> None:
        assert "no-store" in signed_in.get(f"/a/{account.public_id}/{path}").headers["Cache-Control"]

    @pytest.mark.parametrize("path", PATHS)
    def test_more_history_asks_no_more_queries(self, signed_in: Client, account: Account, path: str) -> None:
        def count() -> int:
            with CaptureQueriesContext(connection) as queries:
                signed_in.get(f"/a/{account.public_id}/{path}").getvalue()
            return len(queries)

        factories.give(account, 10 * NANOS)
        use(account, count=2)
        few = count()
        for _ in range(5):
            use(account, count=5)
        assert count() == few <= MOST_QUERIES


class TestGarbage:
    @pytest.mark.parametrize(
        "path",
        [
            "usage/?days=0",
            "usage/?days=31",
            "usage/?days=-7",
            "usage/?days=７",
            "usage/?days=",
            "usage/?days=7%00",
            "usage/?from=nobody",
            "usage/?from=%00",
            "usage/?from=" + "f" * 10_000,
            "statement/?page=0",
            "statement/?page=-1",
            "statement/?page=1.5",
            "statement/?page=２",
            "statement/?page=99999999999999999999",
            "statement/?page=999999999",
            "statement/?page=",
            "statement/?page=%00",
            "statement/?unit=EUR",
            "statement/?unit=%00",
            "statement/?unit=",
            "nothing/",
        ],
    )
    def test_it_is_not_found(self, signed_in: Client, account: Account, path: str) -> None:
        assert signed_in.get(f"/a/{account.public_id}/{path}").status_code == 404

    @pytest.mark.parametrize(
        "name", ["acct_", "acct_%00", "acct_" + "f" * 21, "ACCT_" + "0" * 20, "1", "acct_" + "g" * 20, "..", "acct_' or 1=1"]
    )
    def test_an_id_that_is_none_is_not_found(self, signed_in: Client, name: str) -> None:
        assert signed_in.get(f"/a/{name}/").status_code == 404

    def test_a_name_full_of_markup_is_shown_as_text(self, signed_in: Client, user: User) -> None:
        account = factories.make_account(credit=10, owner=user)
        Account.objects.filter(pk=account.pk).update(name="<script>alert(1)</script>")
        Product.objects.filter(pk=account.product_id).update(name='"><img src=x>')
        for path in PATHS:
            page = signed_in.get(f"/a/{account.public_id}/{path}").getvalue().decode()
            assert "<script>" not in page
            assert "<img" not in page


class TestHome:
    def test_one_account_is_opened_at_once(self, signed_in: Client, account: Account) -> None:
        assert signed_in.get("/").headers["Location"] == f"/a/{account.public_id}/"

    def test_several_are_offered_and_closed_ones_are_not(self, signed_in: Client, user: User, account: Account) -> None:
        team = factories.make_account(owner=user, kind="team")
        gone = factories.make_account(owner=user)
        Account.objects.filter(pk=gone.pk).update(closed_at=datetime.now(UTC))
        page = signed_in.get("/").content.decode()
        assert f"/a/{account.public_id}/" in page
        assert f"/a/{team.public_id}/" in page
        assert gone.public_id not in page

    def test_without_an_account_it_says_what_to_do(self, signed_in: Client) -> None:
        assert b"ask them to add you" in signed_in.get("/").content


class TestOtherPages:
    @pytest.mark.failure(92)
    def test_a_missing_page_is_ours_and_names_no_path(self, client: Client) -> None:
        response = client.get("/no/such/page")
        assert response.status_code == 404
        assert b"tollgate.css" in response.content
        assert b"/no/such" not in response.content

    @pytest.mark.failure(92)
    def test_a_mistake_of_ours_is_a_page_that_tells_nothing(
        self, signed_in: Client, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(pages, "accounts_of", fail)
        signed_in.raise_request_exception = False
        response = signed_in.get(f"/a/{account.public_id}/")
        assert response.status_code == 500
        assert b"Something went wrong here" in response.content
        assert b"secret detail" not in response.content

    @pytest.mark.failure(91)
    def test_a_form_without_its_token_is_refused_in_words(self) -> None:
        response = Client(enforce_csrf_checks=True).post("/accounts/login/", {"login": "a@example.com", "password": "x"})
        assert response.status_code == 403
        assert b"This form is too old" in response.content

    @pytest.mark.parametrize("path", ["login/", "signup/", "password/reset/", "password/reset/done/", "confirm-email/", "inactive/"])
    def test_pages_around_signing_in_wear_the_same_clothes(self, client: Client, account: Account, path: str) -> None:
        response = client.get(f"/accounts/{path}?product={account.product.slug}")
        assert response.status_code == 200
        assert b"tollgate.css" in response.content
        assert b'style="' not in response.content

    @pytest.mark.parametrize("path", ["email/", "password/change/", "2fa/", "logout/"])
    def test_pages_about_ones_sign_in_do_too(self, signed_in: Client, path: str) -> None:
        response = signed_in.get(f"/accounts/{path}")
        assert response.status_code == 200
        assert b"tollgate.css" in response.content

    def test_signing_up_ends_at_the_new_accounts_overview(self, client: Client, settings: Settings) -> None:
        settings.ACCOUNT_EMAIL_VERIFICATION = "none"
        product = factories.make_product(welcome_credit_nanos=5 * NANOS)
        email, password = f"{secrets.token_hex(6)}@example.com", "correct horse battery"
        client.post(f"/accounts/signup/?product={product.slug}", {"email": email, "password1": password, "password2": password})
        account = Account.objects.get(product=product)
        assert client.get("/").headers["Location"] == f"/a/{account.public_id}/"
        assert "Left to spend $5.00" in text(client, account)


class TestWhoComesIn:
    def test_staff_without_an_account_are_sent_to_their_own_pages(self, client: Client) -> None:
        client.force_login(User.objects.create_superuser(f"{secrets.token_hex(6)}@example.com", "correct horse battery"))
        assert client.get("/").headers["Location"] == "/admin/"

    def test_staff_sign_in_where_everybody_does_so_that_the_second_step_is_asked(self, client: Client) -> None:
        assert client.get("/admin/login/?next=/admin/").headers["Location"].startswith("/accounts/login/")
        assert client.post("/admin/login/", {"username": "a@example.com", "password": "correct horse battery"}).status_code == 302

    def test_a_customer_at_the_staff_pages_is_told_that_they_may_not(self, signed_in: Client) -> None:
        response = signed_in.get("/admin/", follow=True)
        assert response.status_code == 403
        assert "You may not do this" in response.content.decode()


class TestAmounts:
    @pytest.mark.parametrize(
        ("nanos", "decimals", "exact", "cut", "nearest"),
        [
            (0, 2, "0.00", "0.00", "0.00"),
            (1, 2, "0.000000001", "0.000000001", "0.000000001"),
            (4_500, 2, "0.0000045", "0.0000045", "0.0000045"),
            (4_719_999_999, 2, "4.719999999", "4.71", "4.72"),
            (9_999_999, 2, "0.009999999", "0.0099", "0.01"),
            (10_000_000, 2, "0.01", "0.01", "0.01"),
            (1_234_500_000_000, 2, "1,234.50", "1,234.50", "1,234.50"),
            (-1_999_000_000, 2, "1.999", "1.99", "2.00"),
            (14_995_000_000, 2, "14.995", "14.99", "15.00"),
            (82_000_000_000, 0, "82", "82", "82"),
            (82_900_000_000, 0, "82.9", "82", "83"),
            (410_000_000, 0, "0.41", "0.41", "0.41"),
            (2**63 - 1, 2, "9,223,372,036.854775807", "9,223,372,036.85", "9,223,372,036.85"),
            (1, 9, "0.000000001", "0.000000001", "0.000000001"),
        ],
    )
    def test_exact_loses_nothing_cut_never_says_more_and_short_is_the_nearest(
        self, nanos: int, decimals: int, exact: str, cut: str, nearest: str
    ) -> None:
        assert amounts.exact(nanos, decimals=decimals) == exact
        assert amounts.short(nanos, decimals=decimals, cut=True) == cut
        assert amounts.short(nanos, decimals=decimals) == nearest

    def test_cost_and_margin_add_up_to_the_revenue_beside_them(self) -> None:
        cost, margin = 14_668_368_000, 7_334_184_000
        assert [amounts.short(nanos, decimals=2) for nanos in (cost, margin, cost + margin)] == ["14.67", "7.33", "22.00"]

    def test_units_are_written_as_people_write_them(self) -> None:
        dollar, credit = Unit(code="USD", name="US dollar"), Unit(code="prpm.credit", name="credit", decimals=0)
        assert amounts.plain_amount(-1_500_000_000, dollar) == "−$1.50"
        assert amounts.plain_amount(NANOS, credit) == "1\N{NO-BREAK SPACE}credit"
        assert amounts.plain_amount(0, credit) == "0\N{NO-BREAK SPACE}credits"
        assert amounts.plain_amount(3 * NANOS, Unit(code="EUR", name="euro")) == "3.00\N{NO-BREAK SPACE}EUR"

    def test_a_short_amount_carries_the_exact_one(self) -> None:
        html = amounts.amount(4_719_999_999, Unit(code="USD", name="US dollar"))
        assert html == '<data value="4.719999999" title="4.719999999 USD">$4.72</data>'

    def test_columns_are_filled_to_the_same_digits(self) -> None:
        assert amounts.sub_digits([450_000_000, 4_500, 0]) == 7
        assert amounts.sub_digits([]) == 0
        html = amounts.exact_amount(450_000_000, Unit(code="USD", name="US dollar"), digits=7, signed=True)
        assert html == '+$0.45<span class="fine">00000</span>'

    def test_an_amount_outside_of_a_column_of_its_unit_names_it(self) -> None:
        credit = Unit(code="prpm.credit", name="credit", decimals=0)
        assert amounts.exact_amount(10_500_000_000, credit, named=True) == '10<span class="fine">.5</span>\N{NO-BREAK SPACE}credits'
        assert amounts.exact_amount(NANOS, credit, named=True) == '1<span class="fine"></span>\N{NO-BREAK SPACE}credit'
        assert amounts.exact_amount(NANOS, Unit(code="USD"), named=True) == '$1.00<span class="fine"></span>'

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0, "just now"), (-59, "just now"), (30, "in a moment"), (60, "in 1 minute"), (-7_199, "1 hour ago"), (-7_200, "2 hours ago"),
            (86_400 * 12 + 5, "in 12 days"), (86_400 * 60, "30 Apr 2026"), (-86_400 * 60, "31 Dec 2025"),
        ],
    )  # fmt: skip
    def test_instants_read_relative(self, seconds: int, words: str) -> None:
        now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        assert amounts.relative(now + timedelta(seconds=seconds), now=now).replace("\N{NO-BREAK SPACE}", " ") == words


class TestCharts:
    @pytest.mark.parametrize(("nanos", "top"), [(0, 0), (1, 1), (3, 4), (9, 10), (10, 10), (450_000_000, 500_000_000), (810, 1000)])
    def test_the_axis_ends_at_a_round_figure_not_below_the_highest_bar(self, nanos: int, top: int) -> None:
        assert charts.ceiling(nanos) == top

    def test_bars_are_in_proportion_and_the_least_use_is_visible(self) -> None:
        days = [
            charts.Day(day=datetime(2026, 3, n + 1, tzinfo=UTC).date(), nanos=nanos, records=1) for n, nanos in enumerate((0, 1, 500, 1000))
        ]
        heights = [bar["height"] for bar in charts.days_chart(days, Unit(code="USD"))["bars"]]
        assert heights == [0, 4, 500, 1000]

    def test_a_meter_never_overflows(self) -> None:
        assert charts.meter(5, 5, 10) == {"full": 500, "held": 500, "thin": False}
        assert charts.meter(20, 5, 10)["full"] + charts.meter(20, 5, 10)["held"] == 1000
        assert charts.meter(0, 0, 0)["full"] == 0


def test_no_page_of_an_account_is_read_outside_the_wall() -> None:
    """Every view below /a/<account>/ enters ``pages.tenant`` before it reads anything else. The widget has no visitor: a token names its
    account, and it enters the second wall as that (``billing/tests/test_widget.py``)."""
    views = [pattern.callback for pattern in get_resolver().url_patterns if str(pattern.pattern).startswith("^a/")]
    assert len(views) >= 3
    for view in views:
        assert view is not None
        if view is widget.widget:
            continue
        source = inspect.getsource(inspect.unwrap(view))
        reads = [line for line in source.splitlines() if re.search(r"\.objects\b|of_account\(|_(since|records|totals)\(", line)]
        inside = source[source.index("with pages.tenant(") :]
        assert all(line in inside for line in reads), view


def test_the_style_sheet_is_small_and_asks_nobody(settings: Settings) -> None:
    css = (settings.BASE_DIR / "static" / "tollgate.css").read_text()
    assert len(css.encode()) < 30_000
    assert "url(" not in css
    assert "@import" not in css
    assert {int(weight) for weight in re.findall(r"(?:--regular|--strong): (\d+)", css)} == {400, 600}


def test_open_account_of_a_product_in_another_time_zone_shows_its_times(signed_in: Client, user: User) -> None:
    product = factories.make_product(time_zone="Asia/Tokyo")
    account = registration.open_account(product=product, external_id="u", name="Ada", owner=user, now=datetime.now(UTC))
    assert b"Times in Asia/Tokyo" in signed_in.get(f"/a/{account.public_id}/").content
