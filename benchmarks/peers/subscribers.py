"""Subscribers in a process of their own: what was sent to them, how late, and whether all of it.

Reads one command (JSON) a line; answers ``{"ready": true}`` when every subscriber has its first
message, then a result when every one has ``count`` events. Messages are SubscribeResponses, from a
node or from `benchmarks.peers.fanout`; every event of every subscriber is looked at.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import grpc

from sidecar_api.generated import journal_pb2 as pb

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection each, as sidecars have
]


class Subscriber:
    """One of them. ``late``: microseconds from recorded_at to arrival, by event."""

    def __init__(self, command: dict[str, Any], number: int) -> None:
        self.late = array("q")
        self.messages = 0
        self.bytes = 0
        self.events = 0
        self.disorder = 0
        self.first = asyncio.Event()
        self.record: list[tuple[float, bytes]] | None = [] if number == 0 else None
        self._channel = grpc.aio.insecure_channel(command["target"], _OPTIONS)
        request = pb.SubscribeRequest(log=command["log"], from_now=True)
        self._call = self._channel.unary_stream(command["method"], None, None)(
            request.SerializeToString()
        )

    async def read(self, count: int) -> None:
        """Reads until ``count`` events have come."""
        last = 0
        while self.events < count:
            data: Any = await self._call.read()
            if data is grpc.aio.EOF:
                raise RuntimeError(f"the stream ended after {self.events} of {count} events")
            now = time.time()
            message = pb.SubscribeResponse.FromString(data)
            now_us = int(now * 1e6)
            for event in message.events:
                self.late.append(now_us - event.recorded_at_us)
                self.disorder += event.position <= last
                last = event.position
            self.events += len(message.events)
            if self.first.is_set():
                self.messages += 1
                self.bytes += len(data)
                if self.record is not None:
                    self.record.append((now, data))
            self.first.set()

    async def close(self) -> None:
        """Leaves."""
        self._call.cancel()
        await self._channel.close()


def _at(ordered: list[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000


async def serve_one(command: dict[str, Any]) -> dict[str, Any]:
    """One command."""
    subscribers = [Subscriber(command, i) for i in range(command["subscribers"])]
    try:
        async with asyncio.timeout(command["seconds"]):
            async with asyncio.TaskGroup() as group:
                for subscriber in subscribers:
                    group.create_task(subscriber.read(command["count"]))
                for subscriber in subscribers:
                    await subscriber.first.wait()
                print(json.dumps({"ready": True}), flush=True)
        record = subscribers[0].record
        if command.get("record") and record:
            began = record[0][0]
            lines = (f"{at - began:.6f} {data.hex()}\n" for at, data in record)
            Path(command["record"]).write_text("".join(lines))
        late = sorted(value for subscriber in subscribers for value in subscriber.late)
        return {
            "events": sum(s.events for s in subscribers),
            "messages": sum(s.messages for s in subscribers),
            "bytes": sum(s.bytes for s in subscribers),
            "disorder": sum(s.disorder for s in subscribers),
            "p50_ms": _at(late, 0.5),
            "p99_ms": _at(late, 0.99),
        }
    finally:
        for subscriber in subscribers:
            await subscriber.close()


def main() -> None:
    """Commands until the end of input."""
    for line in sys.stdin:
        try:
            answer = asyncio.run(serve_one(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    main()
