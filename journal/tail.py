"""The newest events of a log in memory, for everybody who is caught up.

Events come from three sides and stay in order of position without a gap:

- this process's own commits, as rows, without asking the database;
- other processes' commits: their NOTIFY, or the poll of the head that is the guarantee, says how
  far the log is, and `Tail` reads what it lacks;
- own commits that come out of order (two connections commit) or cannot be taken as rows are read
  like those of others.

A position is handed out under the log's lock and every lower one is committed before it, so
whatever is read up to a head is complete: what committed slowly is behind, never between.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import structlog

from journal.rows import EventRow
from kernel import telemetry
from kernel.errors import EverstateError

log = structlog.get_logger(__name__)

Fetch = Callable[[int, int], Awaitable[Sequence[EventRow]]]
"""Reads the events from a first to a last position; may stop short of it."""

ROW_BYTES = 700
"""What a row and its encoded form cost beside twice its payload."""

PACE_SECONDS = 0.0001
"""Pause between two wake-ups, for each waiting subscriber: a delivery costs the node about as much
for each, so with many subscribers events are gathered into fewer, larger messages."""

FETCH = 1_000
"""Positions read at once."""


class Segment:
    """A run of positions. ``encoded`` belongs to whoever encodes it, once for all readers."""

    __slots__ = ("encoded", "first", "last", "rows", "size")

    def __init__(self, first: int, last: int, rows: Sequence[EventRow]) -> None:
        self.first = first
        self.last = last
        self.rows = rows
        self.size = ROW_BYTES * len(rows) + sum(
            2 * len(row[9]) + (2 * len(row[10]) if row[10] else 0) for row in rows
        )
        self.encoded: Any = None


class Tail:
    """The ring of one log; made at a head, it holds what comes after it.

    ``max_bytes`` bounds it; the oldest leave first. `waiter` and `since` are for its readers;
    ``shared`` is what the last of them made of it, for others that want the same. ``lost``: the log
    has gone back behind its head.
    """

    def __init__(self, name: str, head: int, fetch: Fetch, max_bytes: int) -> None:
        self.name = name
        self.head = head
        self.known = head
        self.followers = 0
        self.beats = 0
        self.lost = False
        self.shared: Any = None  # cleared when the tail changes
        self.idle_since = 0.0
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._segments: deque[Segment] = deque()
        self._bytes = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        self._last_wake = 0.0
        self._wake_handle: asyncio.TimerHandle | None = None
        self._filling: asyncio.Task[None] | None = None

    @property
    def first(self) -> int:
        """The lowest position in memory; head + 1 when there is none."""
        return self._segments[0].first if self._segments else self.head + 1

    @property
    def size(self) -> int:
        """Bytes accounted to what is in memory."""
        return self._bytes

    def close(self) -> None:
        """Wakes everybody; reads no more."""
        if self._filling is not None:
            self._filling.cancel()
        if self._wake_handle is not None:
            self._wake_handle.cancel()
        self._wake()

    # What comes in

    def offer(self, first: int, rows: Sequence[EventRow]) -> None:
        """Takes rows of an own commit; those that do not follow the head are read instead."""
        if first == self.head + 1:
            self._add(first, first + len(rows) - 1, rows)
            self._changed()
        else:
            self.reaches(first + len(rows) - 1)

    def reaches(self, head: int) -> None:
        """The log has this head; what is missing here is read."""
        self.known = max(self.known, head)
        if self.known > self.head and self._filling is None:
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        try:
            while self.head < self.known:
                first, last = self.head + 1, min(self.known, self.head + FETCH)
                rows = await self._fetch(first, last)
                if rows:
                    last = rows[-1][0]  # the read may have stopped at its bound of bytes
                if self.head >= first:  # own commits came meanwhile
                    rows = [row for row in rows if row[0] > self.head]
                    first = self.head + 1
                if last >= first:
                    self._add(first, last, rows)
                    self._changed()
        except EverstateError as error:
            self.known = self.head
            log.warning("the tail could not be read; the next poll tries again", log=self.name,
                        reason=error.message)  # fmt: skip
        finally:
            self._filling = None

    def _add(self, first: int, last: int, rows: Sequence[EventRow]) -> None:
        segment = Segment(first, last, rows)
        self._segments.append(segment)
        self._bytes += segment.size
        self.head = last
        self.known = max(self.known, last)
        self.shared = None
        while self._bytes > self._max_bytes and self._segments:
            self._bytes -= self._segments.popleft().size
        telemetry.tail_bytes.labels(self.name).set(self._bytes)

    # What goes out

    def since(self, position: int) -> Iterator[Segment]:
        """The segments that hold a position (not less than `first`) and what comes after it."""
        count = 0
        for segment in reversed(self._segments):  # readers are near the end
            if segment.last < position:
                break
            count += 1
        return itertools.islice(self._segments, len(self._segments) - count, None)

    def waiter(self) -> asyncio.Future[None]:
        """Done at the next change or heartbeat."""
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def beat(self) -> None:
        """Wakes all readers for their heartbeats."""
        self.beats += 1
        self._wake()

    def _changed(self) -> None:
        if self._wake_handle is not None or not self._waiting:
            return
        pause = self._last_wake + PACE_SECONDS * len(self._waiting) - self._loop.time()
        if pause <= 0:
            self._wake()
        else:
            self._wake_handle = self._loop.call_later(pause, self._wake)

    def _wake(self) -> None:
        self._wake_handle = None
        self._last_wake = self._loop.time()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
