"""snapshot and snapshot-prune: states that loads and compaction begin with.

A snapshot of the platform is the fold of all readable events of an entity, so it is verified when
it is saved. Folding runs outside of the transaction that saves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kernel import clock, sql
from kernel.database import Connection
from kernel.errors import (
    Compacted,
    EntityNotFound,
    FoldFailed,
    InvalidArgument,
    NoFold,
    TooLarge,
    Undecodable,
    UnknownType,
)
from operations import marks, store
from operations.kinds.base import Candidate, Context, Environment
from operations.kinds.common import entities, flag, number, only, running, uuid_of
from operations.kinds.states import TOMBSTONED
from operations.model import (
    Excluded,
    Item,
    ItemState,
    OperationRow,
    Outcome,
    PlanBody,
    Planned,
    Policy,
    State,
)
from snapshots.batches import Batches, Failure, Wanted
from snapshots.folding import Folded, Folding, before
from snapshots.folds import FoldDefinition
from snapshots.model import KEPT_AT_LEAST, Source, TypeSettings
from snapshots.policy import Saved, due
from snapshots.store import SnapshotRow, SnapshotStore

STEP_ITEMS = 500
STEP_BYTES = 16_000_000
"""A step ends with the snapshots that are made when they take so much memory."""
STEP_SECONDS = 20.0
"""It ends with those, too, when making them took so long: a wish to pause waits for it."""
FOLD_SECONDS = 600.0
"""An entity of many events may take so long."""
_DEFAULTS = TypeSettings()
_NOT_SAVED = {
    Saved.OTHER: (ItemState.FAILED, "differs"),
    Saved.BELOW_FLOOR: (ItemState.SKIPPED, "compacted"),
    Saved.NO_EVENT: (ItemState.SKIPPED, "changed"),
    Saved.HELD: (ItemState.SKIPPED, "held"),
    Saved.REMOVED: (ItemState.SKIPPED, "removed"),
}

_CODES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((FoldFailed, Undecodable, UnknownType), "fold_failed"),
    ((EntityNotFound, InvalidArgument), "gone"),
    ((Compacted,), "compacted"),
    ((TooLarge,), "too_large"),
    ((NoFold,), "no_fold"),
)


@dataclass(frozen=True, slots=True)
class SnapshotParameters:
    """``at_us``: as the entities were before this time (None: as they are). ``due``: only those
    whose policy wants one.
    """

    at_us: int | None = None
    due: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A snapshot to save. ``there``: it is stored already, by whoever, and was only proven."""

    type: str
    content_type: str
    payload: bytes
    position: int
    there: bool = False
    verified: bool = False


