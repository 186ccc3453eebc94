"""What is stored with a snapshot: what it covers, and when that happened."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from journal.model import ANY, Append, EntityAppend, NewEvent, NewSnapshot
from journal.store import StoreJournal
from kernel import audit, clock
from kernel.database import Database, transaction

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
