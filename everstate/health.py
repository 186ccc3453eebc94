"""The node's small HTTP server: ``/metrics``, ``/healthz`` (alive), ``/readyz`` (able to work)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from uvicorn.protocols.http.h11_impl import H11Protocol

from kernel import telemetry
from kernel.errors import AddressInUse, EverstateError

UNREAD_SECONDS = 30.0
READ_BYTES = 65_536
"""A reader that is behind takes as much in `UNREAD_SECONDS`, or loses its connection."""

Ready = Callable[[], Awaitable[None]]
"""Returns when the process can work; raises the reason when it cannot."""


def bind(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket.

    Raises:
        AddressInUse: the port is taken or not permitted.

    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        raise AddressInUse(
            f"cannot listen on {host}:{port} ({purpose}): {error.strerror or error}"
        ) from None
    return listener


def application(ready: Ready, refresh: Callable[[], None]) -> Callable[..., Awaitable[None]]:
    """The ASGI application; ``refresh`` sets the gauges that are read, not counted."""

    async def answer(path: str) -> tuple[int, bytes, bytes]:
        if path == "/metrics":
            refresh()
            return 200, generate_latest(telemetry.REGISTRY), CONTENT_TYPE_LATEST.encode()
        if path == "/healthz":
            return 200, b"ok\n", b"text/plain"
        if path == "/readyz":
            try:
                async with asyncio.timeout(2):
                    await ready()
            except EverstateError as error:
                return 503, f"{error.message}\n".encode(), b"text/plain"
            except TimeoutError:
                return 503, b"no answer from the database\n", b"text/plain"
            return 200, b"ready\n", b"text/plain"
        return 404, b"there are /metrics, /healthz, /readyz\n", b"text/plain"

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        status, body, content_type = await answer(scope["path"])
        if scope["method"] not in ("GET", "HEAD"):
            status, body = 405, b"only GET and HEAD\n"
        headers = [
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )

    return app


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to this server."""
        yield


def _protocol(
    answer: Callable[[], tuple[int, list[tuple[bytes, bytes]], bytes]] | None,
    unread_seconds: float,
) -> type[H11Protocol]:
    class Bounded(H11Protocol):
        """A reader that takes next to nothing of what waits for it loses its connection: else it
        would hold a request, and what is written for it, as long as it likes.
        """

        giving_up: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._look_again()

        def _look_again(self) -> None:
            waiting = self.transport.get_write_buffer_size()
            self.giving_up = self.loop.call_later(unread_seconds, self._look, waiting)

        def _look(self, before: int) -> None:
            if before - self.transport.get_write_buffer_size() < READ_BYTES:
                self.transport.abort()
            else:
                self._look_again()

        def resume_writing(self) -> None:
            self._reads_on()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._reads_on()
            super().connection_lost(exc)

        def _reads_on(self) -> None:
            if self.giving_up is not None:
                self.giving_up.cancel()
                self.giving_up = None

    if answer is None:
        return Bounded
    made = answer

    class Protocol(Bounded):
        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says it better
            status, headers, body = made()
            for event in (
                h11.Response(status_code=status, headers=[*headers, (b"connection", b"close")]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket,
    app: Callable[..., Awaitable[None]],
    *,
    tls: tuple[Path, Path] | None = None,
    answer_to_nonsense: Callable[[], tuple[int, list[tuple[bytes, bytes]], bytes]] | None = None,
    unread_seconds: float = UNREAD_SECONDS,
) -> AsyncIterator[None]:
    """Serves ``app`` on ``listener`` while inside.

    ``tls``: the files of certificate and key. ``answer_to_nonsense`` makes status, headers and body
    for what is not HTTP. ``unread_seconds``: see `READ_BYTES`.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(answer_to_nonsense, unread_seconds),
        ws="none",
        log_level="warning",
        access_log=False,
        lifespan="off",
        # No header of the request changes who is taken for the sender.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
