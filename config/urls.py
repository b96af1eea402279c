"""Every URL, on one page."""

from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularSwaggerSplitView

from accounts import branding, invitation_page, openings, webhook_api
from accounts import pages as account_pages
from accounts.reads import by_method
from analytics.api import MarginView
from analytics.cost_api import CostSummaryView
from analytics.projection_api import project
from billing import api as billing
from billing import keys_page, plan_pages, settings_page, shop_pages, stripe_receiver, team_page, top_up_api, top_up_pages
from billing import pages as billing_pages
from billing import selling_api as selling
from billing import widget as billing_widget
from config import errors, health, job_api, metrics, openapi
from metering import api as metering
from metering import guard_pages, limit_pages
from metering import pages as usage_pages
from metering import reads as usage

ACCOUNT = r"^a/(?P<public_id>acct_[0-9a-f]{20})/"

urlpatterns = [
    path("health", health.live, name="health"),
    path("health/ready", health.ready, name="health_ready"),
    path("metrics", metrics.metrics, name="metrics"),
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
    path("", account_pages.home, name="home"),
    re_path(ACCOUNT + "$", usage_pages.overview, name="overview"),
    re_path(ACCOUNT + "usage/$", usage_pages.usage_page, name="usage"),
    re_path(ACCOUNT + "usage/(?P<record>rec_[0-9a-f]{52})/$", usage_pages.explain, name="explain"),
    re_path(ACCOUNT + "refusals/$", limit_pages.refusals, name="refusals"),
    re_path(ACCOUNT + r"usage\.csv$", usage_pages.usage_csv, name="usage_csv"),
    re_path(ACCOUNT + "credits/$", billing_pages.credits, name="credits"),
    re_path(ACCOUNT + "statement/$", billing_pages.statement, name="statement"),
    re_path(ACCOUNT + r"statement\.csv$", billing_pages.statement_csv, name="statement_csv"),
    re_path(ACCOUNT + "widget/$", billing_widget.widget, name="widget"),
    re_path(ACCOUNT + "team/$", team_page.team, name="team"),
    re_path(ACCOUNT + "team/members/(?P<membership_id>[0-9]{1,18})/$", team_page.member, name="member"),
    re_path(ACCOUNT + "team/invitations/(?P<invitation_id>[0-9]{1,18})/$", team_page.invited, name="invited"),
    re_path(ACCOUNT + "keys/$", keys_page.api_keys_page, name="api_keys"),
    re_path(ACCOUNT + "keys/(?P<key_id>[0-9]{1,18})/$", keys_page.revoke, name="revoke_key"),
    re_path(ACCOUNT + "settings/$", settings_page.settings, name="settings"),
    re_path(r"^invitation/(?P<token>[^/]{1,200})/$", invitation_page.invitation, name="invitation"),
    re_path(r"^logo/(?P<digest>[0-9a-f]{32})$", branding.logo, name="logo"),
    re_path(r"^colour/(?P<colour>[0-9a-f]{6})\.css$", branding.stylesheet, name="colour"),
    re_path(ACCOUNT + "limit/$", limit_pages.limit, name="limit"),
    re_path(ACCOUNT + "spending/$", guard_pages.spending, name="spending"),
    re_path(ACCOUNT + "billing/$", plan_pages.billing, name="billing"),
    re_path(ACCOUNT + r"billing/plan/(?P<slug>[a-z0-9_-]{1,64})/$", plan_pages.plan, name="plan"),
    re_path(ACCOUNT + "billing/cancel/$", plan_pages.cancel, name="cancel"),
    re_path(ACCOUNT + "billing/resume/$", plan_pages.resume, name="resume"),
    re_path(ACCOUNT + "billing/portal/$", plan_pages.portal, name="portal"),
    re_path(ACCOUNT + "buy/$", shop_pages.buy, name="buy"),
    re_path(ACCOUNT + "checkout/(?P<checkout_id>co_[0-9a-f]{20})/$", shop_pages.visit, name="checkout"),
    path("pricing/<slug:product_slug>/", plan_pages.pricing, name="pricing"),
    re_path(ACCOUNT + "top-up/$", top_up_pages.top_up, name="top_up"),
    # The API
    path("api/schema", openapi.document, name="schema"),
    path("api/docs", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    path("api/v1/accounts", openings.accounts),
    path("api/v1/usage/authorize", metering.authorize),
    path("api/v1/usage/authorizations/<str:authorization>/capture", metering.capture),
    path("api/v1/usage/authorizations/<str:authorization>/release", metering.release),
    path("api/v1/usage/authorizations/<str:authorization>/extend", metering.extend),
    path("api/v1/usage/records", by_method(get=usage.Records.as_view(), post=metering.records)),
    path("api/v1/usage/records/<str:record>", usage.Record.as_view()),
    path("api/v1/usage/records/<str:record>/explain", usage.Explain.as_view()),
    path("api/v1/usage/refusals", usage.Refusals.as_view()),
    path("api/v1/usage/current", usage.Current.as_view()),
    path("api/v1/usage/history", usage.History.as_view()),
    path("api/v1/usage/limits", usage.Limits.as_view()),
    path("api/v1/usage/counters/<slug:meter>", metering.counter),
    path("api/v1/billing/balance", billing.Balance.as_view()),
    path("api/v1/billing/ledger", billing.Ledger.as_view()),
    path("api/v1/billing/subscription", billing.Subscription.as_view()),
    path("api/v1/billing/subscription/preview", selling.Preview.as_view()),
    path("api/v1/billing/subscription/change", selling.change),
    path("api/v1/billing/subscription/cancel", selling.cancel),
    path("api/v1/billing/subscription/resume", selling.resume),
    path("api/v1/billing/checkout", selling.buy),
    path("api/v1/billing/checkout/<str:checkout>", selling.Visit.as_view()),
    path("api/v1/billing/portal", selling.portal),
    path("api/v1/billing/invoices", billing.Invoices.as_view()),
    path("api/v1/billing/widget", billing_widget.mint),
    path("api/v1/billing/packs", billing.Packs.as_view()),
    path("api/v1/billing/plans", billing.Plans.as_view()),
    path("api/v1/billing/top-up", by_method(get=top_up_api.AutoTopUpView.as_view(), post=top_up_api.choose)),
    path("api/v1/webhooks/endpoints", by_method(get=webhook_api.Endpoints.as_view(), post=webhook_api.register)),
    path("api/v1/webhooks/endpoints/<str:endpoint>", webhook_api.Endpoint.as_view()),
    path("api/v1/webhooks/endpoints/<str:endpoint>/rotate", webhook_api.rotate),
    path("api/v1/webhooks/endpoints/<str:endpoint>/test", webhook_api.send_test),
    path("api/v1/admin/margin", MarginView.as_view()),
    path("api/v1/admin/cost-analytics/summary", CostSummaryView.as_view()),
    path("api/v1/admin/projections", project),
    # Schedulers and monitors, with CRON_SECRET
    path("api/v1/admin/jobs", job_api.standing),
    path("api/v1/admin/jobs/<str:name>", job_api.run),
    path("api/v1/playground/credits/cron/reset", job_api.run, {"name": "reset-credits"}),
    path("api/v1/playground/credits/cron/expire", job_api.run, {"name": "expire-rollovers"}),
    # The source documents' own paths
    path("api/balance", billing.ChatBalance.as_view()),
    path("api/v1/playground/subscribe", selling.subscribe_alias),
    path("api/v1/playground/credits/purchase", selling.purchase_alias),
    path("api/health/pricing", billing.PricingHealth.as_view()),
    # Where Stripe sends events to: each path with the signing secret of its own endpoint
    path("api/v1/billing/webhook", stripe_receiver.receive, {"secrets": "STRIPE_WEBHOOK_SECRETS"}),
    path("api/auth/stripe/webhook", stripe_receiver.receive, {"secrets": "STRIPE_WEBHOOK_SECRETS"}),
    path("api/v1/playground/webhooks/stripe/credits", stripe_receiver.receive, {"secrets": "STRIPE_PLAYGROUND_WEBHOOK_SECRETS"}),
    path("api/<path:path>", errors.unknown_path),
]

handler400 = errors.bad_request
handler403 = errors.permission_denied
handler404 = errors.page_not_found
handler500 = errors.server_error
