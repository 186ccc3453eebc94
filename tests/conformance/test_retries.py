"""Retries: the first result again, or a refusal; never twice, never a guess."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from journal.model import ANY, EXISTS, NO_ENTITY, Append, Appended, Expected, NewSnapshot
from kernel.errors import AppendIdReused, FailedCheck, InvalidArgument, WrongExpectedState
from kernel.ids import new_id
from tests.conformance.subject import DAY_US, Subject, days_ago, entity, event, events, uuid7_at


async def send(subject: Subject, append: Append) -> Appended:
    return await subject.journal.append(subject.log, append)


def again(first: Appended) -> Appended:
    return first._replace(duplicate=True)


# By event ids, at an exact state


async def test_an_exact_append_sent_again_gets_the_first_result(subject: Subject) -> None:
    append = Append((entity("a", NO_ENTITY),), events(3))
    first = await send(subject, append)
    assert first.duplicate is False
    before = await subject.contents()
    assert await send(subject, append) == again(first)
    assert await send(subject, append) == again(first)
    assert await subject.contents() == before


async def test_an_exact_append_is_recognised_after_later_appends_too(subject: Subject) -> None:
    await subject.put("a", 2)
    append = Append((entity("a", 2),), events(3))
    first = await send(subject, append)
    await subject.put("b", 4)
    await subject.put("a", 5)
    assert await send(subject, append) == again(first)
    assert await subject.head() == 14


async def test_an_exact_append_over_several_entities_sent_again_gets_the_first_result(
    subject: Subject,
) -> None:
    await subject.put("b", 1)
    sent = (event(0), event(1), event(0), event(2), event(1))
    append = Append((entity("a", 0), entity("b", 1), entity("c", ANY, first=7)), sent)
    first = await send(subject, append)
    await subject.put("a", 1)
    assert await send(subject, append) == again(first)
    assert await subject.head() == 7


async def test_explicit_numbers_make_an_append_exact(subject: Subject) -> None:
    append = Append((entity("a", ANY, first=5),), events(2))
    first = await send(subject, append)
    assert await send(subject, append) == again(first)
    more = Append((entity("a", EXISTS, first=7),), events(2))
    first = await send(subject, more)
    assert await send(subject, more) == again(first)
    assert await subject.sequences("a") == [5, 6, 7, 8]


async def test_other_event_ids_at_the_same_place_are_refused(subject: Subject) -> None:
    sent = events(3)
    await send(subject, Append((entity("a", NO_ENTITY),), sent))
    before = await subject.contents()
    for changed in (
        events(3),
        (*sent[:2], event()),
        (sent[1], sent[0], sent[2]),
        (*sent, event()),
    ):
        with pytest.raises(WrongExpectedState) as caught:
            await send(subject, Append((entity("a", NO_ENTITY),), changed))
        assert caught.value.failures == (FailedCheck("cart", "a", 0, 3),)
    assert await subject.contents() == before


async def test_the_same_events_at_another_place_are_refused(subject: Subject) -> None:
    sent = events(2)
    await send(subject, Append((entity("a", NO_ENTITY),), sent))
    await subject.put("a", 1)
    with pytest.raises(WrongExpectedState):
        await send(subject, Append((entity("a", 1),), sent))
    with pytest.raises(WrongExpectedState):
        await send(subject, Append((entity("b", 1),), sent))


async def test_a_retry_of_which_one_entity_was_not_written_is_refused(subject: Subject) -> None:
    sent = (event(0), event(1))
    await send(subject, Append((entity("a", 0), entity("b", 0)), sent))
    await subject.put("c", 1)
    with pytest.raises(WrongExpectedState) as caught:
        await send(subject, Append((entity("a", 0), entity("c", 0)), sent))
    assert {f.entity_id for f in caught.value.failures} == {"a", "c"}
    assert await subject.head() == 3


async def test_a_retry_stores_its_snapshot_once(subject: Subject) -> None:
    snapshot = NewSnapshot("Cart", b"1")
    append = Append((entity("a", NO_ENTITY, snapshot=snapshot),), events(2))
    await send(subject, append)
    await subject.put("a", 1)
    assert (await send(subject, append)).duplicate
    found, stored, _ = await subject.load("a")
    assert found.snapshot_sequence == 2
    assert stored is not None
    assert stored.sequence == 2


async def test_the_first_part_of_a_retry_may_be_all_that_is_asked_again(subject: Subject) -> None:
    sent = events(3)
    first = await send(subject, Append((entity("a", NO_ENTITY),), sent))
    part = await send(subject, Append((entity("a", NO_ENTITY),), sent[:2]))
    assert (part.first_position, part.last_position, part.duplicate) == (1, 2, True)
    assert part.recorded_at_us == first.recorded_at_us


# By append id


@pytest.mark.parametrize("expected", [ANY, EXISTS])
async def test_an_append_with_an_id_sent_again_gets_the_first_result(
    subject: Subject, expected: Expected
) -> None:
    await subject.put("a", 1)
    append = Append((entity("a", expected), entity("b")), (event(0), event(1), event(0)), new_id())
    first = await send(subject, append)
    assert first.duplicate is False
    await subject.put("a", 2)
    before = await subject.contents()
    assert await send(subject, append) == again(first)
    assert await subject.contents() == before


async def test_an_append_without_any_id_is_written_again(subject: Subject) -> None:
    append = Append((entity("a", ANY),), (event(event_id=""),))
    assert (await send(subject, append)).last_position == 1
    second = await send(subject, append)
    assert (second.last_position, second.duplicate) == (2, False)


async def test_an_append_id_recognises_events_that_have_no_ids(subject: Subject) -> None:
    append = Append((entity("a", ANY),), (event(event_id=""), event(event_id="")), new_id())
    first = await send(subject, append)
    assert await send(subject, append) == again(first)
    assert await subject.head() == 2


async def test_one_append_id_sent_twice_at_once_is_written_once(subject: Subject) -> None:
    await subject.put("other")
    append = Append((entity("a", ANY),), events(2), new_id())
    results = await asyncio.gather(*(send(subject, append) for _ in range(5)))
    assert sorted(r.duplicate for r in results) == [False, True, True, True, True]
    assert {r.last_position for r in results} == {3}


async def test_a_refused_append_does_not_use_up_its_id(subject: Subject) -> None:
    append = Append((entity("a", EXISTS),), events(1), new_id())
    with pytest.raises(WrongExpectedState):
        await send(subject, append)
    await subject.put("a", 1)
    done = await send(subject, append)
    assert (done.last_position, done.duplicate) == (2, False)


async def test_an_append_id_with_another_content_is_refused(subject: Subject) -> None:
    append_id = new_id()
    append = Append((entity("a", ANY),), events(2), append_id)
    await send(subject, append)
    before = await subject.contents()
    first, second = append.events
    for other in (
        replace(append, events=(first,)),
        replace(append, events=(first, replace(second, payload=b"other"))),
        replace(append, events=(first, replace(second, type="Other"))),
        replace(append, events=(first, replace(second, metadata_json='{"a":1}'))),
        replace(append, events=(second, first)),
        replace(append, entities=(entity("b", ANY),)),
        replace(append, entities=(entity("a", EXISTS),)),
        replace(append, entities=(entity("a", ANY, snapshot=NewSnapshot("S", b"")),)),
    ):
        with pytest.raises(AppendIdReused) as caught:
            await send(subject, other)
        assert caught.value.append_id == append_id
    assert await subject.contents() == before


async def test_an_append_id_of_another_log_is_not_known(subject: Subject) -> None:
    append = Append((entity("a", ANY),), events(1), new_id())
    await send(subject, append)
    other = f"{subject.log}_b"
    await subject.journal.create_log(other)
    assert (await subject.journal.append(other, append)).duplicate is False


async def test_append_ids_are_remembered_for_the_stated_window(subject: Subject) -> None:
    append = Append((entity("a", ANY),), events(1), days_ago(1.5))
    first = await send(subject, append)
    assert await send(subject, append) == again(first)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: days_ago(2.1), "old; ids are remembered for 2 days"),
        (lambda: days_ago(-0.1), "ahead"),
        (lambda: days_ago(365), "old"),
        (lambda: "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "not a UUID of version 7"),
        (lambda: new_id().upper(), "not a UUID in lower case"),
        (lambda: "one", "not a UUID"),
        (lambda: uuid7_at(2**47 * 1000 - DAY_US), "ahead"),
    ],
)
async def test_an_append_id_out_of_its_window_or_form_is_refused(
    subject: Subject, make: object, problem: str
) -> None:
    append = Append((entity("a", ANY),), events(1), make())  # type: ignore[operator]
    with pytest.raises(InvalidArgument, match=problem) as caught:
        await send(subject, append)
    assert caught.value.field == "append_id"
    assert await subject.head() == 0
