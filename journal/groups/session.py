"""A connected member: reads the log for its partitions, delivers, writes what was settled.

Three tasks: one feeds events from a subscription into the partitions, one commits what was settled
(collected for a few milliseconds), and the caller's own takes `output` and hands in settlements.
All rules are in `journal.groups.worklist`; this is the I/O around them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog

from journal.dictionary import Dictionary
from journal.groups.model import REASON_CHARS, Group, NodeGroupSettings
from journal.groups.partition import Changes, Entity, Item, Partition, Rules
from journal.groups.store import GroupStore, HeldPartition, Save
from journal.groups.worklist import Worklist
from journal.model import SubscribeQuery
from journal.rows import EventRow
from journal.subscriptions import Delivery
from kernel import clock, telemetry
from kernel.errors import EverstateError, InternalError, OutOfRange, Unavailable
from kernel.ids import SLICES

log = structlog.get_logger(__name__)

OUTPUT_EVENTS, OUTPUT_BYTES = 256, 1_000_000
"""What one output holds at most; one event may exceed it."""

CLOSE_SECONDS = 5.0
"""How long a member that goes may take to write down its work."""

LAZY_SECONDS = 1.0
"""How often the place is written when nobody waits for it."""

REPLAYS = 100
REPLAY_BYTES = 500_000
PENDING_BYTES = 16_000_000


class Runner(Protocol):
    """What a session needs of its group on this node."""

    group: Group
    log_id: int
    store: GroupStore
    settings: NodeGroupSettings
    commits: asyncio.Semaphore

    @property
    def names(self) -> Dictionary: ...
    def subscribe(self, query: SubscribeQuery) -> AsyncGenerator[Delivery, None]: ...
    def nudge(self, *, others: bool = False) -> None: ...
    def budget(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Output:
    """What the member is to be told: deliveries ``first``, ``first`` + 1, …; settlements that are
    on disk; deliveries that it has lost.
    """

    first: int
    items: Sequence[Item]
    confirmed: Sequence[int]
    lost: Sequence[int]


def rules_of(group: Group) -> Rules:
    """The settings of a group as its partitions want them."""
    s = group.settings
    return Rules(
        s.global_order, s.entity_window, s.max_attempts, s.backoff_min.total_seconds(),
        s.backoff_max.total_seconds(), s.skip_parked,
    )  # fmt: skip


class Session:
    """One member on this node. `start` begins, `output` gives, `close` ends."""

    def __init__(self, runner: Runner, member: UUID, name: str, credit: int) -> None:
        self.member = member
        self.name = name
        self._runner = runner
        self._loop = asyncio.get_running_loop()
        self.work = Worklist(credit, runner.group.settings.ack_timeout.total_seconds())
        self.failure: EverstateError | None = None
        self.valid_until = self._loop.time() + runner.settings.term.total_seconds()
        self.versions: dict[int, int] = {}
        self._confirmed: list[int] = []
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._space = asyncio.Event()
        self._replan = asyncio.Event()
        self._saving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._end: asyncio.Task[None] | None = None
        self._closed = False
        label = runner.group.name
        self._delivered = telemetry.group_delivered.labels(label)
        self._redelivered = telemetry.group_redelivered.labels(label)
        self._outcomes = {
            kind: telemetry.group_settled.labels(label, kind)
            for kind in ("ack", "nack", "park", "timeout", "lost")
        }

    def start(self) -> None:
        """Begins to read and to commit, in the background."""
        self._tasks = [
            asyncio.create_task(self._feeding()),
            asyncio.create_task(self._flushing()),
        ]

    @property
    def closing(self) -> bool:
        """Whether it takes no more partitions."""
        return self._end is not None or self.failure is not None

    def renewed(self, until: float) -> None:
        """The membership holds until then, by the loop's clock.

        When it had lapsed, others may have taken partitions and gone on: all of them are given up,
        and what is still this member's is taken again with a new epoch.
        """
        if self._loop.time() >= self.valid_until:
            for index in list(self.work.partitions):
                self.lose(index)
            self._runner.nudge()
        self.valid_until = until
        self._wake.set()

    # What the member says

    def ack(self, numbers: Iterable[int]) -> None:
        """Deliveries that are done."""
        for number in numbers:
            self._count("ack", counts=self.work.ack(number))
        self._touched()

    def nack(self, number: int, reason: str, retry_after: float) -> None:
        """A delivery that failed; ``retry_after`` in seconds, 0: the backoff."""
        now = self._loop.time()
        self._count("nack", counts=self.work.nack(number, now, reason[:REASON_CHARS], retry_after))
        self._touched()

    def park(self, number: int, reason: str) -> None:
        """A delivery that is to be put aside."""
        self._count("park", counts=self.work.park(number, reason[:REASON_CHARS]))
        self._touched()

    def extend(self, numbers: Iterable[int]) -> None:
        """Deliveries that are still being worked on."""
        now = self._loop.time()
        for number in numbers:
            self.work.extend(number, now)
        self._wake.set()

    def allow(self, credit: int) -> None:
        """How many deliveries may be out from now on."""
        self.work.credits = credit
        self._wake.set()

    def _count(self, kind: str, *, counts: bool) -> None:
        self._outcomes[kind if counts else "lost"].inc()

    def _touched(self) -> None:
        self._dirty.set()
        self._space.set()
        self._wake.set()

    # What the member is told

    async def output(self) -> Output | None:
        """The next thing to send; None: everything is said and the session is closed.

        Raises:
            NotFound: the group is gone. Unavailable: this node stops, or the member was taken for
            dead; connect again.

        """
        while True:
            now = self._loop.time()
            late = self.work.expire(now)
            if late:
                self._outcomes["timeout"].inc(late)
                self._touched()
            may = not self.closing and now < self.valid_until
            items = self.work.deliver(now, OUTPUT_EVENTS, OUTPUT_BYTES) if may else []
            lost, confirmed = self.work.take_lost(), self._confirmed
            if items or lost or confirmed:
                self._confirmed = []
                self._delivered.inc(len(items))
                again = sum(1 for item in items if item.attempts)
                if again:
                    self._redelivered.inc(again)
                first = self.work.last_delivery - len(items) + 1
                return Output(first, items, confirmed, lost)
            if self.failure is not None:
                raise self.failure
            if self._closed:
                return None
            wakes = self.work.wakes_at(delivering=may)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(wakes):
                    await self._wake.wait()

    def fail(self, error: EverstateError) -> None:
        """Ends the session for a reason that is not the member's."""
        self.failure = self.failure or error
        self._wake.set()

    # Partitions come and go

    async def take(self, found: Sequence[HeldPartition]) -> None:
        """Partitions that were acquired for this member."""
        runner = self._runner
        wall_us = clock.now_us() - int(self._loop.time() * 1e6)
        for each in found:
            rows = await self._pending(each.pending)
            held = await self._held(each.partition) if each.parked else set()
            partition = Partition(
                each.partition, (each.first_slice, each.last_slice), each.epoch,
                rules_of(runner.group), each.watermark, held=held, parked=each.parked,
                wall_us=wall_us,
            )  # fmt: skip
            for position, attempts, due in zip(
                each.pending, each.attempts, each.due_us, strict=True
            ):
                if position in rows:  # else compaction or retention took it: nothing to be done
                    partition.restore(rows[position], attempts, due)
            self.versions[each.partition] = each.parked_version
            self.work.add(partition)
        self._replan.set()
        self._touched()

    async def _pending(self, positions: Sequence[int]) -> dict[int, EventRow]:
        rows: dict[int, EventRow] = {}
        left = list(positions)
        while left:
            part = await self._runner.store.events(self._runner.log_id, left, PENDING_BYTES)
            if not part:
                break
            await self._runner.names.learn_rows(part, 5)
            rows |= {row[0]: row for row in part}
            left = [position for position in left if position > part[-1][0]]
        return rows

    async def _held(self, partition: int) -> set[Entity]:
        names = await self._runner.store.held(self._runner.group.group_id, partition)
        dictionary = self._runner.names
        await dictionary.find_entity_types({name for name, _ in names}, 5)
        ids = dictionary.entity_ids
        return {(ids[kind], name) for kind, name in names if kind in ids}

    def release(self, indexes: Iterable[int]) -> None:
        """Gives partitions back as soon as nothing of them is out."""
        for index in indexes:
            self.work.partitions[index].releasing = True
        self._touched()

    def lose(self, index: int) -> None:
        """The partition is another's already."""
        self.work.drop(index)
        self.versions.pop(index, None)
        self._replan.set()
        self._wake.set()

    async def reload(self, index: int) -> None:
        """Others have changed the list of parked events of a partition."""
        store, group_id = self._runner.store, self._runner.group.group_id
        async with self._saving:  # a commit in between would make old what was read
            partition = self.work.partitions.get(index)
            if partition is None:
                return
            # The version first: what others change after it is read once more.
            parked, version = await store.parked_version(group_id, index)
            held = await self._held(index)
            here = partition.replaying
            on_list = await store.on_list(group_id, here)
            if self.work.partitions.get(index) is partition:
                partition.reload(held, parked, here - on_list)
                self.versions[index] = version
        self._touched()

    async def replay(self) -> None:
        """Fetches parked events that are to be delivered again."""
        for partition in list(self.work.partitions.values()):
            if not partition.parked or partition.releasing or partition.replays > REPLAYS // 2:
                continue
            async with self._saving:  # a commit in between may hold back what was found
                await self._replay(partition)

    async def _replay(self, partition: Partition) -> None:
        runner = self._runner
        found = await runner.store.replays(
            runner.group.group_id, partition.index, partition.replaying, REPLAYS
        )
        rows = await runner.store.events(runner.log_id, list(found), REPLAY_BYTES)
        await runner.names.learn_rows(rows, 5)
        for row in rows:
            partition.replay(row, found[row[0]])
        last = rows[-1][0] if rows else max(found, default=0)
        for position in {p for p in found if p <= last} - {row[0] for row in rows}:
            partition.vanished(position)
        if found:
            self._touched()

    def retune(self, *, filters: bool) -> None:
        """The group's settings have changed."""
        self.work.ack_timeout = self._runner.group.settings.ack_timeout.total_seconds()
        rules = rules_of(self._runner.group)
        for partition in self.work.partitions.values():
            partition.retune(rules)
        if filters:
            self._replan.set()
        self._touched()

    # The feed

    async def _feeding(self) -> None:
        """Runs `_feed`, anew whenever the partitions change or the log cannot be read."""
        while True:
            self._replan.clear()
            feed = asyncio.create_task(self._feed())
            replan = asyncio.create_task(self._replan.wait())
            try:
                await asyncio.wait((feed, replan), return_when=asyncio.FIRST_COMPLETED)
                feed.cancel()
                await feed
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # there is one
                    raise
            except OutOfRange as error:
                if not self._skip(error):
                    self.fail(error)
                    return
            except EverstateError as error:
                log.warning("group cannot read", group=self._runner.group.name, why=error.message)
                await asyncio.sleep(0.25)
            except Exception:
                log.exception("group feed", group=self._runner.group.name)
                self.fail(InternalError())
                return
            finally:
                feed.cancel()
                replan.cancel()

    def _skip(self, error: OutOfRange) -> bool:
        """Goes on where the log begins now; whether there was anything to skip."""
        behind = [p for p in self.work.partitions.values() if p.read_to < error.first - 1]
        for partition in behind:
            partition.take((), error.first - 1)
        return bool(behind)

    async def _feed(self) -> None:
        """Reads for those partitions that are furthest behind until they are up to the next."""
        while True:
            parts = [p for p in self.work.partitions.values() if not p.releasing]
            if not parts:
                await self._replan.wait()
                return
            places = sorted({p.read_to for p in parts})
            stop = places[1] if len(places) > 1 else None
            if stop is not None:
                parts = [p for p in parts if p.read_to < stop]
            by_slice: list[Partition | None] = [None] * SLICES
            for part in parts:
                low, high = part.slices
                by_slice[low : high + 1] = [part] * (high - low + 1)
            s = self._runner.group.settings
            query = SubscribeQuery(
                places[0] + 1, s.entity_types, s.event_types, _ranges([p.slices for p in parts])
            )
            await self._room()
            async with contextlib.aclosing(self._runner.subscribe(query)) as deliveries:
                async for delivery in deliveries:
                    self._take(parts, by_slice, delivery)
                    if stop is not None and delivery.next_position > stop:
                        break
                    await self._room()

    def _take(
        self, parts: Sequence[Partition], by_slice: Sequence[Partition | None], delivery: Delivery
    ) -> None:
        rows: dict[int, list[EventRow]] = {part.index: [] for part in parts}
        for row in delivery.rows:
            part = by_slice[row[7]]
            if part is not None:
                rows[part.index].append(row)
        taken = 0
        for part in parts:
            taken += part.take(rows[part.index], delivery.next_position - 1)
            if part.urgent:
                self._dirty.set()
        if taken:
            self._wake.set()

    async def _room(self) -> None:
        """Waits while the member has as much in memory as it may, or too much is parked."""
        while (
            self.work.bytes > self._runner.budget()
            or self.work.events > self._runner.settings.member_events
            or self._full()
        ):
            self._space.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._space.wait()

    def _full(self) -> bool:
        group = self._runner.group
        return group.parked >= group.settings.max_parked

    # Commits

    async def _flushing(self) -> None:
        collect = self._runner.settings.flush.total_seconds()
        lazy_at = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAZY_SECONDS):
                    await self._dirty.wait()
            await asyncio.sleep(collect)
            self._dirty.clear()
            now = self._loop.time()
            lazy = now >= lazy_at
            if lazy:
                lazy_at = now + LAZY_SECONDS
            try:
                await self.flush(everything=lazy)
            except EverstateError as error:
                log.warning("group cannot write", group=self._runner.group.name, why=error.message)
                await asyncio.sleep(0.1)
                self._dirty.set()
            except Exception:
                log.exception("group commit", group=self._runner.group.name)
                self.fail(InternalError())
                return

    async def flush(self, *, everything: bool = False) -> None:
        """Writes what was settled; what is not ours any more is lost.

        Raises:
            Unavailable, DeadlineExceeded: nothing is known to be written; it can be done again.

        """
        runner = self._runner
        # While others commit, more is settled here: it goes into the same commit.
        async with self._saving, runner.commits:
            saves: list[tuple[Partition, Save]] = []
            for partition in self.work.partitions.values():
                release = partition.releasing and not partition.out
                changes = partition.changes(everything=everything or release)
                if changes is None and release:
                    changes = Changes(partition.image())
                if changes is not None:
                    save = Save(partition.index, partition.epoch, changes, release)
                    saves.append((partition, save))
            if not saves:
                return
            try:
                saved = await runner.store.save(
                    runner.group.group_id, self.member, [save for _, save in saves], runner.names,
                    hold=not runner.group.settings.skip_parked,
                )  # fmt: skip
            except BaseException:
                for partition, save in saves:
                    if self.work.partitions.get(partition.index) is partition:
                        partition.failed(save.changes)
                    else:  # nobody will write it
                        self.work.lost += save.changes.confirm
                self._wake.set()
                raise
            ids = runner.names.entity_ids
            for partition, save in saves:
                done = saved.get(partition.index)
                if done is None:
                    self.work.lost += save.changes.confirm
                    self._gone(partition)
                    continue
                partition.saved(save.changes, done.parked, [(ids[k], n) for k, n in done.free])
                self._confirmed += save.changes.confirm
                if save.released:
                    self._gone(partition)
                    runner.nudge(others=True)
                elif save.changes.unparked and partition.parked:
                    runner.nudge()
            self._space.set()
            self._wake.set()

    def _gone(self, partition: Partition) -> None:
        if self.work.partitions.get(partition.index) is partition:
            self.lose(partition.index)

    # The end

    async def close(self, *, broken: bool) -> None:
        """The member is gone: its work is written down and handed over. ``broken``: it did not say
        goodbye. Without a database it ends all the same; the others wait for the term then.
        """
        if self._end is None:
            self._end = asyncio.create_task(self._close(broken=broken))
        await asyncio.shield(self._end)

    async def _close(self, *, broken: bool) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.work.leave(self._loop.time(), broken=broken)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                self.release(list(self.work.partitions))
                while True:
                    try:
                        await self.flush(everything=True)
                        await self._runner.store.leave(self.member, self._runner.group.group_id)
                        break
                    except Unavailable:
                        await asyncio.sleep(0.1)
        except (EverstateError, TimeoutError) as error:
            log.warning("member left behind", group=self._runner.group.name, why=str(error))
        finally:
            self._closed = True
            self._wake.set()


def _ranges(slices: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges of slices, joined where they meet; empty: all of them."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(slices):
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return () if joined == [(0, SLICES - 1)] else tuple(joined)
