"""Wiring of `everstate work`: database, journal, the user's code, leases, health."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from datetime import timedelta

import structlog

from everstate import __version__, folding, health
from everstate.container import check_database
from everstate.operating import operating
from everstate.settings import WorkerSettings
from journal.store import StoreJournal, StoreSettings
from journal.subscriptions import SubscriptionSettings
from kernel import database as db
from kernel import telemetry, usercode
from kernel.errors import ConfigurationError
from kernel.members import membership, process_name
from projections import registry
from projections.registration import register
from projections.segment import heartbeat_of
from projections.upkeep import Replaying, Upkeep
from projections.worker import Worker
from projections.worker import WorkerSettings as Pace
from schemas.descriptors import Decoder
from schemas.store import DescriptorStore
from schemas.upcasters import from_user_code
from snapshots import fold_registry
from snapshots.folds import Folds

log = structlog.get_logger(__name__)

_LEASE_CONNECTIONS = 2
"""Beside those for the work, so that a lease is renewed however busy they are."""
_OPERATION_CONNECTIONS = 2
"""Beside one for the step of each operation: to look at items, lag, what is due."""


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """Where a worker's metrics are, and how many projections its code has."""

    metrics_port: int
    projections: int


@contextlib.asynccontextmanager
async def worker(settings: WorkerSettings, host: str) -> AsyncIterator[RunningWorker]:
    """A running worker; on exit it finishes its batches and gives its leases back."""
    listener = health.bind(host, settings.worker_metrics_port, "metrics")
    with contextlib.closing(listener):
        code = usercode.find(settings.app)
        if code is None and settings.app is not None:
            raise ConfigurationError(
                f"EVERSTATE_APP: {settings.app} names no user code ([tool.everstate] is missing)"
            )
        upcasters = from_user_code(code)
        definitions = registry.load(code) if code is not None else []
        folds = fold_registry.load(code)
        async with (
            _database(settings, settings.database_connections) as database,
            _database(settings, _LEASE_CONNECTIONS) as leases,
            _database(settings, settings.operations + _OPERATION_CONNECTIONS) as steps,
        ):
            await check_database(database, lenient=settings.dev)
            await register(database, definitions)
            await fold_registry.register(database, folds)
            decoder = Decoder(DescriptorStore(database), upcasters)
            lease = timedelta(seconds=settings.lease_seconds)
            journal = StoreJournal(
                database,
                StoreSettings(
                    node=process_name(),
                    subscriptions=SubscriptionSettings(heartbeat=heartbeat_of(lease)),
                ),
            )
            pace = Pace(lease=lease, drain=timedelta(seconds=settings.drain_seconds))
            running = Worker(
                database, journal.subscriptions, journal.names, decoder, definitions, pace,
                name=process_name(), leases=leases,
            )  # fmt: skip
            replaying = Replaying(database, journal, journal.names, lambda: running.runners)
            running.duties.append(replaying.step)
            environment = folding.environment(database, Folds(folds), upcasters)
            upkeep = Upkeep(database, running.definition, timedelta(hours=settings.previous_hours))
            async with (
                _working(database, journal, running, listener, host),
                _beside(upkeep.run()),
                operating(steps, leases, journal, environment, settings),
            ):
                yield RunningWorker(listener.getsockname()[1], len(definitions))
                log.info("draining", seconds=settings.drain_seconds)


@contextlib.asynccontextmanager
async def _database(settings: WorkerSettings, connections: int) -> AsyncIterator[db.Database]:
    database = await db.Database.open(
        db.DatabaseSettings(
            settings.database_url,
            settings.schema_name,
            max_connections=connections,
            application_name="everstate-worker",
        )
    )
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs ``work``, which never ends by itself, while inside."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _working(
    database: db.Database,
    journal: StoreJournal,
    running: Worker,
    listener: socket.socket,
    host: str,
) -> AsyncIterator[None]:
    def refresh() -> None:
        opened, idle = database.connections
        telemetry.pool_connections.labels("open").set(opened)
        telemetry.pool_connections.labels("idle").set(idle)

    async def ready() -> None:
        await database.fetchrow("SELECT 1", timeout=1)

    await journal.start()
    try:
        await running.start()
        try:
            async with (
                membership(
                    database,
                    "worker",
                    version=__version__,
                    address=f"{host}:{listener.getsockname()[1]}",
                    details=lambda: {"segments": running.held[:50]},
                    refresh=refresh,
                ),
                health.serving(listener, health.application(ready, refresh)),
            ):
                yield
        finally:
            await asyncio.shield(running.close())
    finally:
        await asyncio.shield(journal.close())
