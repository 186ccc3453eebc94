"""What operations are made of. Pure data, no I/O.

An operation begins as a *plan*: a list of items (exactly what will be acted on), what was left out
and why, and a digest over all of it. *Applying* it names the digest and a reason. A worker runs it
step by step; its row is the *receipt*. docs/adr/0015-operations.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

MAX_PAGE = 1_000
MAX_REASON = 1_000
MAX_ITEMS = 1_000_000
"""A plan holds at most so many items; larger selections are split by type or by --where."""
SAMPLES = 10
"""So many items a plan shows."""


class State(StrEnum):
    """States of an operation. The arrows are in docs/adr/0015-operations.md."""

    PLANNED = "planned"
    EXPIRED = "expired"
    """The plan was not applied in time; it acts never."""
    AWAITING = "awaiting"
    """Applied by one person; policy wants a second one."""
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    REVIEW = "review"
    """What it would act on has changed too much since the plan: plan anew. It acts never."""
    DONE = "done"
    FAILED = "failed"
    """It could not go on; what was done stays, and may be undone."""
    CANCELLED = "cancelled"
    """Stopped at a safe point; what was done stays, and may be undone."""
    UNDOING = "undoing"
    UNDONE = "undone"


ACTIVE = frozenset({State.QUEUED, State.RUNNING, State.PAUSED, State.UNDOING})
ENDED = frozenset(
    {State.EXPIRED, State.REVIEW, State.DONE, State.FAILED, State.CANCELLED, State.UNDONE}
)


class ItemState(IntEnum):
    """States of an item; numbers as they are stored."""

    PLANNED = 0
    DONE = 1
    SKIPPED = 2
    FAILED = 3
    UNDONE = 4
    NOT_UNDONE = 5


@dataclass(frozen=True, slots=True)
class Moment:
    """A bound of a selection: a position, or a time (microseconds); exactly one is not 0."""

    position: int = 0
    time_us: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entities of a log an operation is about; all conditions hold at once.

    ``entities``: (type, id) each; ``types``: entity types; ``from_``/``to``: entities that have an
    event there (positions inclusive; times are those of the log, ``to`` exclusive); ``where``: text
    in the search language, parsed by `operations.where`. All empty: every entity of the log.
    """

    log: str = "default"
    entities: tuple[tuple[str, str], ...] = ()
    types: tuple[str, ...] = ()
    from_: Moment | None = None
    to: Moment | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What somebody wants done. ``rate``: items a second at most; None: the throttle decides."""

    kind: str
    selection: Selection
    target: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None


@dataclass(slots=True)
class Item:
    """One thing an operation acts on: an entity, or something of the kind's own.

    ``target`` and ``position`` are the kind's (compact: new floor and position of what covers it);
    ``before`` is what undo needs, written when the item is done.
    """

    no: int
    entity_key: int | None = None
    entity_type: str = ""
    entity_type_id: int | None = None
    entity_id: str = ""
    sequence: int = 0
    target: int = 0
    position: int = 0
    events: int = 0
    bytes: int = 0
    state: ItemState = ItemState.PLANNED
    reason: str = ""
    before: Any = None


@dataclass(frozen=True, slots=True)
class Planned:
    """That a candidate becomes an item, and how."""

    target: int = 0
    position: int = 0
    events: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Excluded:
    """That a candidate is left out. ``reason`` is a code of `REASONS`; ``by``: what needs it."""

    reason: str
    by: str = ""


REASONS: Mapping[str, str] = {
    "held": "a hold is on it",
    "needed": "a projection, a rebuild or a consumer group has not passed its events yet",
    "uncovered": "no verified snapshot covers its newer events: plan `snapshot` first",
    "needs_full_replay": "its type is loaded by full replay only",
    "no_fold": "no fold is registered for its type",
    "current": "there is nothing to do",
    "deleted": "it is deleted",
    "active": "it is not deleted",
    "tombstoned": "it is tombstoned",
    "not_held": "no such hold is on it",
    "changed": "it has changed since the plan",
    "gone": "it is no longer there",
    "no_events": "it has no event before that time",
    "compacted": "its events up to there are compacted",
    "taken": "another snapshot, which the fold cannot load, is at that sequence number",
    "unusable": "its owner cannot load the snapshots of the fold",
    "differs": "the snapshot at that sequence number is not what its events give",
    "fold_failed": "its fold failed on an event",
    "too_large": "its snapshot is larger than snapshots may be",
    "covers": "its floor rests on the snapshot",
    "removed": "an operation that can still be undone has removed the snapshot there",
    "replaying": "it is being delivered already",
    "waiting": "it waits behind a parked event of its entity",
}
"""Why things are excluded or skipped. Kinds may add their own in their tests' sight."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item in a step. ``before`` is kept for undo."""

    no: int
    state: ItemState
    reason: str = ""
    before: Any = None


