"""A digest of a class of the user's: it changes when what the class does may have changed.

Made over the source of the class and of the module-level statements of its own module that it
names, transitively; and over the whole text of every other module of the user's that these import,
by whatever way of importing and wherever it stands, and of those that such a module imports.
Comments, docstrings and blank lines do not count, nor do the rest of the class's own module and its
name, so that code may move and a neighbour change. What libraries do is not seen, nor an import
whose name is made at run time. Source text is taken as it is (not its syntax tree), so that the
digest is the same under every Python version.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Source:
    package: str
    lines: tuple[str, ...]  # without comments
    definitions: dict[str, list[ast.stmt]]  # what makes or changes a name, at the module's level
    imports: dict[str, set[str]]  # local name → modules; "*": they give names that nobody lists


def roots_of(kind: type, folder: Path) -> tuple[Path, ...]:
    """The folders whose modules are the user's: ``folder`` and where the class was written (an
    installed package is the user's code as well).
    """
    roots = [folder.resolve()]
    module = sys.modules[kind.__module__]
    if file := getattr(module, "__file__", None):
        package = getattr(sys.modules[kind.__module__.partition(".")[0]], "__path__", None)
        roots.append(Path(next(iter(package)) if package else file).resolve())
    return tuple(roots)


def digest_of(
    kind: type,
    roots: tuple[Path, ...],
    extra: Sequence[str] = (),
    *,
    not_code: frozenset[str] = frozenset({"version"}),
) -> str:
    """The digest of a class, SHA-256, hexadecimal, over its code and ``extra``.

    ``roots``: see `roots_of`; ``not_code``: attributes of classes that are no part of what they do.
    """
    parts: list[str] = [f"={text}" for text in extra]
    if "." in kind.__qualname__:  # made inside a function or class: only its own text is seen
        parts.append(inspect.getsource(kind))
    own = _source_of(kind.__module__, roots)
    if own is not None:
        modules = _own_parts(own, kind.__qualname__, not_code, parts)
        seen: set[str] = set()
        while modules:
            name = modules.pop()
            if name in seen:
                continue
            seen.add(name)
            source = _source_of(name, roots)
            if source is not None:
                parts.append("\n".join(line for line in source.lines if line))
                modules.update(*source.imports.values())
    return hashlib.sha256("\0".join(sorted(parts)).encode()).hexdigest()


def _own_parts(source: _Source, name: str, not_code: frozenset[str], parts: list[str]) -> set[str]:
    """Adds the text of what a class uses of its own module; the modules that this imports."""
    modules = set(source.imports.get("*", ()))
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        modules |= source.imports.get(name, set())
        for node in source.definitions.get(name, ()):
            parts.append(f"{name}\n{_text(source, node, not_code)}")
            waiting.extend(_names_in(node, not_code))
            for names in _imported(node, source.package).values():
                modules |= names  # inside functions
    return modules


@cache
def _source_of(name: str, roots: tuple[Path, ...]) -> _Source | None:
    """The source of a module of the user's; None: it is not one."""
    top = name.partition(".")[0]
    if top != name and not _is_users(_spec(top), roots):
        return None  # nothing of a library's is imported on the way
    spec = _spec(name)
    if spec is None or not _is_users(spec, roots) or not (spec.origin or "").endswith(".py"):
        return None
    text = Path(spec.origin or "").read_text(encoding="utf-8")
    tree = ast.parse(text)
    definitions: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for defined in dict.fromkeys(_defined(node)):
            definitions.setdefault(defined, []).append(node)
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    lines = tuple(_without_comments(text, tree))
    return _Source(package, lines, definitions, _imported(tree, package))


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)  # imports the packages that it is in
    except Exception:  # noqa: BLE001 - no such module, or a package of the user's that fails
        return None


def _is_users(spec: ModuleSpec | None, roots: tuple[Path, ...]) -> bool:
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
    for file in (Path(place).resolve() for place in places if place):
        for root in roots:
            if file.is_relative_to(root):
                inside = file.relative_to(root).parts
                # A virtual environment in the user's folder holds libraries.
                if "site-packages" not in inside and "dist-packages" not in inside:
                    return True
    return False


def _defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement makes, or may change."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    elif isinstance(node, ast.Import | ast.ImportFrom):
        return
    else:  # if, try, with, for, a call: whatever it names may be another thing afterwards
        for child in ast.walk(node):
            if isinstance(child, ast.Name):
                yield child.id
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield child.name


def _imported(tree: ast.AST, package: str) -> dict[str, set[str]]:
    """By local name the modules that imports anywhere in a tree may run, parent packages too."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                found.setdefault(local, set()).update(_with_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = package.split(".") if package else []
                parents = around[: len(around) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                names = found.setdefault(alias.asname or alias.name, set())
                names.update(_with_parents(base))
                names.add(f"{base}.{alias.name}")  # a module perhaps, or a name in one
    return found


def _with_parents(name: str) -> Iterator[str]:
    """A module and its packages: importing it runs them."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _names_in(node: ast.stmt, not_code: frozenset[str]) -> set[str]:
    skipped = {id(child) for part in _apart(node, not_code) for child in ast.walk(part)}
    return {
        child.id
        for child in ast.walk(node)
        if isinstance(child, ast.Name) and id(child) not in skipped
    }


def _apart(node: ast.stmt, not_code: frozenset[str]) -> list[ast.stmt]:
    """Assignments in a class that may change under one version."""
    body = node.body if isinstance(node, ast.ClassDef) else ()
    return [
        child
        for child in body
        if isinstance(child, ast.Assign | ast.AnnAssign)
        and not not_code.isdisjoint(_defined(child))
    ]


def _text(source: _Source, node: ast.stmt, not_code: frozenset[str]) -> str:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    skipped = {
        row
        for part in _apart(node, not_code)
        for row in range(part.lineno, (part.end_lineno or 0) + 1)
    }
    rows = range(first, (node.end_lineno or first) + 1)
    lines = (source.lines[row - 1] for row in rows if row not in skipped)
    return "\n".join(line for line in lines if line)


def _without_comments(text: str, tree: ast.Module) -> list[str]:
    """The lines of ``text``; what is only comment or docstring is empty."""
    lines = text.removesuffix("\n").split("\n")  # as Python counts them: not at form feeds
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                    lines[row - 1] = ""
    return [line.rstrip() for line in lines]
