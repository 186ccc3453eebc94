"""Closed loops and what they measure."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

GRACE_SECONDS = 60.0
"""A loop that is this much late is a failure, not a slow result."""


class BenchmarkError(Exception):
    """A scenario could not run, or what it did was not what it should have done."""


@dataclass(slots=True)
class Sample:
    """What one round of one scenario gave. ``operations`` includes those outside the window."""

    value: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    operations: int = 0
    note: str = ""
    extra: dict[str, float] = field(default_factory=dict)


def ramp_of(seconds: float) -> float:
    """How long a loop runs before it counts: queues fill, batches find their size."""
    return min(0.5, seconds * 0.15)


def percentile(latencies: Iterable[float], share: float) -> float:
    """The latency that ``share`` of all do not exceed (nearest rank), in milliseconds."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def sample_of(latencies: Iterable[float], seconds: float, operations: int) -> Sample:
    """Operations a second and percentiles of those that ended in a window of ``seconds``."""
    found = sorted(latencies)
    if not found:
        raise BenchmarkError("nothing finished in the measured time")
    return Sample(len(found) / seconds, percentile(found, 0.5), percentile(found, 0.99), operations)


async def closed_loop(
    call: Callable[[], Awaitable[object]], in_flight: int, seconds: float
) -> Sample:
    """``in_flight`` callers that each wait for their result before they call again.

    Counted is what ends inside the window of ``seconds`` that begins after the ramp; what is still
    under way at its end is awaited, not counted.
    """
    # An array of doubles: the collector has nothing to walk, and this process is the client.
    latencies = array("d")
    now = time.perf_counter
    operations = 0
    count_from = now() + ramp_of(seconds)
    end = count_from + seconds

    async def caller() -> None:
        nonlocal operations
        started = now()
        while started < end:
            await call()
            finished = now()
            operations += 1
            if count_from <= finished <= end:
                latencies.append(finished - started)
            started = finished

    async with asyncio.timeout(seconds + GRACE_SECONDS), asyncio.TaskGroup() as callers:
        for _ in range(in_flight):
            callers.create_task(caller())
    return sample_of(latencies, seconds, operations)
