"""The rules of one partition of a group: what may be delivered, what is done, what is on disk.

No I/O and no clock: times are the caller's, in seconds; ``*_us`` are Unix microseconds. One owner.

Order. Events wait in lines: one a entity, or one for the whole partition with global order. Of a
line only its first events are out, at most `window`; an event that fails takes back those after it.

Durable image. `watermark` and the `pending` events at or below it: everything else at or below is
settled. It is taken at the highest settled position, so that it holds every ack, and holds what is
pending only where an ack overtook it; a later owner reads the log again from the watermark.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from journal.rows import EventRow

Entity = tuple[int, str]
"""Entity type id and entity id."""

ROW_BYTES = 600
"""What an event costs in memory beside its payload, roughly."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of a group that a partition needs; durations in seconds."""

    global_order: bool = False
    window: int = 1
    max_attempts: int = 10
    backoff_min: float = 0.2
    backoff_max: float = 30.0
    skip_parked: bool = False


class Item:
    """An event on its way. ``delivery`` is 0 while it is not out."""

    __slots__ = ("attempts", "deadline", "delivery", "due", "entity", "line", "replayed", "row")

    def __init__(self, row: EventRow, line: Line, replayed: bool = False) -> None:
        self.row = row
        self.entity: Entity = (row[6], row[8])
        self.line = line
        self.replayed = replayed
        self.attempts = 0
        self.due = 0.0
        self.delivery = 0
        self.deadline = 0.0

    @property
    def position(self) -> int:
        """Its place in the log."""
        return self.row[0]

    @property
    def size(self) -> int:
        """Its part of the memory budget, in bytes."""
        return len(self.row[9]) + ROW_BYTES


class Line:
    """Events that must go one after the other; the first ``out`` of them are with the member."""

    __slots__ = ("items", "key", "out")

    def __init__(self, key: Entity | None) -> None:
        self.key = key
        self.items: deque[Item] = deque()
        self.out = 0


@dataclass(frozen=True, slots=True)
class Parking:
    """An event to be put aside. ``held``: it waits behind a parked one of its entity."""

    row: EventRow
    reason: str
    attempts: int
    held: bool

    @property
    def size(self) -> int:
        """Its part of the memory budget, in bytes."""
        return len(self.row[9]) + ROW_BYTES


@dataclass(frozen=True, slots=True)
class Image:
    """What is on disk of a partition; `pending` is (position, failed attempts, due_us)."""

    watermark: int
    pending: tuple[tuple[int, int, int], ...] = ()


@dataclass(slots=True)
class Changes:
    """What one commit writes of a partition; `retried` are replays (position, failures), `confirm`
    the deliveries that it settles.
    """

    image: Image
    parkings: list[Parking] = field(default_factory=list)
    unparked: list[int] = field(default_factory=list)
    retried: dict[int, int] = field(default_factory=dict)
    confirm: list[int] = field(default_factory=list)


