"""The Content-Security-Policy header: everything from ourselves, nothing inline, no framing."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

STRICT = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self' https://checkout.stripe.com https://billing.stripe.com"
)
#: The admin's Alpine.js evaluates the expressions in its attributes, and its charts and the API pages set inline styles.
RELAXED = "; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'"


def content_security_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: one policy for the pages of people, a wider one below ``/admin/`` and ``/api/docs``."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        # A form that is answered with a redirect must be allowed where it leads: to the pages of Stripe, or of its double.
        double = getattr(settings, "STRIPE_API_HOST", "")
        relaxed = RELAXED if request.path.startswith(("/admin/", "/api/docs")) else ""
        response.headers.setdefault("Content-Security-Policy", STRICT + (f" {double}" if double else "") + relaxed)
        return response

    return middleware
