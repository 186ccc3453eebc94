"""Stored rows as projections see them: decoded events, or columns for an SQL-only projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from journal.model import JSON
from journal.preparation import TIME_KEY
from journal.rows import EventRow, Names, split_metadata
from kernel import clock
from kernel.errors import Undecodable
from projections.model import Definition, ProjectedEvent
from projections.sqlfile import ALL, META, dispatch
from schemas.descriptors import Decoder


async def prepare(rows: Sequence[EventRow], names: Names, decoder: Decoder) -> None:
    """Loads what decoding ``rows`` needs as it is now; see `Decoder.prepare`.

    What is decoded with an older descriptor would stay in the tables, so the registry's version is
    asked for once a batch, after its rows were read.
    """
    kinds = (names.event_types[type_id] for type_id in {row[5] for row in rows})
    await decoder.prepare([(kind.name, kind.content_type) for kind in kinds], current=True)


def project(row: EventRow, names: Names, decoder: Decoder) -> ProjectedEvent:
    """The event of a row, in its present shape; call `prepare` first.

    Raises:
        Undecodable, UnknownType: the payload is not what its type says.

    """
    (position, sequence, recorded_at, _, event_id, type_id, entity_type_id, _, entity_id, payload,
     stored) = row  # fmt: skip
    kind = names.event_types[type_id]
    time = recorded_at
    metadata: Mapping[str, Any] = {}
    if stored is not None:
        own, extras = split_metadata(stored)
        metadata = orjson.loads(own) if own else {}
        if "client_time_us" in extras:
            time = clock.from_us(extras["client_time_us"])
    shape = decoder.read(kind.name, kind.content_type, kind.schema_version, payload)
    return ProjectedEvent(
        position, sequence, names.entity_types[entity_type_id], entity_id, shape.type, recorded_at,
        time, shape.data, metadata, payload, kind.content_type, str(event_id), shape.schema_version,
    )  # fmt: skip


class Columns:
    """The arrays that `sqlfile.dispatch` wants for a batch of rows."""

    def __init__(self, definition: Definition, names: Names, decoder: Decoder) -> None:
        self.statement, used = dispatch(definition)
        self._names = names
        self._decoder = decoder
        self._numbers = {h.event_type: i for i, h in enumerate(definition.handlers)}
        # By the id of the stored type: present type, its handler, and whether PostgreSQL may parse
        # the payload itself (numbers then keep all their digits).
        self._types: dict[int, tuple[str, int | None, bool]] = {}
        columns: list[Callable[[EventRow], Any]] = [
            *(getattr(self, f"_{name}") for name in META), self._metadata, self._data,
        ]  # fmt: skip
        self._columns = [columns[argument - 1] for argument in used]

    def arrays(self, rows: Sequence[EventRow]) -> list[list[Any]]:
        """``$1``, ``$2``, … of the statement.

        Raises:
            Undecodable, UnknownType: a payload is not what its type says.

        """
        types = self._types
        for type_id in {row[5] for row in rows} - types.keys():
            kind = self._names.event_types[type_id]
            present = self._decoder.upcasters.target(kind.name, kind.schema_version)
            as_stored = present == (kind.name, kind.schema_version)
            handler = self._numbers.get(present.type, self._numbers.get(ALL))
            types[type_id] = present.type, handler, kind.content_type == JSON and as_stored
        return [
            [types[row[5]][1] for row in rows],
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
        return self._types[row[5]][0]

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
        if self._types[row[5]][2]:
            try:
                return row[9].decode()
            except UnicodeDecodeError:
                raise Undecodable("the payload is not UTF-8, so it is not JSON") from None
        kind = self._names.event_types[row[5]]
        value = self._decoder.decode(kind.name, kind.content_type, kind.schema_version, row[9])
        return None if value is None else orjson.dumps(value).decode()
