"""Who changed what: audit events, written in the transaction of the change they tell of.

A worker appends them to the log `_system`, with their id as append id, so never twice, and deletes
them. A change that was rolled back leaves no audit event, and a change that stands has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from kernel import sql
from kernel.database import Connection


async def record(
    connection: Connection,
    schema: str,
    entity_type: str,
    entity_id: str,
    type_: str,
    data: Mapping[str, Any],
    principal: str,
) -> None:
    """Keeps an audit event in the transaction that ``connection`` is in.

    ``entity_type`` and ``entity_id`` name the entity of `_system` whose event it becomes. ``data``
    becomes JSON; it never holds payloads or secrets. ``principal`` is `Principal.identity`.
    """
    await connection.execute(
        sql.load("kernel", "audit_record", schema),
        entity_type, entity_id, type_, orjson.dumps(data).decode(), principal,
    )  # fmt: skip
