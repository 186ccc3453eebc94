"""Appends: expected states, atomicity, numbers, refusals, explicit sequence numbers."""

from __future__ import annotations

import asyncio

import pytest

from journal.model import ANY, EXISTS, NO_ENTITY, Append, AppendedEntity, Expected, NewSnapshot
from kernel.errors import EverstateError, FailedCheck, WrongExpectedState
from kernel.ids import slice_of
from tests.conformance.subject import Subject, entity, event, events


async def refused(attempt: object) -> tuple[FailedCheck, ...]:
    with pytest.raises(WrongExpectedState) as caught:
        await attempt  # type: ignore[misc]
    return caught.value.failures


# Expected states


@pytest.mark.parametrize("expected", [ANY, NO_ENTITY])
async def test_a_new_entity_may_be_made_by(subject: Subject, expected: Expected) -> None:
    done = await subject.put("c-1", 2, expected)
    assert (done.first_position, done.last_position, done.duplicate) == (1, 2, False)
    assert done.entities == (AppendedEntity(1, 2),)


@pytest.mark.parametrize("expected", [ANY, EXISTS, 3])
async def test_an_entity_of_three_events_takes_more_when_the_expected_state_is(
    subject: Subject, expected: Expected
) -> None:
    await subject.put("c-1", 3)
    done = await subject.put("c-1", 2, expected)
    assert (done.first_position, done.last_position) == (4, 5)
    assert done.entities == (AppendedEntity(4, 5),)
    assert await subject.sequences("c-1") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("expected", [NO_ENTITY, 1, 2, 4, 99])
async def test_an_entity_of_three_events_refuses_another_exact_state(
    subject: Subject, expected: int
) -> None:
    await subject.put("c-1", 3)
    before = await subject.contents()
    failures = await refused(subject.put("c-1", 1, expected))
    assert failures == (FailedCheck("cart", "c-1", expected, 3),)
    assert await subject.contents() == before


@pytest.mark.parametrize(("expected", "said"), [(EXISTS, "exists"), (1, 1), (7, 7)])
async def test_an_entity_without_events_refuses_to_be_expected_as(
    subject: Subject, expected: Expected, said: int | str
) -> None:
    failures = await refused(subject.put("c-1", 1, expected))
    assert failures == (FailedCheck("cart", "c-1", said, 0),)
    assert await subject.head() == 0


async def test_entities_of_two_types_with_one_id_are_two_entities(subject: Subject) -> None:
    await subject.put("c-1", 2, NO_ENTITY)
    await subject.put("c-1", 1, NO_ENTITY, kind="order")
    assert (await subject.entity("c-1")).sequence == 2
    assert (await subject.entity("c-1", "order")).sequence == 1


async def test_entities_of_one_name_in_two_logs_are_two_entities(subject: Subject) -> None:
    await subject.put("c-1", 2)
    other = f"{subject.log}_b"
    await subject.journal.create_log(other)
    done = await subject.journal.append(other, Append((entity("c-1", NO_ENTITY),), events(1)))
    assert (done.last_position, done.entities) == (1, (AppendedEntity(1, 1),))
    assert await subject.head() == 2


# Several entities


async def test_an_append_over_several_entities_keeps_the_order_of_its_interleaved_events(
    subject: Subject,
) -> None:
    await subject.put("b", 2)
    order = (0, 1, 0, 2, 1, 1)
    sent = tuple(event(member, b"%d" % i) for i, member in enumerate(order))
    done = await subject.append(entity("a", NO_ENTITY), entity("b", 2), entity("c"), events=sent)
    assert (done.first_position, done.last_position) == (3, 8)
    assert done.entities == (AppendedEntity(1, 2), AppendedEntity(3, 5), AppendedEntity(1, 1))
    found = await subject.read(from_position=3)
    assert [(e.position, e.entity_id, e.sequence, e.previous_position) for e in found] == [
        (3, "a", 1, 0),
        (4, "b", 3, 2),
        (5, "a", 2, 3),
        (6, "c", 1, 0),
        (7, "b", 4, 4),
        (8, "b", 5, 7),
    ]
    assert [(e.event_id, e.payload) for e in found] == [(e.event_id, e.payload) for e in sent]
    assert {e.recorded_at_us for e in found} == {done.recorded_at_us}


async def test_an_append_over_several_entities_is_all_or_nothing(subject: Subject) -> None:
    await subject.put("a", 1)
    before = await subject.contents()
    failures = await refused(
        subject.append(entity("a", 1), entity("b", EXISTS), events=(event(0), event(1), event(0)))
    )
    assert failures == (FailedCheck("cart", "b", "exists", 0),)
    assert await subject.contents() == before


async def test_invariant_6_a_refused_append_changes_nothing_and_names_every_failed_check(
    subject: Subject,
) -> None:
    await subject.put("a", 3)
    await subject.put("b", 1)
    before = await subject.contents()
    snapshot = NewSnapshot("Cart", b"{}")
    failures = await refused(
        subject.append(
            entity("a", NO_ENTITY, snapshot=snapshot),
            entity("fine", NO_ENTITY, snapshot=snapshot),
            entity("b", 5),
            entity("none", EXISTS),
            entity("a", first=9, kind="order", expected=ANY),
            events=tuple(event(member) for member in range(5)),
        )
    )
    assert failures == (
        FailedCheck("cart", "a", 0, 3),
        FailedCheck("cart", "b", 5, 1),
        FailedCheck("cart", "none", "exists", 0),
    )
    assert await subject.contents() == before
    assert (await subject.load("a"))[1] is None


