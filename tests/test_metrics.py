"""/metrics: what it counts of requests, queries and caches, what waits, over all processes, and for nobody without the secret."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from analytics import hourly
from analytics.models import Alert, AlertRule, JobRun
from analytics.tests.world import World
from billing import ledger, subscriptions
from metering.tests.test_api import App
from tests.factories import NANOS, give
from tests.test_settings import REQUIRED, ROOT

SECRET, OLD = "a" * 32, "b" * 32


@pytest.fixture(autouse=True)
def secret(settings: Settings) -> None:
    settings.METRICS_SECRETS = [SECRET, OLD]


def read(token: str = SECRET) -> dict[str, float]:
    answer = Client().get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert "no-cache" in answer.headers["Cache-Control"]
    lines = [line for line in answer.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.mark.django_db
def test_requests_queries_and_what_was_kept_are_counted() -> None:
    names = {
        "health": 'http_request_seconds_count{route="health",status="2xx"}',
        "admin": 'http_request_seconds_count{route="admin/",status="3xx"}',
        "unknown": 'http_request_seconds_count{route="none",status="4xx"}',
        "slow": 'http_request_seconds_bucket{le="10.0",route="health",status="2xx"}',
        "queries": "database_query_seconds_count",
        "keys": 'key_reads_total{outcome="miss"}',
        "plans": 'account_reads_total{kind="transaction",outcome="miss"}',
    }
    app = App()
    before = read()
    client = Client()
    for path in ("/health", "/health", "/admin/", "/no-such-page"):
        client.get(path)
    app.authorize()
    after = read()
    rose = {name: after[key] - before.get(key, 0) for name, key in names.items()}
    assert (rose["health"], rose["admin"], rose["unknown"], rose["slow"]) == (2, 1, 1, 2)
    assert rose["queries"] > 3
    assert rose["keys"] == 1
    assert rose["plans"] >= 1


@pytest.mark.django_db
def test_what_waits_is_read_when_it_is_asked_for(world: World) -> None:
    now = timezone.now()
    account = world.account()
    world.grant(account, 10)
    before = read()
    with ledger.clock(at=now - timedelta(minutes=10)):
        world.hold(account, 1)
    rule = AlertRule.objects.create(slug=f"rule-{world.product.pk}", name="x", metric="late_jobs", comparator="gt", threshold=0)
    Alert.objects.create(rule=rule, severity="critical", text="x", value=1, opened_at=now, seen_at=now)
    JobRun.objects.create(
        job="audit", due_at=now - timedelta(hours=2), late_at=now - timedelta(hours=1), next_attempt_at=now - timedelta(hours=2)
    )
    hourly.measure(now=now)
    after = read()
    assert after["database_up"] == 1
    assert after["open_holds"] - before["open_holds"] == 1
    assert after["oldest_hold_seconds"] >= 600
    assert after["spooled_usage"] == before["spooled_usage"]
    assert after['open_alerts{severity="critical"}'] - before['open_alerts{severity="critical"}'] == 1
    assert after['job_lag_seconds{job="audit"}'] >= 3_600
    assert after[f'accounts_throttled{{product="{world.product.slug}"}}'] == 0


@pytest.fixture
def world(db: None) -> World:
    return World.new()


@pytest.mark.django_db
@pytest.mark.parametrize("header", ["", "Bearer", f"Bearer {SECRET}x", f"Basic {SECRET}", "Bearer é", f"Bearer {SECRET} {SECRET}"])
def test_without_the_secret_nobody_reads_them(header: str, settings: Settings) -> None:
    assert Client().get("/metrics", headers={"Authorization": header}).status_code == 401
    assert read(OLD)
    settings.METRICS_SECRETS = []
    assert Client().get("/metrics", headers={"Authorization": "Bearer "}).status_code == 401


def test_they_are_of_all_processes_of_the_machine_and_answer_without_a_database(tmp_path: Path) -> None:
    script = f"""
import os
from config.wsgi import application
from django.test import Client
ask = lambda path, **headers: Client().get(path, secure=True, headers={{"host": "billing.example.com", **headers}})
if os.fork() == 0:
    ask("/health"); ask("/health")
    os._exit(0)
os.wait()
ask("/health")
print(ask("/metrics", authorization="Bearer {SECRET}").content.decode())
"""
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts"), "METRICS_SECRET": SECRET, "DB_POOL": "false"}
    environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "config.settings.base"} | REQUIRED | variables
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert re.search(r'http_request_seconds_count\{route="health",status="2xx"\} 3\.0', told.stdout), told.stderr
    assert "\ndatabase_up 0.0" in told.stdout


def test_a_short_secret_is_no_secret() -> None:
    environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "config.settings.base"} | REQUIRED | {"METRICS_SECRET": "short"}
    started = subprocess.run(
        [sys.executable, "-c", "import config.settings.base"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "METRICS_SECRET is too short" in started.stderr


@pytest.mark.usefixtures("committed", "patient_edge_limit")
class TestOnce:
    def test_a_call_reads_the_subscription_once_and_the_next_one_not_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subscriptions, "MAX_AGE_SECONDS", 60)
        app = App()
        give(app.account, 1_000 * NANOS)
        subscriptions.clear()
        assert [self.reads(app) for _ in range(3)] == [1, 0, 0]

    def reads(self, app: App) -> int:
        with CaptureQueriesContext(connection) as asked:
            assert app.authorize().status_code == 200
        return sum("billing_subscription" in query["sql"] for query in asked.captured_queries)
