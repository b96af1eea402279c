"""Who may look at an account, and who may manage it."""

from __future__ import annotations

import pytest
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.test import RequestFactory

from accounts import pages
from accounts.models import Account, Membership, User
from accounts.tests.conftest import make_account, make_user
from pricing.models import Product


def request(user: User) -> HttpRequest:
    request = RequestFactory().get("/")
    request.user = user
    return request


@pytest.mark.parametrize("role", [Membership.Role.OWNER, Membership.Role.ADMIN])
def test_owners_and_admins_manage(account: Account, role: str) -> None:
    user = make_user()
    Membership.objects.create(account=account, user=user, role=role)
    with pages.tenant(request(user), account.public_id, managing=True) as opened:
        assert opened.pk == account.pk


def test_a_plain_member_looks_and_does_not_manage(account: Account) -> None:
    user = make_user()
    Membership.objects.create(account=account, user=user, role=Membership.Role.MEMBER)
    with pages.tenant(request(user), account.public_id) as opened:
        assert opened.pk == account.pk
    with pytest.raises(PermissionDenied), pages.tenant(request(user), account.public_id, managing=True):
        pytest.fail("entered")


def test_who_manages_another_account_is_a_stranger_here(product: Product, account: Account) -> None:
    stranger = make_user()
    make_account(product, owner=stranger)
    with pytest.raises(Http404), pages.tenant(request(stranger), account.public_id, managing=True):
        pytest.fail("entered")
