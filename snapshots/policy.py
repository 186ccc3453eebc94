"""When a snapshot is due, and what may be saved: what the store and its reference twin share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from enum import IntEnum
from typing import Any, Final

import orjson

from journal.model import OCTET_STREAM, Limits, NewSnapshot
from journal.preparation import check_entity, check_text
from kernel import clock
from kernel.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, TooLarge
from snapshots.model import KEPT_AT_LEAST, MAX_PAGE, TypeSettings

MAX_SEQUENCE: Final = 2**63 - 1
COUNTED: Final = 1_000
"""Errors count entities up to this many."""
_FIELDS: Final = {field.name for field in fields(TypeSettings)}
_TUPLES: Final = ("snapshot_types",)


class Saved(IntEnum):
    """What became of a snapshot that was to be saved; numbers as the statement gives them."""

    SAVED = 0
    SAME = 1
    """The very same was there."""
    OTHER = 2
    """Another one was there; nothing was saved."""
    BELOW_FLOOR = 3
    """Its events are compacted; nothing was saved."""
    NO_EVENT = 4
    """The entity has no such event; nothing was saved."""
    HELD = 5
    """Another one would have gone, and a hold is on the entity; nothing was saved."""
    REMOVED = 6
    """An operation has removed one there, and may bring it back; nothing was saved."""
    REPLACED = 7
    """It was saved in the place of another one."""


def due(
    settings: TypeSettings, *, sequence: int, covered: int, oldest_us: int | None, now_us: int
) -> str:
    """Why a snapshot of an entity is due: ``events``, ``age``; empty: it is not.

    ``sequence`` is its last one; ``covered`` that of its newest usable snapshot, or, when it has
    none, the one before its first event. ``oldest_us`` is when the oldest event after that happened
    (None: not known).
    """
    if settings.needs_full_replay or sequence <= covered:
        return ""
    if settings.snapshot_every and sequence - covered >= settings.snapshot_every:
        return "events"
    age = settings.snapshot_age_s * 1_000_000
    return "age" if age and oldest_us is not None and now_us - oldest_us > age else ""


def check_snapshot(
    entity_type: str, entity_id: str, sequence: int, snapshot: NewSnapshot, limits: Limits
) -> NewSnapshot:
    """The snapshot as it is stored, when it is within the limits of snapshots in appends.

    Raises:
        InvalidArgument: names the field and what is wrong with it.
        TooLarge: the payload is over the limit of an append.

    """
    check_entity("", entity_type, entity_id, limits)
    check_sequence("sequence", sequence, lowest=1)
    check_text("snapshot.type", snapshot.type, limits.event_type_chars)
    content_type = check_text("snapshot.content_type", snapshot.content_type or OCTET_STREAM, 255)
    if len(snapshot.payload) > limits.append_bytes:
        raise TooLarge("snapshot.payload", len(snapshot.payload), limits.append_bytes)
    return NewSnapshot(snapshot.type, snapshot.payload, content_type)


def check_sequence(name: str, sequence: int, *, lowest: int = 0) -> None:
    """Refuses what is no sequence number. Raises `InvalidArgument`."""
    if not lowest <= sequence <= MAX_SEQUENCE:
        raise InvalidArgument(name, f"{sequence} is not within {lowest}..{MAX_SEQUENCE}")


def check_time(name: str, time_us: int) -> None:
    """Refuses a time that no calendar has. Raises `InvalidArgument`."""
    if not 0 <= time_us <= clock.MAX_MICROSECONDS:
        raise InvalidArgument(name, "is out of range")


def check_limit(limit: int) -> int:
    """A page's size. Raises `InvalidArgument`."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument("limit", f"{limit} is not from 1 to {MAX_PAGE}")
    return limit


def check_after(after: str) -> None:
    """Refuses what no page ends with. Raises `InvalidArgument`."""
    check_text("after", after, 512, empty=True)


def check_type_name(name: str) -> None:
    """Refuses what no entity type is called. Raises `InvalidArgument`."""
    check_text("entity_type", name, 255)
    if "/" in name:
        raise InvalidArgument("entity_type", "has a '/'")


