"""Jobs of the calendar: late, doubled, or killed in the middle, they come to the state of having run on time."""

from __future__ import annotations

import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction

from accounts import registration
from accounts.models import Account, Mail
from billing import audit, checkout, due, ledger, subscriptions
from billing.models import Grant, LedgerEntry, Subscription, Wallet
from config import roles
from metering import limits
from pricing.models import Entitlement, Plan, PlanVersion, Product
from tests.factories import NANOS, START, give, make_account, make_product

DAY = timedelta(days=1)
ANCHOR = datetime(2028, 1, 31, 9, tzinfo=UTC)
END = datetime(2028, 4, 3, tzinfo=UTC)


@transaction.atomic
def shop(**terms: Any) -> Product:
    """A product whose free plan includes credit that rolls over, and whose plan ``pro`` has a price."""
    product = make_product(burn_order=["monthly", "rollover", "purchased"])
    free = PlanVersion.objects.get(plan__product=product).plan
    PlanVersion.objects.create(
        plan=free, version=2, valid_from=START + DAY, price_cents=0, rate_card="standard",
        **{"included_credit_nanos": 100 * NANOS, "rollover_periods": 1, "rollover_cap_nanos": 50 * NANOS} | terms,
    )  # fmt: skip
    pro = Plan.objects.create(product=product, slug="pro", name="Pro", rank=2)
    version = PlanVersion.objects.create(plan=pro, valid_from=START, price_cents=2_500, rate_card="standard", trial_days=14)
    Entitlement.objects.create(plan_version=version, key="messages", kind="limit", window="period", limit=7)
    return product


def opened(product: Product, at: datetime) -> Account:
    with ledger.clock(at=at):
        return registration.open_account(product=product, external_id=secrets.token_hex(4), name="Ada", now=at)


def trial(account: Account, *, now: datetime, days: int = 14) -> Subscription:
    with ledger.clock(at=now):
        subscriptions.end(account=account, now=now)
        return subscriptions.start(account=account, plan="pro", now=now, trial_ends_at=now + days * DAY)


def renew(now: datetime) -> int:
    failed = dict[str, Exception]()
    done = due.renew(now=now, given_up=(), failed=failed.__setitem__)
    assert not failed
    return done


def state(account: Account) -> list[Any]:
    """Everything of the account but ids, and when it was written."""
    subscribed = Subscription.objects.filter(account=account).order_by("started_at", "pk")
    wallet = Wallet.objects.get(account=account)
    return [
        list(subscribed.values_list("plan_version__plan__slug", "status", "anchor_at", "started_at", "ended_at")),
        list(subscribed.values_list("current_period_start", "current_period_end", "trial_ends_at")),
        (wallet.balance, wallet.debt, wallet.due_at),
        list(LedgerEntry.objects.filter(account=account).order_by("seq").values_list("kind", "amount", "effective_at")),
        list(Mail.objects.filter(account=account).order_by("pk").values_list("kind", "context")),
    ]


def life(ticks: list[datetime]) -> list[Any]:
    """Opened on 31 January, on trial from 3 to 17 February; the jobs run at ``ticks`` and nobody does anything else."""
    account = opened(shop(), ANCHOR)
    trial(account, now=ANCHOR + 3 * DAY)
    for now in ticks:
        with ledger.clock(at=now):
            renew(now)
            ledger.catch_up(after=account.pk - 1, limit=1)
    assert audit.run() == []
    return state(account)


