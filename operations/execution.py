"""One operation while a worker has it: from queued to its receipt, or back (undo).

Everything that is remembered is in the tables: state and cursor of the operation, state of each
item. A step is one transaction that locks the operation's row, looks whether it is still to go on,
lets the kind act, writes what became of the items, moves the cursor and ends with the lease's
fence. So a step happened wholly or not at all, whoever dies when, and a worker that lost its lease
commits nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from journal.store import StoreJournal
from kernel import clock, telemetry
from kernel.database import Connection, Database, transaction
from kernel.errors import (
    DeadlineExceeded,
    EverstateError,
    InternalError,
    LeaseLost,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from kernel.leases import Lease, fence
from operations import audit, machine, planner, policies, store
from operations.kinds import acts_on_entities, is_task, kind_named
from operations.kinds.base import Context, EntityKind, Environment, TaskKind
from operations.model import OperationRow, State
from operations.pace import Pace
from operations.store import Locked
from operations.throttle import Limits

log = structlog.get_logger(__name__)

STEP_SECONDS: Final = 60.0
"""A step's transaction has ended after this, or is cut."""
_TRIES: Final = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_CONTEXT_S: Final = 1.0
"""So long a context may be used: it knows who needs what."""
_WAITS: Final = frozenset({"projection", "commits", "appends"})
_WORKS: Final = frozenset({State.QUEUED, State.RUNNING, State.UNDOING})
_SLICE_S: Final = 1.0
"""So long it rests without looking whether somebody wishes that it stops."""
PASSING: Final = (Unavailable, DeadlineExceeded, Overloaded, OutcomeUnknown, TimeoutError)
"""What a database that is away, or slow for a while, raises: it is waited for. The row tells what
became of a commit that was not answered."""


@dataclass(slots=True)
class Surroundings:
    """What all operations of a worker share."""

    database: Database
    journal: StoreJournal
    environment: Environment
    limits: Limits
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(self.database, self.limits)


class Changed(Exception):
    """Somebody has changed the operation since it was looked at: look again."""


