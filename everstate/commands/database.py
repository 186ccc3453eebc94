"""`everstate migrate`: the schema's version."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("migrate")(migrate)


def migrate(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL from nothing to newest; change nothing.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 when the schema is not the newest.")
    ] = False,
) -> None:
    """Bring the database's schema up to date. Safe to run several at once, and again."""
    from everstate.settings import SCHEMA_REVISION, DatabaseChoice, load_database_choice
    from kernel.errors import InvalidArgument
    from kernel.sql import check_schema_name

    if sql and check:
        raise InvalidArgument("--sql", "does not go with --check")
    if sql:
        from alembic import command

        schema = check_schema_name(DatabaseChoice().schema_name)  # type: ignore[call-arg]
        command.upgrade(_config("", schema), "head", sql=True)
        return
    choice = load_database_choice()
    if check:
        version = asyncio.run(_version(choice.database_url, choice.schema_name))
        current = version == SCHEMA_REVISION
        typer.echo(
            f"schema {choice.schema_name!r}: "
            + (f"version {version}" if version else "not there")
            + ("" if current else f", this program needs {SCHEMA_REVISION}")
        )
        raise typer.Exit(0 if current else 1)
    upgrade(choice.database_url, choice.schema_name)
    typer.echo(f"schema {choice.schema_name!r}: version {SCHEMA_REVISION}")


def upgrade(url: str, schema: str) -> None:
    """Runs the migrations that are missing.

    Raises:
        Unavailable, ConfigurationError, UnsupportedServer: the database cannot be used.
        SchemaMismatch: the schema is newer than this program.

    """
    from alembic import command

    from everstate.settings import SCHEMA_REVISION
    from kernel.errors import SchemaMismatch

    version = asyncio.run(_version(url, schema))
    if version is not None and version > SCHEMA_REVISION:
        raise SchemaMismatch(
            f"the schema {schema!r} is newer ({version}) than this program ({SCHEMA_REVISION})"
        )
    command.upgrade(_config(url, schema), "head")


async def _version(url: str, schema: str) -> str | None:
    """The schema's version, None when there is no schema; checks the server on the way."""
    from kernel import database as db
    from kernel.errors import UnsafeServer

    connection = await db.connect(db.DatabaseSettings(url, schema, application_name="migrate"))
    try:
        facts = await db.server_facts(connection)
        try:
            db.check_server(facts)
        except UnsafeServer as error:  # `serve` refuses it; the schema may be made all the same.
            typer.echo(f"warning: {error.message}", err=True)
        with db.driver_errors():
            if not await connection.fetchval(
                "SELECT to_regclass($1) IS NOT NULL", f"{schema}.alembic_version"
            ):
                return None
            version: str | None = await connection.fetchval(
                f"SELECT max(version_num) FROM {schema}.alembic_version"  # noqa: S608 - a checked name
            )
            return version
    finally:
        await connection.close()


def _config(url: str, schema: str) -> Any:
    from importlib.resources import files

    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.set_main_option("version_path_separator", "os")
    config.attributes.update(url=url, schema=schema)
    return config
