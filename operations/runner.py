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
from operations.kinds import PROMPT, is_task, kind_named
from operations.kinds.base import Environment, Picky
from operations.throttle import DEFAULTS, Limits

log = structlog.get_logger(__name__)

LEASE: Final = "operation"
_PAGE: Final = 100
_PAGES: Final = 10
"""Pages of a look; the next one goes on there."""


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """``at_once``: operations on entities that run here at the same time; others wait. Those that
    are short (`PROMPT`) have as many places of their own, and ``tasks`` is for those that only
    watch what other rooms do. ``term``: within this a
    killed worker is replaced. ``look``: how often it looks for work. ``drain``: how long steps may
    finish at a stop. ``limits``: see `operations.throttle`.
    """

    at_once: int = 2
    tasks: int = 32
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
    place: str


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
        self._left: dict[str, str] = {}
        self._after = ""

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
        left = self._left
        self._left = {}
        for _ in range(_PAGES):
            page = await store.due(self._leases_database, _PAGE, self._after)
            for due in page:
                reason = await self._take(due) if due.id not in self._held else ""
                if not reason:
                    continue
                # Another worker may take it: only what is left twice in a row is said to wait.
                self._left[due.id] = reason
                if left.get(due.id) == reason:
                    await store.show_waiting(self._leases_database, due.id, reason)
            if len(page) < _PAGE:
                self._after = ""
                return
            self._after = page[-1].id

    async def _take(self, due: store.Due) -> str:
        """Takes an operation, when it can; else what it waits for, where that is known."""
        try:
            kind = kind_named(due.kind)
        except InvalidArgument as error:
            if due.id not in self._unknown:
                self._unknown.add(due.id)
                log.warning("operation waits for a worker that knows its kind",
                            operation=due.id, reason=error.message)  # fmt: skip
            return "a worker that knows its kind"
        place = "tasks" if is_task(kind) else "prompt" if due.kind in PROMPT else "entities"
        places = self.settings.tasks if place == "tasks" else self.settings.at_once
        if sum(held.place == place for held in self._held.values()) >= places:
            return "other operations, which run first"
        if isinstance(kind, Picky):
            row = await store.fetch(self._leases_database, due.id)
            if lacking := kind.able(self._around.environment, row):
                return lacking
        lease = await self._leases.acquire(str(store.uuid_of(due.id)))
        if lease is None:
            return ""
        execution = execution_of(self._around, due.id, due.kind)
        log.info("operation taken", operation=due.id, kind=due.kind, epoch=lease.epoch)
        task = asyncio.create_task(execution.run(lease))
        self._held[due.id] = _Held(lease, execution, task, place)
        telemetry.operations_running.set(len(self._held))
        return ""

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
