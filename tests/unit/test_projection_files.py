"""SQL-only projections: what a file may say, and errors that name file and line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kernel.errors import ConfigurationError
from projections import sqlfile
from projections.model import Statement, StatementError
from projections.sqlfile import DATA, METADATA, Parameter, expression, probe
from projections.statements import check_confined, normal, split

FILES = """\
-- projection: files
-- version: 3
-- entity types: file, folder
-- on poison: park

CREATE TABLE files (path text PRIMARY KEY, changes bigint NOT NULL, note text DEFAULT '; -- on: X');
CREATE INDEX files_changes ON files (changes);  -- a comment; with a semicolon

-- on: FileAdded
INSERT INTO files VALUES (:meta.entity_id, 1, 'x') ON CONFLICT (path)
  DO UPDATE SET changes = files.changes + 1;
-- on: FileModified, FileDeleted
UPDATE files SET changes = changes + coalesce(:data.added, 0)::int WHERE path = :meta.entity_id;
SELECT 1;
-- delete entity
DELETE FROM files WHERE path = :meta.entity_id;
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        sqlfile.parse(text, "files.sql")
    return caught.value.message


def test_a_file_gives_its_header_its_tables_and_a_handler_for_each_type() -> None:
    found = sqlfile.parse(FILES, "files.sql")
    assert (found.name, found.version, found.kind, found.log) == ("files", 3, "sql", "default")
    assert (found.entity_types, found.on_poison, found.segments) == (("file", "folder"), "park", 1)
    assert found.event_types == ("FileAdded", "FileModified", "FileDeleted")
    assert [s.line for s in found.tables] == [6, 7]
    assert [[s.line for s in h.statements] for h in found.handlers] == [[10], [13, 14], [13, 14]]
    assert found.replayable


def test_a_star_handles_all_types_in_the_order_of_the_file() -> None:
    head = "-- projection: x\n-- version: 1\n"
    text = f"{head}-- on: A\nSELECT 1;\n-- on: *\nSELECT 2;\n-- on: A\nSELECT 3"
    found = sqlfile.parse(text, "x.sql")
    assert found.event_types == ()
    texts = {h.event_type: [s.text for s in h.statements] for h in found.handlers}
    assert texts == {"A": ["SELECT 1", "SELECT 2", "SELECT 3"], "*": ["SELECT 2"]}


