"""Scenarios that write: through the client, through bare gRPC, through the function, and peers."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable

import grpc

from benchmarks.load import BenchmarkError, Sample, closed_loop, percentile, ramp_of
from benchmarks.workspace import (
    CONTENT_TYPE,
    ENTITY_TYPE,
    EVENT_TYPE,
    LOG,
    PAYLOAD,
    RawAppender,
    Workspace,
)
from kernel.ids import new_id
from sidecar_api.client import NO_ENTITY, Append, EntityAppend, NewEvent
from sidecar_api.generated import journal_pb2 as pb

Run = Callable[[Workspace, float], Awaitable[Sample]]

_APPEND = "/everstate.journal.v1.JournalService/Append"
_CALLS_A_SECOND = {1: 2_500, 64: 6_000}
"""More than a machine makes: so many messages are built before a round."""


def one_append(space: Workspace) -> Append:
    """One event of 256 bytes for an entity that is new."""
    return Append(
        (EntityAppend(ENTITY_TYPE, space.new_entity(), NO_ENTITY),),
        (NewEvent(EVENT_TYPE, PAYLOAD, CONTENT_TYPE),),
    )


async def warm_names(space: Workspace) -> None:
    """Makes the types known, and what calls the function directly."""
    await space.stack.client.append(LOG, one_append(space))
    if space.raw is None:
        space.raw = await RawAppender.open(space, LOG)


async def _head(space: Workspace) -> int:
    return (await space.stack.client.get_log(LOG)).head


async def _expect(space: Workspace, before: int, operations: int) -> None:
    """Every append that was acknowledged is in the log, and nothing else."""
    written = await _head(space) - before
    if written != operations:
        raise BenchmarkError(f"{operations} appends were acknowledged, {written} are there")


def stream(in_flight: int) -> Run:
    """`Client.append` by so many callers at once; they share one AppendStream."""

    async def run(space: Workspace, seconds: float) -> Sample:
        client = space.stack.client
        before = await _head(space)
        commits, appends = await space.stack.batches()
        sample = await closed_loop(
            lambda: client.append(LOG, one_append(space)), in_flight, seconds
        )
        commits_after, appends_after = await space.stack.batches()
        await _expect(space, before, sample.operations)
        mean = (appends_after - appends) / max(1.0, commits_after - commits)
        sample.note = f"{mean:.1f} appends a commit"
        if in_flight == 256:
            space.mean_batch = mean
        return sample

    return run


def _request(space: Workspace) -> pb.AppendRequest:
    return pb.AppendRequest(
        log=LOG,
        entities=[
            pb.EntityAppend(
                entity_type=ENTITY_TYPE,
                entity_id=space.new_entity(),
                expected=pb.Expected(no_entity=True),
            )
        ],
        events=[
            pb.NewEvent(
                type=EVENT_TYPE, content_type=CONTENT_TYPE, payload=PAYLOAD, event_id=new_id()
            )
        ],
    )


async def _unary_calls(space: Workspace, address: str, in_flight: int, seconds: float) -> Sample:
    """The client's side of append_unary and of echo_unary: the same code, the same messages."""
    count = int((seconds + ramp_of(seconds)) * _CALLS_A_SECOND[in_flight]) + in_flight
    ready = deque(_request(space) for _ in range(count))
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            _APPEND, pb.AppendRequest.SerializeToString, pb.AppendResponse.FromString
        )
        await channel.channel_ready()

        async def one() -> None:
            reply = await call(ready.popleft() if ready else _request(space))
            if not reply.first_position:
                raise BenchmarkError("an append without a position")

        return await closed_loop(one, in_flight, seconds)


def unary(in_flight: int) -> Run:
    """Unary Append calls, bare grpc.aio, messages built before."""

    async def run(space: Workspace, seconds: float) -> Sample:
        before = await _head(space)
        sample = await _unary_calls(space, space.stack.node.grpc, in_flight, seconds)
        await _expect(space, before, sample.operations)
        return sample

    return run


def echo(in_flight: int) -> Run:
    """The same calls to a server that does nothing."""

    async def run(space: Workspace, seconds: float) -> Sample:
        return await _unary_calls(space, space.stack.echo.grpc, in_flight, seconds)

    return run


async def _raw(space: Workspace, batch: int, seconds: float) -> Sample:
    """Batches one after the other. The rate is that of the whole loop, making ids and arguments
    included, as every caller has to (``calls_only``: without); latencies are of the calls alone.
    """
    raw = space.raw
    assert raw is not None
    before = await _head(space)
    times = array("d")
    now = time.perf_counter
    calls = 0
    end = now() + ramp_of(seconds) + seconds
    count_from = 0.0  # of the first batch that begins after the ramp
    while (turn := now()) < end:
        if not count_from and turn >= end - seconds:
            count_from = turn
        arguments = raw.arguments(space, batch)
        began = now()
        row = await raw.call(arguments)
        finished = now()
        calls += 1
        if any(row["o_verdicts"]):
            raise BenchmarkError("a raw append was refused")
        if count_from:
            times.append(finished - began)
    took = now() - count_from
    await _expect(space, before, calls * batch)
    if not times:
        raise BenchmarkError("nothing finished in the measured time")
    events = len(times) * batch
    return Sample(
        events / took,
        percentile(times, 0.5),
        percentile(times, 0.99),
        calls * batch,
        f"batch {batch}",
        {"calls_only": events / sum(times)},
    )


async def raw_append(space: Workspace, seconds: float) -> Sample:
    """The function with the node's mean batch; p50 and p99 are of a batch."""
    if not space.mean_batch:
        raise BenchmarkError("needs append_stream/256 before it")
    return await _raw(space, max(1, round(space.mean_batch)), seconds)


async def raw_commit(space: Workspace, seconds: float) -> Sample:
    """The function with one event: the bare commit."""
    return await _raw(space, 1, seconds)


def pyeventsourcing(writers: int, kind: str = "default") -> Run:
    """Inserts by so many threads of its own process; ``kind``: see the peer's module."""

    async def run(space: Workspace, seconds: float) -> Sample:
        peer = await space.stack.peer()
        found = await peer.run(kind, writers, seconds)
        return Sample(found["value"], found["p50_ms"], found["p99_ms"], int(found["operations"]))

    return run
