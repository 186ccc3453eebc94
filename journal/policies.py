"""Which entity types want a snapshot every so many events: what hints in append replies go by.

A hint is made of sequence numbers and of what is known here, so that the hot path asks nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import timedelta

import structlog

from journal.model import AppendedEntity
from journal.preparation import PreparedAppend
from kernel import sql
from kernel.database import Database
from kernel.errors import EverstateError

log = structlog.get_logger(__name__)

EVERY = timedelta(seconds=3)
"""How often settings are read again: with chance's share and a statement, five seconds at most."""


class SnapshotPolicies:
    """The policies of a database, read again and again in the background (`start`, `close`).

    ``every`` is by entity type; types without a policy are not in it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._task: asyncio.Task[None] | None = None
        self.every: Mapping[str, int] = {}

    def start(self) -> None:
        """Begins to read."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def refresh(self) -> None:
        """Reads them now.

        Raises:
            Unavailable, DeadlineExceeded: the database does not serve; what was known stays.

        """
        statement = sql.load("journal", "snapshot_policies", self._database.schema)
        rows = await self._database.fetch(statement, timeout=1)
        self.every = {row["name"]: row["every"] for row in rows}

    async def _run(self) -> None:
        while True:
            try:
                await self.refresh()
            except EverstateError as error:
                log.debug("policies of snapshots cannot be read", reason=error.message)
            except Exception:
                log.exception("reading the policies of snapshots failed")
            await asyncio.sleep(EVERY.total_seconds() * random.uniform(0.8, 1.2))  # noqa: S311


def with_hints(
    append: PreparedAppend, entities: tuple[AppendedEntity, ...], every: Mapping[str, int]
) -> tuple[AppendedEntity, ...]:
    """The entities of an append, marked where it crossed a multiple and brought no snapshot."""
    brought = {snapshot[0] for snapshot in append.snapshots}
    return tuple(
        entity._replace(snapshot_due=True)
        if (n := every.get(member[0], 0))
        and i not in brought
        and entity.last_sequence // n > (entity.first_sequence - 1) // n
        else entity
        for i, (member, entity) in enumerate(zip(append.members, entities, strict=True))
    )
