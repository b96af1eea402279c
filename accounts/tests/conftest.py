"""What the tests of this app begin with: a product, accounts and users that nobody else has."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from accounts import registration
from accounts.models import Account, User
from pricing.models import Product
from tests.factories import make_product

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make_user(**fields: object) -> User:
    return User.objects.create_user(f"{uuid.uuid4().hex[:12]}@example.com", "correct horse battery", **fields)


def make_account(product: Product, *, owner: User | None = None, **fields: object) -> Account:
    fields = {"external_id": uuid.uuid4().hex, "name": "Ada", "now": NOW} | fields
    return registration.open_account(product=product, owner=owner, **fields)  # type: ignore[arg-type]


@pytest.fixture
def product(db: None) -> Product:
    return make_product()


@pytest.fixture
def user(db: None) -> User:
    return make_user()


@pytest.fixture
def account(product: Product, user: User) -> Account:
    return make_account(product, owner=user)
