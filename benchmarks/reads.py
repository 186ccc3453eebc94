"""Scenarios that read, and the logs and entities they read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.load import BenchmarkError, Sample, closed_loop
from benchmarks.workspace import (
    CONTENT_TYPE,
    ENTITY_TYPE,
    EVENT_TYPE,
    LOG,
    PAYLOAD,
    RawAppender,
    Workspace,
)
from sidecar_api.client import Append, EntityAppend, LoadQuery, NewEvent, ReadQuery

READ_EVENTS = 200_000
FILL_BATCH = 1_000
ENTITIES, ENTITY_EVENTS = 100, 100
ROWS = 1_000

# The columns of journal/sql/read_forwards.sql without its window over the payloads' sizes.
RAW_READ = """
SELECT position, seq, recorded_at, prev_position, event_id, type_id, entity_type_id, slice,
  entity_id, payload, metadata
FROM everstate.events
WHERE log_id = $1 AND position BETWEEN $2 AND $3
ORDER BY position LIMIT $4
"""


async def fill_log(space: Workspace) -> None:
    """A log of its own with 200,000 events of 256 bytes, each of another entity."""
    if space.read_log:
        return
    client = space.stack.client
    name = "bench_read"
    await client.create_log(name)
    await client.append(
        name,
        Append(
            (EntityAppend(ENTITY_TYPE, space.new_entity(), 0),),
            (NewEvent(EVENT_TYPE, PAYLOAD, CONTENT_TYPE),),
        ),
    )
    raw = await RawAppender.open(space, name)
    left = READ_EVENTS - 1
    while left:
        count = min(FILL_BATCH, left)
        await raw.call(raw.arguments(space, count))
        left -= count
    connection = await space.stack.connection()
    # As autovacuum would at a moment of its own choice, in the middle of a round.
    await connection.execute("VACUUM (ANALYZE) everstate.events")
    space.statements["raw_read"] = await connection.prepare(RAW_READ)
    space.statements["log_id"] = await connection.fetchval(
        "SELECT log_id FROM everstate.logs WHERE name = $1", name
    )
    space.read_log = name


def _check(events: int, last: int, payload_bytes: int) -> None:
    if (events, last, payload_bytes) != (READ_EVENTS, READ_EVENTS, READ_EVENTS * len(PAYLOAD)):
        raise BenchmarkError(f"read {events} events up to {last} with {payload_bytes} bytes")


async def read_log(space: Workspace, seconds: float) -> Sample:
    """`Client.read` from the first event to the head, as often as fits, at least once."""
    client = space.stack.client
    began = time.perf_counter()
    total = 0
    while True:
        events = last = size = types = 0
        async for batch in client.read(space.read_log, ReadQuery()):
            for event in batch.events:
                last = event.position
                types += event.type == EVENT_TYPE
                size += len(event.payload)
            events += len(batch.events)
        _check(types, last, size)
        total += events
        took = time.perf_counter() - began
        if took >= seconds:
            return Sample(total / took, operations=total)


async def raw_read(space: Workspace, seconds: float) -> Sample:
    """The same with statements of 1,000 rows on one connection; the type stays a number."""
    statement: Any = space.statements["raw_read"]
    log_id: int = space.statements["log_id"]
    began = time.perf_counter()
    total = 0
    while True:
        events = last = size = types = 0
        while last < READ_EVENTS:
            rows = await statement.fetch(log_id, last + 1, READ_EVENTS, ROWS)
            if not rows:
                break
            for row in rows:
                last = row[0]
                types += row[5] > 0
                size += len(row[9])
            events += len(rows)
        _check(types, last, size)
        total += events
        took = time.perf_counter() - began
        if took >= seconds:
            return Sample(total / took, operations=total)


async def make_entities(space: Workspace) -> None:
    """100 entities of 100 events; each event in another commit, so that they lie apart."""
    if space.entities:
        return
    client = space.stack.client
    names = [space.new_entity() for _ in range(ENTITIES)]
    event = NewEvent(EVENT_TYPE, PAYLOAD, CONTENT_TYPE)
    for sequence in range(ENTITY_EVENTS):
        await asyncio.gather(
            *(
                client.append(LOG, Append((EntityAppend(ENTITY_TYPE, name, sequence),), (event,)))
                for name in names
            )
        )
    space.entities = names


async def load_entity(space: Workspace, seconds: float) -> Sample:
    """`Client.load` of one entity after the other; sequence, type and payload of each touched."""
    client = space.stack.client
    turn = 0

    async def one() -> None:
        nonlocal turn
        name = space.entities[turn % ENTITIES]
        turn += 1
        sequences = types = size = 0
        async for part in client.load(LOG, LoadQuery(ENTITY_TYPE, name)):
            for event in part.events:
                sequences += event.sequence
                types += event.type == EVENT_TYPE
                size += len(event.payload)
        if (sequences, types, size) != (5050, ENTITY_EVENTS, ENTITY_EVENTS * len(PAYLOAD)):
            raise BenchmarkError(f"an entity had {types} events")

    return await closed_loop(one, 1, seconds)
