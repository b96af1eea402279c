from importlib import import_module

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class ConfigConfig(AppConfig):
    name = "config"
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        import_module("config.celery")  # the app that every shared task belongs to
        connection_created.connect(import_module("config.metrics").time_queries)
