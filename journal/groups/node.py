"""The groups of one process: members, who has which partition, keeping the membership alive.

Nodes do not talk to each other. Each looks at the tables (twice a second, and at once when NOTIFY
or one of its own members says that something changed), comes to the same fair shares, gives back
what its members have too much of, and takes what is free. A partition is free when it was given
back or its member's term has passed; the epoch it then gets fences off the member before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import structlog
import uuid_utils

from journal.dictionary import Dictionary
from journal.groups.model import (
    FROM_NOW,
    MAX_CREDITS,
    Group,
    GroupChange,
    GroupPage,
    GroupSettings,
    NodeGroupSettings,
    ParkedCount,
    ParkedPage,
    ParkedSelection,
    check_group_name,
)
from journal.groups.session import Session
from journal.groups.store import First, GroupStore, PartitionView
from journal.model import SubscribeQuery
from journal.store import StoreJournal
from journal.subscriptions import Delivery
from kernel import clock, telemetry
from kernel.errors import (
    EverstateError,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Overloaded,
    Unavailable,
)
from kernel.notifications import Notifications

log = structlog.get_logger(__name__)

STOPPING = "this node stops; connect to another one"


class GroupRunner:
    """A group that has members on this node."""

    def __init__(
        self, group: Group, log_id: int, journal: StoreJournal, store: GroupStore, node: Groups
    ) -> None:
        self.group = group
        self.log_id = log_id
        self.store = store
        self.settings = node.settings
        self.commits = node.commits
        self.sessions: dict[UUID, Session] = {}
        self._journal = journal
        self._node = node
        self._nudged = asyncio.Event()
        self._forget_at = 0.0
        self._task = asyncio.create_task(self._run())

    @property
    def names(self) -> Dictionary:
        """The dictionary of types."""
        return self._journal.names

    def subscribe(self, query: SubscribeQuery) -> AsyncGenerator[Delivery, None]:
        """A subscription to the group's log."""
        return self._journal.subscriptions.subscribe(self.group.log, query)

    def budget(self) -> int:
        """Bytes of events that one member may have in memory here."""
        share = self.settings.buffer_bytes // max(1, self._node.members)
        return min(self.settings.member_bytes, share)

    def nudge(self, *, others: bool = False) -> None:
        """Something changed: look at once; ``others``: other nodes should too."""
        self._nudged.set()
        if others:
            self._node.announce(self.group.group_id)

    async def stop(self) -> None:
        """Looks no more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.poll.total_seconds()):
                    await self._nudged.wait()
            self._nudged.clear()
            try:
                async with self._node.looks:
                    await self._look()
            except NotFound as error:
                for session in self.sessions.values():
                    session.fail(error)
                return
            except EverstateError as error:
                log.warning("group cannot look", group=self.group.name, reason=error.message)
            except Exception:
                log.exception("group", group=self.group.name)

    async def _look(self) -> None:
        """What the tables say now, and what follows from it."""
        group = await self.store.status(self.group)
        was, self.group = self.group, group
        if group.version != was.version:
            old, new = was.settings, group.settings
            filters = (old.entity_types, old.event_types) != (new.entity_types, new.event_types)
            for session in self.sessions.values():
                session.retune(filters=filters)
        await self._forget()
        members = await self.store.members(group.group_id)
        partitions = await self.store.partitions(group.group_id)
        tried: set[int] = set()
        for session in list(self.sessions.values()):
            await self._balance(session, members, partitions, tried)
        telemetry.group_partitions.labels(group.name).set(
            sum(len(session.work.partitions) for session in self.sessions.values())
        )

    async def _forget(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._forget_at:
            self._forget_at = now + self.settings.term.total_seconds()
            await self.store.forget(self.group.group_id, 3 * self.settings.term)

    async def _balance(
        self, session: Session, members: Sequence[UUID], partitions: Sequence[PartitionView],
        tried: set[int],
    ) -> None:  # fmt: skip
        """Gives back what the member has too much of, or takes what is free.

        ``tried``: partitions that another member of this node has tried to take in this round.
        """
        if session.closing or session.member not in members:
            return
        for row in partitions:
            mine = session.work.partitions.get(row.partition)
            if mine is None or mine.epoch > row.epoch:  # taken after we looked
                continue
            if mine.epoch != row.epoch or row.holder != session.member:
                session.lose(row.partition)
            elif session.versions.get(row.partition) != row.parked_version:
                await session.reload(row.partition)
        have = sorted(i for i, p in session.work.partitions.items() if not p.releasing)
        rank = members.index(session.member)
        quota = share(rank, len(members), len(partitions))
        if len(have) > quota:
            session.release(have[quota:])
        elif len(have) < quota:
            free = [
                row.partition
                for row in partitions
                if row.partition not in session.work.partitions
                and row.partition not in tried
                and (row.holder is None or row.holder == session.member)
            ]
            # Members begin at different places, so that nodes do not all want the same ones.
            first = rank * len(free) // len(members)
            wanted = sorted((free[first:] + free[:first])[: quota - len(have)])
            if wanted:
                tried.update(wanted)
                found = await self.store.acquire(self.group.group_id, session.member, wanted)
                await session.take(found)
                if len(found) < len(wanted):
                    self.nudge()
        await session.replay()


def share(rank: int, members: int, partitions: int) -> int:
    """How many partitions the member of this rank is to have."""
    return partitions // members + (rank < partitions % members)


async def watermark_of(journal: StoreJournal, field: str, log_id: int, position: int) -> int:
    """The position before the first one wanted; 0: the beginning, `FROM_NOW`: after the head.

    Raises:
        InvalidArgument: it is none of these. OutOfRange: the log does not hold it.

    """
    first, head = await journal.reader.bounds(log_id, 10)
    if position == FROM_NOW:
        return head
    if position < 0 or position >= 2**63:
        raise InvalidArgument(field, f"{position} is not -1, 0 or a position")
    if position > head + 1 or 0 < position < first:
        raise OutOfRange(position, first, head)
    return max(position, first) - 1


class Groups:
    """The groups of a process; `start` after the journal, `close` before it."""

    def __init__(self, journal: StoreJournal, settings: NodeGroupSettings | None = None) -> None:
        self.settings = settings or NodeGroupSettings(node=journal.settings.node)
        self.store = GroupStore(journal.database)
        self.commits = asyncio.Semaphore(self.settings.commits)
        self.looks = asyncio.Semaphore(self.settings.looks)
        self._journal = journal
        self._runners: dict[int, GroupRunner] = {}
        self._opening = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._notifications = Notifications(journal.database, "groups", self._heard)
        self._known: set[str] = set()
        self._draining = False

    async def start(self) -> None:
        """Begins to keep members alive and to measure lag."""
        self._notifications.start()
        self._tasks = [
            asyncio.create_task(self._renewing()),
            asyncio.create_task(self._measuring()),
        ]

    async def close(self) -> None:
        """Ends every session; what was settled is written."""
        self.drain()
        for runner in list(self._runners.values()):
            for session in list(runner.sessions.values()):
                await self.leave(session, broken=False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._notifications.close()

    def drain(self) -> None:
        """Ends every session with `Unavailable`; nothing more is delivered."""
        self._draining = True
        for runner in self._runners.values():
            for session in runner.sessions.values():
                session.fail(Unavailable(STOPPING))

    @property
    def members(self) -> int:
        """How many members are connected here."""
        return sum(len(runner.sessions) for runner in self._runners.values())

    def announce(self, group_id: int) -> None:
        """Tells other nodes to look at a group."""
        self._notifications.announce(str(group_id), clock.now_us())

    def _heard(self, key: str, _value: int) -> None:
        runner = self._runners.get(int(key)) if key.isdigit() else None
        if runner is not None:
            runner.nudge()

    def _changed(self, group_id: int) -> None:
        self._heard(str(group_id), 0)
        self.announce(group_id)

    # Members

    async def join(self, name: str, member_name: str, credit: int) -> Session:
        """A member connects.

        Raises:
            NotFound: no such group. Overloaded: this node has as many members as it may.
            Unavailable: it stops.

        """
        check_group_name(name, "join.group")
        if len(member_name) > 100:
            raise InvalidArgument("join.name", "is longer than 100 characters")
        if not 0 <= credit <= MAX_CREDITS:
            raise InvalidArgument("join.credits", f"{credit} is not within 0..{MAX_CREDITS}")
        if self._draining:
            raise Unavailable(STOPPING)
        if self.members >= self.settings.max_members:
            raise Overloaded(
                f"this node has {self.settings.max_members} members of groups, which is the limit",
                timedelta(seconds=1),
            )
        group = await self.store.get(name)
        opened = await self._journal.open_log(group.log, 5)
        member = UUID(str(uuid_utils.uuid7()))
        await self.store.join(
            member, group.group_id, member_name, self.settings.node, self.settings.term
        )
        async with self._opening:
            runner = self._runners.get(group.group_id)
            if runner is None:
                runner = GroupRunner(group, opened.log_id, self._journal, self.store, self)
                self._runners[group.group_id] = runner
            session = Session(runner, member, member_name, credit)
            runner.sessions[member] = session
        session.start()
        telemetry.group_members.labels(name).set(len(runner.sessions))
        runner.nudge(others=True)
        return session

    async def leave(self, session: Session, *, broken: bool) -> None:
        """A member is gone; its partitions go to others at once."""
        await session.close(broken=broken)
        async with self._opening:
            for group_id, runner in list(self._runners.items()):
                if runner.sessions.pop(session.member, None) is not None:
                    telemetry.group_members.labels(runner.group.name).set(len(runner.sessions))
                    self._changed(group_id)
                    if not runner.sessions:
                        del self._runners[group_id]
                        await runner.stop()
                        telemetry.group_partitions.labels(runner.group.name).set(0)

    async def _renewing(self) -> None:
        """A third of the term, so that two may fail."""
        loop = asyncio.get_running_loop()
        term = self.settings.term.total_seconds()
        while True:
            await asyncio.sleep(term / 3)
            sessions = [
                session
                for runner in self._runners.values()
                for session in runner.sessions.values()
                if not session.closing
            ]
            if not sessions:
                continue
            began = loop.time()
            try:
                known = await self.store.renew([s.member for s in sessions], self.settings.term)
            except EverstateError as error:
                log.warning("members cannot be renewed", reason=error.message)
                continue
            except Exception:  # without renewals every member of this node would stand still
                log.exception("members cannot be renewed")
                continue
            for session in sessions:
                if session.member in known:
                    session.renewed(began + term)
                elif not session.closing:
                    session.fail(Unavailable("the member was taken for dead; connect again"))

    async def _measuring(self) -> None:
        while True:
            try:
                await self._measure()
            except EverstateError as error:
                log.debug("figures of groups cannot be measured", reason=error.message)
            except Exception:
                log.exception("figures of groups cannot be measured")
            await asyncio.sleep(self.settings.figures.total_seconds())

    async def _measure(self) -> None:
        token = ""
        seen: set[str] = set()
        gauges = (
            telemetry.group_lag_events, telemetry.group_lag_bytes, telemetry.group_lag_seconds,
            telemetry.group_parked,
        )  # fmt: skip
        while True:
            page = await self.store.list_groups(page_size=1_000, page_token=token)
            for group in page.groups:
                seen.add(group.name)
                put_aside = group.parked + group.held + group.replaying
                values = (group.lag_events, group.lag_bytes, group.lag_seconds, put_aside)
                for gauge, value in zip(gauges, values, strict=True):
                    gauge.labels(group.name).set(value)
            token = page.next_page_token
            if not token:
                break
        for name in self._known - seen:
            for gauge in gauges:
                with contextlib.suppress(KeyError):
                    gauge.remove(name)
        self._known = seen

    # Operations

    async def create(
        self, name: str, log_name: str, settings: GroupSettings, from_position: int
    ) -> Group:
        """Makes a group that begins at a position (0: the beginning, -1: after the head)."""
        if settings.global_order and settings.partitions == 0:
            settings = replace(settings, partitions=1)
        check_group_name(name)
        opened = await self._journal.open_log(log_name or "default", 10)
        watermark = await watermark_of(self._journal, "from_position", opened.log_id, from_position)
        await self.store.create(name, opened.log_id, settings, watermark)
        return await self.store.get(name)

    async def update(self, name: str, version: int, change: GroupChange) -> Group:
        """Changes settings."""
        check_group_name(name)
        if version < 0:
            raise InvalidArgument("version", f"{version} is negative")
        self._changed(await self.store.update(name, version, change))
        return await self.store.get(name)

    async def delete(self, name: str) -> int:
        """Deletes a group; how many parked events went with it."""
        group_id, parked = await self.store.delete(name)
        self._changed(group_id)
        return parked

    async def get(self, name: str) -> Group:
        """A group with members and partitions."""
        return await self.store.get(name)

    async def list_groups(self, page_size: int, page_token: str) -> GroupPage:
        """A page of groups."""
        return await self.store.list_groups(page_size=page_size, page_token=page_token)

    async def seek(self, name: str, position: int, *, first: First | None = None) -> Group:
        """Moves a group. ``first``: done before, in the same transaction.

        Raises `OutOfRange` for what the log does not hold.
        """
        group = await self._named(name)
        opened = await self._journal.open_log(group.log, 10)
        watermark = await watermark_of(self._journal, "position", opened.log_id, position)
        await self.store.seek(group.group_id, watermark, first=first)
        self._changed(group.group_id)
        return await self.store.get(name)

    async def parked(
        self, name: str, selection: ParkedSelection, page_size: int, page_token: str
    ) -> ParkedPage:
        """A page of the list of parked events."""
        group = await self._named(name)
        return await self.store.parked(
            group.group_id, selection, page_size=page_size, page_token=page_token
        )

    async def replay(
        self, name: str, selection: ParkedSelection, rate: float, *, dry_run: bool,
        first: First | None = None,
    ) -> ParkedCount:  # fmt: skip
        """Delivers parked events again. ``first``: as `seek`."""
        if not 0 <= rate <= 1e6:
            raise InvalidArgument("rate", f"{rate} is not within 0..1000000 a second")
        group = await self._named(name)
        if dry_run:
            return await self.store.count_selected(group.group_id, selection, ["parked"])
        hold = not group.settings.skip_parked
        done = await self.store.replay(
            group.group_id, selection, rate, hold=hold, now=clock.now(), first=first
        )
        self._changed(group.group_id)
        return done

    async def discard(
        self, name: str, selection: ParkedSelection, *, dry_run: bool, first: First | None = None
    ) -> ParkedCount:
        """Takes parked events off the list. ``first``: as `seek`."""
        group = await self._named(name)
        if dry_run:
            states = ["parked", "held", "replaying"]
            return await self.store.count_selected(group.group_id, selection, states)
        hold = not group.settings.skip_parked
        done = await self.store.discard(group.group_id, selection, hold=hold, first=first)
        self._changed(group.group_id)
        return done

    async def _named(self, name: str) -> Group:
        return await self.store.get(check_group_name(name, "group"))
