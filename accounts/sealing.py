"""Seals what is stored and has to be read again, such as signing secrets: a copy of the database alone opens nothing.

    seal     text → sealed text
    unseal   and back
    reseal   sealed anew by the newest key

The keys are ``ENCRYPTION_KEY``'s, the newest first; without any they are made from ``SECRET_KEY`` and its fallbacks. Fernet: AES-128-CBC
with HMAC-SHA256, so what was changed does not open either.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class Unreadable(Exception):
    """No key that we have opens it."""


def seal(text: str) -> str:
    return _keys().encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """:raises Unreadable: it was sealed by a key that is gone, or changed since."""
    try:
        return _keys().decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise Unreadable("No key opens it: has ENCRYPTION_KEY or SECRET_KEY been replaced without its former value?") from None


def reseal(sealed: str) -> str:
    """:raises Unreadable: as for :func:`unseal`."""
    return seal(unseal(sealed))


def _keys() -> MultiFernet:
    if settings.ENCRYPTION_KEYS:
        return MultiFernet([Fernet(key) for key in settings.ENCRYPTION_KEYS])
    return MultiFernet([_made_from(secret) for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)])


def _made_from(secret: str) -> Fernet:
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"tollgate: sealing").derive(secret.encode())
    return Fernet(urlsafe_b64encode(key))
