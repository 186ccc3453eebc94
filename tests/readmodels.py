"""Read models made by hand, as a worker leaves them: schema, role, tables, views, checkpoint."""

from __future__ import annotations

from kernel.database import Database
from projections.model import reader_role, role_name, schema_name, views_schema


async def make_read_model(
    database: Database, name: str, tables: str, *, version: int = 1, position: int = 0
) -> None:
    """A live build of a projection with ``tables`` (SQL; may fill them too)."""
    schema, views = schema_name(name, version), views_schema(name)
    async with database.connection() as connection, connection.transaction():
        cluster = await connection.fetchval("SELECT current_database()")
        role = role_name(cluster, database.schema, schema)
        reader = reader_role(cluster, database.schema)
        names = (schema, role, views, reader)
        await connection.execute("SELECT everstate.create_read_model_v1($1, $2, $3, $4)", *names)
        await connection.execute(f'SET LOCAL ROLE "{role}"; SET LOCAL search_path = "{schema}"')
        await connection.execute(tables)
        await connection.execute("RESET ROLE; SET LOCAL search_path = public")
        await connection.execute("SELECT everstate.publish_read_model_v1($1, $2, $3, $4)", *names)
        for statement in (
            "INSERT INTO everstate.projections (name, live_version, live_build) VALUES ($1, $2, 1)",
            """INSERT INTO everstate.projection_versions (name, version, kind, digest, log_id,
              entity_types, event_types, segments, on_poison, replayable)
              VALUES ($1, $2, 'sql', '', 1, '{}', '{}', 1, 'halt', false)""",
        ):
            await connection.execute(statement, name, version)
        await connection.execute(
            """INSERT INTO everstate.projection_builds (name, version, build, state, schema_name,
              role_name, tables, target_position) VALUES ($1, $2, 1, 'live', $3, $4, '{}', 0)""",
            name, version, schema, role,
        )  # fmt: skip
        await connection.execute(
            """INSERT INTO everstate.projection_checkpoints (name, version, build, segment,
              first_slice, last_slice, position) VALUES ($1, $2, 1, 0, 0, 1023, $3)""",
            name, version, position,
        )  # fmt: skip


async def reach(database: Database, name: str, position: int) -> None:
    """What a worker's commit does to the checkpoint."""
    await database.fetchrow(
        "UPDATE everstate.projection_checkpoints SET position = $2 WHERE name = $1", name, position
    )
