"""A journal under test and a log of its own: what the conformance suite speaks through."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from journal.journal import Journal
from journal.memory import TypeRules
from journal.model import (
    ANY,
    Append,
    Appended,
    Entity,
    EntityAppend,
    Event,
    EventBatch,
    Expected,
    LoadQuery,
    NewEvent,
    NewSnapshot,
    ReadQuery,
    Snapshot,
    VerifyReport,
)
from journal.store import StoreJournal
from kernel import clock
from kernel.ids import new_id
from sidecar_api.client.messages import to_event

TYPE = "cart"
SetState = Callable[[str, tuple[str, str], str], Awaitable[None]]
SetFloor = Callable[[str, tuple[str, str], int], Awaitable[None]]
SetType = Callable[[str, TypeRules], Awaitable[None]]
DAY_US = 86_400_000_000


def entity(
    name: str,
    expected: Expected = ANY,
    first: int = 0,
    *,
    kind: str = TYPE,
    snapshot: NewSnapshot | None = None,
) -> EntityAppend:
    return EntityAppend(kind, name, expected, first, snapshot)


def event(member: int = 0, payload: bytes = b"x", kind: str = "Added", **fields: Any) -> NewEvent:
    """An event with an id of its own."""
    given: dict[str, Any] = {"event_id": new_id(), **fields}
    return NewEvent(kind, payload, entity=member, **given)


def events(count: int, member: int = 0, **fields: Any) -> tuple[NewEvent, ...]:
    return tuple(event(member, b"%d" % n, **fields) for n in range(count))


def uuid7_at(time_us: int) -> str:
    """A UUIDv7 made at another time than now."""
    random = uuid.uuid4().int & ((1 << 76) - 1) & ~(0b11 << 62)
    return str(uuid.UUID(int=(time_us // 1000) << 80 | 7 << 76 | 0b10 << 62 | random))


def days_ago(days: float) -> str:
    return uuid7_at(clock.now_us() - int(days * DAY_US))


STATES = ("active", "deleted", "tombstoned")


async def set_state_in(store: StoreJournal, log: str, name: tuple[str, str], state: str) -> None:
    """Sets the state of an entity in a store."""
    opened = await store.open_log(log)
    number = await store.names.find_entity_types([name[0]], 5)
    rows = await store.database.fetch(
        "SELECT * FROM everstate.set_entity_states_v1($1, $2, $3, $4, $5)",
        opened.log_id, number, [name[1]], [0, 1, 2], [STATES.index(state)],
    )  # fmt: skip
    assert len(rows) == 1


async def set_floor_in(store: StoreJournal, log: str, name: tuple[str, str], floor: int) -> None:
    """Moves the floor of an entity in a store, as compaction does (its guards are elsewhere)."""
    opened = await store.open_log(log)
    rows = await store.database.fetch(
        """INSERT INTO everstate.entity_marks
          (log_id, entity_key, floor, floor_position, snapshot_seq, floor_type_id, floor_snapshot)
        SELECT e.log_id, e.entity_key, $4, coalesce(v.position, 0), nullif($4 - 1, 0),
          CASE WHEN s.seq IS NOT NULL THEN e.type_id END, s.type
        FROM everstate.entities e JOIN everstate.entity_types t USING (type_id)
        LEFT JOIN everstate.events v ON v.log_id = e.log_id AND v.entity_key = e.entity_key
          AND v.seq = $4 - 1
        LEFT JOIN everstate.snapshots s ON s.log_id = e.log_id AND s.entity_key = e.entity_key
          AND s.seq = $4 - 1
        WHERE e.log_id = $1 AND t.name = $2 AND e.entity_id = $3
        ON CONFLICT (log_id, entity_key) DO UPDATE SET floor = excluded.floor,
          floor_position = excluded.floor_position, snapshot_seq = excluded.snapshot_seq,
          floor_type_id = excluded.floor_type_id, floor_snapshot = excluded.floor_snapshot
        RETURNING floor""",
        opened.log_id, *name, floor,
    )  # fmt: skip
    assert len(rows) == 1


async def set_type_in(store: StoreJournal, entity_type: str, rules: TypeRules) -> None:
    """Sets an entity type in a database."""
    settings = {k: v for k, v in rules._asdict().items() if v}
    await store.names.ensure_entity_types([entity_type], 5)
    await store.database.fetch(
        "UPDATE everstate.entity_types SET settings = $2, version = version + 1 WHERE name = $1",
        entity_type, orjson.dumps(settings).decode(),
    )  # fmt: skip
    await store.policies.refresh()


@dataclass(frozen=True)
class Subject:
    """``kind``: memory, store or client. ``address`` is the node's, for the client."""

    kind: str
    journal: Journal
    log: str
    address: str = ""
    states: SetState | None = None
    floors: SetFloor | None = None
    types: SetType | None = None
    snapshots: Any = None
    """`snapshots.store.SnapshotStore`, its twin, or the client of its service."""
    kinds: Any = None
    """`snapshots.store.TypeStore`, its twin, or the client of the service."""

    async def set_floor(self, name: str, floor: int, *, kind: str = TYPE) -> None:
        """As compaction does it, and its undo."""
        assert self.floors is not None
        await self.floors(self.log, (kind, name), floor)

    async def set_type(self, kind: str, rules: TypeRules) -> None:
        """Sets what the journal goes by; other tests have other types."""
        assert self.types is not None
        await self.types(kind, rules)

    async def set_state(self, name: str, state: str, *, kind: str = TYPE) -> None:
        """As an operation does it; there is no call of the journal for it."""
        assert self.states is not None
        await self.states(self.log, (kind, name), state)

    async def append(
        self, *entities: EntityAppend, events: tuple[NewEvent, ...], append_id: str = ""
    ) -> Appended:
        return await self.journal.append(self.log, Append(entities, events, append_id))

    async def put(
        self, name: str, count: int = 1, expected: Expected = ANY, first: int = 0, **of: Any
    ) -> Appended:
        """Appends events to one entity."""
        return await self.append(entity(name, expected, first, **of), events=events(count))

    async def batches(self, **query: Any) -> list[EventBatch]:
        return [batch async for batch in self.journal.read(self.log, ReadQuery(**query))]

    async def read(self, **query: Any) -> list[Event]:
        return [to_event(e) for batch in await self.batches(**query) for e in batch.events]

    async def positions(self, **query: Any) -> list[int]:
        return [e.position for e in await self.read(**query)]

    async def load(
        self, name: str, *, kind: str = TYPE, **query: Any
    ) -> tuple[Entity, Snapshot | None, list[Event]]:
        parts = [p async for p in self.journal.load(self.log, LoadQuery(kind, name, **query))]
        first = parts[0].entity
        assert first is not None
        assert all(part.entity is None and part.snapshot is None for part in parts[1:])
        return first, parts[0].snapshot, [to_event(e) for part in parts for e in part.events]

    async def sequences(self, name: str, **query: Any) -> list[int]:
        return [e.sequence for e in (await self.load(name, **query))[2]]

    async def entity(self, name: str, kind: str = TYPE) -> Entity:
        return await self.journal.get_entity(self.log, kind, name)

    async def list_all(
        self, kind: str = "", prefix: str = "", *, size: int = 100
    ) -> AsyncIterator[list[str]]:
        """The names on each page, until there is no next one."""
        token = ""
        while True:
            page = await self.journal.list_entities(
                self.log, kind, prefix, page_size=size, page_token=token
            )
            yield [f"{e.entity_type}/{e.entity_id}" for e in page.entities]
            token = page.next_page_token
            if not token:
                return

    async def head(self) -> int:
        return (await self.journal.get_log(self.log)).head

    async def contents(self) -> tuple[Any, ...]:
        """All that an append could have left behind."""
        info = await self.journal.get_log(self.log)
        page = await self.journal.list_entities(self.log, page_size=1000)
        return (info.head, info.bytes_total, info.entities, page, await self.read())

    async def verify(self, first: int = 0, last: int = 0) -> VerifyReport:
        found = [p async for p in self.journal.verify(self.log, first, last)]
        report = found[-1].report
        assert report is not None
        assert all(p.report is None for p in found[:-1])
        return report
