"""Folding: the state of an entity at a sequence number, and whether its snapshots equal its events.

The user's code runs in threads, a batch of events at a time, each within a deadline; events are
streamed, so that an entity of any length costs one batch and its state.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import orjson

from journal.model import Entity as JournalEntity
from journal.model import Limits, LoadQuery
from journal.preparation import check_entity
from journal.reader import LoadedRows, LogRef, Span
from journal.rows import EventRow, Names, split_metadata
from kernel import clock, sql
from kernel.database import Database
from kernel.errors import (
    Compacted,
    DeadlineExceeded,
    EntityNotFound,
    FoldFailed,
    InvalidArgument,
    TooLarge,
    Undecodable,
    UnknownType,
)
from kernel.threads import Threads
from kernel.usercode import place
from schemas.descriptors import Decoder
from snapshots.folds import FoldDefinition, FoldEvent, Folds, canonical

MAX_STATE_BYTES = 8_000_000
"""A state larger than this, as JSON, is not shown."""
BATCH_SECONDS = 10.0
"""A fold that needs longer for a batch of events (1,000 at most) is given up."""
THREADS = 2
SECONDS = 60.0
CONTINUED = 16
"""So many events before the end, or half-way if that is nearer, a proof dumps and loads the state;
from there it folds on."""

Result = TypeVar("Result")


class Journal(Protocol):
    """Where events come from: a `journal.store.StoreJournal`."""

    @property
    def database(self) -> Database: ...

    @property
    def names(self) -> Names: ...

    async def open_log(self, name: str, timeout: float | None = None) -> LogRef: ...

    def load_rows(
        self, log: str, query: LoadQuery, timeout: float | None
    ) -> AsyncIterator[LoadedRows]: ...

    async def get_entity(self, log: str, entity_type: str, entity_id: str) -> JournalEntity: ...

    async def load_several(
        self, log_id: int, spans: Sequence[Span], most: int, stop_bytes: int
    ) -> list[EventRow]: ...


@dataclass(frozen=True, slots=True)
class FoldedState:
    """The state of an entity after the event ``sequence``.

    ``position`` and ``time_us`` are that event's (0: not known); ``from_snapshot`` is the snapshot
    that folding began with (0: none); ``json`` is the state for people.
    """

    entity_type: str
    entity_id: str
    sequence: int
    floor: int
    position: int
    time_us: int
    fold_version: int
    from_snapshot: int
    events_folded: int
    json: Any


@dataclass(frozen=True, slots=True)
class Folded:
    """A snapshot that a fold made of all readable events."""

    sequence: int
    position: int
    time_us: int
    payload: bytes


@dataclass(slots=True)
class Entity:
    """The head of an entity, as fold_entity.sql has it."""

    log: str
    log_id: int
    entity_type: str
    entity_id: str
    key: int
    last: int
    first: int
    first_position: int
    last_position: int
    floor: int

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.entity_type}/{self.entity_id}"

    @property
    def base(self) -> int:
        """The snapshot that the floor rests on; 0: nothing was compacted."""
        return self.floor - 1 if self.floor > self.first else 0


@dataclass(slots=True)
class Stored:
    """A snapshot that a fold can load."""

    sequence: int
    type: str
    payload: bytes
    position: int
    time_us: int


@dataclass(slots=True)
class Run:
    """A state in the making: after the event ``sequence``. Its methods run in a thread."""

    definition: FoldDefinition
    entity: Entity
    decoder: Decoder
    state: Any = None
    sequence: int = 0
    position: int = 0
    time_us: int = 0
    from_snapshot: int = 0
    events: int = 0
    prove_at: int = 0
    """What `proven` shall prove the state at; set before the first event is applied; 0: nothing."""
    before: Stored | None = None
    tail: list[EventRow] = field(default_factory=list)
    """With ``prove_at``: the dumped state before the last events, and these."""

    def begin(self, stored: Stored | None) -> None:
        """Begins with a snapshot, or with nothing."""
        fold = self.definition.fold
        if stored is None:
            with self.failing("initial"):
                self.state = fold.initial()
            return
        with self.failing(f"load of the snapshot at sequence {stored.sequence}"):
            self.state = fold.load(stored.payload, stored.type)
        self.sequence = self.from_snapshot = stored.sequence
        self.position, self.time_us = stored.position, stored.time_us

    def feed(self, rows: Sequence[EventRow], names: Names) -> None:
        """Applies events; on a failure the run is of no more use."""
        apply, decoder = self.definition.fold.apply, self.decoder
        for row in rows:
            if self.prove_at and row[1] > self._continue_at():
                if self.before is None:
                    kind = self.definition.snapshot_type
                    self.before = Stored(self.sequence, kind, self.dump(), 0, 0)
                self.tail.append(row)
            event = _event(row, names, decoder, self.entity)
            try:
                self.state = apply(self.state, event)
            except Exception as error:  # noqa: BLE001 - whatever the user's code raises
                raise self._failed(f"sequence {event.sequence}", error) from None
            self.sequence, self.position = event.sequence, event.position
            self.time_us = clock.to_us(event.time)
            self.events += 1

    def _continue_at(self) -> int:
        """Half-way, but for long ones: little is lost of the state before the first event."""
        half = (self.prove_at - self.from_snapshot + 1) // 2
        return self.prove_at - min(CONTINUED, half)

    def dump(self) -> bytes:
        """The state as a snapshot's payload."""
        with self.failing(f"dump at sequence {self.sequence}"):
            payload = self.definition.fold.dump(self.state)
            if not isinstance(payload, bytes):
                raise TypeError
        return payload

    def json(self) -> Any:
        """The state for people, as plain JSON values."""
        with self.failing(f"to_json at sequence {self.sequence}"):
            text = canonical(self.definition.fold.to_json(self.state))
        if len(text) > MAX_STATE_BYTES:
            raise TooLarge("state", len(text), MAX_STATE_BYTES)
        return orjson.loads(text)

    @contextlib.contextmanager
    def failing(self, where: str) -> Iterator[None]:
        """Says where the user's code failed, and never with what: it has seen events."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            raise self._failed(where, error) from None

    def _failed(self, where: str, error: Exception) -> FoldFailed:
        return FoldFailed(
            f"{self.definition.title}: {self.entity.title}: {where}: {type_of(error)}"
        )


@dataclass(slots=True)
class Folding:
    """Folds of this process at work. For one event loop.

    ``decoder`` makes one: a run has its own as long as it takes.
    """

    folds: Folds
    decoder: Callable[[], Decoder]
    threads: Threads = field(default_factory=lambda: Threads(THREADS))
    batch_seconds: float = BATCH_SECONDS
    _decoders: list[Decoder] = field(default_factory=list)

    def get(self, entity_type: str) -> FoldDefinition | None:
        """The fold of an entity type; None: there is none that may be used."""
        return self.folds.get(entity_type)

    # States

    async def state_at(
        self,
        journal: Journal,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        sequence: int = 0,
        time_us: int | None = None,
        full: bool = False,
        seconds: float = SECONDS,
    ) -> FoldedState:
        """The state of an entity after the event ``sequence`` (0: the last one).

        ``time_us`` instead: after the last event before the first one that happened then or later.
        Folding begins with the newest snapshot that the fold can load, or, with ``full``, with the
        one that the floor rests on, if any.

        Raises:
            NoFold, LogNotFound, EntityNotFound. InvalidArgument: there is no such sequence number,
            or no event before the time. Compacted: it lies below the floor. FoldFailed,
            Undecodable, UnknownType: names the event. TooLarge: the state cannot be shown.
            DeadlineExceeded, Overloaded.

        """
        definition = self.folds.named(entity_type)
        async with deadline(seconds, definition):
            entity = await entity_of(journal, log, entity_type, entity_id)
            to = await target_of(journal, entity, sequence, time_us)
            async with self.run(definition, entity) as run:
                await self._fold(journal, run, to, full=full)
                shown = await self.call(definition, run.json)
            return FoldedState(
                entity_type, entity_id, to, entity.floor, run.position, run.time_us,
                definition.version, run.from_snapshot, run.events, shown,
            )  # fmt: skip

    async def snapshot_at(
        self,
        journal: Journal,
        log: str,
        entity_type: str,
        entity_id: str,
        sequence: int,
        *,
        seconds: float = SECONDS,
    ) -> Folded:
        """A snapshot at ``sequence``, made of all readable events; loading it was tried.

        Raises:
            as `state_at`. FoldFailed: what was dumped and loaded dumps to other bytes.

        """
        definition = self.folds.named(entity_type)
        async with deadline(seconds, definition):
            entity = await entity_of(journal, log, entity_type, entity_id)
            to = await target_of(journal, entity, sequence, None)
            async with self.run(definition, entity) as run:
                run.prove_at = to
                await self._fold(journal, run, to, full=True)
                payload = await self.call(definition, lambda: proven(run, journal.names))
            return Folded(to, run.position, run.time_us, payload)

    async def _fold(self, journal: Journal, run: Run, to: int, *, full: bool) -> None:
        """Brings a new run to ``to``."""
        entity = run.entity
        stored = await newest(
            journal, entity, entity.base, entity.base if full else to, run.definition.types,
            proven_only=True,
        )  # fmt: skip
        if entity.base and (stored is None or to < entity.base):
            raise Compacted(entity.entity_type, entity.entity_id, entity.floor)
        await self.call(run.definition, lambda: run.begin(stored))
        async for rows in events_of(journal, entity, run.sequence, to):
            await self.feed(journal, run, rows)
        if run.sequence != to:  # nobody can have removed them: reads end at the entity's head
            raise FoldFailed(f"{entity.title}: there is no event after sequence {run.sequence}")

    async def feed(self, journal: Journal, run: Run, rows: Sequence[EventRow]) -> None:
        """Applies a batch in a thread."""
        names = journal.names
        await self.prepare(run.decoder, names, rows)
        await self.call(run.definition, lambda: run.feed(rows, names))

    async def prepare(self, decoder: Decoder, names: Names, rows: Sequence[EventRow]) -> None:
        """Makes a decoder know the types of events."""
        kinds = (names.event_types[type_id] for type_id in {row[5] for row in rows})
        await decoder.prepare([(kind.name, kind.content_type) for kind in kinds])

    async def redumped(self, definition: FoldDefinition, payload: bytes, type: str) -> bytes:  # noqa: A002
        """A snapshot's payload as the fold dumps it when it has loaded it. Raises `FoldFailed`."""

        def act() -> bytes:
            fold = definition.fold
            try:
                return fold.dump(fold.load(payload, type))
            except Exception as error:  # noqa: BLE001 - whatever the user's code raises
                raise FoldFailed(f"{definition.title}: {type}: {type_of(error)}") from None

        return await self.call(definition, act)

    async def call(self, definition: FoldDefinition, act: Callable[[], Result]) -> Result:
        """Runs the user's code in a thread. Raises `FoldFailed` when it gives no answer in time."""
        try:
            # Patience for others that hang before it: they are given up in turn.
            return await self.threads.run(act, self.batch_seconds, patience=3 * self.batch_seconds)
        except TimeoutError:
            raise FoldFailed(
                f"{definition.title}: gave no answer within {self.batch_seconds:g} s"
            ) from None

    @contextlib.asynccontextmanager
    async def run(self, definition: FoldDefinition, entity: Entity) -> AsyncIterator[Run]:
        """A run that has not begun, with a decoder of its own."""
        async with self.decoding() as decoder:
            yield Run(definition, entity, decoder)

    @contextlib.asynccontextmanager
    async def decoding(self) -> AsyncIterator[Decoder]:
        """A decoder for oneself."""
        decoder = self._decoders.pop() if self._decoders else self.decoder()
        yield decoder
        self._decoders.append(decoder)  # after a failure a thread may still have it


