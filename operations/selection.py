"""Which entities an operation is about: a selection resolved, then read page by page.

Pages come in keyset order (entity type id, entity id) of the primary key of heads; a page costs
what it looks at, not what the log holds, and nothing is counted. Three ways lead to the heads: a
list of entities; the entities of a short range of positions, which becomes such a list; a scan of
types. The conditions are the same for all and are judged in the database.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from journal.preparation import check_text
from journal.store import StoreJournal
from kernel import clock, sql
from kernel.database import Database
from kernel.errors import EntityNotFound, InvalidArgument, NotFound, TooLarge
from operations import where as language
from operations.kinds.base import Candidate, Context
from operations.model import Moment, Selection
from operations.where import Where
from snapshots.model import TypeSettings

MAX_ENTITIES = 10_000
MAX_TYPES = 1_000
PAGE = 4_000
"""Heads that one statement looks at."""
SHORT_RANGE = 20_000
"""Positions: so short a range of events is read, rather than all heads."""

_LOOKED_AT = 50_000
_SECONDS = 30.0
_NO_END: Final = 2**62
_ABOVE_ALL: Final = "\U0010ffff" * 513
"""Above every entity id: they have at most 512 characters."""
_STATES: Final = {name: number for number, name in enumerate(language.STATES)}
_FIELDS: Final = frozenset(asdict(TypeSettings()))


class Cursor(NamedTuple):
    """Where a list of entities goes on: after this one."""

    type_id: int
    entity_id: str


class Page(NamedTuple):
    """What matches of the heads that were looked at; ``cursor`` None: there are no more."""

    candidates: list[Candidate]
    cursor: Cursor | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A selection whose names, times and text have become numbers.

    ``entities``: these only, in order (None: all); ``types``: these only, in order (None: all);
    ``first``, ``last``: positions of the range (0: none).
    """

    log_id: int
    entities: tuple[Cursor, ...] | None
    types: tuple[int, ...] | None
    first: int
    last: int
    low: str
    below: str
    conditions: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """A page of a search; ``next_token`` is empty after the last one."""

    candidates: tuple[Candidate, ...]
    next_token: str


def settings_of(stored: str) -> TypeSettings:
    """Settings of an entity type as the database has them; what is not known is passed over."""
    given: Mapping[str, Any] = orjson.loads(stored)
    known = {name: value for name, value in given.items() if name in _FIELDS}
    if "snapshot_types" in known:
        known["snapshot_types"] = tuple(known["snapshot_types"])
    return TypeSettings(**known)


async def load_settings(database: Database) -> dict[str, TypeSettings]:
    """The settings of every entity type that has any, by name."""
    rows = await database.fetch(
        sql.load("operations", "type_settings", database.schema), None, timeout=_SECONDS
    )
    return {row["name"]: settings_of(row["settings"]) for row in rows}


async def resolve(
    database: Database,
    journal: StoreJournal,
    selection: Selection,
    *,
    now_us: int | None = None,
    snapshots: bool = True,
) -> Resolved:
    """Makes numbers of a selection. ``now_us``: from when ages count (default: now).

    ``snapshots`` False: nobody wants to know the newest one of each candidate.

    Raises:
        LogNotFound: there is no such log. NotFound: there is no such entity type; names it.
        InvalidArgument: names the field (``where`` for the search language) and the limit.
        TooLarge: too many entities or types.

    """
    log_id = (await journal.open_log(selection.log, _SECONDS)).log_id
    if len(selection.entities) > MAX_ENTITIES:
        raise TooLarge("entities", len(selection.entities), MAX_ENTITIES, "entities")
    if len(selection.types) > MAX_TYPES:
        raise TooLarge("types", len(selection.types), MAX_TYPES, "types")
    where = language.parse(selection.where)
    ids = await _type_ids(
        database, journal,
        {"types": selection.types, "where": where.types,
         "entities": sorted({kind for kind, _ in selection.entities})},
    )  # fmt: skip
    wanted = [set(map(ids.__getitem__, names)) for names in (selection.types, where.types) if names]
    types = tuple(sorted(set.intersection(*wanted))) if wanted else None
    first, last = await _range(journal, log_id, selection)
    low, below = where.id or where.prefix, _above(where.prefix)
    if where.id:
        below = where.id + "\x01"  # nothing is between: ids have no control characters
    entities: tuple[Cursor, ...] | None = None
    if selection.entities:
        pairs = {Cursor(ids[kind], entity_id) for kind, entity_id in selection.entities}
        entities = tuple(sorted(pairs))
        await _check_there(database, log_id, entities, journal)
    elif first and last - first < SHORT_RANGE:
        entities = await _of_range(database, log_id, first, last, types)
    if entities is not None:
        entities = tuple(
            each
            for each in entities
            if low <= each.entity_id < below and (types is None or each.type_id in types)
        )
    now_us = clock.now_us() if now_us is None else now_us
    conditions = _conditions(where, first, last, now_us, snapshots=snapshots)
    return Resolved(log_id, entities, types, first, last, low, below, conditions)