class Snapshot:
    """Saves a snapshot of each entity."""

    name: ClassVar[str] = "snapshot"
    title: ClassVar[str] = (
        "Save snapshots of entities, made and verified by the folds of their types."
    )
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    step_items: ClassVar[int] = STEP_ITEMS

    def parameters(self, given: Mapping[str, Any]) -> SnapshotParameters:
        """``at``: RFC 3339, by the time of the events; ``due``: true or false."""
        only(given, ("at", "due"))
        at = given.get("at")
        if at is not None and not isinstance(at, str):
            raise InvalidArgument("parameters.at", "is not a text")
        is_due = flag(given, "due")
        if at is not None and is_due:
            raise InvalidArgument("parameters.due", "give at or due, not both")
        return SnapshotParameters(
            None if at is None else clock.parse_us("parameters.at", at), is_due
        )

    def able(self, environment: Environment, operation: OperationRow) -> str:
        """A worker has to have the folds of the types; to undo it needs none."""
        if operation.state is State.UNDOING:
            return ""
        folding: Folding | None = environment.folds
        chosen = store.request_of(operation).selection
        types = {*chosen.types, *(entity_type for entity_type, _ in chosen.entities)}
        if folding is None:
            return "a worker that has folds"
        lacking = sorted(name for name in types if folding.get(name) is None)
        left_out = bool((operation.plan.get("excluded") or {}).get("no_fold"))
        if not lacking or (left_out and len(lacking) < len(types)):
            return ""  # nobody had the folds of types that the plan left out
        return f"a worker that has the fold of {lacking[0]!r}"

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        wanted: SnapshotParameters = context.parameters
        when = ""
        if wanted.at_us is not None:
            when = f" as of before {clock.format_us(wanted.at_us)}"
        return (
            f"Save a snapshot of {entities(body, context)}{when}, folded from all readable events"
            " and thereby verified."
        )

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """Excluded is what has no fold, or such a snapshot already, or cannot have one."""
        if not page:
            return []
        targets = await _targets(page, context)
        rows = await _facts(page, targets, context)
        return [
            self._judged(candidate, *targets[candidate.entity_key], row, context)
            for candidate, row in zip(page, rows, strict=True)
        ]

    def _judged(
        self, candidate: Candidate, target: int, position: int, row: Any, context: Context
    ) -> Planned | Excluded:
        settings = context.settings.get(candidate.entity_type, _DEFAULTS)
        first = candidate.sequence - candidate.event_count + 1
        refused = _refused(_fold(context, candidate.entity_type), settings)
        if candidate.state == TOMBSTONED:
            return Excluded("tombstoned")
        if refused:
            return Excluded(refused)
        if target < first:
            return Excluded("no_events")
        if row["covered"]:
            return Excluded("current")
        if target < candidate.floor:
            return Excluded("compacted")
        if row["taken"]:
            return Excluded("taken")
        if context.parameters.due:
            oldest = row["event_at"]
            reason = due(
                settings,
                sequence=target,
                covered=row["newest"] or first - 1,
                oldest_us=None if oldest is None else clock.to_us(oldest),
                now_us=context.now_us,
            )
            if not reason:
                return Excluded("current")
        begin = max(candidate.floor, first)
        return Planned(target, position, events=target - begin + 1)

    def lasts(self, item: Item, now: Planned) -> bool:
        """A snapshot of what was then is right, however many events have come since."""
        return now.target >= item.target

    async def prepare(self, items: Sequence[Item], context: Context) -> dict[int, Ready | str]:
        """By item number: the snapshot, or the code of why there is none. The first items only,
        when more would take too much memory or time.
        """
        folding = _folding(context)
        if folding is None:
            return dict.fromkeys([item.no for item in items], "no_fold")
        batches = Batches(
            folding, context.journal, context.log, context.log_id,
            largest=context.journal.settings.limits.append_bytes, enough_bytes=STEP_BYTES,
            enough_seconds=STEP_SECONDS, alone_seconds=FOLD_SECONDS,
        )  # fmt: skip
        wanted = [
            Wanted(i.entity_key or 0, i.entity_type_id or 0, i.entity_type, i.entity_id, i.target)
            for i in items
        ]
        made = list(zip(items, await batches.make(wanted), strict=False))
        there = await _there([i for i, each in made if isinstance(each, Folded)], context)
        return {
            item.no: await _ready(item, context, folding, each, there=item.entity_key in there)
            for item, each in made
        }

    def share(self, items: Sequence[Item], prepared: Any) -> int:
        """How many of the items were prepared."""
        return len(prepared)

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Saves what was prepared; an entity that was ended meanwhile is passed over."""
        schema = context.database.schema
        there = await marks.lock(connection, schema, context.log_id, items)
        states = await connection.fetch(
            sql.load("operations", "entity_states", schema), context.log_id, *marks.keys_of(items)
        )
        ended = {row["entity_key"] for row in states if row["state"] == TOMBSTONED}
        outcomes: dict[int, Outcome] = {}
        rows: dict[int, SnapshotRow] = {}
        for item in items:
            ready, key = prepared[item.no], item.entity_key or 0
            settings = context.settings.get(item.entity_type, _DEFAULTS)
            if key not in there:
                outcomes[item.no] = Outcome(item.no, ItemState.SKIPPED, "gone")
            elif key in ended:
                outcomes[item.no] = Outcome(item.no, ItemState.SKIPPED, "tombstoned")
            elif settings.needs_full_replay:
                outcomes[item.no] = Outcome(item.no, ItemState.SKIPPED, "needs_full_replay")
            elif isinstance(ready, str):
                skipped = ready in ("gone", "compacted", "taken")
                state = ItemState.SKIPPED if skipped else ItemState.FAILED
                outcomes[item.no] = Outcome(item.no, state, ready)
            elif ready.there and ready.verified:
                outcomes[item.no] = Outcome(item.no, ItemState.SKIPPED, "current")
            else:
                rows[item.no] = SnapshotRow(
                    key, item.target, ready.position, ready.position, ready.type,
                    ready.content_type, ready.payload, verified=True,
                )  # fmt: skip
        store = SnapshotStore(context.database, context.journal)
        said = await store.save_rows(
            connection, context.log_id, list(rows.values()), source=Source.FOLD
        )
        for (no, row), verdict in zip(rows.items(), said, strict=True):
            outcomes[no] = _saved(no, row, verdict)
        return [outcomes[item.no] for item in items]

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Removes the snapshots again, unless a floor rests on one by now, or a hold is on it."""
        schema = context.database.schema
        await marks.lock(connection, schema, context.log_id, items)
        found = await connection.fetch(
            sql.load("operations", "snapshots_untake", schema), context.log_id,
            [item.entity_key for item in items],
            [item.before["sequence"] for item in items],
            [bytes.fromhex(item.before["sha256"]) for item in items],
            [item.before["saved"] for item in items],
        )  # fmt: skip
        stays = {row["entity_key"]: row["stays"] for row in found}
        return [
            Outcome(item.no, ItemState.NOT_UNDONE, reason)
            if (reason := stays.get(item.entity_key, "changed"))
            else Outcome(item.no, ItemState.UNDONE)
            for item in items
        ]


