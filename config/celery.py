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

app.conf.beat_schedule = {
    "apply-due": {"task": "billing.tasks.apply_due", "schedule": 600.0, "options": {"expires": 600}},
    "follow-members": {"task": "billing.tasks.follow_members", "schedule": 60.0, "options": {"expires": 60}},
    "follow-throttles": {"task": "metering.tasks.follow_throttles", "schedule": 60.0, "options": {"expires": 60}},
    "heartbeat": {"task": "config.health.beat", "schedule": 60.0, "options": {"expires": 60}},
    "fold-rollups": {"task": "analytics.tasks.fold_rollups", "schedule": 60.0, "options": {"expires": 60}},
    "learn-holds": {"task": "metering.tasks.learn_holds", "schedule": 60.0, "options": {"expires": 60}},
    "move-prices": {"task": "billing.tasks.move_prices", "schedule": 600.0, "options": {"expires": 600}},
    "rate-unpriced": {"task": "metering.tasks.rate_unpriced", "schedule": 600.0, "options": {"expires": 600}},
    "reconcile-stripe": {"task": "billing.tasks.reconcile_stripe", "schedule": 600.0, "options": {"expires": 600}},
    "send-mails": {"task": "accounts.tasks.send_mails", "schedule": 60.0, "options": {"expires": 60}},
    "send-stripe-requests": {"task": "billing.tasks.send_stripe_requests", "schedule": 60.0, "options": {"expires": 60}},
    "sweep-holds": {"task": "metering.tasks.sweep_holds", "schedule": 60.0, "options": {"expires": 60}},
    "take-dunning-steps": {"task": "billing.tasks.take_dunning_steps", "schedule": 60.0, "options": {"expires": 60}},
    "warn-customers": {"task": "analytics.tasks.warn_customers", "schedule": 60.0, "options": {"expires": 60}},
    "top-up": {"task": "metering.tasks.top_up", "schedule": 60.0, "options": {"expires": 60}},
    "work-stripe-inbox": {"task": "billing.tasks.work_stripe_inbox", "schedule": 60.0, "options": {"expires": 60}},
}


@setup_logging.connect
def _keep_djangos_logging(**_: object) -> None:
    """Celery would replace the log set-up of the settings; a connected receiver stops it."""
