"""Members: every running process, and its figures every ten seconds.

A server of any kind announces itself with one line around its work::

    async with membership(database, "worker", version=__version__, address=f"{host}:{port}"):
        ...

That is all: it registers the process (kind, ``host:pid``, address, version), says every ten seconds
that it is still there, keeps the figures of its metrics with it (`figures`: every counter and gauge
of `kernel.telemetry` that the process has touched, and its memory), and removes it at the end. A
database that cannot be reached costs nothing but the figures of that time. A process that was
killed counts as gone after 30 seconds of silence; its row is removed after an hour, figures after
48 hours, by whichever process comes by, in small pieces.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import orjson
import structlog

from kernel import sql, telemetry
from kernel.database import Database
from kernel.errors import EverstateError
from kernel.ids import new_id

log = structlog.get_logger(__name__)

Kind = Literal["node", "worker", "admin", "sidecar"]
Figures = Mapping[str, float]

BEAT: Final = timedelta(seconds=10)
SILENCE: Final = 3 * BEAT
"""A process that was not seen for so long counts as gone."""
_FORGOTTEN: Final = timedelta(hours=1)
_KEPT: Final = timedelta(hours=48)
MAX_FIGURES: Final = 300


def process_name() -> str:
    """What this process is called everywhere: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def figures() -> dict[str, float]:
    """The counters and gauges of this process as ``name{label=value}``, and its memory and CPU.

    At most 300, in the order of `kernel.telemetry`; nothing of them is an id or a payload.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "process_resident_bytes": float(_resident_bytes()),
        "process_cpu_seconds_total": usage.ru_utime + usage.ru_stime,
    }
    for family in telemetry.REGISTRY.collect():
        if family.type not in ("counter", "gauge"):
            continue
        for sample in family.samples:
            if len(found) >= MAX_FIGURES:
                return found
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # no Linux: the highest so far
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class MemberView:
    """A process as others see it. ``alive``: it was heard of within the last 30 seconds."""

    member_id: str
    kind: str
    name: str
    address: str
    version: str
    started_at: datetime
    seen_at: datetime
    details: Mapping[str, Any]
    alive: bool
    figures_at: datetime | None
    figures: Mapping[str, float]


@contextlib.asynccontextmanager
async def membership(
    database: Database,
    kind: Kind,
    *,
    version: str,
    address: str = "",
    details: Callable[[], Mapping[str, Any]] = dict,
    refresh: Callable[[], None] = lambda: None,
    beat: timedelta = BEAT,
) -> AsyncIterator[str]:
    """Announces this process while inside; gives its member id.

    ``refresh`` is called before figures are taken, to set gauges that are read and not counted;
    ``details`` is small and free in form (what it works on), shown to operators.

    Raises:
        EverstateError: the database could not be reached at the start.

    """
    member = _Member(database, kind, version, address, details, refresh)
    await member.announce()
    task = asyncio.create_task(member.keep_announcing(beat))
    try:
        yield member.member_id
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(EverstateError, TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.shield(member.leave())


class _Member:
    def __init__(
        self,
        database: Database,
        kind: Kind,
        version: str,
        address: str,
        details: Callable[[], Mapping[str, Any]],
        refresh: Callable[[], None],
    ) -> None:
        self.member_id = new_id()
        self._id = UUID(self.member_id)
        self._database = database
        self._fixed = (kind, process_name(), address, version)
        self._details = details
        self._refresh = refresh
        self._started_at: datetime | None = None

    def _sql(self, name: str) -> str:
        return sql.load("kernel", name, self._database.schema)

    async def announce(self) -> None:
        details = orjson.dumps(dict(self._details())).decode()
        self._refresh()
        numbers = orjson.dumps(figures()).decode()
        row = await self._database.fetchrow(
            self._sql("member_seen"), self._id, *self._fixed, self._started_at, details, timeout=5
        )
        self._started_at = row["started_at"]
        await self._database.fetchrow(self._sql("vitals_add"), self._id, numbers, timeout=5)

    async def keep_announcing(self, beat: timedelta) -> None:
        silent = False
        while True:
            await asyncio.sleep(beat.total_seconds())
            try:
                await self.announce()
                await self._database.fetchrow(self._sql("members_prune"), _FORGOTTEN, timeout=5)
                await self._database.fetchrow(self._sql("vitals_prune"), _KEPT, timeout=5)
                silent = False
            except (EverstateError, TimeoutError) as error:
                if not silent:  # once: it would be a line every ten seconds
                    reason = getattr(error, "message", "no answer in time")
                    log.warning("figures of this process cannot be kept now", reason=reason)
                silent = True

    async def leave(self) -> None:
        await self._database.fetchrow(self._sql("member_gone"), self._id, timeout=1)


async def list_members(
    database: Database, after: str = "", limit: int = 100
) -> Sequence[MemberView]:
    """Processes, oldest first, with their newest figures; also those that were just lost."""
    rows = await database.fetch(
        sql.load("kernel", "members", database.schema), _uuid(after), limit, SILENCE
    )
    return [
        MemberView(
            member_id=str(row["member_id"]),
            kind=row["kind"],
            name=row["name"],
            address=row["address"],
            version=row["version"],
            started_at=row["started_at"],
            seen_at=row["seen_at"],
            details=orjson.loads(row["details"]),
            alive=row["alive"],
            figures_at=row["figures_at"],
            figures=orjson.loads(row["figures"] or "{}"),
        )
        for row in rows
    ]


async def vitals(
    database: Database, member_id: str, after: datetime, limit: int = 360
) -> Sequence[tuple[datetime, Mapping[str, float]]]:
    """The figures of a process after a time, oldest first."""
    rows = await database.fetch(
        sql.load("kernel", "vitals", database.schema), _uuid(member_id), after, limit
    )
    return [(row["at"], orjson.loads(row["figures"])) for row in rows]


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return UUID(int=0)
