"""A hypothesis machine plays log, members, crashes, commits against `Partition` and `Worklist`."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from journal.groups.partition import Rules
from journal.rows import EventRow
from tests.unit.test_groups import event, member, partition


@dataclass
class Disk:
    """What the tables would hold."""

    watermark: int
    pending: dict[int, tuple[int, int]]
    parked: dict[int, tuple[str, int]]  # position → (state, attempts)

    def normalize(self, log: dict[int, EventRow]) -> None:
        first: dict[str, int] = {}
        for position in sorted(self.parked):
            if self.parked[position][0] == "parked":
                first.setdefault(log[position].entity_id, position)
        for position, (state, attempts) in self.parked.items():
            if state != "parked":
                before = first.get(log[position].entity_id, 1 << 60)
                self.parked[position] = ("held" if before < position else "replaying", attempts)


class GroupMachine(RuleBasedStateMachine):
    """One partition, one member at a time, a disk, and everything that may happen to them."""

    @initialize(
        window=st.integers(1, 3), skip=st.booleans(), globally=st.booleans(),
        most=st.integers(1, 4),
    )  # fmt: skip
    def begin(self, window: int, skip: bool, globally: bool, most: int) -> None:
        self.rules = Rules(globally, window, most, 1.0, 8.0, skip)
        self.log: dict[int, EventRow] = {}
        self.sequences: dict[str, int] = {}
        self.head = 0
        self.now = 0.0
        self.disk = Disk(0, {}, {})
        self.confirmed: set[int] = set()
        self.acks: dict[int, int] = {}  # delivery → position, settled as done and not on disk yet
        self.done: dict[str, int] = {}  # entity → highest position whose ack counted in memory
        self.discarded: set[int] = set()
        self.own()

    def own(self) -> None:
        """A new owner starts from the disk."""
        held = {(1, self.log[p].entity_id) for p in self.disk.parked}
        self.part = partition(
            self.rules, self.disk.watermark, held=held, parked=len(self.disk.parked)
        )
        for position, (attempts, due) in sorted(self.disk.pending.items()):
            self.part.restore(self.log[position], attempts, due)
        self.work = member(self.part, credit=8, ack_timeout=20)
        self.numbers: dict[int, int] = {}
        self.acks = {}
        self.done = {}

    @rule(entities=st.lists(st.sampled_from("abc"), min_size=1, max_size=6), gap=st.integers(0, 2))
    def append(self, entities: list[str], gap: int) -> None:
        for entity in entities:
            self.head += 1
            self.sequences[entity] = self.sequences.get(entity, 0) + 1
            self.log[self.head] = event(self.head, entity, self.sequences[entity])
        self.head += gap  # events that do not match

    @rule(most=st.integers(1, 8))
    def read(self, most: int) -> None:
        rows = [r for p, r in sorted(self.log.items()) if p > self.part.read_to][:most]
        self.part.take(rows, rows[-1].position if rows else self.head)

    @rule()
    def load_replays(self) -> None:
        for position, (state, _) in sorted(self.disk.parked.items()):
            if state == "replaying":
                self.part.replay(self.log[position])

    @rule(most=st.integers(1, 5))
    def deliver(self, most: int) -> None:
        items = self.work.deliver(self.now, most, 10**6)
        first = self.work.last_delivery - len(items) + 1
        for number, item in enumerate(items, first):
            assert item.position not in self.confirmed, "it was confirmed as done"
            assert item.position not in self.discarded or item.replayed
            self.numbers[number] = item.position
            entity = item.row.entity_id
            out = sorted(
                i.position
                for other, (_, i) in self.work.out.items()
                if i.row.entity_id == entity and other <= number
            )
            if not self.rules.skip_parked:
                assert out[-1] == item.position, "a later event of the entity is out already"
                behind = [p for p in out if p < item.position]
                assert len(behind) < self.rules.window
                # Everything before it is settled or out.
                for position, row in self.log.items():
                    if row.entity_id == entity and position < item.position:
                        assert (
                            position in out
                            or position in self.confirmed
                            or position in self.acks.values()
                            or position in self.discarded
                        ), f"{item.position} of {entity} before {position}"

    def some(self, pick: int) -> int | None:
        out = sorted(self.work.out)
        return out[pick % len(out)] if out else None

    @rule(pick=st.integers(0, 50))
    def ack(self, pick: int) -> None:
        number = self.some(pick)
        if number is not None:
            self.acks[number] = self.work.out[number][1].position
            assert self.work.ack(number)

    @rule(pick=st.integers(0, 50), after=st.sampled_from([0.0, 3.0]))
    def nack(self, pick: int, after: float) -> None:
        number = self.some(pick)
        if number is not None:
            assert self.work.nack(number, self.now, "no", after)

    @rule(pick=st.integers(0, 50))
    def park(self, pick: int) -> None:
        number = self.some(pick)
        if number is not None:
            assert self.work.park(number, "no")

    @rule(seconds=st.sampled_from([0.5, 5.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.work.expire(self.now)

    @rule(works=st.booleans(), meanwhile=st.integers(0, 3))
    def save(self, works: bool, meanwhile: int) -> None:
        changes = self.part.changes(everything=True)
        if changes is None:
            return
        self.read(meanwhile + 1)  # a commit takes its time
        if not works:
            self.part.failed(changes)
            return
        disk = self.disk
        assert changes.image.watermark >= disk.watermark
        disk.watermark = changes.image.watermark
        disk.pending = {p: (attempts, due) for p, attempts, due in changes.image.pending}
        touched = set()
        for parking in changes.parkings:
            position = parking.row.position
            touched.add(parking.row.entity_id)
            if not parking.held:
                disk.parked[position] = ("parked", parking.attempts)
            elif position not in disk.parked:
                disk.parked[position] = ("held", 0)
        for position, tries in changes.retried.items():
            if position in disk.parked:
                disk.parked[position] = (disk.parked[position][0], tries)
        for position in changes.unparked:
            if disk.parked.pop(position, None):
                touched.add(self.log[position].entity_id)
        if not self.rules.skip_parked:
            disk.normalize(self.log)
        left = {self.log[p].entity_id for p in disk.parked}
        self.part.saved(changes, len(disk.parked), [(1, e) for e in touched - left])
        for number in changes.confirm:
            if number in self.acks:
                self.confirmed.add(self.acks.pop(number))

    @rule(broken=st.booleans())
    def member_leaves(self, broken: bool) -> None:
        self.work.leave(self.now, broken=broken)
        assert self.part.out == 0
        self.save(True, 0)
        self.own()

    @rule()
    def node_dies(self) -> None:
        self.own()

    @rule(pick=st.integers(0, 50), discard=st.booleans())
    def operate(self, pick: int, discard: bool) -> None:
        """ReplayParked or DiscardParked of one event, and what the owner then learns."""
        choice = sorted(p for p, (state, _) in self.disk.parked.items() if state == "parked")
        if not choice:
            return
        position = choice[pick % len(choice)]
        if discard:
            del self.disk.parked[position]
            self.discarded.add(position)
        else:
            self.disk.parked[position] = ("replaying", 0)
        if not self.rules.skip_parked:
            self.disk.normalize(self.log)
        gone = [p for p in self.part.replaying if p not in self.disk.parked]
        held = {(1, self.log[p].entity_id) for p in self.disk.parked}
        self.part.reload(held, len(self.disk.parked), gone)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "disk"):
            return
        disk = self.disk
        for position in self.log:
            assert (
                position > disk.watermark
                or position in disk.pending
                or position in disk.parked
                or position in self.confirmed
                or position in self.discarded
            ), f"{position} is nowhere"
            assert not (position in self.confirmed and position in disk.pending)

    @invariant()
    def counts_are_true(self) -> None:
        if hasattr(self, "part"):
            out = [i for line in self.part._lines.values() for i in list(line.items)[: line.out]]
            assert self.part.out == len(out) == len(self.work.out)
            everything = [i for line in self.part._lines.values() for i in line.items]
            aside = list(self.part._parking())
            assert len(self.part) == len(everything) + len(aside)
            assert self.part.bytes == sum(i.size for i in [*everything, *aside])

    def teardown(self) -> None:
        """In the end everything can be done: replay all, ack all."""
        if not hasattr(self, "part"):
            return
        for _ in range(3 * len(self.log) + 20):
            for position, (_, attempts) in self.disk.parked.items():
                self.disk.parked[position] = ("replaying", attempts)
            self.load_replays()
            self.read(100)
            self.now += 100
            self.work.expire(self.now)
            self.deliver(8)
            for number in sorted(self.work.out):
                if number in self.work.out:
                    self.acks[number] = self.work.out[number][1].position
                    assert self.work.ack(number)
            self.save(True, 0)
        assert self.confirmed >= self.log.keys() - self.discarded
        assert self.disk.parked == {}
        assert (self.disk.watermark, self.disk.pending) == (max(self.head, 0), {})


GroupMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestGroups = GroupMachine.TestCase
