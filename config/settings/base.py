"""Production: secure by default, every secret from the environment. ``local.py`` and ``test.py`` override what they must.

``.env.example`` says what each variable means; a test compares the two.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import environ
import structlog
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy

from config import public_url
from config.unfold import UNFOLD as UNFOLD

BASE_DIR = Path(__file__).resolve().parent.parent.parent
env = environ.Env()

for name in ("SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "REDIS_URL", "STRIPE_SECRET_KEY"):
    if not env(name):
        raise ImproperlyConfigured(f"Set the {name} environment variable: it is empty.")

# The two servers ------------------------------------------------------------------------------------------------------------

DATABASE_URL = env("DATABASE_URL")
REDIS_URL = env("REDIS_URL")

_pooled = env.bool("DB_POOL", default=True)
DATABASES: dict[str, dict[str, Any]] = {
    "default": environ.Env.db_url_config(DATABASE_URL)
    | {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": 0,  # the pool keeps connections, not the threads
        "DISABLE_SERVER_SIDE_CURSORS": True,  # PgBouncer in transaction mode
        "ATOMIC_REQUESTS": False,
        "OPTIONS": {
            "pool": {"min_size": 1, "max_size": env.int("DB_POOL_SIZE", default=16), "timeout": 5} if _pooled else False,
            "prepare_threshold": 0 if _pooled else None,  # accounts.prepared; behind PgBouncer connections are not ours to prepare on
            "connect_timeout": 5,
            "application_name": "tollgate",
            "options": " ".join(
                f"-c {name}={milliseconds}"
                for name, milliseconds in {
                    "statement_timeout": env.int("DB_STATEMENT_TIMEOUT_MS", default=30_000),
                    "lock_timeout": env.int("DB_LOCK_TIMEOUT_MS", default=10_000),
                    "idle_in_transaction_session_timeout": env.int("DB_IDLE_IN_TRANSACTION_TIMEOUT_MS", default=60_000),
                }.items()
            ),
        },
    }
}

CACHES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "tollgate",
        "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 1, "SOCKET_TIMEOUT": 1},
    }
}

CELERY_BROKER_URL = env("CELERY_BROKER_URL", default="") or REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_TIME_LIMIT = 10 * 60
CELERY_TASK_SOFT_TIME_LIMIT = 9 * 60
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 60 * 60, "socket_timeout": 10, "socket_connect_timeout": 5}
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "celery.beat:Scheduler"  # remembers nothing: what is due is in the database
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
JOBS_OUTSIDE = env.list("JOBS_OUTSIDE", default=[])
# By which other schedulers run jobs over HTTP; two while one is being changed. Empty: nobody may.
CRON_SECRETS = [secret for each in env.list("CRON_SECRET", default=[]) if (secret := each.strip())]
if any(len(secret) < 32 for secret in CRON_SECRETS):
    raise ImproperlyConfigured("CRON_SECRET is too short to be secret: 32 characters or more.")

# Where `back-up` writes to; empty: nowhere. The command that uploads a file names it as {file}.
BACKUP_FOLDER = env("BACKUP_FOLDER", default="")
BACKUP_COMMAND = env("BACKUP_COMMAND", default="")
BACKUP_KEEP_DAYS = env.int("BACKUP_KEEP_DAYS", default=30)
if BACKUP_KEEP_DAYS < 1:
    raise ImproperlyConfigured("BACKUP_KEEP_DAYS must be 1 or more.")

# The application ------------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "djstripe",
    "waffle",
    "django_structlog",
    "anymail",
    "accounts.apps.AccountsConfig",
    "pricing.apps.PricingConfig",
    "billing.apps.BillingConfig",
    "metering.apps.MeteringConfig",
    "analytics.apps.AnalyticsConfig",
    "config.apps.ConfigConfig",
]

MIDDLEWARE = [
    "config.metrics.measured",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "config.security.content_security_policy",
    "django_structlog.middlewares.RequestMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "accounts.impersonation.look",
    "accounts.acts.remember",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "accounts.staff_door.second_factor",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True
FORMAT_MODULE_PATH = "config.formats"

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

# Who may sign in ------------------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = reverse_lazy("account_login")
LOGIN_REDIRECT_URL = "/"
ACCOUNT_ADAPTER = "accounts.adapter.AccountAdapter"
ACCOUNT_FORMS = {"signup": "accounts.sign_up.SignUpForm"}
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "mandatory"
ACCOUNT_PREVENT_ENUMERATION = True
DEFAULT_PRODUCT = env("DEFAULT_PRODUCT", default="")  # the product of a sign-up whose address names none
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_TOTP_ISSUER = "Tollgate"
MFA_TOTP_TOLERANCE = 1  # a phone's clock may be half a minute off
STAFF_MFA_REQUIRED = env.bool("STAFF_MFA_REQUIRED", default=True)

# By how much one of staff alone changes a price; None: by any. See pricing/change_cap.py.
_cap = env("PRICE_CHANGE_CAP_PERCENT", default="50")
if not re.fullmatch("[0-9]{1,6}|off", _cap):
    raise ImproperlyConfigured("PRICE_CHANGE_CAP_PERCENT is a whole number from 0 to 999999, or off.")
PRICE_CHANGE_CAP_PERCENT = None if _cap == "off" else int(_cap)

# Security -------------------------------------------------------------------------------------------------------------------

SECRET_KEY = env("SECRET_KEY")
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
DEBUG = False
DEMO_LOG_INS = False  # they have a known password
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS")
# Where people reach the site: the beginning of every link in a mail.
PUBLIC_URL = public_url.origin(env("PUBLIC_URL", default="") or public_url.of_hosts(ALLOWED_HOSTS))
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

SECURE_SSL_REDIRECT = True
SECURE_REDIRECT_EXEMPT = [r"^health", r"^metrics$"]  # who watches from inside asks over plain HTTP
# Only where a proxy overwrites it: anybody else could claim to have come by HTTPS.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("BEHIND_TLS_PROXY", default=False) else None
ALLAUTH_TRUSTED_PROXY_COUNT = env.int("TRUSTED_PROXY_COUNT", default=0)
SECURE_HSTS_SECONDS = 365 * 24 * 60 * 60
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
SECURE_REFERRER_POLICY = "strict-origin-when-cross-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_NAME = "__Host-session"  # the prefix makes browsers insist on Secure, path / and no domain
SESSION_COOKIE_SECURE = True
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_NAME = "__Host-csrf"
CSRF_COOKIE_SECURE = True
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = 10
FILE_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

# API ------------------------------------------------------------------------------------------------------------------------

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.api.BearerKey"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "accounts.api.problem_handler",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,  # "format" is an unknown parameter like any other
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Tollgate",
    "DESCRIPTION": "Prepaid credits, metering and margins for AI products. Errors are RFC 9457 problems with a stable `code`.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "POSTPROCESSING_HOOKS": ["config.openapi.complete"],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

EDGE_REQUESTS_PER_MINUTE = env.int("EDGE_REQUESTS_PER_MINUTE", default=60_000)
if EDGE_REQUESTS_PER_MINUTE < 1:
    raise ImproperlyConfigured("EDGE_REQUESTS_PER_MINUTE must be 1 or more.")

# Stripe ---------------------------------------------------------------------------------------------------------------------

STRIPE_SECRET_KEY = env("STRIPE_SECRET_KEY")
if not STRIPE_SECRET_KEY.startswith(("sk_live_", "rk_live_", "sk_test_", "rk_test_")):
    raise ImproperlyConfigured("STRIPE_SECRET_KEY is no secret key: expected sk_live_…, rk_live_…, sk_test_… or rk_test_….")
STRIPE_LIVE_MODE = STRIPE_SECRET_KEY.startswith(("sk_live_", "rk_live_"))
# For a client app's own card form. Ours is Stripe's page, which needs none; but a key of the other mode is the mistake to hear of early.
STRIPE_PUBLISHABLE_KEY = env("STRIPE_PUBLISHABLE_KEY", default="")
if STRIPE_PUBLISHABLE_KEY and not STRIPE_PUBLISHABLE_KEY.startswith("pk_live_" if STRIPE_LIVE_MODE else "pk_test_"):
    raise ImproperlyConfigured("STRIPE_PUBLISHABLE_KEY is no publishable key of STRIPE_SECRET_KEY's mode, live or test.")
STRIPE_LIVE_SECRET_KEY = STRIPE_SECRET_KEY if STRIPE_LIVE_MODE else ""
STRIPE_TEST_SECRET_KEY = "" if STRIPE_LIVE_MODE else STRIPE_SECRET_KEY
STRIPE_API_VERSION = "2026-05-27.dahlia"  # unset, it would follow the SDK silently
# The signing secrets of our webhook endpoints; two of one endpoint while its secret is being changed.
# A comma too many must not make an empty one, by which anybody could sign.
STRIPE_WEBHOOK_SECRETS = [secret for each in env.list("STRIPE_WEBHOOK_SECRET", default=[]) if (secret := each.strip())]
STRIPE_PLAYGROUND_WEBHOOK_SECRETS = [
    secret for each in env.list("STRIPE_PLAYGROUND_WEBHOOK_SECRET", default=[]) if (secret := each.strip())
]
if _stripe_double := env("STRIPE_API_HOST", default=""):
    if STRIPE_LIVE_MODE:
        raise ImproperlyConfigured("STRIPE_API_HOST is for tests: the live key must not be sent anywhere but to Stripe.")
    STRIPE_API_HOST = _stripe_double
DJSTRIPE_FOREIGN_KEY_TO_FIELD = "id"
# One migration in place of upstream's, which take over a minute: docs/decisions/0002-dj-stripe-migrations.md
MIGRATION_MODULES = {"djstripe": "config.djstripe_migrations"}

# Mail -----------------------------------------------------------------------------------------------------------------------

RESEND_API_KEY = env("RESEND_API_KEY", default="")
EMAIL_BACKEND = "accounts.resend.EmailBackend" if RESEND_API_KEY else "django.core.mail.backends.console.EmailBackend"
EMAIL_TIMEOUT = 10
ANYMAIL = {"RESEND_API_KEY": RESEND_API_KEY, "REQUESTS_TIMEOUT": EMAIL_TIMEOUT}
DEFAULT_FROM_EMAIL = env("DEFAULT_FROM_EMAIL", default="Tollgate <billing@localhost>")
SERVER_EMAIL = DEFAULT_FROM_EMAIL
# Who of staff hears of alerts, on channels that name nobody themselves.
ALERT_EMAILS = [address for each in env.list("ALERT_EMAILS", default=[]) if (address := each.strip())]

# What leaves the site by itself ---------------------------------------------------------------------------------------------

#: Plain HTTP and loopback addresses for webhooks and alerts: a developer's machine alone.
OUTBOUND_TO_LOCALHOST = False
# Seals what is stored and must be read again, such as the secrets of webhooks; the first seals, all open.
ENCRYPTION_KEYS = [key for each in env.list("ENCRYPTION_KEY", default=[]) if (key := each.strip())]
for _key in ENCRYPTION_KEYS:
    try:
        Fernet(_key)
    except ValueError as error:
        raise ImproperlyConfigured("ENCRYPTION_KEY is no Fernet key: .env.example says how to make one.") from error

# Seeing what happens --------------------------------------------------------------------------------------------------------

DJANGO_STRUCTLOG_CELERY_ENABLED = True
_log_processors: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.StackInfoRenderer(),
]
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, *_log_processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
            "foreign_pre_chain": _log_processors,
        },
        "text": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processor": structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
            "foreign_pre_chain": _log_processors,
        },
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": env("LOG_LEVEL", default="INFO")},
}

# By which Prometheus reads /metrics; two while one is being changed. Empty: nobody may.
METRICS_SECRETS = [secret for each in env.list("METRICS_SECRET", default=[]) if (secret := each.strip())]
if any(len(secret) < 32 for secret in METRICS_SECRETS):
    raise ImproperlyConfigured("METRICS_SECRET is too short to be secret: 32 characters or more.")
# Where the processes of this machine keep what they count: prometheus_client reads the variable itself, and needs the folder.
if _counts := env("PROMETHEUS_MULTIPROC_DIR", default=""):
    Path(_counts).mkdir(parents=True, exist_ok=True)

SENTRY_DSN = env("SENTRY_DSN", default="")
if SENTRY_DSN:
    import sentry_sdk

    sentry_sdk.init(
        dsn=SENTRY_DSN,
        environment=env("SENTRY_ENVIRONMENT", default="production"),
        send_default_pii=False,
        include_local_variables=False,  # a frame may hold an API key
        max_request_body_size="never",
        traces_sample_rate=0.0,
    )
