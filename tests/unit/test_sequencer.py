"""Group commit, against an execute whose every batch the test answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from journal.model import ANY, Append, Appended, EntityAppend, NewEvent
from journal.preparation import PreparedAppend, Preparer
from journal.sequencer import Outcome, Sequencer, SequencerSettings
from kernel.errors import (
    ClockSkew,
    DeadlineExceeded,
    EverstateError,
    InternalError,
    InvalidArgument,
    LogNotFound,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    WrongExpectedState,
)
from kernel.ids import new_id

WRITTEN = Appended(1, 1, 0, ())


def of(
    *names: str, events: int = 1, size: int = 1, safe: bool = True, append_id: str = ""
) -> PreparedAppend:
    """An append to these entities."""
    entities = tuple(EntityAppend("t", name, 0 if safe else ANY) for name in names)
    members = [*range(len(names)), *([0] * (events - len(names)))]
    sent = tuple(NewEvent("E", b"x" * size, entity=member) for member in members)
    return Preparer().prepare(Append(entities, sent, append_id))


class Batch:
    """A batch that waits for the test's answer."""

    def __init__(self, appends: Sequence[PreparedAppend], timeout: float) -> None:
        self.appends = list(appends)
        self.timeout = timeout
        self.answer: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    @property
    def names(self) -> list[str]:
        return ["+".join(m[1] for m in append.members) for append in self.appends]

    def written(self) -> None:
        self.answer.set_result([WRITTEN] * len(self.appends))

    def fails(self, error: BaseException) -> None:
        self.answer.set_exception(error)


class Database:
    """The execute of a sequencer: every batch is put before the test."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[Batch] = asyncio.Queue()
        self.in_flight: list[Batch] = []

    async def __call__(self, appends: Sequence[PreparedAppend], timeout: float) -> list[Outcome]:
        batch = Batch(appends, timeout)
        keys = {k for other in self.in_flight for a in other.appends for k in a.keys}
        assert keys.isdisjoint(k for a in appends for k in a.keys), "an entity is in flight twice"
        self.in_flight.append(batch)
        self.batches.put_nowait(batch)
        try:
            return await batch.answer
        finally:
            self.in_flight.remove(batch)

    async def next(self) -> Batch:
        return await asyncio.wait_for(self.batches.get(), 5)

    async def nothing_more(self) -> None:
        """The loop gets every chance to send another batch, and does not."""
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.batches.empty()


class Callers:
    """Collects outcomes by name, as a stream does."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.flushed: list[int] = []

    def done(self, append: PreparedAppend, outcome: Outcome) -> None:
        name = "+".join(m[1] for m in append.members) + (f"#{append.tag}" if append.tag else "")
        assert name not in self.outcomes, "an outcome comes once"
        self.outcomes[name] = outcome

    def flush(self) -> None:
        self.flushed.append(len(self.outcomes))

    def errors(self) -> dict[str, type[object]]:
        return {n: type(o) for n, o in self.outcomes.items() if isinstance(o, EverstateError)}


class Stage:
    def __init__(self, **settings: Any) -> None:
        self.database = Database()
        self.callers = Callers()
        self.sequencer = Sequencer(self.database, SequencerSettings(**settings))

    def submit(self, *appends: PreparedAppend, deadline: float = 0) -> None:
        for append in appends:
            tag = append.tag
            self.sequencer.submit(append, self.callers, tag, deadline)


@pytest.fixture
async def stage() -> Stage:
    return Stage()


def tagged(append: PreparedAppend, tag: int) -> PreparedAppend:
    append.tag = tag
    return append


# Batches


async def test_appends_that_arrive_during_a_commit_become_the_next_batch(stage: Stage) -> None:
    stage.submit(of("a"))
    first = await stage.database.next()
    assert first.names == ["a"]
    stage.submit(of("b"), of("c"))
    stage.submit(of("d"))
    await stage.database.nothing_more()
    first.written()
    second = await stage.database.next()
    assert second.names == ["b", "c", "d"]
    assert stage.callers.outcomes == {"a": WRITTEN}
    second.written()
    await stage.sequencer.drain()
    assert stage.callers.outcomes == dict.fromkeys("abcd", WRITTEN)
    assert (stage.sequencer.waiting, stage.sequencer.held_bytes) == (0, 0)


