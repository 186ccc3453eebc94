"""Invariant 10 under SIGKILL: a worker is killed at every checkpoint of an operation, another one
goes on: the receipt is the same, each item was acted on once, the audit has each event once.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from journal.model import SYSTEM_LOG, LoadQuery
from journal.store import StoreJournal
from kernel.database import Database
from operations import control
from operations.model import OperationRow, Policy, State
from operations.publish import Publisher
from tests.engine_support import ANN, BEN, Bench, bench
from tests.support import ROOT, clean_env, eventually_async

ITEMS = 12
MOST = 80
"""More checkpoints than there are: the loop must have ended before."""


class Killer:
    """The process that forks workers which kill themselves."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from tests.faults.operation_child import main; main()"],
            cwd=ROOT, env=clean_env(PYTHONPATH=ROOT), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    async def kill_at(self, mode: str, number: int, row: OperationRow) -> str:
        """Runs a worker that dies at a checkpoint; its name, or "end"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{mode} {number} {self._url} {row.id}\n")
        said = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), 40)
        assert said.strip()
        assert not said.startswith("error"), said
        return said.strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def killer(database_url: str) -> Iterator[Killer]:
    made = Killer(database_url)
    yield made
    made.close()


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> AsyncIterator[Bench]:
    async with bench(database, store) as made:
        await made.entities(ITEMS)
        yield made


async def published(desk: Bench, row: OperationRow) -> list[str]:
    """Types of the events of an operation in `_system`, once the outbox is empty."""
    publisher = Publisher(desk.database, desk.journal, term=timedelta(seconds=1))

    async def empty() -> bool:
        await publisher.step()
        return not await desk.database.fetch("SELECT FROM everstate.audit_outbox LIMIT 1")

    await eventually_async(empty, "the outbox is empty")
    await publisher.close()
    query = LoadQuery("operation", row.id)
    return [
        event.type async for part in desk.journal.load(SYSTEM_LOG, query) for event in part.events
    ]


def receipt(row: OperationRow) -> tuple[object, ...]:
    """What a receipt says, but for ids and times."""
    return (
        row.state, row.wish, row.items, row.cursor, row.done, row.skipped, row.failed, row.undone,
        row.events, row.bytes, row.waits, row.error, row.applied_by, row.reason, row.undone_by,
    )  # fmt: skip


async def fresh(desk: Bench) -> OperationRow:
    """A plan that was applied, and tables of before."""
    await desk.database.fetch("TRUNCATE acted, acted_order")
    plan = await desk.plan()
    await desk.apply(plan)
    return plan


@pytest.mark.timeout(240)
async def test_invariant_10_a_worker_killed_at_any_checkpoint_changes_nothing_of_the_receipt(
    desk: Bench, killer: Killer
) -> None:
    plan = await fresh(desk)
    async with desk.running():
        expected = receipt(await desk.ended(plan))
    met: set[str] = set()
    for number in range(1, MOST):
        plan = await fresh(desk)
        name = await killer.kill_at("run", number, plan)
        async with desk.running():
            row = await desk.ended(plan)
        assert receipt(row) == expected, (number, name)
        assert await desk.times() == {f"e{n:03}": (1, 0) for n in range(ITEMS)}, (number, name)
        assert await published(desk, plan) == [
            "OperationPlanned", "OperationApplied", "OperationStarted", "OperationDone",
        ], (number, name)  # fmt: skip
        if name == "end":
            break
        met.add(name)
    assert name == "end"
    assert met == {
        "before commit", "after commit", "before prepare", "after prepare", "before apply",
        "after apply", "before rest", "after rest",
    }  # fmt: skip


@pytest.mark.timeout(240)
async def test_a_worker_killed_at_any_checkpoint_of_an_undo_changes_nothing_of_it(
    desk: Bench, killer: Killer
) -> None:
    expected: tuple[object, ...] = ()
    met: set[str] = set()
    for number in range(MOST):
        plan = await fresh(desk)
        async with desk.running():
            await desk.ended(plan)
        await control.undo(desk.database, plan.id, reason="a mistake", principal=BEN)
        name = await killer.kill_at("run", number, plan) if number else ""
        async with desk.running():
            row = await desk.ended(plan)
        expected = expected or receipt(row)
        assert (row.state, row.undone) == (State.UNDONE, ITEMS)
        assert receipt(row) == expected, (number, name)
        assert await desk.times() == {f"e{n:03}": (1, 1) for n in range(ITEMS)}, (number, name)
        done, undone = await desk.order("done"), await desk.order("undone")
        assert undone == done[::-1]
        assert (await published(desk, plan))[-2:] == ["OperationUndoApplied", "OperationUndone"]
        if name == "end":
            break
        met.add(name)
    assert name == "end"
    assert {"before commit", "after commit", "before undo", "after undo"} <= met


@pytest.mark.timeout(240)
async def test_a_publisher_killed_at_any_checkpoint_doubles_and_loses_nothing(
    desk: Bench, killer: Killer
) -> None:
    met: set[str] = set()
    for number in range(1, MOST):
        plan = await fresh(desk)
        await control.pause(desk.database, plan.id, principal=ANN)
        await control.resume(desk.database, plan.id, principal=BEN)
        await control.cancel(desk.database, plan.id, principal=ANN)
        name = await killer.kill_at("publish", number, plan)
        assert await published(desk, plan) == [
            "OperationPlanned", "OperationApplied", "OperationPaused", "OperationResumed",
            "OperationCancelled",
        ], (number, name)  # fmt: skip
        if name == "end":
            break
        met.add(name)
    assert name == "end"
    assert {"before append", "after append", "before _count"} <= met
    assert Policy() == (await control.get_policy(desk.database, "touch")).policy
