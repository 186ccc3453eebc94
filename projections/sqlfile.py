"""SQL-only projections: one `.sql` file with tables, and statements for each event type.

A handler's statements become one SQL function in the version's schema (`function_of`), so that a
batch is one statement that calls the functions event by event in log order; see
docs/explanation/projections.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from journal.model import DEFAULT_LOG
from kernel.errors import ConfigurationError
from projections.model import (
    Definition,
    Handler,
    Statement,
    StatementError,
    check_definition,
)
from projections.statements import MANIPULATING, check_confined, line_of, normal, split, tokens

MAX_FILE_BYTES = 1_000_000
ALL = "*"

# Arguments of every handler's function, by number from 1.
META: Mapping[str, str] = {
    "position": "bigint",
    "sequence": "bigint",
    "entity_type": "text",
    "entity_id": "text",
    "type": "text",
    "recorded_at": "timestamptz",
    "time": "timestamptz",
    "event_id": "uuid",
}
METADATA, DATA = len(META) + 1, len(META) + 2
SIGNATURE = ", ".join([*META.values(), "jsonb", "jsonb"])

_HEADER_KEY = re.compile(r"--[ \t]*([a-z][a-z ]{0,30}?)[ \t]*:[ \t]*(.*?)[ \t]*")
_SECTION = re.compile(r"--[ \t]*(on[ \t]*:[ \t]*(?P<types>.*?)|(?P<delete>delete entity))[ \t]*:?")
_HEADERS = ("projection", "version", "log", "segments", "entity types", "on poison")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a statement: the argument it comes from, and the path inside it."""

    argument: int
    path: tuple[str, ...] = ()


@dataclass(slots=True)
class _Section:
    line: int
    types: tuple[str, ...]  # none: the tables, or `delete entity`
    text: str = ""
    delete: bool = False


def parse(text: str, origin: str) -> Definition:
    """The projection that a file describes. ``origin`` names the file in messages.

    Raises:
        ConfigurationError: names file, line and what is wrong there.

    """

    def refuse(line: int, problem: str) -> NoReturn:
        raise ConfigurationError(f"{origin}:{line}: {problem}")

    if len(text.encode()) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{origin}: longer than {MAX_FILE_BYTES} bytes")
    if "\0" in text:
        refuse(text.count("\n", 0, text.index("\0")) + 1, "a NUL character")
    try:
        headers, sections = _cut(text, refuse)
    except StatementError as error:
        refuse(text.count("\n", 0, max(error.position - 1, 0)) + 1, error.message)
    for key in ("projection", "version"):
        if key not in headers:
            refuse(1, f"the header lacks `-- {key}: …`")
    tables, *handlers = sections
    statements = {id(s): _statements(s, refuse) for s in sections}
    for statement in statements[id(tables)]:
        for token in tokens(statement.text):
            if token.kind == "parameter":
                refuse(
                    line_of(statement, token.at + 1),
                    f"{token.text}: tables have no parameters (is `-- on: …` missing above?)",
                )
    for section in handlers:
        if not statements[id(section)]:
            refuse(section.line, "no statement follows")
    if not any(section.types for section in handlers):
        refuse(text.count("\n") + 1, "no `-- on: …`: the file handles no event")
    made = _handlers(handlers, statements)
    delete = next((s for s in handlers if s.delete), None)
    every = any(handler.event_type == ALL for handler in made)
    number = {key: _number(headers, key, refuse) for key in ("version", "segments")}
    definition = Definition(
        name=headers["projection"][1],
        version=number["version"],
        kind="sql",
        digest=_digest(headers, sections, statements),
        origin=origin,
        tables=tuple(statements[id(tables)]),
        log=headers.get("log", (0, DEFAULT_LOG))[1],
        entity_types=_names(headers.get("entity types", (0, ""))[1]),
        event_types=() if every else tuple(handler.event_type for handler in made),
        segments=number["segments"],
        on_poison=headers.get("on poison", (0, "halt"))[1],  # type: ignore[arg-type] # checked below
        replayable=delete is not None,
        source=text,
        handlers=tuple(made),
        delete_entity=(
            Handler("", "delete_entity", tuple(statements[id(delete)])) if delete else None
        ),
    )
    return check_definition(definition)


Refuse = Callable[[int, str], NoReturn]


