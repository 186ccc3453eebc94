"""One batch in one transaction: the projection's writes and its checkpoint, exactly once.

The order inside: confine (role, search path), the user's writes, leave, move the checkpoint by
compare and set, `kernel.leases.fence`, commit. Whatever fails before the commit undoes all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from journal.rows import EventRow, Names
from kernel.database import Connection, Database, transaction
from kernel.errors import DeadlineExceeded, Unavailable, Undecodable, UnknownType
from kernel.leases import Lease, fence
from projections import events, store
from projections.builds import search_path
from projections.events import Columns
from projections.model import (
    Definition,
    Projection,
    Segment,
    StatementError,
)
from projections.sqlfile import DELETE_ENTITY
from projections.statements import check_confined
from schemas.descriptors import Decoder

Effect = Callable[[], Awaitable[None]]

APPLY_SECONDS = 60.0
"""How long a batch may take; then it is rolled back and tried again, smaller."""


class Poison(Exception):
    """The batch cannot be applied, and trying again would not help. ``cause``: why."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class TooManyParked(Exception):
    """The build has passed over as many events as it may."""


class Moved(Exception):
    """The segment is not where it was thought to be, or may not be worked on any more."""


@lru_cache(1_000)
def _checked(statement: str) -> str:
    check_confined(statement)
    return statement


class Transaction:
    """`projections.model.Tx` on a connection. Closed when `apply` returns."""

    def __init__(self, connection: Connection, build_schema: str, *, replaying: bool) -> None:
        self._connection = connection
        # A pool's connection serves many builds: a statement prepared for one schema, with its
        # types, must not be taken for another's. It also says in pg_stat_activity whose it is.
        self._prefix = f"/* {build_schema} */ "
        self._replaying = replaying
        self._open = True
        self.effects: list[Effect] = []
        self.failure: BaseException | None = None

    @property
    def replaying(self) -> bool:
        """See `Tx`."""
        return self._replaying

    def close(self) -> None:
        """Nothing can be done with it from now on."""
        self._open = False

    async def _do(self, method: str, statement: str, *args: Any) -> Any:
        if not self._open:
            raise RuntimeError("the transaction is over: apply has returned")
        try:
            _checked(statement)
            text = self._prefix + statement
            return await getattr(self._connection, method)(text, *args)
        except StatementError as error:
            self.failure = self.failure or error
            raise
        except TimeoutError as error:  # the server has ignored its own timeout
            self._connection.terminate()
            self.failure = self.failure or Unavailable("the database does not answer")
            raise self.failure from error
        except Exception as error:
            meaning = store.user_error(error, self._connection, len(self._prefix))
            self.failure = self.failure or meaning
            raise meaning from error

    async def execute(self, statement: str, *args: object) -> None:
        """See `Tx`."""
        await self._do("execute", statement, *args)

    async def executemany(self, statement: str, args: Sequence[Sequence[object]]) -> None:
        """See `Tx`."""
        await self._do("executemany", statement, args)

    async def fetch(self, statement: str, *args: object) -> Sequence[Mapping[str, Any]]:
        """See `Tx`."""
        rows: Sequence[Mapping[str, Any]] = await self._do("fetch", statement, *args)
        return rows

    async def fetchrow(self, statement: str, *args: object) -> Mapping[str, Any] | None:
        """See `Tx`."""
        row: Mapping[str, Any] | None = await self._do("fetchrow", statement, *args)
        return row

    async def fetchval(self, statement: str, *args: object) -> Any:
        """See `Tx`."""
        return await self._do("fetchval", statement, *args)

    def after_commit(self, effect: Effect) -> None:
        """See `Tx`."""
        if not self._replaying:
            self.effects.append(effect)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a segment's batches are written."""

    segment: Segment
    schema_name: str
    role_name: str
    lease: Lease


