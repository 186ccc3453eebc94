"""Rebuilds, switches and replays while workers run and events flow in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import ClassVar

import pytest

from journal.model import ReadQuery
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from projections import control, registration, sqlfile
from projections.model import Definition, ProjectedEvent, Projection, Tx
from projections.registry import define
from projections.replay import Selection
from projections.upkeep import Replaying, Upkeep
from projections.worker import Worker, WorkerSettings
from schemas.descriptors import Decoder
from tests.by_hand import Hand
from tests.support import ROOT, eventually_async, running

TOTALS = """
-- projection: totals
-- version: {version}
-- segments: 2
CREATE TABLE totals (id text PRIMARY KEY, n bigint NOT NULL, last bigint NOT NULL);

-- on: Happened
INSERT INTO totals VALUES (:meta.entity_id, {by}, :meta.position)
ON CONFLICT (id) DO UPDATE SET n = totals.n + {by}, last = EXCLUDED.last;

-- delete entity
DELETE FROM totals WHERE id = :meta.entity_id;
"""
SETTINGS = WorkerSettings(lease=timedelta(seconds=2), look=timedelta(milliseconds=100))


def totals(version: int = 1, by: int = 1) -> Definition:
    return sqlfile.parse(TOTALS.format(version=version, by=by), "totals.sql")


@asynccontextmanager
async def worker(
    store: StoreJournal, *definitions: Definition, grace: timedelta = timedelta(hours=1)
) -> AsyncIterator[Worker]:
    database = store.database
    await registration.register(database, definitions)
    made = Worker(
        database, store.subscriptions, store.names, Decoder(), definitions, SETTINGS, name="w"
    )
    made.duties.append(Replaying(database, store, store.names, lambda: made.runners).step)
    upkeep = Upkeep(database, made.definition, grace)
    await made.start()
    async with running(upkeep.run(timedelta(milliseconds=200))):
        yield made
    await made.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StoreJournal]:
    database = await Database.open(DatabaseSettings(database_url, max_connections=16))
    journal = StoreJournal(database, StoreSettings(node="test"))
    await journal.start()
    yield journal
    await journal.close()
    await database.close()


@pytest.fixture
def hand(store: StoreJournal) -> Hand:
    """Appends events; a real worker applies them."""
    return Hand(store.database, store, {})


async def rows(hand: Hand) -> dict[str, tuple[int, int]]:
    found = await hand.database.fetch("SELECT id, n, last FROM rm_totals.totals")
    return {row[0]: (row[1], row[2]) for row in found}


async def live(hand: Hand) -> tuple[int, int]:
    row = await control.get_projection(hand.database, "totals")
    return row.version, row.build


async def fold(hand: Hand, by: int = 1) -> dict[str, tuple[int, int]]:
    """What the table is to hold when all has been applied."""
    found: dict[str, tuple[int, int]] = {}
    async for batch in hand.journal.read_rows("default", ReadQuery(), 30):
        for row in batch.rows:
            found[row[8]] = found.get(row[8], (0, 0))[0] + by, row[0]
    return found


async def caught_up(hand: Hand) -> None:
    head = (await hand.journal.get_log("default")).head
    await control.wait_for(hand.database, "totals", head, timedelta(seconds=30))


@asynccontextmanager
async def flow(hand: Hand, entities: int = 50) -> AsyncIterator[None]:
    """Events come in as fast as they go while inside."""

    async def append() -> None:
        n = 0
        while True:
            await hand.append(f"thing-{n % entities}")
            n += 1

    async with running(append(), append()):
        yield


@asynccontextmanager
async def reader(hand: Hand) -> AsyncIterator[list[int]]:
    """Reads in a loop: every answer has all rows that it is to have, and none is older than the one
    before. Yields the positions seen.
    """
    seen: list[int] = [0]

    async def read() -> None:
        last = 0  # of this reader: answers to two readers may overtake one another
        while True:
            row = await hand.database.fetchrow(
                "SELECT count(*), max(last), bool_and(n > 0) FROM rm_totals.totals"
            )
            assert row[0] == 50, "rows are missing"
            assert row[1] >= last, "an older position than before"
            if row[1] > last:
                last = row[1]
                seen.append(last)

    async with running(read(), read()) as tasks:
        yield seen
        assert not any(task.done() for task in tasks), "a reader failed"


async def test_a_rebuild_while_events_flow_in_goes_live_without_a_reader_noticing(
    store: StoreJournal, hand: Hand
) -> None:
    async with worker(store, totals()):
        for n in range(50):
            await hand.append(f"thing-{n}")
        await caught_up(hand)
        async with flow(hand), reader(hand) as seen:
            await control.rebuild(hand.database, "totals", auto_switch=True)

            async def switched() -> bool:
                return await live(hand) == (1, 2)

            await eventually_async(switched, "the new build goes live", 40)
            found = await control.compare(hand.database, "totals")
            assert found.equal, found
            assert (found.old, found.new) == ((1, 2), (1, 1))
            before = len(seen)
            row = await control.rollback(hand.database, "totals", within=timedelta(seconds=15))
            assert (row.version, row.build) == (1, 1)

            async def read_on() -> bool:
                return len(seen) > before + 3

            await eventually_async(read_on, "events are applied after the rollback")
        await caught_up(hand)
        assert await rows(hand) == await fold(hand)


async def test_a_new_version_is_built_beside_the_live_one_and_the_old_one_is_dropped_in_the_end(
    store: StoreJournal, hand: Hand
) -> None:
    async with worker(store, totals()):
        for n in range(50):
            await hand.append(f"thing-{n}")
        await caught_up(hand)
    # Deployed: a worker with the new code only. It runs the old version from the stored text.
    async with worker(store, totals(2, by=10)), flow(hand), reader(hand):

        async def ready() -> bool:
            return (await control.get_build(hand.database, "totals", 2, 1)).state == "ready"

        await eventually_async(ready, "version 2 has caught up")
        assert await live(hand) == (1, 1)
        found = await control.compare(hand.database, "totals")
        assert not found.equal
        await control.switch(hand.database, "totals", within=timedelta(seconds=15))
        assert await live(hand) == (2, 1)
    async with worker(store, totals(2, by=10), grace=timedelta(0)):

        async def dropped() -> bool:
            row = await hand.database.fetchrow("SELECT to_regnamespace('rm_totals_v1') IS NULL")
            return bool(row[0])

        await eventually_async(dropped, "version 1 is dropped")
        await caught_up(hand)
        assert await rows(hand) == await fold(hand, by=10)


class Told(Projection):
    """Tells every event to the world, once it is committed."""

    name = "told"
    version = 1
    tables = "CREATE TABLE told (position bigint PRIMARY KEY)"
    world: ClassVar[list[int]] = []

    async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
        await tx.executemany("INSERT INTO told VALUES ($1)", [(e.position,) for e in events])
        for event in events:
            tx.after_commit(partial(self.tell, event.position))

    async def tell(self, position: int) -> None:
        self.world.append(position)


async def test_effects_run_once_for_every_event_over_switches_and_rollbacks(
    store: StoreJournal, hand: Hand
) -> None:
    Told.world.clear()
    async with worker(store, define(Told, ROOT)):
        async with flow(hand):
            await control.rebuild(hand.database, "told")

            async def ready() -> bool:
                return (await control.get_build(hand.database, "told", 1, 2)).state == "ready"

            await eventually_async(ready, "the new build has caught up", 40)
            for _ in range(3):
                told = len(Told.world)
                await control.switch(hand.database, "told", 1, 2, within=timedelta(seconds=15))
                await eventually_async(
                    lambda told=told: _longer(told), "the new build tells", 20
                )  # fmt: skip
                await control.rollback(hand.database, "told", within=timedelta(seconds=15))
        head = (await hand.journal.get_log("default")).head
        await control.wait_for(hand.database, "told", head, timedelta(seconds=30))

        async def all_told() -> bool:
            return len(Told.world) >= head

        await eventually_async(all_told, "the last event is told")
    # An append that was cancelled may have been written all the same.
    head = max(Told.world)
    assert sorted(Told.world) == list(range(1, head + 1))


async def _longer(than: int) -> bool:
    return len(Told.world) > than


async def test_a_replay_while_events_flow_in_keeps_invariant_7(
    store: StoreJournal, hand: Hand
) -> None:
    async with worker(store, totals()):
        for n in range(50):
            await hand.append(f"thing-{n}")
        await caught_up(hand)
        async with flow(hand):
            async with hand.database.connection() as connection:
                await connection.execute("UPDATE rm_totals_v1.totals SET n = n + 1000")
            order = await control.replay(
                hand.database, "totals", Selection(types=("thing",)), reason="damaged"
            )

            async def done() -> bool:
                row = await control.get_replay(hand.database, "totals", order.replay_id)
                assert row.state in ("running", "done"), row
                return row.state == "done"

            await eventually_async(done, "the replay is done", 40)
        await caught_up(hand)
        assert await rows(hand) == await fold(hand)
        row = await control.get_replay(hand.database, "totals", order.replay_id)
        assert (row.entities, row.segments_done) == (50, 2)
