"""Compares two builds of a projection table by table, at one position.

The caller has brought both to the same position and keeps them there until `snapshot` has returned;
then both may go on, because everything is read from that snapshot of the database. Counts and
checksums say whether two tables are equal, whatever their size and order; where they are not, a few
rows that only one of them has are shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from kernel import sql
from kernel.database import Connection, Database

SHOWN = 10
"""Rows of each side that are shown of a table that differs."""


@dataclass(frozen=True, slots=True)
class TableComparison:
    """A table that both builds have, on the columns that both have with the same type.

    ``only_old`` and ``only_new`` are rows (at most `SHOWN`) that the other one has not; ``skipped``
    are columns that were not compared, because one side lacks them or has another type.
    """

    table: str
    equal: bool
    old_rows: int
    new_rows: int
    only_old: tuple[Mapping[str, Any], ...] = ()
    only_new: tuple[Mapping[str, Any], ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two builds, as (version, build), at ``position``. ``missing`` tables are only in the old one,
    ``added`` ones only in the new.

    ``equal``: every table that both have is equal on the columns that both have.
    """

    name: str
    old: tuple[int, int]
    new: tuple[int, int]
    position: int
    tables: tuple[TableComparison, ...]
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Nothing that was compared differs."""
        return all(table.equal for table in self.tables)


@dataclass(frozen=True, slots=True)
class Columns:
    """What two schemas have: tables of each, and the columns they share."""

    old: frozenset[str]
    new: frozenset[str]
    shared: Mapping[str, Sequence[str]]
    skipped: Mapping[str, Sequence[str]]


@asynccontextmanager
async def snapshot(database: Database, timeout: float) -> AsyncIterator[Connection]:
    """A connection in a transaction that sees the database as it is at its first query.

    Each of its statements may take ``timeout`` seconds.
    """
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(f"SET LOCAL statement_timeout = {int(timeout * 1000)}")
        yield connection


async def columns(connection: Connection, schema: str, old: str, new: str) -> Columns:
    """Tables and columns of two schemas."""
    rows = await connection.fetch(sql.load("projections", "compare_columns", schema), old, new)
    tables: dict[bool, set[str]] = {True: set(), False: set()}
    types: dict[tuple[str, str], dict[bool, str]] = defaultdict(dict)
    for table, column, kind, is_old in rows:
        tables[is_old].add(table)
        types[table, column][is_old] = kind
    shared: dict[str, list[str]] = defaultdict(list)
    skipped: dict[str, list[str]] = defaultdict(list)
    for (table, column), kinds in types.items():
        if not (table in tables[True] and table in tables[False]):
            continue
        same = len(kinds) == 2 and kinds[True] == kinds[False]
        (shared if same else skipped)[table].append(column)
    return Columns(frozenset(tables[True]), frozenset(tables[False]), shared, skipped)


async def compare_tables(
    connection: Connection, schema: str, old: str, new: str, found: Columns, timeout: float
) -> tuple[TableComparison, ...]:
    """Every table that both schemas have. ``connection`` is in a `snapshot` of ``timeout``."""
    digest = sql.load("projections", "compare_digest", schema)
    compared: list[TableComparison] = []
    for table in sorted(found.old & found.new):
        shared = found.shared.get(table, ())
        skipped = tuple(found.skipped.get(table, ()))
        a = await connection.fetchrow(digest, old, table, shared, timeout=timeout)
        b = await connection.fetchrow(digest, new, table, shared, timeout=timeout)
        equal = tuple(a) == tuple(b)
        differences: dict[str, list[Mapping[str, Any]]] = {"old": [], "new": []}
        if not equal:
            rows = await connection.fetch(
                sql.load("projections", "compare_differences", schema),
                old, new, table, shared, SHOWN, timeout=timeout,
            )  # fmt: skip
            for side, content in rows:
                differences[side].append(orjson.loads(content))
        compared.append(
            TableComparison(
                table=table,
                equal=equal,
                old_rows=a["row_count"],
                new_rows=b["row_count"],
                only_old=tuple(differences["old"]),
                only_new=tuple(differences["new"]),
                skipped=skipped,
            )
        )
    return tuple(compared)
