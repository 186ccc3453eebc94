"""What operators do with projections: look, pause, wait, rebuild. Used by the admin and the CLI.

All are functions on a `Database`; workers see what they wrote within a second.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from kernel import sql
from kernel.database import Database
from kernel.errors import Conflict, DeadlineExceeded, InvalidArgument, NotFound
from projections import replay as replays
from projections.compare import Comparison
from projections.model import views_schema
from projections.rebuild import SWITCH_WITHIN, First, Rebuilds
from projections.replay import ReplayRow, Selection

MAX_PAGE = 1_000
MAX_REASON = 1_000
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class ProjectionRow:
    """A build of a projection's version and how it stands.

    ``state``: what the build is for: building, ready, live, previous, retired, failed.
    ``status``: how it goes: ``paused``, ``halted``, else its state. ``position``: all segments have
    applied the log up to here. ``halted``: how many segments halted. ``lag_seconds``: age of the
    first event that was not applied; ``lag_events`` counts positions, whether or not handled.
    """

    name: str
    version: int
    build: int
    state: str
    status: str
    kind: str
    digest: str
    log: str
    entity_types: tuple[str, ...]
    event_types: tuple[str, ...]
    segments: int
    on_poison: str
    replayable: bool
    schema_name: str
    views: str
    tables: tuple[str, ...]
    position: int
    target_position: int
    head: int
    events: int
    halted: int
    parked: int
    lag_events: int
    lag_bytes: int
    lag_seconds: float
    live_version: int
    live_build: int
    paused: bool
    pause_reason: str
    error: Any
    registered_at: datetime
    created_at: datetime
    ready_at: datetime | None
    live_at: datetime | None
    previous_at: datetime | None
    retired_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment of a build. ``holder``: the worker that has its lease."""

    segment: int
    first_slice: int
    last_slice: int
    position: int
    events: int
    state: str
    error: Any
    updated_at: datetime
    holder: str | None
    lease_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """An event that a projection passed over, and why."""

    position: int
    segment: int
    entity_type: str
    entity_id: str
    event_type: str
    error: Any
    attempts: int
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class Passed:
    """That a projection has reached a position."""

    name: str
    version: int
    position: int


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument("limit", f"{limit} is not from 1 to {MAX_PAGE}")
    return limit


def _json(text: str | None) -> Any:
    return orjson.loads(text) if text is not None else None


async def list_projections(
    database: Database, after: str = "", limit: int = 100, *, timeout: float | None = 10
) -> list[ProjectionRow]:
    """A page of projections by name, each as its live build; go on ``after`` the last name.

    Raises:
        InvalidArgument: ``limit`` is not from 1 to 1,000.

    """
    return await _builds(database, after, None, _limit(limit), timeout, live_only=True)


async def get_projection(
    database: Database, name: str, *, timeout: float | None = 10
) -> ProjectionRow:
    """The live build of a projection.

    Raises:
        NotFound: there is none of this name.

    """
    rows = await _builds(database, "", name, 1, timeout, live_only=True)
    if not rows:
        raise not_found(name)
    return rows[0]


async def list_builds(
    database: Database,
    name: str,
    limit: int = 100,
    before: tuple[int, int] | None = None,
    *,
    timeout: float | None = 10,
) -> list[ProjectionRow]:
    """A page of a projection's builds, newest version first, retired ones too; go on ``before``
    the version and build of the last one.

    Raises:
        NotFound: there is no projection of this name. InvalidArgument: see `list_projections`.

    """
    rows = await _builds(database, "", name, _limit(limit), timeout, before, live_only=False)
    if not rows:
        await get_projection(database, name, timeout=timeout)  # there is none, or no more of it
    return rows


async def list_segments(
    database: Database,
    name: str,
    version: int,
    build: int,
    after: int = -1,
    limit: int = 100,
    *,
    timeout: float | None = 10,
) -> list[SegmentRow]:
    """A page of a build's segments; go on ``after`` the last one."""
    rows = await database.fetch(
        sql.load("projections", "segments", database.schema), name, version, build, after,
        _limit(limit),
        timeout=timeout,
    )  # fmt: skip
    return [SegmentRow(**{**row, "error": _json(row["error"])}) for row in rows]


async def list_parked(
    database: Database,
    name: str,
    version: int,
    build: int,
    after: int = 0,
    limit: int = 100,
    *,
    timeout: float | None = 10,
) -> list[ParkedRow]:
    """A page of a build's parked events by position; go on ``after`` the last one."""
    rows = await database.fetch(
        sql.load("projections", "parked", database.schema), name, version, build, after,
        _limit(limit),
        timeout=timeout,
    )  # fmt: skip
    return [ParkedRow(**{**row, "error": _json(row["error"])}) for row in rows]


