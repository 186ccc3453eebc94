"""What the journal speaks of: appends, events, entities, logs. Pure data, no I/O.

Sequence numbers and positions are 1-based. Times are microseconds since the Unix epoch, UTC
(``*_us``). Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

DEFAULT_LOG = "default"
SYSTEM_LOG = "_system"
DEFAULT_CHUNK_SIZE = 1 << 22
"""Positions a chunk."""

OCTET_STREAM = "application/octet-stream"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold. Text limits count characters, the others bytes or events."""

    entity_type_chars: int = 255
    event_type_chars: int = 255
    entity_id_chars: int = 512
    metadata_bytes: int = 16 * 1024
    event_bytes: int = 1_000_000
    append_events: int = 1_000
    append_bytes: int = 4_000_000
    message_bytes: int = 8_000_000


class Expectation(Enum):
    """Expected states that are not a number."""

    ANY = "any"
    EXISTS = "exists"


ANY = Expectation.ANY
"""The entity may be in any state."""
EXISTS = Expectation.EXISTS
"""The entity has at least one event."""
NO_ENTITY = 0
"""The entity has no event: the exact sequence number 0."""

Expected = int | Expectation


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """State of an entity as it is after the append that carries it."""

    type: str
    payload: bytes
    content_type: str = OCTET_STREAM


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be appended.

    ``entity`` is the index into the append's entities. ``event_id`` is a lower-case UUID; the
    server makes one when it is empty, but then a retry cannot be recognised. ``metadata_json`` is
    a JSON object or empty.
    """

    type: str
    payload: bytes
    content_type: str = OCTET_STREAM
    entity: int = 0
    event_id: str = ""
    metadata_json: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""
    subject: str = ""
    client_time_us: int = 0
    schema_version: int = 0


@dataclass(frozen=True, slots=True)
class EntityAppend:
    """One entity of an append and what it is expected to be.

    ``expected`` is an exact last sequence number (0: no entity), `EXISTS` or `ANY`.
    ``first_sequence`` is given by writers that bring their own numbers; 0: the journal numbers.
    """

    entity_type: str
    entity_id: str
    expected: Expected = ANY
    first_sequence: int = 0
    snapshot: NewSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """Events for one entity or, atomically, for several; ``events`` are in log order."""

    entities: tuple[EntityAppend, ...]
    events: tuple[NewEvent, ...]
    append_id: str = ""


class AppendedEntity(NamedTuple):
    """The sequence numbers that an append gave to an entity.

    ``snapshot_due``: a hint that a snapshot is wanted; see AppendedEntity in the protocol.
    """

    first_sequence: int
    last_sequence: int
    snapshot_due: bool = False


class Appended(NamedTuple):
    """The outcome of an append: on disk, as one gapless run of positions.

    ``duplicate``: it had been written before, and these are the numbers of the first time.
    """

    first_position: int
    last_position: int
    recorded_at_us: int
    entities: tuple[AppendedEntity, ...]
    duplicate: bool = False


class EventView(Protocol):
    """A stored event, however it is held: `Event`, or a thin view over a protobuf message."""

    @property
    def position(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def entity_type(self) -> str: ...
    @property
    def entity_id(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def event_id(self) -> str: ...
    @property
    def recorded_at_us(self) -> int: ...
    @property
    def metadata_json(self) -> str: ...
    @property
    def correlation_id(self) -> str: ...
    @property
    def causation_id(self) -> str: ...
    @property
    def traceparent(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def client_time_us(self) -> int: ...
    @property
    def schema_version(self) -> int: ...
    @property
    def slice(self) -> int: ...
    @property
    def previous_position(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event. ``previous_position`` is 0 for an entity's first event."""

    position: int
    sequence: int
    entity_type: str
    entity_id: str
    type: str
    content_type: str
    payload: bytes
    event_id: str
    recorded_at_us: int
    metadata_json: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""
    subject: str = ""
    client_time_us: int = 0
    schema_version: int = 0
    slice: int = 0
    previous_position: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Stored state of an entity; it covers the events up to ``sequence``."""

    sequence: int
    type: str
    content_type: str
    payload: bytes
    recorded_at_us: int


@dataclass(frozen=True, slots=True)
class Entity:
    """The head of an entity. ``floor`` is the lowest sequence number that can be read."""

    entity_type: str
    entity_id: str
    sequence: int
    floor: int
    state: str
    event_count: int
    first_position: int
    last_position: int
    slice: int
    snapshot_sequence: int = 0


@dataclass(frozen=True, slots=True)
class EntityPart:
    """A piece of a loaded entity: the first has ``entity`` and perhaps ``snapshot``."""

    entity: Entity | None
    snapshot: Snapshot | None
    events: Sequence[EventView]


@dataclass(frozen=True, slots=True)
class EventBatch:
    """A piece of a read.

    Everything before ``next_position`` (after it, backwards) has been covered. ``removed`` are
    inclusive ranges of positions that compaction or retention took out of what the batch covers.
    """

    events: Sequence[EventView]
    next_position: int
    head: int
    removed: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """A selection of a log. Positions and times: 0 = unbounded; slices: inclusive ranges.

    Forwards, ``from_position`` is the first to read and ``to_position`` the last; backwards it is
    the other way round: reading begins at ``from_position`` and goes down.
    """

    from_position: int = 0
    to_position: int = 0
    backwards: bool = False
    max_events: int = 0
    entity_types: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
    slices: tuple[tuple[int, int], ...] = ()
    from_time_us: int = 0
    to_time_us: int = 0


FROM_NOW = -1
"""Begins a subscription after the head."""


@dataclass(frozen=True, slots=True)
class SubscribeQuery:
    """What a subscription delivers.

    ``from_position`` is the first position wanted (0: the log's first, `FROM_NOW`: after the head);
    ``from_time_us`` leaves out what was recorded before. The filters are those of `ReadQuery`; they
    may name types that do not exist yet.
    """

    from_position: int = 0
    entity_types: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
    slices: tuple[tuple[int, int], ...] = ()
    from_time_us: int = 0


@dataclass(frozen=True, slots=True)
class SubscriptionBatch:
    """A piece of a subscription; without events it is a heartbeat.

    Everything before ``next_position`` has been covered: a subscription that goes on from there
    misses nothing and repeats nothing. ``caught_up``: with this batch the subscriber has everything
    up to the head; ``fell_behind``: it was caught up, and what it has not read has left the node's
    memory, so it is fed from the database again. Both are said once for each change.
    """

    events: Sequence[EventView]
    next_position: int
    head: int
    removed: tuple[tuple[int, int], ...] = ()
    caught_up: bool = False
    fell_behind: bool = False


@dataclass(frozen=True, slots=True)
class LoadQuery:
    """Which part of an entity to load; see LoadEntityRequest in the protocol."""

    entity_type: str
    entity_id: str
    after_sequence: int = 0
    to_sequence: int = 0
    ignore_snapshot: bool = False


@dataclass(frozen=True, slots=True)
class EntityPage:
    """A page of entities; ``next_page_token`` is empty on the last one."""

    entities: tuple[Entity, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class LogInfo:
    """A log: head, first readable position, chunks."""

    log: str
    head: int
    first: int
    chunk_size: int
    chunks: int
    chunks_ahead: int
    recorded_at_us: int
    bytes_total: int
    entities: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The proof of a log's invariants 1–3 over a range of positions, or what breaks them."""

    ok: bool
    from_position: int
    to_position: int
    events: int
    removed: int
    entities: int
    holes: int
    findings: tuple[str, ...] = ()
    findings_total: int = 0


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far a verification has come; the last one has the report."""

    verified_to: int
    head: int
    report: VerifyReport | None = field(default=None)
