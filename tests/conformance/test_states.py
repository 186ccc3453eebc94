"""Deleted and tombstoned entities: they take no events, and everything else goes on."""

from __future__ import annotations

import asyncio

import pytest

from journal.model import ANY, EXISTS, NO_ENTITY, Append, Expected
from kernel.errors import AppendIdReused, EntityDeleted
from kernel.ids import new_id
from tests.conformance.subject import Subject, entity, events

ENDED = pytest.mark.parametrize("state", ["deleted", "tombstoned"])


@ENDED
@pytest.mark.parametrize("expected", [ANY, EXISTS, NO_ENTITY, 3, 7])
async def test_an_ended_entity_takes_no_events_whatever_is_expected_of_it(
    subject: Subject, state: str, expected: Expected
) -> None:
    await subject.put("a", 3)
    await subject.set_state("a", state)
    before = await subject.contents()
    with pytest.raises(EntityDeleted) as refused:
        await subject.put("a", 1, expected)
    assert refused.value.entities == (("cart", "a"),)
    assert await subject.contents() == before
    assert (await subject.entity("a")).state == state


@ENDED
async def test_loads_reads_and_lists_go_on_as_before(subject: Subject, state: str) -> None:
    await subject.put("a", 3)
    _, _, before = await subject.load("a")
    read = await subject.read()
    await subject.set_state("a", state)
    found, _, after = await subject.load("a")
    assert (found.state, after) == (state, before)
    assert await subject.read() == read
    page = await subject.journal.list_entities(subject.log)
    assert [e.state for e in page.entities] == [state]


async def test_an_undeleted_entity_goes_on_where_it_was(subject: Subject) -> None:
    await subject.put("a", 3)
    await subject.set_state("a", "deleted")
    await subject.set_state("a", "active")
    await subject.put("a", 1, 3)
    assert await subject.sequences("a") == [1, 2, 3, 4]


async def test_an_append_over_several_entities_is_refused_whole_and_names_the_deleted_ones(
    subject: Subject,
) -> None:
    await subject.put("a", 1)
    await subject.put("b", 1)
    await subject.put("c", 1)
    for name in ("c", "a"):
        await subject.set_state(name, "deleted")
    before = await subject.contents()
    with pytest.raises(EntityDeleted) as refused:
        await subject.append(
            entity("a", 1),
            entity("b", 9),
            entity("c", 1),
            events=events(1) + events(2, 1) + events(1, 2),
        )
    assert refused.value.entities == (("cart", "a"), ("cart", "c"))
    assert await subject.contents() == before


async def test_a_refused_append_to_a_deleted_entity_spoils_none_of_its_neighbours(
    subject: Subject,
) -> None:
    await subject.put("dead", 1)
    await subject.set_state("dead", "deleted")
    names = [f"n{i}" if i % 2 else "dead" for i in range(40)]
    results = await asyncio.gather(
        *(subject.put(name, 2) for name in names), return_exceptions=True
    )
    for name, result in zip(names, results, strict=True):
        assert isinstance(result, EntityDeleted) == (name == "dead")
    assert await subject.head() == 1 + 20 * 2
    assert await subject.positions() == list(range(1, 42))


async def test_an_append_that_was_written_before_the_deletion_is_answered_as_it_was(
    subject: Subject,
) -> None:
    """`EntityDeleted` says that nothing was written: never of something that was."""
    by_id = Append((entity("a", ANY),), events(2), new_id())
    by_events = Append((entity("a", 2), entity("b", 0)), events(2) + events(1, 1))
    first = await subject.journal.append(subject.log, by_id)
    second = await subject.journal.append(subject.log, by_events)
    await subject.set_state("a", "tombstoned")
    for append, result in ((by_id, first), (by_events, second)):
        assert await subject.journal.append(subject.log, append) == result._replace(duplicate=True)
    with pytest.raises(AppendIdReused):
        await subject.journal.append(
            subject.log, Append((entity("a", ANY),), events(1), by_id.append_id)
        )
    with pytest.raises(EntityDeleted):  # the same place, other events
        await subject.journal.append(subject.log, Append((entity("a", 2),), events(2)))
