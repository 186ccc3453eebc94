"""User code: which modules and files the user named, and importing them safely.

``everstate.toml``, or ``[tool.everstate]`` of a ``pyproject.toml``, names what to load:

    projections = ["shop.projections", "sql/"]
    upcasters = ["shop.upcasters"]
    folds = ["shop.folds"]

An entry is a module, or a path relative to the file's folder: one with a ``/`` in it or ending in
``.sql``. The folder goes last on ``sys.path``. So nothing of the user's ever takes the place of a
module of ours; and a named module that ours, or any other installed one, would take the place of is
refused instead of being shadowed silently.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import sys
import tokenize
import tomllib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

from kernel.errors import ConfigurationError

FILE: Final = "everstate.toml"
_KEYS: Final = ("projections", "upcasters", "folds")
ROOMS: Final = frozenset(
    {
        "admin_ui", "everstate", "journal", "kernel", "migrations", "operations", "projections",
        "schemas", "sidecar", "sidecar_api", "snapshots", "states",
    }
)  # fmt: skip
"""Top-level packages of Everstate, present and to come: never names of user code."""


@dataclass(frozen=True, slots=True)
class UserCode:
    """What the user's file names; entries in its order.

    ``hidden``: names in the user's folder that ``import`` does not find there, because Everstate
    has a package of that name. Nothing that the file names is among them.
    """

    file: Path
    projections: tuple[str, ...] = ()
    upcasters: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The user's folder: where modules and paths are looked for."""
        return self.file.parent


def find(where: Path | None = None) -> UserCode | None:
    """What ``where`` (the file or its folder; default: the current folder) names; None: nothing.

    ``everstate.toml`` wins over ``pyproject.toml``; no other folder is searched.

    Raises:
        ConfigurationError: ``where`` was given and does not exist; the file cannot be read, is not
            TOML, has an unknown key or a wrong value.

    """
    place = Path.cwd() if where is None else where
    if place.is_file():
        return _read(place.resolve())
    if not place.is_dir():
        raise ConfigurationError(f"user code: {place} does not exist")
    for name in (FILE, "pyproject.toml"):
        file = place / name
        if file.is_file():
            code = _read(file.resolve())
            if code is not None:
                return code
    return None


def _read(file: Path) -> UserCode | None:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise ConfigurationError(f"{file}: cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: is not TOML: {error}") from None
    if file.name == "pyproject.toml":
        tools = content.get("tool", {})
        if not isinstance(tools, dict) or "everstate" not in tools:
            return None
        content = tools["everstate"]
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file}: everstate is not a table")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise ConfigurationError(
            f"{file}: unknown key {unknown[0]!r}; there are {', '.join(_KEYS)}"
        )
    entries = {key: _entries(file, key, content.get(key, [])) for key in _KEYS}
    hidden = tuple(sorted(name for name in ROOMS if _holds(file.parent, name)))
    return UserCode(file, hidden=hidden, **entries)


