"""Runs operations that were applied: each under a lease, so that one worker at a time has it.

A worker that dies loses its leases after their term, and another one goes on where the last commit
was. At a stop the steps under way are finished and the leases given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from journal.store import StoreJournal
from kernel import telemetry
from kernel.database import Database
from kernel.errors import EverstateError, InvalidArgument
from kernel.ids import new_id
from kernel.leases import TERM, Lease, Leases
from operations import store
from operations.execution import Execution, Surroundings, execution_of
from operations.kinds.base import Environment
from operations.throttle import DEFAULTS, Limits

log = structlog.get_logger(__name__)

LEASE: Final = "operation"


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """``at_once``: operations that run here at the same time; others wait. ``term``: within this a
    killed worker is replaced. ``look``: how often it looks for work. ``drain``: how long steps may
    finish at a stop. ``limits``: see `operations.throttle`.
    """

    at_once: int = 2
    term: timedelta = TERM
    look: timedelta = timedelta(milliseconds=500)
    drain: timedelta = timedelta(seconds=10)
    limits: Limits = field(default=DEFAULTS)


@dataclass(slots=True)
class _Held:
    """An operation that this worker has."""

    lease: Lease
    execution: Execution
    task: asyncio.Task[None]


class Runner:
    """Takes operations that are to go on and runs them, until `run` is cancelled.

    ``leases`` has connections of its own for looking and for leases, so that slow steps, which may
    take all of ``database``, cost no lease.
    """

    def __init__(
        self,
        database: Database,
        journal: StoreJournal,
        environment: Environment,
        settings: RunnerSettings | None = None,
        *,
        leases: Database | None = None,
        name: str = "",
    ) -> None:
        self.settings = settings or RunnerSettings()
        self._leases_database = leases or database
        self.holder = f"{name or 'runner'}/{new_id()}"
        self._leases = Leases(self._leases_database, LEASE, self.holder, self.settings.term)
        self._around = Surroundings(database, journal, environment, self.settings.limits)
        self._held: dict[str, _Held] = {}
        self._unknown: set[str] = set()

    @property
    def held(self) -> list[str]:
        """The operations that run here."""
        return sorted(self._held)

    async def run(self) -> None:
        """Runs operations until it is cancelled; then it finishes the steps under way."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._looking())
                group.create_task(self._renewing())
        finally:
            await asyncio.shield(self._drain())

    async def _looking(self) -> None:
        while True:
            try:
                await self._look()
            except EverstateError as error:
                log.warning("operations cannot be looked for", reason=error.message)
            except Exception:
                log.exception("looking for operations failed")
            await asyncio.sleep(self.settings.look.total_seconds() * random.uniform(0.8, 1.2))  # noqa: S311

    async def _look(self) -> None:
        for operation_id, held in list(self._held.items()):
            if held.task.done():
                del self._held[operation_id]
                await self._give_back(held)
        free = self.settings.at_once - len(self._held)
        if free <= 0:
            return
        # More than are free: others may be faster, and some are of kinds that are unknown here.
        for due in await store.due(self._leases_database, free + 50):
            if len(self._held) >= self.settings.at_once:
                return
            if due.id not in self._held:
                await self._take(due)

    async def _take(self, due: store.Due) -> None:
        try:
            execution = execution_of(self._around, due.id, due.kind)
        except InvalidArgument as error:
            if due.id not in self._unknown:
                self._unknown.add(due.id)
                log.warning("operation waits for a worker that knows its kind",
                            operation=due.id, reason=error.message)  # fmt: skip
            return
        lease = await self._leases.acquire(str(store.uuid_of(due.id)))
        if lease is None:
            return
        log.info("operation taken", operation=due.id, kind=due.kind, epoch=lease.epoch)
        task = asyncio.create_task(execution.run(lease))
        self._held[due.id] = _Held(lease, execution, task)
        telemetry.operations_running.set(len(self._held))

    async def _renewing(self) -> None:
        pause = self.settings.term.total_seconds() / 3
        while True:
            await asyncio.sleep(pause)
            held = dict(self._held)
            try:
                kept = await self._leases.renew(
                    [each.lease for each in held.values()], timeout=max(pause, 1)
                )
            except EverstateError as error:
                log.warning("leases of operations cannot be renewed", reason=error.message)
                continue
            for operation_id, each in held.items():
                if each.lease.name not in kept and not each.task.done():
                    log.info("operation went to another worker", operation=operation_id)
                    each.task.cancel()

    async def _give_back(self, held: _Held) -> None:
        telemetry.operations_running.set(len(self._held))
        if not held.task.cancelled() and held.task.exception() is not None:
            log.error("operation stopped here", operation=held.execution.operation_id,
                      error=type(held.task.exception()).__name__)  # fmt: skip
        with contextlib.suppress(EverstateError):
            await self._leases.release(held.lease, timeout=2)

    async def _drain(self) -> None:
        leaving = list(self._held.values())
        self._held.clear()
        for held in leaving:
            held.execution.stop()
        if leaving:
            _, late = await asyncio.wait(
                [held.task for held in leaving], timeout=self.settings.drain.total_seconds()
            )
            for task in late:
                task.cancel()
            await asyncio.gather(*(held.task for held in leaving), return_exceptions=True)
        for held in leaving:
            await self._give_back(held)
