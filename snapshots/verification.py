"""Verifying: an entity's snapshots held against the fold of its events. Invariant 8: load = replay.

One replay of all readable events passes every snapshot on its way. Beside it goes what a load
gives: the newest snapshot and the events after it. Snapshots that agree are noted as verified; of
those that do not, the note is taken away, so that nothing is compacted on their word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from kernel import clock, sql
from kernel.database import transaction
from kernel.errors import Compacted, FoldFailed
from snapshots.folding import (
    SECONDS,
    Entity,
    Folding,
    Journal,
    Run,
    Stored,
    deadline,
    entity_of,
    events_of,
    newest,
)
from snapshots.model import Source
from snapshots.store import lock_marks

MAX_FINDINGS = 1_000
"""So many snapshots are told one by one; those that do not agree first."""
_PAGE = 100
_NOTE_SECONDS = 15.0


class Verdict(StrEnum):
    """What a snapshot is found to be."""

    AGREES = "agrees"
    DIFFERS = "differs"
    FOREIGN = "foreign"
    """The fold does not load its type: nothing is said of it."""
    FLOOR = "floor"
    """The floor rests on it, so the replay began with it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of a snapshot. ``problem``: in what way it differs, without values."""

    sequence: int
    type: str
    source: str
    verdict: Verdict
    problem: str = ""


@dataclass(slots=True)
class Verification:
    """What was found of an entity. ``ok``: every snapshot that the fold loads agrees, and so does
    the newest one with the events after it (``load``: None: there is none).
    """

    entity_type: str
    entity_id: str
    sequence: int
    floor: int
    fold_version: int
    events: int = 0
    ok: bool = True
    load: bool | None = None
    agree: int = 0
    differ: int = 0
    foreign: int = 0
    snapshots: list[Finding] = field(default_factory=list)
    """At most `MAX_FINDINGS`."""


async def verify(
    folding: Folding,
    journal: Journal,
    log: str,
    entity_type: str,
    entity_id: str,
    *,
    seconds: float = SECONDS,
) -> Verification:
    """Holds an entity's snapshots against its events; notes what was found in the snapshots.

    Raises:
        as `Folding.state_at`, when the events cannot be folded at all.

    """
    definition = folding.folds.named(entity_type)
    async with deadline(seconds, definition):
        entity = await entity_of(journal, log, entity_type, entity_id)
        async with folding.run(definition, entity) as run:
            found = await _Verifier(folding, journal, run).verify()
    return found


@dataclass(slots=True)
class _Snapshot:
    sequence: int
    type: str
    source: int
    recorded_at: datetime


@dataclass(slots=True)
class _Verifier:
    folding: Folding
    journal: Journal
    run: Run
    beside: Run | None = None
    newest: int = 0
    notes: list[tuple[Any, ...]] = field(default_factory=list)
    found: Verification = field(init=False)

    def __post_init__(self) -> None:
        entity = self.run.entity
        self.found = Verification(
            entity.entity_type, entity.entity_id, entity.last, entity.floor,
            self.run.definition.version,
        )  # fmt: skip

    async def verify(self) -> Verification:
        run, entity = self.run, self.run.entity
        types = run.definition.types
        base = None
        if entity.base:
            base = await newest(self.journal, entity, entity.base, entity.base, types)
            if base is None:
                raise Compacted(entity.entity_type, entity.entity_id, entity.floor)
        # What loads begin with is the newest usable snapshot, whoever made it of whatever type.
        head = await self.journal.get_entity(entity.log, entity.entity_type, entity.entity_id)
        self.newest = head.snapshot_sequence
        latest = None
        if self.newest:
            latest = await newest(self.journal, entity, self.newest, self.newest, types)
            if latest is None:
                self.found.load = False
        await self._thread(lambda: run.begin(base))
        if base is not None and latest is not None and base.sequence == latest.sequence:
            self.found.load = True  # the replay is the load
        pending = await self._page(entity.base - 1 if entity.base else 0)
        async for rows in events_of(self.journal, entity, run.sequence, entity.last):
            while rows:
                while pending and pending[0].sequence <= run.sequence:
                    pending = await self._look(pending)
                until = pending[0].sequence if pending else entity.last
                now = [row for row in rows if row[1] <= until]
                rows = rows[len(now) :]  # noqa: PLW2901 - the rest of the batch
                await self.folding.feed(self.journal, run, now)
                if self.beside is not None:
                    await self._beside(lambda now=now: self._follow(now))  # type: ignore[misc]
        while pending:
            pending = await self._look(pending)
        if self.beside is not None:
            await self._beside(self._compare)
        await self._note()
        self.found.events = run.events
        self.found.ok = self.found.differ == 0 and self.found.load is not False
        return self.found

    async def _look(self, pending: list[_Snapshot]) -> list[_Snapshot]:
        """Judges the first of ``pending``, at which the replay stands; those that are left."""
        snapshot = pending[0]
        run = self.run
        definition, entity = run.definition, run.entity
        source = Source(snapshot.source).name.lower()

        def say(verdict: Verdict, problem: str = "") -> None:
            self._say(Finding(snapshot.sequence, snapshot.type, source, verdict, problem))

        if snapshot.sequence == entity.base:
            say(Verdict.FLOOR)
        elif snapshot.type not in definition.types:
            self.found.foreign += 1
            begins = snapshot.sequence == self.newest
            say(Verdict.FOREIGN, "loads begin with it, and the fold cannot read it" * begins)
        else:
            stored = await newest(
                self.journal, entity, snapshot.sequence, snapshot.sequence, definition.types
            )
            if stored is not None:  # else it was removed just now
                problem = await self._judge(stored)
                self._tally(say, problem)
                self.notes.append(
                    (snapshot.sequence, snapshot.recorded_at, not problem, run.position,
                     clock.from_us(run.time_us))
                )  # fmt: skip
                if len(self.notes) >= _PAGE:
                    await self._note()
        return pending[1:] or await self._page(snapshot.sequence)

    def _tally(self, say: Callable[..., None], problem: str) -> None:
        if problem:
            self.found.differ += 1
            say(Verdict.DIFFERS, problem)
        else:
            self.found.agree += 1
            say(Verdict.AGREES)

    async def _judge(self, stored: Stored) -> str:
        """In what way a snapshot differs from the state of the replay; empty: it agrees."""
        run = self.run
        other = Run(run.definition, run.entity, run.decoder)
        try:
            await self._thread(lambda: other.begin(stored))
            mine = await self._thread(other.dump)
        except FoldFailed as failed:
            if stored.sequence == self.newest:
                self.found.load = False
            return failed.message
        if stored.sequence == self.newest:
            self.beside = other
        theirs = await self._thread(run.dump)
        if mine == theirs:
            return ""
        return f"loads as another state ({len(mine)} bytes) than its events give ({len(theirs)})"

    def _follow(self, rows: Any) -> None:
        assert self.beside is not None
        self.beside.feed(rows, self.journal.names)

    def _compare(self) -> None:
        assert self.beside is not None
        self.found.load = self.beside.dump() == self.run.dump()

    async def _beside(self, act: Callable[[], None]) -> None:
        """Goes on with what a load gives; when the fold cannot, a load fails where a replay does
        not.
        """
        try:
            await self._thread(act)
        except FoldFailed:
            self.beside, self.found.load = None, False

    def _say(self, finding: Finding) -> None:
        told = self.found.snapshots
        if len(told) < MAX_FINDINGS:
            told.append(finding)
        elif finding.verdict is Verdict.DIFFERS:
            for i, each in enumerate(told):
                if each.verdict is not Verdict.DIFFERS:
                    told[i] = finding
                    return

    async def _page(self, after: int) -> list[_Snapshot]:
        entity, database = self.run.entity, self.journal.database
        rows = await database.fetch(
            sql.load("snapshots", "fold_snapshots", database.schema), entity.log_id, entity.key,
            after, entity.last, _PAGE,
        )  # fmt: skip
        return [
            _Snapshot(row["seq"], row["type"], row["source"], row["recorded_at"]) for row in rows
        ]

    async def _note(self) -> None:
        entity, database = self.run.entity, self.journal.database
        if self.notes:
            statement = sql.load("snapshots", "fold_verdicts", database.schema)
            columns = [list(column) for column in zip(*self.notes, strict=True)]
            self.notes.clear()
            async with (
                database.connection(writing=True) as connection,
                transaction(connection, _NOTE_SECONDS),
            ):
                # Whoever compacts to one of them has the lock too: so a floor comes to rest on one
                # before the verdict, which then is passed over, or not at all.
                await lock_marks(connection, database.schema, entity.log_id, [entity.key])
                await connection.fetch(statement, entity.log_id, entity.key, *columns)

    async def _thread(self, act: Callable[[], Any]) -> Any:
        return await self.folding.call(self.run.definition, act)


__all__ = ["Entity", "Finding", "Verdict", "Verification", "verify"]
