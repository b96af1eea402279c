"""What an account has and owes, what it is on, and what is for sale: the GET endpoints of billing.

Balance, Ledger, Subscription, Invoices   an account's own
Packs, Plans                              the public catalogue of the key's product
ChatBalance, PricingHealth                two paths and shapes that a source document fixes
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import structlog
from django.conf import settings
from django.db import DatabaseError
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from pydantic import Field
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import api, reads, tenancy
from accounts.models import Account, User
from billing import balances, models, stripe_invoices, subscriptions
from pricing import catalog
from pricing.models import CreditPack, PriceRow, Product, Unit

MAX_GRANTS = 100
MAX_SEQ = 2**63 - 1
log = structlog.get_logger(__name__)


class GrantAnswer(reads.Answer):
    """What is left of one grant; ``expires_at`` null = never; ``id`` null = due by now, and written by the next operation."""

    id: int | None
    source: str
    granted: reads.Amount
    remaining: reads.Amount
    starts_at: datetime
    expires_at: datetime | None


class BalanceAnswer(reads.Answer):
    """``available`` is what can be spent: ``balance`` less what is held for work under way. ``grants`` in the order in which they burn."""

    account: str
    unit: str
    balance: reads.Amount
    held: reads.Amount
    available: reads.Amount
    debt: reads.Amount
    grants: list[GrantAnswer]


class Balance(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="balance", parameters=reads.parameters(reads.OfAccount), responses=BalanceAnswer)
    def get(self, request: Request) -> Response:
        """The account's credits now, and the grants that they are in."""
        account = self.account(request, self.asked(request, reads.OfAccount))
        unit = catalog.product_by_id(product_id=account.product_id).unit
        with tenancy.acting_as(account=account):
            balance = _balance(account, unit, timezone.now())
        return BalanceAnswer(
            account=account.public_id,
            unit=unit.code,
            balance=balance.balance,
            held=balance.held,
            available=balance.available,
            debt=balance.debt,
            grants=[
                GrantAnswer(
                    id=lot.id,
                    source=lot.source,
                    granted=lot.granted,
                    remaining=lot.remaining,
                    starts_at=lot.starts_at,
                    expires_at=lot.ends_at,
                )
                for lot in balance.lots[:MAX_GRANTS]
            ],
        ).response()


def _balance(account: Account, unit: Unit, now: datetime) -> balances.Balance:
    """The account's wallet in ``unit``; an empty one if nothing ever came in."""
    nothing = balances.Balance(unit_id=unit.pk, balance=0, held=0, debt=0, seq=0, lots=())
    return next((balance for balance in balances.of_account(account, now=now) if balance.unit_id == unit.pk), nothing)


class EntryAnswer(reads.Answer):
    """One movement. ``amount`` moves the balance, ``debt_change`` the debt; ``usage`` is the usage record that caused it."""

    seq: int
    kind: models.LedgerEntry.Kind
    amount: reads.Amount
    debt_change: reads.Amount
    balance_after: reads.Amount
    debt_after: reads.Amount
    grant: int | None
    usage: str | None
    effective_at: datetime
    recorded_at: datetime


class LedgerAnswer(reads.Answer):
    """A page of the statement. ``next_cursor`` null = the last page."""

    account: str
    unit: str
    items: list[EntryAnswer]
    next_cursor: int | None


class LedgerQuery(reads.Page):
    cursor: Annotated[reads.Number, Field(ge=1, le=MAX_SEQ)] | None = Field(None, description="`next_cursor` of the page before.")


