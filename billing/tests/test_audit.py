"""The audit finds what is wrong: each check is shown a ledger that breaks it. Guards are switched off inside a rolled-back transaction."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from accounts.models import Account
from billing import audit, ledger
from config import roles
from tests.factories import give, make_account

pytestmark = pytest.mark.django_db


@pytest.fixture
def account() -> Account:
    account = make_account()
    give(account, 100)
    usd, call = account.product.unit_id, ledger.Call(1, None, None, 1, [1], [1])
    common: dict[str, Any] = {"refusal": None, "call": call, "unit_id": usd, "cost_nanos": 1, "minimum_nanos": 0, "remaining": [None]}
    held = ledger.hold(
        account_id=account.pk, key=ledger.key_hash("a"), fingerprint=ledger.key_hash("a"), amount_nanos=10, lifetime=timedelta(days=2),
        hard_lifetime=timedelta(days=2), **common,
    )  # fmt: skip
    ledger.record(
        ledger.Event(account.pk, ledger.key_hash("b"), ledger.key_hash("b"), call, usd, datetime.now(UTC), ledger.Charge(5, 20, 20, 1))
    )
    done = ledger.record(
        ledger.Event(account.pk, ledger.key_hash("c"), ledger.key_hash("c"), call, usd, datetime.now(UTC), ledger.Charge(5, 5, 5, 1))
    )
    ledger.reverse(account_id=account.pk, usage_id=done.id, key="r", actor="ann", reason="typo")
    assert held.hold_nanos == 10
    ends_at = datetime.now(UTC) + timedelta(days=1)
    rollover = ledger.Rollover(expires_at=ends_at + timedelta(days=400), cap_nanos=None, priority=50)
    give(account, 9, source="pack", expires_at=ends_at, rollover=rollover, priority=60)
    with ledger.clock(at=ends_at):
        ledger.schedule(
            account_id=account.pk, unit_id=usd, amount_nanos=3, source="monthly", source_key="1", anchor_at=ends_at, months=1, priority=40,
            key="s", actor="ann", reason="plan",
        )  # fmt: skip
        paid: dict[str, Any] = {"account_id": account.pk, "source": "pack", "source_key": "pi_1", "actor": "ann", "reason": "dispute"}
        give(account, 40, source="pack", source_key="pi_1", priority=70)
        ledger.freeze(key="f", **paid)
        ledger.refund(key="f", refunded=1, paid=4, **paid)
    return account


BREAKS = {
    "balance is the sum of the entries": "update wallet set balance = balance + 1",
    "balance is what remains in the grants": "update credit_grant set remaining = remaining - 1 where remaining > 0",
    "debt is the sum of the entries": "update ledger_entry set debt_delta = debt_delta + 1",
    "held is the sum of the open holds": "update wallet set held = held - 1",
    "the cost of open work is counted": "update account_state set open_cost_nanos = open_cost_nanos + 1",
    "every counter is the recount of its records": "insert into usage_counter"
    " select account_id, 'cost/day', '2000-01-01', '2100-01-01', 1 from account_state",
    "what is capped is the recount of its records": "insert into usage_spend_window"
    " select account_id, 'pool', 'day', '2000-01-01', '2100-01-01' from account_state",
    "stops and counters are known to the account's row": "insert into usage_throttle (account_id, key_hash, reason, actor, created_at)"
    " select account_id, gen_random_uuid(), 'r', 'ann', now() from account_state",
    "open work is counted": "update account_state set open_count = open_count + 1",
    "a grant's movements leave what remains": "update ledger_entry set amount = amount - 1 where kind = 'usage'",
    "a grant's cash moved with its credits": "update ledger_entry set cash_nanos = cash_nanos + 1 where kind = 'usage'",
    "a grant's fee moved with its credits": "update ledger_entry set fee_nanos = fee_nanos + 1 where kind = 'usage'",
    "entries are numbered without gaps and their running balance holds": "update ledger_entry set seq = seq + 100 where seq = 3",
    "the last entry is the wallet": "update wallet set seq = seq + 1",
    "every priced record has its entries": "update usage_record set price_nanos = price_nanos + 1",
    "only what had no price is rated later": """
        insert into usage_rating
        select account_id, id, now(), 0, 0, 0, 0, null, null, null, 1, null, 0, '{}', seal from usage_record limit 1""",
    "every usage entry has its record": "delete from usage_record",
    "a charge is what its seal says": "update usage_record set quantities = '{2}'",
    "a reversed record is undone whole": "update operation_key set amount = amount + 1 where verb = 'reverse'",
    "nothing stays past its expiry unless holds cover it": """
        update credit_grant set starts_at = now() - interval '3 days', expires_at = now() - interval '2 hours';
        update wallet set held = 0; delete from open_authorization""",
    "what is frozen or clawed has its entries": "update credit_grant set frozen = frozen - 1 where frozen > 0",
    "a refund is what was clawed and what is owed for it": "update credit_grant set refunded = refunded + 1 where refunded > 0",
    "a rollover is what left its grant, with its cash and fee": "update credit_grant set cash_nanos = cash_nanos + 1 where root_id > 0",
    "every period that a schedule began was granted once": "update credit_schedule set granted = granted + 1",
    "nothing is due before the wallet says": "update wallet set due_at = null",
    "no work is in two places": "update open_authorization set key_hash = (select key_hash from usage_record limit 1)",
}


def test_every_check_has_a_ledger_that_breaks_it() -> None:
    assert set(BREAKS) == set(audit.checks())


@pytest.mark.failure(22)
@pytest.mark.parametrize("check", BREAKS)
def test_check_finds_what_breaks_it(account: Account, check: str) -> None:
    assert audit.run() == []
    with connection.cursor() as cursor:
        cursor.execute(f"set local role {roles.OWNER}")
        for table in ("wallet", "credit_grant", "credit_schedule", "ledger_entry", "usage_record", "operation_key"):
            cursor.execute(f"alter table {table} disable trigger user")
        cursor.execute(BREAKS[check])
        cursor.execute("reset role")
    assert account.pk in {finding.account_id for finding in audit.run() if finding.check == check}


def test_command_exits_with_one_where_something_is_found(account: Account) -> None:
    out, err = io.StringIO(), io.StringIO()
    call_command("audit", stdout=out, stderr=err)
    assert "0 findings" in out.getvalue()
    with connection.cursor() as cursor:
        cursor.execute(f"set local role {roles.OWNER}")
        cursor.execute("alter table wallet disable trigger user")
        cursor.execute("update wallet set held = 0")
        cursor.execute("reset role")
    with pytest.raises(SystemExit, match="1"):
        call_command("audit", stdout=out, stderr=err)
    assert f"account {account.pk}: held is the sum of the open holds" in err.getvalue()
