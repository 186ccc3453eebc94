"""Deletes snapshots that were removed long ago, a few at a time."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta

import structlog

from kernel import telemetry
from kernel.errors import EverstateError
from snapshots.store import KEPT_REMOVED, SnapshotStore

log = structlog.get_logger(__name__)

EVERY = timedelta(minutes=5)
PIECES = 50
"""So many statements in a row; the rest waits for the next time."""


class Purge:
    """The upkeep of a database's snapshots. Any number of workers may do it at once."""

    def __init__(self, store: SnapshotStore, kept: timedelta = KEPT_REMOVED) -> None:
        self._store = store
        self._kept = kept
        self._after: tuple[datetime, int, int, int] | None = None

    async def run(self) -> None:
        """Does what is due again and again, until it is cancelled."""
        while True:
            try:
                await self.step()
            except EverstateError as error:
                log.warning("removed snapshots cannot be deleted now", reason=error.message)
            await asyncio.sleep(EVERY.total_seconds() * random.uniform(0.8, 1.2))  # noqa: S311

    async def step(self) -> int:
        """Deletes what is due, as far as `PIECES` statements get; returns how many.

        The next time goes on there, so what must stay for long is not in the way of the rest.

        Raises:
            Unavailable, DeadlineExceeded: the database does not serve; what is deleted stays so.

        """
        purged = 0
        for _ in range(PIECES):
            found, self._after = await self._store.purge(self._kept, self._after)
            telemetry.snapshots_purged.inc(found)
            purged += found
            if self._after is None:
                break
        if purged:
            log.info("removed snapshots deleted", snapshots=purged)
        return purged
