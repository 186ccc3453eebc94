"""Subscriptions: invariant 4, every matching event once, in order, from any position on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from journal.model import FROM_NOW, SubscribeQuery, SubscriptionBatch
from kernel.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LogNotFound,
    OutOfRange,
    WrongExpectedState,
)
from kernel.ids import slice_of
from sidecar_api.client.messages import to_event
from tests.conformance.subject import Subject, entity, event, events


@dataclass
class Reader:
    """A subscription that is being read: what came, event by event."""

    batches: AsyncIterator[SubscriptionBatch]
    seen: list[Any] = field(default_factory=list)
    last: SubscriptionBatch | None = None
    times_caught_up: int = 0

    async def next(self) -> SubscriptionBatch:
        async with asyncio.timeout(20):
            batch = await anext(self.batches)
        positions = [e.position for e in batch.events]
        assert positions == sorted(set(positions))
        assert all(p < batch.next_position for p in positions)
        if self.last is not None:
            assert batch.next_position >= self.last.next_position
            assert not positions or positions[0] >= self.last.next_position
        self.seen += batch.events
        self.last = batch
        self.times_caught_up += batch.caught_up
        return batch

    async def until_position(self, position: int) -> list[int]:
        """Reads until all up to a position is covered; the positions of all that came."""
        while self.last is None or self.last.next_position <= position:
            await self.next()
        return [e.position for e in self.seen]

    async def until_count(self, count: int) -> list[int]:
        while len(self.seen) < count:
            await self.next()
        return [e.position for e in self.seen]


@contextlib.asynccontextmanager
async def subscribed(subject: Subject, **query: Any) -> AsyncIterator[Reader]:
    batches = subject.journal.subscribe(subject.log, SubscribeQuery(**query))
    try:
        yield Reader(batches)
    finally:
        await batches.aclose()  # type: ignore[attr-defined]


async def test_an_empty_log_catches_up_at_once_and_then_delivers(subject: Subject) -> None:
    async with subscribed(subject) as reader:
        batch = await reader.next()
        assert (list(batch.events), batch.next_position, batch.head) == ([], 1, 0)
        assert batch.caught_up
        await subject.append(entity("a"), events=events(3))
        assert await reader.until_count(3) == [1, 2, 3]
        assert reader.times_caught_up == 1


async def test_what_was_there_and_what_comes_without_a_seam(subject: Subject) -> None:
    await subject.append(entity("a"), events=events(5))
    async with subscribed(subject) as reader:
        assert await reader.until_position(5) == [1, 2, 3, 4, 5]
        for n in range(20):
            await subject.append(entity(f"b{n % 3}"), events=events(2))
        assert await reader.until_count(45) == list(range(1, 46))
        assert reader.times_caught_up == 1


async def test_live_events_are_what_a_read_returns(subject: Subject) -> None:
    async with subscribed(subject) as reader:
        await reader.next()
        for n in range(3):
            await subject.append(entity("a"), entity("b", kind="order"), events=(
                event(0, b"%d" % n, metadata_json='{"b": 1, "a": [1.50, null]}', subject="s"),
                event(1, b"%d" % n, content_type="application/json", schema_version=2),
                event(0, b"", correlation_id="c", client_time_us=5),
            ))  # fmt: skip
            await subject.append(entity("a"), events=events(2))
        await reader.until_count(15)

    def plain(e: Any) -> Any:
        return to_event(e) if subject.kind == "client" else e

    assert [plain(e) for e in reader.seen] == await subject.read()


async def test_refused_appends_and_repeated_ones_leave_no_trace_among_live_events(
    subject: Subject,
) -> None:
    await subject.append(entity("a"), events=events(1))
    async with subscribed(subject) as reader:
        await reader.until_position(1)
        again = (event(0, b"again"), event(0, b"again"))
        await subject.append(entity("r", 0), events=again)
        tries = [
            subject.append(entity("a", 7), events=events(2))  # it is not at 7
            if n % 3 == 0
            else subject.append(entity("r", 0), events=again)  # written before
            if n % 3 == 1
            else subject.append(entity(f"n{n}", 0), events=events(2))
            for n in range(30)
        ]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(result, WrongExpectedState) for result in results) == 10
        assert await reader.until_count(23) == list(range(1, 24))
    seen = [to_event(e) if subject.kind == "client" else e for e in reader.seen]
    assert seen == await subject.read()


async def test_a_subscription_begins_at_any_position_up_to_head_plus_one(subject: Subject) -> None:
    await subject.append(entity("a"), events=events(10))
    for start in (1, 4, 10, 11):
        async with subscribed(subject, from_position=start) as reader:
            assert await reader.until_position(10) == list(range(start, 11))
    async with subscribed(subject, from_position=FROM_NOW) as reader:
        batch = await reader.next()
        assert (list(batch.events), batch.next_position) == ([], 11)
        await subject.append(entity("a"), events=events(1))
        assert await reader.until_count(1) == [11]


async def test_a_subscription_goes_on_from_any_next_position(subject: Subject) -> None:
    await subject.append(entity("a"), events=events(7))
    async with subscribed(subject) as reader:
        await reader.until_position(7)
        await subject.append(entity("a"), events=events(4))
        await reader.until_position(9)
    assert reader.last is not None
    first = [e.position for e in reader.seen]
    await subject.append(entity("a"), events=events(3))
    async with subscribed(subject, from_position=reader.last.next_position) as rest:
        await rest.until_position(14)
        assert first + [e.position for e in rest.seen] == list(range(1, 15))


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"entity_types": ("order",)}, lambda n: n % 2 == 1),
        ({"event_types": ("Two",)}, lambda n: n % 4 == 0),
        ({"event_types": ("Two", "One"), "entity_types": ("cart",)}, lambda n: n % 2 == 0),
        ({"slices": ((slice_of("cart", "a"),) * 2,)}, lambda n: n % 2 == 0),
        ({"event_types": ("NotYet",)}, lambda n: False),
    ],
    ids=["entity type", "event type", "both", "slice", "a type that nobody has used"],
)
async def test_filters_hold_in_catch_up_and_live(
    subject: Subject, query: dict[str, Any], wanted: Any
) -> None:
    async def some(numbers: range) -> None:
        for n in numbers:
            name = entity("b", kind="order") if n % 2 else entity("a")
            kind = "Two" if n % 4 == 0 else "One"
            await subject.append(name, events=(event(0, kind=kind),))

    await some(range(8))
    async with subscribed(subject, **query) as reader:
        await reader.until_position(8)
        await some(range(8, 24))
        last = [n + 1 for n in range(24) if wanted(n)]
        if last:
            assert await reader.until_count(len(last)) == last
        else:
            assert reader.seen == []


async def test_a_filter_may_name_types_that_appear_later(subject: Subject) -> None:
    kind = f"Later{subject.log}"
    async with subscribed(subject, event_types=(kind,), entity_types=(kind,)) as reader:
        await reader.next()
        await subject.append(entity("a"), events=events(2))
        await subject.append(entity("x", kind=kind), events=(event(0, kind=kind),))
        assert await reader.until_count(1) == [3]


async def test_events_of_a_type_with_another_content_type_match_too(subject: Subject) -> None:
    async with subscribed(subject, event_types=("Two",)) as reader:
        await reader.next()
        for content_type in ("text/plain", "application/json"):
            await subject.append(
                entity("a"), events=(event(0, b"1", kind="Two", content_type=content_type),)
            )
        assert await reader.until_count(2) == [1, 2]


async def test_from_a_time_on(subject: Subject) -> None:
    await subject.append(entity("a"), events=events(2))
    later = (await subject.append(entity("b"), events=events(2))).recorded_at_us
    first = (await subject.read())[0].recorded_at_us
    assert first < later
    async with subscribed(subject, from_time_us=later) as reader:
        assert await reader.until_count(2) == [3, 4]


async def test_several_subscribers_get_the_same(subject: Subject) -> None:
    async with contextlib.AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(subscribed(subject, from_position=start))
            for start in (0, 1, FROM_NOW)
        ]
        for reader in readers:
            await reader.next()
        for n in range(15):
            await subject.append(entity(f"{n}"), events=events(1 + n % 4))
        head = (await subject.journal.get_log(subject.log)).head
        for reader in readers:
            assert await reader.until_count(head) == list(range(1, head + 1))


async def test_large_events_come_through(subject: Subject) -> None:
    payload = b"x" * 900_000
    async with subscribed(subject) as reader:
        await reader.next()
        for _ in range(5):
            await subject.append(entity("a"), events=(event(0, payload), event(0, b"y")))
        assert await reader.until_count(10) == list(range(1, 11))
        assert [len(e.payload) for e in reader.seen] == [900_000, 1] * 5


async def test_a_thousand_events_of_one_append_come_in_order(subject: Subject) -> None:
    async with subscribed(subject) as reader:
        await reader.next()
        for _ in range(3):
            await subject.append(entity("a"), events=events(1_000))
        assert await reader.until_count(3_000) == list(range(1, 3_001))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"entity_types": ("",)}, "entity_types[0]"),
        ({"event_types": ("a\nb",)}, "event_types[0]"),
        ({"slices": ((5, 4),)}, "slices[0]"),
        ({"slices": ((0, 1024),)}, "slices[0]"),
        ({"from_time_us": -1}, "from_time_us"),
        ({"from_position": -2}, "from_position"),
    ],
)
async def test_bad_subscriptions_are_refused(
    subject: Subject, query: dict[str, Any], field: str
) -> None:
    async with subscribed(subject, **query) as reader:
        with pytest.raises(InvalidArgument) as refused:
            await reader.next()
    assert refused.value.field == field


async def test_a_position_beyond_head_plus_one_is_out_of_range(subject: Subject) -> None:
    await subject.append(entity("a"), events=events(3))
    async with subscribed(subject, from_position=5) as reader:
        with pytest.raises(OutOfRange) as refused:
            await reader.next()
    assert (refused.value.position, refused.value.head) == (5, 3)


async def test_an_unknown_log_is_not_found(subject: Subject) -> None:
    with pytest.raises(LogNotFound):
        await anext(aiter(subject.journal.subscribe("nowhere", SubscribeQuery())))


async def test_a_deadline_ends_a_subscription(subject: Subject) -> None:
    batches = subject.journal.subscribe(
        subject.log, SubscribeQuery(), timeout=timedelta(milliseconds=150)
    )
    with pytest.raises(DeadlineExceeded):
        async for _ in batches:
            pass
