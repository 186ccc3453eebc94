"""Readers of HTTP answers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from everstate import health

PIECE = b"x" * 1_000_000


async def test_a_reader_that_does_not_read_loses_its_connection_and_its_request() -> None:
    ended = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    listener = health.bind("127.0.0.1", 0, "test")
    address = listener.getsockname()
    with contextlib.closing(listener), contextlib.closing(socket.socket()) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        async with health.serving(listener, app, unread_seconds=0.5):
            await asyncio.to_thread(idle.connect, address)
            idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(20):
                await ended.wait()
            ended.clear()
            # Who reads, gets everything, also when it is slower than the pieces come.
            reader, writer = await asyncio.open_connection(*address, limit=4_096)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(20):
                whole = 0
                while part := await reader.read(65_536):
                    whole += len(part)
            assert whole > 20 * len(PIECE)
            writer.close()
