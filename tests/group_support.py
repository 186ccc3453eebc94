"""What tests of consumer groups share: nodes in this process that serve groups, deliveries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from journal.groups.model import GroupSettings, NodeGroupSettings
from journal.groups.node import Groups
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from sidecar_api.client import Client, ClientSettings
from sidecar_api.client.groups import GroupDelivery, Member
from sidecar_api.server import NodeServer, ServerSettings
from sidecar_api.services.groups import GroupService
from tests.support import eventually_async, one

QUICK = GroupSettings(
    ack_timeout=timedelta(seconds=20),
    backoff_min=timedelta(milliseconds=10),
    backoff_max=timedelta(milliseconds=50),
)
TERM = timedelta(seconds=2)


@dataclass
class GroupNode:
    """A node in this process."""

    store: StoreJournal
    groups: Groups
    client: Client


@contextlib.asynccontextmanager
async def running_node(url: str, name: str = "node") -> AsyncIterator[GroupNode]:
    database = await Database.open(DatabaseSettings(url))
    store = StoreJournal(database, StoreSettings(node=name))
    groups = Groups(store, NodeGroupSettings(node=name, term=TERM))
    server = NodeServer(
        store,
        ServerSettings(port=0, drain=timedelta(seconds=2)),
        services=[GroupService(groups, store.names)],
    )
    await store.start()
    await groups.start()
    await server.start()
    settings = ClientSettings(retry_for=timedelta(seconds=5))
    try:
        async with Client(f"everstate://127.0.0.1:{server.port}/default", settings) as client:
            await client.server_info()  # making a group is not retried: the connection has to stand
            yield GroupNode(store, groups, client)
    finally:
        await server.stop(timedelta(seconds=2))
        await groups.close()
        await store.close()
        await database.close()


async def append(
    client: Client, count: int, entities: int = 10, start: int = 0, prefix: str = "e"
) -> None:
    await asyncio.gather(
        *(client.append("", one(f"{prefix}{i % entities}")) for i in range(start, start + count))
    )  # fmt: skip


async def next_of(member: Member, timeout: float = 10) -> GroupDelivery:
    async with asyncio.timeout(timeout):
        return await anext(member)


async def take(member: Member, count: int) -> list[GroupDelivery]:
    return [await next_of(member) for _ in range(count)]


async def silent(member: Member, seconds: float = 0.3) -> bool:
    """Whether nothing is delivered for a while."""
    try:
        await next_of(member, seconds)
    except TimeoutError:
        return True
    return False


async def settled(client: Client, name: str, position: int) -> None:
    async def there() -> bool:
        return (await client.groups.get(name)).position == position

    await eventually_async(there, f"{name} is at {position}")