def _saved(no: int, row: SnapshotRow, verdict: Saved) -> Outcome:
    if verdict in _NOT_SAVED:
        return Outcome(no, *_NOT_SAVED[verdict])
    kept = {
        "sequence": row.sequence,
        "sha256": hashlib.sha256(row.payload).hexdigest(),
        "saved": verdict is Saved.SAVED,
    }
    return Outcome(no, ItemState.DONE, before=kept)


def _folding(context: Context) -> Folding | None:
    found: Folding | None = context.environment.folds
    return found


def _fold(context: Context, entity_type: str) -> FoldDefinition | None:
    folding = _folding(context)
    return folding.get(entity_type) if folding is not None else None


def _refused(fold: FoldDefinition | None, settings: TypeSettings) -> str:
    """Why a type has no snapshots of the platform; empty: it may."""
    if settings.needs_full_replay:
        return "needs_full_replay"
    if fold is None:
        return "no_fold"
    if settings.snapshot_types and fold.snapshot_type not in settings.snapshot_types:
        return "unusable"
    return ""


async def _targets(page: Sequence[Candidate], context: Context) -> dict[int, tuple[int, int]]:
    """By entity key: sequence number and position of the event that a snapshot is wanted at."""
    at_us = context.parameters.at_us
    if at_us is None:
        return {each.entity_key: (each.sequence, each.last_position) for each in page}
    return await before(
        context.database, context.log_id,
        [each.entity_key for each in page], [each.first_position for each in page],
        [each.last_position for each in page], [each.sequence for each in page], at_us,
    )  # fmt: skip


async def _facts(
    page: Sequence[Candidate], targets: Mapping[int, tuple[int, int]], context: Context
) -> list[Any]:
    loads = [
        f"{type_id}/{name}"
        for entity_type, type_id in {(each.entity_type, each.entity_type_id) for each in page}
        if (fold := _fold(context, entity_type)) is not None
        for name in fold.types
    ]
    return await context.database.fetch(
        sql.load("operations", "snapshot_facts", context.database.schema), context.log_id,
        [each.entity_key for each in page], [each.entity_type_id for each in page],
        [targets[each.entity_key][0] for each in page],
        [each.sequence - each.event_count + 1 for each in page],
        [each.first_position for each in page], [each.last_position for each in page], loads,
        context.parameters.due,
    )  # fmt: skip


async def _there(items: Sequence[Item], context: Context) -> set[int]:
    """Keys of the entities that have some snapshot already where one is wanted."""
    rows = await context.database.fetch(
        sql.load("operations", "snapshots_there", context.database.schema), context.log_id,
        [item.entity_key for item in items], [item.target for item in items],
    )  # fmt: skip
    return {row[0] for row in rows}


async def _ready(
    item: Item, context: Context, folding: Folding, made: Folded | Failure, *, there: bool
) -> Ready | str:
    if not isinstance(made, Folded):
        return next(code for kinds, code in _CODES if isinstance(made, kinds))
    fold = folding.get(item.entity_type)
    if fold is None:
        return "no_fold"
    stored = await _stored(item, context, folding, fold, made) if there else None
    return stored or Ready(fold.snapshot_type, fold.content_type, made.payload, made.position)


async def _stored(
    item: Item, context: Context, folding: Folding, fold: FoldDefinition, made: Folded
) -> Ready | str | None:
    """What is stored there already, held against what the fold made; None: nothing."""
    row = await context.database.fetchrow(
        sql.load("operations", "snapshots_at", context.database.schema), context.log_id,
        item.entity_key, item.target, item.entity_type,
    )  # fmt: skip
    if row is None:
        return None
    if row["type"] not in fold.types:
        return "taken"
    try:
        same = await folding.redumped(fold, row["payload"], row["type"])
    except FoldFailed:
        return "differs"
    if same != made.payload:
        return "differs"
    return Ready(
        row["type"], row["content_type"], row["payload"], made.position, there=True,
        verified=row["verified"],
    )  # fmt: skip


