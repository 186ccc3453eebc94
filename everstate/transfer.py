"""Import and export of events as lines of JSON.

Import is idempotent by construction: an event's id is derived from its line and its ordinal within
its entity, and every append names exactly the state that the file implies. Run twice, or killed and
run again, it gives the same log; an entity that holds other events is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import gzip
import io
import json
import re
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import orjson

from everstate.commands.common import event_line, position_of, show
from journal.model import ANY, JSON, OCTET_STREAM, Limits
from journal.preparation import Preparer
from kernel import clock
from kernel.errors import (
    Compacted,
    ForeignEvents,
    InvalidArgument,
    NotFound,
    TooLarge,
    WrongExpectedState,
)
from sidecar_api.client import (
    Append,
    Client,
    EntityAppend,
    EventView,
    Expected,
    LoadQuery,
    NewEvent,
    ReadQuery,
)

if TYPE_CHECKING:
    from rich.progress import Progress

NAMESPACE = uuid.UUID("6f2f1f0e-5d0c-5a54-9e39-0f6d0a4d1c11")
"""Of the ids of imported events: uuid5 of the ordinal within the entity and the line's content."""

RUN_EVENTS = 256
RUN_BYTES = 1_000_000
MAX_LINE_BYTES = 8_000_000

_LONG_NUMBER = re.compile(rb"[0-9]{19}").search
_TEXTS = ("correlation_id", "causation_id", "traceparent", "subject")
_KEYS = frozenset(
    (
        "entity_type", "entity_id", "type", "data", "payload_base64", "time", "event_id",
        "sequence", "metadata", "content_type", "schema_version", "position", "recorded_at",
        *_TEXTS,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a file. ``ordinal``: its place among the file's events of its entity, 1-based;
    ``sequence``: the number the file gives it, 0 for none.
    """

    number: int
    entity: tuple[str, str]
    ordinal: int
    sequence: int
    event: NewEvent

    @property
    def stored_sequence(self) -> int:
        """The sequence number it has in the log."""
        return self.sequence or self.ordinal


@dataclass(slots=True)
class Parser:
    """Reads lines in order; knows each entity's ordinal."""

    limits: Limits
    ordinals: dict[tuple[str, str], int] = field(default_factory=dict)
    sequences: dict[tuple[str, str], int] = field(default_factory=dict)

    def parse(self, number: int, text: bytes) -> Line:
        """The event of a line.

        Raises:
            InvalidArgument: names the line and what is wrong with it.

        """
        try:
            return self._parse(number, text)
        except (InvalidArgument, TooLarge) as error:
            raise InvalidArgument(f"line {number}", error.message) from None

    def _parse(self, number: int, text: bytes) -> Line:
        if len(text) > MAX_LINE_BYTES:
            raise InvalidArgument("line", f"is longer than {MAX_LINE_BYTES} bytes")
        try:
            row = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise InvalidArgument("line", f"is not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise InvalidArgument("line", "is not a JSON object")
        if _LONG_NUMBER(text):
            json.loads(text, parse_int=_checked_int)
        unknown = sorted(row.keys() - _KEYS)
        if unknown:
            raise InvalidArgument(f"{unknown[0]:.60}", "is not a field of import lines")
        entity = (_text(row, "entity_type"), _text(row, "entity_id"))
        sequence = _whole(row, "sequence")
        ordinal = self.ordinals.get(entity, 0) + 1
        expected = self.sequences.get(entity, -1 if ordinal > 1 else 0)
        if (sequence != expected + 1 and ordinal > 1) if sequence else expected > 0:
            raise InvalidArgument(
                "sequence", f"{sequence or 'none'} does not follow the entity's line before"
            )
        event = self._event(row, ordinal)
        probe = EntityAppend(*entity, first_sequence=sequence)
        Preparer(self.limits).prepare(Append((probe,), (event,)))
        self.ordinals[entity] = ordinal
        if sequence:
            self.sequences[entity] = sequence
        return Line(number, entity, ordinal, sequence, event)

    def _event(self, row: dict[str, Any], ordinal: int) -> NewEvent:
        if ("data" in row) == ("payload_base64" in row):
            raise InvalidArgument("data", "give either data or payload_base64")
        if "data" in row:
            payload = orjson.dumps(row["data"])
            content_type = _text(row, "content_type", JSON)
        else:
            try:
                payload = base64.b64decode(
                    _text(row, "payload_base64", "", empty=True), validate=True
                )
            except (binascii.Error, ValueError):
                raise InvalidArgument("payload_base64", "is not base64") from None
            content_type = _text(row, "content_type", OCTET_STREAM)
        metadata = row.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidArgument("metadata", "is not a JSON object")
        content = {k: v for k, v in row.items() if k not in ("position", "recorded_at")}
        canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()
        return NewEvent(
            _text(row, "type"),
            payload,
            content_type,
            event_id=_text(row, "event_id", "")
            or str(uuid.uuid5(NAMESPACE, f"{ordinal} {canonical}")),
            metadata_json=orjson.dumps(metadata).decode() if metadata else "",
            client_time_us=clock.parse_us("time", row["time"]) if "time" in row else 0,
            schema_version=_whole(row, "schema_version"),
            correlation_id=_text(row, "correlation_id", ""),
            causation_id=_text(row, "causation_id", ""),
            traceparent=_text(row, "traceparent", ""),
            subject=_text(row, "subject", ""),
        )


def _checked_int(digits: str) -> int:
    """An integer that keeps its value; orjson would make a rounded double of a larger one."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise InvalidArgument("number", f"{digits:.40} does not fit into 64 bits; send it as text")
    return int(digits)


def _text(
    row: dict[str, Any], name: str, default: str | None = None, *, empty: bool = False
) -> str:
    value = row.get(name, default)
    if value is None:
        raise InvalidArgument(name, "is missing")
    if not isinstance(value, str):
        raise InvalidArgument(name, "is not a text")
    if not value and name in row and not empty:
        raise InvalidArgument(name, "is empty")
    return value


def _whole(row: dict[str, Any], name: str) -> int:
    value = row.get(name, 0)
    if type(value) is not int or (name in row and value < (1 if name == "sequence" else 0)):
        raise InvalidArgument(name, "is not a whole number from 1 on")
    return value


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed when its name ends in .gz; ``-``: standard input."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidArgument("FILE", f"{path}: {error.strerror}") from None
    with raw:
        yield gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[misc]


def raw_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends; empty ones are left out, memory is bounded by the longest
    allowed one.
    """
    number = 0
    while True:
        number += 1
        try:
            text = file.readline(MAX_LINE_BYTES + 2)
            rest = text
            while rest and not rest.endswith(b"\n") and len(rest) >= MAX_LINE_BYTES:
                rest = file.readline(MAX_LINE_BYTES + 2)
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise InvalidArgument(
                f"line {number}", f"the file cannot be read on: {error}"
            ) from None
        if not text:
            return
        if text.strip():
            yield number, text.rstrip(b"\r\n")


class _Skipped:
    """The file for bad lines; without one a bad line raises."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self.count = 0

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._file = self._path.open("wb")
            except OSError as error:
                raise InvalidArgument("--skip-bad", f"{self._path}: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, text: bytes, error: InvalidArgument) -> None:
        """Keeps a bad line, or raises what is wrong with it."""
        if self._file is None:
            raise error
        self._file.write(text + b"\n")
        self.count += 1


def parsed(file: IO[bytes], limits: Limits, skipped: _Skipped | None) -> Iterator[Line]:
    """The events of a file; bad lines go to ``skipped`` (None: are passed over, being known)."""
    parser = Parser(limits)
    for number, text in raw_lines(file):
        try:
            line = parser.parse(number, text)
        except InvalidArgument as error:
            if skipped is not None:
                skipped.take(text, error)
            continue
        yield line


@dataclass(slots=True)
class Tally:
    """What an import did."""

    events: int = 0
    appended: int = 0
    duplicates: int = 0
    last_position: int = 0


async def import_file(
    client: Client,
    path: Path,
    *,
    log: str,
    rate: float | None,
    skip_bad: Path | None,
    as_json: bool,
) -> int:
    """`everstate import`; returns the exit code."""
    info = (await client.server_info()).limits
    limits = Limits(**{name.name: getattr(info, name.name) for name in info.DESCRIPTOR.fields})
    tally, entities = Tally(), set[tuple[str, str]]()
    with _Skipped(skip_bad) as skipped:
        streaming = str(path) == "-"
        if not streaming:
            # First the whole file is checked, so that a bad line leaves nothing half-imported.
            with opened(path) as file:
                total = sum(1 for _ in parsed(file, limits, skipped))
        importer = Importer(client, log, tally, rate)
        with opened(path) as file, _progress(None if streaming else total) as advance:
            try:
                for line in parsed(file, limits, skipped if streaming else None):
                    entities.add(line.entity)
                    if importer.full(line):
                        advance(await importer.flush())
                    importer.add(line)
                advance(await importer.flush())
            except InvalidArgument as error:
                if not streaming:
                    raise
                await importer.flush()
                raise InvalidArgument(
                    error.field, f"{error.problem}; the {tally.events} events before it are in"
                ) from None
    result = {
        "events": tally.events,
        "entities": len(entities),
        "appended": tally.appended,
        "duplicates": tally.duplicates,
        "skipped": skipped.count,
        "last_position": tally.last_position,
    }
    if as_json:
        show(result)
    else:
        there = f", {tally.duplicates} of them were there already" if tally.duplicates else ""
        bad = f"; {skipped.count} bad lines in {skip_bad}" if skipped.count else ""
        sys.stdout.write(f"{tally.events} events of {len(entities)} entities are in{there}{bad}\n")
    return 0


class Importer:
    """Appends lines in runs: each run is one atomic append over several entities, in file order."""

    def __init__(self, client: Client, log: str, tally: Tally, rate: float | None) -> None:
        self._client = client
        self._log = log
        self._tally = tally
        self._rate = rate
        # With a rate, runs are shorter, so that events come evenly.
        self._run_events = RUN_EVENTS if rate is None else max(1, min(RUN_EVENTS, int(rate / 4)))
        self._lines: list[Line] = []
        self._bytes = 0
        self._due: float | None = None

    def full(self, line: Line) -> bool:
        """Whether ``line`` has to go into the next run."""
        size = len(line.event.payload) + len(line.event.metadata_json)
        return bool(self._lines) and (
            len(self._lines) >= self._run_events or self._bytes + size > RUN_BYTES
        )

    def add(self, line: Line) -> None:
        """Adds a line to the present run."""
        self._lines.append(line)
        self._bytes += len(line.event.payload) + len(line.event.metadata_json)

    async def flush(self) -> int:
        """Appends the present run; returns how many events it had."""
        lines, self._lines, self._bytes = self._lines, [], 0
        if not lines:
            return 0
        await self._pace(len(lines))
        tally = self._tally
        try:
            done = await self._client.append(self._log, _run(lines))
        except WrongExpectedState as refused:
            missing = await self._missing(lines, refused)
            tally.duplicates += len(lines) - len(missing)
            if missing:
                done = await self._client.append(self._log, _run(missing))
                tally.appended += len(missing)
                tally.last_position = done.last_position
        else:
            tally.last_position = done.last_position
            if done.duplicate:
                tally.duplicates += len(lines)
            else:
                tally.appended += len(lines)
        tally.events += len(lines)
        return len(lines)

    async def _pace(self, count: int) -> None:
        if self._rate is None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = now if self._due is None else max(self._due, now - 1)
        if due > now:
            await asyncio.sleep(due - now)
        self._due = due + count / self._rate

    async def _missing(self, lines: list[Line], refused: WrongExpectedState) -> list[Line]:
        """The lines that an earlier import, cut into other runs, has not brought in.

        Raises:
            ForeignEvents: an entity holds something else where the file's events belong.

        """
        known: dict[tuple[str, str], dict[int, str]] = {}
        for failed in refused.failures:
            entity = (failed.entity_type, failed.entity_id)
            mine = [line for line in lines if line.entity == entity]
            if not mine:
                continue
            first, last = mine[0].stored_sequence, mine[-1].stored_sequence
            found: dict[int, str] = {}
            if failed.actual:
                async for event in events_of(self._client, self._log, *entity, first, last):
                    found[event.sequence] = event.event_id
            known[entity] = found
            if failed.actual < first - 1:
                raise ForeignEvents(
                    *entity,
                    f"the file goes on at sequence {first}, the log holds {failed.actual} events",
                )
        missing = []
        for line in lines:
            stored = known.get(line.entity, {}).get(line.stored_sequence)
            if stored is None:
                missing.append(line)
            elif stored != line.event.event_id:
                raise ForeignEvents(
                    *line.entity,
                    f"its event {line.stored_sequence} is not that of line {line.number}",
                )
        if len(missing) == len(lines):
            raise refused
        return missing


async def events_of(
    client: Client, log: str, entity_type: str, entity_id: str, first: int = 1, last: int = 0
) -> AsyncIterator[EventView]:
    """The events of an entity from one sequence number to another (0: its last).

    Those below its floor too, as long as they are stored: they are read from the log.

    Raises:
        EntityNotFound: it never had an event.

    """
    query = LoadQuery(
        entity_type, entity_id, after_sequence=first - 1, to_sequence=last, ignore_snapshot=True
    )
    try:
        async for part in client.load(log, query):
            for event in part.events:
                yield event
    except Compacted:  # before anything was sent
        entity = await client.get_entity(log, entity_type, entity_id)
        stored = ReadQuery(
            entity.first_position,
            entity.last_position,
            entity_types=(entity_type,),
            slices=((entity.slice, entity.slice),),
        )
        async for batch in client.read(log, stored):
            for event in batch.events:
                if event.entity_id == entity_id and event.sequence >= first:
                    if last and event.sequence > last:
                        return
                    yield event


def _run(lines: list[Line]) -> Append:
    members: dict[tuple[str, str], int] = {}
    entities: list[EntityAppend] = []
    events: list[NewEvent] = []
    for line in lines:
        index = members.get(line.entity)
        if index is None:
            index = members[line.entity] = len(entities)
            # A line with a number of its own may begin anywhere; else the ordinal is the state.
            expected: Expected = ANY if line.sequence else line.ordinal - 1
            entities.append(EntityAppend(*line.entity, expected, line.sequence))
        events.append(replace(line.event, entity=index))
    return Append(tuple(entities), tuple(events))


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """Calls with a count move a bar, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - slow to load, and only for terminals
    from rich.progress import Progress  # noqa: PLC0415

    progress: Progress
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("importing", total=total)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def _sink(path: Path) -> Iterator[IO[bytes]]:
    """Where an export goes; a file appears under its name only when it is whole."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(path.name + ".part")
    try:
        raw = part.open("wb")
    except OSError as error:
        raise InvalidArgument("FILE", f"{part}: {error.strerror}") from None
    try:
        with raw, contextlib.ExitStack() as stack:
            if path.suffix == ".gz":
                # No name and time inside: the same events give the same bytes.
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
                yield stack.enter_context(io.BufferedWriter(stack.enter_context(packed)))
            else:
                yield raw
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


async def export_file(
    client: Client,
    path: Path,
    *,
    log: str,
    entity: str,
    entity_type: str,
    from_: str,
    to: str,
    limit: int | None,
) -> int:
    """`everstate export`; returns the exit code."""
    low = await position_of(client, log, from_) or 0
    high = await position_of(client, log, to, last=True)

    async def events() -> AsyncIterator[EventView]:
        if high is None:  # a time before the first event
            return
        if entity:
            kind, slash, name = entity.partition("/")
            if not slash:
                raise InvalidArgument("--entity", "has the form TYPE/ID")
            async for event in events_of(client, log, kind, name):
                if event.position >= low and (not high or event.position <= high):
                    yield event
            return
        query = ReadQuery(
            low, high, max_events=limit or 0, entity_types=(entity_type,) if entity_type else ()
        )
        async for batch in client.read(log, query):
            for event in batch.events:
                yield event

    written = 0
    with _sink(path) as sink:
        async for event in events():
            if limit is not None and written == limit:
                break
            written += 1
            sink.write(orjson.dumps(event_line(event)) + b"\n")
    return 0
