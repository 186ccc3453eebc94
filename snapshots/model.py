"""What snapshots are, and what is set for an entity type. Pure data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from kernel.errors import InvalidArgument

MAX_PAGE = 1_000
KEPT_AT_LEAST = 2
"""So many newest snapshots of an entity are never removed but with the entity itself."""


class Source(IntEnum):
    """Who made a snapshot."""

    OWNER = 0
    """The entity's owner: a sidecar, a client."""
    FOLD = 1
    """A fold of the platform."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A stored snapshot without its payload.

    ``position`` and ``event_at_us`` are those of the newest event it covers (0: not known);
    ``verified_at_us``: load = replay was proven then (0: never); ``covers``: the floor rests on it;
    ``usable``: loads use it, by the settings of the entity type.
    """

    entity_type: str
    entity_id: str
    sequence: int
    position: int
    event_at_us: int
    type: str
    content_type: str
    size_bytes: int
    recorded_at_us: int
    verified_at_us: int
    source: Source
    covers: bool
    usable: bool = True


@dataclass(frozen=True, slots=True)
class DueEntity:
    """An entity that its type's policy wants a snapshot of.

    ``snapshot_sequence`` is that of the newest usable snapshot (0: none); ``reason``: ``events`` or
    ``age``.
    """

    entity_type: str
    entity_id: str
    sequence: int
    snapshot_sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class DuePage:
    """Some entities that are due, by id; go on ``after`` this id, or at an end when it is empty.

    A page may hold fewer than asked for, even none, and not be the last.
    """

    entities: tuple[DueEntity, ...]
    after: str = ""


@dataclass(frozen=True, slots=True)
class TypeSettings:
    """What is set for an entity type; durations in seconds, 0: none.

    needs_full_replay: its owner cannot load a snapshot: loads send none, and nothing of it is
        compacted.
    snapshot_types: types of snapshots that its owner can load; empty: any. Others are passed over
        by loads and cover nothing.
    trust_snapshots: snapshots of the owner count as verified, where no fold can prove them.
    snapshot_every: a snapshot is due after so many events since the newest one.
    snapshot_age_s: a snapshot is due when the oldest event since the newest one is older.
    keep_snapshots: pruning leaves so many newest ones.
    """

    needs_full_replay: bool = False
    snapshot_types: tuple[str, ...] = ()
    trust_snapshots: bool = False
    snapshot_every: int = 0
    snapshot_age_s: int = 0
    keep_snapshots: int = KEPT_AT_LEAST

    def check(self) -> TypeSettings:
        """These settings when they are within their limits.

        Raises:
            InvalidArgument: names the setting and the limit.

        """
        if not 0 <= self.snapshot_every <= 1_000_000:
            raise InvalidArgument("snapshot_every", f"{self.snapshot_every} is not 0 to 1,000,000")
        if not 0 <= self.snapshot_age_s <= 10 * 365 * 86_400:
            raise InvalidArgument("snapshot_age_s", f"{self.snapshot_age_s} is not 0 to ten years")
        if not KEPT_AT_LEAST <= self.keep_snapshots <= 1_000:
            raise InvalidArgument(
                "keep_snapshots", f"{self.keep_snapshots} is not {KEPT_AT_LEAST} to 1,000"
            )
        if len(self.snapshot_types) > 20:
            raise InvalidArgument("snapshot_types", f"{len(self.snapshot_types)} are more than 20")
        for name in self.snapshot_types:
            if not 1 <= len(name) <= 255 or not name.isprintable():
                raise InvalidArgument("snapshot_types", "a type has 1 to 255 printable characters")
        return self


@dataclass(frozen=True, slots=True)
class EntityType:
    """An entity type and what is set for it. ``version`` grows with every change (0: never set)."""

    name: str
    settings: TypeSettings = field(default_factory=TypeSettings)
    version: int = 0
    updated_at_us: int = 0
    updated_by: str = ""
