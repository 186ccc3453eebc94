"""Operations: plan, apply, run, stop, undo; with kinds of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial

import pytest

from journal.model import Append, EntityAppend, NewEvent
from journal.store import StoreJournal, StoreSettings
from kernel import clock
from kernel.database import Database, DatabaseSettings
from kernel.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    TooLarge,
    Unavailable,
)
from operations import control, planner, store
from operations.kinds.base import Candidate, Context
from operations.model import Excluded, ItemState, Planned, Policy, Selection, State
from tests.engine_support import ANN, BEN, Bench, bench
from tests.support import eventually_async


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> AsyncIterator[Bench]:
    async with bench(database, store) as made:
        yield made


@pytest.fixture
async def any_desk(any_database_url: str) -> AsyncIterator[Bench]:
    """On PostgreSQL 18 and 15."""
    database = await Database.open(DatabaseSettings(any_database_url))
    journal = StoreJournal(database, StoreSettings(node="test"))
    await journal.start()
    async with bench(database, journal) as made:
        yield made
    await journal.close()
    await database.close()


async def test_a_plan_changes_nothing_and_its_items_are_what_is_acted_on(any_desk: Bench) -> None:
    desk = any_desk
    await desk.entities(25, events=2)
    desk.touch.left_out = {"e003"}
    plan = await desk.plan()
    assert (plan.state, plan.items, plan.plan["excluded"]) == (State.PLANNED, 24, {"held": 1})
    assert plan.id.startswith("op-")
    assert (plan.planned_by, plan.log, plan.version) == ("ann", "default", 1)
    assert await desk.times() == {}
    await desk.entities(30)  # newer entities are not in the plan
    desk.touch.left_out = set()
    await control.set_policy(
        desk.database, "touch", Policy(max_drift=1.0), version=None, principal=ANN
    )
    receipt = await desk.done(plan)
    assert (receipt.state, receipt.done, receipt.cursor) == (State.DONE, 24, 24)
    assert (receipt.events, receipt.bytes) == (48, 240)
    assert await desk.times() == {f"e{n:03}": (1, 0) for n in range(25) if n != 3}
    assert receipt.undo_until is not None
    items = await control.list_items(desk.database, plan.id, limit=5, after=2)
    assert [(i.no, i.entity_type, i.entity_id, i.state) for i in items] == [
        (no, "thing", f"e{n:03}", ItemState.DONE)
        for no, n in ((3, 2), (4, 4), (5, 5), (6, 6), (7, 7))
    ]
    assert await desk.audit(plan.id) == [
        "OperationPlanned", "OperationApplied", "OperationStarted", "OperationDone",
    ]  # fmt: skip


async def test_a_plan_that_fails_half_way_leaves_nothing(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.entities(12)
    monkeypatch.setattr(planner, "BATCH", 5)
    monkeypatch.setattr(control, "MAX_ITEMS", 9)
    with pytest.raises(TooLarge, match=r"items: 10 items, the limit is 9"):
        await desk.plan()
    for table in ("operations", "operation_items", "audit_outbox"):
        assert await desk.database.fetch(f"SELECT FROM everstate.{table}") == []
    monkeypatch.setattr(control, "MAX_ITEMS", 12)
    assert (await desk.plan()).items == 12


async def test_a_plan_that_finds_little_for_long_is_not_ended_by_the_database(
    desk: Bench, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.entities(4)
    impatient = await Database.open(
        DatabaseSettings(database_url, idle_transaction_timeout=timedelta(milliseconds=300))
    )
    judge = desk.touch.judge

    async def slowly(page: Sequence[Candidate], context: Context) -> Sequence[Planned | Excluded]:
        await asyncio.sleep(1)
        return await judge(page, context)

    monkeypatch.setattr(desk.touch, "judge", slowly)
    monkeypatch.setattr(control, "_SIGN_OF_LIFE_S", 0.05)
    desk.database = impatient
    assert (await desk.plan()).items == 4
    monkeypatch.setattr(control, "_SIGN_OF_LIFE_S", 5)
    with pytest.raises(Unavailable):
        await desk.plan()
    await impatient.close()


async def test_a_plan_that_takes_too_long_is_given_up_and_leaves_nothing(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.entities(1)

    async def for_ever(page: Sequence[Candidate], context: Context) -> Sequence[Planned | Excluded]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(control, "_PLAN_S", 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(desk.touch, "judge", for_ever)
        for _ in range(3):  # each leaves its place to the next one
            with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s: narrow the selection"):
                await desk.plan()
    assert await control.list_operations(desk.database) == []
    monkeypatch.setattr(control, "_PLAN_S", 30)
    assert (await desk.plan()).items == 1


@pytest.mark.parametrize(
    ("kind", "typed"),
    [("soft-delete", True), ("undelete", True), ("release", True),
     ("compact", True), ("snapshot-prune", True), ("hold", False), ("touch", False)],
)  # fmt: skip
async def test_what_takes_every_entity_of_a_log_has_to_be_typed(
    desk: Bench, kind: str, typed: bool
) -> None:
    await desk.entities(1)
    plan = await desk.plan(kind, selection=Selection())
    assert plan.plan["typed"] == ("default" if typed else "")
    if typed:
        with pytest.raises(InvalidArgument, match="typed: type 'default'"):
            await desk.apply(plan)
        assert (await desk.apply(plan, typed="default")).applied_by == "ann"
    for narrow in (Selection(types=("thing",)), Selection(where="events>0")):
        assert (await desk.plan(kind, selection=narrow)).plan["typed"] == ""


async def test_ages_count_by_the_clock_of_the_database_from_the_plan_on(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that plans, and the one that looks for drift, may have any clock."""
    await desk.entities(5)
    monkeypatch.setattr(clock, "now_us", lambda: 4_000_000_000_000_000)
    plan = await desk.plan(selection=Selection(where="last:>1d"))
    assert plan.items == 5, "they are younger than a day"
    assert abs((plan.expires_at - plan.planned_at).total_seconds() - 900) < 30
    assert (await desk.done(plan)).state is State.DONE