def _entries(file: Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigurationError(f"{file}: {key}: is not a list of module names and paths")
    twice = [item for i, item in enumerate(value) if item in value[:i]]
    if twice:
        raise ConfigurationError(f"{file}: {key}: names {twice[0]!r} twice")
    for item in value:
        if not is_path(item) and not all(part.isidentifier() for part in item.split(".")):
            raise ConfigurationError(
                f"{file}: {key}: {item!r} is neither a module name nor a path (with a /, or .sql)"
            )
    return tuple(value)


def _holds(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def is_path(entry: str) -> bool:
    """Whether an entry is a file or a folder; else it is a module."""
    return "/" in entry or entry.endswith(".sql")


def load(code: UserCode, key: str, entries: Sequence[str]) -> list[ModuleType]:
    """Imports the modules among ``entries`` (of the key ``key``, for messages), in order.

    A module that is loaded already is not run again.

    Raises:
        ConfigurationError: a module is not in the user's folder (there is none, or an installed one
            would be taken for it), it imports a name that means one of ours although the folder
            has such a one too, or running it fails. The message names file and line.

    """
    folder = str(code.folder)
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    return [_checked_import(code, key, entry) for entry in entries if not is_path(entry)]


def _checked_import(code: UserCode, key: str, name: str) -> ModuleType:
    before = set(sys.modules)
    try:
        module = _import(code, key, name)
    except ConfigurationError as error:
        # The module that failed is no longer among the loaded ones, but is where it failed.
        failed = place(error.__cause__) if error.__cause__ is not None else ""
        files = _files(set(sys.modules) - before)
        _refuse_shadowed(code, [*files, Path(failed.rpartition(":")[0])])
        raise
    _refuse_shadowed(code, _files((set(sys.modules) - before) | {module.__name__}))
    return module


def _files(names: Iterable[str]) -> list[Path]:
    """The files of modules."""
    found = (getattr(sys.modules.get(name), "__file__", None) for name in sorted(names))
    return [Path(file) for file in found if file]


def _refuse_shadowed(code: UserCode, files: Iterable[Path]) -> None:
    """Refuses an import that means a module of the user's but gets ours.

    Raises:
        ConfigurationError: names file and line.

    """
    for file in files if code.hidden else ():
        if file.suffix != ".py" or not file.resolve().is_relative_to(code.folder):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top in code.hidden:
                    line = getattr(node, "lineno", 0)
                    raise ConfigurationError(
                        f"{shown(code, file)}:{line}: `import {name}` means {code.folder / top},"
                        f" but {top} is a package of Everstate, which comes first; give yours"
                        " another name"
                    )


def shown(code: UserCode, file: Path) -> str:
    """A file of the user's, relative to the folder where that is possible."""
    try:
        return str(file.resolve().relative_to(code.folder))
    except ValueError:
        return str(file)


def _import(code: UserCode, key: str, name: str) -> ModuleType:
    where = f"{code.file}: {key}: {name}"
    top = name.partition(".")[0]
    if top in ROOMS:
        raise ConfigurationError(
            f"{where}: {top} is a package of Everstate; give yours another name"
        )
    if PathFinder.find_spec(top, [str(code.folder)]) is None:
        raise ConfigurationError(f"{where}: there is no {top} in {code.folder}")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises
        raise ConfigurationError(f"{where}: cannot be imported: {_cause(error)}") from error
    found = Path(module.__file__ or next(iter(getattr(module, "__path__", [""])))).resolve()
    if not found.is_relative_to(code.folder):
        raise ConfigurationError(f"{where}: {found} would be taken for it; give yours another name")
    return module


def _cause(error: BaseException) -> str:
    """What happened and where, in one line. It is the user's own code that is being loaded: no
    event has been near it yet, so the message may be shown.
    """
    text = str(error).splitlines()[0] if str(error) else ""
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said} ({place(error)})" if place(error) else said


def place(error: BaseException) -> str:
    """``file:line`` of the user's code that an error came from; empty when none of it was run."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and not _is_ours(Path(frame.filename))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_ours(file: Path) -> bool:
    home = Path(__file__).parents[1]
    return file.is_relative_to(home) and file.relative_to(home).parts[0] in ROOMS


def source_digest(*modules: ModuleType) -> bytes:
    """SHA-256 of the modules' source without comments and blank lines, in the given order.

    The same for every Python version, so that workers of two versions agree.
    """
    digest = hashlib.sha256()
    for module in modules:
        if module.__file__ is None:
            continue
        text = Path(module.__file__).read_text(encoding="utf-8")
        digest.update(f"{module.__name__}\n{without_comments(text)}\0".encode())
    return digest.digest()


def without_comments(source: str) -> str:
    """Python source without comments, trailing blanks and blank lines; strings stay as they are."""
    lines = source.removesuffix("\n").split("\n")  # as Python counts them: not at form feeds
    inside: set[int] = set()  # lines of strings that go over several: nothing is cut there
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (first, start), (last, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[first - 1] = lines[first - 1][:start]
        elif token.type not in _LAYOUT and last > first:
            inside.update(range(first, last))
    kept = (line if i in inside else line.rstrip() for i, line in enumerate(lines, 1))
    return "\n".join(line for i, line in enumerate(kept, 1) if line or i in inside)


_LAYOUT: Final = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
