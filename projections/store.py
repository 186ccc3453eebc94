"""Statements of projections, and what the driver says of the user's statements."""

from __future__ import annotations

from typing import Any, NamedTuple

import asyncpg

from kernel import sql
from kernel.database import Connection, Database, translate
from kernel.errors import DeadlineExceeded, EverstateError, Unavailable
from projections.model import Segment, StatementError

PAGE = 1_000
CONSTRAINT_ERRORS = (asyncpg.IntegrityConstraintViolationError,)
SCHEMA_EXISTS = (asyncpg.DuplicateSchemaError,)


class Runnable(NamedTuple):
    """A segment that may be worked on; see runnable.sql."""

    name: str
    version: int
    build: int
    segment: int
    first_slice: int
    last_slice: int
    position: int
    state: str
    schema_name: str
    role_name: str
    target_position: int
    stop_position: int | None
    kind: str
    digest: str
    on_poison: str
    log: str

    @property
    def key(self) -> Segment:
        """The segment, without its build."""
        return Segment(*self[:7])


async def runnable(database: Database, *, timeout: float | None = 10) -> list[Runnable]:
    """All segments that may be worked on."""
    found: list[Runnable] = []
    last: tuple[str, int, int, int] = ("", 0, 0, 0)
    text = statement("runnable", database.schema)
    while True:
        rows = await database.fetch(text, *last, PAGE, timeout=timeout)
        found += (Runnable(*row) for row in rows)
        if len(rows) < PAGE:
            return found
        last = found[-1][:4]


async def checkpoint(
    database: Database, segment: Segment, *, timeout: float | None = 10
) -> tuple[int, int | None, str]:
    """Where a segment stands, where it is told to stop, and the state of its build."""
    row = await database.fetchrow(
        sql.load("projections", "checkpoint", database.schema),
        segment.name, segment.version, segment.build, segment.segment, timeout=timeout,
    )  # fmt: skip
    return tuple(row) if row else (segment.position, None, "retired")


async def source_of(
    database: Database, name: str, version: int, *, timeout: float | None = 10
) -> str:
    """The text of a version that was a file; empty: it was not, or there is none."""
    row = await database.fetchrow(
        sql.load("projections", "source", database.schema), name, version, timeout=timeout
    )
    return row[0] if row else ""


def statement(name: str, schema: str) -> str:
    """A statement of ours."""
    return sql.load("projections", name, schema)


async def run(connection: Connection, name: str, schema: str, *args: object) -> Any:
    """The first row of a statement of ours inside a transaction."""
    return await connection.fetchrow(statement(name, schema), *args)


def user_error(error: BaseException, connection: Connection, offset: int = 0) -> BaseException:
    """What a statement of the user's failed of: `StatementError`, or an error of the tree when it
    is not the statement's fault and may pass. ``offset``: characters that we put before it.
    """
    meaning = translate(error)
    if isinstance(error, EverstateError) or isinstance(meaning, DeadlineExceeded):
        return meaning
    if isinstance(error, asyncpg.PostgresError):
        if isinstance(meaning, Unavailable):
            return meaning
        position = int(getattr(error, "position", None) or 0)
        return StatementError(
            error.args[0] if error.args else type(error).__name__,
            error.sqlstate or "",
            max(position - offset, 0) if position else 0,
            getattr(error, "context", None) or "",
        )
    if isinstance(error, asyncpg.InterfaceError) and not connection.is_closed():
        # Arguments that do not fit, or two statements at once.
        return StatementError(str(error))
    return meaning
