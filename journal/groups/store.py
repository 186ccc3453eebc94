"""The tables of consumer groups. Every method is one statement or one transaction.

Lock order: partitions (ascending), then parked events. A holder's `save` begins with its partitions
and writes nothing when they are not its own any more; operations lock all partitions first.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from journal.groups.model import (
    Group,
    GroupChange,
    GroupMember,
    GroupPage,
    GroupPartition,
    GroupSettings,
    ParkedCount,
    ParkedEvent,
    ParkedPage,
    ParkedSelection,
    check_group_name,
    check_selection,
    check_settings,
    slices_of,
)
from journal.groups.partition import Changes
from journal.queries import check_page_size
from kernel import clock, sql
from kernel.database import Connection, Database
from kernel.errors import AlreadyExists, Conflict, InvalidArgument, NotFound

MEMBERS_SHOWN = 1_000
OPERATION_ROWS = 2_000
"""Parked events that one transaction of a replay or discard takes: holders wait for it."""


First = Callable[[Connection], Awaitable[None]]
"""What is done at the beginning of a transaction, by whoever ordered it; it may refuse."""


def no_group(name: str) -> NotFound:
    """What is said of a group that is not there."""
    return NotFound(f"there is no consumer group {name!r}")


class HeldPartition(NamedTuple):
    """A partition as its new holder finds it."""

    partition: int
    first_slice: int
    last_slice: int
    epoch: int
    watermark: int
    pending: Sequence[int]
    attempts: Sequence[int]
    due_us: Sequence[int]
    parked: int
    parked_version: int


class PartitionView(NamedTuple):
    """A partition as everybody sees it; ``holder`` is None when nobody has it."""

    partition: int
    first_slice: int
    last_slice: int
    watermark: int
    pending: int
    epoch: int
    parked: int
    parked_version: int
    holder: UUID | None


@dataclass(frozen=True, slots=True)
class Save:
    """What a holder writes of one partition; names are those of the parkings' rows."""

    partition: int
    epoch: int
    changes: Changes
    released: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a partition: events on its list, entities that have none there any more."""

    parked: int
    free: tuple[tuple[str, str], ...] = ()


class GroupStore:
    """The statements of groups on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def _sql(self, name: str) -> str:
        return sql.load("journal", name, self.database.schema)

    async def _fetch(self, name: str, *args: object, timeout: float | None = 10) -> list[Any]:
        return await self.database.fetch(self._sql(name), *args, timeout=timeout)

    # Groups

    async def create(
        self,
        name: str,
        log_id: int,
        settings: GroupSettings,
        watermark: int,
        *,
        timeout: float = 10,
    ) -> int:
        """Makes a group that begins after ``watermark``; its id. Raises `AlreadyExists`."""
        s = check_settings(settings)
        slices = [slices_of(i, s.partitions) for i in range(s.partitions)]
        rows = await self._fetch(
            "group_create", check_group_name(name), log_id, list(s.entity_types),
            list(s.event_types), s.global_order, s.entity_window, s.ack_timeout, s.max_attempts,
            s.backoff_min, s.backoff_max, s.skip_parked, s.max_parked,
            [first for first, _ in slices], [last for _, last in slices], watermark,
            timeout=timeout,
        )  # fmt: skip
        if not rows:
            raise AlreadyExists(f"the consumer group {name!r} exists already")
        group_id: int = rows[0][0]
        return group_id

    async def update(
        self, name: str, version: int, change: GroupChange, *, timeout: float = 10
    ) -> int:
        """Changes settings; the group's id. Raises `NotFound`, `Conflict`, `InvalidArgument`."""
        group = await self.get(name, timeout=timeout)
        given = {
            field: value
            for field in change.__slots__
            if (value := getattr(change, field)) is not None
        }
        check_settings(replace(group.settings, **given))
        c = change
        async with self.database.connection(timeout, writing=True) as connection, _tx(connection):
            await connection.fetch(self._sql("group_lock"), group.group_id)
            row = await connection.fetchrow(
                self._sql("group_update"), name, version,
                None if c.entity_types is None else list(c.entity_types),
                None if c.event_types is None else list(c.event_types), c.entity_window,
                c.ack_timeout, c.max_attempts, c.backoff_min, c.backoff_max, c.skip_parked,
                c.max_parked,
            )  # fmt: skip
            if row is None:
                raise Conflict(f"the group {name!r} is not at version {version} any more")
            if row["skip_parked"]:
                await connection.execute(self._sql("group_let_go"), row["group_id"])
            await self._count(connection, group.group_id, dict.fromkeys(range(256), 0), others=True)
        return group.group_id

    async def delete(self, name: str, *, timeout: float = 30) -> tuple[int, int]:
        """(group id, parked events that went with it). Raises `NotFound`."""
        group = await self.get(name, timeout=timeout)
        async with self.database.connection(timeout, writing=True) as connection, _tx(connection):
            await connection.fetch(self._sql("group_lock"), group.group_id)
            row = await connection.fetchrow(self._sql("group_delete"), group.group_id)
            if row is None:
                raise no_group(name)
            return group.group_id, row[0]

    async def get(self, name: str, *, timeout: float = 10) -> Group:
        """A group with its members and partitions. Raises `NotFound`."""
        rows = await self._fetch("groups", check_group_name(name), "", 1, timeout=timeout)
        if not rows:
            raise no_group(name)
        group = _group(rows[0])
        partitions = await self.partitions(group.group_id, timeout=timeout)
        held = Counter(row.holder for row in partitions)
        members = await self._fetch("group_members", group.group_id, MEMBERS_SHOWN, timeout=timeout)
        return replace(
            group,
            members=tuple(
                GroupMember(str(m[0]), m[1], m[2], clock.to_us(m[3]), held[m[0]]) for m in members
            ),
            partitions=tuple(
                GroupPartition(
                    p.partition, p.first_slice, p.last_slice, p.watermark, p.pending,
                    str(p.holder or ""), p.epoch, p.parked,
                )
                for p in partitions
            ),
        )  # fmt: skip

    async def status(self, group: Group) -> Group:
        """The group's settings and version as they are now; ``parked`` counts all that is put
        aside, the other figures are those of ``group``. Raises `NotFound`.
        """
        rows = await self._fetch("group_status", group.group_id, timeout=5)
        if not rows:
            raise no_group(group.name)
        return replace(
            group, settings=_settings(rows[0]), version=rows[0]["version"],
            parked=rows[0]["parked"],
        )  # fmt: skip

    async def list_groups(
        self, *, page_size: int = 100, page_token: str = "", timeout: float = 10
    ) -> GroupPage:
        """The groups by name."""
        size = check_page_size(page_size)
        after = check_group_name(page_token, "page_token") if page_token else ""
        rows = await self._fetch("groups", None, after, size + 1, timeout=timeout)
        groups = tuple(map(_group, rows[:size]))
        return GroupPage(groups, groups[-1].name if len(rows) > size else "")

    async def seek(
        self, group_id: int, watermark: int, *, first: First | None = None, timeout: float = 10
    ) -> None:
        """All partitions go on after this position; who has them has lost them. ``first``: what is
        done before, in the same transaction.
        """
        async with self.database.connection(timeout, writing=True) as connection, _tx(connection):
            if first is not None:
                await first(connection)
            await connection.fetch(self._sql("group_lock"), group_id)
            await connection.execute(self._sql("group_seek"), group_id, watermark, None)

    # Members

    async def join(
        self, member: UUID, group_id: int, name: str, node: str, term: timedelta
    ) -> None:
        """A member comes."""
        await self._fetch("group_join", member, group_id, name, node, term)

    async def renew(self, members: Sequence[UUID], term: timedelta) -> set[UUID]:
        """Members are still there; those that are known."""
        rows = await self._fetch("group_renew", members, term, timeout=5)
        return {row[0] for row in rows}

    async def leave(self, member: UUID, group_id: int) -> None:
        """A member is gone, and what it had is free."""
        await self._fetch("group_leave", member, group_id, timeout=5)

    async def members(self, group_id: int, most: int = 10_000) -> list[UUID]:
        """The members that are there, in the order of joining."""
        rows = await self._fetch("group_members", group_id, most, timeout=5)
        return [row[0] for row in rows]

    async def forget(self, group_id: int, unseen: timedelta) -> None:
        """Forgets members that have not been seen for so long."""
        await self._fetch("group_forget", group_id, unseen, timeout=5)

    # Partitions

    async def partitions(self, group_id: int, *, timeout: float = 5) -> list[PartitionView]:
        """All partitions of a group, in order."""
        rows = await self._fetch("group_partitions", group_id, timeout=timeout)
        return [PartitionView(*row) for row in rows]

    async def acquire(
        self, group_id: int, member: UUID, partitions: Sequence[int]
    ) -> list[HeldPartition]:
        """Takes those that are free; each gets the next epoch."""
        rows = await self._fetch("group_acquire", group_id, member, partitions, timeout=5)
        return sorted(HeldPartition(*row) for row in rows)

    async def save(
        self, group_id: int, member: UUID, saves: Sequence[Save], names: Any, *, hold: bool,
        timeout: float = 5,
    ) -> dict[int, Saved]:  # fmt: skip
        """Writes where partitions are and what is parked, in one transaction.

        ``names`` gives the names of a row's types (`journal.rows.Names`). Partitions that are not
        the member's any more are not in the answer, and nothing of them was written.
        """
        saves = sorted(saves, key=lambda save: save.partition)
        async with self.database.connection(timeout, writing=True) as connection:
            if not any(c.parkings or c.unparked or c.retried for c in (s.changes for s in saves)):
                return await self._save(connection, group_id, member, saves)
            async with _tx(connection):
                saved = await self._save(connection, group_id, member, saves)
                ours = [save for save in saves if save.partition in saved]
                return await self._park(connection, group_id, ours, saved, names, hold=hold)

    async def _save(
        self, connection: Connection, group_id: int, member: UUID, saves: Sequence[Save]
    ) -> dict[int, Saved]:
        images = [save.changes.image for save in saves]
        rows = await connection.fetch(
            self._sql("group_save"), group_id, member, [save.partition for save in saves],
            [save.epoch for save in saves], [image.watermark for image in images],
            *(
                ["{" + ",".join(str(item[i]) for item in image.pending) + "}" for image in images]
                for i in range(3)
            ),
            [save.released for save in saves],
        )  # fmt: skip
        return {row[0]: Saved(row[1]) for row in rows}

    async def _park(
        self, connection: Connection, group_id: int, saves: Sequence[Save],
        saved: dict[int, Saved], names: Any, *, hold: bool,
    ) -> dict[int, Saved]:  # fmt: skip
        more: Counter[int] = Counter()
        touched: dict[int, set[tuple[str, str]]] = {save.partition: set() for save in saves}
        rows: list[tuple[object, ...]] = []
        seen: dict[int, int] = {}
        for save in saves:
            for parking in save.changes.parkings:
                row = parking.row
                entity_type, kind = names.entity_types[row[6]], names.event_types[row[5]].name
                touched[save.partition].add((entity_type, row[8]))
                line = (
                    row[0], save.partition, row[1], entity_type, row[8], kind,
                    "held" if parking.held else "parked", parking.reason, parking.attempts,
                )  # fmt: skip
                # One statement must not meet a position twice; what was decided last counts.
                if row[0] in seen:
                    rows[seen[row[0]]] = line
                else:
                    seen[row[0]] = len(rows)
                    rows.append(line)
        unparked = [
            position for save in saves for position in save.changes.unparked if position not in seen
        ]
        if rows:
            columns = list(map(list, zip(*rows, strict=True)))
            for (partition,) in await connection.fetch(self._sql("group_park"), group_id, *columns):
                if partition is not None:
                    more[partition] += 1
        if unparked:
            for partition, kind, name in await connection.fetch(
                self._sql("group_unpark"), group_id, unparked
            ):
                more[partition] -= 1
                touched.setdefault(partition, set()).add((kind, name))
        retried = {k: v for save in saves for k, v in save.changes.retried.items()}
        if retried:
            await connection.execute(
                self._sql("group_retry"), group_id, list(retried), list(retried.values())
            )
        entities = [list(column) for column in zip(*set().union(*touched.values()), strict=True)]
        free: set[tuple[str, str]] = set()
        if entities:
            if hold:
                await connection.execute(self._sql("group_order"), group_id, *entities)
            found = await connection.fetch(self._sql("group_free"), group_id, *entities)
            free = {tuple(row) for row in found}
        counted = await self._count(connection, group_id, more, others=False)
        return {
            partition: Saved(
                counted.get(partition, was.parked), tuple(touched.get(partition, set()) & free)
            )
            for partition, was in saved.items()
        }

    async def _count(
        self, connection: Connection, group_id: int, more: dict[int, int], *, others: bool
    ) -> dict[int, int]:
        if not more:
            return {}
        rows = await connection.fetch(
            self._sql("group_count"), group_id, list(more), list(more.values()), others
        )
        return {row[0]: row[1] for row in rows}

    # What a holder reads

    async def held(self, group_id: int, partition: int) -> list[tuple[str, str]]:
        """Entities of a partition with events on the list: type and id."""
        rows = await self._fetch("group_held", group_id, partition)
        return [(row[0], row[1]) for row in rows]

    async def parked_version(self, group_id: int, partition: int) -> tuple[int, int]:
        """Events on the list of a partition, and which version of the list that is."""
        rows = await self._fetch("group_parked_version", group_id, partition)
        return (rows[0][0], rows[0][1]) if rows else (0, 0)  # none: the group is gone

    async def on_list(self, group_id: int, positions: Collection[int]) -> set[int]:
        """Which of these are still to be replayed."""
        rows = await self._fetch("group_on_list", group_id, list(positions))
        return {row[0] for row in rows}

    async def replays(
        self, group_id: int, partition: int, without: Collection[int], most: int
    ) -> dict[int, int]:
        """Positions that are to be delivered again now, ascending, and their failures so far."""
        rows = await self._fetch("group_replays", group_id, partition, list(without), most)
        return {row[0]: row[1] for row in rows}

    async def events(self, log_id: int, positions: Sequence[int], most_bytes: int) -> list[Any]:
        """Rows of events at ascending positions, up to so many bytes."""
        if not positions:
            return []
        return await self._fetch(
            "group_events", log_id, positions, positions[0], positions[-1], most_bytes
        )

    # Parked events

    async def parked(
        self, group_id: int, selection: ParkedSelection, *, page_size: int = 100,
        page_token: str = "", timeout: float = 10,
    ) -> ParkedPage:  # fmt: skip
        """A page of the list, by position; an empty selection means all."""
        size = check_page_size(page_size)
        after = _after(page_token)
        rows = await self._fetch(
            "group_parked", group_id, *_filters(selection), after, size + 1, timeout=timeout
        )
        events = tuple(
            ParkedEvent(
                row["position"], row["sequence"], row["entity_type"], row["entity_id"],
                row["event_type"], row["state"], row["reason"], row["attempts"],
                clock.to_us(row["parked_at"]), row["partition"],
            )
            for row in rows[:size]
        )  # fmt: skip
        if len(rows) <= size:
            return ParkedPage(events)
        token = base64.urlsafe_b64encode(str(events[-1].position).encode()).decode()
        return ParkedPage(events, token)

    async def count_selected(
        self, group_id: int, selection: ParkedSelection, states: Sequence[str], timeout: float = 30
    ) -> ParkedCount:
        """What a replay or a discard would do. Raises `InvalidArgument` for an empty selection."""
        if selection.empty:
            raise InvalidArgument("selection", "is empty: say which events, or all")
        rows = await self._fetch(
            "group_selected", group_id, *_filters(selection), states, timeout=timeout
        )
        return ParkedCount(*rows[0])

    async def replay(
        self, group_id: int, selection: ParkedSelection, rate: float, *, hold: bool, now: datetime,
        first: First | None = None, timeout: float = 30,
    ) -> ParkedCount:  # fmt: skip
        """Marks parked events for delivery, ``rate`` a second (0: at once).

        ``first``: as `seek`.
        """
        count = await self.count_selected(group_id, selection, ["parked"])
        gap = 1 / rate if rate else 0.0
        done = 0

        async def batch(connection: Connection, after: int) -> list[Any]:
            found: list[Any] = await connection.fetch(
                self._sql("group_replay"), group_id, *_filters(selection), after, OPERATION_ROWS,
                now + timedelta(seconds=done * gap), gap,
            )  # fmt: skip
            return found

        after = 0
        while True:
            rows = await self._operate(
                group_id, batch, after, hold=hold, off=False, first=first, timeout=timeout
            )
            first = None
            done += len(rows)
            if len(rows) < OPERATION_ROWS:
                return replace(count, events=done)
            after = max(row[0] for row in rows)

    async def discard(
        self, group_id: int, selection: ParkedSelection, *, hold: bool, first: First | None = None,
        timeout: float = 30,
    ) -> ParkedCount:  # fmt: skip
        """Takes events off the list for good. ``first``: as `seek`."""
        count = await self.count_selected(group_id, selection, ["parked", "held", "replaying"])
        done = after = 0

        async def batch(connection: Connection, after: int) -> list[Any]:
            found: list[Any] = await connection.fetch(
                self._sql("group_discard"), group_id, *_filters(selection), after, OPERATION_ROWS
            )
            return found

        while True:
            rows = await self._operate(
                group_id, batch, after, hold=hold, off=True, first=first, timeout=timeout
            )
            first = None
            done += len(rows)
            if len(rows) < OPERATION_ROWS:
                return replace(count, events=done)
            after = max(row[0] for row in rows)

    async def _operate(
        self, group_id: int, batch: _Batch, after: int, *, hold: bool, off: bool,
        first: First | None, timeout: float,
    ) -> list[Any]:  # fmt: skip
        async with self.database.connection(timeout, writing=True) as connection, _tx(connection):
            if first is not None:
                await first(connection)
            await connection.fetch(self._sql("group_lock"), group_id)
            rows: list[Any] = await batch(connection, after)
            if rows:
                entities = {(row[2], row[3]) for row in rows}
                columns = list(map(list, zip(*entities, strict=True)))
                if hold:
                    await connection.execute(self._sql("group_order"), group_id, *columns)
                found = Counter(row[1] for row in rows)
                more = {partition: -count if off else 0 for partition, count in found.items()}
                await self._count(connection, group_id, more, others=True)
            return rows


