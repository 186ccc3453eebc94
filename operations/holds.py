"""Holds: why nothing of an entity may be removed. An entity has any number, one a label.

They are made and ended by operations (`operations.kinds.holds`); here they are looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from kernel import sql
from kernel.database import Database
from kernel.errors import InvalidArgument, LogNotFound
from operations.model import MAX_PAGE

DEFAULT_LABEL = "operator"
MAX_LABEL = 40

_LABEL = re.compile(r"[a-z][a-z0-9_]{0,39}").fullmatch


@dataclass(frozen=True, slots=True)
class HoldRow:
    """A hold. ``operation``: the one that made it, ``op-<uuid>``; None: none did."""

    entity_type: str
    entity_id: str
    label: str
    reason: str
    principal: str
    operation: str | None
    held_at: datetime


def check_label(label: object, field: str = "label") -> str:
    """``label`` when it is one.

    Raises:
        InvalidArgument: it is not; names ``field``.

    """
    if not isinstance(label, str) or not _LABEL(label):
        raise InvalidArgument(field, f"labels are [a-z][a-z0-9_]{{0,{MAX_LABEL - 1}}}")
    return label


async def list_holds(
    database: Database,
    log: str,
    label: str = "",
    after: tuple[str, str, str] = ("", "", ""),
    limit: int = 100,
    *,
    timeout: float | None = 10,
) -> list[HoldRow]:
    """A page of a log's holds by label, or of one label; entities of a type stand together.

    Go on ``after`` the label, entity type and entity id of the last one.

    Raises:
        NotFound: there is no such log. InvalidArgument: ``limit`` is not from 1 to 1,000, or
        ``label`` is none.

    """
    if label:
        check_label(label)
    rows = await database.fetch(
        sql.load("operations", "holds_list", database.schema), await _log_id(database, log),
        label, *after, _limit(limit),
        timeout=timeout,
    )  # fmt: skip
    return [HoldRow(**row) for row in rows]


async def list_entity_holds(
    database: Database,
    log: str,
    entity_type: str,
    entity_id: str,
    after: str = "",
    limit: int = 100,
    *,
    timeout: float | None = 10,
) -> list[HoldRow]:
    """A page of the holds on an entity by label; go on ``after`` the last one's label.

    Raises:
        As `list_holds`. None are found of an entity that is not there.

    """
    rows = await database.fetch(
        sql.load("operations", "holds_entity", database.schema), await _log_id(database, log),
        entity_type, entity_id, after, _limit(limit),
        timeout=timeout,
    )  # fmt: skip
    return [HoldRow(**row) for row in rows]


async def _log_id(database: Database, log: str) -> int:
    row = await database.fetchrow(sql.load("journal", "log_id", database.schema), log)
    if row is None:
        raise LogNotFound(log)
    found: int = row[0]
    return found


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument("limit", f"{limit} is not from 1 to {MAX_PAGE}")
    return limit
