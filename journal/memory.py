"""The reference model of the journal: lists and dicts, nothing else.

It keeps every promise of `journal.journal.Journal` but durability, for tests and for trying things
out. It is meant to be read: where the store and this disagree, one of them has a bug. Nothing
awaits while it changes something, so each call is atomic; checks are the store's (`Preparer`).
"""
# ruff: noqa: ARG002 - timeouts belong to the port; nothing here waits

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from journal.model import (
    DEFAULT_CHUNK_SIZE,
    DEFAULT_LOG,
    FROM_NOW,
    SYSTEM_LOG,
    Append,
    Appended,
    AppendedEntity,
    Entity,
    EntityPage,
    EntityPart,
    Event,
    EventBatch,
    Limits,
    LoadQuery,
    LogInfo,
    ReadQuery,
    Snapshot,
    SubscribeQuery,
    SubscriptionBatch,
    VerifyProgress,
    VerifyReport,
)
from journal.preparation import (
    MODE_EXISTS,
    MemberRow,
    PreparedAppend,
    Preparer,
    check_entity,
    check_log_name,
    check_written_log,
)
from journal.queries import (
    check_chunk_size,
    check_floor,
    check_from_position,
    check_list,
    check_load,
    check_page_size,
    check_read,
    check_subscribe,
    check_subscribe_from,
    check_time,
    check_verify,
    expected_of,
    page_token,
)
from journal.rows import split_metadata
from kernel import clock
from kernel.errors import (
    AppendIdReused,
    DeadlineExceeded,
    EntityDeleted,
    EntityNotFound,
    FailedCheck,
    InvalidArgument,
    LogExists,
    LogNotFound,
    WrongExpectedState,
)

BATCH = 1_000
_FIRST_US = -62_135_596_800_000_000
"""The begin of the year 1."""
CHUNKS_AHEAD = 2

Name = tuple[str, str]
"""Entity type, entity id."""


class _Receipt(NamedTuple):
    """What an append id stands for."""

    content_hash: bytes | None
    result: Appended


class TypeRules(NamedTuple):
    """What of an entity type's settings (`snapshots.model.TypeSettings`) the journal goes by."""

    needs_full_replay: bool = False
    snapshot_types: tuple[str, ...] = ()
    snapshot_every: int = 0

    def uses(self, snapshot_type: str) -> bool:
        """Whether loads use snapshots of this type."""
        return not self.needs_full_replay and (
            not self.snapshot_types or snapshot_type in self.snapshot_types
        )


@dataclass(slots=True)
class StoredSnapshot:
    """A snapshot and what is known of it; ``source``: 0 the entity's owner, 1 a fold."""

    snapshot: Snapshot
    position: int
    event_at_us: int
    source: int = 0
    verified_at_us: int = 0
    removed: bool = False


@dataclass(slots=True)
class _Log:
    """A log. ``events[p - 1]`` is the event at position p."""

    name: str
    chunk_size: int
    events: list[Event] = field(default_factory=list)
    entities: dict[Name, list[Event]] = field(default_factory=dict)
    snapshots: dict[Name, dict[int, StoredSnapshot]] = field(default_factory=dict)
    """By sequence number."""
    floors: dict[Name, int] = field(default_factory=dict)
    """Of entities that are compacted."""
    states: dict[Name, str] = field(default_factory=dict)
    """Of entities that are not active."""
    receipts: dict[str, _Receipt] = field(default_factory=dict)
    bytes_total: int = 0
    appended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def head(self) -> int:
        return len(self.events)

    def last_sequence(self, name: Name) -> int:
        """0 when there is no such entity."""
        events = self.entities.get(name)
        return events[-1].sequence if events else 0

    def usable(self, name: Name, rules: TypeRules, to: int) -> Snapshot | None:
        """The newest snapshot, of at most this sequence number, that loads use."""
        found = [
            stored.snapshot
            for sequence, stored in self.snapshots.get(name, {}).items()
            if sequence <= to and not stored.removed and rules.uses(stored.snapshot.type)
        ]
        return max(found, key=lambda snapshot: snapshot.sequence, default=None)

    def entity(self, name: Name, rules: TypeRules) -> Entity:
        events = self.entities.get(name)
        if not events:
            raise EntityNotFound(*name)
        newest = self.usable(name, rules, events[-1].sequence)
        return Entity(
            entity_type=name[0],
            entity_id=name[1],
            sequence=events[-1].sequence,
            floor=self.floors.get(name, events[0].sequence),
            state=self.states.get(name, "active"),
            event_count=len(events),
            first_position=events[0].position,
            last_position=events[-1].position,
            slice=events[0].slice,
            snapshot_sequence=newest.sequence if newest else 0,
        )


