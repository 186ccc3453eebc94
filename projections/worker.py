"""A worker: takes its fair share of the segments by leases, and runs them.

Every worker announces the versions whose code it has. It takes segments while no other worker
that could run them has fewer, and gives some to one that has clearly fewer. What nobody takes for
a while is taken by whoever can. A worker that dies is replaced when its leases run out; they are
made to run out a little earlier than the term, so that others have it within the term.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from journal.rows import Names
from kernel import clock, telemetry
from kernel.database import Database
from kernel.errors import ConfigurationError, EverstateError
from kernel.ids import new_id
from kernel.leases import Lease, Leases
from projections import control, sqlfile, store
from projections.execute import Applier
from projections.model import Definition
from projections.segment import Feed, SegmentRunner, Surroundings, described, show_waiting
from projections.store import Runnable
from schemas.descriptors import Decoder

log = structlog.get_logger(__name__)

SEGMENT, WORKER = "segment", "worker"
Key = tuple[str, int, str]
"""Name, version, digest: what code it is."""
Duty = Callable[[], Awaitable[object]]

_FORGOTTEN = timedelta(hours=1)
_MADE_AGAIN_SECONDS = 5.0
"""After this a projection whose ``__init__`` failed is made once more."""
_ADVANCE_SECONDS, _ADVANCES = 0.25, 50
"""How often a segment without events moves its checkpoint; and how many may do so in a second."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """``lease``: within this a killed worker is replaced. ``look``: how often a worker looks for
    work (None: a tenth of the lease, at most a second). ``measure``: how often lag is measured.
    """

    lease: timedelta = timedelta(seconds=10)
    look: timedelta | None = None
    measure: timedelta = timedelta(seconds=5)
    drain: timedelta = timedelta(seconds=10)

    @property
    def look_seconds(self) -> float:
        """Seconds between two looks."""
        if self.look is not None:
            return self.look.total_seconds()
        return min(1.0, self.lease.total_seconds() / 10)

    @property
    def term(self) -> timedelta:
        """The term of the leases that are written: others see them run out, and look, in time."""
        return max(self.lease - timedelta(seconds=2 * self.look_seconds), self.lease / 2)


@dataclass(slots=True)
class _Held:
    """A segment that this worker has."""

    runner: SegmentRunner
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Sight:
    """What a look found: segments this worker can run, who holds them, who else could."""

    wanted: dict[str, tuple[Runnable, Definition]] = field(default_factory=dict)
    held_by: dict[str, str] = field(default_factory=dict)
    able: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    load: Counter[str] = field(default_factory=Counter)

    def others(self, name: str, me: str) -> set[str]:
        """The other workers that could run a segment."""
        return self.able[self.wanted[name][0][:2]] - {me}


class Worker:
    """Runs projections until it is closed.

    ``duties`` are called at every look, one after another: upkeep that any worker may do. They
    must be safe to run in several workers at once, and quick. ``leases`` has connections for
    looking and for leases, so that slow batches, which may take all of ``database``, cost no lease.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        names: Names,
        decoder: Decoder,
        definitions: Iterable[Definition],
        settings: WorkerSettings | None = None,
        *,
        name: str = "",
        duties: Sequence[Duty] = (),
        leases: Database | None = None,
    ) -> None:
        self.settings = settings or WorkerSettings()
        self.holder = f"{name or 'worker'}/{new_id()}"
        self.duties: list[Duty] = list(duties)
        self._database = leases or database
        # Reads of the log take connections too: a batch never waits long for one.
        slots = asyncio.Semaphore(max(database.settings.max_connections - 3, 1))
        self._around = Surroundings(database, feed, names, decoder, name or self.holder, slots)
        self._definitions: dict[Key, Definition] = {
            (d.name, d.version, d.digest): d for d in definitions
        }
        self._unknown: set[Key] = set()
        self._segments = Leases(self._database, SEGMENT, self.holder, self.settings.term)
        self._announcements = Leases(self._database, WORKER, self.holder, self.settings.term)
        self._announced: dict[tuple[str, int], Lease] = {}
        self._held: dict[str, _Held] = {}
        self._free_since: dict[str, float] = {}
        self._made_again: dict[str, float] = {}
        self._shown: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def held(self) -> Sequence[str]:
        """Names of the leases of the segments it has."""
        return sorted(self._held)

    @property
    def runners(self) -> Mapping[str, SegmentRunner]:
        """The runners of its segments, by the name of their lease."""
        return {name: held.runner for name, held in self._held.items()}

    def definition(self, name: str, version: int) -> Definition | None:
        """The code of a version, if this worker has it."""
        for (known, number, _), definition in self._definitions.items():
            if (known, number) == (name, version):
                return definition
        return None

    async def start(self) -> None:
        """Looks once, then goes on in the background."""
        with contextlib.suppress(EverstateError):
            await self._look()
        for work in (self._looking(), self._renewing(), self._measuring()):
            self._tasks.append(asyncio.create_task(work))

    async def close(self) -> None:
        """Finishes the batches under way and gives the leases back: others go on at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._let_go(list(self._held))
        for lease in self._announced.values():
            with contextlib.suppress(EverstateError):
                await self._announcements.release(lease, timeout=2)
        self._announced.clear()

    # Looking

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(self.settings.look_seconds * random.uniform(0.9, 1.1))  # noqa: S311
            try:
                await self._look()
                for duty in self.duties:
                    await duty()
            except EverstateError as error:
                log.warning("worker cannot look for work", reason=error.message)
            except Exception:
                log.exception("worker failed to look for work")

    async def _look(self) -> None:
        """Compares what there is to do with what it has, and takes or gives back."""
        sight = await self._see()
        for name, held in list(self._held.items()):
            if held.task.done():
                self._ended(name, held)
            elif name in sight.wanted:
                held.runner.view = sight.wanted[name][0]
        await self._let_go([name for name in self._held if name not in sight.wanted])
        surplus = self._surplus(sight)
        await self._let_go(surplus)
        if not surplus:
            await self._take(sight)
        self._around.advance_seconds = max(_ADVANCE_SECONDS, len(self._held) / _ADVANCES)

    async def _see(self) -> _Sight:
        sight = _Sight()
        for row in await store.runnable(self._database):
            definition = await self._definition_of(row)
            if definition is not None:
                sight.wanted[row.key.lease_name] = row, definition
        await self._announce({(row.name, row.version) for row, _ in sight.wanted.values()})
        for view in await self._announcements.list():
            if view.held:
                name, version, _ = view.name.split("/", 2)
                sight.able[name, int(version)].add(view.holder)
        sight.held_by = {v.name: v.holder for v in await self._segments.list() if v.held}
        sight.load = Counter(sight.held_by.values())
        sight.load[self.holder] = len(self._held)
        return sight

    async def _definition_of(self, row: Runnable) -> Definition | None:
        """The code of a segment. A version that is SQL only needs none of the user's files."""
        key = (row.name, row.version, row.digest)
        found = self._definitions.get(key)
        if found is None and row.kind == "sql" and key not in self._unknown:
            text = await store.source_of(self._database, row.name, row.version)
            try:
                found = self._definitions[key] = sqlfile.parse(text, f"{row.name}, as registered")
            except ConfigurationError as error:
                # Registered by a release that allowed it. Other versions must not stand still too.
                self._unknown.add(key)
                log.warning(
                    "a registered version is refused: it stands still here",
                    projection=row.name, version=row.version, reason=error.message,
                )  # fmt: skip
        if found is None and key not in self._unknown:
            self._unknown.add(key)
            log.warning(
                "no code for a registered version: it stands still here",
                projection=row.name, version=row.version,
            )  # fmt: skip
        return found

    async def _announce(self, versions: set[tuple[str, int]]) -> None:
        for version in versions - self._announced.keys():
            lease = await self._announcements.acquire(f"{version[0]}/{version[1]}/{self.holder}")
            if lease is not None:
                self._announced[version] = lease
        for version in self._announced.keys() - versions:
            await self._announcements.release(self._announced.pop(version))

    def _surplus(self, sight: _Sight) -> list[str]:
        """Segments that a worker with clearly less could run: it is to have them."""
        surplus: list[str] = []
        load = sight.load
        for name in sorted(self._held, key=lambda n: -len(sight.others(n, self.holder))):
            poorest = min(
                sight.others(name, self.holder), key=lambda worker: load[worker], default=None
            )
            if poorest is not None and load[poorest] + 1 < load[self.holder]:
                surplus.append(name)
                load[poorest] += 1
                load[self.holder] -= 1
        return surplus

    async def _take(self, sight: _Sight) -> None:
        """Takes free segments: as many as surely fall to this worker, then those for which no other
        has less to do, then those that nobody else took for a while.
        """
        now = asyncio.get_running_loop().time()
        mine, load = self.holder, sight.load
        sure = math.floor(
            sum(1 / (len(sight.others(name, mine)) + 1) for name in sight.wanted) + 1e-9
        )
        free = [n for n in sight.wanted if n not in self._held and n not in sight.held_by]
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        random.shuffle(free)
        free.sort(key=lambda name: len(sight.others(name, mine)))
        patience = self.settings.term.total_seconds() / 2
        for name in free:
            least = min((load[worker] for worker in sight.others(name, mine)), default=0)
            falls_to_me = load[mine] < sure or load[mine] <= least or not sight.others(name, mine)
            if not falls_to_me and now - self._free_since[name] < patience:
                continue
            row, definition = sight.wanted[name]
            applier = await self._applier(name, row, definition)
            if applier is None:
                continue
            lease = await self._segments.acquire(name)
            if lease is None:
                continue
            runner = SegmentRunner(self._around, definition, applier, row, lease)
            task = asyncio.create_task(self._run(runner))
            self._held[name] = _Held(runner, task)
            load[mine] += 1
            log.info(
                "segment taken", projection=row.name, version=row.version, build=row.build,
                segment=row.segment, epoch=lease.epoch,
            )  # fmt: skip

    async def _applier(self, name: str, row: Runnable, definition: Definition) -> Applier | None:
        """What applies a segment's events. The user's ``__init__`` runs here: one that fails keeps
        this segment waiting, with the reason beside it, and no other.
        """
        now = asyncio.get_running_loop().time()
        if now < self._made_again.get(name, now):
            return None
        try:
            made = Applier(definition, self._around.names, self._around.decoder)
        except Exception as error:  # noqa: BLE001 - the user's
            if name not in self._made_again:
                log.warning("projection cannot be made", segment=name, error=type(error).__name__)
            self._made_again[name] = now + _MADE_AGAIN_SECONDS
            await show_waiting(
                self._database, row.key, described(error, definition, self._around.worker)
            )
            return None
        self._made_again.pop(name, None)
        return made

    async def _run(self, runner: SegmentRunner) -> None:
        try:
            await runner.run()
        except Exception:
            # Ours: the next look takes the segment again.
            log.exception("segment failed", segment=runner.lease.name)

    def _ended(self, name: str, held: _Held) -> None:
        del self._held[name]
        self._let(held.runner.lease)

    def _let(self, lease: Lease) -> None:
        async def release() -> None:
            with contextlib.suppress(EverstateError):
                await self._segments.release(lease, timeout=2)

        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(release()))

    async def _let_go(self, names: Sequence[str]) -> None:
        """Stops runners after their batch, then gives their leases back."""
        leaving = [self._held.pop(name) for name in names]
        if not leaving:
            return
        for held in leaving:
            held.runner.stop()
        _, late = await asyncio.wait(
            [held.task for held in leaving], timeout=self.settings.drain.total_seconds()
        )
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for held in leaving:
            with contextlib.suppress(EverstateError):
                await self._segments.release(held.runner.lease, timeout=2)

    # Keeping

    async def _renewing(self) -> None:
        pause = self.settings.term.total_seconds() / 3
        while True:
            await asyncio.sleep(pause)
            try:
                # First, so that nobody waits for a worker whose segments have run out.
                announced = list(self._announced.values())
                known = await self._announcements.renew(announced, timeout=pause)
                for version, lease in list(self._announced.items()):
                    if lease in announced and lease.name not in known:
                        del self._announced[version]
                mine = {name: held.runner.lease for name, held in self._held.items()}
                kept = await self._segments.renew(list(mine.values()), timeout=pause)
                for name in mine.keys() - kept:
                    held = self._held.pop(name, None)
                    if held is not None:
                        held.task.cancel()
                        log.warning("lease lost", segment=name)
            except EverstateError as error:
                log.warning("leases cannot be renewed", reason=error.message)

    async def _measuring(self) -> None:
        while True:
            try:
                await self.measure()
                await self._database.fetchrow(
                    store.statement("forget_workers", self._database.schema),
                    clock.now() - _FORGOTTEN, timeout=5,
                )  # fmt: skip
            except EverstateError as error:
                log.debug("lag cannot be measured", reason=error.message)
            await asyncio.sleep(self.settings.measure.total_seconds())

    async def measure(self) -> None:
        """Sets the gauges of the versions that this worker works on."""
        mine = Counter((h.runner.view.name, h.runner.view.version) for h in self._held.values())
        shown: set[tuple[str, str]] = set()
        for name in sorted({name for name, _ in mine}):
            for row in await control.list_builds(self._database, name):
                if (row.name, row.version) not in mine or row.state in ("retired", "failed"):
                    continue
                labels = (row.name, str(row.version))
                if labels in shown:
                    continue  # the newest build counts
                shown.add(labels)
                telemetry.projection_lag_events.labels(*labels).set(row.lag_events)
                telemetry.projection_lag_bytes.labels(*labels).set(row.lag_bytes)
                telemetry.projection_lag_seconds.labels(*labels).set(row.lag_seconds)
                telemetry.projection_parked.labels(*labels).set(row.parked)
                telemetry.projection_halted.labels(*labels).set(row.halted)
                telemetry.projection_leases.labels(*labels).set(mine[row.name, row.version])
        for labels in self._shown - shown:
            for gauge in (
                telemetry.projection_lag_events, telemetry.projection_lag_bytes,
                telemetry.projection_lag_seconds, telemetry.projection_parked,
                telemetry.projection_halted, telemetry.projection_leases,
            ):  # fmt: skip
                with contextlib.suppress(KeyError):
                    gauge.remove(*labels)
        self._shown = shown
