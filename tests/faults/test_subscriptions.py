"""Invariant 4: a subscriber sees every matching event once, in order, whatever commits slowly, dies
or restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import grpc
import pytest

from journal.model import FROM_NOW, SubscribeQuery
from journal.store import StoreJournal, StoreSettings
from journal.subscriptions import Delivery, SubscriptionSettings
from kernel import telemetry
from kernel.database import Database, DatabaseSettings
from kernel.errors import DeadlineExceeded, Unavailable
from sidecar_api.client import Append, Client, ClientSettings, EntityAppend, NewEvent
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.generated import journal_pb2_grpc
from sidecar_api.server import NodeServer
from tests.faults.test_concurrency import SLOW_COMMITS
from tests.support import LOOPBACK, Node, eventually_async, one, running

NEVER = timedelta(hours=1)


@contextlib.asynccontextmanager
async def store_on(url: str, name: str = "s", **settings: Any) -> AsyncIterator[StoreJournal]:
    database = await Database.open(DatabaseSettings(url, max_connections=3))
    subscriptions = SubscriptionSettings(**settings)
    store = StoreJournal(database, StoreSettings(node=name, subscriptions=subscriptions))
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        await database.close()


async def write(store: StoreJournal, count: int, name: str = "e", size: int = 1) -> None:
    for n in range(count):
        await store.append("default", one(f"{name}-{n % 5}", b"x" * size))


class Follower:
    """Reads a subscription in a store, and checks what invariant 4 promises."""

    def __init__(self, store: StoreJournal, start: int = 1, **query: Any) -> None:
        self.deliveries = store.subscriptions.subscribe(
            "default", SubscribeQuery(from_position=start, **query)
        )
        self.next = start
        self.changes: list[str] = []
        self.last: Delivery | None = None

    async def read(self) -> Delivery:
        async with asyncio.timeout(30):
            self.last = delivery = await anext(self.deliveries)
        for row in delivery.rows:
            assert row[0] == self.next, "a gap, or an event that was seen before"
            self.next += 1
        if self.next > 1 or delivery.rows:
            assert delivery.next_position == self.next
        if delivery.fell_behind:
            self.changes.append("fell behind")
        if delivery.caught_up:
            self.changes.append("caught up")
        return delivery

    async def through(self, position: int) -> None:
        while self.next <= position:
            await self.read()


async def test_invariant_4_subscribers_of_three_processes_while_commits_are_slow(
    database_url: str,
) -> None:
    """Two stores write, with several connections each; followers start at different moments."""
    wanted = 600
    foreign = await asyncpg.connect(database_url)
    await foreign.execute(SLOW_COMMITS)
    await foreign.close()
    async with (
        store_on(database_url, "a") as a,
        store_on(database_url, "b") as b,
        store_on(database_url, "c") as c,
    ):
        followers = [Follower(store) for store in (a, b, c)]
        late: list[Follower] = []

        async def join_late() -> None:
            for position in (100, 300, 500):
                await followers[2].through(position)
                late.append(Follower(c, position // 2))

        writers = [
            write(store, wanted // 20, f"{s}-{n}")
            for s, store in enumerate((a, b))
            for n in range(10)
        ]
        async with running(*(f.through(wanted) for f in followers[:2]), join_late()) as reading:
            await asyncio.gather(*writers)
            async with asyncio.timeout(30):
                await asyncio.gather(*reading)
        for follower in [*followers, *late]:
            await follower.through(wanted)
            assert follower.next == wanted + 1
            await follower.deliveries.aclose()


async def test_a_slow_reader_falls_behind_and_catches_up_with_nothing_lost(
    database_url: str,
) -> None:
    async with store_on(database_url, tail_bytes=20_000) as store:
        slow, quick = Follower(store), Follower(store)
        await slow.read()
        await quick.read()
        for _ in range(3):
            await write(store, 60, size=500)
            await quick.through(store_head := await head_of(store))
            assert store.subscriptions.tails[0].size <= 20_000
            await slow.through(store_head)
        assert slow.changes == ["caught up", *["fell behind", "caught up"] * 3]
        assert quick.changes == slow.changes, "neither read while it was written"


async def head_of(store: StoreJournal) -> int:
    return (await store.get_log("default")).head


async def test_own_commits_reach_subscribers_without_a_read_of_the_database(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_on(database_url, poll=NEVER) as store:
        follower = Follower(store)
        await follower.read()

        async def refuse(*_: object) -> list[Any]:
            raise AssertionError("it was read from the database")

        monkeypatch.setattr(store.reader, "range", refuse)
        monkeypatch.setattr(store.reader, "read", refuse)
        await write(store, 50)
        await follower.through(50)


async def test_others_commits_arrive_by_notify_alone(database_url: str) -> None:
    async with store_on(database_url, "a") as a, store_on(database_url, poll=NEVER) as b:
        await asyncio.wait_for(b.subscriptions.listening.wait(), 10)
        follower = Follower(b, FROM_NOW)
        follower.next = 1
        await follower.read()
        await write(a, 40)
        await follower.through(40)


async def test_others_commits_arrive_by_polling_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.notifications.Notifications.announce", lambda *_: None)
    async with (
        store_on(database_url, "a") as a,
        store_on(database_url, poll=timedelta(milliseconds=50)) as b,
    ):
        follower = Follower(b)
        await follower.read()
        await write(a, 40)
        await follower.through(40)


class Proxy:
    """Stands between a store and PostgreSQL; connections of NOTIFY can be frozen: they stay open,
    and nothing goes through them any more, as when a firewall has forgotten them.
    """

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self._target = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self._path = folder / f".s.PGSQL.{query['port'][0]}"
        self.url = url.replace(query["host"][0], str(folder))
        self.frozen = asyncio.Event()
        self.silent = asyncio.Event()  # nothing goes through any connection
        self.notify_connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._target)
        first = await reader.read(65536)
        notifies = b"-notify" in first
        self.notify_connections += notifies
        back.write(first)
        doomed = notifies and self.notify_connections == 1
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink, doomed=doomed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, doomed: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self.silent.is_set() or (doomed and self.frozen.is_set()):
                    continue
                sink.write(data)
                await sink.drain()
            sink.close()


async def test_a_listen_connection_that_died_silently_costs_a_poll_and_is_replaced(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        Proxy(database_url, tmp_path) as proxy,
        store_on(database_url, "a") as a,
        store_on(
            proxy.url, "b", poll=timedelta(milliseconds=50),
            notifications_check=timedelta(milliseconds=200),
        ) as b,
    ):  # fmt: skip
        await asyncio.wait_for(b.subscriptions.listening.wait(), 10)
        follower = Follower(b)
        await follower.read()
        proxy.frozen.set()
        await write(a, 20)
        await follower.through(20)  # by polling

        async def replaced() -> bool:
            return proxy.notify_connections > 1 and b.subscriptions.listening.is_set()

        await eventually_async(replaced, "the dead connection is noticed and replaced")
        b.subscriptions._task.cancel()  # no more polls: only the new connection can tell
        await write(a, 20)
        await follower.through(40)


async def test_a_database_that_falls_silent_ends_no_subscription_and_no_task(
    database_url: str, tmp_path: Path
) -> None:
    async with Proxy(database_url, tmp_path) as proxy, store_on(database_url, "a") as a:
        settings = DatabaseSettings(
            proxy.url, max_connections=3, statement_timeout=timedelta(seconds=1)
        )
        database = await Database.open(settings)
        quick = SubscriptionSettings(
            poll=timedelta(milliseconds=50), notifications_check=timedelta(milliseconds=200)
        )
        b = StoreJournal(database, StoreSettings(subscriptions=quick))
        await b.start()
        follower = Follower(b)
        await follower.read()
        proxy.silent.set()
        async with asyncio.timeout(20):
            for timeout in (0.2, None):
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await database.fetch("SELECT 1", timeout=timeout)
        await write(a, 20)
        proxy.silent.clear()
        await follower.through(20)
        await follower.deliveries.aclose()
        await b.close()
        await database.close()


async def test_a_head_that_goes_back_ends_subscriptions(database_url: str) -> None:
    """As after a failover to a replica that lacked the newest commits."""
    async with store_on(database_url, poll=timedelta(milliseconds=50)) as store:
        await write(store, 5)
        follower = Follower(store)
        await follower.through(5)
        foreign = await asyncpg.connect(database_url)
        await foreign.execute("DELETE FROM everstate.events WHERE position BETWEEN 4 AND 5")
        await foreign.execute("DELETE FROM everstate.batches WHERE last_position BETWEEN 4 AND 5")
        await foreign.close()
        with pytest.raises(Unavailable):
            await follower.read()
        again = Follower(store, 4)
        await again.read()
        assert again.last is not None
        assert (again.last.head, again.next) == (3, 4)


KILLED_BEFORE_NOTIFY = """
import asyncio, os, signal, sys
from journal.store import StoreJournal
from kernel.database import Database, DatabaseSettings
from kernel.notifications import Notifications
from tests.support import one

