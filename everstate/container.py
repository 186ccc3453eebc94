"""Wiring of a journal node: database, store, gRPC server, health; checked before it serves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import structlog

from everstate import __version__, health
from everstate.settings import SCHEMA_REVISION, NodeSettings
from journal.groups.model import NodeGroupSettings
from journal.groups.node import Groups
from journal.sequencer import SequencerSettings
from journal.store import StoreJournal, StoreSettings
from journal.subscriptions import SubscriptionSettings
from kernel import database as db
from kernel import telemetry
from kernel.errors import NotFound, SchemaMismatch, UnsafeServer
from kernel.members import membership, process_name
from schemas.store import DescriptorStore
from sidecar_api.server import NodeServer, ServerSettings
from sidecar_api.services.groups import GroupService
from sidecar_api.services.schemas import SchemaService
from sidecar_api.services.snapshots import SnapshotService
from snapshots.store import SnapshotStore, TypeStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunningNode:
    """Where a node listens."""

    grpc_port: int
    metrics_port: int


async def check_database(database: db.Database, *, lenient: bool) -> db.ServerFacts:
    """Refuses a server or schema this program must not work with.

    Raises:
        UnsupportedServer, UnsafeServer: see `kernel.database.check_server`; ``lenient`` only
            warns of the latter.
        SchemaMismatch: the schema is missing, older or newer.

    """
    async with database.connection(5) as connection:
        facts = await db.server_facts(connection)
        try:
            db.check_server(facts)
        except UnsafeServer as error:
            if not lenient:
                raise
            log.warning("unsafe database server", reason=error.message)
        if facts.max_locks_per_transaction < 128:
            log.warning(
                "max_locks_per_transaction is small for many chunks; set it to 256",
                value=facts.max_locks_per_transaction,
            )
        found = await connection.fetchval(
            "SELECT to_regclass($1)::text", f"{database.schema}.alembic_version"
        )
        version = (
            await connection.fetchval(f"SELECT version_num FROM {database.schema}.alembic_version")  # noqa: S608 - a checked name
            if found
            else None
        )
    if version is None:
        raise SchemaMismatch(
            f"the database has no schema {database.schema!r} of Everstate yet; "
            "run `everstate migrate`, or start with --migrate"
        )
    if version != SCHEMA_REVISION:
        age = "older" if version < SCHEMA_REVISION else "newer"
        raise SchemaMismatch(
            f"the schema {database.schema!r} is {age} ({version}) than this program needs "
            f"({SCHEMA_REVISION})"
        )
    return facts


@contextlib.asynccontextmanager
async def node(settings: NodeSettings, host: str) -> AsyncIterator[RunningNode]:
    """A running journal node; on exit it drains and closes everything in reverse order."""
    listener = health.bind(host, settings.metrics_port, "metrics")
    with contextlib.closing(listener):
        database = await db.Database.open(
            db.DatabaseSettings(
                settings.database_url,
                settings.schema_name,
                max_connections=settings.database_connections,
                application_name="everstate-node",
            )
        )
        try:
            facts = await check_database(database, lenient=settings.dev)
            async with _serving(settings, host, database, facts, listener) as running:
                yield running
        finally:
            await database.close()


@contextlib.asynccontextmanager
async def _serving(
    settings: NodeSettings,
    host: str,
    database: db.Database,
    facts: db.ServerFacts,
    listener: socket.socket,
) -> AsyncIterator[RunningNode]:
    store = StoreJournal(
        database,
        StoreSettings(
            node=process_name(),
            sequencer=SequencerSettings(
                max_batch_events=settings.batch_events,
                max_held_bytes=settings.queue_bytes,
                lanes=settings.append_connections,
            ),
            subscriptions=SubscriptionSettings(tail_bytes=settings.tail_bytes),
            append_id_window=timedelta(days=settings.append_id_days),
            max_clock_skew=timedelta(seconds=settings.max_clock_skew_seconds),
        ),
    )
    drain = timedelta(seconds=settings.drain_seconds)
    groups = Groups(
        store,
        NodeGroupSettings(
            node=process_name(),
            term=timedelta(seconds=settings.group_term_seconds),
            buffer_bytes=settings.group_buffer_bytes,
        ),
    )
    server = NodeServer(
        store,
        ServerSettings(
            host=host,
            port=settings.grpc_port,
            max_streams=settings.max_streams,
            max_calls=settings.max_calls,
            drain=drain,
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
        ),
        version=__version__,
        database_version=facts.version_text,
        services=[
            SchemaService(DescriptorStore(database)),
            GroupService(groups, store.names),
            SnapshotService(SnapshotStore(database, store), TypeStore(database, store)),
        ],
    )

    def refresh() -> None:
        opened, idle = database.connections
        telemetry.pool_connections.labels("open").set(opened)
        telemetry.pool_connections.labels("idle").set(idle)
        telemetry.commit_p99.set(telemetry.recent_commits.p99())
        for known in store.logs:
            telemetry.in_flight.labels(known.name).set(known.sequencer.waiting)
            telemetry.held_bytes.labels(known.name).set(known.sequencer.held_bytes)

    async def ready() -> None:
        for info in await store.list_logs(timeout=timedelta(seconds=1)):
            telemetry.head.labels(info.log).set(info.head)
            if info.chunks_ahead < 1:
                raise NotFound(f"log {info.log!r} has no chunk ahead of its head")

    await store.start()
    await groups.start()
    try:
        await server.start()
        try:
            async with (
                membership(
                    database,
                    "node",
                    version=__version__,
                    address=f"{host}:{server.port}",
                    refresh=refresh,
                ),
                health.serving(listener, health.application(ready, refresh)),
            ):
                yield RunningNode(server.port, listener.getsockname()[1])
                log.info("draining", seconds=settings.drain_seconds)
                await server.stop()
        finally:
            await server.stop(timedelta(0))
    finally:
        await asyncio.shield(groups.close())
        await asyncio.shield(store.close())
