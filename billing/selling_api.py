"""Buying, for client apps: POST endpoints that lead a customer to Stripe's hosted pages, or change what they are subscribed to.

buy, subscribe_alias, purchase_alias   a visit to Checkout; the aliases have the paths and the fields that a source document fixes
Visit                                  how a visit ended
portal                                 the address of the customer portal
change, cancel, resume                 changes of the subscription
Preview                                what a change of plan would cost
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import Field, model_validator
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import api, api_keys, reads, tenancy
from accounts.models import Account
from billing import checkout, redirects
from billing.models import Checkout

RETRY_AFTER_SECONDS: Final = 5
MOST_KEY_CHARACTERS: Final = 255

Name = Annotated[str, Field(min_length=1, max_length=128)]
Slug = Annotated[str, Field(min_length=1, max_length=64)]
Address = Annotated[str, Field(min_length=1, max_length=redirects.MOST_CHARACTERS, examples=["https://app.example.com/billing"])]


class Purchase(api.Command):
    """A `plan` or a `pack`, and where the customer comes back to: addresses of the product's allowed origins. `{CHECKOUT_ID}` in them is
    replaced by the checkout's id."""

    account: Name | None = None
    plan: Slug | None = None
    pack: Slug | None = None
    quantity: Annotated[int, Field(ge=1, le=checkout.MOST_PACKS, description="How many packs.")] = 1
    success_url: Address
    cancel_url: Address

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        if (self.plan is None) == (self.pack is None):
            raise ValueError("give either plan or pack")
        if self.plan is not None and self.quantity != 1:
            raise ValueError("a plan has no quantity")
        return self


class Subscribe(api.Command):
    """As PRPM's guide has it. The plan is the product's only one; `plan` names it where there are several."""

    account: Name | None = None
    plan: Slug | None = None
    successUrl: Address
    cancelUrl: Address


class BuyPackage(api.Command):
    """As PRPM's guide has it: `package` is a pack."""

    account: Name | None = None
    package: Slug
    successUrl: Address
    cancelUrl: Address


class OpenPortal(api.Command):
    account: Name | None = None
    return_url: Address


class ChangePlan(api.Command):
    account: Name | None = None
    plan: Slug


class OnlyAccount(api.Command):
    account: Name | None = None


class CheckoutAnswer(reads.Answer):
    """Send the customer to `url` while it is there. `amount` is before discounts and taxes; after a trial of `trial_days`, for each period.

    `state` is what Stripe says: `open`, `paid`, `failed` or `expired`. `completed` while it is open: the bank takes its time.
    """

    id: str
    account: str
    name: str
    quantity: int
    amount: str
    currency: str
    trial_days: int
    state: Checkout.State
    completed: bool
    url: str | None
    created_at: datetime
    expires_at: datetime | None


class PortalAnswer(reads.Answer):
    url: str


class ChangeAnswer(reads.Answer):
    """`upgrade` counts at once and charges `due_now`; `downgrade` and `cancel` count at the end of the period, which is paid for; `keep`
    undoes them. `price` is paid each period from then on."""

    account: str
    change: Literal["upgrade", "downgrade", "cancel", "keep", "none"]
    plan: str
    effective_at: datetime
    due_now: str
    price: str
    currency: str


class SubscribedAnswer(reads.Answer):
    """What counts after the change. The rest is at `GET /api/v1/billing/subscription`."""

    account: str
    plan: str
    status: str
    cancel_at_period_end: bool
    current_period_end: datetime


@api.endpoint(scope="billing:write")
def buy(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, Purchase)
    account = api.account_for(principal, body.account)
    with refusals(field="pack" if body.plan is None else "plan"):
        return _sell(request, principal, account, body.plan, body.pack, body.quantity, body.success_url, body.cancel_url)


@api.endpoint(scope="billing:write")
def subscribe_alias(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, Subscribe)
    account = api.account_for(principal, body.account)
    with refusals(field="plan"):
        plan = body.plan or checkout.plan_for(account=account, now=timezone.now())
        return _sell(request, principal, account, plan, None, 1, body.successUrl, body.cancelUrl)


@api.endpoint(scope="billing:write")
def purchase_alias(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, BuyPackage)
    account = api.account_for(principal, body.account)
    with refusals(field="package"):
        return _sell(request, principal, account, None, body.package, 1, body.successUrl, body.cancelUrl)


@api.endpoint(scope="billing:write")
def portal(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, OpenPortal)
    account = api.account_for(principal, body.account)
    with refusals():
        url = checkout.portal(account=account, return_url=body.return_url, now=timezone.now())
    return api.as_json(PortalAnswer(url=url).model_dump(mode="json"))


