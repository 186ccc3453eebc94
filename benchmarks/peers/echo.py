"""A bare grpc.aio server: what unary calls cost when nothing is done with them.

It takes the bytes of an AppendRequest and answers with the bytes of an AppendResponse; it parses
nothing. Path, options and sizes are the node's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import grpc

from sidecar_api.generated import journal_pb2 as pb

SERVICE = "everstate.journal.v1.JournalService"
REPLY = pb.AppendResponse(
    first_position=1_234_567,
    last_position=1_234_567,
    recorded_at_us=1_790_000_000_000_000,
    entities=[pb.AppendedEntity(first_sequence=1, last_sequence=1)],
).SerializeToString()


async def _echo(request: bytes, context: object) -> bytes:  # noqa: ARG001 - the handler's signature
    return REPLY


async def serve(ready_fd: int) -> None:
    """Serves until SIGTERM; writes the port to ``ready_fd``."""
    server = grpc.aio.server(
        options=[("grpc.max_concurrent_streams", 1_000), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=4_000,
    )
    handler: Any = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Append": handler}),)
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
    asyncio.run(serve(int(sys.argv[1])))
