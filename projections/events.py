"""Stored rows as projections see them: decoded events, or columns for an SQL-only projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from journal.model import JSON
from journal.preparation import TIME_KEY
from journal.rows import EventRow, Names, split_metadata
from kernel import clock
from projections.model import Definition, ProjectedEvent, UndecodablePayload
from projections.sqlfile import ALL, DATA, META, METADATA, dispatch


class Decode(Protocol):
    """Turns a payload into a JSON value."""

    def __call__(
        self, event_type: str, content_type: str, schema_version: int, payload: bytes
    ) -> Any:
        """The value; None: nothing is known of the content type.

        Raises:
            UndecodablePayload, or an error of the tree: the payload is not what it is said to be.

        """
        ...


def decode_json(
    event_type: str,  # noqa: ARG001 - part of the port
    content_type: str,
    schema_version: int,  # noqa: ARG001 - part of the port
    payload: bytes,
) -> Any:
    """Knows JSON only."""
    if content_type != JSON:
        return None
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise UndecodablePayload(f"the payload is not JSON: {error}") from None


def project(row: EventRow, names: Names, decode: Decode) -> ProjectedEvent:
    """The event of a row.

    Raises:
        UndecodablePayload, or an error of the tree: see `Decode`.

    """
    (position, sequence, recorded_at, _, event_id, type_id, entity_type_id, _, entity_id, payload,
     stored) = row  # fmt: skip
    kind = names.event_types[type_id]
    time, metadata = recorded_at, {}
    if stored is not None:
        own, extras = split_metadata(stored)
        metadata = orjson.loads(own) if own else {}
        if "client_time_us" in extras:
            time = clock.from_us(extras.pop("client_time_us"))
    return ProjectedEvent(
        position, sequence, names.entity_types[entity_type_id], entity_id, kind.name, recorded_at,
        time, decode(kind.name, kind.content_type, kind.schema_version, payload), metadata, payload,
        kind.content_type, str(event_id), kind.schema_version,
    )  # fmt: skip


Column = Callable[[EventRow], Any]


class Columns:
    """The arrays that `sqlfile.dispatch` wants for a batch of rows."""

    def __init__(self, definition: Definition, names: Names, decode: Decode) -> None:
        self.statement, used = dispatch(definition)
        self._names = names
        self._decode = decode
        self._numbers = {h.event_type: i for i, h in enumerate(definition.handlers)}
        self._rest = self._numbers.get(ALL)
        self._handlers: dict[int, int | None] = {}
        known = [*META, "metadata", "data"]
        self._columns: list[Column] = [getattr(self, f"_{known[i - 1]}") for i in used]
        assert (known[METADATA - 1], known[DATA - 1]) == ("metadata", "data")

    def arrays(self, rows: Sequence[EventRow]) -> list[list[Any]]:
        """``$1``, ``$2``, … of the statement. Raises what `Decode` raises."""
        handlers = self._handlers
        for type_id in {row[5] for row in rows} - handlers.keys():
            name = self._names.event_types[type_id].name
            handlers[type_id] = self._numbers.get(name, self._rest)
        return [
            [handlers[row[5]] for row in rows],
            *([column(row) for row in rows] for column in self._columns),
        ]

    def _position(self, row: EventRow) -> int:
        return row[0]

    def _sequence(self, row: EventRow) -> int:
        return row[1]

    def _entity_type(self, row: EventRow) -> str:
        return self._names.entity_types[row[6]]

    def _entity_id(self, row: EventRow) -> str:
        return row[8]

    def _type(self, row: EventRow) -> str:
        return self._names.event_types[row[5]].name

    def _recorded_at(self, row: EventRow) -> Any:
        return row[2]

    def _time(self, row: EventRow) -> Any:
        stored = row[10]
        if stored is not None and TIME_KEY in stored:
            time = split_metadata(stored)[1].get("client_time_us")
            if time is not None:
                return clock.from_us(time)
        return row[2]

    def _event_id(self, row: EventRow) -> Any:
        return row[4]

    def _metadata(self, row: EventRow) -> str | None:
        return (split_metadata(row[10])[0] or None) if row[10] is not None else None

    def _data(self, row: EventRow) -> str | None:
        kind = self._names.event_types[row[5]]
        if kind.content_type == JSON and self._decode is decode_json:
            # PostgreSQL parses it: numbers keep all their digits.
            try:
                return row[9].decode()
            except UnicodeDecodeError as error:
                raise UndecodablePayload(f"the payload is not UTF-8: {error.reason}") from None
        value = self._decode(kind.name, kind.content_type, kind.schema_version, row[9])
        return None if value is None else orjson.dumps(value).decode()
