"""Reads on behalf of one tenant, under row-level security: the second wall (the first: querysets are scoped in code).

    with tenancy.acting_as(user=request.user):
        account = Account.objects.filter(memberships__user=request.user).get(public_id=public_id)

Inside the block the connection is the role ``authenticated`` with the user's claims (``accounts/sql/tenancy.sql``): it can read that
tenant's rows and write nothing. Query there, and evaluate: a queryset left lazy runs after the block, with the program's own rights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.auth.models import AnonymousUser
from django.db import connection, transaction

from accounts.models import Account, User

_ENTER = """
    select set_config('role', 'authenticated', true),
           set_config('request.jwt.claims', %s, true),
           set_config('request.jwt.claim.sub', '', true)
"""
_LOOK = """
    select current_setting('role'), coalesce(current_setting('request.jwt.claims', true), ''),
           coalesce(current_setting('request.jwt.claim.sub', true), '')
"""
_RETURN = """
    select set_config('role', %s, true), set_config('request.jwt.claims', %s, true), set_config('request.jwt.claim.sub', %s, true)
"""


@contextmanager
def acting_as(*, user: User | AnonymousUser | None = None, account: Account | None = None) -> Iterator[None]:
    """Opens a transaction in which only the rows of ``user``'s accounts, or of ``account``, can be read.

    Role and claims are set for the transaction alone (``SET LOCAL``), so neither a pooled connection nor PgBouncer carries them on.
    Within another transaction they end with the block all the same: on success they are set back, on an error PostgreSQL's savepoint
    does it.

    :raises ValueError: not exactly one of ``user`` and ``account``, or one that is not saved (an anonymous visitor).
    """
    if (user is None) == (account is None):
        raise ValueError("acting_as needs a user or an account, and only one of them.")
    principal = user or account
    if principal is None or principal.pk is None:
        raise ValueError("Nobody to act as: the visitor is not signed in.")
    claims = json.dumps({"account_id": account.pk} if account else {"sub": str(principal.pk)})
    nested = connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        before: tuple[str, str, str] | None = None
        if nested:
            cursor.execute(_LOOK)
            before = cursor.fetchone()
        cursor.execute(_ENTER, [claims])
        yield
        if before:
            cursor.execute(_RETURN, before)
