"""The journal on PostgreSQL: appends through the append function, group-committed per log.

Stateless but for caches: any number of stores, in any number of processes, may write the same log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any

import asyncpg
import structlog

from journal import chunks, integrity
from journal.committed import rows_of
from journal.dictionary import Dictionary
from journal.model import (
    DEFAULT_CHUNK_SIZE,
    Append,
    Appended,
    AppendedEntity,
    Entity,
    EntityPage,
    EntityPart,
    EventBatch,
    Limits,
    LoadQuery,
    LogInfo,
    ReadQuery,
    SubscribeQuery,
    SubscriptionBatch,
    VerifyProgress,
)
from journal.policies import SnapshotPolicies, with_hints
from journal.preparation import (
    PreparedAppend,
    Preparer,
    check_entity,
    check_log_name,
)
from journal.queries import SMALLEST_CHUNK, check_chunk_size, expected_of
from journal.reader import LoadedRows, Reader, Span
from journal.rows import EventRow, RowBatch, too_many_types
from journal.sequencer import Outcome, Sequencer, SequencerSettings
from journal.subscriptions import Subscriptions, SubscriptionSettings
from kernel import clock, sql, telemetry
from kernel.database import Connection, Database, translate
from kernel.errors import (
    AppendIdReused,
    DeadlineExceeded,
    EntityDeleted,
    EverstateError,
    FailedCheck,
    InternalError,
    InvalidArgument,
    LogExists,
    LogNotFound,
    Unavailable,
    WrongExpectedState,
)

log = structlog.get_logger(__name__)

WRITTEN, DUPLICATE = 0, -1
WRONG_SEQUENCE, NO_SUCH_ENTITY, DELETED, ID_REUSED = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Settings of the journal's store; see also `SequencerSettings`."""

    node: str = "node"
    limits: Limits = field(default_factory=Limits)
    sequencer: SequencerSettings = field(default_factory=SequencerSettings)
    subscriptions: SubscriptionSettings = field(default_factory=SubscriptionSettings)
    append_id_window: timedelta = timedelta(days=2)
    max_clock_skew: timedelta = timedelta(seconds=60)
    max_types: int = 20_000
    default_timeout: timedelta = timedelta(seconds=30)
    chunk_size: int = DEFAULT_CHUNK_SIZE


@dataclass(slots=True, eq=False)
class OpenLog:
    """A log this store has met."""

    name: str
    log_id: int
    sequencer: Sequencer


