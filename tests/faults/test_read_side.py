"""Projections and consumer groups while everything around them is killed: invariants 4 and 7, and
exactly once.

A load of 100,000 events; meanwhile nodes, workers and database connections die at random. In the
end the tables of three projections equal a fold of the log, and two groups have got every event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from journal.groups.model import GroupSettings
from kernel.devdb import DevDatabase
from sidecar_api.client import Append, Client, ClientSettings, EntityAppend, EventView, NewEvent
from tests.support import Node, Worker, everything, running, verified

EVENTS, ENTITIES, PER_APPEND = 100_000, 997, 20
PATIENT = ClientSettings(timeout=timedelta(seconds=90), retry_for=timedelta(seconds=60))
TERM = "3"

COUNTS = """\
-- projection: counts
-- version: 1
CREATE TABLE counts (
  name text PRIMARY KEY, events bigint, total bigint, last_position bigint
);

-- on: *
INSERT INTO counts VALUES (:meta.entity_id, 1, :data.n, :meta.position)
ON CONFLICT (name) DO UPDATE SET events = counts.events + 1,
  total = counts.total + excluded.total, last_position = excluded.last_position;
"""

PYTHON = """\
from everstate.projections import Projection


class Ledger(Projection):
    # Each row needs the one before: any event twice, lost or out of order shows in all later rows.
    name = "ledger"
    version = 1
    tables = "CREATE TABLE ledger (position bigint PRIMARY KEY, running bigint NOT NULL);"

    async def apply(self, events, tx):
        running = await tx.fetchval(
            "SELECT coalesce((SELECT running FROM ledger ORDER BY position DESC LIMIT 1), 0)"
        )
        rows = []
        for event in events:
            running = (running * 31 + event.data["n"]) % 1_000_000_007
            rows.append((event.position, running))
        await tx.executemany("INSERT INTO ledger VALUES ($1, $2)", rows)


class Sums(Projection):
    # One row an entity, in four segments side by side.
    name = "sums"
    version = 1
    segments = 4
    tables = "CREATE TABLE sums (name text PRIMARY KEY, digest bigint, events bigint);"

    async def apply(self, events, tx):
        for event in events:
            await tx.execute(
                "INSERT INTO sums VALUES ($1, $2, 1) ON CONFLICT (name) DO UPDATE"
                " SET digest = (sums.digest * 31 + excluded.digest) % 1000000007,"
                " events = sums.events + 1",
                event.entity_id, event.data["n"],
            )
