"""`everstate migrate` from nothing to the newest schema, alone and in company, on both servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from everstate.commands.database import upgrade
from everstate.settings import SCHEMA_REVISION
from journal.model import LoadQuery, ReadQuery
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from kernel.devdb_host import wheel_binaries
from tests.support import ROOT, Said, clean_env, cli, one

MIGRATIONS = ROOT / "migrations"
_serial = iter(range(1_000))


@pytest.fixture
def empty(postgres18: SimpleNamespace) -> Callable[[], str]:
    """Makes empty databases."""
    return lambda: _empty(postgres18)


def _empty(server: SimpleNamespace) -> str:
    name = f"migration_{next(_serial)}"
    where = f"host={server.host} port={server.port} user=everstate dbname=postgres"
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://everstate@/{name}?host={server.host}&port={server.port}"


def migrate(url: str, *options: str, **env: str) -> Said:
    return cli("migrate", *options, env=clean_env(EVERSTATE_DATABASE_URL=url, **env))


def tool(name: str, url: str, *options: str, stdin: str = "") -> str:
    """A PostgreSQL program of the embedded server."""
    done = subprocess.run(
        [wheel_binaries() / name, *options, "--dbname", url],
        input=stdin, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def catalog(url: str, schema: str = "everstate") -> list[str]:
    """The schema as pg_dump has it, without comments, settings and its random guard lines."""
    dump = tool("pg_dump", url, "--schema-only", "--no-owner", f"--schema={schema}")
    kept = [
        line
        for line in dump.splitlines()
        if line and not line.startswith(("--", "SET ", "SELECT pg_catalog.", "\\"))
    ]
    assert len(kept) > 200
    return kept


def logs(url: str, schema: str = "everstate") -> list[tuple[str, int, int]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            f"SELECT name, max(last_position), (SELECT count(*) FROM {schema}.events)"
            f" FROM {schema}.logs JOIN {schema}.batches USING (log_id) GROUP BY name ORDER BY name"
        ).fetchall()


EMPTY_LOGS = [("_system", 0, 0), ("default", 0, 0)]


@pytest.fixture(params=["postgres18", pytest.param("postgres15", marks=pytest.mark.postgres15)])
def any_server(request: pytest.FixtureRequest) -> SimpleNamespace:
    return request.getfixturevalue(request.param)


def test_migrate_makes_everything_from_nothing_and_a_second_run_changes_nothing(
    any_server: SimpleNamespace,
) -> None:
    url = _empty(any_server)
    check = migrate(url, "--check")
    assert (check.code, check.out) == (
        1, f"schema 'everstate': not there, this program needs {SCHEMA_REVISION}\n",
    )  # fmt: skip
    for _ in range(2):
        assert migrate(url).ok().out == f"schema 'everstate': version {SCHEMA_REVISION}\n"
        assert logs(url) == EMPTY_LOGS, "nothing but users' appends enters `default`"
    check = migrate(url, "--check")
    assert (check.code, check.out) == (0, f"schema 'everstate': version {SCHEMA_REVISION}\n")


def test_check_changes_nothing_and_an_older_version_is_a_finding(empty: Callable[[], str]) -> None:
    url = empty()
    assert migrate(url, "--check").code == 1
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regnamespace('everstate')").fetchone() == (None,)
    upgrade(url, "everstate")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE everstate.alembic_version SET version_num = '0000'")
    check = migrate(url, "--check")
    assert check.code == 1
    assert "version 0000, this program needs" in check.out


def test_everything_of_ours_is_in_our_schema(empty: Callable[[], str]) -> None:
    url = empty()
    upgrade(url, "everstate")
    with psycopg.connect(url) as connection:
        elsewhere = connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname !~ '^(pg_|information_schema|everstate)'"
        ).fetchall()
    assert elsewhere == []


@pytest.mark.parametrize("schema", ["everstate", "other_place"])
def test_the_sql_that_migrate_prints_makes_the_same_schema(
    empty: Callable[[], str], schema: str
) -> None:
    printed = cli("migrate", "--sql", env=clean_env(EVERSTATE_SCHEMA=schema)).ok()
    by_hand, migrated = empty(), empty()
    tool("psql", by_hand, "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", stdin=printed.out)
    assert migrate(migrated, EVERSTATE_SCHEMA=schema).ok()
    assert catalog(by_hand, schema) == catalog(migrated, schema)
    assert logs(by_hand, schema) == EMPTY_LOGS
    assert migrate(by_hand, "--check", EVERSTATE_SCHEMA=schema).ok()


def test_invariant_11_the_readable_schema_equals_all_migrations(empty: Callable[[], str]) -> None:
    subprocess.run(
        [sys.executable, "-P", ROOT / "scripts" / "schema.py", "--check"], check=True, cwd=ROOT
    )
    by_hand, migrated = empty(), empty()
    script = (MIGRATIONS / "schema.sql").read_text("utf-8")
    tool("psql", by_hand, "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", stdin=script)
    upgrade(migrated, "everstate")
    assert catalog(by_hand) == catalog(migrated)
    assert logs(by_hand) == logs(migrated) == EMPTY_LOGS
    assert migrate(by_hand, "--check").ok()


def test_invariant_11_several_that_migrate_at_once_make_one_schema(
    empty: Callable[[], str],
) -> None:
    url, alone = empty(), empty()
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda _: migrate(url), range(3)))
    assert [(said.code, said.err) for said in ended] == [(0, "")] * 3
    upgrade(alone, "everstate")
    assert catalog(url) == catalog(alone)
    assert logs(url) == EMPTY_LOGS


async def test_another_schema_works_from_end_to_end(empty: Callable[[], str]) -> None:
    url, schema = empty(), "my_events"
    migrate(url, EVERSTATE_SCHEMA=schema).ok()
    database = await Database.open(DatabaseSettings(url, schema))
    store = StoreJournal(database, StoreSettings(node="test"))
    try:
        await store.start()
        done = await store.append("default", one("a", b"1"))
        await store.append("default", one("a", b"2", 1))
        await store.create_log("more", 16)
        for n in range(20):  # over the end of a chunk
            await store.append("more", one("b", b"x", n))
        read = [e async for part in store.read("default", ReadQuery()) for e in part.events]
        loaded = [
            e async for part in store.load("more", LoadQuery("thing", "b")) for e in part.events
        ]
        reports = [p.report async for p in store.verify("more")]
    finally:
        await store.close()
        await database.close()
    assert done.last_position == 1
    assert [event.payload for event in read] == [b"1", b"2"]
    assert [event.sequence for event in loaded] == list(range(1, 21))
    assert reports[-1] is not None
    assert reports[-1].ok
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regnamespace('everstate')").fetchone() == (None,)
        functions = connection.execute(
            "SELECT string_agg(prosrc, '') FROM pg_proc WHERE pronamespace = %s::regnamespace",
            [schema],
        ).fetchone()
    assert functions is not None
    assert "everstate." not in functions[0]


def test_this_program_needs_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_REVISION]


def test_every_script_belongs_to_a_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    used = {
        name
        for script in ScriptDirectory.from_config(config).walk_revisions()
        for name in script.module.SCRIPTS
    }
    assert used == {path.stem for path in Path(MIGRATIONS, "sql").glob("*.sql")}
