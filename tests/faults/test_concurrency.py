"""Writers and readers at once, with everything that could reorder or hide events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from kernel.errors import EntityNotFound, WrongExpectedState
from kernel.ids import new_id
from sidecar_api.client import Append, Client, EntityAppend, NewEvent, ReadQuery
from tests.support import (
    Node,
    assert_sequences_have_no_hole,
    everything,
    one,
    running,
    verified,
)

SLOW_COMMITS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(0.05 * random());
  RETURN NULL;
END $$;
-- Deferred: it sleeps inside the commit, when everything has been written.
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON everstate.batches DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION slow();
"""


async def opened(url: str, count: int) -> list[StoreJournal]:
    stores = []
    for number in range(count):
        database = await Database.open(DatabaseSettings(url, max_connections=3))
        stores.append(StoreJournal(database, StoreSettings(node=f"n{number}")))
        await stores[-1].start()
    return stores


@pytest.fixture
async def stores(database_url: str) -> AsyncIterator[list[StoreJournal]]:
    """Two writers and a reader that share nothing but the database."""
    made = await opened(database_url, 3)
    yield made
    for store in made:
        await store.close()
        await store.database.close()


@pytest.fixture
async def foreign(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def nodes(database_url: str) -> Iterator[tuple[Node, Node]]:
    with Node(database_url) as a, Node(database_url) as b:
        yield a, b


async def test_invariants_1_and_3_readers_see_no_gap_and_nothing_late_while_commits_are_slow(
    stores: list[StoreJournal], foreign: asyncpg.Connection
) -> None:
    await foreign.execute(SLOW_COMMITS)
    *writers, reading = stores
    wanted = 600
    polls = 0

    async def write(store: StoreJournal, name: str) -> None:
        for number in range(wanted // 20):
            await store.append("default", one(f"{name}-{number % 7}", b"x"))

    async def read() -> None:
        """As a subscriber does: polls from where it was."""
        nonlocal polls
        position, head, last_at = 1, 0, 0
        while position <= wanted:
            polls += 1
            async for batch in reading.read("default", ReadQuery(from_position=position)):
                assert batch.head >= head, "the head went backwards"
                head = batch.head
                for event in batch.events:
                    assert event.position == position, "a gap, or an event that was seen before"
                    assert event.recorded_at_us >= last_at
                    position, last_at = position + 1, event.recorded_at_us
                assert batch.next_position == position

    async with running(read(), read(), read()) as readers:
        await asyncio.gather(
            *(write(store, f"{s}-{n}") for s, store in enumerate(writers) for n in range(10))
        )
        async with asyncio.timeout(20):
            await asyncio.gather(*readers)
    assert polls > 30, "they read while it was written"
    reports = [p.report async for p in reading.verify("default")]
    assert reports[-1] is not None
    assert (reports[-1].ok, reports[-1].events) == (True, wanted)


async def test_invariant_2_of_two_nodes_exactly_one_wins_each_sequence_number(
    nodes: tuple[Node, Node],
) -> None:
    winners: dict[tuple[str, int], str] = {}
    wins = [0, 0]

    async def contend(clients: list[Client], entity: str) -> None:
        for sequence in range(40):
            ids = [new_id(), new_id()]
            tries = [
                client.append("", one(entity, b"x", sequence, event_id=event_id))
                for client, event_id in zip(clients, ids, strict=True)
            ]
            ended = await asyncio.gather(*tries, return_exceptions=True)
            lost = [end for end in ended if isinstance(end, BaseException)]
            assert len(lost) == 1, ended
            refusal = lost[0]
            assert isinstance(refusal, WrongExpectedState), refusal
            assert [(f.expected, f.actual) for f in refusal.failures] == [(sequence, sequence + 1)]
            winner = 1 - ended.index(refusal)
            wins[winner] += 1
            winners[entity, sequence + 1] = ids[winner]

    async with nodes[0].client() as a, nodes[1].client() as b:
        await asyncio.gather(*(contend([a, b], f"e-{n}") for n in range(10)))
        events = await everything(a)
        assert {(e.entity_id, e.sequence): e.event_id for e in events} == winners
        assert len(events) == len(winners) == 400
        assert min(wins) > 0, "both nodes took part"
        report = await verified(b)
    assert report.events == 400


async def test_invariant_6_appends_over_several_entities_from_two_nodes_are_all_or_nothing(
    nodes: tuple[Node, Node],
) -> None:
    """Members in opposite orders: who locked entities in the order given would deadlock."""
    names = [f"e-{n}" for n in range(6)]
    written: list[tuple[str, ...]] = []
    refused = 0

    async def write(client: Client, seed: int) -> None:
        nonlocal refused
        rng = random.Random(seed)
        for _ in range(40):
            chosen = rng.sample(names, 3)
            known = [await last_sequence(client, name) for name in chosen]
            ids = tuple(new_id() for _ in chosen)
            append = Append(
                tuple(EntityAppend("t", n, at) for n, at in zip(chosen, known, strict=True)),
                tuple(NewEvent("E", b"x", entity=i, event_id=ids[i]) for i in range(3)),
            )
            try:
                await client.append("", append)
            except WrongExpectedState:
                refused += 1
            else:
                written.append(ids)

    async with nodes[0].client() as a, nodes[1].client() as b:
        await asyncio.gather(*(write(client, seed) for seed, client in enumerate([a, b] * 3)))
        events = await everything(a)
        groups = [tuple(e.event_id for e in events[i : i + 3]) for i in range(0, len(events), 3)]
        assert set(groups) == set(written), "each append whole, its events together and in order"
        assert_sequences_have_no_hole(events)
        await verified(a)
    assert refused > 0, "they did contend"
    assert len(written) > 20


async def last_sequence(client: Client, name: str) -> int:
    try:
        return (await client.get_entity("", "t", name)).sequence
    except EntityNotFound:
        return 0


async def test_a_foreign_write_transaction_and_an_old_snapshot_neither_stop_nor_hide_appends(
    stores: list[StoreJournal], foreign: asyncpg.Connection, database_url: str
) -> None:
    writer, other, reading = stores
    await writer.append("default", one("before"))
    dump = await asyncpg.connect(database_url)
    try:
        # A transaction that writes and stays open: readers that went by transaction ids would wait
        # for it, or pass over what commits after it.
        await foreign.execute("CREATE TABLE theirs (n int)")
        await foreign.execute("BEGIN")
        await foreign.execute("INSERT INTO theirs VALUES (1)")
        # What pg_dump holds: a snapshot, and a lock of every table.
        await dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        count = "SELECT count(*) FROM everstate.events WHERE position >= 1"
        assert await dump.fetchval(count) == 1

        async with asyncio.timeout(20):
            for store in (writer, other):
                await asyncio.gather(
                    *(store.append("default", one(f"e-{n % 9}")) for n in range(250))
                )
            read = [e async for part in reading.read("default", ReadQuery()) for e in part.events]
        assert [e.position for e in read] == list(range(1, 502))
        assert await dump.fetchval(count) == 1, "the snapshot is as old as it was"
        assert await foreign.fetchval("SELECT pg_current_xact_id_if_assigned()") is not None
        reports = [p.report async for p in reading.verify("default")]
        assert reports[-1] is not None
        assert (reports[-1].ok, reports[-1].events) == (True, 501)
    finally:
        await dump.close()