async def candidates(
    database: Database, log_id: int, resolved: Resolved, after: Cursor | None, limit: int
) -> list[Candidate]:
    """The next ``limit`` entities of a selection, fewer only at its end."""
    if log_id != resolved.log_id:
        raise InvalidArgument("log", "the selection was resolved for another one")
    found: list[Candidate] = []
    while len(found) < limit:
        page = await look(database, resolved, after, limit - len(found))
        found += page.candidates
        if page.cursor is None:
            break
        after = page.cursor
    return found


async def pages(database: Database, resolved: Resolved) -> AsyncGenerator[list[Candidate], None]:
    """All entities of a selection, a page at a time; one page is read ahead."""
    ahead = asyncio.create_task(look(database, resolved, None, PAGE))
    try:
        while True:
            page = await ahead
            if page.cursor is not None:
                ahead = asyncio.create_task(look(database, resolved, page.cursor, PAGE))
            if page.candidates:
                yield page.candidates
            if page.cursor is None:
                return
    finally:
        if not ahead.done():
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


async def search(
    database: Database,
    journal: StoreJournal,
    selection: Selection,
    *,
    token: str = "",
    limit: int = 100,
) -> Found:
    """A page of the entities of a selection.

    A page may hold fewer than ``limit``, even none, and have a next one: a call looks at a bounded
    number of entities.

    Raises:
        InvalidArgument: ``limit`` is not from 1 to 1,000, the token is not ours, and what `resolve`
        raises.

    """
    if not 1 <= limit <= 1_000:
        raise InvalidArgument("limit", f"{limit} is not from 1 to 1000")
    resolved = await resolve(database, journal, selection)
    after = await _parse_token(journal, token) if token else None
    found: list[Candidate] = []
    looked = 0
    while True:
        heads = max(limit - len(found), min(PAGE, limit * 2))
        page = await look(database, resolved, after, heads)
        room = limit - len(found)
        found += page.candidates[:room]
        looked += heads
        if len(page.candidates) > room:
            last = found[-1]
            return Found(tuple(found), _token(last.entity_type, last.entity_id))
        if page.cursor is None:
            return Found(tuple(found), "")
        after = page.cursor
        if len(found) == limit or looked >= _LOOKED_AT:
            name = (await _names(journal, [after.type_id]))[after.type_id]
            return Found(tuple(found), _token(name, after.entity_id))


async def look(database: Database, resolved: Resolved, after: Cursor | None, heads: int) -> Page:
    """What matches of the next ``heads`` entities: one statement, or two between types."""
    if resolved.entities is not None:
        return await _listed(database, resolved, after, heads)
    type_id = await _type_from(database, resolved, after.type_id if after else 0)
    if type_id is None:
        return Page([], None)
    after_id = after.entity_id if after is not None and after.type_id == type_id else ""
    rows = await database.fetch(
        sql.load("operations", "candidates_scan", database.schema),
        resolved.log_id, *resolved.conditions, type_id, resolved.low, after_id, resolved.below,
        heads, timeout=_SECONDS,
    )  # fmt: skip
    found = [Candidate._make(row[:15]) for row in rows if row[15]]
    if len(rows) == heads:
        return Page(found, Cursor(type_id, rows[-1]["entity_id"]))
    # Of this type there are no more: on with the next one, after an id that is above all.
    more = await _type_from(database, resolved, type_id + 1)
    return Page(found, None if more is None else Cursor(more, ""))


