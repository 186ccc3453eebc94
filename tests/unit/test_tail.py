"""The tail keeps positions without a gap, whatever comes first: own commits, reads, or both."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from journal.rows import EventRow
from journal.tail import Tail
from kernel.errors import Unavailable

AT = datetime(2026, 1, 1, tzinfo=UTC)


def rows(first: int, last: int, payload: bytes = b"x") -> list[EventRow]:
    return [
        EventRow(p, 1, AT, None, "id", 1, 1, 0, f"e{p}", payload, None)
        for p in range(first, last + 1)
    ]


class Database:
    """Answers reads when told to, with as many rows as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.answers: asyncio.Queue[list[EventRow] | Exception] = asyncio.Queue()

    async def fetch(self, first: int, last: int) -> Sequence[EventRow]:
        self.asked.append((first, last))
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


def positions(tail: Tail, since: int) -> list[int]:
    return [row[0] for segment in tail.since(since) for row in segment.rows]


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
async def tail(database: Database) -> Tail:
    return Tail("log", 10, database.fetch, 1_000_000)


async def test_own_commits_in_order_need_no_read(tail: Tail, database: Database) -> None:
    tail.offer(11, rows(11, 12))
    tail.offer(13, rows(13, 13))
    assert (tail.first, tail.head, positions(tail, 11)) == (11, 13, [11, 12, 13])
    assert database.asked == []


async def test_an_own_commit_after_a_foreign_one_is_read_with_it(
    tail: Tail, database: Database
) -> None:
    tail.offer(13, rows(13, 14))
    await settled()
    assert database.asked == [(11, 14)]
    assert tail.head == 10
    database.answers.put_nowait(rows(11, 14))
    await settled()
    assert positions(tail, 11) == [11, 12, 13, 14]


async def test_own_commits_that_come_while_the_same_is_read_are_there_once(
    tail: Tail, database: Database
) -> None:
    tail.reaches(12)  # a poll saw them before their own process said so
    await settled()
    tail.offer(11, rows(11, 12))
    tail.offer(13, rows(13, 13))
    database.answers.put_nowait(rows(11, 12))
    await settled()
    assert positions(tail, 11) == [11, 12, 13]
    assert [(s.first, s.last) for s in tail.since(1)] == [(11, 12), (13, 13)]


async def test_of_a_read_that_own_commits_overtook_in_part_the_rest_is_kept(
    tail: Tail, database: Database
) -> None:
    tail.reaches(14)
    await settled()
    tail.offer(11, rows(11, 12))
    database.answers.put_nowait(rows(11, 14))
    await settled()
    assert positions(tail, 11) == [11, 12, 13, 14]


async def test_a_read_that_stops_at_its_bound_of_bytes_goes_on(
    tail: Tail, database: Database
) -> None:
    tail.reaches(15)
    database.answers.put_nowait(rows(11, 12))
    database.answers.put_nowait(rows(13, 15))
    await settled()
    assert database.asked == [(11, 15), (13, 15)]
    assert positions(tail, 11) == [11, 12, 13, 14, 15]


async def test_positions_that_were_removed_are_passed(tail: Tail, database: Database) -> None:
    tail.reaches(15)
    database.answers.put_nowait([*rows(11, 11), *rows(13, 13)])
    database.answers.put_nowait([])
    await settled()
    assert (tail.head, positions(tail, 11)) == (15, [11, 13])


async def test_a_read_that_failed_is_tried_again_at_the_next_word_of_a_head(
    tail: Tail, database: Database
) -> None:
    tail.reaches(12)
    database.answers.put_nowait(Unavailable())
    await settled()
    assert tail.head == 10
    tail.reaches(12)
    database.answers.put_nowait(rows(11, 12))
    await settled()
    assert positions(tail, 11) == [11, 12]


async def test_a_head_that_is_known_is_not_read_again(tail: Tail, database: Database) -> None:
    tail.offer(11, rows(11, 12))
    tail.reaches(9)
    tail.reaches(12)
    await settled()
    assert database.asked == []


async def test_the_oldest_leave_when_it_is_full_and_an_event_larger_than_it_leaves_nothing(
    database: Database,
) -> None:
    tail = Tail("log", 0, database.fetch, 10_000)
    for position in range(1, 30):
        tail.offer(position, rows(position, position, b"x" * 500))
        assert tail.size <= 10_000
    assert tail.first > 20
    assert positions(tail, tail.first) == list(range(tail.first, 30))
    tail.offer(30, rows(30, 30, b"x" * 20_000))
    assert (tail.first, tail.head, tail.size) == (31, 30, 0)


async def test_since_begins_with_the_segment_that_holds_the_position(tail: Tail) -> None:
    for first, last in ((11, 13), (14, 14), (15, 18)):
        tail.offer(first, rows(first, last))
    for position, found in ((11, 11), (12, 11), (14, 14), (16, 15), (18, 15)):
        assert next(tail.since(position)).first == found
    assert list(tail.since(19)) == []


async def test_readers_wake_at_a_change_and_are_not_woken_for_each_of_many(tail: Tail) -> None:
    woken = 0

    async def read() -> None:
        nonlocal woken
        while True:
            await tail.waiter()
            woken += 1

    readers = [asyncio.create_task(read()) for _ in range(50)]
    await settled()
    loop = asyncio.get_running_loop()
    began = loop.time()
    numbers = itertools.count(11)
    while loop.time() - began < 0.1:
        position = next(numbers)
        tail.offer(position, rows(position, position))
        await asyncio.sleep(0)
    assert tail.head > 100, "many commits"
    most = (loop.time() - began) / 0.005 + 2
    assert 50 <= woken <= 50 * most, "a wake-up of 50 readers every 5 ms at most"
    for reader in readers:
        reader.cancel()
    tail.close()
