from importlib import import_module

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    name = "config"
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        import_module("config.celery")  # the app that every shared task belongs to
