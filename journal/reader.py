"""Reads: short keyset statements, bounded in rows and bytes, so that no reader holds a chunk for
long and no slow reader holds more than one small batch in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from journal.dictionary import Dictionary
from journal.model import Entity, EntityPage, LoadQuery, ReadQuery, Snapshot
from journal.queries import (
    check_floor,
    check_from_position,
    check_list,
    check_load,
    check_page_size,
    check_read,
    check_time,
    first_sequence,
    page_token,
)
from journal.rows import EventRow, RowBatch
from kernel import clock, sql
from kernel.database import Database
from kernel.errors import CorruptLog, DeadlineExceeded, EntityNotFound

BATCH_ROWS = 1_000
BATCH_BYTES = 160 * 1024
"""Payload bytes after which a batch ends; the event that crosses it is its last."""

_LAST = 2**63 - 1
_FILTER_WINDOW, _MAX_FILTER_WINDOW = 4_000, 64_000
_STATES = {0: "active", 1: "deleted", 2: "tombstoned"}


class LogRef(Protocol):
    """An open log."""

    @property
    def log_id(self) -> int: ...


class Logs(Protocol):
    """Finds logs by name."""

    async def open_log(self, name: str, timeout: float | None = None) -> LogRef: ...


@dataclass(slots=True)
class LoadedRows:
    """A piece of a loaded entity, events as rows."""

    entity: Entity | None
    snapshot: Snapshot | None
    rows: list[EventRow]


class Span(NamedTuple):
    """Events of an entity: those after a sequence number up to another one, which lie from ``low``
    to ``high`` in the log.
    """

    key: int
    after: int
    upto: int
    low: int
    high: int


class Reader:
    """The read statements of a journal."""

    def __init__(self, database: Database, names: Dictionary) -> None:
        self._database = database
        self._names = names

    async def _fetch(self, name: str, *args: object, timeout: float | None) -> list[Any]:
        return await self._database.fetch(
            sql.load("journal", name, self._database.schema), *args, timeout=timeout
        )

    async def bounds(self, log_id: int, timeout: float | None) -> tuple[int, int]:
        """(first readable position, head)."""
        row = (await self._fetch("head", log_id, timeout=timeout))[0]
        return row["first"] or 1, row["head"]

    async def position_at(self, log_id: int, time_us: int, head: int, timeout: float | None) -> int:
        """The first position recorded at or after a time, head + 1 when none is."""
        check_time(time_us)
        moment = clock.from_us(max(time_us, 0))
        rows = await self._fetch("position_at", log_id, moment, timeout=timeout)
        return rows[0][0] if rows else head + 1

    # The log

    async def range(
        self, log_id: int, first: int, last: int, timeout: float | None
    ) -> list[EventRow]:
        """The events of a range of positions; it may end before ``last`` (`BATCH_BYTES`)."""
        rows: list[EventRow] = await self._fetch(
            "read_forwards", log_id, first, last, BATCH_ROWS, BATCH_BYTES, timeout=timeout
        )
        await self._names.learn_rows(rows, timeout)
        return rows

    async def read(
        self, logs: Logs, log: str, query: ReadQuery, timeout: float | None
    ) -> AsyncGenerator[RowBatch, None]:
        """Batches of the selection; there is always a last one, which may be empty."""
        left = _Clock(timeout)
        check_read(query)
        log_id = (await logs.open_log(log, left())).log_id
        first, head = await self.bounds(log_id, left())
        low, high = await self._range(log_id, query, first, head, left)
        filters = await self._filters(query, left)
        backwards = query.backwards
        edge = low - 1 if backwards else high + 1  # where a finished read stands
        if filters is _NOTHING or low > high:
            yield RowBatch((), edge, head)
            return
        name = ("select_" if filters else "read_") + ("backwards" if backwards else "forwards")
        window = _FILTER_WINDOW if filters else BATCH_ROWS
        wanted = query.max_events or 2**62
        while low <= high and wanted > 0:
            if backwards:
                span = (max(low, high - window + 1), high)
            else:
                span = (low, min(high, low + window - 1))
            limit = min(BATCH_ROWS, wanted)
            rows: list[EventRow] = await self._fetch(
                name, log_id, *span, limit, BATCH_BYTES, *filters, timeout=left()
            )
            await self._names.learn_rows(rows, left())
            wanted -= len(rows)
            if filters:
                whole = len(rows) < limit and _payload_bytes(rows) < BATCH_BYTES
            else:
                whole = not rows or rows[-1][0] == (span[0] if backwards else span[1])
            if backwards:
                high = span[0] - 1 if whole else rows[-1][0] - 1
            else:
                low = span[1] + 1 if whole else rows[-1][0] + 1
            at = high if backwards else low
            more = low <= high and wanted > 0
            if rows or not more:
                yield RowBatch(rows, at, head)
            if filters and whole:
                window = min(window * 2, _MAX_FILTER_WINDOW)

    async def _range(
        self, log_id: int, query: ReadQuery, first: int, head: int, left: _Clock
    ) -> tuple[int, int]:
        start = query.from_position
        check_from_position(query, first, head)
        if query.backwards:
            low, high = query.to_position or first, min(start or head, head)
        else:
            low, high = start or first, min(query.to_position or head, head)
        low = max(low, first)
        if query.from_time_us:
            low = max(low, await self.position_at(log_id, query.from_time_us, head, left()))
        if query.to_time_us:
            high = min(high, await self.position_at(log_id, query.to_time_us, head, left()) - 1)
        return low, high

    async def _filters(self, query: ReadQuery, left: _Clock) -> tuple[Any, ...]:
        """Arguments of the select statements; empty: no filter; `_NOTHING`: nothing can match."""
        if not (query.entity_types or query.event_types or query.slices):
            return ()
        entity_types = event_types = None
        if query.entity_types:
            entity_types = await self._names.find_entity_types(query.entity_types, left())
            if not entity_types:
                return _NOTHING
        if query.event_types:
            event_types = await self._names.find_event_types(query.event_types, left())
            if not event_types:
                return _NOTHING
        low = [a for a, _ in query.slices] or None
        high = [b for _, b in query.slices] or None
        return (entity_types, event_types, low, high)

    # Entities

    async def entity(
        self, log_id: int, entity_type: str, entity_id: str, timeout: float | None
    ) -> tuple[Entity, int]:
        """An entity and its key. Raises `EntityNotFound`."""
        rows = await self._fetch("entity", log_id, entity_type, entity_id, timeout=timeout)
        if not rows:
            raise EntityNotFound(entity_type, entity_id)
        return _entity(entity_type, entity_id, rows[0]), rows[0]["entity_key"]

    async def load(
        self,
        logs: Logs,
        log: str,
        query: LoadQuery,
        timeout: float | None,
        *,
        below_floor: bool = False,
    ) -> AsyncIterator[LoadedRows]:
        """The entity, its snapshot, its events after it.

        ``below_floor``: events below the floor are sent as long as they are stored; whoever asks
        minds that there may be none of them. Without it the events are whole, or the load fails.

        Raises:
            EntityNotFound: it never had an event.
            Compacted: the load needs events below the entity's floor.

        """
        left = _Clock(timeout)
        check_load(query)
        log_id = (await logs.open_log(log, left())).log_id
        name = (query.entity_type, query.entity_id)
        after, snapshot, position = query.after_sequence, None, 0
        if query.ignore_snapshot or after:
            entity, key = await self.entity(log_id, *name, left())
        else:
            # Head, floor and snapshot of one moment: no compaction and no prune comes between.
            to = query.to_sequence or _LAST
            found = await self._fetch("load_entity", log_id, *name, to, timeout=left())
            if not found:
                raise EntityNotFound(*name)
            entity, key = _entity(*name, found[0]), found[0]["entity_key"]
            after, kind, content_type, payload, at, position = found[0][9:15]
            if after:
                snapshot = Snapshot(after, kind, content_type, payload, clock.to_us(at))
            else:
                after = 0
        to = min(query.to_sequence or entity.sequence, entity.sequence)
        if not below_floor:
            check_floor(entity, after, to)
        part = LoadedRows(entity, snapshot, [])
        # What a snapshot covers lies before its position: fewer chunks to look into.
        low = max(entity.first_position, (position or 0) + 1)
        after = max(after, first_sequence(entity) - 1)
        while after < to:
            rows: list[EventRow] = await self._fetch(
                "load_events", log_id, key, after, to, low, entity.last_position,
                BATCH_ROWS, BATCH_BYTES, timeout=left(),
            )  # fmt: skip
            if not below_floor and (not rows or rows[-1][1] - after != len(rows)):
                await self._explain_gap(log_id, name, after, to, left())
            if not rows:
                break
            await self._names.learn_rows(rows, left())
            part.rows = rows
            after = rows[-1][1]
            yield part
            part = LoadedRows(None, None, [])
        if part.entity is not None:
            yield part

    async def several(
        self, log_id: int, spans: Sequence[Span], most: int, stop_bytes: int, timeout: float | None
    ) -> list[EventRow]:
        """Stored events of several entities, in their order; ``most`` of each.

        It stops after so many bytes of payloads and metadata; whatever is missing, floors are not
        looked at.
        """
        columns = [list(column) for column in zip(*spans, strict=True)] if spans else [[]] * 5
        rows: list[EventRow] = await self._fetch(
            "load_entities", log_id, *columns, most, stop_bytes, timeout=timeout
        )
        await self._names.learn_rows(rows, timeout)
        return rows

    async def _explain_gap(
        self, log_id: int, name: tuple[str, str], after: int, to: int, timeout: float | None
    ) -> None:
        """Why events are missing that were there when the load began; nothing partial is sent."""
        entity, _ = await self.entity(log_id, *name, timeout)
        check_floor(entity, after, to)
        raise CorruptLog(f"{name[0]}/{name[1]}: events after {after} are missing")

    async def list_entities(
        self,
        log_id: int,
        entity_type: str,
        prefix: str,
        size: int,
        token: str,
        timeout: float | None,
    ) -> EntityPage:
        """A page by type and id."""
        left = _Clock(timeout)
        size = check_page_size(size)
        kind, after = check_list(entity_type, prefix, token)
        found: list[Entity] = []
        while True:
            if kind:
                rows = await self._fetch(
                    "entities", log_id, kind, prefix if after is None else after, _above(prefix),
                    after is not None, size - len(found) + 1, timeout=left(),
                )  # fmt: skip
                found += [_entity(kind, row["entity_id"], row) for row in rows]
                if len(found) > size:
                    last = found[size - 1]
                    return EntityPage(
                        tuple(found[:size]), page_token(last.entity_type, last.entity_id)
                    )
            if entity_type:
                return EntityPage(tuple(found))
            following = await self._fetch("entity_types", kind, 1, timeout=left())
            if not following:
                return EntityPage(tuple(found))
            kind, after = following[0]["name"], None


_NOTHING: tuple[Any, ...] = ("nothing",)


class _Clock:
    """Seconds left until a deadline; None: there is none."""

    __slots__ = ("_end", "_loop")

    def __init__(self, timeout: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = None if timeout is None else self._loop.time() + timeout

    def __call__(self) -> float | None:
        if self._end is None:
            return None
        left = self._end - self._loop.time()
        if left <= 0:
            raise DeadlineExceeded
        return left


def _payload_bytes(rows: list[EventRow]) -> int:
    return sum(len(row[9]) for row in rows)


def _entity(entity_type: str, entity_id: str, row: Any) -> Entity:
    return Entity(
        entity_type, entity_id, row["last_seq"], row["floor"], _STATES[row["state"]],
        row["event_count"], row["first_position"], row["last_position"], row["slice"],
        row["snapshot_seq"] or 0,
    )  # fmt: skip


def _above(prefix: str) -> str | None:
    """The lowest text above all that begin with ``prefix`` (by code point, as UTF-8 sorts)."""
    while prefix:
        code = ord(prefix[-1]) + 1
        if code <= 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if code == 0xD800 else code)
        prefix = prefix[:-1]
    return None
