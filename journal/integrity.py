"""Proof of a log: reads it and checks invariants 1–3 (docs/explanation/storage.md).

1. Positions are first..head without a hole: the batch chain, and every position of a window
counted. 2. Each entity's sequence numbers have no hole: each event follows the event its
   ``prev_position`` names, and each head's figures equal those of its events.
3. Times never run backwards along positions.

Windows are short statements; nothing is held between them. Appends may go on: what is proved ends
at the head the proof began with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from journal.model import VerifyProgress, VerifyReport
from journal.queries import check_verify
from kernel import sql
from kernel.database import Database

WINDOW = 20_000
ENTITIES_A_PART = 500_000
MAX_FINDINGS = 100


class Findings:
    """Collects what is wrong, the first hundred in words."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.total = 0

    def add(self, words: str, count: int = 1) -> None:
        """Adds a finding that stands for ``count`` things."""
        self.total += count
        if len(self.words) < MAX_FINDINGS:
            self.words.append(words)


async def verify(
    database: Database,
    log_id: int,
    first: int,
    head: int,
    from_position: int,
    to_position: int,
    timeout: float | None,
) -> AsyncIterator[VerifyProgress]:
    """Yields progress; the last item has the report."""
    low, high = check_verify(first, head, from_position, to_position)
    findings = Findings()
    events = holes = 0

    async def ask(name: str, *args: object) -> list[Any]:
        return await database.fetch(
            sql.load("journal", name, database.schema), *args, timeout=timeout
        )

    start = low
    while start <= high:
        end = min(start + WINDOW - 1, high)
        for row in await ask("verify_batches", log_id, start - 1, end):
            if row["first_position"] != row["previous"] + 1:
                findings.add(
                    f"batch ending at {row['last_position']} begins at {row['first_position']}, "
                    f"the one before ends at {row['previous']}"
                )
            if row["backwards"]:
                findings.add(f"batch ending at {row['last_position']} is older than the one before")
        facts = (await ask("verify_window", log_id, start, end, first))[0]
        events += facts["events"]
        missing = end - start + 1 - facts["events"]
        if missing:
            holes += missing
            for gap in await ask("verify_holes", log_id, start, end):
                findings.add(
                    f"no event at positions {gap['lo']}..{gap['hi']}", gap["hi"] - gap["lo"] + 1
                )
        for position in facts["backwards"] or ():
            findings.add(f"the event at {position} is older than the one before it")
        for position in facts["broken"] or ():
            findings.add(f"the event at {position} does not follow its entity's event before")
        start = end + 1
        yield VerifyProgress(end, head)

    entities = 0
    if low == first and high == head:
        row = await ask("verify_entity_count", log_id, high)
        entities = row[0][0]
        parts = max(1, -(-entities // ENTITIES_A_PART))
        for part in range(parts):
            for wrong in await ask("verify_entities", log_id, low, high, parts, part):
                findings.add(
                    f"entity {wrong['entity_type']}/{wrong['entity_id']}: its head says "
                    f"{wrong['event_count']} events up to {wrong['last_seq']}, the log holds "
                    f"{wrong['events']} from {wrong['lo']} to {wrong['hi']}"
                )
    yield VerifyProgress(
        high,
        head,
        VerifyReport(
            findings.total == 0,
            low,
            high,
            events,
            0,
            entities,
            holes,
            tuple(findings.words),
            findings.total,
        ),
    )
