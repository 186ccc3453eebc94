"""Operations of task kinds: started in another room, watched until they end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from kernel import telemetry
from operations import store
from operations.execution import Execution, Surroundings
from operations.kinds.base import Advance, Context, TaskKind
from operations.model import ItemState, OperationRow, State

_POLL_S: Final = 0.5
_CONTEXT_S: Final = 5.0
_ADVANCE_S: Final = 120.0


class TaskExecution(Execution):
    """Runs an operation of a task kind."""

    def __init__(self, around: Surroundings, operation_id: str, kind: TaskKind) -> None:
        super().__init__(around, operation_id, kind.name)
        self._kind = kind

    async def drift(self, row: OperationRow, context: Context) -> float:
        """What the kind finds when it looks again."""
        return await self._kind.check(row, context)

    async def obeyed(self, row: OperationRow) -> bool:
        """A pause is between two calls; a cancel is told to the kind, which then ends. An undo is
        left as it is: telling the kind to cancel would stop what was done, not the undo.
        """
        if row.wish == "pause" or row.state is State.UNDOING:
            return await super().obeyed(row)
        if row.started_at is None:  # nothing was begun
            return await super().obeyed(row)
        async with asyncio.timeout(_ADVANCE_S):
            await self._kind.cancel(row, await self.context(row, _CONTEXT_S))
        return True

    async def step(self, row: OperationRow) -> bool:
        """Looks how far it is; whether it goes on."""
        context = await self.context(row, _CONTEXT_S)
        began = asyncio.get_running_loop().time()
        undoing = row.state is State.UNDOING
        async with asyncio.timeout(_ADVANCE_S):
            advance = await (
                self._kind.undo(row, context) if undoing else self._kind.advance(row, context)
            )
        telemetry.operation_step_seconds.labels(row.kind).observe(
            asyncio.get_running_loop().time() - began
        )
        changed = _advanced(row, advance)
        if advance.finished or advance.error is not None or advance.outcomes or changed != row:
            await self._keep(row, advance)
        if advance.finished or advance.error is not None:
            return False
        await self.rest(_POLL_S)
        return True

    async def _keep(self, row: OperationRow, advance: Advance) -> None:
        schema = self.database.schema
        async with self.changing(row) as (connection, locked):
            await store.settle(connection, schema, row.id, advance.outcomes)
            now = _advanced(locked.row, advance)
            if advance.error is not None:
                await self.end(connection, locked, now, State.FAILED, advance.error)
            elif not advance.finished:
                await self.save(connection, now)
            elif row.state is State.UNDOING:
                await store.settle_rest(
                    connection, schema, row.id, ItemState.DONE, ItemState.UNDONE
                )
                await self.end(connection, locked, replace(now, cursor=0), State.UNDONE)
            elif row.wish == "cancel":
                await self.end(connection, locked, now, State.CANCELLED)
            else:
                await store.settle_rest(
                    connection, schema, row.id, ItemState.PLANNED, ItemState.DONE
                )
                await self.end(connection, locked, replace(now, cursor=now.items), State.DONE)


def _advanced(row: OperationRow, advance: Advance) -> OperationRow:
    """A row with what a task says of itself."""
    note = row.note if advance.note is None else dict(advance.note)
    if row.state is State.UNDOING:
        return replace(row, undone=advance.done, note=note, waits=advance.waits)
    return replace(
        row, done=advance.done, skipped=advance.skipped, failed=advance.failed,
        events=advance.events, note=note, waits=advance.waits,
    )  # fmt: skip
