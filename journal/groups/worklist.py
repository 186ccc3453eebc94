"""The rules of one member, without I/O: its partitions, what is out with it, its credits.

Deliveries are numbered 1, 2, 3, … for the member. A number is settled once; a number that is taken
back, late, or of a partition that moved, is lost: settling it has no effect.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from journal.groups.partition import Item, Partition

DISCONNECTED = "the member's connection broke before it was settled"
TIMED_OUT = "not settled in time"


class Worklist:
    """What one member has. ``credits`` is how many deliveries may be out; times in seconds."""

    def __init__(self, credit: int, ack_timeout: float) -> None:
        self.partitions: dict[int, Partition] = {}
        self.credits = credit
        self.ack_timeout = ack_timeout
        self.out: dict[int, tuple[Partition, Item]] = {}
        self.lost: list[int] = []
        self.last_delivery = 0
        self._deadlines: list[tuple[float, int]] = []
        self._turn = 0

    # Partitions

    def add(self, partition: Partition) -> None:
        """The member has got a partition."""
        self.partitions[partition.index] = partition

    def drop(self, index: int) -> None:
        """The partition is another's now, with everything that was out of it or not on disk."""
        partition = self.partitions.pop(index, None)
        if partition is not None:
            gone = [number for number, (owner, _) in self.out.items() if owner is partition]
            for number in gone:
                del self.out[number]
            self.lost += gone + partition.take_confirm()

    @property
    def bytes(self) -> int:
        """Memory of the events that wait or are out."""
        return sum(partition.bytes for partition in self.partitions.values())

    @property
    def events(self) -> int:
        """How many events wait or are out."""
        return sum(map(len, self.partitions.values()))

    # Deliveries

    def deliver(self, now: float, most: int, most_bytes: int) -> list[Item]:
        """The next deliveries; their numbers follow each other up to `last_delivery`.

        Partitions take turns, a run each, so that one that is behind does not make the others wait.
        """
        given: list[Item] = []
        size = 0
        waiting = [self.partitions[i] for i in sorted(self.partitions)]
        if waiting:
            self._turn = (self._turn + 1) % len(waiting)
            waiting = waiting[self._turn :] + waiting[: self._turn]
        share = max(1, most // max(1, len(waiting)))
        while waiting and len(given) < most and size < most_bytes:
            left = []
            for partition in waiting:
                for _ in range(share):
                    if len(self.out) >= self.credits or len(given) >= most or size >= most_bytes:
                        return given
                    item = partition.next(now)
                    if item is None:
                        break
                    self.last_delivery += 1
                    deadline = now + self.ack_timeout
                    partition.sent(item, self.last_delivery, deadline)
                    self.out[self.last_delivery] = (partition, item)
                    self._remind(deadline, self.last_delivery)
                    given.append(item)
                    size += item.size
                else:
                    left.append(partition)
            waiting = left
        return given

    def ack(self, number: int) -> bool:
        """Whether it counts; it is confirmed when it is on disk."""
        found = self._take(number)
        if found:
            found[0].ack(found[1])
        return found is not None

    def nack(self, number: int, now: float, reason: str, retry_after: float) -> bool:
        """Whether it counts."""
        found = self._take(number)
        if found:
            self._lose(found[0].nack(found[1], now, reason, retry_after))
        return found is not None

    def park(self, number: int, reason: str) -> bool:
        """Whether it counts."""
        found = self._take(number)
        if found:
            self._lose(found[0].park(found[1], reason))
        return found is not None

    def extend(self, number: int, now: float) -> bool:
        """Its time begins anew; whether it is out at all. That it was lost was said when it was."""
        found = self.out.get(number)
        if found is None:
            return False
        found[1].deadline = now + self.ack_timeout
        return True

    def expire(self, now: float) -> int:
        """Deliveries that were not settled in time have failed; how many."""
        count = 0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            found = self.out.get(number)
            if found is None:
                continue
            if found[1].deadline > now:  # it was extended
                heapq.heappush(self._deadlines, (found[1].deadline, number))
                continue
            del self.out[number]
            self._lose([number, *found[0].nack(found[1], now, TIMED_OUT, asked=False)])
            count += 1
        return count

    def leave(self, now: float, *, broken: bool) -> None:
        """The member is gone; ``broken``: without a word, so that what was out has failed."""
        for number in sorted(self.out):
            found = self.out.pop(number, None)
            if found is None:
                continue
            partition, item = found
            back = (
                partition.nack(item, now, DISCONNECTED, asked=False)
                if broken
                else partition.give_back(item)
            )
            for other in back:
                self.out.pop(other, None)

    def take_lost(self) -> list[int]:
        """Numbers that the member has to be told are lost."""
        lost, self.lost = self.lost, []
        return lost

    def wakes_at(self, *, delivering: bool = True) -> float | None:
        """When there is something to do without anything from outside; None: never.

        Asked after `deliver` gave nothing; ``delivering``: whether it was asked at all.
        """
        times: list[float] = []
        if delivering and len(self.out) < self.credits:
            times = [at for at in map(Partition.wakes_at, self._active()) if at is not None]
        while self._deadlines and self._deadlines[0][1] not in self.out:
            heapq.heappop(self._deadlines)
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(times, default=None)

    def _remind(self, deadline: float, number: int) -> None:
        """Settled deliveries leave their entries behind; they are cleared when they are many."""
        if len(self._deadlines) > 2 * len(self.out) + 1_000:
            self._deadlines = [(item.deadline, other) for other, (_, item) in self.out.items()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (deadline, number))

    def _active(self) -> Iterator[Partition]:
        return (p for p in self.partitions.values() if not p.releasing)

    def _take(self, number: int) -> tuple[Partition, Item] | None:
        found = self.out.pop(number, None)
        if found is None:
            self.lost.append(number)
        return found

    def _lose(self, numbers: list[int]) -> None:
        for number in numbers:
            self.out.pop(number, None)
        self.lost += numbers
