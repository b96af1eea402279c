"""Jobs where people and schedulers meet them: the table, the command, the HTTP trigger, admin's page, and Celery's settings."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from analytics import audits, jobs
from analytics.models import AuditFinding, JobRun
from billing import audit, due, ledger
from config import jobs as table
from config import tasks
from config.celery import app as celery
from metering.models import Throttle, UsageCounter
from metering.tests.limited import Shop
from tests.factories import make_account, make_key, make_product
from tests.test_admin import staff, superuser

__all__ = ["superuser"]
ROOT = Path(__file__).resolve().parent.parent
SECRET = "s" * 40
PAGE = "/admin/analytics/jobrun/"
DAY = timedelta(days=1)


class TestTable:
    def test_names_are_unique_and_whatever_comes_first_is_a_job_that_is_due_earlier_in_the_day(self) -> None:
        names = [job.name for job in table.JOBS]
        assert len(names) == len(set(names)) > 15
        for job in table.JOBS:
            assert re.fullmatch(r"[a-z]+(-[a-z]+)*", job.name)
            assert job.what.endswith(".")
            for earlier in map(table.named, job.after):
                assert (earlier.schedule.every, earlier.schedule.offset) < (job.schedule.every, job.schedule.offset)

    def test_the_documents_times_are_kept(self) -> None:
        assert [str(table.named(name).schedule) for name in ("reset-costs", "reset-credits", "expire-rollovers")] == [
            "daily, 00:00 UTC", "daily, 00:05 UTC", "daily, 00:10 UTC",
        ]  # fmt: skip
        assert table.named("expire-rollovers").after == ("reset-costs", "reset-credits")

    @pytest.mark.django_db
    @pytest.mark.parametrize(
        "job",
        [job for job in table.JOBS if job.name not in {"reconcile-stripe", "propose-prices", "vacuum", "back-up"}],
        ids=lambda job: job.name,
    )
    def test_every_job_runs_on_a_database_where_nothing_is_due_and_again(self, job: jobs.Job) -> None:
        """Without those that ask Stripe, always find prices to propose, or have tests of their own."""
        for _ in range(2):
            run = table.run_now(job=job, actor="test", reason="test", clock=timezone.now)
            assert run is not None
            assert (run.state, run.error) == ("done", "")


class TestCelery:
    @pytest.mark.failure(77)
    def test_a_task_that_dies_is_given_to_another_and_none_is_kept_or_runs_for_long(self) -> None:
        assert (celery.conf.task_acks_late, celery.conf.task_reject_on_worker_lost) == (True, True)
        assert celery.conf.worker_prefetch_multiplier == 1
        assert celery.conf.task_soft_time_limit < celery.conf.task_time_limit <= 600
        assert celery.conf.broker_transport_options["visibility_timeout"] > celery.conf.task_time_limit

    def test_no_task_is_sent_ahead_of_its_time(self) -> None:
        """What is due later is a row: the broker would forget it, or give it out twice after its visibility timeout."""
        sources = [
            path for app in ("config", "analytics", "metering", "billing", "accounts", "pricing") for path in (ROOT / app).glob("*.py")
        ]
        assert [path.name for path in sources if re.search(r"\b(eta|countdown)=", path.read_text())] == []

    def test_beat_only_rings(self) -> None:
        assert set(celery.conf.beat_schedule) == {"heartbeat", "ring-jobs"}
        assert all(entry["schedule"] == 60.0 for entry in celery.conf.beat_schedule.values())


@pytest.mark.django_db
class TestRing:
    def test_a_ring_has_what_is_due_worked_and_the_next_ring_finds_nothing(self) -> None:
        elsewhere = {"reconcile-stripe", "propose-prices", "vacuum", "back-up"}
        tasks.ring_jobs()
        JobRun.objects.update(due_at=timezone.now() - DAY, next_attempt_at=timezone.now() - DAY)
        JobRun.objects.filter(job__in=elsewhere).delete()
        worked = len(table.JOBS) - len(elsewhere)
        assert tasks.ring_jobs() == worked
        done = JobRun.objects.filter(state="done")
        assert {run.job for run in done} == {job.name for job in table.JOBS} - elsewhere
        order = list(done.filter(job__in=["reset-costs", "reset-credits", "expire-rollovers"]).order_by("pk").values_list("job", flat=True))
        assert order[0] == "reset-costs"
        assert tasks.ring_jobs() == 0

    def test_jobs_of_another_scheduler_are_planned_and_not_rung_unless_somebody_asks(self, settings: Any) -> None:
        settings.JOBS_OUTSIDE = ["audit"]
        table.ring(now=timezone.now())
        JobRun.objects.filter(job="audit").update(next_attempt_at=timezone.now() - DAY, late_at=timezone.now() - DAY)
        assert "audit" not in {job.name for job in table.ring(now=timezone.now())}
        assert "audit" in {run.job for run in jobs.late(now=timezone.now())}
        JobRun.objects.filter(job="audit").update(next_attempt_at=timezone.now() + DAY)
        jobs.ask(job=table.named("audit"), actor="ann", reason="now", now=timezone.now())
        assert "audit" in {job.name for job in table.ring(now=timezone.now())}


@pytest.mark.django_db
class TestCommand:
    def run(self, *arguments: str) -> tuple[str, str, int]:
        out, err = StringIO(), StringIO()
        try:
            call_command("jobs", *arguments, stdout=out, stderr=err)
        except SystemExit as stop:
            return out.getvalue(), err.getvalue(), int(stop.code or 0)
        return out.getvalue(), err.getvalue(), 0

    def test_it_lists_every_job_and_exits_0_while_none_is_late_or_failed(self) -> None:
        table.ring(now=timezone.now())
        assert "rows in" in self.run("run", "sweep-holds")[0]
        out, err, code = self.run()
        assert (err, code) == ("", 0)
        assert {line.split()[0] for line in out.splitlines()[1:]} >= {job.name for job in table.JOBS}
        assert re.search(r"sweep-holds +ok +every minute +\d{4}-\d\d-\d\d .* 0 +\d{4}", out)

    def test_it_exits_1_where_one_is_late_or_failed_and_says_which_and_why(self) -> None:
        table.ring(now=timezone.now())
        JobRun.objects.filter(job="audit").update(late_at=timezone.now(), due_at=timezone.now() - DAY)
        out, _, code = self.run()
        assert code == 1
        assert re.search(r"audit +late .* 86,40\d s", out)
        JobRun.objects.filter(job="audit").update(late_at=timezone.now() + DAY, due_at=timezone.now() + DAY)
        JobRun.objects.create(
            job="apply-due", subject="acct_1", due_at=timezone.now(), late_at=timezone.now(), next_attempt_at=timezone.now(),
            state="failed", ended_at=timezone.now(), attempts=5, error="DataError: poison",
        )  # fmt: skip
        _, err, code = self.run()
        assert (err, code) == ("apply-due gave up acct_1 after 5 attempts: DataError: poison\n", 1)
        assert "tries acct_1 again" in self.run("again", "apply-due", "acct_1")[0]
        assert self.run()[2] == 0

    @pytest.mark.parametrize("name", ["", "nonsense", "audit; drop table", "\x7f", "x" * 1_000])
    def test_a_name_that_is_none_is_told_with_those_that_are(self, name: str) -> None:
        with pytest.raises(CommandError, match="apply-due"):
            call_command("jobs", "run", name)
        with pytest.raises(CommandError, match="apply-due"):
            call_command("jobs", "again", name, "acct_1")
        with pytest.raises(CommandError, match="has not given up"):
            call_command("jobs", "again", "audit", name)

    def test_what_fails_is_told_and_exits_with_an_error(self) -> None:
        JobRun.objects.create(
            job="audit", due_at=timezone.now(), late_at=timezone.now(), next_attempt_at=timezone.now(), state="running",
            lease_until=timezone.now() + DAY,
        )  # fmt: skip
        with pytest.raises(CommandError, match="under way elsewhere"):
            call_command("jobs", "run", "audit")


@pytest.mark.django_db
class TestHttp:
    RESET = "/api/v1/playground/credits/cron/reset"

    def post(self, path: str, secret: str = SECRET, body: str | bytes = "", content_type: str = "application/json") -> Any:
        return Client().post(path, body, content_type=content_type, headers={"Authorization": f"Bearer {secret}"})

    @pytest.mark.parametrize(
        ("path", "job"),
        [
            (RESET, "reset-credits"),
            ("/api/v1/playground/credits/cron/expire", "expire-rollovers"),
            ("/api/v1/admin/jobs/sweep-holds", "sweep-holds"),
        ],
    )
    def test_the_secret_runs_a_job_and_says_which_run(self, settings: Any, path: str, job: str) -> None:
        settings.CRON_SECRETS = ["another" * 8, SECRET]
        answer = self.post(path)
        assert (answer.status_code, answer.json()["job"]) == (202, job)
        run = JobRun.objects.get(pk=answer.json()["run"])
        assert (run.job, run.state, run.actor, run.reason) == (job, "done", "scheduler", "Asked for over HTTP.")
        assert answer.headers["Cache-Control"].startswith("max-age=0")

    def test_nobody_else_does(self, settings: Any) -> None:
        product_key = make_key(make_product())
        settings.CRON_SECRETS = []
        for secret in ("", SECRET, product_key):
            assert self.post(self.RESET, secret).status_code == 401
        settings.CRON_SECRETS = [SECRET]
        for secret in ("", SECRET[:-1], SECRET + "s", SECRET.upper(), product_key, "\xe9" * 40):
            answer = self.post(self.RESET, secret)
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_key")
        assert Client().post(self.RESET).status_code == 401
        assert Client().post(self.RESET, headers={"Authorization": f"Basic {SECRET}"}).status_code == 401
        assert Client().get("/api/v1/admin/jobs").status_code == 401
        assert not JobRun.objects.exists()

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ("{}", 202),
            ('{"reason": "after the outage"}', 202),
            ('{"reason": ""}', 422),
            ('{"reason": "   "}', 422),
            ('{"reason": 5}', 422),
            ('{"reason": "x", "job": "audit"}', 422),
            (f'{{"reason": "{"x" * 301}"}}', 422),
            ("[]", 422),
            ("{", 400),
            ('{"reason": "\\u0000"}', 400),
            (b"\xff", 400),
            ("[" * 10_000, 400),
        ],
    )
    def test_garbage_is_refused(self, settings: Any, body: str | bytes, status: int) -> None:
        settings.CRON_SECRETS = [SECRET]
        assert self.post(self.RESET, body=body).status_code == status
        assert JobRun.objects.exists() == (status == 202)

    def test_a_job_that_is_none_another_method_and_a_form_are_refused(self, settings: Any) -> None:
        settings.CRON_SECRETS = [SECRET]
        for name in ("nonsense", "%00", "x" * 500, "..%2f"):
            assert self.post(f"/api/v1/admin/jobs/{name}").status_code == 404
        headers = {"Authorization": f"Bearer {SECRET}"}
        assert Client().get(self.RESET, headers=headers).status_code == 405
        assert Client().delete("/api/v1/admin/jobs", headers=headers).status_code == 405
        assert self.post(self.RESET, body="reason=x", content_type="application/x-www-form-urlencoded").status_code == 415

    def test_a_monitor_reads_how_every_job_stands(self, settings: Any) -> None:
        settings.CRON_SECRETS = [SECRET]
        table.ring(now=timezone.now())
        self.post("/api/v1/admin/jobs/sweep-holds")
        told = Client().get("/api/v1/admin/jobs", headers={"Authorization": f"Bearer {SECRET}"}).json()
        assert told["late_or_failed"] == 0
        by_name = {each["job"]: each for each in told["jobs"]}
        assert set(by_name) == {job.name for job in table.JOBS}
        assert by_name["sweep-holds"]["last"]["rows"] == 0
        assert by_name["audit"]["last"] is None
        assert by_name["audit"]["next_due_at"] is not None

    def test_production_takes_no_short_secret(self) -> None:
        from tests.test_settings import REQUIRED, production

        started = production("-c", "import config.settings.base", **REQUIRED, CRON_SECRET="short")
        assert "CRON_SECRET is too short" in started.stderr


@pytest.mark.django_db
class TestAdmin:
    def test_the_page_says_first_whether_somebody_has_to_look_and_then_how_each_job_stands(self, superuser: Client) -> None:
        table.ring(now=timezone.now())
        page = superuser.get(PAGE).content.decode()
        assert f"All {len(table.JOBS)} jobs are well" in page
        assert all(job.name in page and job.what.replace("'", "&#x27;") in page for job in table.JOBS)
        JobRun.objects.filter(job="audit").update(late_at=timezone.now() - DAY, due_at=timezone.now() - DAY)
        AuditFinding.objects.create(check_name="x", text="y", first_seen_at=timezone.now(), last_seen_at=timezone.now())
        page = superuser.get(PAGE).content.decode()
        assert f"1 of {len(table.JOBS)} jobs needs somebody to look" in page
        assert '<p class="bad">late</p>' in page
        assert "1 audit finding" in page

    def test_run_now_asks_for_a_reason_and_is_in_the_audit_log(self, superuser: Client) -> None:
        address = reverse("admin:analytics_jobrun_run", args=["sweep-holds"])
        assert address in superuser.get(PAGE).content.decode()
        assert "Ends holds" in superuser.get(address).content.decode()
        for reason in ("", "  ", "\0", "x" * 301):
            assert superuser.post(address, {"reason": reason}).status_code == 200
        assert not JobRun.objects.exists()
        assert superuser.post(address, {"reason": "after the outage"}).status_code == 302
        run = JobRun.objects.get()
        assert (run.state, run.reason) == ("done", "after the outage")
        assert "@example.com" in run.actor
        assert LogEntry.objects.get(object_id=str(run.pk)).change_message == "Run now: after the outage"
        assert superuser.get(reverse("admin:analytics_jobrun_run", args=["nonsense"])).status_code == 404

    def test_who_may_only_look_runs_nothing(self) -> None:
        client = staff("analytics.view_jobrun")
        assert "Run now" not in client.get(PAGE).content.decode()
        assert client.post(reverse("admin:analytics_jobrun_run", args=["audit"]), {"reason": "x"}).status_code == 403
        assert client.post(reverse("admin:analytics_jobrun_again", args=[1]), {"reason": "x"}).status_code == 403
        assert staff("billing.view_grant").get(PAGE).status_code == 403
        assert not JobRun.objects.exists()

    def test_what_was_given_up_is_shown_with_its_error_and_tried_again(self, superuser: Client) -> None:
        account = make_account()
        now = timezone.now()
        run = JobRun.objects.create(
            job="apply-due", subject=account.public_id, due_at=now, late_at=now, next_attempt_at=now, state="failed", ended_at=now,
            attempts=5, error="DataError: <b>poison</b>",
        )  # fmt: skip
        page = superuser.get(PAGE).content.decode()
        assert "DataError: &lt;b&gt;poison&lt;/b&gt;" in page
        address = reverse("admin:analytics_jobrun_again", args=[run.pk])
        assert account.name in superuser.get(address).content.decode()
        assert superuser.post(address, {"reason": "fixed"}).status_code == 302
        run.refresh_from_db()
        assert (run.state, run.attempts) == ("waiting", 0)
        assert superuser.post(address, {"reason": "fixed"}).status_code == 302
        assert LogEntry.objects.filter(object_id=str(run.pk)).count() == 1
        assert superuser.get(reverse("admin:analytics_jobrun_again", args=[10**9])).status_code == 404

    def test_the_runs_of_one_job_are_a_list_and_a_run_a_page_that_nobody_edits(self, superuser: Client) -> None:
        run = table.run_now(job=table.named("sweep-holds"), actor="ann", reason="x", clock=timezone.now)
        assert run is not None
        assert "sweep-holds" in superuser.get(PAGE, {"job__exact": "sweep-holds"}).content.decode()
        change = reverse("admin:analytics_jobrun_change", args=[run.pk])
        assert superuser.get(change).status_code == 200
        assert superuser.post(change, {"state": "failed"}).status_code == 403
        assert superuser.get("/admin/analytics/auditfinding/").status_code == 200


@pytest.mark.django_db
class TestAudit:
    def test_a_finding_stays_as_one_row_from_the_audit_that_saw_it_to_the_one_that_did_not(self) -> None:
        account = make_account(credit=5)
        now = datetime(2026, 3, 1, 3, tzinfo=UTC)
        assert audits.run(now=now) == 0
        with connection.cursor() as cursor:
            cursor.execute("set local role tollgate_owner")
            cursor.execute("alter table account_state disable trigger user")
            cursor.execute("update account_state set open_count = open_count + 1 where account_id = %s", [account.pk])
        for days in (1, 2):
            assert audits.run(now=now + days * DAY) == 1
        finding = AuditFinding.objects.get()
        assert (finding.account_id, finding.first_seen_at, finding.last_seen_at, finding.gone_at) == (
            account.pk, now + DAY, now + 2 * DAY, None,
        )  # fmt: skip
        with connection.cursor() as cursor:
            cursor.execute("update account_state set open_count = open_count - 1 where account_id = %s", [account.pk])
            cursor.execute("reset role")
        assert audits.run(now=now + 3 * DAY) == 0
        finding.refresh_from_db()
        assert finding.gone_at == now + 3 * DAY
        assert not audits.open_findings().exists()


@pytest.mark.django_db
class TestResetCosts:
    def test_it_ends_stops_that_are_over_and_forgets_counters_of_windows_long_over_and_nothing_else(self) -> None:
        shop = Shop.new(("messages", "day", 5))
        shop.use()
        now = timezone.now()
        ledger.throttle(account_id=shop.account.pk, actor="ann", reason="test", ends_at=now + timedelta(hours=1))
        other = make_account()
        ledger.throttle(account_id=other.pk, actor="ann", reason="until it is lifted")

        def fail(subject: str, error: Exception) -> None:
            raise error

        def close(after: timedelta) -> int:
            with ledger.clock(at=now + after):
                return due.close_windows(given_up=(), failed=fail)

        counters = UsageCounter.objects.filter(account=shop.account)
        assert counters.exists()
        assert close(timedelta()) == 0
        assert close(timedelta(hours=2)) == 1
        ended, standing = Throttle.objects.get(account=shop.account), Throttle.objects.get(account=other)
        assert (ended.lifted_at, ended.lifted_by) == (ended.ends_at, "tollgate")
        assert standing.lifted_at is None
        assert counters.exists()
        assert close(3 * DAY) == 1
        assert not counters.exists()
        assert close(3 * DAY) == 0
        assert audit.run() == []
