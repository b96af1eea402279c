"""As a developer's machine, without DEBUG, and with one more address: a view that does nothing."""

from config.settings.local import *  # noqa: F403

DEBUG = False
ROOT_URLCONF = "benchmarks.urls"
