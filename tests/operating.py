"""What tests of the kinds share: an operation's steps, taken by hand, without the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from journal.model import ANY, Append, EntityAppend, NewEvent
from journal.store import StoreJournal
from kernel import clock
from kernel.database import Connection, Database
from kernel.ids import new_id
from operations.kinds import kind_named
from operations.kinds.base import (
    Advance,
    Candidate,
    Context,
    EntityKind,
    Environment,
    Seals,
    Shares,
    TaskKind,
)
from operations.model import (
    Item,
    ItemState,
    OperationRow,
    Outcome,
    PlanBody,
    Planned,
    Selection,
    State,
)
from snapshots.model import TypeSettings

DEFAULT = Selection()

CANDIDATES = """
SELECT e.entity_key, t.name AS entity_type, e.type_id AS entity_type_id, e.entity_id, e.slice,
  e.state, e.last_seq AS sequence, e.event_count, e.first_position, e.last_position,
  coalesce(m.floor, 1) AS floor, coalesce(m.floor_position, 0) AS floor_position,
  coalesce(m.snapshot_seq, 0) AS floor_snapshot, coalesce(m.held, false) AS held, 0 AS snapshot
FROM everstate.entities e
JOIN everstate.entity_types t ON t.type_id = e.type_id
LEFT JOIN everstate.entity_marks m ON m.log_id = e.log_id AND m.entity_key = e.entity_key
WHERE e.log_id = $1 AND ($2::text[] IS NULL OR e.entity_id = ANY ($2)) ORDER BY e.entity_key
"""


def operation_row(kind: str, **fields: Any) -> OperationRow:
    """An operation that runs."""
    now = datetime.now(UTC)
    given: dict[str, Any] = {
        "id": f"op-{new_id()}", "kind": kind, "state": State.RUNNING, "wish": "",
        "log": "default", "target": "", "selection": {}, "parameters": {}, "plan": {},
        "digest": "", "head": 0, "items": 0, "planned_by": "ann", "planned_at": now,
        "expires_at": now, "applied_by": "bob", "applied_at": now, "reason": "because",
        "seconded_by": None, "seconded_at": None, "started_at": now, "finished_at": None,
        "undo_until": None, "undone_by": None, "undo_reason": None, "rate": None, "cursor": 0,
        "done": 0, "skipped": 0, "failed": 0, "undone": 0, "events": 0, "bytes": 0, "waits": "",
        "note": {}, "error": None, "updated_at": now, "version": 1, "applied_key": None,
        "retrying": False, "items_gone": False,
    }  # fmt: skip
    return OperationRow(**given | fields)


class _Killed(Exception):
    pass


@dataclass
class Operation:
    """An operation on entities, from its plan to its undo. ``steps``: items a transaction."""

    kind: Any
    context: Context
    items: list[Item] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    steps: int = 0

    @property
    def row(self) -> OperationRow:
        assert self.context.operation is not None
        return self.context.operation

    @property
    def sentence(self) -> str:
        """What the plan says."""
        said: str = self.kind.describe(PlanBody(items=len(self.items)), self.context)
        return said

    def said(self) -> dict[str, tuple[str, str]]:
        """Entity → state and reason."""
        return {item.entity_id: (item.state.name, item.reason) for item in self.items}

    async def step(self, connection: Connection, items: Sequence[Item]) -> Sequence[Outcome]:
        """One step, in the connection's transaction."""
        prepared = await self.kind.prepare(items, self.context)
        if isinstance(self.kind, Shares):
            items = items[: self.kind.share(items, prepared)]
        outcomes: Sequence[Outcome] = await self.kind.apply(
            connection, items, prepared, self.context
        )
        await self.seal(connection, items, outcomes)
        return outcomes

    async def seal(
        self, connection: Connection, items: Sequence[Item], outcomes: Sequence[Outcome]
    ) -> None:
        """As the engine ends a step."""
        if isinstance(self.kind, Seals):
            await self.kind.seal(connection, items, outcomes, self.context)

    async def killed(self) -> None:
        """A step whose transaction is rolled back before it commits."""
        with contextlib.suppress(_Killed):
            async with self._tx() as connection:
                await self.step(connection, self.items)
                raise _Killed

    async def apply(self) -> dict[str, tuple[str, str]]:
        """All steps."""
        size = self.steps or self.kind.step_items
        planned = [item for item in self.items if item.state is ItemState.PLANNED]
        while planned:
            async with self._tx() as connection:
                outcomes = await self.step(connection, planned[:size])
            self._settle(outcomes)
            planned = planned[len(outcomes) :]
        return self.said()

    async def undo(self) -> dict[str, tuple[str, str]]:
        """All steps back."""
        done = [item for item in reversed(self.items) if item.state is ItemState.DONE]
        size = self.steps or self.kind.step_items
        for at in range(0, len(done), size):
            async with self._tx() as connection:
                part = done[at : at + size]
                outcomes = await self.kind.undo(connection, part, self.context)
                await self.seal(connection, part, outcomes)
                self._settle(outcomes)
        return self.said()

    def _tx(self) -> Any:
        return transaction(self.context.database)

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        by_no = {item.no: item for item in self.items}
        for outcome in outcomes:
            item = by_no[outcome.no]
            item.state, item.reason = outcome.state, outcome.reason
            if outcome.before is not None:  # as it comes back from the table
                item.before = orjson.loads(orjson.dumps(outcome.before))


