"""How admin looks: its name, its colours and its sidebar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse, reverse_lazy


def _may(*permissions: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perms(permissions)


def _list(title: str, icon: str, app: str, model: str) -> dict[str, Any]:
    """A link to a model's list, for those who may see it."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{app}_{model}_changelist"),
        "permission": _may(f"{app}.view_{model}"),
    }


def _page(title: str, icon: str, name: str, *permissions: str) -> dict[str, Any]:
    """A link to a page of ours, for those who have all of ``permissions``."""
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}"), "permission": _may(*permissions)}


def _group(title: str, *items: dict[str, Any]) -> dict[str, Any]:
    """Links under a heading, what is needed most on top. The documents name places as ``Group → Title``; a test holds them together."""
    return {"title": title, "separator": title != "Today", "items": list(items)}


#: Of the billing log: the rights of each of its sources.
PERMISSIONS = ("billing.view_operation", "billing.view_stripeevent", "billing.view_subscription")

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
            _group(
                "Today",
                {"title": "Dashboard", "icon": "space_dashboard", "link": reverse_lazy("admin:index")},
                _list("Alerts", "notifications", "analytics", "alert"),
                _list("Approvals", "approval", "accounts", "approval"),
                _list("Jobs", "schedule", "analytics", "jobrun"),
                _page("Reviews", "fact_check", "analytics_reviews", "analytics.view_review"),
                _page("Risk", "crisis_alert", "analytics_risk", "analytics.view_margin"),
            ),
            _group(
                "Customers",
                _list("Accounts", "account_balance_wallet", "accounts", "account"),
                _list("Users", "person", "accounts", "user"),
                _list("API keys", "key", "accounts", "apikey"),
                _list("Mails", "outgoing_mail", "accounts", "mail"),
                _list("Brands", "palette", "accounts", "brand"),
                _list("Webhook endpoints", "webhook", "accounts", "webhookendpoint"),
                _list("Webhook events", "campaign", "accounts", "webhookevent"),
                _list("Webhook deliveries", "send", "accounts", "webhookdelivery"),
            ),
            _group(
                "Usage",
                _list("Records", "bolt", "metering", "usagerecord"),
                _list("Open authorizations", "hourglass_top", "metering", "openauthorization"),
                _list("Refusals", "block", "metering", "refusal"),
                _list("Throttled accounts", "front_hand", "metering", "costthrottle"),
                _list("Guard states", "speed", "metering", "guardstate"),
                _list("Shadow limits", "visibility", "metering", "shadowrefusal"),
                _list("Spooled usage", "hourglass_bottom", "metering", "spooledusage"),
            ),
            _group(
                "Money",
                _list("Margin", "monitoring", "analytics", "margin")
                | {"active": lambda request: request.path == reverse("admin:analytics_margin_changelist")},
                _page("Revenue", "account_balance", "analytics_revenue", "analytics.view_margin"),
                _page("Growth", "trending_up", "analytics_growth", "analytics.view_margin"),
                _page("Projection", "calculate", "analytics_projection", "analytics.view_margin"),
                _page("Billing log", "history_edu", "analytics_billing_log", *PERMISSIONS),
                _list("Grants", "redeem", "billing", "grant"),
                _list("Ledger entries", "receipt_long", "analytics", "entry"),
                _list("Operations", "gavel", "billing", "operation"),
                _list("Subscriptions", "autorenew", "billing", "subscription"),
                _page("Stopped schedules", "event_busy", "billing_schedule_stopped", "billing.view_subscription"),
                _list("Agreements", "handshake", "billing", "agreement"),
                _list("Plan changes", "trending_down", "billing", "planchange"),
                _list("Price moves", "price_change", "billing", "pricemove"),
                _list("Invoices", "description", "billing", "stripeinvoice"),
                _list("Payments", "payments", "billing", "stripepayment"),
                _list("Checkouts", "shopping_cart", "billing", "checkout"),
                _list("Top-ups", "add_card", "billing", "topup"),
                _list("Top-up rules", "tune", "billing", "autotopup"),
                _list("Marketing spend", "ads_click", "analytics", "marketingspend"),
                _list("Hourly figures", "schedule", "analytics", "hourlyfigures"),
            ),
            _group(
                "Prices",
                _list("Price proposals", "rule", "pricing", "priceproposal"),
                _list("Price book", "menu_book", "pricing", "pricerow"),
                _list("Rate cards", "sell", "pricing", "ratecard"),
                _list("Plans", "workspace_premium", "pricing", "plan"),
                _list("Credit packs", "package_2", "pricing", "creditpack"),
                _page("Margin lint", "price_check", "analytics_margin_lint", "analytics.view_margin"),
                _list("Replays under a draft", "replay", "analytics", "draftreplay"),
                _list("Provider bills", "request_quote", "analytics", "providerbill"),
                _list("Products", "storefront", "pricing", "product"),
                _list("Catalog changes", "history", "pricing", "catalogchange"),
            ),
            _group(
                "Control",
                _list("Kill switches", "power_settings_new", "metering", "killswitch"),
                _list("Levers", "tune", "pricing", "lever"),
                _list("Beta cohorts", "science", "metering", "cohort"),
                _list("Feature flags", "flag", "waffle", "flag"),
                _list("Switches", "toggle_on", "waffle", "switch"),
                _list("Alert rules", "rule_settings", "analytics", "alertrule"),
                _list("Alert channels", "campaign", "analytics", "alertchannel"),
            ),
            _group(
                "System",
                _list("Stripe inbox", "inbox", "billing", "stripeevent"),
                _list("Asked of Stripe", "outbox", "billing", "striperequest"),
                _list("Stripe comparisons", "compare_arrows", "billing", "stripereconciliation"),
                _list("Alert notices", "outgoing_mail", "analytics", "alertnotice"),
                _list("Audit findings", "rule_folder", "analytics", "auditfinding"),
                _list("Audit log", "policy", "admin", "logentry"),
                _list("Checklists", "checklist", "analytics", "checklisttick"),
                _list("Staff roles", "badge", "auth", "group"),
            ),
        ],
    },
}
