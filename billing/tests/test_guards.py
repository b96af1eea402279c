"""What the database refuses, whoever asks: each guard of ``billing/sql/tables.sql`` has a statement here that it must stop.

The statements run as the owner of the tables, the strongest role that the program can take. The app's own role is stopped earlier, by
its privileges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from django.db import Error, connection, transaction

from accounts.models import Account
from billing import ledger
from billing.models import Wallet
from config import roles
from tests.factories import give, make_account

pytestmark = pytest.mark.django_db
APPEND_ONLY = ("usage_record", "usage_rating", "ledger_entry", "operation_key")
NEVER_TRUNCATED = (*APPEND_ONLY, "wallet", "account_state", "credit_grant", "credit_schedule", "open_authorization")


@pytest.fixture
def account() -> Account:
    account = make_account(credit=1)
    give(account, 100, expires_at=None)
    unit = account.product.unit_id
    ledger.adjust(account_id=account.pk, unit_id=unit, amount_nanos=-1, key="k", actor="ann", reason="typo")
    ledger.schedule(
        account_id=account.pk, unit_id=unit, amount_nanos=5, source="monthly", source_key="1", anchor_at=account.created_at, months=1,
        priority=0, key="k", actor="ann", reason="plan",
    )  # fmt: skip
    return account


@pytest.fixture
def as_owner(account: Account) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(f"set local role {roles.OWNER}")
        yield
        cursor.execute("reset role")


def refused(sql: str, parameters: Sequence[Any] | None = None) -> str:
    """Runs ``sql`` in a savepoint; the message that it was refused with."""
    with pytest.raises(Error) as error, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql, parameters)
    return str(error.value)


@pytest.mark.usefixtures("as_owner")
class TestOwner:
    @pytest.mark.failure(22)
    @pytest.mark.parametrize("table", ["ledger_entry", "operation_key"])
    @pytest.mark.parametrize("statement", ["update {} set account_id = account_id", "delete from {}"])
    def test_history_is_append_only(self, table: str, statement: str) -> None:
        assert "append-only" in refused(statement.format(table))

    @pytest.mark.failure(22)
    @pytest.mark.parametrize("statement", ["update {} set price_nanos = 0", "delete from {}"])
    def test_usage_records_are_append_only(self, account: Account, statement: str) -> None:
        ledger.record(
            ledger.Event(
                account.pk, ledger.key_hash("k"), ledger.key_hash("f"), ledger.Call(1, None, None, 1, [1], [1]), account.product.unit_id,
                account.created_at, ledger.Charge(1, 1, 1, 1),
            )
        )  # fmt: skip
        assert "append-only" in refused(statement.format("usage_record"))

    @pytest.mark.failure(22)
    @pytest.mark.parametrize("table", NEVER_TRUNCATED)
    def test_no_table_of_the_ledger_can_be_truncated(self, table: str) -> None:
        assert "append-only" in refused(f"truncate {table} cascade")

    @pytest.mark.failure(22)
    def test_no_table_of_the_ledger_has_parts_that_triggers_would_not_guard(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "select inhrelid::regclass::text from pg_inherits where inhparent = any(%s::regclass[])", [list(NEVER_TRUNCATED)]
            )
            assert cursor.fetchall() == []

    @pytest.mark.parametrize("table", ["wallet", "account_state", "credit_grant", "credit_schedule"])
    def test_wallets_and_grants_are_never_deleted(self, table: str) -> None:
        assert "append-only" in refused(f"delete from {table}")

    @pytest.mark.failure(22)
    @pytest.mark.parametrize(
        "change", ["balance = balance + 1", "debt = 1, held = balance", "seq = seq + 1", "seq = seq - 1, balance = balance + 1"]
    )
    def test_balance_never_changes_without_its_entry(self, change: str) -> None:
        assert "without a ledger entry" in refused(f"update wallet set {change}")

    def test_wallet_starts_empty(self, account: Account) -> None:
        other = make_account(account.product)
        message = refused("insert into wallet values (%s, %s, 5, 0, 0, 0)", [other.pk, account.product.unit_id])
        assert "starts empty" in message

    @pytest.mark.failure(11)
    @pytest.mark.parametrize(
        ("change", "constraint"),
        [("held = -1", "not_negative"), ("held = balance + 1", "wallet_never_overdrawn"), ("debt = -1", "not_negative")],
    )
    def test_wallet_is_never_overdrawn(self, change: str, constraint: str) -> None:
        assert constraint in refused(f"update wallet set {change}")

    @pytest.mark.parametrize(
        "change",
        [
            "granted = granted + 1",
            "cash_nanos = 5",
            "fee_nanos = 5",
            "priority = 1",
            "expires_at = now() + interval '9 years'",
            "source_key = 'x'",
            "rollover_expires_at = 'infinity', rollover_priority = 1",
        ],
    )
    def test_terms_of_a_grant_never_change(self, change: str) -> None:
        assert "never change" in refused(f"update credit_grant set {change}")

    @pytest.mark.parametrize(
        ("change", "constraint"),
        [
            ("remaining = granted + 1", "grant_never_overdrawn"),
            ("clawed = granted, refunded = granted", "grant_never_overdrawn"),
            ("remaining = -1", "not_negative"),
            ("frozen = -1", "not_negative"),
        ],
    )
    def test_grant_is_never_overdrawn(self, change: str, constraint: str) -> None:
        assert constraint in refused(f"update credit_grant set {change}")

    @pytest.mark.parametrize("change", ["clawed = clawed - 1", "refunded = refunded - 1"])
    def test_what_was_refunded_never_comes_back(self, change: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("update credit_grant set clawed = 1, refunded = 2, remaining = 0")
        assert "grant_refunds_stay" in refused(f"update credit_grant set {change}")

    def test_refunds_come_to_no_more_than_was_granted(self) -> None:
        assert "grant_refunded_within_granted" in refused("update credit_grant set refunded = granted + 1")

    def test_refunds_come_to_no_less_than_was_clawed(self) -> None:
        assert "grant_root_is_what_is_refunded" in refused("update credit_grant set refunded = 1, clawed = 2, remaining = 0")

    @pytest.mark.parametrize(
        ("root", "source", "expires", "rolls", "cap", "priority", "constraint"),
        [
            (None, "monthly", "2027-01-01", "2027-01-01", None, 1, "grant_rolls_over_forwards"),
            (None, "monthly", "infinity", "2027-01-01", None, 1, "grant_rolls_over_forwards"),
            (None, "monthly", "2027-01-01", "2027-02-01", None, None, "grant_rollover_terms"),
            (None, "monthly", "2027-01-01", None, 5, None, "grant_rollover_terms"),
            (None, "monthly", "2027-01-01", "2027-02-01", -1, 1, "not_negative"),
            (1, "monthly", "2027-01-01", None, None, None, "grant_root_is_what_is_refunded"),
        ],
    )
    def test_terms_of_a_rollover_are_whole(
        self, account: Account, root: int | None, source: str, expires: str, rolls: str | None, cap: int | None, priority: int | None,
        constraint: str,
    ) -> None:  # fmt: skip
        message = refused(
            "insert into credit_grant (account_id, unit_id, source, source_key, root_id, granted, remaining, priority, starts_at,"
            " expires_at, cash_nanos, fee_nanos, currency, rollover_expires_at, rollover_cap, rollover_priority)"
            " values (%s, %s, %s, 'new', %s, 1, 0, 0, '2026-01-01', %s, 0, 0, 'usd', %s, %s, %s)",
            [account.pk, account.product.unit_id, source, root, expires, rolls, cap, priority],
        )
        assert constraint in message

    @pytest.mark.parametrize(
        "change", ["amount = 6", "anchor_at = now()", "months = 2", "granted = granted + 2", "granted = granted - 1", "rollover_cap = 5"]
    )
    def test_terms_of_a_schedule_never_change_and_periods_come_one_by_one(self, change: str) -> None:
        assert "never change" in refused(f"update credit_schedule set {change}")

    @pytest.mark.parametrize(
        ("change", "constraint"),
        [
            ("amount = 0, source_key = 'x'", "amount_check"),
            ("months = 0, source_key = 'x'", "months_check"),
            ("rollover_periods = 121, source_key = 'x'", "rollover_periods_check"),
            ("actor = '', source_key = 'x'", "actor_check"),
        ],
    )
    def test_schedule_grants_something_and_somebody_set_it(self, change: str, constraint: str) -> None:
        assert constraint in refused(f"update credit_schedule set {change}")

    def test_closed_grant_is_empty(self) -> None:
        assert "grant_closed_is_empty" in refused("update credit_grant set closed = true")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("held = hold + 1", "begins_well"),
            ("expires_at = created_at", "begins_well"),
            ("hard_expires_at = created_at", "begins_well"),
            ("held = -1", "not_negative"),
            ("extended_to = expires_at", "cannot become"),
            ("extended_to = hard_expires_at + interval '1 second'", "cannot become"),
            ("state = 'awaiting_price'", "cannot become"),
            ("captured = '{1}', captured_at = now()", "cannot become"),
        ],
    )
    def test_open_work_is_held_and_ends(self, account: Account, change: str, message: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "insert into open_authorization (account_id, id, key_hash, fingerprint, hold, held, cost_nanos, remaining, model_id,"
                " rate_card_id, price_ids, quantities, created_at, expires_at, hard_expires_at) select %s, gen_random_uuid(),"
                " gen_random_uuid(), gen_random_uuid(), 5, 5, 1, '{}', 1, 1, '{}', '{}', t, t + interval '1 hour', t + interval '1 day'"
                " from now() t",
                [account.pk],
            )
        assert message in refused(f"update open_authorization set {change}")

    @pytest.mark.parametrize(
        ("values", "constraint"),
        [
            ("null, 'usage', 0, 0, 1, 0, 0, 0, gen_random_uuid(), null", "ledger_entry_moves_something"),
            ("null, 'usage', -1, 0, 1, 0, 0, 0, gen_random_uuid(), null", "ledger_entry_moves_one_grant"),
            ("1, 'usage', -1, 0, 1, 0, 0, 0, null, null", "ledger_entry_has_one_cause"),
            ("1, 'expiry', -1, 0, 1, 0, 0, 0, gen_random_uuid(), null", "ledger_entry_has_one_cause"),
            ("1, 'usage', -1, 0, -1, 0, 0, 0, gen_random_uuid(), null", "not_negative"),
        ],
    )
    def test_entry_says_what_moved_and_why(self, account: Account, values: str, constraint: str) -> None:
        message = refused(f"insert into ledger_entry values (%s, %s, 99, {values}, now(), now())", [account.pk, account.product.unit_id])
        assert constraint in message

    def test_number_of_an_entry_is_used_once(self, account: Account) -> None:
        message = refused(
            "insert into ledger_entry values (%s, %s, 1, null, 'debt', 0, 1, 1, 1, 0, 0, gen_random_uuid(), null, now(), now())",
            [account.pk, account.product.unit_id],
        )
        assert "duplicate key" in message

    @pytest.mark.failure(20)
    @pytest.mark.parametrize("amount", ["'NaN'::numeric", "'Infinity'::numeric", "9223372036854775808"])
    def test_money_is_a_bigint_and_nothing_else(self, amount: str) -> None:
        message = refused(f"update wallet set held = {amount}")
        assert "bigint" in message


class TestAppRole:
    @pytest.mark.failure(22)
    @pytest.mark.parametrize("table", sorted(roles.LEDGER_TABLES))
    def test_app_may_read_the_ledger_but_not_write_it(self, account: Account, table: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("select to_regclass(%s) is not null", [table])
            assert cursor.fetchone()[0], f"{table} does not exist"
            cursor.execute("select has_any_column_privilege(%s, 'update')", [table])
            assert cursor.fetchone() == (False,)
            cursor.execute(f"select count(*) from {table}")
        for statement in (
            f"insert into {table} default values",
            f"delete from {table}",
            f"truncate {table}",
        ):
            assert "permission denied" in refused(statement)

    def test_app_may_not_call_the_parts_of_the_verbs_with_effect(self, account: Account) -> None:
        message = refused("select ledger_open(%s, 2::smallint, now(), null, null)", [account.pk])
        assert "permission denied" in message

    def test_app_is_no_superuser_and_owns_nothing_of_the_ledger(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("select rolsuper or rolbypassrls from pg_roles where rolname = current_user")
            assert cursor.fetchone() == (False,)
            cursor.execute(
                "select count(*) from pg_tables where tablename = any (%s) and tableowner = current_user", [list(roles.LEDGER_TABLES)]
            )
            assert cursor.fetchone() == (0,)

    @pytest.mark.failure(23)
    def test_account_with_money_cannot_be_deleted(self, account: Account) -> None:
        refused("delete from accounts_account where id = %s", [account.pk])
        assert Wallet.objects.filter(account=account).exists()
