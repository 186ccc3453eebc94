"""Consumer groups while members and nodes die: nothing lost, nothing confirmed comes again, order
within an entity kept.

Every handler writes what it saw into one ledger; a member's own view ends where it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import pytest

from kernel.devdb import DevDatabase
from sidecar_api.client import Client, ClientSettings, GroupSettings, ReadQuery
from sidecar_api.client.groups import GroupDelivery, Member
from tests.support import ROOT, Node, eventually_async, one

QUICK = GroupSettings(
    ack_timeout=timedelta(seconds=20),
    backoff_min=timedelta(milliseconds=5),
    backoff_max=timedelta(milliseconds=50),
    max_attempts=1_000,
)
PATIENT = ClientSettings(retry_for=timedelta(seconds=60))


@dataclass
class Ledger:
    """What members saw, over all of them."""

    confirmed: dict[int, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)  # entity → last sequence confirmed
    deliveries: int = 0
    redelivered: int = 0

    def seen(self, delivery: GroupDelivery) -> None:
        event = delivery.event
        self.deliveries += 1
        self.redelivered += delivery.attempt > 1
        assert event.position not in self.confirmed, "it was confirmed before it was delivered"
        done = self.done.get(event.entity_id, 0)
        assert event.sequence > done, f"{event.entity_id}: {event.sequence} after {done}"

    def settled(self, delivery: GroupDelivery, member: str) -> None:
        event = delivery.event
        assert event.position not in self.confirmed, "confirmed twice"
        self.confirmed[event.position] = member
        self.done[event.entity_id] = max(event.sequence, self.done.get(event.entity_id, 0))


async def handle(member: Member, delivery: GroupDelivery, ledger: Ledger, chance: float) -> None:
    ledger.seen(delivery)
    await asyncio.sleep(random.uniform(0, 0.002))
    if random.random() < chance:
        await delivery.nack("by chance")
    elif await delivery.ack():
        ledger.settled(delivery, member.member_id)


async def consume(member: Member, ledger: Ledger, chance: float = 0.02) -> None:
    """Handles deliveries side by side, as a worker would, until the member leaves."""
    async with asyncio.TaskGroup() as tasks:
        async for delivery in member:
            tasks.create_task(handle(member, delivery, ledger, chance))


@contextlib.asynccontextmanager
async def consuming(
    client: Client, ledger: Ledger, name: str = "", chance: float = 0.02
) -> AsyncIterator[Member]:
    async with client.groups.join("g", name=name, credit=64) as member:
        task = asyncio.create_task(consume(member, ledger, chance))
        try:
            yield member
        finally:
            await member.leave()
            await task


async def load(client: Client, count: int, entities: int) -> None:
    for start in range(0, count, 100):
        await asyncio.gather(
            *(client.append("", one(f"e{(start + i) % entities}")) for i in range(100))
        )


async def finished(client: Client, ledger: Ledger, count: int) -> None:
    async def done() -> bool:
        group = await client.groups.get("g")
        return group.position >= count and not group.parked

    await eventually_async(done, f"the group has done {count} events", timeout=60)
    # A confirmation may be under way, or lost with who was killed; the server has them all.
    assert all(1 <= position <= count for position in ledger.confirmed)


async def test_rebalancing_storms_lose_nothing_and_keep_the_order(database_url: str) -> None:
    events = 6_000
    ledger = Ledger()
    chance = random.Random(7)
    with Node(database_url) as first, Node(database_url) as second:
        async with first.client(PATIENT) as one_, second.client(PATIENT) as two:
            await one_.groups.create("g", QUICK)
            loading = asyncio.create_task(load(one_, events, 200))

            async def come_and_go(i: int) -> None:
                while not loading.done():
                    client = chance.choice((one_, two))
                    async with consuming(client, ledger, f"m{i}") as member:
                        await asyncio.sleep(chance.uniform(0.05, 1.0))
                        if chance.random() < 0.3:
                            await member.abandon()

            async with consuming(one_, ledger, "steady"):
                async with asyncio.TaskGroup() as tasks:
                    for i in range(4):
                        tasks.create_task(come_and_go(i))
                await loading
                await finished(one_, ledger, events)
    missing = set(range(1, events + 1)) - ledger.confirmed.keys()
    assert len(missing) < 64 * 20, "only confirmations that were under way to who left are missing"
    assert ledger.deliveries >= events


async def test_a_node_killed_with_sigkill_hands_over_within_the_term(database_url: str) -> None:
    events = 4_000
    ledger = Ledger()
    quick = {"EVERSTATE_GROUP_TERM_SECONDS": "2"}
    with Node(database_url, extra=quick) as first, Node(database_url, extra=quick) as second:
        async with first.client(PATIENT) as one_, second.client(PATIENT) as two:
            await two.groups.create("g", QUICK)
            async with consuming(two, ledger, "survivor"):
                doomed = one_.groups.join("g", name="doomed", credit=64)
                await doomed.__aenter__()
                task = asyncio.create_task(consume(doomed, ledger))

                async def even() -> bool:
                    group = await two.groups.get("g")
                    return sorted(m.partitions for m in group.members) == [8, 8]

                loading = asyncio.create_task(load(two, events, 100))
                await eventually_async(even, "both have their share")
                loop = asyncio.get_running_loop()
                first.kill()
                began = loop.time()

                async def taken_over() -> bool:
                    group = await two.groups.get("g")
                    return [m.partitions for m in group.members] == [16]

                await eventually_async(taken_over, "the survivor has everything", timeout=10)
                took = loop.time() - began
                assert took < 2 + 2, f"{took:.1f} s for a term of 2 s"
                await doomed.abandon()
                await task
                await loading
                await finished(two, ledger, events)
    missing = set(range(1, events + 1)) - ledger.confirmed.keys()
    assert len(missing) <= 64, "only what the dead node had not told is missing"


async def test_a_node_that_was_frozen_delivers_nothing_that_others_have_done(
    database_url: str,
) -> None:
    events = 3_000
    ledger = Ledger()
    quick = {"EVERSTATE_GROUP_TERM_SECONDS": "1"}
    with Node(database_url, extra=quick) as first, Node(database_url, extra=quick) as second:
        async with first.client(PATIENT) as one_, second.client(PATIENT) as two:
            await two.groups.create("g", QUICK)
            async with consuming(two, ledger, "survivor"), consuming(one_, ledger, "frozen"):

                async def shares() -> list[int]:
                    group = await two.groups.get("g")
                    return sorted(m.partitions for m in group.members)

                loading = asyncio.create_task(load(two, events, 100))
                for _ in range(3):
                    await eventually_async(lambda: has(shares, [8, 8]), "both have their share")
                    os.kill(first.pid, signal.SIGSTOP)
                    await eventually_async(lambda: has(shares, [16]), "the other has everything")
                    os.kill(first.pid, signal.SIGCONT)
                await loading
                await finished(two, ledger, events)
    missing = set(range(1, events + 1)) - ledger.confirmed.keys()
    assert len(missing) <= 3 * 64, "only what was under way when it froze is missing"


async def has(shares: Callable[[], Awaitable[list[int]]], wanted: list[int]) -> bool:
    return await shares() == wanted


async def test_a_database_that_is_killed_costs_a_group_nothing(postgres: DevDatabase) -> None:
    events = 2_000
    ledger = Ledger()
    with Node(postgres.dsn()) as node:
        async with node.client(PATIENT) as client:
            await client.groups.create("g", QUICK)
            async with consuming(client, ledger, "m"):
                loading = asyncio.create_task(load(client, events, 100))
                for share in (500, 1_000):
                    await eventually_async(
                        partial(enough, ledger, share), "some of it is done", 60
                    )  # fmt: skip
                    postgres.kill()
                    postgres.start()  # from the main thread: it dies with us
                await loading
                await finished(client, ledger, events)
            missing = set(range(1, events + 1)) - ledger.confirmed.keys()
            assert len(missing) <= 2 * 64
            assert node.running is not None
            assert node.running.process.poll() is None


async def enough(ledger: Ledger, count: int) -> bool:
    return len(ledger.confirmed) >= count


async def test_a_member_that_never_acks_does_not_stop_the_others(database_url: str) -> None:
    ledger = Ledger()
    settings = GroupSettings(
        ack_timeout=timedelta(seconds=1), max_attempts=2, backoff_min=timedelta(milliseconds=5),
        backoff_max=timedelta(milliseconds=5), skip_parked=True,
    )  # fmt: skip
    with Node(database_url) as node:
        async with node.client(PATIENT) as client:
            await client.groups.create("g", settings)
            async with client.groups.join("g", name="stuck", credit=32) as stuck:
                await stuck.joined.wait()
                async with consuming(client, ledger, "well", chance=0):

                    async def even() -> bool:
                        group = await client.groups.get("g")
                        return sorted(m.partitions for m in group.members) == [8, 8]

                    await eventually_async(even, "both have their share")
                    await load(client, 1_000, 100)
                    group = await client.groups.get("g")
                    theirs = {
                        s
                        for p in group.partitions
                        if p.member_id != stuck.member_id
                        for s in range(p.first_slice, p.last_slice + 1)
                    }
                    wanted = {
                        event.position
                        async for batch in client.read("", ReadQuery())
                        for event in batch.events
                        if event.slice in theirs
                    }

                    async def others_done() -> bool:
                        return wanted <= ledger.confirmed.keys()

                    await eventually_async(others_done, "the other member's share is done", 10)

                    async def parked() -> bool:
                        return (await client.groups.get("g")).parked >= 32

                    await eventually_async(parked, "what the stuck member had is parked", 20)


MEMBER = """
import asyncio, sys
from everstate.client import Client

async def main():
    async with Client(sys.argv[1]) as client:
        async with client.groups.join("g", name="frozen", credit=10) as member:
            async for delivery in member:
                print(delivery.event.position, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=lambda s: s.name)
async def test_a_member_process_that_is_killed_or_frozen_is_replaced_within_the_term(
    database_url: str, end: signal.Signals
) -> None:
    with Node(database_url) as node:
        async with node.client(PATIENT) as client:
            await client.groups.create("g", QUICK)
            await load(client, 100, 50)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", MEMBER, node.url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            try:
                assert process.stdout is not None
                theirs = [int(await process.stdout.readline()) for _ in range(10)]
                process.send_signal(end)
                loop = asyncio.get_running_loop()
                began = loop.time()
                ledger = Ledger()
                async with consuming(client, ledger, "next", chance=0):

                    async def done() -> bool:
                        return set(theirs) <= ledger.confirmed.keys()

                    await eventually_async(done, "what it had is with the next", 15)
                    assert loop.time() - began < (3 if end is signal.SIGKILL else 12)
                    await finished(client, ledger, 100)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
