"""Appends of one client over one AppendStream.

Appends that are made while a message is being written go together into the next one: many callers
share messages, a single caller waits for nothing. When the stream breaks it is opened again, with
growing, jittered pauses; appends that the journal would recognise are sent again until their
deadline, the others fail with `OutcomeUnknown` when they had been sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from journal.model import Limits
from kernel.errors import (
    Cancelled,
    DeadlineExceeded,
    EverstateError,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unavailable,
)
from sidecar_api.errors import from_status, to_error
from sidecar_api.generated import journal_pb2 as pb

MESSAGE_BYTES = 1_000_000
"""A message is sent when it has so much, though more may wait."""
MAX_MESSAGE_BYTES = Limits().message_bytes - 1_000
"""A larger one no node would take."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
SWEEP_SECONDS = 0.05
SLICE = 32
"""Results handed out at once, before callers that go on may send: ADR 0009."""

_WRITE_FAILED = "Internal error from Core"
"""What grpc.aio puts in the place of a call's status when a write fails as the call ends: no node
said it, the connection went away (github.com/grpc/grpc/issues/36066).
"""


@dataclass(slots=True, eq=False)
class Waiting:
    """An append whose result is not there yet. ``deadline``: loop time."""

    request: pb.AppendRequest
    size: int
    safe: bool
    future: asyncio.Future[pb.AppendResponse]
    deadline: float
    give_up: float
    sent: bool = False


