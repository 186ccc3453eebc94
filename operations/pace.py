"""What operations look at to see whether others suffer: projections' lag, and nodes' figures."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from kernel.database import Database
from kernel.errors import EverstateError
from kernel.members import list_members
from operations.throttle import Lag, Lags, Limits, Writers
from projections.control import list_projections

log = structlog.get_logger(__name__)

_LAG_S: Final = 1.0
_NODES_S: Final = 5.0
_PAGE: Final = 1_000
COMMIT_P99: Final = "everstate_commit_p99_seconds"
"""The figure that nodes keep among their vitals."""


class Pace:
    """Looks now and then, however many operations ask. What cannot be looked at stops nothing."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._lags = Lags(limits)
        self._waits = ""
        self._writers = Writers()
        self._lag_at = self._nodes_at = float("-inf")

    async def lag(self) -> str:
        """Which live projection operations have to wait for; empty: none."""
        now = asyncio.get_running_loop().time()
        if now - self._lag_at >= _LAG_S:
            self._lag_at = now
            try:
                rows = await list_projections(self._database, limit=_PAGE, timeout=5)
                going = [
                    Lag(row.name, row.position, row.lag_seconds)
                    for row in rows
                    if not row.paused and not row.halted
                ]
                self._waits = self._lags.waits(going, now)
            except EverstateError as error:
                log.warning("the lag of projections is not known", reason=error.message)
                self._waits = ""
        return self._waits

    async def waits(self) -> str:
        """Why operations have to stand still for a moment; empty: they do not."""
        reason = await self.lag()
        if reason:
            return reason
        await self.appends_slower()
        return "appends are slow; it is looked what they are without it" * self._writers.quiet

    async def appends_slower(self) -> float:
        """How many times slower the slowest node's commits are than without operations.

        Nodes keep their figures every ten seconds, so this follows slowly; a step's own commit
        tells at once.
        """
        now = asyncio.get_running_loop().time()
        if now - self._nodes_at >= _NODES_S:
            self._nodes_at = now
            try:
                members = await list_members(self._database)
            except EverstateError:
                return self._writers.slower
            slowest = max(
                (m.figures.get(COMMIT_P99, 0.0) for m in members if m.kind == "node" and m.alive),
                default=0.0,
            )
            self._writers.seen(slowest, now)
        return self._writers.slower