class Ledger(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="ledger", parameters=reads.parameters(LedgerQuery), responses=LedgerAnswer)
    def get(self, request: Request) -> Response:
        """The account's statement: every movement of its credits, the newest first."""
        query = self.asked(request, LedgerQuery)
        account = self.account(request, query)
        entries = models.LedgerEntry.objects.filter(account_id=account.pk, unit_id=account.product.unit_id)
        if query.cursor is not None:
            entries = entries.filter(seq__lt=query.cursor)
        with tenancy.acting_as(account=account):
            found = list(entries.defer("fee_nanos").order_by("-seq")[: query.limit + 1])
        page = found[: query.limit]
        return LedgerAnswer(
            account=account.public_id,
            unit=catalog.product_by_id(product_id=account.product_id).unit.code,
            items=[
                EntryAnswer(
                    seq=entry.seq,
                    kind=models.LedgerEntry.Kind(entry.kind),
                    amount=entry.amount,
                    debt_change=entry.debt_delta,
                    balance_after=entry.balance_after,
                    debt_after=entry.debt_after,
                    grant=entry.grant_id,
                    usage=None if entry.usage_id is None else record_id(account, entry.usage_id),
                    effective_at=entry.effective_at,
                    recorded_at=entry.recorded_at,
                )
                for entry in page
            ],
            next_cursor=page[-1].seq if len(found) > query.limit else None,
        ).response()


def record_id(account: Account, id_: UUID) -> str:
    """The usage record's public id, as metering writes it."""
    return f"rec_{account.public_id.removeprefix('acct_')}{id_.hex}"


class LimitTerms(reads.Answer):
    """``limit`` null = no limit, 0 = nothing allowed."""

    key: str
    window: str
    limit: int | None


class PlanAnswer(reads.Answer):
    """A plan's terms. ``price`` null = agreed per customer; ``included_credits`` come with each paid period."""

    slug: str
    name: str
    version: int
    price: str | None
    currency: str
    interval: str
    per_seat: bool
    trial_days: int
    included_credits: reads.Amount
    unit: str
    features: dict[str, bool]
    texts: dict[str, str]
    limits: list[LimitTerms]


class PlansAnswer(reads.Answer):
    items: list[PlanAnswer]


class PeriodAnswer(reads.Answer):
    """From ``start``, inclusive, to ``end``, exclusive."""

    start: datetime
    end: datetime


class SubscriptionTerms(reads.Answer):
    """``grace_ends_at``: while it is ``past_due``, when it ends unless it is paid."""

    status: models.Subscription.Status
    plan: PlanAnswer
    current_period: PeriodAnswer
    cancel_at_period_end: bool
    started_at: datetime
    grace_ends_at: datetime | None


class SubscriptionAnswer(reads.Answer):
    """``subscription`` null = on no plan."""

    account: str
    subscription: SubscriptionTerms | None


class Subscription(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="subscription", parameters=reads.parameters(reads.OfAccount), responses=SubscriptionAnswer)
    def get(self, request: Request) -> Response:
        """The plan that the account is on, with the terms that it subscribed to."""
        account = self.account(request, self.asked(request, reads.OfAccount))
        with tenancy.acting_as(account=account):
            live = models.Subscription.objects.filter(account_id=account.pk).exclude(status=models.Subscription.Status.CANCELED).first()
        product = catalog.product_by_id(product_id=account.product_id)
        if live is None:
            return SubscriptionAnswer(account=account.public_id, subscription=None).response()
        plan = catalog.plan_version_by_id(plan_version_id=live.plan_version_id)
        stored = (live.current_period_start, live.current_period_end)
        start, end = subscriptions.running(period=stored, anchor_at=live.anchor_at, version=plan.version, at=timezone.now())
        terms = SubscriptionTerms(
            status=models.Subscription.Status(live.status),
            plan=_plan(plan, product),
            current_period=PeriodAnswer(start=start, end=end),
            cancel_at_period_end=live.cancel_at_period_end,
            started_at=live.started_at,
            grace_ends_at=live.grace_ends_at,
        )
        return SubscriptionAnswer(account=account.public_id, subscription=terms).response()


class InvoiceAnswer(reads.Answer):
    """An invoice, or the receipt of a payment without one. ``total`` includes ``tax``; ``refunded`` is of a receipt alone, ``tax`` and
    ``period`` of an invoice. ``url`` is its page at Stripe."""

    kind: Literal["invoice", "receipt"]
    id: str
    number: str | None
    status: str
    description: str
    currency: str
    total: str
    tax: str | None
    refunded: str | None
    created_at: datetime
    period: PeriodAnswer | None
    url: str | None
    pdf_url: str | None


