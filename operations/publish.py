"""Carries audit events from the outbox to the log `_system`, each once and in order.

One worker at a time does it, under a lease. An event is appended with its id as append id, so one
that was appended before a kill is recognised, and only then deleted from the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from datetime import timedelta
from typing import Any, Final

import orjson
import structlog

from journal.model import (
    ANY,
    JSON,
    NO_ENTITY,
    SYSTEM_LOG,
    Append,
    EntityAppend,
    Expected,
    LoadQuery,
    NewEvent,
)
from journal.store import StoreJournal
from kernel import clock, sql, telemetry
from kernel.database import Database
from kernel.errors import (
    AppendIdReused,
    DeadlineExceeded,
    EntityNotFound,
    EverstateError,
    InvalidArgument,
    LeaseLost,
    Overloaded,
    TooLarge,
    Unavailable,
)
from kernel.ids import new_id
from kernel.leases import TERM, Lease, Leases

log = structlog.get_logger(__name__)

LEASE: Final = "audit"
EVERY: Final = timedelta(milliseconds=500)
_BATCH: Final = 100
_COUNTED: Final = 10_000
_MOST_ASIDE: Final = 10_000
_AGAIN_S: Final = 60.0
"""After this an entity whose append was refused is tried again."""
_PASSING: Final = (Unavailable, DeadlineExceeded, Overloaded, LeaseLost)
"""What says nothing of the event: all wait."""


class Publisher:
    """Publishes audit events until `run` is cancelled."""

    def __init__(
        self, database: Database, journal: StoreJournal, *, name: str = "", term: timedelta = TERM
    ) -> None:
        self._database = database
        self._journal = journal
        self._leases = Leases(database, LEASE, f"{name or 'publisher'}/{new_id()}", term)
        self._lease: Lease | None = None
        self._refused: list[int] = []
        self._aside: dict[tuple[str, str], float] = {}

    async def run(self, every: timedelta = EVERY) -> None:
        """Publishes what there is, again and again, until it is cancelled."""
        try:
            while True:
                more = False
                try:
                    more = await self.step()
                except EverstateError as error:
                    log.warning("audit events wait", reason=error.message)
                except Exception:
                    log.exception("audit events cannot be published")
                if not more:
                    await asyncio.sleep(every.total_seconds() * random.uniform(0.8, 1.2))  # noqa: S311
        finally:
            await asyncio.shield(self.close())

    async def close(self) -> None:
        """Gives the lease back, so that another worker goes on at once."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            with contextlib.suppress(EverstateError):
                await self._leases.release(lease, timeout=2)

    async def step(self) -> bool:
        """Publishes some; whether there may be more now.

        Raises:
            Unavailable, DeadlineExceeded, Overloaded: the database does not serve.

        """
        if not await self._may():
            return False
        self._forgive()
        rows = await self._database.fetch(
            sql.load("operations", "audit_waiting", self._database.schema), _BATCH,
            [kind for kind, _ in self._aside], [name for _, name in self._aside], self._refused,
            timeout=5,
        )  # fmt: skip
        done: list[int] = []
        try:
            for row in rows:
                entity = row["entity_type"], row["entity_id"]
                if entity not in self._aside and await self._publish(row):
                    done.append(row["no"])
        finally:
            if done:
                await self._database.fetch(
                    sql.load("operations", "audit_published", self._database.schema), done,
                    timeout=5,
                )  # fmt: skip
                telemetry.audit_published.inc(len(done))
        await self._count()
        return len(rows) == _BATCH

    async def _may(self) -> bool:
        if self._lease is not None and not await self._leases.renew([self._lease]):
            self._lease = None
        if self._lease is None:
            self._lease = await self._leases.acquire("outbox")
        return self._lease is not None

    async def _count(self) -> None:
        row = await self._database.fetchrow(
            sql.load("operations", "audit_backlog", self._database.schema), _COUNTED, timeout=5
        )
        telemetry.audit_backlog.set(row[0])

    async def _publish(self, row: Any) -> bool:
        """Appends one; whether it is in the log now."""
        try:
            await self._journal.append(SYSTEM_LOG, _append(row, ANY, str(row["audit_id"])))
        except AppendIdReused:
            # It was appended by a version that wrote it in another form.
            return True
        except InvalidArgument as error:
            if error.field != "append_id":
                return self._give_up(row, error)
            try:
                return await self._publish_late(row)
            except _PASSING:
                raise
            except EverstateError as worse:
                return self._set_aside(row, worse)
        except TooLarge as error:
            return self._give_up(row, error)
        except _PASSING:
            raise
        except EverstateError as error:
            return self._set_aside(row, error)
        return True

    async def _publish_late(self, row: Any) -> bool:
        """Appends one that is older than append ids are remembered: it looks whether it is there,
        and appends behind what it saw, so that nothing comes between.
        """
        query = LoadQuery(row["entity_type"], row["entity_id"], ignore_snapshot=True)
        last = NO_ENTITY
        try:
            async for part in self._journal.load(SYSTEM_LOG, query):
                for event in part.events:
                    if event.event_id == str(row["audit_id"]):
                        return True
                    last = event.sequence
        except EntityNotFound:
            last = NO_ENTITY
        await self._journal.append(SYSTEM_LOG, _append(row, last, ""))
        return True

    def _give_up(self, row: Any, error: EverstateError) -> bool:
        """Leaves one in the outbox that the log refuses, so that the others go on."""
        self._say_refused(row, error)
        self._refused = [*self._refused, row["no"]][-_MOST_ASIDE:]
        return False

    def _set_aside(self, row: Any, error: EverstateError) -> bool:
        """Leaves all events of an entity that takes none, in their order, so that those of others
        go on.
        """
        self._say_refused(row, error)
        self._aside[row["entity_type"], row["entity_id"]] = time.monotonic() + _AGAIN_S
        while len(self._aside) > _MOST_ASIDE:
            del self._aside[next(iter(self._aside))]
        return False

    def _forgive(self) -> None:
        now = time.monotonic()
        self._aside = {entity: at for entity, at in self._aside.items() if at > now}

    def _say_refused(self, row: Any, error: EverstateError) -> None:
        telemetry.audit_refused.inc()
        log.error("audit event refused", audit_id=str(row["audit_id"]), reason=error.message)


def _append(row: Any, expected: Expected, append_id: str) -> Append:
    data = orjson.loads(row["data"])
    at = clock.to_us(row["at"])
    payload = orjson.dumps({**data, "principal": row["principal"], "at": clock.format_us(at)})
    return Append(
        (EntityAppend(row["entity_type"], row["entity_id"], expected),),
        (NewEvent(row["type"], payload, JSON, event_id=str(row["audit_id"]), client_time_us=at),),
        append_id,
    )
