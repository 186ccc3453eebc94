"""What is stored with a snapshot: what it covers, and when that happened."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from journal.model import ANY, Append, EntityAppend, LoadQuery, NewEvent, NewSnapshot
from journal.store import StoreJournal
from kernel import audit, clock, sql
from kernel.database import Database, transaction
from kernel.errors import (
    Compacted,
    Conflict,
    CorruptLog,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from kernel.ids import new_id
from sidecar_api.client import Client
from snapshots import upkeep
from snapshots.model import TypeSettings
from snapshots.store import SnapshotStore, TypeStore
from snapshots.upkeep import Purge
from tests.conformance.subject import set_floor_in

FIRST_OF_PG = clock.to_us(datetime(1, 1, 1, tzinfo=UTC))
ROW = """SELECT s.seq, s.position, s.event_at, s.recorded_at, s.source FROM everstate.snapshots s
JOIN everstate.entities e ON e.log_id = s.log_id AND e.entity_key = s.entity_key
WHERE e.entity_id = $1"""


def event(member: int, time_us: int = 0) -> NewEvent:
    return NewEvent("Added", b"x", entity=member, client_time_us=time_us)


def entity(name: str, *, snapshot: bool = True) -> EntityAppend:
    return EntityAppend("cart", name, ANY, 0, NewSnapshot("Cart", b"s") if snapshot else None)


async def test_a_snapshot_of_an_append_keeps_position_and_time_of_its_newest_event(
    store: StoreJournal,
) -> None:
    await store.append("default", Append((entity("b", snapshot=False),), (event(0), event(0))))
    said = 1_600_000_000_123_457
    done = await store.append(
        "default",
        Append(
            (entity("a"), entity("none", snapshot=False), entity("b")),
            (event(2, said), event(0, 5), event(1, 7), event(0), event(2, said - 1)),
        ),
    )
    fetch = store.database.fetch
    at = clock.from_us(done.recorded_at_us)
    assert [tuple(row) for row in await fetch(ROW, "a")] == [(2, 6, at, at, 0)]
    assert [tuple(row) for row in await fetch(ROW, "b")] == [(4, 7, clock.from_us(said - 1), at, 0)]
    assert await fetch(ROW, "none") == []


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (clock.MAX_MICROSECONDS, clock.MAX_MICROSECONDS),
        (clock.MAX_MICROSECONDS - 1, clock.MAX_MICROSECONDS - 1),
        (-1, -1),
        (-62_135_596_800_000_000, FIRST_OF_PG),
        (-clock.MAX_MICROSECONDS, FIRST_OF_PG),
    ],
)
async def test_every_time_that_an_event_may_have_is_kept_exactly_from_the_year_1_on(
    store: StoreJournal, said: int, kept: int
) -> None:
    await store.append("default", Append((entity("a"),), (event(0, said),)))
    (row,) = await store.database.fetch(ROW, "a")
    assert clock.to_us(row["event_at"]) == kept


async def test_refused_neighbours_do_not_move_the_position_of_a_snapshot(
    store: StoreJournal,
) -> None:
    refused = Append((EntityAppend("cart", "x", 9),), (event(0), event(0), event(0)))
    kept = Append((entity("a"),), (event(0), event(0)))
    opened = await store.open_log("default")
    prepared = [store.preparer.prepare(each) for each in (refused, kept)]
    outcomes = await store._execute("default", opened.log_id, prepared, 10)
    assert isinstance(outcomes[0], Exception)
    (row,) = await store.database.fetch(ROW, "a")
    assert (row["seq"], row["position"]) == (2, 2)


async def test_an_audit_event_stands_and_falls_with_its_transaction(database: Database) -> None:
    async def note(data: dict[str, object], *, fail: bool) -> None:
        async with database.connection() as connection, transaction(connection, 5):
            await audit.record(
                connection, database.schema, "policy", "compact", "PolicySet", data, "ann"
            )
            if fail:
                raise KeyError

    with pytest.raises(KeyError):
        await note({"lost": 1}, fail=True)
    await note({"kept": [1, "ä"]}, fail=False)
    rows = await database.fetch("SELECT * FROM everstate.audit_outbox")
    assert [(r["entity_type"], r["entity_id"], r["type"], r["principal"]) for r in rows] == [
        ("policy", "compact", "PolicySet", "ann")
    ]
    assert rows[0]["data"] == '{"kept": [1, "ä"]}'
    assert rows[0]["audit_id"].version == 7


async def hold(store: StoreJournal, name: str) -> None:
    """Puts a hold on an entity (its guards are elsewhere)."""
    await store.database.fetch(
        "INSERT INTO everstate.entity_marks (log_id, entity_key, held)"
        " SELECT log_id, entity_key, true FROM everstate.entities WHERE entity_id = $1"
        " ON CONFLICT (log_id, entity_key) DO UPDATE SET held = true",
        name,
    )


# Removed ones


async def removed(store: StoreJournal, name: str, count: int, age: str, by: str = "") -> None:
    """An entity of some snapshots that were removed so long ago, beside two that were not."""
    kept = SnapshotStore(store.database, store)
    events = tuple(event(0) for _ in range(count + 2))
    await store.append("default", Append((entity(name, snapshot=False),), events))
    for sequence in range(1, count + 3):
        await kept.save("default", "cart", name, sequence, NewSnapshot("Cart", b"s"))
    for sequence in range(1, count + 1):
        await kept.delete("default", "cart", name, sequence)
    await store.database.fetch(
        f"""UPDATE everstate.snapshots s SET removed_at = now() - interval '{age}', removed_by = $2
        FROM everstate.entities e WHERE e.entity_key = s.entity_key AND e.log_id = s.log_id
          AND e.entity_id = $1 AND s.removed_at IS NOT NULL""",
        name, by or None,
    )  # fmt: skip


async def operation(store: StoreJournal, state: str, *, gone: bool = False) -> str:
    """An operation in a state, with its items or without."""
    operation_id = new_id()
    await store.database.fetch(
        """INSERT INTO everstate.operations
          (operation_id, kind, state, selection, parameters, plan, digest, head, items,
           planned_by, expires_at, items_gone)
        VALUES ($1, 'snapshot-prune', $2, '{}', '{}', '{}', '', 0, 0, 'me', now(), $3)""",
        operation_id, state, gone,
    )  # fmt: skip
    return operation_id


async def left(store: StoreJournal, name: str) -> list[int]:
    """Sequence numbers of the snapshots that are stored, removed or not."""
    return sorted(row["seq"] for row in await store.database.fetch(ROW, name))


async def test_removed_snapshots_are_deleted_after_their_time_unless_they_may_come_back(
    store: StoreJournal,
) -> None:
    await removed(store, "old", 3, "7 days 1 hour")
    await removed(store, "young", 3, "6 days 23 hours")
    going = ("running", "paused", "undoing", "review", "failed", "done")
    for state in going:
        await removed(store, state, 2, "30 days", await operation(store, state))
    await removed(store, "settled", 2, "30 days", await operation(store, "done", gone=True))
    await removed(store, "held", 2, "30 days")
    await hold(store, "held")
    purge = Purge(SnapshotStore(store.database, store))
    assert await purge.step() == 5
    assert await left(store, "old") == [4, 5]
    assert await left(store, "young") == [1, 2, 3, 4, 5]
    assert await left(store, "settled") == [3, 4]
    for name in (*going, "held"):
        assert await left(store, name) == [1, 2, 3, 4], name
    assert await purge.step() == 0


async def test_how_long_ago_a_snapshot_was_removed_is_the_databases_to_say(
    store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await removed(store, "a", 2, "1 day")
    monkeypatch.setattr(clock, "now", lambda: datetime.now(UTC) + timedelta(days=8))
    assert await Purge(SnapshotStore(store.database, store)).step() == 0
    assert await left(store, "a") == [1, 2, 3, 4]


async def test_a_purge_takes_small_pieces_and_what_must_stay_is_not_in_its_way(
    store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await removed(store, "first", 7, "30 days", await operation(store, "paused"))
    await removed(store, "then", 4, "8 days")
    kept = SnapshotStore(store.database, store)
    deleted, after = [], None
    for _ in range(4):
        piece = await kept.purge(after=after, limit=3)
        deleted.append(piece.deleted)
        after = piece.after
    assert (deleted, after) == ([0, 0, 2, 2], None)
    await removed(store, "more", 2, "8 days")
    monkeypatch.setattr(upkeep, "PIECES", 2)
    monkeypatch.setattr(SnapshotStore.purge, "__defaults__", (timedelta(days=7), None, 4))
    purge = Purge(kept)
    assert [await purge.step() for _ in range(3)] == [1, 1, 0], "it goes on where it stopped"
    assert await left(store, "more") == [3, 4]


# Races


async def test_a_save_waits_for_a_compaction_and_goes_by_its_floor(store: StoreJournal) -> None:
    await store.append("default", Append((entity("a", snapshot=False),), (event(0),) * 9))
    kept = SnapshotStore(store.database, store)
    for sequence in (3, 8, 9):  # so it is not one of the newest, which stay anyway
        await kept.save("default", "cart", "a", sequence, NewSnapshot("Cart", b"%d" % sequence))
    opened = await store.open_log("default")
    async with store.database.connection() as connection, transaction(connection, 10):
        key = await connection.fetchval(
            "SELECT entity_key FROM everstate.entities WHERE entity_id = 'a'"
        )
        await kept.lock(connection, opened.log_id, [key])
        saving = asyncio.create_task(
            kept.save("default", "cart", "a", 3, NewSnapshot("Cart", b"other"), replace=True)
        )
        deleting = asyncio.create_task(kept.delete("default", "cart", "a", 3))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while await store.database.fetchrow(waits) != (2,):
            assert not saving.done()
            assert not deleting.done()
        await connection.execute(
            "UPDATE everstate.entity_marks SET floor = 4, snapshot_seq = 3, floor_position = 3"
        )
    results = await asyncio.gather(saving, deleting, return_exceptions=True)
    assert [type(result) for result in results] == [Conflict, Conflict]
    assert "compacted" in str(results[0])
    assert "its floor rests on it" in str(results[1])
    assert (await kept.get("default", "cart", "a", sequence=3))[1] == b"3"
    assert [s.sequence for s in await kept.list("default", "cart", "a")] == [9, 8, 3]


async def test_the_statement_itself_removes_nothing_that_must_stay(store: StoreJournal) -> None:
    """Even when the transaction is committed whatever it said."""
    kept = SnapshotStore(store.database, store)
    for name in ("a", "held"):
        await store.append("default", Append((entity(name, snapshot=False),), (event(0),) * 5))
        for sequence in range(1, 6):
            await kept.save("default", "cart", name, sequence, NewSnapshot("Cart", b"s"))
    await set_floor_in(store, "default", ("cart", "a"), 3)
    await hold(store, "held")
    opened = await store.open_log("default")
    statement = sql.load("snapshots", "snapshot_remove", store.database.schema)
    said = {}
    for name in ("a", "held"):
        async with store.database.connection() as connection, transaction(connection, 10):
            key = await connection.fetchval(
                "SELECT entity_key FROM everstate.entities WHERE entity_id = $1", name
            )
            await kept.lock(connection, opened.log_id, [key])
            for n in range(5, 0, -1):
                row = await connection.fetchrow(statement, opened.log_id, key, n, 2)
                said[name, n] = (row["covers"], row["is_new"], row["held"])
    assert {n: said["a", n] for n in range(1, 6)} == {
        5: (False, True, False), 4: (False, True, False), 3: (False, False, False),
        2: (True, False, False), 1: (False, False, False),
    }  # fmt: skip
    assert {said["held", n] for n in (1, 2, 3)} == {(False, False, True)}
    assert [s.sequence for s in await kept.list("default", "cart", "a")] == [5, 4, 2]
    assert [s.sequence for s in await kept.list("default", "cart", "held")] == [5, 4, 3, 2, 1]


# Holds, the audit, and what may come back


async def test_of_a_held_entity_no_client_deletes_or_replaces_a_snapshot(
    store: StoreJournal,
) -> None:
    kept = SnapshotStore(store.database, store)
    await removed(store, "a", 1, "1 hour")  # 1 is removed, 2 and 3 are there
    await store.append("default", Append((entity("a", snapshot=False),), (event(0),)))
    await kept.save("default", "cart", "a", 4, NewSnapshot("Cart", b"s"))
    await hold(store, "a")
    before = await store.database.fetch("SELECT * FROM everstate.snapshots ORDER BY seq")
    with pytest.raises(Conflict, match="cannot be deleted: a hold is on the entity"):
        await kept.delete("default", "cart", "a", 2)
    for sequence in (1, 2):  # a removed one would be gone as well
        with pytest.raises(Conflict, match="cannot be replaced: a hold is on the entity"):
            await kept.save(
                "default", "cart", "a", sequence, NewSnapshot("Cart", b"other"), replace=True
            )
    assert await store.database.fetch("SELECT * FROM everstate.snapshots ORDER BY seq") == before
    assert (await kept.save("default", "cart", "a", 2, NewSnapshot("Cart", b"s"))).sequence == 2
    assert (await kept.save("default", "cart", "a", 1, NewSnapshot("Cart", b"s"))).sequence == 1
    await store.append("default", Append((entity("a"),), (event(0),)))
    assert await left(store, "a") == [1, 2, 3, 4, 5], "what takes nothing away goes on"


async def test_a_snapshot_that_an_operation_may_bring_back_keeps_its_place(
    store: StoreJournal,
) -> None:
    kept = SnapshotStore(store.database, store)
    by = await operation(store, "done")
    await removed(store, "a", 1, "1 hour", by)
    other = NewSnapshot("Cart", b"other")
    for replace in (False, True):
        with pytest.raises(Conflict, match=f"op-{by} removed and can still bring back"):
            await kept.save("default", "cart", "a", 1, other, replace=replace)
    await store.database.fetch("UPDATE everstate.operations SET items_gone = true")
    await kept.save("default", "cart", "a", 1, other)
    assert (await kept.get("default", "cart", "a", sequence=1))[1] == b"other"


async def test_deleting_and_replacing_is_audited_and_saving_is_not(store: StoreJournal) -> None:
    kept = SnapshotStore(store.database, store)
    long = "x" * 512
    for name in ("a", long):
        await store.append("default", Append((entity(name, snapshot=False),), (event(0),) * 3))
        for sequence in (1, 2, 3):
            await kept.save("", "cart", name, sequence, NewSnapshot("Cart", b"secret"))
    await kept.save("", "cart", "a", 1, NewSnapshot("Cart", b"secret"), replace=True)
    assert await store.database.fetch("SELECT FROM everstate.audit_outbox") == []
    new = NewSnapshot("Cart2", b"secret too")
    await kept.save("", "cart", "a", 1, new, replace=True, principal="ann")
    await kept.delete("", "cart", "a", 1, principal="ben")
    await kept.delete("", "cart", long, 1)
    with pytest.raises(Conflict):
        await kept.delete("", "cart", "a", 2)
    rows = await store.database.fetch("SELECT * FROM everstate.audit_outbox ORDER BY no")
    assert [(r["entity_type"], r["type"], r["principal"]) for r in rows] == [
        ("snapshot", "SnapshotReplaced", "ann"),
        ("snapshot", "SnapshotDeleted", "ben"),
        ("snapshot", "SnapshotDeleted", "unknown"),
    ]
    assert [r["entity_id"] for r in rows[:2]] == ["default/cart/a"] * 2
    assert len(rows[2]["entity_id"]) == 512
    name = {"log": "default", "entity_type": "cart", "entity_id": "a", "sequence": 1}
    assert json.loads(rows[0]["data"]) == name | {
        "type": "Cart2", "size_bytes": 10, "source": "OWNER",
    }  # fmt: skip
    assert json.loads(rows[1]["data"]) == name | {"type": "Cart2", "size_bytes": 10}
    assert json.loads(rows[2]["data"])["entity_id"] == long


async def test_a_failed_save_leaves_no_marks_behind(store: StoreJournal) -> None:
    await store.append("default", Append((entity("a", snapshot=False),), (event(0),)))
    kept = SnapshotStore(store.database, store)
    with pytest.raises(InvalidArgument):
        await kept.save("default", "cart", "a", 2, NewSnapshot("Cart", b"2"))
    assert await store.database.fetch("SELECT FROM everstate.entity_marks") == []


async def test_setting_a_type_is_audited_with_what_held_before(store: StoreJournal) -> None:
    types = TypeStore(store.database, store)
    await types.put("cart", TypeSettings(snapshot_every=9), version=None, principal="ann")
    with pytest.raises(Conflict):
        await types.put("cart", TypeSettings(), version=7, principal="ben")
    rows = await store.database.fetch("SELECT * FROM everstate.audit_outbox")
    assert [(r["entity_type"], r["entity_id"], r["type"], r["principal"]) for r in rows] == [
        ("entity_type", "cart", "EntityTypeSet", "ann")
    ]
    data = json.loads(rows[0]["data"])
    assert data["version"] == 1
    assert (data["before"]["snapshot_every"], data["settings"]["snapshot_every"]) == (0, 9)


async def test_an_entity_whose_events_are_gone_is_never_loaded_in_part(
    store: StoreJournal,
) -> None:
    await store.append("default", Append((entity("a", snapshot=False),), (event(0),) * 4))
    for gone, error in ((2, CorruptLog), (1, CorruptLog)):
        await store.database.fetch("DELETE FROM everstate.events WHERE seq = $1", gone)
        with pytest.raises(error):
            async for _ in store.load("default", LoadQuery("cart", "a")):
                pass
    await store.database.fetch(
        "INSERT INTO everstate.entity_marks (log_id, entity_key, floor)"
        " SELECT log_id, entity_key, 3 FROM everstate.entities WHERE entity_id = 'a'"
    )
    with pytest.raises(Compacted):
        async for _ in store.load("default", LoadQuery("cart", "a")):
            pass
    parts = store.load("default", LoadQuery("cart", "a", after_sequence=2))
    assert [e.sequence async for part in parts for e in part.events] == [3, 4]


async def test_over_grpc_nobody_loosens_what_compaction_trusts(
    store: StoreJournal, client: Client
) -> None:
    types = TypeStore(store.database, store)
    await types.put("old", TypeSettings(needs_full_replay=True), version=None, principal="ann")
    for name, settings in (
        ("new", TypeSettings(trust_snapshots=True)),
        ("old", TypeSettings(needs_full_replay=True, trust_snapshots=True)),
        ("old", TypeSettings()),
    ):
        for version in (None, 0, 1):
            with pytest.raises(PermissionDenied, match=r"PUT /api/v1/entity-types"):
                await client.entity_types.put(name, settings, version=version)
    assert (await types.get("old")).version == 1
    with pytest.raises(NotFound):
        await types.get("new")
    trusted = TypeSettings(trust_snapshots=True)
    await types.put("mine", trusted, version=None, principal="ann")
    kept = TypeSettings(trust_snapshots=True, needs_full_replay=True, snapshot_every=7)
    done = await client.entity_types.put("mine", kept, version=1)
    assert (done.settings, done.updated_by) == (kept, "grpc:ipv4:127.0.0.1")
