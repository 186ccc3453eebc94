"""Projections at work: tables equal a fold, exactly once, poison, pause, wait, confinement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from journal.model import Append, EntityAppend, NewEvent
from journal.store import StoreJournal
from kernel.database import Database, DatabaseSettings
from kernel.errors import DeadlineExceeded, InvalidArgument, NotFound
from projections import control
from projections.model import ProjectedEvent, Projection, Tx
from schemas.descriptors import Decoder
from schemas.store import DescriptorStore
from schemas.upcasters import Upcasters, upcaster
from tests import protos
from tests.projecting import (
    Totals,
    append,
    counts,
    fill,
    folded,
    journal_on,
    python,
    reached,
    table,
    working,
)
from tests.support import eventually_async


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[StoreJournal]:
    async with journal_on(database) as opened:
        yield opened


@pytest.fixture
async def any_journal(any_database_url: str) -> AsyncIterator[StoreJournal]:
    database = await Database.open(DatabaseSettings(any_database_url))
    async with journal_on(database) as opened:
        yield opened
    await database.close()


async def test_invariant_7_tables_equal_a_fold_of_history_and_of_what_comes_live(
    any_journal: StoreJournal,
) -> None:
    journal = any_journal
    await fill(journal, 3_000)
    split = counts(("-- version: 1", "-- version: 1\n-- segments: 3"), name="split")
    async with working(journal, counts(), split, python(Totals)) as worker:
        last = await fill(journal, 1_500)
        for name in ("counts", "split", "totals"):
            await reached(journal.database, name, last)
            assert await table(journal.database, name) == await folded(journal), name
        assert len(worker.held) == 5
        row = await control.get_projection(journal.database, "counts")
        assert (row.lag_events, row.lag_bytes, row.lag_seconds) == (0, 0, 0)
        assert (row.events, row.position, row.head) == (4_500, last, last)


async def test_protobuf_payloads_and_old_shapes_come_as_json_in_their_present_shape(
    journal: StoreJournal,
) -> None:
    store = DescriptorStore(journal.database)
    await store.add(protos.descriptor_set(protos.CART))
    payload = protos.kind_of("shop.ItemAdded", protos.CART)(
        product_id="p", quantity=2, price_cents=9007199254740993
    ).SerializeToString()

    @upcaster("Put", from_version=0, to="shop.ItemAdded", to_version=1)
    def put(data: Any) -> Any:
        return {"product_id": data["sku"], "quantity": 1, "price_cents": 5}

    @upcaster("shop.ItemAdded", from_version=0)
    def as_it_is(data: Any) -> Any:
        return data

    made = (
        NewEvent("shop.ItemAdded", payload, "application/protobuf"),
        NewEvent("Put", b'{"sku": "q"}', "application/json"),
        NewEvent("shop.ItemRemoved", b"", "application/protobuf"),
    )
    await journal.append("default", Append((EntityAppend("thing", "a"),), made))
    text = """\
-- projection: counts
-- version: 1
CREATE TABLE counts (position bigint, product text, quantity int, cents bigint);
-- on: shop.ItemAdded
INSERT INTO counts VALUES
  (:meta.position, :data.product_id, :data.quantity, :data.price_cents);
"""
    seen: list[tuple[int, str, int]] = []

    class Seeing(Projection):
        name = "seeing"
        version = 1
        event_types = ("shop.ItemAdded",)

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            seen.extend((e.position, e.data["product_id"], e.schema_version) for e in events)

    decoder = Decoder(store, Upcasters([put, as_it_is]))
    async with working(journal, counts(text=text), python(Seeing), decoder=decoder):
        await reached(journal.database, "counts", 3)
        await reached(journal.database, "seeing", 3)
    rows = await journal.database.fetch("SELECT * FROM rm_counts.counts ORDER BY position")
    assert [tuple(row) for row in rows] == [(1, "p", 2, 9007199254740993), (2, "q", 1, 5)]
    assert seen == [(1, "p", 1), (2, "q", 1)]


async def test_a_projection_sees_what_an_event_says(journal: StoreJournal) -> None:
    seen: list[ProjectedEvent] = []

    class Seeing(Projection):
        name = "seeing"
        version = 1

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            seen.extend(events)

    made = (
        NewEvent("A", b'{"n": 1}', "application/json", 0, "", '{"user": "x"}',
                 correlation_id="c", client_time_us=1_000_000, schema_version=3),
        NewEvent("B", b"\0\1"),
    )  # fmt: skip
    await journal.append("default", Append((EntityAppend("thing", "a"),), made))
    async with working(journal, python(Seeing)):
        await reached(journal.database, "seeing", 2)
    first, second = seen
    assert (first.position, first.sequence, first.entity_type, first.entity_id) == (
        1,
        1,
        "thing",
        "a",
    )
    assert (first.data, first.metadata, first.schema_version) == ({"n": 1}, {"user": "x"}, 3)
    assert first.time.timestamp() == 1
    assert (second.type, second.data, second.payload, second.metadata) == ("B", None, b"\0\1", {})
    assert second.time == second.recorded_at


VALUES = """\
-- projection: counts
-- version: 1
CREATE TABLE counts (id text PRIMARY KEY, small int, big bigint, number numeric, flag boolean,
  whole jsonb, part json, words text[], numbers int[], at timestamptz, raw bytea, txt text,
  meta text, pos bigint, type text, seq bigint, event uuid, ent text, time timestamptz);