async def test_what_is_asked_for_is_checked(desk: Bench) -> None:
    with pytest.raises(InvalidArgument, match="kind: 'nothing' is not one of"):
        await desk.plan("nothing")
    with pytest.raises(InvalidArgument, match="rate: 0 is not from"):
        await desk.plan(rate=0.0)
    for bad in ("", "op-1", "0190b6c5-0000-7000-8000-000000000000", "op-" + "0" * 36):
        with pytest.raises(InvalidArgument, match="is not op- and a UUID"):
            await control.get(desk.database, bad)
    with pytest.raises(NotFound, match="there is no operation op-"):
        await control.get(desk.database, "op-0190b6c5-0000-7000-8000-000000000000")
    with pytest.raises(InvalidArgument, match="limit: 0 is not from 1 to 1000"):
        await control.list_operations(desk.database, limit=0)
    with pytest.raises(InvalidArgument, match="before"):
        await control.list_operations(desk.database, before="x")
    await desk.entities(1)
    plan = await desk.plan()
    for reason in ("", "  ", "x" * 1001):
        with pytest.raises(InvalidArgument, match="reason"):
            await desk.apply(plan, reason=reason)
    assert (await desk.get(plan)).state is State.PLANNED


@pytest.mark.parametrize("kind", ["touch", "tombstone", "compact", "hold", "count"])
async def test_the_log_of_the_audit_cannot_be_selected(desk: Bench, kind: str) -> None:
    target = "x" if kind == "count" else ""
    with pytest.raises(InvalidArgument, match="log: _system is written by Everstate itself"):
        await desk.plan(kind, selection=Selection("_system"), target=target)
    assert await control.list_operations(desk.database) == []


async def test_operations_are_listed_newest_first_in_pages(desk: Bench) -> None:
    await desk.entities(1)
    made = [await desk.plan() for _ in range(4)]
    made.append(await desk.plan("count", target="x"))
    ids = [row.id for row in reversed(made)]
    first = await control.list_operations(desk.database, limit=2)
    assert [row.id for row in first] == ids[:2]
    rest = await control.list_operations(desk.database, before=first[-1].id)
    assert [row.id for row in rest] == ids[2:]
    assert [r.id for r in await control.list_operations(desk.database, kind="count")] == ids[:1]
    await desk.apply(made[0])
    queued = await control.list_operations(desk.database, states=[State.QUEUED])
    assert [row.id for row in queued] == [made[0].id]


