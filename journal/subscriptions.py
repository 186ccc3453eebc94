"""Subscriptions: from a position on, catch-up and live without a seam.

A subscription is a position, nothing else. While it is behind what `Tail` has in memory it reads
the database, in short statements; when it has come to the tail it is fed from there, and when what
it wants has left the tail (it reads slowly) it goes back to the database. No event is queued for
a subscriber: a slow one costs what it is being sent, a thousand caught-up ones share the tail.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, Protocol

import structlog

from journal.dictionary import Dictionary
from journal.model import FROM_NOW, ReadQuery, SubscribeQuery
from journal.queries import check_subscribe, check_subscribe_from
from journal.reader import LogRef, Reader
from journal.rows import EventRow, Names, RowBatch
from journal.tail import Segment, Tail
from kernel import sql, telemetry
from kernel.database import Database
from kernel.errors import EverstateError, Unavailable
from kernel.notifications import Notifications

log = structlog.get_logger(__name__)

CHANNEL = "heads"
CATCH_UP = 200_000
"""Positions after which a catch-up says how far it is, though nothing matched."""

MOST_ROWS = 1_000
MOST_BYTES = 512 * 1024
"""What one delivery holds at most, by the tail's count of bytes; one event may exceed it."""


@dataclass(frozen=True, slots=True)
class SubscriptionSettings:
    """``poll``: how often heads are asked for, the guarantee behind NOTIFY. ``heartbeat``: how long
    a caught-up subscriber hears nothing at most. ``tail_bytes``: memory for the newest events, a
    log. ``linger``: how long a tail stays without a subscriber.
    """

    poll: timedelta = timedelta(milliseconds=250)
    heartbeat: timedelta = timedelta(seconds=5)
    tail_bytes: int = 16_000_000
    linger: timedelta = timedelta(seconds=30)
    notifications_check: timedelta = timedelta(seconds=5)


Match = Callable[[EventRow], bool]


class Delivery:
    """What a subscriber gets next; see `journal.model.SubscriptionBatch`.

    ``slices`` are the parts of the tail that it is made of (segment, first and last index + 1), of
    which ``match`` picks (None: all); None: it was read from the database. ``encoded`` is for
    whoever sends it to several.
    """

    __slots__ = (
        "_rows", "caught_up", "encoded", "fell_behind", "first", "head", "match", "next_position",
        "removed", "slices",
    )  # fmt: skip

    def __init__(
        self,
        next_position: int,
        head: int,
        rows: Sequence[EventRow] | None = None,
        removed: tuple[tuple[int, int], ...] = (),
        slices: list[tuple[Segment, int, int]] | None = None,
        match: Match | None = None,
    ) -> None:
        self.next_position = next_position
        self.head = head
        self.removed = removed
        self.slices = slices
        self.match = match
        self.first = 0
        self.caught_up = False
        self.fell_behind = False
        self.encoded: Any = None
        self._rows = rows

    @property
    def rows(self) -> Sequence[EventRow]:
        """The events, in order."""
        if self._rows is None:
            parts = [
                part.rows if (low, high) == (0, len(part.rows)) else part.rows[low:high]
                for part, low, high in self.slices or ()
            ]
            rows: Sequence[EventRow] = parts[0] if len(parts) == 1 else [*chain(*parts)]
            self._rows = rows if self.match is None else [*filter(self.match, rows)]
        return self._rows


class Source(Protocol):
    """What a store gives subscriptions."""

    @property
    def database(self) -> Database: ...
    @property
    def names(self) -> Dictionary: ...
    @property
    def reader(self) -> Reader: ...
    async def open_log(self, name: str, timeout: float | None = None) -> LogRef: ...
    def read_rows(
        self, log: str, query: ReadQuery, timeout: float | None
    ) -> AsyncGenerator[RowBatch, None]: ...


