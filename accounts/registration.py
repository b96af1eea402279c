"""Accounts come into being here, and people are forgotten here.

open_account    the account of a product that has this external id; opened, with its signal, if there was none, and signed up, if a guest's
change_details  an account's name, billing address and time zone
forget_user     removes a person's data; accounts and all that hangs on them stay
product_for     which product a visitor signs up to
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import urlsplit

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from accounts import acts, mails, signals
from accounts.models import Account, ApiKey, Invitation, Membership, User
from pricing.models import Product

_DETAILS = ("the name", "the billing address", "the time zone")


class InvalidAccount(ValueError):
    """An account with these properties may not exist. ``field`` and the message say why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnknownProduct(LookupError):
    """No product has this name, or none can be told from the address."""


def open_account(
    *,
    product: Product,
    external_id: str,
    name: str,
    now: datetime,
    kind: str = Account.Kind.PERSON,
    owner: User | None = None,
    billing_email: str = "",
    time_zone: str = "",
) -> Account:
    """The account of ``product`` whose external id this is.

    One that exists is returned as it is, whatever the other arguments say: the external id is the idempotency key, also of two calls at
    once. A new one is opened, with ``owner`` as its owner, and announced by :data:`accounts.signals.account_opened` in the same
    transaction: when a receiver fails, no account was opened. An empty ``time_zone`` is the product's.

    A guest's open account is signed up when it is asked for as another kind: it becomes what the arguments say, keeps all that hangs on
    it, and is announced by :data:`accounts.signals.guest_signed_up`, likewise. Nothing makes it a guest's again.

    :raises InvalidAccount: an empty or too long external id or name, an id that looks like ours, an unknown time zone or kind, or a guest
        of a product that has none.
    """
    account = Account(
        product=product,
        external_id=external_id,
        name=name,
        kind=kind,
        billing_email=billing_email,
        time_zone=time_zone or product.time_zone,
        created_at=now,
    )
    _check(account)
    with transaction.atomic():
        account, opened = Account.objects.get_or_create(
            product=product,
            external_id=external_id,
            defaults={
                "name": name,
                "kind": kind,
                "billing_email": billing_email,
                "time_zone": account.time_zone,
                "created_at": now,
            },
        )
        message = signals.account_opened if opened else None
        if account.kind == Account.Kind.GUEST and kind != Account.Kind.GUEST:
            account = Account.objects.select_for_update(no_key=True).get(pk=account.pk)
            if account.kind == Account.Kind.GUEST and account.closed_at is None:  # of two calls at once, the first
                account.name, account.kind, account.billing_email = name, kind, billing_email
                account.time_zone = time_zone or account.time_zone
                account.save(update_fields=["name", "kind", "billing_email", "time_zone"])
                message = signals.guest_signed_up
        if message is not None:
            if owner is not None:
                Membership.objects.get_or_create(account=account, user=owner, defaults={"role": Membership.Role.OWNER, "created_at": now})
            message.send(sender=Account, account=account, now=now)
    return account


def change_details(*, account: Account, name: str, billing_email: str, time_zone: str, actor: User, now: datetime) -> None:
    """What the account's people say of it. A time zone counts from each quota's next day on.

    :raises InvalidAccount: a name, address or time zone that is none, or a closed account.
    """
    with transaction.atomic():
        account = Account.objects.select_related("product").select_for_update(of=["self"], no_key=True).get(pk=account.pk)
        if account.closed_at:
            raise InvalidAccount("name", "This account was closed.")
        before = (account.name, account.billing_email, account.time_zone)
        account.name, account.billing_email, account.time_zone = name, billing_email, time_zone
        _check(account)
        changed = [what for what, old, new in zip(_DETAILS, before, (name, billing_email, time_zone), strict=True) if old != new]
        if changed:
            account.save(update_fields=["name", "billing_email", "time_zone"])
            acts.note(account=account, actor=actor, what=f"Changed {', '.join(changed)}.", now=now)


def forget_user(*, user: User, now: datetime) -> None:
    """Removes what identifies ``user`` and ends every sign-in (sessions end with the password that they were opened with).

    Memberships, accounts and money stay. A person account that was theirs alone loses its name and address and is closed, its keys
    with it; elsewhere only a billing address that was theirs goes. Mails to them are not sent any more, and those that were are
    remembered without what they said. Doing it again changes nothing.
    """
    with transaction.atomic():
        user = User.objects.select_for_update().get(pk=user.pk)
        addresses = {user.email, *EmailAddress.objects.filter(user=user).values_list("email", flat=True)}
        forgotten = f"forgotten-{user.pk}"
        ApiKey.objects.filter(created_by=user.email).update(created_by=forgotten)
        ApiKey.objects.filter(revoked_by=user.email).update(revoked_by=forgotten)
        Invitation.objects.filter(email__in=addresses, accepted_at=None).delete()
        Invitation.objects.filter(email__in=addresses).update(email=f"{forgotten}@invalid")
        for address in addresses:
            acts.forget(address=address, forgotten=forgotten)
        EmailAddress.objects.filter(user=user).delete()
        Authenticator.objects.filter(user=user).delete()
        user.email = f"{forgotten}@invalid"
        user.first_name = user.last_name = ""
        user.is_active = user.is_staff = user.is_superuser = False
        user.set_unusable_password()
        user.save()
        theirs = Account.objects.filter(kind=Account.Kind.PERSON, memberships__user=user, closed_at=None)
        alone = list(theirs.exclude(memberships__in=Membership.objects.exclude(user=user)))
        for account in alone:
            account.name, account.billing_email, account.closed_at = "Forgotten", "", now
            account.save(update_fields=["name", "billing_email", "closed_at"])
        Account.objects.filter(billing_email__in=addresses).update(billing_email="")
        mails.forget(addresses=addresses, accounts=alone, now=now)


def product_for(*, slug: str, host: str) -> Product:
    """The product named by ``slug``; without one, the product one of whose allowed origins is ``host``, else ``DEFAULT_PRODUCT``, else
    the only product there is.

    :raises UnknownProduct: none, or more than one, fits.
    """
    return choose_product(list(Product.objects.all()), slug=slug, host=host)


def choose_product(products: Sequence[Product], *, slug: str, host: str) -> Product:
    """:func:`product_for` among ``products``."""
    if slug:
        choices = [[product for product in products if product.slug == slug]]
    else:
        hosted = [product for product in products if host in {urlsplit(origin).netloc for origin in product.allowed_origins}]
        default = [product for product in products if product.slug == settings.DEFAULT_PRODUCT]
        choices = [hosted, default, list(products)]
    for fitting in choices:
        if len(fitting) == 1:
            return fitting[0]
    raise UnknownProduct("The address does not say which product to sign up to.")


def _check(account: Account) -> None:
    try:
        account.clean_fields(exclude={"product"})
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise InvalidAccount(field, messages[0]) from error
    for field in ("external_id", "name"):
        if not getattr(account, field).isprintable():
            raise InvalidAccount(field, "Control characters are not allowed.")
    if account.kind == Account.Kind.GUEST and not account.product.guest_plan:
        raise InvalidAccount("kind", f"{account.product.name} has no guests.")
    if account.external_id.startswith("acct_"):
        raise InvalidAccount("external_id", "An external id may not begin with acct_, as ours do.")
