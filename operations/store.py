"""Statements of operations: rows in and out, items in batches. What may be done is decided by
`operations.machine` and by those who run operations; here nothing is judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from kernel import sql
from kernel.database import Connection, Database
from kernel.errors import InternalError, InvalidArgument, NotFound
from kernel.ids import new_id
from operations.model import (
    FailureGroup,
    Item,
    ItemState,
    OperationRow,
    Outcome,
    PlanBody,
    PlanRequest,
    Policy,
    PolicyRow,
    State,
    selection_json,
    selection_of,
)

_ID: Final = re.compile(r"op-([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})")
_COPIED: Final = (
    "operation_id", "no", "entity_key", "entity_type_id", "entity_id", "sequence", "target",
    "position", "events", "bytes",
)  # fmt: skip
_ODD: Final = frozenset({ItemState.SKIPPED, ItemState.FAILED, ItemState.NOT_UNDONE})
MAX_GROUPS: Final = 100


class Locked(NamedTuple):
    """An operation whose row is locked, and the database's time."""

    row: OperationRow
    now: datetime


class Due(NamedTuple):
    """An operation that a worker may take."""

    id: str
    kind: str


def new_operation() -> str:
    """A fresh id."""
    return f"op-{new_id()}"


def uuid_of(operation_id: str, field: str = "id") -> UUID:
    """The UUID inside of an operation's id.

    Raises:
        InvalidArgument: it is not one; names ``field``.

    """
    found = _ID.fullmatch(operation_id)
    if found is None:
        raise InvalidArgument(field, f"{operation_id!r:.60} is not op- and a UUID of version 7")
    return UUID(found[1])


# Operations


async def fetch(
    database: Database,
    operation_id: str,
    known: OperationRow | None = None,
    *,
    timeout: float | None = 10,
) -> OperationRow:
    """One operation. ``known``: the same one of before; then what never changes is taken from it
    (a selection may be megabytes). Raises `InvalidArgument`, `NotFound`.
    """
    rows = await database.fetch(
        sql.load("operations", "operations", database.schema), uuid_of(operation_id), None, None,
        1, known is not None, timeout=timeout,
    )  # fmt: skip
    if not rows:
        raise NotFound(f"there is no operation {operation_id}")
    return _with(_operation(rows[0]), known)


async def seen(
    database: Database, operation_id: str, *, timeout: float | None = 10
) -> tuple[int, State]:
    """Version and state of an operation; the version grows with every change. Raises as `fetch`."""
    row = await database.fetchrow(
        sql.load("operations", "operation_seen", database.schema), uuid_of(operation_id),
        timeout=timeout,
    )  # fmt: skip
    if row is None:
        raise NotFound(f"there is no operation {operation_id}")
    return row["version"], State(row["state"])


def _with(row: OperationRow, known: OperationRow | None) -> OperationRow:
    if known is None:
        return row
    return replace(row, selection=known.selection, parameters=known.parameters, plan=known.plan)


async def page(
    database: Database,
    states: Sequence[State],
    kind: str,
    before: str | None,
    limit: int,
    *,
    timeout: float | None = 10,
) -> list[OperationRow]:
    """Operations, newest first."""
    older = uuid_of(before, "before") if before is not None else None
    wanted = list(states) or None
    if kind:
        rows = await database.fetch(
            sql.load("operations", "operations_of_kind", database.schema), kind, older, wanted,
            limit, timeout=timeout,
        )  # fmt: skip
    else:
        rows = await database.fetch(
            sql.load("operations", "operations", database.schema), None, older, wanted, limit,
            False, timeout=timeout,
        )  # fmt: skip
    return [_operation(row) for row in rows]


async def idle(database: Database, operation_id: str, *, timeout: float | None = 10) -> float:
    """Seconds since an operation that has begun acted last."""
    row = await database.fetchrow(
        sql.load("operations", "operation_idle", database.schema), uuid_of(operation_id),
        timeout=timeout,
    )  # fmt: skip
    return float(row[0]) if row is not None and row[0] is not None else 0.0


async def lock(
    connection: Connection, schema: str, operation_id: str, known: OperationRow | None = None
) -> Locked:
    """An operation, locked until the transaction ends; ``known`` as in `fetch`. Raises
    `InvalidArgument`, `NotFound`.
    """
    row = await connection.fetchrow(
        sql.load("operations", "operation_lock", schema), uuid_of(operation_id), known is not None
    )
    if row is None:
        raise NotFound(f"there is no operation {operation_id}")
    return Locked(_with(_operation(row), known), row["now"])