@dataclass(slots=True)
class PlanBody:
    """What a plan says, as the API shows it (`plan` of the row)."""

    entities: int = 0
    items: int = 0
    events: int = 0
    bytes: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    consumers: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    confirmations: list[str] = field(default_factory=list)
    """Codes of the warnings that apply has to confirm."""
    undoable: bool = True
    undo_seconds: int = 0
    estimated_seconds: float = 0.0
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """How operations of a kind are guarded. Durations in seconds.

    second_person: another one has to apply it too. expires_s: a plan not applied by then is void.
    max_drift: share of the items that may have changed at the start (0..1); more goes to review.
    undo_s: how long it can be undone. typed: apply must repeat what the plan asks to be typed.
    """

    second_person: bool = False
    expires_s: int = 900
    max_drift: float = 0.05
    undo_s: int = 7 * 86_400
    typed: bool = False


@dataclass(frozen=True, slots=True)
class OperationRow:
    """An operation as everyone sees it; ``id`` is ``op-<uuid7>``. Columns: 0003_operations.sql."""

    id: str
    kind: str
    state: State
    wish: str
    log: str
    target: str
    selection: Mapping[str, Any]
    parameters: Mapping[str, Any]
    plan: Mapping[str, Any]
    digest: str
    head: int
    items: int
    planned_by: str
    planned_at: datetime
    expires_at: datetime
    applied_by: str | None
    applied_at: datetime | None
    reason: str | None
    seconded_by: str | None
    seconded_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    undo_until: datetime | None
    undone_by: str | None
    undo_reason: str | None
    rate: float | None
    cursor: int
    done: int
    skipped: int
    failed: int
    undone: int
    events: int
    bytes: int
    waits: str
    note: Mapping[str, Any]
    error: Mapping[str, Any] | None
    updated_at: datetime
    version: int
    """Grows with every change."""
    applied_key: str | None
    """`Principal.identity` of who applied it first."""
    retrying: bool
    items_gone: bool
    """Its items were deleted, as nothing can be undone any more; the receipt stays."""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """The policy of a kind. ``version`` 0: nobody has set one, these are the kind's defaults."""

    kind: str
    policy: Policy
    version: int
    updated_at: datetime | None
    updated_by: str


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Items that were not done, or not undone, for the same reason; ``examples`` as type/id."""

    state: ItemState
    reason: str
    count: int
    examples: tuple[str, ...]


def selection_json(selection: Selection) -> dict[str, Any]:
    """A selection as it is stored and shown; what is empty is left out."""
    made: dict[str, Any] = {"log": selection.log}
    if selection.entities:
        made["entities"] = [list(pair) for pair in selection.entities]
    if selection.types:
        made["types"] = list(selection.types)
    for name, moment in (("from", selection.from_), ("to", selection.to)):
        if moment is not None:
            made[name] = (
                {"position": moment.position} if moment.position else {"time_us": moment.time_us}
            )
    if selection.where:
        made["where"] = selection.where
    return made


def selection_of(stored: Mapping[str, Any]) -> Selection:
    """The selection that `selection_json` made this of."""

    def moment(name: str) -> Moment | None:
        return Moment(**stored[name]) if stored.get(name) else None

    return Selection(
        log=stored["log"],
        entities=tuple((kind, name) for kind, name in stored.get("entities", ())),
        types=tuple(stored.get("types", ())),
        from_=moment("from"),
        to=moment("to"),
        where=stored.get("where", ""),
    )