class MemoryJournal:
    """`journal.journal.Journal` in memory.

    ``now_us`` is the clock (microseconds since the Unix epoch); when it runs backwards, recorded
    times stand still. ``timeout`` arguments are ignored: nothing here waits.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        append_id_window: timedelta = timedelta(days=2),
        now_us: Callable[[], int] = clock.now_us,
    ) -> None:
        self._preparer = Preparer(limits, append_id_window)
        self._now_us = now_us
        self._rules: dict[str, TypeRules] = {}
        self._logs = {name: _Log(name, DEFAULT_CHUNK_SIZE) for name in (DEFAULT_LOG, SYSTEM_LOG)}

    def _log(self, name: str) -> _Log:
        found = self._logs.get(check_log_name(name))
        if found is None:
            raise LogNotFound(name)
        return found

    # Appends

    async def append(
        self, log: str, append: Append, *, timeout: timedelta | None = None
    ) -> Appended:
        """See `journal.journal.Journal.append`."""
        prepared = self._preparer.prepare(append)
        there = self._log(check_written_log(log))
        before = _written_before(there, prepared)
        if before is not None:
            return self._hinted(prepared, before)
        deleted = tuple(member[:2] for member in prepared.members if member[:2] in there.states)
        if deleted:
            raise EntityDeleted(deleted)
        failures = tuple(
            FailedCheck(member[0], member[1], expected_of(member, found), found)
            for member, found in _sequences(there, prepared)
            if not _is_expected(member, found)
        )
        if failures:
            raise WrongExpectedState(failures)
        return self._hinted(prepared, self._write(there, prepared))

    def set_entity_state(self, log: str, name: Name, state: str) -> None:
        """Makes an entity ``active``, ``deleted`` or ``tombstoned``, as operations do."""
        self.entity(log, name)
        self._log(log).states[name] = state
        if state == "active":
            del self._log(log).states[name]

    def set_floor(self, log: str, name: Name, floor: int) -> None:
        """Moves an entity's floor, as compaction and its undo do (then: its first sequence)."""
        self.entity(log, name)
        self._log(log).floors[name] = floor

    def set_rules(self, entity_type: str, rules: TypeRules) -> None:
        """What is set for an entity type from now on."""
        self._rules[entity_type] = rules

    def entity(self, log: str, name: Name) -> Entity:
        """`get_entity`, at once."""
        return self._log(log).entity(name, self._rules.get(name[0], TypeRules()))

    def snapshots(self, log: str, name: Name) -> dict[int, StoredSnapshot]:
        """The snapshots of an entity by sequence number, removed ones too: to look at and change.

        Raises:
            EntityNotFound: it never had an event.

        """
        self.entity(log, name)
        return self._log(log).snapshots.setdefault(name, {})

    def event(self, log: str, name: Name, sequence: int) -> Event:
        """An event of an entity, below its floor too."""
        events = self._log(log).entities[name]
        return events[sequence - events[0].sequence]

    def _hinted(self, prepared: PreparedAppend, done: Appended) -> Appended:
        """With hints where the append crossed a multiple of what its type says."""
        entities = []
        for number, (member, entity) in enumerate(
            zip(prepared.members, done.entities, strict=True)
        ):
            rules = self._rules.get(member[0], TypeRules())
            every = 0 if rules.needs_full_replay else rules.snapshot_every
            numbers = range(entity.first_sequence, entity.last_sequence + 1)
            crossed = every > 0 and any(sequence % every == 0 for sequence in numbers)
            brought = any(snapshot[0] == number for snapshot in prepared.snapshots)
            entities.append(entity._replace(snapshot_due=crossed and not brought))
        return done._replace(entities=tuple(entities))

    def _write(self, log: _Log, prepared: PreparedAppend) -> Appended:
        at = max(self._now_us(), log.events[-1].recorded_at_us if log.events else 0)
        first_position = log.head + 1
        firsts = []
        for member, found in _sequences(log, prepared):
            # Only an entity without events may begin at a number of its own; else it is found + 1.
            firsts.append(member[4] if member[4] and not found else found + 1)
            log.bytes_total += member[6]
        for number, place, _, event_id, kind, payload, stored in prepared.events:
            entity_type, entity_id, part = prepared.members[number][:3]
            history = log.entities.setdefault((entity_type, entity_id), [])
            metadata_json, extras = split_metadata(stored)
            event = Event(
                position=log.head + 1,
                sequence=firsts[number] + place - 1,
                entity_type=entity_type,
                entity_id=entity_id,
                type=kind[0],
                content_type=kind[1],
                payload=payload,
                event_id=event_id,
                recorded_at_us=at,
                metadata_json=metadata_json,
                schema_version=kind[2],
                slice=part,
                previous_position=history[-1].position if history else 0,
                **extras,
            )
            log.events.append(event)
            history.append(event)
        for number, snapshot_type, content_type, payload in prepared.snapshots:
            name = prepared.members[number][:2]
            newest = log.entities[name][-1]
            log.snapshots.setdefault(name, {})[newest.sequence] = StoredSnapshot(
                Snapshot(newest.sequence, snapshot_type, content_type, payload, at),
                newest.position,
                event_time_us(newest),
            )
        log.appended.set()
        result = Appended(first_position, log.head, at, _entities(prepared, firsts))
        if prepared.append_id:
            log.receipts[prepared.append_id] = _Receipt(prepared.content_hash, result)
        return result

    # Reads

    async def load(
        self, log: str, query: LoadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EntityPart]:
        """See `journal.journal.Journal.load`."""
        name = (query.entity_type, query.entity_id)
        check_entity("", *name, self._preparer.limits)
        check_load(query)
        there = self._log(log)
        entity = self.entity(log, name)
        after, to = query.after_sequence, query.to_sequence or entity.sequence
        snapshot = None
        if not query.ignore_snapshot and not after:
            snapshot = there.usable(name, self._rules.get(name[0], TypeRules()), to)
            after = snapshot.sequence if snapshot else 0
        check_floor(entity, after, to)
        events = [e for e in there.entities[name] if after < e.sequence <= to]
        yield EntityPart(entity, snapshot, events[:BATCH])
        for start in range(BATCH, len(events), BATCH):
            yield EntityPart(None, None, events[start : start + BATCH])

    async def read(
        self, log: str, query: ReadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EventBatch]:
        """See `journal.journal.Journal.read`."""
        check_read(query)
        there = self._log(log)
        head = there.head
        check_from_position(query, 1, head)
        if query.backwards:
            low, high = query.to_position or 1, min(query.from_position or head, head)
        else:
            low, high = query.from_position or 1, min(query.to_position or head, head)
        if query.from_time_us:
            low = max(low, _position_at(there, query.from_time_us))
        if query.to_time_us:
            high = min(high, _position_at(there, query.to_time_us) - 1)
        step = -1 if query.backwards else 1
        events = [e for e in there.events[low - 1 : max(high, 0)] if _matches(e, query)][::step]
        end = low - 1 if query.backwards else high + 1
        if query.max_events and len(events) >= query.max_events:
            events = events[: query.max_events]
            end = events[-1].position + step
        while len(events) > BATCH:
            batch, events = events[:BATCH], events[BATCH:]
            yield EventBatch(batch, batch[-1].position + step, head)
        yield EventBatch(events, end, head)

    async def subscribe(
        self, log: str, query: SubscribeQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[SubscriptionBatch]:
        """See `journal.journal.Journal.subscribe`."""
        check_subscribe(query)
        there = self._log(log)
        now = query.from_position == FROM_NOW
        position = there.head + 1 if now else query.from_position or 1
        check_subscribe_from(position, 1, there.head)
        if query.from_time_us:
            position = max(position, _position_at(there, query.from_time_us))
        selection = ReadQuery(
            entity_types=query.entity_types, event_types=query.event_types, slices=query.slices
        )
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout.total_seconds()
        caught_up = False
        while True:
            new = there.events[position - 1 : position - 1 + BATCH]
            position += len(new)
            becomes = not caught_up and position > there.head
            caught_up = caught_up or becomes
            events = [event for event in new if _matches(event, selection)]
            if events or becomes:
                yield SubscriptionBatch(events, position, there.head, caught_up=becomes)
            if position > there.head:
                there.appended.clear()
                try:
                    async with asyncio.timeout_at(deadline):
                        await there.appended.wait()
                except TimeoutError:
                    raise DeadlineExceeded from None

    async def get_entity(
        self, log: str, entity_type: str, entity_id: str, *, timeout: timedelta | None = None
    ) -> Entity:
        """See `journal.journal.Journal.get_entity`."""
        check_entity("", entity_type, entity_id, self._preparer.limits)
        return self.entity(log, (entity_type, entity_id))

    async def list_entities(
        self,
        log: str,
        entity_type: str = "",
        id_prefix: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
        timeout: timedelta | None = None,
    ) -> EntityPage:
        """See `journal.journal.Journal.list_entities`."""
        there = self._log(log)
        size = check_page_size(page_size)
        kind, after = check_list(entity_type, id_prefix, page_token)
        # Texts compare by code point, which is the byte order of UTF-8.
        names = sorted(
            name
            for name in there.entities
            if name[0] == (entity_type or name[0])
            and name[1].startswith(id_prefix)
            and (after is None or name > (kind, after))
        )
        page = tuple(self.entity(log, name) for name in names[:size])
        return EntityPage(page, _token_after(page) if len(names) > size else "")

    # Logs

    async def get_log(self, log: str, *, timeout: timedelta | None = None) -> LogInfo:
        """See `journal.journal.Journal.get_log`."""
        there = self._log(log)
        return LogInfo(
            log=there.name,
            head=there.head,
            first=1,
            chunk_size=there.chunk_size,
            chunks=there.head // there.chunk_size + 1 + CHUNKS_AHEAD,
            chunks_ahead=CHUNKS_AHEAD,
            recorded_at_us=there.events[-1].recorded_at_us if there.events else 0,
            bytes_total=there.bytes_total,
            entities=len(there.entities),
        )

    async def list_logs(self, *, timeout: timedelta | None = None) -> tuple[LogInfo, ...]:
        """See `journal.journal.Journal.list_logs`."""
        return tuple([await self.get_log(name) for name in sorted(self._logs)])

    async def create_log(
        self, log: str, chunk_size: int = 0, *, timeout: timedelta | None = None
    ) -> LogInfo:
        """See `journal.journal.Journal.create_log`."""
        if not log:
            raise InvalidArgument("log", "is empty")
        name = check_log_name(log)
        check_chunk_size(chunk_size)
        if name in self._logs:
            raise LogExists(name)
        self._logs[name] = _Log(name, chunk_size or DEFAULT_CHUNK_SIZE)
        return await self.get_log(name)

    async def position_at(
        self, log: str, time_us: int, *, timeout: timedelta | None = None
    ) -> tuple[int, int]:
        """See `journal.journal.Journal.position_at`."""
        there = self._log(log)
        check_time(time_us)
        return _position_at(there, time_us), there.head

    async def verify(
        self,
        log: str,
        from_position: int = 0,
        to_position: int = 0,
        *,
        timeout: timedelta | None = None,
    ) -> AsyncIterator[VerifyProgress]:
        """See `journal.journal.Journal.verify`."""
        there = self._log(log)
        low, high = check_verify(1, there.head, from_position, to_position)
        findings = tuple(_findings(there))
        whole = (low, high) == (1, there.head)
        report = VerifyReport(
            ok=not findings,
            from_position=low,
            to_position=high,
            events=high - low + 1,
            removed=0,
            entities=len(there.entities) if whole else 0,
            holes=0,
            findings=findings[:100],
            findings_total=len(findings),
        )
        yield VerifyProgress(high, there.head, report)


def _sequences(log: _Log, prepared: PreparedAppend) -> list[tuple[MemberRow, int]]:
    """Each member with the last sequence number of its entity."""
    return [(member, log.last_sequence(member[:2])) for member in prepared.members]


def _is_expected(member: MemberRow, found: int) -> bool:
    mode, first_sequence = member[3], member[4]
    if mode >= 0 and found != mode:
        return False
    if mode == MODE_EXISTS and not found:
        return False
    return not (first_sequence and found and found + 1 != first_sequence)


def _written_before(log: _Log, prepared: PreparedAppend) -> Appended | None:
    """The first result of an append that is here already.

    By its append id; or, where every entity is refused for its exact state, by its event ids at the
    sequence numbers they would have had.
    """
    receipt = log.receipts.get(prepared.append_id) if prepared.append_id else None
    if receipt is not None:
        if receipt.content_hash != prepared.content_hash:
            raise AppendIdReused(prepared.append_id)
        return receipt.result._replace(duplicate=True)
    firsts = []
    for member, found in _sequences(log, prepared):
        mode, first_sequence = member[3], member[4]
        first = first_sequence or mode + 1
        if first < 1 or _is_expected(member, found) or (mode == MODE_EXISTS and not found):
            return None
        firsts.append(first)
    stored: list[Event] = []
    for number, place, _, event_id, *_ in prepared.events:
        history = log.entities.get(prepared.members[number][:2], [])
        sequence = firsts[number] + place - 1
        stored += [e for e in history if e.sequence == sequence and e.event_id == event_id]
    if len(stored) < len(prepared.events):
        return None
    return Appended(
        min(e.position for e in stored),
        max(e.position for e in stored),
        max(e.recorded_at_us for e in stored),
        _entities(prepared, firsts),
        duplicate=True,
    )


def _entities(prepared: PreparedAppend, firsts: Sequence[int]) -> tuple[AppendedEntity, ...]:
    return tuple(
        AppendedEntity(first, first + member[5] - 1)
        for member, first in zip(prepared.members, firsts, strict=True)
    )


def event_time_us(event: Event) -> int:
    """When it happened: the time that its writer gave (from the year 1 on), or it was recorded."""
    return max(event.client_time_us, _FIRST_US) if event.client_time_us else event.recorded_at_us


def _matches(event: Event, query: ReadQuery) -> bool:
    return (
        (not query.entity_types or event.entity_type in query.entity_types)
        and (not query.event_types or event.type in query.event_types)
        and (not query.slices or any(low <= event.slice <= high for low, high in query.slices))
    )


def _position_at(log: _Log, time_us: int) -> int:
    return next((e.position for e in log.events if e.recorded_at_us >= time_us), log.head + 1)


def _token_after(page: Sequence[Entity]) -> str:
    return page_token(page[-1].entity_type, page[-1].entity_id)


def _findings(log: _Log) -> list[str]:
    """What breaks invariants 1–3: nothing, or this model has a bug."""
    found = []
    newest: dict[Name, Event] = {}
    at = 0
    for place, event in enumerate(log.events, 1):
        name = (event.entity_type, event.entity_id)
        before = newest.get(name)
        if event.position != place:
            found.append(f"no event at position {place}")
        if event.recorded_at_us < at:
            found.append(f"the event at {place} is older than the one before it")
        if event.previous_position != (before.position if before else 0) or (
            before is not None and event.sequence != before.sequence + 1
        ):
            found.append(f"the event at {place} does not follow its entity's event before")
        newest[name] = event
        at = event.recorded_at_us
    return found
