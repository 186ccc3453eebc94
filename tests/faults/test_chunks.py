"""Chunks are made ahead of need and under load: no append fails at a roll-over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from journal.model import Append, EntityAppend, NewEvent, ReadQuery
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from tests.support import eventually_async

CHUNK = 64


@pytest.fixture
async def journal(any_database_url: str) -> AsyncIterator[StoreJournal]:
    database = await Database.open(DatabaseSettings(any_database_url))
    opened = StoreJournal(database, StoreSettings(node="chunks"))
    await opened.start()
    await opened.create_log("small", CHUNK)
    yield opened
    await opened.close()
    await database.close()


def events(count: int) -> tuple[NewEvent, ...]:
    return tuple(NewEvent("Happened", b"x" * 64) for _ in range(count))


async def proved(journal: StoreJournal) -> int:
    """Verifies the log and the chunk map; returns the head."""
    report = None
    async for progress in journal.verify("small"):
        report = progress.report or report
    assert report is not None
    assert report.ok, report.findings
    rows = await journal.database.fetch(
        "SELECT c.first, c.last FROM everstate.chunks c JOIN everstate.logs l USING (log_id)"
        " WHERE l.name = 'small' ORDER BY c.chunk_no"
    )
    assert [row["first"] for row in rows] == [1 + CHUNK * i for i in range(len(rows))]
    assert [row["last"] for row in rows] == [CHUNK * (i + 1) for i in range(len(rows))]
    assert rows[-1]["last"] >= report.to_position
    return report.to_position


async def test_appends_roll_over_many_chunks_at_full_speed(journal: StoreJournal) -> None:
    appends = 1_500
    await asyncio.gather(
        *(
            journal.append("small", Append((EntityAppend("thing", f"{i}"),), events(1 + i % 3)))
            for i in range(appends)
        )
    )
    assert await proved(journal) == sum(1 + i % 3 for i in range(appends))


async def test_one_append_may_be_larger_than_several_chunks(journal: StoreJournal) -> None:
    await journal.append("small", Append((EntityAppend("thing", "big"),), events(1_000)))
    assert await proved(journal) == 1_000


async def test_a_reader_that_holds_the_events_table_does_not_stop_roll_overs(
    journal: StoreJournal, any_database_url: str
) -> None:
    reader = await asyncpg.connect(any_database_url)
    try:
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetchval("SELECT count(*) FROM everstate.events WHERE position > 0")
            for i in range(40):
                await journal.append("small", Append((EntityAppend("thing", f"{i}"),), events(16)))
            # The snapshot is older than everything: it sees nothing, and hinders nothing.
            count = "SELECT count(*) FROM everstate.events WHERE position > 0"
            assert await reader.fetchval(count) == 0
    finally:
        await reader.close()
    assert await proved(journal) == 640


async def test_chunks_are_there_before_they_are_needed(journal: StoreJournal) -> None:
    await journal.append("small", Append((EntityAppend("thing", "a"),), events(CHUNK * 2)))
    journal.maintenance.nudge()

    async def two_ahead() -> bool:
        return (await journal.get_log("small")).chunks_ahead >= 2

    await eventually_async(two_ahead, "two chunks are attached ahead of the head")


async def test_reads_cross_chunks_in_both_directions(journal: StoreJournal) -> None:
    for i in range(5):
        await journal.append("small", Append((EntityAppend("thing", f"{i}"),), events(50)))
    for backwards in (False, True):
        seen = [
            event.position
            async for batch in journal.read("small", ReadQuery(backwards=backwards))
            for event in batch.events
        ]
        assert seen == sorted(range(1, 251), reverse=backwards)