def type_of(error: BaseException) -> str:
    """What an error of the user's code is and where it came from, without its message."""
    at = place(error)
    return type(error).__name__ + (f" ({at})" if at else "")


def _comparable(kind: type) -> bool:
    """Whether == compares values of a type, and not which object it is."""
    return getattr(kind, "__eq__", None) is not getattr(object, "__eq__", None)


def proven(run: Run, names: Names) -> bytes:
    """The payload of a snapshot of a run that had ``prove_at``, proven: what is loaded is the state
    that was dumped, and folding on from a state that was dumped and loaded gives the same.

    Raises:
        FoldFailed: it is not so; says in what way.

    """
    definition = run.definition

    def refuse(problem: str) -> FoldFailed:
        return FoldFailed(
            f"{definition.title}: {run.entity.title}: sequence {run.sequence}: {problem}"
        )

    payload = run.dump()
    other = Run(definition, run.entity, run.decoder)
    other.begin(Stored(run.sequence, definition.snapshot_type, payload, 0, 0))
    if type(other.state) is not type(run.state):
        raise refuse(
            f"what `dump` gives loads as {type(other.state).__name__:.60}, and the state is"
            f" {type(run.state).__name__:.60}"
        )
    with run.failing(f"== of states at sequence {run.sequence}"):
        same = not _comparable(type(run.state)) or bool(other.state == run.state)
    if not same:
        raise refuse("what `dump` gives loads as another state")
    if other.dump() != payload:
        raise refuse("what `dump` gives and `load` takes dumps to other bytes")
    if run.before is not None:
        on = Run(definition, run.entity, run.decoder)
        on.begin(run.before)
        on.feed(run.tail, names)
        if on.dump() != payload:
            raise refuse(
                f"folding on from the state at {run.before.sequence}, dumped and loaded, gives"
                " another state than folding all events"
            )
    return payload


