"""What projections are made of: the class users write, what it is given, and its definition.

Pure data, no I/O. `everstate.projections` re-exports what users need.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol

from journal.model import DEFAULT_LOG
from kernel.errors import ConfigurationError
from kernel.ids import SLICES

OnPoison = Literal["halt", "park"]
Kind = Literal["python", "sql"]

MAX_SEGMENTS = 1024
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class StatementError(Exception):
    """A statement that PostgreSQL or the confinement refused.

    ``position`` is the 1-based character of the statement at which the cause is, 0: not known;
    ``context`` is what PostgreSQL says of where it was.
    """

    def __init__(
        self, message: str, sqlstate: str = "", position: int = 0, context: str = ""
    ) -> None:
        super().__init__(message)
        self.context = context
        self.message = message
        self.sqlstate = sqlstate
        self.position = position


@dataclass(frozen=True, slots=True)
class ProjectedEvent:
    """An event as a projection sees it.

    ``data`` is the decoded payload (JSON values), None when the content type has no decoder.
    ``time`` is the client's time of the event, or ``recorded_at`` when it gave none. Both are UTC.
    """

    position: int
    sequence: int
    entity_type: str
    entity_id: str
    type: str
    recorded_at: datetime
    time: datetime
    data: Any
    metadata: Mapping[str, Any]
    payload: bytes
    content_type: str
    event_id: str
    schema_version: int


class Tx(Protocol):
    """The transaction of a batch: its writes commit together with the checkpoint, or not at all.

    Statements run as a role that may write in the projection's schema only, which is the search
    path. They may not leave that confinement: no COMMIT, ROLLBACK, SET, RESET, LISTEN and the like.
    Parameters are ``$1``, ``$2``, …. A failed statement fails the batch: `StatementError`.
    """

    @property
    def replaying(self) -> bool:
        """Whether the events are history that is applied again: effects do not run."""
        ...

    async def execute(self, statement: str, *args: object) -> None:
        """Runs a statement; several, separated by semicolons, when there are no arguments."""
        ...

    async def executemany(self, statement: str, args: Sequence[Sequence[object]]) -> None:
        """Runs a statement once a row of arguments, in order, as one pipeline."""
        ...

    async def fetch(self, statement: str, *args: object) -> Sequence[Mapping[str, Any]]:
        """All rows."""
        ...

    async def fetchrow(self, statement: str, *args: object) -> Mapping[str, Any] | None:
        """The first row."""
        ...

    async def fetchval(self, statement: str, *args: object) -> Any:
        """The first column of the first row."""
        ...

    def after_commit(self, effect: Callable[[], Awaitable[None]]) -> None:
        """Runs ``effect`` after the commit, and never while `replaying`.

        For what leaves the database (mails, calls). A worker that dies between the commit and the
        effect leaves it out: at most once.
        """
        ...


class Projection:
    """A read model in Python. Set the class attributes and write `apply`.

    One instance a segment and worker: attributes may cache, but what counts is in the tables.
    """

    name: ClassVar[str]
    """``[a-z][a-z0-9_]{0,39}``; readers find the tables in schema ``rm_<name>``."""
    version: ClassVar[int]
    """From 1. Other code or SQL needs the next one: it is built beside the live one."""
    log: ClassVar[str] = DEFAULT_LOG
    entity_types: ClassVar[Sequence[str]] = ()
    """Handled entity types; empty: all."""
    event_types: ClassVar[Sequence[str]] = ()
    """Handled event types; empty: all."""
    tables: ClassVar[str] = ""
    """CREATE statements, unqualified, run once when the version is registered."""
    segments: ClassVar[int] = 1
    """More than 1 only when every row belongs to one entity: segments run side by side."""
    on_poison: ClassVar[OnPoison] = "halt"
    """What to do with an event that cannot be applied: halt the segment, or park it and go on."""
    replaces: ClassVar[type[Projection] | None] = None
    """The class of the version before, so that it stays up to date until the switch."""

    async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
        """Applies events in log order. How they are cut into batches must not matter."""
        raise NotImplementedError

    async def delete_entity(self, entity_type: str, entity_id: str, tx: Tx) -> None:
        """Removes what the entity's events left. Writing it declares that entities can be
        replayed: delete, then apply their events again.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Handler:
    """Statements of an SQL-only projection for one event type (``*``: the others)."""

    event_type: str
    function: str
    """Name of the SQL function, in the build's schema, that runs them."""
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of a `.sql` file; ``line`` is where it begins, 1-based."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Definition:
    """A version of a projection, as registered. ``origin`` says where it was written."""

    name: str
    version: int
    kind: Kind
    digest: str
    origin: str
    tables: tuple[Statement, ...] = ()
    log: str = DEFAULT_LOG
    entity_types: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
    segments: int = 1
    on_poison: OnPoison = "halt"
    replayable: bool = False
    source: str = ""
    handlers: tuple[Handler, ...] = ()
    delete_entity: Handler | None = None
    superseded: bool = False
    """An older version that a newer one names in `replaces`."""
    make: Callable[[], Projection] | None = field(default=None, compare=False)

    @property
    def title(self) -> str:
        """For messages."""
        return f"projection {self.name} version {self.version}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a build: slices ``first_slice``..``last_slice``, done up to ``position``."""

    name: str
    version: int
    build: int
    segment: int
    first_slice: int
    last_slice: int
    position: int

    @property
    def lease_name(self) -> str:
        """Its name among the leases of kind ``segment``."""
        return lease_name(self.name, self.version, self.build, self.segment)


