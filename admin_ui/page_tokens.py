"""Tokens of pages: the key of the last row, so that a client can carry it and not read it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson

from kernel.errors import InvalidArgument


def token_of(*key: int | str) -> str:
    """The token of a key."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).rstrip(b"=").decode()


def parts_of(token: str, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """The key of a token whose parts have the types of ``like``; empty: ``like`` itself.

    Raises:
        InvalidArgument: it is none of ours.

    """
    if not token:
        return like
    try:
        found = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        found = None
    if (
        not isinstance(found, list)
        or [type(part) for part in found] != [type(part) for part in like]
        or any(isinstance(part, int) and not 0 <= part < 2**63 for part in found)
        or any(isinstance(part, str) and "\0" in part for part in found)
    ):
        raise InvalidArgument("next", "is not a token of a page before")
    return tuple(found)
