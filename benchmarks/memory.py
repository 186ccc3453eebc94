"""Memory of a node under clients that misbehave. Each scenario starts a node of its own: its peak
(the kernel's high-water mark) belongs to the scenario alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import grpc

from benchmarks import meter
from benchmarks.load import BenchmarkError, Sample
from benchmarks.stack import Service
from benchmarks.workspace import CONTENT_TYPE, ENTITY_TYPE, EVENT_TYPE, LOG, PAYLOAD, Workspace
from kernel.ids import new_id
from sidecar_api.generated import journal_pb2 as pb

READERS = 100
_SERVICE = "/everstate.journal.v1.JournalService/"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection each
]


@contextlib.contextmanager
def _own_node(space: Workspace) -> Iterator[Service]:
    node = space.stack.start_node()
    try:
        yield node
        node.check()
    finally:
        node.stop()


def _seconds(seconds: float) -> float:
    """Long enough for every buffer to fill: longer than a round of the others."""
    return max(2.0, 2.5 * seconds)


def _append(number: int, entity: str, payload: bytes, expected: pb.Expected) -> pb.IdentifiedAppend:
    return pb.IdentifiedAppend(
        id=number,
        append=pb.AppendRequest(
            log=LOG,
            entities=[
                pb.EntityAppend(entity_type=ENTITY_TYPE, entity_id=entity, expected=expected)
            ],
            events=[
                pb.NewEvent(
                    type=EVENT_TYPE, content_type=CONTENT_TYPE, payload=payload, event_id=new_id()
                )
            ],
        ),
    )


async def _flood(
    space: Workspace,
    seconds: float,
    *,
    streams: int = 1,
    appends: int = 1_000,
    payload: bytes = PAYLOAD,
    refused: bool = False,
) -> tuple[float, str]:
    """Streams of one client that only write, ``appends`` a message. Returns the node's peak, and
    what it was sent. ``refused``: appends that fail, with long ids, so that results are large.
    """
    expected = pb.Expected(sequence=7) if refused else pb.Expected(no_entity=True)
    long_name = "x" * 512
    with _own_node(space) as node:
        idle = meter.rss_mb(node.pid)
        async with grpc.aio.insecure_channel(node.grpc, _OPTIONS) as channel:
            open_stream: Any = channel.stream_stream(
                _SERVICE + "AppendStream",
                pb.AppendStreamRequest.SerializeToString,
                pb.AppendStreamResponse.FromString,
            )
            sent = 0

            async def write(call: Any) -> None:
                nonlocal sent
                while True:
                    message = pb.AppendStreamRequest(
                        appends=[
                            _append(
                                n, long_name if refused else space.new_entity(), payload, expected
                            )
                            for n in range(1, appends + 1)
                        ]
                    )
                    await call.write(message)
                    sent += appends

            calls = [open_stream() for _ in range(streams)]
            writers = [asyncio.create_task(write(call)) for call in calls]
            done, _ = await asyncio.wait(
                writers, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            peak = meter.peak_rss_mb(node.pid)
            for task in done:
                task.result()
            if any(call.done() for call in calls):
                raise BenchmarkError("the node ended a flooding stream")
            for task in writers:
                task.cancel()
            await asyncio.wait(writers)
        return peak, f"idle {idle:.0f} MB, took {sent:,} appends"


async def flood(space: Workspace, seconds: float) -> Sample:
    """Clients that write as fast as they can and never read a result; the worst of four kinds."""
    length = _seconds(seconds)
    found = {
        "1_stream": await _flood(space, length),
        "8_streams": await _flood(space, length, streams=8),
        "large_payloads": await _flood(space, length, appends=8, payload=b"x" * 500_000),
        "refused": await _flood(space, length, refused=True),
    }
    return Sample(
        max(peak for peak, _ in found.values()),
        note="; ".join(f"{name}: {note}" for name, (_, note) in found.items()),
        extra={name: peak for name, (peak, _) in found.items()},
    )


async def _read_slowly(node: Service, log: str, pause: float) -> AsyncGenerator[int, None]:
    async with grpc.aio.insecure_channel(node.grpc, _OPTIONS) as channel:
        read: Any = channel.unary_stream(
            _SERVICE + "ReadLog", pb.ReadLogRequest.SerializeToString, None
        )
        call = read(pb.ReadLogRequest(log=log))
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                yield len(message)
                await asyncio.sleep(pause)
        finally:
            call.cancel()


async def slow_readers(space: Workspace, seconds: float) -> Sample:
    """100 connections that each read the whole log, a batch a second, for eight rounds' time: what
    a node holds for its readers grows for a while.
    """
    with _own_node(space) as node:
        idle = meter.rss_mb(node.pid)
        batches = 0

        async def reader() -> None:
            nonlocal batches
            async with contextlib.aclosing(_read_slowly(node, space.read_log, 1.0)) as messages:
                async for _ in messages:
                    batches += 1

        readers = [asyncio.create_task(reader()) for _ in range(READERS)]
        course = []
        for _ in range(4):  # quarters: does it still grow?
            done, _ = await asyncio.wait(
                readers, timeout=max(1.0, 2 * seconds), return_when=asyncio.FIRST_COMPLETED
            )
            course.append(f"{meter.rss_mb(node.pid):.0f}")
        peak = meter.peak_rss_mb(node.pid)
        for task in done:
            task.result()
        if done:
            raise BenchmarkError("a slow reader was not slow: it read the whole log")
        for task in readers:
            task.cancel()
        await asyncio.wait(readers)
        if batches < READERS:
            raise BenchmarkError(f"only {batches} batches came to {READERS} readers")
        return Sample(peak, note=f"idle {idle:.0f}, then {' '.join(course)} MB, {batches} batches")
