"""What holds for every request before and around the routes, as one ASGI layer.

Security headers stand on every response, errors included; HEAD is answered wherever GET is; the
number of requests at work, the size of a body and the time it takes to arrive are bounded; nothing
that goes wrong leaves as anything but problem+json.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog

from admin_ui import errors
from kernel import telemetry
from kernel.errors import (
    DeadlineExceeded,
    EverstateError,
    InternalError,
    InvalidArgument,
    Overloaded,
    TooLarge,
)

log = structlog.get_logger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
_TRANSPORT_SECURITY = (b"strict-transport-security", b"max-age=31536000")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one process and one request."""

    requests: int = 64
    body_bytes: int = 1_000_000
    query_bytes: int = 16_384
    body_seconds: float = 10.0


class Guard:
    """Wraps the application; see the module."""

    def __init__(self, app: Application, limits: Limits | None = None, *, tls: bool) -> None:
        self._app = app
        self._limits = limits or Limits()
        self._extra = (*SECURITY_HEADERS, _TRANSPORT_SECURITY) if tls else SECURITY_HEADERS
        self._at_work = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websockets; the process starts and stops us
            return
        head = scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET", "everstate.head": True}
        started = False
        status = 500

        async def sending(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = self._headers(message.get("headers", ()))
            elif head:
                message = {**message, "body": b""}
            await send(message)

        async def fail(error: EverstateError) -> None:
            code, headers, body = errors.answer(error)
            await sending({"type": "http.response.start", "status": code, "headers": headers})
            await sending({"type": "http.response.body", "body": body})

        self._at_work += 1
        try:
            if self._at_work > self._limits.requests:
                raise Overloaded(f"{self._limits.requests} requests are being answered already")
            self._check_sizes(scope)
            await self._app(scope, self._bounded(receive), sending)
        except EverstateError as error:
            if not started:
                await fail(error)
        except Exception as error:  # noqa: BLE001 - the last one who can answer
            # The message of a foreign exception may hold what the request held: not into the log.
            log.error(  # noqa: TRY400 - see above
                "request failed",
                error=type(error).__name__,
                frames="".join(traceback.format_tb(error.__traceback__)[-6:]),
            )
            if not started:
                await fail(InternalError())
        finally:
            self._at_work -= 1
            telemetry.http_requests.labels(_call(scope), str(status)).inc()

    def _headers(self, given: Any) -> list[tuple[bytes, bytes]]:
        headers = [(bytes(name).lower(), bytes(value)) for name, value in given]
        names = {name for name, _ in headers}
        for i, (name, value) in enumerate(headers):
            if name == b"allow" and b"GET" in value and b"HEAD" not in value:
                headers[i] = (name, value + b", HEAD")
        return headers + [pair for pair in self._extra if pair[0] not in names]

    def _check_sizes(self, scope: MutableMapping[str, Any]) -> None:
        query = len(scope.get("query_string", b""))
        if query > self._limits.query_bytes:
            raise TooLarge("query", query, self._limits.query_bytes)
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit():
                    raise InvalidArgument("Content-Length", "is not a number")
                if int(value) > self._limits.body_bytes:
                    raise TooLarge("body", int(value), self._limits.body_bytes)

    def _bounded(self, receive: Receive) -> Receive:
        """``receive`` that gives up on a body that is too large or too slow."""
        taken = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds

        async def receiving() -> Message:
            nonlocal taken, complete
            if complete:  # only the end of the connection can come now, at any time
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise DeadlineExceeded("the body did not arrive in time") from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if taken > self._limits.body_bytes:
                    raise TooLarge("body", taken, self._limits.body_bytes)
            return message

        return receiving


def _call(scope: MutableMapping[str, Any]) -> str:
    """The name of the route, never its path: paths hold names that people chose."""
    return getattr(scope.get("route"), "name", None) or "none"