def _cut(text: str, refuse: Refuse) -> tuple[dict[str, tuple[int, str]], list[_Section]]:
    """Headers (line, value) and sections; the first section is the tables'."""
    headers: dict[str, tuple[int, str]] = {}
    sections: list[_Section] = []
    current = _Section(1, ())
    line, at_header = 1, True
    fresh = True  # nothing but space before it on its line
    for token in tokens(text):
        if token.kind == "comment" and fresh:
            section = _SECTION.fullmatch(token.text)
            header = _HEADER_KEY.fullmatch(token.text) if at_header else None
            if section is not None:
                sections.append(current)
                current = _section(section, line, sections, refuse)
                at_header = False
            elif header is not None:
                _header(headers, line, header[1], header[2], refuse)
        elif token.kind not in ("space", "comment"):
            at_header = False
        # Newlines are kept, so that statements know their lines.
        current.text += "\n" * token.text.count("\n") if token.kind == "comment" else token.text
        line += token.text.count("\n")
        fresh = fresh or "\n" in token.text if token.kind == "space" else False
    sections.append(current)
    return headers, sections


def _header(
    headers: dict[str, tuple[int, str]], line: int, key: str, value: str, refuse: Refuse
) -> None:
    if key not in _HEADERS:
        refuse(line, f"unknown key {key!r}; there are {', '.join(_HEADERS)}")
    if key in headers:
        refuse(line, f"{key!r} is there twice, first in line {headers[key][0]}")
    if not value:
        refuse(line, f"{key!r} has no value")
    headers[key] = (line, value)


def _section(
    match: re.Match[str], line: int, before: Sequence[_Section], refuse: Refuse
) -> _Section:
    if match["delete"]:
        if any(section.delete for section in before):
            refuse(line, "`delete entity` is there twice")
        return _Section(line, (), delete=True)
    types = _names(match["types"])
    if not types:
        refuse(line, "`on:` names no event type")
    return _Section(line, types)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _number(headers: Mapping[str, tuple[int, str]], key: str, refuse: Refuse) -> int:
    line, value = headers.get(key, (0, "1"))
    if not re.fullmatch(r"[0-9]{1,9}", value):
        refuse(line, f"{key} {value!r} is not a number")
    return int(value)


def _statements(section: _Section, refuse: Refuse) -> list[Statement]:
    found = split(section.text, section.line)
    for statement in found:
        try:
            check_confined(statement.text)
            probe(statement.text, deleting=section.delete)
            if section.types or section.delete:
                word = statement.text.split(None, 1)[0].upper().rstrip("(")
                if word not in MANIPULATING:
                    raise StatementError(
                        f"a handler's statement begins with {', '.join(sorted(MANIPULATING))},"
                        f" not with {word:.40}",
                        position=1,
                    )
        except StatementError as error:
            refuse(line_of(statement, error.position), error.message)
    return found


def _handlers(
    sections: Sequence[_Section], statements: Mapping[int, Sequence[Statement]]
) -> list[Handler]:
    """A handler for each type: all sections that name it or ``*``, in the order of the file."""
    types = list(dict.fromkeys(name for section in sections for name in section.types))
    return [
        Handler(
            name,
            f"on_{number}",
            tuple(
                statement
                for section in sections
                if name in section.types or ALL in section.types
                for statement in statements[id(section)]
            ),
        )
        for number, name in enumerate(types, 1)
    ]