-- on: *
INSERT INTO counts VALUES (:meta.entity_id, :data.small, :data.big, :data.number, :data.flag, :data,
  :data.part, :data.words, :data.numbers, :data.at, :data.raw, :data.txt, :metadata.user,
  :meta.position, :meta.type, :meta.sequence, :meta.event_id, :meta.entity_type, :meta.time);
"""


async def test_parameters_of_sql_take_the_type_that_the_statement_wants(
    any_journal: StoreJournal,
) -> None:
    journal = any_journal
    full = (
        b'{"small": 2.0, "big": "9007199254740993", "number": 1.10000000000000000001, "flag": true,'
        b' "part": {"a": [1]}, "words": ["a", "b,c"], "numbers": [1, 2],'
        b' "at": "2024-01-01T00:00:00Z", "raw": "AAE=", "txt": {"x": 1}}'
    )
    await append(journal, "full", ("A", full))
    await append(journal, "nulls", ("A", {"small": None, "words": None, "part": None}))
    await append(journal, "text", ("A", b'{"txt": 12345678901234567890, "words": "{x,y}"}'))
    async with working(journal, counts(text=VALUES)):
        await reached(journal.database, "counts", 3)
    rows = await journal.database.fetch("SELECT * FROM rm_counts.counts ORDER BY pos")
    row = rows[0]
    assert (row["small"], row["big"]) == (2, 9007199254740993)
    assert (str(row["number"]), row["flag"]) == ("1.10000000000000000001", True)
    assert (row["words"], row["numbers"], row["raw"]) == (["a", "b,c"], [1, 2], b"\0\1")
    assert (row["at"].year, row["txt"], row["part"]) == (2024, '{"x": 1}', '{"a": [1]}')
    assert (row["meta"], row["type"], row["seq"], row["ent"]) == (None, "A", 1, "thing")
    assert row["event"] is not None
    assert all(rows[1][c] is None for c in ("small", "big", "flag", "words", "part", "txt", "at"))
    assert (rows[2]["txt"], rows[2]["words"]) == ("12345678901234567890", ["x", "y"])


async def test_handlers_run_event_by_event_in_the_order_of_the_log(journal: StoreJournal) -> None:
    text = """\
