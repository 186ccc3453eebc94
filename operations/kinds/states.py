"""soft-delete, undelete, tombstone: whether an entity takes events.

Appends read the state under the log's row lock, so that row is locked to change it: by the last
statement of a step (`seal`), of few entities, so that appends wait for little more than the commit.
The marks' locks, which are taken before, keep states and holds from changing until then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from kernel import sql
from kernel.database import Connection
from kernel.errors import InternalError
from operations import marks
from operations.kinds.base import Candidate, Context
from operations.kinds.common import entities, only, running, them, uuid_of
from operations.model import Excluded, Item, ItemState, Outcome, PlanBody, Planned, Policy

ACTIVE, DELETED, TOMBSTONED = 0, 1, 2
_WORDS = {ACTIVE: "active", DELETED: "deleted", TOMBSTONED: "tombstoned"}

STEP_ITEMS = 200
"""Appends wait for the end of a step: this many entities are a few milliseconds."""


class _States:
    """A kind that leaves the states `leaves` for the state `enters`."""

    name: ClassVar[str]
    title: ClassVar[str]
    policy: ClassVar[Policy]
    undoable: ClassVar[bool]
    irreversible: ClassVar[str]
    step_items: ClassVar[int] = STEP_ITEMS
    leaves: ClassVar[frozenset[int]]
    enters: ClassVar[int]
    ends: ClassVar[bool]
    """Whether it ends entities; held ones are not ended."""

    def parameters(self, given: Mapping[str, Any]) -> None:
        """None are taken."""
        only(given, ())

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        raise NotImplementedError

    def _refuse(self, state: int, *, held: bool) -> Excluded | None:
        """Why an entity may not go the way; None: it may."""
        if state not in self.leaves:
            return Excluded(_WORDS[state])
        return Excluded("held") if held and self.ends else None

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """Excluded is what is in another state, and, of kinds that end entities, what is held."""
        return [
            self._refuse(candidate.state, held=candidate.held)
            or Planned(self.enters, events=candidate.event_count)
            for candidate in page
        ]

    async def prepare(self, items: Sequence[Item], context: Context) -> None:
        """Nothing takes long."""

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Judges under the marks' locks, and notes there who sets the states; `seal` sets them."""
        there, states = await self._lock(connection, items, context)
        outcomes: list[Outcome] = []
        going: list[Item] = []
        for item in items:
            mark = there[item.entity_key or 0]
            refused = self._refuse(states[mark.entity_key], held=mark.held)
            if refused is not None:
                outcomes.append(Outcome(item.no, ItemState.SKIPPED, refused.reason))
                continue
            by = str(mark.state_by) if mark.state_by else None
            before = {"state": states[mark.entity_key], "by": by}
            outcomes.append(Outcome(item.no, ItemState.DONE, before=before))
            going.append(item)
        mine = uuid_of(running(context))
        await self._note(connection, context, [(item, mine) for item in going])
        return outcomes

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Puts entities back that are still as this operation left them.

        One that would be ended again by that, and has been held since, stays as it is.
        """
        there, states = await self._lock(connection, items, context)
        mine = uuid_of(running(context))
        outcomes: list[Outcome] = []
        going: list[tuple[Item, str | None]] = []
        for item in items:
            mark = there[item.entity_key or 0]
            before = item.before["state"]
            if str(mark.state_by) != mine or states[mark.entity_key] != self.enters:
                outcomes.append(Outcome(item.no, ItemState.NOT_UNDONE, "changed"))
            elif mark.held and before != ACTIVE:
                outcomes.append(Outcome(item.no, ItemState.NOT_UNDONE, "held"))
            else:
                outcomes.append(Outcome(item.no, ItemState.UNDONE))
                going.append((item, item.before["by"]))
        await self._note(connection, context, going)
        return outcomes

    async def _lock(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> tuple[Mapping[int, marks.Mark], Mapping[int, int]]:
        """Marks and states by entity key; neither changes until the transaction ends."""
        schema = context.database.schema
        there = await marks.lock(connection, schema, context.log_id, items)
        rows = await connection.fetch(
            sql.load("operations", "entity_states", schema), context.log_id, *marks.keys_of(items)
        )
        return there, {row[0]: row[1] for row in rows}

    async def _note(
        self, connection: Connection, context: Context, by: Sequence[tuple[Item, str | None]]
    ) -> None:
        """Notes in the marks which operation sets a state."""
        if by:
            await connection.execute(
                sql.load("operations", "marks_state_by", context.database.schema), context.log_id,
                [item.entity_key for item, _ in by], [operation for _, operation in by],
            )  # fmt: skip

    async def seal(
        self,
        connection: Connection,
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        context: Context,
    ) -> None:
        """Sets the states that `apply` or `undo` has promised: it locks the log's row.

        Raises:
            InternalError: an entity has left the state that it was found in.

        """
        by_no = {item.no: item for item in items}
        going = [(by_no[o.no], self.enters) for o in outcomes if o.state is ItemState.DONE]
        leaves: Collection[int] = self.leaves
        if not going:
            back = [by_no[o.no] for o in outcomes if o.state is ItemState.UNDONE]
            going = [(item, item.before["state"]) for item in back]
            leaves = {self.enters}
        if not going:
            return
        rows = await connection.fetch(
            sql.load("operations", "set_states", context.database.schema), context.log_id,
            [item.entity_type_id for item, _ in going], [item.entity_id for item, _ in going],
            sorted(leaves), [state for _, state in going],
        )  # fmt: skip
        if len(rows) != len(going):
            raise InternalError("an entity's state was changed by something that holds no mark")


class SoftDelete(_States):
    """Ends entities until they are undeleted."""

    name: ClassVar[str] = "soft-delete"
    typed_for_all: ClassVar[bool] = True
    title: ClassVar[str] = "Delete entities softly: they take no events until they are undeleted."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    leaves: ClassVar[frozenset[int]] = frozenset({ACTIVE})
    enters: ClassVar[int] = DELETED
    ends: ClassVar[bool] = True

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return (
            f"Delete {entities(body, context)} softly: appends to {them(body)} are refused, loads"
            " and reads go on as before."
        )


class Undelete(_States):
    """Takes soft-delete back."""

    name: ClassVar[str] = "undelete"
    typed_for_all: ClassVar[bool] = True
    title: ClassVar[str] = "Undelete entities: they take events again."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    counts_new: ClassVar[bool] = False
    leaves: ClassVar[frozenset[int]] = frozenset({DELETED})
    enters: ClassVar[int] = ACTIVE
    ends: ClassVar[bool] = False

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return f"Undelete {entities(body, context)}: {_it(body)} events again."


class Tombstone(_States):
    """Ends entities for ever."""

    name: ClassVar[str] = "tombstone"
    typed_for_all: ClassVar[bool] = True
    title: ClassVar[str] = "Tombstone entities: they take no events ever again."
    policy: ClassVar[Policy] = Policy(undo_s=0, typed=True)
    undoable: ClassVar[bool] = False
    irreversible: ClassVar[str] = (
        "A tombstone stays for ever: the entities take no events any more, and their ids are never"
        " used again."
    )
    leaves: ClassVar[frozenset[int]] = frozenset({ACTIVE, DELETED})
    enters: ClassVar[int] = TOMBSTONED
    ends: ClassVar[bool] = True

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return (
            f"Tombstone {entities(body, context)}: appends to {them(body)} are refused for ever,"
            " loads and reads go on as before."
        )

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """There is no way back."""
        return [Outcome(item.no, ItemState.NOT_UNDONE, "tombstoned") for item in items]


def _it(body: PlanBody) -> str:
    return "it takes" if body.items == 1 else "they take"
