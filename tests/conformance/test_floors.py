"""Compacted entities: a load begins at the floor, or says that it cannot; nothing else changes."""

from __future__ import annotations

import pytest

from journal.memory import TypeRules
from journal.model import NewSnapshot
from kernel.errors import Compacted
from tests.conformance.subject import Subject


async def compacted(subject: Subject, *, kind: str = "cart") -> None:
    """An entity of 9 events with snapshots at 4 and 6, whose floor is 5."""
    await subject.put("a", 4, kind=kind, snapshot=NewSnapshot("Cart", b"4"))
    await subject.put("other", 3, kind=kind)
    await subject.put("a", 2, kind=kind, snapshot=NewSnapshot("Cart", b"6"))
    await subject.put("a", 3, kind=kind)
    await subject.set_floor("a", 5, kind=kind)


@pytest.mark.parametrize(
    ("query", "snapshot", "expected"),
    [
        ({}, 6, [7, 8, 9]),
        ({"to_sequence": 5}, 4, [5]),
        ({"to_sequence": 4}, 4, []),
        ({"after_sequence": 4}, 0, [5, 6, 7, 8, 9]),
        ({"after_sequence": 4, "ignore_snapshot": True, "to_sequence": 5}, 0, [5]),
        ({"after_sequence": 8}, 0, [9]),
        ({"after_sequence": 99}, 0, []),
        # Nothing is wanted that is not there any more.
        ({"after_sequence": 2, "to_sequence": 2}, 0, []),
        ({"after_sequence": 3, "to_sequence": 1}, 0, []),
    ],
)
async def test_a_load_begins_at_the_floor_or_at_a_snapshot_above_it(
    subject: Subject, query: dict[str, int], snapshot: int, expected: list[int]
) -> None:
    await compacted(subject)
    head, found, loaded = await subject.load("a", **query)
    assert (head.floor, head.sequence, head.event_count, head.snapshot_sequence) == (5, 9, 9, 6)
    assert (found.sequence if found else 0) == snapshot
    assert [e.sequence for e in loaded] == expected
    assert await subject.entity("a") == head


@pytest.mark.parametrize(
    "query",
    [
        {"ignore_snapshot": True},
        {"ignore_snapshot": True, "to_sequence": 1},
        {"after_sequence": 3},
        {"after_sequence": 3, "to_sequence": 4},
        {"after_sequence": 1, "to_sequence": 2},
        {"to_sequence": 3},
    ],
)
async def test_a_load_that_needs_events_below_the_floor_fails_and_names_the_floor(
    subject: Subject, query: dict[str, int]
) -> None:
    await compacted(subject)
    with pytest.raises(Compacted) as refused:
        await subject.load("a", **query)
    assert (refused.value.entity_type, refused.value.entity_id) == ("cart", "a")
    assert refused.value.floor == 5


async def test_reads_lists_appends_and_verify_know_no_floor(subject: Subject) -> None:
    await compacted(subject)
    assert await subject.positions() == list(range(1, 13))
    assert (await subject.verify()).ok
    page = await subject.journal.list_entities(subject.log)
    assert [(e.entity_id, e.floor) for e in page.entities] == [("a", 5), ("other", 1)]
    done = await subject.put("a", 1, 9)
    assert done.entities[0].first_sequence == 10
    assert await subject.sequences("a") == [7, 8, 9, 10]


async def test_a_floor_that_is_moved_back_gives_back_what_was_there(subject: Subject) -> None:
    await compacted(subject)
    await subject.set_floor("a", 1)
    assert await subject.sequences("a", ignore_snapshot=True) == list(range(1, 10))


async def test_an_entity_that_begins_with_a_number_of_its_own_is_not_compacted(
    subject: Subject,
) -> None:
    await subject.put("a", 2, 0, first=40)
    assert (await subject.entity("a")).floor == 40
    for query in ({}, {"ignore_snapshot": True}, {"after_sequence": 3}):
        assert await subject.sequences("a", **query) == [40, 41]


# What loads use, by type


@pytest.mark.parametrize(
    ("rules", "snapshot", "up_to_5"),
    [
        (TypeRules(), 6, 4),
        (TypeRules(snapshot_types=("Cart",)), 6, 0),
        (TypeRules(snapshot_types=("Old", "CartV1")), 4, 4),
        (TypeRules(snapshot_types=("Other",)), 0, 0),
        (TypeRules(needs_full_replay=True), 0, 0),
        (TypeRules(needs_full_replay=True, snapshot_types=("Cart",)), 0, 0),
    ],
)
async def test_a_load_begins_with_the_newest_snapshot_that_the_type_says_is_usable(
    subject: Subject, rules: TypeRules, snapshot: int, up_to_5: int
) -> None:
    kind = f"kind-{subject.log}"
    await subject.set_type(kind, rules)
    await subject.put("a", 4, kind=kind, snapshot=NewSnapshot("CartV1", b"4"))
    await subject.put("a", 2, kind=kind, snapshot=NewSnapshot("Cart", b"6"))
    await subject.put("a", 1, kind=kind)
    head, found, loaded = await subject.load("a", kind=kind)
    assert (found.sequence if found else 0, head.snapshot_sequence) == (snapshot, snapshot)
    assert [e.sequence for e in loaded] == list(range(snapshot + 1, 8))
    page = await subject.journal.list_entities(subject.log, kind)
    assert [e.snapshot_sequence for e in page.entities] == [snapshot]
    # What a bound leaves out says nothing of the newest one.
    head, found, _ = await subject.load("a", kind=kind, to_sequence=5)
    assert (found.sequence if found else 0) == up_to_5
    assert head.snapshot_sequence == snapshot


async def test_a_compacted_entity_whose_type_no_longer_uses_snapshots_is_never_loaded_in_part(
    subject: Subject,
) -> None:
    kind = f"kind-{subject.log}"
    await compacted(subject, kind=kind)
    await subject.set_type(kind, TypeRules(needs_full_replay=True))
    with pytest.raises(Compacted):
        await subject.load("a", kind=kind)
    await subject.set_type(kind, TypeRules(snapshot_types=("Other",)))
    with pytest.raises(Compacted):
        await subject.load("a", kind=kind)