class StoreJournal:
    """`journal.journal.Journal` on PostgreSQL.

    `start` runs the maintenance (chunks ahead of need, days of append results); `close` waits for
    appends in flight.
    """

    def __init__(self, database: Database, settings: StoreSettings | None = None) -> None:
        self.database = database
        self.settings = settings or StoreSettings()
        self.preparer = Preparer(self.settings.limits, self.settings.append_id_window)
        self.names = Dictionary(database, self.settings.max_types)
        self.reader = Reader(database, self.names)
        self.maintenance = chunks.Maintenance(database, self.settings.append_id_window)
        self.policies = SnapshotPolicies(database)
        self.subscriptions = Subscriptions(self, self.settings.subscriptions)
        self._logs: dict[str, OpenLog] = {}
        self._append_sql = sql.load("journal", "append_batch", database.schema)

    async def start(self) -> None:
        """Prepares what appends need and keeps it prepared."""
        await self.maintenance.start()
        await self.subscriptions.start()
        self.policies.start()

    async def close(self) -> None:
        """Fails new appends, waits for those in flight, ends subscriptions and maintenance."""
        self.subscriptions.stop()
        await self.policies.close()
        await asyncio.gather(*(opened.sequencer.close() for opened in self._logs.values()))
        await self.subscriptions.close()
        await self.maintenance.close()

    async def _fetch(self, name: str, *args: object, timeout: float | None) -> list[Any]:
        statement = sql.load("journal", name, self.database.schema)
        return await self.database.fetch(statement, *args, timeout=timeout)

    async def open_log(self, name: str, timeout: float | None = None) -> OpenLog:
        """The log of this name. Raises `LogNotFound`."""
        opened = self._logs.get(name)
        if opened is None:
            rows = await self._fetch("log_id", check_log_name(name), timeout=timeout)
            if not rows:
                raise LogNotFound(name)
            name = check_log_name(name)
            log_id: int = rows[0][0]
            opened = self._logs.get(name) or OpenLog(
                name,
                log_id,
                Sequencer(functools.partial(self._execute, name, log_id), self.settings.sequencer),
            )
            self._logs[name] = opened
        return opened

    @property
    def logs(self) -> Sequence[OpenLog]:
        """The logs this store has met."""
        return list(self._logs.values())

    # Appends

    async def append(
        self, log: str, append: Append, *, timeout: timedelta | None = None
    ) -> Appended:
        """See `journal.journal.Journal.append`."""
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        prepared = self.preparer.prepare(append)
        opened = await self.open_log(log, seconds)
        return await opened.sequencer.append(prepared, seconds)

    async def _execute(
        self, name: str, log_id: int, batch: Sequence[PreparedAppend], timeout: float
    ) -> list[Outcome]:
        """Commits a batch; see `journal.sequencer.Execute`."""
        blocked: dict[int, Outcome] = await self._ensure_types(batch, timeout)
        wanted = (
            [append for i, append in enumerate(batch) if i not in blocked] if blocked else batch
        )
        outcomes: list[Outcome] = []
        if wanted:
            loop = asyncio.get_running_loop()
            began = loop.time()
            row = await self._call(log_id, wanted, timeout)
            took = loop.time() - began
            telemetry.commit_seconds.observe(took)
            telemetry.recent_commits.add(took)
            telemetry.batch_appends.observe(len(wanted))
            outcomes = self._read_verdicts(name, wanted, row)
            self._announce(name, log_id, wanted, row, outcomes)
        if not blocked:
            return outcomes
        rest = iter(outcomes)
        return [blocked[i] if i in blocked else next(rest) for i in range(len(batch))]

    def _announce(
        self, name: str, log_id: int, batch: Sequence[PreparedAppend], row: Any,
        outcomes: Sequence[Outcome],
    ) -> None:  # fmt: skip
        """Tells those who wait for events what was committed."""
        written = sum(
            len(append.events)
            for append, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Appended) and not outcome.duplicate
        )
        if written:
            head = row["o_head"] + written
            self.maintenance.head_moved(name, head)
            wanted = self.subscriptions.is_wanted(name)
            rows = rows_of(batch, row, self.names) if wanted else None
            self.subscriptions.committed(name, log_id, head, rows)

    async def _ensure_types(
        self, batch: Sequence[PreparedAppend], timeout: float
    ) -> dict[int, Outcome]:
        """Makes the batch's types known; outcomes, by index, of appends whose types are too
        many.
        """
        names = self.names
        unknown_events = {e[4] for a in batch for e in a.events} - names.event_ids.keys()
        unknown_entities = {m[0] for a in batch for m in a.members} - names.entity_ids.keys()
        blocked: dict[int, Outcome] = {}
        if unknown_events:
            refused = await names.ensure_event_types(unknown_events, timeout)
            for i, append in enumerate(batch):
                if refused and any(e[4] in refused for e in append.events):
                    blocked[i] = too_many_types("event", names.max_types + 1, names.max_types)
        if unknown_entities:
            refused_names = await names.ensure_entity_types(unknown_entities, timeout)
            for i, append in enumerate(batch):
                if refused_names and any(m[0] in refused_names for m in append.members):
                    blocked[i] = too_many_types("entity", names.max_types + 1, names.max_types)
        return blocked

    async def _call(self, log_id: int, batch: Sequence[PreparedAppend], timeout: float) -> Any:
        args = self._arguments(log_id, batch)
        # Maintenance makes chunks ahead of need; a batch may need more than there are.
        for _ in range(sum(len(append.events) for append in batch) // SMALLEST_CHUNK + 2):
            try:
                return await self._send(args, timeout)
            except _NoChunk:
                await self.maintenance.make_chunk(log_id)
        raise Unavailable("the log's next chunk is not there yet")

    async def _send(self, args: Sequence[object], timeout: float) -> Any:
        async with self.database.connection(timeout) as connection:
            try:
                return await connection.fetchrow(self._append_sql, *args, timeout=timeout + 1)
            except asyncpg.CheckViolationError as error:
                if error.constraint_name is None:  # "no partition of relation … found for row"
                    raise _NoChunk from None
                raise translate(error, writing=True) from error
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                raise translate(error, writing=_was_sent(connection, error)) from error

    def _arguments(self, log_id: int, batch: Sequence[PreparedAppend]) -> list[object]:
        entity_ids, event_ids = self.names.entity_ids, self.names.event_ids
        numbers: list[int] = []
        groups: list[int] = []
        receipts: list[tuple[int, str, object, bytes | None]] = []
        snapshots: list[tuple[int, str, str, bytes]] = []
        for number, append in enumerate(batch, 1):
            base = len(numbers) + 1
            if len(append.members) == 1:
                numbers.append(number)
                groups += [base] * len(append.events)
            else:
                numbers += [number] * len(append.members)
                groups += [base + event[0] for event in append.events]
            if append.append_id:
                receipts.append((number, append.append_id, append.append_day, append.content_hash))
            for member, kind, content_type, payload in append.snapshots:
                snapshots.append((base + member, kind, content_type, payload))
        types, ids, slices, modes, starts, counts, sizes = zip(
            *chain.from_iterable(a.members for a in batch), strict=True
        )
        _, places, backs, uuids, kinds, payloads, metadata = zip(
            *chain.from_iterable(a.events for a in batch), strict=True
        )
        # Arrays that hold nothing are null: each costs both sides for every element.
        return [
            log_id, clock.now(), self.settings.max_clock_skew.total_seconds(), self.settings.node,
            numbers, [entity_ids[t] for t in types], ids, slices, modes,
            starts if any(starts) else None, counts, sizes, groups, places,
            backs if any(backs) else None, uuids, [event_ids[k] for k in kinds], payloads,
            metadata if any(metadata) else None,
            *(zip(*receipts, strict=True) if receipts else [None] * 4),
            *(zip(*snapshots, strict=True) if snapshots else [None] * 4),
        ]  # fmt: skip

    def _read_verdicts(self, log: str, batch: Sequence[PreparedAppend], row: Any) -> list[Outcome]:
        verdicts, sequences, shifts = row["o_verdicts"], row["o_sequences"], row["o_shifts"]
        at = clock.to_us(row["o_at"])
        duplicates = (
            {
                number: (first, last, clock.to_us(when))
                for number, first, last, when in zip(
                    row["d_no"], row["d_first"], row["d_last"], row["d_at"], strict=True
                )
            }
            if row["d_no"]
            else {}
        )
        outcomes: list[Outcome] = []
        every = self.policies.every
        position = row["o_head"]  # of the event before the append, had none been refused
        member = written = 0
        for number, append in enumerate(batch, 1):
            members = append.members
            first_member = member
            member += len(members)
            verdict = verdicts[first_member]
            before, position = position, position + len(append.events)
            if verdict in (WRITTEN, DUPLICATE):
                entities = tuple(
                    AppendedEntity(sequences[i] + 1, sequences[i] + row_[5])
                    for i, row_ in enumerate(members, first_member)
                )
                if every:
                    entities = with_hints(append, entities, every)
                if verdict == WRITTEN:
                    shift = shifts[first_member]
                    outcomes.append(
                        Appended(before + 1 - shift, position - shift, at, entities, False)
                    )
                    written += len(append.events)
                    continue
                first, last, when = duplicates[number]
                outcomes.append(Appended(first, last, when, entities, True))
                continue
            outcomes.append(
                _refusal(append, verdicts[first_member:member], sequences[first_member:member])
            )
        _count(log, outcomes, written, row["o_head"] + written)
        telemetry.recorded_ahead_seconds.labels(log).set(max(0.0, (at - clock.now_us()) / 1e6))
        return outcomes

    # Reads

    def load_rows(
        self, log: str, query: LoadQuery, timeout: float | None, *, below_floor: bool = False
    ) -> AsyncIterator[LoadedRows]:
        """`load`, with events as rows. ``below_floor``: see `journal.reader.Reader.load`."""
        check_entity("", query.entity_type, query.entity_id, self.settings.limits)
        return self.reader.load(self, log, query, timeout, below_floor=below_floor)

    async def load_several(
        self, log_id: int, spans: Sequence[Span], most: int, stop_bytes: int
    ) -> list[EventRow]:
        """Events of several entities in one statement; see `journal.reader.Reader.several`."""
        return await self.reader.several(log_id, spans, most, stop_bytes, None)

    def read_rows(
        self, log: str, query: ReadQuery, timeout: float | None
    ) -> AsyncGenerator[RowBatch, None]:
        """`read`, with events as rows."""
        return self.reader.read(self, log, query, timeout)

    async def load(
        self, log: str, query: LoadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EntityPart]:
        """See `journal.journal.Journal.load`."""
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        async for part in self.load_rows(log, query, seconds):
            events = tuple(map(self.names.event, part.rows))
            yield EntityPart(part.entity, part.snapshot, events)

    async def read(
        self, log: str, query: ReadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EventBatch]:
        """See `journal.journal.Journal.read`."""
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        async for batch in self.read_rows(log, query, seconds):
            events = tuple(map(self.names.event, batch.rows))
            yield EventBatch(events, batch.next_position, batch.head, batch.removed)

    async def subscribe(
        self, log: str, query: SubscribeQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[SubscriptionBatch]:
        """See `journal.journal.Journal.subscribe`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout.total_seconds()
        event = self.names.event
        async with contextlib.aclosing(self.subscriptions.subscribe(log, query)) as deliveries:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        each = await anext(deliveries)
                except TimeoutError:
                    raise DeadlineExceeded from None
                yield SubscriptionBatch(
                    tuple(map(event, each.rows)), each.next_position, each.head, each.removed,
                    each.caught_up, each.fell_behind,
                )  # fmt: skip

    async def get_entity(
        self, log: str, entity_type: str, entity_id: str, *, timeout: timedelta | None = None
    ) -> Entity:
        """See `journal.journal.Journal.get_entity`."""
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        check_entity("", entity_type, entity_id, self.settings.limits)
        opened = await self.open_log(log, seconds)
        entity, _ = await self.reader.entity(opened.log_id, entity_type, entity_id, seconds)
        return entity

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
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        opened = await self.open_log(log, seconds)
        return await self.reader.list_entities(
            opened.log_id, entity_type, id_prefix, page_size, page_token, seconds
        )

    # Logs

    async def get_log(self, log: str, *, timeout: timedelta | None = None) -> LogInfo:
        """See `journal.journal.Journal.get_log`."""
        found = await self._logs_named(check_log_name(log), timeout)
        if not found:
            raise LogNotFound(log)
        return found[0]

    async def list_logs(self, *, timeout: timedelta | None = None) -> tuple[LogInfo, ...]:
        """See `journal.journal.Journal.list_logs`."""
        return await self._logs_named(None, timeout)

    async def _logs_named(self, name: str | None, timeout: timedelta | None) -> tuple[LogInfo, ...]:
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        rows = await self._fetch("logs", name, timeout=seconds)
        return tuple(
            LogInfo(
                row["name"], row["head"], row["first"] or 1, row["chunk_size"], row["chunks"],
                row["ahead"], clock.to_us(row["recorded_at"]) if row["head"] else 0,
                row["bytes_total"], row["last_entity_key"],
            )
            for row in rows
        )  # fmt: skip

    async def create_log(
        self, log: str, chunk_size: int = 0, *, timeout: timedelta | None = None
    ) -> LogInfo:
        """See `journal.journal.Journal.create_log`."""
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        if not log:
            raise InvalidArgument("log", "is empty")
        name = check_log_name(log)
        check_chunk_size(chunk_size)
        rows = await chunks.behind_locks(
            functools.partial(
                self._fetch, "create_log", name, chunk_size or self.settings.chunk_size,
                timeout=seconds,
            ),
            seconds,
        )  # fmt: skip
        if rows[0][0] is None:
            raise LogExists(name)
        self.maintenance.nudge()
        return await self.get_log(name, timeout=timeout)

    async def position_at(
        self, log: str, time_us: int, *, timeout: timedelta | None = None
    ) -> tuple[int, int]:
        """See `journal.journal.Journal.position_at`."""
        seconds = (timeout or self.settings.default_timeout).total_seconds()
        opened = await self.open_log(log, seconds)
        _, head = await self.reader.bounds(opened.log_id, seconds)
        return await self.reader.position_at(opened.log_id, time_us, head, seconds), head

    async def verify(
        self,
        log: str,
        from_position: int = 0,
        to_position: int = 0,
        *,
        timeout: timedelta | None = None,
    ) -> AsyncIterator[VerifyProgress]:
        """See `journal.journal.Journal.verify`."""
        seconds = timeout.total_seconds() if timeout else None
        opened = await self.open_log(log, seconds)
        first, head = await self.reader.bounds(opened.log_id, seconds)
        async for progress in integrity.verify(
            self.database, opened.log_id, first, head, from_position, to_position, seconds
        ):
            yield progress


class _NoChunk(Exception):
    """The log has no chunk for the next position."""


def _was_sent(connection: Connection, error: BaseException) -> bool:
    """Whether the statement may have reached the server: then its outcome is unknown."""
    # A connection that was closed before we used it sent nothing.
    return not (
        isinstance(error, asyncpg.InterfaceError)
        and "connection is closed" in str(error)
        and connection.is_closed()
    )


def _refusal(
    append: PreparedAppend, verdicts: Sequence[int], sequences: Sequence[int]
) -> EverstateError:
    """The error of an append none of whose parts was written."""
    members = append.members
    if ID_REUSED in verdicts:
        return AppendIdReused(append.append_id)
    deleted = tuple((m[0], m[1]) for m, v in zip(members, verdicts, strict=True) if v == DELETED)
    if deleted:
        return EntityDeleted(deleted)
    failures = tuple(
        FailedCheck(m[0], m[1], expected_of(m, actual), actual)
        for m, v, actual in zip(members, verdicts, sequences, strict=True)
        if v in (WRONG_SEQUENCE, NO_SUCH_ENTITY)
    )
    return WrongExpectedState(failures) if failures else InternalError("a verdict without a reason")


def _count(log_name: str, outcomes: Sequence[Outcome], written: int, head: int) -> None:
    accepted = duplicates = 0
    for outcome in outcomes:
        if isinstance(outcome, EverstateError):
            telemetry.refused.labels(log_name, outcome.code).inc()
        elif outcome.duplicate:
            duplicates += 1
        else:
            accepted += 1
    telemetry.appends.labels(log_name).inc(accepted)
    telemetry.events_appended.labels(log_name).inc(written)
    telemetry.head.labels(log_name).set(head)
    if duplicates:
        telemetry.duplicates.labels(log_name).inc(duplicates)
