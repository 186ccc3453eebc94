"""`Client`: the journal over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from journal.model import (
    ANY,
    OCTET_STREAM,
    Append,
    Appended,
    Entity,
    EntityAppend,
    EntityPage,
    EntityPart,
    EventBatch,
    EventView,
    Expected,
    LoadQuery,
    LogInfo,
    NewEvent,
    ReadQuery,
    SubscribeQuery,
    SubscriptionBatch,
    VerifyProgress,
)
from kernel.errors import (
    InvalidArgument,
    Unavailable,
)
from sidecar_api.client import messages
from sidecar_api.client.groups import Groups
from sidecar_api.client.pipe import AppendPipe
from sidecar_api.client.schemas import SchemaClient
from sidecar_api.client.snapshots import EntityTypes, SnapshotClient
from sidecar_api.client.target import Target
from sidecar_api.errors import to_error
from sidecar_api.generated import journal_pb2 as pb

T = TypeVar("T")

_SERVICE = "/everstate.journal.v1.JournalService/"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Behaviour of a client.

    ``timeout`` is the deadline of calls that give none (streams of reads have none then).
    ``retry_for``: how long a node that cannot be reached is tried, within the deadline.
    ``max_waiting_bytes`` bounds appends that wait. ``auto_append_id``: appends without an exact
    state get an append id, so that they may be retried; it costs a row each on the server.
    """

    timeout: timedelta = timedelta(seconds=30)
    retry_for: timedelta = timedelta(seconds=10)
    max_waiting_bytes: int = 32_000_000
    auto_append_id: bool = True
    tls_ca: Path | None = None


