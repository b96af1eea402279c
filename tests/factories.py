"""Rows that tests of several apps need: a product with a plan, a rate card and a priced model, and accounts of it.

Names are unique, so that tests which commit never meet.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from psycopg.types.range import Range

from accounts import api_keys, registration
from accounts.models import Account, ApiKey
from billing import ledger
from pricing.models import Entitlement, Plan, PlanVersion, PriceRow, Product, RateCard, Unit

START = datetime(2026, 1, 1, tzinfo=UTC)
NANOS = 1_000_000_000


def make_model(*, provider: str = "acme", input_price: int = 3_000_000_000, output_price: int = 15_000_000_000, **components: int) -> str:
    """A priced upstream model of ``provider``; prices are nano-USD per 1,000,000 tokens."""
    name = f"model-{secrets.token_hex(4)}"
    for component, price in {"input_tokens": input_price, "output_tokens": output_price, **components}.items():
        PriceRow.objects.create(
            provider=provider, model=name, component=component, price_nanos=price, valid=Range(START, None), source="test"
        )
    return f"{provider}:{name}"


def make_product(
    *, mode: str = "markup", flags: dict[str, bool] | None = None, request_tokens: int | None = None, **fields: Any
) -> Product:
    """A product in USD with a free plan ``free`` and a rate card ``standard`` (50 % markup unless ``mode`` says otherwise)."""
    usd, _ = Unit.objects.get_or_create(code="USD", defaults={"name": "US dollar"})
    card = {
        key: fields.pop(key)
        for key in list(fields)
        if key in {"markup_ppm", "tokens_per_credit", "default_multiplier_ppm", "quantum_nanos", "minimum_nanos"}
    }
    slug = f"product-{secrets.token_hex(4)}"
    product = Product.objects.create(slug=slug, name=slug.title(), unit=fields.pop("unit", usd), default_plan="free", **fields)
    plan = Plan.objects.create(product=product, slug="free", name="Free", rank=1)
    version = PlanVersion.objects.create(plan=plan, valid_from=START, price_cents=0, rate_card="standard")
    for key, enabled in (flags or {}).items():
        Entitlement.objects.create(plan_version=version, key=key, kind="flag", enabled=enabled)
    if request_tokens is not None:
        Entitlement.objects.create(plan_version=version, key="request_tokens", kind="limit", window="request", limit=request_tokens)
    RateCard.objects.create(
        product=product, slug="standard", valid_from=START, mode=mode, **({"markup_ppm": 500_000} if mode == "markup" else {}) | card
    )
    return product


def make_account(product: Product | None = None, *, credit: int = 0, **fields: Any) -> Account:
    """An account of ``product`` with ``credit`` whole units, paid for at face value."""
    product = product or make_product()
    account = registration.open_account(
        product=product,
        external_id=fields.pop("external_id", f"customer-{secrets.token_hex(4)}"),
        name="Ada",
        now=datetime.now(UTC),
        **fields,
    )
    if credit:
        give(account, credit * NANOS)
    return account


def give(account: Account, nanos: int, *, source: str = "purchased", priority: int = 30, **fields: Any) -> ledger.Operation:
    """Grants ``nanos`` of the product's unit."""
    key = secrets.token_hex(8)
    terms: dict[str, Any] = {"cash_nanos": nanos, "fee_nanos": 0, "source_key": key} | fields
    return ledger.grant(
        account_id=account.pk, unit_id=account.product.unit_id, amount_nanos=nanos, source=source, key=key, actor="test", reason="test",
        priority=priority, **terms,
    )  # fmt: skip


def make_key(product: Product, *, account: Account | None = None, scopes: list[str] | None = None) -> str:
    """A bearer token with every scope that such a key may have."""
    every = [scope for scope in ApiKey.Scope.values if account is None or scope != ApiKey.Scope.ADMIN_READ]
    return api_keys.issue(product=product, account=account, name="test", scopes=scopes or every, now=datetime.now(UTC)).token
