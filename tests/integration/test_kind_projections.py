"""replay and rebuild as operations: ordered once, whatever is killed; cancelled; undone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel.errors import Conflict, InvalidArgument, NotFound
from operations.kinds import kind_named
from operations.kinds.base import Environment
from operations.kinds.common import uuid_of
from operations.model import Moment, PlanBody, PlanRequest, Selection
from operations.planner import Draft, context_of
from projections import control, replay, sqlfile
from projections.model import Definition
from projections.rebuild import Rebuilds
from tests.by_hand import Hand
from tests.operating import Task

SUMS = """
-- projection: sums
-- version: 1
-- entity types: thing
-- segments: 2
CREATE TABLE sums (id text PRIMARY KEY, changes bigint NOT NULL, total bigint NOT NULL);

-- on: Happened
INSERT INTO sums VALUES (:meta.entity_id, 1, (:data.by)::bigint)
ON CONFLICT (id) DO UPDATE SET changes = sums.changes + 1, total = sums.total + EXCLUDED.total;

-- delete entity
DELETE FROM sums WHERE id = :meta.entity_id;
"""
FOLD = {(f"thing-{i}", 3, 3 * i + 60) for i in range(20)}


def sums(text: str = SUMS) -> Definition:
    return sqlfile.parse(text, "sums.sql")


async def rows(hand: Hand) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in await hand.database.fetch("SELECT * FROM rm_sums.sums")}


async def damage(hand: Hand) -> None:
    await hand.database.fetch("UPDATE rm_sums_v1.sums SET total = 999")


@pytest.fixture
async def hand(store: StoreJournal) -> Hand:
    """Sixty events of twenty things, applied."""
    made = await Hand.start(store, sums())
    for n in range(60):
        await made.append(f"thing-{n % 20}", by=n)
    await made.catch_up()
    return made


async def replayed(hand: Hand, **selection: Any) -> Task:
    return await Task.plan(hand.journal, "replay", "sums", Selection(**selection))


# -- replay --------------------------------------------------------------------------------------


async def test_a_replay_makes_the_rows_again_and_says_how_far_it_is(hand: Hand) -> None:
    await damage(hand)
    task = await replayed(hand, entities=(("thing", "thing-3"), ("thing", "thing-4")))
    assert [(i.entity_type, i.entity_id) for i in task.items] == [
        ("thing", "thing-3"),
        ("thing", "thing-4"),
    ]
    assert task.body.sentence == (
        "Delete the rows of 2 entities from projection 'sums' and make them again from their"
        " events; readers see either, whole."
    )
    assert await task.check() == 0.0
    said = await task.advance()
    assert (said.finished, said.done) == (False, 0)
    await hand.replay_all()
    said = await task.advance()
    assert (said.finished, said.error, said.done, said.events) == (True, None, 2, 6)
    assert said.note is not None
    assert said.note["segments_done"] == said.note["segments"] > 0
    mended = {("thing-3", 3, 69), ("thing-4", 3, 72)}
    assert await rows(hand) == mended | {(i, c, 999) for i, c, _ in FOLD - mended}


async def test_a_replay_is_ordered_once_though_the_worker_is_killed_between_two_calls(
    hand: Hand,
) -> None:
    task = await replayed(hand, types=("thing",))
    await task.forgotten()
    await asyncio.gather(*(task.forgotten() for _ in range(5)))
    await hand.replay_all()
    for _ in range(2):
        assert (await task.advance()).finished
    found = await replay.list_replays(hand.database, "sums")
    assert [(r.replay_id, r.state, r.entities) for r in found] == [(uuid_of(task.row), "done", 20)]
    assert (found[0].reason, found[0].principal) == ("because", "bob")


async def test_the_operations_rate_and_range_reach_the_replay(hand: Hand) -> None:
    task = await Task.plan(
        hand.journal, "replay", "sums", Selection(from_=Moment(21), to=Moment(40)), rate=7.5
    )
    assert "every entity that has an event at positions 21 to 40" in task.body.sentence
    await task.advance()
    row = await replay.get(hand.database, "sums", uuid_of(task.row))
    assert (row.rate, row.selection) == (7.5, {"from": 21, "to": 40})


async def test_times_of_a_selection_are_those_of_the_log(hand: Hand) -> None:
    events = [e async for b in hand.journal.read("default", _all()) for e in b.events]
    selection = Selection(
        from_=Moment(time_us=events[20].recorded_at_us),
        to=Moment(time_us=events[40].recorded_at_us),
    )
    task = await Task.plan(hand.journal, "replay", "sums", selection)
    assert (task.items[0].position, task.items[0].target) == (21, 40)


def _all() -> Any:
    from journal.model import ReadQuery

    return ReadQuery()


async def test_an_empty_selection_is_the_log_up_to_the_plans_head(hand: Hand) -> None:
    task = await replayed(hand)
    await hand.append("thing-0", by=0)
    await task.advance()
    row = await replay.get(hand.database, "sums", uuid_of(task.row))
    assert row.selection == {"from": 1, "to": 60}


async def test_a_type_is_counted(hand: Hand) -> None:
    task = await replayed(hand, types=("thing",))
    assert (task.body.entities, task.body.events) == (20, 60)
    assert "20 entities of type thing" in task.body.sentence


async def test_a_cancelled_replay_ends_and_one_that_was_not_ordered_is_not(hand: Hand) -> None:
    task = await replayed(hand, types=("thing",))
    await task.advance()
    await task.cancel()
    said = await task.advance()
    assert (said.finished, said.error) == (True, None)
    other = await replayed(hand, types=("thing",))
    await other.cancel()
    assert (await other.advance()).finished
    assert [r.state for r in await replay.list_replays(hand.database, "sums")] == ["cancelled"]


async def test_a_replay_that_somebody_else_cancels_fails_the_operation(hand: Hand) -> None:
    task = await replayed(hand, types=("thing",))
    await task.advance()
    await replay.cancel(hand.database, "sums", uuid_of(task.row))
    said = await task.advance()
    assert said.error == {"code": "CANCELLED", "message": "the replay was cancelled"}


async def test_a_replay_that_fails_fails_the_operation_with_its_error(hand: Hand) -> None:
    task = await replayed(hand, entities=(("thing", "thing-3"),))
    await task.advance()
    await hand.database.fetch("ALTER TABLE rm_sums_v1.sums ADD CHECK (total < 5) NOT VALID")
    await hand.replay_all()
    said = await task.advance()
    assert said.finished
    assert said.error is not None
    assert said.error["entity_id"] == "thing-3"


async def test_a_replay_waits_for_the_one_that_runs(hand: Hand) -> None:
    first = await replayed(hand, types=("thing",))
    second = await replayed(hand, types=("thing",))
    await first.advance()
    said = await second.advance()
    assert (said.finished, said.waits) == (
        False,
        f"replay {uuid_of(first.row)} of the projection runs",
    )
    await hand.replay_all()
    assert (await second.advance()).waits == ""
    assert len(await replay.list_replays(hand.database, "sums")) == 2


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        ({"types": ("order",)}, "types"),
        ({"entities": (("order", "a"),)}, "entities"),
        ({"from_": Moment(9), "to": Moment(3)}, "from_position"),
        ({"from_": Moment(9), "to": Moment(300)}, "to_position"),
        ({"types": ("thing",), "from_": Moment(9)}, "selection"),
        ({"where": "type = thing"}, "selection.where"),
        ({"log": "_system"}, "selection.log"),
    ],
)
async def test_what_cannot_be_replayed_is_refused_at_the_plan(
    hand: Hand, selection: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await replayed(hand, **selection)
    assert refused.value.field == field


async def test_a_projection_that_is_gone_or_cannot_replay_is_refused(store: StoreJournal) -> None:
    with pytest.raises(NotFound):
        await Task.plan(store, "replay", "sums")
    with pytest.raises(NotFound):
        await Task.plan(store, "rebuild", "sums")
    await Hand.start(store, sums(SUMS.partition("-- delete entity")[0]))
    with pytest.raises(Conflict, match="does not say how one is deleted"):
        await Task.plan(store, "replay", "sums")


async def test_drift_is_whole_when_the_projection_cannot_do_it_any_more(hand: Hand) -> None:
    task = await replayed(hand, types=("thing",))
    await hand.database.fetch("UPDATE everstate.projection_versions SET replayable = false")
    assert await task.check() == 1.0


# -- rebuild -------------------------------------------------------------------------------------


async def rebuilt(hand: Hand, **parameters: Any) -> Task:
    return await Task.plan(hand.journal, "rebuild", "sums", **parameters)


async def built(hand: Hand) -> None:
    """What workers do until a build is as far as it goes."""
    await hand.upkeep.step()  # make it
    await hand.catch_up()
    await hand.upkeep.step()  # note that it is ready, switch


async def states(hand: Hand) -> dict[int, str]:
    return {row.build: row.state for row in await control.list_builds(hand.database, "sums")}


async def test_a_rebuild_is_finished_when_the_build_is_ready(hand: Hand) -> None:
    await damage(hand)
    task = await rebuilt(hand)
    assert task.body.sentence == (
        "Make the tables of projection 'sums', version 1, again from 60 positions of log"
        " 'default', readers go on with the live ones until somebody switches."
    )
    assert await task.check() == 0.0
    said = await task.advance()
    assert (said.finished, said.waits) == (False, "a worker that has the projection's code")
    await built(hand)
    said = await task.advance()
    assert (said.finished, said.done, said.events, said.error) == (True, 1, 60, None)
    assert await states(hand) == {1: "live", 2: "ready"}
    assert await rows(hand) != FOLD


async def test_a_rebuild_that_switches_is_finished_when_readers_see_it(hand: Hand) -> None:
    await damage(hand)
    task = await rebuilt(hand, auto_switch=True)
    await task.advance()
    await hand.upkeep.step()
    await hand.catch_up()
    assert (await task.advance()).finished is False
    await built(hand)
    assert (await task.advance()).finished
    assert await rows(hand) == FOLD
    assert await states(hand) == {1: "previous", 2: "live"}


async def test_a_build_is_ordered_once_though_the_worker_is_killed_between_two_calls(
    hand: Hand,
) -> None:
    task = await rebuilt(hand)
    await task.forgotten()
    await asyncio.gather(*(task.forgotten() for _ in range(5)))
    assert await states(hand) == {1: "live", 2: "ordered"}
    await built(hand)
    await control.discard(hand.database, "sums", 1, 2)
    said = await task.advance()  # it is not ordered anew when it is gone
    assert said.error == {"code": "CANCELLED", "message": "the build was discarded"}
    assert await states(hand) == {1: "live", 2: "retired"}


async def test_a_cancelled_rebuild_discards_its_build_and_one_not_ordered_never_is(
    hand: Hand,
) -> None:
    task = await rebuilt(hand)
    await task.advance()
    await task.cancel()
    said = await task.advance()
    assert (said.finished, said.error) == (True, None)
    other = await rebuilt(hand)
    await other.cancel()
    assert (await other.advance()).finished
    assert await states(hand) == {1: "live", 2: "retired"}


async def test_undo_of_a_switch_gives_readers_the_build_from_before_and_drops_the_new_one(
    hand: Hand,
) -> None:
    await damage(hand)
    before = await rows(hand)
    task = await rebuilt(hand, auto_switch=True)
    await task.advance()
    await built(hand)
    await hand.upkeep.step()
    assert (await task.advance()).finished
    assert await rows(hand) == FOLD
    await Rebuilds(hand.database).rollback("sums")  # as if killed after the first half
    for _ in range(2):
        said = await task.undo()
        assert (said.finished, said.done, said.error) == (True, 1, None)
    assert await rows(hand) == before
    assert await states(hand) == {1: "live", 2: "retired"}


async def test_undo_of_a_rebuild_without_a_switch_discards_it(hand: Hand) -> None:
    task = await rebuilt(hand)
    await task.advance()
    await built(hand)
    assert (await task.advance()).finished
    assert (await task.undo()).finished
    assert await states(hand) == {1: "live", 2: "retired"}


async def test_undo_says_so_when_the_build_from_before_is_gone(hand: Hand) -> None:
    task = await rebuilt(hand, auto_switch=True)
    await task.advance()
    await built(hand)
    await hand.upkeep.step()
    assert (await task.advance()).finished
    await control.discard(hand.database, "sums", 1, 1)
    said = await task.undo()
    assert said.error is not None
    assert said.error["code"] == "CONFLICT"
    assert await states(hand) == {1: "retired", 2: "live"}


async def test_another_build_under_way_is_refused_and_is_drift(hand: Hand) -> None:
    task = await rebuilt(hand)
    await control.rebuild(hand.database, "sums")
    assert await task.check() == 1.0
    with pytest.raises(Conflict, match="build 2 of version 1 is ordered"):
        await rebuilt(hand)
    with pytest.raises(Conflict):
        await task.advance()


async def test_a_paused_projection_is_warned_of(hand: Hand) -> None:
    await control.pause(hand.database, "sums", "lunch")
    for kind in ("replay", "rebuild"):
        task = await Task.plan(hand.journal, kind, "sums")
        assert task.body.warnings == ["Projection 'sums' is paused (lunch): it waits for that."]


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [
        ("replay", {"rate": 3}, "parameters.rate"),
        ("rebuild", {"auto_switch": "yes"}, "parameters.auto_switch"),
        ("rebuild", {"switch": True}, "parameters.switch"),
    ],
)
def test_bad_parameters_are_refused_with_their_name(
    kind: str, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        kind_named(kind).parameters(given)
    assert refused.value.field == field


async def test_plans_of_tasks_say_how_much_they_read(hand: Hand) -> None:
    """In the body as it is kept: what the kind says, not only what its items add up to."""

    async def drafted(kind: str, **selection: Any) -> PlanBody:
        request = PlanRequest(kind, Selection(**selection), "sums")
        context = await context_of(
            hand.database, hand.journal, kind_named(kind), request, Environment()
        )
        draft = Draft(context, kind_named(kind), "sums")
        assert [item.no async for batch in draft.batches() for item in batch]
        return draft.body

    two = (("thing", "thing-3"), ("thing", "thing-4"), ("thing", "nobody"))
    for kind, selection, expected in (
        ("replay", {"types": ("thing",)}, (20, 1, 60)),
        ("replay", {"entities": two}, (3, 3, 6)),
        ("replay", {"from_": Moment(21), "to": Moment(40)}, (0, 1, 20)),
        ("rebuild", {}, (0, 1, 60)),
    ):
        body = await drafted(kind, **selection)
        assert (body.entities, body.items, body.events) == expected
        assert body.bytes > 0
        assert len(body.samples) == body.items