def die(self, key, value):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = StoreJournal(await Database.open(DatabaseSettings(sys.argv[1])))
    await store.start()
    Notifications.announce = die
    await store.append("default", one("last words"))

asyncio.run(main())
"""


async def test_kill_9_between_commit_and_notify_loses_nothing(database_url: str) -> None:
    async with store_on(database_url) as store:
        follower = Follower(store)
        await follower.read()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED_BEFORE_NOTIFY, database_url, cwd=Path(__file__).parents[2]
        )
        assert await process.wait() == -signal.SIGKILL
        await follower.through(1)
        assert follower.last is not None
        assert [row[8] for row in follower.last.rows] == ["last words"]


async def test_heartbeats_carry_the_head_where_nothing_matches(database_url: str) -> None:
    async with store_on(database_url, heartbeat=timedelta(milliseconds=100)) as store:
        deliveries = store.subscriptions.subscribe(
            "default", SubscribeQuery(event_types=("Never",))
        )
        assert (await anext(deliveries)).caught_up
        await write(store, 30)
        async with asyncio.timeout(10):
            async for delivery in deliveries:
                assert list(delivery.rows) == []
                if delivery.next_position == 31:
                    assert delivery.head == 30
                    break
        await deliveries.aclose()


async def test_a_long_catch_up_without_a_match_says_how_far_it_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("journal.subscriptions.CATCH_UP", 10)
    async with store_on(database_url) as store:
        await write(store, 35)
        deliveries = store.subscriptions.subscribe(
            "default", SubscribeQuery(event_types=("Never",))
        )
        said = [(await anext(deliveries)).next_position for _ in range(4)]
        assert said == [11, 21, 31, 36]
        await deliveries.aclose()


async def test_subscriptions_end_when_their_process_stops(database_url: str) -> None:
    async with store_on(database_url) as store:
        follower = Follower(store)
        await follower.read()
        waiting = asyncio.create_task(follower.read())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await Follower(store).read()


async def test_an_idle_tail_is_given_up_and_the_next_subscriber_gets_a_new_one(
    database_url: str,
) -> None:
    async with store_on(
        database_url, poll=timedelta(milliseconds=20), linger=timedelta(milliseconds=40)
    ) as store:
        follower = Follower(store)
        await follower.read()
        await follower.deliveries.aclose()

        async def gone() -> bool:
            return not store.subscriptions.tails

        await eventually_async(gone, "the tail is given up")
        await write(store, 3)
        again = Follower(store)
        await again.through(3)
        await write(store, 3)
        await again.through(6)
        await again.deliveries.aclose()


# Over gRPC


def encoded(log: str) -> float:
    return telemetry.tail_encoded.labels(log)._value.get()


async def test_each_event_is_encoded_once_for_all_subscribers(
    node: NodeServer, client: Client
) -> None:
    log = "encoded_once"
    await client.create_log(log)
    filters: tuple[dict[str, Any], ...] = (
        {}, {}, {"event_types": ("Happened",)}, {"entity_types": ("thing",)}, {},
    )  # fmt: skip
    streams = [
        client.subscribe(log, SubscribeQuery(from_position=FROM_NOW, **query)) for query in filters
    ]
    for stream in streams:
        assert (await anext(stream)).caught_up
    for n in range(100):
        await client.append(log, one(f"e{n % 7}", b"%d" % n))
    for stream in streams:
        seen: list[bytes] = []
        while len(seen) < 100:
            seen += [event.payload for event in (await anext(stream)).events]
        assert seen == [b"%d" % n for n in range(100)]
        await stream.aclose()  # type: ignore[attr-defined]
    assert encoded(log) == 100


async def test_a_client_goes_on_after_its_node_was_killed(database_url: str) -> None:
    settings = ClientSettings(retry_for=timedelta(seconds=30))
    with Node(database_url) as a, Node(database_url) as b:
        async with a.client(settings) as following, b.client() as writing:
            seen: list[int] = []

            async def follow() -> None:
                async for batch in following.subscribe("", SubscribeQuery()):
                    seen.extend(event.position for event in batch.events)

            async def has(count: int) -> None:
                async def there() -> bool:
                    return len(seen) >= count

                await eventually_async(there, f"{count} events", timeout=40)

            async with running(follow()):
                for round_ in range(1, 4):
                    for n in range(50):
                        await writing.append("", one(f"e{n % 9}"))
                    await has(round_ * 50 - 25)
                    a.kill() if round_ % 2 else os.kill(a.pid, signal.SIGTERM)
                    assert a.running is not None
                    a.running.end()
                    for n in range(50):
                        await writing.append("", one(f"f{n % 9}"))
                    a.start()
                await has(300)
            assert seen == list(range(1, 301))


@pytest.mark.timeout(180)
async def test_invariant_12_a_hundred_subscribers_that_never_read_hold_little_memory(
    database_url: str,
) -> None:
    with Node(database_url) as node:
        channels = [
            grpc.aio.insecure_channel(
                f"{LOOPBACK}:{node.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]
            )
            for _ in range(10)
        ]
        calls = [
            journal_pb2_grpc.JournalServiceStub(channels[i % 10]).Subscribe(pb.SubscribeRequest())
            for i in range(100)
        ]
        for call in calls:
            assert (await call.read()).caught_up
        batch = tuple(NewEvent("Filled", b"x" * 1_000) for _ in range(500))
        async with node.client() as client:
            for n in range(100):  # 50 MB
                await client.append("", Append((EntityAppend("fill", f"{n}"),), batch))
        assert node.memory_mb() < 250
        positions: list[int] = []
        while len(positions) < 50_000:  # the slowest has lost nothing by being slow
            positions += [event.position for event in (await calls[0].read()).events]
        assert positions == list(range(1, 50_001))
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
