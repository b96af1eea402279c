"""``/metrics`` in Prometheus' text format: how long requests and queries take, what caches answer, and what waits.

    measured    the middleware that times requests
    time_query  the wrapper that times what the database is asked
    metrics     the page, with ``METRICS_SECRET`` as a bearer token

Counts and histograms are of all processes of one machine where ``PROMETHEUS_MULTIPROC_DIR`` names the folder that they share; without it
each process tells its own. What waits (holds, jobs, spooled usage, alerts) is read from the database when it is asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

import structlog
from django.conf import settings
from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Min
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from accounts import api
from accounts.api import Problem
from analytics import jobs
from analytics.models import Alert, HourlyFigures
from config import jobs as table
from metering.models import OpenAuthorization, SpooledUsage

REQUESTS: Final = Histogram(
    "http_request_seconds", "How long requests took, by route and class of status.", ["route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)  # fmt: skip
QUERIES: Final = Histogram(
    "database_query_seconds", "How long the database took to answer, commits and waits for locks in it.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)  # fmt: skip
#: So many hours back the newest hourly row is looked for.
FRESH: Final = timedelta(hours=3)

log = structlog.get_logger(__name__)
_observers: dict[tuple[str, int], Callable[[float], None]] = {}


def measured(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Times every request, the middleware behind this one in it. Of a streamed answer, until it begins."""

    def middleware(request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        response = get_response(request)
        took = time.perf_counter() - begun
        match = request.resolver_match
        key = (match.route if match else "", response.status_code // 100)
        observe = _observers.get(key)
        if observe is None:
            # Looking labels up takes longer than the rest. There are as many keys as routes, times five.
            observe = _observers[key] = REQUESTS.labels(_named(key[0]), f"{key[1]}xx").observe
        observe(took)
        return response

    return middleware


def time_query(execute: Callable[..., Any], sql: Any, parameters: Any, many: bool, context: Any) -> Any:
    """What Django's ``execute_wrappers`` call around each query."""
    begun = time.perf_counter()
    try:
        return execute(sql, parameters, many, context)
    finally:
        QUERIES.observe(time.perf_counter() - begun)


def time_queries(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Has a connection's queries timed, however often it is opened anew."""
    if time_query not in connection.execute_wrappers:
        connection.execute_wrappers.append(time_query)


@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """200 with everything; 401 without the secret, also where none is set."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    good = [constant_time_compare(token.strip(), secret) for secret in settings.METRICS_SECRETS]
    if scheme.lower() != "bearer" or not any(good):
        told = Problem(401, "invalid_key", "Ask with METRICS_SECRET as the bearer token.", headers={"WWW-Authenticate": "Bearer"})
        return api.problem_of(told).response()
    counted: CollectorRegistry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        counted = CollectorRegistry()
        MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
    return HttpResponse(generate_latest(counted) + generate_latest(_WAITING), content_type=CONTENT_TYPE_LATEST)


class _Waiting(Collector):
    """What waits now, read from the database; where that is down, only that it is."""

    def collect(self) -> Iterable[GaugeMetricFamily]:
        try:
            found = list(self._read())
        except DatabaseError as error:
            log.error("metrics without the database", exc_info=error)
            found = []
        yield _gauge("database_up", "1 while the database answers.", int(bool(found)))
        yield from found

    def _read(self) -> Iterable[GaugeMetricFamily]:
        now = timezone.now()
        held = OpenAuthorization.objects.filter(state="open").aggregate(count=Count("pk"), oldest=Min("created_at"))
        yield _gauge("open_holds", "Work that was begun and not finished.", held["count"])
        age = (now - held["oldest"]).total_seconds() if held["oldest"] else 0
        yield _gauge("oldest_hold_seconds", "Since the oldest of it began.", max(age, 0))
        yield _gauge(
            "spooled_usage",
            "Uses that wait to be charged since tracking was off.",
            SpooledUsage.objects.filter(state__in=["open", "waiting"]).count(),
        )
        lag = GaugeMetricFamily("job_lag_seconds", "How late a job's next run is; 0: it is not.", labels=["job"])
        for standing in jobs.standings(jobs=table.JOBS, now=now):
            lag.add_metric([standing.job.name], max(standing.lag.total_seconds(), 0))
        yield lag
        alerts = dict(Alert.objects.exclude(state="resolved").values_list("severity").annotate(count=Count("pk")))
        open_alerts = GaugeMetricFamily("open_alerts", "Alerts that are not resolved.", labels=["severity"])
        for severity in ("warning", "critical"):
            open_alerts.add_metric([severity], alerts.get(severity, 0))
        yield open_alerts
        near = GaugeMetricFamily(
            "accounts_near_limit", "Accounts at 90 % of a limit on cost or more, in the last hour.", labels=["product"]
        )
        throttled = GaugeMetricFamily("accounts_throttled", "Accounts that may begin no work, in the last hour.", labels=["product"])
        rows = HourlyFigures.objects.filter(at__gte=now - FRESH).order_by("product_id", "-at").distinct("product_id")
        for row in rows.select_related("product"):
            near.add_metric([row.product.slug], row.near_limit)
            throttled.add_metric([row.product.slug], row.throttled)
        yield near
        yield throttled


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, says, value=value)


def _named(route: str) -> str:
    """Admin's hundreds of pages are one; what no view answered (static files, unknown addresses) another."""
    return "admin/" if route.startswith("admin/") else route or "none"


_WAITING = CollectorRegistry()
_WAITING.register(_Waiting())
