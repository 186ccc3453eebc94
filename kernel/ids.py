"""Identifiers and the slice of an entity."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from zlib import crc32

import uuid_utils

from kernel.errors import InvalidArgument

SLICES = 1024

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562), lower case: ordered by creation time to the millisecond."""
    return str(uuid_utils.uuid7())


def slice_of(entity_type: str, entity_id: str) -> int:
    """The slice of an entity, 0..1023: the lowest ten bits of the CRC-32 (IEEE 802.3, as in zlib)
    of ``type NUL id`` in UTF-8.

    Part of the protocol: sidecars in any language come to the same number.
    """
    return crc32(f"{entity_type}\0{entity_id}".encode()) & (SLICES - 1)


def check_uuid(field: str, text: str) -> str:
    """``text`` when it is a UUID in its canonical form (lower case, hyphens).

    Raises:
        InvalidArgument: it is not; names ``field``.

    """
    if not _UUID.fullmatch(text):
        raise InvalidArgument(field, "is not a UUID in lower case with hyphens")
    return text


def time_of_uuid7(field: str, text: str) -> datetime:
    """The time inside a UUIDv7, to the millisecond.

    Raises:
        InvalidArgument: ``text`` is not a UUID of version 7; names ``field``.

    """
    value = uuid.UUID(check_uuid(field, text))
    if value.version != 7:
        raise InvalidArgument(field, "is not a UUID of version 7")
    try:
        return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(field, "holds a time out of range") from None
