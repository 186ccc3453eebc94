"""Tokens as texts: their form, and what is kept of them.

A token is ``est_``, 43 characters of base 62 (256 random bits), and 6 of its CRC-32: scanners for
leaked secrets find it by its form, and a mistyped one is refused without asking the database. Only
its SHA-256 is kept (`kernel.token_store`); a fast hash is enough, as there is no dictionary of
random 256-bit values. A token is shown once, when it is made, and never appears in a log, a metric
or an argument of a program.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final
from zlib import crc32

PREFIX: Final = "est_"
MAX_DAYS: Final = 3_660
DEFAULT_DAYS: Final = 90
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM: Final = re.compile(r"est_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")


def _base62(number: int, width: int) -> str:
    text = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        text = _DIGITS[digit] + text
    return text


def mint() -> str:
    """A fresh token of 256 random bits."""
    body = _base62(secrets.randbits(256), 43)
    return f"{PREFIX}{body}{_base62(crc32(body.encode()), 6)}"


def digest_of(token: str) -> bytes | None:
    """The SHA-256 of a token, None when the text cannot be one (its form or check is wrong)."""
    found = _FORM.fullmatch(token)
    if found is None or _base62(crc32(found[1].encode()), 6) != found[2]:
        return None
    return hashlib.sha256(token.encode()).digest()


def is_same(token: str, digest: bytes) -> bool:
    """Whether ``digest`` is that of ``token``, in a time that does not tell how close it is."""
    found = digest_of(token)
    return found is not None and hmac.compare_digest(found, digest)
