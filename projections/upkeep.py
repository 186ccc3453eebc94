"""What workers do about builds and replays, beside applying events: make, switch, retire, drop.

Every worker does it, every second. Nothing is claimed and nothing is remembered: what is due stands
in the tables, each step is one transaction that first looks again (`projections.rebuild`), and of
two workers that try the same, one finds it done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import orjson
import structlog

from journal.rows import Names
from kernel import telemetry
from kernel.database import Database
from kernel.errors import ConfigurationError, Conflict, EverstateError
from projections import builds, replay, sqlfile, store
from projections.model import Definition, lease_name
from projections.rebuild import GRACE, Rebuilds
from projections.segment import SegmentRunner

log = structlog.get_logger(__name__)

EVERY = timedelta(seconds=1)
LONGEST_PAUSE = timedelta(seconds=30)
"""A step that cannot be done is tried again after a second, then ever later, up to this. A switch
behind a long reader stops the live build each time it tries.
"""


class Upkeep:
    """The upkeep of one worker, in a task of its own: a switch waits for segments of its worker.

    ``definition``: the code that the worker has of a name and version. ``grace``: how long a build
    that was live is kept up to date for a rollback.
    """

    def __init__(
        self,
        database: Database,
        definition: Callable[[str, int], Definition | None],
        grace: timedelta = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._database = database
        self._code = definition
        self._grace = grace
        self._rebuilds = Rebuilds(database)
        self._shown: set[tuple[str, str]] = set()
        self._said: dict[tuple[str, int, int, str], str] = {}
        self._later: dict[tuple[str, int, int, str], tuple[float, float]] = {}  # from when, pause

    async def run(self, every: timedelta = EVERY) -> None:
        """Does what is due again and again, until it is cancelled."""
        while True:
            try:
                await self.step()
            except EverstateError as error:
                log.warning("builds cannot be looked after", reason=error.message)
            except Exception:
                log.exception("upkeep of builds failed")
            await asyncio.sleep(every.total_seconds() * random.uniform(0.8, 1.2))  # noqa: S311

    async def step(self) -> None:
        """Does what is due. What cannot be done now is tried again at the next step.

        Raises:
            Unavailable, DeadlineExceeded: the database does not serve.

        """
        for name, version, build in await self._rebuilds.note_ready():
            log.info("build ready", projection=name, version=version, build=build)
        due = [
            (row["name"], row["version"], row["build"], row["what"])
            for row in await self._rebuilds.due(self._grace)
        ]
        for gone in self._later.keys() - set(due):
            del self._later[gone]
        for about in due:
            await self._do(about)
        for row in await replay.finish(self._database):
            log.info("replay ended", replay=str(row[0]), projection=row[1], state=row[2])
        await self._show_progress()

    async def _do(self, about: tuple[str, int, int, str]) -> None:
        name, version, build, what = about
        key = (version, build)
        after, pause = self._later.get(about, (0.0, 0.0))
        if self._clock() < after:
            return
        try:
            done = await self._step(name, key, what)
        except EverstateError as error:
            pause = min(max(2 * pause, EVERY.total_seconds()), LONGEST_PAUSE.total_seconds())
            self._later[about] = (self._clock() + pause, pause)
            # A lock that was not free, a build that is behind: later. Said once.
            if self._said.get(about) != error.message:
                log.warning(
                    "build waits", projection=name, version=key[0], build=key[1], step=what,
                    code=error.code, reason=error.message,
                )  # fmt: skip
            self._said[about] = error.message
            return
        self._said.pop(about, None)
        self._later.pop(about, None)
        if done:
            log.info("build changed", projection=name, version=key[0], build=key[1], step=what)

    async def _step(self, name: str, key: tuple[int, int], what: str) -> bool:
        if what == "make":
            return await self._make(name, key)
        if what == "switch":
            await self._rebuilds.switch(name, key)
            return True
        if what == "retire":
            return await self._rebuilds.retire(name, key)
        return await self._rebuilds.drop(name, key)

    async def _make(self, name: str, key: tuple[int, int]) -> bool:
        """Makes the tables of a build that was ordered, when this worker has its code."""
        definition = await self._definition(name, key[0])
        if definition is None:
            return False
        database, schema = self._database, self._database.schema
        try:
            async with (
                database.connection(60, writing=True) as connection,
                connection.transaction(),
            ):
                place = await builds.lock_registrations(connection, schema)
                order = await store.run(connection, "rebuild_ordered", schema, name, *key)
                if order is None:
                    return False
                await builds.make(
                    connection, schema, place, definition, key[1], "building", order["head"]
                )
                await store.run(
                    connection, "rebuild_auto", schema, name, *key, order["auto_switch"],
                    order["operation_id"],
                )  # fmt: skip
        except (ConfigurationError, Conflict) as error:
            told = orjson.dumps({"code": error.code, "message": error.message}).decode()
            await database.fetchrow(
                store.statement("rebuild_failed", schema), name, *key, told, timeout=10
            )
            raise
        return True

    async def _definition(self, name: str, version: int) -> Definition | None:
        found = self._code(name, version)
        if found is None:
            # SQL-only versions are kept whole, so that any worker can run them.
            source = await store.source_of(self._database, name, version)
            if source:
                found = sqlfile.parse(source, f"{name} version {version}")
        return found

    async def _show_progress(self) -> None:
        rows: list[Any] = await self._database.fetch(
            store.statement("rebuild_progress", self._database.schema), timeout=10
        )
        shown: set[tuple[str, str]] = set()
        for row in rows:
            labels = (row["name"], str(row["version"]))
            shown.add(labels)
            part = row["position"] / row["target_position"] if row["target_position"] else 1.0
            telemetry.rebuild_progress.labels(*labels).set(min(part, 1.0))
        for labels in self._shown - shown:
            telemetry.rebuild_progress.remove(*labels)
        self._shown = shown


class Replaying:
    """Gives the replays that run to the runners of a worker's segments; `step` is a duty of it.

    ``runners``: those that the worker has, by the names of their leases.
    """

    def __init__(
        self,
        database: Database,
        source: replay.Source,
        names: Names,
        runners: Callable[[], Mapping[str, SegmentRunner]],
    ) -> None:
        self._database = database
        self._source = source
        self._names = names
        self._runners = runners
        self._turn = asyncio.Lock()

    async def step(self) -> None:
        """Looks for replays. Raises as `Upkeep.step`."""
        runners = self._runners()
        if not runners:
            return
        held = [runner.view.key for runner in runners.values()]
        for task in await replay.tasks(self._database, held):
            name = lease_name(task.name, task.version, task.build, task.segment)
            runner = runners.get(name)
            if runner is not None and (runner.between is None or runner.between.ended):
                view = runner.view
                runner.between = replay.SegmentReplay(
                    self._database, self._source, self._names, runner.definition, runner.applier,
                    log=view.log, slices=(view.first_slice, view.last_slice), task=task,
                    turn=self._turn,
                )  # fmt: skip