async def test_applied_twice_it_acts_once_invariant_10(desk: Bench) -> None:
    await desk.entities(30)
    plan = await desk.plan()
    first, second = await asyncio.gather(desk.apply(plan), desk.apply(plan))
    assert {first.state, second.state} == {State.QUEUED}
    assert first.applied_at == second.applied_at
    async with desk.running(), desk.running():
        assert (await desk.ended(plan)).done == 30
        again = await desk.apply(plan)
    assert (again.state, again.done) == (State.DONE, 30)
    assert set((await desk.times()).values()) == {(1, 0)}


async def test_another_digest_is_refused(desk: Bench) -> None:
    await desk.entities(1)
    plan = await desk.plan()
    with pytest.raises(Conflict, match="another digest"):
        await control.apply(desk.database, plan.id, digest="0" * 64, reason="r", principal=ANN)
    assert (await desk.get(plan)).state is State.PLANNED


async def test_a_plan_that_was_not_applied_in_time_acts_never(desk: Bench) -> None:
    await desk.entities(1)
    plan = await desk.plan()
    await desk.database.fetch("UPDATE everstate.operations SET expires_at = clock_timestamp()")
    for _ in range(2):
        with pytest.raises(Conflict, match="has expired"):
            await desk.apply(plan)
    assert (await desk.get(plan)).state is State.EXPIRED
    again = await control.replan(desk.database, desk.journal, desk.environment, plan.id, BEN)
    assert (again.planned_by, again.items) == ("ben", 1)
    assert again.id != plan.id
    assert again.digest == plan.digest


@pytest.mark.parametrize("changed", [1, 2])
async def test_a_stale_plan_acts_never_invariant_10(desk: Bench, changed: int) -> None:
    """More than the policy's share has changed between plan and start."""
    await desk.entities(20)
    plan = await desk.plan()
    for n in range(changed):
        desk.touch.left_out.add(f"e{n:03}")
    receipt = await desk.done(plan)
    if changed == 1:  # 5 %: within the bound
        assert receipt.state is State.DONE
        return
    assert receipt.state is State.REVIEW
    assert receipt.error == {
        "code": "DRIFT",
        "message": "10.0% of the items have changed since the plan; the policy allows 5.0%",
    }
    assert await desk.times() == {}
    with pytest.raises(Conflict, match="plan anew"):
        await desk.apply(plan)


async def test_an_empty_plan_is_done_at_once(desk: Bench) -> None:
    await desk.entities(2)
    desk.touch.left_out = {"e000", "e001"}
    receipt = await desk.apply(await desk.plan())
    assert (receipt.state, receipt.done, receipt.items) == (State.DONE, 0, 0)
    assert receipt.finished_at is not None
    with pytest.raises(Conflict):
        await control.undo(desk.database, receipt.id, reason="r", principal=ANN)


async def test_a_plan_promises_no_undo_that_policy_gives_no_time_for(desk: Bench) -> None:
    await desk.entities(1)
    plan = await desk.plan()
    assert (plan.plan["undoable"], plan.plan["undo_seconds"]) == (True, Policy().undo_s)
    await control.set_policy(desk.database, "touch", Policy(undo_s=0), version=0, principal=ANN)
    plan = await desk.plan()
    assert (plan.plan["undoable"], plan.plan["undo_seconds"]) == (False, 0)
    assert plan.plan["warnings"] == [
        "It cannot be undone: the policy of touch gives no time for that."
    ]


async def test_a_second_person_is_another_one(desk: Bench) -> None:
    await desk.entities(3)
    await control.set_policy(
        desk.database, "touch", Policy(second_person=True), version=0, principal=ANN
    )
    plan = await desk.plan()
    assert (await desk.apply(plan)).state is State.AWAITING
    assert (await desk.apply(plan)).state is State.AWAITING  # as after a lost reply
    queued = await desk.apply(plan, BEN)
    assert (queued.state, queued.applied_by, queued.seconded_by) == (State.QUEUED, "ann", "ben")
    assert (await desk.apply(plan)).state is State.QUEUED
    assert await desk.audit(plan.id) == [
        "OperationPlanned", "OperationApplied", "OperationSeconded",
    ]  # fmt: skip