@api.endpoint(scope="billing:write")
def change(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    body = api.parse(request, ChangePlan)
    account = api.account_for(principal, body.account)
    with refusals(field="plan"):
        done = checkout.change_plan(account=account, plan=body.plan, actor=_actor(principal), now=timezone.now())
    return api.as_json(_change(account, done).model_dump(mode="json"))


@api.endpoint(scope="billing:write")
def cancel(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    return _toggle(request, principal, checkout.cancel)


@api.endpoint(scope="billing:write")
def resume(request: HttpRequest, principal: api_keys.Principal) -> HttpResponse:
    return _toggle(request, principal, checkout.resume)


class Visit(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(
        operation_id="checkout",
        parameters=[*reads.parameters(reads.OfAccount), OpenApiParameter("checkout", str, "path", description="The `id` of the checkout.")],
        responses=CheckoutAnswer,
    )
    def get(self, request: Request, checkout: str) -> Response:
        """How a visit to Checkout stands, as Stripe says it."""
        account = self.account(request, self.asked(request, reads.OfAccount))
        with tenancy.acting_as(account=account):
            visit = Checkout.objects.filter(account_id=account.pk, public_id=checkout).first() if checkout.isprintable() else None
        if visit is None:
            raise api.Problem(404, "not_found", "No such checkout.")
        return _visit(account, visit).response()


class OfPlan(reads.OfAccount):
    plan: Annotated[reads.Text, Field(description="The plan to change to.")]


class Preview(reads.Read):
    permission_classes = [api.HasScope.of("billing:read")]

    @extend_schema(operation_id="previewChange", parameters=reads.parameters(OfPlan), responses=ChangeAnswer)
    def get(self, request: Request) -> Response:
        """What a change to `plan` would do now, to the cent. Asks Stripe."""
        query = self.asked(request, OfPlan)
        account = self.account(request, query)
        with refusals(field="plan"):
            return _change(account, checkout.preview_change(account=account, plan=query.plan, now=timezone.now())).response()


@contextmanager
def refusals(*, field: str = "body") -> Iterator[None]:
    """Refusals of :mod:`billing.checkout` as problems; ``field`` is what named the plan or pack."""
    try:
        yield
    except redirects.NotAllowed as error:
        errors = [{"field": error.field, "message": str(error)}]
        raise api.Problem(422, "redirect_not_allowed", str(error), errors=errors) from error
    except checkout.NotOffered as error:
        raise api.Problem(422, "invalid_request", str(error), errors=[{"field": field, "message": str(error)}]) from error
    except checkout.PriceUnavailable as error:
        raise api.Problem(422, "price_unavailable", str(error)) from error
    except checkout.Declined as error:
        raise api.Problem(402, "card_declined", str(error)) from error
    except checkout.NoCustomer as error:
        raise api.Problem(403, "refused", str(error)) from error
    except checkout.AlreadySubscribed as error:
        raise api.Problem(409, "already_subscribed", str(error), change_plan="/api/v1/billing/subscription/change") from error
    except checkout.NotSubscribed as error:
        raise api.Problem(409, "not_subscribed", str(error)) from error
    except checkout.NotPossible as error:
        raise api.Problem(409, "change_not_possible", str(error)) from error
    except checkout.KeyReused as error:
        raise api.Problem(409, "idempotency_key_reused", str(error)) from error
    except checkout.Unavailable as error:
        raise api.Problem(503, "dependency_unavailable", str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)}) from error


def _sell(
    request: HttpRequest,
    principal: api_keys.Principal,
    account: Account,
    plan: str | None,
    pack: str | None,
    quantity: int,
    success_url: str,
    cancel_url: str,
) -> HttpResponse:
    how: dict[str, Any] = {
        "account": account, "success_url": success_url, "cancel_url": cancel_url, "actor": _actor(principal), "now": timezone.now(),
        "key": _key(request),
    }  # fmt: skip
    visit = checkout.subscribe(plan=plan, **how) if plan is not None else checkout.buy(pack=str(pack), quantity=quantity, **how)
    return api.as_json(_visit(account, visit).model_dump(mode="json"))


def _toggle(request: HttpRequest, principal: api_keys.Principal, verb: Callable[..., Any]) -> HttpResponse:
    body = api.parse(request, OnlyAccount)
    account = api.account_for(principal, body.account)
    with refusals():
        live = verb(account=account, actor=_actor(principal), now=timezone.now())
    answer = SubscribedAnswer(
        account=account.public_id,
        plan=live.plan_version.plan.slug,
        status=live.status,
        cancel_at_period_end=live.cancel_at_period_end,
        current_period_end=live.current_period_end,
    )
    return api.as_json(answer.model_dump(mode="json"))


def _visit(account: Account, visit: Checkout) -> CheckoutAnswer:
    return CheckoutAnswer(
        id=visit.public_id,
        account=account.public_id,
        name=visit.name,
        quantity=visit.quantity,
        amount=_cents(visit.amount_cents),
        currency=visit.currency,
        trial_days=visit.trial_days,
        state=Checkout.State(visit.state),
        completed=visit.completed,
        url=visit.url or None,
        created_at=visit.created_at,
        expires_at=visit.expires_at,
    )


def _change(account: Account, done: checkout.Change) -> ChangeAnswer:
    return ChangeAnswer(
        account=account.public_id,
        change=done.kind,
        plan=done.plan.plan.slug,
        effective_at=done.effective_at,
        due_now=_cents(done.due_now_cents),
        price=_cents(done.price_cents),
        currency=done.currency,
    )


def _cents(amount: int) -> str:
    return f"{amount // 100}.{amount % 100:02d}"


def _actor(principal: api_keys.Principal) -> str:
    return f"API key {principal.prefix}…"


def _key(request: HttpRequest) -> str | None:
    """The Idempotency-Key; it may be left out. :raises Problem:"""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= MOST_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        message = f"An Idempotency-Key has 1 to {MOST_KEY_CHARACTERS} printable ASCII characters."
        raise api.Problem(422, "invalid_request", message, errors=[{"field": "Idempotency-Key", "message": message}])
    return key