class Execution(ABC):
    """Runs one operation under a lease. Once `stop` is called, it ends after its step."""

    def __init__(self, around: Surroundings, operation_id: str, kind_name: str) -> None:
        self.around = around
        self.operation_id = operation_id
        self.kind_name = kind_name
        self.database = around.database
        self._stopping = asyncio.Event()
        self._lease: Lease | None = None
        self._context: Context | None = None
        self._context_at = 0.0
        self._failures = 0
        self._first = True
        self._known: OperationRow | None = None
        self._fenced = False

    def stop(self) -> None:
        """Ends after the step under way."""
        self._stopping.set()

    async def run(self, lease: Lease) -> None:
        """Runs the operation until it has ended, stands still, or is somebody else's."""
        self._lease = lease
        while not self._stopping.is_set():
            try:
                if not await self._once():
                    return
                self._failures = 0
            except Changed:
                continue
            except LeaseLost as error:
                log.info("operation left", operation=self.operation_id, reason=error.message)
                return
            except PASSING as error:
                await self._wait_for(error)
            except Exception as error:  # noqa: BLE001 - whatever a kind may raise
                if not await self._survived(error):
                    return

    async def _once(self) -> bool:
        """Goes on by a step; whether there is more to do."""
        row = self._known = await store.fetch(self.database, self.operation_id, self._known)
        if row.state not in _WORKS:
            return False
        if row.wish and not await self.obeyed(row):
            return False
        if row.state is State.QUEUED or (self._first and await self._is_stale(row)):
            await self._start(row)
            self._first = False
            return True
        self._first = False
        return await self.step(row)

    @abstractmethod
    async def drift(self, row: OperationRow, context: Context) -> float:
        """The share of the items that have changed since the plan."""

    @abstractmethod
    async def step(self, row: OperationRow) -> bool:
        """One step; whether there is more to do."""

    async def obeyed(self, row: OperationRow) -> bool:
        """Does what is wished of an operation; whether it goes on."""
        async with self.changing(row) as (connection, locked):
            if row.wish == "pause":
                now = replace(locked.row, state=State.PAUSED, wish="", waits="")
                await self.save(connection, now, "Paused")
            else:
                now = machine.ended(locked.row, State.CANCELLED, locked.now)
                await self.save(connection, now, "Cancelled")
        self._said(now)
        return False

    async def _start(self, row: OperationRow) -> None:
        """Begins, when what it would act on is still what was reviewed."""
        drift = 0.0
        policy = (await policies.get_policy(self.database, row.kind)).policy
        if row.started_at is None or await self._is_stale(row):
            drift = min(await self.drift(row, await self.context(row)), 1.0)
        async with self.changing(row) as (connection, locked):
            if drift > policy.max_drift:
                error = {
                    "code": "DRIFT",
                    "message": f"{drift:.1%} of the items have changed since the plan; "
                    f"the policy allows {policy.max_drift:.1%}",
                }
                now = machine.ended(locked.row, State.REVIEW, locked.now, error)
                await self.save(connection, now, "NeedsReview", drift=drift)
            else:
                started = locked.row.started_at or locked.now
                now = replace(locked.row, state=State.RUNNING, started_at=started, waits="")
                type_ = "Started" if row.started_at is None else "WentOn"
                await self.save(connection, now, type_)
        self._said(now)

    async def _is_stale(self, row: OperationRow) -> bool:
        """Whether it has begun to act and then stood still for longer than a plan is good."""
        if row.started_at is None or row.state is State.UNDOING or is_task(kind_named(row.kind)):
            return False
        policy = (await policies.get_policy(self.database, row.kind)).policy
        return await store.idle(self.database, row.id) > policy.expires_s

    async def finish(
        self, row: OperationRow, state: State, error: Mapping[str, Any] | None = None
    ) -> None:
        """Ends it in a transaction of its own."""
        async with self.changing(row) as (connection, locked):
            await self.end(connection, locked, locked.row, state, error)

    async def end(
        self,
        connection: Connection,
        locked: Locked,
        row: OperationRow,
        state: State,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends it inside of a step's transaction; ``row`` is what else the step changed."""
        now = machine.ended(row, state, locked.now, error)
        await self.save(connection, now, state.value.capitalize(), error=error)
        self._said(now)

    # What every step is made of

    @asynccontextmanager
    async def changing(self, row: OperationRow) -> AsyncIterator[tuple[Connection, Locked]]:
        """A transaction that has the operation's row locked, as ``row`` says it is, and is fenced.

        Raises:
            Changed: it is not as ``row`` says. LeaseLost: it is another worker's.

        """
        schema = self.database.schema
        self._fenced = False
        async with (
            self.database.connection(writing=True) as connection,
            transaction(connection, STEP_SECONDS),
        ):
            locked = await store.lock(connection, schema, self.operation_id, row)
            if _identity(locked.row) != _identity(row):
                raise Changed
            yield connection, locked
            if not self._fenced:
                await self.fence(connection)

    async def fence(self, connection: Connection) -> None:
        """Holds the lease until the transaction ends. `changing` does so at its end; whoever takes
        a lock after it that others wait for, does so before.

        Raises:
            LeaseLost: it is another worker's.

        """
        assert self._lease is not None
        await fence(connection, self._lease, self.database.schema)
        self._fenced = True

    async def save(
        self, connection: Connection, row: OperationRow, type_: str = "", **more: Any
    ) -> None:
        """Writes the row, and its audit event when it is a transition."""
        await store.save(connection, self.database.schema, row)
        if type_:
            await audit.note(connection, self.database.schema, row, type_, **more)

    async def context(self, row: OperationRow, seconds: float = _CONTEXT_S) -> Context:
        """What the kind works with, not older than ``seconds``."""
        now = asyncio.get_running_loop().time()
        if self._context is None or now - self._context_at > seconds:
            self._context = await planner.context_of(
                self.database, self.around.journal, kind_named(row.kind), store.request_of(row),
                self.around.environment, now_us=clock.to_us(row.planned_at),
            )  # fmt: skip
            self._context_at = now
        self._context.operation = row
        return self._context

    async def rest(self, seconds: float) -> None:
        """Waits, but not beyond `stop`, nor much beyond a wish that it pauses or is cancelled."""
        until = asyncio.get_running_loop().time() + seconds
        while (left := until - asyncio.get_running_loop().time()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(left, _SLICE_S))
            if self._stopping.is_set() or (left > _SLICE_S and await self.wished()):
                return

    async def wished(self) -> bool:
        """Whether somebody wishes that it pauses or is cancelled. What cannot be asked is not."""
        with contextlib.suppress(*PASSING):
            row = await store.fetch(self.database, self.operation_id, self._known)
            return bool(row.wish)
        return False

    async def say_waiting(self, row: OperationRow, reason: str) -> None:
        """Keeps why it does not get on."""
        if row.waits != reason:
            self.count_waiting(reason)
            await store.show_waiting(self.database, row.id, reason)

    def count_waiting(self, reason: str) -> None:
        """Counts that it waits, or slows down, by the first word of why."""
        word = reason.split(" ", 1)[0]
        label = word if word in _WAITS else "database"
        telemetry.operation_waits.labels(self.kind_name, label).inc()

    # What goes wrong

    async def _wait_for(self, error: Exception) -> None:
        """Waits ever longer for what may come back: for ever."""
        self._failures += 1
        reason = error.message if isinstance(error, EverstateError) else "the database is slow"
        log.warning("operation waits", operation=self.operation_id, reason=reason)
        with contextlib.suppress(*PASSING, EverstateError):
            await store.show_waiting(self.database, self.operation_id, reason)
        await self.rest(self._pause())

    async def _survived(self, error: Exception) -> bool:
        """Tries again what nobody foresaw, a few times; then the operation has failed."""
        self._failures += 1
        code = code_of(error)
        log.warning("operation failed", operation=self.operation_id, code=code,
                    error=type(error).__name__, tries=self._failures)  # fmt: skip
        if self._failures < _TRIES and not _is_final(error):
            await self.rest(self._pause())
            return True
        try:
            row = await store.fetch(self.database, self.operation_id)
            if row.state in _WORKS:
                await self.finish(row, State.FAILED, error_of(error))
        except Changed:
            return True
        except LeaseLost:
            return False
        except PASSING as worse:
            await self._wait_for(worse)
            return True
        return False

    def _pause(self) -> float:
        return float(min(_FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S))

    def _said(self, row: OperationRow) -> None:
        log.info("operation", operation=row.id, kind=row.kind, state=row.state)
        if row.state not in _WORKS:
            telemetry.operations_ended.labels(row.kind, row.state).inc()


def execution_of(around: Surroundings, operation_id: str, kind_name: str) -> Execution:
    """What runs an operation of a kind.

    Raises:
        InvalidArgument: this process does not know the kind.

    """
    # They extend `Execution`, so they can only be imported once it is there.
    from operations.entities import EntityExecution  # noqa: PLC0415
    from operations.tasks import TaskExecution  # noqa: PLC0415

    kind = kind_named(kind_name)
    if is_task(kind):
        return TaskExecution(around, operation_id, kind)
    assert acts_on_entities(kind)
    return EntityExecution(around, operation_id, kind)


def _identity(row: OperationRow) -> tuple[object, ...]:
    """What must not have changed between looking and acting."""
    return row.state, row.wish, row.cursor, row.retrying, row.done, row.undone


def code_of(error: BaseException) -> str:
    """A code that tells nothing of what is inside of events."""
    if isinstance(error, EverstateError) and not isinstance(error, InternalError):
        return error.code
    return f"INTERNAL ({type(error).__name__})"


def error_of(error: BaseException) -> dict[str, Any]:
    """An error as a receipt keeps it: the message of the error tree, which holds no payloads."""
    said = error.message if isinstance(error, EverstateError) else type(error).__name__
    return {"code": code_of(error), "message": said}


def _is_final(error: Exception) -> bool:
    """Whether trying again makes no sense."""
    return isinstance(error, EverstateError) and error.code in (
        "INVALID_ARGUMENT", "NOT_FOUND", "LOG_NOT_FOUND", "CONFLICT", "PERMISSION_DENIED",
        "CONFIGURATION",
    )  # fmt: skip


__all__ = [
    "Changed", "EntityKind", "Execution", "Surroundings", "TaskKind", "code_of", "error_of",
    "execution_of",
]  # fmt: skip