class TestRenewals:
    @pytest.mark.django_db
    @pytest.mark.failure(43)
    @pytest.mark.failure(47)
    @pytest.mark.failure(48)
    def test_two_months_that_nobody_ran_and_a_job_that_runs_twice_come_to_what_every_hour_would_have(self) -> None:
        punctual = life([ANCHOR + number * timedelta(hours=7) for number in range(64 * 24 // 7)] + [END])
        assert life([END]) == punctual
        assert life([END - 20 * DAY, END - 20 * DAY, END, END]) == punctual
        plans, spans, (balance, *_), entries, sent = punctual
        assert [(plan, status) for plan, status, *_ in plans] == [("free", "canceled"), ("pro", "canceled"), ("free", "active")]
        assert spans[-1] == (datetime(2028, 3, 31, 9, tzinfo=UTC), datetime(2028, 4, 30, 9, tzinfo=UTC), None)
        assert [at for kind, _, at in entries if kind == "grant"] == [
            ANCHOR, datetime(2028, 2, 29, 9, tzinfo=UTC), datetime(2028, 3, 31, 9, tzinfo=UTC),
        ]  # fmt: skip
        assert balance == 150 * NANOS
        assert [(kind, context["plan"], context["next_plan"]) for kind, context in sent if kind == "plan_ended"] == [
            ("plan_ended", "Pro", "Free"),
        ]  # fmt: skip

    @pytest.mark.django_db
    def test_a_first_default_plan_after_a_trial_has_the_credit_of_every_period_since_the_trial_ended(self) -> None:
        """An account whose first plan is a trial, ended while nothing ran for three months."""
        found = []
        for ticks in ([END], [*(ANCHOR + number * DAY for number in range(63)), END]):
            product = shop()
            product.default_plan = "pro"
            account = opened(product, ANCHOR)
            product.default_plan = "free"
            product.save()
            trial(account, now=ANCHOR, days=5)
            for now in ticks:
                with ledger.clock(at=now):
                    renew(now)
                    ledger.catch_up(after=account.pk - 1, limit=1)
            found.append(state(account)[2:4])
        assert found[0] == found[1]
        assert [(kind, at) for kind, _, at in found[0][1] if kind == "grant"] == [
            ("grant", ANCHOR + 5 * DAY), ("grant", datetime(2028, 3, 5, 9, tzinfo=UTC)),
        ]  # fmt: skip

    @pytest.mark.django_db
    def test_the_default_plan_counts_from_the_end_of_the_trial_also_before_the_job_says_so(self) -> None:
        account = opened(shop(), ANCHOR)
        trial(account, now=ANCHOR + 3 * DAY)
        over = ANCHOR + 17 * DAY
        for at, plan in ((over - timedelta(seconds=1), "pro"), (over, "free"), (over + 40 * DAY, "free")):
            with ledger.clock(at=at):
                allowed = subscriptions.allowed(account=account)
                assert allowed is not None
                window = limits.window_at(account, allowed, "period", at)
            assert (allowed.plan.version.plan.slug, allowed.anchor_at) == (plan, ANCHOR if plan == "free" else ANCHOR + 3 * DAY)
            with ledger.clock(at=at):
                renew(at)
                on_time = subscriptions.allowed(account=account)
            assert on_time is not None
            assert limits.window_at(account, on_time, "period", at) == window

    @pytest.mark.django_db
    def test_a_trial_brings_no_included_credit_and_is_the_one_that_a_customer_has(self) -> None:
        account = opened(shop(included_credit_nanos=0, rollover_periods=0, rollover_cap_nanos=None), ANCHOR)
        assert not checkout.had_trial(account=account)
        trial(account, now=ANCHOR)
        assert not Grant.objects.filter(account=account).exists()
        with ledger.clock(at=END):
            renew(END)
        assert checkout.had_trial(account=account)

    @pytest.mark.django_db
    @pytest.mark.parametrize(("plan", "days"), [("free", 3), ("pro", 0), ("pro", -1)])
    def test_nobody_tries_what_is_free_or_until_yesterday(self, plan: str, days: int) -> None:
        account = opened(shop(), ANCHOR)
        subscriptions.end(account=account, now=ANCHOR)
        with pytest.raises(ValueError, match="A trial is of a plan with a price"):
            subscriptions.start(account=account, plan=plan, now=ANCHOR, trial_ends_at=ANCHOR + days * DAY)

    @pytest.mark.django_db
    def test_a_closed_account_goes_to_no_other_plan(self) -> None:
        account = opened(shop(), ANCHOR)
        trial(account, now=ANCHOR)
        Account.objects.filter(pk=account.pk).update(closed_at=ANCHOR + DAY)
        with ledger.clock(at=END):
            assert renew(END) >= 1
        assert not Subscription.objects.filter(account=account).exclude(status="canceled").exists()

    @pytest.mark.django_db
    def test_one_plan_that_cannot_be_renewed_holds_up_no_other(self) -> None:
        broken, fine = opened(shop(), ANCHOR), opened(shop(), ANCHOR)
        trial(broken, now=ANCHOR)
        Product.objects.filter(pk=broken.product_id).update(default_plan="gone")
        failed = dict[str, Exception]()
        with ledger.clock(at=END):
            assert due.renew(now=END, given_up=(), failed=failed.__setitem__) == 1
            assert due.renew(now=END, given_up=[broken.public_id], failed=failed.__setitem__) == 0
        assert list(failed) == [broken.public_id]
        assert Subscription.objects.get(account=fine).current_period_end == datetime(2028, 4, 30, 9, tzinfo=UTC)
        assert Subscription.objects.get(account=broken, status="trialing").current_period_end < END

    @pytest.mark.usefixtures("committed")
    @pytest.mark.failure(48)
    def test_two_workers_at_once_end_a_trial_once(self) -> None:
        account = make_account(shop())
        now = datetime.now(UTC)
        subscriptions.end(account=account, now=now)
        while renew(now + timedelta(minutes=1)):  # what other tests left due
            pass
        subscriptions.start(account=account, plan="pro", now=now, trial_ends_at=now + timedelta(seconds=1))
        barrier, done, errors = threading.Barrier(4), list[int](), list[Exception]()

        def run() -> None:
            try:
                barrier.wait()
                done.append(renew(now + timedelta(seconds=2)))
            except Exception as error:  # noqa: BLE001 (shown below)
                errors.append(error)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (errors, sum(done)) == ([], 1)
        assert Subscription.objects.filter(account=account, status="active").count() == 1
        assert Mail.objects.filter(account=account, kind="plan_ended").count() == 1
        assert renew(now + timedelta(seconds=3)) == 0


def waiting_for_a_lock(backend: list[int]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select exists (select from pg_stat_activity where pid = any(%s) and wait_event_type = 'Lock')", [backend])
        return bool(cursor.fetchone()[0])


class TestCatchingUp:
    @pytest.mark.usefixtures("committed")
    @pytest.mark.failure(49)
    def test_a_worker_that_dies_in_the_middle_has_done_what_it_had_done_and_the_next_one_does_the_rest(self) -> None:
        """Its connection is cut while it waits for the lock of the sixth of ten accounts."""
        product, soon = make_product(), datetime.now(UTC) + timedelta(seconds=2)
        accounts = [make_account(product) for _ in range(10)]
        for account in accounts:
            give(account, 10, expires_at=soon)
        time.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds()))
        backend, died = list[int](), threading.Event()

        def work() -> None:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("select pg_backend_pid()")
                    backend.extend(cursor.fetchone())
                ledger.catch_up(after=accounts[0].pk - 1, limit=10)
            except DatabaseError:
                died.set()
            finally:
                connections.close_all()

        expired = LedgerEntry.objects.filter(account__in=accounts, kind="expiry")
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(%s)", [accounts[5].pk])
            worker = threading.Thread(target=work)
            worker.start()
            while not waiting_for_a_lock(backend):
                time.sleep(0.02)
            assert expired.count() == 5
            cursor.execute("select pg_terminate_backend(%s)", backend)
            worker.join()
        assert (died.is_set(), expired.count()) == (True, 5)
        ledger.catch_up(after=accounts[0].pk - 1, limit=10)
        assert expired.count() == 10
        assert audit.run() == []

    @pytest.mark.django_db
    @pytest.mark.failure(82)
    def test_an_account_that_cannot_be_caught_up_is_told_and_holds_up_no_other(self) -> None:
        product, soon = make_product(), datetime.now(UTC) + timedelta(seconds=2)
        accounts = [make_account(product) for _ in range(3)]
        for account in accounts:
            give(account, 10, expires_at=soon)
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {roles.OWNER}")
            cursor.execute(
                f"create trigger poison before insert on ledger_entry for each row when (new.account_id = {accounts[1].pk})"
                " execute function refuse_change()"
            )
            cursor.execute("reset role")
        failed = dict[str, Exception]()
        with ledger.clock(at=soon):
            assert due.apply(given_up=(), failed=failed.__setitem__) >= 2
        assert list(failed) == [accounts[1].public_id]
        left = Wallet.objects.filter(account__in=accounts).order_by("account_id").values_list("balance", flat=True)
        assert list(left) == [0, 10, 0]
