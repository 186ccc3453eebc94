"""Registers definitions: what a worker may run is what the database knows by name and digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from kernel import clock
from kernel.database import Connection, Database
from kernel.errors import Conflict, LogNotFound
from projections import builds, store
from projections.model import Definition

log = structlog.get_logger(__name__)


async def register(
    database: Database, definitions: Sequence[Definition], *, timeout: float | None = 60
) -> None:
    """Makes definitions known, and the tables of those that are new.

    The first version of a projection is live at once; a further one is built beside the live one.
    Each projection is registered in one transaction; workers that start together do it once.

    Raises:
        Conflict: other code or SQL under a registered version, or a version that goes back.
        LogNotFound: the projection's log is not there.
        ConfigurationError: a statement is wrong (names file and line), or the database user may not
            make what is needed (names the remedy).

    """
    for definition in sorted(definitions, key=lambda d: (d.name, d.version)):
        async with database.connection(timeout) as connection, connection.transaction():
            name = await builds.lock_registrations(connection, database.schema)
            await _register(connection, database.schema, name, definition)


async def _register(
    connection: Connection, schema: str, database: str, definition: Definition
) -> None:
    rows = await connection.fetch(store.statement("registered", schema), definition.name)
    known: dict[int, Any] = {row["version"]: row for row in rows}
    row = known.get(definition.version)
    if row is not None:
        _check_known(definition, row)
        if row["on_poison"] != definition.on_poison:
            await store.run(
                connection, "version_policy", schema, definition.name, definition.version,
                definition.on_poison,
            )  # fmt: skip
        return
    if definition.superseded:
        return  # a fresh database needs no old version
    if known and definition.version < max(known):
        raise _goes_back(definition, max(known))
    if known and (log_name := rows[-1]["log"]) != definition.log:
        raise Conflict(
            f"{definition.origin}: log: {definition.title} reads {definition.log!r}, but version"
            f" {max(known)} reads {log_name!r}; another log needs another name"
        )
    if not known:
        await store.run(
            connection, "projection_create", schema, definition.name, definition.version
        )
    made = await store.run(
        connection, "version_create", schema, definition.name, definition.version, definition.kind,
        definition.digest, definition.source, definition.log, list(definition.entity_types),
        list(definition.event_types), definition.segments, definition.on_poison,
        definition.replayable,
    )  # fmt: skip
    if made is None:
        raise LogNotFound(definition.log)
    build = await builds.make(
        connection, schema, database, definition, 1, "building" if known else "live", made["head"]
    )
    if not known:
        await builds.publish(connection, schema, database, build)
    log.info(
        "projection registered", projection=build.name, version=build.version, state=build.state,
        schema=build.schema_name,
    )  # fmt: skip


def _check_known(definition: Definition, row: Any) -> None:
    if row["digest"] != definition.digest:
        at = clock.format_us(clock.to_us(row["registered_at"]))
        raise Conflict(
            f"{definition.origin}: {definition.title} has other code or SQL than was registered as"
            f" this version at {at}; give it the next version, and it is built beside the live one"
        )
    if definition.version < row["live_version"] and not definition.superseded:
        raise _goes_back(definition, row["live_version"])


def _goes_back(definition: Definition, newest: int) -> Conflict:
    return Conflict(
        f"{definition.origin}: projection {definition.name} version {definition.version} goes back:"
        f" version {newest} is registered; `everstate projection rollback` goes back to a version"
        " that is kept, other code needs a higher version"
    )
