"""From commit to subscribers, and what fanning out costs beside bare grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import meter
from benchmarks.appends import one_append
from benchmarks.load import BenchmarkError, Sample
from benchmarks.peers.fanout import METHOD, SERVICE
from benchmarks.stack import Lines
from benchmarks.workspace import LOG, Workspace
from sidecar_api.client import Client

RATE = 2_000
"""Events a second, one an append, evenly spread."""

TICK_SECONDS = 0.002

FANOUT = 50

Run = Callable[[Workspace, float], Awaitable[Sample]]


async def _append_evenly(space: Workspace, client: Client, count: int) -> None:
    """An open loop: an append is sent when its time has come, whatever the others do."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    sent = 0
    async with asyncio.TaskGroup() as group:
        while sent < count:
            due = min(count, int((loop.time() - began) * RATE) + 1)
            while sent < due:
                group.create_task(client.append(LOG, one_append(space)))
                sent += 1
            await asyncio.sleep(TICK_SECONDS)


async def _encoded(space: Workspace) -> float:
    url = f"{space.stack.node.metrics}/metrics"

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=10) as reply:
            text: str = reply.read().decode()
        return text

    prefix = f'everstate_tail_events_encoded_total{{log="{LOG}"}} '
    for line in (await asyncio.to_thread(fetch)).splitlines():
        if line.startswith(prefix):
            return float(line.removeprefix(prefix))
    return 0.0


def _cpu(pid: int) -> float:
    reading = meter.read({"it": pid}, None)
    return reading.roles["it"] if reading else 0.0


def _record(space: Workspace) -> Path:
    return space.stack.folder / "fanout.txt"


async def _until_done(lines: Lines, subscribers: int, count: int) -> dict[str, Any]:
    result = await lines.answer()
    if (result["events"], result["disorder"]) != (subscribers * count, 0):
        raise BenchmarkError(f"{subscribers} × {count} events were due: {result}")
    return result


async def _round(
    space: Workspace, seconds: float, subscribers: int, writer: Client
) -> tuple[dict[str, Any], float]:
    """2,000 events a second through ``writer`` to so many subscribers of the node, each on a
    connection of its own; what they saw, and the node's CPU seconds.
    """
    node = space.stack.node
    count = int(RATE * seconds)
    lines = space.stack.subscribers()
    lines.send(
        {
            "target": node.grpc, "log": LOG, "count": count, "subscribers": subscribers,
            "method": "/everstate.journal.v1.JournalService/Subscribe",
            "seconds": seconds + 60, "record": str(_record(space)),
        }
    )  # fmt: skip
    await lines.answer()
    encoded, cpu = await _encoded(space), _cpu(node.pid)
    await _append_evenly(space, writer, count)
    result = await _until_done(lines, subscribers, count)
    cpu, encoded = _cpu(node.pid) - cpu, await _encoded(space) - encoded
    if encoded != count:
        raise BenchmarkError(f"{encoded:.0f} events were encoded for {count}")
    return result, cpu


def _said(result: dict[str, Any], subscribers: int, seconds: float) -> str:
    return (
        f"{result['messages'] / subscribers / seconds:,.0f} messages/s each of "
        f"{result['events'] / max(1, result['messages']):.1f} events, each encoded once"
    )


def delivery(subscribers: int) -> Run:
    """Latency from recorded_at to arrival; appends and subscribers at the same node."""

    async def run(space: Workspace, seconds: float) -> Sample:
        result, cpu = await _round(space, seconds, subscribers, space.stack.client)
        count = int(RATE * seconds)
        note = (
            f"{_said(result, subscribers, seconds)}; node "
            f"{cpu / (count * subscribers) * 1e6:.1f} µs a delivery with its appends"
        )
        return Sample(count / seconds, result["p50_ms"], result["p99_ms"], count, note)

    return run


async def node_cpu(space: Workspace, seconds: float) -> Sample:
    """What 50 subscribers cost a node that takes no appends: another node does."""
    result, cpu = await _round(space, seconds, FANOUT, space.stack.other_client)
    count = int(RATE * seconds)
    space.fanout = count
    return Sample(
        cpu / (count * FANOUT) * 1e6, result["p50_ms"], result["p99_ms"], count,
        _said(result, FANOUT, seconds),
    )  # fmt: skip


async def bare_cpu(space: Workspace, seconds: float) -> Sample:
    """The messages of that round, to as many subscribers, from a bare server."""
    count, subscribers = space.fanout, FANOUT
    service = space.stack.start_fanout(_record(space), subscribers)
    try:
        lines = space.stack.subscribers()
        lines.send(
            {
                "target": service.grpc, "log": LOG, "count": count, "subscribers": subscribers,
                "method": f"/{SERVICE}/{METHOD}", "seconds": seconds + 60, "record": "",
            }
        )  # fmt: skip
        await lines.answer()
        cpu = _cpu(service.pid)
        result = await _until_done(lines, subscribers, count)
        with contextlib.suppress(OSError):
            cpu = _cpu(service.pid) - cpu
    finally:
        service.stop()
    note = f"{result['messages'] / subscribers / seconds:,.0f} messages/s each"
    return Sample(cpu / (count * subscribers) * 1e6, operations=count, note=note)
