"""Fixtures of all tests: PostgreSQL servers on our launcher, migrated databases, stores, nodes.

A database is cloned from a migrated template (pytest-postgresql), once a test. ``postgres`` is the
embedded PostgreSQL 18; tests that ask for ``any_postgres`` run on Debian's 15 too. What a machine
cannot run stands in the last line of `make test`; with CI set it is a failure.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_postgresql import factories
from pytest_postgresql.janitor import DatabaseJanitor

from everstate.commands.database import upgrade
from journal.groups.node import Groups
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from kernel.devdb import DevDatabase
from schemas.store import DescriptorStore
from sidecar_api.client import Client
from sidecar_api.server import NodeServer, ServerSettings
from sidecar_api.services.groups import GroupService
from sidecar_api.services.schemas import SchemaService
from sidecar_api.services.snapshots import SnapshotService
from snapshots.store import SnapshotStore, TypeStore

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")


def pytest_sessionstart(session: pytest.Session) -> None:
    """With CI set, nothing may be left out."""
    if os.environ.get("CI") and not POSTGRES_15.is_dir():
        pytest.exit("CI is set, but Debian's PostgreSQL 15 is not installed", returncode=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tells `scripts/test` what was left out."""
    target = os.environ.get("EVERSTATE_TEST_LEFT_OUT")
    if target:
        reasons = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])}
        with Path(target).open("a", encoding="utf-8") as file:  # of each part of the tests
            file.writelines(f"{reason}\n" for reason in sorted(reasons))


def _executor(server: DevDatabase) -> SimpleNamespace:
    """What pytest-postgresql wants to know of a server."""
    host = server.dsn().partition("host=")[2].partition("&")[0].replace("%2F", "/")
    return SimpleNamespace(
        host=host, port=5432, user="everstate", password=None, options="",
        maintenance_dbname="postgres", template_dbname="template1", server=server,
    )  # fmt: skip


def url_of(executor: SimpleNamespace, database: str) -> str:
    """The connection URL of a database on a test server."""
    return f"postgresql://everstate@/{database}?host={executor.host}&port={executor.port}"


@pytest.fixture(scope="session")
def postgres18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The embedded PostgreSQL 18, one a test session (and worker)."""
    with DevDatabase(tmp_path_factory.mktemp("pg18") / "data") as server:
        yield _executor(server)


@pytest.fixture(scope="session")
def postgres15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Debian's PostgreSQL 15, one a test session (and worker)."""
    if not POSTGRES_15.is_dir():
        pytest.skip("no PostgreSQL 15 in /usr/lib/postgresql/15")
    with DevDatabase(tmp_path_factory.mktemp("pg15") / "data", bin_dir=POSTGRES_15) as server:
        yield _executor(server)


def _migrate(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    upgrade(f"postgresql://{user}@/{dbname}?host={host}&port={port}", "everstate")


template18 = factories.postgresql_noproc(depends_on="postgres18", dbname="t18", load=[_migrate])
template15 = factories.postgresql_noproc(depends_on="postgres15", dbname="t15", load=[_migrate])

_serial = iter(range(1_000_000))


def _clone(executor: SimpleNamespace, template: str) -> DatabaseJanitor:
    return DatabaseJanitor(
        user="everstate",
        host=executor.host,
        port=executor.port,
        dbname=f"test_{os.getpid()}_{next(_serial)}",
        template_dbname=template,
        maintenance_dbname="postgres",
    )


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database of its own on PostgreSQL 18."""
    yield from _database(request, "postgres18", "template18")


@pytest.fixture(params=["postgres18", pytest.param("postgres15", marks=pytest.mark.postgres15)])
def any_database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database of its own, on PostgreSQL 18 and on 15."""
    yield from _database(request, request.param, request.param.replace("postgres", "template"))


def _database(request: pytest.FixtureRequest, server: str, template: str) -> Iterator[str]:
    executor = request.getfixturevalue(server)
    made = request.getfixturevalue(template)
    janitor = _clone(executor, made.template_dbname)
    with janitor:
        yield url_of(executor, janitor.dbname)


@pytest.fixture
def empty_database_url(postgres18: SimpleNamespace) -> Iterator[str]:
    """A database without our schema."""
    janitor = _clone(postgres18, "template1")
    with janitor:
        yield url_of(postgres18, janitor.dbname)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open database on PostgreSQL 18."""
    opened = await Database.open(DatabaseSettings(database_url))
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[StoreJournal]:
    """A store with its maintenance running."""
    journal = StoreJournal(database, StoreSettings(node="test"))
    await journal.start()
    yield journal
    await journal.close()


@pytest.fixture
async def node(store: StoreJournal) -> AsyncIterator[NodeServer]:
    """A node in this process, on a free port."""
    groups = Groups(store)
    server = NodeServer(
        store,
        ServerSettings(port=0, drain=timedelta(seconds=2)),
        version="test",
        services=[
            SchemaService(DescriptorStore(store.database)),
            GroupService(groups, store.names),
            SnapshotService(SnapshotStore(store.database, store), TypeStore(store.database, store)),
        ],
    )
    await groups.start()
    await server.start()
    yield server
    await server.stop()
    await groups.close()


@pytest.fixture
async def client(node: NodeServer) -> AsyncIterator[Client]:
    """A client of `node`."""
    async with Client(f"everstate://127.0.0.1:{node.port}/default") as opened:
        yield opened
    await asyncio.sleep(0)