_Batch = Callable[[Connection, int], Awaitable[list[Any]]]


def _tx(connection: Connection) -> Any:
    return connection.transaction()


def _filters(selection: ParkedSelection) -> tuple[object, ...]:
    s = check_selection(selection)
    positions = list(s.positions) or None
    return (s.entity_type, s.entity_id, s.event_type, positions, s.reason_contains)


def _after(token: str) -> int:
    if not token:
        return 0
    try:
        after = int(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error):
        after = -1
    if not 0 < after < 2**63:
        raise InvalidArgument("page_token", "is not one this server made")
    return after


def _settings(row: Any) -> GroupSettings:
    return GroupSettings(
        tuple(row["entity_types"]), tuple(row["event_types"]), row["partitions"],
        row["global_order"], row["entity_window"], row["ack_timeout"], row["max_attempts"],
        row["backoff_min"], row["backoff_max"], row["skip_parked"], row["max_parked"],
    )  # fmt: skip


def _group(row: Any) -> Group:
    return Group(
        row["group_id"], row["name"], row["log"], _settings(row), row["version"],
        clock.to_us(row["created_at"]), row["position"], row["head"], row["lag_bytes"],
        max(0.0, row["lag_seconds"]), row["parked"], row["held"], row["replaying"], row["members"],
    )  # fmt: skip
