"""Read models over HTTP: pages, conditions, values, deadlines, and who may read what."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from admin_ui import app as admin_app
from admin_ui.services import AdminSettings
from kernel.database import Database, DatabaseSettings
from kernel.principals import Role
from kernel.token_store import Tokens
from tests.asgi import Asgi
from tests.readmodels import make_read_model, reach
from tests.support import running

SETTINGS = AdminSettings(dev=True)  # reading needs no token there
FILES = """
CREATE TABLE files (path text PRIMARY KEY, size bigint NOT NULL, kind text, added numeric);
INSERT INTO files SELECT 'f' || lpad(i::text, 3, '0'), i % 7,
  CASE i % 5 WHEN 0 THEN NULL ELSE 'k' || i % 3 END, i * 0.125 FROM generate_series(0, 99) i;
CREATE TABLE lines (a int, b text);
INSERT INTO lines SELECT i % 3, CASE i % 2 WHEN 0 THEN 'x' END FROM generate_series(1, 50) i;
"""
PATH = "/api/v1/read/repo/files"


@pytest.fixture
async def any_database(any_database_url: str) -> AsyncIterator[Database]:
    """PostgreSQL 18 and 15."""
    opened = await Database.open(DatabaseSettings(any_database_url))
    yield opened
    await opened.close()


@pytest.fixture
async def http(database: Database) -> Asgi:
    await make_read_model(database, "repo", FILES, position=42)
    return Asgi(admin_app.application(admin_app.services(database, SETTINGS)))


def settled(database: Database, **settings: Any) -> Asgi:
    changed = replace(SETTINGS, **settings)
    return Asgi(admin_app.application(admin_app.services(database, changed)))


async def everything(http: Asgi, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    query = dict(query)
    while True:
        page = (await http.get(path, query)).ok()
        assert page.keys() == {"rows", "next", "position"}
        assert len(page["rows"]) <= query.get("limit", 100)
        found += page["rows"]
        if page["next"] is None:
            return found
        assert page["rows"]
        query["next"] = page["next"]


async def test_a_page_has_rows_a_token_and_the_position(http: Asgi) -> None:
    page = (await http.get(PATH, {"limit": 2})).ok()
    assert page["rows"] == [
        {"path": "f000", "size": 0, "kind": None, "added": "0.000"},
        {"path": "f001", "size": 1, "kind": "k1", "added": "0.125"},
    ]
    assert page["position"] == 42
    assert isinstance(page["next"], str)
    assert len((await http.get(PATH)).ok()["rows"]) == 100
    assert (await http.get(PATH, {"limit": 100})).ok()["next"] is None


def nulls_last(rows: list[dict[str, Any]], name: str, *, down: bool = False) -> None:
    """Sorts in place, stable, as the API does."""
    rows.sort(key=lambda row: row[name] or "" if row[name] is not None else "", reverse=down)
    rows.sort(key=lambda row: row[name] is None)


@pytest.mark.parametrize(
    "order", [None, "path", "-path", "kind", "-kind", "kind,-path", "-size,kind,-path", "size,path"]
)
async def test_pages_put_together_are_everything_in_order(http: Asgi, order: str | None) -> None:
    wanted = (await http.get(PATH, {"limit": 10_000})).ok()["rows"]
    words = [*(order.split(",") if order else []), "path"]
    for word in reversed(words):
        name = word.removeprefix("-")
        if name == "size":
            wanted.sort(key=lambda row: row["size"], reverse=word[0] == "-")
        else:
            nulls_last(wanted, name, down=word[0] == "-")
    for limit in (1, 7, 33, 99, 100, 101):
        query = {"limit": limit} | ({"order": order} if order else {})
        assert await everything(http, PATH, query) == wanted, limit


@pytest.mark.parametrize("order", [None, "b", "-a"])
async def test_a_table_without_a_key_is_paged_too_and_equal_rows_are_all_given(
    http: Asgi, order: str | None
) -> None:
    path = "/api/v1/read/repo/lines"
    query = {"order": order} if order else {}
    found = (await http.get(path, query | {"limit": 1000})).ok()["rows"]
    for limit in (1, 4, 9, 49, 50):
        assert await everything(http, path, query | {"limit": limit}) == found, limit
    counts: dict[tuple[Any, Any], int] = {}
    for row in found:
        counts[row["a"], row["b"]] = counts.get((row["a"], row["b"]), 0) + 1
    assert counts == {
        (0, None): 8, (0, "x"): 8, (1, None): 9, (1, "x"): 8, (2, None): 8, (2, "x"): 9,
    }  # fmt: skip


@pytest.mark.parametrize("order", [None, "b", "-a,-b"])
async def test_so_is_one_whose_columns_are_never_null(
    database: Database, order: str | None
) -> None:
    tables = (
        "CREATE TABLE t (a int NOT NULL, b text NOT NULL);"
        "INSERT INTO t SELECT i % 2, 'b' || i % 3 FROM generate_series(1, 40) i"
    )
    await make_read_model(database, "same", tables)
    http = settled(database)
    query = {"order": order} if order else {}
    for limit in (1, 6, 7, 39, 40):
        found = await everything(http, "/api/v1/read/same/t", query | {"limit": limit})
        counts = Counter((row["a"], row["b"]) for row in found)
        assert sorted(counts.values()) == [6, 6, 7, 7, 7, 7], limit


async def test_rows_that_come_and_go_between_pages_shift_nothing(
    http: Asgi, database: Database
) -> None:
    first = (await http.get(PATH, {"limit": 10})).ok()
    await database.fetchrow("DELETE FROM rm_repo_v1.files WHERE path < 'f005'")
    await database.fetchrow("INSERT INTO rm_repo_v1.files VALUES ('f0011', 1, NULL, 1)")
    rest = await everything(http, PATH, {"limit": 10, "next": first["next"]})
    assert [row["path"] for row in rest] == [f"f{i:03}" for i in range(10, 100)]


CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"size": "3"}, 14),
    ({"size.eq": "3"}, 14),
    ({"size.ne": "3"}, 86),
    ({"size.gt": "3"}, 42),
    ({"size.gte": "3"}, 56),
    ({"size.lt": "3"}, 44),
    ({"size.lte": "3"}, 58),
    ({"size.gt": "1", "size.lt": "4"}, 28),
    ({"kind": "k1"}, 27),
    ({"kind.null": "true"}, 20),
    ({"kind.null": "false"}, 80),
    ({"kind.null": "true", "size": "0"}, 3),
    ({"size.in": "1,3"}, 29),
    ({"kind.in": '"k1","k2"'}, 53),
    ({"path.like": "f00%"}, 10),
    ({"added.gte": "12.25"}, 2),
    ({"path": "nosuch"}, 0),
    ({"path": "x' OR true --"}, 0),
    ({"path": "'; DROP TABLE files; --"}, 0),
    ({"path.in": "f001,f002,'); DROP VIEW files; --"}, 2),
]


async def test_conditions_choose_rows(http: Asgi) -> None:
    for query, count in CONDITIONS:
        rows = (await http.get(PATH, query)).ok()["rows"]
        assert len(rows) == count, query
        assert await everything(http, PATH, query | {"limit": 6}) == rows, query
    assert len((await http.get(PATH)).ok()["rows"]) == 100


WRONG: list[tuple[dict[str, str], str, str]] = [
    ({"colour": "red"}, "colour", "no column 'colour'; it has path, size, kind, added"),
    ({"colour.gt": "red"}, "colour.gt", "no column 'colour'"),
    ({"size.is": "1"}, "size.is", "no column 'size.is'"),
    ({'"path"; DROP TABLE files; --': "1"}, '"path"; DROP TABLE files; --', "no column"),
    ({"path) OR (1=1": "1"}, "path) OR (1=1", "no column"),
    ({"order": "path; DROP TABLE files"}, "order", "no column"),
    ({"order": "path,path"}, "order", "twice"),
    ({"order": "path desc"}, "order", "no column"),
    ({"order": "--path"}, "order", "no column '-path'"),
    ({"size": "three"}, "size", "not a value of type bigint"),
    ({"size": "9223372036854775808"}, "size", "not a value of type bigint"),
    ({"size": "1; DROP TABLE files"}, "size", "not a value of type bigint"),
    ({"path": "x", "size.in": "1,two"}, "size.in", "not a value of type bigint"),
    ({"size.in": ""}, "size.in", "0 values"),
    ({"size.in": '"1'}, "size.in", "list"),
    ({"size.like": "1%"}, "size.like", "no text"),
    ({"size.null": "maybe"}, "size.null", "true or false"),
    ({"path": "a\0b"}, "path", "NUL"),
    ({"limit": "0"}, "limit", "greater than or equal to 1"),
    ({"limit": "10001"}, "limit", "less than or equal to 10000"),
    ({"limit": "all"}, "limit", "integer"),
    ({"min_position": "-1"}, "min_position", "greater"),
    ({"timeout": "1e9"}, "timeout", "above 60"),
    ({"format": "xml"}, "format", "json"),
    ({"next": "nonsense"}, "next", "not a token"),
    ({"next": "é"}, "next", "not a token"),
    ({"next": base64.urlsafe_b64encode(b'["x",[],0]').decode()}, "next", "another query"),
]


async def test_what_is_wrong_is_named_and_harms_nothing(http: Asgi) -> None:
    for query, field, words in WRONG:
        said = (await http.get(PATH, query)).problem(400, "INVALID_ARGUMENT")
        assert said["field"] == field
        assert words in said["detail"]
    assert len((await http.get(PATH)).ok()["rows"]) == 100


async def test_a_parameter_given_twice_is_refused_and_a_condition_given_twice_holds_twice(
    http: Asgi,
) -> None:
    twice = await http.get(PATH, [("limit", 1), ("limit", 2)])
    assert twice.problem(400, "INVALID_ARGUMENT")["field"] == "limit"
    assert (await http.get(PATH, [("size", 1), ("size", 2)])).ok()["rows"] == []
    many = [("size.gt", i) for i in range(41)]
    assert "40" in (await http.get(PATH, many)).problem(400, "INVALID_ARGUMENT")["detail"]


async def test_a_token_is_of_one_query(http: Asgi) -> None:
    token = (await http.get(PATH, {"limit": 5, "order": "size"})).ok()["next"]
    for other in ({"order": "-size"}, {"order": "size", "kind": "k1"}, {}):
        said = await http.get(PATH, other | {"next": token})
        assert said.problem(400, "INVALID_ARGUMENT")["field"] == "next"
    elsewhere = await http.get("/api/v1/read/repo/lines", {"next": token})
    assert elsewhere.problem(400, "INVALID_ARGUMENT")["field"] == "next"
    assert (await http.get(PATH, {"order": "size", "next": token, "limit": 7})).ok()["rows"]


async def test_a_forged_token_cannot_become_sql(http: Asgi) -> None:
    import orjson

    token = (await http.get(PATH, {"limit": 5, "order": "size"})).ok()["next"]
    digest, values, given = orjson.loads(base64.urlsafe_b64decode(token + "==="))
    assert (values, given) == (["0", "f028"], 0)
    for forged in (
        [digest, ["0'); DROP TABLE files; --", "f"], 0],
        [digest, ["0", "f"], "0; DROP TABLE files"],
        [digest, ["0", "f"], -1],
        [digest, ["0"], 0],
        [digest, [0, "f"], 0],
        [digest, ["0", "\0"], 0],
        [digest, 7, 0],
        {},
    ):
        text = base64.urlsafe_b64encode(orjson.dumps(forged)).decode()
        said = await http.get(PATH, {"order": "size", "next": text})
        assert said.problem(400, "INVALID_ARGUMENT")["field"] == "next"
    assert len((await http.get(PATH)).ok()["rows"]) == 100


async def test_what_is_not_there_is_named(http: Asgi) -> None:
    said = await http.get("/api/v1/read/nosuch/files")
    assert "no projection 'nosuch'" in said.problem(404, "NOT_FOUND")["detail"]
    (await http.get("/api/v1/read/No-Such/files")).problem(404, "NOT_FOUND")
    said = await http.get("/api/v1/read/repo/nosuch")
    assert "no table 'nosuch'; it has files, lines" in said.problem(404, "NOT_FOUND")["detail"]
    for table in ("pg_class", 'files"; DROP', "everstate.tokens", "../tokens"):
        assert (await http.get(f"/api/v1/read/repo/{table}")).status == 404


async def test_a_read_model_says_what_it_has(http: Asgi) -> None:
    said = (await http.get("/api/v1/read/repo")).ok()
    assert (said["projection"], said["version"], said["position"]) == ("repo", 1, 42)
    files, lines = said["tables"]
    assert files["key"] == ["path"]
    assert files["columns"][1] == {"name": "size", "type": "bigint"}
    assert (lines["name"], lines["key"]) == ("lines", [])


# -- values --------------------------------------------------------------------------------------

VALUES = """
CREATE TYPE mood AS ENUM ('low', 'high');
CREATE DOMAIN positive AS bigint CHECK (VALUE > 0);
CREATE TABLE things (
  id positive PRIMARY KEY, small smallint, big bigint, yes boolean, exact numeric, f4 real,
  f8 float8,
  at timestamptz, local_at timestamp, day date, span interval, doc jsonb, raw json,
  bytes bytea,
  tags text[], feeling mood, uid uuid, padded char(4), "Odd ""name" text
);
INSERT INTO things VALUES (2);
INSERT INTO things VALUES
  (1, -32768, 9223372036854775807, true, 12345678901234567890.123456789, 0.1, 0.1,
   '2024-05-01T12:00:00.000001+02', '2024-05-01T12:00:00', '2024-02-29', '1 day 2 hours',
   '{"n": 12345678901234567890, "a": [1]}', '{"b": 1,  "b": 2}', '\\x00ff',
   '{a,NULL,"b,c"}', 'high',
   '018f3c5e-0000-7000-8000-000000000000', 'ab', 'ü'),
  (3, 0, -9223372036854775808, false, 'NaN', 'Infinity', '-Infinity', 'infinity', '-infinity',
   'infinity', '-1 mon', 'null', '7', '', '{}', 'low', NULL, '', ''),
  (4, 1, 1, true, -0.0, 1e-40, 1.7976931348623157e308, '0044-03-15 00:00:00+00 BC',
   '10000-01-01', '0001-01-01 BC', '0', '"x"', '[]', 'a', '{{a}}', 'low', NULL, ' a', ' ');