async def test_of_two_persons_at_once_exactly_one_queues_it(desk: Bench) -> None:
    await desk.entities(1)
    await control.set_policy(
        desk.database, "touch", Policy(second_person=True), version=0, principal=ANN
    )
    for _ in range(10):
        plan = await desk.plan()
        found = await asyncio.gather(
            *(desk.apply(plan, by) for by in (ANN, BEN, ANN, BEN)), return_exceptions=True
        )
        row = await desk.get(plan)
        assert row.state is State.QUEUED
        assert {row.applied_by, row.seconded_by} == {"ann", "ben"}
        assert all(not isinstance(f, Exception) or isinstance(f, Conflict) for f in found)
        types = await desk.audit(plan.id)
        assert types == ["OperationPlanned", "OperationApplied", "OperationSeconded"]


async def waits_for_a_row(desk: Bench) -> bool:
    rows = await desk.database.fetch(
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    return len(rows) > 0


async def test_a_second_person_demanded_while_somebody_applies_is_asked_for(desk: Bench) -> None:
    await desk.entities(1)
    plan = await desk.plan()
    async with desk.database.connection(writing=True) as holding, holding.transaction():
        await store.lock(holding, desk.database.schema, plan.id)
        waiting = asyncio.create_task(desk.apply(plan))
        await eventually_async(partial(waits_for_a_row, desk), "it waits for the row")
        await control.set_policy(
            desk.database, "touch", Policy(second_person=True), version=None, principal=BEN
        )
    assert (await waiting).state is State.AWAITING


@pytest.mark.parametrize(
    ("kind", "opposite"),
    [("hold", "release"), ("release", "hold"), ("soft-delete", "undelete"),
     ("undelete", "soft-delete")],
)  # fmt: skip
async def test_undo_needs_the_second_person_that_its_opposite_needs(
    desk: Bench, kind: str, opposite: str
) -> None:
    await desk.entities(1)
    if kind in ("release", "undelete"):
        await desk.done(await desk.plan(opposite))
    receipt = await desk.done(await desk.plan(kind))
    assert receipt.done == 1
    await control.set_policy(
        desk.database, opposite, Policy(second_person=True), version=None, principal=ANN
    )
    for by in (ANN, BEN):
        with pytest.raises(Conflict, match=f"plan a '{opposite}' instead, which a second person"):
            await control.undo(desk.database, receipt.id, reason="r", principal=by)
    assert (await desk.get(receipt)).state is State.DONE


async def test_who_applied_what_needs_two_persons_does_not_undo_it(desk: Bench) -> None:
    await desk.entities(3)
    await control.set_policy(
        desk.database, "touch", Policy(second_person=True), version=None, principal=ANN
    )
    plan = await desk.plan()
    await desk.apply(plan)
    await desk.apply(plan, BEN)
    async with desk.running():
        receipt = await desk.ended(plan)
    with pytest.raises(Conflict, match="'ann' applied it, so another one has to undo it"):
        await control.undo(desk.database, receipt.id, reason="r", principal=ANN)
    undoing = await control.undo(desk.database, receipt.id, reason="r", principal=BEN)
    assert undoing.state is State.UNDOING


async def test_the_time_of_a_change_is_that_after_its_wait_for_the_row(desk: Bench) -> None:
    """A plan that expires while somebody waits for its row has expired."""
    await desk.entities(1)
    plan = await desk.plan()
    async with desk.database.connection(writing=True) as holding, holding.transaction():
        await store.lock(holding, desk.database.schema, plan.id)
        await holding.execute(
            "UPDATE everstate.operations SET expires_at = clock_timestamp() + interval '3 s'"
        )
    async with desk.database.connection(writing=True) as holding:
        change = holding.transaction()
        await change.start()
        await store.lock(holding, desk.database.schema, plan.id)
        waiting = asyncio.create_task(desk.apply(plan))

        async def waits() -> bool:
            rows = await desk.database.fetch(
                "SELECT clock_timestamp() < o.expires_at FROM pg_stat_activity a,"
                " everstate.operations o WHERE a.wait_event_type = 'Lock'"
                " AND a.datname = current_database()"
            )
            assert all(row[0] for row in rows), "it waits since before the end of the plan"
            return len(rows) > 0

        async def expired() -> bool:
            rows = await desk.database.fetch(
                "SELECT FROM everstate.operations WHERE expires_at < clock_timestamp()"
            )
            return len(rows) > 0

        await eventually_async(waits, "it waits for the row")
        await eventually_async(expired, "the plan has expired")
        await change.commit()
    with pytest.raises(Conflict, match="has expired"):
        await waiting


async def test_what_the_policy_wants_typed_is_typed(desk: Bench) -> None:
    await desk.entities(1)
    await control.set_policy(
        desk.database, "touch", Policy(typed=True), version=None, principal=ANN
    )
    plan = await desk.plan()
    assert plan.plan["typed"] == "thing"
    for typed in ("", "Thing"):
        with pytest.raises(InvalidArgument, match="typed: type 'thing'"):
            await desk.apply(plan, typed=typed)
    assert (await desk.apply(plan, typed="thing")).state is State.QUEUED
    several = await desk.plan(selection=Selection())
    assert several.plan["typed"] == "default"


async def test_policies_have_versions_and_limits(any_desk: Bench) -> None:
    database = any_desk.database
    found = await control.get_policy(database, "touch")
    assert (found.policy, found.version) == (Policy(), 0)
    strict = Policy(second_person=True, expires_s=60, max_drift=0.0, undo_s=0, typed=True)
    first = await control.set_policy(database, "touch", strict, version=0, principal=ANN)
    assert (first.policy, first.version, first.updated_by) == (strict, 1, "ann")
    for wrong in (0, 2):
        with pytest.raises(Conflict, match="the policy of touch has changed"):
            await control.set_policy(database, "touch", Policy(), version=wrong, principal=ANN)
    assert (await control.get_policy(database, "touch")).policy == strict
    await control.set_policy(database, "touch", Policy(), version=1, principal=BEN)
    last = await control.set_policy(database, "touch", strict, version=None, principal=BEN)
    assert (last.version, last.updated_by) == (3, "ben")
    names = [row.kind for row in await control.list_policies(database)]
    assert names == sorted(names)
    assert {"touch", "count"} <= set(names)
    with pytest.raises(InvalidArgument, match="expires_s: 29 is not from 30"):
        await control.set_policy(
            database, "touch", Policy(expires_s=29), version=None, principal=ANN
        )
    with pytest.raises(InvalidArgument, match="max_drift"):
        await control.set_policy(
            database, "touch", Policy(max_drift=float("nan")), version=None, principal=ANN
        )
    with pytest.raises(InvalidArgument, match="undo_s"):
        await control.set_policy(database, "touch", Policy(undo_s=-1), version=None, principal=ANN)
    with pytest.raises(InvalidArgument, match="kind"):
        await control.set_policy(database, "x", Policy(), version=None, principal=ANN)
    assert await any_desk.audit("touch") == ["PolicySet"] * 3


@pytest.mark.parametrize(
    ("before", "kind"), [((), "hold"), (("hold",), "release"), (("soft-delete",), "undelete")]
)
async def test_entities_that_came_since_the_plan_keep_nobody_from_being_protected(
    desk: Bench, before: tuple[str, ...], kind: str
) -> None:
    """A type that grows: what was reviewed is held, the new ones are not, and it is done."""
    await desk.entities(4)
    for earlier in before:
        await desk.done(await desk.plan(earlier))
    plan = await desk.plan(kind)
    await desk.journal.append(
        "default", Append((EntityAppend("thing", "new"),), (NewEvent("Happened", b"{}"),))
    )
    new = Selection(entities=(("thing", "new"),))
    for earlier in before:
        await desk.done(await desk.plan(earlier, selection=new))
    receipt = await desk.done(plan)
    assert (receipt.state, receipt.done, receipt.items) == (State.DONE, 4, 4)
    assert (await desk.plan(kind)).items == 1, "the new one is left alone"
