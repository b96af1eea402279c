"""How admin looks: its name, its colours and its sidebar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse, reverse_lazy


def _may(permission: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perm(permission)


def _list(title: str, icon: str, app: str, model: str) -> dict[str, Any]:
    """A link to a model's list, for those who may see it."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{app}_{model}_changelist"),
        "permission": _may(f"{app}.view_{model}"),
    }


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Tollgate",
    "SITE_HEADER": "Tollgate",
    "SITE_SYMBOL": "toll",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("favicon.svg")}],
    "SHOW_VIEW_ON_SITE": False,
    "STYLES": [lambda request: static("analytics/admin.css")],
    "DASHBOARD_CALLBACK": "analytics.dashboard.context",
    "COLORS": {
        "primary": {
            "50": "oklch(97.5% .014 200)",
            "100": "oklch(94.5% .032 200)",
            "200": "oklch(89% .06 200)",
            "300": "oklch(81% .09 202)",
            "400": "oklch(71% .105 204)",
            "500": "oklch(60% .1 208)",
            "600": "oklch(51% .09 212)",
            "700": "oklch(44% .078 214)",
            "800": "oklch(37% .064 216)",
            "900": "oklch(31% .05 218)",
            "950": "oklch(22% .04 220)",
        },
    },
    "SIDEBAR": {
        "show_search": False,
        "command_search": True,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    {"title": "Dashboard", "icon": "space_dashboard", "link": reverse_lazy("admin:index")},
                    _list("Margin", "monitoring", "analytics", "margin")
                    | {"active": lambda request: request.path == reverse("admin:analytics_margin_changelist")},
                    {
                        "title": "Revenue",
                        "icon": "account_balance",
                        "link": reverse_lazy("admin:analytics_revenue"),
                        "permission": _may("analytics.view_margin"),
                    },
                    {
                        "title": "Risk",
                        "icon": "crisis_alert",
                        "link": reverse_lazy("admin:analytics_risk"),
                        "permission": _may("analytics.view_margin"),
                    },
                    {
                        "title": "Growth",
                        "icon": "trending_up",
                        "link": reverse_lazy("admin:analytics_growth"),
                        "permission": _may("analytics.view_margin"),
                    },
                    {
                        "title": "Reviews",
                        "icon": "fact_check",
                        "link": reverse_lazy("admin:analytics_reviews"),
                        "permission": _may("analytics.view_review"),
                    },
                    {
                        "title": "Projection",
                        "icon": "calculate",
                        "link": reverse_lazy("admin:analytics_projection"),
                        "permission": _may("analytics.view_margin"),
                    },
                    {
                        "title": "Margin lint",
                        "icon": "price_check",
                        "link": reverse_lazy("admin:analytics_margin_lint"),
                        "permission": _may("analytics.view_margin"),
                    },
                    _list("Alerts", "notifications", "analytics", "alert"),
                ],
            },
            {
                "title": "Customers",
                "separator": True,
                "items": [
                    _list("Accounts", "account_balance_wallet", "accounts", "account"),
                    _list("Users", "person", "accounts", "user"),
                    _list("API keys", "key", "accounts", "apikey"),
                    _list("Brands", "palette", "accounts", "brand"),
                    _list("Mails", "outgoing_mail", "accounts", "mail"),
                    _list("Webhook endpoints", "webhook", "accounts", "webhookendpoint"),
                    _list("Webhook events", "campaign", "accounts", "webhookevent"),
                    _list("Webhook deliveries", "send", "accounts", "webhookdelivery"),
                ],
            },
            {
                "title": "Money",
                "separator": True,
                "items": [
                    _list("Grants", "redeem", "billing", "grant"),
                    _list("Ledger entries", "receipt_long", "analytics", "entry"),
                    _list("Operations", "gavel", "billing", "operation"),
                    _list("Subscriptions", "autorenew", "billing", "subscription"),
                    {
                        "title": "Stopped schedules",
                        "icon": "event_busy",
                        "link": reverse_lazy("admin:billing_schedule_stopped"),
                        "permission": _may("billing.view_subscription"),
                    },
                    _list("Invoices", "description", "billing", "stripeinvoice"),
                    _list("Payments", "payments", "billing", "stripepayment"),
                    _list("Checkouts", "shopping_cart", "billing", "checkout"),
                    _list("Top-ups", "add_card", "billing", "topup"),
                    _list("Top-up rules", "tune", "billing", "autotopup"),
                    _list("Agreements", "handshake", "billing", "agreement"),
                    _list("Price moves", "price_change", "billing", "pricemove"),
                    _list("Plan changes", "trending_down", "billing", "planchange"),
                    _list("Stripe inbox", "inbox", "billing", "stripeevent"),
                    _list("Asked of Stripe", "outbox", "billing", "striperequest"),
                    _list("Stripe comparisons", "compare_arrows", "billing", "stripereconciliation"),
                ],
            },
            {
                "title": "Usage",
                "separator": True,
                "items": [
                    _list("Records", "bolt", "metering", "usagerecord"),
                    _list("Open authorizations", "hourglass_top", "metering", "openauthorization"),
                    _list("Throttled accounts", "front_hand", "metering", "costthrottle"),
                    _list("Refusals", "block", "metering", "refusal"),
                    _list("Shadow limits", "visibility", "metering", "shadowrefusal"),
                    _list("Levers", "tune", "pricing", "lever"),
                    _list("Kill switches", "power_settings_new", "metering", "killswitch"),
                    _list("Guard states", "speed", "metering", "guardstate"),
                    _list("Spooled usage", "hourglass_bottom", "metering", "spooledusage"),
                ],
            },
            {
                "title": "Catalog",
                "separator": True,
                "items": [
                    _list("Products", "storefront", "pricing", "product"),
                    _list("Plans", "workspace_premium", "pricing", "plan"),
                    _list("Credit packs", "package_2", "pricing", "creditpack"),
                    _list("Rate cards", "sell", "pricing", "ratecard"),
                    _list("Price book", "menu_book", "pricing", "pricerow"),
                    _list("Price proposals", "rule", "pricing", "priceproposal"),
                    _list("Replays under a draft", "replay", "analytics", "draftreplay"),
                    _list("Catalog changes", "history", "pricing", "catalogchange"),
                ],
            },
            {
                "title": "System",
                "separator": True,
                "items": [
                    _list("Approvals", "approval", "accounts", "approval"),
                    _list("Jobs", "schedule", "analytics", "jobrun"),
                    _list("Audit findings", "rule_folder", "analytics", "auditfinding"),
                    _list("Alert rules", "rule_settings", "analytics", "alertrule"),
                    _list("Alert channels", "campaign", "analytics", "alertchannel"),
                    _list("Alert notices", "outgoing_mail", "analytics", "alertnotice"),
                    _list("Hourly figures", "schedule", "analytics", "hourlyfigures"),
                    _list("Marketing spend", "ads_click", "analytics", "marketingspend"),
                    _list("Provider bills", "request_quote", "analytics", "providerbill"),
                    _list("Checklists", "checklist", "analytics", "checklisttick"),
                    _list("Staff roles", "badge", "auth", "group"),
                    _list("Audit log", "policy", "admin", "logentry"),
                    _list("Feature flags", "flag", "waffle", "flag"),
                    _list("Switches", "toggle_on", "waffle", "switch"),
                ],
            },
        ],
    },
}
