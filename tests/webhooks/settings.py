"""The flood's web server rings for real, at a bell of its own: nothing works events inside a request."""

import os

from config.settings.test import *  # noqa: F403
from config.settings.test import LOGGING

CELERY_TASK_ALWAYS_EAGER = False
CELERY_TASK_DEFAULT_QUEUE = f"flood-{os.environ['FLOOD']}"
LOGGING["root"]["level"] = "CRITICAL"  # of what is quarantined there is a lot
