"""Marks of entities: what operations know of them, apart from the heads that appends lock.

Whoever changes what a mark stands for (holds, the floor, an entity's state) holds the row's lock.
They are made on demand and locked in the order of their keys, so two operations never deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from kernel import sql
from kernel.database import Connection
from operations.model import Item


class Mark(NamedTuple):
    """A locked mark. ``state_by``: the operation that set the entity's state last."""

    entity_key: int
    held: bool
    state_by: UUID | None


class Keys(NamedTuple):
    """Items as columns: what the statements on several entities take."""

    keys: list[int]
    types: list[int]
    ids: list[str]


def keys_of(items: Sequence[Item]) -> Keys:
    """The entities of items, by ascending key."""
    found = sorted((i.entity_key or 0, i.entity_type_id or 0, i.entity_id) for i in items)
    return Keys([k for k, _, _ in found], [t for _, t, _ in found], [i for _, _, i in found])


async def lock(
    connection: Connection, schema: str, log_id: int, items: Sequence[Item]
) -> Mapping[int, Mark]:
    """The marks of the items' entities, locked until the transaction ends."""
    keys = keys_of(items).keys
    await connection.execute(sql.load("operations", "marks_make", schema), log_id, keys)
    rows = await connection.fetch(sql.load("operations", "marks_lock", schema), log_id, keys)
    return {row[0]: Mark(*row) for row in rows}
