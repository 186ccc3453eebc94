"""A digest of a class of the user's: it changes when what the class does may have changed.

Made over the source of the class and, transitively, of the module-level definitions that it names,
in its own module and in others of the user's folder. Comments, docstrings and blank lines do not
count, nor do the module's name and the rest of it, so that code may move and a neighbour change.
What libraries do is not seen. Source text is taken as it is (not its syntax tree), so that the
digest is the same under every Python version.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True, slots=True)
class _Source:
    lines: tuple[str, ...]  # without comments
    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str]]  # local name → module, name there ("": the module itself)


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
    seen: set[tuple[str, str]] = set()
    waiting = [(kind.__module__, kind.__qualname__)]
    if "." in kind.__qualname__:  # made inside a function or class: only its own text is seen
        parts.append(inspect.getsource(kind))
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        module_name, name = place
        source = _source_of(module_name, roots)
        if source is None:
            continue
        if not name:
            parts.append("\n".join(source.lines))
            continue
        for node in source.definitions.get(name, ()):
            parts.append(f"{name}\n{_text(source, node, not_code)}")
            for used in _names_in(node, not_code):
                if used in source.definitions:
                    waiting.append((module_name, used))
                elif used in source.imports:
                    waiting.append(source.imports[used])
        if name not in source.definitions and name in source.imports:
            waiting.append(source.imports[name])
    return hashlib.sha256("\0".join(sorted(parts)).encode()).hexdigest()


@cache
def _source_of(module_name: str, roots: tuple[Path, ...]) -> _Source | None:
    """The source of a module of the user's; None: it is not one."""
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return None
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    if not any(Path(file).resolve().is_relative_to(root) for root in roots):
        return None
    text = Path(file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        for name in _defined(node):
            definitions.setdefault(name, []).append(node)
        imports.update(_imported(node, module))
    return _Source(tuple(_without_comments(text, tree)), definitions, imports)


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    elif isinstance(node, ast.If | ast.Try | ast.With):
        for child in ast.walk(node):
            if child is not node and isinstance(child, ast.stmt):
                yield from _defined(child)


def _imported(node: ast.stmt, module: ModuleType) -> Iterator[tuple[str, tuple[str, str]]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], (alias.name, "")
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.__package__ or ""
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            yield alias.asname or alias.name, (base, alias.name)


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
