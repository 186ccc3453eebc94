"""Connections that break at the worst moment: invariants 5 and 6 hold across them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from journal.model import Append, EntityAppend, NewEvent
from journal.store import StoreJournal
from kernel.database import Database, DatabaseSettings
from kernel.errors import OutcomeUnknown
from kernel.ids import new_id
from sidecar_api.client import Client, ClientSettings
from sidecar_api.server import NodeServer
from tests.support import LOOPBACK, assert_sequences_have_no_hole, everything, verified


@dataclass
class Proxy:
    """Passes bytes between clients and a server, and breaks connections when told.

    While ``swallow`` is set, the next reply of the server is not passed on: when it has come (the
    server has done its work), the connection is closed.
    """

    swallow: bool = False
    swallowed: asyncio.Event = field(default_factory=asyncio.Event)
    pairs: set[asyncio.Task[None]] = field(default_factory=set)

    async def accept(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.pairs.add(task)
        try:
            there = await connect()
            try:
                await self.pass_on(reader, writer, there)
            finally:
                there[1].transport.abort()
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            writer.transport.abort()
            self.pairs.discard(task)

    async def pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        asked = asyncio.Event()
        announces = False  # NOTIFY has a connection of its own, whose replies nobody needs

        async def forth() -> None:
            nonlocal announces
            while data := await reader.read(65536):
                announces = announces or b"-notify\0" in data
                asked.set()
                there[1].write(data)
                await there[1].drain()

        async def back() -> None:
            while data := await there[0].read(65536):
                if self.swallow and asked.is_set() and not announces:
                    self.swallow = False
                    self.swallowed.set()
                    return
                asked.clear()
                writer.write(data)
                await writer.drain()

        ways = [asyncio.create_task(forth()), asyncio.create_task(back())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def cut(self) -> None:
        """Breaks every connection."""
        for task in list(self.pairs):
            task.cancel()

    async def close(self, server: asyncio.Server) -> None:
        """Ends the server and every connection."""
        server.close()
        tasks = list(self.pairs)
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Through:
    """A store whose connections go through a proxy."""

    journal: StoreJournal
    proxy: Proxy


@pytest.fixture
async def through(any_database_url: str, tmp_path: Path) -> AsyncIterator[Through]:
    proxy = Proxy()
    host = any_database_url.partition("host=")[2].partition("&")[0]
    folder = Path("/tmp") / f"everstate-proxy-{new_id()[-8:]}"  # socket paths have to be short
    folder.mkdir(mode=0o700)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await proxy.accept(
            reader, writer, lambda: asyncio.open_unix_connection(f"{host}/.s.PGSQL.5432")
        )

    server = await asyncio.start_unix_server(accept, folder / ".s.PGSQL.5432")
    database = await Database.open(
        DatabaseSettings(any_database_url.replace(f"host={host}", f"host={folder}"))
    )
    journal = StoreJournal(database)
    await journal.start()
    yield Through(journal, proxy)
    await journal.close()
    await database.close()
    await proxy.close(server)
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def exact(entity_id: str, sequence: int) -> Append:
    event = NewEvent("Happened", b"x", event_id=new_id())
    return Append((EntityAppend("thing", entity_id, sequence),), (event,))


async def test_a_reply_lost_between_commit_and_node_is_found_again_by_the_node(
    through: Through,
) -> None:
    journal, proxy = through.journal, through.proxy
    first = await journal.append("default", exact("a", 0))
    proxy.swallow = True
    again = await journal.append("default", exact("a", 1))
    assert proxy.swallowed.is_set()
    assert (again.duplicate, again.first_position) == (True, first.first_position + 1)
    assert (await journal.get_log("default")).head == 2


async def test_a_lost_reply_of_an_append_with_an_id_is_found_again(through: Through) -> None:
    journal, proxy = through.journal, through.proxy
    await journal.append("default", exact("a", 0))
    append = Append(
        (EntityAppend("thing", "a"), EntityAppend("thing", "b")),
        (NewEvent("Happened", b"1"), NewEvent("Happened", b"2", entity=1)),
        append_id=new_id(),
    )
    proxy.swallow = True
    done = await journal.append("default", append)
    assert proxy.swallowed.is_set()
    assert (done.duplicate, done.first_position, done.last_position) == (True, 2, 3)
    assert [e.first_sequence for e in done.entities] == [2, 1]
    assert (await journal.get_log("default")).head == 3


async def test_a_lost_reply_of_an_append_that_nobody_can_recognise_is_an_unknown_outcome(
    through: Through,
) -> None:
    journal, proxy = through.journal, through.proxy
    await journal.append("default", exact("a", 0))
    proxy.swallow = True
    with pytest.raises(OutcomeUnknown):
        await journal.append(
            "default", Append((EntityAppend("thing", "a"),), (NewEvent("Happened", b""),))
        )
    assert proxy.swallowed.is_set()
    assert (await journal.get_log("default")).head == 2  # written, once; and the node did not retry


async def test_invariant_5_appends_over_connections_that_break_often_are_there_once(
    node: NodeServer,
) -> None:
    proxy = Proxy()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await proxy.accept(reader, writer, lambda: asyncio.open_connection(LOOPBACK, node.port))

    server = await asyncio.start_server(accept, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    entities, events = 40, 30
    acknowledged: list[int] = []
    progress = asyncio.Event()

    async def write(client: Client, name: str) -> None:
        for sequence in range(events):
            if sequence % 2:
                done = await client.append("", exact(name, sequence))
            else:  # not exact: the client gives it an append id
                event = NewEvent("Happened", b"y")
                done = await client.append("", Append((EntityAppend("thing", name),), (event,)))
            assert done.entities[0].last_sequence == sequence + 1
            acknowledged.append(done.last_position)
            progress.set()

    async def cut_often() -> None:
        chance = random.Random(7)
        while True:
            # A cut every few dozen acknowledged appends: in the midst of traffic, not by the clock.
            target = len(acknowledged) + chance.randint(5, 60)
            while len(acknowledged) < target:
                progress.clear()
                await progress.wait()
            proxy.cut()

    async with Client(f"everstate://{LOOPBACK}:{port}", ClientSettings()) as client:
        cutter = asyncio.create_task(cut_often())
        await asyncio.gather(*(write(client, f"e{i}") for i in range(entities)))
        cutter.cancel()
    await proxy.close(server)
    assert len(set(acknowledged)) == entities * events
    async with Client(f"everstate://{LOOPBACK}:{node.port}") as direct:
        stored = await everything(direct)
        assert len(stored) == entities * events
        assert_sequences_have_no_hole(stored)
        await verified(direct)
