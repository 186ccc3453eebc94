"""Projections: an upsert, beside pyeventsourcing's runner, and a million events from the start."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from benchmarks import meter
from benchmarks.filled import fill
from benchmarks.load import BenchmarkError, Sample, ramp_of
from benchmarks.stack import Worker
from benchmarks.workspace import Workspace
from kernel.database import Database, DatabaseSettings
from projections import control

LOG = "bench_files"
EVENTS, ENTITIES = 1_000_000, 10_000
PEER_EVENTS = 60_000
START_SECONDS, REBUILD_SECONDS = 60.0, 600.0
TICK_SECONDS = 0.01

_serial = itertools.count(1)

#: What both sides count; event n is of file n mod 10,000.
ADDED, DELETED = "(p % 97)", "(p % 13)"

# An SQL-only projection, as a user would write it.
PROJECTION = """\
-- projection: {name}
-- version: 1
-- log: {log}
-- entity types: file
-- segments: {segments}
CREATE TABLE files (
  path    text PRIMARY KEY,
  changes bigint NOT NULL,
  added   bigint NOT NULL,
  deleted bigint NOT NULL
);

-- on: FileChanged
INSERT INTO files AS f VALUES (:meta.entity_id, 1, (:data.added)::bigint, (:data.deleted)::bigint)
ON CONFLICT (path) DO UPDATE
SET changes = f.changes + 1, added = f.added + EXCLUDED.added,
    deleted = f.deleted + EXCLUDED.deleted;
"""

PYTHON = """\
from everstate.projections import Projection


class Files(Projection):
    name = "{name}"
    version = 1
    log = "{log}"
    entity_types = ("file",)
    event_types = ("FileChanged",)
    segments = {segments}
    tables = '''
    CREATE TABLE files (
      path    text PRIMARY KEY,
      changes bigint NOT NULL,
      added   bigint NOT NULL,
      deleted bigint NOT NULL
    );
    '''

    async def apply(self, events, tx):
        await tx.executemany(
            '''
            INSERT INTO files AS f VALUES ($1, 1, $2, $3)
            ON CONFLICT (path) DO UPDATE
            SET changes = f.changes + 1, added = f.added + EXCLUDED.added,
                deleted = f.deleted + EXCLUDED.deleted
            ''',
            [(e.entity_id, e.data["added"], e.data["deleted"]) for e in events],
        )
"""


async def fill_log(space: Workspace) -> None:
    """A log of 1,000,000 events of 10,000 files; proved by `everstate log verify`'s call."""
    if not space.project_log:
        names = [f"src/file{k}" for k in range(ENTITIES)]
        values = {"added": ADDED, "deleted": DELETED}
        await fill(space, LOG, "file", names, EVENTS, "FileChanged", values)
        space.project_log = LOG