def test_no_timer_takes_part_in_a_commit() -> None:
    loop = asyncio.new_event_loop()
    timers: list[object] = []
    loop.call_at = lambda *arguments, **_: timers.append(arguments)  # type: ignore[assignment,method-assign,return-value]

    async def work() -> None:
        database = Database()
        callers = Callers()
        sequencer = Sequencer(database)
        for name in "abc":
            sequencer.submit(of(name), callers, 0, 0)
        (await database.batches.get()).written()
        sequencer.submit(of("d"), callers, 0, 0)
        (await database.batches.get()).written()
        await sequencer.drain()
        assert len(callers.outcomes) == 4

    loop.run_until_complete(work())
    loop.close()
    assert timers == []


async def test_a_waiter_is_flushed_once_a_batch(stage: Stage) -> None:
    stage.submit(of("a"))
    first = await stage.database.next()
    stage.submit(of("b"), of("c"))
    first.written()
    (await stage.database.next()).written()
    await stage.sequencer.drain()
    assert stage.callers.flushed == [1, 3]


async def test_a_batch_is_bounded_by_events() -> None:
    stage = Stage(max_batch_events=5)
    stage.submit(of("a"), of("b", events=3), of("c", events=2), of("d", events=3), of("e"))
    sizes = []
    for _ in range(3):
        batch = await stage.database.next()
        sizes.append(batch.names)
        batch.written()
    assert sizes == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_batch_is_bounded_by_bytes_but_takes_one_append_of_any_size() -> None:
    one = of("a", size=1000).held_bytes
    stage = Stage(max_batch_bytes=2 * one, max_batch_events=9)
    stage.submit(of("a", size=1000), of("b", size=1000), of("big", size=90_000), of("c"))
    for expected in (["a", "b"], ["big"], ["c"]):
        batch = await stage.database.next()
        assert batch.names == expected
        batch.written()


async def test_a_refused_append_spoils_none_of_its_batch(stage: Stage) -> None:
    stage.submit(of("a"), of("b"), of("c"))
    batch = await stage.database.next()
    batch.answer.set_result([WRITTEN, WrongExpectedState(()), WRITTEN])
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"b": WrongExpectedState}
    await stage.database.nothing_more()


# One entity


async def test_an_entity_is_in_flight_at_most_once_and_in_order(stage: Stage) -> None:
    stage.submit(*(tagged(of("a"), tag) for tag in (1, 2, 3)), of("b"))
    first = await stage.database.next()
    assert first.names == ["a", "b"]
    await stage.database.nothing_more()
    first.written()
    for tag in (2, 3):
        batch = await stage.database.next()
        assert [a.tag for a in batch.appends] == [tag]
        batch.written()
    await stage.sequencer.drain()
    assert list(stage.callers.outcomes) == ["a#1", "b", "a#2", "a#3"]


async def test_an_append_waits_for_all_its_entities_and_blocks_those_behind_it(
    stage: Stage,
) -> None:
    stage.submit(of("a"))
    first = await stage.database.next()
    stage.submit(of("b"), of("a", "b"), of("b", "c"), of("d"))
    first.written()
    second = await stage.database.next()
    assert second.names == ["b", "d"]
    second.written()
    third = await stage.database.next()
    assert third.names == ["a+b"]
    stage.submit(of("c"))  # behind b+c, which waits
    third.written()
    for expected in (["b+c"], ["c"]):
        batch = await stage.database.next()
        assert batch.names == expected
        batch.written()
    await stage.sequencer.drain()
    assert stage.sequencer.waiting == 0


async def test_an_append_that_shares_two_entities_with_one_before_it_is_not_lost(
    stage: Stage,
) -> None:
    stage.submit(of("a", "b"), of("b", "a"))
    (await stage.database.next()).written()
    assert (await stage.database.next()).names == ["b+a"]


async def test_an_append_id_is_in_flight_at_most_once(stage: Stage) -> None:
    append_id = new_id()
    stage.submit(of("a", append_id=append_id), of("b", append_id=append_id))
    first = await stage.database.next()
    assert first.names == ["a"]
    first.written()
    assert (await stage.database.next()).names == ["b"]