class InvoicesAnswer(reads.Answer):
    """A page of the list. ``next_cursor`` null = the last page."""

    account: str
    items: list[InvoiceAnswer]
    next_cursor: str | None


class InvoicesQuery(reads.Page):
    cursor: Annotated[str, Field(pattern=r"^[0-9]{1,11}-[A-Za-z0-9_]{1,64}$")] | None = Field(
        None, description="`next_cursor` of the page before."
    )


class Invoices(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="invoices", parameters=reads.parameters(InvoicesQuery), responses=InvoicesAnswer)
    def get(self, request: Request) -> Response:
        """What the account was invoiced and what it paid without an invoice, the newest first, with the pages at Stripe."""
        query = self.asked(request, InvoicesQuery)
        account = self.account(request, query)
        before = None
        if query.cursor is not None:
            seconds, _, id_ = query.cursor.partition("-")
            before = datetime.fromtimestamp(int(seconds), tz=UTC), id_
        with tenancy.acting_as(account=account):
            found = stripe_invoices.documents(account=account, limit=query.limit + 1, before=before)
        page = found[: query.limit]
        return InvoicesAnswer(
            account=account.public_id,
            items=[_document(each) for each in page],
            next_cursor=f"{int(page[-1].created_at.timestamp())}-{page[-1].id}" if len(found) > query.limit else None,
        ).response()


def _document(found: stripe_invoices.Document) -> InvoiceAnswer:
    is_invoice = found.kind == "invoice"
    return InvoiceAnswer(
        kind=found.kind,
        id=found.id,
        number=found.number or None,
        status=found.status,
        description=found.description,
        currency=found.currency,
        total=_cents(found.total),
        tax=_cents(found.tax) if is_invoice else None,
        refunded=None if is_invoice else _cents(found.refunded),
        created_at=found.created_at,
        period=PeriodAnswer(start=found.period[0], end=found.period[1]) if found.period else None,
        url=found.url or None,
        pdf_url=found.pdf_url or None,
    )


class Plans(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="plans", responses=PlansAnswer)
    def get(self, request: Request) -> Response:
        """The plans that the key's product offers to everybody, the lowest first, on the terms of today."""
        self.asked(request, reads.Query)
        product, now = catalog.product_by_id(product_id=reads.principal(request).product_id), timezone.now()
        return PlansAnswer(items=[_plan(each, product) for each in catalog.plans(product_id=product.pk, at=now)]).response()


def _plan(terms: catalog.PlanTerms, product: Product) -> PlanAnswer:
    version = terms.version
    enforced = (limit for limit in terms.limits if limit.mode in ("soft", "hard"))
    return PlanAnswer(
        slug=version.plan.slug,
        name=version.plan.name,
        version=version.version,
        price=None if version.price_cents is None else _cents(version.price_cents),
        currency=version.currency,
        interval=version.interval,
        per_seat=version.per_seat,
        trial_days=version.trial_days,
        included_credits=version.included_credit_nanos,
        unit=product.unit.code,
        features=terms.flags,
        texts=terms.texts,
        limits=[LimitTerms(key=limit.key, window=limit.window, limit=limit.limit) for limit in enforced],
    )


def _cents(amount: int) -> str:
    return f"{'-' if amount < 0 else ''}{abs(amount) // 100}.{abs(amount) % 100:02d}"


class PackAnswer(reads.Answer):
    """``expires_after_days`` null = the credits never expire."""

    slug: str
    name: str
    version: int
    price: str
    currency: str
    credits: reads.Amount
    unit: str
    expires_after_days: int | None


class PacksAnswer(reads.Answer):
    items: list[PackAnswer]


