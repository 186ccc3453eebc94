"""Operations: planning over 100,000 entities, and compacting them beside writers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import meter
from benchmarks.filled import fill
from benchmarks.load import BenchmarkError, Sample, percentile
from benchmarks.workspace import CONTENT_TYPE, EVENT_TYPE, PAYLOAD, Workspace
from journal.store import StoreJournal, StoreSettings
from kernel.database import Connection, Database, DatabaseSettings
from kernel.principals import Principal, Role
from operations import control
from operations.kinds.base import Environment
from operations.model import ENDED, OperationRow, PlanRequest, Selection, State
from sidecar_api.client import NO_ENTITY, Append, EntityAppend, NewEvent

LOG, ENTITY_TYPE = "bench_carts", "cart"
EVENTS, ENTITIES = 1_000_000, 100_000
SNAPSHOT_AT = 9
"""Of ten events each: nine go."""
RATE = 500
"""Appends a second beside the compaction, one event each, evenly spread."""
UNDISTURBED_SECONDS = 15.0
LONGEST_SECONDS = 300.0

_ME = Principal("bench", "bench", Role.OPERATOR, key="bench")
_TICK_SECONDS = 0.002
_LOOK_SECONDS = 0.05

_SNAPSHOTS = f"""
INSERT INTO everstate.snapshots (entity_key, seq, recorded_at, log_id, type, content_type, payload,
  verified_at, position, event_at, source)
SELECT e.entity_key, e.seq, e.recorded_at, e.log_id, 'Cart', 'application/json', e.payload, now(),
  e.position, e.recorded_at, 1
FROM everstate.events e
WHERE e.log_id = $1 AND e.seq = {SNAPSHOT_AT} AND e.position BETWEEN 1 AND {EVENTS}
"""

# Entities whose floor is not where it should be, or rests on nothing (invariant 9).
_WRONG = f"""
SELECT count(*) FROM everstate.entities e
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
LEFT JOIN everstate.snapshots s ON s.log_id = e.log_id AND s.entity_key = e.entity_key
  AND s.seq = m.snapshot_seq AND s.verified_at IS NOT NULL AND s.removed_at IS NULL
WHERE e.log_id = $1 AND e.entity_key <= {ENTITIES}
  AND (m.floor IS DISTINCT FROM {SNAPSHOT_AT + 1} OR s.seq IS DISTINCT FROM {SNAPSHOT_AT})
"""
_LOWERED = f"""
SELECT count(*) FROM everstate.entity_marks m
WHERE m.log_id = $1 AND m.entity_key <= {ENTITIES} AND m.floor > 1
"""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a run of `compact` found; times in seconds."""

    undisturbed: array[float]
    beside: array[float]
    rss_mb: float


async def fill_log(space: Workspace) -> None:
    """A log of 1,000,000 events of 100,000 carts, each with a verified snapshot at its ninth."""
    if space.carts_log:
        return
    names = [f"cart-{k * 7_919 % ENTITIES:06}" for k in range(ENTITIES)]
    space.carts_log = await fill(space, LOG, ENTITY_TYPE, names, EVENTS, "Changed", {"n": "p"})
    connection = await space.stack.connection()
    await connection.execute(_SNAPSHOTS, space.carts_log)
    await connection.execute("VACUUM (ANALYZE) everstate.snapshots")


@contextlib.asynccontextmanager
async def _control(space: Workspace) -> AsyncIterator[tuple[Database, StoreJournal]]:
    """The database as `everstate admin` uses it."""
    database = await Database.open(DatabaseSettings(space.stack.database.dsn()))
    try:
        yield database, StoreJournal(database, StoreSettings(node="bench"))
    finally:
        await database.close()


async def _plan(database: Database, journal: StoreJournal) -> OperationRow:
    """The plan with its items in the database, as POST /operations makes it."""
    request = PlanRequest("compact", Selection(log=LOG, types=(ENTITY_TYPE,)))
    row = await control.plan(database, journal, Environment(), request, _ME)
    # Those that the writers made have no snapshot.
    excluded = row.plan["entities"] - row.items
    if row.items != ENTITIES or row.plan["excluded"].get("uncovered", 0) != excluded:
        raise BenchmarkError(f"{ENTITIES} carts are to be compacted, planned are {row.plan}")
    return row


async def plan(space: Workspace, seconds: float) -> Sample:  # noqa: ARG001 - its own length
    """Plans the compaction of all carts: from the call until the plan is kept."""
    async with _control(space) as (database, journal):
        began = time.perf_counter()
        row = await _plan(database, journal)
        took = time.perf_counter() - began
    connection = await space.stack.connection()
    number = row.id.removeprefix("op-")
    await connection.execute(
        "DELETE FROM everstate.operation_items WHERE operation_id = $1", number
    )
    return Sample(took, operations=ENTITIES, note=f"{ENTITIES / took:,.0f} entities/s")


