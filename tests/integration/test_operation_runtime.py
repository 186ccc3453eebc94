"""The runner beside others: what waits for what, wishes while it rests, a slow database, locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel.database import Connection, Database
from kernel.errors import DeadlineExceeded, InvalidArgument
from operations import control, execution, store
from operations.kinds import KINDS
from operations.kinds.base import Advance, Context, Environment
from operations.kinds.snapshot import Snapshot
from operations.model import Item, OperationRow, Outcome, State
from operations.pace import Pace
from tests.engine_support import ANN, Bench, Count, Touch, bench, registered
from tests.support import eventually_async


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> AsyncIterator[Bench]:
    async with bench(database, store) as made:
        yield made


async def waits(desk: Bench, row: OperationRow, reason: str) -> None:
    async def said() -> bool:
        return reason in (await desk.get(row)).waits

    await eventually_async(said, f"{row.id} waits for {reason!r}")


async def stuck_tasks(desk: Bench) -> list[OperationRow]:
    desk.count.go_on.clear()
    tasks = [await desk.plan("count", target=f"t{n}") for n in range(3)]
    for task in tasks:
        await desk.apply(task)
    return tasks


async def test_tasks_that_wait_keep_no_operation_on_entities_from_starting(desk: Bench) -> None:
    await desk.entities(3)
    tasks = await stuck_tasks(desk)
    async with desk.running(desk.runner(at_once=1)):
        for task in tasks:
            await desk.until(task, State.RUNNING)
        plan = await desk.plan()
        await desk.apply(plan)
        assert (await desk.ended(plan)).state is State.DONE
        desk.count.go_on.set()
        for task in tasks:
            assert (await desk.ended(task)).state is State.DONE


async def test_what_waits_for_other_operations_says_so_and_holds_do_not(desk: Bench) -> None:
    await desk.entities(3)
    desk.touch.before_step = asyncio.Event()
    first, second = await desk.plan(), await desk.plan()
    await desk.apply(first)
    async with desk.running(desk.runner(at_once=1)):
        await asyncio.wait_for(desk.touch.in_step.wait(), 10)
        await desk.apply(second)
        await waits(desk, second, "other operations")
        hold = await desk.plan("hold", parameters={"label": "case_1"})
        await desk.apply(hold)
        assert (await desk.ended(hold)).done == 3
        desk.touch.before_step.set()
        assert (await desk.ended(second)).waits == ""


async def test_a_projection_that_is_behind_stops_no_hold(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def behind(_: Pace) -> str:
        return "projection x is 12 s behind"

    monkeypatch.setattr(Pace, "lag", behind)
    await desk.entities(3)
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():
        await waits(desk, plan, "12 s behind")
        hold = await desk.plan("hold", parameters={"label": "case_1"})
        await desk.apply(hold)
        assert (await desk.ended(hold)).done == 3
        await control.undo(desk.database, hold.id, reason="r", principal=ANN)
        assert (await desk.ended(hold)).state is State.UNDONE
        assert (await desk.get(plan)).done == 0


class Sealed(Touch):
    """Takes the log's row last; what goes over its connection afterwards is kept."""

    name = "sealed"

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.after: list[str] = []
        self.frozen = 1
        self.inside: dict[str, Any] = {}

    async def seal(
        self,
        connection: Connection,
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        context: Context,
    ) -> None:
        assert context.operation is not None
        row = await connection.fetchrow(
            "SELECT (SELECT cursor FROM everstate.operations WHERE operation_id = $1),"
            " (SELECT count(*) FROM everstate.operation_items"
            "  WHERE operation_id = $1 AND state <> 0) AS settled",
            store.uuid_of(context.operation.id),
        )  # fmt: skip
        self.inside = {"cursor": row[0], "settled": row[1]}
        await connection.execute("SELECT FROM everstate.logs WHERE log_id = 1 FOR UPDATE")
        if self.frozen:
            self.frozen -= 1
            # This process says nothing more, until somebody else has the row.
            async with self.database.connection() as other, other.transaction():
                await other.execute("SET LOCAL lock_timeout = '8s'")
                await other.execute("SELECT FROM everstate.logs WHERE log_id = 1 FOR UPDATE")
        connection.add_query_logger(lambda said: self.after.append(said.query))


async def test_what_appends_wait_for_comes_last_and_a_frozen_worker_does_not_hold_it(
    desk: Bench,
) -> None:
    await desk.entities(5)
    sealed = Sealed(desk.database)
    with registered(sealed):
        receipt = await desk.done(await desk.plan("sealed"))
    assert (receipt.state, receipt.done, receipt.failed) == (State.DONE, 5, 0)
    assert set((await desk.times()).values()) == {(1, 0)}
    assert sealed.inside == {"cursor": 5, "settled": 5}
    assert sealed.after[0] == "COMMIT;"