def test_comments_and_the_poison_policy_do_not_change_the_digest_and_all_else_does() -> None:
    digest = sqlfile.parse(FILES, "a").digest
    same = FILES.replace("park", "halt").replace("  -- a comment; with a semicolon", "")
    assert sqlfile.parse(same.replace("WHERE path", "\n  WHERE   path"), "b").digest == digest
    for old, new in (
        ("'x'", "'y'"), ("file, folder", "file"), ("FileAdded", "FileMade"),
        ("version: 3", "version: 4"),
        ("-- delete entity", "-- on: Gone"), ("DEFAULT '; -- on: X'", "DEFAULT ';  -- on: X'"),
    ):  # fmt: skip
        assert sqlfile.parse(FILES.replace(old, new), "c").digest != digest, old


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-- projection: files\n", "", "files.sql:1: the header lacks `-- projection: …`"),
        ("-- version: 3", "-- version: three", "files.sql:2: version 'three' is not a number"),
        ("-- version: 3", "-- version: 0", "files.sql: version: 0 is not a number from 1 to"),
        ("-- version: 3", "-- version number: 3", "files.sql:2: unknown key 'version number'"),
        ("-- version: 3", "-- version: 3\n-- version: 4", "files.sql:3: 'version' is there twice"),
        ("park", "perk", "files.sql: on_poison: 'perk' is neither halt nor park"),
        ("projection: files", "projection: Files", "files.sql: name: 'Files' does not match"),
        ("projection: files", "projection: files_v1", "ends like the schema of a version"),
        (":data.added", ":date.added", "files.sql:13: :date.added: parameters begin with :data"),
        (":data.added", "$1", "files.sql:13: $1: parameters are written"),
        ("SELECT 1;", "SELECT :meta.id;", "files.sql:14: :meta.id: there are :meta.position"),
        ("SELECT 1;", "COMMIT;", "files.sql:14: COMMIT is not allowed here"),
        ("SELECT 1;", "SELECT 1;\nSET ROLE x;", "files.sql:15: SET is not allowed here"),
        ("SELECT 1;", "SELECT 'open;", "files.sql:14: the quote ' does not end"),
        ("SELECT 1;", "SELECT 1; /* open", "files.sql:14: the comment /* does not end"),
        ("SELECT 1;", "DROP TABLE files;", "files.sql:14: a handler's statement begins with"),
        ("DELETE FROM", "SELECT :data.x; DELETE FROM", "files.sql:16: :data.x: a deletion knows"),
        ("-- on: FileAdded\n", "", "files.sql:9: :meta.entity_id: tables have no parameters"),
        ("-- on: FileAdded", "-- on: ,", "files.sql:9: `on:` names no event type"),
        ("SELECT 1;", "SELECT 1;\n-- on: Other", "files.sql:15: no statement follows"),
        ("SELECT 1;", "SELECT 1;\0", "files.sql:14: a NUL character"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_line(old: str, new: str, message: str) -> None:
    assert old in FILES
    assert refused(FILES.replace(old, new, 1)).startswith(message) or message in refused(
        FILES.replace(old, new, 1)
    )


def test_a_file_without_handlers_is_refused() -> None:
    said = refused("-- projection: x\n-- version: 1\nCREATE TABLE t (a int);\n")
    assert said == "files.sql:4: no `-- on: …`: the file handles no event"


# -- statements ----------------------------------------------------------------------------------


def test_statements_end_at_semicolons_outside_of_literals_names_comments_and_bodies() -> None:
    text = (
        "SELECT ';', E'\\';', \"a;b\", $x$;$x$ -- ;\n; /* ; /* ; */ ; */ SELECT 2;\n"
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1"
        " END; SELECT 2; END; SELECT 3"
    )
    found = split(text)
    assert [s.text.split()[0] for s in found] == ["SELECT", "SELECT", "CREATE", "SELECT"]
    assert [s.line for s in found] == [1, 2, 3, 3]
    assert found[1].text == "SELECT 2"


def test_colons_of_casts_literals_and_names_are_no_parameters() -> None:
    text = (
        "SELECT :data.a::int, 'x :data.b', \":data.c\", a[1:2], :metadata.user, b := 1 -- :data.d"
    )
    changed, found = probe(text)
    assert changed.startswith("SELECT $1::int, 'x :data.b', \":data.c\", a[1:2], $2")
    assert found == [Parameter(DATA, ("a",)), Parameter(METADATA, ("user",))]


def test_each_occurrence_of_a_parameter_has_its_own_type() -> None:
    changed, found = probe("SELECT :data.a.b, :data.a.b, :data")
    assert changed == "SELECT $1, $2, $3"
    assert found == [Parameter(DATA, ("a", "b"))] * 2 + [Parameter(DATA)]


def test_a_path_with_quotes_is_quoted_again() -> None:
    found = probe('SELECT :data."it\'s \\ ""q""".x')[1][0]
    assert found.path == ('it\'s \\ "q"', "x")
    assert expression(found, "text") == r"""($10 #>> '{"it''s \\ \"q\"","x"}')::text"""


@pytest.mark.parametrize(
    "text",
    ["COMMIT", "/* x */ rollback", "SELECT 1; Reset ROLE", "SET LOCAL search_path = x",
     "SELECT set_config('role', 'x', true)", 'SELECT "set_config"(1)', "SAVEPOINT a", "LISTEN x",
     "SELECT pg_notify('a', 'b')", "BEGIN", "COPY x FROM '/etc/passwd'", "DISCARD ALL",
     # What another batch on the same connection would find.
     "CREATE TEMP TABLE t (a int)", "CREATE LOCAL TEMPORARY TABLE t (a int)",
     "CREATE OR REPLACE TEMP VIEW v AS SELECT 1", "CREATE TEMP SEQUENCE s",
     "CREATE TABLE pg_temp.t (a int)", "SELECT a INTO TEMP t FROM b",
     "WITH a AS (SELECT 1) SELECT count(*) INTO TEMPORARY TABLE t FROM a",
     "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT pg_advisory_lock(1)",
     "SELECT pg_try_advisory_lock_shared(1)", "SELECT pg_advisory_unlock_all()",
     # Ways around a look at the text.
     "DO $$ BEGIN NULL; END $$", 'SELECT U&"set\\005fconfig"(1)',
     "SELECT query_to_xml('SELECT 1', true, true, '')", "SELECT cursor_to_xmlschema('c', true)",
     "CREATE FUNCTION f() RETURNS void LANGUAGE sql SET role = 'x' AS $$ SELECT 1 $$",
     "CREATE OR REPLACE /* x */ PROCEDURE f() SET role TO x BEGIN ATOMIC SELECT 1; END",
     "ALTER FUNCTION f() SET search_path = x",
     "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT set_config('role', 'x', true) $$",
     "CREATE FUNCTION f() RETURNS int AS 'SELECT 1; SET ROLE x' LANGUAGE 'sql'",
     "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT set_config('a'); END",
     "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF a THEN RESET ROLE; END $$",
     "CREATE PROCEDURE f() LANGUAGE plpgsql AS $x$ DECLARE a int; BEGIN a := 1; COMMIT; END $x$",
     "CREATE FUNCTION f() RETURNS void AS $$ BEGIN EXECUTE 'x'; END $$ LANGUAGE plpgsql",
     "CREATE FUNCTION f() RETURNS void AS $$ BEGIN CREATE TEMP TABLE a (); END $$ LANGUAGE plpgsql",
     # `BEGIN ATOMIC` holds statements together in a function only.
     "SELECT begin atomic; COMMIT"],
)  # fmt: skip
def test_what_would_leave_the_confinement_is_refused(text: str) -> None:
    with pytest.raises(StatementError, match="allowed"):
        check_confined(text)


def test_what_is_refused_inside_a_function_is_found_in_its_line() -> None:
    text = (
        "CREATE TABLE t (a int);\n\nCREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $x$\n"
        "DECLARE\n  a text := 'SET; COMMIT';\nBEGIN\n  SET ROLE x;\nEND $x$;"
    )
    with pytest.raises(StatementError, match="SET is not allowed here") as caught:
        check_confined(text)
    assert text[caught.value.position - 1 :].startswith("SET ROLE x;")
    made = FILES.replace("CREATE INDEX", f"{text}\nCREATE INDEX")
    assert refused(made).startswith("files.sql:13: SET is not allowed here")


def test_the_body_of_a_function_is_written_plainly() -> None:
    with pytest.raises(StatementError, match="stands in"):
        check_confined("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS E'SET\\x20ROLE x'")


TRIGGER = """\
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE n int; BEGIN
  SELECT count(*) INTO temp FROM t;
  IF n > 1 THEN UPDATE t SET a = 1; ELSE RETURN OLD; END IF;
  RETURN NEW;
END $$"""


@pytest.mark.parametrize(
    "text",
    ["UPDATE t SET a = 1", "SELECT 'COMMIT; SET ROLE x'", "INSERT INTO t SELECT 1", "MERGE INTO t",
     "TRUNCATE t", "CREATE TABLE t (begin int)", "DELETE FROM t -- ; COMMIT",
     "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING", "INSERT INTO temp SELECT 1",
     "CREATE TEMP TABLE t (a int) ON COMMIT DROP", "SELECT pg_advisory_xact_lock(1)",
     "CREATE TEMPORARY TABLE t ON COMMIT DROP AS SELECT 1; CREATE TABLE u (temp int)",
     "CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT a; SELECT a + 1; END",
     "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC UPDATE t SET a = CASE WHEN b THEN 1 END; END",
     "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ UPDATE t SET a = 1; DELETE FROM u $$",
     TRIGGER,
     "CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
     "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT ''COMMIT; SET ROLE x'''"],
)  # fmt: skip
def test_what_stays_inside_is_allowed(text: str) -> None:
    check_confined(text)


def test_normal_text_has_single_spaces_and_no_comments_but_whole_literals() -> None:
    assert normal("SELECT  1 -- x\n , 'a  b' /* y */;") == "SELECT 1 , 'a  b' ;"


def test_a_definition_is_frozen() -> None:
    found = sqlfile.parse(FILES, "a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.version = 4  # type: ignore[misc]
    assert found.tables[0] == Statement(found.tables[0].text, 6)


def test_the_file_of_the_how_to_page_is_a_projection() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-projection.md"
    (text,) = re.findall(r"```sql\n(-- projection.*?)```", page.read_text("utf-8"), re.DOTALL)
    found = sqlfile.parse(text, "stock.sql")
    assert found.event_types == ("ItemPut", "ItemTaken")
    assert found.replayable
