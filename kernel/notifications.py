"""NOTIFY and LISTEN: hints between processes that something happened, never the only way to know.

One connection of its own does both. Announcements are coalesced: one statement is in flight at
most, the newest value of a key wins, and there is a pause between two. A NOTIFY inside a data
transaction would take a cluster-wide lock through its commit (docs/explanation/storage.md), so it
is sent afterwards, and may be lost (a kill, a broken connection): whoever listens also polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from kernel.database import Connection, Database, connect, driver_errors
from kernel.errors import EverstateError

log = structlog.get_logger(__name__)

Heard = Callable[[str, int], None]
"""Takes a key and its value."""

MOST_KEYS = 200
"""Keys of one announcement: its payload stays well under PostgreSQL's 8,000 bytes."""


_REST = 10
"""The pause is this many times as long as the announcement took, if that is longer."""


class Notifications:
    """Announces numbers by key to every process that listens to ``channel``, and hears them.

    ``pause`` is the shortest time between two announcements; the first one after a quiet time goes
    out at once. ``check`` is how often the connection is asked whether it still lives: one that
    died silently is replaced.
    """

    def __init__(
        self,
        database: Database,
        channel: str,
        heard: Heard,
        *,
        pause: timedelta = timedelta(milliseconds=5),
        check: timedelta = timedelta(seconds=5),
    ) -> None:
        self._settings = replace(
            database.settings,
            application_name=f"{database.settings.application_name}-notify",
            statement_timeout=timedelta(seconds=5),
        )
        self.channel = f"{database.schema}_{channel}"
        self._heard = heard
        self._pause = pause.total_seconds()
        self._check = check.total_seconds()
        self._pending: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.listening = asyncio.Event()

    def start(self) -> None:
        """Begins to listen and to announce, in the background."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends both; announcements that wait are dropped."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def announce(self, key: str, value: int) -> None:
        """Tells the others soon; returns at once."""
        self._pending[key] = value
        self._wake.set()

    def _received(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        for item in payload.split(","):
            key, _, value = item.partition("=")
            if value.isdigit():
                self._heard(key, int(value))

    async def _run(self) -> None:
        backoff = 0.1
        while True:
            try:
                connection = await connect(self._settings)
                try:
                    with driver_errors():
                        await connection.add_listener(self.channel, self._received)
                    self.listening.set()
                    backoff = 0.1
                    await self._serve(connection)
                finally:
                    self.listening.clear()
                    connection.terminate()
            except (EverstateError, TimeoutError) as error:
                log.warning("notifications interrupted, polling goes on", reason=str(error))
            await asyncio.sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
            backoff = min(backoff * 2, 5.0)

    async def _serve(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if not self._pending:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._check):
                        await self._wake.wait()
            with driver_errors():
                if not self._pending:
                    await connection.execute("SELECT 1", timeout=self._check)
                    continue
                keys = list(self._pending)[:MOST_KEYS]
                payload = ",".join(f"{key}={self._pending.pop(key)}" for key in keys)
                began = loop.time()
                await connection.execute(
                    "SELECT pg_notify($1, $2)", self.channel, payload, timeout=self._check
                )
            # Commits of the next milliseconds share one announcement; on a busy machine, where it
            # takes long, more of them do: announcing is to cost little beside what it announces.
            await asyncio.sleep(max(self._pause, _REST * (loop.time() - began)))
