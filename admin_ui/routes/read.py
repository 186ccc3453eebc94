"""Read models over HTTP: tables of projections, page by page, as JSON or CSV."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Query, Request, Response

from admin_ui import read_models, rows
from admin_ui.access import needs
from admin_ui.read_models import Column, Model, Page
from admin_ui.services import Services, services_of
from admin_ui.shapes import ReadModel, ReadRows
from kernel import sql
from kernel.database import Connection, driver_errors
from kernel.errors import (
    DeadlineExceeded,
    EverstateError,
    InvalidArgument,
    NotFound,
    SchemaMismatch,
)
from kernel.principals import Role
from projections.control import not_found, wait_for
from projections.model import NAME, reader_role, views_schema

MAX_ROWS = 10_000
OURS = frozenset({"limit", "next", "order", "format", "formulas", "min_position", "timeout"})


def register(app: FastAPI) -> None:
    """Adds the routes."""
    app.get("/api/v1/read/{projection}", response_model=ReadModel, tags=["read models"])(tables)
    app.get(
        "/api/v1/read/{projection}/{table}",
        tags=["read models"],
        response_model=ReadRows,
        responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
    )(read)


@needs(Role.VIEWER, open_in_dev=True)
async def tables(request: Request, projection: str) -> Response:
    """The tables of a read model and their columns."""
    services = services_of(request)
    async with services.database.connection(services.settings.read_seconds) as connection:
        found = await _found(connection, services, projection)
        models = [await _model(connection, services, found, view) for view in found.views]
    shown = {
        "projection": projection,
        "version": found.version,
        "position": found.position,
        "tables": [
            {
                "name": model.table,
                "columns": [{"name": c.name, "type": c.type} for c in model.columns],
                "key": [column.name for column in model.key],
            }
            for model in models
        ],
    }
    return Response(orjson.dumps(shown), media_type="application/json")


@needs(Role.VIEWER, open_in_dev=True)
async def read(
    request: Request,
    projection: str,
    table: str,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS, description="Most rows of the page.")] = 100,
    token: Annotated[
        str | None, Query(alias="next", max_length=8_000, description="Of the page before.")
    ] = None,
    order: Annotated[
        str | None, Query(max_length=1_000, description="Columns; a - in front: descending.")
    ] = None,
    form: Annotated[Literal["json", "csv"] | None, Query(alias="format")] = None,
    formulas: Annotated[
        Literal["guard", "keep"],
        Query(description="CSV: texts that look like formulas get a ' in front, or are kept."),
    ] = "guard",
    min_position: Annotated[
        int, Query(ge=0, description="Wait until the projection has passed this position.")
    ] = 0,
    timeout: Annotated[float, Query(ge=0, description="Seconds to wait for it.")] = 10.0,
) -> Response:
    """A page of a table: `{"rows": […], "next": token or null, "position": …}`.

    Every other parameter is a condition on a column: `col=value`, or `col.gt=`, `.gte`, `.lt`,
    `.lte`, `.ne`, `.eq`, `.in=a,b,"c,d"`, `.like=a%`, `.null=true`. Rows come in the order asked
    for, then by the table's key. `position`: the log had been applied up to there to these rows.
    """
    services = services_of(request)
    if timeout > services.settings.wait_seconds:
        raise InvalidArgument("timeout", f"is above {services.settings.wait_seconds:g} seconds")
    conditions = [(k, v) for k, v in request.query_params.multi_items() if k not in OURS]
    for name in OURS:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidArgument(name, "is given twice")
    as_csv = form == "csv" or (form is None and _prefers_csv(request))
    _check_name(projection)
    if "\0" in table:  # no name holds it, and PostgreSQL takes no text that does
        raise InvalidArgument("table", "holds a NUL character")
    if min_position:
        patience = timedelta(seconds=max(timeout, 0.001))
        with services.waits:
            await wait_for(services.database, projection, min_position, patience)
    seconds = services.settings.read_seconds
    too_long = f"the query took longer than {seconds:g} s; ask for less, or make an index"
    page: Page | None = None
    try:
        async with (
            services.reads.turn(seconds),
            asyncio.timeout(seconds + 5),
            services.database.connection(seconds + 5) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await _hold(connection, projection, table)
            found = await _found(connection, services, projection)
            if table not in found.views:
                known = ", ".join(found.views)
                raise NotFound(f"{projection} has no table {table!r:.80}; it has {known}")
            model = await _model(connection, services, found, table)
            page = read_models.page(model, conditions, order, token)
            await _confine(connection, services)
            given = await _Reader(page, limit, services.settings.page_bytes, as_csv).read(
                connection, formulas=formulas == "keep"
            )
    except TimeoutError:
        raise DeadlineExceeded(too_long) from None
    except DeadlineExceeded:
        raise DeadlineExceeded(too_long) from None
    except (InvalidArgument, SchemaMismatch) as error:
        named = isinstance(error, InvalidArgument) and error.field != "request"
        if named or page is None:
            raise
        raise await _explained(services, page, error) from None
    if as_csv:
        return _csv(given, found, projection, table)
    following = orjson.dumps(given.following)
    body = b'{"rows":[%b],"next":%b,"position":%d}' % (
        b",".join(given.rows), following, found.position
    )  # fmt: skip
    return Response(body, media_type="application/json")


def _csv(given: Given, found: Found, projection: str, table: str) -> Response:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{projection}-{table}")
    headers = {
        "Content-Disposition": f'attachment; filename="{name}.csv"',
        "Everstate-Position": str(found.position),
    }
    if given.following is not None:
        headers["Everstate-Next"] = given.following
    return Response(b"".join(given.rows), 200, headers, media_type="text/csv; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Found:
    """A read model as a snapshot shows it."""

    projection: str
    version: int
    schema_name: str
    position: int
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """The written rows of a page and the token of the next one."""

    rows: Sequence[bytes]
    following: str | None


def _check_name(projection: str) -> None:
    if not NAME.fullmatch(projection):
        raise not_found(projection[:80])


async def _hold(connection: Connection, projection: str, table: str) -> None:
    """Keeps the view as it is until the transaction ends.

    Before the transaction's snapshot, which LOCK does not take: else a switch in between would
    answer with rows of the new tables, as they were before they had come to the position of the
    old ones.
    """
    name = f"{read_models.quoted(views_schema(projection))}.{read_models.quoted(table)}"
    with contextlib.suppress(NotFound, SchemaMismatch, InvalidArgument):  # said later, better
        async with connection.transaction():
            with driver_errors():
                await connection.execute(f"LOCK TABLE {name} IN ACCESS SHARE MODE")


async def _found(connection: Connection, services: Services, projection: str) -> Found:
    _check_name(projection)
    schema = services.database.schema
    row = await connection.fetchrow(
        sql.load("admin_ui", "read_model", schema), projection, views_schema(projection)
    )
    if row is None:
        raise not_found(projection)
    return Found(
        projection, row["version"], row["schema_name"], row["position"], tuple(row["views"])
    )


async def _model(connection: Connection, services: Services, found: Found, table: str) -> Model:
    views = views_schema(found.projection)
    columns = await connection.fetch(
        sql.load("admin_ui", "read_model_columns", services.database.schema),
        views, table, found.schema_name,
    )  # fmt: skip
    return Model(found.projection, views, table, tuple(Column(**row) for row in columns))


async def _confine(connection: Connection, services: Services) -> None:
    """For the rest of the transaction: the role of readers, a deadline, one way to write values."""
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(
        "SELECT set_config(s.name, s.value, true) FROM unnest($1::text[], $2::text[]) "
        "AS s (name, value)",
        *_settings(reader_role(name, services.database.schema), services.settings.read_seconds),
    )


def _settings(role: str, seconds: float) -> tuple[list[str], list[str]]:
    values = {
        "statement_timeout": str(max(1, int(seconds * 1000))),
        "enable_seqscan": "on",
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "iso_8601",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "role": role,
    }
    return list(values), list(values.values())


class _Reader:
    """Fetches and writes the rows of a page, in pieces that fit into its bytes."""

    def __init__(self, page: Page, limit: int, most_bytes: int, as_csv: bool) -> None:
        self._page = page
        self._limit = limit
        self._most_bytes = most_bytes
        self._as_csv = as_csv

    async def read(self, connection: Connection, *, formulas: bool) -> Given:
        page, columns = self._page, self._page.model.columns
        text, parameters = read_models.statement(page, self._limit + 1)
        cursor = await connection.cursor(text, *parameters)
        written: list[bytes] = []
        taken: list[Any] = []
        size = 0
        more = False
        piece = 16
        while not more and (fetched := await cursor.fetch(piece)):
            for row in fetched:
                line = (
                    rows.csv_row(columns, row, formulas=formulas)
                    if self._as_csv
                    else rows.json_row(columns, row)
                )
                full = len(written) == self._limit or size + len(line) > self._most_bytes
                if full and written:
                    more = True
                    break
                written.append(line)
                taken.append(tuple(row[-len(page.order) :]))
                size += len(line)
            average = max(1, size // max(1, len(written)))
            piece = max(1, min(1_000, (self._most_bytes - size) // average))
        following = page.token(read_models.after_rows(page, taken)) if more else None
        if self._as_csv:
            written.insert(0, rows.csv_head(columns, formulas=formulas))
        return Given(written, following)


async def _explained(services: Services, page: Page, error: EverstateError) -> EverstateError:
    """Which condition the database could not take: each value is tried for itself."""
    tried = [(f.field, f.column, v) for f in page.filters for v in f.values if f.operator != "null"]
    if page.after is not None:
        pairs = zip(page.order, page.after.values, strict=True)
        tried += [("next", ordered.column, value) for ordered, value in pairs if value is not None]
    for field, column, value in tried:
        if field.endswith(".like"):
            continue
        try:
            wanted = column.base if column.orderable else "text"
            statement = f"SELECT CAST($1::text AS {wanted})"
            await services.database.fetchrow(statement, value)
        except EverstateError:
            return InvalidArgument(field, f"is not a value of type {column.type}")
    return InvalidArgument("query", f"the database cannot run it: {error.message}")


def _prefers_csv(request: Request) -> bool:
    for part in ",".join(request.headers.getlist("accept")).split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in ("application/json", "*/*", "application/*"):
            return False
        if kind == "text/csv":
            return True
    return False
