"""What answers look like in the OpenAPI document, where no dataclass of a room says it already.

Answers are written by orjson; these models never see one. `tests/integration/test_openapi.py` holds
answers and models together. Models of answers take what they do not name, so that a client made
from the document goes on working when a field is added.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

from projections.compare import TableComparison

Row = TypeVar("Row")


class Page(BaseModel, Generic[Row]):
    """A page of a list. ``next`` asks for the page after it; null: this is the last one."""

    rows: list[Row]
    next: str | None


class Token(BaseModel):
    """A token without its secret."""

    id: str
    name: str
    role: str
    grants: list[str]
    state: str
    created_at: datetime | None
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    last_used_at: datetime | None


class MadeToken(Token):
    """A new token; ``token`` is its secret, shown in the first answer only."""

    token: str | None


class WhoAmI(BaseModel):
    """A principal."""

    kind: str
    name: str
    role: str
    grants: list[str]


class Member(BaseModel):
    """A process, with its newest figures."""

    id: str
    kind: str
    name: str
    address: str
    version: str
    alive: bool
    started_at: datetime
    seen_at: datetime
    details: dict[str, Any]
    figures: dict[str, Any] | None


class Vital(BaseModel):
    """Figures of a process at a time."""

    at: datetime
    figures: dict[str, Any]


class GroupSettings(BaseModel):
    """How a consumer group delivers."""

    entity_types: list[str]
    event_types: list[str]
    partitions: int
    global_order: bool
    entity_window: int
    ack_timeout_ms: int
    max_attempts: int
    backoff_min_ms: int
    backoff_max_ms: int
    skip_parked: bool
    max_parked: int


class Group(BaseModel):
    """A consumer group and how far it is."""

    name: str
    log: str
    position: int
    head: int
    lag_events: int
    lag_bytes: int
    lag_seconds: float
    parked: int
    held: int
    replaying: int
    members: int
    version: int
    created_at: datetime
    settings: GroupSettings


class GroupMember(BaseModel):
    """A connected member."""

    member_id: str
    name: str
    node: str
    joined_at: datetime
    partitions: int


class GroupPartition(BaseModel):
    """A part of a group's slices."""

    partition: int
    first_slice: int
    last_slice: int
    watermark: int
    pending: int
    member_id: str
    epoch: int
    parked: int


class WholeGroup(Group):
    """A consumer group with its members and partitions."""

    members_list: list[GroupMember]
    partitions: list[GroupPartition]


class ParkedEvent(BaseModel):
    """An event that a group has put aside; ``reason`` needs the grant ``payload``."""

    position: int
    sequence: int
    entity_type: str
    entity_id: str
    type: str
    state: str
    reason: str | None
    attempts: int
    parked_at: datetime
    partition: int


class Compared(BaseModel):
    """Two builds, as version and build each, compared at ``position``."""

    name: str
    old: list[int]
    new: list[int]
    position: int
    tables: list[TableComparison]
    missing: list[str]
    added: list[str]
    equal: bool


class ReadColumn(BaseModel):
    """A column of a read model."""

    name: str
    type: str


class ReadTable(BaseModel):
    """A table of a read model."""

    name: str
    columns: list[ReadColumn]
    key: list[str]


class ReadModel(BaseModel):
    """The tables of a read model."""

    projection: str
    version: int
    position: int
    tables: list[ReadTable]


class ReadRows(BaseModel):
    """Rows of a table, as the read model was at ``position``."""

    rows: list[dict[str, Any]]
    next: str | None = Field(description="Token of the next page; null: this is the last one.")
    position: int
