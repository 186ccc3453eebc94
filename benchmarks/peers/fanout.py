"""A bare grpc.aio server that sends ready-made messages to every subscriber, at given times.

The messages and their times are those that a node sent (`benchmarks.peers.subscribers` recorded
them); nothing is encoded, read or counted here. What this costs is what grpc.aio costs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc

SERVICE, METHOD = "everstate.bench.Fanout", "Subscribe"


class Fanout:
    """Begins when ``expected`` subscribers are there."""

    def __init__(self, record: Path, expected: int) -> None:
        lines = (line.split(" ") for line in record.read_text().splitlines())
        self._messages = [(float(at), bytes.fromhex(data)) for at, data in lines]
        self._expected = expected
        self._there = 0
        self._released = 0
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def subscribe(self, _request: bytes, context: Any) -> None:
        """One subscriber."""
        await context.write(b"")  # the first message: it is there
        self._there += 1
        if self._there == self._expected:
            self._task = asyncio.create_task(self._release())
        sent = 0
        while sent < len(self._messages):
            while sent == self._released:
                await self._change.wait()
            await context.write(self._messages[sent][1])
            sent += 1

    async def _release(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.3)  # the time in which the node's subscribers waited too
        began = loop.time()
        for at, _ in self._messages:
            delay = began + at - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            self._released += 1
            change, self._change = self._change, asyncio.Event()
            change.set()


async def serve(ready_fd: int, record: Path, expected: int) -> None:
    """Serves until SIGTERM; writes the port to ``ready_fd``."""
    fanout = Fanout(record, expected)
    server = grpc.aio.server(
        options=[("grpc.max_concurrent_streams", 1_000), ("grpc.so_reuseport", 0)]
    )
    handler: Any = grpc.unary_stream_rpc_method_handler(fanout.subscribe)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(f'{{"grpc": "127.0.0.1:{port}"}}\n')
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asked.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
