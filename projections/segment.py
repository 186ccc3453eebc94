"""Follows the log for one segment: batches, poison, back-off. The worker holds the lease for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import orjson
import structlog

from journal.model import SubscribeQuery
from journal.rows import EventRow, Names
from journal.subscriptions import Delivery
from kernel import clock, telemetry, usercode
from kernel.database import Database, transaction
from kernel.errors import DeadlineExceeded, EverstateError, LeaseLost
from kernel.leases import Lease, fence
from projections import store
from projections.execute import (
    Applier,
    Effect,
    Moved,
    Poison,
    Target,
    TooManyParked,
    batch_seconds,
    commit,
)
from projections.model import Definition, Segment, StatementError
from projections.store import Runnable
from schemas.descriptors import Decoder

log = structlog.get_logger(__name__)

MAX_PARKED = 10_000
"""Parked events a build may have; one more halts the segment: then it is not the events."""
EFFECT_SECONDS = 30.0
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 5.0
_LOOK_AGAIN = 0.1
_BETWEEN_SECONDS = 0.5
_MESSAGE_CHARS = 2_000


class Feed(Protocol):
    """Where rows come from: `journal.subscriptions.Subscriptions`."""

    def subscribe(self, name: str, query: SubscribeQuery) -> AsyncIterator[Delivery]: ...


class Between(Protocol):
    """What a runner does between two batches: `projections.replay.SegmentReplay`."""

    @property
    def is_due(self) -> bool: ...

    @property
    def ended(self) -> bool: ...

    async def step(self, target: Target) -> int: ...


@dataclass(slots=True)
class Surroundings:
    """What every segment of a worker shares. ``slots``: batches at once, so that none waits for a
    connection until its deadline. ``advance_seconds``: a segment for which nothing came moves its
    checkpoint at most so often.
    """

    database: Database
    feed: Feed
    names: Names
    decoder: Decoder
    worker: str
    slots: asyncio.Semaphore
    advance_seconds: float = 0.25


class SegmentRunner:
    """Applies one segment from its checkpoint on, until it is stopped, halts or loses its lease.

    ``view`` is what the worker saw last of the build; the worker replaces it.
    """

    def __init__(
        self,
        around: Surroundings,
        definition: Definition,
        applier: Applier,
        view: Runnable,
        lease: Lease,
    ) -> None:
        self.view = view
        self.lease = lease
        self.definition = definition
        self.position = view.position
        self.halted = False
        self.failing = ""
        self.between: Between | None = None
        self._around = around
        self._applier = applier
        self._stopping = asyncio.Event()
        self._written_at = 0.0
        self._rate = telemetry.projection_events.labels(view.name, str(view.version))
        self._seconds = telemetry.projection_batch_seconds.labels(view.name)
        self._log = log.bind(
            projection=view.name, version=view.version, build=view.build, segment=view.segment
        )

    @property
    def segment(self) -> Segment:
        """The segment, where it stands."""
        view = self.view
        return Segment(
            view.name, view.version, view.build, view.segment, view.first_slice, view.last_slice,
            self.position,
        )  # fmt: skip

    @property
    def target(self) -> Target:
        """Where its batches go."""
        return Target(self.segment, self.view.schema_name, self.view.role_name, self.lease)

    @property
    def applier(self) -> Applier:
        """What applies its events."""
        return self._applier

    def stop(self) -> None:
        """Ends after the batch it is at."""
        self._stopping.set()

    async def run(self) -> None:
        """Follows the log; returns when it was stopped, halted, or the lease is lost."""
        backoff = _FIRST_BACKOFF
        while not self._stopping.is_set():
            began = self.position
            try:
                found = await store.checkpoint(self._around.database, self.segment)
                self.position, stop, state = found
                # Sooner than the worker's next look: a switch waits for it.
                self.view = self.view._replace(stop_position=stop, state=state)
                began = self.position
                if self._is_at_stop():
                    await self._rest(_LOOK_AGAIN)
                    continue
                await self._follow()
            except LeaseLost:
                self._log.warning("segment lost: another worker has it")
                return
            except Moved:
                # Paused, stopped or switched: the worker sees it at its next look and ends this.
                await self._rest(_LOOK_AGAIN)
            except (EverstateError, OSError) as error:
                if self.position > began:
                    backoff = _FIRST_BACKOFF
                await self._complain(error)
                await self._rest(backoff * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
                backoff = min(backoff * 2, _LONGEST_BACKOFF)
            if self.halted:
                return

    async def _complain(self, error: BaseException) -> None:
        """Says, once, why it does not get on: in the log and, where that is possible, beside the
        checkpoint.
        """
        reason = getattr(error, "message", type(error).__name__)
        if reason != self.failing:
            self._log.warning("segment waits", reason=reason)
            self.failing = reason
            return
        await show_waiting(self._around.database, self.segment, self._described(error))

    def _is_at_stop(self) -> bool:
        stop = self.view.stop_position
        return stop is not None and self.position >= stop

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # Reading

    async def _follow(self) -> None:
        definition = self.definition
        view = self.view
        whole = (view.first_slice, view.last_slice) == (0, 1023)
        query = SubscribeQuery(
            from_position=self.position + 1,
            entity_types=definition.entity_types,
            event_types=self._applier.stored_types,
            slices=() if whole else ((view.first_slice, view.last_slice),),
        )
        async for rows, covered in self._deliveries(query):
            await self._take(rows, covered)
            await self._do_between()
            self.failing = ""
            if self.halted or self._is_at_stop():
                return

    async def _deliveries(
        self, query: SubscribeQuery
    ) -> AsyncIterator[tuple[Sequence[EventRow], int]]:
        """Rows and up to where they cover the log; the next are read while these are applied."""
        deliveries = self._around.feed.subscribe(self.view.log, query)
        stopping: asyncio.Task[Any] = asyncio.create_task(self._stopping.wait())
        coming: asyncio.Task[Any] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.create_task(_next(deliveries))
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    return
                try:
                    delivery: Delivery = await coming
                except StopAsyncIteration:
                    return
                coming = asyncio.create_task(_next(deliveries))
                yield delivery.rows, delivery.next_position - 1
        finally:
            for task in (stopping, coming):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(
                        asyncio.CancelledError, StopAsyncIteration, EverstateError
                    ):
                        await task
            await deliveries.aclose()  # type: ignore[attr-defined] # a generator

    async def _do_between(self) -> None:
        """A share of a replay. Events wait meanwhile, so it gets a part of the time only."""
        if self.between is None or self.halted:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + _BETWEEN_SECONDS
        while self.between.is_due and loop.time() < end and not self._stopping.is_set():
            await self.between.step(self.target)
        if self.between.ended:
            self.between = None

    # Applying

    async def _take(self, rows: Sequence[EventRow], covered: int) -> None:
        """Applies what a delivery brought, cut where the build is to stop and history ends."""
        if covered <= self.position:
            return
        view = self.view
        if view.stop_position is not None and covered > view.stop_position:
            covered = view.stop_position
            rows = [row for row in rows if row[0] <= covered]
        if not rows:
            loop = asyncio.get_running_loop()
            rests = loop.time() - self._written_at >= self._around.advance_seconds
            if rests or covered == view.stop_position:
                await self._commit([], covered)
            return
        history = view.target_position if view.state == "live" else covered
        if self.position < history < covered:
            first = [row for row in rows if row[0] <= history]
            await self._apply(first, history, 1)
            rows = rows[len(first) :]
        if not self.halted:
            await self._apply(rows, covered, 1)

    async def _apply(self, rows: Sequence[EventRow], to: int, attempt: int) -> None:
        """Applies rows and moves to ``to``; finds, by halves, the event that cannot be applied."""
        try:
            await self._commit(rows, to)
        except Poison as poison:
            if len(rows) == 1:
                await self._poisoned(rows[0], poison.cause, to, attempt)
                return
            self._log.debug("batch refused, halving it", events=len(rows))
        except DeadlineExceeded:
            if len(rows) < 2:
                raise
        else:
            return
        middle = len(rows) // 2
        await self._apply(rows[:middle], rows[middle][0] - 1, attempt + 1)
        if not self.halted:
            await self._apply(rows[middle:], to, attempt + 1)

    async def _commit(
        self, rows: Sequence[EventRow], to: int, parked: Sequence[object] = ()
    ) -> None:
        view = self.view
        loop = asyncio.get_running_loop()
        async with self._around.slots:
            began = loop.time()
            effects = await commit(
                self._around.database, self.target, self._applier if rows else None, rows, to,
                replaying=view.state != "live" or to <= view.target_position, parked=parked,
                state=view.state,
            )  # fmt: skip
        self.position = to
        self._written_at = loop.time()
        if rows:
            self._seconds.observe(self._written_at - began)
        self._rate.inc(len(rows))
        for effect in effects:
            await self._run(effect)

    async def _run(self, effect: Effect) -> None:
        try:
            async with asyncio.timeout(EFFECT_SECONDS):
                await effect()
        except Exception as error:  # noqa: BLE001 - the user's; the batch is committed
            self._log.error("an effect failed", error=type(error).__name__)

    # Poison

    async def _poisoned(self, row: EventRow, cause: BaseException, to: int, attempts: int) -> None:
        names = self._around.names
        about = {
            "position": row[0],
            "entity_type": names.entity_types[row[6]],
            "entity_id": row[8],
            "event_type": names.event_types[row[5]].name,
        }
        error = self._described(self._applier.judge(row, cause)) | about
        if self.view.on_poison == "park":
            kept = (
                row[0], self.view.segment, about["entity_type"], about["entity_id"],
                about["event_type"], orjson.dumps(error).decode(), attempts, MAX_PARKED,
            )  # fmt: skip
            try:
                await self._commit([], to, kept)
            except TooManyParked:
                error["message"] = (
                    f"{MAX_PARKED} events are parked, which is the limit; the next failed with:"
                    f" {error['message']}"
                )
            else:
                telemetry.projection_parks.labels(self.view.name, str(self.view.version)).inc()
                self._log.warning("event parked", position=row[0], reason=error["code"])
                return
        await self._halt(row[0] - 1, error)

    async def _halt(self, position: int, error: dict[str, Any]) -> None:
        if position > self.position:
            await self._commit([], position)
        database, view = self._around.database, self.view
        async with (
            database.connection(writing=True) as connection,
            transaction(connection, batch_seconds(database)),
        ):
            done = await store.run(
                connection, "halt", database.schema, view.name, view.version, view.build,
                view.segment, self.position, orjson.dumps(error).decode(),
            )  # fmt: skip
            if done is None:
                raise Moved
            await fence(connection, self.lease, database.schema)
        self.halted = True
        self._log.error("segment halted", position=self.position + 1, reason=error["code"])

    def _described(self, cause: BaseException) -> dict[str, Any]:
        return described(cause, self.definition, self._around.worker)


def described(cause: BaseException, definition: Definition, worker: str) -> dict[str, Any]:
    """The error as it is kept beside the segment or the parked event (never in a log: what
    PostgreSQL says may hold values of the event).
    """
    code, where = "EXCEPTION", usercode.place(cause)
    message = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    extra: dict[str, Any] = {}
    if isinstance(cause, StatementError):
        code, message = "STATEMENT", cause.message
        if cause.sqlstate:
            extra["sqlstate"] = cause.sqlstate
        where = _line(cause, definition) or where
    elif isinstance(cause, EverstateError):
        code, message, where = cause.code, cause.message, ""
    if where:
        extra["where"] = where
    return {
        "code": code, "message": message[:_MESSAGE_CHARS], **extra,
        "at": clock.format_us(clock.now_us()), "worker": worker,
    }  # fmt: skip


def _line(cause: StatementError, definition: Definition) -> str:
    """The line of the `.sql` file that failed, from what PostgreSQL says of the function."""
    if definition.kind != "sql":
        return ""
    found = re.findall(r'SQL function "(\w+)" statement (\d+)', cause.context)
    for function, number in found:
        for handler in definition.handlers:
            if handler.function == function and int(number) <= len(handler.statements):
                line = handler.statements[int(number) - 1].line
                return f"{definition.origin}:{line}"
    return definition.origin


async def show_waiting(database: Database, segment: Segment, error: dict[str, Any]) -> None:
    """Puts beside a checkpoint why nothing goes on there, when that is possible."""
    with contextlib.suppress(EverstateError):
        await database.fetchrow(
            store.statement("waiting", database.schema), segment.name, segment.version,
            segment.build, segment.segment, segment.position, orjson.dumps(error).decode(),
            timeout=2,
        )  # fmt: skip


async def _next(deliveries: AsyncIterator[Delivery]) -> Delivery:
    return await anext(deliveries)


def heartbeat_of(lease_term: timedelta) -> timedelta:
    """How often a worker's subscriptions tell how far the log is when nothing matches."""
    return min(timedelta(milliseconds=500), lease_term / 4)
