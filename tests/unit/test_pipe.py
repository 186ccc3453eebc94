"""The client's AppendStream, against a node that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest

from kernel.errors import (
    DeadlineExceeded,
    EverstateError,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unavailable,
    WrongExpectedState,
)
from sidecar_api.client import pipe as pipe_module
from sidecar_api.client.pipe import AppendPipe
from sidecar_api.errors import to_status
from sidecar_api.generated import journal_pb2 as pb

AT_ONCE = timedelta(0)


def request(name: str, size: int = 0) -> pb.AppendRequest:
    return pb.AppendRequest(
        entities=[pb.EntityAppend(entity_type="t", entity_id=name)],
        events=[pb.NewEvent(type="E", payload=b"x" * size)],
    )


def broken(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details="the stream broke")


class Stream:
    """One AppendStream call as the node sees it."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[pb.AppendStreamRequest] = asyncio.Queue()
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.flow = asyncio.Event()
        self.flow.set()
        self.cancelled = False

    # What the pipe calls

    async def write(self, message: pb.AppendStreamRequest) -> None:
        self.messages.put_nowait(message)
        await self.flow.wait()

    async def read(self) -> Any:
        reply = await self.replies.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def cancel(self) -> None:
        self.cancelled = True

    # What the test does

    async def got(self) -> list[tuple[int, str]]:
        """(id, entity id) of the appends in the next message."""
        message = await asyncio.wait_for(self.messages.get(), 5)
        return [(item.id, item.append.entities[0].entity_id) for item in message.appends]

    async def names(self) -> list[str]:
        return [name for _, name in await self.got()]

    async def nothing_more(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.messages.empty()

    def reply(self, *results: tuple[int, int | EverstateError]) -> None:
        """Answers appends, by id: written at a position, or failed."""
        response = pb.AppendStreamResponse()
        for number, result in results:
            if isinstance(result, int):
                response.results.add(id=number).appended.first_position = result
            else:
                response.results.add(id=number).error.CopyFrom(to_status(result))
        self.replies.put_nowait(response)

    def ends(self, how: object = grpc.aio.EOF) -> None:
        self.replies.put_nowait(how)


class Stage:
    """A pipe and its streams; ``flow``: whether new ones take more than one message."""

    def __init__(self, max_bytes: int = 1_000_000, retry_for: float = 60) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.flow = True
        self.pipe = AppendPipe(self._open, max_bytes, retry_for)

    def _open(self) -> Stream:
        stream = Stream()
        if not self.flow:
            stream.flow.clear()
        self.streams.put_nowait(stream)
        return stream

    async def stream(self) -> Stream:
        return await asyncio.wait_for(self.streams.get(), 5)

    def append(
        self, name: str, *, safe: bool = True, timeout: float = 60, size: int = 0
    ) -> asyncio.Task[pb.AppendResponse]:
        return asyncio.create_task(self.pipe.append(request(name, size), safe, timeout))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe_module, "FIRST_PAUSE", 0.0)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    await made.pipe.close()


async def position(task: asyncio.Task[pb.AppendResponse]) -> int:
    return (await asyncio.wait_for(task, 5)).first_position


async def failure(task: asyncio.Task[pb.AppendResponse]) -> EverstateError:
    with pytest.raises(EverstateError) as caught:
        await asyncio.wait_for(task, 5)
    return caught.value


# Messages


async def test_a_single_append_goes_out_at_once(stage: Stage) -> None:
    task = stage.append("a")
    stream = await stage.stream()
    ((number, name),) = await stream.got()
    assert name == "a"
    stream.reply((number, 7))
    assert await position(task) == 7


async def test_appends_made_together_share_a_message(stage: Stage) -> None:
    tasks = [stage.append(name) for name in "abc"]
    stream = await stage.stream()
    got = await stream.got()
    assert [name for _, name in got] == ["a", "b", "c"]
    stream.reply(*((number, number + 100) for number, _ in got))
    assert [await position(task) for task in tasks] == [number + 100 for number, _ in got]


async def test_appends_made_during_a_write_share_the_next_message(stage: Stage) -> None:
    stage.flow = False
    first = stage.append("a")
    stream = await stage.stream()
    assert await stream.names() == ["a"]
    rest = [stage.append(name) for name in "bcd"]
    await stream.nothing_more()
    stream.flow.set()
    assert await stream.names() == ["b", "c", "d"]
    for task in (first, *rest):
        task.cancel()


async def test_a_message_has_about_a_megabyte_at_most() -> None:
    stage = Stage(max_bytes=50_000_000)
    tasks = [stage.append(f"a{n}", size=400_000) for n in range(5)]
    tasks.append(stage.append("big", size=3_000_000))
    stream = await stage.stream()
    for expected in (["a0", "a1"], ["a2", "a3"], ["a4"], ["big"]):
        assert await stream.names() == expected
    await stage.pipe.close()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_append_that_no_message_can_hold_is_refused_here(stage: Stage) -> None:
    error = await failure(stage.append("a", size=8_000_000))
    assert isinstance(error, TooLarge)
    assert stage.streams.empty()