"""


@dataclass
class Fold:
    """What the tables have to hold, by the log alone."""

    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)
    ledger: dict[int, int] = field(default_factory=dict)
    running: int = 0

    def apply(self, event: EventView) -> None:
        n = json.loads(event.payload)["n"]
        events, total, _ = self.counts.get(event.entity_id, (0, 0, 0))
        self.counts[event.entity_id] = (events + 1, total + n, event.position)
        before = self.sums.get(event.entity_id)
        self.sums[event.entity_id] = (
            ((before[0] * 31 + n) % 1_000_000_007, before[1] + 1) if before else (n, 1)
        )
        self.running = (self.running * 31 + n) % 1_000_000_007
        self.ledger[event.position] = self.running


@dataclass
class Consumed:
    """What the members of a group have seen."""

    delivered: Counter[int] = field(default_factory=Counter)
    confirmed: set[int] = field(default_factory=set)
    newest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    newest_position: int = 0
    strict: bool = False
    violations: list[str] = field(default_factory=list)

    def deliver(self, event: EventView) -> None:
        if event.position in self.confirmed:
            self.violations.append(f"{event.position} came again after its ack was confirmed")
        if event.sequence > self.newest[event.entity_id] + 1:
            self.violations.append(
                f"{event.entity_id}: {event.sequence} before {self.newest[event.entity_id] + 1}"
            )
        self.newest[event.entity_id] = max(self.newest[event.entity_id], event.sequence)
        if self.strict and event.position > self.newest_position + 1:
            self.violations.append(f"{event.position} before {self.newest_position + 1}")
        self.newest_position = max(self.newest_position, event.position)
        self.delivered[event.position] += 1


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "sql").mkdir(parents=True)
    (folder / "sql" / "counts.sql").write_text(COUNTS)
    (folder / "faulty_shop.py").write_text(PYTHON)
    (folder / "everstate.toml").write_text('projections = ["faulty_shop", "sql/"]\n')
    return folder


@pytest.fixture
def nodes(postgres: DevDatabase) -> Iterator[list[Node]]:
    with contextlib.ExitStack() as stack:
        extra = {"EVERSTATE_GROUP_TERM_SECONDS": TERM}
        yield [stack.enter_context(Node(postgres.dsn(), extra=extra)) for _ in range(2)]


@pytest.fixture
def workers(postgres: DevDatabase, app: Path) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        extra = {"EVERSTATE_LEASE_SECONDS": TERM, "EVERSTATE_APP": str(app)}
        yield [stack.enter_context(Worker(postgres.dsn(), extra=extra)) for _ in range(2)]


@pytest.fixture
async def postgres_connection(postgres: DevDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres.dsn())
    yield connection
    await connection.close()


async def load(client: Client, seed: int, appends: int) -> None:
    rng = random.Random(seed)
    for _ in range(appends):
        name = f"e{rng.randrange(ENTITIES)}"
        batch = tuple(
            NewEvent(
                "Counted", json.dumps({"n": rng.randrange(1_000)}).encode(), "application/json"
            )
            for _ in range(PER_APPEND)
        )
        await client.append("", Append((EntityAppend("thing", name),), batch))


async def consume(client: Client, group: str, seen: Consumed) -> None:
    """A member that acks all, and counts only what was confirmed."""
    async with client.groups.join(group, credit=500) as member:
        async for delivery in member:
            position = delivery.event.position
            seen.deliver(delivery.event)

            def settled(future: asyncio.Future[bool], position: int = position) -> None:
                if not future.cancelled() and future.result():
                    seen.confirmed.add(position)

            delivery.ack().add_done_callback(settled)


async def break_things(
    rng: random.Random, nodes: list[Node], workers: list[Worker], connection: asyncpg.Connection,
    done: Counter[str],
) -> None:  # fmt: skip
    """One fault after the other; what was killed starts again."""
    while True:
        kind = rng.choice(["worker", "node", "connections", "connections"])
        if kind == "connections":
            done["connections"] += await connection.fetchval(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'everstate%' AND random() < 0.3"
            )
        else:
            victim: Any = rng.choice(nodes if kind == "node" else workers)
            await asyncio.to_thread(victim.kill)
            done[kind] += 1
            await asyncio.to_thread(victim.start)
        # The time between two faults is part of the fault, nothing is waited for.
        await asyncio.sleep(rng.uniform(0.1, 0.6))


@pytest.mark.timeout(300)
async def test_invariants_4_and_7_hold_while_nodes_workers_and_connections_die(
    nodes: list[Node], workers: list[Worker], postgres_connection: asyncpg.Connection
) -> None:
    seed = int(os.environ.get("EVERSTATE_FAULT_SEED") or random.randrange(10**6))
    print("seed", seed)
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    shared, strict = Consumed(), Consumed(strict=True)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(nodes[i % 2].client(PATIENT)) for i in range(4)]
        patient = GroupSettings(partitions=8, max_attempts=1_000, entity_window=20)
        await clients[0].groups.create("shared", patient)
        await clients[0].groups.create("strict", replace(patient, partitions=1, global_order=True))
        members = [
            *(consume(clients[i % 4], "shared", shared) for i in range(3)),
            *(consume(clients[i % 4], "strict", strict) for i in range(2)),
        ]
        async with running(*members) as consuming:
            breaking = asyncio.create_task(
                break_things(rng, nodes, workers, postgres_connection, done)
            )
            writers = 8
            await asyncio.gather(
                *(
                    load(clients[i % 4], seed + i, EVENTS // PER_APPEND // writers)
                    for i in range(writers)
                )
            )
            breaking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await breaking
            for process in (*nodes, *workers):
                if process.running is None or process.running.process.poll() is not None:
                    await asyncio.to_thread(process.start)
            events = await everything(clients[0])
            assert len(events) == EVENTS, "each append once"
            # Not every confirmation arrives: a node may die between its commit and telling of it.
            for name in ("shared", "strict"):
                async with asyncio.timeout(120):
                    while (await clients[0].groups.get(name)).position < EVENTS:
                        assert not any(task.done() for task in consuming), "a member gave up"
                        await asyncio.sleep(0.1)
        await verified(clients[0])
    print(dict(done))
    assert min(done["worker"], done["node"], done["connections"]) > 0, done
    assert shared.violations == []
    assert strict.violations == []
    assert set(shared.delivered) == set(strict.delivered) == set(range(1, EVENTS + 1))
    assert min(len(shared.confirmed), len(strict.confirmed)) > EVENTS * 0.9

    fold = Fold()
    for event in events:
        fold.apply(event)
    await reached(postgres_connection, EVENTS)
    fetch = postgres_connection.fetch
    assert {
        r[0]: (r[1], r[2], r[3])
        for r in await fetch("SELECT name, events, total, last_position FROM rm_counts.counts")
    } == fold.counts
    assert {
        r[0]: (r[1], r[2]) for r in await fetch("SELECT name, digest, events FROM rm_sums.sums")
    } == fold.sums
    assert dict(await fetch("SELECT position, running FROM rm_ledger.ledger")) == fold.ledger


async def reached(connection: asyncpg.Connection, position: int) -> None:
    """Returns when every segment of every projection stands at a position."""
    async with asyncio.timeout(120):
        while True:
            rows = await connection.fetch(
                "SELECT name, position, state FROM everstate.projection_checkpoints"
            )
            assert {row["state"] for row in rows} <= {"running"}, rows
            if len(rows) == 6 and all(row["position"] >= position for row in rows):
                return
            await asyncio.sleep(0.1)
