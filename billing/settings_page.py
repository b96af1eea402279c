"""An account's settings: what it is called, where its mails go, when its days begin, and what its pages look like."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts import branding as dressing
from accounts import colours, forms, pages, registration
from accounts.models import Account, Brand
from billing import branding, features


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def settings(request: HttpRequest, public_id: str) -> HttpResponse:
    """Two forms, each with its own button. Plain members read; a brand is changed by teams whose plan has ``white_label``."""
    now, user = timezone.now(), pages.signed_in(request)
    with pages.tenant(request, public_id, managing=request.method == "POST") as account:
        manages = pages.manages(user, account)
        brand = Brand.objects.filter(account=account).defer("logo").first()
    feature = features.of(account=account, key=branding.FEATURE, now=now)
    white_label = feature.included and account.kind == Account.Kind.TEAM
    details = forms.DetailsForm.of(request, account=account)
    dress = forms.BrandForm.of(request, brand=brand)
    if details.is_bound and details.is_valid():
        try:
            registration.change_details(account=account, actor=user, now=now, **details.cleaned_data)
        except registration.InvalidAccount as error:
            details.add_error(error.field, str(error))
        else:
            messages.success(request, "Saved.")
            return redirect("settings", account.public_id)
    if dress.is_bound:
        if not white_label or account.closed_at:
            raise PermissionDenied("The plan of this account has no white label.")
        if dress.is_valid():
            data = dress.cleaned_data
            dressing.dress(
                account=account, colour=data["colour"], logo=data["logo"], keep_logo=not data.get("remove_logo"), actor=user, now=now
            )
            messages.success(request, "Saved. Your pages and mails look like this from now on.")
            return redirect("settings", account.public_id)
    context = {
        "manages": manages and account.closed_at is None,
        "details": details,
        "dress": dress,
        "brand": brand,
        "shades": [(name, colours.shades(brand.colour, scheme), scheme) for name, scheme in _SCHEMES] if brand and brand.colour else [],
        "feature": feature,
        "white_label": white_label,
    }
    return pages.answer(request, "accounts/settings.html", account=account, now=now, context=context)


_SCHEMES = (("Light", colours.LIGHT), ("Dark", colours.DARK))