async def test_the_node_learns_how_long_the_caller_waits(stage: Stage) -> None:
    tasks = [stage.append("a", timeout=5), stage.append("b", timeout=1e9)]
    stream = await stage.stream()
    short, long = (await stream.messages.get()).appends
    assert 4_000 < short.timeout_ms <= 5_000
    assert long.timeout_ms == 2**32 - 1
    for task in tasks:
        task.cancel()


# Results


async def test_results_may_come_in_any_order_and_grouping(stage: Stage) -> None:
    tasks = {name: stage.append(name) for name in "abcd"}
    stream = await stage.stream()
    ids = {name: number for number, name in await stream.got()}
    stream.reply((ids["c"], 3))
    stream.reply((ids["d"], 4), (ids["a"], 1))
    stream.reply((ids["b"], 2))
    assert [await position(tasks[name]) for name in "abcd"] == [1, 2, 3, 4]


async def test_a_refusal_reaches_its_caller_only(stage: Stage) -> None:
    tasks = [stage.append(name) for name in "ab"]
    stream = await stage.stream()
    (one, _), (two, _) = await stream.got()
    stream.reply((one, InvalidArgument("events[0].type", "is empty")), (two, 2))
    error = await failure(tasks[0])
    assert isinstance(error, InvalidArgument)
    assert error.field == "events[0].type"
    assert await position(tasks[1]) == 2


@pytest.mark.parametrize("error", [Overloaded("full", AT_ONCE), Unavailable("away", AT_ONCE)])
@pytest.mark.parametrize("safe", [True, False])
async def test_what_wrote_nothing_and_may_be_retried_is_sent_again(
    stage: Stage, error: EverstateError, safe: bool
) -> None:
    task = stage.append("a", safe=safe)
    stream = await stage.stream()
    for _ in range(3):
        ((number, _),) = await stream.got()
        stream.reply((number, error))
    ((number, _),) = await stream.got()
    stream.reply((number, 9))
    assert await position(task) == 9


async def test_an_unknown_outcome_is_tried_again_only_where_it_is_safe(stage: Stage) -> None:
    tasks = [stage.append("safe"), stage.append("unsafe", safe=False)]
    stream = await stage.stream()
    stream.reply(*((number, OutcomeUnknown()) for number, _ in await stream.got()))
    assert isinstance(await failure(tasks[1]), OutcomeUnknown)
    ((number, name),) = await stream.got()
    assert name == "safe"
    stream.reply((number, 1))
    assert await position(tasks[0]) == 1


async def test_retries_end_when_the_time_for_them_is_over() -> None:
    stage = Stage(retry_for=0)
    task = stage.append("a")
    stream = await stage.stream()
    ((number, _),) = await stream.got()
    stream.reply((number, Overloaded("full", AT_ONCE)))
    assert isinstance(await failure(task), Overloaded)
    await stage.pipe.close()


async def test_a_result_that_nobody_waits_for_is_passed_over(stage: Stage) -> None:
    task = stage.append("a")
    stream = await stage.stream()
    ((number, _),) = await stream.got()
    stream.reply((number + 1000, 5))
    stream.reply((number, 1))
    stream.reply((number, 2))
    assert await position(task) == 1
    again = stage.append("b")
    ((number, _),) = await stream.got()
    stream.reply((number, 3))
    assert await position(again) == 3


# Broken streams


@pytest.mark.parametrize("how", [broken(), broken(grpc.StatusCode.CANCELLED), grpc.aio.EOF])
async def test_when_a_stream_breaks_the_safe_are_sent_again_and_the_unsafe_fail(
    stage: Stage, how: object
) -> None:
    stage.flow = False
    sent = [stage.append("safe-1"), stage.append("unsafe", safe=False), stage.append("safe-2")]
    stream = await stage.stream()
    assert len(await stream.got()) == 3
    unsent = [stage.append("new", safe=False)]
    await stream.nothing_more()
    stage.flow = True
    stream.ends(how)
    assert isinstance(await failure(sent[1]), OutcomeUnknown)
    stream = await stage.stream()
    got = await stream.got()
    assert [name for _, name in got] == ["safe-1", "safe-2", "new"]
    stream.reply(*((number, number) for number, _ in got))
    for task in (sent[0], sent[2], *unsent):
        assert await position(task) > 0


