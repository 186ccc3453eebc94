"""Snapshots of many entities: those with few events are read and folded together.

Each is the fold of all its readable events, as `Folding.snapshot_at` makes it; what is large or out
of the ordinary goes that way. A batch is one statement and one call in a thread; an entity that
fails or hangs there is told apart from the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, get_args

from journal.reader import Span
from journal.rows import EventRow, Names
from kernel import clock, sql
from kernel.errors import (
    Compacted,
    DeadlineExceeded,
    EntityNotFound,
    FoldFailed,
    InvalidArgument,
    NoFold,
    TooLarge,
    Undecodable,
    UnknownType,
)
from schemas.descriptors import Decoder
from snapshots.folding import Entity, Folded, Folding, Journal, Run, Stored, proven, type_of
from snapshots.folds import FoldDefinition

AT_ONCE = 2
"""So many batches are read and folded at the same time."""
FEW = 200
"""An entity with more events than this is read for itself."""
ENTITIES, EVENTS = 200, 2_000
"""A batch has no more of them than this."""
READ_BYTES = 4_000_000
"""Payloads and metadata after which reading a batch stops; the event that crosses it is the last.
As much for the snapshots that floors rest on, and for those that a call makes.
"""
SLICE_SECONDS = 0.5
"""A call begins with no other entity after this: so one that does not return hangs in its last."""

Failure = (
    FoldFailed | Undecodable | UnknownType | EntityNotFound | InvalidArgument | Compacted | TooLarge
    | NoFold
)  # fmt: skip
_FAILURES = get_args(Failure)
"""What is wrong with one entity. Anything else is wrong with all of them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A snapshot that is wanted: of an entity, at a sequence number."""

    key: int
    type_id: int
    entity_type: str
    entity_id: str
    sequence: int


@dataclass(slots=True)
class _Task:
    """An entity on its way. ``entity``, ``definition``: None: it goes alone."""

    place: int
    wanted: Wanted
    definition: FoldDefinition | None = None
    entity: Entity | None = None
    base_bytes: int = 0
    base: Stored | None = None
    rows: list[EventRow] = field(default_factory=list)

    @property
    def after(self) -> int:
        entity = self.entity
        return (entity.base or entity.first - 1) if entity is not None else 0

    @property
    def events(self) -> int:
        return self.wanted.sequence - self.after

    @property
    def span(self) -> Span:
        """Where its events are. What a snapshot covers lies before its position."""
        assert self.entity is not None
        covered = self.base.position if self.base is not None else 0
        return Span(
            self.entity.key, self.after, self.wanted.sequence,
            max(self.entity.first_position, covered + 1), self.entity.last_position,
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether everything is in memory that the fold needs."""
        based = self.base is not None or self.entity is None or not self.entity.base
        return based and len(self.rows) == self.events


class _Call:
    """Folds entities in a thread, in their order, as long as a call may."""

    def __init__(self, tasks: Sequence[_Task], names: Names, largest: int) -> None:
        self._tasks, self._names, self._largest = tasks, names, largest
        self.results: list[Folded | Failure] = []
        self.begun = 0

    def run(self, decoder: Decoder) -> None:
        until = time.monotonic() + SLICE_SECONDS
        made = 0
        for task in self._tasks:
            if self.begun and (time.monotonic() >= until or made >= READ_BYTES):
                return
            self.begun += 1
            result = self._folded(task, decoder)
            made += len(result.payload) if isinstance(result, Folded) else 0
            self.results.append(result)

    def _folded(self, task: _Task, decoder: Decoder) -> Folded | Failure:
        definition, entity = task.definition, task.entity
        assert definition is not None
        assert entity is not None
        run = Run(definition, entity, decoder)
        try:
            run.prove_at = task.rows[-1][1] if task.rows else 0
            run.begin(task.base)
            run.feed(task.rows, self._names)
            payload = proven(run, self._names)
        except (FoldFailed, Undecodable, UnknownType) as failed:
            return failed
        if len(payload) > self._largest:
            return TooLarge("snapshot.payload", len(payload), self._largest)
        return Folded(run.sequence, run.position, run.time_us, payload)

    def given_up(self) -> _Task | None:
        """The entity that it hangs in; None: in none. For the time after its slice has ended."""
        begun = self.begun  # first: what ends meanwhile is in the results, and none begins
        return self._tasks[begun - 1] if begun > len(self.results) else None