async def test_a_refusal_says_in_words_what_was_expected_and_found(subject: Subject) -> None:
    await subject.put("a", 3)
    with pytest.raises(WrongExpectedState, match="cart/a: expected no entity, found sequence 3"):
        await subject.put("a", 1, NO_ENTITY)
    with pytest.raises(WrongExpectedState, match="cart/b: expected sequence 4, found no entity"):
        await subject.put("b", 1, 4)


# Many at once


async def test_of_many_concurrent_appends_with_one_expected_state_one_is_written(
    subject: Subject,
) -> None:
    tries = [subject.put("c-1", 1, NO_ENTITY) for _ in range(20)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(r, BaseException) for r in results) == 1
    assert sum(isinstance(r, WrongExpectedState) for r in results) == 19
    assert await subject.sequences("c-1") == [1]


async def test_a_refused_append_spoils_none_of_its_neighbours(subject: Subject) -> None:
    await subject.put("busy", 1)
    tries = [
        subject.put("busy", 1, NO_ENTITY) if n % 3 == 0 else subject.put(f"c-{n}", 2, NO_ENTITY)
        for n in range(30)
    ]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert [isinstance(r, EverstateError) for r in results] == [n % 3 == 0 for n in range(30)]
    assert await subject.positions() == list(range(1, 42))
    assert (await subject.verify()).ok


async def test_concurrent_appends_to_one_entity_are_judged_in_the_order_they_were_made(
    subject: Subject,
) -> None:
    await subject.put("other")  # the log has been met: from here on order is kept
    await asyncio.gather(*(subject.put("c-1", 1, n) for n in range(25)))
    assert await subject.sequences("c-1") == list(range(1, 26))


# Numbers


async def test_stored_events_carry_slice_and_the_position_of_their_entitys_event_before(
    subject: Subject,
) -> None:
    await subject.put("a", 1)
    await subject.put("b", 1)
    await subject.put("a", 2)
    found = await subject.read()
    assert [e.previous_position for e in found] == [0, 0, 1, 3]
    assert [e.slice for e in found] == [slice_of("cart", name) for name in "abaa"]
    assert (await subject.entity("a")).slice == slice_of("cart", "a")


async def test_an_event_without_an_id_gets_one(subject: Subject) -> None:
    await subject.append(entity("a"), events=(event(event_id=""), event(event_id="")))
    ids = {e.event_id for e in await subject.read()}
    assert len(ids) == 2
    assert all(len(i) == 36 and i[14] == "7" for i in ids)


async def test_invariants_1_2_3_hold_after_appends_of_all_kinds(subject: Subject) -> None:
    await subject.put("a", 3)
    await subject.put("b", 2, first=10)
    await refused(subject.put("a", 1, 1))
    await subject.append(entity("a", 3), entity("b", EXISTS), events=(event(1), event(0), event(1)))
    report = await subject.verify()
    assert (report.ok, report.findings, report.holes) == (True, (), 0)
    assert (report.from_position, report.to_position) == (1, 8)
    assert (report.events, report.entities, report.removed) == (8, 2, 0)
    found = await subject.read()
    assert [e.position for e in found] == list(range(1, 9))
    assert [e.sequence for e in found if e.entity_id == "a"] == [1, 2, 3, 4]
    assert [e.sequence for e in found if e.entity_id == "b"] == [10, 11, 12, 13]
    times = [e.recorded_at_us for e in found]
    assert times == sorted(times)


# Explicit sequence numbers


async def test_an_entity_may_begin_at_a_number_of_its_own(subject: Subject) -> None:
    done = await subject.put("a", 2, NO_ENTITY, first=41)
    assert done.entities == (AppendedEntity(41, 42),)
    found = await subject.entity("a")
    assert (found.sequence, found.floor, found.event_count) == (42, 41, 2)
    assert await subject.sequences("a") == [41, 42]
    assert (await subject.put("a", 1, 42)).entities == (AppendedEntity(43, 43),)


async def test_a_given_number_has_to_follow_the_last_one(subject: Subject) -> None:
    await subject.put("a", 2)
    before = await subject.contents()
    for expected in (ANY, EXISTS):
        failures = await refused(subject.put("a", 1, expected, first=5))
        assert failures == (FailedCheck("cart", "a", 4, 2),)
    assert await subject.contents() == before
    assert (await subject.put("a", 1, ANY, first=3)).entities == (AppendedEntity(3, 3),)
    assert (await subject.put("a", 1, EXISTS, first=4)).entities == (AppendedEntity(4, 4),)
    assert (await subject.put("a", 1, 4, first=5)).entities == (AppendedEntity(5, 5),)


async def test_a_given_number_does_not_soften_the_expected_state(subject: Subject) -> None:
    assert await refused(subject.put("a", 1, EXISTS, first=5)) == (
        FailedCheck("cart", "a", "exists", 0),
    )
    await subject.put("a", 4)
    # The number would fit, but the entity was expected not to be there.
    assert await refused(subject.put("a", 1, NO_ENTITY, first=5)) == (
        FailedCheck("cart", "a", 0, 4),
    )
    assert await subject.head() == 4