class AppendPipe:
    """See the module. ``open_stream`` makes a new AppendStream call; ``max_bytes`` bounds what
    waits: callers beyond it wait in `append` until there is room, or their deadline.
    """

    def __init__(self, open_stream: Callable[[], Any], max_bytes: int, retry_for: float) -> None:
        self._open_stream = open_stream
        self._max_bytes = max_bytes
        self._retry_for = retry_for
        self._queue: dict[int, Waiting] = {}
        self._waiting: dict[int, Waiting] = {}
        self._bytes = 0
        self._next_id = 1
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._answered = False

    async def append(
        self, request: pb.AppendRequest, safe: bool, timeout: float
    ) -> pb.AppendResponse:
        """Sends an append and waits for its result at most ``timeout`` seconds."""
        if self._closed:
            raise Unavailable("the client is closed")
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = now + timeout
        size = request.ByteSize() + 64
        if size > MAX_MESSAGE_BYTES:
            raise TooLarge("append", size, MAX_MESSAGE_BYTES)
        while self._bytes + size > self._max_bytes and self._bytes:
            self._room.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._room.wait()
            except TimeoutError:
                raise DeadlineExceeded("too much waits; the append was not sent") from None
            if self._closed:
                raise Unavailable("the client is closed")
        number = self._next_id
        self._next_id = number + 1
        waiting = Waiting(
            request, size, safe, loop.create_future(), deadline, now + self._retry_for
        )
        self._bytes += size
        self._queue[number] = waiting
        if len(self._queue) == 1:
            self._wake.set()
        if self._task is None:
            self._task = loop.create_task(self._run())
        if self._sweep is None:
            self._sweep = loop.call_later(min(SWEEP_SECONDS, timeout), self._expire)
        try:
            return await waiting.future
        finally:
            self._bytes -= size
            self._room.set()
            if waiting.future.cancelled():
                self._queue.pop(number, None)
                self._waiting.pop(number, None)

    async def close(self) -> None:
        """Ends the stream; what still waits fails."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail_all(Unavailable("the client is closed"))

    def _fail_all(self, error: EverstateError) -> None:
        for queue in (self._waiting, self._queue):
            for waiting in queue.values():
                if not waiting.future.done():
                    waiting.future.set_exception(OutcomeUnknown() if waiting.sent else error)
            queue.clear()

    def _expire(self) -> None:
        """Fails what is past its deadline. One timer for all: a timer an append costs more."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for queue in (self._waiting, self._queue):
            late = [number for number, waiting in queue.items() if waiting.deadline <= now]
            for number in late:
                waiting = queue.pop(number)
                if not waiting.future.done():
                    waiting.future.set_exception(DeadlineExceeded())
        self._sweep = (
            loop.call_later(SWEEP_SECONDS, self._expire) if self._waiting or self._queue else None
        )

    async def _run(self) -> None:
        """Keeps a stream open as long as there is something to append."""
        pause = FIRST_PAUSE
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            self._answered = False
            self._stream_broke(await self._serve())
            if self._answered:
                pause = FIRST_PAUSE
            # Nothing announces that a node came back; jitter keeps many clients apart.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _serve(self) -> EverstateError:
        """One stream from open to end. Returns why it ended."""
        call = self._open_stream()
        reading = asyncio.create_task(self._read(call))
        writing = asyncio.create_task(self._write(call))
        tasks = (reading, writing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # A failed write only knows that the stream ended; the reader is about to learn why.
            if not reading.done():
                await asyncio.wait((reading,), timeout=1.0)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(ends[0], grpc.aio.AioRpcError):
            if ends[0].details() == _WRITE_FAILED:
                return Unavailable("the connection to the node broke")
            return to_error(ends[0])
        return Unavailable("the node ended the stream")

    async def _write(self, call: Any) -> None:
        queue = self._queue
        while True:
            if not queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            message = pb.AppendStreamRequest()
            add = message.appends.add
            now = asyncio.get_running_loop().time()
            size = 0
            for number, waiting in list(queue.items()):
                size += waiting.size
                if size > MESSAGE_BYTES and size != waiting.size:
                    break
                del queue[number]
                waiting.sent = True
                self._waiting[number] = waiting
                left = max(1, int((waiting.deadline - now) * 1000))
                add(id=number, append=waiting.request, timeout_ms=min(left, 2**32 - 1))
            await call.write(message)

    async def _read(self, call: Any) -> None:
        """Hands out results until the stream ends."""
        pop = self._waiting.pop
        while True:
            response = await call.read()
            if response is grpc.aio.EOF:
                return
            self._answered = True
            for count, result in enumerate(response.results, 1):
                if count % SLICE == 0:
                    # Callers that go on append again: let their next message leave before the rest
                    # of these results is handed out, so that client and node work at once.
                    await asyncio.sleep(0)
                waiting = pop(result.id, None)
                if waiting is None or waiting.future.done():
                    continue
                if result.HasField("error"):
                    self._failed(result.id, waiting, from_status(result.error))
                else:
                    waiting.future.set_result(result.appended)

    def _failed(self, number: int, waiting: Waiting, error: EverstateError) -> None:
        """Sends again what may be sent again; else the caller gets the error."""
        loop = asyncio.get_running_loop()
        again = isinstance(error, Overloaded | Unavailable) and (
            error.retryable or (isinstance(error, OutcomeUnknown) and waiting.safe)
        )
        if not again or loop.time() > min(waiting.give_up, waiting.deadline):
            waiting.future.set_exception(error)
            return
        after = (
            error.retry_after.total_seconds() if isinstance(error, Overloaded | Unavailable) else 0
        )
        self._waiting[number] = waiting  # kept, so that deadlines and close find it
        loop.call_later(after * random.uniform(0.5, 1.5), self._requeue, number)  # noqa: S311

    def _requeue(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.future.done():
            self._queue[number] = waiting
            self._wake.set()

    def _stream_broke(self, error: EverstateError) -> None:
        """What had been sent is sent again if that is safe; what had not, in any case."""
        now = asyncio.get_running_loop().time()
        again: dict[int, Waiting] = {}
        for number, waiting in [*self._waiting.items(), *self._queue.items()]:
            if waiting.future.done():
                continue
            if waiting.sent and not waiting.safe:
                waiting.future.set_exception(OutcomeUnknown())
            elif waiting.sent and not isinstance(error, Unavailable | Cancelled):
                # The node refuses the stream itself: sending the same again would not help.
                waiting.future.set_exception(error)
            elif now > waiting.give_up:
                waiting.future.set_exception(OutcomeUnknown() if waiting.sent else error)
            else:
                again[number] = waiting
        self._waiting.clear()
        self._queue.clear()
        self._queue.update(sorted(again.items()))
        if again:
            self._wake.set()
