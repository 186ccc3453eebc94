"""Finds the user's projections: `everstate.toml`, or `[tool.everstate]` of a `pyproject.toml`.

``projections = ["shop.projections", "sql/"]``: modules (every projection class written in them) and
folders or files of SQL, relative to the file's folder. That folder goes last on ``sys.path``: user
code shadows nothing of ours, and what of ours would shadow the user's is refused by name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kernel.errors import ConfigurationError, NotFound
from projections import sqlfile
from projections.digest import digest_of
from projections.model import Definition, Projection, Statement, StatementError, check_definition
from projections.statements import check_confined, normal, split

FILE, SECTION = "everstate.toml", "tool.everstate"
OURS = (
    "admin_ui", "everstate", "journal", "kernel", "migrations", "operations", "projections",
    "schemas", "sidecar", "sidecar_api", "snapshots", "states",
)  # fmt: skip
"""Our top-level packages: names that a user's folder cannot import as its own."""


@dataclass(frozen=True, slots=True)
class App:
    """A user's code: the file that names it, its folder, and what the file says."""

    file: Path
    projections: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where modules and files are looked for."""
        return self.file.parent


def find_app(start: Path, *, named: Path | None = None) -> App | None:
    """The app that ``named`` describes, or the `everstate.toml` or `pyproject.toml` in ``start``.

    None: there is no such file, or the `pyproject.toml` has no ``[tool.everstate]``.

    Raises:
        NotFound: ``named`` does not exist. ConfigurationError: the file is wrong; names the key.

    """
    if named is not None:
        if named.is_dir():
            found = find_app(named)
            if found is None:
                raise NotFound(f"{named}: neither {FILE} nor a pyproject.toml with [{SECTION}]")
            return found
        if not named.is_file():
            raise NotFound(f"{named}: there is no such file")
        return _read(named) or App(named.resolve())
    for name in (FILE, "pyproject.toml"):
        file = start / name
        if file.is_file():
            app = _read(file)
            if app is not None:
                return app
    return None


def _read(file: Path) -> App | None:
    try:
        content: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from None
    if file.name == "pyproject.toml":
        content = content.get("tool", {}).get("everstate")
        if content is None:
            return None
    known = {"projections", "folds", "upcasters"}
    if unknown := set(content) - known:
        raise ConfigurationError(
            f"{file}: unknown key {min(unknown)!r}; there are {', '.join(sorted(known))}"
        )
    entries = content.get("projections", [])
    if not isinstance(entries, list) or not all(isinstance(e, str) and e for e in entries):
        raise ConfigurationError(f"{file}: projections: is not a list of modules and paths")
    return App(file.resolve(), tuple(entries))


def load(app: App) -> list[Definition]:
    """All projections of an app, by name and version.

    Raises:
        ConfigurationError: names the file, class or line, and what is wrong there.

    """
    put_last_on_path(app.folder)
    found: list[Definition] = []
    for entry in app.projections:
        path = app.folder / entry
        if entry.endswith((".sql", "/")) or path.is_dir():
            found += _sql(app, entry, path)
        else:
            found += _python(app, entry)
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


def put_last_on_path(folder: Path) -> None:
    """Makes the user's modules importable, behind everything else."""
    text = str(folder)
    if text not in sys.path:
        sys.path.append(text)
        importlib.invalidate_caches()


# SQL


def _sql(app: App, entry: str, path: Path) -> Iterator[Definition]:
    if path.is_dir():
        files = sorted(path.glob("*.sql"))
        if not files:
            raise ConfigurationError(f"{app.file}: projections: {entry!r} holds no .sql file")
    elif path.is_file():
        files = [path]
    else:
        raise ConfigurationError(f"{app.file}: projections: there is no {entry!r}")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise ConfigurationError(f"{file}: cannot be read: {error}") from None
        yield sqlfile.parse(text, _shown(app, file))


def _shown(app: App, file: Path) -> str:
    try:
        return str(file.resolve().relative_to(app.folder))
    except ValueError:
        return str(file)


# Python


