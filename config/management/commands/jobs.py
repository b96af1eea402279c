"""``manage.py jobs``: how each job stands, exit code 1 where one is late or failed. ``manage.py jobs run NAME``: one of them, now."""

from __future__ import annotations

import sys
from datetime import datetime
from getpass import getuser
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from analytics import jobs
from analytics.models import JobRun
from config import jobs as table


class Command(BaseCommand):
    help = "Shows each job's last run, next run, rows, errors and lag; exit code 1 where one is late or failed. Or runs one now."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb")
        run = verbs.add_parser("run", help="run a job now, in this process; exit code 1 where it fails")
        run.add_argument("name", metavar="NAME")
        run.add_argument("--reason", default="Asked for on the command line.", help="Kept with the run.")
        again = verbs.add_parser("again", help="have a subject tried again that was given up")
        again.add_argument("name", metavar="NAME")
        again.add_argument("subject", metavar="SUBJECT", help="Its public id, as the list shows it.")

    def handle(self, *, verb: str | None, **options: Any) -> None:
        if verb is None:
            self.list()
            return
        try:
            job = table.named(options["name"])
        except jobs.UnknownJob as error:
            raise CommandError(f"{error} There are: {', '.join(each.name for each in table.JOBS)}.") from None
        if verb == "run":
            self.run_now(job, options["reason"])
        else:
            self.again(job, options["subject"])

    def list(self) -> None:
        now = timezone.now()
        found = jobs.standings(jobs=table.JOBS, now=now)
        rows = [("JOB", "STATE", "WHEN (UTC)", "LAST RUN", "TOOK", "ROWS", "NEXT RUN", "LAG")]
        rows += [
            (
                each.job.name,
                each.state,
                str(each.job.schedule),
                _moment(each.last.started_at if each.last else None),
                _took(each.last),
                "–" if each.last is None or each.last.rows is None else f"{each.last.rows:,}",
                _moment(each.next.due_at if each.next else None),
                f"{int(each.lag.total_seconds()):,} s" if each.lag else "–",
            )
            for each in found
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for each in found:
            if each.state == "off":
                self.stdout.write(f"{each.job.name} is off: {each.job.off()}")
            elif each.last and each.last.error:
                self.stderr.write(f"{each.job.name}, attempt {each.last.attempts}: {each.last.error}")
        for run in JobRun.objects.filter(state=JobRun.State.FAILED).exclude(subject="").order_by("pk")[:100]:
            self.stderr.write(f"{run.job} gave up {run.subject} after {run.attempts} attempts: {run.error}")
        if any(each.bad for each in found):
            sys.exit(1)

    def run_now(self, job: jobs.Job, reason: str) -> None:
        if off := job.off():
            raise CommandError(f"{job.name} is off: {off}")
        run = table.run_now(job=job, actor=f"{getuser()} (command line)", reason=reason.strip() or "No reason given.", clock=timezone.now)
        if run is None:
            raise CommandError(f"{job.name} is under way elsewhere, or a job that comes before it is due.")
        if run.state != JobRun.State.DONE:
            raise CommandError(f"{run} failed: {run.error}")
        self.stdout.write(f"{run}: {run.rows:,} rows in {_took(run)}")

    def again(self, job: jobs.Job, subject: str) -> None:
        run = JobRun.objects.filter(job=job.name, subject=subject, state=JobRun.State.FAILED).exclude(subject="").first()
        if run is None or not jobs.again(run=run, now=timezone.now()):
            raise CommandError(f"{job.name} has not given up {subject!r}.")
        self.stdout.write(f"{job.name} tries {subject} again with its next run.")


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "never"


def _took(run: JobRun | None) -> str:
    if run is None or run.started_at is None or run.ended_at is None:
        return "–"
    return f"{(run.ended_at - run.started_at).total_seconds():.1f} s"