async def test_what_waits_behind_a_failed_append_still_gets_its_turn(stage: Stage) -> None:
    stage.submit(tagged(of("a"), 1), tagged(of("a"), 2))
    (await stage.database.next()).fails(Unavailable())
    (await stage.database.next()).written()
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"a#1": Unavailable}
    assert stage.callers.outcomes["a#2"] == WRITTEN


# Failures


async def answer(database: Database, judge: Callable[[Batch], None], times: int) -> list[list[str]]:
    seen = []
    for _ in range(times):
        batch = await database.next()
        seen.append(batch.names)
        judge(batch)
    return seen


async def test_a_poisoned_batch_is_taken_apart_and_only_the_poison_fails(stage: Stage) -> None:
    def judge(batch: Batch) -> None:
        if "poison" in batch.names:
            batch.fails(InvalidArgument("request", "refused by the database"))
        else:
            batch.written()

    stage.submit(of("a"), of("poison"), of("b"))
    assert await answer(stage.database, judge, 4) == [
        ["a", "poison", "b"],
        ["a"],
        ["poison"],
        ["b"],
    ]
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"poison": InvalidArgument}


@pytest.mark.parametrize(
    "error", [Unavailable(), DeadlineExceeded(), ClockSkew(), LogNotFound("x")]
)
async def test_a_failure_that_is_not_the_batchs_fault_is_told_to_all_at_once(
    stage: Stage, error: EverstateError
) -> None:
    stage.submit(of("a"), of("b"))
    (await stage.database.next()).fails(error)
    await stage.sequencer.drain()
    assert stage.callers.outcomes == {"a": error, "b": error}
    await stage.database.nothing_more()


async def test_after_a_broken_connection_only_what_is_safe_is_sent_again(stage: Stage) -> None:
    stage.submit(of("safe"), of("unsafe", safe=False), of("by-id", safe=False, append_id=new_id()))
    (await stage.database.next()).fails(OutcomeUnknown())
    again = await stage.database.next()
    assert again.names == ["safe", "by-id"]
    again.written()
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"unsafe": OutcomeUnknown}


@pytest.mark.parametrize("second", [Unavailable(), OutcomeUnknown(), InternalError()])
async def test_when_the_second_try_fails_too_the_outcome_stays_unknown(
    stage: Stage, second: EverstateError
) -> None:
    stage.submit(of("a"), of("b"))
    (await stage.database.next()).fails(OutcomeUnknown())
    (await stage.database.next()).fails(second)
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"a": OutcomeUnknown, "b": OutcomeUnknown}
    await stage.database.nothing_more()


async def test_an_unexpected_exception_fails_the_batch_and_not_the_sequencer(stage: Stage) -> None:
    stage.submit(of("a"), of("b"), tagged(of("a"), 2))
    (await stage.database.next()).fails(ZeroDivisionError("a bug"))
    (await stage.database.next()).written()
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"a": InternalError, "b": InternalError}
    assert stage.callers.outcomes["a#2"] == WRITTEN
    assert stage.sequencer.waiting == 0


async def test_an_unexpected_exception_in_the_second_try_leaves_nobody_waiting(
    stage: Stage,
) -> None:
    stage.submit(of("a"), of("b"))
    (await stage.database.next()).fails(OutcomeUnknown())
    (await stage.database.next()).fails(ZeroDivisionError("a bug"))
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"a": OutcomeUnknown, "b": OutcomeUnknown}


# Deadlines


async def test_an_append_whose_deadline_passed_in_the_queue_is_not_written(stage: Stage) -> None:
    now = asyncio.get_running_loop().time()
    stage.submit(of("late"), tagged(of("late"), 2), deadline=now - 1)
    stage.submit(of("b"), deadline=now + 60)
    batch = await stage.database.next()
    assert batch.names == ["b"]
    batch.written()
    await stage.sequencer.drain()
    assert stage.callers.errors() == {"late": DeadlineExceeded, "late#2": DeadlineExceeded}
    assert "was not written" in str(stage.callers.outcomes["late"])
    await stage.database.nothing_more()


async def test_a_caller_waits_no_longer_than_it_said(stage: Stage) -> None:
    with pytest.raises(DeadlineExceeded):
        await stage.sequencer.append(of("a"), 0.01)
    batch = await stage.database.next()
    batch.written()  # nobody waits any more; the entity becomes free all the same
    waiting = asyncio.ensure_future(stage.sequencer.append(of("a"), 30))
    (await stage.database.next()).written()
    assert await waiting == WRITTEN


