"""From an append as a caller sends it to rows for the append function: the only place that checks.

`Preparer.prepare` takes the dataclasses of `journal.model` or the protobuf messages of the same
shape, so that the hot path builds nothing twice. What it accepts every implementation of the
journal accepts; what it refuses has touched nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import blake2b
from typing import Any, Final, Protocol
from zlib import crc32

import orjson

from journal.model import OCTET_STREAM, SYSTEM_LOG, Expectation, Limits
from kernel import clock
from kernel.errors import InvalidArgument, TooLarge
from kernel.ids import new_id, time_of_uuid7

MODE_ANY: Final = -1
MODE_EXISTS: Final = -2

MAX_SEQUENCE: Final = 2**62
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_JSON_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search
_LOG_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}").fullmatch

EXTRA_KEYS: Final = (
    ("correlation_id", "$correlation_id"),
    ("causation_id", "$causation_id"),
    ("traceparent", "$traceparent"),
    ("subject", "$subject"),
)
TIME_KEY: Final = "$time"
"""Fields of an event that are stored inside its metadata, under keys that users cannot take."""

EVENT_OVERHEAD_BYTES: Final = 700
"""What a waiting event costs beside its payload: rows, strings, bookkeeping (measured, rounded
up).
"""


class ExpectedLike(Protocol):
    """The protobuf message ``Expected``."""

    sequence: int

    def WhichOneof(self, name: str) -> str | None: ...  # noqa: N802 - protobuf's name


MemberRow = tuple[str, str, int, int, int, int, int]
EventRow = tuple[int, int, int, str, tuple[str, str, int], bytes, str | None]


@dataclass(slots=True, eq=False)
class PreparedAppend:
    """A checked append.

    ``members``: (entity type, entity id, slice, mode, first sequence, events, bytes), in the order
    of the append's entities. ``events``: (member index, 1-based place in the member, distance to
    the member's event before or 0, event id, (type, content type, schema version), payload,
    metadata). ``keys`` name what two appends of one batch must not share. ``retry_safe``: sending
    it again cannot write it twice.
    """

    members: list[MemberRow]
    events: list[EventRow]
    keys: tuple[str, ...]
    held_bytes: int
    retry_safe: bool
    snapshots: tuple[tuple[int, str, str, bytes], ...] = ()
    append_id: str = ""
    append_day: date | None = None
    content_hash: bytes | None = None
    # Owned by the sequencer: when it must be done (loop time), who waits, what it waits for.
    deadline: float = 0.0
    waiter: Any = None
    tag: int = 0
    blockers: int = 0
    followers: list[PreparedAppend] | None = field(default=None)


def check_log_name(log: str) -> str:
    """``log`` when it is a log's name, "default" when it is empty."""
    if not log:
        return "default"
    if not _LOG_NAME(log) and log != SYSTEM_LOG:
        raise InvalidArgument("log", "names are [a-z][a-z0-9_]{0,39}")
    return log


def check_written_log(log: str) -> str:
    """``log``, when others than Everstate itself may write to it.

    Raises:
        InvalidArgument: it is the log of the audit.

    """
    if log == SYSTEM_LOG:
        raise InvalidArgument(
            "log", f"{SYSTEM_LOG} is written by Everstate itself: it can be read, not changed"
        )
    return log


def check_text(name: str, text: str, limit: int, *, empty: bool = False) -> str:
    """``text`` when it is within the limit (characters) and has no control characters."""
    if not text:
        if empty:
            return text
        raise InvalidArgument(name, "is empty")
    if len(text) > limit:
        raise InvalidArgument(name, f"has {len(text)} characters, the limit is {limit}")
    if not text.isprintable() and _CONTROL.search(text):
        raise InvalidArgument(name, "has control characters")
    return text


def check_entity(field_prefix: str, entity_type: str, entity_id: str, limits: Limits) -> None:
    """Checks the name of an entity; errors name ``<prefix>entity_type`` or
    ``<prefix>entity_id``.
    """
    check_text(f"{field_prefix}entity_type", entity_type, limits.entity_type_chars)
    if "/" in entity_type:
        raise InvalidArgument(f"{field_prefix}entity_type", "has a '/'")
    check_text(f"{field_prefix}entity_id", entity_id, limits.entity_id_chars)


def expected_mode(index: int, expected: Any) -> int:
    """The mode of the expected state of an append's ``index``-th entity: ≥ 0 exact, `MODE_ANY`,
    `MODE_EXISTS`.
    """
    if isinstance(expected, int):
        mode = expected
    elif isinstance(expected, Expectation):
        return MODE_ANY if expected is Expectation.ANY else MODE_EXISTS
    else:
        which = expected.WhichOneof("state")
        if which == "sequence":
            mode = expected.sequence
        elif which == "no_entity":
            mode = 0
        else:
            return MODE_EXISTS if which == "exists" else MODE_ANY
    if not 0 <= mode <= MAX_SEQUENCE:
        raise InvalidArgument(
            f"entities[{index}].expected.sequence", f"{mode} is not within 0..{MAX_SEQUENCE}"
        )
    return mode


