from django.apps import AppConfig


class AnalyticsConfig(AppConfig):
    name = "analytics"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from analytics import model_mix, price_desk
        from pricing import margin_terms, price_inbox

        price_inbox.heed(use=price_desk.use, waiting=price_desk.waiting)
        margin_terms.observe(model_mix.observed)
