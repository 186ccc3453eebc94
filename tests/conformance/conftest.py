"""The four journals that the suite runs against; each test gets a log of its own in one of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import pytest
from pytest_postgresql.janitor import DatabaseJanitor

from journal.memory import MemoryJournal, TypeRules
from journal.store import StoreJournal, StoreSettings
from kernel import clock
from kernel.database import Database, DatabaseSettings
from sidecar_api.client import Client
from sidecar_api.server import NodeServer, ServerSettings
from sidecar_api.services.snapshots import SnapshotService
from snapshots.memory import MemorySnapshots, MemoryTypes
from snapshots.model import EntityType, TypeSettings
from snapshots.store import SnapshotStore, TypeStore
from tests.conformance.subject import Subject, set_floor_in, set_state_in, set_type_in

KINDS = ["memory", "store-18", "client-18", "store-15"]
PARAMS = [
    pytest.param(kind, marks=[pytest.mark.postgres15] if kind.endswith("-15") else [])
    for kind in KINDS
]
_serial = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """Which implementation, on which database."""

    kind: str
    url: str


def _place(request: pytest.FixtureRequest, kind: str) -> Iterator[Place]:
    name, _, version = kind.partition("-")
    if not version:
        yield Place(name, "")
        return
    server = request.getfixturevalue(f"postgres{version}")
    janitor = DatabaseJanitor(
        user=server.user,
        host=server.host,
        port=server.port,
        dbname=f"conformance_{name}_{os.getpid()}",
        template_dbname=request.getfixturevalue(f"template{version}").template_dbname,
        maintenance_dbname=server.maintenance_dbname,
    )
    with janitor:
        yield Place(
            name,
            f"postgresql://{server.user}@/{janitor.dbname}?host={server.host}&port={server.port}",
        )


@pytest.fixture(scope="session", params=PARAMS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield from _place(request, request.param)


class OverTheWire:
    """The client's entity types; who sets them, the node says."""

    def __init__(self, client: Client) -> None:
        self.get, self.list = client.entity_types.get, client.entity_types.list
        self._put = client.entity_types.put

    async def put(
        self, name: str, settings: TypeSettings, *, version: int | None, principal: str
    ) -> EntityType:
        assert principal
        return await self._put(name, settings, version=version)


@pytest.fixture(scope="session")
async def implementation(place: Place) -> AsyncIterator[Subject]:
    """The implementation; its log is not to be used."""
    if place.kind == "memory":
        ticks = itertools.count(clock.now_us(), 1000)
        memory = MemoryJournal(now_us=lambda: next(ticks))

        async def set_state(log: str, name: tuple[str, str], state: str) -> None:
            memory.set_entity_state(log, name, state)

        async def set_floor(log: str, name: tuple[str, str], floor: int) -> None:
            memory.set_floor(log, name, floor)

        async def set_type(kind: str, rules: TypeRules) -> None:
            memory.set_rules(kind, rules)

        kinds = MemoryTypes(memory)
        snapshots = MemorySnapshots(memory, kinds)
        yield Subject("memory", memory, "", "", set_state, set_floor, set_type, snapshots, kinds)
        return
    database = await Database.open(DatabaseSettings(place.url))
    store = StoreJournal(database, StoreSettings(node="conformance"))
    await store.start()
    inside = (
        partial(set_state_in, store),
        partial(set_floor_in, store),
        partial(set_type_in, store),
        SnapshotStore(database, store),
        TypeStore(database, store),
    )
    try:
        if place.kind == "store":
            yield Subject("store", store, "", "", *inside)
            return
        node = NodeServer(
            store,
            ServerSettings(port=0, drain=timedelta(seconds=2)),
            services=[SnapshotService(*inside[-2:])],
        )
        await node.start()
        address = f"127.0.0.1:{node.port}"
        async with Client(f"everstate://{address}") as client:
            yield Subject(
                "client", client, "", address, *inside[:3], client.snapshots, OverTheWire(client)
            )
        await node.stop()
    finally:
        await store.close()
        await database.close()


@pytest.fixture
async def subject(implementation: Subject) -> Subject:
    """An implementation of the journal with an empty log."""
    log = f"t{next(_serial)}"
    await implementation.journal.create_log(log)
    return replace(implementation, log=log)
