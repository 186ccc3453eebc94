"""Stored events as rows, and the dictionaries that give their numbers names.

Rows stay rows on the way to gRPC; `Row.event` makes a dataclass where one is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from journal.model import Event
from journal.preparation import EXTRA_KEYS, TIME_KEY
from kernel import clock
from kernel.errors import TooLarge


class EventRow(NamedTuple):
    """The columns of every statement that returns events, in this order.

    Rows read from the database are the driver's records: unpack them or index them, do not name
    their fields. `Names.event` makes an event of either.
    """

    position: int
    sequence: int
    recorded_at: datetime
    previous_position: int | None
    event_id: object
    type_id: int
    entity_type_id: int
    slice: int
    entity_id: str
    payload: bytes
    metadata: str | None


class EventType(NamedTuple):
    """What a type id stands for."""

    name: str
    content_type: str
    schema_version: int


@dataclass(slots=True)
class RowBatch:
    """Events as rows; every type id in them is in the dictionaries."""

    rows: Sequence[EventRow]
    next_position: int
    head: int
    removed: tuple[tuple[int, int], ...] = ()


class Names:
    """Type names by id and ids by name: a cache of two append-only tables."""

    __slots__ = ("entity_ids", "entity_types", "event_ids", "event_types")

    def __init__(self) -> None:
        self.entity_ids: dict[str, int] = {}
        self.entity_types: dict[int, str] = {}
        self.event_ids: dict[tuple[str, str, int], int] = {}
        self.event_types: dict[int, EventType] = {}

    def learn_entity_types(self, rows: Iterable[Any]) -> None:
        """Takes rows (type_id, name)."""
        for type_id, name in rows:
            self.entity_ids[name] = type_id
            self.entity_types[type_id] = name

    def learn_event_types(self, rows: Iterable[Any]) -> None:
        """Takes rows (type_id, name, content_type, schema_version)."""
        for type_id, name, content_type, version in rows:
            self.event_ids[name, content_type, version] = type_id
            self.event_types[type_id] = EventType(name, content_type, version)

    def event(self, row: EventRow) -> Event:
        """The event of a row."""
        (position, sequence, recorded_at, previous, event_id, type_id, entity_type_id, part,
         entity_id, payload, stored) = row  # fmt: skip
        kind = self.event_types[type_id]
        metadata, extras = split_metadata(stored)
        return Event(
            position, sequence, self.entity_types[entity_type_id], entity_id, kind.name,
            kind.content_type, payload, str(event_id), clock.to_us(recorded_at), metadata,
            schema_version=kind.schema_version, slice=part, previous_position=previous or 0,
        **extras, )  # fmt: skip


def split_metadata(stored: str | None) -> tuple[str, dict[str, Any]]:
    """The user's JSON object (empty when there is none) and the fields kept inside the metadata."""
    if stored is None:
        return "", {}
    if '"$' not in stored:
        return stored, {}
    parsed = orjson.loads(stored)
    extras: dict[str, Any] = {}
    for name, key in EXTRA_KEYS:
        value = parsed.pop(key, None)
        if value is not None:
            extras[name] = value
    time = parsed.pop(TIME_KEY, None)
    if time is not None:
        extras["client_time_us"] = time
    return orjson.dumps(parsed).decode() if parsed else "", extras


def too_many_types(kind: str, actual: int, limit: int) -> TooLarge:
    """Someone puts ids into type names."""
    return TooLarge(f"the number of {kind} types", actual, limit, "types")
