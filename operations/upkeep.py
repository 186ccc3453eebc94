"""What workers tidy up: plans that nobody applied, items that nobody needs any more.

Every worker does it; each piece is one short transaction that looks again under the row's lock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from kernel import sql, telemetry
from kernel.database import Connection, Database
from kernel.errors import EverstateError
from operations import audit, machine, store
from operations.model import ENDED, OperationRow, State
from operations.store import Locked

log = structlog.get_logger(__name__)

EVERY: Final = timedelta(seconds=2)
KEPT: Final = timedelta(days=7)
"""How long the items of an operation that cannot be undone are kept after its end."""
UNAPPLIED: Final = timedelta(hours=1)
"""The same for plans that never acted."""
PLANS_KEPT: Final = timedelta(days=1)
"""So long a plan that nobody applied can be looked at after its end; a selection may be large."""
PIECE: Final = 2_000
_AT_ONCE: Final = 20
_PIECES: Final = 50


class Upkeep:
    """The upkeep of operations. ``kept``: see `KEPT`."""

    def __init__(self, database: Database, kept: timedelta = KEPT) -> None:
        self._database = database
        self._kept = kept

    async def run(self, every: timedelta = EVERY) -> None:
        """Does what is due again and again, until it is cancelled."""
        while True:
            try:
                await self.step()
            except EverstateError as error:
                log.warning("operations cannot be looked after", reason=error.message)
            except Exception:
                log.exception("upkeep of operations failed")
            await asyncio.sleep(every.total_seconds() * random.uniform(0.8, 1.2))  # noqa: S311

    async def step(self) -> None:
        """Does some of what is due.

        Raises:
            Unavailable, DeadlineExceeded: the database does not serve.

        """
        for row in await self._fetch("operations_expired", _AT_ONCE):
            await self._expire(f"op-{row[0]}")
        for row in await self._fetch(
            "operations_forgotten", self._kept, min(self._kept, UNAPPLIED), _AT_ONCE
        ):
            await self._forget(f"op-{row[0]}")
        await self._fetch("operations_never_applied", PLANS_KEPT, _AT_ONCE)
        figures = await self._fetch("operations_figures")
        telemetry.operations_state.clear()
        for kind, state, count in figures:
            telemetry.operations_state.labels(kind, state).set(count)

    async def _fetch(self, name: str, *args: object) -> list[Any]:
        statement = sql.load("operations", name, self._database.schema)
        return await self._database.fetch(statement, *args, timeout=10)

    @asynccontextmanager
    async def _changing(self, operation_id: str) -> AsyncIterator[tuple[Connection, Locked]]:
        async with (
            self._database.connection(10, writing=True) as connection,
            connection.transaction(),
        ):
            yield connection, await store.lock(connection, self._database.schema, operation_id)

    async def _expire(self, operation_id: str) -> None:
        schema = self._database.schema
        async with self._changing(operation_id) as (connection, (row, now)):
            if row.state in (State.PLANNED, State.AWAITING) and now >= row.expires_at:
                expired = machine.ended(row, State.EXPIRED, now)
                await store.save(connection, schema, expired)
                await audit.note(connection, schema, expired, "Expired")

    async def _forget(self, operation_id: str) -> None:
        """Deletes items in pieces; from the first piece on nothing can be undone or retried."""
        schema, key = self._database.schema, store.uuid_of(operation_id)
        for _ in range(_PIECES):
            async with self._changing(operation_id) as (connection, (row, now)):
                if not _is_past(row, now, self._kept):
                    return
                gone = await connection.fetchval(
                    sql.load("operations", "items_forget", schema), key, PIECE
                )
                if gone < PIECE:
                    await connection.execute(sql.load("operations", "items_forgotten", schema), key)
                if not row.items_gone:
                    await store.save(connection, schema, replace(row, items_gone=True))
            if gone < PIECE:
                return


def _is_past(row: OperationRow, now: datetime, kept: timedelta) -> bool:
    """Whether nobody needs a row's items any more."""
    if row.state not in ENDED:
        return False
    if row.started_at is None:
        kept = min(kept, UNAPPLIED)
    return now >= (row.undo_until or (row.finished_at or now) + kept)
