"""The user's projections: modules and SQL files that `kernel.usercode` found, as definitions.

An entry of ``projections`` is a module (every projection class written in it), a `.sql` file, or a
folder of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kernel import usercode
from kernel.digest import digest_of, roots_of
from kernel.errors import ConfigurationError
from kernel.usercode import UserCode
from projections import sqlfile
from projections.model import Definition, Projection, Statement, StatementError, check_definition
from projections.statements import check_confined, normal, split

NOT_CODE = frozenset({"name", "version", "replaces", "on_poison"})
"""Attributes of a projection class that are not part of what it does."""


def load(code: UserCode) -> list[Definition]:
    """All projections of the user's code, by name and version.

    Raises:
        ConfigurationError: names the file, class or line, and what is wrong there.

    """
    found: list[Definition] = []
    for entry in code.projections:
        found += _sql(code, entry) if usercode.is_path(entry) else _python(code, entry)
    _check_names(found)
    return sorted(found, key=lambda d: (d.name, d.version))


def _check_names(found: Iterable[Definition]) -> None:
    replaced: dict[tuple[str, int], Definition] = {}
    by_name: dict[str, Definition] = {}
    for definition in found:
        same = replaced.setdefault((definition.name, definition.version), definition)
        if same is not definition:
            raise ConfigurationError(
                f"two projections are named {definition.name!r}: {same.origin} and"
                f" {definition.origin}"
            )
        if definition.superseded:
            continue
        other = by_name.setdefault(definition.name, definition)
        if other is not definition:
            raise ConfigurationError(
                f"two projections are named {definition.name!r}: {other.origin} and"
                f" {definition.origin}; to keep an old version running until the switch, name its"
                " class in `replaces` of the new one"
            )


# SQL


def _sql(code: UserCode, entry: str) -> Iterator[Definition]:
    path = code.folder / entry
    if path.is_dir():
        files = sorted(path.glob("*.sql"))
        if not files:
            raise ConfigurationError(f"{code.file}: projections: {entry!r} holds no .sql file")
    elif path.is_file():
        files = [path]
    else:
        raise ConfigurationError(f"{code.file}: projections: there is no {entry!r}")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise ConfigurationError(f"{file}: cannot be read: {error}") from None
        yield sqlfile.parse(text, usercode.shown(code, file))


# Python


def _python(code: UserCode, entry: str) -> Iterator[Definition]:
    (module,) = usercode.load(code, "projections", [entry])
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Projection)
        and value is not Projection
        and value.__module__ == module.__name__
        and "name" in vars(value)
    ]
    older = {value.replaces for value in classes if value.replaces is not None}
    tops = [value for value in classes if value not in older]
    if not tops:
        raise ConfigurationError(
            f"{code.file}: projections: module {entry!r} has no projection"
            " (a class of everstate.projections.Projection with a name)"
        )
    for top in tops:
        chain: list[type[Projection]] = []
        current: type[Projection] | None = top
        while current is not None and current not in chain:
            chain.append(current)
            current = current.replaces
        for value in chain:
            definition = define(value, code.folder, superseded=value is not top)
            if value is not top and (
                definition.name != top.name or definition.version >= top.version
            ):
                raise ConfigurationError(
                    f"{definition.origin}: replaces: is not an older version of {top.name!r}"
                )
            yield definition


def define(projection: type[Projection], folder: Path, *, superseded: bool = False) -> Definition:
    """The definition of a projection class. ``folder``: the user's code, for the digest.

    Raises:
        ConfigurationError: names the class, the attribute and what is wrong with it.

    """
    origin = f"{projection.__module__}.{projection.__qualname__}"

    def refuse(problem: str) -> ConfigurationError:
        return ConfigurationError(f"{origin}: {problem}")

    for attribute in ("name", "version"):
        if not hasattr(projection, attribute):
            raise refuse(f"{attribute}: is not set")
    if projection.apply is Projection.apply:
        raise refuse("apply: is not written")
    for attribute in ("entity_types", "event_types"):
        value = getattr(projection, attribute)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise refuse(f"{attribute}: is not a list of names (a comma is missing?)")
    if not isinstance(projection.tables, str):
        raise refuse("tables: is not a text")
    tables: list[Statement] = []
    try:
        check_confined(projection.tables)
        tables = split(projection.tables)
        normal_tables = "\0".join(normal(statement.text) for statement in tables)
    except StatementError as error:
        line = projection.tables.count("\n", 0, max(error.position - 1, 0)) + 1
        raise refuse(f"tables: line {line}: {error.message}") from None
    attributes = [
        projection.log, projection.segments,
        list(projection.entity_types), list(projection.event_types),
    ]  # fmt: skip
    digest = digest_of(
        projection, roots_of(projection, folder), [*map(repr, attributes), normal_tables],
        not_code=NOT_CODE,
    )  # fmt: skip
    return check_definition(
        Definition(
            name=projection.name,
            version=projection.version,
            kind="python",
            digest=digest,
            origin=origin,
            tables=tuple(tables),
            log=projection.log,
            entity_types=tuple(projection.entity_types),
            event_types=tuple(projection.event_types),
            segments=projection.segments,
            on_poison=projection.on_poison,
            replayable=projection.delete_entity is not Projection.delete_entity,
            superseded=superseded,
            make=projection,
        )
    )
