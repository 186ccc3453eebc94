"""A subscriber that never reads is let go after a while, whether it is being caught up or live."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from kernel import telemetry
from sidecar_api.client import Append, Client, EntityAppend, NewEvent
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.generated import journal_pb2_grpc
from sidecar_api.server import NodeServer
from tests.support import eventually_async


@pytest.mark.parametrize("live", [True, False], ids=["live", "catching up"])
async def test_a_subscriber_that_does_not_read_is_let_go(
    node: NodeServer, client: Client, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setattr("sidecar_api.services.journal.STALLED_READ_SECONDS", 0.4)
    events = tuple(NewEvent("Filled", b"x" * 10_000) for _ in range(300))
    if not live:
        for n in range(5):
            await client.append("", Append((EntityAppend("fill", f"{n}"),), events))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = journal_pb2_grpc.JournalServiceStub(channel).Subscribe(pb.SubscribeRequest())
        if live:
            assert (await call.read()).caught_up
            for n in range(5):
                await client.append("", Append((EntityAppend("fill", f"{n}"),), events))

        for count in (1, 0):

            async def there(count: int = count) -> bool:
                return subscribers() == count

            await eventually_async(there, f"{count} subscribers")
        async with asyncio.timeout(20):  # what was on its way arrives, and then the end
            code = await drained(call)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def subscribers() -> float:
    return telemetry.subscribers.labels("default")._value.get()


async def drained(call: Any) -> grpc.StatusCode:
    try:
        while (await call.read()) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


async def test_a_quiet_subscription_is_not_a_stalled_one(
    node: NodeServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar_api.services.journal.STALLED_READ_SECONDS", 0.1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        call = journal_pb2_grpc.JournalServiceStub(channel).Subscribe(pb.SubscribeRequest())
        assert (await call.read()).caught_up
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await call.code()
        await client.append_event("e", "1", "E", b"x")
        assert len((await call.read()).events) == 1
        call.cancel()
