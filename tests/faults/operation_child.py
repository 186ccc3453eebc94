"""A worker that kills itself: run by tests/faults/test_operations.py.

It reads lines ``MODE NUMBER URL OPERATION``, and for each forks a process that runs operations
(``run``; ``kinds``, ``snapshots``: those there are) or publishes audit events (``publish``) and
sends itself SIGKILL at the checkpoint of that number. What it says for each is the checkpoint's
name, or ``end`` when there were not so many.
The checkpoints are put around the engine's own functions here; production code knows none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import structlog

from journal.store import StoreJournal, StoreSettings
from kernel.database import Connection, Database, DatabaseSettings, transaction
from operations import execution, store
from operations.kinds import KINDS, groups
from operations.kinds.base import Environment
from operations.model import ENDED
from operations.publish import Publisher
from tests.engine_support import Bench, Touch, registered
from tests.folding import folding_of

TERM = 0.6
"""Seconds of a lease, so that the one who goes on does not wait long."""


class Checkpoints:
    """Counts them; at the one that was asked for, this process is gone."""

    def __init__(self, number: int) -> None:
        self._left = number

    def pass_(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            os.write(1, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, target: Any, name: str) -> None:
        """Has a checkpoint before and after a method."""
        method: Callable[..., Awaitable[Any]] = getattr(target, name)

        @functools.wraps(method)
        async def counted(*args: Any, **more: Any) -> Any:
            self.pass_(f"before {name}")
            result = await method(*args, **more)
            self.pass_(f"after {name}")
            return result

        setattr(target, name, counted)

    def in_transactions(self) -> None:
        """Has a checkpoint before and after every commit of a step."""

        @contextlib.asynccontextmanager
        async def counted(connection: Connection, seconds: float) -> AsyncIterator[None]:
            async with transaction(connection, seconds):
                yield
                self.pass_("before commit")
            self.pass_("after commit")

        execution.transaction = counted  # type: ignore[attr-defined]

    def in_tasks(self) -> None:
        """Has a checkpoint before and after what tasks commit themselves; all steps are small."""

        @contextlib.asynccontextmanager
        async def counted(connection: Connection, seconds: float) -> AsyncIterator[None]:
            async with transaction(connection, seconds):
                yield
                self.pass_("before its commit")
            self.pass_("after its commit")

        groups.transaction = counted  # type: ignore[attr-defined]
        groups.STEP_ITEMS = 5
        for kind in KINDS.values():
            if hasattr(kind, "step_items"):
                type(kind).step_items = 5  # type: ignore[misc, union-attr]


async def work(mode: str, number: int, url: str, operation_id: str) -> None:
    points = Checkpoints(number)
    database = await Database.open(DatabaseSettings(url))
    journal = StoreJournal(database, StoreSettings(node="child"))
    await journal.start()
    if mode in ("run", "kinds", "snapshots"):
        points.in_transactions()
        if mode == "kinds":
            points.in_tasks()
        if mode == "snapshots":
            points.around(type(KINDS["snapshot"]), "prepare")
        else:
            points.around(execution.Execution, "rest")
        if mode == "run":
            points.around(Touch, "prepare")
            points.around(Touch, "apply")
            points.around(Touch, "undo")
        bench = Bench(database, journal, environment=Environment(folding_of()))
        bench.touch.step_items = 5  # type: ignore[misc]
        with registered(bench.touch):
            runner = bench.runner(term=TERM)
            running = asyncio.create_task(runner.run())
            while (await store.fetch(database, operation_id)).state not in ENDED:
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    else:
        points.around(StoreJournal, "append")
        points.around(Publisher, "_may")
        points.around(Publisher, "_count")
        publisher = Publisher(database, journal, term=timedelta(seconds=TERM))
        while await database.fetch("SELECT FROM everstate.audit_outbox LIMIT 1"):
            await publisher.step()
    os.write(1, b"end\n")


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    for line in sys.stdin:
        mode, number, url, operation_id = line.split()
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(asyncio.wait_for(work(mode, int(number), url, operation_id), 30))
            except BaseException as error:  # noqa: BLE001 - the test shows it
                os.write(1, f"error {error!r}\n".encode())
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
