"""The statement: every movement of an account's credits, with the balance after each."""

from __future__ import annotations

from typing import Final

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import pages
from accounts.templatetags import amounts
from billing.models import Grant, LedgerEntry, Wallet
from pricing.models import Unit

PAGE_SIZE: Final = 50


@require_safe
@never_cache
@login_required
def statement(request: HttpRequest, public_id: str) -> HttpResponse:
    """``?page=2`` are the 51st to 100th latest; ``?unit=`` names the wallet where there are several. Entries number themselves without
    a gap, so no page counts rows.
    """
    now = timezone.now()
    number = page_number(request)
    with pages.tenant(request, public_id) as account:
        wallets = list(Wallet.objects.filter(account=account).order_by("unit_id"))
        units = {unit.code: unit for unit in Unit.objects.filter(pk__in=[wallet.unit_id for wallet in wallets])}
        code = request.GET.get("unit", next(iter(units), ""))
        wallet = next((wallet for wallet in wallets if code in units and wallet.unit_id == units[code].pk), None)
        if wallet is None and (wallets or "unit" in request.GET):
            raise Http404("There is no such wallet.")
        newest = (wallet.seq if wallet else 0) - (number - 1) * PAGE_SIZE
        if newest <= 0 and number > 1:
            raise Http404("The statement has no such page.")
        entries = (
            list(
                LedgerEntry.objects.filter(account=account, unit_id=wallet.unit_id, seq__lte=newest, seq__gt=newest - PAGE_SIZE).defer(
                    "fee_nanos"
                )
            )
            if wallet
            else []
        )
        sources = dict(Grant.objects.filter(account=account, pk__in={entry.grant_id for entry in entries}).values_list("pk", "source"))
    return pages.render(
        request,
        "billing/statement.html",
        account=account,
        now=now,
        context={
            "wallet": wallet,
            "unit": units.get(code),
            "units": list(units.values()) if len(units) > 1 else [],
            "rows": [(entry, sources.get(entry.grant_id or 0, "")) for entry in entries],
            "digits": amounts.sub_digits([value for entry in entries for value in (entry.amount, entry.balance_after)]),
            "number": number,
            "last": max(1, -(-(wallet.seq if wallet else 0) // PAGE_SIZE)),
        },
    )


def page_number(request: HttpRequest) -> int:
    """``?page=``, from 1. :raises Http404: anything but a whole number of up to nine digits."""
    text = request.GET.get("page", "1")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise Http404("There is no such page.")
    return int(text)