async def _listed(database: Database, resolved: Resolved, after: Cursor | None, heads: int) -> Page:
    entities = resolved.entities or ()
    start = 0 if after is None else _first_after(entities, after)
    part = entities[start : start + heads]
    if not part:
        return Page([], None)
    rows = await database.fetch(
        sql.load("operations", "candidates_listed", database.schema),
        resolved.log_id, *resolved.conditions, [each.type_id for each in part],
        [each.entity_id for each in part], timeout=_SECONDS,
    )  # fmt: skip
    found = [Candidate._make(row[:15]) for row in rows if row[15]]
    return Page(found, part[-1] if start + heads < len(entities) else None)


def _first_after(entities: tuple[Cursor, ...], after: Cursor) -> int:
    low, high = 0, len(entities)
    while low < high:
        middle = (low + high) // 2
        if entities[middle] <= after:
            low = middle + 1
        else:
            high = middle
    return low


async def _type_from(database: Database, resolved: Resolved, type_id: int) -> int | None:
    """The first type of the selection from a number on, if any."""
    if resolved.types is not None:
        return next((each for each in resolved.types if each >= type_id), None)
    row = await database.fetchrow(
        sql.load("operations", "candidates_type", database.schema), resolved.log_id, type_id,
        timeout=_SECONDS,
    )  # fmt: skip
    return None if row is None else int(row[0])


# Resolving


async def _type_ids(
    database: Database, journal: StoreJournal, given: Mapping[str, Collection[str]]
) -> dict[str, int]:
    names = {name for some in given.values() for name in some}
    await journal.names.find_entity_types(sorted(names), _SECONDS)
    known = journal.names.entity_ids
    for where, some in given.items():
        for name in some:
            if name not in known:
                rows = await database.fetch(
                    sql.load("journal", "entity_types", database.schema), "", 1_000,
                    timeout=_SECONDS,
                )  # fmt: skip
                close = language.near(name, [row["name"] for row in rows])
                raise NotFound(f"{where}: there is no entity type {name!r:.80}{close}")
    return {name: known[name] for name in names}


async def _names(journal: StoreJournal, type_ids: Iterable[int]) -> Mapping[int, str]:
    known = journal.names.entity_types
    missing = [each for each in type_ids if each not in known]
    if missing:
        rows = await journal.database.fetch(
            sql.load("journal", "entity_type_names", journal.database.schema), missing,
            timeout=_SECONDS,
        )  # fmt: skip
        journal.names.learn_entity_types(rows)
    return known


def _token(name: str, entity_id: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([name, entity_id])).decode()


async def _parse_token(journal: StoreJournal, token: str) -> Cursor:
    try:
        name, entity_id = orjson.loads(base64.urlsafe_b64decode(token.encode()))
        check_text("page_token", name, 255)
        check_text("page_token", entity_id, 512, empty=True)  # empty: before the type's first
    except (ValueError, TypeError, AttributeError, InvalidArgument):
        raise InvalidArgument("page_token", "is not one this server made") from None
    if not await journal.names.find_entity_types([name], _SECONDS):
        raise InvalidArgument("page_token", "belongs to another list")
    return Cursor(journal.names.entity_ids[name], entity_id)


async def last_position(journal: StoreJournal, log_id: int, selection: Selection) -> int | None:
    """The position up to which a selection's ``to`` goes, inclusive; None: there is none."""
    if selection.to is None:
        return None
    return (await _range(journal, log_id, selection))[1]


