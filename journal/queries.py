"""Checks and page tokens of reads: what every implementation of the journal refuses alike."""

from __future__ import annotations

import base64
import binascii
from typing import Final

import orjson

from journal.model import FROM_NOW, Entity, LoadQuery, ReadQuery, SubscribeQuery
from journal.preparation import MODE_EXISTS, MemberRow, check_text
from kernel import clock
from kernel.errors import Compacted, InvalidArgument, OutOfRange
from kernel.ids import SLICES

MAX_PAGE: Final = 1_000
SMALLEST_CHUNK: Final = 16
LARGEST_CHUNK: Final = 1 << 30


def check_read(query: ReadQuery) -> None:
    """Refuses what no log can answer. Raises `InvalidArgument`."""
    for name in ("from_position", "to_position", "max_events"):
        value = getattr(query, name)
        if not 0 <= value < 2**63:
            raise InvalidArgument(name, f"{value} is not within 0..{2**63 - 1}")
    for name in ("from_time_us", "to_time_us"):
        if not 0 <= getattr(query, name) <= clock.MAX_MICROSECONDS:
            raise InvalidArgument(name, "is out of range")
    _check_filters(query)


def check_subscribe(query: SubscribeQuery) -> None:
    """Refuses what no log can deliver. Raises `InvalidArgument`."""
    if not FROM_NOW <= query.from_position < 2**63:
        raise InvalidArgument(
            "from_position", f"{query.from_position} is not within 0..{2**63 - 1}"
        )
    if not 0 <= query.from_time_us <= clock.MAX_MICROSECONDS:
        raise InvalidArgument("from_time_us", "is out of range")
    _check_filters(query)


def check_subscribe_from(position: int, first: int, head: int) -> None:
    """Refuses to begin where the log holds nothing. Raises `OutOfRange`."""
    if not first <= position <= head + 1:
        raise OutOfRange(position, first, head)


def _check_filters(query: ReadQuery | SubscribeQuery) -> None:
    for name in ("entity_types", "event_types", "slices"):
        if len(getattr(query, name)) > 1_000:
            raise InvalidArgument(name, "has more than 1000 items")
    for i, kind in enumerate(query.entity_types):
        check_text(f"entity_types[{i}]", kind, 255)
    for i, kind in enumerate(query.event_types):
        check_text(f"event_types[{i}]", kind, 255)
    for i, (low, high) in enumerate(query.slices):
        if not 0 <= low <= high < SLICES:
            raise InvalidArgument(f"slices[{i}]", f"{low}..{high} is not within 0..{SLICES - 1}")


def check_from_position(query: ReadQuery, first: int, head: int) -> None:
    """Refuses to begin where the log holds nothing. Raises `OutOfRange`."""
    start = query.from_position
    if start > head + 1 or 0 < start < first:
        raise OutOfRange(start, first, head)


def check_load(query: LoadQuery) -> None:
    """Refuses impossible sequence numbers. Raises `InvalidArgument`."""
    for name in ("after_sequence", "to_sequence"):
        value = getattr(query, name)
        if not 0 <= value < 2**63:
            raise InvalidArgument(name, f"{value} is not within 0..{2**63 - 1}")


def first_sequence(entity: Entity) -> int:
    """The sequence number of an entity's first event ever, compacted away or not."""
    return entity.sequence - entity.event_count + 1


def check_floor(entity: Entity, after: int, to: int) -> None:
    """Refuses to load events of ``after`` < sequence ≤ ``to`` that lie below the floor.

    Raises:
        Compacted: there are such events.

    """
    if max(after + 1, first_sequence(entity)) <= min(to, entity.floor - 1):
        raise Compacted(entity.entity_type, entity.entity_id, entity.floor)


def check_time(time_us: int) -> None:
    """Refuses a time that no calendar has. Raises `InvalidArgument`."""
    if not -clock.MAX_MICROSECONDS <= time_us <= clock.MAX_MICROSECONDS:
        raise InvalidArgument("time_us", "is out of range")


def check_verify(first: int, head: int, from_position: int, to_position: int) -> tuple[int, int]:
    """The range to verify, inclusive. Raises `InvalidArgument`, `OutOfRange`."""
    for name, value in (("from_position", from_position), ("to_position", to_position)):
        if value < 0:
            raise InvalidArgument(name, f"{value} is negative")
        if value > head or 0 < value < first:
            raise OutOfRange(value, first, head)
    low, high = from_position or first, to_position or head
    if low > high and to_position:
        raise InvalidArgument("to_position", f"{to_position} is before from_position {low}")
    return low, high


def check_chunk_size(size: int) -> None:
    """Raises `InvalidArgument` for a chunk size out of range; 0 means the default."""
    if size and not SMALLEST_CHUNK <= size <= LARGEST_CHUNK:
        raise InvalidArgument(
            "chunk_size", f"{size} is not within {SMALLEST_CHUNK}..{LARGEST_CHUNK}"
        )


def check_page_size(size: int) -> int:
    """A page size, 100 for 0. Raises `InvalidArgument`."""
    if not 0 <= size <= MAX_PAGE:
        raise InvalidArgument("page_size", f"{size} is not within 1..{MAX_PAGE}")
    return size or 100


def check_list(entity_type: str, prefix: str, token: str) -> tuple[str, str | None]:
    """Where a page of entities begins: (type, after this id; None: at the type's first).

    Raises:
        InvalidArgument: a text is not valid, or the token belongs to another list.

    """
    check_text("entity_type", entity_type, 255, empty=True)
    check_text("id_prefix", prefix, 512, empty=True)
    if not token:
        return entity_type, None
    kind, after = parse_token(token)
    if (entity_type and kind != entity_type) or not after.startswith(prefix):
        raise InvalidArgument("page_token", "belongs to another list")
    return kind, after


def page_token(entity_type: str, entity_id: str) -> str:
    """The token of the page after this entity."""
    return base64.urlsafe_b64encode(orjson.dumps([entity_type, entity_id])).decode()


def parse_token(token: str) -> tuple[str, str]:
    """The entity that a token names. Raises `InvalidArgument`."""
    try:
        kind, after = orjson.loads(base64.urlsafe_b64decode(token.encode()))
        check_text("page_token", kind, 255)
        check_text("page_token", after, 512)
    except (ValueError, TypeError, AttributeError, binascii.Error, InvalidArgument):
        raise InvalidArgument("page_token", "is not one this server made") from None
    return kind, after


def expected_of(member: MemberRow, found: int) -> int | str:
    """What an entity that was refused was expected to be, as `kernel.errors.FailedCheck` says it.

    ``found`` is its last sequence number, 0 when there is no such entity.
    """
    mode, first_sequence = member[3], member[4]
    if mode >= 0:
        return mode
    if mode == MODE_EXISTS and found == 0:
        return "exists"
    return first_sequence - 1
