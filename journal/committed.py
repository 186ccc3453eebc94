"""What a commit wrote, as the rows that a read of it would return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from journal.preparation import PreparedAppend
from journal.rows import EventRow, Names

WRITTEN = 0


class CommitObserver(Protocol):
    """Is told of every commit of this process, after it, on the event loop."""

    def is_wanted(self, log: str) -> bool:
        """Whether `committed` should get the rows."""
        ...

    def committed(self, log: str, log_id: int, head: int, rows: Sequence[EventRow] | None) -> None:
        """The log has a new head. ``rows`` are what was written; None: read it if you want it."""
        ...


def rows_of(batch: Sequence[PreparedAppend], row: Any, names: Names) -> list[EventRow] | None:
    """The rows that a batch wrote, by the result of the append function.

    None where a read would give something else than what was sent: the database keeps metadata in
    a form of its own.
    """
    verdicts, sequences, prevs = row["o_verdicts"], row["o_sequences"], row["o_prevs"]
    at = row["o_at"]
    position = row["o_head"]
    entity_ids, event_ids = names.entity_ids, names.event_ids
    rows: list[EventRow] = []
    add = rows.append
    member = 0
    for append in batch:
        members = append.members
        base = member
        member += len(members)
        if verdicts[base] != WRITTEN:
            continue
        for index, place, back, event_id, kind, payload, metadata in append.events:
            if metadata is not None:
                return None
            position += 1
            entity = members[index]
            add(
                EventRow(
                    position, sequences[base + index] + place, at,
                    position - back if back else prevs[base + index],
                    event_id, event_ids[kind], entity_ids[entity[0]], entity[2], entity[1],
                    payload, None,
                )
            )  # fmt: skip
    return rows