@contextlib.asynccontextmanager
async def deadline(seconds: float, definition: FoldDefinition) -> AsyncIterator[None]:
    """Ends what is inside after so many seconds, and says that it was a fold.

    Raises:
        DeadlineExceeded: names the fold.

    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineExceeded(
            f"{definition.title}: not all events were folded within {seconds:g} s"
        ) from None


# Reading


async def entity_of(journal: Journal, log: str, entity_type: str, entity_id: str) -> Entity:
    """An entity as it is now.

    Raises:
        LogNotFound, EntityNotFound, InvalidArgument.

    """
    check_entity("", entity_type, entity_id, Limits())
    log_id = (await journal.open_log(log)).log_id
    database = journal.database
    row = await database.fetchrow(
        sql.load("snapshots", "fold_entity", database.schema), log_id, entity_type, entity_id
    )
    if row is None:
        raise EntityNotFound(entity_type, entity_id)
    return Entity(
        log, log_id, entity_type, entity_id, row["entity_key"], row["last_seq"], row["first_seq"],
        row["first_position"], row["last_position"], row["floor"],
    )  # fmt: skip


async def target_of(journal: Journal, entity: Entity, sequence: int, time_us: int | None) -> int:
    """The sequence number that is asked for; see `Folding.state_at`."""
    if sequence and time_us is not None:
        raise InvalidArgument("at", "give either sequence or at")
    if time_us is not None:
        found = await before(
            journal.database, entity.log_id, [entity.key], [entity.first_position],
            [entity.last_position], [entity.last], time_us,
        )  # fmt: skip
        sequence, _ = found[entity.key]
        if sequence < entity.first:
            raise InvalidArgument("at", f"{entity.title} had no event before that time")
    elif not sequence:
        sequence = entity.last
    if not entity.first <= sequence <= entity.last:
        raise InvalidArgument(
            "sequence",
            f"{sequence} is not from {entity.first} to {entity.last}, the last of {entity.title}",
        )
    return sequence


async def before(
    database: Database,
    log_id: int,
    keys: Sequence[int],
    first_positions: Sequence[int],
    last_positions: Sequence[int],
    last_sequences: Sequence[int],
    time_us: int,
    timeout: float | None = None,
) -> dict[int, tuple[int, int]]:
    """By entity key: (sequence, position) of the last event before the first one that happened at
    or after a time; position 0: there is none.
    """
    rows = await database.fetch(
        sql.load("snapshots", "fold_before", database.schema), log_id, keys, first_positions,
        last_positions, last_sequences, clock.from_us(time_us), timeout=timeout,
    )  # fmt: skip
    return {row["entity_key"]: (row["seq"], row["position"]) for row in rows}


async def newest(
    journal: Journal, entity: Entity, low: int, high: int, types: Sequence[str],
    *, proven_only: bool = False,
) -> Stored | None:  # fmt: skip
    """The newest snapshot within sequence numbers that has one of these types.

    ``proven_only``: what an older version of the fold made or verified is passed over, unless the
    floor rests on it: then there is nothing else to begin with.
    """
    database = journal.database
    row = await database.fetchrow(
        sql.load("snapshots", "fold_snapshot", database.schema), entity.log_id, entity.key,
        max(low, 1), high, list(types), entity.entity_type if proven_only else None, entity.base,
    )  # fmt: skip
    if row is None:
        return None
    time_us = clock.to_us(row["event_at"]) if row["event_at"] is not None else 0
    return Stored(row["seq"], row["type"], row["payload"], row["position"] or 0, time_us)


async def events_of(
    journal: Journal, entity: Entity, after: int, to: int
) -> AsyncIterator[list[EventRow]]:
    """Events of an entity in order, in batches."""
    if after >= to:
        return
    query = LoadQuery(
        entity.entity_type, entity.entity_id, after_sequence=after, to_sequence=to,
        ignore_snapshot=True,
    )  # fmt: skip
    async for part in journal.load_rows(entity.log, query, None):
        if part.rows:
            yield part.rows


def _event(row: EventRow, names: Names, decoder: Decoder, entity: Entity) -> FoldEvent:
    position, sequence, recorded_at, _, event_id, type_id, _, _, _, payload, stored = row
    kind = names.event_types[type_id]
    time = recorded_at
    metadata: Mapping[str, Any] = {}
    if stored is not None:
        own, extras = split_metadata(stored)
        metadata = orjson.loads(own) if own else {}
        if "client_time_us" in extras:
            time = clock.from_us(extras["client_time_us"])
    try:
        shape = decoder.read(kind.name, kind.content_type, kind.schema_version, payload)
    except (UnknownType, Undecodable) as error:
        raise type(error)(f"{entity.title}: sequence {sequence}: {error.message}") from None
    return FoldEvent(
        position, sequence, shape.type, recorded_at, time, shape.data, metadata, payload,
        kind.content_type, str(event_id), shape.schema_version,
    )  # fmt: skip