async def test_a_caller_gets_the_outcome_or_the_error(stage: Stage) -> None:
    waiting = [asyncio.ensure_future(stage.sequencer.append(of(name), 30)) for name in "ab"]
    (await stage.database.next()).answer.set_result([WRITTEN, WrongExpectedState(())])
    assert await waiting[0] == WRITTEN
    with pytest.raises(WrongExpectedState):
        await waiting[1]


async def test_a_commit_may_take_as_long_as_its_most_patient_append() -> None:
    stage = Stage(commit_timeout=timedelta(seconds=10))
    now = asyncio.get_running_loop().time()
    stage.submit(of("a"), deadline=now + 2)
    stage.submit(of("b"), deadline=now + 4)
    batch = await stage.database.next()
    assert 3 < batch.timeout <= 4
    stage.submit(of("c"), deadline=now + 60)
    batch.written()
    batch = await stage.database.next()
    assert batch.timeout == 10
    stage.submit(of("d"))
    batch.written()
    batch = await stage.database.next()
    assert batch.timeout == 10
    batch.written()
    await stage.sequencer.drain()


# Bounds


async def test_more_than_may_wait_is_refused_as_overloaded() -> None:
    one = of("a", size=1000).held_bytes
    stage = Stage(max_held_bytes=2 * one)
    stage.submit(of("a", size=1000), of("b", size=1000))
    with pytest.raises(Overloaded):
        stage.submit(of("c"))
    assert stage.sequencer.waiting == 2
    (await stage.database.next()).written()
    await stage.sequencer.drain()
    stage.submit(of("c"))
    assert (await stage.database.next()).names == ["c"]


async def test_an_append_larger_than_may_wait_is_taken_when_nothing_waits() -> None:
    stage = Stage(max_held_bytes=10)
    stage.submit(of("a"))
    assert (await stage.database.next()).names == ["a"]
    with pytest.raises(Overloaded):
        stage.submit(of("b"))


async def test_streams_are_held_back_while_half_of_what_may_wait_is_taken() -> None:
    one = of("a", size=1000).held_bytes
    stage = Stage(max_held_bytes=4 * one)
    stage.submit(of("a", size=1000))
    assert not stage.sequencer.crowded
    stage.submit(of("b", size=1000))
    assert stage.sequencer.crowded
    room = asyncio.ensure_future(stage.sequencer.room())
    batch = await stage.database.next()
    assert not room.done()
    batch.written()
    await asyncio.wait_for(room, 5)
    assert not stage.sequencer.crowded


async def test_a_second_connection_is_used_only_when_much_waits() -> None:
    stage = Stage(lanes=2, second_lane_events=3, max_batch_events=2)
    stage.submit(of("a"))
    first = await stage.database.next()
    stage.submit(of("b"), of("c"), of("d"))
    await stage.database.nothing_more()
    stage.submit(of("e"))
    second = await stage.database.next()
    assert second.names == ["b", "c"]
    await stage.database.nothing_more()
    assert stage.database.in_flight == [first, second]
    second.written()
    third = await stage.database.next()
    assert third.names == ["d", "e"]
    for batch in (first, third):
        batch.written()
    await stage.sequencer.drain()
    assert stage.callers.outcomes == dict.fromkeys("abcde", WRITTEN)


# The end


async def test_a_closed_sequencer_finishes_what_it_took_and_takes_no_more(stage: Stage) -> None:
    stage.submit(tagged(of("a"), 1), tagged(of("a"), 2))
    first = await stage.database.next()
    closing = asyncio.ensure_future(stage.sequencer.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shutting down"):
        stage.submit(of("b"))
    first.written()
    assert not closing.done()
    (await stage.database.next()).written()
    await asyncio.wait_for(closing, 5)
    assert stage.callers.outcomes == {"a#1": WRITTEN, "a#2": WRITTEN}


async def test_draining_an_idle_sequencer_returns(stage: Stage) -> None:
    await asyncio.wait_for(stage.sequencer.drain(), 5)
    await asyncio.wait_for(stage.sequencer.close(), 5)
