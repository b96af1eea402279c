"""``{% brand product account as look %}``: see :func:`billing.branding.of`. Blocks of one template ask once."""

from __future__ import annotations

from django import template
from django.template import Context

from accounts.models import Account
from billing import branding
from pricing.models import Product

register = template.Library()


@register.simple_tag(takes_context=True)
def brand(context: Context, product: Product, account: Account | None = None) -> branding.Look:
    key = f"brand:{product.pk}:{account and account.pk}"
    kept = context.render_context
    if key not in kept:
        kept[key] = branding.of(product=product, account=account)
    look: branding.Look = kept[key]
    return look
