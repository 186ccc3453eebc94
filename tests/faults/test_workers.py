"""Workers killed under load: invariant 7, exactly once, hand-over within the lease term."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from kernel.database import Database, DatabaseSettings
from kernel.devdb import DevDatabase
from projections import control
from tests.projecting import COUNTS, fold, table
from tests.support import (
    ROOT,
    Node,
    Running,
    clean_env,
    cli,
    eventually,
    everything,
    start,
)

LEASE = 2

TOTALS = """
from everstate.projections import Projection


class Totals(Projection):
    name = "totals"
    version = 1
    entity_types = ("thing",)
    event_types = ("Added", "Cleared")
    tables = "CREATE TABLE totals (id text PRIMARY KEY, events bigint, total bigint);"

    async def apply(self, events, tx):
        for event in events:
            if event.type == "Added":
                await tx.execute(
                    "INSERT INTO totals VALUES ($1, 1, $2) ON CONFLICT (id) DO UPDATE"
                    " SET events = totals.events + 1, total = totals.total + excluded.total",
                    event.entity_id, event.data.get("n") or 0,
                )
            else:
                await tx.execute(
                    "UPDATE totals SET events = events + 1, total = 0 WHERE id = $1",
                    event.entity_id,
                )
"""


@dataclass
class Workers:
    """`everstate work` processes on one database, with one folder of user code."""

    url: str
    folder: Path
    running: list[Running] = field(default_factory=list)

    def start(self) -> Running:
        env = clean_env(
            EVERSTATE_DATABASE_URL=self.url,
            EVERSTATE_APP=self.folder,
            EVERSTATE_LEASE_SECONDS=LEASE,
            EVERSTATE_WORKER_METRICS_PORT=0,
        )
        worker = start("work", env=env)
        self.running.append(worker)
        worker.until("^worker ready  projections 3")
        return worker

    def kill(self, worker: Running) -> None:
        self.running.remove(worker)
        worker.kill()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "sql").mkdir(parents=True)
    (folder / "everstate.toml").write_text('projections = ["my_totals", "sql/"]\n')
    (folder / "my_totals.py").write_text(TOTALS)
    (folder / "sql" / "counts.sql").write_text(COUNTS)
    split = COUNTS.replace("projection: counts", "projection: split\n-- segments: 4")
    (folder / "sql" / "split.sql").write_text(split)
    return folder


@pytest.fixture
def workers(database_url: str, app: Path) -> Iterator[Workers]:
    made = Workers(database_url, app)
    yield made
    for worker in made.running:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def node(database_url: str) -> Iterator[Node]:
    with Node(database_url) as running:
        yield running


async def write(node: Node, events: int, each: int = 50, writers: int = 4) -> int:
    """A load of appends through a node; the last position."""
    import uuid

    import orjson

    from sidecar_api.client import ANY, Append, EntityAppend, NewEvent

    last = 0

    async with node.client() as client:

        async def one(writer: int) -> None:
            nonlocal last
            for number in range(events // each // writers):
                new = tuple(
                    NewEvent(
                        "Cleared" if (number + i) % 41 == 0 else "Added",
                        orjson.dumps({"n": (number + i) % 13}), "application/json",
                        event_id=str(uuid.uuid4()),
                    )
                    for i in range(each)
                )  # fmt: skip
                entity = EntityAppend("thing", f"w{writer}-{number % 20}", ANY)
                done = await client.append("", Append((entity,), new))
                last = max(last, done.last_position)

        await asyncio.gather(*map(one, range(writers)))
    return last


async def all_equal_a_fold(node: Node, database: Database, last: int) -> None:
    for name in ("counts", "split", "totals"):
        await control.wait_for(database, name, last, timedelta(seconds=60))
    async with node.client() as client:
        events = await everything(client)
    expected = fold(events)
    for name in ("counts", "split", "totals"):
        assert await table(database, name) == expected, name
        row = await control.get_projection(database, name)
        assert row.events == len(events), "every event once"
        assert (row.halted, row.parked) == (0, 0)


async def test_invariant_7_workers_and_connections_killed_at_random_under_load_apply_exactly_once(
    node: Node, workers: Workers, database_url: str
) -> None:
    random.seed(7)
    await asyncio.to_thread(lambda: [workers.start() for _ in range(3)])
    database = await Database.open(DatabaseSettings(database_url))
    loading = asyncio.create_task(write(node, 40_000))
    kills = 0
    with psycopg.connect(database_url, autocommit=True) as connection:
        while not loading.done() or kills < 3:
            worker = random.choice(workers.running)
            await asyncio.to_thread(workers.kill, worker)
            kills += 1
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'everstate-worker' AND datname = current_database()"
                " AND random() < 0.5"
            )
            await asyncio.to_thread(workers.start)
    await all_equal_a_fold(node, database, await loading)
    assert kills >= 3
    await database.close()


def holders(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT name, holder FROM everstate.leases"
            " WHERE kind = 'segment' AND expires_at > clock_timestamp()"
        ).fetchall()
    return dict(rows)


async def test_a_killed_worker_is_replaced_within_the_lease_term(
    node: Node, workers: Workers, database_url: str
) -> None:
    first = await asyncio.to_thread(workers.start)
    second = await asyncio.to_thread(workers.start)
    await asyncio.to_thread(
        eventually, lambda: len(set(holders(database_url).values())) == 2, "both have segments"
    )
    database = await Database.open(DatabaseSettings(database_url))
    last = await write(node, 2_000)
    await all_equal_a_fold(node, database, last)
    await asyncio.to_thread(workers.kill, first)
    killed = time.monotonic()
    last = await write(node, 400)
    for name in ("counts", "split", "totals"):
        await control.wait_for(database, name, last, timedelta(seconds=30))
    assert time.monotonic() - killed < LEASE + 1, "the term, and a second for the machine"
    assert len(set(holders(database_url).values())) == 1
    await all_equal_a_fold(node, database, last)
    assert await asyncio.to_thread(second.end, signal.SIGTERM) == 0
    assert holders(database_url) == {}, "a graceful stop gives the leases back at once"
    await database.close()


def test_a_worker_shows_its_figures_and_its_health(node: Node, workers: Workers) -> None:
    asyncio.run(write(node, 400))
    worker = workers.start()
    url = worker.until(r"metrics (http://\S+)/metrics")[1]

    def metrics() -> str:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            return answer.read().decode()

    wanted = (
        'everstate_projection_events_total{projection="counts",version="1"} 400.0',
        'everstate_projection_leases{projection="split",version="1"} 4.0',
        'everstate_projection_lag_events{projection="totals",version="1"} 0.0',
        'everstate_projection_lag_seconds{projection="totals",version="1"} 0.0',
        'everstate_projection_parked{projection="totals",version="1"} 0.0',
    )
    eventually(lambda: all(line in metrics() for line in wanted), "the figures are there")
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"{url}/{path}", timeout=5) as answer:
            assert answer.status == 200
    assert worker.end(signal.SIGINT) == 130
    assert "Traceback" not in worker.text


def test_a_worker_that_cannot_start_says_why(
    workers: Workers, database_url: str, app: Path, tmp_path: Path
) -> None:
    workers.start()
    env = clean_env(EVERSTATE_DATABASE_URL=database_url, EVERSTATE_WORKER_METRICS_PORT=0)

    def refused(*arguments: str | Path, code: int) -> str:
        said = cli("work", *arguments, env=env)
        assert said.code == code, said.err
        return said.sentence()

    other = tmp_path / "other"
    shutil.copytree(app, other)
    file = other / "sql" / "counts.sql"
    file.write_text(COUNTS.replace("total = 0", "total = 1"))
    assert "sql/counts.sql: projection counts version 1 has other code" in refused(
        "--app", other, code=4
    )
    file.write_text(COUNTS.replace("total = 0", "totl = 1").replace("version: 1", "version: 2"))
    assert refused("--app", other, code=2).startswith('sql/counts.sql:9: column "totl"')
    (other / "sql" / "twice.sql").write_text(COUNTS)
    assert "two projections are named 'counts'" in refused("--app", other, code=2)
    assert "--host 0.0.0.0" in refused("--host", "0.0.0.0", code=2)
    assert "does not exist" in refused("--app", tmp_path / "nowhere", code=2)
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'rm%'")
        schemas = {row[0] for row in rows}
    assert "rm_counts_v2" not in schemas, "nothing stays of what was refused"


def test_the_worker_runs_the_projections_of_the_sample(node: Node, database_url: str) -> None:
    from tests import repo_history as history
    from tests.support import SAMPLE, SAMPLE_EVENTS

    env = clean_env(
        EVERSTATE_DATABASE_URL=database_url,
        EVERSTATE_APP=ROOT / "samples" / "repo_history",
        EVERSTATE_WORKER_METRICS_PORT=0,
    )
    node.cli("import", SAMPLE).ok()
    lines = history.lines_of_the_sample()
    with start("work", env=env) as worker, psycopg.connect(database_url) as connection:
        worker.until("^worker ready  projections 3")

        def passed() -> bool:
            row = connection.execute(
                "SELECT min(position) FROM everstate.projection_checkpoints"
            ).fetchone()
            connection.rollback()
            return row is not None and row[0] == SAMPLE_EVENTS

        eventually(passed, "the sample is applied")
        files = connection.execute("SELECT * FROM rm_files.files").fetchall()
        assert {row[0]: row[1:] for row in files} == history.files(lines)
        spans = connection.execute("SELECT path, alive_from, alive_to FROM rm_spans.spans")
        assert set(spans.fetchall()) == history.spans(lines)
        folders = connection.execute(
            "SELECT folder, month, changes, added, deleted, lines FROM rm_folders.folders"
        )
        assert {row[:2]: row[2:] for row in folders.fetchall()} == history.folders(lines)
    with contextlib.suppress(ProcessLookupError):
        worker.kill()


async def test_invariant_7_postgresql_killed_while_a_worker_replays_history_applies_exactly_once(
    postgres: DevDatabase, app: Path
) -> None:
    """History is applied without waiting for the disk: a crash may take back what was committed."""
    with Node(postgres.dsn()) as node:
        last = await write(node, 30_000, each=200)
        workers = Workers(postgres.dsn(), app)
        worker = await asyncio.to_thread(workers.start)
        try:
            for _ in range(2):
                postgres.kill()
                postgres.start()  # from the main thread: it dies with us
            database = await Database.open(DatabaseSettings(postgres.dsn()))
            await all_equal_a_fold(node, database, last)
            assert worker.process.poll() is None, "the worker reconnected by itself"
            await database.close()
        finally:
            worker.process.kill()
            worker.process.wait()
