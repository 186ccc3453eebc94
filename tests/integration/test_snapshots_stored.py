"""What is stored with a snapshot: what it covers, and when that happened."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from journal.model import ANY, Append, EntityAppend, LoadQuery, NewEvent, NewSnapshot
from journal.store import StoreJournal
from kernel import audit, clock
from kernel.database import Database, transaction
from kernel.errors import Compacted, Conflict, CorruptLog, InvalidArgument
from kernel.ids import new_id
from snapshots.model import TypeSettings
from snapshots.store import SnapshotStore, TypeStore
from snapshots.upkeep import Purge

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


async def operation(store: StoreJournal, undo_until: str) -> str:
    """An operation that can be undone until then."""
    operation_id = new_id()
    await store.database.fetch(
        f"""INSERT INTO everstate.operations
          (operation_id, kind, state, selection, parameters, plan, digest, head, items,
           planned_by, expires_at, undo_until)
        VALUES ($1, 'snapshot-prune', 'done', '{{}}', '{{}}', '{{}}', '', 0, 0, 'me', now(),
          now() + interval '{undo_until}')""",
        operation_id,
    )
    return operation_id


async def test_removed_snapshots_are_deleted_after_their_time_unless_they_may_come_back(
    store: StoreJournal,
) -> None:
    await removed(store, "old", 3, "7 days 1 hour")
    await removed(store, "young", 3, "6 days 23 hours")
    await removed(store, "undoable", 2, "30 days", await operation(store, "1 hour"))
    await removed(store, "settled", 2, "30 days", await operation(store, "-1 hour"))
    purge = Purge(SnapshotStore(store.database, store))
    assert await purge.step() == 5
    left = {
        name: sorted(row["seq"] for row in await store.database.fetch(ROW, name))
        for name in ("old", "young", "undoable", "settled")
    }
    assert left == {
        "old": [4, 5],
        "young": [1, 2, 3, 4, 5],
        "undoable": [1, 2, 3, 4],
        "settled": [3, 4],
    }
    assert await purge.step() == 0


async def test_a_purge_takes_small_pieces(store: StoreJournal) -> None:
    await removed(store, "a", 7, "8 days")
    kept = SnapshotStore(store.database, store)
    before = clock.now() - timedelta(days=7)
    assert [await kept.purge(before, 3) for _ in range(4)] == [3, 3, 1, 0]


# Races


async def test_a_save_waits_for_a_compaction_and_goes_by_its_floor(store: StoreJournal) -> None:
    await store.append("default", Append((entity("a", snapshot=False),), (event(0),) * 4))
    kept = SnapshotStore(store.database, store)
    await kept.save("default", "cart", "a", 3, NewSnapshot("Cart", b"3"))
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
    assert (await kept.get("default", "cart", "a"))[1] == b"3"


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
