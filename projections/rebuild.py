"""Builds of a projection: order another one, compare it, switch readers to it, go back, drop it.

How and why: docs/adr/0011-rebuild.md. Nothing here is remembered in a process. Every step is one
transaction that first looks at where things are, so it can be killed anywhere and asked for again.

The row of the projection is what orders everything: a batch holds it (shared) when it commits, so
whoever locks it sees every committed batch, and no other one commits before that transaction ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kernel import sql
from kernel.database import Connection, Database
from kernel.errors import Conflict, EverstateError, NotFound, Unavailable
from projections import compare as tables
from projections.compare import Comparison
from projections.model import reader_role, role_name, schema_name, views_schema

First = Callable[[Connection], Awaitable[None]]
"""What is done at the beginning of a transaction, by whoever ordered it; it may refuse."""

GRACE = timedelta(hours=24)
"""How long a previous build is kept up to date after a switch."""

SWITCH_WITHIN = timedelta(seconds=5)
"""How long a switch may wait for the new build, and so stop the live one."""

COMPARE_WITHIN = timedelta(seconds=15)
"""How long a comparison may wait until both builds are at one position."""

MOST_BEHIND = 20_000
"""Positions that a build may be behind the live one when a switch or comparison begins."""

_LOCK_TIMEOUT = "500ms"
# Below PostgreSQL's deadlock_timeout (1 s): where a reader and the switch wait for each other, the
# switch gives up first and tries again, and the reader never sees an error.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Build:
    """A build and how far it is.

    ``low`` and ``high``: positions of its slowest and fastest segment; ``held``: segments that a
    worker has.
    """

    version: int
    build: int
    state: str
    schema_name: str
    role_name: str
    target_position: int
    previous_at: datetime | None
    low: int
    high: int
    halted: int
    held: int

    @property
    def title(self) -> str:
        """For messages."""
        return f"build {self.build} of version {self.version}"

    @property
    def key(self) -> tuple[int, int]:
        """(version, build)."""
        return self.version, self.build


@dataclass(frozen=True, slots=True)
class Ordered:
    """A build that an operation has ordered. ``error``: JSON, why it failed; the rest: `Build`."""

    version: int
    build: int
    state: str
    target_position: int
    error: str | None
    low: int
    halted: int
    held: int

    @property
    def key(self) -> tuple[int, int]:
        """(version, build)."""
        return self.version, self.build


@dataclass(frozen=True, slots=True)
class _State:
    """A projection as it is while its row is locked."""

    live: Build
    builds: Sequence[Build]
    database: str
    paused: str | None

    def find(self, key: tuple[int, int]) -> Build | None:
        return next((build for build in self.builds if build.key == key), None)


class Rebuilds:
    """The steps of rebuilding the projections of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _sql(self, name: str) -> str:
        return sql.load("projections", name, self._database.schema)

    # Looking

    async def builds(self, name: str, *, timeout: float | None = 10) -> list[Build]:
        """The builds that are not retired, newest first."""
        rows = await self._database.fetch(self._sql("rebuild_builds"), name, timeout=timeout)
        return [Build(**row) for row in rows]

    @asynccontextmanager
    async def _locked(
        self, name: str, timeout: float = 10
    ) -> AsyncIterator[tuple[Connection, _State]]:
        """A transaction that holds the projection's row; commits at the end."""
        async with (
            self._database.connection(timeout, writing=True) as connection,
            connection.transaction(),
        ):
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            row = await connection.fetchrow(self._sql("rebuild_lock"), name)
            if row is None:
                raise NotFound(f"there is no projection {name!r}")
            found = await connection.fetch(self._sql("rebuild_builds"), name)
            builds = [Build(**r) for r in found]
            key = row["live_version"], row["live_build"]
            live = next(build for build in builds if build.key == key)
            yield (
                connection,
                _State(
                    live, builds, row["database"], row["pause_reason"] if row["paused"] else None
                ),
            )

    # Ordering

    async def order(
        self,
        name: str,
        *,
        auto_switch: bool = False,
        operation: str | None = None,
        first: First | None = None,
        timeout: float = 10,
    ) -> tuple[int, int]:
        """Orders another build of the live version; a worker that has its code fills it.

        ``auto_switch``: readers are switched to it as soon as it has caught up. ``operation`` (a
        UUID): a build that it has ordered before is not ordered again. ``first``: done before, in
        the same transaction. Returns (version, build).

        Raises:
            NotFound: there is no such projection. Conflict: another build is under way.

        """
        async with self._locked(name, timeout) as (connection, state):
            if first is not None:
                await first(connection)
            if operation is not None:
                row = await connection.fetchrow(self._sql("rebuild_of"), name, operation)
                if row is not None:
                    return row["version"], row["build"]
            for build in state.builds:
                if build.state in ("ordered", "building", "ready"):
                    raise Conflict(
                        f"projection {name!r}: {build.title} is {build.state}: switch to it or"
                        " discard it first"
                    )
            version = state.live.version
            number = (await connection.fetchrow(self._sql("rebuild_next"), name, version))["build"]
            schema = schema_name(name, version, number)
            role = role_name(state.database, self._database.schema, schema)
            await connection.fetchrow(
                self._sql("rebuild_order"), name, version, schema, role, auto_switch, number,
                operation,
            )  # fmt: skip
            return version, number

    async def ordered_by(self, name: str, operation: str) -> Ordered | None:
        """The build that an operation (its UUID) has ordered, retired or not."""
        row = await self._database.fetchrow(self._sql("rebuild_of"), name, operation, timeout=10)
        return None if row is None else Ordered(**row)

    async def discard(
        self, name: str, key: tuple[int, int] | None = None, *, first: First | None = None,
        timeout: float = 10,
    ) -> tuple[int, int]:  # fmt: skip
        """Gives up a build that is not live; its tables are dropped soon after.

        ``key``: (version, build); None: the one that is under way or failed. ``first``: as `order`.

        Raises:
            NotFound: there is no such projection or build. Conflict: it is live.

        """
        async with self._locked(name, timeout) as (connection, state):
            if first is not None:
                await first(connection)
            if key is None:
                target = next(
                    (b for b in state.builds if b.state not in ("live", "previous")), None
                )
            else:
                target = state.find(key)
            if target is None:
                raise NotFound(f"projection {name!r} has no build that could be discarded")
            if target.state == "live":
                raise Conflict(f"projection {name!r}: {target.title} is live")
            await self._set(connection, name, target, "retired")
            return target.key

    async def _set(self, connection: Connection, name: str, build: Build, state: str) -> None:
        await connection.fetchrow(self._sql("rebuild_state"), name, *build.key, state)

    # Switching

    async def switch(
        self,
        name: str,
        key: tuple[int, int] | None = None,
        *,
        within: timedelta = SWITCH_WITHIN,
        first: First | None = None,
    ) -> Build:
        """Shows readers another build: ``key`` (version, build), or the one that is ready.

        Readers see the old tables or the new ones and never an older position than before. Nothing
        has changed when it fails. The build that was live is kept up to date for `GRACE`.

        Raises:
            NotFound: there is no such projection or build. Conflict: the build is not ready, or did
            not reach the live one's position in time; the message says how far it is.
            Unavailable: long queries held the views all the time.

        """
        return await self._go(name, key, ("ready", "previous"), "ready", within, first)

    async def rollback(
        self, name: str, *, within: timedelta = SWITCH_WITHIN, first: First | None = None
    ) -> Build:
        """Shows readers the build that was live before, with the promises of `switch`.

        Raises:
            As `switch`; Conflict: there is no previous build, or nobody keeps it up to date.

        """
        return await self._go(name, None, ("previous",), "previous", within, first)

    async def _go(
        self,
        name: str,
        key: tuple[int, int] | None,
        states: Sequence[str],
        wanted: str,
        within: timedelta,
        first: First | None,
    ) -> Build:
        end = time.monotonic() + within.total_seconds()
        patience = time.monotonic() + within.total_seconds() / 2
        async with self._locked(name) as (connection, state):
            if first is not None:  # who asks is kept, whether readers can be switched or not
                await first(connection)
            if key is not None and key == state.live.key:
                return state.live
            target = _choose(name, state, key, states, wanted)
            await self._stop(connection, name, state, target, within)
        try:
            pause = _FIRST_PAUSE
            while True:
                level = time.monotonic() < patience
                problem = await self._try_switch(name, state.live, target, level=level)
                if problem is None:
                    return target
                if time.monotonic() + pause > end:
                    raise problem
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            await self._release(name)

    async def _try_switch(
        self, name: str, live: Build, target: Build, *, level: bool
    ) -> EverstateError | None:
        """One attempt; what was in the way.

        ``level``: only when the live build is at the same position too. Effects run for the live
        build only, so those of events that it leaves to the other one would run for neither.
        """
        try:
            async with self._locked(name) as (connection, state):
                now = state.find(target.key)
                if state.live.key == target.key:
                    return None  # somebody else was faster
                if state.live.key != live.key or now is None or now.state != target.state:
                    raise Conflict(f"projection {name!r} was switched by somebody else meanwhile")
                if now.low < state.live.high:
                    return _behind(name, now, state)
                if level and state.live.low < now.high and _goes_on(state):
                    return Conflict(f"projection {name!r}: the live build is behind {now.title}")
                reader = reader_role(state.database, self._database.schema)
                await connection.execute(
                    self._sql("rebuild_publish"),
                    now.schema_name, now.role_name, views_schema(name), reader,
                )  # fmt: skip
                await self._set(connection, name, state.live, "previous")
                await self._set(connection, name, now, "live")
                await connection.fetchrow(self._sql("rebuild_live"), name, *now.key)
                return None
        except Unavailable as error:  # the lock_timeout: a query holds a view
            return error

    async def _stop(
        self, connection: Connection, name: str, state: _State, other: Build, within: timedelta
    ) -> int:
        """Has the live build and ``other`` stop at one position just ahead, which it returns."""
        if state.live.low - other.low > MOST_BEHIND:
            raise _behind(name, other, state)
        position = max(state.live.high, other.high)
        for build in (state.live, other):
            await connection.fetchrow(
                self._sql("rebuild_stop"), name, *build.key, position, within + SWITCH_WITHIN
            )
        return position

    async def _release(self, name: str) -> None:
        """Ends the stops; when this cannot be said, they end by themselves."""
        try:
            await self._database.fetchrow(self._sql("rebuild_go"), name, timeout=5)
        except EverstateError:
            return

    # Comparing

    async def compare(
        self,
        name: str,
        key: tuple[int, int] | None = None,
        *,
        within: timedelta = COMPARE_WITHIN,
        timeout: timedelta = timedelta(minutes=10),
    ) -> Comparison:
        """Compares the live build (old) with another one (new) at one position, table by table.

        ``key``: (version, build); None: the one that is ready, else the previous one. The live
        build stands still only until the other one is at its position; ``timeout`` bounds each
        table's reading.

        Raises:
            NotFound: there is no such projection or build. Conflict: the builds did not come to one
            position ``within`` the time. DeadlineExceeded: reading took too long.

        """
        end = time.monotonic() + within.total_seconds()
        async with self._locked(name) as (connection, state):
            target = _choose(name, state, key, ("ready", "previous"), "ready or previous")
            for build in (state.live, target):
                await connection.execute(
                    self._sql("rebuild_grant"), build.schema_name, build.role_name
                )
            position = await self._stop(connection, name, state, target, within)
        live = state.live
        try:
            pause = _FIRST_PAUSE
            while True:
                found = {build.key: build for build in await self.builds(name)}
                both = [found.get(live.key), found.get(target.key)]
                if all(b is not None and b.low == b.high == position for b in both):
                    break
                if time.monotonic() + pause > end:
                    raise Conflict(
                        f"projection {name!r}: its builds did not both come to position {position}"
                        f" within {within.total_seconds():g} s"
                    )
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            async with tables.snapshot(self._database, timeout.total_seconds()) as connection:
                columns = await tables.columns(
                    connection, self._database.schema, live.schema_name, target.schema_name
                )
                now = [
                    Build(**r) for r in await connection.fetch(self._sql("rebuild_builds"), name)
                ]
                at = {b.key: (b.low, b.high) for b in now}
                if at.get(live.key) != at.get(target.key):
                    raise Conflict(f"projection {name!r}: its builds went on; compare again")
                await self._release(name)
                compared = await tables.compare_tables(
                    connection, self._database.schema, live.schema_name, target.schema_name,
                    columns, timeout.total_seconds(),
                )  # fmt: skip
        finally:
            await self._release(name)
        return Comparison(
            name, live.key, target.key, position, compared,
            tuple(sorted(columns.old - columns.new)), tuple(sorted(columns.new - columns.old)),
        )  # fmt: skip

    # Upkeep, by workers

    async def note_ready(self) -> list[tuple[str, int, int]]:
        """Notes which builds have caught up; (name, version, build) of each."""
        rows = await self._database.fetch(self._sql("rebuild_ready"), timeout=10)
        return [tuple(row) for row in rows]

    async def due(self, grace: timedelta = GRACE) -> list[Any]:
        """What there is to do: rows of ``rebuild_due.sql``."""
        return await self._database.fetch(self._sql("rebuild_due"), grace, timeout=10)

    async def retire(self, name: str, key: tuple[int, int]) -> bool:
        """Ends the work on a previous build; False: it is not previous any more."""
        async with self._locked(name) as (connection, state):
            build = state.find(key)
            if build is None or build.state != "previous":
                return False
            await self._set(connection, name, build, "retired")
            return True

    async def drop(self, name: str, key: tuple[int, int]) -> bool:
        """Drops the schema of a retired build; False: it is gone, or another worker is at it.

        Raises:
            Unavailable: somebody reads its tables; try again later.

        """
        async with (
            self._database.connection(60, writing=True) as connection,
            connection.transaction(),
        ):
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            row = await connection.fetchrow(self._sql("rebuild_retired"), name, *key)
            if row is None:
                return False
            await connection.execute(
                self._sql("rebuild_drop"), row["schema_name"], row["role_name"]
            )
            await connection.fetchrow(self._sql("rebuild_dropped"), name, *key)
            return True


