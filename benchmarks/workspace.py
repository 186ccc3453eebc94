"""What the scenarios of a run share: the processes, and what was prepared in the database."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

from benchmarks.stack import Stack
from kernel import clock, sql
from kernel.ids import new_id, slice_of

PAYLOAD = b'{"filler":"' + b"x" * 243 + b'"}'
assert len(PAYLOAD) == 256

LOG = "default"
ENTITY_TYPE, EVENT_TYPE, CONTENT_TYPE = "bench", "Benched", "application/json"


@dataclass(slots=True)
class Workspace:
    """One run's."""

    stack: Stack
    mean_batch: float = 0.0
    """Appends a commit in the newest round of append_stream/256."""
    fanout: int = 0
    """Events of the newest round of fanout_node/50."""
    read_log: str = ""
    project_log: str = ""
    peer_events: int = 0
    """Events that pyeventsourcing has for its projection."""
    carts_log: int = 0
    """The number of the log of benchmarks/operations.py."""
    compaction: Any = None
    """What its newest run found: `benchmarks.operations.Compaction`."""
    entities: list[str] = field(default_factory=list)
    raw: RawAppender | None = None
    statements: dict[str, Any] = field(default_factory=dict)
    _run: str = field(default_factory=lambda: os.urandom(4).hex())
    _serial: Any = field(default_factory=itertools.count)

    def new_entity(self) -> str:
        """The id of an entity that nobody has appended to."""
        return f"{self._run}-{next(self._serial)}"


class RawAppender:
    """``append_batch_v3`` called directly on one connection: what the node's appends end in."""

    def __init__(self, connection: Any, ids: tuple[int, int], log_id: int) -> None:
        self._connection = connection
        self._entity_type, self._event_type = ids
        self._log_id = log_id
        self._statement: Any = None

    @classmethod
    async def open(cls, space: Workspace, log: str) -> RawAppender:
        """For a log whose types (ours) have been appended before."""
        connection = await space.stack.connection()
        schema = "everstate"
        log_id = (await connection.fetch(sql.load("journal", "log_id", schema), log))[0][0]
        entity_type = await connection.fetchval(
            "SELECT type_id FROM everstate.entity_types WHERE name = $1", ENTITY_TYPE
        )
        event_type = await connection.fetchval(
            "SELECT type_id FROM everstate.event_types WHERE name = $1 AND content_type = $2",
            EVENT_TYPE,
            CONTENT_TYPE,
        )
        self = cls(connection, (entity_type, event_type), log_id)
        self._statement = await connection.prepare(sql.load("journal", "append_batch", schema))
        return self

    def arguments(self, space: Workspace, appends: int) -> list[object]:
        """A batch of one-event appends to new entities."""
        numbers = list(range(1, appends + 1))
        ones, zeros = [1] * appends, [0] * appends
        names = [space.new_entity() for _ in numbers]
        return [
            self._log_id, clock.now(), 60.0, "bench",
            numbers, [self._entity_type] * appends, names,
            [slice_of(ENTITY_TYPE, name) for name in names], zeros, zeros, ones,
            [len(PAYLOAD)] * appends,
            numbers, ones, zeros, [new_id() for _ in numbers], [self._event_type] * appends,
            [PAYLOAD] * appends, [None] * appends,
            *[None] * 8,
        ]  # fmt: skip

    async def call(self, arguments: list[object]) -> Any:
        """Commits a batch; returns the function's row."""
        return await self._statement.fetchrow(*arguments)