class transaction:  # noqa: N801 - reads as a function
    """A transaction on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __aenter__(self) -> Connection:
        self._connecting = self._database.connection(writing=True)
        self._connection = await self._connecting.__aenter__()
        self._transaction = self._connection.transaction()
        await self._transaction.__aenter__()
        return self._connection

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._transaction.__aexit__(*error)
        finally:
            await self._connecting.__aexit__(*error)


async def context_of(
    journal: StoreJournal,
    kind: EntityKind | TaskKind,
    parameters: Mapping[str, Any],
    selection: Selection = DEFAULT,
    **row: Any,
) -> Context:
    """A context by hand."""
    log = await journal.get_log(selection.log)
    opened = await journal.open_log(selection.log)
    return Context(
        database=journal.database, journal=journal, log=selection.log, log_id=opened.log_id,
        head=log.head, selection=selection, parameters=kind.parameters(parameters), settings={},
        needs=(), environment=Environment(),
        operation=operation_row(kind.name, log=selection.log, parameters=parameters, **row),
        now_us=clock.now_us(),
    )  # fmt: skip


async def candidates(context: Context, ids: Sequence[str] | None = None) -> list[Candidate]:
    """The entities of a log, or some of them."""
    rows = await context.database.fetch(CANDIDATES, context.log_id, ids)
    return [Candidate(**row) for row in rows]


async def plan(
    journal: StoreJournal,
    kind: str,
    ids: Sequence[str] | None = None,
    *,
    steps: int = 0,
    row: Mapping[str, Any] | None = None,
    folds: Any = None,
    settings: Mapping[str, TypeSettings] | None = None,
    **parameters: Any,
) -> Operation:
    """Plans an operation on the entities of the log ``default`` with these ids; None: all."""
    of: Any = kind_named(kind)
    context = await context_of(journal, of, parameters, **(row or {}))
    context.environment, context.settings = Environment(folds), settings or {}
    made = Operation(of, context, steps=steps)
    page = await candidates(context, ids)
    for candidate, verdict in zip(page, await of.judge(page, context), strict=True):
        if isinstance(verdict, Planned):
            made.items.append(
                Item(
                    len(made.items) + 1, candidate.entity_key, candidate.entity_type,
                    candidate.entity_type_id, candidate.entity_id, candidate.sequence,
                    verdict.target, verdict.position, verdict.events, verdict.bytes,
                )
            )  # fmt: skip
        else:
            made.excluded[candidate.entity_id] = verdict.reason
    return made


async def put(journal: StoreJournal, *ids: str, events: int = 1, kind: str = "cart") -> None:
    """Appends events to entities, a thousand entities in an append at most."""
    new = tuple(NewEvent("Added", b"{}", event_id=new_id()) for _ in range(events))
    for entity_id in ids:
        await journal.append("default", Append((EntityAppend(kind, entity_id, ANY),), new))


async def put_many(journal: StoreJournal, count: int, kind: str = "cart") -> list[str]:
    """Makes many entities of one event each."""
    ids = [f"e{n:06}" for n in range(count)]
    for at in range(0, count, 500):
        part = ids[at : at + 500]
        await journal.append(
            "default",
            Append(
                tuple(EntityAppend(kind, entity_id, 0) for entity_id in part),
                tuple(
                    NewEvent("Added", b"{}", entity=n, event_id=new_id()) for n in range(len(part))
                ),
            ),
        )
    return ids


async def table(database: Database, name: str, order: str) -> list[str]:
    """All rows of a table, as text with everything in it."""
    rows = await database.fetch(f"SELECT x::text FROM everstate.{name} x ORDER BY {order}")
    return [row[0] for row in rows]


@dataclass
class Task:
    """An operation of a task kind. ``row`` is the operation as the engine would keep it."""

    kind: Any
    context: Context
    items: list[Item]
    body: PlanBody
    row: OperationRow

    @classmethod
    async def plan(
        cls,
        journal: StoreJournal,
        kind: str,
        target: str,
        selection: Selection = DEFAULT,
        rate: float | None = None,
        **parameters: Any,
    ) -> Task:
        of: Any = kind_named(kind)
        context = await context_of(
            journal, of, parameters, selection, target=target, rate=rate, head=0
        )
        items: list[Item] = []
        body = PlanBody()
        async for one in of.plan(context, target):
            if isinstance(one, PlanBody):
                body = one
            else:
                items.append(replace(one, no=len(items) + 1))
        assert context.operation is not None
        row = replace(
            context.operation, items=len(items), head=context.head,
            plan=orjson.loads(orjson.dumps(body)),
        )  # fmt: skip
        context.operation = row
        return cls(of, context, items, body, row)

    async def check(self) -> float:
        """Drift."""
        found: float = await self.kind.check(self.row, self.context)
        return found

    async def advance(self) -> Advance:
        """A call, and what the engine keeps of it."""
        said: Advance = await self.kind.advance(self.row, self.context)
        self._keep(said)
        return said

    async def forgotten(self) -> Advance:
        """A call after which the worker is killed: nothing of it is kept."""
        said: Advance = await self.kind.advance(self.row, self.context)
        return said

    async def cancel(self) -> None:
        """The wish, and the call."""
        self.row = replace(self.row, wish="cancel")
        await self.kind.cancel(self.row, self.context)

    async def undo(self) -> Advance:
        """A call of undo."""
        if self.row.state is not State.UNDOING:
            self.row = replace(self.row, state=State.UNDOING, note={})
        said: Advance = await self.kind.undo(self.row, self.context)
        self._keep(said)
        return said

    def _keep(self, said: Advance) -> None:
        note = self.row.note if said.note is None else orjson.loads(orjson.dumps(said.note))
        if self.row.state is State.UNDOING:
            self.row = replace(self.row, undone=said.done, note=note)
        else:
            self.row = replace(
                self.row, done=said.done, skipped=said.skipped, events=said.events, note=note
            )
        self.context.operation = self.row
