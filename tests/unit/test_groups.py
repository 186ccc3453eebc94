"""The rules of consumer groups: order within an entity, nothing lost, nothing confirmed again."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise

import pytest

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
