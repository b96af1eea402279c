"""API keys: bearer tokens that act for a product (all its accounts) or for one account.

    issue         makes a key; the token is in the answer and nowhere else
    issue_own     the same, for an account by one of its members
    authenticate  who a token stands for, or InvalidKey
    revoke        ends a key; within CACHE_SECONDS every process refuses it; revoke_own an account's, by one of its members

A token is ``tg_live_`` and 32 random letters and digits (190 bits; the six that ``prefix`` shows leave 154). What is stored is its
SHA-256: a slow hash protects weak secrets, and these are not. A token is found by its digest through a unique index, so nothing
compares secrets byte by byte and timing tells nothing about them.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.db.models import Q
from prometheus_client import Counter

from accounts import acts
from accounts.models import Account, ApiKey, User
from pricing.models import Product

TOKEN_PREFIX: Final = "tg_live_"  # noqa: S105 (what secret scanners look for, no secret)
CACHE_SECONDS: Final = 1
CACHE_KEYS: Final = 4096
MAX_OWN: Final = 50
LAST_USED_SECONDS: Final = 60
_ALPHABET: Final = string.ascii_letters + string.digits
_RANDOM_CHARACTERS: Final = 32
#: What of a key is kept in clear, to recognise it by.
SHOWN_CHARACTERS: Final = len(TOKEN_PREFIX) + 6
_TOKEN_LENGTH: Final = len(TOKEN_PREFIX) + _RANDOM_CHARACTERS


class InvalidKey(Exception):
    """The token is no key of ours, or one that is revoked, expired or of a closed account. The message does not say which. (401)"""

    def __init__(self) -> None:
        super().__init__("The API key is missing, unknown, revoked or expired.")


class MissingScope(Exception):
    """The key is good, but not for this. (403)"""

    def __init__(self, scope: str) -> None:
        super().__init__(f"This API key lacks the scope {scope}.")
        self.scope = scope


class InvalidGrant(ValueError):
    """A key with these properties may not exist. The message says why."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a request acts for. ``account_id`` None: a product key, which acts for any account of its product."""

    key_id: int
    product_id: int
    account_id: int | None
    prefix: str
    scopes: frozenset[str]
    expires_at: datetime | None

    def require(self, scope: str) -> None:
        """:raises MissingScope: the key lacks ``scope``."""
        if scope not in self.scopes:
            raise MissingScope(scope)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key and its token, which cannot be shown again."""

    key: ApiKey
    token: str


#: Digest → principal and when it was read. Only good keys are kept: an unknown token cannot fill it, a new key works at once.
_cache: dict[bytes, tuple[Principal, datetime]] = {}
_READS = Counter("key_reads", "API keys that were looked up, by whether they were kept.", ["outcome"])
_hit, _miss = (_READS.labels(outcome).inc for outcome in ("hit", "miss"))


def issue(
    *,
    product: Product,
    name: str,
    scopes: Collection[str],
    now: datetime,
    account: Account | None = None,
    created_by: str = "",
    expires_at: datetime | None = None,
) -> Issued:
    """A new key of ``product``, or of ``account`` alone.

    :raises InvalidGrant: no name; no scope, an unknown one or one that account keys may not have; another product's account; already
        expired.
    """
    if not name.strip() or len(name) > 120 or not name.isprintable():
        raise InvalidGrant("Name the key in 1 to 120 characters.")
    unknown = set(scopes) - set(ApiKey.Scope.values)
    if unknown or not scopes:
        raise InvalidGrant(f"Choose scopes among {', '.join(ApiKey.Scope.values)}; got {', '.join(sorted(unknown)) or 'none'}.")
    if account and ApiKey.Scope.ADMIN_READ in scopes:
        raise InvalidGrant("An account key cannot have admin:read; make a product key.")
    if account and account.product_id != product.pk:
        raise InvalidGrant(f"{account.public_id} is no account of {product.slug}.")
    if expires_at and expires_at <= now:
        raise InvalidGrant("The key would have expired already.")
    token = TOKEN_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    key = ApiKey.objects.create(
        product=product,
        account=account,
        name=name,
        prefix=token[:SHOWN_CHARACTERS],
        digest=_digest(token),
        scopes=sorted(set(scopes)),
        created_at=now,
        created_by=created_by,
        expires_at=expires_at,
    )
    return Issued(key=key, token=token)


def issue_own(
    *, account: Account, name: str, scopes: Collection[str], actor: User, now: datetime, expires_at: datetime | None = None
) -> Issued:
    """A new key of ``account``, made by ``actor``. Two working keys of an account never have one name: a form that is sent twice makes one
    key, and a list of keys can be read.

    :raises InvalidGrant: as :func:`issue`; a name that a working key has; ``MAX_OWN`` keys that work; a closed account.
    """
    with transaction.atomic():
        account = Account.objects.select_related("product").select_for_update(of=["self"], no_key=True).get(pk=account.pk)
        if account.closed_at:
            raise InvalidGrant("This account was closed.")
        working = ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=now), account=account, revoked_at=None)
        if working.filter(name=name).exists():
            raise InvalidGrant("A key of this name works already. Choose another name, or revoke that one.")
        if working.count() >= MAX_OWN:
            raise InvalidGrant(f"An account has at most {MAX_OWN} working keys. Revoke one that nothing uses.")
        issued = issue(
            product=account.product, account=account, name=name, scopes=scopes, now=now, created_by=actor.email[:150], expires_at=expires_at
        )
        what = f"Issued the API key {issued.key}, with {', '.join(issued.key.scopes)}."
        acts.note(account=account, actor=actor, what=what, now=now)
    return issued


def authenticate(*, token: str, now: datetime) -> Principal:
    """Whom ``token`` stands for. What was read less than ``CACHE_SECONDS`` before ``now`` is not read again.

    Call it outside a transaction, so that the note of the last use does not stay locked.

    :raises InvalidKey: no key of ours, revoked, expired, or its account is closed.
    """
    if len(token) != _TOKEN_LENGTH or not token.startswith(TOKEN_PREFIX) or not token.isascii():
        raise InvalidKey
    digest = _digest(token)
    cached = _cache.get(digest)
    if cached and timedelta(0) <= now - cached[1] < timedelta(seconds=CACHE_SECONDS):
        _hit()
        principal = cached[0]
    else:
        _miss()
        _cache.pop(digest, None)
        principal = _read(digest, now=now)
        if len(_cache) >= CACHE_KEYS:
            _cache.clear()
        _cache[digest] = (principal, now)
    if principal.expires_at and principal.expires_at <= now:
        raise InvalidKey
    return principal


def revoke(*, key: ApiKey, now: datetime, revoked_by: str = "") -> None:
    """Ends ``key`` for good; a second call changes nothing. Other processes follow within ``CACHE_SECONDS`` of the commit."""
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now, revoked_by=revoked_by[:150])
    key.refresh_from_db(fields=["revoked_at", "revoked_by"])
    transaction.on_commit(lambda: _cache.pop(bytes(key.digest), None))


def revoke_own(*, key: ApiKey, actor: User, now: datetime) -> None:
    """:func:`revoke` for a key of an account, by ``actor``."""
    if key.account is None:
        raise ValueError("A product's key is no account's own.")
    with transaction.atomic():
        if ApiKey.objects.select_for_update(no_key=True).get(pk=key.pk).revoked_at is None:
            revoke(key=key, now=now, revoked_by=actor.email)
            acts.note(account=key.account, actor=actor, what=f"Revoked the API key {key}.", now=now)


def _read(digest: bytes, *, now: datetime) -> Principal:
    key = ApiKey.objects.filter(Q(account=None) | Q(account__closed_at=None), digest=digest, revoked_at=None).first()
    if key is None:
        raise InvalidKey
    if key.last_used_at is None or now - key.last_used_at >= timedelta(seconds=LAST_USED_SECONDS):
        _note_use(key, now=now)
    return Principal(
        key_id=key.pk,
        product_id=key.product_id,
        account_id=key.account_id,
        prefix=key.prefix,
        scopes=frozenset(key.scopes),
        expires_at=key.expires_at,
    )


def _note_use(key: ApiKey, *, now: datetime) -> None:
    """Once a minute and key. Never waits: where somebody else holds the row, the next reader notes it."""
    due = Q(last_used_at=None) | Q(last_used_at__lte=now - timedelta(seconds=LAST_USED_SECONDS))
    with transaction.atomic():
        if ApiKey.objects.select_for_update(skip_locked=True, no_key=True).filter(due, pk=key.pk).exists():
            ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
