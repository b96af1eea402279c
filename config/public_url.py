"""The address at which people reach the site, checked once, when the settings are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
LOCAL = ("localhost", "127.0.0.1")


def origin(address: str) -> str:
    """``address`` as an origin: scheme and host, a port where it names one, nothing behind it.

    :raises ImproperlyConfigured: it is none, or is no https and not on this machine.
    """
    try:
        parts = urlsplit(address.rstrip("/"))
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ImproperlyConfigured(f"PUBLIC_URL is no address: {error}.") from error
    bare = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}"
    if not HOST.fullmatch(host) or bare != address.rstrip("/").lower():
        raise ImproperlyConfigured("PUBLIC_URL must be an origin such as https://billing.example.com: nothing before or behind the host.")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOCAL):
        raise ImproperlyConfigured("PUBLIC_URL must begin with https://.")
    return bare


def of_hosts(hosts: Sequence[str]) -> str:
    """The address by the first name that the site answers to. :raises ImproperlyConfigured: that is a pattern, not a name."""
    if not hosts or not HOST.fullmatch(hosts[0]):
        raise ImproperlyConfigured("Set the PUBLIC_URL environment variable: the first of ALLOWED_HOSTS is not one name.")
    return f"https://{hosts[0]}"
