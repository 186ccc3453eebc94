"""The node's gRPC server: services, health, reflection, limits, graceful drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from journal.store import StoreJournal
from kernel import telemetry
from kernel.errors import (
    AddressInUse,
    ConfigurationError,
    EverstateError,
    InternalError,
    InvalidArgument,
)
from sidecar_api.errors import DETAILS_BYTES, to_status
from sidecar_api.services.calls import BadMessage, Service
from sidecar_api.services.journal import JournalService

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the node listens and what it accepts.

    ``max_streams`` bounds the calls of one connection, ``max_calls`` those of all (further ones get
    RESOURCE_EXHAUSTED); ``drain`` is how long calls under way may take when it stops. With
    ``tls_cert`` and ``tls_key`` (PEM files) it speaks TLS only.
    """

    host: str = "127.0.0.1"
    port: int = 7400
    max_streams: int = 1_000
    max_calls: int = 1_000
    drain: timedelta = timedelta(seconds=10)
    tls_cert: Path | None = None
    tls_key: Path | None = None


class NodeServer:
    """Serves a journal, and further services, over gRPC. `start` binds, `stop` drains."""

    def __init__(
        self,
        store: StoreJournal,
        settings: ServerSettings,
        *,
        version: str = "",
        database_version: str = "",
        services: Sequence[Service] = (),
    ) -> None:
        self._settings = settings
        journal = JournalService(store, version, database_version)
        self._services: tuple[Service, ...] = (journal, *services)
        message_bytes = store.settings.limits.message_bytes
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_concurrent_streams", settings.max_streams),
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.max_send_message_length", 2 * message_bytes),
                # Two servers on one port would share its connections silently.
                ("grpc.so_reuseport", 0),
                # A client whose machine is gone or frozen is noticed within ten seconds.
                ("grpc.keepalive_time_ms", 4_000),
                ("grpc.keepalive_timeout_ms", 6_000),
                ("grpc.http2.ping_timeout_ms", 6_000),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
            maximum_concurrent_rpcs=settings.max_calls,
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers(tuple(map(_handlers, self._services)))
        names = [service.name for service in self._services]
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self.port = settings.port

    async def start(self) -> None:
        """Binds and serves.

        Raises:
            AddressInUse: the port is taken, or cannot be bound.
        ConfigurationError: the TLS files cannot be used.

        """
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        try:
            address = f"{host}:{self._settings.port}"
            credentials = self._credentials()
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise AddressInUse(
                f"cannot listen on {self._settings.host}:{self._settings.port} (gRPC): "
                "the port is in use or not permitted"
            )
        await self._server.start()
        await self.set_serving(True)

    def _credentials(self) -> grpc.ServerCredentials | None:
        cert, key = self._settings.tls_cert, self._settings.tls_key
        if cert is None and key is None:
            return None
        if cert is None or key is None:
            raise ConfigurationError("EVERSTATE_TLS_CERT and EVERSTATE_TLS_KEY go together")
        try:
            return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
        except OSError as error:
            raise ConfigurationError(
                f"EVERSTATE_TLS_CERT, EVERSTATE_TLS_KEY: {error.filename}: {error.strerror}"
            ) from None

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *(service.name for service in self._services)):
            await self._health.set(name, status)

    async def stop(self, drain: timedelta | None = None) -> None:
        """Takes no more calls, lets those under way finish within the drain time."""
        with contextlib.suppress(Exception):
            await self.set_serving(False)
        for service in self._services:
            service.drain()
        await self._server.stop((drain or self._settings.drain).total_seconds())


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    make = {
        "unary": grpc.unary_unary_rpc_method_handler,
        "stream": grpc.unary_stream_rpc_method_handler,
        "both": grpc.stream_stream_rpc_method_handler,
    }
    return grpc.method_handlers_generic_handler(
        service.name,
        {
            method.name: make[method.kind](
                guarded(method.name, method.call), _reader(method.request), _encode
            )
            for method in service.methods()
        },
    )


def _encode(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _reader(kind: type[Message]) -> Callable[[bytes], Any]:
    parse: Callable[[bytes], Message] = kind.FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return BadMessage(f"is not a {kind.DESCRIPTOR.full_name} (strings have to be UTF-8)")

    return read


def guarded(
    name: str, call: Callable[[Any, Any], Awaitable[Any]]
) -> Callable[[Any, Any], Awaitable[Any]]:
    """``call`` with errors of the tree as google.rpc.Status, and counted."""
    counters: dict[str, Any] = {}

    def count(status: str) -> None:
        counter = counters.get(status)
        if counter is None:
            counter = counters[status] = telemetry.rpcs.labels(name, status)
        counter.inc()

    async def handle(request: Any, context: Any) -> Any:
        try:
            if isinstance(request, BadMessage):
                raise InvalidArgument("message", request.reason)
            response = await call(request, context)
        except EverstateError as error:
            failure = error
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            count("CANCELLED")
            raise
        except Exception:  # A bug of ours: the caller gets INTERNAL, the log the traceback.
            log.exception("call failed", method=name)
            failure = InternalError()
        else:
            count("OK")
            return response
        count(failure.code)
        status, reason = rpc_status.to_status(to_status(failure, DETAILS_BYTES)), failure.message
        # Its traceback holds this frame, and with it the call: gRPC ends a call that nobody holds.
        del failure
        try:
            return await context.abort_with_status(status)
        except grpc.aio.InternalError:
            pass
        # A message that the client does not take is in the way of the status: the call is reset.
        log.warning("call given up", method=name, reason=reason)
        raise asyncio.CancelledError

    return handle
