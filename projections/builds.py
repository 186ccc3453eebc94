"""Makes a build: schema and role of a version's tables, its functions, checkpoints and views.

Everything runs inside the caller's transaction: a build is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from kernel.database import Connection
from kernel.errors import ConfigurationError, Conflict, EverstateError
from projections import sqlfile, store
from projections.model import (
    Definition,
    Handler,
    Statement,
    StatementError,
    reader_role,
    role_name,
    schema_name,
    segment_slices,
    views_schema,
)
from projections.statements import line_of

BuildState = Literal["building", "live"]


@dataclass(frozen=True, slots=True)
class Build:
    """A build that was made."""

    name: str
    version: int
    build: int
    state: str
    schema_name: str
    role_name: str
    target_position: int


def search_path(schema: str) -> str:
    """The search path of a build: its schema; temporary tables come last."""
    return f"{schema}, pg_temp"


async def lock_registrations(connection: Connection, schema: str) -> str:
    """Waits until no other process registers or builds; returns the database's name.

    Raises:
        ConfigurationError: the connection's user may not make roles or schemas; says the remedy.

    """
    row = await store.run(connection, "rights", schema, f"everstate projections {schema}")
    user, database = row["user_name"], row["database"]
    if not row["may_create_roles"]:
        raise ConfigurationError(
            f"the database user {user!r} may not create roles, and every projection writes as a"
            f' role of its own: ALTER ROLE "{user}" CREATEROLE'
        )
    if not row["may_create_schemas"]:
        raise ConfigurationError(
            f"the database user {user!r} may not create schemas:"
            f' GRANT CREATE ON DATABASE "{database}" TO "{user}"'
        )
    name: str = database
    return name


async def make(
    connection: Connection,
    schema: str,
    database: str,
    definition: Definition,
    build: int,
    state: BuildState,
    head: int,
) -> Build:
    """Makes the tables and checkpoints of a build. ``head``: the log's, up to which it replays.

    Call `lock_registrations` first, in the same transaction.

    Raises:
        ConfigurationError: a statement of the user's is wrong; names file and line. Conflict: a
            schema of the build's name is there already.

    """
    read_model = schema_name(definition.name, definition.version, build)
    role = role_name(database, schema, read_model)
    views, reader = views_schema(definition.name), reader_role(database, schema)
    try:
        await store.run(connection, "read_model_create", schema, read_model, role, views, reader)
    except store.SCHEMA_EXISTS:
        # We drop ours with their rows: it is of another installation in this database, or of one
        # that was dropped without its read models. Whose data it holds is not ours to guess.
        raise Conflict(
            f"the database has a schema {read_model!r} that no projection of {schema!r} owns:"
            f" look what is in it, then DROP SCHEMA {read_model} CASCADE, or give the projection"
            " another name"
        ) from None
    await store.run(connection, "enter", schema, role, search_path(read_model), "", "")
    for statement in definition.tables:
        with _explained(definition, statement, connection):
            await connection.execute(statement.text)
    for handler in all_handlers(definition):
        await _make_function(connection, definition, handler)
    await store.run(connection, "leave", schema)
    slices = segment_slices(definition.segments)
    await store.run(
        connection, "build_create", schema, definition.name, definition.version, build, state,
        read_model, role, head, [low for low, _ in slices], [high for _, high in slices],
    )  # fmt: skip
    return Build(definition.name, definition.version, build, state, read_model, role, head)


async def publish(connection: Connection, schema: str, database: str, build: Build) -> None:
    """Makes the views show a build."""
    await store.run(
        connection, "read_model_publish", schema, build.schema_name, build.role_name,
        views_schema(build.name), reader_role(database, schema),
    )  # fmt: skip


async def drop(connection: Connection, schema: str, read_model: str, role: str) -> None:
    """Removes the tables and the role of a build that no view shows."""
    await store.run(connection, "read_model_drop", schema, read_model, role)


def all_handlers(definition: Definition) -> Sequence[Handler]:
    """The handlers of event types, and the one that deletes an entity."""
    if definition.delete_entity is None:
        return definition.handlers
    return (*definition.handlers, definition.delete_entity)


async def _make_function(connection: Connection, definition: Definition, handler: Handler) -> None:
    deduced: list[list[str]] = []
    for statement in handler.statements:
        deleting = handler is definition.delete_entity
        text, _ = sqlfile.probe(statement.text, deleting=deleting)
        with _explained(definition, statement, connection):
            prepared = await connection.prepare(text)
            oids = [kind.oid for kind in prepared.get_parameters()]
            types = await connection.fetchval(
                "SELECT array_agg(format_type(t, NULL) ORDER BY n)"
                " FROM unnest($1::oid[]) WITH ORDINALITY AS x(t, n)",
                oids,
            )
        deduced.append(types or [])
    # `coalesce(:data.n, 0)` is an int to PostgreSQL, though it is written to a bigint: numbers are
    # read as bigint wherever the statement takes that.
    wide = [["bigint" if t in _NARROW else t for t in types] for types in deduced]
    if wide != deduced:
        try:
            async with connection.transaction():
                await connection.execute(_function(handler, wide))
        except Exception as error:
            if not isinstance(store.user_error(error, connection), StatementError):
                raise
        else:
            return
    with _explained(definition, handler.statements[0], connection):
        await connection.execute(_function(handler, deduced))


_NARROW = ("integer", "smallint")


def _function(handler: Handler, types: Sequence[Sequence[str]]) -> str:
    pairs = zip(handler.statements, types, strict=True)
    return sqlfile.function_of(handler, [sqlfile.body(one, kinds) for one, kinds in pairs])


@contextmanager
def _explained(
    definition: Definition, statement: Statement, connection: Connection
) -> Iterator[None]:
    try:
        yield
    except EverstateError:
        raise
    except Exception as error:
        meaning = store.user_error(error, connection)
        if not isinstance(meaning, StatementError):
            raise meaning from error
        line = line_of(statement, meaning.position)
        where = (
            f"{definition.origin}:{line}"
            if definition.kind == "sql"
            else (f"{definition.origin}: tables: line {line}")
        )
        state = f" (SQLSTATE {meaning.sqlstate})" if meaning.sqlstate else ""
        raise ConfigurationError(f"{where}: {meaning.message}{state}") from error
