"""The last resort and the way back, with the commands that the page names: nothing is lost, dropped, granted or charged twice."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command, get_commands
from django.utils import timezone

from accounts.models import Account
from billing.models import Grant, LedgerEntry, Wallet
from metering import kill_switches, tracking
from metering.models import KillSwitch, SpooledUsage, UsageRecord
from metering.tests.limited import PER_TOKEN, Shop
from tests.factories import NANOS, make_account

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"


def way_back() -> list[list[str]]:
    """The commands of the page, in its order."""
    section = OPERATIONS.read_text().split("\n## The last resort, and the way back\n")[1].split("\n## ")[0]
    lines = re.findall(r"^python manage\.py ([^#\n]+)", section, re.MULTILINE)
    return [line.split() for line in lines]


def run(*command: str) -> str:
    out = StringIO()
    call_command(*command, stdout=out, stderr=out)
    return out.getvalue()


def resort(shop: Shop, folder: Path, *more: str) -> str:
    return run("last_resort", shop.product.slug, "--to", str(folder), "--actor", "ann", "--reason", "it charges twice", *more)


@pytest.mark.usefixtures("committed")
class TestLastResort:
    def shop(self) -> Shop:
        return Shop.new(mode="pass_through", credit=1, welcome_credit_nanos=2 * NANOS)

    def test_everything_is_exported_and_the_module_steps_aside_while_users_work_on(self, tmp_path: Path) -> None:
        shop, stranger = self.shop(), self.shop()
        shop.use(tokens=5)
        stranger.use(tokens=7)
        said = resort(shop, tmp_path / "out")
        with (tmp_path / "out" / "ledger_entry.csv").open() as file:
            entries = list(csv.DictReader(file))
        assert {int(entry["account_id"]) for entry in entries} == {shop.account.pk}
        assert sum(int(entry["amount"]) for entry in entries) == Wallet.objects.get(account=shop.account).balance
        with (tmp_path / "out" / "usage_record.csv").open() as file:
            assert [row["price_nanos"] for row in csv.DictReader(file)] == [str(5 * PER_TOKEN)]
        assert "usage_record.csv: 1 rows" in said
        kill_switches._kept = None
        assert sorted(KillSwitch.objects.filter(product=shop.product).values_list("kind", flat=True)) == sorted(
            ["tracking", "balance_check", "throttling", "top_ups"]
        )
        done = tracking.authorize(account=shop.account, ask=shop.ask(10**6), key="k", now=timezone.now())
        assert isinstance(done, tracking.Spooled)
        other = tracking.authorize(account=stranger.account, ask=stranger.ask(1), key="k", now=timezone.now())
        assert not isinstance(other, tracking.Spooled)
        assert not SpooledUsage.objects.filter(account=stranger.account).exists()
        with pytest.raises(CommandError, match="Nothing was switched"):
            resort(shop, tmp_path / "out")
        resort(shop, tmp_path / "again")
        assert KillSwitch.objects.filter(product=shop.product).count() == 4
        kill_switches._kept = None

    @pytest.mark.parametrize("slug", ["nobody", "", "\0", "'; drop table wallet; --"])
    def test_a_product_that_is_none_is_refused(self, slug: str, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="no product"):
            run("last_resort", slug, "--to", str(tmp_path), "--actor", "a", "--reason", "r")
        with pytest.raises(CommandError, match="no product"):
            run("reopen", slug)
        assert list(tmp_path.iterdir()) == []

    def test_the_way_back_is_commands_that_exist_and_that_change_nothing_when_repeated(self, tmp_path: Path) -> None:
        shop = self.shop()
        resort(shop, tmp_path / "out")
        kill_switches._kept = None
        tracking.record(events=[shop.event(tokens=5)], now=datetime.now(UTC))
        lost = Account.objects.create(product=shop.product, external_id=f"lost-{uuid4()}", name="Lost")
        kept = make_account(shop.product)
        for switch in KillSwitch.objects.filter(product=shop.product):
            kill_switches.end(switch=switch, actor="ann", now=timezone.now())
        kill_switches._kept = None
        spool = tmp_path / "kept.jsonl"
        event = {"id": str(uuid4()), "account": shop.account.external_id, "time": datetime.now(UTC).isoformat(), "model": shop.model}
        spool.write_text(json.dumps(event | {"quantities": {"input_tokens": 3}}) + "\n")
        commands = way_back()
        assert {command[0] for command in commands} <= set(get_commands())
        assert [command[0] for command in commands] == ["migrate", "reopen", "stripe", "jobs", "spool", "rerate", "audit"]
        for _ in range(2):
            for command in commands:
                if command[0] not in ("migrate", "stripe"):  # the one is done before every test, the other has its own with the double
                    run(*({"PRODUCT": shop.product.slug, "FILE": str(spool)}.get(word, word) for word in command))
        assert Wallet.objects.get(account=shop.account).balance == 3 * NANOS - 8 * PER_TOKEN
        assert UsageRecord.objects.filter(account=shop.account).count() == 2
        for account in (lost, kept):
            assert list(Grant.objects.filter(account=account).values_list("source", flat=True)) == ["welcome"]
            assert Wallet.objects.get(account=account).balance == 2 * NANOS
            assert LedgerEntry.objects.filter(account=account).count() == 1
