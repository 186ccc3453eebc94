"""Leases: one holder at a time, a new epoch for each holding, no commit of a holder that lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from kernel.database import Database, DatabaseSettings
from kernel.errors import LeaseLost
from kernel.leases import Leases, fence
from tests.support import eventually_async

SHORT = timedelta(milliseconds=150)


@pytest.fixture
async def any_database(any_database_url: str):
    database = await Database.open(DatabaseSettings(any_database_url))
    yield database
    await database.close()


async def test_one_of_many_gets_a_free_lease(any_database: Database) -> None:
    takers = [Leases(any_database, "segment", f"h{i}") for i in range(6)]
    taken = await asyncio.gather(*(taker.acquire("files/1/0") for taker in takers))
    assert sum(lease is not None for lease in taken) == 1
    assert [view.held for view in await takers[0].list()] == [True]


async def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_epoch(
    database: Database,
) -> None:
    old, new = Leases(database, "segment", "old", SHORT), Leases(database, "segment", "new")
    first = await old.acquire("x")
    assert first is not None

    async def taken() -> object:
        return await new.acquire("x")

    await eventually_async(taken, "the lease runs out")
    views = await new.list()
    assert (views[0].holder, views[0].epoch > first.epoch) == ("new", True)
    assert await old.renew([first]) == set()
    assert await old.acquire("x") is None


async def test_a_renewed_lease_stays_and_a_released_one_is_free_at_once(database: Database) -> None:
    one, two = Leases(database, "segment", "one"), Leases(database, "segment", "two")
    lease = await one.acquire("x")
    assert lease is not None
    assert await one.renew([lease]) == {"x"}
    assert await two.acquire("x") is None
    await one.release(lease)
    taken = await two.acquire("x")
    assert taken is not None
    assert taken.epoch == lease.epoch + 1
    await one.release(lease)  # changes nothing: the epoch has passed on
    assert [view.holder for view in await two.list() if view.held] == ["two"]


async def test_a_transaction_of_a_holder_that_lost_its_lease_must_not_commit(
    database: Database,
) -> None:
    old, new = Leases(database, "segment", "old"), Leases(database, "segment", "new")
    first = await old.acquire("x")
    assert first is not None
    await old.release(first)
    assert await new.acquire("x") is not None
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        with pytest.raises(LeaseLost):
            await fence(connection, first, database.schema)
        await transaction.rollback()


async def test_a_taker_waits_for_the_commit_of_the_fenced_holder(database: Database) -> None:
    old, new = Leases(database, "segment", "old", SHORT), Leases(database, "segment", "new")
    first = await old.acquire("x")
    assert first is not None
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await fence(connection, first, database.schema)
        while (await new.list())[0].held:
            await asyncio.sleep(0.01)
        taking = asyncio.create_task(new.acquire("x"))
        async with database.connection() as other:

            async def waits() -> object:
                return await other.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )

            await eventually_async(waits, "the taker waits")
        assert not taking.done()
        await transaction.commit()
    assert await taking is not None
