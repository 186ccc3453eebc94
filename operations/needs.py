"""Who still needs events: builds of projections and consumer groups, and how far each is."""

from __future__ import annotations

from typing import Any

from kernel import sql
from kernel.database import Connection, Database
from operations.kinds.base import Need

_SECONDS = 10.0


async def current(database: Database, log_id: int) -> list[Need]:
    """Everybody who reads this log and has a place in it: builds that are ordered, building,
    ready, live or previous, and groups.
    """
    rows = await database.fetch(
        sql.load("operations", "needs", database.schema), log_id, timeout=_SECONDS
    )
    return [_need(row) for row in rows]


async def current_in(connection: Connection, schema: str, log_id: int) -> list[Need]:
    """`current`, inside somebody's transaction."""
    rows = await connection.fetch(sql.load("operations", "needs", schema), log_id)
    return [_need(row) for row in rows]


def _need(row: Any) -> Need:
    name = row["name"]
    if row["version"]:
        name += f" v{row['version']}"
        if row["state"] != "live":
            name += f" ({row['state']})"
    return Need(name, frozenset(row["entity_types"]), row["position"])