class Applier:
    """Applies rows as a definition says, inside a transaction that is confined already."""

    def __init__(self, definition: Definition, names: Names, decoder: Decoder) -> None:
        self._names = names
        self._decoder = decoder
        self.stored_types = decoder.upcasters.sources(definition.event_types)
        """The types to ask the log for: also what upcasters make a handled one of. Empty: all."""
        # What goes on in Python between two statements may take as long as `apply` may.
        self.idle_ms = "" if definition.make is None else str(int((APPLY_SECONDS + 15) * 1_000))
        self._wanted = frozenset(definition.event_types)
        self._columns = Columns(definition, names, decoder) if definition.kind == "sql" else None
        self._projection: Projection | None = definition.make() if definition.make else None

    async def prepare(self, rows: Sequence[EventRow]) -> Sequence[Any]:
        """What `apply` wants of rows.

        Raises:
            Poison: a payload cannot be decoded. `Unavailable` and the like: try again.

        """
        await events.prepare(rows, self._names, self._decoder)
        try:
            if self._columns is not None:
                return self._columns.arrays(rows)
            found = [events.project(row, self._names, self._decoder) for row in rows]
        except (Undecodable, UnknownType) as error:
            raise Poison(error) from error
        # What an upcaster made another type of may not be wanted.
        wanted = self._wanted
        return [event for event in found if event.type in wanted] if wanted else found

    def judge(self, row: EventRow, cause: BaseException) -> BaseException:
        """Why an event cannot be applied, when ``cause`` is what applying it failed of: PostgreSQL
        speaks of a payload that is no JSON as of any other wrong value.
        """
        try:
            events.project(row, self._names, self._decoder)
        except (Undecodable, UnknownType) as error:
            return error
        return cause

    async def delete(self, tx: Transaction, entity_type: str, entity_id: str) -> None:
        """Removes what an entity's events left, as the definition says. Raises as `apply`."""
        try:
            if self._columns is not None:
                await tx.execute(DELETE_ENTITY, entity_type, entity_id)
            else:
                assert self._projection is not None
                async with asyncio.timeout(APPLY_SECONDS):
                    await self._projection.delete_entity(entity_type, entity_id, tx)
        except Exception as error:
            raise _judged(tx, error) from error
        finally:
            tx.close()
        if tx.failure is not None:
            raise _judged(tx, tx.failure)

    async def apply(self, tx: Transaction, prepared: Sequence[Any]) -> None:
        """Writes what `prepare` made.

        Raises:
            Poison: it cannot be. `Unavailable`, `DeadlineExceeded`: try again.

        """
        try:
            if not prepared:
                return
            if self._columns is not None:
                await tx.execute(self._columns.statement, *prepared)
            else:
                assert self._projection is not None
                async with asyncio.timeout(APPLY_SECONDS):
                    await self._projection.apply(prepared, tx)
        except Exception as error:
            raise _judged(tx, error) from error
        finally:
            tx.close()
        if tx.failure is not None:  # swallowed: the transaction cannot commit
            raise _judged(tx, tx.failure)


def _judged(tx: Transaction, error: BaseException) -> BaseException:
    """What to raise for a failure of the user's code: the first statement's failure counts."""
    for failure in (tx.failure, error):
        if isinstance(failure, TimeoutError):
            return DeadlineExceeded("applying events did not end in time; nothing was written")
        if isinstance(failure, Unavailable | DeadlineExceeded):
            return failure
    return Poison(error)


def batch_seconds(database: Database) -> float:
    """How long a batch's transaction may take with all that it has to wait for."""
    return APPLY_SECONDS + database.settings.statement_timeout.total_seconds()


async def commit(
    database: Database,
    target: Target,
    applier: Applier | None,
    rows: Sequence[EventRow],
    to: int,
    *,
    replaying: bool,
    parked: Sequence[object] = (),
    state: str | None = None,
) -> list[Effect]:
    """Applies ``rows`` and moves the segment from where it is to ``to``; gives the effects to run.

    Without an ``applier`` only the checkpoint moves. ``parked``: an event to keep as passed over
    (arguments $4… of park.sql). ``state``: the build's, as it is believed to be.

    Raises:
        Poison: the rows cannot be applied. `Moved`: look again where the segment is. `LeaseLost`:
        another worker has it. `OutcomeUnknown`: look whether it was committed. `Unavailable`,
        `DeadlineExceeded`: nothing was written, try again.

    """
    schema, segment = database.schema, target.segment
    prepared = await applier.prepare(rows) if applier is not None and rows else None
    tx: Transaction | None = None
    async with database.connection(writing=True) as connection:
        try:
            async with transaction(connection, batch_seconds(database)):
                if applier is not None and prepared is not None:
                    await store.run(
                        connection, "enter", schema, target.role_name,
                        search_path(target.schema_name), "off" if replaying else "",
                        applier.idle_ms,
                    )  # fmt: skip
                    tx = Transaction(connection, target.schema_name, replaying=replaying)
                    await applier.apply(tx, prepared)
                    await store.run(connection, "leave", schema)
                key = (segment.name, segment.version, segment.build)
                if parked and await store.run(connection, "park", schema, *key, *parked) is None:
                    raise TooManyParked
                moved = await store.run(
                    connection, "advance", schema, *key, segment.segment, segment.position, to,
                    len(rows), state,
                )  # fmt: skip
                if moved is None:
                    raise Moved
                await fence(connection, target.lease, schema)
        except store.CONSTRAINT_ERRORS as error:
            # A constraint that is checked at the commit.
            raise Poison(store.user_error(error, connection)) from error
    return tx.effects if tx is not None else []
