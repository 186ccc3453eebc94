"""Registering projections: schema, role, views; what is refused, and that nothing stays of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import asyncpg
import pytest

from kernel.database import Database, DatabaseSettings
from kernel.errors import ConfigurationError, Conflict, LogNotFound
from projections import control, sqlfile
from projections.model import Definition
from projections.registration import register

FILES = """\
-- projection: files
-- version: 1
CREATE TABLE files (path text PRIMARY KEY, changes bigint NOT NULL);
-- on: Added
INSERT INTO files VALUES (:meta.entity_id, :data.n)
ON CONFLICT (path) DO UPDATE SET changes = files.changes + excluded.changes;
-- delete entity
DELETE FROM files WHERE path = :meta.entity_id;
"""


@pytest.fixture
async def any_database(any_database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(DatabaseSettings(any_database_url))
    yield database
    await database.close()


def parsed(*changes: tuple[str, str], text: str = FILES) -> Definition:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return sqlfile.parse(text, "files.sql")


async def schemas(database: Database) -> list[str]:
    rows = await database.fetch(
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'rm\\_%' ORDER BY 1"
    )
    return [row[0] for row in rows]


async def test_the_first_version_is_live_at_once_and_readers_see_its_views(
    any_database: Database,
) -> None:
    await register(any_database, [parsed()])
    row = await control.get_projection(any_database, "files")
    assert (row.version, row.build, row.state, row.status) == (1, 1, "live", "live")
    assert (row.tables, row.views, row.schema_name) == (("files",), "rm_files", "rm_files_v1")
    assert (row.position, row.head, row.lag_events, row.lag_seconds) == (0, 0, 0, 0)
    assert await schemas(any_database) == ["rm_files", "rm_files_v1"]
    assert await any_database.fetch("SELECT * FROM rm_files.files") == []
    assert [r.name for r in await control.list_projections(any_database)] == ["files"]
    assert await control.list_projections(any_database, after="files") == []


async def test_a_further_version_is_built_beside_the_live_one(any_database: Database) -> None:
    await register(any_database, [parsed()])
    await register(any_database, [parsed(("version: 1", "version: 2"), ("bigint", "numeric"))])
    rows = await control.list_builds(any_database, "files")
    assert [(r.version, r.state) for r in rows] == [(2, "building"), (1, "live")]
    assert (await control.get_projection(any_database, "files")).version == 1
    kind = await any_database.fetchrow("SELECT pg_typeof(changes)::text FROM rm_files.files")
    assert kind is None
    shown = await any_database.fetchrow(
        "SELECT data_type FROM information_schema.columns"
        " WHERE table_schema = 'rm_files' AND column_name = 'changes'"
    )
    assert shown[0] == "bigint"


async def test_workers_that_start_together_register_once(any_database: Database) -> None:
    await asyncio.gather(*(register(any_database, [parsed()]) for _ in range(4)))
    assert len(await control.list_builds(any_database, "files")) == 1
    assert len(await control.list_segments(any_database, "files", 1, 1)) == 1


async def test_other_sql_under_one_version_is_refused(database: Database) -> None:
    await register(database, [parsed()])
    with pytest.raises(Conflict, match=r"files\.sql: projection files version 1 has other code"):
        await register(database, [parsed((":data.n", ":data.m"))])
    await register(database, [parsed(("-- version: 1", "-- version: 1\n-- on poison: park"))])
    assert (await control.get_projection(database, "files")).on_poison == "park"


async def test_a_schema_that_a_dropped_installation_left_behind_is_named(
    database: Database,
) -> None:
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA rm_files_v1")
    with pytest.raises(Conflict, match="a schema 'rm_files_v1' that no projection of 'everstate'"):
        await register(database, [parsed()])
    assert await control.list_projections(database) == []


async def test_a_version_that_goes_back_is_refused(database: Database) -> None:
    three = parsed(("version: 1", "version: 3"))
    await register(database, [three])
    with pytest.raises(Conflict, match="files version 2 goes back: version 3 is registered"):
        await register(database, [parsed(("version: 1", "version: 2"))])
    with pytest.raises(Conflict, match="files version 1 goes back"):
        await register(database, [parsed()])
    assert await schemas(database) == ["rm_files", "rm_files_v3"]


async def test_a_registered_version_below_the_live_one_is_refused_unless_it_was_superseded(
    database: Database,
) -> None:
    await register(database, [parsed()])
    await register(database, [parsed(("version: 1", "version: 2"))])
    await register(database, [parsed()])  # it is live still
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE everstate.projection_builds SET state = 'previous' WHERE version = 1;"
            "UPDATE everstate.projection_builds SET state = 'live' WHERE version = 2;"
            "UPDATE everstate.projections SET live_version = 2"
        )
    with pytest.raises(Conflict, match="files version 1 goes back: version 2 is registered"):
        await register(database, [parsed()])
    await register(database, [dataclasses.replace(parsed(), superseded=True)])


async def test_an_unknown_log_is_refused_and_so_is_another_log(database: Database) -> None:
    with pytest.raises(LogNotFound, match="nowhere"):
        await register(database, [parsed(("-- version: 1", "-- version: 1\n-- log: nowhere"))])
    assert await schemas(database) == []
    await register(database, [parsed()])
    with pytest.raises(Conflict, match="reads '_system', but version 1 reads 'default'"):
        await register(database, [parsed(("-- version: 1", "-- version: 2\n-- log: _system"))])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bigint NOT NULL", "bigit NOT NULL", 'files.sql:3: type "bigit" does not exist'),
        ("INSERT INTO files", "INSERT INTO filez", 'files.sql:5: relation "filez" does not exist'),
        ("excluded.changes", "excluded.changez", "files.sql:6: column excluded.changez does not"),
        ("VALUES (:meta.entity_id, :data.n)", "SELECT :meta.entity_id, 1, 2", "files.sql:5: "),
        ("path = :meta.entity_id", "pth = :meta.entity_id", 'files.sql:8: column "pth" does not'),
        ("CREATE TABLE files", "CREATE TABLE public.files", "files.sql:3: permission denied"),
        ("CREATE TABLE files", "CREATE TABLE everstate.files", "files.sql:3: permission denied"),
        ("INSERT INTO files", "INSERT INTO everstate.logs", "files.sql:5: permission denied"),
        ("DELETE FROM files", "DELETE FROM everstate.leases", "files.sql:8: permission denied"),
        ("CREATE TABLE files", "SELECT 1/0; CREATE TABLE files", "files.sql:3: division by zero"),
        (":data.n)", "jsonb_build_array(:data.n))", 'files.sql:5: column "changes" is of type'),
    ],
)  # fmt: skip
async def test_wrong_sql_is_refused_with_file_and_line_and_leaves_nothing_behind(
    database: Database, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await register(database, [parsed((old, new))])
    assert caught.value.message.startswith(message)
    assert "(SQLSTATE " in caught.value.message
    assert await schemas(database) == []
    assert await control.list_projections(database) == []


async def test_a_user_who_may_not_create_roles_is_told_the_remedy(
    any_database: Database, any_database_url: str
) -> None:
    async with any_database.connection() as connection:
        name = f"plain_{await connection.fetchval('SELECT pg_backend_pid()')}"
        await connection.execute(
            f"CREATE ROLE {name} LOGIN;"
            f"GRANT USAGE ON SCHEMA everstate TO {name};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA everstate TO {name}"
        )
    url = any_database_url.replace("everstate@", f"{name}@")
    plain = await Database.open(DatabaseSettings(url))
    try:
        with pytest.raises(ConfigurationError, match=f'ALTER ROLE "{name}" CREATEROLE'):
            await register(plain, [parsed()])
        async with any_database.connection() as connection:
            await connection.execute(f"ALTER ROLE {name} CREATEROLE")
        with pytest.raises(ConfigurationError, match=f'GRANT CREATE ON DATABASE .* TO "{name}"'):
            await register(plain, [parsed()])
        async with any_database.connection() as connection:
            database_name = await connection.fetchval("SELECT current_database()")
            await connection.execute(f"GRANT CREATE ON DATABASE {database_name} TO {name}")
        await register(plain, [parsed()])
        assert await plain.fetch("SELECT * FROM rm_files.files") == []
    finally:
        await plain.close()


async def test_readers_may_read_the_views_and_nothing_else(any_database: Database) -> None:
    from projections.model import reader_role

    await register(any_database, [parsed()])
    name = (await any_database.fetchrow("SELECT current_database()"))[0]
    reader = reader_role(name, any_database.schema)
    async with any_database.connection() as connection:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {reader}")
            assert await connection.fetch("SELECT * FROM rm_files.files") == []
        for statement in (
            "SELECT * FROM rm_files_v1.files", "SELECT * FROM everstate.logs",
            "INSERT INTO rm_files.files VALUES ('a', 1)", "CREATE TABLE rm_files.x (a int)",
        ):  # fmt: skip
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"BEGIN; SET LOCAL ROLE {reader}; {statement}")
            await connection.execute("ROLLBACK")
