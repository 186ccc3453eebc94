"""Builds of a projection: ordering, comparing, switching, going back, dropping.

The tests move checkpoints and fill tables themselves, as a worker would, so that every order of
events can be made. With real workers: tests/faults/test_rebuilds.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from admin_ui.routes import read
from kernel.database import Database, DatabaseSettings
from kernel.errors import Conflict, NotFound, Unavailable
from projections import control
from projections.model import reader_role, role_name, schema_name
from projections.rebuild import MOST_BEHIND, Rebuilds
from tests.integration.test_projections_http import app_of
from tests.support import running

NAME = "stock"
SHORT = timedelta(seconds=1)
TABLE = "CREATE TABLE items (id text PRIMARY KEY, n int NOT NULL)"


@dataclass
class Model:
    """A projection whose builds the test fills itself."""

    database: Database
    url: str
    rebuilds: Rebuilds

    async def run(self, statement: str, *args: object) -> list[Any]:
        async with self.database.connection() as connection:
            return await connection.fetch(statement, *args)

    async def value(self, statement: str, *args: object) -> Any:
        return (await self.run(statement, *args))[0][0]

    async def register(self) -> None:
        """Version 1, live, with one segment at position 0."""
        await self.run(
            "INSERT INTO everstate.projections (name, live_version, live_build) VALUES ($1, 1, 1)",
            NAME,
        )
        await self.run(
            "INSERT INTO everstate.projection_versions (name, version, kind, digest, log_id,"
            " entity_types, event_types, segments, on_poison, replayable)"
            " SELECT $1, 1, 'python', 'x', log_id, '{}', '{}', 2, 'halt', true"
            " FROM everstate.logs WHERE name = 'default'",
            NAME,
        )
        await self.make(1, 1, "live")
        await self.publish(1, 1)

    def role(self, version: int, build: int, database: str) -> str:
        return role_name(database, "everstate", schema_name(NAME, version, build))

    async def publish(self, version: int, build: int) -> None:
        database = await self.value("SELECT current_database()::text")
        schema = schema_name(NAME, version, build)
        await self.run(
            "SELECT everstate.publish_read_model_v1($1, $2, $3, $4)", schema,
            self.role(version, build, database), f"rm_{NAME}", reader_role(database, "everstate"),
        )  # fmt: skip

    async def make(
        self, version: int, build: int, state: str = "building", tables: str = TABLE
    ) -> None:
        """What a worker does with an order: schema, role, tables, checkpoints."""
        database = await self.value("SELECT current_database()::text")
        schema, role = schema_name(NAME, version, build), self.role(version, build, database)
        async with self.database.connection() as connection, connection.transaction():
            await connection.execute(
                "SELECT everstate.create_read_model_v1($1, $2, $3, $4)", schema, role,
                f"rm_{NAME}", reader_role(database, "everstate"),
            )  # fmt: skip
            await connection.execute(f'SET LOCAL ROLE "{role}"')
            await connection.execute(f"SET LOCAL search_path = {schema}; {tables}")
            await connection.execute("RESET ROLE; RESET search_path")
            await connection.execute(
                "INSERT INTO everstate.projection_builds (name, version, build, state, schema_name,"
                " role_name, tables, target_position) VALUES ($1, $2, $3, $4, $5, $6, '{items}', 0)"
                " ON CONFLICT (name, version, build) DO UPDATE SET state = $4",
                NAME, version, build, state, schema, role,
            )  # fmt: skip
            await connection.execute(
                "INSERT INTO everstate.projection_checkpoints"
                " (name, version, build, segment, first_slice, last_slice)"
                " VALUES ($1, $2, $3, 0, 0, 511), ($1, $2, $3, 1, 512, 1023)",
                NAME, version, build,
            )  # fmt: skip

    async def second(self, state: str = "ready") -> tuple[int, int]:
        """Another build, made and at position 0."""
        key = await self.rebuilds.order(NAME)
        await self.make(*key, state)
        return key

    async def advance(
        self, key: tuple[int, int], position: int, segment: int | None = None
    ) -> None:
        await self.run(
            "UPDATE everstate.projection_checkpoints SET position = $4 WHERE name = $1"
            " AND version = $2 AND build = $3 AND ($5::int IS NULL OR segment = $5)",
            NAME, *key, position, segment,
        )  # fmt: skip

    async def put(self, key: tuple[int, int], item: str, n: int) -> None:
        await self.run(
            f"INSERT INTO {schema_name(NAME, *key)}.items VALUES ($1, $2)"
            " ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n",
            item, n,
        )  # fmt: skip

    async def seen(self) -> dict[str, int]:
        return dict(map(tuple, await self.run(f"SELECT id, n FROM rm_{NAME}.items")))

    async def states(self) -> dict[tuple[int, int], str]:
        rows = await self.run(
            "SELECT version, build, state FROM everstate.projection_builds WHERE name = $1", NAME
        )
        return {(row[0], row[1]): row[2] for row in rows}

    async def stops(self) -> list[Any]:
        rows = await self.run(
            "SELECT stop_position FROM everstate.projection_builds"
            " WHERE stop_until > clock_timestamp() AND name = $1",
            NAME,
        )
        return [row[0] for row in rows]


LIVE = (1, 1)


async def made(url: str) -> AsyncIterator[Model]:
    database = await Database.open(DatabaseSettings(url))
    model = Model(database, url, Rebuilds(database))
    await model.register()
    yield model
    await database.close()


@pytest.fixture
async def model(database_url: str) -> AsyncIterator[Model]:
    """A projection with a live build on PostgreSQL 18."""
    async for model in made(database_url):
        yield model


@pytest.fixture
async def any_model(any_database_url: str) -> AsyncIterator[Model]:
    """The same on 18 and on 15: for what makes, shows, reads and drops tables."""
    async for model in made(any_database_url):
        yield model


async def live(model: Model) -> tuple[int, int]:
    row = await control.get_projection(model.database, NAME)
    return row.live_version, row.live_build


# -- ordering --------------------------------------------------------------------------------------


async def test_a_rebuild_is_ordered_as_another_build_and_readers_notice_nothing(
    model: Model,
) -> None:
    await model.put(LIVE, "a", 1)
    row = await control.rebuild(model.database, NAME)
    assert (row.version, row.build, row.state) == (1, 2, "ordered")
    assert row.schema_name == "rm_stock_v1_r2"
    assert await live(model) == LIVE
    assert await model.seen() == {"a": 1}


async def test_a_second_rebuild_while_one_is_under_way_is_refused(model: Model) -> None:
    await control.rebuild(model.database, NAME)
    with pytest.raises(Conflict, match="build 2 of version 1 is ordered: switch to it or discard"):
        await control.rebuild(model.database, NAME)
    assert (await control.discard(model.database, NAME)).state == "retired"
    assert (await control.rebuild(model.database, NAME)).build == 3


@pytest.mark.parametrize("what", ["rebuild", "switch", "rollback", "compare", "discard"])
async def test_an_unknown_projection_is_not_found(model: Model, what: str) -> None:
    with pytest.raises(NotFound, match="'other'"):
        await getattr(control, what)(model.database, "other")


# -- switching -------------------------------------------------------------------------------------


async def test_a_switch_shows_the_new_tables_and_keeps_the_old_build(any_model: Model) -> None:
    model = any_model
    await model.put(LIVE, "a", 1)
    new = await model.second()
    await model.put(new, "a", 2)
    row = await control.switch(model.database, NAME)
    assert (row.version, row.build, row.state) == (1, 2, "live")
    assert await model.seen() == {"a": 2}
    assert await model.states() == {LIVE: "previous", new: "live"}
    assert await model.stops() == []


async def test_a_switch_waits_until_the_new_build_is_where_the_live_one_is(model: Model) -> None:
    new = await model.second()
    await model.advance(LIVE, 50)
    await model.advance(new, 40, segment=0)
    await model.advance(new, 50, segment=1)
    switching = asyncio.ensure_future(model.rebuilds.switch(NAME))
    while await model.stops() != [50, 50]:
        await asyncio.sleep(0.01)
    assert not switching.done()
    assert await live(model) == LIVE
    await model.advance(new, 50, segment=0)
    assert (await switching).key == new
    assert await live(model) == new


async def test_a_build_that_does_not_catch_up_in_time_is_refused_and_the_live_one_goes_on(
    model: Model,
) -> None:
    new = await model.second()
    await model.advance(LIVE, 50)
    await model.advance(new, 49)
    with pytest.raises(Conflict, match=r"build 2 of version 1 is 1 positions behind .* no worker"):
        await model.rebuilds.switch(NAME, within=SHORT)
    assert await model.states() == {LIVE: "live", new: "ready"}
    assert await model.stops() == []


async def test_a_build_that_is_far_behind_does_not_stop_the_live_one_at_all(model: Model) -> None:
    await model.second()
    await model.advance(LIVE, MOST_BEHIND + 1)
    with pytest.raises(Conflict, match="positions behind"):
        await model.rebuilds.switch(NAME)
    assert await model.stops() == []


async def test_a_build_that_is_not_ready_is_refused(model: Model) -> None:
    await model.second("building")
    with pytest.raises(Conflict, match="build 2 of version 1 is building: position 0 of 0"):
        await control.switch(model.database, NAME)
    with pytest.raises(Conflict, match="build 2 of version 1 is building"):
        await control.switch(model.database, NAME, 1, 2)
    with pytest.raises(NotFound, match="no build 9 of version 1"):
        await control.switch(model.database, NAME, 1, 9)


async def test_a_switch_to_what_is_live_changes_nothing(model: Model) -> None:
    assert (await control.switch(model.database, NAME, *LIVE)).live_build == 1
    assert await model.states() == {LIVE: "live"}


async def test_readers_in_a_loop_see_the_old_or_the_new_tables_and_never_an_error(
    any_model: Model,
) -> None:
    model = any_model
    await model.put(LIVE, "a", 0)
    await model.put(LIVE, "b", 0)
    seen: set[tuple[int, ...]] = set()
    reads = 0

    async def read() -> None:
        nonlocal reads
        async with await psycopg.AsyncConnection.connect(model.url, autocommit=True) as connection:
            while True:
                cursor = await connection.execute(
                    f"SELECT a.n, b.n FROM rm_{NAME}.items a, rm_{NAME}.items b"
                    " WHERE a.id = 'a' AND b.id = 'b'"
                )
                rows = await cursor.fetchall()
                assert len(rows) == 1, "an empty table"
                seen.add(rows[0])
                reads += 1

    async with running(read(), read(), read()) as readers:
        for n in range(1, 9):
            key = await model.second()
            await model.put(key, "a", n)
            await model.put(key, "b", n)
            await model.rebuilds.switch(NAME)
            before = reads
            while reads < before + 6:
                await asyncio.sleep(0)
                assert not any(reader.done() for reader in readers), readers
    assert seen == {(n, n) for n in range(9)}


async def test_a_long_query_makes_a_switch_wait_and_try_again(model: Model) -> None:
    await model.second()
    async with await psycopg.AsyncConnection.connect(model.url) as reader:
        await reader.execute(f"SELECT * FROM rm_{NAME}.items")  # holds the view until it ends
        switching = asyncio.ensure_future(model.rebuilds.switch(NAME))
        done, _ = await asyncio.wait([switching], timeout=1.2)
        assert not done, "two attempts gave up"
        # Others read meanwhile: they do not queue behind the switch for long.
        async with asyncio.timeout(3):
            assert await model.seen() == {}
        await reader.rollback()
        assert (await switching).build == 2


async def test_a_switch_that_died_leaves_a_stop_that_ends_by_itself(model: Model) -> None:
    new = await model.second()
    await model.advance(LIVE, 5)
    switching = asyncio.ensure_future(model.rebuilds.switch(NAME, within=SHORT))
    while await model.stops() != [5, 5]:
        await asyncio.sleep(0.01)
    model.rebuilds._release = None  # type: ignore[method-assign, assignment] # as if it were killed
    switching.cancel()
    with pytest.raises((asyncio.CancelledError, TypeError)):
        await switching
    assert await model.stops() == [5, 5]
    left = await model.value(
        "SELECT max(stop_until) - clock_timestamp() FROM everstate.projection_builds"
    )
    assert left < timedelta(seconds=7)
    await model.advance(new, 5)
    assert (await Rebuilds(model.database).switch(NAME)).key == new


async def test_a_page_over_http_is_of_one_build_though_readers_are_switched_meanwhile(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await model.second()
    await model.put(LIVE, "a", 1)
    await model.advance(LIVE, 10)
    http = await app_of(model.database)
    original = read._found
    attempts: list[Any] = []

    async def found_then_switched(*args: Any) -> Any:
        found = await original(*args)
        # The new build comes to the same position, and would go live now.
        await model.put(new, "a", 2)
        await model.advance(new, 10)
        build = {b.key: b for b in await model.rebuilds.builds(NAME)}
        attempts.append(
            await model.rebuilds._try_switch(NAME, build[LIVE], build[new], level=False)
        )
        return found

    monkeypatch.setattr(read, "_found", found_then_switched)
    page = (await http.get(f"/api/v1/read/{NAME}/items")).ok()
    assert page == {"rows": [{"id": "a", "n": 1}], "next": None, "position": 10}
    assert isinstance(attempts[0], Unavailable), "the switch has to wait for the page"
    monkeypatch.undo()
    assert (await model.rebuilds.switch(NAME)).key == new
    page = (await http.get(f"/api/v1/read/{NAME}/items")).ok()
    assert page["rows"] == [{"id": "a", "n": 2}]
    (await http.get(f"/api/v1/read/{NAME}/nosuch")).problem(404, "NOT_FOUND")


# -- going back ------------------------------------------------------------------------------------


async def test_rollback_shows_the_previous_build_again_and_forth(model: Model) -> None:
    new = await model.second()
    await model.put(LIVE, "a", 1)
    await model.put(new, "a", 2)
    await model.rebuilds.switch(NAME)
    row = await control.rollback(model.database, NAME)
    assert (row.live_version, row.live_build) == LIVE
    assert await model.seen() == {"a": 1}
    assert await model.states() == {LIVE: "live", new: "previous"}
    assert (await control.switch(model.database, NAME, *new)).build == 2


async def test_rollback_never_goes_back_in_time(model: Model) -> None:
    new = await model.second()
    await model.rebuilds.switch(NAME)
    await model.advance(new, 10)
    with pytest.raises(Conflict, match=r"is 10 positions behind .* `replaces`"):
        await model.rebuilds.rollback(NAME, within=SHORT)
    assert await live(model) == new


async def test_without_a_previous_build_rollback_is_refused(model: Model) -> None:
    await model.second()
    with pytest.raises(Conflict, match="has no build that is previous"):
        await control.rollback(model.database, NAME)


# -- dropping --------------------------------------------------------------------------------------


async def exists(model: Model, key: tuple[int, int]) -> bool:
    return bool(
        await model.value("SELECT to_regnamespace($1) IS NOT NULL", schema_name(NAME, *key))
    )


async def due(model: Model, grace: timedelta) -> list[tuple[int, int, str]]:
    return [(r["version"], r["build"], r["what"]) for r in await model.rebuilds.due(grace)]


async def test_the_previous_build_is_dropped_after_the_grace_time_and_not_before(
    any_model: Model,
) -> None:
    model = any_model
    await model.second()
    await model.rebuilds.switch(NAME)
    assert await due(model, timedelta(hours=1)) == []
    assert await due(model, timedelta(0)) == [(1, 1, "retire")]
    assert await model.rebuilds.retire(NAME, LIVE)
    assert await exists(model, LIVE)
    # Killed here: the next one finds what is left to do.
    assert await due(model, timedelta(hours=1)) == [(1, 1, "drop")]
    assert await model.rebuilds.drop(NAME, LIVE)
    assert not await exists(model, LIVE)
    assert await due(model, timedelta(0)) == []
    assert not await model.rebuilds.drop(NAME, LIVE), "a second worker finds nothing to do"
    assert not await model.rebuilds.retire(NAME, LIVE)
    assert await model.value(
        "SELECT count(*) FROM everstate.projection_checkpoints WHERE build = 1"
    ) == 0  # fmt: skip
    with pytest.raises(Conflict, match="no build that is previous"):
        await control.rollback(model.database, NAME)


async def test_only_one_previous_build_is_kept(model: Model) -> None:
    for _ in range(2):
        await model.second()
        await model.rebuilds.switch(NAME)
    assert await due(model, timedelta(hours=1)) == [(1, 1, "retire")]


async def test_a_drop_waits_for_nobody_and_is_done_later(model: Model) -> None:
    new = await model.second()
    await model.rebuilds.switch(NAME)
    await model.rebuilds.retire(NAME, LIVE)
    async with await psycopg.AsyncConnection.connect(model.url) as reader:
        await reader.execute(f"SELECT * FROM {schema_name(NAME, *LIVE)}.items")
        with pytest.raises(Exception, match="a lock was not free in time"):
            await model.rebuilds.drop(NAME, LIVE)
        assert await exists(model, LIVE)
        await reader.rollback()
    assert await model.rebuilds.drop(NAME, LIVE)
    assert await live(model) == new


async def test_the_live_build_is_never_discarded(model: Model) -> None:
    with pytest.raises(Conflict, match="build 1 of version 1 is live"):
        await control.discard(model.database, NAME, *LIVE)


async def test_a_build_is_ready_when_all_its_segments_reached_its_target(model: Model) -> None:
    new = await model.second("building")
    await model.run(
        "UPDATE everstate.projection_builds SET target_position = 7 WHERE build = 2"
    )  # fmt: skip
    await model.advance(new, 7, segment=0)
    assert await model.rebuilds.note_ready() == []
    await model.advance(new, 7)
    assert await model.rebuilds.note_ready() == [(NAME, *new)]
    assert (await model.states())[new] == "ready"


# -- comparing -------------------------------------------------------------------------------------


async def test_equal_builds_compare_equal_whatever_the_order_of_rows(model: Model) -> None:
    new = await model.second()
    for key, items in ((LIVE, "abc"), (new, "cab")):
        for n in items:
            await model.put(key, n, ord(n))
    found = await control.compare(model.database, NAME)
    assert found.equal
    assert (found.old, found.new, found.position) == (LIVE, new, 0)
    assert [(t.table, t.old_rows, t.new_rows) for t in found.tables] == [("items", 3, 3)]
    assert await model.stops() == []


async def test_a_seeded_difference_is_found_and_shown(any_model: Model) -> None:
    model = any_model
    new = await model.second()
    for n in range(100):
        await model.put(LIVE, f"i{n}", n)
        await model.put(new, f"i{n}", n if n != 42 else 43)
    await model.put(new, "more", 1)
    found = await control.compare(model.database, NAME)
    assert not found.equal
    (table,) = found.tables
    assert (table.old_rows, table.new_rows) == (100, 101)
    assert table.only_old == ({"id": "i42", "n": 42},)
    assert sorted(row["id"] for row in table.only_new) == ["i42", "more"]


async def test_differences_are_shown_up_to_a_bound(model: Model) -> None:
    new = await model.second()
    await model.run(f"INSERT INTO {schema_name(NAME, *new)}.items SELECT g::text, g FROM"
                    " generate_series(1, 1000) g")  # fmt: skip
    (table,) = (await control.compare(model.database, NAME)).tables
    assert (table.new_rows, len(table.only_new)) == (1000, 10)


async def test_tables_and_columns_that_only_one_has_are_named(any_model: Model) -> None:
    model = any_model
    key = await model.rebuilds.order(NAME)
    await model.make(
        *key, "ready",
        "CREATE TABLE items (id text PRIMARY KEY, n bigint, extra int); CREATE TABLE more (x int)",
    )  # fmt: skip
    found = await control.compare(model.database, NAME)
    assert found.equal, "what both have is equal"
    assert (found.missing, found.added) == ((), ("more",))
    assert found.tables[0].skipped == ("n", "extra")


async def test_a_comparison_waits_until_both_are_at_one_position(model: Model) -> None:
    new = await model.second()
    await model.advance(LIVE, 10)
    await model.advance(new, 12)
    comparing = asyncio.ensure_future(model.rebuilds.compare(NAME))
    while await model.stops() != [12, 12]:
        await asyncio.sleep(0.01)
    assert not comparing.done()
    await model.advance(LIVE, 12)
    assert (await comparing).position == 12


async def test_a_comparison_of_builds_that_do_not_come_together_is_refused(model: Model) -> None:
    await model.second()
    await model.advance(LIVE, 10)
    with pytest.raises(Conflict, match="did not both come to position 10 within 1 s"):
        await model.rebuilds.compare(NAME, within=SHORT)
    assert await model.stops() == []