def lease_name(name: str, version: int, build: int, segment: int) -> str:
    """The name of a segment's lease."""
    return f"{name}/{version}/{build}/{segment}"


def schema_name(name: str, version: int, build: int = 1) -> str:
    """The schema of the tables of a build."""
    return f"rm_{name}_v{version}" + (f"_r{build}" if build > 1 else "")


def views_schema(name: str) -> str:
    """The schema of the views that show the live build."""
    return f"rm_{name}"


def segment_slices(segments: int) -> list[tuple[int, int]]:
    """The slices of each segment, contiguous and as even as can be."""
    edges = [SLICES * i // segments for i in range(segments + 1)]
    return [(a, b - 1) for a, b in itertools.pairwise(edges)]


def role_name(database: str, schema: str, read_model: str) -> str:
    """The role of a build with the schema ``read_model``. Roles are the cluster's, so the name
    stands for the database too.
    """
    return _role("rm", f"{database}\0{schema}\0{read_model}")


def reader_role(database: str, schema: str) -> str:
    """The role that may read the views of all projections of a database, and nothing else."""
    return _role("readers", f"{database}\0{schema}")


def _role(kind: str, of: str) -> str:
    return f"everstate_{kind}_{hashlib.sha256(of.encode()).hexdigest()[:20]}"


def check_definition(definition: Definition) -> Definition:
    """``definition`` when its values are in range.

    Raises:
        ConfigurationError: names the file or class, the field and the limit.

    """

    def refuse(field_name: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{definition.origin}: {field_name}: {problem}")

    name = definition.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise refuse("name", f"{name!r} does not match [a-z][a-z0-9_]{{0,39}}")
    if re.search(r"_v[0-9]+(_r[0-9]+)?$", name):
        raise refuse("name", f"{name!r} ends like the schema of a version (_v1): choose another")
    for label, value, most in (
        ("version", definition.version, 2**31 - 1),
        ("segments", definition.segments, MAX_SEGMENTS),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise refuse(label, f"{value!r} is not a number from 1 to {most}")
    if definition.on_poison not in ("halt", "park"):
        raise refuse("on_poison", f"{definition.on_poison!r} is neither halt nor park")
    if not isinstance(definition.log, str) or not definition.log:
        raise refuse("log", f"{definition.log!r} is not a log's name")
    for label, names in (
        ("entity_types", definition.entity_types),
        ("event_types", definition.event_types),
    ):
        for text in names:
            if not isinstance(text, str) or not text or len(text) > 255:
                raise refuse(label, f"{text!r} is not a name of 1 to 255 characters")
    return definition
