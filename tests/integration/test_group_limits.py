"""Consumer groups: what is refused, what is bounded, what is counted."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import grpc
import pytest

from journal.groups.model import GroupChange, NodeGroupSettings, ParkedSelection
from journal.groups.node import Groups
from journal.groups.session import Session
from kernel.errors import InternalError, InvalidArgument, Overloaded
from kernel.telemetry import REGISTRY
from sidecar_api.client import GroupSettings
from sidecar_api.client.groups import SERVICE
from sidecar_api.errors import to_error
from sidecar_api.generated import group_pb2 as pb
from tests.group_support import QUICK, GroupNode, append, next_of, running_node, settled, take
from tests.support import eventually_async, one


async def test_a_group_works_on_every_postgresql(any_database_url: str) -> None:
    async with running_node(any_database_url) as node:
        groups = node.client.groups
        await append(node.client, 20, entities=5)
        await groups.create("mail", QUICK)
        async with groups.join("mail") as member:
            for _ in range(5):
                delivery = await next_of(member)
                if delivery.event.position % 2:
                    assert await delivery.park("odd")
                else:
                    assert await delivery.ack()
            delivery = await next_of(member)
            assert await delivery.nack("not yet")
            parked = (await groups.parked("mail")).events
            assert {e.state for e in parked} == {"parked", "held"}
            count = await groups.replay("mail", ParkedSelection(all=True), rate=1_000)
            assert count.events == len([e for e in parked if e.state == "parked"])
            await groups.discard("mail", ParkedSelection(reason_contains="nothing like this"))

            async def work() -> None:
                async for each in member:
                    each.ack()

            worker = asyncio.create_task(work())
            await settled(node.client, "mail", 20)

            async def empty() -> bool:
                return not (await groups.parked("mail")).events

            await eventually_async(empty, "all replays are done")
            await groups.seek("mail", 0)
            await groups.update("mail", GroupChange(max_attempts=3))
            await settled(node.client, "mail", 20)
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        await groups.delete("mail")


async def raw(node: GroupNode, *requests: pb.ConnectRequest) -> None:
    """Sends requests and reads until the stream ends with an error of the tree."""
    call = node.client.stream_call(SERVICE + "Connect", pb.ConnectRequest, pb.ConnectResponse)()
    try:
        for request in requests:
            await call.write(request)
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        raise to_error(error) from None
    finally:
        call.cancel()


def join(**fields: object) -> pb.ConnectRequest:
    return pb.ConnectRequest(join=pb.Join(**({"group": "mail", "credits": 1} | fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([pb.ConnectRequest(acks=[1])], "join"),
        ([join(), join()], "join"),
        ([join(credits=10_001)], "join.credits"),
        ([join(group="No Name")], "join.group"),
        ([join(name="x" * 101)], "join.name"),
        ([join(), pb.ConnectRequest(credits=10_001)], "credits"),
        ([join(), pb.ConnectRequest(acks=range(15_000), extend=range(5_001))], "acks"),
        (
            [join(), pb.ConnectRequest(nacks=[pb.Nack(delivery=1, retry_after_ms=86_400_001)])],
            "nacks.retry_after_ms",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_member_that_says_nonsense_is_told_the_field(
    database_url: str, requests: list[pb.ConnectRequest], field: str
) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        with pytest.raises(InvalidArgument) as caught:
            await asyncio.wait_for(raw(node, *requests), 10)
        assert caught.value.field == field
        assert (await node.client.groups.get("mail")).members == (), "it left nothing behind"


async def test_a_stream_whose_requests_cannot_be_handled_ends_and_leaves_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(Session, "ack", broken)
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        with pytest.raises(InternalError):
            await asyncio.wait_for(raw(node, join(), pb.ConnectRequest(acks=[1])), 10)
        assert (await node.client.groups.get("mail")).members == ()


async def test_settling_what_was_never_delivered_is_told_as_lost(database_url: str) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        stream = node.client.stream_call(SERVICE + "Connect", pb.ConnectRequest, pb.ConnectResponse)
        call = stream()
        await call.write(join())
        assert (await call.read()).joined.member_id
        await call.write(pb.ConnectRequest(acks=[7], leave=True))
        assert list((await call.read()).lost) == [7]
        assert await call.read() is grpc.aio.EOF


async def test_a_node_takes_no_more_members_than_it_may(database_url: str) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        full = Groups(node.store, NodeGroupSettings(max_members=1))
        session = await full.join("mail", "first", 1)
        with pytest.raises(Overloaded, match="1 members"):
            await full.join("mail", "second", 1)
        await full.leave(session, broken=False)
        await full.close()


async def test_a_member_that_settles_nothing_holds_no_more_than_its_memory(
    database_url: str,
) -> None:
    async with running_node(database_url) as node:
        await node.client.groups.create("mail", QUICK)
        await asyncio.gather(
            *(node.client.append("", one(f"e{i}", b"x" * 100_000)) for i in range(200))
        )
        async with node.client.groups.join("mail", credit=10_000) as member:
            await take(member, 40)
            (runner,) = node.groups._runners.values()
            (session,) = runner.sessions.values()
            limit = node.groups.settings.member_bytes

            async def full() -> bool:
                return session.work.bytes > limit

            await eventually_async(full, "its memory is full")
            # One delivery of the subscription may cross the limit.
            assert session.work.bytes < limit + 1_500_000
            before = session.work.bytes
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(more(session, before), 0.5)


async def more(session: object, before: int) -> None:
    while session.work.bytes <= before:  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)


async def test_what_groups_do_is_counted(database_url: str) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"group": "counted"} | labels) or 0.0

    async with running_node(database_url) as node:
        await append(node.client, 4, entities=4)
        await node.client.groups.create("counted", replace(QUICK, max_attempts=5))
        async with node.client.groups.join("counted") as member:
            first, second, third, _ = await take(member, 4)
            assert await first.ack()
            assert await second.nack("no")
            assert await third.park("no")
            again = await next_of(member)
            assert again.attempt == 2
            assert value("everstate_group_members") == 1
            assert value("everstate_group_partitions") == 16
        assert value("everstate_group_members") == 0
        assert value("everstate_group_delivered_total") == 5
        assert value("everstate_group_redelivered_total") == 1
        for reason in ("ack", "nack", "park"):
            assert value("everstate_group_settled_total", reason=reason) == 1
        await node.groups._measure()
        assert value("everstate_group_parked") == 1
        assert value("everstate_group_lag_events") > 0
        assert value("everstate_group_lag_bytes") > 0
        assert value("everstate_group_lag_seconds") > 0
        await node.client.groups.delete("counted")
        await node.groups._measure()
        labels = {"group": "counted"}
        assert REGISTRY.get_sample_value("everstate_group_parked", labels) is None


def test_the_defaults_of_the_protocol_are_those_of_the_model() -> None:
    from sidecar_api.services.groups import _settings

    assert _settings(pb.GroupSettings()) == GroupSettings()