class Packs(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="packs", responses=PacksAnswer)
    def get(self, request: Request) -> Response:
        """The credit packs that the key's product has on sale, the cheapest first."""
        self.asked(request, reads.Query)
        product, now = catalog.product_by_id(product_id=reads.principal(request).product_id), timezone.now()
        packs = CreditPack.objects.filter(product=product, available=True, valid_from__lte=now).order_by("price_cents", "slug", "id")
        return PacksAnswer(
            items=[
                PackAnswer(
                    slug=pack.slug,
                    name=pack.name,
                    version=pack.version,
                    price=_cents(pack.price_cents),
                    currency=pack.currency,
                    credits=pack.credit_nanos,
                    unit=product.unit.code,
                    expires_after_days=pack.expires_after_days,
                )
                for pack in packs
            ]
        ).response()


# Two shapes that a source document fixes --------------------------------------------------------------------------------------


class SignedIn(BaseAuthentication):
    """The user who is signed in, where no key is sent. For reads only: nothing here checks for forged requests."""

    def authenticate(self, request: Request) -> tuple[User, None] | None:
        user = request._request.user
        return (user, None) if isinstance(user, User) and "Authorization" not in request.headers else None


class SignedInScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "billing.api.SignedIn"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME}


class ChatBalance(reads.Read):
    authentication_classes = [SignedIn, api.BearerKey]
    permission_classes: list[Any] = []

    @extend_schema(
        operation_id="chatBalance",
        tags=["billing"],
        parameters=reads.parameters(reads.OfAccount),
        responses=OpenApiResponse(
            {
                "type": "object",
                "required": ["balance", "currency"],
                "properties": {"balance": {"type": "number", "multipleOf": 0.01}, "currency": {"type": "string"}},
            },
            examples=[OpenApiExample("Ten dollars", {"balance": 10.00, "currency": "USD"})],
        ),
    )
    def get(self, request: Request) -> HttpResponse:
        """The balance as a JSON number with two decimals, rounded down, for a bearer key or the user who is signed in."""
        query = self.asked(request, reads.OfAccount)
        user = request.user if isinstance(request.user, User) else None
        if user is None:
            reads.principal(request).require("billing:read")
            account = self.account(request, query)
        else:
            account = _account_of(user, query.account)
        unit = catalog.product_by_id(product_id=account.product_id).unit
        with tenancy.acting_as(user=user) if user else tenancy.acting_as(account=account):
            balance = _balance(account, unit, timezone.now()).balance
        whole, rest = divmod(balance // 10_000_000, 100)
        return HttpResponse(f'{{"balance": {whole}.{rest:02d}, "currency": {json.dumps(unit.code)}}}', content_type="application/json")


def _account_of(user: User, name: str | None) -> Account:
    """The account that a signed-in user asks about.

    :raises Problem: 404 where it is not theirs, 422 where they have several and name none.
    """
    with tenancy.acting_as(user=user):
        accounts = list(Account.objects.filter(memberships__user=user, closed_at=None).order_by("id"))
    mine = [account for account in accounts if name in (None, account.public_id)]
    if not mine:
        raise api.Problem(404, "not_found", "No such account.")
    if len(mine) > 1:
        errors = [{"field": "account", "message": "You have several accounts: name one by its id (acct_…)."}]
        raise api.Problem(422, "invalid_request", "Name the account.", errors=errors)
    return mine[0]


class HealthAnswer(reads.Answer):
    status: str


class HealthError(HealthAnswer):
    error: str


class PricingHealth(reads.Read):
    authentication_classes: list[Any] = []
    permission_classes = [AllowAny]

    @extend_schema(operation_id="pricingHealth", tags=["health"], responses={200: HealthAnswer, 500: HealthError})
    def get(self, request: Request) -> Response:
        """Can usage be priced and charged? Asks the price table and the balance table."""
        self.asked(request, reads.Query)
        try:
            priced = PriceRow.objects.filter(withdrawn_at=None).exists()
            models.Wallet.objects.exists()
        except DatabaseError as error:
            log.error("pricing is not healthy", exc_info=error)
            return Response({"status": "error", "error": "The price table or the balance table does not answer."}, status=500)
        if not priced:
            return Response({"status": "error", "error": "The price table is empty."}, status=500)
        return Response({"status": "ok"})
