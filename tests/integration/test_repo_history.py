"""The sample's Python projection alone, however its events are cut into batches."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from everstate.projections import ProjectedEvent, Projection
from kernel import usercode
from kernel.database import Connection, Database
from projections import registry
from tests import repo_history as history
from tests.support import SAMPLE

LINES = history.lines_of_the_sample()


class Writer:
    """A `Tx` on a connection whose search path is the projection's schema."""

    replaying = True

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def execute(self, statement: str, *args: object) -> None:
        await self.connection.execute(statement, *args)

    async def executemany(self, statement: str, args: Sequence[Sequence[object]]) -> None:
        await self.connection.executemany(statement, args)

    async def fetch(self, statement: str, *args: object) -> Sequence[Mapping[str, Any]]:
        return await self.connection.fetch(statement, *args)


def folders() -> Projection:
    code = usercode.find(SAMPLE.parent)
    assert code is not None
    definitions = {d.name: d for d in registry.load(code)}
    assert definitions.keys() == {"files", "folders", "spans"}
    assert {name for name, d in definitions.items() if d.replayable} == {"files", "spans"}
    make = definitions["folders"].make
    assert make is not None
    return make()


def event(position: int, line: history.Line) -> ProjectedEvent:
    at = history.at(line)
    name, kind = line["entity_id"], line["type"]
    return ProjectedEvent(
        position, 1, "file", name, kind, at, at, line["data"], {}, b"", "application/json", "", 0
    )


@pytest.mark.parametrize(("seed", "events"), [(0, len(LINES)), (1, 3000), (2, 3000)])
async def test_lines_of_folders_equal_the_fold_however_batches_are_cut(
    database: Database, seed: int, events: int
) -> None:
    # 3,000 events end before the package was renamed.
    chosen, sizes = LINES[:events], random.Random(seed)
    projection, done = folders(), 0
    async with database.connection() as connection:
        await connection.execute(
            f"CREATE SCHEMA rm; SET search_path = rm; {type(projection).tables}"
        )
        while done < events:
            size = sizes.choice([1, 2, 3, 17, 200]) if seed else 500
            batch = [event(i, line) for i, line in enumerate(chosen[done : done + size], done + 1)]
            async with connection.transaction():
                await projection.apply(batch, Writer(connection))  # type: ignore[arg-type]
            done += size
        rows = await connection.fetch(
            "SELECT folder, month, changes, added, deleted, lines FROM folders"
        )
        await connection.execute("RESET search_path")
    found = {(row[0], row[1]): tuple(row)[2:] for row in rows}
    assert found == history.folders(chosen)
