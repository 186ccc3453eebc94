"""Operations as the HTTP API takes and shows them: bodies of requests, rows of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from admin_ui.routes.projections import Body, without_values
from kernel import clock
from kernel.principals import PAYLOAD, Principal
from operations.kinds import KINDS
from operations.kinds.base import EntityKind, TaskKind
from operations.model import (
    MAX_REASON,
    REASONS,
    FailureGroup,
    Item,
    Moment,
    OperationRow,
    PlanRequest,
    Selection,
)
from operations.where import parse_time

MAX_ENTITIES: Final = 10_000
"""So many entities a request names at most; more are selected by type or by `where`."""
MAX_TYPES: Final = 100
MAX_WHERE: Final = 4_000
_LATEST: Final = 2**63 - 1
_QUOTING: Final = frozenset({"reason_contains"})
"""Parameters in the words of a group's members: they may quote events."""

Text = Annotated[str, Field(max_length=1_000)]
Bound = Annotated[int, Field(ge=1, le=_LATEST)] | Annotated[str, Field(max_length=40)]
Wire = Literal[
    "planned", "expired", "awaiting", "queued", "running", "paused", "review", "done", "failed",
    "cancelled", "undoing", "undone",
]  # fmt: skip
ItemWord = Literal["planned", "done", "skipped", "failed", "undone", "not_undone"]


class Chosen(Body):
    """Which entities; all conditions hold at once, and none at all: every entity of the log."""

    model_config = ConfigDict(validate_by_name=False)

    entities: list[Annotated[list[Text], Field(min_length=2, max_length=2)]] = Field(
        [], max_length=MAX_ENTITIES, description="Entity type and entity id of each."
    )
    types: list[Annotated[str, Field(min_length=1, max_length=255)]] = Field(
        [], max_length=MAX_TYPES, description="Entity types."
    )
    from_: Bound | None = Field(
        None, alias="from", description="Entities with an event from here: a position, or a time"
    )
    to: Bound | None = Field(None, description="to here (a position is included, a time is not).")
    where: str = Field("", max_length=MAX_WHERE, description="Text in the search language.")


class NewPlan(Body):
    """What is to be planned."""

    kind: str = Field(max_length=40, description="Of `GET /api/v1/operation-kinds`.")
    log: str = Field("default", max_length=40)
    target: str = Field("", max_length=100, description="A projection or a group; else empty.")
    selection: Chosen = Field(default_factory=lambda: Chosen.model_validate({}))
    parameters: dict[str, Any] = Field(default_factory=dict, description="Those of the kind.")
    rate: float | None = Field(
        None, gt=0, le=1e6, strict=False, description="Items a second at most."
    )

    def request(self) -> PlanRequest:
        """The plan that is asked for.

        Raises:
            InvalidArgument: a time is none; names the field.

        """
        chosen = self.selection
        selection = Selection(
            log=self.log,
            entities=tuple((kind, entity_id) for kind, entity_id in chosen.entities),
            types=tuple(chosen.types),
            from_=_moment("from", chosen.from_),
            to=_moment("to", chosen.to),
            where=chosen.where,
        )
        return PlanRequest(
            kind=self.kind, selection=selection, target=self.target,
            parameters=self.parameters, rate=self.rate,
        )  # fmt: skip


class Applying(Body):
    """That a plan is to be carried out, as it was read."""

    digest: str = Field(max_length=128, description="Of the plan that was read.")
    reason: str = Field(min_length=1, max_length=MAX_REASON, description="Others will read it.")
    typed: str = Field("", max_length=1_000, description="What the plan asks to be typed.")
    confirmed: bool = Field(
        False, description="That the warnings were read which the plan says must be confirmed."
    )


class Excuse(Body):
    """Why something is undone."""

    reason: str = Field(min_length=1, max_length=MAX_REASON, description="Others will read it.")


class KindShape(BaseModel):
    """A kind of operation."""

    name: str
    title: str
    family: Literal["entities", "task"]
    undoable: bool
    irreversible: str = Field(description="What cannot be undone; empty: everything can.")
    policy: PolicyBody


class PolicyBody(BaseModel):
    """How operations of a kind are guarded; durations in seconds."""

    second_person: bool
    expires_s: int
    max_drift: float
    undo_s: int
    typed: bool


class PolicyShape(PolicyBody):
    """The policy of a kind. ``version`` 0: nobody has set one, it is the kind's own."""

    kind: str
    version: int
    updated_at: datetime | None
    updated_by: str


class Progress(BaseModel):
    """How far an operation is: items, and what those that are done held."""

    settled: int
    done: int
    skipped: int
    failed: int
    undone: int
    events: int
    bytes: int


