"""The test suite: real embedded servers that do not sync, production's behaviour otherwise."""

import os

from config import embedded

if "DATABASE_URL" not in os.environ or "REDIS_URL" not in os.environ:
    _servers = embedded.borrow("test", durable=False)
    os.environ.setdefault("DATABASE_URL", _servers.database_url)
    os.environ.setdefault("REDIS_URL", _servers.redis_url)
os.environ |= {
    "SECRET_KEY": "test-only-" + "0" * 50,
    "ALLOWED_HOSTS": "testserver,localhost,127.0.0.1",
    "PUBLIC_URL": "https://testserver",
    "STRIPE_SECRET_KEY": "sk_test_" + "0" * 24,
    "STRIPE_PUBLISHABLE_KEY": "",
    "STRIPE_API_HOST": "",
    "STRIPE_WEBHOOK_SECRET": "whsec_test_main",
    "STRIPE_PLAYGROUND_WEBHOOK_SECRET": "whsec_test_playground",
    "DEFAULT_PRODUCT": "",
    "PRICE_CHANGE_CAP_PERCENT": "50",
    "SENTRY_DSN": "",
    "RESEND_API_KEY": "",
    "ENCRYPTION_KEY": "",
}

from config.settings.base import *  # noqa: F403
from config.settings.base import CACHES, LOGGING, STORAGES

SECURE_SSL_REDIRECT = False
STAFF_MFA_REQUIRED = False  # tests of the staff's door switch it on
SESSION_COOKIE_NAME = "session"
SESSION_COOKIE_SECURE = False
CSRF_COOKIE_NAME = "csrf"
CSRF_COOKIE_SECURE = False
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ACCOUNT_RATE_LIMITS = {"signup": "1000/m/ip"}  # many tests sign up in a minute, all from one address
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
WHITENOISE_USE_FINDERS = True
CELERY_TASK_ALWAYS_EAGER = True
CELERY_TASK_EAGER_PROPAGATES = True
CACHES["default"]["KEY_PREFIX"] = f"test-{os.getpid()}"  # several test processes share one Valkey
LOGGING["root"]["level"] = "WARNING"
