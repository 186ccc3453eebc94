"""Operations of entity kinds: a step acts on some of the items, in their order, or back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from kernel import telemetry
from kernel.database import Connection
from kernel.errors import InternalError, LeaseLost, OutcomeUnknown, Unavailable
from operations import planner, store
from operations.execution import PASSING, Changed, Execution, Surroundings, code_of
from operations.kinds import PROMPT
from operations.kinds.base import Context, EntityKind, Seals, Shares
from operations.model import Item, ItemState, OperationRow, Outcome, State
from operations.store import Locked
from operations.throttle import Throttle

log = structlog.get_logger(__name__)

IN_A_ROW: Final = 100
"""So many items that fail one after another end the operation: it is not the items' fault."""
_PAGE: Final = 2_000
_TRIES: Final = 3
_TRIES_ALONE: Final = 2
_TRIES_SLOW: Final = 8
"""An item alone that the database takes too long for, so often, is at fault itself: the rests
between are half a minute together, and all else the database answered."""
_SEALED_S: Final = 1
"""So long a worker that is stopped in the middle of it may hold what appends wait for."""
_PREPARING_S: Final = 0.5
_PAUSE_S: Final = 0.2
_LAG_PAUSE_S: Final = 0.5
_FORWARDS: Final = frozenset({ItemState.DONE, ItemState.SKIPPED, ItemState.FAILED})
_BACKWARDS: Final = frozenset({ItemState.UNDONE, ItemState.NOT_UNDONE})


