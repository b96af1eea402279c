"""A product with its accounts and a ledger, made of the real verbs. Nothing of it is anybody else's, so it may be committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from accounts.models import Account
from billing import ledger
from metering.models import Feature, UsageModel
from pricing.models import Product, Unit

NANOS = 1_000_000_000
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@dataclass
class World:
    """One product that charges in US dollars, with two models and two features."""

    product: Product
    unit: Unit
    models: list[UsageModel]
    features: list[Feature]
    accounts: list[Account] = field(default_factory=list)

    @classmethod
    def new(cls, *, name: str = "Rover") -> World:
        unit, _ = Unit.objects.get_or_create(code="USD", defaults={"name": "US dollar"})
        mark = uuid4().hex[:10]
        product = Product.objects.create(slug=f"product-{mark}", name=name, unit=unit, default_plan="free")
        models = [UsageModel.objects.create(provider="anthropic", name=f"model-{mark}-{number}") for number in range(2)]
        features = [Feature.objects.create(product=product, slug=slug) for slug in ("chat", "search")]
        return cls(product, unit, models, features)

    def account(self, name: str = "Ada Lovelace") -> Account:
        """A new account with a ledger, without the default plan and the welcome credit."""
        account = Account.objects.create(product=self.product, external_id=uuid4().hex, name=name)
        ledger.open_account(account_id=account.pk)
        self.accounts.append(account)
        return account

    def grant(
        self, account: Account, nanos: int, *, cash_nanos: int = 0, fee_nanos: int = 0, priority: int = 10,
        expires_at: datetime | None = None,
    ) -> ledger.Operation:  # fmt: skip
        key = uuid4().hex
        return ledger.grant(
            account_id=account.pk, unit_id=self.unit.pk, amount_nanos=nanos, source="purchase", source_key=key, key=key, actor="test",
            reason="test", priority=priority, expires_at=expires_at, cash_nanos=cash_nanos, fee_nanos=fee_nanos,
        )  # fmt: skip

    def call(
        self, *, model: int = 0, feature: int | None = None, quantities: tuple[int, ...] = (100, 20), user_ref: str | None = None
    ) -> ledger.Call:
        feature_id = None if feature is None else self.features[feature].pk
        return ledger.Call(
            model_id=self.models[model].pk,
            feature_id=feature_id,
            api_key_id=None,
            rate_card_id=1,
            price_ids=[],
            quantities=quantities,
            user_ref=user_ref,
        )

    def event(
        self, account: Account, *, cost: int, price: int, value: int | None = None, at: datetime = NOON, model: int = 0,
        feature: int | None = None, key: UUID | None = None, user_ref: str | None = None,
    ) -> ledger.Event:  # fmt: skip
        return ledger.Event(
            account_id=account.pk, key=key or uuid4(), fingerprint=UUID(int=price), unit_id=self.unit.pk, event_at=at,
            call=self.call(model=model, feature=feature, user_ref=user_ref),
            charge=ledger.Charge(cost, price, price if value is None else value, 120),
        )  # fmt: skip

    def hold(self, account: Account, nanos: int, *, model: int = 0, feature: int | None = None) -> ledger.Usage:
        return ledger.hold(
            account_id=account.pk, key=uuid4(), fingerprint=UUID(int=1), refusal=None, call=self.call(model=model, feature=feature),
            unit_id=self.unit.pk, amount_nanos=nanos, cost_nanos=nanos // 2, minimum_nanos=0, remaining=[], lifetime=timedelta(minutes=15),
            hard_lifetime=timedelta(hours=1),
        )  # fmt: skip

    def capture(self, account: Account, hold: ledger.Usage, *, cost: int, price: int, overage: str = "charge") -> ledger.Usage:
        return ledger.capture(
            account_id=account.pk, authorization_id=hold.id, quantities=(100, 20), price_ids=[],
            charge=ledger.Charge(cost, price, price, 120), overage=overage,
        )  # fmt: skip

    def reverse(self, account: Account, usage: ledger.Usage) -> ledger.Operation:
        return ledger.reverse(account_id=account.pk, usage_id=usage.id, key=uuid4().hex, actor="test", reason="test")
