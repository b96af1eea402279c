"""Every rule that comes with the site fires when it should and keeps quiet when it should, on rows that the real verbs made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import OperationalError, connection
from django.test import RequestFactory
from django.utils import timezone
from pytest_django import Settings

from accounts import acts, api, faults, mails, registration
from accounts.models import Account, Fault, Mail, User, WebhookEndpoint
from analytics import alert_metrics, alerts, audits, jobs, rollups
from analytics.models import Alert, AlertRule, JobRun, ProviderBill
from billing import ledger
from billing.models import StripeCustomer, StripeReconciliation
from billing.tests.stripe_stub import Stub, new
from billing.tests.test_stripe_inbox import receive, stub, work
from config import errors, roles
from metering import throttles, usage
from metering.models import OpenAuthorization
from metering.tests.limited import Shop, dollars
from metering.tests.test_api import App
from pricing import catalog, catalog_file
from pricing.models import Product
from tests.factories import NANOS, START, give, make_account, make_model, make_product

__all__ = ["stub"]  # a fixture
pytestmark = pytest.mark.django_db

CATALOGS = Path(__file__).parents[2] / "pricing" / "catalogs"
NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)
#: A language model whose input costs $1.00 a million tokens, and a sandbox at $0.15 an hour.
DOLLAR_A_MILLION = NANOS
SANDBOX = "e2b:2cpu-4gb"


class Scene:
    """What a rule is shown: a business of the catalogs and what happened to it until ``now``."""

    def __init__(self, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stub, self.now = stub, NOW
        self.provider = f"provider-{uuid4().hex[:8]}"
        self.model = make_model(provider=self.provider, input_price=DOLLAR_A_MILLION)
        monkeypatch.setenv("STRIPE_PRICE_CREDIT_PACK", "price_rover_pack")
        monkeypatch.setenv("STRIPE_SMALL_PACK_PRICE_ID", "price_small_pack")
        # No thread of its own: a test's faults are written in the test's transaction.
        monkeypatch.setattr(faults, "_schedule", lambda seconds: None)
        faults._counted.clear()
        Fault.objects.all().delete()

    def customer(self, product: str) -> Account:
        catalog_file.apply(catalog_file.parse((CATALOGS / f"{product}.toml").read_bytes()), actor="ada", effective=START)
        return registration.open_account(product=catalog.product(slug=product), external_id=uuid4().hex, name="Ada", now=self.now)

    def pays(self, account: Account, price: str, cents: int) -> None:
        """A pack, by Stripe."""
        customer, _ = StripeCustomer.objects.get_or_create(account=account, defaults={"id": new("cus")})
        intent = self.stub.pack(customer.pk, price, cents)
        receive("payment_intent.succeeded", intent, now=self.now)
        assert [one.state for one in work(self.now)] == ["done"]

    def uses(self, account: Account, *, tokens: int = 0, seconds: int = 0, model: str = "", at: datetime | None = None) -> ledger.Usage:
        """So many tokens of the model, or so many seconds of a sandbox, reported afterwards."""
        quantities = {"seconds": seconds} if seconds else {"input_tokens": tokens}
        named = model or (SANDBOX if seconds else self.model)
        event = usage.Event(key=str(uuid4()), account=account, at=at or self.now, model=named, quantities=quantities)
        [answer] = usage.record(events=[event], now=self.now)
        assert isinstance(answer, ledger.Usage)
        return answer

    def rover(self) -> Account:
        """A customer of Rover that has paid $100."""
        account = self.customer("rover")
        self.pays(account, "price_rover_pack", 10_000)
        return account

    def look(self, slug: str, product: Product | None) -> Alert | None:
        """What the rule says, alone, with and without the fold that runs each minute."""
        alerts.ship()
        AlertRule.objects.exclude(slug__in=[slug, "broken"]).update(enabled=False)
        alerts.look(now=self.now)
        rule = AlertRule.objects.get(slug=slug)
        assert (rule.error, rule.looked_at) == ("", self.now)
        found = Alert.objects.filter(rule=rule, product=product, state="open").first()
        rollups.fold()
        alerts.look(now=self.now)
        again = Alert.objects.filter(rule=rule, product=product, state="open").first()
        assert (found and found.text) == (again and again.text)
        return found


@pytest.fixture
def scene(stub: Stub, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Scene]:
    yield Scene(stub, monkeypatch)
    faults._counted.clear()


#: What each rule is shown, as ``loud`` or not; the product that it is about (None: the site) and what it has to say when it fires.
Show = Callable[[Scene, bool], tuple[Product | None, str]]
SHOWS: dict[str, Show] = {}


def shows(slug: str) -> Callable[[Show], Show]:
    def keep(show: Show) -> Show:
        SHOWS[slug] = show
        return show

    return keep


# Money --------------------------------------------------------------------------------------------------------------------------


@shows("margin")
def margin(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = scene.rover()
    scene.uses(account, tokens=66_000_000 if loud else 65_000_000)
    return account.product, "Rover's margin of the last 30 days is 34 %, below 35 %: payments received $100.00, cost $66.00."


@shows("rover-ai-cost")
def ai_cost(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = scene.rover()
    scene.uses(account, tokens=50_000_001 if loud else 50_000_000)
    scene.uses(account, seconds=100_000)  # not of a model
    said = "Rover's share of cost in revenue of the last 30 days is 50 %, above 50 %: payments received $100.00, AI cost $50.00."
    return account.product, said


@shows("rover-sandbox-cost")
def sandbox_cost(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """The guide's own example spends exactly 10 %."""
    account = scene.rover()
    scene.uses(account, seconds=264_000 if loud else 240_000)
    scene.uses(account, tokens=90_000_000)
    said = "Rover's share of cost in revenue of the last 30 days is 11 %, above 10 %: payments received $100.00, machine cost $11.00."
    return account.product, said


