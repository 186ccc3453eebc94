"""Maintenance that appends rely on: chunks ahead of need, days of append results.

Every node does it; advisory locks inside the functions keep two from doing it at once, and every
step may be killed and done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import TypeVar

import structlog

from kernel import clock, sql, telemetry
from kernel.database import Database
from kernel.errors import DeadlineExceeded, EverstateError, Unavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)

CHUNKS_AHEAD = 2
MOST_UNCHECKED = 1 << 16
"""Positions after which a moving head brings the next round forward, if a chunk is not smaller."""


async def behind_locks(attempt: Callable[[], Awaitable[T]], timeout: float) -> T:
    """Runs DDL that gives up quickly behind a lock, again and again until ``timeout`` seconds.

    Raises:
        Unavailable: the lock was never free.

    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    pause = 0.01
    while True:
        try:
            return await attempt()
        except Unavailable:
            if loop.time() + pause > end:
                raise
        # Nothing announces that a lock became free; the pause is jittered so that nodes take turns.
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
        pause = min(pause * 1.5, 0.25)


class Maintenance:
    """Keeps `CHUNKS_AHEAD` chunks attached ahead of each log's head, and the days of append
    results.

    ``interval`` is the guarantee; `nudge` brings the next round forward.
    """

    def __init__(
        self,
        database: Database,
        append_id_window: timedelta,
        interval: timedelta = timedelta(seconds=10),
    ) -> None:
        self._database = database
        self._window = append_id_window
        self._interval = interval
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._checked: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._prepared_on: object = None

    async def start(self) -> None:
        """Does one round, then goes on in the background. Raises what the first round raises."""
        await self.round()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops after the step under way."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def nudge(self) -> None:
        """Asks for a round now."""
        self._wake.set()

    def head_moved(self, name: str, head: int) -> None:
        """Nudges when the head has moved far since the last round."""
        if head - self._checked.get(name, 0) > self._steps.get(name, 0):
            self._checked[name] = head
            self._wake.set()

    async def round(self) -> None:
        """Makes what is missing, once."""
        database = self._database
        today = clock.now().date()
        if self._prepared_on != today:
            day = timedelta(days=1)
            statement = sql.load("journal", "prepare_append_results", database.schema)
            # An id as old as the window may fall into the day before it.
            oldest = today - self._window - day
            await behind_locks(
                lambda: database.fetch(statement, oldest, today + 2 * day, date.min), 5
            )
            # Dropping a day needs a stronger lock than making one, and nobody waits for it.
            with contextlib.suppress(Unavailable):
                await behind_locks(lambda: database.fetch(statement, today, today - day, oldest), 1)
            self._prepared_on = today
        ahead = sql.load("journal", "chunks_ahead", database.schema)
        for log_id, name, count, chunk_size in await database.fetch(ahead):
            self._steps[name] = min(chunk_size // 2, MOST_UNCHECKED)
            have = count
            while have < CHUNKS_AHEAD:
                await self.make_chunk(log_id)
                have += 1
            telemetry.chunks_ahead.labels(name).set(have)
        row = await database.fetchrow(sql.load("journal", "xmin_age", database.schema))
        telemetry.xmin_age_seconds.set(row[0])

    async def make_chunk(self, log_id: int) -> None:
        """Attaches the log's next chunk, waiting for locks up to 5 seconds."""
        statement = sql.load("journal", "create_chunk", self._database.schema)
        await behind_locks(lambda: self._database.fetch(statement, log_id), 5)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval.total_seconds()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.round()
            except (Unavailable, DeadlineExceeded) as error:
                log.warning("maintenance put off", reason=error.message)
            except EverstateError as error:
                log.exception("maintenance failed", reason=error.message, code=error.code)