# Pruning


@dataclass(frozen=True, slots=True)
class PruneParameters:
    """``keep``: so many newest snapshots of an entity stay; None: as its type's settings say."""

    keep: int | None = None


class SnapshotPrune:
    """Removes old snapshots."""

    name: ClassVar[str] = "snapshot-prune"
    typed_for_all: ClassVar[bool] = True
    title: ClassVar[str] = "Remove all but the newest snapshots of entities."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    step_items: ClassVar[int] = 200

    def parameters(self, given: Mapping[str, Any]) -> PruneParameters:
        """``keep``: how many stay, 2 or more."""
        only(given, ("keep",))
        return PruneParameters(number(given, "keep", KEPT_AT_LEAST, 1_000))

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        keep = context.parameters.keep
        kept = f"the newest {keep}" if keep is not None else "as many as the types' settings say"
        return (
            f"Remove the old snapshots of {entities(body, context)} and keep {kept} of each; those"
            " that a floor rests on stay."
        )

    def _keep(self, entity_type: str, context: Context) -> int:
        settings = context.settings.get(entity_type, _DEFAULTS)
        return max(context.parameters.keep or settings.keep_snapshots, KEPT_AT_LEAST)

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """Excluded is what is held, and what has no more snapshots than are to stay."""
        rows = await context.database.fetch(
            sql.load("operations", "prune_facts", context.database.schema), context.log_id,
            [each.entity_key for each in page], [each.entity_type_id for each in page],
            [self._keep(each.entity_type, context) for each in page],
            [each.sequence + 1 for each in page],
        )  # fmt: skip
        found = {row["entity_key"]: row for row in rows}
        judged: list[Planned | Excluded] = []
        for each in page:
            row = found.get(each.entity_key)
            if row is None:
                judged.append(Excluded("current"))
            elif each.held:
                judged.append(Excluded("held"))
            else:
                judged.append(Planned(row["sequences"][-1], bytes=int(row["bytes"])))
        return judged

    async def prepare(self, items: Sequence[Item], context: Context) -> None:
        """Nothing takes long."""

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Removes what is still old, up to what was planned; nothing newer."""
        schema = context.database.schema
        there = await marks.lock(connection, schema, context.log_id, items)
        open_ = [
            item for item in items if (mark := there.get(item.entity_key or 0)) and not mark.held
        ]
        rows = await connection.fetch(
            sql.load("operations", "prune_facts", schema), context.log_id,
            [item.entity_key for item in open_], [item.entity_type_id for item in open_],
            [self._keep(item.entity_type, context) for item in open_],
            [item.target + 1 for item in open_],
        )  # fmt: skip
        old = {row["entity_key"]: list(row["sequences"]) for row in rows}
        pairs = [(key, sequence) for key, sequences in old.items() for sequence in sequences]
        await connection.fetch(
            sql.load("operations", "prune_remove", schema), context.log_id,
            uuid_of(running(context)), [key for key, _ in pairs], [each for _, each in pairs],
        )  # fmt: skip
        outcomes: list[Outcome] = []
        for item in items:
            mark = there.get(item.entity_key or 0)
            if mark is None:
                outcomes.append(Outcome(item.no, ItemState.SKIPPED, "gone"))
            elif mark.held:
                outcomes.append(Outcome(item.no, ItemState.SKIPPED, "held"))
            elif mark.entity_key in old:
                kept = {"sequences": old[mark.entity_key]}
                outcomes.append(Outcome(item.no, ItemState.DONE, before=kept))
            else:
                outcomes.append(Outcome(item.no, ItemState.SKIPPED, "current"))
        return outcomes

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Brings the snapshots back; where another one has been saved since, that one stays."""
        schema = context.database.schema
        await marks.lock(connection, schema, context.log_id, items)
        pairs = [(i.entity_key, sequence) for i in items for sequence in i.before["sequences"]]
        rows = await connection.fetch(
            sql.load("operations", "prune_restore", schema), context.log_id,
            uuid_of(running(context)), [key for key, _ in pairs], [each for _, each in pairs],
        )  # fmt: skip
        back: dict[int, int] = {}
        for row in rows:
            back[row["entity_key"]] = back.get(row["entity_key"], 0) + 1
        return [
            Outcome(item.no, ItemState.UNDONE)
            if back.get(item.entity_key or 0, 0) == len(item.before["sequences"])
            else Outcome(item.no, ItemState.NOT_UNDONE, "changed")
            for item in items
        ]
