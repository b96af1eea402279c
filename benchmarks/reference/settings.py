"""A Django project that has nothing but the references."""

import os

import environ

SECRET_KEY = "bench-only-" + "0" * 50
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "mptt", "djmoney", "hordak", "benchmarks.reference"]
DATABASES = {
    "default": environ.Env.db_url_config(os.environ["DATABASE_URL"])
    | {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"pool": {"min_size": 1, "max_size": 32}}}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
HORDAK_CURRENCIES = ["USD"]
HORDAK_INTERNAL_CURRENCY = "USD"
