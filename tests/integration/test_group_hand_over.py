"""Who has a partition: terms, epochs, draining. What a holder of an old epoch writes is refused."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from journal.groups.model import ParkedSelection
from journal.groups.node import share
from journal.groups.partition import Changes, Image, Parking
from journal.groups.store import GroupStore, Save
from journal.model import ReadQuery
from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import OutcomeUnknown
from kernel.ids import slice_of
from tests.group_support import QUICK, append, next_of, running_node, settled, silent, take
from tests.support import eventually_async, one

LONG, OVER = timedelta(seconds=60), timedelta(0)


@pytest.fixture
async def groups(store: StoreJournal) -> tuple[GroupStore, int]:
    """The tables, and a group with two partitions on a log with four events."""
    for entity in ("a", "b", "c", "a"):
        await store.append("", one(entity))
    opened = await store.open_log("default")
    tables = GroupStore(store.database)
    group_id = await tables.create("g", opened.log_id, replace(QUICK, partitions=2), 0)
    return tables, group_id


async def member(tables: GroupStore, group_id: int, term: timedelta = LONG) -> UUID:
    made = uuid4()
    await tables.join(made, group_id, "m", "node", term)
    return made


def save(partition: int, epoch: int, watermark: int, **more: object) -> Save:
    return Save(partition, epoch, Changes(Image(watermark), **more))  # type: ignore[arg-type]


def test_shares_differ_by_one_at_most_and_make_up_the_whole() -> None:
    for members in range(1, 20):
        shares = [share(rank, members, 16) for rank in range(members)]
        assert sum(shares) == 16
        assert max(shares) - min(shares) <= 1


async def test_a_partition_is_taken_by_one_and_by_another_only_after_the_term(
    groups: tuple[GroupStore, int],
) -> None:
    tables, group_id = groups
    one_, two = await member(tables, group_id), await member(tables, group_id)
    assert [p.epoch for p in await tables.acquire(group_id, one_, [0, 1])] == [1, 1]
    assert await tables.acquire(group_id, two, [0, 1]) == []
    await tables.renew([one_], OVER)
    assert [p.epoch for p in await tables.acquire(group_id, two, [0])] == [2]
    assert await tables.acquire(group_id, one_, [1]) == [], "who is over takes nothing"
    assert await tables.members(group_id) == [two]


async def test_what_a_holder_of_an_old_epoch_writes_is_refused_whole(
    groups: tuple[GroupStore, int], store: StoreJournal
) -> None:
    tables, group_id = groups
    rows = [row async for batch in store.read_rows("default", ReadQuery(), 5) for row in batch.rows]
    one_, two = await member(tables, group_id), await member(tables, group_id)
    await tables.acquire(group_id, one_, [0, 1])
    await tables.renew([one_], OVER)
    await tables.acquire(group_id, two, [0])
    parking = Parking(rows[0], "no", 1, held=False)
    written = await tables.save(
        group_id, one_, [save(0, 1, 3, parkings=[parking]), save(1, 1, 4)], store.names, hold=True
    )
    assert written.keys() == {1}, "0 is the other's; 1 is nobody else's yet"
    first, second = await tables.partitions(group_id)
    assert (first.watermark, first.parked, second.watermark) == (0, 0, 4)
    assert (await tables.parked(group_id, ParkedSelection())).events == ()
    # The other takes it again: the same holder, another epoch.
    await tables.acquire(group_id, two, [0])
    assert await tables.save(group_id, two, [save(0, 2, 3)], store.names, hold=True) == {}
    assert (await tables.save(group_id, two, [save(0, 3, 3)], store.names, hold=True)).keys() == {0}


async def test_seek_refuses_what_was_settled_before_it(
    groups: tuple[GroupStore, int], store: StoreJournal
) -> None:
    tables, group_id = groups
    one_ = await member(tables, group_id)
    await tables.acquire(group_id, one_, [0, 1])
    await tables.seek(group_id, 2)
    assert await tables.save(group_id, one_, [save(0, 1, 4)], store.names, hold=True) == {}
    assert [p.watermark for p in await tables.partitions(group_id)] == [2, 2]


async def test_a_save_that_is_repeated_after_an_unknown_outcome_counts_once(
    groups: tuple[GroupStore, int], store: StoreJournal
) -> None:
    tables, group_id = groups
    rows = [row async for batch in store.read_rows("default", ReadQuery(), 5) for row in batch.rows]
    one_ = await member(tables, group_id)
    await tables.acquire(group_id, one_, [0])
    parkings = [Parking(rows[0], "no", 1, held=False), Parking(rows[3], "", 0, held=True)]
    for _ in range(2):
        saves = [save(0, 1, 4, parkings=parkings)]
        written = await tables.save(group_id, one_, saves, store.names, hold=True)
        assert written[0].parked == 2
    events = (await tables.parked(group_id, ParkedSelection())).events
    assert [(e.position, e.state) for e in events] == [(1, "parked"), (4, "held")]


async def test_a_partition_changes_hands_only_when_nothing_of_it_is_out(database_url: str) -> None:
    async with running_node(database_url, "n1") as n1, running_node(database_url, "n2") as n2:
        await n1.client.groups.create("mail", replace(QUICK, partitions=2))
        low = [f"e{i}" for i in range(50) if slice_of("thing", f"e{i}") < 512][:4]
        high = [f"e{i}" for i in range(50) if slice_of("thing", f"e{i}") >= 512][:4]
        for entity in low + high:
            await n1.client.append("", one(entity))
        async with n1.client.groups.join("mail", name="old") as old:
            out = await take(old, 8)
            async with n2.client.groups.join("mail", name="new") as new:
                await new.joined.wait()
                # A second event of every entity: it may go out when the first is acked.
                for entity in low + high:
                    await n2.client.append("", one(entity))
                assert await silent(new, 1.5), "the old member is still at work"
                for delivery in out:
                    assert await delivery.ack()
                moved = await next_of(new)
                assert moved.event.sequence == 2
                assert moved.event.entity_id in high
                assert moved.attempt == 1

                async def shared() -> bool:
                    group = await n1.client.groups.get("mail")
                    return [m.partitions for m in group.members] == [1, 1]

                await eventually_async(shared, "each has one")


async def test_a_member_that_says_nothing_loses_its_partitions_after_the_ack_timeout(
    database_url: str,
) -> None:
    async with running_node(database_url, "n1") as n1, running_node(database_url, "n2") as n2:
        settings = replace(QUICK, partitions=1, ack_timeout=timedelta(seconds=1))
        await n1.client.groups.create("mail", settings)
        await append(n1.client, 1)
        async with n2.client.groups.join("mail", name="second") as second:
            await second.joined.wait()
            held = await next_of(second)
            async with n1.client.groups.join("mail", name="first") as first:
                await first.joined.wait()
                await second.leave()
                again = await next_of(first)
                assert again.event.position == held.event.position
                assert await again.ack()
                await settled(n1.client, "mail", 1)


async def test_the_database_may_forget_a_member_and_it_connects_again(
    database_url: str, database: Database
) -> None:
    async with running_node(database_url, "n1") as n1:
        await n1.client.groups.create("mail", QUICK)
        async with n1.client.groups.join("mail") as member_:
            await member_.joined.wait()
            first = member_.member_id
            async with database.connection() as connection:
                await connection.execute("DELETE FROM everstate.group_members")

            async def another() -> bool:
                return member_.joined.is_set() and member_.member_id != first

            await eventually_async(another, "it is a member again")
            await append(n1.client, 3)
            for delivery in await take(member_, 3):
                assert await delivery.ack()
            await settled(n1.client, "mail", 3)


async def test_members_beyond_the_partitions_stand_by_and_step_in(database_url: str) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", replace(QUICK, partitions=2))
        async with contextlib.AsyncExitStack() as stack:
            members = []
            for i in range(3):
                joined = node.client.groups.join("mail", name=f"m{i}")
                members.append(await stack.enter_async_context(joined))
                await members[-1].joined.wait()

            async def busy() -> bool:
                group = await node.client.groups.get("mail")
                return [m.partitions for m in group.members] == [1, 1, 0]

            await eventually_async(busy, "two are busy")
            await members[0].leave()
            await append(node.client, 40, entities=40)
            got = await asyncio.gather(next_of(members[1]), next_of(members[2]))
            assert {d.event.slice // 512 for d in got} == {0, 1}


async def test_an_ack_is_confirmed_only_when_it_is_on_disk(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        await append(node.client, 2, entities=1)
        gate, asked = asyncio.Event(), asyncio.Event()
        save_ = node.groups.store.save

        async def slow(*args: object, **more: object) -> object:
            asked.set()
            await gate.wait()
            return await save_(*args, **more)  # type: ignore[arg-type]

        async with node.client.groups.join("mail") as member_:
            delivery = await next_of(member_)
            monkeypatch.setattr(node.groups.store, "save", slow)
            answer = delivery.ack()
            await asyncio.wait_for(asked.wait(), 5)
            # The entity's next event does not wait for the disk; the confirmation does.
            following = await next_of(member_)
            assert following.event.sequence == 2
            assert not answer.done()
            gate.set()
            assert await answer
            assert await following.ack()


async def test_a_commit_that_fails_is_made_again_before_anything_is_confirmed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        await append(node.client, 1)
        save_ = node.groups.store.save
        failures = 3

        async def failing(*args: object, **more: object) -> object:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise OutcomeUnknown
            return await save_(*args, **more)  # type: ignore[arg-type]

        async with node.client.groups.join("mail") as member_:
            delivery = await next_of(member_)
            monkeypatch.setattr(node.groups.store, "save", failing)
            assert await delivery.ack()
            assert failures < 0
            await settled(node.client, "mail", 1)


async def test_many_members_have_their_shares_at_once(database_url: str) -> None:
    async with running_node(database_url, "n1") as n1, running_node(database_url, "n2") as n2:
        await n1.client.groups.create("mail", replace(QUICK, partitions=64))
        async with contextlib.AsyncExitStack() as stack:
            for i in range(30):
                node = (n1, n2)[i % 2]
                await stack.enter_async_context(node.client.groups.join("mail"))

            async def even() -> bool:
                group = await n1.client.groups.get("mail")
                return [m.partitions for m in group.members] == [3] * 4 + [2] * 26

            # Not one member a look (twice a second), but all of them in one or two.
            await eventually_async(even, "all have their share", 5)
