"""The runner: steps, pauses, what fails, undo, retries, tasks, leases, progress, upkeep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import Conflict, InvalidArgument, Unavailable
from operations import control, store
from operations.model import ItemState, OperationRow, Outcome, Policy, State
from operations.upkeep import Upkeep
from operations.watch import watch
from tests.engine_support import ANN, BEN, Bench, bench
from tests.support import eventually_async


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> AsyncIterator[Bench]:
    async with bench(database, store) as made:
        yield made


async def in_step(desk: Bench) -> None:
    """Waits until a step has begun, and is held there."""
    async with asyncio.timeout(10):
        await desk.touch.in_step.wait()
    desk.touch.in_step.clear()


async def wished(desk: Bench, act: object) -> None:
    """Lets the step go on once a wish, which waits for the row, has been sent."""
    assert desk.touch.before_step is not None

    async def waits() -> bool:
        rows = await desk.database.fetch(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        return len(rows) > 0

    await eventually_async(waits, "the wish waits for the step")
    desk.touch.before_step.set()


async def test_a_pause_is_at_the_next_safe_point_and_resume_goes_on(desk: Bench) -> None:
    await desk.entities(30)
    desk.touch.before_step = asyncio.Event()
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():
        await in_step(desk)
        pausing = asyncio.create_task(control.pause(desk.database, plan.id, principal=ANN))
        await wished(desk, pausing)
        assert (await pausing).wish in ("pause", "")
        row = await desk.until(plan, State.PAUSED)
        assert (row.done, row.cursor, row.wish) == (10, 10, "")
        assert len(await desk.times()) == 10
        again = await control.pause(desk.database, plan.id, principal=ANN)
        assert again.version == row.version
        await control.resume(desk.database, plan.id, principal=BEN)
        receipt = await desk.ended(plan)
    assert (receipt.state, receipt.done) == (State.DONE, 30)
    assert set((await desk.times()).values()) == {(1, 0)}
    assert await desk.audit(plan.id) == [
        "OperationPlanned", "OperationApplied", "OperationStarted", "OperationPauseWished",
        "OperationPaused", "OperationResumed", "OperationWentOn", "OperationDone",
    ]  # fmt: skip


async def test_a_cancel_is_at_the_next_safe_point_and_what_is_done_can_be_undone(
    desk: Bench,
) -> None:
    await desk.entities(30)
    desk.touch.before_step = asyncio.Event()
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():
        await in_step(desk)
        cancelling = asyncio.create_task(control.cancel(desk.database, plan.id, principal=ANN))
        await wished(desk, cancelling)
        await cancelling
        receipt = await desk.ended(plan)
        # The next step may take the row before the one who cancels does.
        assert (receipt.state, receipt.done in {10, 20}) == (State.CANCELLED, True)
        assert receipt.undo_until is not None
        await control.undo(desk.database, plan.id, reason="not that", principal=BEN)
        undone = await desk.ended(plan)
    assert (undone.state, undone.done, undone.undone) == (
        State.UNDONE,
        receipt.done,
        receipt.done,
    )
    assert await desk.times() == {f"e{n:03}": (1, 1) for n in range(receipt.done)}


@pytest.mark.parametrize("paused", [False, True])
async def test_what_stands_still_is_cancelled_at_once(desk: Bench, paused: bool) -> None:
    await desk.entities(1)
    planned = await desk.plan()
    assert (await control.cancel(desk.database, planned.id, principal=ANN)).state is State.CANCELLED
    with pytest.raises(Conflict, match="was cancelled"):
        await desk.apply(planned)
    queued = await desk.plan()
    await desk.apply(queued)
    if paused:
        row = await control.pause(desk.database, queued.id, principal=ANN)
        assert row.state is State.PAUSED
    row = await control.cancel(desk.database, queued.id, principal=ANN)
    assert (row.state, row.undo_until) == (State.CANCELLED, None)
    assert (await control.cancel(desk.database, queued.id, principal=ANN)).version == row.version
    for act in (control.pause, control.resume):
        with pytest.raises(Conflict, match="is cancelled"):
            await act(desk.database, queued.id, principal=ANN)
    with pytest.raises(Conflict, match="nothing was done"):
        await control.undo(desk.database, queued.id, reason="r", principal=ANN)


async def test_undo_goes_backwards_over_what_is_done_and_says_what_it_left(desk: Bench) -> None:
    await desk.entities(25)
    desk.touch.skipped = {"e007"}
    desk.touch.changed = {"e011"}
    receipt = await desk.done(await desk.plan())
    assert (receipt.done, receipt.skipped) == (24, 1)
    first = await control.undo(desk.database, receipt.id, reason="a mistake", principal=BEN)
    again = await control.undo(desk.database, receipt.id, reason="another", principal=ANN)
    assert (first.state, first.undone_by, again.undo_reason) == (State.UNDOING, "ben", "a mistake")
    async with desk.running():
        row = await desk.ended(receipt)
    assert (row.state, row.undone, row.done, row.cursor) == (State.UNDONE, 23, 24, 0)
    order = await desk.order("done")
    assert await desk.order("undone") == [e for e in reversed(order) if e != "e011"]
    groups = await control.failures(desk.database, receipt.id)
    assert [(g.state, g.reason, g.count, g.examples) for g in groups] == [
        (ItemState.SKIPPED, "changed", 1, ("thing/e007",)),
        (ItemState.NOT_UNDONE, "changed", 1, ("thing/e011",)),
    ]
    assert set((await desk.times()).values()) == {(1, 1), (1, 0)}
    assert row.undo_until == receipt.undo_until
    desk.touch.changed = set()  # as when what came later was undone
    more = await control.undo(desk.database, receipt.id, reason="the rest", principal=BEN)
    assert more.state is State.UNDOING
    async with desk.running():
        row = await desk.ended(receipt)
    assert (row.state, row.undone, row.undo_until) == (State.UNDONE, 24, None)
    assert [n for n in (await desk.times()).values() if n != (1, 1)] == []
    assert (await control.undo(desk.database, receipt.id, reason="r", principal=ANN)) == row


async def test_undo_can_be_paused_cancelled_and_taken_up_again(desk: Bench) -> None:
    await desk.entities(30)
    receipt = await desk.done(await desk.plan())
    await control.undo(desk.database, receipt.id, reason="r", principal=ANN)
    await control.pause(desk.database, receipt.id, principal=ANN)
    async with desk.running():
        row = await desk.until(receipt, State.PAUSED)
    assert row.undone_by == "ann"
    row = await control.cancel(desk.database, receipt.id, principal=ANN)
    assert (row.state, row.undo_until) == (State.CANCELLED, receipt.undo_until)
    await control.undo(desk.database, receipt.id, reason="after all", principal=BEN)
    await control.pause(desk.database, receipt.id, principal=ANN)
    async with desk.running():
        await desk.until(receipt, State.PAUSED)
        resumed = await control.resume(desk.database, receipt.id, principal=ANN)
        assert resumed.state is State.UNDOING
        assert (await desk.ended(receipt)).state is State.UNDONE
    assert set((await desk.times()).values()) == {(1, 1)}


async def test_undo_has_an_end(desk: Bench) -> None:
    await desk.entities(1)
    receipt = await desk.done(await desk.plan())
    with pytest.raises(InvalidArgument, match="reason"):
        await control.undo(desk.database, receipt.id, reason=" ", principal=ANN)
    await desk.database.fetch("UPDATE everstate.operations SET undo_until = clock_timestamp()")
    with pytest.raises(Conflict, match="can no longer be undone"):
        await control.undo(desk.database, receipt.id, reason="r", principal=ANN)
    await control.set_policy(desk.database, "touch", Policy(undo_s=0), version=None, principal=ANN)
    never = await desk.done(await desk.plan())
    assert never.undo_until is None
    with pytest.raises(Conflict, match="touch cannot be undone"):
        await control.undo(desk.database, never.id, reason="r", principal=ANN)


async def test_one_item_that_cannot_be_done_fails_alone(desk: Bench) -> None:
    await desk.entities(25)
    desk.touch.broken = {"e013"}
    desk.touch.refused = {"e021"}
    receipt = await desk.done(await desk.plan())
    assert (receipt.state, receipt.done, receipt.failed) == (State.DONE, 23, 2)
    groups = await control.failures(desk.database, receipt.id)
    assert {(g.state, g.reason, g.count, g.examples) for g in groups} == {
        (ItemState.FAILED, "INTERNAL (ValueError)", 1, ("thing/e013",)),
        (ItemState.FAILED, "refused", 1, ("thing/e021",)),
    }
    failed = await control.list_items(desk.database, receipt.id, state=ItemState.FAILED)
    assert [item.entity_id for item in failed] == ["e013", "e021"]
    stored = await desk.database.fetch("SELECT o::text || i::text FROM everstate.operations o,"
                                       " everstate.operation_items i")  # fmt: skip
    assert not any("secret" in row[0] for row in stored)
    # Once more, when the reason is gone: only they are tried.
    desk.touch.broken = set()
    desk.touch.refused = {"e021"}
    row = await control.retry(desk.database, receipt.id, principal=BEN)
    assert (row.state, row.retrying) == (State.QUEUED, True)
    async with desk.running():
        row = await desk.ended(receipt)
    assert (row.state, row.done, row.failed, row.retrying) == (State.DONE, 24, 1, False)
    assert set((await desk.times()).values()) == {(1, 0)}
    desk.touch.refused = set()
    await control.retry(desk.database, receipt.id, principal=BEN)
    async with desk.running():
        row = await desk.ended(receipt)
    assert (row.done, row.failed, row.events) == (25, 0, 25)
    with pytest.raises(Conflict, match="nothing failed"):
        await control.retry(desk.database, receipt.id, principal=BEN)


async def test_when_one_after_another_fails_the_operation_has_failed(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from operations import entities

    monkeypatch.setattr(entities, "IN_A_ROW", 15)
    await desk.entities(40)
    desk.touch.refused = {f"e{n:03}" for n in range(5, 40)}
    receipt = await desk.done(await desk.plan())
    assert receipt.state is State.FAILED
    assert receipt.error is not None
    assert receipt.error["code"] == "ITEMS_FAILED"
    assert (receipt.done, receipt.failed, receipt.cursor) == (5, 15, 20)
    assert receipt.undo_until is not None
    desk.touch.refused = set()
    await control.retry(desk.database, receipt.id, principal=ANN)
    async with desk.running():
        row = await desk.ended(receipt)
    assert (row.state, row.done, row.failed, row.error) == (State.DONE, 40, 0, None)
    assert set((await desk.times()).values()) == {(1, 0)}


async def test_an_undo_that_cannot_be_done_has_failed_and_can_be_asked_for_again(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from operations import entities

    monkeypatch.setattr(entities, "IN_A_ROW", 3)
    await desk.entities(12)
    receipt = await desk.done(await desk.plan())

    async def broken(*_: object) -> list[Outcome]:
        raise ValueError("a secret of the payload")

    with monkeypatch.context() as patch:
        patch.setattr(desk.touch, "undo", broken)
        await control.undo(desk.database, receipt.id, reason="r", principal=ANN)
        async with desk.running():
            row = await desk.ended(receipt)
    assert (row.state, row.undone, row.undo_until) == (State.FAILED, 0, receipt.undo_until)
    assert row.error == {
        "code": "ITEMS_FAILED",
        "message": "3 items failed one after another, the last one: INTERNAL (ValueError)",
    }
    await control.undo(desk.database, receipt.id, reason="once more", principal=BEN)
    async with desk.running():
        row = await desk.ended(receipt)
    assert (row.state, row.undone, row.error) == (State.UNDONE, 12, None)
    assert set((await desk.times()).values()) == {(1, 1)}


@pytest.mark.parametrize("changed", [0, 2])
@pytest.mark.parametrize("way", ["retried", "resumed", "taken"])
async def test_what_stood_still_for_long_is_looked_at_again_before_it_goes_on(
    desk: Bench, changed: int, way: str
) -> None:
    """Of the ten items that are left some no longer qualify; what is done stays undoable."""
    await desk.entities(50)
    desk.touch.refused = {f"e{n:03}" for n in range(20, 30)}
    desk.touch.left_out = {f"e{n:03}" for n in range(30, 50)}  # by and by new ones, as it were
    row = await desk.done(await desk.plan())
    assert (row.state, row.done, row.failed) == (State.DONE, 20, 10)
    if way != "retried":  # as if the last ten had not been come to
        state = {"resumed": "paused", "taken": "running"}[way]
        await desk.database.fetch("UPDATE everstate.operation_items SET state = 0 WHERE state = 3")
        await desk.database.fetch(
            "UPDATE everstate.operations SET state = $1, cursor = 20, failed = 0", state
        )
    await desk.database.fetch(
        """UPDATE everstate.operations SET acted_at = acted_at - interval '1 hour',
        started_at = started_at - interval '1 hour'"""
    )
    desk.touch.refused = set()
    desk.touch.left_out = {f"e{n:03}" for n in [0, 1, 2, *range(20, 20 + changed)]}
    if way == "retried":
        await control.retry(desk.database, row.id, principal=BEN)
    elif way == "resumed":
        await control.resume(desk.database, row.id, principal=BEN)
    async with desk.running():
        row = await desk.ended(row)
    if not changed:
        assert (row.state, row.done) == (State.DONE, 30)
        return
    assert (row.state, row.done) == (State.REVIEW, 20)
    assert row.error is not None
    assert row.error["message"].startswith("20.0% of the items have changed")
    assert row.undo_until is not None
    with pytest.raises(Conflict):
        await control.retry(desk.database, row.id, principal=BEN)
    await control.undo(desk.database, row.id, reason="r", principal=BEN)
    async with desk.running():
        row = await desk.ended(row)
    assert (row.state, row.undone) == (State.UNDONE, 20)


async def test_what_may_come_back_is_waited_for(desk: Bench) -> None:
    await desk.entities(5)
    desk.touch.raises = [Unavailable("the disk is away")] * 3
    desk.touch.before_step = asyncio.Event()
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():

        async def says_so() -> bool:
            return (await desk.get(plan)).waits == "the disk is away"

        await eventually_async(says_so, "it says why it waits")
        desk.touch.before_step.set()
        receipt = await desk.ended(plan)
    assert (receipt.state, receipt.done, receipt.waits) == (State.DONE, 5, "")


async def test_others_wait_for_their_turn(desk: Bench) -> None:
    await desk.entities(2)
    desk.touch.before_step = asyncio.Event()
    plans = [await desk.plan() for _ in range(3)]
    for plan in plans:
        await desk.apply(plan)
    runner = desk.runner(at_once=2)
    async with desk.running(runner):
        for plan in plans[:2]:
            await desk.until(plan, State.RUNNING)
        assert (await desk.get(plans[2])).state is State.QUEUED
        assert runner.held == sorted(plan.id for plan in plans[:2])
        desk.touch.before_step.set()
        for plan in plans:
            assert (await desk.ended(plan)).state is State.DONE


async def test_a_worker_that_lost_its_lease_commits_nothing(desk: Bench) -> None:
    await desk.entities(10)
    desk.touch.before_step = asyncio.Event()
    plan = await desk.plan()
    await desk.apply(plan)
    runner = desk.runner()
    async with desk.running(runner):
        await in_step(desk)
        await desk.database.fetch(
            "UPDATE everstate.leases SET holder = 'another', epoch = epoch + 1"
            " WHERE kind = 'operation'"
        )
        desk.touch.before_step.set()

        async def left() -> bool:
            return runner.held == []

        await eventually_async(left, "the worker has left it")
        row = await desk.get(plan)
        assert (row.state, row.done) == (State.RUNNING, 0)
        assert await desk.times() == {}
        await desk.database.fetch(
            "UPDATE everstate.leases SET expires_at = clock_timestamp() WHERE kind = 'operation'"
        )
        assert (await desk.ended(plan)).done == 10
    assert set((await desk.times()).values()) == {(1, 0)}


async def test_at_a_stop_the_step_is_finished_and_another_worker_goes_on_at_once(
    desk: Bench,
) -> None:
    await desk.entities(30)
    desk.touch.before_step = asyncio.Event()
    plan = await desk.plan()
    await desk.apply(plan)
    runner = asyncio.create_task(desk.runner(term=60).run())
    await in_step(desk)
    runner.cancel()
    await asyncio.sleep(0)
    desk.touch.before_step.set()
    await asyncio.gather(runner, return_exceptions=True)
    row = await desk.get(plan)
    assert (row.state, row.done) == (State.RUNNING, 10)
    async with desk.running():
        assert (await desk.ended(plan, timeout=10)).done == 30
    assert set((await desk.times()).values()) == {(1, 0)}


async def test_a_rate_is_kept(desk: Bench) -> None:
    await desk.entities(12)
    plan = await desk.plan(rate=10.0)
    receipt = await desk.done(plan)
    assert receipt.started_at is not None
    assert receipt.finished_at is not None
    took = (receipt.finished_at - receipt.started_at).total_seconds()
    assert took >= 1.0, "12 items at 10 a second are a second and a bit"


# Tasks


async def test_a_task_is_watched_until_it_is_finished(desk: Bench) -> None:
    plan = await desk.plan("count", target="x")
    assert (plan.items, plan.target) == (1, "x")
    receipt = await desk.done(plan)
    assert (receipt.state, receipt.done, receipt.events) == (State.DONE, 3, 30)
    assert receipt.note == {"n": 3}
    items = await control.list_items(desk.database, plan.id)
    assert [item.state for item in items] == [ItemState.DONE]
    await control.undo(desk.database, plan.id, reason="r", principal=ANN)
    async with desk.running():
        undone = await desk.ended(plan)
    assert (undone.state, undone.undone) == (State.UNDONE, 3)
    assert [i.state for i in await control.list_items(desk.database, plan.id)] == [ItemState.UNDONE]


async def test_a_task_that_is_cancelled_is_told(desk: Bench) -> None:
    desk.count.go_on.clear()
    plan = await desk.plan("count", target="x")
    await desk.apply(plan)
    async with desk.running():

        async def waits() -> bool:
            return (await desk.get(plan)).waits == "projection x is 11 s behind"

        await eventually_async(waits, "it says why it waits")
        await control.cancel(desk.database, plan.id, principal=ANN)
        assert (await desk.ended(plan)).state is State.CANCELLED
    assert set(desk.count.cancelled) == {plan.id}


async def test_a_paused_task_that_is_cancelled_is_told_too(desk: Bench) -> None:
    desk.count.go_on.clear()
    plan = await desk.plan("count", target="x")
    await desk.apply(plan)
    async with desk.running():
        await desk.count.advanced.wait()
        await control.pause(desk.database, plan.id, principal=ANN)
        await desk.until(plan, State.PAUSED)
        await control.cancel(desk.database, plan.id, principal=ANN)
        assert (await desk.ended(plan)).state is State.CANCELLED
    assert set(desk.count.cancelled) == {plan.id}


async def test_a_task_that_cannot_stand_still_is_not_paused(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(desk.count), "pausable", False)
    desk.count.go_on.clear()
    plan = await desk.plan("count", target="x")
    await desk.apply(plan)
    async with desk.running():
        await desk.until(plan, State.RUNNING)
        with pytest.raises(Conflict, match="count cannot be paused"):
            await control.pause(desk.database, plan.id, principal=ANN)
        desk.count.go_on.set()
        await desk.ended(plan)


async def test_a_task_may_fail_for_good_or_have_changed(desk: Bench) -> None:
    desk.count.error = {"code": "HALTED", "message": "a segment halted"}
    receipt = await desk.done(await desk.plan("count", target="x"))
    assert (receipt.state, receipt.error) == (State.FAILED, desk.count.error)
    desk.count.error = None
    desk.count.drift = 1.0
    receipt = await desk.done(await desk.plan("count", target="x"))
    assert receipt.state is State.REVIEW
    desk.count.drift = 0.0
    desk.count.raises = [RuntimeError("a secret"), Unavailable("later")]
    receipt = await desk.done(await desk.plan("count", target="x"))
    assert (receipt.state, receipt.done) == (State.DONE, 3)
    desk.count.raises = [InvalidArgument("x", "is wrong")]
    receipt = await desk.done(await desk.plan("count", target="x"))
    assert (receipt.state, receipt.error) == (
        State.FAILED, {"code": "INVALID_ARGUMENT", "message": "x: is wrong"},
    )  # fmt: skip


# Progress and upkeep


async def test_progress_is_told_until_the_end(desk: Bench) -> None:
    await desk.entities(30)
    plan = await desk.plan()
    seen: list[OperationRow] = []

    first = asyncio.Event()

    async def look() -> None:
        async with aclosing(watch(desk.database, plan.id)) as rows:  # type: ignore[type-var]
            async for row in rows:
                seen.append(row)
                first.set()

    looking = asyncio.create_task(look())
    async with asyncio.timeout(5):
        await first.wait()
    await desk.done(plan)
    async with asyncio.timeout(5):
        await looking
    versions = [row.version for row in seen]
    assert versions == sorted(set(versions))
    assert (seen[0].state, seen[-1].state, seen[-1].done) == (State.PLANNED, State.DONE, 30)
    async with aclosing(watch(desk.database, plan.id, versions[-1])) as rows:  # type: ignore[type-var]
        assert [row async for row in rows] == []


async def test_upkeep_expires_plans_and_forgets_items_once_undo_is_past(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from operations import upkeep

    monkeypatch.setattr(upkeep, "PIECE", 7)
    await desk.entities(20)
    old, kept = await desk.plan(), await desk.done(await desk.plan())
    late = await desk.plan()
    await desk.database.fetch(
        "UPDATE everstate.operations SET expires_at = clock_timestamp() WHERE operation_id = $1",
        store.uuid_of(late.id),
    )
    await control.set_policy(desk.database, "touch", Policy(undo_s=0), version=None, principal=ANN)
    desk.touch.refused = {"e001"}
    past = await desk.done(await desk.plan())
    await Upkeep(desk.database, timedelta(seconds=0)).step()
    assert (await desk.get(old)).state is State.PLANNED
    assert (await desk.get(late)).state is State.EXPIRED
    assert (await desk.audit(late.id))[-1] == "OperationExpired"
    await Upkeep(desk.database, timedelta(seconds=0)).step()
    rows = await desk.database.fetch(
        "SELECT operation_id, count(*) FROM everstate.operation_items GROUP BY 1"
    )
    assert {f"op-{row[0]}": row[1] for row in rows} == {old.id: 20, kept.id: 20}
    row = await desk.get(past)
    assert (row.done, row.items_gone, row.state) == (19, True, State.DONE)
    with pytest.raises(Conflict, match="its items are no longer kept"):
        await control.retry(desk.database, past.id, principal=ANN)
    assert (await desk.get(kept)).items_gone is False


async def test_plans_that_nobody_applied_are_forgotten_in_the_end(desk: Bench) -> None:
    await desk.entities(3)
    unread, cancelled, applied, fresh = [await desk.plan() for _ in range(4)]
    await control.cancel(desk.database, cancelled.id, principal=ANN)
    receipt = await desk.done(applied)
    await desk.database.fetch(
        "UPDATE everstate.operations SET expires_at = clock_timestamp() WHERE operation_id = $1",
        store.uuid_of(unread.id),
    )
    upkeep = Upkeep(desk.database)
    await upkeep.step()
    assert (await desk.get(unread)).state is State.EXPIRED
    for span, there in (("2 hours", True), ("23 hours", False)):
        await desk.database.fetch(
            f"UPDATE everstate.operations SET finished_at = finished_at - interval '{span}'"
        )
        await upkeep.step()
        left = {row.id for row in await control.list_operations(desk.database)}
        assert left == {fresh.id, receipt.id} | ({unread.id, cancelled.id} if there else set())
    items = await desk.database.fetch("SELECT DISTINCT operation_id FROM everstate.operation_items")
    assert {f"op-{row[0]}" for row in items} == {fresh.id, receipt.id}


async def test_what_never_changes_is_read_once(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A selection may name 10,000 entities: neither a step nor a look reads it again."""
    await desk.entities(40)
    plan = await desk.plan(parameters={"a": 1})
    whole = await store.fetch(desk.database, plan.id)
    assert await store.fetch(desk.database, plan.id, whole) == whole
    stripped = replace(whole, selection={}, parameters={"mine": 1}, plan={})
    assert await store.fetch(desk.database, plan.id, stripped) == stripped
    await desk.apply(plan)
    lock, known = store.lock, list[bool]()

    async def locked(*args: Any) -> store.Locked:
        known.append(len(args) == 4 and args[3] is not None)
        return await lock(*args)

    monkeypatch.setattr(store, "lock", locked)
    async with desk.running():
        row = await desk.ended(plan)
    assert (row.done, row.selection, row.plan) == (40, whole.selection, whole.plan)
    assert len(known) >= 5
    assert all(known)
