"""The reference model by itself; all else it promises is in tests/conformance."""

from __future__ import annotations

from dataclasses import replace

import pytest

from journal.memory import MemoryJournal
from journal.model import (
    ANY,
    Append,
    EntityAppend,
    Event,
    Limits,
    NewEvent,
    ReadQuery,
    VerifyReport,
)
from kernel.errors import InvalidArgument, TooLarge


def one(name: str) -> Append:
    return Append((EntityAppend("cart", name, ANY),), (NewEvent("Added", b"x"),))


async def report(journal: MemoryJournal) -> VerifyReport:
    found = [progress.report async for progress in journal.verify("default")][-1]
    assert found is not None
    return found


async def test_a_clock_that_runs_backwards_makes_recorded_times_stand_still() -> None:
    times = iter([5_000, 9_000, 7_000, 1_000, 9_500])
    journal = MemoryJournal(now_us=lambda: next(times))
    done = [await journal.append("", one("a")) for _ in range(5)]
    assert [d.recorded_at_us for d in done] == [5_000, 9_000, 9_000, 9_000, 9_500]
    assert await journal.position_at("", 9_000) == (2, 5)
    assert (await report(journal)).ok
    # By time, the events that share one are one group.
    batches = [b async for b in journal.read("", ReadQuery(from_time_us=9_000, to_time_us=9_500))]
    assert [e.position for b in batches for e in b.events] == [2, 3, 4]


async def test_limits_are_those_it_was_given() -> None:
    journal = MemoryJournal(Limits(event_bytes=0))
    with pytest.raises(TooLarge):
        await journal.append("", one("a"))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"position": 7}, "no event at position 2"),
        ({"recorded_at_us": 0}, "the event at 2 is older than the one before it"),
        ({"sequence": 3}, "the event at 2 does not follow its entity's event before"),
        ({"previous_position": 0}, "the event at 2 does not follow its entity's event before"),
    ],
)
async def test_a_broken_log_is_found_out(change: dict[str, int], finding: str) -> None:
    journal = MemoryJournal()
    for _ in range(2):
        await journal.append("", one("a"))
    events: list[Event] = journal._log("").events
    events[1] = replace(events[1], **change)  # type: ignore[arg-type]
    broken = await report(journal)
    assert not broken.ok
    assert broken.findings == (finding,)


async def test_the_log_of_the_audit_is_not_written_by_clients() -> None:
    journal = MemoryJournal()
    with pytest.raises(InvalidArgument, match="log: _system is written by Everstate itself"):
        await journal.append("_system", one("a"))
    assert (await journal.get_log("_system")).head == 0
