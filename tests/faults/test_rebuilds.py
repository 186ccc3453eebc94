"""Workers killed at random while builds are made, filled, switched and dropped, and entities are
replayed: readers notice nothing, and the tables equal the fold in the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from kernel.errors import Conflict
from projections import control
from projections.replay import Selection
from tests.by_hand import Hand
from tests.integration.test_rebuild_workers import TOTALS, caught_up, fold, rows
from tests.support import Running, clean_env, eventually_async, running, start

ENTITIES = 40
REBUILDS = 3


@dataclass
class OneWorker:
    """An `everstate work` that is killed and started again."""

    url: str
    app: Path
    running: Running | None = None
    kills: int = 0

    def start(self) -> None:
        env = clean_env(
            EVERSTATE_DATABASE_URL=self.url,
            EVERSTATE_APP=self.app,
            EVERSTATE_LEASE_SECONDS=1,
            EVERSTATE_PREVIOUS_HOURS=0,
            EVERSTATE_WORKER_METRICS_PORT=0,
        )
        self.running = start("work", env=env)
        self.running.until("^worker ready")

    def kill(self) -> None:
        assert self.running is not None
        self.running.kill()
        self.kills += 1


@pytest.fixture
def worker(database_url: str, tmp_path: Path) -> Iterator[OneWorker]:
    (tmp_path / "everstate.toml").write_text('projections = ["totals.sql"]\n')
    (tmp_path / "totals.sql").write_text(TOTALS.format(version=1, by=1))
    made = OneWorker(database_url, tmp_path)
    yield made
    if made.running is not None:
        made.running.process.kill()
        made.running.process.wait()


@pytest.mark.timeout(240)
async def test_invariant_7_rebuilds_and_replays_survive_workers_killed_at_any_moment(
    worker: OneWorker, database_url: str
) -> None:
    chance = random.Random(7)
    database = await Database.open(DatabaseSettings(database_url, max_connections=12))
    journal = StoreJournal(database, StoreSettings(node="test"))
    await journal.start()
    hand = Hand(database, journal, {})
    for n in range(ENTITIES):
        await hand.append(f"thing-{n}")
    await asyncio.to_thread(worker.start)
    await caught_up(hand)
    seen = [0]
    ended = asyncio.Event()

    async def append() -> None:
        n = 0
        while not ended.is_set():
            await hand.append(f"thing-{n % ENTITIES}")
            n += 1

    async def read() -> None:
        async with await psycopg.AsyncConnection.connect(
            database_url, autocommit=True
        ) as connection:
            while not ended.is_set():
                cursor = await connection.execute(
                    "SELECT count(*), max(last), min(n) FROM rm_totals.totals"
                )
                row = await cursor.fetchone()
                assert row is not None
                assert row[0] == ENTITIES, "rows are missing"
                assert row[1] >= seen[-1], "an older position than before"
                assert row[2] > 0
                seen.append(row[1])

    async def kill() -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), chance.uniform(0.2, 4.0))
            await asyncio.to_thread(worker.kill)
            await asyncio.to_thread(worker.start)

    async with running(append(), read(), kill()) as tasks:
        for number in range(2, REBUILDS + 2):
            await control.rebuild(database, "totals", auto_switch=True)

            async def is_live(wanted: int = number) -> bool:
                assert not any(task.done() for task in tasks), "a task of the load failed"
                return (await control.get_projection(database, "totals")).build == wanted

            await eventually_async(is_live, f"build {number} goes live", 60)
            with suppress(Conflict):  # one of the build before may not be over
                await control.replay(
                    database, "totals", Selection(types=("thing",)), reason="to see it survive"
                )
        ended.set()
        await asyncio.gather(*tasks)

    async def only_one_is_left() -> bool:
        builds = await control.list_builds(database, "totals")
        left = await database.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^rm_.*_v'")
        return len(left) == 1 and [b.state for b in builds].count("retired") == REBUILDS

    await eventually_async(only_one_is_left, "what was live before is dropped", 30)

    async def replays_ended() -> bool:
        found = await control.list_replays(database, "totals")
        return bool(found) and all(row.state != "running" for row in found)

    await eventually_async(replays_ended, "the replays end", 30)
    await caught_up(hand)
    assert await rows(hand) == await fold(hand)
    assert worker.kills >= 3
    assert len(seen) > 100
    await journal.close()
    await database.close()