async def pause(
    database: Database, name: str, reason: str, *, timeout: float | None = 10
) -> ProjectionRow:
    """Stops all builds of a projection until `resume`; no batch commits after this returns.

    Raises:
        NotFound: there is none of this name. InvalidArgument: the reason is empty or longer than
        1,000 characters.

    """
    if not reason.strip() or len(reason) > MAX_REASON:
        raise InvalidArgument("reason", f"is empty or longer than {MAX_REASON} characters")
    statement = sql.load("projections", "pause", database.schema)
    if await database.fetchrow(statement, name, reason, timeout=timeout) is None:
        raise not_found(name)
    return await get_projection(database, name, timeout=timeout)


async def resume(database: Database, name: str, *, timeout: float | None = 10) -> ProjectionRow:
    """Ends a pause, and lets halted segments try again from where they halted.

    Raises:
        NotFound: there is none of this name.

    """
    statement = sql.load("projections", "resume", database.schema)
    if await database.fetchrow(statement, name, timeout=timeout) is None:
        raise not_found(name)
    return await get_projection(database, name, timeout=timeout)


async def wait_for(
    database: Database, name: str, position: int, timeout: timedelta = timedelta(seconds=30)
) -> Passed:
    """Returns when the live build has applied everything up to ``position`` (read your writes).

    What was written there and is handled can then be read in the projection's views.

    Raises:
        NotFound: there is no projection of this name. InvalidArgument: ``position`` is negative.
        Conflict: a segment halted before ``position``; says where and why.
        DeadlineExceeded: not within ``timeout``; says how far it is.

    """
    if position < 0:
        raise InvalidArgument("position", f"{position} is negative")
    statement = sql.load("projections", "passed", database.schema)
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout.total_seconds()
    pause_for = _FIRST_WAIT
    while True:
        left = max(end - loop.time(), 0.05)
        row = await database.fetchrow(statement, name, timeout=min(left, 10))
        if row is None:
            raise not_found(name)
        if row["position"] >= position:
            return Passed(name, row["version"], row["position"])
        if row["halted_segment"] is not None and row["halted_position"] < position:
            raise Conflict(
                f"segment {row['halted_segment']} of projection {name!r} halted after position"
                f" {row['halted_position']}{_cause(_json(row['error']))}"
            )
        if loop.time() + pause_for > end:
            paused = f"; it is paused: {row['pause_reason']}" if row["paused"] else ""
            raise DeadlineExceeded(
                f"projection {name!r} is at position {row['position']}, not yet at {position}"
                + paused
            )
        await asyncio.sleep(pause_for)
        pause_for = min(pause_for * 1.5, _LONGEST_WAIT)


def _cause(error: Any) -> str:
    """Why it halted, as far as it may be logged: the message may hold values of the event."""
    if not isinstance(error, dict):
        return ""
    words = [str(error[key]) for key in ("code", "sqlstate", "where") if error.get(key)]
    return f" ({', '.join(words)}); `everstate projection show` has the cause"


async def get_build(
    database: Database, name: str, version: int, build: int, *, timeout: float | None = 10
) -> ProjectionRow:
    """A build of a projection's version.

    Raises:
        NotFound: there is none.

    """
    for row in await _builds(database, "", name, MAX_PAGE, timeout, live_only=False):
        if (row.version, row.build) == (version, build):
            return row
    raise NotFound(f"projection {name!r} has no build {build} of version {version}")


async def rebuild(
    database: Database, name: str, *, auto_switch: bool = False, first: First | None = None,
    timeout: float = 10,
) -> ProjectionRow:  # fmt: skip
    """Orders another build of the live version beside it; the row of the new build.

    A worker fills it; readers are not concerned until `switch`, or, with ``auto_switch``, until it
    has caught up.

    Raises:
        NotFound: there is none of this name. Conflict: another build is under way.

    """
    key = await Rebuilds(database).order(
        name, auto_switch=auto_switch, first=first, timeout=timeout
    )
    return await get_build(database, name, *key, timeout=timeout)


async def switch(
    database: Database,
    name: str,
    version: int | None = None,
    build: int = 1,
    *,
    within: timedelta = SWITCH_WITHIN,
    first: First | None = None,
) -> ProjectionRow:
    """Shows readers the build that is ready, or the named one; the row of what is live then.

    See `Rebuilds.switch` for what is promised.

    Raises:
        NotFound, Conflict, Unavailable: see `Rebuilds.switch`.

    """
    await Rebuilds(database).switch(
        name, None if version is None else (version, build), within=within, first=first
    )
    return await get_projection(database, name)