def _choose(
    name: str, state: _State, key: tuple[int, int] | None, states: Sequence[str], wanted: str
) -> Build:
    """The build that is meant."""
    if key is not None:
        target = state.find(key)
        if target is None:
            raise NotFound(f"projection {name!r} has no build {key[1]} of version {key[0]}")
    else:
        candidates = [b for s in states for b in state.builds if b.state == s]
        if wanted in ("ready", "previous"):
            candidates = [b for b in candidates if b.state == wanted]
        target = max(candidates, key=_age) if candidates else None
        if target is None:
            under_way = next((b for b in state.builds if b.state in ("ordered", "building")), None)
            if under_way is not None and wanted != "previous":
                raise _not_ready(name, under_way)
            raise Conflict(f"projection {name!r} has no build that is {wanted}")
    if target.state not in states:
        raise _not_ready(name, target)
    return target


def _goes_on(state: _State) -> bool:
    """Whether the live build may be expected to come further."""
    live = state.live
    return bool(live.held) and not live.halted and state.paused is None


def _age(build: Build) -> tuple[bool, float, tuple[int, int]]:
    at = build.previous_at
    return build.state == "ready", at.timestamp() if at else 0.0, build.key


def _not_ready(name: str, build: Build) -> Conflict:
    how = f": position {build.low} of {build.target_position}" if build.state == "building" else ""
    return Conflict(f"projection {name!r}: {build.title} is {build.state}{how}")


def _behind(name: str, build: Build, state: _State) -> Conflict:
    why = ""
    if state.paused is not None:
        why = f"; the projection is paused: {state.paused}"
    elif build.halted:
        why = f"; {build.halted} of its segments halted"
    elif not build.held:
        why = "; no worker that runs has its code (name its class in `replaces`)"
    return Conflict(
        f"projection {name!r}: {build.title} is {state.live.high - build.low} positions behind the"
        f" live one{why}"
    )