async def test_a_spell_of_a_slow_database_fails_nothing(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(execution, "_FIRST_PAUSE_S", 0.01)
    await desk.entities(30)
    desk.touch.raises = [DeadlineExceeded("slow") for _ in range(8)] + [TimeoutError()]
    desk.count.raises = [DeadlineExceeded("slow") for _ in range(8)] + [TimeoutError()]
    task = await desk.plan("count", target="t")
    await desk.apply(task)
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():
        receipt = await desk.ended(plan)
        assert (await desk.ended(task)).state is State.DONE
    assert (receipt.state, receipt.done, receipt.failed) == (State.DONE, 30, 0)


async def test_one_item_that_always_takes_too_long_fails_alone(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_LONGEST_PAUSE_S", 0.01)
    await desk.entities(5)
    act = desk.touch.apply

    async def apply(
        connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        if any(item.entity_id == "e002" for item in items):
            raise DeadlineExceeded("slow")
        return await act(connection, items, prepared, context)

    monkeypatch.setattr(desk.touch, "apply", apply)
    receipt = await desk.done(await desk.plan())
    assert (receipt.state, receipt.done, receipt.failed) == (State.DONE, 4, 1)


async def test_a_cancel_is_heard_while_it_rests_between_slow_steps(desk: Bench) -> None:
    await desk.entities(3)
    plan = await desk.plan(rate=0.01)  # 100 seconds an item
    await desk.apply(plan)
    async with desk.running():

        async def one_done() -> bool:
            return (await desk.get(plan)).done == 1

        await eventually_async(one_done, "the first item is done")
        await control.cancel(desk.database, plan.id, principal=ANN)
        receipt = await desk.ended(plan, timeout=5)
    assert (receipt.state, receipt.done) == (State.CANCELLED, 1)
    with pytest.raises(InvalidArgument, match="rate"):
        await desk.plan(rate=0.001)


async def test_a_cancel_is_heard_while_a_step_is_prepared(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.entities(3)
    preparing = asyncio.Event()

    async def prepare(items: Sequence[Item], context: Context) -> Any:
        preparing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(desk.touch, "prepare", prepare)
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():
        await asyncio.wait_for(preparing.wait(), 10)
        await control.cancel(desk.database, plan.id, principal=ANN)
        receipt = await desk.ended(plan, timeout=5)
    assert (receipt.state, receipt.done) == (State.CANCELLED, 0)


@pytest.mark.parametrize("wish", ["cancel", "pause"])
async def test_the_undo_of_a_task_can_be_left(
    desk: Bench, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    monkeypatch.setattr(Count, "pausable", False)
    receipt = await desk.done(await desk.plan("count", target="t"))
    back = desk.count.undo
    tried = asyncio.Event()

    async def undo(operation: OperationRow, context: Context) -> Advance:
        tried.set()
        return Advance(finished=False, waits="a build that is behind")

    monkeypatch.setattr(desk.count, "undo", undo)
    await control.undo(desk.database, receipt.id, reason="r", principal=ANN)
    async with desk.running():
        await asyncio.wait_for(tried.wait(), 10)
        await getattr(control, wish)(desk.database, receipt.id, principal=ANN)
        await desk.until(receipt, State.CANCELLED if wish == "cancel" else State.PAUSED)
        assert desk.count.cancelled == []
        monkeypatch.setattr(desk.count, "undo", back)
        if wish == "cancel":
            await control.undo(desk.database, receipt.id, reason="r", principal=ANN)
        else:
            await control.resume(desk.database, receipt.id, principal=ANN)
        assert (await desk.ended(receipt)).state is State.UNDONE


async def test_an_operation_is_left_to_a_worker_that_can_do_it(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def able(environment: Environment, operation: OperationRow) -> str:
        return "" if environment.folds else "a worker that has folds"

    monkeypatch.setattr(desk.touch, "able", able, raising=False)
    await desk.entities(3)
    plan = await desk.plan()
    await desk.apply(plan)
    async with desk.running():
        await waits(desk, plan, "a worker that has folds")
        assert (await desk.get(plan)).state is State.QUEUED
        desk.environment = Environment(folds=object())
        async with desk.running(desk.runner()):
            receipt = await desk.ended(plan)
    assert (receipt.state, receipt.waits) == (State.DONE, "")


class Folds:
    """Has the fold of a cart."""

    def get(self, entity_type: str) -> object | None:
        return object() if entity_type == "cart" else None


async def test_snapshots_are_for_workers_that_have_the_folds(desk: Bench) -> None:
    await desk.entities(1)
    kind, has, row = Snapshot(), Environment(folds=Folds()), await desk.plan()

    def of(*types: str, **more: Any) -> OperationRow:
        return replace(row, selection={**row.selection, "types": list(types)}, **more)

    assert kind.able(Environment(), of("cart")) == "a worker that has folds"
    assert kind.able(has, of("cart")) == "" == kind.able(has, of())
    assert kind.able(has, of("cart", "thing")) == "a worker that has the fold of 'thing'"
    assert kind.able(has, of("cart", "thing", plan={"excluded": {"no_fold": 1}})) == ""
    assert kind.able(Environment(), of("cart", state=State.UNDOING)) == ""


async def test_kinds_that_nobody_knows_do_not_keep_others_from_being_found(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.runner._PAGE", 2)
    await desk.entities(1)
    strange = Touch()
    strange.name = "strange"  # type: ignore[misc]
    with registered(strange):
        unknown = [await desk.plan("strange") for _ in range(5)]
        for row in unknown:
            await desk.apply(row)
    assert "strange" not in KINDS
    receipt = await desk.done(await desk.plan())
    assert receipt.state is State.DONE
