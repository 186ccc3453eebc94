"""`everstate.journal.v1.JournalService` on a `journal.store.StoreJournal`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

import grpc

from journal.model import LoadQuery
from journal.preparation import PreparedAppend, check_written_log
from journal.queries import check_page_size
from journal.sequencer import Outcome
from journal.store import OpenLog, StoreJournal
from kernel import telemetry
from kernel.errors import DeadlineExceeded, EverstateError, InvalidArgument
from sidecar_api import convert
from sidecar_api.errors import to_status
from sidecar_api.generated import journal_pb2 as pb
from sidecar_api.services.calls import BadMessage, Method
from sidecar_api.services.encoding import TailEncoder

T = TypeVar("T")
Context = Any  # grpc.aio.ServicerContext; its stubs know nothing of our messages

STREAM_WINDOW_BYTES = 2_000_000
"""What one AppendStream may have waiting, results that the client has not read included."""

SLICE = 32
"""Appends of a message taken at once, before the first of them may be committed: ADR 0009."""

REFUSAL_BYTES = 1_000
"""What a result that was refused before it was queued takes of the window."""

READS_AHEAD = 16
"""How many reads may hold a fetched batch beside the one on its way to the client."""

STALLED_RESULTS_SECONDS, STALLED_READ_SECONDS = 60.0, 300.0
"""How long a client may leave a message unread before its call is ended."""


async def write(context: Context, message: Any, patience: float) -> None:
    """Writes, waiting at most ``patience`` seconds for the client's transport to take the message.

    Raises:
        DeadlineExceeded: the client does not read.

    """
    try:
        async with asyncio.timeout(patience):
            await context.write(message)
    except TimeoutError:
        raise DeadlineExceeded(f"the client has read nothing for {patience:.0f} s") from None


class Patience:
    """`write`'s bound for streams of many small messages: a timer now and then, not one a message.

    Ends the call with `DeadlineExceeded` when one write takes longer than ``seconds``, up to half
    as long again.
    """

    __slots__ = ("_handle", "_loop", "_seconds", "_since", "_stalled", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._stalled = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._handle = self._loop.call_later(self._seconds / 2, self._look)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handle.cancel()
        if self._stalled and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise DeadlineExceeded(f"the client has read nothing for {self._seconds:.0f} s")

    def begin(self) -> None:
        """A write begins."""
        self._since = self._loop.time()

    def end(self) -> None:
        """It was taken."""
        self._since = None

    def _look(self) -> None:
        if self._since is not None and self._loop.time() - self._since >= self._seconds:
            self._stalled = True
            self._task.cancel()
        else:
            self._handle = self._loop.call_later(self._seconds / 2, self._look)


class JournalService:
    """The calls of the service; `sidecar_api.server` registers them.

    ``version`` and ``database_version`` are what GetServerInfo says.
    """

    def __init__(self, store: StoreJournal, version: str, database_version: str) -> None:
        self._store = store
        self._version = version
        self._database_version = database_version
        self._default_timeout = store.settings.default_timeout.total_seconds()
        self._opened: dict[str, OpenLog] = {}
        self._streams: set[AppendStream] = set()
        self._draining = False
        self._permits = Permits(READS_AHEAD)
        self._encoders: dict[str, TailEncoder] = {}

    name = pb.DESCRIPTOR.services_by_name["JournalService"].full_name

    def methods(self) -> Sequence[Method]:
        """See `sidecar_api.services.calls.Service.methods`."""
        return (
            Method("Append", "unary", pb.AppendRequest, self.append),
            Method("AppendStream", "both", pb.AppendStreamRequest, self.append_stream),
            Method("LoadEntity", "stream", pb.LoadEntityRequest, self.load_entity),
            Method("ReadLog", "stream", pb.ReadLogRequest, self.read_log),
            Method("Subscribe", "stream", pb.SubscribeRequest, self.subscribe),
            Method("GetEntity", "unary", pb.GetEntityRequest, self.get_entity),
            Method("ListEntities", "unary", pb.ListEntitiesRequest, self.list_entities),
            Method("GetLog", "unary", pb.GetLogRequest, self.get_log),
            Method("ListLogs", "unary", pb.ListLogsRequest, self.list_logs),
            Method("CreateLog", "unary", pb.CreateLogRequest, self.create_log),
            Method("GetPositionAt", "unary", pb.GetPositionAtRequest, self.get_position_at),
            Method("VerifyLog", "stream", pb.VerifyLogRequest, self.verify_log),
            Method("GetServerInfo", "unary", pb.GetServerInfoRequest, self.get_server_info),
        )

    def drain(self) -> None:
        """Subscriptions end; append streams end after the results of what they hold."""
        self._draining = True
        self._store.subscriptions.stop()
        for stream in self._streams:
            stream.drain()

    async def open_log(self, name: str, timeout: float | None = None) -> OpenLog:
        """The log that a request writes to, remembered by the name that the request used.

        Raises:
            InvalidArgument: only Everstate itself writes to it. LogNotFound: there is no such log.

        """
        opened = self._opened.get(name)
        if opened is None:
            check_written_log(name)
            opened = await self._store.open_log(name or "default", timeout)
            self._opened[name] = opened
        return opened

    def opened(self, name: str) -> OpenLog | None:
        """The log if it was met before."""
        return self._opened.get(name)

    def _timeout(self, context: Context) -> float:
        remaining = context.time_remaining()
        return self._default_timeout if remaining is None else max(0.0, float(remaining))

    # Appends

    async def append(self, request: pb.AppendRequest, context: Context) -> pb.AppendResponse:
        prepared = self._store.preparer.prepare(request)
        timeout = self._timeout(context)
        opened = self._opened.get(request.log) or await self.open_log(request.log, timeout)
        response = pb.AppendResponse()
        convert.set_appended(response, await opened.sequencer.append(prepared, timeout))
        return response

    async def append_stream(self, _requests: object, context: Context) -> None:
        stream = AppendStream(self, self._store, context)
        self._streams.add(stream)
        try:
            if not self._draining:
                await stream.run()
        finally:
            self._streams.discard(stream)

    # Reads

    async def load_entity(self, request: pb.LoadEntityRequest, context: Context) -> None:
        telemetry.reads.labels("LoadEntity").inc()
        events = telemetry.events_read.labels("LoadEntity")
        query = LoadQuery(
            request.entity_type,
            request.entity_id,
            request.after_sequence,
            request.to_sequence,
            request.ignore_snapshot,
        )
        log = request.log or "default"
        rows = self._store.load_rows(log, query, self._timeout(context))
        async with contextlib.aclosing(ahead(rows, self._permits)) as parts:
            async for part in parts:
                response = pb.LoadEntityResponse()
                if part.entity is not None:
                    response.entity.CopyFrom(convert.entity_message(part.entity))
                if part.snapshot is not None:
                    response.snapshot.CopyFrom(convert.snapshot_message(part.snapshot))
                convert.add_events(response.events, part.rows, self._store.names)
                events.inc(len(part.rows))
                await write(context, response, STALLED_READ_SECONDS)

    async def read_log(self, request: pb.ReadLogRequest, context: Context) -> None:
        telemetry.reads.labels("ReadLog").inc()
        events = telemetry.events_read.labels("ReadLog")
        query = convert.read_query(request)
        names = self._store.names
        rows = self._store.read_rows(request.log or "default", query, context.time_remaining())
        async with contextlib.aclosing(ahead(rows, self._permits)) as batches:
            async for batch in batches:
                response = pb.ReadLogResponse(next_position=batch.next_position, head=batch.head)
                convert.add_events(response.events, batch.rows, names)
                for first, last in batch.removed:
                    response.removed.add(first=first, last=last)
                events.inc(len(batch.rows))
                encoded = response.SerializeToString()
                # A slow reader must hold bytes only, not rows and messages too.
                del response, batch
                await write(context, encoded, STALLED_READ_SECONDS)

    async def subscribe(self, request: pb.SubscribeRequest, context: Context) -> None:
        telemetry.reads.labels("Subscribe").inc()
        name = request.log or "default"
        events = telemetry.events_read.labels("Subscribe")
        query = convert.subscribe_query(request)
        encoder = self._encoders.setdefault(name, TailEncoder(name, self._store.names))
        deliveries = self._store.subscriptions.subscribe(name, query)
        async with contextlib.aclosing(deliveries), Patience(STALLED_READ_SECONDS) as patience:
            async for delivery in deliveries:
                message, count = encoder.message(delivery)
                events.inc(count)
                del delivery
                patience.begin()
                await context.write(message)
                patience.end()

    async def get_entity(self, request: pb.GetEntityRequest, context: Context) -> pb.Entity:
        telemetry.reads.labels("GetEntity").inc()
        entity = await self._store.get_entity(
            request.log or "default",
            request.entity_type,
            request.entity_id,
            timeout=timedelta(seconds=self._timeout(context)),
        )
        return convert.entity_message(entity)

    async def list_entities(
        self, request: pb.ListEntitiesRequest, context: Context
    ) -> pb.ListEntitiesResponse:
        telemetry.reads.labels("ListEntities").inc()
        page = await self._store.list_entities(
            request.log or "default",
            request.entity_type,
            request.id_prefix,
            page_size=request.page_size,
            page_token=request.page_token,
            timeout=timedelta(seconds=self._timeout(context)),
        )
        return pb.ListEntitiesResponse(
            entities=map(convert.entity_message, page.entities),
            next_page_token=page.next_page_token,
        )

    # Logs

    async def get_log(self, request: pb.GetLogRequest, context: Context) -> pb.Log:
        info = await self._store.get_log(
            request.log or "default", timeout=timedelta(seconds=self._timeout(context))
        )
        return convert.log_message(info)

    async def list_logs(self, request: pb.ListLogsRequest, context: Context) -> pb.ListLogsResponse:
        logs = await self._store.list_logs(timeout=timedelta(seconds=self._timeout(context)))
        size = check_page_size(request.page_size)
        later = [info for info in logs if info.log > request.page_token]
        page = later[:size]
        return pb.ListLogsResponse(
            logs=map(convert.log_message, page),
            next_page_token=page[-1].log if len(later) > size else "",
        )

    async def create_log(self, request: pb.CreateLogRequest, context: Context) -> pb.Log:
        info = await self._store.create_log(
            request.log,
            request.chunk_size,
            timeout=timedelta(seconds=self._timeout(context)),
        )
        return convert.log_message(info)

    async def get_position_at(
        self, request: pb.GetPositionAtRequest, context: Context
    ) -> pb.GetPositionAtResponse:
        position, head = await self._store.position_at(
            request.log or "default",
            request.time_us,
            timeout=timedelta(seconds=self._timeout(context)),
        )
        return pb.GetPositionAtResponse(position=position, head=head)

    async def verify_log(self, request: pb.VerifyLogRequest, context: Context) -> None:
        remaining = context.time_remaining()
        async for progress in self._store.verify(
            request.log or "default",
            request.from_position,
            request.to_position,
            timeout=None if remaining is None else timedelta(seconds=max(0.001, remaining)),
        ):
            await write(context, convert.verify_message(progress), STALLED_READ_SECONDS)

    async def get_server_info(
        self, _request: pb.GetServerInfoRequest, _context: Context
    ) -> pb.ServerInfo:
        settings = self._store.settings
        return pb.ServerInfo(
            version=self._version,
            limits=convert.limits_message(settings.limits),
            append_id_window_s=int(settings.append_id_window.total_seconds()),
            database_version=self._database_version,
        )


class Permits:
    """Bounds how many reads may hold a batch ahead of the one they are sending."""

    __slots__ = ("left",)

    def __init__(self, count: int) -> None:
        self.left = count


async def ahead(items: AsyncIterator[T], permits: Permits) -> AsyncGenerator[T, None]:
    """``items``; the next one is fetched while the present one is being used, if a permit is free.

    Stalled readers keep their permits; the others then read at the pace of one after the other.
    """
    iterator = aiter(items)
    following: asyncio.Future[T] | None = None
    try:
        while True:
            try:
                if following is None:
                    item = await anext(iterator)
                else:
                    item = await following
                    following = None
                    permits.left += 1
            except StopAsyncIteration:
                return
            if permits.left > 0:
                permits.left -= 1
                following = asyncio.ensure_future(anext(iterator))
            yield item
            del item
    finally:
        if following is not None:
            permits.left += 1
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, EverstateError):
                await following


class AppendStream:
    """One AppendStream call: reads appends while its window has room, writes results as they come.

    Results that arrive while a write is under way go out together in the next message. The window
    counts an append until the client's transport took its result, so a client that floods and never
    reads holds no more than the window.
    """

    __slots__ = (
        "_changed", "_context", "_drained", "_ended", "_held", "_in_flight", "_reader", "_results",
        "_service", "_store", "_unsent",
    )  # fmt: skip

    def __init__(self, service: JournalService, store: StoreJournal, context: Context) -> None:
        self._service = service
        self._store = store
        self._context = context
        self._results = pb.AppendStreamResponse()
        self._unsent = 0  # bytes of window that the results waiting here free when they are sent
        self._held = 0
        self._in_flight = 0
        self._ended = False
        self._drained = False
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    def drain(self) -> None:
        """Reads no more; ends after the results of what was read."""
        self._drained = True
        if self._reader is not None:
            self._reader.cancel()

    async def run(self) -> None:
        """Serves the stream until the client half-closes, goes away, or `drain` is called."""
        self._reader = asyncio.create_task(self._read())
        try:
            await self._write()
            if self._reader.done() and not self._reader.cancelled():
                self._reader.result()
        finally:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, EverstateError, grpc.RpcError):
                await self._reader

    # The waiter of the sequencer

    def done(self, append: PreparedAppend, outcome: Outcome) -> None:
        """Adds a result to the next message."""
        result = self._results.results.add(id=append.tag)
        if isinstance(outcome, EverstateError):
            result.error.CopyFrom(to_status(outcome))
        else:
            convert.set_appended(result.appended, outcome)
        self._unsent += append.held_bytes
        self._in_flight -= 1

    def flush(self) -> None:
        """Wakes the writer."""
        self._changed.set()

    async def _read(self) -> None:
        read = self._context.read
        loop = asyncio.get_running_loop()
        try:
            while True:
                request = await read()
                if request is grpc.aio.EOF:
                    return
                if isinstance(request, BadMessage):
                    raise InvalidArgument("message", request.reason)
                now = loop.time()
                for count, item in enumerate(request.appends, 1):
                    if count % SLICE == 0:
                        await asyncio.sleep(0)  # the first of them may be on their way meanwhile
                    if self._held > STREAM_WINDOW_BYTES:
                        await self._window()
                    await self._submit(item, now)
        finally:
            self._ended = True
            self._changed.set()

    async def _window(self) -> None:
        while self._held > STREAM_WINDOW_BYTES:
            self._changed.clear()
            await self._changed.wait()

    async def _submit(self, item: pb.IdentifiedAppend, now: float) -> None:
        request = item.append
        try:
            prepared = self._store.preparer.prepare(request)
            opened = self._service.opened(request.log) or await self._service.open_log(request.log)
            timeout = item.timeout_ms / 1000 if item.timeout_ms else self._service._default_timeout  # noqa: SLF001
            if opened.sequencer.crowded:
                await opened.sequencer.room()
            opened.sequencer.submit(prepared, self, item.id, now + timeout)
        except EverstateError as error:
            self._results.results.add(id=item.id).error.CopyFrom(to_status(error))
            self._held += REFUSAL_BYTES
            self._unsent += REFUSAL_BYTES
            self._changed.set()
            return
        self._held += prepared.held_bytes
        self._in_flight += 1

    async def _write(self) -> None:
        while True:
            if not self._results.results:
                if self._ended and self._in_flight == 0:
                    return
                self._changed.clear()
                await self._changed.wait()
                continue
            response, freed = self._results, self._unsent
            self._results, self._unsent = pb.AppendStreamResponse(), 0
            await write(self._context, response, STALLED_RESULTS_SECONDS)
            self._held -= freed
            self._changed.set()
