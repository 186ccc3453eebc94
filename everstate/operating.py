"""Wiring of operations into a worker: the runner, the audit's publisher, the upkeeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from everstate.settings import WorkerSettings
from journal.store import StoreJournal
from kernel.database import Database
from kernel.members import process_name
from operations.kinds.base import Environment
from operations.publish import Publisher
from operations.runner import Runner, RunnerSettings
from operations.upkeep import Upkeep
from snapshots.store import SnapshotStore
from snapshots.upkeep import Purge

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


@contextlib.asynccontextmanager
async def operating(
    database: Database,
    leases: Database,
    journal: StoreJournal,
    environment: Environment,
    settings: WorkerSettings,
) -> AsyncIterator[Runner]:
    """Runs operations while inside. ``database``: connections for their steps; ``leases``: for
    what must not wait for them.
    """
    runner = Runner(
        database, journal, environment,
        RunnerSettings(
            at_once=settings.operations,
            term=timedelta(seconds=settings.lease_seconds),
            drain=timedelta(seconds=settings.drain_seconds),
        ),
        leases=leases, name=process_name(),
    )  # fmt: skip
    publisher = Publisher(leases, journal, name=process_name())
    upkeep = Upkeep(database, timedelta(days=settings.operation_items_days))
    purge = Purge(SnapshotStore(database, journal))
    tasks = [
        asyncio.create_task(supervised("operations", runner.run)),
        asyncio.create_task(supervised("audit", publisher.run)),
        asyncio.create_task(supervised("upkeep of operations", upkeep.run)),
        asyncio.create_task(supervised("upkeep of snapshots", purge.run)),
    ]
    try:
        yield runner
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def supervised(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs what never ends by itself, and again, ever later, when it fails; others go on."""
    pause = _FIRST_PAUSE_S
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            await work()
        except Exception:
            log.exception("a part of the worker failed", part=what, again_in_seconds=pause)
        if loop.time() - began > _LONGEST_PAUSE_S:
            pause = _FIRST_PAUSE_S
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)
