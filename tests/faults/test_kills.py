"""Processes that are killed, or asked to stop, while they work: invariant 5."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from kernel.devdb import DevDatabase
from sidecar_api.client import ClientSettings
from tests.faults.load import PATIENT, loaded
from tests.support import (
    SAMPLE,
    SAMPLE_ENTITIES,
    SAMPLE_EVENTS,
    Node,
    clean_env,
    eventually,
    one,
    start,
    verified,
)


@pytest.fixture
def node(database_url: str) -> Iterator[Node]:
    with Node(database_url) as running:
        yield running


async def test_invariant_5_sigkill_of_the_node_under_load_loses_and_doubles_nothing(
    node: Node,
) -> None:
    async with node.client(PATIENT) as client:
        async with loaded(client) as load:
            for _ in range(3):
                await load.more(300)
                node.kill()
                await asyncio.to_thread(node.start)
            await load.more(300)
        assert not load.unknown, "every append could be recognised, so every one was retried"
        await load.holds()


async def test_invariant_5_appends_that_may_not_be_retried_are_reported_when_the_node_is_killed(
    node: Node,
) -> None:
    settings = dataclasses.replace(PATIENT, auto_append_id=False)
    async with node.client(settings) as client:
        async with loaded(client) as load:
            for _ in range(3):
                await load.more(300)
                node.kill()
                await asyncio.to_thread(node.start)
            await load.more(300)
        assert load.unknown, "an append of any state without an append id was in flight"
        await load.holds()


async def test_invariant_5_sigkill_of_postgresql_under_load_loses_and_doubles_nothing(
    postgres: DevDatabase,
) -> None:
    with Node(postgres.dsn()) as node:
        async with node.client(PATIENT) as client:
            async with loaded(client) as load:
                for _ in range(2):
                    await load.more(300)
                    postgres.kill()
                    postgres.start()  # from the main thread: it dies with us
                await load.more(300)
            assert not load.unknown
            await load.holds()
        assert node.running is not None
        assert node.running.process.poll() is None, "the node reconnected by itself"
        ready, *said = node.running.lines
        assert ready.startswith("node ready")
        assert all("event" in json.loads(line) for line in said), "structured, libraries' too"


async def test_sigterm_under_load_finishes_what_was_begun_and_the_client_goes_on_with_the_next_node(
    node: Node,
) -> None:
    async with node.client(PATIENT) as client:
        async with loaded(client) as load:
            for _ in range(2):
                await load.more(300)
                assert await asyncio.to_thread(node.stop) == 0
                await asyncio.to_thread(node.start)
            await load.more(300)
        assert not load.unknown
        await load.holds()


async def test_a_stopping_node_gives_appends_in_flight_their_results(node: Node) -> None:
    """The log's row is locked, so that the append is in flight for as long as we like."""
    settings = ClientSettings(retry_for=timedelta(0))
    async with node.client(settings) as client:
        await client.append("", one("first"))
        with psycopg.connect(node.database_url) as blocker:
            blocker.execute("SELECT FROM everstate.logs FOR UPDATE")
            append = asyncio.create_task(client.append("", one("second")))
            with psycopg.connect(node.database_url, autocommit=True) as observer:
                await asyncio.to_thread(eventually, lambda: waiting(observer), "the append waits")
            assert node.running is not None
            node.running.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(node.running.until, "draining")
            assert not append.done()
            blocker.rollback()
        assert (await append).last_position == 2
    assert await asyncio.to_thread(node.running.end) == 0


def waiting(observer: psycopg.Connection) -> bool:
    row = observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'everstate-node'"
        " AND wait_event_type = 'Lock' AND datname = current_database()"
    ).fetchone()
    assert row is not None
    return row[0] == 1


def head(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT max(last_position) FROM everstate.batches").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("victim", ["node", "postgresql"])
async def test_invariant_5_an_import_goes_on_over_a_sigkill(
    postgres: DevDatabase, victim: str
) -> None:
    with Node(postgres.dsn()) as node:
        env = clean_env(EVERSTATE_URL=node.url)
        command = ("import", SAMPLE, "--rate", "5000", "--wait", "30", "--json")
        with start(*command, env=env) as importing:
            eventually(lambda: head(postgres.dsn()) >= 2_000, "the import is under way")
            if victim == "node":
                node.kill()
                node.start()
            else:
                postgres.kill()
                postgres.start()
            assert head(postgres.dsn()) < SAMPLE_EVENTS, "it was killed in the middle"
            assert importing.end() == 0, importing.text
        assert node.cli("entity", "list").ok().out.count("\n") == SAMPLE_ENTITIES
        again = node.cli("import", SAMPLE, "--json").ok().json()
        assert (again["appended"], again["duplicates"]) == (0, SAMPLE_EVENTS)
        async with node.client() as client:
            assert (await verified(client)).events == SAMPLE_EVENTS