class Client:
    """A connection to a node; an implementation of `journal.journal.Journal`.

    Safe for many tasks of one event loop. Reconnects by itself; retries only what cannot happen
    twice. ``log`` arguments may be empty: the log of the URL is meant then.
    """

    def __init__(self, target: Target | str, settings: ClientSettings | None = None) -> None:
        self.target = Target.parse(target) if isinstance(target, str) else target
        self.settings = settings or ClientSettings()
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 64 * 1024),
            ("grpc.absolute_max_metadata_size", 64 * 1024),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Two clients of one process must not share a connection that one of them saturates.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.target.tls:
            root = self.settings.tls_ca.read_bytes() if self.settings.tls_ca else None
            self._channel = grpc.aio.secure_channel(
                self.target.address, grpc.ssl_channel_credentials(root), options
            )
        else:
            self._channel = grpc.aio.insecure_channel(self.target.address, options)
        self.groups = Groups(self)
        self._unary: dict[str, Any] = {}
        self._stream: dict[str, Any] = {}
        self._append_stream = self._channel.stream_stream(
            _SERVICE + "AppendStream",
            pb.AppendStreamRequest.SerializeToString,
            pb.AppendStreamResponse.FromString,
        )
        self._pipe = AppendPipe(
            self._append_stream,
            self.settings.max_waiting_bytes,
            self.settings.retry_for.total_seconds(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends everything; appends that still wait fail."""
        await self._pipe.close()
        await self._channel.close()

    @property
    def schemas(self) -> SchemaClient:
        """The registered descriptors of protobuf payloads."""
        return SchemaClient(self._call, self._streamed, self.settings.timeout)

    @property
    def snapshots(self) -> SnapshotClient:
        """The snapshots of entities."""
        return SnapshotClient(self._call, self.target.log)

    @property
    def entity_types(self) -> EntityTypes:
        """The entity types and what is set for them."""
        return EntityTypes(self._call)

    # Appends

    async def append(
        self, log: str, append: Append, *, timeout: timedelta | None = None
    ) -> Appended:
        """See `journal.journal.Journal.append`. Shares a stream with all other appends."""
        request, safe = messages.append_message(
            log or self.target.log, append, auto_append_id=self.settings.auto_append_id
        )
        seconds = (timeout or self.settings.timeout).total_seconds()
        return messages.to_appended(await self._pipe.append(request, safe, seconds))

    async def append_event(
        self,
        entity_type: str,
        entity_id: str,
        event_type: str,
        payload: bytes,
        *,
        expected: Expected = ANY,
        content_type: str = OCTET_STREAM,
        timeout: timedelta | None = None,
    ) -> Appended:
        """Appends one event to one entity of the URL's log."""
        return await self.append(
            "",
            Append(
                (EntityAppend(entity_type, entity_id, expected),),
                (NewEvent(event_type, payload, content_type),),
            ),
            timeout=timeout,
        )

    # Reads

    async def load(
        self, log: str, query: LoadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EntityPart]:
        """See `journal.journal.Journal.load`. Retried only while nothing has come."""
        request = _build(
            pb.LoadEntityRequest,
            log=log or self.target.log,
            entity_type=query.entity_type,
            entity_id=query.entity_id,
            after_sequence=query.after_sequence,
            to_sequence=query.to_sequence,
            ignore_snapshot=query.ignore_snapshot,
        )
        seconds = (timeout or self.settings.timeout).total_seconds()
        retry = _Retry(self.settings.retry_for.total_seconds())
        begun = False
        while True:
            try:
                stream = self._streamed("LoadEntity", pb.LoadEntityResponse, request, seconds)
                async with contextlib.aclosing(stream) as parts:
                    async for part in parts:
                        begun = True
                        entity, snapshot = part.entity, part.snapshot
                        yield EntityPart(
                            messages.to_entity(entity) if part.HasField("entity") else None,
                            messages.to_snapshot(snapshot) if part.HasField("snapshot") else None,
                            part.events,
                        )
            except Unavailable as error:
                if begun or not await retry.pause():
                    raise error from None
            else:
                return

    async def events(
        self, entity_type: str, entity_id: str, *, after_sequence: int = 0
    ) -> AsyncIterator[EventView]:
        """All readable events of one entity of the URL's log, in order, from the beginning."""
        query = LoadQuery(entity_type, entity_id, after_sequence, ignore_snapshot=True)
        async for part in self.load("", query):
            for event in part.events:
                yield event

    async def read(
        self, log: str, query: ReadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EventBatch]:
        """See `journal.journal.Journal.read`. Goes on where it was after a lost connection."""
        seconds = timeout.total_seconds() if timeout else None
        retry = _Retry(self.settings.retry_for.total_seconds())
        finished = False
        while True:
            request = messages.read_message(log or self.target.log, query)
            try:
                stream = self._streamed("ReadLog", pb.ReadLogResponse, request, seconds)
                async with contextlib.aclosing(stream) as batches:
                    async for batch in batches:
                        retry.reset()
                        removed = tuple((part.first, part.last) for part in batch.removed)
                        count = len(batch.events)
                        yield EventBatch(batch.events, batch.next_position, batch.head, removed)
                        rest = _remaining(query, batch.next_position, batch.head, count)
                        query, finished = rest or query, rest is None
            except Unavailable as error:
                if finished:
                    return
                if not await retry.pause():
                    raise error from None
            else:
                return

    async def subscribe(
        self, log: str, query: SubscribeQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[SubscriptionBatch]:
        """See `journal.journal.Journal.subscribe`. Goes on where it was after a lost connection, on
        whatever node it reaches then, for as long as `ClientSettings.retry_for` says.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout.total_seconds()
        retry = _Retry(self.settings.retry_for.total_seconds())
        request = messages.subscribe_message(log or self.target.log, query)
        while True:
            left = None if deadline is None else max(0.001, deadline - loop.time())
            try:
                stream = self._streamed("Subscribe", pb.SubscribeResponse, request, left)
                async with contextlib.aclosing(stream) as batches:
                    async for batch in batches:
                        retry.reset()
                        removed = tuple((part.first, part.last) for part in batch.removed)
                        yield SubscriptionBatch(
                            batch.events, batch.next_position, batch.head, removed,
                            batch.caught_up, batch.fell_behind,
                        )  # fmt: skip
                        request.from_position = batch.next_position
                        request.from_time_us = 0  # it has passed
            except Unavailable as error:
                if not await retry.pause():
                    raise error from None

    async def get_entity(
        self, log: str, entity_type: str, entity_id: str, *, timeout: timedelta | None = None
    ) -> Entity:
        """See `journal.journal.Journal.get_entity`."""
        request = _build(
            pb.GetEntityRequest,
            log=log or self.target.log,
            entity_type=entity_type,
            entity_id=entity_id,
        )
        return messages.to_entity(await self._call("GetEntity", pb.Entity, request, timeout))

    async def list_entities(
        self,
        log: str,
        entity_type: str = "",
        id_prefix: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
        timeout: timedelta | None = None,
    ) -> EntityPage:
        """See `journal.journal.Journal.list_entities`."""
        request = _build(
            pb.ListEntitiesRequest,
            log=log or self.target.log,
            entity_type=entity_type,
            id_prefix=id_prefix,
            page_size=page_size,
            page_token=page_token,
        )
        page = await self._call("ListEntities", pb.ListEntitiesResponse, request, timeout)
        return EntityPage(tuple(map(messages.to_entity, page.entities)), page.next_page_token)

    # Logs

    async def get_log(self, log: str = "", *, timeout: timedelta | None = None) -> LogInfo:
        """See `journal.journal.Journal.get_log`."""
        request = _build(pb.GetLogRequest, log=log or self.target.log)
        return messages.to_log(await self._call("GetLog", pb.Log, request, timeout))

    async def list_logs(self, *, timeout: timedelta | None = None) -> tuple[LogInfo, ...]:
        """See `journal.journal.Journal.list_logs`."""
        found: list[LogInfo] = []
        request = pb.ListLogsRequest()
        while True:
            page = await self._call("ListLogs", pb.ListLogsResponse, request, timeout)
            found += map(messages.to_log, page.logs)
            if not page.next_page_token:
                return tuple(found)
            request = pb.ListLogsRequest(page_token=page.next_page_token)

    async def create_log(
        self, log: str, chunk_size: int = 0, *, timeout: timedelta | None = None
    ) -> LogInfo:
        """See `journal.journal.Journal.create_log`. Not retried: a second try would find the
        first.
        """
        request = _build(pb.CreateLogRequest, log=log, chunk_size=chunk_size)
        return messages.to_log(
            await self._call("CreateLog", pb.Log, request, timeout, retried=False)
        )

    async def position_at(
        self, log: str, time_us: int, *, timeout: timedelta | None = None
    ) -> tuple[int, int]:
        """See `journal.journal.Journal.position_at`."""
        request = _build(pb.GetPositionAtRequest, log=log or self.target.log, time_us=time_us)
        reply = await self._call("GetPositionAt", pb.GetPositionAtResponse, request, timeout)
        return reply.position, reply.head

    async def verify(
        self,
        log: str,
        from_position: int = 0,
        to_position: int = 0,
        *,
        timeout: timedelta | None = None,
    ) -> AsyncIterator[VerifyProgress]:
        """See `journal.journal.Journal.verify`."""
        request = _build(
            pb.VerifyLogRequest,
            log=log or self.target.log,
            from_position=from_position,
            to_position=to_position,
        )
        seconds = timeout.total_seconds() if timeout else None
        async for progress in self._streamed("VerifyLog", pb.VerifyLogResponse, request, seconds):
            yield messages.to_verify(progress)

    async def server_info(self, *, timeout: timedelta | None = None) -> pb.ServerInfo:
        """The server's version and limits."""
        reply: pb.ServerInfo = await self._call(
            "GetServerInfo", pb.ServerInfo, pb.GetServerInfoRequest(), timeout
        )
        return reply

    # Calls of other services

    async def unary_call(
        self, path: str, response: type[Any], request: Any, *, retried: bool = True
    ) -> Any:
        """A call by its full path, with the settings of this client."""
        return await self._call(path, response, request, None, retried=retried)

    def stream_call(self, path: str, request: type[Any], response: type[Any]) -> Any:
        """A bidirectional stream by its full path."""
        return self._channel.stream_stream(path, request.SerializeToString, response.FromString)

    # Calls

    async def _call(
        self,
        name: str,
        response: type[Any],
        request: Any,
        timeout: timedelta | None,
        *,
        retried: bool = True,
    ) -> Any:
        call = self._unary.get(name)
        if call is None:
            call = self._unary[name] = self._channel.unary_unary(
                _path(name), type(request).SerializeToString, response.FromString
            )
        seconds = (timeout or self.settings.timeout).total_seconds()
        retry = _Retry(self.settings.retry_for.total_seconds() if retried else 0.0)
        while True:
            try:
                return await call(request, timeout=seconds)
            except grpc.aio.AioRpcError as error:
                failure = to_error(error)
                if not isinstance(failure, Unavailable) or not await retry.pause():
                    raise failure from None

    async def _streamed(
        self, name: str, response: type[Any], request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        make = self._stream.get(name)
        if make is None:
            make = self._stream[name] = self._channel.unary_stream(
                _path(name), type(request).SerializeToString, response.FromString
            )
        call = make(request, timeout=timeout)
        try:
            while True:
                message = await call.read()
                if message is grpc.aio.EOF:
                    return
                yield message
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        finally:
            call.cancel()


def _path(name: str) -> str:
    """A call of the journal by its name, of another service by its path."""
    return name if name.startswith("/") else _SERVICE + name


def _build(kind: Callable[..., T], **fields: object) -> T:
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise InvalidArgument("request", f"cannot be sent: {error}") from None


def _remaining(query: ReadQuery, next_position: int, head: int, count: int) -> ReadQuery | None:
    """What is still to be read after a batch, so that a broken read goes on where it was; None:
    nothing.

    A read ends at the head it began with, also after a break.
    """
    to = query.to_position or (1 if query.backwards else head)
    over = next_position < to if query.backwards else next_position > min(to, head)
    left = query.max_events - count
    if over or (query.max_events and left <= 0):
        return None
    return replace(
        query,
        from_position=next_position,
        to_position=to,
        max_events=left if query.max_events else 0,
    )


class _Retry:
    """Growing, jittered pauses until ``budget`` seconds have passed since the first failure."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self.reset()

    def reset(self) -> None:
        """Something succeeded."""
        self._began: float | None = None
        self._next = 0.02

    async def pause(self) -> bool:
        """Waits before the next try; False: the budget is used up."""
        now = self._loop.time()
        self._began = now if self._began is None else self._began
        wait = self._next * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
        if now + wait - self._began > self._budget:
            return False
        await asyncio.sleep(wait)
        self._next = min(self._next * 2, 1.0)
        return True
