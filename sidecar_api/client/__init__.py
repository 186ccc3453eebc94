"""The Python client of a node. Users import it as ``everstate.client``.

async with Client("everstate://127.0.0.1:7400/default") as client:
    await client.append_event("cart", "c-1", "ItemAdded", b'{"sku": "a"}')
    async for event in client.events("cart", "c-1"):
        ...
"""

from journal.groups.model import (
    Group,
    GroupChange,
    GroupSettings,
    ParkedCount,
    ParkedEvent,
    ParkedSelection,
)
from journal.model import (
    ANY,
    EXISTS,
    FROM_NOW,
    NO_ENTITY,
    Append,
    Appended,
    AppendedEntity,
    Entity,
    EntityAppend,
    EntityPage,
    EntityPart,
    Event,
    EventBatch,
    EventView,
    Expectation,
    Expected,
    Limits,
    LoadQuery,
    LogInfo,
    NewEvent,
    NewSnapshot,
    ReadQuery,
    Snapshot,
    SubscribeQuery,
    SubscriptionBatch,
    VerifyProgress,
    VerifyReport,
)
from kernel.errors import EverstateError, OutcomeUnknown, Unavailable, WrongExpectedState
from sidecar_api.client.client import Client, ClientSettings
from sidecar_api.client.groups import GroupDelivery, Member
from sidecar_api.client.target import Target
from snapshots.model import DueEntity, DuePage, EntityType, SnapshotInfo, Source, TypeSettings

__all__ = [
    "ANY",
    "EXISTS",
    "FROM_NOW",
    "NO_ENTITY",
    "Append",
    "Appended",
    "AppendedEntity",
    "Client",
    "ClientSettings",
    "DueEntity",
    "DuePage",
    "Entity",
    "EntityAppend",
    "EntityPage",
    "EntityPart",
    "EntityType",
    "Event",
    "EventBatch",
    "EventView",
    "EverstateError",
    "Expectation",
    "Expected",
    "Group",
    "GroupChange",
    "GroupDelivery",
    "GroupSettings",
    "Limits",
    "LoadQuery",
    "LogInfo",
    "Member",
    "NewEvent",
    "NewSnapshot",
    "OutcomeUnknown",
    "ParkedCount",
    "ParkedEvent",
    "ParkedSelection",
    "ReadQuery",
    "Snapshot",
    "SnapshotInfo",
    "Source",
    "SubscribeQuery",
    "SubscriptionBatch",
    "Target",
    "TypeSettings",
    "Unavailable",
    "VerifyProgress",
    "VerifyReport",
    "WrongExpectedState",
]
