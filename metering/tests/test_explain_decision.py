"""``manage.py explain_decision``: the layers as a table, who refuses, until when, and the way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from billing import ledger
from metering.models import GuardState, OpenAuthorization
from metering.tests.limited import PER_TOKEN, Shop, plan
from tests.factories import make_account, make_product

pytestmark = pytest.mark.django_db


def explain(*arguments: str) -> tuple[int, str]:
    """The exit code, and all that was printed."""
    out = StringIO()
    try:
        call_command("explain_decision", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


def rows(printed: str) -> dict[str, list[str]]:
    """The table by layer or meter: the words of its lines."""
    table = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    return {words[1] if "/" in words[1] else words[0]: words for words in table}


def test_every_layer_stands_in_order_with_what_it_allows_and_has_left() -> None:
    shop = Shop.new(
        ("messages", "day", 1_500), ("agents", "count", 3), ("tasks", "open", 2, "soft"), tier={"daily_cost_nanos": 100 * PER_TOKEN}
    )
    shop.use(tokens=40)
    code, printed = explain(shop.account.public_id)
    assert code == 0
    assert printed.endswith("ALLOWED: no layer refuses.\n")
    assert "plan: Free" in printed.splitlines()[0]
    table = rows(printed)
    layers = ["kill_switch", "throttle", "entitlement", "request_size", "tasks/open", "agents/count", "messages/day", "cost/day", "credits"]
    assert list(table) == ["layer", *layers]
    assert table["messages/day"][:6] == ["quota", "messages/day", "hard", "1,500", "1", "1,499"]
    assert table["cost/day"][3:9] == ["0.000100000", "USD", "0.000040000", "USD", "0.000060000", "USD"]
    assert table["tasks/open"][2:6] == ["soft", "2", "0", "2"]


def test_a_refusal_exits_1_and_says_who_why_until_when_and_which_plan_lifts_it() -> None:
    shop = Shop.new(("messages", "day", 1), ("tasks", "open", 0, "shadow"), tier={"daily_cost_nanos": 0})
    plan(shop.product, "pro", 2, ("messages", "day", 9))
    ledger.throttle(account_id=shop.account.pk, actor="ada", reason="abuse")
    code, printed = explain(shop.account.external_id, "--product", shop.product.slug)
    assert code == 1
    assert printed.splitlines()[-1] == "REFUSED by throttle: The account is stopped: abuse No plan of the product would lift it."
    assert [rows(printed)[name][-1] for name in ("throttle", "tasks/open")] == ["REFUSES", "noted"]
    assert rows(printed)["cost/day"][-2:] == ["refuses", "too"]
    ledger.resume(account_id=shop.account.pk, actor="ada")
    shop = Shop.new(("messages", "day", 0))
    plan(shop.product, "pro", 2, ("messages", "day", 9))
    code, printed = explain(shop.account.public_id)
    assert code == 1
    last = printed.splitlines()[-1]
    assert last.startswith("REFUSED by quota: 0 of 0 messages are used today. It ends ")
    assert last.endswith("min. The plan Pro (pro) would lift it.")


def test_a_request_is_decided_as_it_would_be_and_nothing_is_held() -> None:
    shop = Shop.new(("request_tokens", "request", 1_000), flags={"reports": False})
    request = [shop.account.public_id, "--model", shop.model, "--max-output-tokens", "0"]
    assert explain(*request, "--input-tokens", "1000")[0] == 0
    code, printed = explain(*request, "--input-tokens", "1001")
    assert (code, "REFUSED by request_size: The request has 1001 tokens" in printed) == (1, True)
    code, printed = explain(*request, "--input-tokens", "1", "--feature", "reports")
    assert (code, "REFUSED by entitlement" in printed) == (1, True)
    code, printed = explain(shop.account.public_id, "--model", "acme:nobody-priced-it", "--input-tokens", "1")
    assert (code, "REFUSED: " in printed) == (1, True)
    assert not OpenAuthorization.objects.filter(account=shop.account).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--model", model] for model in ("nonsense", ":", "a:", "a:" + "b" * 300, "a:b\0", "a:b c\n")),
        *(["--model", "a:b", "--input-tokens", tokens] for tokens in ("-1", "1.5", "1e3", "٣", "", "0x10", "9" * 40)),
        ["--model", "a:b", "--max-output-tokens", "9" * 40],
        ["--model"], ["--input-tokens", "5"], ["--feature", "chat"], ["--nonsense"], ["--product", "nonsense"], ["--product", "x\0"],
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_in_words(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match=r"\w"):
        call_command("explain_decision", make_account().public_id, *arguments, stdout=StringIO())


def test_somebody_must_be_asked_about() -> None:
    with pytest.raises(CommandError, match="ACCOUNT"):
        call_command("explain_decision", stdout=StringIO())


@pytest.mark.parametrize("name", ["", "nobody", "acct_", "acct_" + "0" * 20, "x" * 5_000, "a\0b", "' or 1=1 --", "٣"])
def test_a_name_of_no_account_is_told_as_that(name: str) -> None:
    code, printed = explain(name)
    assert (code, printed.startswith("There is no account")) == (2, True)


def test_a_name_that_several_products_know_needs_its_product() -> None:
    one, two = make_account(make_product(), external_id="same-name"), make_account(make_product(), external_id="same-name")
    code, printed = explain("same-name")
    assert (code, "say --product" in printed) == (2, True)
    assert explain("same-name", "--product", two.product.slug)[1].startswith(f"Ada ({two.public_id})")
    assert one.public_id not in printed


def test_the_end_of_a_window_is_shown_beside_its_limit() -> None:
    shop = Shop.new(("messages", "hour", 5))
    before = datetime.now(UTC)
    printed = explain(shop.account.public_id)[1]
    ends = {f"{now.replace(minute=0) + timedelta(hours=1):%Y-%m-%d %H:%M}" for now in (before, datetime.now(UTC))}
    assert " ".join(rows(printed)["messages/hour"][6:8]) in ends


def test_the_runaway_guard_and_caps_are_explained_with_their_figures() -> None:
    shop = Shop.new()
    shop.guard(("run", "lifetime", 3 * PER_TOKEN), floor_nanos=1, slow_at_ppm=2_000_000)
    now = datetime.now(UTC)
    GuardState.objects.create(
        account=shop.account, kind="session", ref="s", step=1, looked_at=now, window_minutes=10, spent_nanos=12 * 10**9, usual_nanos=10**9,
        available_nanos=6 * 10**9, releases_at=now + timedelta(minutes=4),
    )  # fmt: skip
    work = (shop.account.public_id, "--model", shop.model, "--input-tokens", "1", "--max-output-tokens", "0")
    code, printed = explain(*work, "--session", "s", "--run", "r")
    assert code == 0
    figures = "This session has spent $12.00 in 10 minutes; usual is $1.00 at most. At this speed the credit is gone in 5 minutes."
    assert f"guard, warn: {figures} It ends" in printed
    assert rows(printed)["spend:run/lifetime"][3:5] == ["0.000003000", "USD"]
    code, printed = explain(*work[:4], "3", *work[5:], "--run", "r")
    assert code == 1
    assert "REFUSED by cap: This run may spend" in printed


@pytest.mark.parametrize("option", ["--session=", "--user=\0", "--run=" + "x" * 129, "--key-id=one", "--key-id=-1"])
def test_a_garbage_name_is_a_wrong_question(option: str) -> None:
    assert explain(Shop.new().account.public_id, "--model", "acme:model", option)[0] != 0
