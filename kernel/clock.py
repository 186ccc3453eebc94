"""Times: RFC 3339 text, microseconds since the Unix epoch, aware datetimes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from kernel.errors import InvalidArgument

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MAX_MICROSECONDS = 253_402_300_799_999_999
"""The last microsecond of the year 9999."""


def now() -> datetime:
    """The present, UTC, aware."""
    return datetime.now(UTC)


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def to_us(moment: datetime) -> int:
    """Microseconds since the Unix epoch of an aware datetime, exactly."""
    return (moment - EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The aware UTC datetime of microseconds since the Unix epoch, exactly."""
    return EPOCH + timedelta(microseconds=microseconds)


def format_us(microseconds: int) -> str:
    """RFC 3339 in UTC with ``Z`` and microseconds."""
    return from_us(microseconds).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_us(field: str, text: str) -> int:
    """Microseconds since the Unix epoch of an RFC 3339 time.

    Raises:
        InvalidArgument: it is not one, or has no offset (naive times are refused).

    """
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        raise InvalidArgument(field, f"{text!r:.60} is not a time (RFC 3339)") from None
    if moment.tzinfo is None:
        raise InvalidArgument(field, f"{text!r:.60} has no UTC offset; write Z or +hh:mm")
    return to_us(moment)