_NAMES: Final = tuple(field.name for field in fields(OperationRow))
_JSON: Final = frozenset({"selection", "parameters", "plan", "note"})


def _operation(row: Any) -> OperationRow:
    found = {name: row[name] for name in _NAMES if name != "id"}
    for name in _JSON:
        found[name] = orjson.loads(found[name])
    found["error"] = orjson.loads(found["error"]) if found["error"] else None
    found["state"] = State(found["state"])
    return OperationRow(id=f"op-{row['operation_id']}", **found)


def request_of(row: OperationRow) -> PlanRequest:
    """The request that an operation was planned from; ``row`` as `fetch` gives it."""
    return PlanRequest(
        kind=row.kind, selection=selection_of(row.selection), target=row.target,
        parameters=row.parameters, rate=row.rate,
    )  # fmt: skip


async def create(
    connection: Connection,
    schema: str,
    operation_id: str,
    request: PlanRequest,
    body: PlanBody,
    typed: str,
    digest: str,
    log_id: int | None,
    head: int,
    planned_by: str,
    expires: timedelta,
    planned_at: datetime,
) -> None:
    """Keeps a plan; its items are copied beside it in the same transaction."""
    await connection.fetchrow(
        sql.load("operations", "operation_create", schema), uuid_of(operation_id), request.kind,
        log_id, request.target, _json(selection_json(request.selection)),
        _json(dict(request.parameters)), _json({**asdict(body), "typed": typed}), digest, head,
        body.items, planned_by, expires, request.rate, planned_at,
    )  # fmt: skip


async def save(connection: Connection, schema: str, row: OperationRow) -> None:
    """Writes what may change of an operation whose row this transaction has locked."""
    await connection.fetchrow(
        sql.load("operations", "operation_save", schema), uuid_of(row.id), row.state, row.wish,
        row.applied_by, row.applied_at, row.reason, row.seconded_by, row.seconded_at,
        row.started_at, row.finished_at, row.undo_until, row.undone_by, row.undo_reason,
        row.cursor, row.done, row.skipped, row.failed, row.undone, row.events, row.bytes,
        row.waits, _json(row.note), None if row.error is None else _json(row.error),
        row.applied_key, row.retrying, row.items_gone,
    )  # fmt: skip


async def show_waiting(database: Database, operation_id: str, reason: str) -> None:
    """Says why an operation does not get on (empty: it does)."""
    await database.fetchrow(
        sql.load("operations", "operation_waits", database.schema), uuid_of(operation_id), reason,
        timeout=5,
    )  # fmt: skip


async def due(database: Database, limit: int, after: str = "") -> list[Due]:
    """Operations that are to go on and that nobody has, oldest first. ``after``: beyond this."""
    beyond = uuid_of(after) if after else UUID(int=0)
    rows = await database.fetch(
        sql.load("operations", "operations_due", database.schema), limit, beyond, timeout=5
    )
    return [Due(f"op-{row['operation_id']}", row["kind"]) for row in rows]


# Items


async def copy_items(
    connection: Connection, schema: str, operation_id: str, items: Sequence[Item]
) -> None:
    """Keeps a batch of a plan's items."""
    key = uuid_of(operation_id)
    await connection.copy_records_to_table(
        "operation_items", schema_name=schema, columns=_COPIED,
        records=[
            (key, item.no, item.entity_key, item.entity_type_id, item.entity_id, item.sequence,
             item.target, item.position, item.events, item.bytes)
            for item in items
        ],
    )  # fmt: skip


async def items(
    database: Database, operation_id: str, states: Sequence[ItemState] | None, after: int,
    limit: int, *, timeout: float | None = 10,
) -> list[Item]:  # fmt: skip
    """Items in order, those of some states or all."""
    key = uuid_of(operation_id)
    if states is not None and len(states) == 1 and states[0] in _ODD:
        rows = await database.fetch(
            sql.load("operations", "items_odd", database.schema), key, after, int(states[0]),
            limit, timeout=timeout,
        )  # fmt: skip
    else:
        wanted = None if states is None else [int(state) for state in states]
        rows = await database.fetch(
            sql.load("operations", "items", database.schema), key, after, wanted, limit,
            timeout=timeout,
        )  # fmt: skip
    return [_item(row) for row in rows]


