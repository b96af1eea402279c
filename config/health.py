"""Is this process alive, and can it work? For load balancers and for the people who watch them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from celery import shared_task
from django.core.cache import cache
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from redis.exceptions import RedisError

from analytics import jobs
from pricing import catalog
from pricing.models import Entitlement

HEARTBEAT = "heartbeat"
HEARTBEAT_LATE = timedelta(minutes=3)
#: So many late jobs are named.
LATE_SHOWN = 5


@require_safe
@never_cache
def live(request: HttpRequest) -> HttpResponse:
    """200 while this process serves requests; asks nobody else."""
    return JsonResponse({"status": "ok"})


@require_safe
@never_cache
def ready(request: HttpRequest) -> HttpResponse:
    """200 when requests can be decided here: the database answers and is migrated, and what replaces limits is a number; else 503.

    A cache that is down, or a worker or a job that is late, makes it ``degraded``, still 200: charging goes on without them, and taking the
    web servers out of the balancer would help nobody.
    """
    checks = {
        "database": _database(),
        "migrations": _migrations(),
        "settings": _settings(),
        "cache": _cache(),
        "worker": _worker(timezone.now()),
        "jobs": _jobs(timezone.now()),
    }
    able = checks["database"] == checks["migrations"] == checks["settings"] == "ok"
    status = "unavailable" if not able else "ok" if set(checks.values()) == {"ok"} else "degraded"
    return JsonResponse({"status": status, "checks": checks}, status=200 if able else 503)


@shared_task(name="config.health.beat")
def beat() -> None:
    """Rung by beat each minute, run by a worker: a fresh mark means that both are alive."""
    cache.set(HEARTBEAT, timezone.now().isoformat(), timeout=24 * 60 * 60)


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    except DatabaseError as error:
        return f"down ({type(error).__name__})"
    return "ok"


def _migrations() -> str:
    try:
        executor = MigrationExecutor(connection)
        waiting = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except DatabaseError as error:
        return f"unknown ({type(error).__name__})"
    return f"{waiting} not applied" if waiting else "ok"


def _settings() -> str:
    """The environment variables that limits name: nobody on a plan could be told a limit that is no number."""
    try:
        for name in Entitlement.objects.exclude(setting="").values_list("setting", flat=True).distinct():
            catalog.overridden(limit=None, setting=name)
    except DatabaseError as error:
        return f"unknown ({type(error).__name__})"
    except catalog.InvalidSetting as error:
        return str(error)
    return "ok"


def _jobs(now: datetime) -> str:
    """The jobs whose run should be over by now."""
    try:
        names = jobs.late(now=now).filter(subject="").values_list("job", flat=True).distinct().order_by("job")[:LATE_SHOWN]
        return f"late: {', '.join(names)}" if names else "ok"
    except DatabaseError as error:
        return f"unknown ({type(error).__name__})"


def _cache() -> str:
    def answers() -> str:
        cache.get(HEARTBEAT)
        return "ok"

    return _asking_redis(answers)


def _worker(now: datetime) -> str:
    def age() -> str:
        mark = cache.get(HEARTBEAT)
        if mark is None:
            return "never seen"
        late = now - datetime.fromisoformat(mark).astimezone(UTC)
        return "ok" if late < HEARTBEAT_LATE else f"last seen {int(late.total_seconds())} s ago"

    return _asking_redis(age)


def _asking_redis(question: Callable[[], str]) -> str:
    try:
        return question()
    except (RedisError, OSError) as error:
        return f"down ({type(error).__name__})"
