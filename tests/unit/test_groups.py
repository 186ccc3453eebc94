"""The rules of consumer groups: order within an entity, nothing lost, nothing confirmed again.

A hypothesis machine plays log, members, crashes and commits against `Partition` and `Worklist`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from journal.groups.model import GroupSettings, check_settings, slices_of
from journal.groups.partition import Entity, Partition, Rules
from journal.groups.worklist import Worklist
from journal.rows import EventRow
from kernel.errors import InvalidArgument

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def event(position: int, entity: str = "a", sequence: int = 0) -> EventRow:
    return EventRow(position, sequence, NOW, None, "id", 1, 1, 0, entity, b"{}", None)


def partition(rules: Rules | None = None, watermark: int = 0, **more: object) -> Partition:
    return Partition(
        0, (0, 1023), 1, rules or Rules(), watermark, jitter=lambda: 1.0, **more  # type: ignore[arg-type]
    )  # fmt: skip


def member(part: Partition, credit: int = 100, ack_timeout: float = 30) -> Worklist:
    work = Worklist(credit, ack_timeout)
    work.add(part)
    return work


def given(work: Worklist, now: float = 0.0) -> list[int]:
    return [item.position for item in work.deliver(now, 100, 10**6)]


def commit(part: Partition, parked: int = 0, free: Iterable[Entity] = ()) -> list[int]:
    changes = part.changes(everything=True)
    if changes is None:
        return []
    part.saved(changes, parked, free)
    return changes.confirm


def test_slices_are_divided_without_gap_or_overlap() -> None:
    for count in (1, 2, 3, 7, 16, 100, 256):
        ranges = [slices_of(i, count) for i in range(count)]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == 1023
        assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges))


def test_the_next_event_of_an_entity_waits_for_the_ack_of_the_one_before() -> None:
    part = partition()
    work = member(part)
    part.take([event(1), event(2, "b"), event(3), event(4, "b")], 4)
    assert given(work) == [1, 2]
    assert work.ack(1)
    assert given(work) == [3]
    assert work.ack(2)
    assert given(work) == [4]


def test_with_global_order_every_event_waits_for_the_one_before() -> None:
    part = partition(Rules(global_order=True))
    work = member(part)
    part.take([event(1), event(2, "b")], 2)
    assert given(work) == [1]
    work.ack(1)
    assert given(work) == [2]


def test_a_nack_takes_back_what_went_out_after_it_in_its_line() -> None:
    part = partition(Rules(window=3))
    work = member(part)
    part.take([event(1), event(2), event(3), event(4), event(5, "b")], 5)
    assert given(work) == [1, 2, 3, 5]
    assert work.nack(2, 0.0, "later", 5.0)
    assert work.take_lost() == [3]
    assert not work.ack(3), "it was taken back"
    assert work.take_lost() == [3]
    assert given(work, 4.9) == []
    assert given(work, 5.0) == [2, 3], "1 is still out, so the window takes two more"
    attempts = {item.position: item.attempts for _, item in work.out.values()}
    assert attempts == {1: 0, 2: 1, 3: 0, 5: 0}


def test_retry_after_is_a_minimum_and_backoff_doubles_up_to_its_bound() -> None:
    part = partition(Rules(backoff_min=1.0, backoff_max=3.0))
    work = member(part)
    part.take([event(1)], 1)
    now = 0.0
    for pause in (1.0, 2.0, 3.0, 3.0):
        assert given(work, now) == [1]
        work.nack(work.last_delivery, now, "", 0.0)
        assert given(work, now + pause - 0.01) == []
        now += pause
    assert given(work, now) == [1]
    work.nack(work.last_delivery, now, "", 60.0)
    assert work.wakes_at() == pytest.approx(now + 60.0)
    assert given(work, now + 59.9) == []
    assert given(work, now + 60.0) == [1]


def test_an_event_that_fails_too_often_is_parked_and_holds_back_its_entity() -> None:
    part = partition(Rules(max_attempts=2))
    work = member(part)
    part.take([event(1), event(2), event(3, "b")], 3)
    given(work)
    work.nack(1, 0.0, "first", 0.0)
    assert given(work, 1.0) == [1]
    work.nack(3, 1.0, "second", 0.0)
    assert given(work, 100.0) == []
    part.take([event(4), event(5, "b")], 5)
    changes = part.changes()
    assert changes is not None
    assert [(p.row.position, p.held, p.attempts) for p in changes.parkings] == [
        (1, False, 2), (2, True, 0), (4, True, 0)
    ]  # fmt: skip
    assert changes.parkings[0].reason == "failed 2 times, last: second"
    # 3 and 5 are still to be done: the image says so, or they lie after its watermark.
    assert changes.image.watermark == 4
    assert changes.image.pending == ((3, 0, 0),)
    part.saved(changes, 3)
    assert part.held == {(1, "a")}


def test_with_skip_parked_the_later_events_go_on() -> None:
    part = partition(Rules(skip_parked=True))
    work = member(part)
    part.take([event(1), event(2)], 2)
    given(work)
    assert work.park(1, "cannot")
    assert given(work) == [2]


def test_replayed_events_go_in_order_and_what_comes_meanwhile_stays_behind_them() -> None:
    part = partition(held=[(1, "a")], parked=2, watermark=9)
    work = member(part)
    part.replay(event(3))
    part.replay(event(5))
    part.take([event(10)], 10)
    items = work.deliver(0.0, 10, 10**6)
    assert [(i.position, i.replayed) for i in items] == [(3, True)]
    work.ack(1)
    assert given(work) == [5]
    work.ack(2)
    changes = part.changes()
    assert changes is not None
    assert changes.unparked == [3, 5]
    assert [p.row.position for p in changes.parkings] == [10]
    part.take([event(11)], 11)  # while the commit is under way
    part.saved(changes, 1, free=[(1, "a")])
    assert part.held == {(1, "a")}, "11 is not on disk yet"
    part.replay(event(10))
    assert given(work) == [10]


def test_a_partition_that_goes_to_another_leaves_no_delivery_unanswered() -> None:
    part = partition()
    work = member(part)
    part.take([event(1), event(2, "b"), event(3, "c")], 3)
    given(work)
    work.ack(1)
    changes = part.changes()
    assert changes is not None
    work.ack(2)
    work.drop(0)
    assert sorted(work.take_lost()) == [2, 3], "2 is in no commit, 1 is"
    assert changes.confirm == [1]


def test_a_replayed_event_does_not_pass_one_of_its_entity_that_is_being_parked() -> None:
    for rules, expected in ((Rules(), []), (Rules(skip_parked=True), [12])):
        part = partition(rules, watermark=20, held=[(1, "a")], parked=2)
        work = member(part)
        part.replay(event(10))
        assert given(work) == [10]
        assert work.park(1, "bad")
        part.replay(event(12))
        assert given(work) == expected
        changes = part.changes()
        assert changes is not None
        part.replay(event(12))
        assert given(work) == [], "the commit is under way"
        part.saved(changes, 2)


def test_a_replayed_event_that_fails_again_is_parked_again_with_those_behind_it() -> None:
    part = partition(Rules(max_attempts=1), held=[(1, "a")], parked=2, watermark=9)
    work = member(part)
    part.replay(event(3))
    part.replay(event(5))
    given(work)
    work.nack(1, 0.0, "again", 0.0)
    assert given(work, 100.0) == []
    changes = part.changes()
    assert changes is not None
    assert [(p.row.position, p.held) for p in changes.parkings] == [(3, False), (5, True)]
    assert part._replays == {}


def test_a_replay_that_fails_keeps_its_count_through_a_hand_over() -> None:
    part = partition(Rules(max_attempts=3), held=[(1, "a")], parked=1, watermark=9)
    work = member(part)
    part.replay(event(3), 1)
    (item,) = work.deliver(0.0, 1, 10**6)
    assert item.attempts == 1
    work.leave(0.0, broken=True)
    changes = part.changes()
    assert changes is not None
    assert changes.retried == {3: 2}
    part.failed(changes)
    assert part.urgent


def test_what_is_acked_but_not_on_disk_is_not_replayed_again() -> None:
    part = partition(held=[(1, "a")], parked=1, watermark=9)
    work = member(part)
    part.replay(event(3))
    given(work)
    work.ack(1)
    assert part.replaying == {3}
    part.replay(event(3))
    assert given(work) == []
    changes = part.changes()
    assert changes is not None
    part.replay(event(3))
    assert given(work) == [], "the commit is under way"
    part.saved(changes, 0, [(1, "a")])
    assert part.replaying == set()


def test_a_discarded_event_is_not_replayed_unless_it_is_out() -> None:
    part = partition(held=[(1, "a")], parked=2, watermark=9)
    work = member(part)
    part.replay(event(3))
    part.replay(event(5))
    assert given(work) == [3]
    part.reload([(1, "a")], 1, [3, 5])
    assert part.replaying == {3}
    assert work.ack(1)
    assert given(work) == []


def test_an_unsettled_delivery_fails_after_the_ack_timeout_unless_extended() -> None:
    part = partition()
    work = member(part, ack_timeout=10)
    part.take([event(1), event(2, "b")], 2)
    given(work)
    assert work.wakes_at() == 10
    work.extend(2, 5.0)
    assert work.expire(10.0) == 1
    assert work.take_lost() == [1]
    assert work.expire(14.9) == 0
    assert work.expire(15.0) == 1
    assert not work.ack(2)
    (pending,) = [p for p in part.image().pending if p[0] == 1]
    assert pending[1] == 1, "the attempt is on disk"


def test_credits_bound_what_is_out_and_zero_pauses() -> None:
    part = partition()
    work = member(part, credit=2)
    part.take([event(i, f"e{i}") for i in range(1, 6)], 5)
    assert given(work) == [1, 2]
    assert given(work) == []
    work.ack(1)
    assert given(work) == [3]
    work.credits = 0
    work.ack(2)
    work.ack(3)
    assert given(work) == []


def test_a_broken_connection_counts_as_an_attempt_and_a_goodbye_does_not() -> None:
    for broken, attempts in ((True, 1), (False, 0)):
        part = partition()
        work = member(part)
        part.take([event(1), event(2, "b")], 2)
        given(work)
        work.leave(0.0, broken=broken)
        assert work.out == {}
        assert part.drained
        image = part.image()
        assert [p[1] for p in image.pending] == ([attempts, attempts] if broken else [])
        assert image.watermark == (2 if broken else 0)


def test_the_image_advances_over_events_that_do_not_match() -> None:
    part = partition()
    assert part.changes(everything=True) is None
    part.take([], 500)
    changes = part.changes(everything=True)
    assert changes is not None
    assert (changes.image.watermark, changes.image.pending) == (500, ())


def test_a_partition_that_is_released_gives_nothing_new_but_takes_settlements() -> None:
    part = partition()
    work = member(part)
    part.take([event(1), event(2)], 2)
    given(work)
    part.releasing = True
    work.ack(1)
    assert given(work) == []
    assert not part.drained
    assert commit(part) == [1]
    assert part.drained


def test_what_is_held_counts_as_memory_until_it_is_on_disk() -> None:
    part = partition(held=[(1, "a")], parked=1)
    part.take([event(i) for i in range(1, 101)], 100)
    assert len(part) == 100
    assert part.bytes > 100 * 600
    changes = part.changes()
    assert changes is not None
    part.failed(changes)
    assert len(part) == 100
    commit(part, 101)
    assert (len(part), part.bytes) == (0, 0)


def test_deadlines_of_settled_deliveries_do_not_pile_up_behind_one_that_is_out() -> None:
    part = partition()
    work = member(part, ack_timeout=86_400)
    part.take([event(1, "stuck")], 1)
    given(work)
    for position in range(2, 5_000):
        part.take([event(position, f"e{position}")], position)
        given(work)
        work.ack(work.last_delivery)
        commit(part)
    assert len(work._deadlines) <= 1_010
    assert work.wakes_at() == 86_400
    assert work.expire(86_400.0) == 1


def test_a_line_that_waits_does_not_fill_the_schedule() -> None:
    part = partition()
    part.take([event(i) for i in range(1, 1001)], 1000)
    assert len(part._ready) == 1


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (GroupSettings(partitions=0), "partitions"),
        (GroupSettings(partitions=257), "partitions"),
        (GroupSettings(partitions=2, global_order=True), "partitions"),
        (GroupSettings(max_attempts=0), "max_attempts"),
        (GroupSettings(entity_window=1001), "entity_window"),
        (GroupSettings(entity_types=("",)), "entity_types[0]"),
        (GroupSettings(event_types=("a\n",)), "event_types[0]"),
        (GroupSettings(backoff_max=GroupSettings().backoff_min / 2), "backoff_max_ms"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(bad: GroupSettings, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_settings(bad)
    assert caught.value.field == f"settings.{field}"


# -- everything at once --------------------------------------------------------------------------


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