async def items_after(
    connection: Connection, schema: str, operation_id: str, after: int, limit: int
) -> list[Item]:
    """Items in order, of all states, inside somebody's transaction."""
    rows = await connection.fetch(
        sql.load("operations", "items", schema), uuid_of(operation_id), after, None, limit
    )
    return [_item(row) for row in rows]


async def items_before(
    connection: Connection, schema: str, operation_id: str, before: int, limit: int
) -> list[Item]:
    """Items backwards, of all states, inside somebody's transaction."""
    rows = await connection.fetch(
        sql.load("operations", "items_before", schema), uuid_of(operation_id), before, limit
    )
    return [_item(row) for row in rows]


async def going(connection: Connection, schema: str, operation_id: str) -> tuple[State, str]:
    """State and wish of an operation; neither changes until the transaction ends."""
    row = await connection.fetchrow(
        sql.load("operations", "operation_going", schema), uuid_of(operation_id)
    )
    if row is None:
        raise NotFound(f"there is no operation {operation_id}")
    return State(row["state"]), row["wish"]


async def items_done(
    database: Database, operation_id: str, up_to: int, limit: int, *, timeout: float | None = 10
) -> list[Item]:
    """Items that are done, the last one first."""
    rows = await database.fetch(
        sql.load("operations", "items_done", database.schema), uuid_of(operation_id), up_to, limit,
        timeout=timeout,
    )  # fmt: skip
    return [_item(row) for row in rows]


def _item(row: Any) -> Item:
    before = row["before"]
    return Item(
        no=row["no"], entity_key=row["entity_key"], entity_type=row["entity_type"],
        entity_type_id=row["entity_type_id"], entity_id=row["entity_id"],
        sequence=row["sequence"], target=row["target"], position=row["position"],
        events=row["events"], bytes=row["bytes"], state=ItemState(row["state"]),
        reason=row["reason"], before=orjson.loads(before) if before is not None else None,
    )  # fmt: skip


async def settle(
    connection: Connection, schema: str, operation_id: str, outcomes: Sequence[Outcome]
) -> None:
    """Keeps what became of items."""
    if not outcomes:
        return
    row = await connection.fetchrow(
        sql.load("operations", "items_settle", schema), uuid_of(operation_id),
        [o.no for o in outcomes], [int(o.state) for o in outcomes], [o.reason for o in outcomes],
        [None if o.before is None else _json(o.before) for o in outcomes],
    )  # fmt: skip
    if row[0] != len(outcomes):
        raise InternalError(f"{len(outcomes)} outcomes are of {row[0]} items")


async def settle_rest(
    connection: Connection, schema: str, operation_id: str, from_: ItemState, to: ItemState
) -> None:
    """Moves all items of a task that are in one state to another one."""
    await connection.execute(
        sql.load("operations", "items_rest_done", schema), uuid_of(operation_id), int(from_),
        int(to),
    )  # fmt: skip


async def failures(
    database: Database, operation_id: str, *, timeout: float | None = 10
) -> list[FailureGroup]:
    """Items that were not done, or not undone, by reason."""
    rows = await database.fetch(
        sql.load("operations", "items_failures", database.schema), uuid_of(operation_id),
        MAX_GROUPS, timeout=timeout,
    )  # fmt: skip
    return [
        FailureGroup(ItemState(row["state"]), row["reason"], row["count"], tuple(row["examples"]))
        for row in rows
    ]


# Policies


async def policies(
    database: Database, kind: str | None = None, *, timeout: float | None = 10
) -> dict[str, PolicyRow]:
    """The policies that were set, by kind."""
    rows = await database.fetch(
        sql.load("operations", "policies", database.schema), kind, timeout=timeout
    )
    return {row["kind"]: _policy(row) for row in rows}


async def policy_in(connection: Connection, schema: str, kind: str) -> Policy | None:
    """The policy that was set for a kind."""
    row = await connection.fetchrow(sql.load("operations", "policies", schema), kind)
    return None if row is None else _policy(row).policy


async def put_policy(
    connection: Connection, schema: str, kind: str, policy: Policy, by: str, version: int | None
) -> bool:
    """Sets a policy; whether it had the wanted version."""
    row = await connection.fetchrow(
        sql.load("operations", "policy_put", schema), kind, _json(asdict(policy)), by, version
    )
    return row is not None


def _policy(row: Any) -> PolicyRow:
    return PolicyRow(
        row["kind"], Policy(**orjson.loads(row["settings"])), row["version"], row["updated_at"],
        row["updated_by"],
    )  # fmt: skip


def _json(value: Mapping[str, Any] | Any) -> str:
    return orjson.dumps(value).decode()