@shows("rover-sandbox-cost-high")
def sandbox_cost_high(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = scene.rover()
    scene.uses(account, seconds=384_000 if loud else 360_000)
    said = "Rover's share of cost in revenue of the last 30 days is 16 %, above 15 %: payments received $100.00, machine cost $16.00."
    return account.product, said


@shows("rover-sandbox-spending")
def sandbox_spending(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = scene.customer("rover")
    scene.uses(account, seconds=9_000_000, at=START)
    scene.uses(account, seconds=3_000_000 if loud else 2_999_000)
    return account.product, "Rover's spending of this month is $500.00, at least $500.00: machine cost."


@shows("burn-rate")
def burn_rate(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = make_account()
    for days in range(1, 8):
        scene.uses(account, tokens=10_000_000, at=NOW - timedelta(days=days))
    scene.uses(account, tokens=31_000_000 if loud else 30_000_000)
    name = account.product.name
    return account.product, f"{name}'s spending today, of a usual day's, is 310 %, above 300 %: $31.00 today, $10.00 on a usual day."


@shows("dearest-record")
def dearest_record(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """A thousand million tokens at once."""
    account = make_account()
    scene.uses(account, tokens=1_000_000_000 if loud else 999_000_000, at=NOW - timedelta(minutes=59))
    said = f"The dearest usage record of the last hour is $1,000.00, at least $1,000.00: {scene.model} by {account.public_id}."
    return None, said


@shows("cost-accuracy")
def cost_accuracy(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """Either way: here the provider billed more than we recorded."""
    account = make_account()
    scene.uses(account, tokens=94_000_000 if loud else 95_000_000, at=NOW - timedelta(days=3))
    scene.uses(account, tokens=5_000_000)  # after the bill
    ProviderBill.objects.create(
        provider=scene.provider, since=date(2026, 1, 1), until=date(2026, 1, 9), billed_nanos=100 * NANOS, entered_by="ada", entered_at=NOW
    )
    return None, (
        "The distance of our record from providers' bills is 6 %, above 5 %: "
        f"{scene.provider} billed $100.00 for 2026-01-01 to 2026-01-08, we recorded $94.00."
    )


# Accounts -----------------------------------------------------------------------------------------------------------------------


@shows("over-tier-limit")
def over_tier_limit(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    shop = Shop.new(tier={"monthly_cost_nanos": dollars("1.00")})
    with shop.at(NOW):
        shop.use(tokens=1)
        shop.record(shop.event(tokens=1_499_999 if loud else 999_999))
    name, account = shop.product.name, shop.account.public_id
    return shop.product, f"{name}, accounts over their cost tier's limit: 1. {account} ($1.50 of $1.00)."


def crowd(stopped: int) -> Product:
    """Twenty accounts that work, and some of them are then stopped."""
    shop = Shop.new(tier={"monthly_cost_nanos": dollars("1.00")})
    accounts = [shop.account] + [make_account(shop.product, credit=1) for _ in range(19)]
    for shop.account in accounts:
        with shop.at(NOW):
            shop.use()
    for account in accounts[:stopped]:
        throttles.stop(account=account, actor="ada", reason="asked to", ends_at=None, now=NOW)
    return shop.product


@shows("throttled")
def throttled(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    product = crowd(2 if loud else 1)
    return product, f"{product.name}'s share of accounts throttled is 10 %, above 5 %: 2 of 20 active accounts."


@shows("throttled-high")
def throttled_high(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    product = crowd(3 if loud else 2)
    return product, f"{product.name}'s share of accounts throttled is 15 %, above 10 %: 3 of 20 active accounts."


# What goes wrong ------------------------------------------------------------------------------------------------------------------


@shows("failed-deductions")
def failed_deductions(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """Captures that a product refuses, because they exceed their hold; and a caller's own mistakes, which are none."""
    scene.now = timezone.now()
    app = App(overage="reject")
    give(app.account, NANOS)
    hold = app.authorize().json()["id"]  # type: ignore[attr-defined]
    for _ in range(11 if loud else 10):
        assert app.post(f"authorizations/{hold}/capture", {"quantities": {"input_tokens": 200_000}}).status_code == 422
    assert app.post(f"authorizations/{hold}/capture", {"quantities": {"input_tokens": -1}}).status_code == 422
    assert app.post("authorizations/auth_nonsense/capture", {"quantities": {"input_tokens": 1}}).status_code == 404
    assert faults.flush() == (11 if loud else 10)
    said = f"Failed deductions in the last 5 minutes: 11, above 10. The last: {app.account.public_id}: HoldExceeded."
    return None, said


@shows("missing-price")
def missing_price(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = make_account()
    if loud:
        scene.uses(account, model="acme:brand-new", tokens=1)
        scene.uses(account, model="acme:brand-new", tokens=2)
    scene.uses(account, tokens=1)
    return account.product, f"{account.product.name}, uses without a price: 2. No pricing found for acme:brand-new (2)."


@shows("database-errors")
def database_errors(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    scene.now = timezone.now()
    for _ in range(6 if loud else 5):
        assert api.problem_of(OperationalError("the connection is lost")).status == 503
    faults.flush()
    return None, "Database errors in the last 5 minutes: 6, above 5. The last: OperationalError."


@shows("server-errors")
def server_errors(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    scene.now = timezone.now()
    for _ in range(11 if loud else 10):
        assert errors.server_error(RequestFactory().get("/api/v1/usage/current")).status_code == 500
    faults.flush()
    return None, "Server errors in the last 5 minutes: 11, above 10. The last: GET /api/v1/usage/current."


def broken_job(now: datetime, subjects: jobs.Subjects) -> int:
    raise RuntimeError("it never works")


@shows("job-late")
def job_late(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """Planned, and nobody comes to do it."""
    JobRun.objects.all().delete()
    jobs.ring(jobs=[jobs.Job("wait-for-ever", "Waits.", jobs.Schedule(timedelta(minutes=1)), broken_job)], now=scene.now)
    scene.now = JobRun.objects.get().late_at - timedelta(seconds=0 if loud else 1)
    return None, "Jobs that are late: 1. wait-for-ever."


@shows("job-failed")
def job_failed(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    JobRun.objects.all().delete()
    job = jobs.Job("fail", "Fails.", jobs.Schedule(timedelta(hours=1)), broken_job)
    jobs.ring(jobs=[job], now=scene.now)
    for _ in range(jobs.MAX_ATTEMPTS if loud else jobs.MAX_ATTEMPTS - 1):
        scene.now = JobRun.objects.order_by("due_at")[0].next_attempt_at
        jobs.work(job=job, worker="test", now=scene.now)
    scene.now += timedelta(minutes=1)
    return None, "Runs given up in the last 7 days: 1. fail."


@shows("runaway")
def runaway(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """A loop that schedules monthly credit again and again."""
    account = make_account()
    with ledger.clock(at=NOW):
        for number in range(5 if loud else 2):
            ledger.schedule(
                account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=NANOS, source="monthly", source_key=f"loop {number}",
                anchor_at=NOW, months=1, key=f"loop {number}", actor="test", reason="test", priority=10,
            )  # fmt: skip
    title = "Schedules stopped because they granted again and again"
    return None, f"{title}: 1. {account.public_id}: There are two resets of 2026-01-10 already."


@shows("audit-finding")
def audit_finding(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = make_account(credit=10)
    if loud:
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {roles.OWNER}")
            cursor.execute("update account_state set open_count = open_count + 1 where account_id = %s", [account.pk])
            cursor.execute("reset role")
    assert audits.run(now=scene.now) == (1 if loud else 0)
    [found] = audits.open_findings() or [None]
    return None, f"Findings of the audit: 1. {found}."


@shows("wallet-equations")
def wallet_equations(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    scene.now = timezone.now()
    account = make_account(credit=10)
    scene.uses(account, tokens=1_000_000)
    if loud:
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {roles.OWNER}")
            cursor.execute("alter table wallet disable trigger user")
            cursor.execute("update wallet set balance = balance + 1 where account_id = %s", [account.pk])
            cursor.execute("reset role")
    return None, f"Wallets whose sums do not agree: 1. {account.public_id}."


@shows("webhook-silence")
def webhook_silence(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    for hours in range(25 if loud else 24, 45):
        receive("customer.created", {"id": new("cus"), "object": "customer"}, now=NOW - timedelta(hours=hours))
    return None, "The silence of Stripe's webhooks is 25 h, above 24 h: the last event came 2026-01-09 11:00 UTC."


@shows("oldest-hold")
def oldest_hold(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    """Nobody has swept for more than a day; other tests' holds are younger."""
    shop = Shop.new()
    with shop.at(START + timedelta(minutes=1)):
        held = shop.authorize()
    oldest = OpenAuthorization.objects.get(account=shop.account, pk=held.usage.id)
    scene.now = oldest.created_at + timedelta(hours=26 if loud else 25)
    return None, f"The age of the oldest open hold is 26 h, above 25 h: {shop.account.public_id}."


@shows("dead-letters")
def dead_letters(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    account = make_account()
    mails.queue(account=account, kind=Mail.Kind.LOW_BALANCE, key="1", context={"balance_nanos": 1}, now=NOW)
    if loud:
        mails.queue(account=account, kind=Mail.Kind.LOW_BALANCE, key="2", context={"nonsense": 1}, now=NOW)
    return None, "Dead letters in the last 7 days: 1. 1 mails."


@shows("stripe-differences")
def stripe_differences(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    StripeReconciliation.objects.create(
        since=NOW, started_at=NOW + timedelta(days=9_999), finished_at=NOW, problems=["pi_1: paid and not granted"] if loud else []
    )
    return None, "Differences from Stripe: 1. pi_1: paid and not granted."


@shows("superuser-log-in")
def superuser_log_in(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    boss = User.objects.create_user("boss@example.com", is_staff=True, is_superuser=loud)
    acts.note(actor=boss, subject=boss, what="Signed in", kind=acts.Kind.SIGNED_IN, now=scene.now)
    return None, "Log-ins of superusers: 1. boss@example.com."


@shows("broken-rules")
def broken_rules(scene: Scene, loud: bool) -> tuple[Product | None, str]:
    alerts.ship()
    broken = AlertRule.objects.create(
        slug="broken", name="Broken", metric="nonsense" if loud else "oldest_hold", comparator="gt", threshold=10**12
    )
    alerts.look(now=scene.now)
    assert AlertRule.objects.get(pk=broken.pk).error == ("KeyError: 'nonsense'" if loud else "")
    return None, "Alert rules that cannot be looked at: 1. Broken."


# The tests ------------------------------------------------------------------------------------------------------------------------


def test_every_shipped_rule_is_shown_here() -> None:
    assert set(SHOWS) == set(alerts._shipped())


@pytest.mark.parametrize("slug", SHOWS)
def test_a_shipped_rule_fires_and_says_what_is_wrong(scene: Scene, slug: str) -> None:
    product, said = SHOWS[slug](scene, True)
    alert = scene.look(slug, product)
    assert alert is not None
    assert alert.text == said


@pytest.mark.parametrize("slug", SHOWS)
def test_a_shipped_rule_is_quiet_at_the_last_value_that_is_good(scene: Scene, slug: str) -> None:
    product, _ = SHOWS[slug](scene, False)
    assert scene.look(slug, product) is None
    rule = AlertRule.objects.get(slug=slug)
    ask = alert_metrics.Ask(product, AlertRule.Window(rule.window), scene.now, rule.numerator, rule.denominator, rule.minimum)
    assert alert_metrics.read(metric=rule.metric, ask=ask).value is not None  # it was measured, and is good


def test_an_endpoint_that_was_disabled_because_it_failed_is_told_and_one_that_staff_disabled_is_not() -> None:
    """Far ahead of every other test's queues."""
    at = NOW + timedelta(days=20_000)
    product = make_product()
    for name, reason in (("failed", "It answered 410 (gone)."), ("staff", "By staff: moved.")):
        WebhookEndpoint.objects.create(
            product=product, url=f"https://{name}.example/", kinds=["balance.low"], secret="sealed", created_by="ann", created_at=at,
            disabled_at=at, disabled_reason=reason,
        )  # fmt: skip
    reading = alert_metrics.dead_letters(alert_metrics.Ask(None, AlertRule.Window.WEEK, at))
    assert (reading.value, reading.detail) == (Fraction(1), "1 webhook endpoints")
