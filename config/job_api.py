"""Jobs over HTTP, for schedulers and monitors outside of us: ``CRON_SECRET`` as a bearer token, and no API key.

A product key acts for one product and a job goes over all of them, so none of its scopes opens this. Asking twice is asking once: a run
that has not begun is answered again. The answer is 202 because a worker does it; whether it went well is in the list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from pydantic import StringConstraints

from accounts import api
from accounts.api import Problem
from analytics import jobs
from analytics.models import JobRun
from config import jobs as table
from config import tasks

ACTOR = "scheduler"


class RunJob(api.Command):
    """Why it is run now."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)] = "Asked for over HTTP."


def _for_schedulers(method: str) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    def wrap(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @csrf_exempt
        @never_cache
        @functools.wraps(view)
        def wrapped(request: HttpRequest, **names: str) -> HttpResponse:
            try:
                _check_secret(request)
                if request.method != method:
                    raise Problem(405, "method_not_allowed", f"Use {method}.", headers={"Allow": method})
                return view(request, **names)
            except Exception as error:  # noqa: BLE001 (problem_of raises what it does not know again)
                return api.problem_of(error).response()

        return wrapped

    return wrap


@_for_schedulers("POST")
def run(request: HttpRequest, name: str) -> HttpResponse:
    """Has the job ``name`` run now. 202 with the run, 404 where there is no such job, 409 where it is off."""
    reason = api.parse(request, RunJob).reason if request.body else RunJob().reason
    try:
        job = table.named(name)
    except jobs.UnknownJob as error:
        raise Problem(404, "not_found", str(error)) from None
    if off := job.off():
        raise Problem(409, "job_is_off", off)
    asked = jobs.ask(job=job, actor=ACTOR, reason=reason, now=timezone.now())
    tasks.ring(job)
    return api.as_json({"job": job.name, **_told(asked)}, status=202)


@_for_schedulers("GET")
def standing(request: HttpRequest) -> HttpResponse:
    """How every job stands. 200 also where one is late: ``late_or_failed`` counts them."""
    found = jobs.standings(jobs=table.JOBS, now=timezone.now())
    told = [
        {
            "job": each.job.name,
            "state": each.state,
            "schedule": str(each.job.schedule),
            "last": _told(each.last) if each.last else None,
            "next_due_at": each.next.due_at if each.next else None,
            "lag_seconds": int(each.lag.total_seconds()),
            "subjects_failing": each.trouble,
            "subjects_given_up": each.given_up,
        }
        for each in found
    ]
    return api.as_json({"jobs": told, "late_or_failed": sum(each.bad for each in found)})


def _check_secret(request: HttpRequest) -> None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # All are compared, so that the time taken says nothing about which is near.
    good = [constant_time_compare(token.strip(), secret) for secret in settings.CRON_SECRETS]
    if scheme.lower() != "bearer" or not any(good):
        raise Problem(401, "invalid_key", "Jobs are run with CRON_SECRET as the bearer token.", headers={"WWW-Authenticate": "Bearer"})


def _told(run: JobRun) -> dict[str, object]:
    return {
        "run": run.pk,
        "state": run.state,
        "due_at": run.due_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "rows": run.rows,
        "attempts": run.attempts,
        "error": run.error or None,
    }