class Preparer:
    """Checks appends against limits; caches the type names it has seen (bounded).

    ``append_id_window``: how long append ids are remembered, hence how old one may be.
    """

    __slots__ = ("_types", "append_id_window", "limits")

    def __init__(
        self, limits: Limits | None = None, append_id_window: timedelta = timedelta(days=2)
    ) -> None:
        self.limits = limits or Limits()
        self.append_id_window = append_id_window
        self._types: dict[tuple[str, str, int], tuple[str, str, int]] = {}

    def _type(self, name: str, event: Any) -> tuple[str, str, int]:
        key = (event.type, event.content_type or OCTET_STREAM, event.schema_version)
        known = self._types.get(key)
        if known is not None:
            return known
        check_text(f"{name}.type", key[0], self.limits.event_type_chars)
        check_text(f"{name}.content_type", key[1], 255)
        if not 0 <= key[2] < 2**31:
            raise InvalidArgument(
                f"{name}.schema_version", f"{key[2]} is not within 0..{2**31 - 1}"
            )
        if len(self._types) < 4096:
            self._types[key] = key
        return key

    def prepare(self, append: Any) -> PreparedAppend:
        """Checks an append (`journal.model.Append` or the protobuf AppendRequest).

        Raises:
            InvalidArgument: names the field and what is wrong with it.
            TooLarge: names the field, its size and the limit.

        """
        limits = self.limits
        entities = append.entities
        events = append.events
        if not entities:
            raise InvalidArgument("entities", "is empty")
        count = len(events)
        if count == 0:
            raise InvalidArgument("events", f"is empty, an append has 1 to {limits.append_events}")
        if count > limits.append_events:
            raise TooLarge("events", count, limits.append_events, "events")

        rows: list[EventRow] = []
        width = len(entities)
        counts = [0] * width
        sizes = [0] * width
        last_at = [0] * width
        ids: set[str] | None = set() if count > 1 else None
        own_ids = True
        for i, event in enumerate(events):
            member = event.entity
            if not 0 <= member < width:
                raise InvalidArgument(
                    f"events[{i}].entity", f"{member} is not an index into the {width} entities"
                )
            payload = event.payload
            size = len(payload)
            if size > limits.event_bytes:
                raise TooLarge(f"events[{i}].payload", size, limits.event_bytes)
            event_id = event.event_id
            if not event_id:
                event_id = new_id()
                own_ids = False
            elif not _UUID(event_id):
                raise InvalidArgument(
                    f"events[{i}].event_id", "is not a UUID in lower case with hyphens"
                )
            if ids is not None:
                if event_id in ids:
                    raise InvalidArgument(
                        f"events[{i}].event_id", f"{event_id} is in this append twice"
                    )
                ids.add(event_id)
            metadata = self._metadata(i, event)
            if metadata is not None:
                size += len(metadata)
            counts[member] = place = counts[member] + 1
            sizes[member] += size
            rows.append(
                (
                    member,
                    place,
                    i + 1 - last_at[member] if place > 1 else 0,
                    event_id,
                    self._types.get((event.type, event.content_type, event.schema_version))
                    or self._type(f"events[{i}]", event),
                    payload,
                    metadata,
                )
            )
            last_at[member] = i + 1

        members: list[MemberRow] = []
        keys: list[str] = []
        # A message's absent snapshot is an empty one; a dataclass has None.
        message = getattr(append, "DESCRIPTOR", None)
        snapshots: list[tuple[int, str, str, bytes]] = []
        exact = True
        for i, entity in enumerate(entities):
            entity_type, entity_id = entity.entity_type, entity.entity_id
            self._check_name(i, entity_type, entity_id)
            if counts[i] == 0:
                raise InvalidArgument(f"entities[{i}]", "no event names it")
            mode = expected_mode(i, entity.expected)
            start = entity.first_sequence
            if not 0 <= start <= MAX_SEQUENCE:
                raise InvalidArgument(
                    f"entities[{i}].first_sequence", f"{start} is not within 0..{MAX_SEQUENCE}"
                )
            if start and mode > 0 and start != mode + 1:
                raise InvalidArgument(
                    f"entities[{i}].first_sequence",
                    f"{start} does not follow the expected sequence {mode}",
                )
            if mode < 0 and not start:
                exact = False
            key = f"{entity_type}\0{entity_id}"
            members.append(
                (
                    entity_type,
                    entity_id,
                    crc32(key.encode()) & 1023,
                    mode,
                    start,
                    counts[i],
                    sizes[i],
                )
            )
            keys.append(key)
            snapshot = entity.snapshot if message is None or entity.HasField("snapshot") else None
            if snapshot is not None:
                snapshots.append(self._snapshot(i, snapshot))
        if width > 1 and len(set(keys)) != width:
            seen: set[str] = set()
            for i, key in enumerate(keys):
                if key in seen:
                    raise InvalidArgument(
                        f"entities[{i}]",
                        "is in this append twice; name it once, with one expected state",
                    )
                seen.add(key)
        total = sum(sizes) + sum(len(s[3]) for s in snapshots)
        if total > limits.append_bytes:
            raise TooLarge("append", total, limits.append_bytes)
        prepared = PreparedAppend(
            members,
            rows,
            tuple(keys),
            total + EVENT_OVERHEAD_BYTES * count,
            exact,
            tuple(snapshots),
        )
        if append.append_id:
            self._receipt(prepared, append.append_id, own_ids)
        return prepared

    def _check_name(self, i: int, entity_type: str, entity_id: str) -> None:
        limits = self.limits
        if not (
            entity_id.isprintable()
            and 0 < len(entity_id) <= limits.entity_id_chars
            and entity_type.isprintable()
            and 0 < len(entity_type) <= limits.entity_type_chars
            and "/" not in entity_type
        ):
            check_entity(f"entities[{i}].", entity_type, entity_id, limits)

    def _snapshot(self, i: int, snapshot: Any) -> tuple[int, str, str, bytes]:
        name = f"entities[{i}].snapshot"
        check_text(f"{name}.type", snapshot.type, self.limits.event_type_chars)
        content_type = check_text(
            f"{name}.content_type", snapshot.content_type or OCTET_STREAM, 255
        )
        if len(snapshot.payload) > self.limits.append_bytes:
            raise TooLarge(f"{name}.payload", len(snapshot.payload), self.limits.append_bytes)
        return (i, snapshot.type, content_type, snapshot.payload)

    def _metadata(self, i: int, event: Any) -> str | None:
        """The text that is stored: the user's object with the reserved keys spliced in."""
        own: str = event.metadata_json
        extras: dict[str, str | int] | None = None
        if event.correlation_id or event.causation_id or event.traceparent or event.subject:
            extras = {}
            for name, key in EXTRA_KEYS:
                value = getattr(event, name)
                if value:
                    extras[key] = check_text(f"events[{i}].{name}", value, 255)
        if event.client_time_us:
            if not -clock.MAX_MICROSECONDS <= event.client_time_us <= clock.MAX_MICROSECONDS:
                raise InvalidArgument(f"events[{i}].client_time_us", "is out of range")
            extras = extras or {}
            extras[TIME_KEY] = event.client_time_us
        if not own:
            return orjson.dumps(extras).decode() if extras else None
        name = f"events[{i}].metadata_json"
        if len(own) > self.limits.metadata_bytes or len(own.encode()) > self.limits.metadata_bytes:
            raise TooLarge(name, len(own.encode()), self.limits.metadata_bytes)
        try:
            parsed: object = orjson.loads(own)
        except orjson.JSONDecodeError as error:
            raise InvalidArgument(name, f"is not JSON: {error.msg}") from None
        if not isinstance(parsed, dict):
            raise InvalidArgument(name, "is not a JSON object")
        # PostgreSQL's text holds no NUL, however it is written.
        if "\\u0000" in own and _JSON_NUL(orjson.dumps(parsed)):
            raise InvalidArgument(name, "has a NUL character")
        for key in parsed:
            if key.startswith("$"):
                raise InvalidArgument(name, f"the key {key!r:.60} is reserved (it begins with '$')")
        if extras is None:
            return own if parsed else None
        if not parsed:
            return orjson.dumps(extras).decode()
        return orjson.dumps(extras).decode()[:-1] + "," + own.lstrip()[1:]

    def _receipt(self, prepared: PreparedAppend, append_id: str, own_ids: bool) -> None:
        made = time_of_uuid7("append_id", append_id)
        age = clock.now() - made
        if age > self.append_id_window:
            raise InvalidArgument(
                "append_id",
                f"is {age} old; ids are remembered for {self.append_id_window}, "
                "so nobody can tell whether it was used",
            )
        if age < -timedelta(hours=1):
            raise InvalidArgument("append_id", "holds a time more than an hour ahead")
        prepared.append_id = append_id
        prepared.append_day = made.date()
        prepared.content_hash = _content_hash(prepared, own_ids)
        prepared.keys = (*prepared.keys, append_id)
        prepared.retry_safe = True


def _content_hash(prepared: PreparedAppend, own_ids: bool) -> bytes:
    digest = blake2b(digest_size=16)
    for member in prepared.members:
        digest.update(repr(member[:6]).encode())
    for member_no, place, _, event_id, kind, payload, metadata in prepared.events:
        head: Sequence[object] = (
            member_no,
            place,
            event_id if own_ids else "",
            kind,
            len(payload),
            metadata,
        )
        digest.update(repr(head).encode())
        digest.update(payload)
    for snapshot in prepared.snapshots:
        digest.update(repr(snapshot[:3]).encode() + blake2b(snapshot[3]).digest())
    return digest.digest()
