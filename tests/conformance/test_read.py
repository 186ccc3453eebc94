"""Reads: the log, entities, snapshots, pages, times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from journal.model import EXISTS, LoadQuery, NewSnapshot, ReadQuery
from kernel.errors import EntityNotFound, InvalidArgument, LogExists, LogNotFound, OutOfRange
from kernel.ids import slice_of
from tests.conformance.subject import Subject, entity, event, events

SNAPSHOT = NewSnapshot("Cart", b'{"items":2}', "application/json")


async def fill(subject: Subject) -> None:
    """Ten events: positions 1 3 5 7 9 of cart/a, 2 4 6 8 10 of order/b; types One and Two."""
    sent = tuple(event(n % 2, kind="One" if n < 5 else "Two") for n in range(10))
    await subject.append(entity("a"), entity("b", kind="order"), events=sent)


async def drain(items: AsyncIterator[object]) -> list[object]:
    return [item async for item in items]


# The log


async def test_an_empty_log_reads_as_one_empty_batch(subject: Subject) -> None:
    (batch,) = await subject.batches()
    assert (list(batch.events), batch.next_position, batch.head) == ([], 1, 0)
    (batch,) = await subject.batches(backwards=True)
    assert (list(batch.events), batch.head) == ([], 0)


@pytest.mark.parametrize(
    ("query", "expected", "following"),
    [
        ({}, range(1, 11), 11),
        ({"from_position": 4}, range(4, 11), 11),
        ({"to_position": 4}, range(1, 5), 5),
        ({"from_position": 3, "to_position": 3}, [3], 4),
        ({"from_position": 8, "to_position": 99}, range(8, 11), 11),
        ({"from_position": 11}, [], 11),
        ({"from_position": 6, "to_position": 5}, [], 6),
        ({"max_events": 3}, [1, 2, 3], 4),
        ({"from_position": 9, "max_events": 10}, [9, 10], 11),
        ({"backwards": True}, range(10, 0, -1), 0),
        ({"backwards": True, "from_position": 3}, [3, 2, 1], 0),
        ({"backwards": True, "from_position": 11, "to_position": 9}, [10, 9], 8),
        ({"backwards": True, "from_position": 5, "to_position": 4}, [5, 4], 3),
        ({"backwards": True, "max_events": 2}, [10, 9], 8),
        ({"entity_types": ("cart",)}, [1, 3, 5, 7, 9], 11),
        ({"entity_types": ("cart", "order")}, range(1, 11), 11),
        ({"entity_types": ("cart",), "max_events": 2}, [1, 3], 4),
        ({"entity_types": ("cart",), "backwards": True, "max_events": 2}, [9, 7], 6),
        ({"entity_types": ("none",)}, [], 11),
        ({"event_types": ("Two",)}, range(6, 11), 11),
        ({"event_types": ("One", "none")}, range(1, 6), 11),
        ({"event_types": ("none",), "backwards": True}, [], 0),
        ({"event_types": ("Two",), "entity_types": ("order",)}, [6, 8, 10], 11),
        ({"event_types": ("Two",), "to_position": 8, "backwards": True}, [10, 9, 8], 7),
        ({"entity_types": ("order",), "from_position": 5, "to_position": 8}, [6, 8], 9),
    ],
)
async def test_a_read_gives_the_positions_of(
    subject: Subject, query: dict[str, object], expected: object, following: int
) -> None:
    await fill(subject)
    batches = await subject.batches(**query)
    assert [e.position for b in batches for e in b.events] == list(expected)  # type: ignore[call-overload]
    assert batches[-1].next_position == following
    assert {b.head for b in batches} == {10}


async def test_a_read_of_slices_gives_the_entities_that_lie_in_them(subject: Subject) -> None:
    names = [f"c-{n}" for n in range(40)]
    for name in names[:20]:
        await subject.put(name)
    await subject.append(
        *(entity(name) for name in names[20:]), events=tuple(event(n) for n in range(20))
    )
    of = {name: slice_of("cart", name) for name in names}
    ranges = ((0, 255), (700, 1023), (of["c-7"], of["c-7"]))
    wanted = [n for n in names if any(low <= of[n] <= high for low, high in ranges)]
    assert "c-7" in wanted
    assert 0 < len(wanted) < 40
    assert [e.entity_id for e in await subject.read(slices=ranges)] == wanted
    assert len(await subject.read(slices=((0, 1023),))) == 40


async def test_event_types_are_found_whatever_their_content_type_and_version(
    subject: Subject,
) -> None:
    await subject.append(
        entity("a"),
        events=(
            event(),
            event(content_type="application/json"),
            event(schema_version=3),
            event(kind="Other"),
        ),
    )
    assert await subject.positions(event_types=("Added",)) == [1, 2, 3]


async def test_a_long_read_comes_in_batches_that_join_without_a_seam(subject: Subject) -> None:
    for _ in range(3):
        await subject.append(entity("a"), entity("b"), events=events(500) + events(400, 1))
    for query, expected in (
        ({}, range(1, 2701)),
        ({"backwards": True}, range(2700, 0, -1)),
        ({"from_position": 600, "max_events": 1500}, range(600, 2100)),
    ):
        batches = await subject.batches(**query)
        assert [e.position for b in batches for e in b.events] == list(expected)
        assert len(batches) > 1
        step = -1 if query.get("backwards") else 1
        for batch in batches[:-1]:
            assert batch.next_position == batch.events[-1].position + step
    found = await subject.positions(entity_types=("cart",), event_types=("Added",))
    assert found == list(range(1, 2701))


async def test_large_events_come_in_smaller_batches_that_join_without_a_seam(
    subject: Subject,
) -> None:
    for kind in ("One", "Two"):
        order = (0, 0, 1) * 100
        sent = tuple(event(member, b"x" * 2_000, kind=kind) for member in order)
        await subject.append(entity("a"), entity("b", kind="order"), events=sent)
    carts = [n for n in range(1, 601) if n % 3]
    for query, expected in (
        ({}, list(range(1, 601))),
        ({"entity_types": ("cart",)}, carts),
        ({"entity_types": ("cart",), "event_types": ("Two",)}, [n for n in carts if n > 300]),
        ({"entity_types": ("cart",), "max_events": 250}, carts[:250]),
    ):
        assert await subject.positions(**query) == expected
        if "max_events" not in query:
            assert await subject.positions(**query, backwards=True) == expected[::-1]
    backwards = await subject.positions(entity_types=("cart",), backwards=True, max_events=250)
    assert backwards == carts[::-1][:250]
    assert await subject.sequences("a") == list(range(1, 401))


async def test_a_read_ends_at_the_head_it_began_with(subject: Subject) -> None:
    await subject.append(entity("a"), events=events(1000))
    await subject.append(entity("a"), events=events(1000))
    seen: list[int] = []
    async for batch in subject.journal.read(subject.log, ReadQuery()):
        if not seen:
            await subject.put("late", 5)
        seen += [e.position for e in batch.events]
        assert batch.head == 2000
    assert seen == list(range(1, 2001))


@pytest.mark.parametrize("position", [12, 13, 2**40, 2**63 - 1])
@pytest.mark.parametrize("backwards", [False, True])
async def test_a_read_beyond_the_head_is_out_of_range_and_says_first_and_head(
    subject: Subject, position: int, backwards: bool
) -> None:
    await fill(subject)
    with pytest.raises(OutOfRange) as caught:
        await subject.read(from_position=position, backwards=backwards)
    error = caught.value
    assert (error.position, error.first, error.head) == (position, 1, 10)


# Time


async def test_a_read_may_be_bounded_by_time(subject: Subject) -> None:
    times = [(await subject.put("a", 2)).recorded_at_us for _ in range(3)]
    assert len(set(times)) == 3
    one, two, three = times
    assert await subject.positions(from_time_us=two) == [3, 4, 5, 6]
    assert await subject.positions(from_time_us=two + 1) == [5, 6]
    assert await subject.positions(to_time_us=two) == [1, 2]
    assert await subject.positions(to_time_us=two + 1) == [1, 2, 3, 4]
    assert await subject.positions(from_time_us=one, to_time_us=three) == [1, 2, 3, 4]
    assert await subject.positions(from_time_us=two, to_time_us=three, backwards=True) == [4, 3]
    assert await subject.positions(from_time_us=three + 1) == []
    assert await subject.positions(to_time_us=one) == []
    assert await subject.positions(from_position=2, to_time_us=two) == [2]


async def test_the_position_at_a_time_is_the_first_one_recorded_then_or_later(
    subject: Subject,
) -> None:
    at = subject.journal.position_at
    assert await at(subject.log, 1) == (1, 0)
    one = (await subject.put("a", 2)).recorded_at_us
    two = (await subject.put("a", 3)).recorded_at_us
    for time, position in (
        (0, 1),
        (-5, 1),
        (one - 1, 1),
        (one, 1),
        (one + 1, 3),
        (two, 3),
        (two + 1, 6),
        (two + 10**15, 6),
    ):
        assert await at(subject.log, time) == (position, 5), time


# Entities


async def test_loading_gives_the_entity_and_its_events_in_order(subject: Subject) -> None:
    await fill(subject)
    found, snapshot, loaded = await subject.load("a")
    assert (found.entity_type, found.entity_id, found.state) == ("cart", "a", "active")
    assert (found.sequence, found.floor, found.event_count) == (5, 1, 5)
    assert (found.first_position, found.last_position) == (1, 9)
    assert found.snapshot_sequence == 0
    assert snapshot is None
    assert [(e.sequence, e.position) for e in loaded] == [(1, 1), (2, 3), (3, 5), (4, 7), (5, 9)]
    assert await subject.entity("a") == found


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"after_sequence": 3}, [4, 5]),
        ({"after_sequence": 4}, [5]),
        ({"after_sequence": 2, "to_sequence": 3}, [3]),
        ({"to_sequence": 1}, [1]),
        ({"after_sequence": 5}, []),
        ({"after_sequence": 99}, []),
        ({"to_sequence": 2}, [1, 2]),
        ({"to_sequence": 99}, [1, 2, 3, 4, 5]),
        ({"after_sequence": 1, "to_sequence": 3}, [2, 3]),
        ({"after_sequence": 3, "to_sequence": 2}, []),
    ],
)
async def test_loading_a_part_gives_the_sequence_numbers(
    subject: Subject, query: dict[str, int], expected: list[int]
) -> None:
    await fill(subject)
    assert await subject.sequences("a", **query) == expected


async def test_loading_begins_with_the_newest_snapshot(subject: Subject) -> None:
    await subject.put("a", 2, snapshot=NewSnapshot("Cart", b"old"))
    done = await subject.put("a", 2, snapshot=SNAPSHOT)
    await subject.put("a", 3)
    found, snapshot, loaded = await subject.load("a")
    assert found.snapshot_sequence == 4
    assert snapshot is not None
    assert (snapshot.sequence, snapshot.type, snapshot.payload) == (4, "Cart", SNAPSHOT.payload)
    assert snapshot.content_type == "application/json"
    assert snapshot.recorded_at_us == done.recorded_at_us
    assert [e.sequence for e in loaded] == [5, 6, 7]


async def test_a_snapshot_is_left_out_where_it_does_not_serve(subject: Subject) -> None:
    await subject.put("a", 2, snapshot=NewSnapshot("Cart", b"2"))
    await subject.put("a", 2, snapshot=NewSnapshot("Cart", b"4"))
    await subject.put("a", 1)
    for query, sequence, expected in (
        ({"ignore_snapshot": True}, 0, [1, 2, 3, 4, 5]),
        ({"after_sequence": 1}, 0, [2, 3, 4, 5]),
        ({"to_sequence": 1}, 0, [1]),
        ({"to_sequence": 3}, 2, [3]),
        ({"to_sequence": 4}, 4, []),
        ({}, 4, [5]),
    ):
        _, snapshot, loaded = await subject.load("a", **query)
        assert (snapshot.sequence if snapshot else 0) == sequence, query
        assert [e.sequence for e in loaded] == expected, query


async def test_snapshots_of_several_entities_of_one_append_are_those_entities_own(
    subject: Subject,
) -> None:
    await subject.put("b", 3)
    await subject.append(
        entity("a", snapshot=NewSnapshot("A", b"a")),
        entity("none"),
        entity("b", EXISTS, snapshot=NewSnapshot("B", b"b")),
        events=(event(0), event(2), event(1), event(0), event(2)),
    )
    for name, sequence, kind in (("a", 2, "A"), ("b", 5, "B")):
        _, snapshot, loaded = await subject.load(name)
        assert snapshot is not None
        assert (snapshot.sequence, snapshot.type, snapshot.payload) == (
            sequence,
            kind,
            kind.lower().encode(),
        )
        assert loaded == []
    assert (await subject.load("none"))[1] is None


async def test_a_long_entity_is_loaded_whole(subject: Subject) -> None:
    for _ in range(3):
        await subject.append(entity("a"), entity("b"), events=events(700) + events(10, 1))
    assert await subject.sequences("a") == list(range(1, 2101))
    assert await subject.sequences("a", after_sequence=650, to_sequence=1800) == list(
        range(651, 1801)
    )


async def test_what_never_had_an_event_is_not_found(subject: Subject) -> None:
    await subject.put("a", 1)
    for kind, name in (("cart", "b"), ("order", "a"), ("Cart", "a"), ("cart", "A")):
        for attempt in (subject.load(name, kind=kind), subject.entity(name, kind)):
            with pytest.raises(EntityNotFound) as caught:
                await attempt
            assert (caught.value.entity_type, caught.value.entity_id) == (kind, name)


# Lists


async def test_entities_are_listed_by_type_and_id_in_byte_order(subject: Subject) -> None:
    names = ["z", "é", "Z", "a", "a-1", "10", "9", "\U0001d11e", "\ufffd"]
    for kind in ("order", "cart"):
        await subject.append(
            *(entity(name, kind=kind) for name in names),
            events=tuple(event(n) for n in range(len(names))),
        )
    ordered = sorted(names, key=str.encode)
    expected = [f"{kind}/{name}" for kind in ("cart", "order") for name in ordered]
    for size in (1, 2, 7, 9, 18, 19, 1000):
        pages = [page async for page in subject.list_all(size=size)]
        assert [name for page in pages for name in page] == expected
        assert len(pages) == -(-len(expected) // size)
    pages = [page async for page in subject.list_all("order", size=4)]
    assert [name for page in pages for name in page] == expected[len(names) :]
    assert [page async for page in subject.list_all("none")] == [[]]


async def test_entities_are_listed_by_prefix(subject: Subject) -> None:
    top = "\U0010ffff"
    names = ["ab", "a", "abc", f"ab{top}", f"ab{top}{top}", "ac", "b", "aB", top, "퟿x", "\ue000x"]
    await subject.append(*map(entity, names), events=tuple(event(n) for n in range(len(names))))
    for prefix in ("ab", "a", "b", top, f"ab{top}", "퟿", "none", ""):
        expected = [f"cart/{name}" for name in sorted(names) if name.startswith(prefix)]
        for kind in ("", "cart"):
            for size in (2, 100):
                pages = [page async for page in subject.list_all(kind, prefix, size=size)]
                assert [name for page in pages for name in page] == expected, prefix


async def test_a_page_token_serves_its_own_list_only(subject: Subject) -> None:
    for kind in ("cart", "order"):
        for name in ("a", "b", "c"):
            await subject.put(name, kind=kind)
    ask = subject.journal.list_entities
    token = (await ask(subject.log, "cart", page_size=1)).next_page_token
    for arguments in (("order",), ("cart", "b")):
        with pytest.raises(InvalidArgument) as caught:
            await ask(subject.log, *arguments, page_token=token)
        assert caught.value.field == "page_token"


# Logs


async def test_a_log_describes_itself(subject: Subject) -> None:
    empty = await subject.journal.get_log(subject.log)
    assert (empty.log, empty.head, empty.first, empty.entities) == (subject.log, 0, 1, 0)
    assert (empty.bytes_total, empty.recorded_at_us) == (0, 0)
    await subject.put("a", 3)
    done = await subject.append(
        entity("a"),
        entity("b"),
        events=(event(0, b"12345"), event(1, b"", metadata_json='{"a":1}')),
    )
    full = await subject.journal.get_log(subject.log)
    assert (full.head, full.first, full.entities) == (5, 1, 2)
    assert (full.bytes_total, full.recorded_at_us) == (3 + 5 + 7, done.recorded_at_us)
    assert full.chunk_size == 1 << 22


async def test_logs_are_listed_by_name(subject: Subject) -> None:
    made = [f"{subject.log}_{letter}" for letter in "ba"]
    for name in made:
        await subject.journal.create_log(name)
    names = [info.log for info in await subject.journal.list_logs()]
    assert names == sorted(names)
    assert {"default", "_system", subject.log, *made} <= set(names)


async def test_a_log_is_made_with_its_chunk_size(subject: Subject) -> None:
    name = f"{subject.log}_small"
    info = await subject.journal.create_log(name, 16)
    assert (info.log, info.chunk_size, info.head, info.first) == (name, 16, 0, 1)
    small = Subject(subject.kind, subject.journal, name, subject.address)
    for count in (10, 10, 130):  # over the edges of more chunks than are made ahead
        await small.put("a", count)
    assert await small.positions() == list(range(1, 151))
    assert await small.sequences("a") == list(range(1, 151))
    assert (await small.verify()).ok


async def test_a_log_is_made_once(subject: Subject) -> None:
    for name in (subject.log, "default", "_system"):
        with pytest.raises(LogExists) as caught:
            await subject.journal.create_log(name)
        assert caught.value.log == name


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "a-b", "a b", "a" * 41, "_x", "é", "a\n", 'a"b', "a.b"]
)
async def test_a_log_of_a_bad_name_is_refused(subject: Subject, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await subject.journal.create_log(name)
    assert caught.value.field == "log"
    if name:
        with pytest.raises(InvalidArgument):
            await subject.journal.get_log(name)


@pytest.mark.parametrize("size", [-1, 1, 15, (1 << 30) + 1])
async def test_a_chunk_size_out_of_range_is_refused(subject: Subject, size: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await subject.journal.create_log(f"{subject.log}_x", size)
    assert caught.value.field == "chunk_size"
    assert f"{subject.log}_x" not in [i.log for i in await subject.journal.list_logs()]


async def test_every_call_says_that_a_log_is_unknown(subject: Subject) -> None:
    journal = subject.journal
    for attempt in (
        drain(journal.read("nosuch", ReadQuery())),
        drain(journal.load("nosuch", LoadQuery("cart", "a"))),
        drain(journal.verify("nosuch")),
        journal.get_entity("nosuch", "cart", "a"),
        journal.list_entities("nosuch"),
        journal.get_log("nosuch"),
        journal.position_at("nosuch", 0),
    ):
        with pytest.raises(LogNotFound) as caught:
            await attempt
        assert caught.value.log == "nosuch"


async def test_the_empty_name_means_the_default_log(subject: Subject) -> None:
    assert (await subject.journal.get_log("")).log == "default"


# Verify


async def test_a_range_may_be_verified(subject: Subject) -> None:
    await fill(subject)
    report = await subject.verify(3, 7)
    assert (report.ok, report.from_position, report.to_position, report.events) == (True, 3, 7, 5)
    assert (await subject.verify(4)).events == 7
    assert (await subject.verify(0, 4)).events == 4
    assert (await subject.verify(1, 10)).entities == 2
    assert (await subject.verify(2, 10)).entities == 0


async def test_an_empty_log_is_found_in_order(subject: Subject) -> None:
    report = await subject.verify()
    assert (report.ok, report.events, report.entities) == (True, 0, 0)


async def test_a_range_that_is_not_there_cannot_be_verified(subject: Subject) -> None:
    await fill(subject)
    for bounds in ((11, 0), (0, 11), (3, 99)):
        with pytest.raises(OutOfRange) as caught:
            await subject.verify(*bounds)
        assert (caught.value.first, caught.value.head) == (1, 10)
    for bounds, name in (
        ((-1, 0), "from_position"),
        ((0, -1), "to_position"),
        ((5, 4), "to_position"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await subject.verify(*bounds)
        assert refused.value.field == name


async def test_many_readers_and_writers_at_once_see_a_prefix_without_a_hole(
    subject: Subject,
) -> None:
    await subject.put("a", 1)

    async def write(name: str) -> None:
        for _ in range(10):
            await subject.put(name, 3)

    async def look() -> None:
        for _ in range(5):
            found = await subject.positions()
            assert found == list(range(1, len(found) + 1))

    await asyncio.gather(*(write(f"w-{n}") for n in range(4)), *(look() for _ in range(4)))
    assert await subject.head() == 121