class Projected:
    """A fresh projection in a folder of its own, and the worker that fills it."""

    def __init__(self, space: Workspace, template: str, segments: int) -> None:
        self._space = space
        self.name = f"bench{next(_serial)}"
        self._folder = Path(space.stack.folder, f"app-{self.name}")
        self._folder.mkdir()
        text = template.format(name=self.name, log=LOG, segments=segments)
        module = f"projection_{self.name}"
        entry = "sql/" if template is PROJECTION else module
        (self._folder / "everstate.toml").write_text(f'projections = ["{entry}"]\n')
        if template is PROJECTION:
            (self._folder / "sql").mkdir()
            (self._folder / "sql" / "files.sql").write_text(text)
        else:
            (self._folder / f"{module}.py").write_text(text)
        self.worker: Worker | None = None

    async def __aenter__(self) -> Self:
        self.worker = self._space.stack.start_worker(self._folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.worker is not None:
            await asyncio.to_thread(self.worker.stop)
        # Any worker runs an SQL-only projection: the next round's must not go on with this one.
        if await self.build():
            async with self.control() as database:
                await control.pause(database, self.name, "its round is over")

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[Database]:
        """The database as operators use it."""
        database = await Database.open(DatabaseSettings(self._space.stack.database.dsn()))
        try:
            yield database
        finally:
            await database.close()

    def cpu(self) -> float:
        """CPU seconds of the worker so far."""
        reading = meter.read({"it": self.worker.process.pid}, None) if self.worker else None
        return reading.roles["it"] if reading else 0.0

    async def position(self) -> int:
        """Everything up to here has been applied by all segments of the live build."""
        return (await self._live())["position"] or 0

    async def events(self) -> int:
        """How many events the segments of the live build have applied."""
        return int((await self._live())["events"])

    async def build(self) -> int:
        """Which build readers see; 0: it is not registered yet."""
        return (await self._live())["build"] or 0

    async def _live(self) -> Any:
        connection = await self._space.stack.connection()
        return await connection.fetchrow(
            """
            SELECT max(p.live_build) AS build, min(c.position) AS position,
              coalesce(sum(c.events), 0) AS events
            FROM everstate.projections p
            JOIN everstate.projection_checkpoints c
              ON (c.name, c.version, c.build) = (p.name, p.live_version, p.live_build)
            WHERE p.name = $1
            """,
            self.name,
        )

    async def until(self, done: Callable[[], Awaitable[bool]], seconds: float) -> None:
        """Waits until it is so. Raises `BenchmarkError` when that takes longer."""
        deadline = time.perf_counter() + seconds
        while not await done():
            if self.worker is not None:
                self.worker.check()
            if time.perf_counter() > deadline:
                raise BenchmarkError(
                    f"the projection is at {await self.position()} after {seconds:g} s"
                )
            await asyncio.sleep(TICK_SECONDS)

    async def reach(self, position: int, seconds: float) -> None:
        """Waits until it has come so far."""

        async def there() -> bool:
            return await self.position() >= position

        await self.until(there, seconds)

    async def check(self) -> int:
        """Compares the table with a fold of the log up to each segment's checkpoint, file by file;
        returns how many events are in it. The worker has to stand still.

        Raises:
            BenchmarkError: they differ.

        """
        connection = await self._space.stack.connection()
        row = await connection.fetchrow(
            f"""
            WITH due AS (
              SELECT e.entity_id AS path, count(*) AS changes, sum(p % 97) AS added,
                sum(p % 13) AS deleted
              FROM everstate.projections p0
              JOIN everstate.projection_checkpoints c
                ON (c.name, c.version, c.build) = (p0.name, p0.live_version, p0.live_build)
              JOIN everstate.entities e ON e.log_id = (
                SELECT log_id FROM everstate.logs WHERE name = $2)
                AND e.slice BETWEEN c.first_slice AND c.last_slice
              CROSS JOIN LATERAL generate_series(
                e.first_position, c.position, {ENTITIES}) p
              WHERE p0.name = $1
              GROUP BY e.entity_id)
            SELECT count(*) FILTER (WHERE (d.changes, d.added, d.deleted)
                IS DISTINCT FROM (f.changes, f.added, f.deleted)) AS wrong,
              coalesce(sum(f.changes), 0)::bigint AS events
            FROM due d FULL JOIN rm_{self.name}.files f USING (path)
            """,
            self.name,
            LOG,
        )
        if row["wrong"]:
            raise BenchmarkError(f"{row['wrong']} of {ENTITIES} rows are not what a fold gives")
        found: int = row["events"]
        return found


async def _upsert(space: Workspace, seconds: float, template: str) -> Sample:
    async with Projected(space, template, 1) as projected:
        await projected.reach(1, START_SECONDS)
        await asyncio.sleep(ramp_of(seconds))
        cpu = projected.cpu()
        before, began = await projected.events(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, took = await projected.events(), time.perf_counter() - began
        cpu = projected.cpu() - cpu
        if after >= EVENTS:
            raise BenchmarkError("the log is too short for rounds of this length")
    events = await projected.check()
    applied = max(1, after - before)
    note = f"worker {cpu / applied * 1e6:.0f} µs an event; table equal to a fold"
    return Sample(applied / took, operations=events, note=note)


async def upsert(space: Workspace, seconds: float) -> Sample:
    """An SQL-only projection with one segment; events applied in a window after the first ones."""
    return await _upsert(space, seconds, PROJECTION)


async def upsert_python(space: Workspace, seconds: float) -> Sample:
    """The same in Python, a row of arguments an event."""
    return await _upsert(space, seconds, PYTHON)


async def fill_peer(space: Workspace) -> None:
    """The peer's own events."""
    peer = await space.stack.projection_peer()
    if not space.peer_events:
        peer.send({"do": "fill", "events": PEER_EVENTS})
        space.peer_events = (await peer.answer())["events"]


async def pyeventsourcing(space: Workspace, seconds: float) -> Sample:
    """pyeventsourcing's ProjectionRunner with an equivalent view, over its own events."""
    peer = await space.stack.projection_peer()
    peer.send({"do": "run", "seconds": seconds})
    answer = await peer.answer()
    return Sample(answer["value"], operations=answer["operations"])


async def rebuild(space: Workspace, seconds: float) -> Sample:  # noqa: ARG001 - its own length
    """A projection with two segments, live and caught up, is rebuilt from the first event beside
    itself: from the order until readers see the new build.
    """
    async with Projected(space, PROJECTION, 2) as projected:
        await projected.reach(1, START_SECONDS)
        first, began = await projected.events(), time.perf_counter()
        await projected.reach(EVENTS, REBUILD_SECONDS)
        rate = (EVENTS - first) / (time.perf_counter() - began)
        old = await projected.build()

        async def switched() -> bool:
            return await projected.build() > old

        async with projected.control() as database:
            began = time.perf_counter()
            await control.rebuild(database, projected.name, auto_switch=True)
            await projected.until(switched, REBUILD_SECONDS)
            took = time.perf_counter() - began
    events = await projected.check()
    if events != EVENTS:
        raise BenchmarkError(f"{events} of {EVENTS} events are in the table")
    note = f"{EVENTS / took:,.0f} events/s; the first build {rate:,.0f}; table equal to a fold"
    return Sample(took, operations=events, note=note)
