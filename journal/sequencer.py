"""Group commit: the appends that arrive while a commit is in flight become the next batch.

There is no timer, so an idle system adds no wait; a busy one shares each commit among all who wait.
Positions are not handed out here but inside the database transaction (ADR 0001), so
any number of sequencers in any number of nodes may write the same log.

An entity, and an append id, is at most once in the batches in flight: a second append to it waits
for the first one's verdict, so appends of one entity are judged in the order they were submitted.
That is kept without scanning: each key remembers the last append that holds it, and an append knows
how many others it still waits for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from journal.model import Appended
from journal.preparation import PreparedAppend
from kernel.errors import (
    ClockSkew,
    DeadlineExceeded,
    EverstateError,
    InternalError,
    LogNotFound,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)

Outcome = Appended | EverstateError

Execute = Callable[[Sequence[PreparedAppend], float], Awaitable[list[Outcome]]]
"""Commits a batch (timeout in seconds) and returns an outcome per append, in order.

Raises `Unavailable` when nothing was sent, `OutcomeUnknown` when the connection broke, any other
`EverstateError` when the transaction was rolled back.
"""

log = structlog.get_logger(__name__)

_NOT_THE_BATCHS_FAULT = (Unavailable, DeadlineExceeded, ClockSkew, LogNotFound)


class Waiter(Protocol):
    """Who gets outcomes: `done` once per append, then `flush` once per batch."""

    def done(self, append: PreparedAppend, outcome: Outcome, /) -> None: ...
    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SequencerSettings:
    """Bounds of a sequencer.

    ``max_batch_events`` and ``max_batch_bytes`` bound one commit; ``max_held_bytes`` bounds all
    that waits (payloads plus an estimate of what holding them costs). A second connection
    (``lanes``) is used only while more than ``second_lane_events`` wait.
    """

    max_batch_events: int = 1_000
    max_batch_bytes: int = 4_000_000
    max_held_bytes: int = 48_000_000
    lanes: int = 1
    second_lane_events: int = 500
    commit_timeout: timedelta = timedelta(seconds=10)


class _FutureWaiter:
    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Appended]) -> None:
        self.future = future

    def done(self, _append: PreparedAppend, outcome: Outcome) -> None:
        if self.future.done():
            return
        if isinstance(outcome, EverstateError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)

    def flush(self) -> None: ...


class Sequencer:
    """Turns concurrent appends to one log into batches.

    Not thread-safe: it belongs to one event loop. After `close` every waiting append has failed
    with `Unavailable`; `drain` waits for those accepted so far.
    """

    def __init__(self, execute: Execute, settings: SequencerSettings | None = None) -> None:
        self._execute = execute
        self._settings = settings or SequencerSettings()
        self._ready: deque[PreparedAppend] = deque()
        self._last: dict[str, PreparedAppend] = {}
        self._lanes: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self.held_bytes = 0
        self.waiting = 0

    def submit(self, append: PreparedAppend, waiter: Waiter, tag: int, deadline: float) -> None:
        """Queues an append; ``waiter.done`` is called with its outcome, exactly once.

        ``deadline`` is a time of the event loop's clock, 0 for the default.

        Raises:
            Overloaded: as much waits as may (``max_held_bytes``).
            Unavailable: the sequencer is closed.

        """
        if self._closed:
            raise Unavailable("the node is shutting down")
        if self.held_bytes + append.held_bytes > self._settings.max_held_bytes and self.waiting:
            raise Overloaded(
                f"{self.held_bytes} bytes of appends wait, "
                f"the limit is {self._settings.max_held_bytes}"
            )
        self.held_bytes += append.held_bytes
        self.waiting += 1
        if self.held_bytes >= self._settings.max_held_bytes // 2:
            self._room.clear()
        append.waiter = waiter
        append.tag = tag
        append.deadline = deadline
        last = self._last
        for key in append.keys:
            before = last.get(key)
            last[key] = append
            if before is not None and before is not append:
                append.blockers += 1
                if before.followers is None:
                    before.followers = []
                before.followers.append(append)
        if append.blockers == 0:
            self._ready.append(append)
            if not self._lanes or (
                len(self._lanes) < self._settings.lanes
                and len(self._ready) > self._settings.second_lane_events
            ):
                self._start_lane()

    async def append(self, append: PreparedAppend, timeout: float) -> Appended:
        """Submits and waits at most ``timeout`` seconds.

        Raises:
            DeadlineExceeded: it is not known whether it was or will be written.
            EverstateError: why it was refused, or failed.

        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Appended] = loop.create_future()
        self.submit(append, _FutureWaiter(future), 0, loop.time() + timeout)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise DeadlineExceeded from None

    @property
    def crowded(self) -> bool:
        """Whether at least half of ``max_held_bytes`` waits: then `room` makes streams wait."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Returns when less than half of ``max_held_bytes`` waits."""
        await self._room.wait()

    async def drain(self) -> None:
        """Returns when every append submitted so far has its outcome."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    async def close(self) -> None:
        """Takes no more appends and waits for those that were accepted."""
        self._closed = True
        await self.drain()

    def _start_lane(self) -> None:
        task = asyncio.get_running_loop().create_task(self._run_lane())
        self._lanes.add(task)
        task.add_done_callback(self._lanes.discard)

    async def _run_lane(self) -> None:
        task = asyncio.current_task()
        while True:
            batch = self._take()
            if not batch:
                # Discarded here, not in the callback: a submit before it ran would start no lane.
                if task is not None:
                    self._lanes.discard(task)
                return
            self._settle(*await self._commit(batch))

    def _take(self) -> list[PreparedAppend]:
        """The next batch; appends whose deadline has passed are failed instead."""
        now = asyncio.get_running_loop().time()
        settings = self._settings
        ready = self._ready
        batch: list[PreparedAppend] = []
        late: list[PreparedAppend] = []
        events = size = 0
        while ready:
            append = ready[0]
            if append.deadline and append.deadline <= now:
                late.append(ready.popleft())
                continue
            events += len(append.events)
            size += append.held_bytes
            if batch and (events > settings.max_batch_events or size > settings.max_batch_bytes):
                break
            batch.append(ready.popleft())
        if late:
            error = DeadlineExceeded(
                "the deadline passed while the append waited; it was not written"
            )
            self._settle(late, [error] * len(late))
            if not batch and ready:
                return self._take()
        return batch

    async def _commit(
        self, batch: list[PreparedAppend]
    ) -> tuple[list[PreparedAppend], list[Outcome]]:
        try:
            return batch, await self._execute(batch, self._timeout(batch))
        except OutcomeUnknown as error:
            return await self._again(batch, error)
        except _NOT_THE_BATCHS_FAULT as error:
            return batch, [error] * len(batch)
        except EverstateError as error:
            if len(batch) == 1:
                return batch, [error]
        except Exception:  # A bug of ours must not leave callers waiting for ever.
            log.exception("append batch failed", appends=len(batch))
            return batch, [InternalError()] * len(batch)
        # The transaction was rolled back because of one of them: each alone, so that only that one
        # fails.
        outcomes: list[Outcome] = []
        for append in batch:
            _, outcome = await self._commit([append])
            outcomes += outcome
        return batch, outcomes

    async def _again(
        self, batch: list[PreparedAppend], error: OutcomeUnknown
    ) -> tuple[list[PreparedAppend], list[Outcome]]:
        """The connection broke: what can be recognised is sent once more, the rest is unknown."""
        safe = [append for append in batch if append.retry_safe]
        outcomes: dict[int, Outcome] = {}
        if safe:
            try:
                again = await self._execute(safe, self._timeout(safe))
                outcomes = {
                    id(append): outcome for append, outcome in zip(safe, again, strict=True)
                }
            except EverstateError:
                pass  # Still away: the outcome of the first try stays unknown.
            except Exception:  # As in `_commit`.
                log.exception("append batch failed", appends=len(safe))
        return batch, [outcomes.get(id(append), error) for append in batch]

    def _timeout(self, batch: Iterable[PreparedAppend]) -> float:
        """As long as the most patient waits, but no longer than a commit may take."""
        limit = self._settings.commit_timeout.total_seconds()
        now = asyncio.get_running_loop().time()
        longest = 0.0
        for append in batch:
            if not append.deadline:
                return limit
            longest = max(longest, append.deadline - now)
        return min(limit, max(longest, 0.001))

    def _settle(self, batch: Sequence[PreparedAppend], outcomes: Sequence[Outcome]) -> None:
        last = self._last
        waiters: set[Waiter] = set()
        for append, outcome in zip(batch, outcomes, strict=True):
            self.held_bytes -= append.held_bytes
            for key in append.keys:
                if last[key] is append:
                    del last[key]
            if append.followers:
                for follower in append.followers:
                    follower.blockers -= 1
                    if follower.blockers == 0:
                        self._ready.append(follower)
                append.followers = None
            waiter: Waiter = append.waiter
            waiters.add(waiter)
            waiter.done(append, outcome)
        self.waiting -= len(batch)
        if self.held_bytes < self._settings.max_held_bytes // 2:
            self._room.set()
        for waiter in waiters:
            waiter.flush()