class Subscriptions:
    """The subscriptions of a process; `journal.store.StoreJournal` has one and tells it of commits.

    `start` opens the connection of NOTIFY and LISTEN and begins to poll.
    """

    def __init__(self, source: Source, settings: SubscriptionSettings | None = None) -> None:
        self._source = source
        self.settings = settings or SubscriptionSettings()
        self._tails: dict[str, Tail] = {}
        self._by_id: dict[int, Tail] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._notifications = Notifications(
            source.database, CHANNEL, self._heard, check=self.settings.notifications_check
        )
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        # However many catch up, half of the pool is left for appends and other reads.
        self._reads = asyncio.Semaphore(max(1, source.database.settings.max_connections // 2))

    async def start(self) -> None:
        """Begins to listen and to poll, in the background."""
        self._notifications.start()
        self._task = asyncio.create_task(self._poll())

    async def close(self) -> None:
        """Ends every subscription with `Unavailable`."""
        self.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._notifications.close()

    def stop(self) -> None:
        """Lets no subscription begin or go on."""
        self._closed = True
        for tail in self._tails.values():
            tail.close()

    @property
    def listening(self) -> asyncio.Event:
        """Set while the connection of LISTEN stands."""
        return self._notifications.listening

    @property
    def tails(self) -> Sequence[Tail]:
        """The tails that are kept now."""
        return list(self._tails.values())

    # What is committed

    def is_wanted(self, name: str) -> bool:
        """See `journal.committed.CommitObserver`."""
        return name in self._tails

    def committed(self, name: str, log_id: int, head: int, rows: Sequence[EventRow] | None) -> None:
        """See `journal.committed.CommitObserver`."""
        tail = self._tails.get(name)
        if tail is not None:
            if rows:
                tail.offer(rows[0][0], rows)
            else:
                tail.reaches(head)
        self._notifications.announce(str(log_id), head)

    def _heard(self, key: str, head: int) -> None:
        tail = self._by_id.get(int(key)) if key.isdigit() else None
        if tail is not None:
            tail.reaches(head)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        heads = sql.load("journal", "heads", self._source.database.schema)
        beat_at = loop.time()
        while True:
            await asyncio.sleep(self.settings.poll.total_seconds())
            now = loop.time()
            beats = now - beat_at >= self.settings.heartbeat.total_seconds() / 2
            if beats:
                beat_at = now
            for log_id, tail in list(self._by_id.items()):
                if tail.followers:
                    tail.idle_since = now
                    if beats:
                        tail.beat()
                elif now - tail.idle_since > self.settings.linger.total_seconds():
                    tail.close()
                    del self._by_id[log_id], self._tails[tail.name]
                    telemetry.tail_bytes.labels(tail.name).set(0)
            if not self._by_id:
                continue
            before = {log_id: tail.head for log_id, tail in self._by_id.items()}
            try:
                rows = await self._source.database.fetch(heads, list(self._by_id), timeout=2)
            except EverstateError as error:
                log.warning("heads could not be polled", reason=error.message)
                continue
            except Exception:  # the guarantee behind NOTIFY must not end
                log.exception("heads could not be polled")
                continue
            for log_id, head in rows:
                known = self._by_id.get(log_id)
                if known is None:
                    continue
                if head >= before.get(log_id, 0):
                    known.reaches(head)
                else:
                    # A failover to a replica that lacked commits, or a restore: what readers have
                    # seen is not what the log has. They have to notice.
                    log.error("the head went back", log=known.name, was=known.head, head=head)
                    known.lost = True
                    known.close()
                    del self._by_id[log_id], self._tails[known.name]

    # Reading

    async def _tail(self, name: str) -> Tail:
        async with self._opening.setdefault(name, asyncio.Lock()):
            tail = self._tails.get(name)
            if tail is None:
                ref = await self._source.open_log(name, 5)
                reader = self._source.reader
                _, head = await reader.bounds(ref.log_id, 5)

                async def fetch(first: int, last: int) -> Sequence[EventRow]:
                    rows = await reader.range(ref.log_id, first, last, 10)
                    if not rows and (await reader.bounds(ref.log_id, 10))[1] < last:
                        raise Unavailable(f"the log does not reach position {last} (any more)")
                    return rows

                tail = Tail(name, head, fetch, self.settings.tail_bytes)
                tail.idle_since = asyncio.get_running_loop().time()
                self._tails[name] = self._by_id[ref.log_id] = tail
                # What was committed since the head was read, nobody has told this tail.
                _, head = await reader.bounds(ref.log_id, 5)
                tail.reaches(head)
            return tail

    async def subscribe(self, name: str, query: SubscribeQuery) -> AsyncGenerator[Delivery, None]:
        """The deliveries of a subscription, until it is closed.

        Raises:
            OutOfRange: it would begin beyond head + 1, or before what there is.
            Unavailable: the database is away, or this process stops; go on elsewhere from the last
            ``next_position``.

        """
        check_subscribe(query)
        self._check_open()
        ref = await self._source.open_log(name, 5)
        first, head = await self._source.reader.bounds(ref.log_id, 5)
        position = head + 1 if query.from_position == FROM_NOW else query.from_position or first
        check_subscribe_from(position, first, head)
        if query.from_time_us:
            since = await self._source.reader.position_at(ref.log_id, query.from_time_us, head, 5)
            position = max(position, since)
        tail = await self._tail(name)
        match = matcher(query, self._source.names)
        caught_up = said = False
        beats = tail.beats
        tail.followers += 1
        telemetry.subscribers.labels(name).inc()
        try:
            while True:
                self._check_open()
                if tail.lost:
                    raise Unavailable("the log's head went back (a failover?); look where it is")
                if position > tail.head:
                    if not caught_up:
                        delivery = Delivery(position, tail.head, ())
                        delivery.caught_up = caught_up = said = True
                        yield delivery
                    elif tail.beats == beats:
                        await tail.waiter()
                    else:
                        # Two beats make a heartbeat: who got something since is left alone.
                        beats = tail.beats
                        if not said:
                            yield Delivery(position, tail.head, ())
                        said = False
                elif position >= tail.first:
                    delivery = take(tail, position, match, shared=caught_up)
                    position = delivery.next_position
                    if not caught_up and position > tail.head:
                        delivery.caught_up = caught_up = True
                    elif match is not None and not delivery.rows:
                        continue
                    said = True
                    yield delivery
                else:
                    fell, caught_up = caught_up, False
                    if fell:
                        telemetry.fell_behind.labels(name).inc()
                    async with contextlib.aclosing(self._catch_up(tail, query, position)) as parts:
                        async for delivery in parts:
                            delivery.fell_behind, fell = fell, False
                            position = delivery.next_position
                            delivery.caught_up = caught_up = position > tail.head
                            said = True
                            yield delivery
        finally:
            tail.followers -= 1
            telemetry.subscribers.labels(name).dec()

    async def _catch_up(
        self, tail: Tail, query: SubscribeQuery, position: int
    ) -> AsyncGenerator[Delivery, None]:
        """Reads the database up to where the tail may take over."""
        to = min(tail.head, position + CATCH_UP - 1)
        rows = self._source.read_rows(
            tail.name,
            ReadQuery(
                position, to, entity_types=query.entity_types, event_types=query.event_types,
                slices=query.slices,
            ),
            None,
        )  # fmt: skip
        async with contextlib.aclosing(rows):
            while True:
                self._check_open()
                async with self._reads:
                    batch = await anext(rows, None)
                if batch is None:
                    return
                yield Delivery(
                    batch.next_position, max(batch.head, tail.head), batch.rows, batch.removed
                )
                if batch.next_position >= tail.first:
                    return

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this process stops; go on with another one")


def take(tail: Tail, position: int, match: Match | None, *, shared: bool = False) -> Delivery:
    """What a tail has from a position on, within the bounds of one delivery.

    ``shared``: it is not changed, so that all who ask for the same may get the same.
    """
    if shared and match is None:
        last: Delivery | None = tail.shared
        if last is not None and last.first == position:
            return last
        tail.shared = last = _take(tail, position, None)
        return last
    return _take(tail, position, match)


def _take(tail: Tail, position: int, match: Match | None) -> Delivery:
    slices: list[tuple[Segment, int, int]] = []
    rows = size = 0
    last = position - 1
    for segment in tail.since(position):
        low, high = 0, len(segment.rows)
        if segment.first < position:
            low = next((i for i, row in enumerate(segment.rows) if row[0] >= position), high)
        last = segment.last
        if size + segment.size > MOST_BYTES or rows + high - low > MOST_ROWS:
            if slices:
                last = segment.first - 1
                break
            high = _cut(segment, low, high)
            if high < len(segment.rows):
                last = segment.rows[high][0] - 1
        slices.append((segment, low, high))
        rows += high - low
        size += segment.size
        if last < segment.last:
            break
    delivery = Delivery(last + 1, tail.head, None, (), slices, match)
    delivery.first = position
    return delivery


def _cut(segment: Segment, low: int, high: int) -> int:
    """Where to end within a segment that is too large for one delivery; at least one row is in."""
    size = 0
    for i in range(low, min(high, low + MOST_ROWS)):
        size += len(segment.rows[i][9])
        if size >= MOST_BYTES // 2:
            return i + 1
    return min(high, low + MOST_ROWS)


def matcher(query: SubscribeQuery, names: Names) -> Match | None:
    """Whether a row is selected, by the names of its types; None: every row is."""
    if not (query.entity_types or query.event_types or query.slices):
        return None
    entity_types, event_types = set(query.entity_types), set(query.event_types)
    wanted = bytearray(1024)
    for low, high in query.slices or ((0, 1023),):
        wanted[low : high + 1] = b"\1" * (high - low + 1)
    entity_names, event_names = names.entity_types, names.event_types

    def match(row: EventRow) -> bool:
        return bool(
            wanted[row[7]]
            and (not entity_types or entity_names[row[6]] in entity_types)
            and (not event_types or event_names[row[5]][0] in event_types)
        )

    return match
