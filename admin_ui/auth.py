"""Who asks over HTTP: a bearer token; in `everstate dev`, for a few calls, anyone at this machine.

A web page of anywhere may send requests to 127.0.0.1, and by rebinding its name's address it may
also read the answers. So without a token the Host header has to name loopback too, which such a
page cannot send; and a request that a browser marks as another site's is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request

from admin_ui.services import services_of
from kernel.errors import Unauthenticated
from kernel.principals import PAYLOAD, Principal, Role

_AT_THIS_MACHINE: Final = Principal("dev", "whoever is at this machine", Role.VIEWER, key="local")


async def principal_of(request: Request, *, open_in_dev: bool) -> Principal:
    """Who sent the request.

    Raises:
        Unauthenticated: nobody we know.

    """
    services = services_of(request)
    given = request.headers.getlist("authorization")
    if given:
        scheme, _, token = given[0].partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("the Authorization header is not: Bearer and a token")
        token = token.strip()
        if services.settings.dev_token and _same(token, services.settings.dev_token):
            return Principal("dev", "everstate dev", Role.ADMIN, frozenset({PAYLOAD}), "token")
        return await services.tokens.authenticate(token)
    if open_in_dev and services.settings.dev and is_local(request):
        return _AT_THIS_MACHINE
    raise Unauthenticated("the request has no token (Authorization: Bearer …)")


def is_local(request: Request) -> bool:
    """Whether a request came from this machine, asked for it by a name of loopback, and is not the
    work of a web page of another place.
    """
    peer = request.client.host if request.client else ""
    if not _is_loopback(peer):
        return False
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or not _names_loopback(f"//{hosts[0]}"):
        return False
    origins = request.headers.getlist("origin")
    if any(not _names_loopback(origin) for origin in origins):
        return False
    return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _names_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _same(given: str, wanted: str) -> bool:
    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    return hmac.compare_digest(digest(given), digest(wanted))
