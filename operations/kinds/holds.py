"""hold and release: nothing of a held entity can be removed or ended.

An entity may be held under several labels; `entity_marks.held` says in the same transaction whether
there is one. Both kinds work under the lock of the entity's mark, as everything does that must not
happen to a held one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kernel import sql
from kernel.database import Connection
from kernel.errors import InvalidArgument
from operations import marks
from operations.holds import DEFAULT_LABEL, check_label
from operations.kinds.base import Candidate, Context
from operations.kinds.common import entities, flag, only, running, them, uuid_of
from operations.model import Excluded, Item, ItemState, Outcome, PlanBody, Planned, Policy

STEP_ITEMS = 500


@dataclass(frozen=True, slots=True)
class HoldParameters:
    """``label`` names why; the reason is the operation's."""

    label: str = DEFAULT_LABEL


@dataclass(frozen=True, slots=True)
class ReleaseParameters:
    """``label``: which holds end; None: all of them."""

    label: str | None = DEFAULT_LABEL


class Hold:
    """Holds entities under a label."""

    name: ClassVar[str] = "hold"
    title: ClassVar[str] = "Hold entities: nothing of them can be removed."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    step_items: ClassVar[int] = STEP_ITEMS
    counts_new: ClassVar[bool] = False

    def parameters(self, given: Mapping[str, Any]) -> HoldParameters:
        """``label``, by default ``operator``."""
        only(given, ("label",))
        return HoldParameters(check_label(given.get("label", DEFAULT_LABEL), "parameters.label"))

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        label, what = context.parameters.label, them(body)
        return (
            f"Hold {entities(body, context)} under {label!r}: nothing of {what} can be removed"
            f" until {what if body.items == 1 else 'they'}"
            f" {'is' if body.items == 1 else 'are'} released."
        )

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """Excluded is what has this label already."""
        held = await _held(page, context, context.parameters.label)
        return [
            Excluded("current", context.parameters.label)
            if candidate.entity_key in held
            else Planned(events=candidate.event_count)
            for candidate in page
        ]

    async def prepare(self, items: Sequence[Item], context: Context) -> None:
        """Nothing takes long."""

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Adds the holds that are missing; others are not touched."""
        operation, schema = running(context), context.database.schema
        await marks.lock(connection, schema, context.log_id, items)
        keys = marks.keys_of(items)
        rows = await connection.fetch(
            sql.load("operations", "holds_add", schema), context.log_id, *keys,
            context.parameters.label, operation.reason or "", operation.applied_by or "",
            uuid_of(operation),
        )  # fmt: skip
        await _mark(connection, context, keys.keys)
        added = {row[0] for row in rows}
        return [
            Outcome(item.no, ItemState.DONE)
            if item.entity_key in added
            else Outcome(item.no, ItemState.SKIPPED, "current")
            for item in items
        ]

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Removes the holds that this operation made, where they still are."""
        schema = context.database.schema
        await marks.lock(connection, schema, context.log_id, items)
        keys = marks.keys_of(items).keys
        rows = await connection.fetch(
            sql.load("operations", "holds_release", schema), context.log_id, keys,
            context.parameters.label, uuid_of(running(context)),
        )  # fmt: skip
        await _mark(connection, context, keys)
        gone = {row["entity_key"] for row in rows}
        return [_undone(item, done=item.entity_key in gone) for item in items]


class Release:
    """Ends holds on entities."""

    name: ClassVar[str] = "release"
    typed_for_all: ClassVar[bool] = True
    title: ClassVar[str] = "End holds on entities."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    step_items: ClassVar[int] = STEP_ITEMS
    counts_new: ClassVar[bool] = False

    def parameters(self, given: Mapping[str, Any]) -> ReleaseParameters:
        """``label``, by default ``operator``; or ``all``: true."""
        only(given, ("label", "all"))
        if not flag(given, "all"):
            label = check_label(given.get("label", DEFAULT_LABEL), "parameters.label")
            return ReleaseParameters(label)
        if "label" in given:
            raise InvalidArgument("parameters.all", "give a label or all, not both")
        return ReleaseParameters(None)

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        label = context.parameters.label
        which = "every hold" if label is None else f"the hold {label!r}"
        rest = (
            f"what removes events may take {them(body)} again"
            if label is None
            else "what removes events may take those again that no other hold is on"
        )
        return f"End {which} on {entities(body, context)}: {rest}."

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """Excluded is what has no such hold."""
        held = await _held(page, context, context.parameters.label)
        return [
            Planned(events=candidate.event_count)
            if candidate.entity_key in held
            else Excluded("not_held")
            for candidate in page
        ]

    async def prepare(self, items: Sequence[Item], context: Context) -> None:
        """Nothing takes long."""

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Removes the holds and keeps them, whole, for undo."""
        schema = context.database.schema
        await marks.lock(connection, schema, context.log_id, items)
        keys = marks.keys_of(items).keys
        rows = await connection.fetch(
            sql.load("operations", "holds_release", schema), context.log_id, keys,
            context.parameters.label, None,
        )  # fmt: skip
        await _mark(connection, context, keys)
        kept: dict[int, list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda row: row["label"]):
            hold = dict(row)
            kept.setdefault(hold.pop("entity_key"), []).append(hold)
        return [
            Outcome(item.no, ItemState.DONE, before={"holds": kept[item.entity_key]})
            if item.entity_key in kept
            else Outcome(item.no, ItemState.SKIPPED, "not_held")
            for item in items
        ]

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Brings the holds back, equal to what they were.

        Where there is a new one of the same label, that one stays and the item is not undone.
        """
        schema = context.database.schema
        await marks.lock(connection, schema, context.log_id, items)
        rows = [
            (
                item.entity_key, item.entity_type_id, item.entity_id, hold["label"],
                hold["reason"], hold["principal"], hold["operation_id"], hold["held_at_us"],
            )
            for item in items
            for hold in item.before["holds"]
        ]  # fmt: skip
        found = await connection.fetch(
            sql.load("operations", "holds_restore", schema), context.log_id,
            *map(list, zip(*rows, strict=True)),
        )  # fmt: skip
        await _mark(connection, context, marks.keys_of(items).keys)
        back = {tuple(row) for row in found}
        return [
            _undone(
                item,
                done=all((item.entity_key, hold["label"]) in back for hold in item.before["holds"]),
            )
            for item in items
        ]


async def _held(page: Sequence[Candidate], context: Context, label: str | None) -> set[int]:
    """Which of a page have a hold of the label (None: any)."""
    keys = [candidate.entity_key for candidate in page if candidate.held]
    if label is None or not keys:
        return set(keys)
    rows = await context.database.fetch(
        sql.load("operations", "holds_of", context.database.schema), context.log_id, keys, label
    )
    return {row[0] for row in rows}


async def _mark(connection: Connection, context: Context, keys: Sequence[int]) -> None:
    """Says in the marks what the holds are now."""
    await connection.execute(
        sql.load("operations", "marks_held", context.database.schema), context.log_id, keys
    )


def _undone(item: Item, *, done: bool) -> Outcome:
    if done:
        return Outcome(item.no, ItemState.UNDONE)
    return Outcome(item.no, ItemState.NOT_UNDONE, "changed")
