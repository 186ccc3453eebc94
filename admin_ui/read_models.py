"""Pages of read models: what is asked, checked against the catalog, as one statement.

Nothing of a request becomes SQL text: columns are those of the catalog (quoted), values are bound
and cast to the column's type by the server. The statement runs in a read-only transaction with one
snapshot, as the role that may read the views of projections and nothing else, and ends at a
deadline. So rows and position belong together: the rows are a fold of the log up to there.

Pages follow a total order: what is asked for, then the table's key. The token of the next page
holds the last row's values in that order, so that a page costs the same wherever it is, and rows
that come or go meanwhile shift nothing. A table without a key is ordered by all its columns; its
token also counts how many rows equal to the last one have been given.
"""

from __future__ import annotations

import base64
import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from kernel.errors import InvalidArgument

OPERATORS: Final = {"eq": "=", "ne": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_OTHERS: Final = frozenset({"in", "like", "null"})
MAX_FILTERS: Final = 40
MAX_VALUES: Final = 200
MAX_ORDER: Final = 8
_WHOLE: Final = frozenset({"smallint", "integer", "bigint"})
_FLOATS: Final = frozenset({"real", "double precision"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a view; ``key``: its place in the table's key, None: no part of it."""

    name: str
    type: str
    base: str
    category: str
    not_null: bool
    key: int | None
    orderable: bool

    @property
    def quoted(self) -> str:
        """The name as SQL has it. With the alias: ORDER BY takes a bare name for what is shown."""
        return f"r.{quoted(self.name)}"

    @property
    def ordered(self) -> str:
        """What rows are ordered by."""
        return self.quoted if self.orderable else f"{self.quoted}::text"

    def cast(self, parameter: int) -> str:
        """A parameter (text) as a value of the column."""
        if self.category == "E":  # its name is out of reach of readers; comparing infers the type
            return f"${parameter}"
        return f"CAST(${parameter}::text AS {self.base if self.orderable else 'text'})"

    @property
    def shown(self) -> str:
        """The expression whose value `admin_ui.rows` knows how to write."""
        name = self.quoted
        if self.base in _WHOLE or self.base == "boolean":
            return name
        if self.base.startswith("timestamp"):
            zone = " AT TIME ZONE 'UTC'" if self.base.endswith("with time zone") else ""
            mark = '"Z"' if zone else ""
            # Beyond the years of RFC 3339, and infinity: as PostgreSQL writes them.
            return (
                f"CASE WHEN {name}{zone} >= '0001-01-01' AND {name}{zone} < '10000-01-01' "
                f"THEN to_char({name}{zone}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US{mark}') "
                f"ELSE {name}::text END"
            )
        if self.base == "bytea":
            return f"translate(encode({name}, 'base64'), E'\\n', '')"
        if self.category in ("A", "C") and self.base not in ("json", "jsonb"):
            return f"to_json({name})::text"
        return f"{name}::text"

    @property
    def kind(self) -> str:
        """How the shown value is written: whole, bool, float, raw (is JSON), or text."""
        if self.base in _WHOLE:
            return "whole"
        if self.base == "boolean":
            return "bool"
        if self.base in _FLOATS:
            return "float"
        return "raw" if self.base in ("json", "jsonb") or self.category in ("A", "C") else "text"


@dataclass(frozen=True, slots=True)
class Model:
    """A view of a read model."""

    projection: str
    schema: str
    table: str
    columns: tuple[Column, ...]

    def column(self, name: str, field: str) -> Column:
        """The column of a name.

        Raises:
            InvalidArgument: there is none; names those there are.

        """
        for column in self.columns:
            if column.name == name:
                return column
        known = ", ".join(column.name for column in self.columns)
        raise InvalidArgument(field, f"{self.table} has no column {name!r:.80}; it has {known}")

    @property
    def key(self) -> tuple[Column, ...]:
        """The columns of the key, in its order; none when the table has no key."""
        keyed = [column for column in self.columns if column.key is not None]
        return tuple(sorted(keyed, key=lambda column: column.key or 0))


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition; ``field`` is the parameter it came from."""

    field: str
    column: Column
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ordered:
    """A column of the order of pages."""

    column: Column
    descending: bool = False


@dataclass(frozen=True, slots=True)
class After:
    """Where the page before ended: the last row's values, and how many rows equal to it it had."""

    values: tuple[str | None, ...]
    given: int


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked of a view."""

    model: Model
    filters: tuple[Filter, ...]
    order: tuple[Ordered, ...]
    after: After | None
    keyed: bool

    def token(self, after: After) -> str:
        """The token of the page that begins after a row."""
        said = orjson.dumps([self._digest(), list(after.values), after.given])
        return base64.urlsafe_b64encode(said).decode().rstrip("=")

    def _digest(self) -> str:
        said = (
            self.model.projection,
            self.model.table,
            sorted((f.column.name, f.operator, f.values) for f in self.filters),
            [(o.column.name, o.column.type, o.descending) for o in self.order],
        )
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def continued(self, token: str) -> Page:
        """The page of a token.

        Raises:
            InvalidArgument: it is not a token of this query.

        """
        try:
            said = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            digest, values, given = said
            after = After(tuple(values), given)
        except (ValueError, TypeError):
            raise InvalidArgument("next", "is not a token of a page before") from None
        fits = (
            digest == self._digest()
            and len(after.values) == len(self.order)
            and all(value is None or isinstance(value, str) for value in after.values)
            and type(given) is int
            and 0 <= given < 1 << 31
        )
        if not fits or any("\0" in value for value in after.values if value):
            raise InvalidArgument("next", "is of another query; begin again without it")
        return replace(self, after=after)


def quoted(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def page(
    model: Model, asked: Iterable[tuple[str, str]], order: str | None, token: str | None
) -> Page:
    """What a request asks of a view: conditions as (parameter, value), order, token.

    Raises:
        InvalidArgument: names the parameter, and for an unknown column those there are.

    """
    filters = tuple(_filter(model, field, value) for field, value in asked)
    if len(filters) > MAX_FILTERS:
        raise InvalidArgument("query", f"has {len(filters)} conditions, the limit is {MAX_FILTERS}")
    wanted = _order(model, order)
    named = {ordered.column.name for ordered in wanted}
    key = model.key
    rest = key or model.columns
    whole = (*wanted, *(Ordered(column) for column in rest if column.name not in named))
    asked_for = Page(model, filters, whole, None, keyed=bool(key))
    return asked_for.continued(token) if token else asked_for


def _filter(model: Model, field: str, value: str) -> Filter:
    name, dot, operator = field.rpartition(".")
    if not dot or operator not in OPERATORS.keys() | _OTHERS:
        name, operator = field, "eq"
    column = model.column(name, field)
    if "\0" in value:
        raise InvalidArgument(field, "holds a NUL")
    if operator == "null":
        if value not in ("true", "false"):
            raise InvalidArgument(field, "is true or false")
        return Filter(field, column, operator, (value,))
    if not column.orderable:
        raise InvalidArgument(field, f"a column of type {column.type} cannot be compared")
    if operator == "like" and column.category != "S":
        raise InvalidArgument(field, f"a column of type {column.type} is no text")
    values: tuple[str, ...] = (value,)
    if operator == "in":
        try:
            values = tuple(next(csv.reader([value], strict=True), []))
        except csv.Error:
            raise InvalidArgument(field, 'is a list like a,b,"c,d"') from None
        if not 1 <= len(values) <= MAX_VALUES:
            raise InvalidArgument(field, f"has {len(values)} values, not from 1 to {MAX_VALUES}")
    return Filter(field, column, operator, values)


def _order(model: Model, text: str | None) -> tuple[Ordered, ...]:
    found: list[Ordered] = []
    for word in text.split(",") if text else ():
        column = model.column(word.removeprefix("-"), "order")
        if not column.orderable:
            raise InvalidArgument("order", f"a column of type {column.type} has no order")
        if any(ordered.column == column for ordered in found):
            raise InvalidArgument("order", f"names {column.name!r} twice")
        found.append(Ordered(column, word.startswith("-")))
    if len(found) > MAX_ORDER:
        raise InvalidArgument("order", f"names {len(found)} columns, the limit is {MAX_ORDER}")
    return tuple(found)


def statement(page: Page, limit: int) -> tuple[str, list[str]]:
    """The statement of a page and its parameters, all of them text.

    A row has the shown values and then, as text, those of the order.
    """
    parameters: list[str] = []

    def bound(column: Column, value: str) -> str:
        parameters.append(value)
        return column.cast(len(parameters))

    conditions: list[str] = []
    for condition in page.filters:
        name, column = condition.column.quoted, condition.column
        if condition.operator == "null":
            conditions.append(f"{name} IS {'' if condition.values[0] == 'true' else 'NOT '}NULL")
        elif condition.operator == "in":
            listed = ", ".join(bound(column, value) for value in condition.values)
            conditions.append(f"{name} IN ({listed})")
        elif condition.operator == "like":
            parameters.append(condition.values[0])
            conditions.append(f"{name} LIKE ${len(parameters)}::text")
        else:
            operator = OPERATORS[condition.operator]
            conditions.append(f"{name} {operator} {bound(column, condition.values[0])}")
    if page.after is not None:
        conditions.append(_beyond(page, page.after, bound))
    shown = ", ".join(column.shown for column in page.model.columns)
    kept = ", ".join(f"{ordered.column.quoted}::text" for ordered in page.order)
    order = ", ".join(_direction(ordered) for ordered in page.order)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    skipped = f" OFFSET {page.after.given}" if page.after and page.after.given else ""
    source = f"{quoted(page.model.schema)}.{quoted(page.model.table)} AS r"
    text = f"SELECT {shown}, {kept} FROM {source}{where} ORDER BY {order} LIMIT {limit}{skipped}"  # noqa: S608 - see the module
    return text, parameters


def _direction(ordered: Ordered) -> str:
    # Without NULLS LAST an index serves both directions; a column without nulls does not need it.
    nulls = "" if ordered.column.not_null else " NULLS LAST"
    return f"{ordered.column.ordered} {'DESC' if ordered.descending else 'ASC'}{nulls}"


def _beyond(page: Page, after: After, bound: Any) -> str:
    """The condition that rows come after the last one; for a table without key, or are equal."""
    columns = [(o, v) for o, v in zip(page.order, after.values, strict=True)]
    directions = {ordered.descending for ordered, _ in columns}
    plain = all(o.column.not_null and v is not None for o, v in columns)
    values = [None if v is None else bound(o.column, v) for o, v in columns]
    if plain and len(directions) == 1:  # one comparison of rows, which an index serves
        names = ", ".join(o.column.ordered for o, _ in columns)
        equal = "" if page.keyed else "="
        sign = "<" if directions == {True} else ">"
        return f"({names}) {sign}{equal} ({', '.join(v or '' for v in values)})"
    ways: list[str] = []
    for i, (ordered, _) in enumerate(columns):
        step = _step(ordered, values[i])
        if step:
            same = [_same(o.column, values[j]) for j, (o, _) in enumerate(columns[:i])]
            ways.append(" AND ".join([*same, step]))
    if not page.keyed:
        ways.append(" AND ".join(_same(o.column, values[j]) for j, (o, _) in enumerate(columns)))
    return f"({' OR '.join(f'({way})' for way in ways)})" if ways else "false"


def _same(column: Column, value: str | None) -> str:
    return f"{column.ordered} IS NULL" if value is None else f"{column.ordered} = {value}"


def _step(ordered: Ordered, value: str | None) -> str:
    """That a column comes after a value; nulls are last. Empty: nothing comes after a null."""
    if value is None:
        return ""
    column = ordered.column
    beyond = f"{column.ordered} {'<' if ordered.descending else '>'} {value}"
    return beyond if column.not_null else f"({beyond} OR {column.ordered} IS NULL)"


def after_rows(page: Page, rows: Sequence[Sequence[Any]]) -> After:
    """Where a page that gave these rows ended."""
    width = len(page.order)
    last = tuple(rows[-1][-width:])
    if page.keyed:
        return After(last, 0)
    equal = 0
    for row in reversed(rows):
        if tuple(row[-width:]) != last:
            break
        equal += 1
    if equal == len(rows) and page.after is not None and page.after.values == last:
        equal += page.after.given
    return After(last, equal)