async def empty_range(context: Context) -> str:
    """What to say of a range of times that has no event: when the log's own were recorded."""
    chosen = context.selection
    if not any(bound and bound.time_us for bound in (chosen.from_, chosen.to)):
        return ""
    first, last = await _range(context.journal, context.log_id, chosen)
    if first <= last:
        return ""
    reader = context.journal.reader
    begin, head = await reader.bounds(context.log_id, _SECONDS)
    oldest = await reader.range(context.log_id, begin, begin, _SECONDS) if begin <= head else []
    if not oldest:
        return f"Log {chosen.log!r} has no events."
    begins = clock.format_us(clock.to_us(oldest[0][2]))  # recorded_at
    return (
        f"The range has no events: log {chosen.log!r} begins at {begins}. from and to are when"
        " the log recorded its events; the parameter at is about the time of the events."
    )


async def _range(journal: StoreJournal, log_id: int, selection: Selection) -> tuple[int, int]:
    """The positions of ``from_`` and ``to``, both inclusive; 0, 0: no range."""
    if selection.from_ is None and selection.to is None:
        return 0, 0
    _, head = await journal.reader.bounds(log_id, _SECONDS)
    first, last = 1, head
    if selection.from_ is not None:
        first = await _position(journal, log_id, "from", selection.from_, head)
    if selection.to is not None:
        last = await _position(journal, log_id, "to", selection.to, head)
        if selection.to.time_us:
            last -= 1  # exclusive
    if first > last and selection.from_ is not None and selection.to is not None:
        if not 0 < selection.from_.time_us < selection.to.time_us:
            raise InvalidArgument("from", f"position {first} is after to (position {last})")
        last = first - 1  # nothing was recorded between those times
    return first, max(last, 0)


async def _position(
    journal: StoreJournal, log_id: int, name: str, moment: Moment, head: int
) -> int:
    if bool(moment.position) == bool(moment.time_us):
        raise InvalidArgument(name, "is a position or a time: exactly one")
    if moment.position:
        if not 1 <= moment.position <= head:
            raise InvalidArgument(name, f"position {moment.position} is not from 1 to {head}")
        return moment.position
    return await journal.reader.position_at(log_id, moment.time_us, head, _SECONDS)


async def _check_there(
    database: Database, log_id: int, entities: tuple[Cursor, ...], journal: StoreJournal
) -> None:
    """Refuses a list that names an entity that is not there."""
    rows = await database.fetch(
        sql.load("operations", "candidates_missing", database.schema), log_id,
        [each.type_id for each in entities], [each.entity_id for each in entities],
        timeout=_SECONDS,
    )  # fmt: skip
    for type_id, entity_id in rows:
        raise EntityNotFound(journal.names.entity_types[type_id], entity_id)


async def _of_range(
    database: Database, log_id: int, first: int, last: int, types: tuple[int, ...] | None
) -> tuple[Cursor, ...]:
    rows = await database.fetch(
        sql.load("operations", "candidates_range", database.schema), log_id, first, last,
        None if types is None else list(types), timeout=_SECONDS,
    )  # fmt: skip
    return tuple(sorted(Cursor(*row) for row in rows))


def _conditions(
    where: Where, first: int, last: int, now_us: int, *, snapshots: bool
) -> tuple[Any, ...]:
    """Arguments $2 to $16 of the candidates statements."""
    ranged = first > 0 or last > 0
    since, before = (
        None if instant is None else clock.from_us(max(instant.at(now_us), language.OLDEST_US))
        for instant in (where.since, where.before)
    )
    return (
        first if ranged else None, last if ranged else None,
        where.events.low or 0, _NO_END if where.events.high is None else where.events.high,
        where.sequence.low or 0, _NO_END if where.sequence.high is None else where.sequence.high,
        _STATES[where.state] if where.state else None, where.held, where.snapshot or None,
        clock.from_us(now_us), since, before, where.size.low, where.size.high,
        snapshots or bool(where.snapshot),
    )  # fmt: skip


def _above(prefix: str) -> str:
    """The lowest text above all that begin with ``prefix`` (by code point, as UTF-8 sorts)."""
    while prefix:
        code = ord(prefix[-1]) + 1
        if code <= 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if code == 0xD800 else code)
        prefix = prefix[:-1]
    return _ABOVE_ALL
