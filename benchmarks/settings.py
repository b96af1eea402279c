"""The program as in production, over plain HTTP, and with one more address: a view that does nothing."""

import os

os.environ |= {
    "SECRET_KEY": "bench-only-" + "0" * 50,
    "ALLOWED_HOSTS": "127.0.0.1,testserver",
    "STRIPE_SECRET_KEY": "sk_test_" + "0" * 24,
    "LOG_LEVEL": "WARNING",
    "EDGE_REQUESTS_PER_MINUTE": "10000000",  # one key asks as fast as it can
    "STAFF_MFA_REQUIRED": "false",  # else every page of staff's is the way to their second factor
    "SENTRY_DSN": "",
    "RESEND_API_KEY": "",
}

from config.settings.base import *  # noqa: F403
from config.settings.base import BASE_DIR, STORAGES

ROOT_URLCONF = "benchmarks.urls"
SECURE_SSL_REDIRECT = False
SESSION_COOKIE_NAME = "session"
SESSION_COOKIE_SECURE = False
CSRF_COOKIE_NAME = "csrf"
CSRF_COOKIE_SECURE = False
STATIC_ROOT = BASE_DIR / "static"
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
