"""The Content-Security-Policy header: everything from ourselves, nothing inline, no framing."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

STRICT = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self' https://checkout.stripe.com "
    "https://billing.stripe.com; frame-ancestors 'none'"
)
#: The admin's Alpine.js evaluates the expressions in its attributes, and its charts and the API pages set inline styles.
RELAXED = STRICT + "; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'"


def content_security_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: one policy for the pages of people, a wider one below ``/admin/`` and ``/api/docs``."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        relaxed = request.path.startswith(("/admin/", "/api/docs"))
        response.headers.setdefault("Content-Security-Policy", RELAXED if relaxed else STRICT)
        return response

    return middleware