def settings_of(stored: str | Mapping[str, Any]) -> TypeSettings:
    """The settings of their JSON; what a later version put there is passed over."""
    found = orjson.loads(stored) if isinstance(stored, str) else stored
    known = {name: value for name, value in found.items() if name in _FIELDS}
    return TypeSettings(**known | {n: tuple(known[n]) for n in _TUPLES if n in known})


def settings_json(settings: TypeSettings) -> dict[str, Any]:
    """Settings as a JSON object, all of them."""
    return asdict(settings) | {name: list(getattr(settings, name)) for name in _TUPLES}


def no_such(entity_type: str, entity_id: str, sequence: int, time_us: int) -> str:
    """The sentence about a snapshot that there is not."""
    bound = f" at or below {sequence}" if sequence else ""
    if time_us:
        bound += f" of {clock.format_us(time_us)} or before"
    return f"{entity_type}/{entity_id} has no snapshot{bound}"


def no_type(name: str) -> NotFound:
    """That there is no such entity type."""
    return NotFound(f"there is no entity type {name!r}")


def changed(name: str, found: int, version: int) -> Conflict:
    """That a type was set by somebody else."""
    return Conflict(f"entity type {name!r} has version {found}, not {version}")


def check_rests(name: str, found: Sequence[tuple[str, int]]) -> None:
    """Refuses settings that make snapshots useless which floors rest on. ``found``: their types,
    and how many entities are compacted to each, `COUNTED` at most.

    Raises:
        Conflict: there are some.

    """
    if not found:
        return
    kind, entities = found[0]
    count = f"{COUNTED:,} or more" if entities >= COUNTED else f"{entities:,}"
    more = f" (and {len(found) - 1} more types of snapshots)" if len(found) > 1 else ""
    raise Conflict(
        f"{count} entities of the type {name!r} are compacted to snapshots of the type {kind!r}"
        f"{more}, which these settings rule out: none of them could be loaded. Keep {kind!r} among"
        " snapshot_types, or compact them to newer snapshots first"
    )


def check_removed(
    entity_type: str, entity_id: str, sequence: int, found: tuple[bool, bool, bool] | None
) -> None:
    """What became of a removal: (the floor rests on it, it is one of the newest, a hold is on the
    entity); None: not there.

    Raises:
        NotFound, Conflict: it was not removed.

    """
    name = f"{entity_type}/{entity_id}"
    if found is None:
        raise NotFound(f"{name} has no snapshot at {sequence}")
    covers, is_new, held = found
    if covers:
        raise Conflict(
            f"the snapshot of {name} at {sequence} cannot be deleted: its floor rests on it"
        )
    if is_new:
        raise Conflict(
            f"the snapshot of {name} at {sequence} cannot be deleted: "
            f"the newest {KEPT_AT_LEAST} stay"
        )
    if held:
        raise Conflict(
            f"the snapshot of {name} at {sequence} cannot be deleted: a hold is on the entity"
        )


def refused(
    said: Saved, name: tuple[str, str], sequence: int, first: int, last: int, by: str = ""
) -> AlreadyExists | Conflict | InvalidArgument:
    """Why a snapshot was not saved. ``by``: the operation of `Saved.REMOVED`."""
    entity = f"{name[0]}/{name[1]}"
    if said is Saved.OTHER:
        return AlreadyExists(f"{entity} has another snapshot at {sequence}; replace it on purpose")
    if said is Saved.BELOW_FLOOR:
        return Conflict(f"the events of {entity} up to {sequence} are compacted")
    if said is Saved.HELD:
        return Conflict(
            f"the snapshot of {entity} at {sequence} cannot be replaced: a hold is on the entity"
        )
    if said is Saved.REMOVED:
        return Conflict(
            f"{entity} has a snapshot at {sequence} that {by} removed and can still bring back;"
            " undo that, or save at another sequence number"
        )
    return InvalidArgument("sequence", f"{sequence} is not within {first}..{last}")
