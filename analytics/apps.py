from django.apps import AppConfig


class AnalyticsConfig(AppConfig):
    name = "analytics"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from analytics import model_mix
        from pricing import margin_terms

        margin_terms.observe(model_mix.observed)