class Writers:
    """Appends at a steady rate, in an open loop: each is sent when its time has come."""

    def __init__(self, space: Workspace) -> None:
        self._space = space
        self._stop = asyncio.Event()
        self.latencies = array("d")
        self.sent = 0

    async def _append(self, due: float) -> None:
        space = self._space
        append = Append(
            (EntityAppend(ENTITY_TYPE, space.new_entity(), NO_ENTITY),),
            (NewEvent(EVENT_TYPE, PAYLOAD, CONTENT_TYPE),),
        )
        await space.stack.client.append(LOG, append)
        self.latencies.append(asyncio.get_running_loop().time() - due)

    async def run(self) -> None:
        """Appends until `stop`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                while began + self.sent / RATE <= loop.time():
                    group.create_task(self._append(began + self.sent / RATE))
                    self.sent += 1
                await asyncio.sleep(_TICK_SECONDS)

    def stop(self) -> None:
        """Ends `run` once what was sent is acknowledged."""
        self._stop.set()

    def taken(self) -> array[float]:
        """The latencies since the last call."""
        found, self.latencies = self.latencies, array("d")
        return found


async def compact(space: Workspace, seconds: float) -> Sample:  # noqa: ARG001 - its own length
    """A worker compacts all carts while appends go on: from the apply until the receipt; then it
    takes all of it back.
    """
    folder = Path(space.stack.folder, "app-operations")
    folder.mkdir(exist_ok=True)
    (folder / "everstate.toml").write_text("projections = []\n")
    worker = space.stack.start_worker(folder)
    writers = Writers(space)
    head = (await space.stack.client.get_log(LOG)).head
    connection = await space.stack.connection()
    try:
        async with _control(space) as (database, journal), asyncio.TaskGroup() as group:
            row = await _plan(database, journal)
            writing = group.create_task(writers.run())
            undisturbed = await _undisturbed(connection, writers)
            began = time.perf_counter()
            await control.apply(
                database,
                row.id,
                digest=row.digest,
                reason="benchmark",
                principal=_ME,
                confirmed=True,
            )
            receipt = await _ended(database, row.id, State.DONE)
            took = time.perf_counter() - began
            beside = writers.taken()
            worker.check()
            wrong = await connection.fetchval(_WRONG, space.carts_log)
            if (receipt.done, wrong) != (ENTITIES, 0):
                raise BenchmarkError(f"{receipt.done} are done, {wrong} floors are wrong")
            began = time.perf_counter()
            await control.undo(database, row.id, reason="benchmark", principal=_ME)
            receipt = await _ended(database, row.id, State.UNDONE)
            undo = time.perf_counter() - began
            # The quieter of before and after: the harder one to be compared with.
            after = await _undisturbed(connection, writers)
            undisturbed = min(undisturbed, after, key=lambda taken: percentile(taken, 0.99))
            writers.stop()
            await writing
        if await connection.fetchval(_LOWERED, space.carts_log):
            raise BenchmarkError("floors are not back where they were")
        written = (await space.stack.client.get_log(LOG)).head - head
        if written != writers.sent:
            raise BenchmarkError(f"{writers.sent} appends were acknowledged, {written} are there")
        space.compaction = Compaction(undisturbed, beside, meter.peak_rss_mb(worker.process.pid))
    finally:
        await asyncio.to_thread(worker.stop)
    note = f"beside {RATE} appends/s; {ENTITIES / took:,.0f} entities/s; undo {undo:.1f} s"
    return Sample(took, operations=ENTITIES, note=note)


async def _undisturbed(connection: Connection, writers: Writers) -> array[float]:
    """Latencies of appends while nothing else goes on: what was written before is on disk."""
    await connection.execute("CHECKPOINT")
    await asyncio.sleep(2)
    writers.taken()
    await asyncio.sleep(UNDISTURBED_SECONDS)
    return writers.taken()


async def _ended(database: Database, operation_id: str, wanted: State) -> OperationRow:
    deadline = time.perf_counter() + LONGEST_SECONDS
    while True:
        row = await control.get(database, operation_id)
        if row.state is wanted:
            return row
        if (row.state in ENDED and row.state is not State.DONE) or time.perf_counter() > deadline:
            raise BenchmarkError(f"it is {row.state} after {row.done} items: {row.error}")
        await asyncio.sleep(_LOOK_SECONDS)


async def undisturbed(space: Workspace, seconds: float) -> Sample:  # noqa: ARG001 - is measured
    """Appends before and after that compaction, whichever was quieter: their p99."""
    return _appends(space.compaction.undisturbed)


async def beside(space: Workspace, seconds: float) -> Sample:  # noqa: ARG001 - is measured
    """Appends while it ran: their p99."""
    return _appends(space.compaction.beside)


def _appends(latencies: array[float]) -> Sample:
    p99 = percentile(latencies, 0.99)
    return Sample(p99, percentile(latencies, 0.5), p99, len(latencies), f"{len(latencies)} appends")


async def worker_rss(space: Workspace, seconds: float) -> Sample:  # noqa: ARG001 - is measured
    """The most memory that worker had."""
    return Sample(space.compaction.rss_mb, operations=1)
