"""A product whose plans have just the limits that a test is about, with one account. Nobody else has any of it: it may be committed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from django.db import transaction

from accounts.models import Account
from billing import ledger
from billing.models import Subscription
from metering import limits, usage
from pricing import catalog
from pricing.models import CostTier, Entitlement, Guard, GuardCap, Plan, PlanVersion, Product
from tests.factories import NANOS, START, make_account, make_model, make_product

#: A price list on which an input token costs 1,000 nano-USD and nothing else costs anything: a thousand tokens are 0.001 USD.
PER_TOKEN = 1_000
#: A limit of a plan: its key, its window, how many, and its mode (hard unless told).
Term = tuple[Any, ...]


def plan_version(plan: Plan, *terms: Term, tier: dict[str, Any] | None = None, flags: dict[str, bool] | None = None) -> PlanVersion:
    """The next version of ``plan``: its terms are written once, in one transaction."""
    with transaction.atomic():
        number = plan.versions.count() + 1
        cost_tier = CostTier.objects.create(product=plan.product, slug=f"{plan.slug}-{number}", **tier) if tier is not None else None
        version = PlanVersion.objects.create(
            plan=plan, version=number, valid_from=START + timedelta(seconds=number), price_cents=100 * plan.rank - 100,
            rate_card="standard", cost_tier=cost_tier,
        )  # fmt: skip
        for key, window, limit, *mode in terms:
            Entitlement.objects.create(
                plan_version=version, key=key, kind="limit", window=window, limit=limit, mode=mode[0] if mode else "hard"
            )
        for key, enabled in (flags or {}).items():
            Entitlement.objects.create(plan_version=version, key=key, kind="flag", enabled=enabled)
    return version


def plan(product: Product, slug: str, rank: int, *terms: Term, **more: Any) -> PlanVersion:
    """A further plan of the product: a higher rank is an upgrade."""
    return plan_version(Plan.objects.create(product=product, slug=slug, name=slug.title(), rank=rank), *terms, **more)


@dataclass
class Shop:
    """One account on the plan ``free``, which has ``terms``; everything it does happens at ``now``, once that is set."""

    account: Account
    model: str
    now: datetime | None = None

    @classmethod
    def new(
        cls, *terms: Term, tier: dict[str, Any] | None = None, flags: dict[str, bool] | None = None, credit: int = 1_000, **product: Any
    ) -> Shop:
        made = make_product(**product)
        plan_version(made.plans.get(slug="free"), *terms, tier=tier, flags=flags)
        return cls(make_account(made, credit=credit), make_model(input_price=PER_TOKEN * 1_000_000, output_price=0))

    @property
    def product(self) -> Product:
        return self.account.product

    @contextmanager
    def at(self, now: datetime) -> Iterator[None]:
        """Inside, it is ``now``: for Python and for the ledger."""
        before, self.now = self.now, now
        try:
            with ledger.clock(at=now):
                yield
        finally:
            self.now = before

    def put_on(self, version: PlanVersion) -> None:
        """Another plan, in the middle of everything."""
        Subscription.objects.filter(account=self.account).update(plan_version=version)

    def guard(self, *caps: tuple[str, str, int], **policy: Any) -> Guard:
        """Puts the product under a guard with these caps: whose, of which window, and how much of the wallet's unit, in nanos."""
        made = Guard.objects.create(product=self.product, slug=f"guard-{Guard.objects.count()}", **policy)
        for kind, span, most in caps:
            GuardCap.objects.create(guard=made, kind=kind, span=span, most_nanos=most)
        self.product.guard = made.slug
        self.product.save()
        catalog.clear()
        return made

    # What it does -----------------------------------------------------------------------------------------------------------

    def authorize(self, *, tokens: int = 1, key: str = "", **ask: Any) -> usage.Authorization:
        return usage.authorize(account=self.account, ask=self.ask(tokens, **ask), key=key or str(uuid4()), now=self._now())

    def decide(self, *, tokens: int | None = None, **ask: Any) -> limits.Decision:
        return usage.decide(account=self.account, ask=None if tokens is None else self.ask(tokens, **ask), now=self._now())

    def ask(self, tokens: int, **ask: Any) -> usage.Ask:
        return usage.Ask(self.model, {"input_tokens": tokens}, **ask)

    def refusal(self, **ask: Any) -> limits.Layer | None:
        """What refuses it; None where it was authorized."""
        try:
            self.authorize(**ask)
        except usage.Refused as error:
            return error.layer
        return None

    def refused_by(self, **ask: Any) -> str | None:
        layer = self.refusal(**ask)
        return layer.name if layer else None

    def capture(self, done: usage.Authorization, *, tokens: int = 1) -> ledger.Usage:
        return usage.capture(account=self.account, authorization_id=done.usage.id, quantities={"input_tokens": tokens})

    def release(self, done: usage.Authorization) -> ledger.Usage:
        return usage.release(account=self.account, authorization_id=done.usage.id)

    def use(self, *, tokens: int = 1, **ask: Any) -> ledger.Usage:
        return self.capture(self.authorize(tokens=tokens, **ask), tokens=tokens)

    def event(self, *, tokens: int = 1, at: datetime | None = None, **event: Any) -> usage.Event:
        return usage.Event(str(uuid4()), self.account, at or self._now(), self.model, {"input_tokens": tokens}, **event)

    def record(self, *events: usage.Event) -> list[ledger.Usage]:
        answers = list(usage.record(events=events or [self.event()], now=self._now()))
        assert all(isinstance(answer, ledger.Usage) for answer in answers), answers
        return [answer for answer in answers if isinstance(answer, ledger.Usage)]

    # What its limits say -------------------------------------------------------------------------------------------------------

    def layer(self, name: str, meter: str | None = None) -> limits.Layer:
        """The layer as it is now."""
        [found] = [layer for layer in self.decide().layers if layer.name == name and meter in (None, layer.meter)]
        return found

    def used(self, name: str, meter: str | None = None) -> int:
        used = self.layer(name, meter).used
        assert used is not None
        return used

    def _now(self) -> datetime:
        return self.now or datetime.now(UTC)


def dollars(amount: str) -> int:
    """Nano-USD of a decimal string."""
    whole, _, part = amount.partition(".")
    return int(whole) * NANOS + int(part.ljust(9, "0"))