class EntityExecution(Execution):
    """Runs an operation of an entity kind."""

    def __init__(self, around: Surroundings, operation_id: str, kind: EntityKind) -> None:
        super().__init__(around, operation_id, kind.name)
        self._kind = kind
        self._throttle: Throttle | None = None
        self._most: int | None = None
        """While a step that failed is taken apart: no more items than this."""
        self._step_failures = 0
        self._slow = 0
        self._prepared_s = 0.0
        self._failed_in_a_row = 0
        self._waits = ""

    async def drift(self, row: OperationRow, context: Context) -> float:
        """What the planner finds when it looks again; of one that has begun, at what is left."""
        left = None
        if row.started_at is not None:
            left = {ItemState.PLANNED, *([ItemState.FAILED] * row.retrying)}
        return await planner.drift(context, self._kind, row, self._all_items(), left)

    async def _all_items(self) -> AsyncIterator[Sequence[Item]]:
        after, clock = 0, asyncio.get_running_loop().time
        began = clock()
        while page := await store.items(self.database, self.operation_id, None, after, _PAGE):
            yield page
            after = page[-1].no
            # Looking again costs what the plan did: writers get their share of it too.
            await self.rest((clock() - began) * (1 / self.around.limits.duty - 1))
            began = clock()

    async def step(self, row: OperationRow) -> bool:
        """One transaction over the next items; whether there are more."""
        throttle = self._throttle
        if throttle is None:
            throttle = self._throttle = Throttle(
                self._kind.step_items, row.rate, self.around.limits
            )
        context = await self.context(row)
        reason = "" if row.kind in PROMPT else await self.around.pace.waits()
        if reason:
            await self.say_waiting(row, reason)
            await self.rest(_LAG_PAUSE_S)
            return True
        items = await self._next(row, self._most or throttle.size)
        if not items:
            await self._finish(row)
            return False
        try:
            acted, seconds, commit = await self._act(row, items, context)
        except (Changed, LeaseLost):
            raise
        except PASSING as error:
            await self._be_smaller(row, items, error)
            raise
        except Exception as error:  # noqa: BLE001 - whatever a kind may raise
            await self._take_apart(row, items, error)
            return True
        self._step_failures = self._slow = 0
        if self._most is not None:
            self._most = self._most * 2 if self._most < throttle.size else None
        slower = await self.around.pace.appends_slower()
        rest = throttle.settled(acted, seconds, commit, writers_slower=slower)
        self._waits = rest.reason  # the next step writes it
        if rest.reason:
            self.count_waiting(rest.reason)
        await self.rest(rest.seconds + self._prepared_s * (1 / self.around.limits.duty - 1))
        return True

    async def _be_smaller(self, row: OperationRow, items: Sequence[Item], error: Exception) -> None:
        """Asks less of a database that is slow or away. It is not the items' fault, unless it is
        one item, again and again.
        """
        self._most = max(len(items) // 2, 1)
        if self._throttle is not None:
            self._throttle.failed()
        alone = len(items) == 1 and not isinstance(error, Unavailable | OutcomeUnknown)
        self._slow = self._slow + 1 if alone else 0
        if self._slow >= _TRIES_SLOW:
            self._slow = 0
            await self._give_up(row, items[0], code_of(error))
            raise Changed from error

    async def _next(self, row: OperationRow, count: int) -> list[Item]:
        if row.state is State.UNDOING:
            return await store.items_done(self.database, row.id, row.cursor, count)
        states = [ItemState.PLANNED] + [ItemState.FAILED] * row.retrying
        return await store.items(self.database, row.id, states, row.cursor, count)

    async def _act(
        self, row: OperationRow, items: Sequence[Item], context: Context
    ) -> tuple[int, float, float]:
        """Does a step; how many items it had, seconds of the transaction and of its commit."""
        undoing = row.state is State.UNDOING
        clock = asyncio.get_running_loop().time
        began = clock()
        prepared = None if undoing else await self._prepare(items, context)
        self._prepared_s = clock() - began
        if not undoing and isinstance(self._kind, Shares):
            items = items[: self._kind.share(items, prepared)]
        began = clock()
        async with self.changing(row) as (connection, locked):
            outcomes = (
                await self._kind.undo(connection, items, context)
                if undoing
                else await self._kind.apply(connection, items, prepared, context)
            )
            _check(items, outcomes, undoing=undoing)
            in_a_row = await self._keep(connection, locked, items, outcomes)
            if isinstance(self._kind, Seals):
                await self.fence(connection)
                await connection.execute(
                    f"SET LOCAL idle_in_transaction_session_timeout = '{_SEALED_S}s'"
                )
                await self._kind.seal(connection, items, outcomes, context)
            written = clock()
        ended = clock()
        self._failed_in_a_row = in_a_row
        telemetry.operation_step_seconds.labels(row.kind).observe(ended - began)
        for state, count in Counter(outcome.state for outcome in outcomes).items():
            telemetry.operation_items.labels(row.kind, state.name.lower()).inc(count)
        return len(items), ended - began, ended - written

    async def _prepare(self, items: Sequence[Item], context: Context) -> Any:
        """What a kind does before the transaction; given up when somebody wishes a stop.

        Raises:
            Changed: look again.

        """
        task = asyncio.ensure_future(self._kind.prepare(items, context))
        try:
            while not (await asyncio.wait({task}, timeout=_PREPARING_S))[0]:
                if self._stopping.is_set() or await self.wished():
                    raise Changed
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(
        self,
        connection: Connection,
        locked: Locked,
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        *,
        lost: bool = False,
    ) -> int:
        """Writes what became of items, and ends the operation when too many fail in a row: so many
        failed at the end of the step. ``lost``: their step could not be done at all.
        """
        row = locked.row
        await store.settle(connection, self.database.schema, row.id, outcomes)
        changed = replace(counted(row, items, outcomes), waits=self._waits)
        in_a_row, reason = self._failed_in_a_row, ""
        for outcome in outcomes:
            in_a_row = in_a_row + 1 if lost or outcome.state is ItemState.FAILED else 0
            reason = outcome.reason
            if in_a_row >= IN_A_ROW:
                break
        if in_a_row >= IN_A_ROW:
            error = {
                "code": "ITEMS_FAILED",
                "message": f"{in_a_row} items failed one after another, the last one: {reason}",
            }
            await self.end(connection, locked, changed, State.FAILED, error)
        else:
            await self.save(connection, changed)
        return in_a_row

    async def _take_apart(self, row: OperationRow, items: Sequence[Item], error: Exception) -> None:
        """Tries a step again, then halves of it, until one item is left that cannot be done."""
        self._step_failures += 1
        code = code_of(error)
        log.warning("step failed", operation=row.id, items=len(items), first=items[0].no, code=code)
        if self._throttle is not None:
            self._throttle.failed()
        tries = _TRIES if self._most is None else _TRIES_ALONE if len(items) == 1 else 1
        if self._step_failures < tries:
            await self.rest(_PAUSE_S * self._step_failures)
            return
        self._step_failures = 0
        self._most = max(len(items) // 2, 1)
        if len(items) == 1:
            await self._give_up(row, items[0], code)

    async def _give_up(self, row: OperationRow, item: Item, code: str) -> None:
        """Keeps that an item cannot be done."""
        lost = ItemState.NOT_UNDONE if row.state is State.UNDOING else ItemState.FAILED
        in_a_row = 0
        async with self.changing(row) as (connection, locked):
            in_a_row = await self._keep(
                connection, locked, [item], [Outcome(item.no, lost, code)], lost=True
            )
        self._failed_in_a_row = in_a_row
        telemetry.operation_items.labels(row.kind, lost.name.lower()).inc()

    async def _finish(self, row: OperationRow) -> None:
        if row.state is State.UNDOING:
            await self.finish(row, State.UNDONE)
        elif row.failed and not row.done and not row.skipped:
            error = {"code": "ITEMS_FAILED", "message": "every item failed"}
            await self.finish(row, State.FAILED, error)
        else:
            await self.finish(row, State.DONE)


def counted(row: OperationRow, items: Sequence[Item], outcomes: Sequence[Outcome]) -> OperationRow:
    """A row after a step: its cursor and its counts."""
    by_no = {item.no: item for item in items}
    after = Counter(outcome.state for outcome in outcomes)
    before = Counter(item.state for item in items)
    done = [by_no[o.no] for o in outcomes if o.state is ItemState.DONE]
    if row.state is State.UNDOING:
        return replace(row, cursor=items[-1].no - 1, undone=row.undone + after[ItemState.UNDONE])
    return replace(
        row,
        cursor=items[-1].no,
        done=row.done + after[ItemState.DONE],
        skipped=row.skipped + after[ItemState.SKIPPED],
        failed=row.failed + after[ItemState.FAILED] - before[ItemState.FAILED],
        events=row.events + sum(item.events for item in done),
        bytes=row.bytes + sum(item.bytes for item in done),
    )


def _check(items: Sequence[Item], outcomes: Sequence[Outcome], *, undoing: bool) -> None:
    """A kind that says nothing of an item, or twice, would make the receipt wrong."""
    if sorted(o.no for o in outcomes) != sorted(item.no for item in items):
        raise InternalError(f"{len(items)} items have {len(outcomes)} outcomes, not one each")
    allowed = _BACKWARDS if undoing else _FORWARDS
    if any(outcome.state not in allowed for outcome in outcomes):
        raise InternalError("an item has an outcome that its step cannot have")