async def rollback(
    database: Database, name: str, *, within: timedelta = SWITCH_WITHIN, first: First | None = None
) -> ProjectionRow:
    """Shows readers the build that was live before; the row of what is live then.

    Raises:
        NotFound, Conflict, Unavailable: see `Rebuilds.rollback`.

    """
    await Rebuilds(database).rollback(name, within=within, first=first)
    return await get_projection(database, name)


async def discard(
    database: Database, name: str, version: int | None = None, build: int = 1,
    *, first: First | None = None,
) -> ProjectionRow:  # fmt: skip
    """Gives up a build that is not live (by default the one under way); its row.

    Raises:
        NotFound: there is none. Conflict: it is live.

    """
    chosen = None if version is None else (version, build)
    key = await Rebuilds(database).discard(name, chosen, first=first)
    return await get_build(database, name, *key)


async def compare(
    database: Database, name: str, version: int | None = None, build: int = 1
) -> Comparison:
    """Compares the live build with the one that is ready, or the named one, table by table.

    Raises:
        NotFound, Conflict, DeadlineExceeded: see `Rebuilds.compare`.

    """
    return await Rebuilds(database).compare(name, None if version is None else (version, build))


async def replay(
    database: Database,
    name: str,
    selection: Selection,
    *,
    reason: str,
    principal: str = "",
    rate: float | None = None,
    first: First | None = None,
) -> ReplayRow:
    """Orders that entities of the live build are deleted and made again from their events.

    ``rate``: events a second for each segment; None: as fast as it goes, between batches.

    Raises:
        NotFound: there is none of this name. InvalidArgument: names the field and the limit.
        Conflict: the projection does not say how an entity is deleted, or another replay runs.

    """
    return await replays.order(
        database, name, selection, reason=reason, principal=principal, rate=rate, first=first
    )


async def get_replay(database: Database, name: str, replay_id: str) -> ReplayRow:
    """A replay of a projection. Raises `NotFound`."""
    return await replays.get(database, name, replay_id)


async def list_replays(
    database: Database, name: str, limit: int = 100, before: str | None = None
) -> list[ReplayRow]:
    """A page of a projection's replays; see `replays.list_replays`. Raises as `list_builds`."""
    await get_projection(database, name)
    return await replays.list_replays(database, name, limit, before)


async def cancel_replay(database: Database, name: str, replay_id: str) -> ReplayRow:
    """Ends a replay after the entities it is at; its row. Raises `NotFound`."""
    return await replays.cancel(database, name, replay_id)


def not_found(name: str) -> NotFound:
    """There is no such projection."""
    return NotFound(f"there is no projection {name!r}")


async def _builds(
    database: Database,
    after: str,
    name: str | None,
    limit: int,
    timeout: float | None,
    before: tuple[int, int] | None = None,
    *,
    live_only: bool,
) -> list[ProjectionRow]:
    rows = await database.fetch(
        sql.load("projections", "builds", database.schema), after, name, live_only, limit,
        *(before or (None, None)), timeout=timeout,
    )  # fmt: skip
    return [_version(row) for row in rows]


def _version(row: Any) -> ProjectionRow:
    status = row["state"]
    if status not in ("retired", "failed"):
        status = "paused" if row["paused"] else "halted" if row["halted"] else status
    return ProjectionRow(
        name=row["name"], version=row["version"], build=row["build"],
        state=row["state"], status=status,
        kind=row["kind"], digest=row["digest"], log=row["log"],
        entity_types=tuple(row["entity_types"]), event_types=tuple(row["event_types"]),
        segments=row["segments"], on_poison=row["on_poison"], replayable=row["replayable"],
        schema_name=row["schema_name"], views=views_schema(row["name"]),
        tables=tuple(row["tables"]), position=row["position"],
        target_position=row["target_position"], head=row["head"], events=row["events"],
        halted=row["halted"], parked=row["parked"], lag_events=row["lag_events"],
        lag_bytes=row["lag_bytes"], lag_seconds=row["lag_seconds"],
        live_version=row["live_version"], live_build=row["live_build"],
        paused=row["paused"], pause_reason=row["pause_reason"], error=_json(row["error"]),
        registered_at=row["registered_at"], created_at=row["created_at"],
        ready_at=row["ready_at"], live_at=row["live_at"],
        previous_at=row["previous_at"], retired_at=row["retired_at"], updated_at=row["updated_at"],
    )  # fmt: skip