class Partition:
    """One partition while this process has it.

    ``held`` are entities that have parked events, ``parked`` is how many events are on the list
    (when there are any, an ack may have to take one off it). ``wall_us`` is the Unix time at
    monotonic time 0.
    """

    def __init__(
        self,
        index: int,
        slices: tuple[int, int],
        epoch: int,
        rules: Rules,
        watermark: int,
        *,
        held: Iterable[Entity] = (),
        parked: int = 0,
        wall_us: int = 0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.index = index
        self.slices = slices
        self.epoch = epoch
        self.rules = rules
        self.read_to = watermark
        self.held = set(held)
        self.parked = parked
        self.releasing = False
        self.bytes = 0
        self.out = 0
        self._wall_us = wall_us
        self._jitter = jitter
        self._lines: dict[Entity | None, Line] = {}
        self._live: dict[int, Item] = {}  # in order of position
        self._replays: dict[int, Item] = {}
        self._touched = watermark
        self._ready: list[tuple[int, int, Line]] = []
        self._sleeping: list[tuple[float, int, Line]] = []
        self._ticket = 0
        self._parkings: list[Parking] = []
        self._unparked: list[int] = []
        self._retried: dict[int, int] = {}
        self._confirm: list[int] = []
        self._saved = Image(watermark)
        self._saving: Changes | None = None

    def __len__(self) -> int:
        return len(self._live) + len(self._replays) + sum(1 for _ in self._parking())

    @property
    def drained(self) -> bool:
        """Whether nothing is with the member and nothing waits for a commit."""
        return not (self.out or self.urgent)

    @property
    def replaying(self) -> set[int]:
        """Positions of the parked events that are here, or whose fate is not on disk yet: they must
        not be loaded (again).
        """
        return self._replays.keys() | self._unsaved()

    @property
    def replays(self) -> int:
        """How many parked events are here to be delivered again."""
        return len(self._replays)

    def vanished(self, position: int) -> None:
        """A parked event is not in the log any more: it leaves the list."""
        self._unparked.append(position)

    def _unsaved(self) -> set[int]:
        saving = self._saving
        return {
            *self._unparked,
            *(parking.row[0] for parking in self._parkings),
            *(saving.unparked if saving else ()),
            *((parking.row[0] for parking in saving.parkings) if saving else ()),
        }

    # Events come in

    def restore(self, row: EventRow, attempts: int, due_us: int) -> None:
        """An event that an earlier owner had taken out and not settled; before any `take`."""
        item = self._add(row)
        item.attempts = attempts
        item.due = (due_us - self._wall_us) / 1e6 if due_us else 0.0
        if item.attempts:
            self._touched = max(self._touched, item.position)
        self._arrived(item.line)

    def take(self, rows: Iterable[EventRow], read_to: int) -> int:
        """Live events in order, of this partition's slices; all up to ``read_to`` are covered.

        Those that were taken before are passed over. Returns how many were taken.
        """
        taken = 0
        for row in rows:
            if row[0] <= self.read_to:
                continue
            taken += 1
            if not self.rules.skip_parked and (row[6], row[8]) in self.held:
                self._hold(row)
            else:
                self._arrived(self._add(row).line)
        self.read_to = max(self.read_to, read_to)
        return taken

    def replay(self, row: EventRow, tries: int = 0) -> None:
        """A parked event that is to be delivered again, and has failed so often at that.

        Passed over while an earlier one of its entity is being parked: it will be held on disk.
        """
        if row[0] in self._replays or row[0] in self._unsaved():
            return
        if not self.rules.skip_parked and any(
            parking.row[0] < row[0] and parking.row[8] == row[8] and parking.row[6] == row[6]
            for parking in self._parking()
        ):
            return
        line = self._line((row[6], row[8]))
        item = Item(row, line, replayed=True)
        item.attempts = tries
        self._replays[row[0]] = item
        line.items.append(item)
        self.bytes += item.size
        self._arrived(line)

    def _add(self, row: EventRow) -> Item:
        item = Item(row, self._line((row[6], row[8])))
        item.line.items.append(item)
        self._live[row[0]] = item
        self.bytes += item.size
        return item

    def _line(self, entity: Entity) -> Line:
        key = None if self.rules.global_order else entity
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        return line

    # Events go out

    def _arrived(self, line: Line) -> None:
        """An event stands at the end of a line: it is scheduled when it is the line's next."""
        if len(line.items) == line.out + 1:
            self._schedule(line)

    def _schedule(self, line: Line) -> None:
        """Puts a line where `next` finds it, if its next event may go out now or later."""
        if line.out < len(line.items) and line.out < self.rules.window:
            item = line.items[line.out]
            self._ticket += 1
            if item.due:
                heapq.heappush(self._sleeping, (item.due, self._ticket, line))
            else:
                heapq.heappush(self._ready, (item.position, self._ticket, line))

    def next(self, now: float) -> Item | None:
        """The event to deliver next, the lowest position first; `sent` has to follow."""
        while self._sleeping and self._sleeping[0][0] <= now:
            _, _, line = heapq.heappop(self._sleeping)
            if line.out < len(line.items):
                item = line.items[line.out]
                if 0 < item.due <= now:
                    item.due = 0.0
                    self._schedule(line)
        while self._ready and not self.releasing:
            position, _, line = self._ready[0]
            # Entries are not taken out when a line changes: they are looked at again here.
            if line.out < min(len(line.items), self.rules.window):
                item = line.items[line.out]
                if item.position == position and not item.due:
                    return item
            heapq.heappop(self._ready)
        return None

    def wakes_at(self) -> float | None:
        """When a retry falls due; None: there is none."""
        return self._sleeping[0][0] if self._sleeping else None

    def sent(self, item: Item, delivery: int, deadline: float) -> None:
        """The event that `next` gave is with the member, under this number, until ``deadline``."""
        heapq.heappop(self._ready)
        item.delivery, item.deadline = delivery, deadline
        item.line.out += 1
        self.out += 1
        self._schedule(item.line)

    # Events are settled

    def ack(self, item: Item) -> None:
        """It is done."""
        self._confirm.append(item.delivery)
        if item.replayed or self.parked:
            # After a seek, an event may be on the list and come from the log again.
            self._unparked.append(item.position)
        self._settle(item)
        self._schedule(item.line)
        self._forget(item.line)

    def nack(
        self, item: Item, now: float, reason: str, retry_after: float = 0.0, *, asked: bool = True
    ) -> list[int]:
        """It failed: again after ``retry_after`` seconds (0: the backoff), or parked when it failed
        often enough. Returns the deliveries that are taken back with it; ``asked``: the member said
        so and waits for a confirmation.
        """
        item.attempts += 1
        rules = self.rules
        if item.attempts >= rules.max_attempts:
            why = f"failed {item.attempts} times, last: {reason}" if reason else "failed too often"
            return self.park(item, why, asked=asked)
        if asked:
            self._confirm.append(item.delivery)
        if retry_after <= 0:
            pause = min(rules.backoff_max, rules.backoff_min * 2.0 ** min(item.attempts - 1, 40))
            retry_after = pause * (0.5 + self._jitter() / 2)
        back = self._take_back(item)
        item.due = now + retry_after
        if item.replayed:
            self._retried[item.position] = item.attempts
        else:
            self._touched = max(self._touched, item.position)
        self._schedule(item.line)
        return back

    def give_back(self, item: Item) -> list[int]:
        """The member did not work on it: it waits again, as if it had never been out."""
        back = self._take_back(item)
        self._schedule(item.line)
        return back

    def park(self, item: Item, reason: str, *, asked: bool = True) -> list[int]:
        """It is put aside; returns the deliveries that are taken back because they are held."""
        if asked:
            self._confirm.append(item.delivery)
        back: list[int] = []
        if not self.rules.skip_parked:
            back = self._take_back(item)
            item.line.items.remove(item)
            self._settle(item, out=False)
            self.held.add(item.entity)
            line = item.line
            behind = [line.items[i] for i in range(line.out, len(line.items))]
            behind = [other for other in behind if other.entity == item.entity]
        else:
            self._settle(item)
            behind = []
        self._put_aside(Parking(item.row, reason, item.attempts, held=False))
        for other in behind:
            item.line.items.remove(other)
            self._settle(other, out=False)
            self._hold(other.row)
        self._schedule(item.line)
        self._forget(item.line)
        return back

    def _hold(self, row: EventRow) -> None:
        self._put_aside(Parking(row, "", 0, held=True))
        self._touched = max(self._touched, row[0])

    def _put_aside(self, parking: Parking) -> None:
        """It stays in memory, and in the budget, until it is on disk."""
        self._parkings.append(parking)
        self.bytes += parking.size

    def _take_back(self, item: Item) -> list[int]:
        """The item and those of its line that went out after it are not out any more."""
        line = item.line
        items = [line.items[i] for i in range(line.out)]
        at = items.index(item)
        back = [other.delivery for other in items[at + 1 :]]
        for other in items[at:]:
            other.delivery = 0
        self.out -= line.out - at
        line.out = at
        return back

    def _settle(self, item: Item, *, out: bool = True) -> None:
        """Not ours any more; ``out``: it was with the member and stands in its line."""
        if out:
            item.line.items.remove(item)
            item.line.out -= 1
            self.out -= 1
            item.delivery = 0
        self.bytes -= item.size
        if item.replayed:
            del self._replays[item.position]
        else:
            del self._live[item.position]
            self._touched = max(self._touched, item.position)

    def _forget(self, line: Line) -> None:
        if not line.items:
            self._lines.pop(line.key, None)

    # The disk

    def image(self) -> Image:
        """What has to be on disk for every settled event to stay settled."""
        first = next(iter(self._live), None)
        if first is None:
            return Image(self.read_to)
        watermark = max(self._touched, first - 1)
        pending = []
        for position, item in self._live.items():
            if position > watermark:
                break
            due = self._wall_us + int(item.due * 1e6) if item.due else 0
            pending.append((position, item.attempts, due))
        return Image(watermark, tuple(pending))

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for a commit, or something would be lost without it."""
        return bool(self._confirm or self._parkings or self._unparked or self._retried)

    def changes(self, *, everything: bool = False) -> Changes | None:
        """What the next commit has to write; None: nothing. `saved` or `failed` has to follow."""
        if not (self.urgent or everything):
            return None
        image = self.image()
        if image == self._saved and not self.urgent:
            return None
        made = Changes(image, self._parkings, self._unparked, self._retried, self._confirm)
        self._parkings, self._unparked, self._retried, self._confirm = [], [], {}, []
        self._saving = made
        return made

    def saved(self, changes: Changes, parked: int, free: Iterable[Entity] = ()) -> None:
        """The commit is on disk and left ``parked`` events on the list; ``free``: entities that
        have none left there.
        """
        self._saved, self._saving = changes.image, None
        self.bytes -= sum(parking.size for parking in changes.parkings)
        self.parked = parked
        self.held -= set(free) - self._being_parked()

    def failed(self, changes: Changes) -> None:
        """The commit did not happen, or it is not known: it has to be made again."""
        self._saving = None
        self._parkings[:0] = changes.parkings
        self._unparked[:0] = changes.unparked
        self._retried = changes.retried | self._retried
        self._confirm[:0] = changes.confirm

    def take_confirm(self) -> list[int]:
        """The partition is another's: settled deliveries that no commit will write."""
        numbers, self._confirm = self._confirm, []
        return numbers

    def reload(self, held: Iterable[Entity], parked: int, gone: Iterable[int]) -> None:
        """Others have changed the list of parked events: what it holds now. ``gone``: positions of
        `replaying` that are off it; one that is out may still be acked.
        """
        self.held = set(held) | self._being_parked()
        self.parked = parked
        for position in gone:
            item = self._replays.get(position)
            if item is not None and not item.delivery:
                item.line.items.remove(item)
                self._settle(item, out=False)
                self._schedule(item.line)
                self._forget(item.line)

    def _being_parked(self) -> set[Entity]:
        """Entities with events that are put aside but not on disk yet."""
        return {(parking.row[6], parking.row[8]) for parking in self._parking()}

    def _parking(self) -> Iterable[Parking]:
        """What is put aside but not on disk yet."""
        return chain(self._parkings, self._saving.parkings if self._saving else ())

    def retune(self, rules: Rules) -> None:
        """The settings have changed."""
        self.rules = rules
        for line in self._lines.values():
            self._schedule(line)

    def out_items(self) -> Sequence[Item]:
        """The events that are with the member."""
        return [
            line.items[i] for line in self._lines.values() for i in range(line.out)
        ]  # fmt: skip
