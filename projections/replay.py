"""Replays: chosen entities of a live build are deleted and made again from their events.

The worker that has a segment's lease does it between two batches, a few entities in a transaction
that ends as every batch does: the segment held where it stands, the lease fenced. So the tables
equal the fold of the log up to the checkpoint before, between and after every step, and a worker
that is killed leaves no entity half made; another one goes on at the cursor.

An event that was parked stays parked: the replay passes over it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

import orjson

from journal.model import EntityPage, LoadQuery, ReadQuery
from journal.queries import page_token
from journal.reader import LoadedRows
from journal.rows import EventRow, Names, RowBatch
from kernel import ids, sql
from kernel.database import Connection, Database, transaction
from kernel.errors import Conflict, EntityNotFound, EverstateError, InvalidArgument, NotFound
from kernel.leases import fence
from projections import store
from projections.builds import search_path
from projections.execute import Applier, Moved, Poison, Target, Transaction, batch_seconds
from projections.model import Definition, Segment
from projections.rebuild import First

MAX_ENTITIES = 1_000
MAX_TYPES = 100
MAX_REASON = 1_000
STEP_EVENTS = 1_000
"""A step takes entities until they have this many events: a bound of its transaction's time."""

_STEP_ENTITIES = 50
_PAGE = 500
_SECONDS = 30.0
_MESSAGE_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entities to replay: exactly one of the three.

    ``entities``: (type, id) each; ``types``: all entities of these types; ``from_position`` and
    ``to_position``: all entities that have an event there (inclusive).
    """

    entities: tuple[tuple[str, str], ...] = ()
    types: tuple[str, ...] = ()
    from_position: int = 0
    to_position: int = 0

    def json(self) -> dict[str, Any]:
        """As it is stored."""
        if self.entities:
            return {"entities": [list(pair) for pair in self.entities]}
        if self.types:
            return {"types": list(self.types)}
        return {"from": self.from_position, "to": self.to_position}


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """A replay and how far it is. ``rate``: events a second for each segment."""

    replay_id: str
    name: str
    version: int
    build: int
    state: str
    selection: Mapping[str, Any]
    rate: float | None
    reason: str
    principal: str
    error: Mapping[str, Any] | None
    created_at: datetime
    finished_at: datetime | None
    entities: int
    events: int
    segments: int
    segments_done: int


class Task(NamedTuple):
    """What one segment has to do for a replay; see replay_running.sql."""

    replay_id: Any
    name: str
    version: int
    build: int
    segment: int
    rate: float | None
    cursor: Any


# Ordering


def check(selection: Selection, handled: Sequence[str], head: int) -> None:
    """Refuses what cannot be replayed. ``handled``: entity types of the projection, empty: all.

    Raises:
        InvalidArgument: names the field and the limit.

    """
    given = [
        name
        for name, there in (
            ("entities", bool(selection.entities)),
            ("types", bool(selection.types)),
            ("from_position", bool(selection.from_position or selection.to_position)),
        )
        if there
    ]
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise InvalidArgument(
            "selection", f"give one of entities, types, and a range of positions; there is {said}"
        )
    if len(selection.entities) > MAX_ENTITIES:
        raise InvalidArgument("entities", f"{len(selection.entities)} are more than {MAX_ENTITIES}")
    if len(selection.types) > MAX_TYPES:
        raise InvalidArgument("types", f"{len(selection.types)} are more than {MAX_TYPES}")
    for kind in (*selection.types, *(kind for kind, _ in selection.entities)):
        if handled and kind not in handled:
            raise InvalidArgument(
                given[0], f"the projection handles {', '.join(handled)}, not {kind!r}"
            )
    if given == ["from_position"]:
        low, high = selection.from_position, selection.to_position
        if not 1 <= low <= high:
            raise InvalidArgument("from_position", f"{low} is not from 1 to to_position ({high})")
        if high > head:
            raise InvalidArgument("to_position", f"{high} is beyond the head ({head})")


async def order(
    database: Database,
    name: str,
    selection: Selection,
    *,
    reason: str,
    principal: str = "",
    rate: float | None = None,
    replay_id: str | None = None,
    first: First | None = None,
    timeout: float = 10,
) -> ReplayRow:
    """Orders a replay into the live build; workers do it. ``rate``: events a second and segment.

    ``replay_id`` (a UUID): one that was ordered before is not ordered again, its row is returned.
    ``first``: done before, in the same transaction.

    Raises:
        NotFound: there is no such projection. InvalidArgument: names the field and the limit.
        Conflict: the projection does not say how an entity is deleted, or another replay runs.

    """
    if not reason.strip() or len(reason) > MAX_REASON:
        raise InvalidArgument("reason", f"is empty or longer than {MAX_REASON} characters")
    if rate is not None and not 0 < rate <= 1e6:
        raise InvalidArgument("rate", f"{rate:g} is not above 0 and at most 1,000,000 a second")
    replay_id = replay_id or ids.new_id()
    schema = database.schema
    slices = sorted({ids.slice_of(*pair) for pair in selection.entities})
    async with database.connection(timeout, writing=True) as connection, connection.transaction():
        row = await store.run(connection, "rebuild_lock", schema, name)
        if row is None:
            raise NotFound(f"there is no projection {name!r}")
        if first is not None:
            await first(connection)
        key = name, row["live_version"], row["live_build"]
        before = await connection.fetch(
            store.statement("replays", schema), name, replay_id, 1, None
        )
        if before:
            return _row(before[0])
        what = await store.run(connection, "replay_what", schema, *key)
        if not what["replayable"]:
            raise not_replayable(name)
        if what["running"] is not None:
            raise Conflict(f"projection {name!r}: replay {what['running']} is running")
        check(selection, what["entity_types"], what["head"])
        await store.run(
            connection, "replay_create", schema, replay_id, *key,
            orjson.dumps(selection.json()).decode(), rate, reason, principal, slices or None,
        )  # fmt: skip
    return await get(database, name, replay_id)


def not_replayable(name: str) -> Conflict:
    """That entities of a projection cannot be replayed."""
    return Conflict(
        f"projection {name!r} cannot replay entities: it does not say how one is deleted"
        " (`delete_entity` in Python, `-- delete entity` in SQL); rebuild it instead"
    )


async def get(
    database: Database, name: str, replay_id: str, *, timeout: float | None = 10
) -> ReplayRow:
    """A replay of a projection. Raises `NotFound`."""
    for row in await _rows(database, name, replay_id, 1, timeout):
        return row
    raise NotFound(f"projection {name!r} has no replay {replay_id}")


async def list_replays(
    database: Database,
    name: str,
    limit: int = 100,
    before: str | None = None,
    *,
    timeout: float | None = 10,
) -> list[ReplayRow]:
    """A page of a projection's replays, newest first; go on ``before`` the id of the last one.

    A selection of entities or types says here how many there are; `get` says which.

    Raises:
        InvalidArgument: ``limit`` is not from 1 to 1,000.

    """
    if not 1 <= limit <= 1_000:
        raise InvalidArgument("limit", f"{limit} is not from 1 to 1000")
    return await _rows(database, name, None, limit, timeout, before)


async def cancel(database: Database, name: str, replay_id: str) -> ReplayRow:
    """Ends a replay after the entities it is at; what it replayed stays. Its row.

    Raises:
        NotFound: there is none.

    """
    row = await get(database, name, replay_id)
    await database.fetchrow(
        sql.load("projections", "replay_end", database.schema), row.replay_id, "cancelled", None,
        timeout=10,
    )  # fmt: skip
    return await get(database, name, replay_id)


async def _rows(
    database: Database,
    name: str,
    replay_id: str | None,
    limit: int,
    timeout: float | None,
    before: str | None = None,
) -> list[ReplayRow]:
    rows = await database.fetch(
        sql.load("projections", "replays", database.schema), name, replay_id, limit,
        before, timeout=timeout,
    )  # fmt: skip
    return [_row(row) for row in rows]


def _row(row: Any) -> ReplayRow:
    error = orjson.loads(row["error"]) if row["error"] else None
    return ReplayRow(**{**row, "selection": orjson.loads(row["selection"]), "error": error})


# Doing


class Source(Protocol):
    """Where entities and their events come from: a `journal.store.StoreJournal`."""

    def load_rows(
        self, log: str, query: LoadQuery, timeout: float | None, *, below_floor: bool = False
    ) -> AsyncIterator[LoadedRows]: ...

    def read_rows(
        self, log: str, query: ReadQuery, timeout: float | None
    ) -> AsyncIterator[RowBatch]: ...

    async def list_entities(
        self,
        log: str,
        entity_type: str = "",
        id_prefix: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
        timeout: timedelta | None = None,
    ) -> EntityPage: ...


async def tasks(database: Database, held: Iterable[Segment] | None = None) -> list[Task]:
    """What replays there is to do for the segments ``held``; None: for all segments."""
    keys: list[list[Any] | None] = [None] * 4
    if held is not None:
        found = [(key.name, key.version, key.build, key.segment) for key in held]
        keys = [[key[i] for key in found] for i in range(4)]
    rows = await database.fetch(
        sql.load("projections", "replay_running", database.schema), *keys, timeout=10
    )
    return [Task(*row) for row in rows]


async def finish(database: Database) -> list[Any]:
    """Ends replays that are done, or whose build is gone; (id, name, state) of each."""
    return await database.fetch(sql.load("projections", "replay_finish", database.schema))


class _Item(NamedTuple):
    """An entity to replay, and the cursor once it is done."""

    entity_type: str
    entity_id: str
    cursor: Mapping[str, Any]


@dataclass(slots=True)
class _Page:
    """Entities of a selection; ``cursor``: once all are done; ``last``: then there are no more."""

    items: list[_Item]
    cursor: Mapping[str, Any]
    last: bool


class _Failed(Exception):
    """An entity cannot be replayed."""

    def __init__(self, item: _Item, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.item = item
        self.cause = cause


class SegmentReplay:
    """Replays one segment's share, a step at a time, for the runner that holds its lease.

    ``turn`` is shared by all replays of a process: a step holds one connection and reads through
    another, and a pool whose connections all wait for another one would wait for ever.
    """

    def __init__(
        self,
        database: Database,
        source: Source,
        names: Names,
        definition: Definition,
        applier: Applier,
        *,
        log: str,
        slices: tuple[int, int],
        task: Task,
        turn: asyncio.Lock,
    ) -> None:
        self.task = task
        self.ended = False
        self._database = database
        self._source = source
        self._names = names
        self._definition = definition
        self._applier = applier
        self._log = log
        self._slices = slices
        self._turn = turn
        self._page: _Page | None = None
        self._cursor: Mapping[str, Any] = orjson.loads(task.cursor)
        self._not_before = 0.0

    @property
    def is_due(self) -> bool:
        """Whether there is a step to do now; the rate may say: later."""
        return not self.ended and asyncio.get_running_loop().time() >= self._not_before

    async def step(self, target: Target) -> int:
        """Replays a few entities; the number of their events. ``target``: where the segment stands.

        Raises:
            Moved: the segment may not be worked on now; look again. LeaseLost: another worker has
            it. Unavailable, DeadlineExceeded: nothing was written, try again.

        """
        async with self._turn:
            if self._page is None:
                self._page = await self._read_page()
            page = self._page
            try:
                done, events = await self._replay(target, page)
            except _Failed as failed:
                self.ended = True
                await self._fail(failed)
                return 0
            except Moved:
                self.ended = True
                raise
        del page.items[:done]
        if not page.items:
            self._cursor, self._page, self.ended = page.cursor, None, page.last
        if self.task.rate:
            now = asyncio.get_running_loop().time()
            self._not_before = now + events / self.task.rate
        return events

    async def _replay(self, target: Target, page: _Page) -> tuple[int, int]:
        """One transaction; how many entities and events were replayed."""
        database, segment = self._database, target.segment
        done = events = 0
        cursor = page.cursor
        async with (
            database.connection(writing=True) as connection,
            transaction(connection, batch_seconds(database)),
        ):
            for item in page.items[:_STEP_ENTITIES]:
                try:
                    events += await self._replay_entity(connection, target, item)
                except Poison as poison:
                    raise _Failed(item, poison.cause) from poison
                done += 1
                cursor = item.cursor
                if events >= STEP_EVENTS:
                    break
            whole = done == len(page.items)
            held = await store.run(
                connection, "replay_hold", database.schema, segment.name, segment.version,
                segment.build, segment.segment, segment.position, self.task.replay_id,
                orjson.dumps(page.cursor if whole else cursor).decode(), done, events,
                "done" if whole and page.last else "running",
            )  # fmt: skip
            if held is None:
                raise Moved
            await fence(connection, target.lease, database.schema)
        return done, events

    async def _replay_entity(self, connection: Connection, target: Target, item: _Item) -> int:
        """Deletes what an entity left and applies its events again; how many."""
        schema, segment = self._database.schema, target.segment
        key = segment.name, segment.version, segment.build
        rows = await connection.fetch(
            store.statement("parked_positions", schema), *key, item.entity_type, item.entity_id
        )
        parked = {row[0] for row in rows}
        await store.run(
            connection, "enter", schema, target.role_name, search_path(target.schema_name), "",
            self._applier.idle_ms,
        )  # fmt: skip
        await self._applier.delete(
            Transaction(connection, target.schema_name, replaying=True),
            item.entity_type,
            item.entity_id,
        )
        count = 0
        async for part in self._events(item, segment.position):
            wanted = [row for row in part if row[0] not in parked]
            if wanted:
                prepared = await self._applier.prepare(wanted)
                tx = Transaction(connection, target.schema_name, replaying=True)
                await self._applier.apply(tx, prepared)
                count += len(wanted)
        await store.run(connection, "leave", schema)
        return count

    async def _events(self, item: _Item, position: int) -> AsyncIterator[list[EventRow]]:
        """The entity's handled events up to a position, some at a time."""
        handled = set(self._applier.stored_types)
        query = LoadQuery(item.entity_type, item.entity_id, ignore_snapshot=True)
        # Floors are of loads: a projection has, and makes again, what is in the log (ADR 0014).
        parts = self._source.load_rows(self._log, query, _SECONDS, below_floor=True)
        try:
            async for part in parts:
                yield [
                    row
                    for row in part.rows
                    if row[0] <= position
                    and (not handled or self._names.event_types[row[5]].name in handled)
                ]
                if part.rows and part.rows[-1][0] >= position:
                    return
        except EntityNotFound:
            return  # then it left nothing that its events could make again

    async def _fail(self, failed: _Failed) -> None:
        cause = failed.cause
        code = cause.code if isinstance(cause, EverstateError) else "EXCEPTION"
        error = {
            "code": code,
            "message": (str(cause) or type(cause).__name__)[:_MESSAGE_CHARS],
            "entity_type": failed.item.entity_type,
            "entity_id": failed.item.entity_id,
        }
        await self._database.fetchrow(
            sql.load("projections", "replay_end", self._database.schema), self.task.replay_id,
            "failed", orjson.dumps(error).decode(), timeout=10,
        )  # fmt: skip

    # Which entities

    async def _read_page(self) -> _Page:
        # Read for every page, not kept: a worker may have a thousand segments of a large one.
        row = await self._database.fetchrow(
            sql.load("projections", "replay_selection", self._database.schema),
            self.task.replay_id, timeout=10,
        )  # fmt: skip
        if row is None:
            self.ended = True
            raise Moved
        selection: Mapping[str, Any] = orjson.loads(row["selection"])
        if "entities" in selection:
            return self._listed(selection["entities"])
        if "types" in selection:
            return await self._of_types(selection["types"])
        return await self._of_range(selection["from"], selection["to"])

    def _mine(self, entity_type: str, entity_id: str) -> bool:
        low, high = self._slices
        return low <= ids.slice_of(entity_type, entity_id) <= high

    def _listed(self, pairs: Sequence[Sequence[str]]) -> _Page:
        begin = self._cursor.get("index", 0)
        items = [
            _Item(kind, entity_id, {"index": i + 1})
            for i, (kind, entity_id) in enumerate(pairs)
            if i >= begin and self._mine(kind, entity_id)
        ]
        return _Page(items, {"index": len(pairs)}, last=True)

    async def _of_types(self, types: Sequence[str]) -> _Page:
        number, after = self._cursor.get("type", 0), self._cursor.get("after")
        if number >= len(types):
            return _Page([], self._cursor, last=True)
        kind = types[number]
        page = await self._source.list_entities(
            self._log, kind, page_size=_PAGE,
            page_token="" if after is None else page_token(kind, after),
            timeout=timedelta(seconds=_SECONDS),
        )  # fmt: skip
        items = [
            _Item(kind, entity.entity_id, {"type": number, "after": entity.entity_id})
            for entity in page.entities
            if self._slices[0] <= entity.slice <= self._slices[1]
        ]
        if page.next_page_token:
            following = {"type": number, "after": page.entities[-1].entity_id}
            return _Page(items, following, last=False)
        return _Page(items, {"type": number + 1}, last=number + 1 == len(types))

    async def _of_range(self, low: int, high: int) -> _Page:
        begin = self._cursor.get("position", low)
        if begin > high:
            return _Page([], self._cursor, last=True)
        query = ReadQuery(
            from_position=begin,
            to_position=high,
            entity_types=self._definition.entity_types,
            slices=(self._slices,),
        )
        # Each entity once: at its first event in the range.
        async for batch in self._source.read_rows(self._log, query, _SECONDS):
            items = [
                _Item(self._names.entity_types[row[6]], row[8], {"position": row[0] + 1})
                for row in batch.rows
                if (row[3] or 0) < low
            ]
            return _Page(items, {"position": batch.next_position}, last=batch.next_position > high)
        return _Page([], {"position": high + 1}, last=True)
