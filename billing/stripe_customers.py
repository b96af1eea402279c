"""An account's customer at Stripe: made when it is first needed, once.

Who asks at the same time sends the same request, and is given the same customer.
"""

from __future__ import annotations

from datetime import datetime

from accounts.models import Account, Membership
from billing import ledger, stripe_api, stripe_requests
from billing.models import StripeCustomer, StripeRequest

KIND = "customer"


def of(*, account: Account, now: datetime) -> StripeCustomer:
    """The account's customer. May call the network: not inside a transaction.

    :raises stripe_requests.Unanswered: Stripe did not answer; :raises stripe_requests.Refused: it will not have such a customer.
    """
    known = StripeCustomer.objects.filter(account=account).first()
    if known is not None:
        return known
    owners = Membership.objects.filter(account=account, role=Membership.Role.OWNER).order_by("pk")
    email = account.billing_email or owners.values_list("user__email", flat=True).first()
    params = {"name": account.name, "metadata": {"account": account.public_id, "product": account.product.slug}}
    if email:
        params["email"] = email
    # Refused once, it may be asked for anew when what was wrong with it has changed.
    key = f"{KIND}:{account.public_id}:{ledger.fingerprint(params).hex[:8]}"
    stripe_requests.send(stripe_requests.ask(key=key, kind=KIND, path="/v1/customers", params=params, account=account, now=now), now=now)
    return StripeCustomer.objects.get(account=account)


@stripe_requests.answered(KIND)
def _made(request: StripeRequest, answer: stripe_api.Obj) -> None:
    StripeCustomer.objects.get_or_create(account=request.account, defaults={"id": answer["id"]})
