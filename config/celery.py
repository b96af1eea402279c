"""Celery, and what beat rings and when. PostgreSQL is the queue of record: a task says "look", never "this is due"."""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import setup_logging
from django_structlog.celery.steps import DjangoStructLogInitStep

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.base")

app = Celery("tollgate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["worker"].add(DjangoStructLogInitStep)

#: Only the bell: which jobs there are, and when each is due, is the table of config/jobs.py and the rows of its runs.
app.conf.beat_schedule = {
    "heartbeat": {"task": "config.health.beat", "schedule": 60.0, "options": {"expires": 60}},
    "ring-jobs": {"task": "config.tasks.ring_jobs", "schedule": 60.0, "options": {"expires": 60}},
}


@setup_logging.connect
def _keep_djangos_logging(**_: object) -> None:
    """Celery would replace the log set-up of the settings; a connected receiver stops it."""
