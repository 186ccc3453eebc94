"""Entities, snapshots, holds and entity types as the HTTP API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel


class EntityShape(BaseModel):
    """An entity; ``floor``: its events begin there; ``snapshot``: the newest one's, or 0."""

    entity_type: str
    entity_id: str
    state: Literal["active", "deleted", "tombstoned"]
    sequence: int
    events: int
    first_position: int
    last_position: int
    floor: int
    snapshot: int
    held: bool


class SnapshotShape(BaseModel):
    """A snapshot without its payload; ``covers``: the entity's floor rests on it;
    ``usable``: loads begin with it.
    """

    entity_type: str
    entity_id: str
    sequence: int
    position: int
    event_at: datetime | None
    type: str
    content_type: str
    size_bytes: int
    recorded_at: datetime | None
    verified_at: datetime | None
    source: Literal["owner", "fold"]
    covers: bool
    usable: bool


class HoldShape(BaseModel):
    """Why nothing of an entity is removed; ``operation``: the one that made it."""

    entity_type: str
    entity_id: str
    label: str
    reason: str
    principal: str
    operation: str | None
    held_at: datetime


class TypeShape(BaseModel):
    """What is set for an entity type. ``version`` 0: nothing has ever been set."""

    name: str
    needs_full_replay: bool
    snapshot_types: list[str]
    trust_snapshots: bool
    snapshot_every: int
    snapshot_age_s: int
    keep_snapshots: int
    version: int
    updated_at: datetime | None
    updated_by: str
