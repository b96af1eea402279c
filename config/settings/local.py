"""A developer's machine: plain HTTP on localhost, embedded servers unless the environment names others, no secrets needed.

Without a Stripe key, `manage.py up` starts a double of Stripe; what it is asked by and sells is read from what `up` wrote down.
"""

import os

import environ

from config import embedded, local_stripe

environ.Env.read_env(embedded.BASE_DIR / ".env")
if "DATABASE_URL" not in os.environ or "REDIS_URL" not in os.environ:
    _servers = embedded.borrow("dev")
    os.environ.setdefault("DATABASE_URL", _servers.database_url)
    os.environ.setdefault("REDIS_URL", _servers.redis_url)
os.environ.setdefault("SECRET_KEY", "local-only-" + "0" * 50)
os.environ.setdefault("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
STRIPE_DOUBLE = not (os.environ.get("STRIPE_SECRET_KEY") or os.environ.get("STRIPE_API_HOST"))
if STRIPE_DOUBLE:
    os.environ |= {name: value for name, value in local_stripe.remembered().items() if not os.environ.get(name)}
if not os.environ.get("STRIPE_SECRET_KEY"):
    os.environ["STRIPE_SECRET_KEY"] = local_stripe.KEY
if not os.environ.get("PUBLIC_URL"):
    os.environ["PUBLIC_URL"] = f"http://localhost:{os.environ.get('PORT') or 8000}"
os.environ.setdefault("DEFAULT_PRODUCT", "rover")

from config.settings.base import *  # noqa: E402, F403
from config.settings.base import EMAIL_BACKEND, LOGGING, STORAGES  # noqa: E402

DEBUG = environ.Env().bool("DEBUG", default=False)
DEMO_LOG_INS = True
STAFF_MFA_REQUIRED = environ.Env().bool("STAFF_MFA_REQUIRED", default=False)  # the demo's staff have no phone
OUTBOUND_TO_LOCALHOST = True
SECURE_SSL_REDIRECT = False
SECURE_HSTS_SECONDS = 0
SESSION_COOKIE_NAME = "session"
SESSION_COOKIE_SECURE = False
CSRF_COOKIE_NAME = "csrf"
CSRF_COOKIE_SECURE = False
ACCOUNT_EMAIL_VERIFICATION = "none"
if EMAIL_BACKEND == "django.core.mail.backends.console.EmailBackend":  # no key of Resend's: each mail becomes a file
    EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
    EMAIL_FILE_PATH = embedded.BASE_DIR / "var" / "mail"
if STRIPE_DOUBLE:
    SILENCED_SYSTEM_CHECKS = ["djstripe.W002"]  # that Stripe is not asked is what is meant here, and `up` says it
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = True
LOGGING["handlers"]["stderr"]["formatter"] = "text"