@dataclass(slots=True)
class Batches:
    """Makes snapshots of entities of one log; for one call of `make`.

    ``largest``: bytes of a snapshot; more is `TooLarge`. ``enough_bytes``, ``enough_seconds``: it
    begins nothing more once what it made takes so much, or it took so long. ``alone_seconds``: for
    an entity that is read for itself.
    """

    folding: Folding
    journal: Journal
    log: str
    log_id: int
    largest: int
    enough_bytes: int
    enough_seconds: float
    alone_seconds: float
    _made: dict[int, Folded | Failure] = field(default_factory=dict)
    _bytes: int = 0
    _busy: int = 0
    _ends: float = 0.0
    _queue: deque[_Task] = field(default_factory=deque)

    async def make(self, wanted: Sequence[Wanted]) -> list[Folded | Failure]:
        """Snapshots of the first of these, of one at least: each of them, or why there is none.

        Raises:
            Unavailable, Overloaded, CorruptLog and the like: it could not be done.

        """
        self._ends = time.monotonic() + self.enough_seconds
        self._queue.extend(await self._tasks(wanted))
        workers = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        found: list[Folded | Failure] = []
        while (result := self._made.get(len(found))) is not None:
            found.append(result)
        return found

    async def _tasks(self, wanted: Sequence[Wanted]) -> list[_Task]:
        """What is to be done, in order; what is plain has its head."""
        database = self.journal.database
        rows = await database.fetch(
            sql.load("snapshots", "fold_heads", database.schema), self.log_id,
            [each.type_id for each in wanted], [each.entity_id for each in wanted],
            self._loads(wanted),
        )  # fmt: skip
        return [
            self._task(place, each, row)
            for place, (each, row) in enumerate(zip(wanted, rows, strict=True))
        ]

    def _task(self, place: int, wanted: Wanted, row: Any) -> _Task:
        key, last, first, first_position, last_position, floor, base_bytes = row
        alone = _Task(place, wanted)
        definition = self.folding.get(wanted.entity_type)
        if definition is None or key != wanted.key or not first <= wanted.sequence <= last:
            return alone
        entity = Entity(
            self.log, self.log_id, wanted.entity_type, wanted.entity_id, key, last, first,
            first_position, last_position, floor,
        )  # fmt: skip
        if entity.base and (base_bytes is None or wanted.sequence < entity.base):
            return alone
        task = _Task(place, wanted, definition, entity, base_bytes or 0)
        return alone if task.events > FEW or task.base_bytes > READ_BYTES else task

    def _loads(self, wanted: Sequence[Wanted]) -> list[str]:
        """Types of the snapshots that the folds load, as the statements want them."""
        kinds = {(each.type_id, each.entity_type) for each in wanted}
        return [
            f"{type_id}/{name}"
            for type_id, entity_type in kinds
            if (definition := self.folding.get(entity_type)) is not None
            for name in definition.types
        ]

    # Work

    async def _work(self) -> None:
        while self._queue and not self._enough(others=self._busy):
            batch = self._batch()
            self._busy += 1
            try:
                if batch[0].entity is None:
                    await self._alone(batch[0])
                else:
                    await self._together(batch)
            finally:
                self._busy -= 1

    def _enough(self, others: int) -> bool:
        """Whether to begin nothing more; never before the first of all is made, or under way."""
        if 0 not in self._made:
            return False
        if self._bytes >= self.enough_bytes or time.monotonic() >= self._ends:
            return True
        # Large ones: one worker goes on, with the first of what is left; nothing is made in vain.
        return self._bytes >= READ_BYTES and others > 0

    def _batch(self) -> list[_Task]:
        """The next ones, which fit into memory; one that goes alone is a batch."""
        queue = self._queue
        batch = [queue.popleft()]
        events, held = batch[0].events, batch[0].base_bytes
        while queue and len(batch) < ENTITIES and batch[0].entity is not None:
            task = queue[0]
            events, held = events + task.events, held + task.base_bytes
            if task.entity is None or events > EVENTS or held > READ_BYTES:
                break
            batch.append(queue.popleft())
        return batch

    def _keep(self, task: _Task, result: Folded | Failure) -> None:
        self._made[task.place] = result
        if isinstance(result, Folded):
            self._bytes += len(result.payload)

    async def _alone(self, task: _Task) -> None:
        wanted = task.wanted
        result: Folded | Failure
        began = time.monotonic()
        try:
            result = await self.folding.snapshot_at(
                self.journal, self.log, wanted.entity_type, wanted.entity_id, wanted.sequence,
                seconds=self.alone_seconds,
            )  # fmt: skip
        except _FAILURES as failed:
            result = failed
        except DeadlineExceeded as failed:
            if time.monotonic() - began < self.alone_seconds:
                raise  # the database's
            result = FoldFailed(failed.message)
        if isinstance(result, Folded) and len(result.payload) > self.largest:
            result = TooLarge("snapshot.payload", len(result.payload), self.largest)
        self._keep(task, result)

    async def _together(self, batch: list[_Task]) -> None:
        """Reads and folds as many as memory and time allow; the rest is put back."""
        batch = await self._read(batch)
        while batch:
            results = await self._call(batch)
            for task, result in zip(batch, results, strict=False):
                self._keep(task, result)
            batch = batch[len(results) :]
            if self._enough(others=self._busy - 1):
                break
        self._put_back(batch)

    async def _call(self, batch: list[_Task]) -> list[Folded | Failure]:
        """Folds the first of these, one at least, in a thread."""
        folding, names = self.folding, self.journal.names
        call = _Call(batch, names, self.largest)
        problem = f"gave no answer within {folding.batch_seconds:g} s"
        try:
            async with folding.decoding() as decoder:  # of no more use after a failure
                await folding.prepare(decoder, names, [row for task in batch for row in task.rows])
                await folding.threads.run(
                    lambda: call.run(decoder), folding.batch_seconds + SLICE_SECONDS,
                    patience=3 * folding.batch_seconds,
                )  # fmt: skip
                return call.results
        except TimeoutError:
            if not call.begun:
                raise
        except Exception as error:
            if not call.begun:
                raise  # it was not the user's code
            problem = type_of(error)
        task, results = call.given_up(), list(call.results)
        if task is not None and task.definition is not None:
            title = f"{task.wanted.entity_type}/{task.wanted.entity_id}"
            results.append(FoldFailed(f"{task.definition.title}: {title}: {problem}"))
        return results

    # Reading

    async def _read(self, batch: list[_Task]) -> list[_Task]:
        """Those of a batch whose events are in memory now; the others are put back."""
        await self._read_bases(batch)
        by_name = {(task.wanted.type_id, task.wanted.entity_id): task for task in batch}
        for task in batch:
            task.rows = []
        rows = await self.journal.load_several(
            self.log_id, [task.span for task in batch], FEW, READ_BYTES
        )
        for row in rows:
            by_name[row[6], row[8]].rows.append(row)
        whole = [task for task in batch if task.whole]
        rest = [task for task in batch if not task.whole]
        # Reading stopped before what comes last; one before others that are whole lacks events,
        # and one that fills a batch by itself does not fit.
        last = whole[-1].place if whole else rest[0].place + 1
        for task in rest:
            task.rows, task.base = [], None
            if task.place < last:
                task.entity = None
        self._put_back(rest)
        return whole

    async def _read_bases(self, batch: list[_Task]) -> None:
        """Loads the snapshots that floors rest on."""
        found = {
            task.entity.key: task for task in batch if task.entity is not None and task.entity.base
        }
        if not found:
            return
        database = self.journal.database
        rows = await database.fetch(
            sql.load("snapshots", "fold_bases", database.schema), self.log_id, list(found),
            [task.after for task in found.values()],
            [task.wanted.type_id for task in found.values()],
            self._loads([task.wanted for task in found.values()]),
        )  # fmt: skip
        for key, sequence, kind, payload, position, event_at in rows:
            time_us = clock.to_us(event_at) if event_at is not None else 0
            found[key].base = Stored(sequence, kind, payload, position or 0, time_us)

    def _put_back(self, tasks: list[_Task]) -> None:
        for task in tasks:
            task.rows, task.base = [], None
        self._queue = deque(sorted([*tasks, *self._queue], key=attrgetter("place")))