def _python(app: App, entry: str) -> Iterator[Definition]:
    module = _import(app, entry)
    file = getattr(module, "__file__", None)
    if file and Path(file).resolve().is_relative_to(app.folder):
        for name in [entry, *_submodules(app, entry)]:
            refuse_shadowed(app, name)
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
            f"{app.file}: projections: module {entry!r} has no projection"
            " (a class of everstate.projections.Projection with a name)"
        )
    for top in tops:
        chain: list[type[Projection]] = []
        current: type[Projection] | None = top
        while current is not None and current not in chain:
            chain.append(current)
            current = current.replaces
        for value in chain:
            definition = define(value, app.folder, superseded=value is not top)
            if value is not top and (
                definition.name != top.name or definition.version >= top.version
            ):
                raise ConfigurationError(
                    f"{definition.origin}: replaces: is not an older version of {top.name!r}"
                )
            yield definition


def _submodules(app: App, entry: str) -> list[str]:
    """Modules of the user's folder that are loaded by now."""
    return [
        name
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None))
        and file.endswith(".py")
        and name != entry
        and Path(file).is_relative_to(app.folder)
        and ".venv" not in Path(file).parts
        and "site-packages" not in Path(file).parts
        and name.partition(".")[0] not in OURS
    ]


def _import(app: App, entry: str) -> ModuleType:
    top = entry.partition(".")[0]
    if top in OURS and _is_own(app.folder, top):
        raise ConfigurationError(
            f"{app.file}: projections: {entry!r}: the package {top!r} of {app.folder} has the"
            " name of one of Everstate's own; rename it"
        )
    try:
        spec = importlib.util.find_spec(entry)
    except (ImportError, ValueError) as error:
        _explain_shadow(app, error)
        raise ConfigurationError(f"{app.file}: projections: {entry!r}: {error}") from None
    if spec is None:
        raise ConfigurationError(
            f"{app.file}: projections: there is no module {entry!r}, nor a path of this name,"
            f" in {app.folder}"
        )
    if spec.origin and Path(spec.origin).is_file():
        _refuse_shadowed_in(app, Path(spec.origin))
    try:
        return importlib.import_module(entry)
    except Exception as error:
        _explain_shadow(app, error)
        raise ConfigurationError(
            f"{app.file}: projections: importing {entry!r} failed: {type(error).__name__}: {error}"
        ) from error


def _explain_shadow(app: App, error: BaseException) -> None:
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if name in OURS and _is_own(app.folder, name):
        raise ConfigurationError(_shadow(app, name, "an import")) from error


def _is_own(folder: Path, name: str) -> bool:
    """Whether the user's folder has a module or package of this name that is not ours."""
    ours = Path(__file__).resolve().parents[1]
    candidates = (folder / name, folder / f"{name}.py")
    return any(path.exists() and path.resolve().parent != ours for path in candidates)


def _shadow(app: App, name: str, where: str) -> str:
    return (
        f"{where} means {app.folder / name}, but {name!r} is one of Everstate's own packages, which"
        " comes first; rename yours"
    )


def refuse_shadowed(app: App, module_name: str) -> None:
    """Refuses a loaded module that imports a name which both the user's folder and we have.

    Raises:
        ConfigurationError: names file and line.

    """
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file:
        _refuse_shadowed_in(app, Path(file))


def _refuse_shadowed_in(app: App, file: Path) -> None:
    if file.suffix != ".py" or not file.resolve().is_relative_to(app.folder):
        return
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigurationError(f"{_shown(app, file)}:{error.lineno}: {error.msg}") from None
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            if top in OURS and _is_own(app.folder, top):
                where = f"{_shown(app, file)}:{node.lineno}: `import {name}`"  # type: ignore[attr-defined]
                raise ConfigurationError(_shadow(app, top, where))


def define(projection: type[Projection], folder: Path, *, superseded: bool = False) -> Definition:
    """The definition of a projection class. ``folder``: the user's code, for the digest.

    Raises:
        ConfigurationError: names the class, the attribute and what is wrong with it.

    """
    module = sys.modules[projection.__module__]
    file = getattr(module, "__file__", None)
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
    roots = [folder.resolve()]
    if file:  # an installed package is the user's code as well
        package = getattr(sys.modules[projection.__module__.partition(".")[0]], "__path__", None)
        roots.append(Path(next(iter(package)) if package else file).resolve())
    attributes = [
        projection.log, projection.segments,
        list(projection.entity_types), list(projection.event_types),
    ]  # fmt: skip
    digest = digest_of(projection, tuple(roots), [*map(repr, attributes), normal_tables])
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