"""
THINGS = "/api/v1/read/things/things"


async def test_values_are_written_without_loss(any_database: Database) -> None:
    await make_read_model(any_database, "things", VALUES)
    answer = await settled(any_database).get(THINGS)
    one, nulls, three, four = answer.ok()["rows"]
    assert b'"big":9223372036854775807,' in answer.body
    assert b'"n": 12345678901234567890' in answer.body, "numbers within json are not rounded"
    assert one == {
        "id": 1, "small": -32768, "big": 9223372036854775807, "yes": True,
        "exact": "12345678901234567890.123456789", "f4": 0.1, "f8": 0.1,
        "at": "2024-05-01T10:00:00.000001Z", "local_at": "2024-05-01T12:00:00.000000",
        "day": "2024-02-29", "span": "P1DT2H", "doc": {"n": 12345678901234567890, "a": [1]},
        "raw": {"b": 2}, "bytes": "AP8=", "tags": ["a", None, "b,c"], "feeling": "high",
        "uid": "018f3c5e-0000-7000-8000-000000000000", "padded": "ab", 'Odd "name': "ü",
    }  # fmt: skip
    assert b'{"b": 1,  "b": 2}' in answer.body
    assert set(nulls.values()) == {2, None}
    assert three["exact"] == "NaN"
    assert (three["f4"], three["f8"]) == ("Infinity", "-Infinity")
    assert (three["at"], three["local_at"], three["day"]) == ("infinity", "-infinity", "infinity")
    assert three["doc"] is None
    assert four["f8"] == 1.7976931348623157e308
    assert four["at"] == "0044-03-15 00:00:00+00 BC"
    assert four["local_at"] == "10000-01-01 00:00:00"


COLUMNS = (
    "id", "small", "big", "yes", "exact", "f4", "f8", "at", "local_at", "day", "span", "doc",
    "bytes", "tags", "feeling", "uid", "padded", 'Odd "name',
)  # fmt: skip


async def test_every_type_can_be_ordered_paged_and_compared(any_database: Database) -> None:
    await make_read_model(any_database, "things", VALUES)
    http = settled(any_database)
    for column in COLUMNS:
        for order in (column, f"-{column}"):
            found = await everything(http, THINGS, {"order": order, "limit": 1})
            assert found == (await http.get(THINGS, {"order": order})).ok()["rows"]
            assert sorted(row["id"] for row in found) == [1, 2, 3, 4]
        answer = await http.get(THINGS, {column: "not a value at all"})
        if column in ('Odd "name', "padded", "bytes"):
            assert answer.ok()["rows"] == []
        else:
            assert answer.problem(400, "INVALID_ARGUMENT")["field"] == column


async def test_a_column_without_an_order_can_only_be_asked_for_null(database: Database) -> None:
    await make_read_model(database, "things", VALUES)
    http = settled(database)
    for query in ({"raw": "1"}, {"order": "raw"}):
        said = (await http.get(THINGS, query)).problem(400, "INVALID_ARGUMENT")
        assert "type json" in said["detail"]
    assert len((await http.get(THINGS, {"raw.null": "true"})).ok()["rows"]) == 1


async def test_a_column_named_like_a_parameter_is_reached_by_its_operator(
    database: Database,
) -> None:
    tables = (
        'CREATE TABLE t ("limit" int PRIMARY KEY, "a.gt" int); INSERT INTO t VALUES (1, 2), (2, 3)'
    )
    await make_read_model(database, "odd", tables)
    http = settled(database)
    path = "/api/v1/read/odd/t"
    assert (await http.get(path, {"limit.eq": 2})).ok()["rows"] == [{"limit": 2, "a.gt": 3}]
    assert (await http.get(path, {"a.gt.eq": 2})).ok()["rows"] == [{"limit": 1, "a.gt": 2}]


# -- CSV -----------------------------------------------------------------------------------------


async def test_csv_is_read_back_as_it_was(database: Database) -> None:
    texts = [
        "plain",
        "",
        "a,b",
        'say "hi"',
        "two\nlines",
        "cr\rlf\r\n",
        " space ",
        "ü",
        "\\N",
        "NULL",
    ]
    await make_read_model(
        database, "texts", "CREATE TABLE t (id int PRIMARY KEY, word text, n int, yes boolean)"
    )
    async with database.connection() as connection:
        rows = [*enumerate(texts), (98, None), (99, "end")]
        await connection.executemany("INSERT INTO rm_texts_v1.t VALUES ($1, $2, -1, true)", rows)
    http = settled(database)
    answer = await http.get("/api/v1/read/texts/t", {"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["everstate-position"] == "0"
    assert answer.headers["content-disposition"] == 'attachment; filename="texts-t.csv"'
    assert "everstate-next" not in answer.headers
    said = list(csv.reader(io.StringIO(answer.body.decode(), newline="")))
    assert said[0] == ["id", "word", "n", "yes"]
    assert said[1:-2] == [[str(i), text, "-1", "true"] for i, text in enumerate(texts)]
    assert b'\r\n1,"",-1,true\r\n' in answer.body, "an empty text is not a null"
    assert b"\r\n98,,-1,true\r\n" in answer.body
    by_header = await http.get("/api/v1/read/texts/t", headers={"accept": "text/csv"})
    assert by_header.body == answer.body
    both = {"accept": "application/json, text/csv"}
    assert (await http.get("/api/v1/read/texts/t", headers=both)).json()["position"] == 0


async def test_csv_is_paged_by_a_header(http: Asgi) -> None:
    lines: list[bytes] = []
    query: dict[str, Any] = {"format": "csv", "limit": 30}
    while True:
        answer = await http.get(PATH, query)
        head, *more = answer.body.split(b"\r\n")[:-1]
        assert head == b"path,size,kind,added"
        lines += more
        if "everstate-next" not in answer.headers:
            break
        query["next"] = answer.headers["everstate-next"]
    whole = await http.get(PATH, {"format": "csv", "limit": 1000})
    assert lines == whole.body.split(b"\r\n")[1:-1]
    assert len(lines) == 100


async def test_a_spreadsheet_runs_no_formula_of_a_text_unless_asked_to_keep_it(
    database: Database,
) -> None:
    bad = ['=HYPERLINK("http://evil")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
    await make_read_model(
        database, "texts", 'CREATE TABLE t (id int PRIMARY KEY, "=word" text, n numeric)'
    )
    async with database.connection() as connection:
        await connection.executemany(
            "INSERT INTO rm_texts_v1.t VALUES ($1, $2, -1)", enumerate(bad)
        )
    http = settled(database)
    path = "/api/v1/read/texts/t"

    async def said(**query: str) -> list[list[str]]:
        body = (await http.get(path, {"format": "csv"} | query)).body.decode()
        return list(csv.reader(io.StringIO(body, newline="")))

    assert await said() == [
        ["id", "'=word", "n"], *([str(i), "'" + text, "-1"] for i, text in enumerate(bad))
    ]  # fmt: skip
    kept = await said(formulas="keep")
    assert kept == [["id", "=word", "n"], *([str(i), text, "-1"] for i, text in enumerate(bad))]


# -- bounds and rights ---------------------------------------------------------------------------


async def test_a_slow_query_ends_at_its_deadline(database: Database) -> None:
    # A view of the projection's own, so that the table is slow to read.
    tables = (
        "CREATE VIEW slow AS SELECT i, pg_sleep(0.05)::text AS nap FROM generate_series(1, 500) i"
    )
    await make_read_model(database, "slow", tables)
    http = settled(database, read_seconds=0.3)
    said = (await http.get("/api/v1/read/slow/slow")).problem(504, "DEADLINE_EXCEEDED")
    assert "longer than 0.3 s" in said["detail"]
    row = await database.fetchrow("SHOW statement_timeout")
    assert row[0] == "30s", "the connection is as it was"


async def test_slow_readers_leave_room_for_what_is_quick(
    database: Database, database_url: str
) -> None:
    tables = (
        "CREATE VIEW slow AS SELECT i, pg_sleep(0.05)::text AS nap FROM generate_series(1, 10) i"
    )
    await make_read_model(database, "slow", tables)
    small = await Database.open(DatabaseSettings(database_url, max_connections=2))
    http = settled(small, reads=1, read_seconds=1.2)
    token, _ = await Tokens(small).create("op", Role.VIEWER, by="test")
    reading = [asyncio.create_task(http.get("/api/v1/read/slow/slow")) for _ in range(5)]
    await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
    (await http.with_token(token).get("/api/v1/whoami")).ok()
    assert not all(task.done() for task in reading)
    answers = await asyncio.gather(*reading)
    assert {answer.status for answer in answers} == {200, 503}
    late = next(answer for answer in answers if answer.status == 503)
    assert "no turn within" in late.problem(503, "OVERLOADED")["detail"]
    await small.close()


async def test_a_page_is_bounded_in_bytes_too(database: Database) -> None:
    tables = (
        "CREATE TABLE t (id int PRIMARY KEY, word text);"
        "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 100) i;"
        "INSERT INTO t VALUES (101, repeat('y', 50000)), (102, 'end')"
    )
    await make_read_model(database, "big", tables)
    http = settled(database, page_bytes=10_000)
    path = "/api/v1/read/big/t"
    first = await http.get(path, {"limit": 10_000})
    assert len(first.body) < 11_000
    assert len(first.ok()["rows"]) == 9
    found = await everything(http, path, {"limit": 10_000})
    assert [row["id"] for row in found] == list(range(1, 103))


async def test_a_view_of_a_user_cannot_write_nor_read_what_is_not_a_read_model(
    any_database: Database,
) -> None:
    tables = (
        "CREATE TABLE t (id int PRIMARY KEY);"
        "CREATE FUNCTION peek() RETURNS bigint LANGUAGE plpgsql AS"
        " 'BEGIN RETURN (SELECT count(*) FROM everstate.tokens); END';"
        "CREATE FUNCTION poke() RETURNS int LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO rm_spy_v1.t VALUES (1); RETURN 1; END';"
        "CREATE VIEW peeks AS SELECT peek() AS n;"
        "CREATE VIEW pokes AS SELECT poke() AS n"
    )
    await make_read_model(any_database, "spy", tables)
    http = settled(any_database)
    for view in ("peeks", "pokes"):
        answer = await http.get(f"/api/v1/read/spy/{view}")
        assert answer.status >= 400, answer.body
        assert b"tokens" not in answer.body
    assert (await http.get("/api/v1/read/spy/t")).ok()["rows"] == []
    row = await any_database.fetchrow("SELECT current_user = session_user")
    assert row[0], "the role did not stay with the connection"


async def test_a_reader_can_wait_until_its_write_is_there(http: Asgi, database: Database) -> None:
    waiting = asyncio.create_task(http.get(PATH, {"min_position": 50, "limit": 1, "timeout": 20}))
    assert (await http.get(PATH, {"min_position": 42, "limit": 1})).ok()["position"] == 42
    assert not waiting.done()
    await reach(database, "repo", 55)
    assert (await waiting).ok()["position"] == 55
    late = await http.get(PATH, {"min_position": 56, "timeout": 0.05})
    said = late.problem(504, "DEADLINE_EXCEEDED")
    assert "at position 55, not yet at 56" in said["detail"]


async def test_rows_and_position_are_of_one_moment(database: Database) -> None:
    """A writer moves both in one transaction, and no page ever shows one without the other."""
    await make_read_model(
        database,
        "pair",
        "CREATE TABLE t (id int PRIMARY KEY, n bigint); INSERT INTO t VALUES (1, 0)",
    )
    http = settled(database)

    async def write() -> None:
        n = 0
        while True:
            n += 1
            async with database.connection() as connection, connection.transaction():
                await connection.execute("UPDATE rm_pair_v1.t SET n = $1", n)
                await connection.execute(
                    "UPDATE everstate.projection_checkpoints SET position = $1", n
                )

    positions = set()
    async with running(write()):
        for _ in range(60):
            page = (await http.get("/api/v1/read/pair/t")).ok()
            assert page["rows"][0]["n"] == page["position"]
            positions.add(page["position"])
    assert len(positions) > 5


async def test_head_and_the_token_rules_hold_for_read_models_too(
    http: Asgi, database: Database
) -> None:
    head = await http("HEAD", PATH)
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 1000
    (await http.post(PATH)).problem(405, "INVALID_ARGUMENT")
    production = settled(database, dev=False)
    (await production.get(PATH)).problem(401, "UNAUTHENTICATED")
    (await http.get(PATH, host="evil.example")).problem(401, "UNAUTHENTICATED")


async def test_a_table_s_name_with_nul_is_the_reader_s_mistake(http: Asgi) -> None:
    said = (await http.get("/api/v1/read/repo/a\0b")).problem(400, "INVALID_ARGUMENT")
    assert said["field"] == "table"
