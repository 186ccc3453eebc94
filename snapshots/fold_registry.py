"""The user's folds: modules that ``folds`` of `everstate.toml` names, as definitions; and their
registration, so that every process folds by the same code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import structlog

from kernel import clock, sql, usercode
from kernel.database import Database
from kernel.digest import digest_of, roots_of
from kernel.errors import ConfigurationError, Conflict, InvalidArgument
from kernel.usercode import UserCode
from snapshots.folds import Fold, FoldDefinition, Folds, check_fold, check_snapshots

log = structlog.get_logger(__name__)

MAX_PAGE = 1_000


def load(code: UserCode | None) -> list[FoldDefinition]:
    """All folds of the user's code, by entity type.

    Raises:
        ConfigurationError: an entry is a path, a module cannot be imported or has no fold, a fold
            is wrong, or two are of one entity type (names both files).

    """
    if code is None:
        return []
    modules = usercode.load(code, "folds", code.folds)
    if len(modules) != len(code.folds):
        raise ConfigurationError(f"{code.file}: folds: name modules, not paths")
    found: dict[str, FoldDefinition] = {}
    for module in modules:
        classes = [
            value
            for value in dict.fromkeys(
                item for item in vars(module).values() if isinstance(item, type)
            )
            if issubclass(value, Fold)
            and value.__module__ == module.__name__
            and "entity_type" in vars(value)
        ]
        if not classes:
            raise ConfigurationError(
                f"{code.file}: folds: module {module.__name__!r} has no fold"
                " (a class of everstate.folds.Fold with an entity_type)"
            )
        for each in classes:
            made = define(each, code)
            other = found.setdefault(made.entity_type, made)
            if other is not made:
                raise ConfigurationError(
                    f"two folds are of entity type {made.entity_type!r}: {other.origin}"
                    f" ({other.file}) and {made.origin} ({made.file})"
                )
    return [found[name] for name in sorted(found)]


def define(kind: type[Fold[Any]], code: UserCode) -> FoldDefinition:
    """The definition of a fold class of the user's code.

    Raises:
        ConfigurationError: names the class, the attribute and what is wrong with it.

    """
    origin = f"{kind.__module__}.{kind.__qualname__}"
    snapshot_type, types = check_fold(kind, origin)
    try:
        fold = kind()
    except Exception as error:
        raise ConfigurationError(
            f"{origin}: cannot be made: {type(error).__name__} ({usercode.place(error)})"
        ) from error
    check_snapshots(fold, origin)
    file = getattr(sys.modules[kind.__module__], "__file__", None) or ""
    extra = [snapshot_type, kind.content_type, *types]
    return FoldDefinition(
        kind.entity_type, kind.version, digest_of(kind, roots_of(kind, code.folder), extra),
        origin, file, snapshot_type, kind.content_type, types, fold,
    )  # fmt: skip


async def register(
    database: Database, definitions: Iterable[FoldDefinition], *, timeout: float | None = 60
) -> None:
    """Makes folds known; what is known already stays.

    Raises:
        Conflict: other code is registered under the same version; names the fold's class.

    """
    statement = sql.load("snapshots", "fold_register", database.schema)
    for each in definitions:
        async with database.connection(timeout, writing=True) as connection:
            row = await connection.fetchrow(
                statement, each.entity_type, each.version, each.digest, each.snapshot_type,
                each.content_type,
            )  # fmt: skip
        if row["digest"] != each.digest:
            raise Conflict(_other_code(each, row["registered_at"]))
        if row["made"]:
            log.info("fold registered", entity_type=each.entity_type, version=each.version)


async def checked(
    database: Database, definitions: Iterable[FoldDefinition], *, timeout: float | None = 10
) -> Folds:
    """Folds for a process that registers none: those whose code is not what workers have registered
    under the version are refused, the others are not.
    """
    definitions = list(definitions)
    statement = sql.load("snapshots", "fold_digests", database.schema)
    keys = [each.entity_type for each in definitions], [each.version for each in definitions]
    rows = await database.fetch(statement, *keys, timeout=timeout)
    known = {(row["entity_type"], row["version"]): row for row in rows}
    refused = {
        each.entity_type: _other_code(each, row["registered_at"])
        for each in definitions
        if (row := known.get((each.entity_type, each.version))) and row["digest"] != each.digest
    }
    return Folds(definitions, refused=refused)


async def list_folds(
    database: Database, after: tuple[str, int] = ("", 0), limit: int = 100
) -> list[Any]:
    """A page of the registered folds by entity type and version, as rows of folds.sql.

    Raises:
        InvalidArgument: ``limit`` is not from 1 to 1,000.

    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument("limit", f"{limit} is not from 1 to {MAX_PAGE}")
    return await database.fetch(
        sql.load("snapshots", "folds", database.schema), *after, limit, timeout=10
    )


def _other_code(each: FoldDefinition, registered_at: Any) -> str:
    at = clock.format_us(clock.to_us(registered_at))
    return (
        f"{each.origin}: {each.title} has other code than was registered as this version at {at};"
        " give it the next version"
    )
