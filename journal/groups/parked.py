"""What operations do with a group's list of parked events, and with where a group is.

Every function is a part of somebody's transaction, which has locked the group's partitions (`lock`)
before it: holders write nothing meanwhile, and notice afterwards by the epoch or by the version of
the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from kernel import sql
from kernel.database import Connection, Database

LAST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which events of a list: all that fit everything that is set.

    ``entities``: (type, id) each; positions are inclusive.
    """

    entity_types: tuple[str, ...] = ()
    entities: tuple[tuple[str, str], ...] = ()
    event_type: str = ""
    reason_contains: str = ""
    positions: tuple[int, ...] = ()
    from_position: int = 1
    to_position: int = LAST

    def filters(self, after: int) -> tuple[object, ...]:
        """The parameters of the statements, from behind a position on."""
        return (
            max(self.from_position, after + 1),
            self.to_position,
            list(self.entity_types) or None,
            [kind for kind, _ in self.entities] or None,
            [entity_id for _, entity_id in self.entities] or None,
            self.event_type,
            self.reason_contains,
            list(self.positions) or None,
        )


async def choose(
    database: Database, group_id: int, chosen: Chosen, after: int, limit: int
) -> list[Any]:
    """A page of the list by position; rows of ``parked_chosen.sql``."""
    return await database.fetch(
        sql.load("journal", "parked_chosen", database.schema), group_id, *chosen.filters(after),
        limit, timeout=30,
    )  # fmt: skip


async def count_entities(
    database: Database, group_id: int, chosen: Chosen, states: Sequence[str]
) -> int:
    """How many entities the events of these states have."""
    row = await database.fetchrow(
        sql.load("journal", "parked_entities", database.schema), group_id, *chosen.filters(0),
        states, timeout=30,
    )  # fmt: skip
    found: int = row[0]
    return found


async def lock(connection: Connection, schema: str, group_id: int) -> None:
    """Keeps holders from writing until the transaction ends."""
    await connection.fetch(sql.load("journal", "group_lock", schema), group_id)


async def replay(
    connection: Connection,
    schema: str,
    group_id: int,
    due: Mapping[int, datetime],
    *,
    hold: bool,
) -> set[int]:
    """Has parked events delivered again, each not before its time; those that were parked.

    ``hold``: the group holds events back behind parked ones of their entity.
    """
    rows = await connection.fetch(
        sql.load("journal", "parked_replay", schema), group_id, list(due), list(due.values())
    )
    await _changed(connection, schema, group_id, rows, 0, hold=hold)
    return {row["position"] for row in rows}


async def take_off(
    connection: Connection, schema: str, group_id: int, positions: Sequence[int], *, hold: bool
) -> dict[int, str]:
    """Takes events off the list; by position, what `put_back` needs (JSON)."""
    rows = await connection.fetch(
        sql.load("journal", "parked_take_off", schema), group_id, positions
    )
    await _changed(connection, schema, group_id, rows, -1, hold=hold)
    return {row["position"]: row["whole"] for row in rows}


async def put_back(
    connection: Connection, schema: str, group_id: int, rows: Sequence[str], *, hold: bool
) -> set[int]:
    """Puts events back on the list as they were; positions of those that were not there."""
    found = await connection.fetch(sql.load("journal", "parked_put_back", schema), group_id, rows)
    await _changed(connection, schema, group_id, found, 1, hold=hold)
    return {row["position"] for row in found}


async def _changed(
    connection: Connection, schema: str, group_id: int, rows: Sequence[Any], more: int, *,
    hold: bool,
) -> None:  # fmt: skip
    """What follows from a change of the list: who waits behind whom, counts, the version."""
    if not rows:
        return
    entities = {(row["entity_type"], row["entity_id"]) for row in rows}
    if hold:
        await connection.execute(
            sql.load("journal", "group_order", schema), group_id,
            *map(list, zip(*entities, strict=True)),
        )  # fmt: skip
    counts = Counter(row["partition"] for row in rows)
    await connection.fetch(
        sql.load("journal", "group_count", schema), group_id, list(counts),
        [more * count for count in counts.values()], True,
    )  # fmt: skip


# Where a group is


async def seek(
    connection: Connection, schema: str, group_id: int, watermark: int, operation: UUID
) -> dict[str, Any]:
    """Moves all partitions behind a position; what `restore` needs (JSON)."""
    rows = await connection.fetch(sql.load("journal", "group_image", schema), group_id)
    by = await _sought_by(connection, schema, group_id)
    await connection.execute(
        sql.load("journal", "group_seek", schema), group_id, watermark, operation
    )
    return {
        "sought_by": str(by) if by else None,
        "partitions": [
            [row["partition"], row["watermark"], row["pending"], row["attempts"], row["due_us"]]
            for row in rows
        ],
    }


async def restore(
    connection: Connection, schema: str, group_id: int, before: Mapping[str, Any], operation: UUID
) -> bool:
    """Moves the partitions back to where they were before an operation moved them; False: the group
    is gone, or was moved again since.
    """
    rows = await connection.fetch(sql.load("journal", "group_image", schema), group_id)
    was = before["partitions"]
    if [row["partition"] for row in rows] != [row[0] for row in was]:
        return False
    if await _sought_by(connection, schema, group_id) != operation:
        return False
    arrays = [["{" + ",".join(map(str, row[i])) + "}" for row in was] for i in (2, 3, 4)]
    await connection.fetch(
        sql.load("journal", "group_restore", schema), group_id, [row[0] for row in was],
        [row[1] for row in was], *arrays, before["sought_by"],
    )  # fmt: skip
    return True


async def _sought_by(connection: Connection, schema: str, group_id: int) -> UUID | None:
    row = await connection.fetchrow(sql.load("journal", "group_sought_by", schema), group_id)
    found: UUID | None = row[0] if row else None
    return found
