"""What customers' pages share: whose page it is, and the frame around it.

home     sends a visitor to their account, or lets them choose
tenant   opens the rows of one account to a view, behind both walls
render   the page, in the account's time zone, with its product
answer   the same for a page with forms
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.shortcuts import render as render_template
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from accounts import tenancy
from accounts.models import Account, Membership, User
from pricing.models import Product


@require_safe
@never_cache
@login_required
def home(request: HttpRequest) -> HttpResponse:
    """To the only account, or a choice of several; staff without one to their own pages, anybody else to what to do."""
    user = signed_in(request)
    with tenancy.acting_as(user=user):
        accounts = list(accounts_of(user).filter(closed_at=None))
        roles = dict(Membership.objects.filter(user=user).values_list("account_id", "role"))
    if len(accounts) == 1:
        return redirect("overview", accounts[0].public_id)
    if not accounts and user.is_staff:
        return redirect("admin:index")
    products = Product.objects.in_bulk({account.product_id for account in accounts})
    for account in accounts:
        account.product = products[account.product_id]
    return render_template(request, "accounts/choose.html", {"accounts": [(account, roles[account.pk]) for account in accounts]})


def accounts_of(user: User) -> QuerySet[Account]:
    """The first wall: the accounts that ``user`` is a member of."""
    return Account.objects.filter(memberships__user=user)


@contextmanager
def tenant(request: HttpRequest, public_id: str, *, managing: bool = False) -> Iterator[Account]:
    """The account of this id, if it is the visitor's; inside, only rows of the visitor's accounts can be read.

    Evaluate everything inside. What belongs to no tenant (product, plan, names) is read afterwards, with the program's own rights. Whoever
    spends, cancels, invites or makes keys is ``managing``: plain members may look. Writes come after the block, which can write nothing.

    :raises Http404: no such account, or somebody else's.
    :raises PermissionDenied: ``managing``, and the visitor is neither an owner nor an admin of the account.
    """
    user = signed_in(request)
    with tenancy.acting_as(user=user):
        account = accounts_of(user).filter(public_id=public_id).first()
        if account is None:
            raise Http404("There is no such account here.")
        if managing and not manages(user, account):
            raise PermissionDenied("Only owners and admins of the account may do this.")
        yield account


def manages(user: User, account: Account) -> bool:
    """Whether ``user`` is an owner or an admin of ``account``."""
    return Membership.objects.filter(account=account, user=user, role__in=[Membership.Role.OWNER, Membership.Role.ADMIN]).exists()


def render(request: HttpRequest, template: str, *, account: Account, now: datetime, context: dict[str, Any]) -> HttpResponse:
    """``template`` with ``account``, ``product`` and ``now``; times are the account's."""
    shared = {
        "account": account,
        "product": Product.objects.select_related("unit").get(pk=account.product_id),
        "now": now,
        "page": request.resolver_match.url_name if request.resolver_match else "",
        "several": accounts_of(signed_in(request)).filter(closed_at=None).exclude(pk=account.pk).exists(),
    }
    with timezone.override(account.time_zone):
        return render_template(request, template, shared | context)


def answer(request: HttpRequest, template: str, *, account: Account, now: datetime, context: dict[str, Any]) -> HttpResponse:
    """:func:`render`; 422 where the form that was sent is shown again, because something was wrong with it."""
    response = render(request, template, account=account, now=now, context=context)
    response.status_code = 422 if request.method == "POST" else 200
    return response


def signed_in(request: HttpRequest) -> User:
    """The visitor. Views that call this are behind ``login_required``."""
    if not isinstance(request.user, User):
        raise Http404("Nobody is signed in.")
    return request.user
