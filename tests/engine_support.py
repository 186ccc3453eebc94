"""What tests of operations share: a kind of each family that writes to tables of the test's own.

They are registered while inside of `registered`; production code has no hook for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar

from journal.model import Append, EntityAppend, NewEvent
from journal.store import StoreJournal
from kernel.database import Connection, Database
from kernel.principals import Principal, Role
from operations import control
from operations.kinds import KINDS
from operations.kinds.base import Advance, Candidate, Context, Environment
from operations.model import (
    ENDED,
    Excluded,
    Item,
    ItemState,
    OperationRow,
    Outcome,
    PlanBody,
    Planned,
    PlanRequest,
    Policy,
    Selection,
    State,
)
from operations.runner import Runner, RunnerSettings
from operations.throttle import Limits
from tests.support import eventually_async

ANN = Principal("token", "ann", Role.OPERATOR, key="1")
BEN = Principal("token", "ben", Role.OPERATOR, key="2")
TABLES = """
CREATE TABLE IF NOT EXISTS acted (
  entity_type text, entity_id text, times int NOT NULL, undone int NOT NULL DEFAULT 0,
  PRIMARY KEY (entity_type, entity_id));
CREATE TABLE IF NOT EXISTS acted_order (no bigserial PRIMARY KEY, entity_id text, what text);
"""
FAST = Limits(step_s=1.0, duty=0.99, rest_s=0.01)


class Touch:
    """Counts in a table how often it acted on each entity. Attributes say what goes wrong."""

    name: ClassVar[str] = "touch"
    title: ClassVar[str] = "Touches entities."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    step_items: ClassVar[int] = 10

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.refused: set[str] = set()
        self.left_out: set[str] = set()
        self.skipped: set[str] = set()
        self.changed: set[str] = set()
        self.raises: list[BaseException] = []
        self.before_step: asyncio.Event | None = None
        self.in_step = asyncio.Event()

    def parameters(self, given: Mapping[str, Any]) -> Any:
        return dict(given)

    def describe(self, body: PlanBody, context: Context) -> str:
        return f"Touch {body.items} entities."

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        return [
            Excluded("held") if each.entity_id in self.left_out
            else Planned(each.sequence, each.last_position, each.event_count, 10)
            for each in page
        ]  # fmt: skip

    async def prepare(self, items: Sequence[Item], context: Context) -> Any:
        return len(items)

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        assert prepared == len(items)
        if self.raises:
            raise self.raises.pop(0)
        if self.before_step is not None:
            self.in_step.set()
            await self.before_step.wait()
        outcomes = []
        for item in items:
            if item.entity_id in self.broken:
                raise ValueError("a secret of the payload")
            if item.entity_id in self.refused:
                outcomes.append(Outcome(item.no, ItemState.FAILED, "refused"))
                continue
            if item.entity_id in self.skipped:
                outcomes.append(Outcome(item.no, ItemState.SKIPPED, "changed"))
                continue
            await self._count(connection, item)
            outcomes.append(Outcome(item.no, ItemState.DONE, before={"was": item.sequence}))
        return outcomes

    async def _count(self, connection: Connection, item: Item) -> None:
        await connection.execute(
            "INSERT INTO acted AS a VALUES ($1, $2, 1) ON CONFLICT (entity_type, entity_id)"
            " DO UPDATE SET times = a.times + 1",
            item.entity_type, item.entity_id,
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO acted_order (entity_id, what) VALUES ($1, 'done')", item.entity_id
        )

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        outcomes = []
        for item in items:
            assert item.before == {"was": item.sequence}
            if item.entity_id in self.changed:
                outcomes.append(Outcome(item.no, ItemState.NOT_UNDONE, "changed"))
                continue
            await connection.execute(
                "UPDATE acted SET undone = undone + 1 WHERE entity_type = $1 AND entity_id = $2",
                item.entity_type, item.entity_id,
            )  # fmt: skip
            await connection.execute(
                "INSERT INTO acted_order (entity_id, what) VALUES ($1, 'undone')", item.entity_id
            )
            outcomes.append(Outcome(item.no, ItemState.UNDONE))
        return outcomes


class Count:
    """A task that counts to three in its note, a step a call."""

    name: ClassVar[str] = "count"
    title: ClassVar[str] = "Counts."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    pausable: ClassVar[bool] = True

    def __init__(self) -> None:
        self.drift = 0.0
        self.error: dict[str, Any] | None = None
        self.raises: list[BaseException] = []
        self.cancelled: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.advanced = asyncio.Event()

    def parameters(self, given: Mapping[str, Any]) -> Any:
        return dict(given)

    def describe(self, body: PlanBody, context: Context) -> str:
        return "Count to three."

    async def plan(self, context: Context, target: str) -> AsyncIterator[Item | PlanBody]:
        yield Item(0, entity_id=target, target=3)
        yield PlanBody()

    async def check(self, operation: OperationRow, context: Context) -> float:
        return self.drift

    async def advance(self, operation: OperationRow, context: Context) -> Advance:
        if self.raises:
            raise self.raises.pop(0)
        self.advanced.set()
        if operation.wish == "cancel":
            return Advance(finished=True, done=int(operation.note.get("n", 0)))
        n = int(operation.note.get("n", 0))
        if not self.go_on.is_set():
            return Advance(finished=False, done=n, waits="projection x is 11 s behind")
        return Advance(
            finished=n + 1 >= 3, done=n + 1, events=10 * (n + 1), note={"n": n + 1},
            error=self.error,
        )  # fmt: skip

    async def cancel(self, operation: OperationRow, context: Context) -> None:
        self.cancelled.append(operation.id)

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        n = int(operation.note.get("n", 0)) - 1
        return Advance(finished=n <= 0, done=3 - n, note={"n": n})


@dataclass
class Bench:
    """A database with entities, both kinds, and runners that can be started and stopped."""

    database: Database
    journal: StoreJournal
    touch: Touch = field(default_factory=Touch)
    count: Count = field(default_factory=Count)
    environment: Environment = field(default_factory=Environment)

    async def entities(self, number: int, events: int = 1) -> None:
        """Entities thing/e000, thing/e001, …"""
        for n in range(number):
            await self.journal.append(
                "default",
                Append(
                    (EntityAppend("thing", f"e{n:03}"),),
                    tuple(NewEvent("Happened", b"{}") for _ in range(events)),
                ),
            )

    async def plan(
        self, kind: str = "touch", by: Principal = ANN, *, target: str = "",
        parameters: Mapping[str, Any] | None = None, rate: float | None = None,
        selection: Selection | None = None,
    ) -> OperationRow:  # fmt: skip
        request = PlanRequest(
            kind=kind, selection=selection or Selection(types=("thing",)), target=target,
            parameters=parameters or {}, rate=rate,
        )  # fmt: skip
        return await control.plan(self.database, self.journal, self.environment, request, by)

    async def apply(
        self, row: OperationRow, by: Principal = ANN, reason: str = "a test", typed: str = ""
    ) -> OperationRow:
        return await control.apply(
            self.database, row.id, digest=row.digest, reason=reason, principal=by, typed=typed
        )

    async def get(self, row: OperationRow) -> OperationRow:
        return await control.get(self.database, row.id)

    async def ended(self, row: OperationRow, *, timeout: float = 20) -> OperationRow:
        """The operation once it has ended."""

        async def over() -> bool:
            return (await self.get(row)).state in ENDED

        await eventually_async(over, f"{row.id} ends", timeout)
        return await self.get(row)

    async def until(self, row: OperationRow, state: State) -> OperationRow:
        async def there() -> bool:
            return (await self.get(row)).state is state

        await eventually_async(there, f"{row.id} is {state}")
        return await self.get(row)

    async def done(self, row: OperationRow) -> OperationRow:
        """Applies it and lets a runner run it to its end."""
        await self.apply(row, typed=row.plan["typed"])
        async with self.running():
            return await self.ended(row)

    def runner(self, term: float = 10, limits: Limits = FAST, at_once: int = 2) -> Runner:
        return Runner(
            self.database, self.journal, self.environment,
            RunnerSettings(
                at_once=at_once, term=timedelta(seconds=term), limits=limits,
                look=timedelta(milliseconds=50),
            ),
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def running(self, runner: Runner | None = None) -> AsyncIterator[Runner]:
        """A runner that works while inside."""
        runner = runner or self.runner()
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def times(self) -> dict[str, tuple[int, int]]:
        """How often each entity was acted on, and undone."""
        rows = await self.database.fetch("SELECT entity_id, times, undone FROM acted ORDER BY 1")
        return {row[0]: (row[1], row[2]) for row in rows}

    async def order(self, what: str) -> list[str]:
        rows = await self.database.fetch(
            "SELECT entity_id FROM acted_order WHERE what = $1 ORDER BY no", what
        )
        return [row[0] for row in rows]

    async def audit(self, entity_id: str) -> list[str]:
        """Types of the audit events that wait for an entity of `_system`, in order."""
        rows = await self.database.fetch(
            "SELECT type FROM everstate.audit_outbox WHERE entity_id = $1 ORDER BY no",
            entity_id,
        )
        return [row[0] for row in rows]


@contextlib.contextmanager
def registered(*kinds: Any) -> Iterator[None]:
    """Has kinds among those there are, while inside."""
    assert isinstance(KINDS, dict)
    for kind in kinds:
        KINDS[kind.name] = kind
    try:
        yield
    finally:
        for kind in kinds:
            del KINDS[kind.name]


@contextlib.asynccontextmanager
async def bench(database: Database, journal: StoreJournal) -> AsyncIterator[Bench]:
    """See `Bench`."""
    async with database.connection() as connection:
        await connection.execute(TABLES)
    made = Bench(database, journal)
    with registered(made.touch, made.count):
        yield made
