"""What a kind of operation has to say and do: the ports between the engine and the kinds.

There are two families. An *entity kind* acts on the entities of a selection, a few hundred in a
transaction. A *task kind* acts on something else (a projection, a group, parked events) through the
functions of that room, which are idempotent and leased themselves.

The engine calls nothing of a kind twice for a settled item: the outcomes of a step commit in the
transaction that did it, which the operation's lease fences. What a kind does outside of that
transaction must be safe to do again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from journal.store import StoreJournal
from kernel.database import Connection, Database
from operations.model import (
    Excluded,
    Item,
    OperationRow,
    Outcome,
    PlanBody,
    Planned,
    Policy,
    Selection,
)
from snapshots.model import TypeSettings


class Candidate(NamedTuple):
    """An entity that matches a selection: its head and its marks (`operations.selection`).

    ``snapshot`` is the newest snapshot's sequence number (0: none); ``floor_snapshot`` the one that
    the floor rests on (0: none).
    """

    entity_key: int
    entity_type: str
    entity_type_id: int
    entity_id: str
    slice: int
    state: int
    sequence: int
    event_count: int
    first_position: int
    last_position: int
    floor: int
    floor_position: int
    floor_snapshot: int
    held: bool
    snapshot: int


@dataclass(frozen=True, slots=True)
class Need:
    """Somebody who has not read everything yet: a build of a projection, or a group.

    It needs events of these entity types (empty: all) beyond ``position``.
    """

    name: str
    entity_types: frozenset[str]
    position: int


@dataclass(slots=True)
class Context:
    """What a kind works with. ``head`` is the log's when the context was made.

    ``user`` holds what only some processes have: folds (``user.folds``), and so on; see
    `operations.kinds.Environment`.
    """

    database: Database
    journal: StoreJournal
    log: str
    log_id: int
    head: int
    selection: Selection
    parameters: Any
    """What the kind's ``parameters`` made of the request."""
    settings: Mapping[str, TypeSettings]
    """By entity type; missing: the defaults."""
    needs: Sequence[Need]
    environment: Environment
    operation: OperationRow | None = None
    """The operation that is run, in `apply` and `undo`; None while a plan is made."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The request's parameters as they came."""
    now_us: int = 0
    """When the plan was made, by the database's clock: ages count from here, whoever asks when."""


@dataclass(slots=True)
class Environment:
    """What the process has beyond the database; a kind that needs more says so in a sentence."""

    folds: Any = None
    """`snapshots.folding.Folding`, or None where no user code is loaded."""


class Kind(Protocol):
    """What holds for every kind."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What it does, for people: one sentence."""
    policy: ClassVar[Policy]
    """The defaults of its policy."""
    undoable: ClassVar[bool]
    irreversible: ClassVar[str]
    """What cannot be undone, as a sentence for the plan; empty: everything can."""

    def parameters(self, given: Mapping[str, Any]) -> Any:
        """The kind's parameters of a request's JSON object.

        Raises:
            InvalidArgument: names the parameter and the limit.

        """
        ...

    def describe(self, body: PlanBody, context: Context) -> str:
        """The plan's effect in one sentence ("Compact 12,400 carts: …")."""
        ...


class EntityKind(Kind, Protocol):
    """Acts on the entities of a selection.

    One that removes something or changes states says ``typed_for_all = True``: a plan over every
    entity of a log has to be typed. One that only protects or gives back says ``counts_new =
    False``: entities that came after the plan are left alone, and are no drift.
    """

    step_items: ClassVar[int]
    """Items a transaction, at most; the engine takes fewer when commits get slow."""

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """For each candidate, in order: what is to be done with it, or why not.

        Reads only. It is called for the plan and again at the start (drift).
        """
        ...

    async def prepare(self, items: Sequence[Item], context: Context) -> Any:
        """What takes long and need not be in the transaction (folding); None where there is none.

        Called before `apply` with the same items; may be called again after a kill.
        """
        ...

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Does it, set-wise, inside the step's transaction; judges the guards again under locks.

        An item that no longer qualifies is `SKIPPED` with a reason; one that fails alone `FAILED`.
        Lock order: marks (by entity key) → rest → log row. Appends wait for the log's row, so only
        the very last statement may take it (`Seals`).
        """
        ...

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Takes done items back (`UNDONE`), or says why not (`NOT_UNDONE`, "changed since")."""
        ...


@runtime_checkable
class Shares(Protocol):
    """An entity kind whose `prepare` may stop before it has all items: the step is shorter then."""

    def share(self, items: Sequence[Item], prepared: Any) -> int:
        """How many of the items, from the first on, `apply` is to be called with; at least one."""
        ...


@runtime_checkable
class Seals(Protocol):
    """An entity kind that has something to do once all else of a step is written: what appends wait
    for is held for the commit only.
    """

    async def seal(
        self,
        connection: Connection,
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        context: Context,
    ) -> None:
        """The last statement of a step, of `apply` or of `undo`; it waits for no lock but one.

        Items, counts and cursor are written and the lease is fenced before; the commit is next.
        """
        ...


@runtime_checkable
class Lasts(Protocol):
    """An entity kind that would plan another target for an entity by now, and whose planned one may
    be as right as it was.
    """

    def lasts(self, item: Item, now: Planned) -> bool:
        """Whether the target of a planned item still makes sense. ``now``: what a plan says now."""
        ...


@runtime_checkable
class Picky(Protocol):
    """A kind that not every worker can do."""

    def able(self, environment: Environment, operation: OperationRow) -> str:
        """What this process lacks for it, as what the operation waits for ("a worker that …");
        empty: nothing. Called often; pure.
        """
        ...


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a task has come. ``note`` is kept and given to the next call.

    ``done``, ``skipped``, ``failed`` and ``events`` are totals since the task began (in `undo`:
    ``done`` is how many are undone). When it has finished without error, items it said nothing of
    are kept as done.
    """

    finished: bool
    done: int = 0
    skipped: int = 0
    failed: int = 0
    events: int = 0
    note: Mapping[str, Any] | None = None
    waits: str = ""
    error: Mapping[str, Any] | None = None
    """Set: it failed for good."""
    outcomes: Sequence[Outcome] = ()
    """What became of single items since the last call; kept with the rest, in one transaction."""


class TaskKind(Kind, Protocol):
    """Acts on something of another room."""

    pausable: ClassVar[bool]
    """Whether it stands still while nobody calls `advance`; else it cannot be paused."""

    def plan(self, context: Context, target: str) -> AsyncIterator[Item | PlanBody]:
        """The items in order (perhaps one, or none), then the body with everything but counts.

        Raises:
            NotFound: there is no such target. InvalidArgument, Conflict: it cannot be done.

        """
        ...

    async def check(self, operation: OperationRow, context: Context) -> float:
        """Drift at the start: the share of the items that have changed since the plan (0..1)."""
        ...

    async def advance(self, operation: OperationRow, context: Context) -> Advance:
        """Starts it, or looks how far it is; returns within a few seconds; safe to call again.

        Idempotence hangs on ``operation.id``: a kill between two calls must not start it twice.
        """
        ...

    async def cancel(self, operation: OperationRow, context: Context) -> None:
        """Stops it at the next safe point; called until `advance` says finished."""
        ...

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        """Takes it back, as `advance`."""
        ...
