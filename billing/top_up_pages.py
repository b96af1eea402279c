"""The page of automatic top-ups: what is chosen, what it did, and why it did not."""

from __future__ import annotations

import re
from typing import Any, Final

import stripe
from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts import pages
from accounts.models import Account
from billing import stripe_api, top_up_api, top_ups
from billing.models import AutoTopUp, CardDecline, TopUp
from pricing import catalog, words
from pricing.models import CreditPack

SHOWN: Final = 50
#: A page waits no longer than this to learn which card is saved.
PATIENCE_SECONDS: Final = 3.0
_AMOUNT = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?", re.ASCII)


def decimal_units(text: str, *, digits: int) -> int:
    """``12.5`` in 10⁻ᵈⁱᵍⁱᵗˢ, exactly. :raises ValueError: anything but a plain number with at most so many digits after the point."""
    found = _AMOUNT.fullmatch(text.strip())
    if not found or len(found[2] or "") > digits:
        raise ValueError(f"Write a number such as 12{'.50' if digits else ''}.")
    return int(found[1] + (found[2] or "").ljust(digits, "0"))


class _Decimal(forms.CharField):
    def __init__(self, *, digits: int, **kwargs: Any) -> None:
        self.digits = digits
        super().__init__(max_length=20, widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}), **kwargs)

    def clean(self, value: Any) -> int:
        try:
            return decimal_units(super().clean(value), digits=self.digits)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None


class TopUpForm(forms.Form):
    """What a customer chooses. The threshold is in the product's unit, the cap in dollars."""

    threshold = _Decimal(digits=9, label="When less is left than")
    pack = forms.ChoiceField(label="Buy")
    daily_cap = _Decimal(digits=2, label="Never charge more a day than, in US dollars", help_text="A day begins at midnight UTC.")

    def __init__(self, *args: Any, packs: list[CreditPack], unit: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sold = [(pack.slug, f"{pack.name}, {words.money(pack.price_cents, currency=pack.currency)} each") for pack in packs]
        self.fields["pack"].choices = sold  # type: ignore[attr-defined]
        self.fields["threshold"].help_text = f"In {unit}. As many packs are bought as bring you above it."


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def top_up(request: HttpRequest, public_id: str) -> HttpResponse:
    """POST with ``act``: ``show`` what would be turned on, ``on``, ``off``, or ``retry`` a card that was declined."""
    now = timezone.now()
    posted = request.method == "POST"
    with pages.tenant(request, public_id, managing=posted) as account:
        rule = AutoTopUp.objects.filter(account=account).first()
        rows = list(TopUp.objects.filter(account=account).order_by("-created_at").defer(*top_up_api.HIDDEN)[:SHOWN])
        manages = pages.manages(pages.signed_in(request), account)
    account.product = catalog.product_by_id(product_id=account.product_id)
    packs = [pack for pack in catalog.packs(product_id=account.product_id, at=now) if pack.stripe_price_setting]
    form = TopUpForm(_said(request) if posted else None, packs=packs, unit=account.product.unit.name + "s", initial=_initial(rule, packs))
    preview = None
    match request.POST.get("act") if posted else None:
        case "off" if rule is not None:
            _choose(request, account, rule.threshold_nanos, rule.pack, rule.daily_cap_cents, enabled=False)
            messages.success(request, "Automatic top-up is off. What is under way is still finished.")
            return HttpResponseRedirect(reverse("top_up", args=[public_id]))
        case "retry":
            top_ups.try_again(account=account, now=now)
            messages.success(request, "Your card is tried again at the next top-up.")
            return HttpResponseRedirect(reverse("top_up", args=[public_id]))
        case "on" if form.is_valid():
            said = form.cleaned_data
            try:
                _choose(request, account, said["threshold"], said["pack"], said["daily_cap"], enabled=True)
            except top_ups.InvalidTopUp as error:
                form.add_error(error.field if error.field in form.fields else None, str(error))
            except stripe.StripeError:
                form.add_error(None, "The payment provider does not answer. Nothing has changed; try again in a moment.")
            else:
                messages.success(request, "Automatic top-up is on.")
                return HttpResponseRedirect(reverse("top_up", args=[public_id]))
        case "show" if form.is_valid():
            preview = next(pack for pack in packs if pack.slug == form.cleaned_data["pack"])
    card, known = _card(account)
    unit = account.product.unit
    names = {pack.pk: pack.name for pack in CreditPack.objects.filter(pk__in={row.pack_id for row in rows if row.pack_id})}
    funds = top_ups.funds(account, now=now)
    chosen = next((pack for pack in packs if rule and pack.slug == rule.pack), None)
    due = 0
    if preview is not None:
        said = form.cleaned_data
        copies = top_ups.wanted(funds_nanos=funds, threshold_nanos=said["threshold"], credit_nanos=preview.credit_nanos)
        spent = top_ups.spent_cents(account, now=now)
        due = preview.price_cents * top_ups.affordable(
            copies=copies, price_cents=preview.price_cents, spent_cents=spent, cap_cents=said["daily_cap"]
        )
    context = {
        "declined": CardDecline.objects.filter(account=account, fingerprint=card.fingerprint, declines__gt=0).first() if card else None,
        "rule": rule,
        "chosen": chosen,
        "rows": [(row, names.get(row.pack_id or 0, "")) for row in rows],
        "form": form,
        "preview": preview,
        "due_cents": due,
        "card": card,
        "card_known": known,
        "manages": manages,
        "unit": unit,
        "funds": funds,
        "packs": packs,
        "spent_cents": top_ups.spent_cents(account, now=now),
    }
    return pages.render(request, "billing/top_up.html", account=account, now=now, context=context)


def _said(request: HttpRequest) -> Any:
    return request.POST if request.POST.get("act") in ("show", "on", "edit") else None


def _initial(rule: AutoTopUp | None, packs: list[CreditPack]) -> dict[str, str]:
    if rule is None:
        cheapest = packs[0].price_cents if packs else 0
        return {"daily_cap": top_ups.dollars(5 * cheapest).removeprefix("$") if cheapest else ""}
    whole, part = divmod(rule.threshold_nanos, 1_000_000_000)
    threshold = f"{whole}.{part:09}".rstrip("0").rstrip(".")
    return {"threshold": threshold, "pack": rule.pack, "daily_cap": top_ups.dollars(rule.daily_cap_cents).removeprefix("$")}


def _choose(request: HttpRequest, account: Account, threshold: int, pack: str, cap: int, *, enabled: bool) -> None:
    top_ups.choose(
        account=account, enabled=enabled, threshold_nanos=threshold, pack=pack, daily_cap_cents=cap,
        actor=pages.signed_in(request).email, now=timezone.now(),
    )  # fmt: skip


def _card(account: Account) -> tuple[stripe_api.Card | None, bool]:
    """The saved card, and whether that is known."""
    try:
        with stripe_api.within(PATIENCE_SECONDS):
            return top_ups.card_of(account), True
    except stripe.StripeError:
        return None, False