def _digest(
    headers: Mapping[str, tuple[int, str]],
    sections: Sequence[_Section],
    statements: Mapping[int, Sequence[Statement]],
) -> str:
    """Of all but the poison policy, comments and white space."""
    parts = [f"{key}={headers[key][1]}" for key in sorted(headers) if key != "on poison"]
    for section in sections:
        parts.append(f"[{','.join(section.types)}{'delete' if section.delete else ''}]")
        parts += [normal(statement.text) for statement in statements[id(section)]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# Parameters


def probe(text: str, *, deleting: bool = False) -> tuple[str, list[Parameter]]:
    """``text`` with ``$1``, ``$2``, … in the place of its parameters, each by itself, and those.

    Raises:
        StatementError: an unknown parameter, or one that a deletion does not have.

    """
    pieces: list[str] = []
    found: list[Parameter] = []
    for token in tokens(text):
        if token.kind == "parameter":
            found.append(_parameter(token.text, token.at + 1, deleting=deleting))
            pieces.append(f"${len(found)}")
        elif token.kind == "argument":
            raise StatementError(
                f"{token.text}: parameters are written :data.… and :meta.…", position=token.at + 1
            )
        else:
            pieces.append(token.text)
    return "".join(pieces), found


def _parameter(text: str, position: int, *, deleting: bool) -> Parameter:
    root, *path = re.findall(r'"(?:[^"]|"")*"|[^.:"]+', text)
    path = [p[1:-1].replace('""', '"') if p.startswith('"') else p for p in path]
    if root == "meta":
        known = ("entity_type", "entity_id") if deleting else tuple(META)
        if len(path) != 1 or path[0] not in known:
            raise StatementError(f"{text}: there are :meta.{', :meta.'.join(known)}", "", position)
        return Parameter(list(META).index(path[0]) + 1)
    if deleting or root not in ("data", "metadata"):
        problem = (
            "a deletion knows :meta.entity_type and :meta.entity_id only"
            if deleting
            else "parameters begin with :data, :meta or :metadata"
        )
        raise StatementError(f"{text}: {problem}", "", position)
    return Parameter(DATA if root == "data" else METADATA, tuple(path))


def body(statement: Statement, types: Sequence[str]) -> str:
    """The statement as it stands in a handler's function. ``types``: what PostgreSQL deduced for
    each parameter of `probe`, as ``format_type`` writes it.
    """
    pieces: list[str] = []
    rest = iter(zip(probe(statement.text)[1], types, strict=True))
    for token in tokens(statement.text):
        if token.kind == "parameter":
            parameter, kind = next(rest)
            pieces.append(expression(parameter, kind))
        else:
            pieces.append(token.text)
    return "".join(pieces)


DELETE_ENTITY = "SELECT delete_entity({})".format(
    ", ".join({"entity_type": "$1", "entity_id": "$2"}.get(name, "NULL") for name in META)
    + ", NULL, NULL"
)
"""Calls the function of ``-- delete entity``: ``$1`` entity type, ``$2`` entity id."""

_WHOLE = ("bigint", "integer", "smallint")


def expression(parameter: Parameter, kind: str) -> str:
    """SQL for a parameter of type ``kind``. A field that is missing or JSON null is NULL; whole
    numbers may be written as 2.0 or "2"; lists become arrays; bytes are base64.
    """
    argument = f"${parameter.argument}"
    if parameter.argument <= len(META):
        return f"{argument}::{kind}"
    path = "'{" + ",".join(_element(part) for part in parameter.path) + "}'"
    value, text = f"({argument} #> {path})", f"({argument} #>> {path})"
    if kind in ("json", "jsonb"):
        return f"nullif({value}, 'null'::jsonb)::{kind}"
    if kind.endswith("[]"):
        return (
            f"(CASE jsonb_typeof({value}) WHEN 'array' THEN"
            f" ARRAY(SELECT jsonb_array_elements_text({value}))::{kind} ELSE {text}::{kind} END)"
        )
    if kind in _WHOLE:
        return f"trim_scale({text}::numeric)::text::{kind}"
    if kind == "bytea":
        return f"decode({text}, 'base64')"
    return f"{text}::{kind}"


def _element(part: str) -> str:
    quoted = part.replace("\\", "\\\\").replace('"', '\\"').replace("'", "''")
    return f'"{quoted}"'


def function_of(handler: Handler, bodies: Sequence[str]) -> str:
    """CREATE FUNCTION for a handler whose statements are ``bodies``."""
    tag = "$everstate$"
    text = ";\n".join(bodies)
    if tag in text:
        raise StatementError(f"{tag} is not allowed in a statement")
    return (
        f"CREATE FUNCTION {handler.function}({SIGNATURE}) RETURNS void"
        f" LANGUAGE sql VOLATILE AS {tag}\n{text}\n{tag}"
    )


def dispatch(definition: Definition) -> tuple[str, tuple[int, ...]]:
    """The statement that applies a batch, and which arguments of the functions it takes, as arrays
    ``$2``, ``$3``, …; ``$1`` are the numbers of the events' handlers. Arguments that no handler
    uses are not sent.
    """
    used = sorted(
        {
            parameter.argument
            for handler in definition.handlers
            for statement in handler.statements
            for parameter in probe(statement.text)[1]
        }
    )
    kinds = [*META.values(), "text", "text"]  # JSON travels as text: PostgreSQL parses it
    arrays = ["$1::int[]", *(f"${n}::{kinds[i - 1]}[]" for n, i in enumerate(used, 2))]
    columns = ["h", *(f"a{i}" for i in used)]

    def given(argument: int) -> str:
        if argument not in used:
            return "NULL"
        return f"e.a{argument}" + ("::jsonb" if argument in (METADATA, DATA) else "")

    call = ", ".join(given(i) for i in range(1, DATA + 1))
    cases = " ".join(
        f"WHEN {number} THEN {handler.function}({call})"
        for number, handler in enumerate(definition.handlers)
    )
    # Names and numbers of ours only; the statements themselves are in the functions.
    select = f"SELECT count((CASE e.h {cases} END)::text)"
    source = f"unnest({', '.join(arrays)}) AS e({', '.join(columns)})"
    return f"{select} FROM {source}", tuple(used)