async def test_a_broken_stream_is_cancelled_and_opened_again_only_when_needed(
    stage: Stage,
) -> None:
    task = stage.append("a")
    first = await stage.stream()
    ((number, _),) = await first.got()
    first.reply((number, 1))
    assert await position(task) == 1
    first.ends()
    for _ in range(10):
        await asyncio.sleep(0)
    assert first.cancelled
    assert stage.streams.empty()
    task = stage.append("b")
    second = await stage.stream()
    ((number, _),) = await second.got()
    second.reply((number, 2))
    assert await position(task) == 2


async def test_a_node_that_stays_away_is_given_up_in_time() -> None:
    stage = Stage(retry_for=0)
    stage.flow = False
    sent, unsent = stage.append("sent"), None
    stream = await stage.stream()
    await stream.got()
    unsent = stage.append("unsent")
    await stream.nothing_more()
    stream.ends(broken())
    assert isinstance(await failure(sent), OutcomeUnknown)
    error = await failure(unsent)
    assert type(error) is Unavailable
    await stage.pipe.close()


async def test_a_stream_that_the_node_refuses_is_not_tried_again_with_the_same(
    stage: Stage,
) -> None:
    task = stage.append("a")
    stream = await stage.stream()
    await stream.got()
    stream.ends(broken(grpc.StatusCode.INVALID_ARGUMENT))
    assert isinstance(await failure(task), InvalidArgument)


# Deadlines and bounds


async def test_a_caller_waits_no_longer_than_it_said(stage: Stage) -> None:
    task = stage.append("a", timeout=0.01)
    stream = await stage.stream()
    ((number, _),) = await stream.got()
    assert isinstance(await failure(task), DeadlineExceeded)
    stream.reply((number, 1))  # too late: nobody waits
    other = stage.append("b")
    ((number, _),) = await stream.got()
    stream.reply((number, 2))
    assert await position(other) == 2


async def test_what_waits_is_bounded_and_later_callers_wait_for_room() -> None:
    stage = Stage(max_bytes=2_500)
    tasks = [stage.append(name, size=1_000) for name in "abc"]
    stream = await stage.stream()
    got = await stream.got()
    assert [name for _, name in got] == ["a", "b"]
    await stream.nothing_more()
    stream.reply((got[0][0], 1))
    assert await position(tasks[0]) == 1
    ((number, name),) = await stream.got()
    assert name == "c"
    stream.reply((got[1][0], 2), (number, 3))
    assert [await position(task) for task in tasks[1:]] == [2, 3]
    await stage.pipe.close()


async def test_a_caller_without_room_gives_up_at_its_deadline_and_was_not_sent() -> None:
    stage = Stage(max_bytes=1_500)
    first = stage.append("a", size=1_000)
    stream = await stage.stream()
    ((number, _),) = await stream.got()
    error = await failure(stage.append("b", size=1_000, timeout=0.01))
    assert isinstance(error, DeadlineExceeded)
    assert "was not sent" in error.message
    stream.reply((number, 1))
    assert await position(first) == 1
    await stream.nothing_more()
    await stage.pipe.close()


async def test_an_append_larger_than_may_wait_goes_when_nothing_waits() -> None:
    stage = Stage(max_bytes=10)
    task = stage.append("a", size=1_000)
    stream = await stage.stream()
    ((number, _),) = await stream.got()
    stream.reply((number, 1))
    assert await position(task) == 1
    await stage.pipe.close()


async def test_a_cancelled_caller_is_not_sent_and_frees_its_room(stage: Stage) -> None:
    stage.flow = False
    first = stage.append("a")
    stream = await stage.stream()
    await stream.got()
    second, third = stage.append("b"), stage.append("c")
    await stream.nothing_more()
    second.cancel()
    await asyncio.wait([second])
    stream.flow.set()
    assert await stream.names() == ["c"]
    for task in (first, third):
        task.cancel()
    await asyncio.wait([first, third])
    assert stage.pipe._bytes == 0


# The end


async def test_closing_fails_what_waits_and_takes_no_more() -> None:
    stage = Stage(max_bytes=2_500)
    stage.flow = False
    sent = stage.append("sent", size=1_000)
    stream = await stage.stream()
    await stream.got()
    unsent = stage.append("unsent", size=1_000)
    without_room = stage.append("without room", size=1_000)
    await stream.nothing_more()
    await asyncio.wait_for(stage.pipe.close(), 5)
    assert stream.cancelled
    assert isinstance(await failure(sent), OutcomeUnknown)
    for task in (unsent, without_room, stage.append("late")):
        error = await failure(task)
        assert type(error) is Unavailable
        assert error.message == "the client is closed"


async def test_a_pipe_that_was_never_used_closes() -> None:
    await asyncio.wait_for(Stage().pipe.close(), 5)


async def test_a_refused_append_may_be_told_from_a_failed_one(stage: Stage) -> None:
    task = stage.append("a", safe=False)
    stream = await stage.stream()
    ((number, _),) = await stream.got()
    stream.reply((number, WrongExpectedState(())))
    assert isinstance(await failure(task), WrongExpectedState)