-- projection: counts
-- version: 1
CREATE TABLE counts (id text, step text, n bigint, seen bigint);
-- on: A, B
INSERT INTO counts VALUES (:meta.entity_id, 'first', :data.n, (SELECT count(*) FROM counts));
-- on: *
INSERT INTO counts VALUES (:meta.entity_id, :meta.type, :data.n, (SELECT count(*) FROM counts));
-- on: B
DELETE FROM counts WHERE n = :data.n - 1;
"""
    for n in range(1, 7):
        await append(journal, "x", (("A", "B", "C")[n % 3], {"n": n}))
    async with working(journal, counts(text=text)):
        await reached(journal.database, "counts", 6)
    rows = await journal.database.fetch(
        "SELECT step, n, seen FROM rm_counts.counts ORDER BY n, seen"
    )
    model: list[tuple[str, int, int]] = []
    for n in range(1, 7):
        kind = ("A", "B", "C")[n % 3]
        if kind in "AB":
            model.append(("first", n, len(model)))
        model.append((kind, n, len(model)))
        if kind == "B":
            model = [row for row in model if row[1] != n - 1]
    assert sorted(map(tuple, rows), key=lambda r: r[1:]) == sorted(model, key=lambda r: r[1:])


# -- exactly once --------------------------------------------------------------------------------


async def test_invariant_7_a_connection_killed_between_writes_and_commit_applies_exactly_once(
    any_journal: StoreJournal,
) -> None:
    journal = any_journal
    killed = 0

    class Killed(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            nonlocal killed
            await super().apply(events, tx)
            if killed < 3:
                killed += 1
                pid = await tx.fetchval("SELECT pg_backend_pid()")
                await journal.database.fetch("SELECT pg_terminate_backend($1)", pid)

    last = await fill(journal, 700)
    async with working(journal, python(Killed)):
        await reached(journal.database, "totals", last)
    assert killed == 3
    assert await table(journal.database, "totals") == await folded(journal)
    assert (await control.get_projection(journal.database, "totals")).events == 700


async def test_a_stale_workers_commit_fails_and_the_new_one_goes_on(journal: StoreJournal) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    slow = True

    class Slow(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await super().apply(events, tx)
            if slow:
                entered.set()
                await go_on.wait()

    last = await fill(journal, 300)
    definition = python(Slow)
    async with working(journal, definition) as stale:
        await entered.wait()
        # The stale worker has frozen, as far as others can see: its leases ran out.
        for task in stale._tasks:
            task.cancel()
        await journal.database.fetch(
            "UPDATE everstate.leases SET expires_at = now() - interval '1 s' WHERE kind = 'segment'"
        )
        runner = stale.runners["totals/1/1/0"]
        slow = False
        async with working(journal, definition) as fresh:
            # It takes the lease and waits for the row that the stale transaction has written.
            async def taken() -> bool:
                return bool(fresh.held)

            await eventually_async(taken, "the lease is taken")
            go_on.set()
            await reached(journal.database, "totals", last)
            held = stale._held["totals/1/1/0"]
            await asyncio.wait_for(held.task, 10)
            assert runner.position < last, "its commit was refused"
    assert await table(journal.database, "totals") == await folded(journal)
    assert (await control.get_projection(journal.database, "totals")).events == 300


async def test_a_batch_of_a_checkpoint_that_has_moved_meanwhile_is_undone(
    journal: StoreJournal,
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await super().apply(events, tx)
            entered.set()
            await go_on.wait()

    last = await fill(journal, 20)
    async with working(journal, python(Slow)):
        await entered.wait()
        await journal.database.fetch(
            "UPDATE everstate.projection_checkpoints SET position = $1", last
        )
        go_on.set()
        after = await append(journal, "after", ("Added", {"n": 3}))
        await reached(journal.database, "totals", after)
    assert await table(journal.database, "totals") == {"after": (1, 3)}


async def test_two_workers_share_the_segments_and_a_closed_one_hands_over_at_once(
    journal: StoreJournal,
) -> None:
    split = counts(("-- version: 1", "-- version: 1\n-- segments: 4"))

    async with working(journal, split) as one:
        assert len(one.held) == 4
        async with working(journal, split) as two:

            async def even() -> bool:
                return len(one.held) == len(two.held) == 2

            await eventually_async(even, "the segments are shared")
            last = await fill(journal, 1_000)
            await reached(journal.database, "counts", last)

        async def back() -> bool:
            return len(one.held) == 4

        # Well within the lease term of two seconds.
        await eventually_async(back, "the other's segments are taken", timeout=1)
        last = await fill(journal, 200)
        await reached(journal.database, "counts", last)
    assert await table(journal.database) == await folded(journal)


# -- effects -------------------------------------------------------------------------------------


async def test_effects_run_after_the_commit_for_what_is_new_and_never_for_history(
    journal: StoreJournal,
) -> None:
    done: list[tuple[int, bool]] = []

    class Mailing(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await super().apply(events, tx)
            for event in events:

                async def mail(position: int = event.position) -> None:
                    row = await control.get_projection(journal.database, "totals")
                    done.append((position, row.position >= position))

                tx.after_commit(mail)
            assert tx.replaying == (events[-1].position <= 20)

    await fill(journal, 20)
    definition = python(Mailing)
    async with working(journal, registered=[definition]):
        pass
    last = await fill(journal, 5)
    # History and news come in one delivery: it is cut between them.
    async with working(journal, definition):
        await reached(journal.database, "totals", last)
        await eventually_async(lambda: _is(len(done) == 5), "the effects run")
    assert done == [(position, True) for position in range(21, 26)]


async def _is(value: bool) -> bool:
    return value


# -- control -------------------------------------------------------------------------------------


async def test_a_paused_projection_stands_still_until_it_is_resumed(journal: StoreJournal) -> None:
    async with working(journal, counts(), python(Totals)) as worker:
        first = await fill(journal, 100)
        await reached(journal.database, "counts", first)
        row = await control.pause(journal.database, "counts", "for a while")
        assert (row.status, row.paused, row.pause_reason) == ("paused", True, "for a while")
        last = await fill(journal, 100)
        await reached(journal.database, "totals", last)
        row = await control.get_projection(journal.database, "counts")
        assert (row.position, row.lag_events, row.status) == (first, 100, "paused")
        assert row.lag_bytes > 0
        assert row.lag_seconds > 0

        async def given_back() -> bool:
            return worker.held == ["totals/1/1/0"]

        await eventually_async(given_back, "the segment is given back")
        with pytest.raises(DeadlineExceeded, match=f"is at position {first}.*paused: for a while"):
            await reached(journal.database, "counts", last, timeout=0.2)
        assert (await control.resume(journal.database, "counts")).status == "live"
        await reached(journal.database, "counts", last)
    assert await table(journal.database) == await folded(journal)


async def test_a_pause_waits_for_the_batch_that_commits_and_refuses_later_ones(
    journal: StoreJournal,
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await super().apply(events, tx)
            entered.set()
            await go_on.wait()

    last = await fill(journal, 10)
    async with working(journal, python(Slow)):
        await entered.wait()
        await control.pause(journal.database, "totals", "now")
        go_on.set()
        with pytest.raises(DeadlineExceeded):
            await reached(journal.database, "totals", last, timeout=0.3)
        assert await table(journal.database, "totals") == {}


async def test_a_filtered_projection_advances_when_nothing_matches_and_writes_seldom(
    journal: StoreJournal,
) -> None:
    async with working(journal, counts()):
        await append(journal, "a", ("Added", {"n": 1}))
        for _ in range(20):
            last = await append(journal, "other", ("Ignored", {}), entity_type="else")
        await reached(journal.database, "counts", last, timeout=5)
        row = await control.get_projection(journal.database, "counts")
        assert (row.events, row.position, row.lag_events) == (1, last, 0)


async def test_waiting_ends_at_the_deadline_and_says_how_far_it_is(journal: StoreJournal) -> None:
    async with working(journal, counts()):
        last = await append(journal, "a", ("Added", {}))
        passed = await control.wait_for(journal.database, "counts", last)
        assert (passed.name, passed.version, passed.position) == ("counts", 1, last)
        with pytest.raises(DeadlineExceeded, match=f"at position {last}, not yet at {last + 5}"):
            await control.wait_for(
                journal.database, "counts", last + 5, timedelta(milliseconds=200)
            )
    with pytest.raises(NotFound, match="'nothing'"):
        await control.wait_for(journal.database, "nothing", 1)
    with pytest.raises(InvalidArgument, match="position: -1"):
        await control.wait_for(journal.database, "counts", -1)
    for wrong in (
        control.pause(journal.database, "nothing", "x"),
        control.resume(journal.database, "nothing"),
    ):
        with pytest.raises(NotFound):
            await wrong
    with pytest.raises(InvalidArgument, match="reason"):
        await control.pause(journal.database, "counts", " ")
    with pytest.raises(InvalidArgument, match="limit"):
        await control.list_projections(journal.database, limit=1001)


async def test_a_version_without_its_code_stands_still_if_python_and_goes_on_if_sql(
    journal: StoreJournal,
) -> None:
    async with working(journal, counts(), python(Totals)):
        first = await fill(journal, 50)
        for name in ("counts", "totals"):
            await reached(journal.database, name, first)
    async with working(journal):  # a worker that has none of the user's files
        last = await fill(journal, 50)
        await reached(journal.database, "counts", last)
        assert (await control.get_projection(journal.database, "totals")).position == first
    assert await table(journal.database) == await folded(journal)


async def test_what_only_one_worker_has_the_code_of_is_run_by_that_one(
    journal: StoreJournal,
) -> None:
    class Other(Totals):
        name = "totals_too"
        tables = Totals.tables

    both, one = python(Totals), python(Other)
    async with working(journal, both, one) as able, working(journal, both) as limited:

        async def shared() -> bool:
            return able.held == ["totals_too/1/1/0"] and limited.held == ["totals/1/1/0"]

        await eventually_async(shared, "each has what falls to it")


async def test_a_registered_source_that_is_refused_today_stops_no_other_projection(
    journal: StoreJournal,
) -> None:
    older, other = counts(name="older"), counts(name="other")
    async with working(journal, registered=[older, other]):
        pass
    # As if an earlier release had allowed it.
    await journal.database.fetch(
        "UPDATE everstate.projection_versions SET source = source || 'SET ROLE x;'"
        " WHERE name = 'older' RETURNING name"
    )
    last = await fill(journal, 10)
    async with working(journal, registered=[]):
        await reached(journal.database, "other", last)
        assert (await control.get_projection(journal.database, "older")).position == 0
    assert await table(journal.database, "other") == await folded(journal)
