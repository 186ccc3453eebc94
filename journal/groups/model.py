"""What consumer groups speak of, and what is refused. Pure data, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from kernel.errors import InvalidArgument
from kernel.ids import SLICES

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}").fullmatch

MAX_PARTITIONS: Final = 256
MAX_CREDITS: Final = 10_000
MAX_TYPES: Final = 1_000
REASON_CHARS: Final = 2_000
FROM_NOW: Final = -1
"""As a position to begin at: after the head."""


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """How a group delivers; the protocol says what each setting means, and its range."""

    entity_types: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
    partitions: int = 16
    global_order: bool = False
    entity_window: int = 1
    ack_timeout: timedelta = timedelta(seconds=30)
    max_attempts: int = 10
    backoff_min: timedelta = timedelta(milliseconds=200)
    backoff_max: timedelta = timedelta(seconds=30)
    skip_parked: bool = False
    max_parked: int = 100_000


@dataclass(frozen=True, slots=True)
class GroupChange:
    """New values of settings; None: as it is."""

    entity_types: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None
    entity_window: int | None = None
    ack_timeout: timedelta | None = None
    max_attempts: int | None = None
    backoff_min: timedelta | None = None
    backoff_max: timedelta | None = None
    skip_parked: bool | None = None
    max_parked: int | None = None


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A connected member."""

    member_id: str
    name: str
    node: str
    joined_at_us: int
    partitions: int


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """A part of the slices, and where it is; ``member_id`` is empty when nobody has it."""

    partition: int
    first_slice: int
    last_slice: int
    watermark: int
    pending: int
    member_id: str
    epoch: int
    parked: int


@dataclass(frozen=True, slots=True)
class Group:
    """A group: everything that matches, up to ``position``, is acked or put aside.

    ``members`` and ``partitions`` are only known of a single group, not in lists.
    """

    group_id: int
    name: str
    log: str
    settings: GroupSettings
    version: int
    created_at_us: int
    position: int
    head: int
    lag_bytes: int
    lag_seconds: float
    parked: int
    held: int
    replaying: int
    members_total: int
    members: tuple[GroupMember, ...] = ()
    partitions: tuple[GroupPartition, ...] = ()

    @property
    def lag_events(self) -> int:
        """Events of the log after `position`, matching or not."""
        return max(0, self.head - self.position)


@dataclass(frozen=True, slots=True)
class GroupPage:
    """A page of groups; ``next_page_token`` is empty on the last one."""

    groups: tuple[Group, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ParkedSelection:
    """Which parked events: all that fit everything that is set; nothing set: none."""

    all: bool = False
    entity_type: str = ""
    entity_id: str = ""
    event_type: str = ""
    positions: tuple[int, ...] = ()
    reason_contains: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing is set."""
        return not (
            self.all
            or self.entity_type
            or self.event_type
            or self.positions
            or self.reason_contains
        )


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that was put aside."""

    position: int
    sequence: int
    entity_type: str
    entity_id: str
    type: str
    state: str
    reason: str
    attempts: int
    parked_at_us: int
    partition: int


@dataclass(frozen=True, slots=True)
class ParkedPage:
    """A page of parked events; ``next_page_token`` is empty on the last one."""

    events: tuple[ParkedEvent, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ParkedCount:
    """What a replay or a discard does: events, their entities, held ones that follow."""

    events: int = 0
    entities: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class NodeGroupSettings:
    """How a node takes part: ``term`` of a member whose node is silent, how often it looks at what
    others did, how long acks are collected for one commit, memory for events that wait. ``commits``
    and ``looks`` bound the database connections that groups use at once, so that however many
    members there are, appends and reads find one.
    """

    node: str = "node"
    term: timedelta = timedelta(seconds=10)
    poll: timedelta = timedelta(milliseconds=500)
    flush: timedelta = timedelta(milliseconds=4)
    figures: timedelta = timedelta(seconds=10)
    buffer_bytes: int = 64_000_000
    member_bytes: int = 4_000_000
    member_events: int = 5_000
    max_members: int = 500
    commits: int = 2
    looks: int = 2


def check_group_name(name: str, where: str = "name") -> str:
    """``name`` when it is a group's. Raises `InvalidArgument`."""
    if not _NAME(name):
        raise InvalidArgument(where, "names are [a-z][a-z0-9_]{0,39}")
    return name


def slices_of(partition: int, partitions: int) -> tuple[int, int]:
    """The slices of a partition, inclusive."""
    return partition * SLICES // partitions, (partition + 1) * SLICES // partitions - 1


def check_settings(settings: GroupSettings) -> GroupSettings:
    """``settings`` when every value is in its range. Raises `InvalidArgument`."""

    def within(name: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            raise InvalidArgument(f"settings.{name}", f"{value} is not within {low}..{high}")

    def ms(value: timedelta) -> int:
        return round(value.total_seconds() * 1000)

    for name, kinds in (
        ("entity_types", settings.entity_types),
        ("event_types", settings.event_types),
    ):
        if len(kinds) > MAX_TYPES:
            raise InvalidArgument(f"settings.{name}", f"has more than {MAX_TYPES} items")
        for i, kind in enumerate(kinds):
            if not kind or len(kind) > 255 or any(ord(c) < 32 or ord(c) == 127 for c in kind):
                raise InvalidArgument(
                    f"settings.{name}[{i}]", "is empty, longer than 255, or has control characters"
                )
    within("partitions", settings.partitions, 1, MAX_PARTITIONS)
    if settings.global_order and settings.partitions != 1:
        raise InvalidArgument("settings.partitions", "global_order has one partition: give 0 or 1")
    within("entity_window", settings.entity_window, 1, 1_000)
    within("ack_timeout_ms", ms(settings.ack_timeout), 100, 86_400_000)
    within("max_attempts", settings.max_attempts, 1, 1_000)
    within("backoff_min_ms", ms(settings.backoff_min), 1, 86_400_000)
    within("backoff_max_ms", ms(settings.backoff_max), ms(settings.backoff_min), 86_400_000)
    within("max_parked", settings.max_parked, 1, 1_000_000)
    return settings


def check_selection(selection: ParkedSelection) -> ParkedSelection:
    """``selection`` when it can be meant. Raises `InvalidArgument`."""
    if selection.entity_id and not selection.entity_type:
        raise InvalidArgument("selection.entity_type", "is needed with entity_id")
    if len(selection.positions) > 1_000:
        raise InvalidArgument("selection.positions", "has more than 1000 items")
    if any(not 0 < position < 2**63 for position in selection.positions):
        raise InvalidArgument("selection.positions", f"a position is not within 1..{2**63 - 1}")
    for name in ("entity_type", "entity_id", "event_type", "reason_contains"):
        text = getattr(selection, name)
        if len(text) > REASON_CHARS or "\0" in text:
            raise InvalidArgument(f"selection.{name}", f"is longer than {REASON_CHARS} or has NUL")
    return selection
