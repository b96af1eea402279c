"""What a request is answered with that reached no view: problems below ``/api/``, pages elsewhere. Django's handler400 … handler500."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt

from accounts import faults
from accounts.api import Problem
from accounts.models import Fault


@csrf_exempt
def unknown_path(request: HttpRequest, path: str = "") -> HttpResponse:
    """The last URL below ``/api/``."""
    return Problem(404, "not_found", "There is no such path.").response()


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _of_api(request):
        return Problem(400, "invalid_request", "The request cannot be read.").response()
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _of_api(request):
        return Problem(403, "refused", "This is not allowed.").response()
    return defaults.permission_denied(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _of_api(request):
        return unknown_path(request)
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """A bug of ours. It is in the log, and counted; the caller learns nothing about it."""
    faults.note(kind=Fault.Kind.SERVER, about=f"{request.method} {request.path_info}", now=timezone.now())
    if _of_api(request):
        return Problem(500, "internal_error", "Something went wrong on our side. The same request may be sent again.").response()
    return defaults.server_error(request)


def _of_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/")
