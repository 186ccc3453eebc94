"""What people do with operations: plan, apply, pause, resume, cancel, retry, undo, look.

Every change locks the operation's row, looks at its state and writes the new one with its audit
event in one transaction; so of two people at once one acts and the other is told. The arrows
between the states are in docs/adr/0015-operations.md. Roles are the caller's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Final
from weakref import WeakKeyDictionary

from journal.store import StoreJournal
from kernel import clock
from kernel.database import Connection, Database
from kernel.errors import Conflict, DeadlineExceeded, InvalidArgument, Overloaded, TooLarge
from kernel.principals import Principal
from operations import audit, machine, policies, store
from operations.kinds import acts_on_entities, is_task, kind_named
from operations.kinds.base import EntityKind, Environment, TaskKind
from operations.model import (
    MAX_ITEMS,
    MAX_PAGE,
    MAX_REASON,
    FailureGroup,
    Item,
    ItemState,
    OperationRow,
    PlanRequest,
    Policy,
    PolicyRow,
    Selection,
    State,
)
from operations.planner import Draft, context_of
from operations.policies import get_policy, list_policies, set_policy
from operations.store import Locked

__all__ = [
    "PlanRequest", "PolicyRow", "apply", "cancel", "failures", "get", "get_policy",
    "list_items", "list_operations", "list_policies", "pause", "plan", "replan", "resume", "retry",
    "set_policy", "undo",
]  # fmt: skip

_PLANS_AT_ONCE: Final = 2
"""Each holds a connection and reads through another one: a pool must not run dry of them."""
_PLAN_WAITS_S: Final = 5.0
_PLAN_S: Final = 120.0
"""A plan that takes longer is given up: it holds one of few places, and its caller may be gone."""
_SIGN_OF_LIFE_S: Final = 3.0
_MIN_RATE: Final = 0.01
_MAX_RATE: Final = 1e6
_CHANGE_S: Final = 10.0
_OPPOSITES: Final = {
    "hold": "release", "release": "hold", "soft-delete": "undelete", "undelete": "soft-delete",
}  # fmt: skip
"""What undo of a kind is, done by another kind: the policy of that one holds for it too."""

_planning: WeakKeyDictionary[Database, asyncio.Semaphore] = WeakKeyDictionary()


# Planning


async def plan(
    database: Database,
    journal: StoreJournal,
    environment: Environment,
    request: PlanRequest,
    principal: Principal,
) -> OperationRow:
    """Finds out what an operation would do and keeps it, with every item; changes nothing else.

    The plan's row and its items appear in one commit, or not at all.

    Raises:
        InvalidArgument: names the field and the limit. NotFound: the log, a type or the target.
        TooLarge: more than `MAX_ITEMS` items. Conflict: the kind cannot act on this now.
        Overloaded: too many plans are being made here. DeadlineExceeded: it took too long.

    """
    kind = kind_named(request.kind)
    if request.rate is not None and not _MIN_RATE <= request.rate <= _MAX_RATE:
        raise InvalidArgument("rate", f"{request.rate:g} is not from 0.01 to 1,000,000")
    if acts_on_entities(kind) and request.target:
        raise InvalidArgument("target", f"{kind.name} acts on entities, and on no target")
    if is_task(kind) and not request.target:
        raise InvalidArgument(
            "target", f"is missing: {kind.name} is about one projection or consumer group"
        )
    policy = (await policies.get_policy(database, request.kind)).policy
    operation_id = store.new_operation()
    schema = database.schema
    try:
        async with _one_of_few(database), asyncio.timeout(_PLAN_S):
            context = await context_of(database, journal, kind, request, environment)
            draft = Draft(context, kind, request.target, request.rate)
            async with database.connection(writing=True) as connection, connection.transaction():
                await _keep_items(connection, schema, operation_id, draft)
                body = draft.body
                could = body.undoable and kind.undoable
                body.undoable = could and policy.undo_s > 0
                if could and not body.undoable:
                    body.warnings.insert(
                        0, f"It cannot be undone: the policy of {kind.name} gives no time for that."
                    )
                body.undo_seconds = policy.undo_s if body.undoable else 0
                await store.create(
                    connection, schema, operation_id, request, body,
                    _to_type(kind, request, policy), draft.digest, context.log_id, context.head,
                    principal.name, timedelta(seconds=policy.expires_s),
                    clock.from_us(context.now_us),
                )  # fmt: skip
                row = (await store.lock(connection, schema, operation_id)).row
                await audit.note(connection, schema, row, "Planned", principal.identity)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the plan was not made within {_PLAN_S:g} s: narrow the selection, by type or by where"
        ) from None
    return row


async def _keep_items(connection: Connection, schema: str, operation_id: str, draft: Draft) -> None:
    """Copies the items as they come: one batch is written while the next one is judged."""
    writing: asyncio.Task[None] | None = None
    count = 0
    try:
        async with aclosing(draft.batches()) as batches:  # type: ignore[type-var]
            while (batch := await _next_batch(batches, connection, writing)) is not None:
                count += len(batch)
                if count > MAX_ITEMS:
                    raise TooLarge("items", count, MAX_ITEMS, "items")
                if writing is not None:
                    await writing
                writing = asyncio.create_task(
                    store.copy_items(connection, schema, operation_id, batch)
                )
        if writing is not None:
            await writing
    finally:
        if writing is not None and not writing.done():
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def _next_batch(
    batches: AsyncIterator[list[Item]], connection: Connection, writing: asyncio.Task[None] | None
) -> list[Item] | None:
    """The next batch; None: there is none. Where millions are judged and few are found it takes
    long, and a transaction that says nothing for a while would be ended by the database.
    """
    coming = asyncio.ensure_future(anext(batches, None))
    try:
        while not (await asyncio.wait({coming}, timeout=_SIGN_OF_LIFE_S))[0]:
            if writing is not None:
                await writing
            await connection.execute("SELECT")
        return await coming
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


def _to_type(kind: EntityKind | TaskKind, request: PlanRequest, policy: Policy) -> str:
    """What has to be typed to apply a plan: what it is about; empty: nothing.

    A selection without a condition is often a slip, so where a kind removes things or changes their
    state, every entity of a log is typed whatever the policy says.
    """
    selection = request.selection
    whole = selection == Selection(selection.log) and acts_on_entities(kind)
    if not (policy.typed or (whole and getattr(kind, "typed_for_all", False))):
        return ""
    if request.target:
        return request.target
    if len(selection.entities) == 1:
        return "/".join(selection.entities[0])
    types = {*selection.types, *(each for each, _ in selection.entities)}
    return min(types) if len(types) == 1 else selection.log


@asynccontextmanager
async def _one_of_few(database: Database) -> AsyncIterator[None]:
    turns = _planning.get(database)
    if turns is None:
        turns = _planning[database] = asyncio.Semaphore(_PLANS_AT_ONCE)
    try:
        async with asyncio.timeout(_PLAN_WAITS_S):
            await turns.acquire()
    except TimeoutError:
        raise Overloaded(
            f"{_PLANS_AT_ONCE} plans are being made here already", timedelta(seconds=2)
        ) from None
    try:
        yield
    finally:
        turns.release()


async def replan(
    database: Database,
    journal: StoreJournal,
    environment: Environment,
    operation_id: str,
    principal: Principal,
) -> OperationRow:
    """Plans the same request anew: another operation with another id.

    Raises:
        NotFound: there is no such operation. And what `plan` raises.

    """
    old = await get(database, operation_id)
    return await plan(database, journal, environment, store.request_of(old), principal)


# Looking


async def get(database: Database, operation_id: str) -> OperationRow:
    """An operation: its plan, how far it is, its receipt.

    Raises:
        InvalidArgument: ``operation_id`` is no id. NotFound: there is no such operation.

    """
    return await store.fetch(database, operation_id)


async def list_operations(
    database: Database,
    *,
    states: Sequence[State] = (),
    kind: str = "",
    before: str | None = None,
    limit: int = 100,
) -> list[OperationRow]:
    """A page of operations, newest first; go on ``before`` the id of the last one.

    Raises:
        InvalidArgument: ``limit`` is not from 1 to 1,000, or ``before`` is no id.

    """
    return await store.page(database, states, kind, before, _limit(limit))


async def list_items(
    database: Database,
    operation_id: str,
    *,
    state: ItemState | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[Item]:
    """A page of an operation's items, in order; go on ``after`` the number of the last one.

    Raises:
        NotFound: there is no such operation. InvalidArgument: ``limit`` is not from 1 to 1,000.

    """
    _limit(limit)
    await get(database, operation_id)
    states = None if state is None else (state,)
    return await store.items(database, operation_id, states, after, limit)


async def failures(database: Database, operation_id: str) -> list[FailureGroup]:
    """Why items were skipped, failed or not undone, most frequent first; at most 100 reasons.

    Raises:
        NotFound: there is no such operation.

    """
    await get(database, operation_id)
    return await store.failures(database, operation_id)


def check_id(field: str, operation_id: str) -> None:
    """Returns when ``operation_id`` is an id of an operation, whether there is one or not.

    Raises:
        InvalidArgument: it is none; names ``field``.

    """
    store.uuid_of(operation_id, field)


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument("limit", f"{limit} is not from 1 to {MAX_PAGE}")
    return limit


# Applying


async def apply(
    database: Database,
    operation_id: str,
    *,
    digest: str,
    reason: str,
    principal: Principal,
    typed: str = "",
    confirmed: bool = False,
) -> OperationRow:
    """Lets an operation do what its plan says; a worker does it. Again is safe: it acts once.

    Where policy wants a second person, the first call leaves it ``awaiting`` and one by another
    principal queues it; by the same one it changes nothing. ``confirmed``: that who applies it
    has read what the plan says must be confirmed.

    Raises:
        InvalidArgument: no reason, or ``typed`` is not what the plan asks for.
        Conflict: another digest, expired, not confirmed, or a state that has no way there.
        NotFound: there is no such operation.

    """
    reason = _reason(reason)
    seen = await get(database, operation_id)
    kind = kind_named(seen.kind)
    counted = acts_on_entities(kind)
    async with _changing(database, operation_id) as (connection, (row, now)):
        policy = await policies.policy_in(connection, database.schema, row.kind)
        machine.check_digest(row, digest)
        if row.state not in (State.PLANNED, State.AWAITING):
            return machine.applied_before(row)
        expired = now >= row.expires_at
        if expired:
            changed = machine.ended(row, State.EXPIRED, now)
            await _write(database, connection, changed, "Expired", audit.ENGINE)
        else:
            machine.check_typed(row, typed, _to_type(kind, store.request_of(row), policy))
            machine.check_confirmed(row, confirmed=confirmed)
            type_ = "Applied" if row.state is State.PLANNED else "Seconded"
            changed = machine.applied(
                row, now, reason, principal, second=policy.second_person,
                empty=row.items == 0 and counted,
            )  # fmt: skip
            if changed is not row:
                await _write(
                    database, connection, changed, type_, principal.identity, reason=reason
                )
    if expired:
        raise Conflict(f"{operation_id} has expired: it was not applied in time; plan anew")
    return await get(database, operation_id)


# Stopping, going on, taking back


async def pause(database: Database, operation_id: str, *, principal: Principal) -> OperationRow:
    """Lets an operation stand still from the next safe point on, until `resume`.

    Raises:
        NotFound: there is none. Conflict: it is not under way, or its kind cannot be paused.

    """
    async with _changing(database, operation_id) as (connection, (row, _)):
        kind = kind_named(row.kind)
        pausable = not is_task(kind) or kind.pausable
        changed = machine.paused(row, pausable=pausable)
        if changed is not row:
            type_ = "Paused" if changed.state is State.PAUSED else "PauseWished"
            await _write(database, connection, changed, type_, principal.identity)
    return await get(database, operation_id)


async def resume(database: Database, operation_id: str, *, principal: Principal) -> OperationRow:
    """Lets a paused operation go on, or takes back a pause that has not come yet.

    Raises:
        NotFound: there is none. Conflict: it is not under way.

    """
    async with _changing(database, operation_id) as (connection, (row, _)):
        changed = machine.resumed(row)
        if changed != row:
            await _write(database, connection, changed, "Resumed", principal.identity)
    return await get(database, operation_id)


async def cancel(database: Database, operation_id: str, *, principal: Principal) -> OperationRow:
    """Ends an operation at the next safe point; what is done stays and may be undone.

    Raises:
        NotFound: there is none. Conflict: it has ended.

    """
    async with _changing(database, operation_id) as (connection, (row, now)):
        told = not acts_on_entities(kind_named(row.kind))
        changed = machine.cancelled(row, now, told=told)
        if changed is not row:
            type_ = "Cancelled" if changed.state is State.CANCELLED else "CancelWished"
            await _write(database, connection, changed, type_, principal.identity)
    return await get(database, operation_id)


async def undo(
    database: Database, operation_id: str, *, reason: str, principal: Principal
) -> OperationRow:
    """Takes back what an operation did, the last item first; a worker does it. Again is safe: what
    an undo has left, it tries once more.

    Raises:
        NotFound: there is none. InvalidArgument: no reason.
        Conflict: it is not over, nothing was done, it can not or no longer be undone, or policy
            wants a second person for what that would be.

    """
    reason = _reason(reason)
    async with _changing(database, operation_id) as (connection, (row, now)):
        counted = acts_on_entities(kind_named(row.kind))
        own = await policies.policy_in(connection, database.schema, row.kind)
        changed = machine.undoing(
            row, now, reason, principal, counted=counted, second=own.second_person
        )
        opposite = _OPPOSITES.get(row.kind)
        if changed is not row and opposite is not None:
            theirs = await policies.policy_in(connection, database.schema, opposite)
            if theirs.second_person:
                raise machine.opposed(row, opposite)
        if changed is not row:
            await _write(
                database, connection, changed, "UndoApplied", principal.identity, reason=reason
            )
    return await get(database, operation_id)


async def retry(database: Database, operation_id: str, *, principal: Principal) -> OperationRow:
    """Tries the failed items of an ended operation once more, and those it did not come to.

    Raises:
        NotFound: there is none. Conflict: it is not over, or nothing failed.

    """
    async with _changing(database, operation_id) as (connection, (row, _)):
        counted = acts_on_entities(kind_named(row.kind))
        changed = machine.retrying(row, counted=counted)
        if changed is not row:
            await _write(database, connection, changed, "Retried", principal.identity)
    return await get(database, operation_id)


def _reason(reason: str) -> str:
    reason = reason.strip()
    if not 1 <= len(reason) <= MAX_REASON:
        raise InvalidArgument("reason", f"has {len(reason)} characters, not 1 to {MAX_REASON:,}")
    return reason


@asynccontextmanager
async def _changing(
    database: Database, operation_id: str
) -> AsyncIterator[tuple[Connection, Locked]]:
    """A transaction that has an operation's row locked."""
    store.uuid_of(operation_id)
    async with database.connection(_CHANGE_S, writing=True) as connection, connection.transaction():
        yield connection, await store.lock(connection, database.schema, operation_id)


async def _write(
    database: Database, connection: Connection, row: OperationRow, type_: str, principal: str,
    **more: object,
) -> None:  # fmt: skip
    await store.save(connection, database.schema, row)
    await audit.note(connection, database.schema, row, type_, principal, **more)
