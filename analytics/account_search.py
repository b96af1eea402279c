"""Finds an account by whatever support has in hand.

    find    by an id or external id, an email address, a name, the beginning of an API key, an id at Stripe (customer, subscription,
            payment, charge, refund, dispute, invoice or its number, checkout session), a usage record's id, a client's Idempotency-Key

Who asks gets the accounts, the likeliest first, and where one use was named, that use. A secret is not looked up: of an API key only what
admin shows of it counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connection
from django.db.models import Q

from accounts import api_keys
from accounts.models import Account, ApiKey
from analytics import rollups
from billing import ledger, stripe_api, stripe_dashboard
from billing.models import StripeInvoice
from metering import usage
from metering.models import OpenAuthorization, UsageRecord

#: So many accounts are found at most.
MOST: Final = 200
#: An Idempotency-Key is looked for among so many accounts, the newest.
MOST_FOR_A_KEY: Final = 50_000
MAX_LENGTH: Final = 320
#: What is used is recorded so long after its id was made, at most.
_USED_WITHIN: Final = timedelta(days=9)
_SHORTEST_PREFIX: Final = len(api_keys.TOKEN_PREFIX) + 3


@dataclass(frozen=True, slots=True)
class Found:
    """Accounts by id. ``use``: the one use that was asked for, of the only account. ``note``: what to say beside it."""

    accounts: tuple[int, ...] = ()
    use: UUID | None = None
    note: str = ""


def find(text: str) -> Found:
    """What ``text`` names. Asks Stripe for a charge, refund or dispute, so call it outside of transactions."""
    text = text.strip()
    if not text or len(text) > MAX_LENGTH or not text.isprintable():
        return Found()
    if text.startswith(("rec_", "auth_", "acct_")):
        return _ours(text)
    if stripe_dashboard.is_id(text):
        return _at_stripe(text)
    if text.startswith(api_keys.TOKEN_PREFIX):
        return _by_api_key(text)
    if (id_ := _uuid(text)) is not None and (found := _by_use(id_)).accounts:
        return found
    return _by_words(text) or _by_key(text)


def _ours(text: str) -> Found:
    try:
        public_id, id_ = usage.split_id(text)
    except ledger.NotFound:
        public_id, id_ = text, None
    account = Account.objects.filter(public_id=public_id).values_list("pk", flat=True).first()
    return Found((account,), id_) if account else Found()


def _at_stripe(text: str) -> Found:
    try:
        account = stripe_dashboard.account(text)
    except stripe_api.StripeError:
        return Found(note="Stripe did not answer. Look for the customer (cus_…) or the payment (pi_…) instead.")
    return Found((account,)) if account else Found()


def _by_api_key(text: str) -> Found:
    """Also where somebody pasted the whole key: what follows the part that is shown is not looked at."""
    if len(text) < _SHORTEST_PREFIX:
        return Found(note=f"Write at least {_SHORTEST_PREFIX} characters of the key.")
    prefix = text[: api_keys.SHOWN_CHARACTERS]
    keys = list(ApiKey.objects.filter(prefix__startswith=prefix).select_related("product").order_by("-id")[:MOST])
    of_products = [f"“{key.name}” acts for every account of {key.product}" for key in keys if key.account_id is None]
    accounts = tuple(dict.fromkeys(key.account_id for key in keys if key.account_id is not None))
    return Found(accounts, note=f"{'; '.join(of_products)}: look under API keys." if of_products else "")


def _by_use(id_: UUID) -> Found:
    """A use by its bare id, which says when it was made, so that only those days are read."""
    account = OpenAuthorization.objects.filter(pk=id_).values_list("account_id", flat=True).first()
    if account is None and id_.version == 7:
        made = datetime.fromtimestamp((id_.int >> 80) // 1_000, UTC)
        between = (made - _USED_WITHIN, made + _USED_WITHIN)
        account = UsageRecord.objects.filter(pk=id_, event_at__range=between).values_list("account_id", flat=True).first()
    return Found((account,), id_) if account else Found()


def _by_words(text: str) -> Found | None:
    """Whole names and ids first, then whoever has it in a name or an address."""
    exactly = Q(external_id=text) | Q(name__iexact=text) | Q(billing_email__iexact=text) | Q(memberships__user__email=text.lower())
    partly = Q(name__icontains=text) | Q(billing_email__icontains=text) | Q(memberships__user__email__icontains=text.lower())
    for condition in (exactly, partly):
        found = Account.objects.filter(condition).order_by("-pk").values_list("pk", flat=True).distinct()[:MOST]
        if found:
            return Found(tuple(found))
    numbered = StripeInvoice.objects.filter(number__iexact=text).values_list("account_id", flat=True)[:MOST]
    return Found(tuple(numbered)) if numbered else None


def _by_key(text: str) -> Found:
    asked: dict[str, Any] = {"key_hash": ledger.key_hash("usage", text), "most": MOST_FOR_A_KEY, "limit": MOST}
    with connection.cursor() as cursor:
        cursor.execute(rollups.query("usage_by_key"), asked)
        found = cursor.fetchall()
    accounts = tuple(dict.fromkeys(account for account, _ in found))
    return Found(accounts, found[0][1] if len(found) == 1 else None)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
