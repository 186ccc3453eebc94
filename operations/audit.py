"""Who planned, applied, stopped and undid what: the audit events of operations."""

from __future__ import annotations

from typing import Any, Final

from kernel.audit import record
from kernel.database import Connection
from operations.model import OperationRow

__all__ = ["ENGINE", "note", "record"]

ENGINE: Final = "system:engine"
"""Who did what no person asked for at that moment: a start, an end, an expiry."""


async def note(
    connection: Connection,
    schema: str,
    row: OperationRow,
    type_: str,
    principal: str = ENGINE,
    **more: Any,
) -> None:
    """Keeps that something happened to an operation, in the transaction of the change.

    It says kind, state and counts, and ``more``; never what is inside of events.
    """
    data = {
        "kind": row.kind,
        "state": row.state,
        "target": row.target,
        "log": row.log,
        "items": row.items,
        "digest": row.digest,
    }
    if row.cursor or row.done or row.failed or row.skipped:
        data |= {"done": row.done, "skipped": row.skipped, "failed": row.failed}
    if row.undone_by is not None:
        data["undone"] = row.undone
    await record(
        connection, schema, "operation", row.id, f"Operation{type_}", data | more, principal
    )
