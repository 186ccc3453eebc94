"""Consumer groups over gRPC: one node and two nodes on one database, and a member's life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from journal.groups.model import FROM_NOW, Group, GroupChange, ParkedSelection
from kernel.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    LogNotFound,
    NotFound,
    OutOfRange,
)
from sidecar_api.client import Client
from sidecar_api.client.groups import Member
from tests.group_support import (
    QUICK,
    GroupNode,
    append,
    next_of,
    running_node,
    settled,
    silent,
    take,
)
from tests.support import eventually_async, one


@pytest.fixture
async def one_node(database_url: str) -> AsyncIterator[GroupNode]:
    async with running_node(database_url) as node:
        yield node


async def work(member: Member, done: list[tuple[str, int, int]]) -> None:
    """Acks everything at once; notes (entity, sequence, position) of what was confirmed."""
    with contextlib.suppress(NotFound):
        async for delivery in member:
            event = delivery.event
            if await delivery.ack():
                done.append((event.entity_id, event.sequence, event.position))


def assert_exactly_once_in_order(done: list[tuple[str, int, int]], count: int) -> None:
    assert sorted(p for _, _, p in done) == list(range(1, count + 1))
    by_entity: dict[str, list[int]] = {}
    for entity, sequence, _ in done:
        by_entity.setdefault(entity, []).append(sequence)
    for entity, sequences in by_entity.items():
        assert sequences == sorted(sequences), entity


# -- one member ----------------------------------------------------------------------------------


async def test_a_member_gets_every_event_and_what_it_acked_does_not_come_again(
    one_node: GroupNode,
) -> None:
    client = one_node.client
    await append(client, 100)
    await client.groups.create("mail", QUICK)
    done: list[tuple[str, int, int]] = []
    async with client.groups.join("mail", name="w") as member:
        worker = asyncio.create_task(work(member, done))
        await settled(client, "mail", 100)
        await append(client, 50, start=100)
        await settled(client, "mail", 150)
    await worker
    assert_exactly_once_in_order(done, 150)
    async with client.groups.join("mail") as member:
        assert await silent(member)
    group = await client.groups.get("mail")
    assert (group.position, group.head, group.lag_events, group.parked) == (150, 150, 0, 0)
    assert group.members == ()


async def test_what_was_not_acked_comes_again_to_the_next_member(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 6, entities=6)
    await client.groups.create("mail", QUICK)
    async with client.groups.join("mail") as member:
        first = await take(member, 6)
        for delivery in first[:3]:
            assert await delivery.ack()
        rest = {d.event.position for d in first[3:]}
    async with client.groups.join("mail") as member:
        again = await take(member, 3)
        assert {d.event.position for d in again} == rest
        assert {d.attempt for d in again} == {1}, "the first member said goodbye"
        await member.abandon()
    async with client.groups.join("mail") as member:
        again = await take(member, 3)
        assert {(d.event.position, d.attempt) for d in again} == {(p, 2) for p in rest}
        assert all([await d.ack() for d in again])
        await settled(client, "mail", 6)


async def test_a_nacked_event_comes_again_after_its_time_and_its_entity_waits(
    one_node: GroupNode,
) -> None:
    client = one_node.client
    for entity in ("a", "a", "b"):
        await client.append("", one(entity))
    await client.groups.create("mail", replace(QUICK, partitions=1))
    loop = asyncio.get_running_loop()
    async with client.groups.join("mail") as member:
        first, other = await take(member, 2)
        assert (first.event.entity_id, other.event.entity_id) == ("a", "b")
        began = loop.time()
        assert await first.nack("later", retry_after=timedelta(milliseconds=300))
        assert await other.ack()
        again = await next_of(member)
        assert loop.time() - began >= 0.3
        assert (again.event.position, again.attempt) == (1, 2)
        await again.ack()
        assert (await next_of(member)).event.position == 2


async def test_a_member_that_never_acks_gets_it_again_until_it_is_parked(
    one_node: GroupNode,
) -> None:
    client = one_node.client
    await append(client, 1)
    quick = replace(QUICK, ack_timeout=timedelta(milliseconds=150), max_attempts=3)
    await client.groups.create("mail", quick)
    async with client.groups.join("mail") as member:
        deliveries = await take(member, 3)
        assert [d.attempt for d in deliveries] == [1, 2, 3]
        await settled(client, "mail", 1)
        assert not await deliveries[0].ack()
        assert deliveries[2].lost or not await deliveries[2].ack()
    (parked,) = (await client.groups.parked("mail")).events
    assert (parked.state, parked.attempts) == ("parked", 3)
    assert parked.reason == "failed 3 times, last: not settled in time"


async def test_extending_keeps_a_delivery(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 1)
    await client.groups.create("mail", replace(QUICK, ack_timeout=timedelta(milliseconds=400)))
    async with client.groups.join("mail") as member:
        delivery = await next_of(member)
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.2
        while loop.time() < until:
            delivery.extend()
            assert await silent(member, 0.1)
        assert await delivery.ack()


async def test_what_waits_in_the_client_does_not_run_out_of_time(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 5, entities=5)
    await client.groups.create("mail", replace(QUICK, ack_timeout=timedelta(milliseconds=600)))
    async with client.groups.join("mail") as member:
        for _ in range(5):
            delivery = await next_of(member)
            assert delivery.attempt == 1
            await asyncio.sleep(0.3)  # the handler works: longer than the timeout for all of them
            assert await delivery.ack()


async def test_credits_bound_what_is_out_and_can_be_changed(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 10, entities=10)
    await client.groups.create("mail", QUICK)
    async with client.groups.join("mail", credit=2) as member:
        first = await take(member, 2)
        assert await silent(member)
        await first[0].ack()
        await next_of(member)
        assert await silent(member)
        member.allow(5)
        await take(member, 3)
        assert await silent(member)


async def test_a_group_starts_where_it_is_told_and_seek_moves_it(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 20, entities=20)
    assert (await client.groups.create("late", QUICK, from_position=FROM_NOW)).position == 20
    assert (await client.groups.create("mid", QUICK, from_position=11)).position == 10
    with pytest.raises(OutOfRange):
        await client.groups.create("far", QUICK, from_position=22)
    async with client.groups.join("mid") as member:
        assert {d.event.position for d in await take(member, 10)} == set(range(11, 21))
        out = await client.groups.seek("mid", 19)
        assert out.position == 18
        again = await take(member, 2)
        assert {d.event.position for d in again} == {19, 20}
        assert all([await d.ack() for d in again])
        await settled(client, "mid", 20)
        with pytest.raises(OutOfRange) as caught:
            await client.groups.seek("mid", 22)
        assert caught.value.head == 20
        await client.groups.seek("mid", 0)
        assert {d.event.position for d in await take(member, 20)} == set(range(1, 21))
        await client.groups.seek("mid", FROM_NOW)
        await settled(client, "mid", 20)
        assert await silent(member)


async def test_a_filter_that_matches_nothing_still_advances(one_node: GroupNode) -> None:
    client = one_node.client
    await client.groups.create("none", replace(QUICK, event_types=("NeverHappens",)))
    async with client.groups.join("none") as member:
        await append(client, 30)
        await settled(client, "none", 30)
        assert await silent(member, 0.1)


async def test_filters_select_and_can_be_changed(one_node: GroupNode) -> None:
    client = one_node.client
    await client.append("", one("a", event_type="Wanted"))
    await client.append("", one("a", event_type="Other"))
    await client.groups.create("some", replace(QUICK, event_types=("Wanted",)))
    async with client.groups.join("some") as member:
        assert await (await next_of(member)).ack()
        await settled(client, "some", 2)
        changed = await client.groups.update("some", GroupChange(event_types=()))
        assert (changed.version, changed.settings.event_types) == (2, ())
        with pytest.raises(Conflict):
            await client.groups.update("some", GroupChange(max_attempts=3), version=1)

        async def learnt() -> bool:
            (runner,) = one_node.groups._runners.values()
            return runner.group.version == 2

        await eventually_async(learnt, "the node knows the new settings")
        await client.append("", one("a", event_type="Other"))
        assert (await next_of(member)).event.type == "Other"


async def test_global_order_gives_everything_to_one_member_in_log_order(
    one_node: GroupNode,
) -> None:
    client = one_node.client
    await append(client, 40, entities=7)
    await client.groups.create("ordered", replace(QUICK, global_order=True, entity_window=10))
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(client.groups.join("ordered", name="one"))
        await first.joined.wait()
        second = await stack.enter_async_context(client.groups.join("ordered", name="two"))
        await second.joined.wait()
        seen = []
        for _ in range(40):
            delivery = await next_of(first)
            seen.append(delivery.event.position)
            delivery.ack()
        assert seen == list(range(1, 41))
        assert await silent(second, 0.1)
        group = await client.groups.get("ordered")
        assert [(m.name, m.partitions) for m in group.members] == [("one", 1), ("two", 0)]
        await first.leave()
        await append(client, 1, start=40)
        assert (await next_of(second)).event.position == 41


# -- parked --------------------------------------------------------------------------------------


async def states(client: Client, name: str = "mail") -> list[tuple[int, str]]:
    return [(e.position, e.state) for e in (await client.groups.parked(name)).events]


async def counted(client: Client, name: str = "mail") -> int:
    """How many events are on the list, by the counts of the partitions."""
    return sum(p.parked for p in (await client.groups.get(name)).partitions)


async def test_a_parked_event_holds_back_its_entity_until_it_is_replayed(
    one_node: GroupNode,
) -> None:
    client = one_node.client
    for entity in ("a", "a", "b", "a"):
        await client.append("", one(entity))
    await client.groups.create("mail", QUICK)
    async with client.groups.join("mail") as member:
        for _ in range(2):
            delivery = await next_of(member)
            if delivery.event.entity_id == "a":
                assert await delivery.park("no such address")
            else:
                assert await delivery.ack()
        await settled(client, "mail", 4)
        assert await states(client) == [(1, "parked"), (2, "held"), (4, "held")]
        (first, *_) = (await client.groups.parked("mail")).events
        assert (first.reason, first.entity_id, first.sequence) == ("no such address", "a", 1)
        await client.append("", one("a"))
        await settled(client, "mail", 5)
        dry = await client.groups.replay("mail", ParkedSelection(all=True), dry_run=True)
        assert (dry.events, dry.entities, dry.held) == (1, 1, 3)
        assert await states(client) == [(1, "parked"), (2, "held"), (4, "held"), (5, "held")]
        assert await client.groups.replay("mail", ParkedSelection(entity_type="thing")) == dry
        for position in (1, 2, 4, 5):
            delivery = await next_of(member)
            assert (delivery.event.position, delivery.replayed) == (position, True)
            assert await delivery.ack()
        assert await states(client) == []
        await client.append("", one("a"))
        delivery = await next_of(member)
        assert (delivery.event.position, delivery.replayed) == (6, False)


async def test_a_replayed_event_that_fails_again_stays_on_the_list(one_node: GroupNode) -> None:
    client = one_node.client
    await client.append("", one("a"))
    await client.append("", one("a"))
    await client.groups.create("mail", replace(QUICK, max_attempts=1))
    async with client.groups.join("mail") as member:
        await (await next_of(member)).nack("first")
        await settled(client, "mail", 2)
        await client.groups.replay("mail", ParkedSelection(positions=(1,)))
        again = await next_of(member)
        assert again.replayed
        assert (1, "replaying") in await states(client)
        assert await again.nack("second")
        assert await states(client) == [(1, "parked"), (2, "held")]
        (event, _) = (await client.groups.parked("mail")).events
        assert (event.reason, event.attempts) == ("failed 1 times, last: second", 2)
        assert await counted(client) == 2
        count = await client.groups.discard("mail", ParkedSelection(reason_contains="second"))
        assert (count.events, count.held) == (1, 1)
        follower = await next_of(member)
        assert (follower.event.position, follower.replayed) == (2, True)
        assert await follower.ack()
        assert await states(client) == []
        assert await counted(client) == 0


async def test_replays_keep_to_the_rate(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 6, entities=6)
    await client.groups.create("mail", QUICK)
    loop = asyncio.get_running_loop()
    async with client.groups.join("mail") as member:
        for delivery in await take(member, 6):
            assert await delivery.park("no")
        began = loop.time()
        await client.groups.replay("mail", ParkedSelection(all=True), rate=5)
        times = []
        for _ in range(6):
            delivery = await next_of(member)
            times.append(loop.time() - began)
            delivery.ack()
        assert all(t >= i / 5 - 0.05 for i, t in enumerate(times)), times


async def test_parked_events_come_in_pages_and_selections_choose(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 25, entities=25)
    await client.groups.create("mail", QUICK)
    async with client.groups.join("mail") as member:
        for delivery in await take(member, 25):
            assert await delivery.park(f"odd {delivery.event.position % 2}")
    found: list[int] = []
    token = ""
    while True:
        page = await client.groups.parked("mail", page_size=10, page_token=token)
        found += [e.position for e in page.events]
        token = page.next_page_token
        if not token:
            break
    assert found == list(range(1, 26))
    odd = ParkedSelection(reason_contains="odd 1")
    assert len((await client.groups.parked("mail", odd)).events) == 13
    count = await client.groups.discard("mail", replace(odd, positions=(1, 2, 3)), dry_run=True)
    assert count.events == 2
    with pytest.raises(InvalidArgument, match="selection"):
        await client.groups.discard("mail", ParkedSelection())
    with pytest.raises(InvalidArgument, match="page_token"):
        await client.groups.parked("mail", page_token="x")
    assert await client.groups.delete("mail") == 25


async def test_a_full_list_of_parked_events_stops_the_group(one_node: GroupNode) -> None:
    client = one_node.client
    await append(client, 3, entities=3)
    await client.groups.create("mail", replace(QUICK, max_parked=3))
    async with client.groups.join("mail") as member:
        for delivery in await take(member, 3):
            assert await delivery.park("no")

        async def known() -> bool:
            (runner,) = one_node.groups._runners.values()
            return runner.group.parked == 3

        await eventually_async(known, "the node has counted")
        # What is read already may still come; then nothing more is read.
        await append(client, 2000, prefix="other")
        out = 0
        with contextlib.suppress(TimeoutError):
            while True:
                (await next_of(member, 1)).ack()
                out += 1
        assert out < 2000
        assert (await client.groups.get("mail")).position < 2003
        await client.groups.discard("mail", ParkedSelection(all=True))
        while out < 2000:
            (await next_of(member)).ack()
            out += 1
        await settled(client, "mail", 2003)


# -- groups --------------------------------------------------------------------------------------


async def test_groups_are_made_listed_and_deleted_and_members_are_told(
    one_node: GroupNode,
) -> None:
    client = one_node.client
    for name in ("b", "a", "c"):
        await client.groups.create(name, QUICK)
    with pytest.raises(AlreadyExists):
        await client.groups.create("a", QUICK)
    with pytest.raises(LogNotFound):
        await client.groups.create("d", QUICK, log="nowhere")
    with pytest.raises(InvalidArgument):
        await client.groups.create("No", QUICK)
    page = await client.groups.list_page(page_size=2)
    assert [g.name for g in page.groups] == ["a", "b"]
    page = await client.groups.list_page(page_size=2, page_token=page.next_page_token)
    assert ([g.name for g in page.groups], page.next_page_token) == (["c"], "")
    async with client.groups.join("a") as member:
        await member.joined.wait()
        await client.groups.delete("a")
        with pytest.raises(NotFound):
            await next_of(member)
    with pytest.raises(NotFound):
        await client.groups.get("a")
    async with client.groups.join("a") as member:
        with pytest.raises(NotFound):
            await next_of(member)


# -- several members and nodes -------------------------------------------------------------------


async def spread(client: Client, name: str = "mail") -> list[int]:
    group: Group = await client.groups.get(name)
    return sorted(m.partitions for m in group.members)


async def test_members_on_two_nodes_share_the_partitions_and_hand_them_over(
    database_url: str,
) -> None:
    async with running_node(database_url, "n1") as n1, running_node(database_url, "n2") as n2:
        await n1.client.groups.create("mail", QUICK)
        done: list[tuple[str, int, int]] = []

        async def shared(wanted: list[int]) -> bool:
            return await spread(n1.client) == wanted

        async with contextlib.AsyncExitStack() as stack:
            members = []
            workers = []
            for i, wanted in enumerate([[16], [8, 8], [5, 5, 6]]):
                node = (n1, n2, n2)[i]
                member = await stack.enter_async_context(
                    node.client.groups.join("mail", name=f"m{i}")
                )
                members.append(member)
                workers.append(asyncio.create_task(work(member, done)))
                await append(n1.client, 100, start=100 * i)
                await eventually_async(lambda: shared(wanted), f"shares are {wanted}")  # noqa: B023
            await members[0].leave()
            await append(n2.client, 100, start=300)
            await eventually_async(lambda: shared([8, 8]), "shares are even again")
            await members[1].abandon()
            await append(n2.client, 100, start=400)
            await settled(n1.client, "mail", 500)
            await eventually_async(lambda: shared([16]), "one has all")
        await asyncio.gather(*workers)
        # A crash may hide a confirmation from the member; nothing else may differ.
        assert {p for _, _, p in done} <= set(range(1, 501))
        positions = [p for _, _, p in done]
        assert len(positions) == len(set(positions)), "confirmed twice"
        assert len(done) >= 400
