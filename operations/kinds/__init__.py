"""The kinds of operations, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeGuard

from kernel.errors import InvalidArgument
from operations.kinds.base import EntityKind, TaskKind
from operations.kinds.compact import Compact
from operations.kinds.groups import DiscardParked, ReplayParked, Seek
from operations.kinds.holds import Hold, Release
from operations.kinds.projections import Rebuild, Replay
from operations.kinds.snapshot import Snapshot, SnapshotPrune
from operations.kinds.states import SoftDelete, Tombstone, Undelete

_ALL: tuple[EntityKind | TaskKind, ...] = (
    Compact(),
    DiscardParked(),
    Hold(),
    Rebuild(),
    Release(),
    Replay(),
    Snapshot(),
    SnapshotPrune(),
    ReplayParked(),
    Seek(),
    SoftDelete(),
    Tombstone(),
    Undelete(),
)
KINDS: Mapping[str, EntityKind | TaskKind] = {kind.name: kind for kind in _ALL}
"""Every kind there is, by name; a module adds itself above by one line."""

PROMPT: Final = frozenset({"hold", "release", "soft-delete", "tombstone", "undelete"})
"""Kinds whose steps are short and give projections nothing to do: they wait neither for projections
nor for other operations."""


def kind_named(name: str) -> EntityKind | TaskKind:
    """The kind of a name.

    Raises:
        InvalidArgument: there is none; names those there are.

    """
    found = KINDS.get(name)
    if found is None:
        raise InvalidArgument("kind", f"{name!r:.60} is not one of {', '.join(sorted(KINDS))}")
    return found


def acts_on_entities(kind: EntityKind | TaskKind) -> TypeGuard[EntityKind]:
    """Whether a kind acts on the entities of a selection; else it is a task."""
    return hasattr(kind, "judge")


def is_task(kind: EntityKind | TaskKind) -> TypeGuard[TaskKind]:
    """Whether a kind is a task: not `acts_on_entities`."""
    return not acts_on_entities(kind)
