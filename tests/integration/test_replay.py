"""Replays of entities into a live projection: damaged rows are put right, everything else stays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from journal.model import LoadQuery, NewSnapshot
from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import Compacted, Conflict, InvalidArgument, NotFound
from kernel.leases import Leases
from projections import control, replay, sqlfile
from projections.execute import Moved, commit
from projections.model import Definition, ProjectedEvent, Projection, Tx
from projections.registry import define
from projections.replay import Selection
from schemas.descriptors import Decoder
from schemas.upcasters import Upcasters, upcaster
from snapshots.store import SnapshotStore
from tests.by_hand import Hand
from tests.conformance.subject import set_floor_in
from tests.support import ROOT, eventually_async

SUMS = """
-- projection: sums
-- version: 1
-- entity types: thing
-- segments: {segments}
CREATE TABLE sums (id text PRIMARY KEY, changes bigint NOT NULL, total bigint NOT NULL);

-- on: Happened
INSERT INTO sums VALUES (:meta.entity_id, 1, (:data.by)::bigint)
ON CONFLICT (id) DO UPDATE SET changes = sums.changes + 1, total = sums.total + EXCLUDED.total;

-- on: Ended
UPDATE sums SET changes = sums.changes + 1, total = -1 WHERE id = :meta.entity_id;
{deletion}
"""
DELETION = "-- delete entity\nDELETE FROM sums WHERE id = :meta.entity_id;"


def sums(segments: int = 2, deletion: str = DELETION) -> Definition:
    return sqlfile.parse(SUMS.format(segments=segments, deletion=deletion), "sums.sql")


class Sums(Projection):
    """The same in Python, with the last position too."""

    name = "pysums"
    version = 1
    entity_types = ("thing",)
    event_types = ("Happened",)
    tables = "CREATE TABLE sums (id text PRIMARY KEY, total bigint NOT NULL, last bigint NOT NULL)"

    async def apply(self, events: Any, tx: Tx) -> None:
        assert tx.replaying
        for event in events:
            assert isinstance(event, ProjectedEvent)
            await tx.execute(
                "INSERT INTO sums VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE"
                " SET total = sums.total + $2, last = $3",
                event.entity_id, event.data["by"], event.position,
            )  # fmt: skip

    async def delete_entity(self, entity_type: str, entity_id: str, tx: Tx) -> None:
        assert entity_type == "thing"
        await tx.execute("DELETE FROM sums WHERE id = $1", entity_id)


async def rows(database: Database, table: str = "rm_sums.sums") -> set[tuple[Any, ...]]:
    return {tuple(row) for row in await database.fetch(f"SELECT * FROM {table}")}


async def damage(
    hand: Hand, statement: str = "UPDATE sums SET total = 999", build: str = ""
) -> None:
    async with hand.database.connection() as connection:
        await connection.execute(f"SET search_path = rm_sums_v1; {statement}; RESET search_path")


@pytest.fixture
async def hand(store: StoreJournal) -> Hand:
    """Sixty events of twenty things, applied."""
    made = await Hand.start(store, sums(), define(Sums, ROOT))
    for n in range(60):
        await made.append(f"thing-{n % 20}", by=n)
    await made.append("thing-3", "Ended")
    await made.catch_up()
    return made


FOLD = {(f"thing-{i}", 3, 3 * i + 60) for i in range(20) if i != 3} | {("thing-3", 4, -1)}


async def order(hand: Hand, selection: Selection, name: str = "sums", **more: Any) -> str:
    row = await control.replay(
        hand.database, name, selection, reason="a test", principal="me", **more
    )
    assert (row.state, row.reason, row.principal) == ("running", "a test", "me")
    return row.replay_id


async def test_replaying_an_entity_puts_its_row_right_and_no_other(hand: Hand) -> None:
    assert await rows(hand.database) == FOLD
    await damage(hand)
    replay_id = await order(hand, Selection(entities=(("thing", "thing-3"), ("thing", "thing-4"))))
    await hand.replay_all()
    mended = {("thing-3", 4, -1), ("thing-4", 3, 72)}
    assert await rows(hand.database) == mended | {(i, c, 999) for i, c, _ in FOLD - mended}
    row = await replay.get(hand.database, "sums", replay_id)
    assert (row.state, row.entities, row.events) == ("done", 2, 7)
    assert row.finished_at is not None


@pytest.mark.parametrize(
    "selection",
    [
        Selection(types=("thing",)),
        Selection(from_position=1, to_position=61),
        Selection(from_position=21, to_position=40),
        Selection(entities=tuple(("thing", f"thing-{i}") for i in range(20))),
    ],
)
async def test_invariant_7_holds_after_a_replay_of_everything(
    hand: Hand, selection: Selection
) -> None:
    await damage(hand, "UPDATE sums SET total = 999; DELETE FROM sums WHERE id < 'thing-15'")
    replay_id = await order(hand, selection)
    await hand.replay_all()
    assert await rows(hand.database) == FOLD
    row = await replay.get(hand.database, "sums", replay_id)
    assert (row.state, row.entities, row.events, row.segments_done) == ("done", 20, 61, 2)


async def test_a_replay_of_compacted_entities_is_the_fold_of_the_log(
    store: StoreJournal, hand: Hand
) -> None:
    kept = SnapshotStore(hand.database, store)
    for name in ("thing-3", "thing-4"):
        await kept.save("default", "thing", name, 2, NewSnapshot("Thing", b"2"))
        await set_floor_in(store, "default", ("thing", name), 3)
    with pytest.raises(Compacted):
        await anext(store.load("default", LoadQuery("thing", "thing-3", ignore_snapshot=True)))
    await damage(hand, "UPDATE sums SET total = 999; DELETE FROM sums WHERE id = 'thing-4'")
    await order(hand, Selection(types=("thing",)))
    await hand.replay_all()
    assert await rows(hand.database) == FOLD


async def test_a_range_of_positions_selects_the_entities_that_have_events_there_once(
    hand: Hand,
) -> None:
    await damage(hand)
    # All twenty, and five of them a second time.
    replay_id = await order(hand, Selection(from_position=1, to_position=25))
    await hand.replay_all()
    assert (await replay.get(hand.database, "sums", replay_id)).entities == 20
    replay_id = await order(hand, Selection(from_position=21, to_position=25))
    await hand.replay_all()
    assert (await replay.get(hand.database, "sums", replay_id)).entities == 5


async def test_a_row_that_no_event_made_is_removed(hand: Hand) -> None:
    await damage(hand, "INSERT INTO sums VALUES ('ghost', 1, 1)")
    await order(hand, Selection(entities=(("thing", "ghost"),)))
    await hand.replay_all()
    assert await rows(hand.database) == FOLD


async def test_a_python_projection_is_replayed_as_well(hand: Hand) -> None:
    before = await rows(hand.database, "rm_pysums.sums")
    assert len(before) == 20
    async with hand.database.connection() as connection:
        await connection.execute("UPDATE rm_pysums_v1.sums SET total = 0, last = 0")
    await order(hand, Selection(types=("thing",)), "pysums")
    await hand.replay_all()
    assert await rows(hand.database, "rm_pysums.sums") == before


async def test_events_beyond_the_checkpoint_are_left_to_the_segment(hand: Hand) -> None:
    for n in range(20):
        await hand.append(f"thing-{n}", by=1000)
    await damage(hand)
    await order(hand, Selection(types=("thing",)))
    await hand.replay_all()
    assert await rows(hand.database) == FOLD, "not one event that was not applied before"
    await hand.catch_up()
    # t3 has ended, and goes on from -1.
    assert await rows(hand.database) == {(i, c + 1, t + 1000) for i, c, t in FOLD}


async def test_a_replay_resumes_where_it_was_killed_and_replays_every_entity_once(
    store: StoreJournal,
) -> None:
    hand = await Hand.start(store, sums(segments=1))
    for n in range(130):
        await hand.append(f"t{n:03}", by=n)
    await hand.catch_up()
    await damage(hand)
    replay_id = await order(hand, Selection(types=("thing",)))
    steps = 0
    while True:
        # Every step is a new worker's: nothing is remembered between two.
        found = await hand.replays()
        if not found:
            break
        ((doing, target),) = found
        await doing.step(target)
        steps += 1
        fixed = [row for row in await rows(hand.database) if row[2] != 999]
        assert len(fixed) == (await replay.get(hand.database, "sums", replay_id)).entities
    await replay.finish(hand.database)
    assert steps >= 3
    row = await replay.get(hand.database, "sums", replay_id)
    assert (row.state, row.entities, row.events) == ("done", 130, 130)
    assert await rows(hand.database) == {(f"t{n:03}", 1, n) for n in range(130)}


async def test_a_worker_that_lost_the_lease_replays_nothing(hand: Hand) -> None:
    await damage(hand)
    await order(hand, Selection(entities=(("thing", "thing-4"),)))
    ((doing, target),) = await hand.replays()
    await Leases(hand.database, "segment", "hand").release(target.lease)
    other = Leases(hand.database, "segment", "other")
    assert await other.acquire(target.segment.lease_name) is not None
    with pytest.raises(Exception, match="another process has taken over"):
        await doing.step(target)
    assert {row[2] for row in await rows(hand.database)} == {999}


async def test_a_segment_that_moved_or_is_paused_is_left_alone(hand: Hand) -> None:
    await damage(hand)
    await order(hand, Selection(entities=(("thing", "thing-4"),)))
    ((doing, target),) = await hand.replays()
    await hand.append("thing-4", by=1)
    await hand.catch_up("sums")
    with pytest.raises(Moved):
        await doing.step(target)
    ((doing, target),) = await hand.replays()
    await control.pause(hand.database, "sums", "hold it")
    with pytest.raises(Moved):
        await doing.step(target)
    assert ("thing-4", 4, 1000) in await rows(hand.database)


async def test_events_under_an_old_name_of_their_type_are_replayed_too(
    store: StoreJournal,
) -> None:
    @upcaster("HappenedOnce", from_version=0, to="Happened", to_version=1)
    def renamed(data: Any) -> Any:
        return data

    hand = await Hand.start(store, sums())
    hand.decoder = Decoder(upcasters=Upcasters([renamed]))
    await hand.append("a", "HappenedOnce", by=5)
    await hand.append("a", by=1)
    await hand.catch_up()
    await damage(hand)
    await order(hand, Selection(types=("thing",)))
    await hand.replay_all()
    assert await rows(hand.database) == {("a", 2, 6)}


async def test_what_was_parked_stays_parked(store: StoreJournal) -> None:
    definition = sqlfile.parse(
        SUMS.format(segments=1, deletion=DELETION).replace(
            "-- segments", "-- on poison: park\n-- segments"
        ),
        "sums.sql",
    )
    hand = await Hand.start(store, definition)
    await hand.append("a", by=1)
    bad = await hand.append("a", by="x")
    await hand.append("a", by=2)
    async with hand.database.connection() as connection:
        await connection.execute(
            "INSERT INTO everstate.projection_parked VALUES ('sums', 1, 1, $1, 0, 'thing', 'a',"
            " 'Happened', '{}')",
            bad,
        )
        # As the worker leaves it: passed over.
        await connection.execute(
            "UPDATE everstate.projection_checkpoints SET position = 3;"
            " INSERT INTO rm_sums_v1.sums VALUES ('a', 9, 9)"
        )
    await order(hand, Selection(types=("thing",)))
    await hand.replay_all()
    assert await rows(hand.database) == {("a", 2, 3)}


async def test_an_entity_that_cannot_be_replayed_fails_the_replay_and_stays_as_it_was(
    hand: Hand,
) -> None:
    bad = await hand.append("thing-4", by="x")
    async with hand.database.connection() as connection:
        await connection.execute("UPDATE everstate.projection_checkpoints SET position = $1", bad)
    await damage(hand)
    replay_id = await order(hand, Selection(entities=(("thing", "thing-4"),)))
    await hand.replay_all()
    row = await replay.get(hand.database, "sums", replay_id)
    assert row.state == "failed"
    assert row.error is not None
    assert (row.error["entity_type"], row.error["entity_id"]) == ("thing", "thing-4")
    assert "bigint" in row.error["message"] or "numeric" in row.error["message"]
    assert ("thing-4", 3, 999) in await rows(hand.database)
    await order(hand, Selection(entities=(("thing", "thing-5"),)))  # another may be ordered


async def test_a_cancelled_replay_ends_before_the_next_entity(hand: Hand) -> None:
    await damage(hand)
    replay_id = await order(hand, Selection(types=("thing",)))
    ((doing, target), _) = await hand.replays()
    assert (await replay.cancel(hand.database, "sums", replay_id)).state == "cancelled"
    with pytest.raises(Moved):
        await doing.step(target)
    assert await hand.replays() == []
    assert {row[2] for row in await rows(hand.database)} == {999}


async def test_a_rate_makes_a_replay_wait(hand: Hand) -> None:
    await order(hand, Selection(entities=(("thing", "thing-4"), ("thing", "thing-5"))), rate=0.5)
    for doing, target in await hand.replays():
        assert doing.is_due
        while not doing.ended:
            await doing.step(target)
            assert doing.ended or not doing.is_due


async def test_a_projection_that_does_not_say_how_an_entity_is_deleted_is_refused(
    store: StoreJournal,
) -> None:
    hand = await Hand.start(store, sums(deletion=""))
    with pytest.raises(Conflict, match=r"does not say how one is deleted .* rebuild it instead"):
        await order(hand, Selection(types=("thing",)))


async def test_one_replay_at_a_time(hand: Hand) -> None:
    first = await order(hand, Selection(types=("thing",)))
    with pytest.raises(Conflict, match=f"replay {first} is running"):
        await order(hand, Selection(types=("thing",)))


@pytest.mark.parametrize(
    ("selection", "more", "field"),
    [
        (Selection(), {}, "selection"),
        (Selection(types=("thing",), from_position=1, to_position=2), {}, "selection"),
        (Selection(types=("other",)), {}, "types"),
        (Selection(entities=(("other", "x"),)), {}, "entities"),
        (Selection(entities=tuple(("thing", str(i)) for i in range(1001))), {}, "entities"),
        (Selection(from_position=5, to_position=4), {}, "from_position"),
        (Selection(from_position=0, to_position=4), {}, "from_position"),
        (Selection(from_position=1, to_position=62), {}, "to_position"),
        (Selection(types=("thing",)), {"rate": 0.0}, "rate"),
    ],
)
async def test_bad_input_is_refused_with_its_field_and_orders_nothing(
    hand: Hand, selection: Selection, more: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await order(hand, selection, **more)
    assert refused.value.field == field
    assert await replay.list_replays(hand.database, "sums") == []


async def test_a_replay_needs_a_reason_and_a_projection(hand: Hand) -> None:
    with pytest.raises(InvalidArgument, match="reason"):
        await control.replay(hand.database, "sums", Selection(types=("thing",)), reason=" ")
    with pytest.raises(NotFound, match="'none'"):
        await control.replay(hand.database, "none", Selection(types=("thing",)), reason="x")
    with pytest.raises(NotFound, match="no replay"):
        await replay.get(hand.database, "sums", "01900000-0000-7000-8000-000000000000")


# -- commits and what is ordered meanwhile ---------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE everstate.projection_builds SET stop_position = 61, stop_until = 'infinity'",
        "UPDATE everstate.projection_builds SET state = 'retired'",
        "UPDATE everstate.projections SET paused = true",
    ],
)
async def test_a_batch_that_waits_while_its_build_is_stopped_does_not_commit(
    hand: Hand, change: str
) -> None:
    await hand.append("thing-1", by=1)
    async with hand.database.connection() as connection, connection.transaction():
        await connection.fetch("SELECT FROM everstate.projections WHERE name = 'sums' FOR UPDATE")
        catching_up = asyncio.ensure_future(hand.catch_up("sums"))

        async def is_waiting() -> bool:
            row = await hand.database.fetchrow(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            )
            return row[0] > 0

        await eventually_async(is_waiting, "the batch waits for the projection's row")
        await connection.execute(f"{change} WHERE name = 'sums'")
    with pytest.raises(Moved):
        await catching_up
    assert await rows(hand.database) == FOLD


async def test_a_batch_that_was_applied_for_another_state_of_its_build_does_not_commit(
    hand: Hand,
) -> None:
    position = await hand.append("thing-1", by=1)
    (segment, *_) = [s for s in await hand.segments("sums") if s.segment == 1]
    assert segment.state == "live"
    target = await hand.target(segment)
    # Effects run for the live build only: this worker had not seen yet that it went live.
    with pytest.raises(Moved):
        await commit(hand.database, target, None, [], position, replaying=True, state="ready")
    await commit(hand.database, target, None, [], position, replaying=True, state="live")


# -- orders of builds, made by the upkeep of workers -----------------------------------------------


async def test_an_ordered_rebuild_is_made_filled_and_goes_live_by_itself(hand: Hand) -> None:
    await damage(hand)
    row = await control.rebuild(hand.database, "sums", auto_switch=True)
    await hand.upkeep.step()
    row = await control.get_build(hand.database, "sums", row.version, row.build)
    assert (row.state, row.target_position) == ("building", 61)
    assert {r[2] for r in await rows(hand.database)} == {999}, "readers see the old one"
    await hand.catch_up()
    await hand.upkeep.step()
    live = await control.get_projection(hand.database, "sums")
    assert (live.build, live.state) == (2, "live")
    assert await rows(hand.database) == FOLD
    found = await control.compare(hand.database, "sums")
    assert (found.new, found.equal) == ((1, 1), False), "the damaged one"


async def test_sql_versions_are_rebuilt_by_workers_that_do_not_have_the_file(hand: Hand) -> None:
    await control.rebuild(hand.database, "sums")
    await control.rebuild(hand.database, "pysums")
    hand.definitions = {}
    await hand.upkeep.step()
    assert (await control.get_build(hand.database, "sums", 1, 2)).state == "building"
    # Python needs a worker with the code: it stays ordered, for everyone to see.
    assert (await control.get_build(hand.database, "pysums", 1, 2)).state == "ordered"


async def test_two_workers_that_make_the_same_order_make_it_once(hand: Hand) -> None:
    await control.rebuild(hand.database, "sums")
    await asyncio.gather(*(hand.upkeep.step() for _ in range(4)))
    assert (await control.get_build(hand.database, "sums", 1, 2)).state == "building"
    assert len(await control.list_segments(hand.database, "sums", 1, 2)) == 2
