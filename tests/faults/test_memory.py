"""Memory of a node under clients that take and never give: invariant 12."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kernel.ids import new_id
from sidecar_api.client import Append, Client, EntityAppend, NewEvent, ReadQuery
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.generated import journal_pb2_grpc
from tests.support import LOOPBACK, Node

LIMIT_MB = 250
EVENTS = 50_000


@pytest.fixture
async def served(database_url: str) -> AsyncIterator[Node]:
    with Node(database_url) as node:
        yield node


def flood(serial: int, appends: int) -> pb.AppendStreamRequest:
    """A message of many small appends to entities of their own."""
    message = pb.AppendStreamRequest()
    for i in range(appends):
        message.appends.add(
            id=serial * appends + i,
            append=pb.AppendRequest(
                entities=[pb.EntityAppend(entity_type="flood", entity_id=f"{serial}-{i}")],
                events=[pb.NewEvent(type="E", payload=b"x" * 256, event_id=new_id())],
            ),
        )
    return message


async def write_until_it_blocks(call: Any, messages: AsyncIterator[Any], quiet: float) -> int:
    """Writes until a write has not been taken for ``quiet`` seconds; returns how many were."""
    taken = 0
    async for message in messages:
        try:
            async with asyncio.timeout(quiet):
                await call.write(message)
        except TimeoutError:
            return taken
        taken += 1
    return taken


@pytest.mark.timeout(180)
async def test_invariant_12_a_client_that_floods_and_never_reads_is_held_back(served: Node) -> None:
    async with grpc.aio.insecure_channel(
        f"{LOOPBACK}:{served.grpc_port}", [("grpc.max_receive_message_length", -1)]
    ) as channel:
        call = journal_pb2_grpc.JournalServiceStub(channel).AppendStream()

        async def messages() -> AsyncIterator[pb.AppendStreamRequest]:
            for serial in range(400):  # 400 × 2,000 appends: 300 MB of payloads and overhead
                yield flood(serial, 2_000)

        taken = await write_until_it_blocks(call, messages(), quiet=5)
        assert taken < 400, "the node took everything: nothing held the client back"
        assert served.memory_mb() < LIMIT_MB
        async with served.client() as other:  # and it still works for others
            assert (await other.append_event("calm", "1", "E", b"x")).first_position > 0
        call.cancel()


@pytest.mark.timeout(180)
async def test_invariant_12_invalid_appends_whose_refusals_nobody_reads_are_held_back_too(
    served: Node,
) -> None:
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{served.grpc_port}") as channel:
        call = journal_pb2_grpc.JournalServiceStub(channel).AppendStream()
        bad = pb.AppendStreamRequest(appends=[pb.IdentifiedAppend(id=i) for i in range(20_000)])

        async def messages() -> AsyncIterator[pb.AppendStreamRequest]:
            for _ in range(200):
                yield bad

        taken = await write_until_it_blocks(call, messages(), quiet=5)
        assert taken < 200
        assert served.memory_mb() < LIMIT_MB
        call.cancel()


async def fill(client: Client, events: int) -> None:
    payload = b"x" * 256
    for start in range(0, events, 1_000):
        batch = tuple(NewEvent("Filled", payload) for _ in range(1_000))
        await client.append("", Append((EntityAppend("fill", f"{start}"),), batch))


@pytest.mark.timeout(180)
async def test_invariant_12_a_hundred_slow_readers_hold_little_memory(served: Node) -> None:
    async with served.client() as client:
        await fill(client, EVENTS)
    channels = [
        grpc.aio.insecure_channel(
            f"{LOOPBACK}:{served.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]
        )
        for _ in range(10)
    ]
    try:
        calls = [
            journal_pb2_grpc.JournalServiceStub(channels[i % 10]).ReadLog(pb.ReadLogRequest())
            for i in range(100)
        ]
        firsts = await asyncio.gather(*(call.read() for call in calls))
        assert all(len(first.events) > 0 for first in firsts)
        # All stall now. Another reader gets the whole log meanwhile.
        async with served.client() as client:
            count = 0
            async for batch in client.read("", ReadQuery()):
                count += len(batch.events)
        assert count == EVENTS
        assert served.memory_mb() < LIMIT_MB
        # The slowest reader has lost nothing by being slow.
        seen = len(firsts[0].events)
        while (message := await calls[0].read()) is not grpc.aio.EOF:
            seen += len(message.events)
        assert seen == EVENTS
        for call in calls[1:]:
            call.cancel()
    finally:
        for channel in channels:
            await channel.close()
