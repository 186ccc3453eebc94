"""`verify` finds what it is there to find: a log that was tampered with in the database."""

from __future__ import annotations

import pytest

from journal.model import Append, EntityAppend, NewEvent, VerifyReport
from journal.store import StoreJournal

HEAD = 12


async def report_of(store: StoreJournal, low: int = 0, high: int = 0) -> VerifyReport:
    report = None
    async for progress in store.verify("default", low, high):
        report = progress.report or report
    assert report is not None
    return report


@pytest.fixture
async def filled(store: StoreJournal) -> StoreJournal:
    """Three entities with four events each, one commit after the other."""
    for sequence in range(4):
        for name in "abc":
            entity = EntityAppend("thing", name, sequence)
            await store.append("default", Append((entity,), (NewEvent("E", b"x"),)))
    assert (await report_of(store)).ok
    return store


@pytest.mark.parametrize(
    ("tampering", "words", "holes"),
    [
        (
            "DELETE FROM everstate.events WHERE log_id = 1 AND position = 7",
            "no event at positions 7..7",
            1,
        ),
        (
            "DELETE FROM everstate.events WHERE log_id = 1 AND position BETWEEN 11 AND 12",
            "no event at positions 11..12",
            2,
        ),
        (
            "UPDATE everstate.events SET recorded_at = '2001-01-01' WHERE position = 5",
            "the event at 5 is older than the one before it",
            0,
        ),
        (
            "UPDATE everstate.events SET prev_position = 2 WHERE log_id = 1 AND position = 7",
            "the event at 7 does not follow its entity's event before",
            0,
        ),
        (
            "UPDATE everstate.events SET seq = 9 WHERE log_id = 1 AND position = 10",
            "the event at 10 does not follow its entity's event before",
            0,
        ),
        (
            "UPDATE everstate.entities SET last_seq = 5, event_count = 5 WHERE entity_id = 'b'",
            "entity thing/b: its head says 5 events up to 5, the log holds 4 from 1 to 4",
            0,
        ),
        (
            "DELETE FROM everstate.batches WHERE log_id = 1 AND last_position = 6",
            "batch ending at 7 begins at 7, the one before ends at 5",
            0,
        ),
    ],
)
async def test_verify_finds(filled: StoreJournal, tampering: str, words: str, holes: int) -> None:
    await filled.database.fetch(tampering)
    report = await report_of(filled)
    assert not report.ok
    assert report.holes == holes
    assert any(words in finding for finding in report.findings), report.findings


async def test_a_range_is_judged_alone(filled: StoreJournal) -> None:
    await filled.database.fetch("DELETE FROM everstate.events WHERE log_id = 1 AND position = 7")
    assert (await report_of(filled, 1, 6)).ok
    assert (await report_of(filled, 8, HEAD)).findings == (
        "the event at 10 does not follow its entity's event before",
    )
    assert (await report_of(filled, 7, 7)).holes == 1
