"""What beat rings, and what a worker does then."""

from __future__ import annotations

from celery import shared_task
from django.utils import timezone

from accounts import doorbell
from analytics.jobs import Job
from analytics.models import JobRun
from config import jobs

#: A ring that nobody heard in time is repeated by the next one.
EXPIRES_SECONDS = 60


@shared_task(name="config.tasks.ring_jobs")
def ring_jobs() -> int:
    """Has each job that is due worked; returns how many. Rung each minute, by any number of beats."""
    due = jobs.ring(now=timezone.now())
    for job in due:
        work_job.apply_async(args=(job.name,), expires=EXPIRES_SECONDS)
    return len(due)


def ring(job: Job) -> None:
    """Has a worker look at one job at once. Never raises because of the broker: the next ring of the bell comes within a minute."""
    doorbell.ring(work_job, job.name)


@shared_task(name="config.tasks.work_job")
def work_job(name: str) -> int:
    """Does the runs of one job that are due, oldest first, and has the jobs rung that waited for them; returns how many it did."""
    job, done = jobs.named(name), 0
    while (run := jobs.work(job=job, now=timezone.now())) is not None and run.state == JobRun.State.DONE:
        done += 1
    for follower in jobs.followers(job) if done else ():
        work_job.apply_async(args=(follower.name,), expires=EXPIRES_SECONDS)
    return done