class Operation(BaseModel):
    """An operation: what its plan says, how far it is, its receipt."""

    id: str
    kind: str
    state: Wire
    wish: str = Field(description="What will come at the next safe point: pause, cancel, or empty.")
    log: str
    target: str
    selection: dict[str, Any]
    parameters: dict[str, Any]
    rate: float | None
    digest: str
    head: int
    sentence: str
    entities: int
    items: int
    events: int
    bytes: int
    excluded: dict[str, int]
    samples: list[dict[str, Any]]
    consumers: list[dict[str, Any]]
    warnings: list[str]
    confirmations: list[str] = Field(
        description="Codes of the warnings that have to be confirmed to apply it; empty: none."
    )
    undoable: bool
    undo_seconds: int
    estimated_seconds: float
    typed: str = Field(description="What has to be typed to apply it; empty: nothing.")
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
    progress: Progress
    waits: str
    note: dict[str, Any]
    error: dict[str, Any] | None
    updated_at: datetime
    version: int


class ItemShape(BaseModel):
    """One thing that an operation acts on."""

    no: int
    entity_type: str
    entity_id: str
    sequence: int
    target: int
    position: int
    events: int
    bytes: int
    state: ItemWord
    reason: str
    why: str = Field(description="The reason in words.")


class FailureShape(BaseModel):
    """Items that were not done, or not undone, for the same reason."""

    state: ItemWord
    reason: str
    why: str
    count: int
    examples: list[str]


def shown(row: OperationRow, principal: Principal) -> dict[str, Any]:
    """An operation as the API shows it; what its plan says stands at the top.

    What an error, or a parameter, quotes of events needs the grant ``payload``.
    """
    plan = dict(row.plan)
    parameters = dict(row.parameters)
    error = dict(row.error) if row.error else None
    if PAYLOAD not in principal.grants:
        error = without_values(error) if error else None
        for name in _QUOTING & parameters.keys():
            parameters[name] = None
    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.state.value,
        "wish": row.wish,
        "log": row.log,
        "target": row.target,
        "selection": _readable(row.selection),
        "parameters": parameters,
        "rate": row.rate,
        "digest": row.digest,
        "head": row.head,
        **plan,
        "confirmations": plan.get("confirmations") or [],
        "typed": plan.get("typed") or "",
        "items": row.items,
        "planned_by": row.planned_by,
        "planned_at": row.planned_at,
        "expires_at": row.expires_at,
        "applied_by": row.applied_by,
        "applied_at": row.applied_at,
        "reason": row.reason,
        "seconded_by": row.seconded_by,
        "seconded_at": row.seconded_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "undo_until": row.undo_until,
        "undone_by": row.undone_by,
        "undo_reason": row.undo_reason,
        "progress": {
            "settled": row.cursor,
            "done": row.done,
            "skipped": row.skipped,
            "failed": row.failed,
            "undone": row.undone,
            "events": row.events,
            "bytes": row.bytes,
        },
        "waits": row.waits,
        "note": row.note,
        "error": error,
        "updated_at": row.updated_at,
        "version": row.version,
    }


def kind_shown(kind: EntityKind | TaskKind, policy: Any) -> dict[str, Any]:
    """A kind with the policy that holds for it."""
    return {
        "name": kind.name,
        "title": kind.title,
        "family": "entities" if hasattr(kind, "judge") else "task",
        "undoable": kind.undoable,
        "irreversible": kind.irreversible,
        "policy": policy,
    }


def item_shown(item: Item) -> dict[str, Any]:
    """An item without what undo keeps of it."""
    return {
        "no": item.no,
        "entity_type": item.entity_type,
        "entity_id": item.entity_id,
        "sequence": item.sequence,
        "target": item.target,
        "position": item.position,
        "events": item.events,
        "bytes": item.bytes,
        "state": item.state.name.lower(),
        "reason": item.reason,
        "why": REASONS.get(item.reason, item.reason),
    }


def failure_shown(group: FailureGroup) -> dict[str, Any]:
    """A group of failures."""
    return {
        "state": group.state.name.lower(),
        "reason": group.reason,
        "why": REASONS.get(group.reason, group.reason),
        "count": group.count,
        "examples": list(group.examples),
    }


def kinds() -> Sequence[EntityKind | TaskKind]:
    """Every kind, by name."""
    return [KINDS[name] for name in sorted(KINDS)]


def _moment(name: str, bound: int | str | None) -> Moment | None:
    if bound is None:
        return None
    if isinstance(bound, int):
        return Moment(position=bound)
    # 0 would be no time: the first event of a log is much younger than both.
    return Moment(time_us=parse_time(f"selection.{name}", bound) or 1)


def _readable(selection: Mapping[str, Any]) -> dict[str, Any]:
    """A stored selection with its bounds as they were given."""
    made = dict(selection)
    for name in ("from", "to"):
        bound = made.get(name)
        if bound:
            position = bound.get("position")
            made[name] = position or clock.format_us(bound["time_us"])
    return made


KindShape.model_rebuild()
