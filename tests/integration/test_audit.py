"""Audit events: from the transaction of a change to the log `_system`, each once, in order."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import orjson
import pytest

from journal.model import SYSTEM_LOG, EventView, LoadQuery
from journal.store import StoreJournal, StoreSettings
from kernel.audit import record
from kernel.database import Database
from kernel.telemetry import REGISTRY
from operations.publish import Publisher
from tests.support import eventually_async

COLUMNS = "audit_id, entity_type, entity_id, type, data, principal, at"
WAITING = f"SELECT {COLUMNS} FROM everstate.audit_outbox ORDER BY no"
AGAIN = f"INSERT INTO everstate.audit_outbox ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7)"


async def say(database: Database, number: int, entity: str = "op-1", **data: Any) -> None:
    async with database.connection(writing=True) as connection, connection.transaction():
        await record(
            connection, database.schema, "operation", entity, "Said", {"n": number, **data}, "ann"
        )


async def events(store: StoreJournal, entity: str = "op-1") -> list[EventView]:
    query = LoadQuery("operation", entity)
    return [e async for part in store.load(SYSTEM_LOG, query) for e in part.events]


async def waiting(database: Database) -> int:
    rows = await database.fetch("SELECT count(*) FROM everstate.audit_outbox")
    return int(rows[0][0])


async def test_audit_events_come_in_order_with_who_and_when(
    database: Database, store: StoreJournal
) -> None:
    for n in range(250):
        await say(database, n)
    publisher = Publisher(database, store)
    assert await publisher.step() is True
    assert await waiting(database) == 150
    while await publisher.step():
        pass
    assert await waiting(database) == 0
    found = await events(store)
    payloads = [orjson.loads(e.payload) for e in found]
    assert [p["n"] for p in payloads] == list(range(250))
    first = found[0]
    assert (first.type, first.content_type) == ("Said", "application/json")
    assert payloads[0].keys() == {"n", "principal", "at"}
    assert payloads[0]["principal"] == "ann"
    assert payloads[0]["at"].endswith("Z")
    assert first.client_time_us > 0


async def test_a_change_that_is_rolled_back_leaves_no_audit_event(
    database: Database, store: StoreJournal
) -> None:
    async with database.connection(writing=True) as connection:
        change = connection.transaction()
        await change.start()
        await record(connection, database.schema, "operation", "op-1", "Said", {}, "ann")
        await change.rollback()
    assert await waiting(database) == 0


async def test_one_publisher_at_a_time_and_another_when_it_is_gone(
    database: Database, store: StoreJournal
) -> None:
    first, second = Publisher(database, store), Publisher(database, store)
    await say(database, 1)
    await first.step()
    await say(database, 2)
    assert await second.step() is False
    assert await waiting(database) == 1
    await first.close()
    await second.step()
    assert await waiting(database) == 0
    assert len(await events(store)) == 2


async def test_what_was_appended_before_a_kill_is_not_appended_again(
    database: Database, store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(database, 1)
    await say(database, 2)
    rows = await database.fetch(WAITING)
    publisher = Publisher(database, store)
    await publisher.step()
    async with database.connection() as connection:  # as if it had not come to deleting
        for row in rows:
            await connection.execute(AGAIN, *row)
    await publisher.step()
    assert (len(await events(store)), await waiting(database)) == (2, 0)


@pytest.mark.parametrize("appended", [False, True])
async def test_an_outbox_that_waited_longer_than_append_ids_are_kept_is_published_once(
    database: Database, appended: bool
) -> None:
    await say(database, 1)
    rows = await database.fetch(WAITING)
    forgetful = StoreJournal(
        database, StoreSettings(node="test", append_id_window=timedelta(microseconds=1))
    )
    await forgetful.start()
    publisher = Publisher(database, forgetful)
    await publisher.step()
    if appended:
        async with database.connection() as connection:
            await connection.execute(AGAIN, *rows[0])
        await publisher.step()
    found = await events(forgetful)
    assert [e.event_id for e in found] == [str(rows[0]["audit_id"])]
    assert await waiting(database) == 0
    await say(database, 2)
    await publisher.step()
    assert len(await events(forgetful)) == 2
    await forgetful.close()


async def test_what_the_log_refuses_stays_and_the_others_go_on(
    database: Database, store: StoreJournal
) -> None:
    await say(database, 1, text="x" * 1_100_000)
    await say(database, 2)
    publisher = Publisher(database, store)
    await publisher.step()
    assert [orjson.loads(e.payload)["n"] for e in await events(store)] == [2]
    assert await waiting(database) == 1
    await say(database, 3)
    await publisher.step()
    assert [orjson.loads(e.payload)["n"] for e in await events(store)] == [2, 3]


async def test_an_entity_that_takes_no_events_stops_only_its_own(
    database: Database, store: StoreJournal
) -> None:
    """Nobody can delete an entity of `_system`; if it happens all the same, the audit goes on."""
    await say(database, 1, "op-1")
    publisher = Publisher(database, store)
    await publisher.step()
    refused = REGISTRY.get_sample_value("everstate_audit_refused_total") or 0
    await database.fetch("UPDATE everstate.entities SET state = 2 WHERE entity_id = 'op-1'")
    for n in (2, 3):
        await say(database, n, "op-1")
        await say(database, n, "op-2")
    await publisher.step()
    assert [orjson.loads(e.payload)["n"] for e in await events(store, "op-2")] == [2, 3]
    assert await waiting(database) == 2
    assert REGISTRY.get_sample_value("everstate_audit_refused_total") == refused + 1
    await database.fetch("UPDATE everstate.entities SET state = 0 WHERE entity_id = 'op-1'")
    await publisher.step()
    assert await waiting(database) == 2, "it is left alone for a while"
    publisher._aside = dict.fromkeys(publisher._aside, 0.0)
    await publisher.step()
    assert [orjson.loads(e.payload)["n"] for e in await events(store, "op-1")] == [1, 2, 3]


async def test_what_happened_is_in_order_though_the_clock_went_back(
    database: Database, store: StoreJournal
) -> None:
    """As after a failover to a server whose clock is behind."""
    for n in range(3):
        await say(database, n)
    await database.fetch(
        """UPDATE everstate.audit_outbox SET at = at - no * interval '5 s',
        audit_id = overlay(audit_id::text placing '0000000' from 1 for 7)::uuid
        WHERE no = (SELECT max(no) FROM everstate.audit_outbox)"""
    )
    await Publisher(database, store).step()
    assert [orjson.loads(e.payload)["n"] for e in await events(store)] == [0, 1, 2]


async def test_a_publisher_at_work_needs_no_call(database: Database, store: StoreJournal) -> None:
    running = asyncio.create_task(Publisher(database, store).run(timedelta(milliseconds=50)))
    await say(database, 1)

    async def published() -> bool:
        return await waiting(database) == 0

    await eventually_async(published, "it is published")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    rows = await database.fetch(
        "SELECT FROM everstate.leases WHERE kind = 'audit' AND expires_at <= clock_timestamp()"
    )
    assert len(rows) == 1, "the lease was given back"
    assert len(await events(store)) == 1
