"""Operations in real workers: wired, killed, stopped; and parts that fail leave others alone."""

from __future__ import annotations

import asyncio

import pytest

from everstate import operating
from journal.model import SYSTEM_LOG, LoadQuery
from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import InternalError
from operations import control
from operations.model import OperationRow, Selection, State
from tests.engine_support import ANN, Bench
from tests.support import Worker, eventually_async

ENTITIES = 60


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> Bench:
    made = Bench(database, store)
    await made.entities(ENTITIES)
    return made


async def audit(desk: Bench, row: OperationRow) -> list[str]:
    query = LoadQuery("operation", row.id)
    return [
        event.type async for part in desk.journal.load(SYSTEM_LOG, query) for event in part.events
    ]


@pytest.mark.timeout(120)
async def test_a_killed_worker_is_replaced_and_a_stopped_one_gives_its_work_back(
    desk: Bench, database_url: str
) -> None:
    plan = await desk.plan(
        "hold", parameters={"label": "case"}, rate=20.0,
        selection=Selection(types=("thing",)),
    )  # fmt: skip
    await desk.apply(plan)

    def worker(lease: str) -> Worker:
        return Worker(database_url, {"EVERSTATE_LEASE_SECONDS": lease})

    async def beyond(done: int) -> None:
        async def there() -> bool:
            return (await desk.get(plan)).done > done

        await eventually_async(there, f"more than {done} are done", 30)

    with worker("1") as first:
        await beyond(0)
        first.kill()
    killed = await desk.get(plan)
    assert killed.state is State.RUNNING
    with worker("60") as second:
        await beyond(killed.done)
        second.stop()
    stopped = await desk.get(plan)
    assert stopped.state is State.RUNNING
    with worker("60"):  # the lease of a minute was given back
        receipt = await desk.ended(plan, timeout=30)
        assert (receipt.state, receipt.done, receipt.failed) == (State.DONE, ENTITIES, 0)
        rows = await desk.database.fetch("SELECT label, count(*) FROM everstate.holds GROUP BY 1")
        assert [tuple(row) for row in rows] == [("case", ENTITIES)]
        await control.undo(desk.database, plan.id, reason="settled", principal=ANN)
        undone = await desk.ended(plan, timeout=30)
        assert (undone.state, undone.undone) == (State.UNDONE, ENTITIES)

        async def published() -> bool:
            return (await audit(desk, plan))[-1:] == ["OperationUndone"]

        await eventually_async(published, "the audit is in _system")
    assert await audit(desk, plan) == [
        "OperationPlanned", "OperationApplied", "OperationStarted", "OperationDone",
        "OperationUndoApplied", "OperationUndone",
    ]  # fmt: skip
    assert await desk.database.fetch("SELECT FROM everstate.holds") == []


async def test_a_part_that_fails_is_begun_again_and_ends_when_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operating, "_FIRST_PAUSE_S", 0.01)
    begun = 0
    third = asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise InternalError
        third.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(operating.supervised("test", work))
    async with asyncio.timeout(5):
        await third.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert begun == 3
