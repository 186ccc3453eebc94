"""The port of the journal: what every implementation promises.

Three implementations pass the same conformance suite: `journal.store.StoreJournal` (PostgreSQL),
`journal.memory.MemoryJournal` (the reference model) and `sidecar_api.client.Client` (gRPC to a
node).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Protocol

from journal.model import (
    Append,
    Appended,
    Entity,
    EntityPage,
    EntityPart,
    EventBatch,
    LoadQuery,
    LogInfo,
    ReadQuery,
    SubscribeQuery,
    SubscriptionBatch,
    VerifyProgress,
)


class Journal(Protocol):
    """Logs of events of entities.

    Every method takes a ``timeout``; when it passes, `DeadlineExceeded` is raised (an append may
    then have been written: retry it with the same ids). `LogNotFound` is raised for an unknown log,
    `InvalidArgument` and `TooLarge` for bad input (nothing is left behind), `Unavailable` while the
    database is away.
    """

    async def append(
        self, log: str, append: Append, *, timeout: timedelta | None = None
    ) -> Appended:
        """Appends atomically; on return the events are on disk, as one gapless run of positions.

        Raises:
            WrongExpectedState: an entity is in another state; nothing was written.
            EntityDeleted: an entity takes no more events; nothing was written.
            AppendIdReused: the append id stood for another content; nothing was written.
            OutcomeUnknown: the connection broke before the reply; retry with the same ids.

        """
        ...

    def load(
        self, log: str, query: LoadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EntityPart]:
        """The entity's newest usable snapshot, then the events after it, in order.

        Raises:
            EntityNotFound: it never had an event.

        """
        ...

    def read(
        self, log: str, query: ReadQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[EventBatch]:
        """A selection of the log in order of position (descending when backwards), every matching
        event once, up to the head at the start of the read.

        Raises:
            OutOfRange: ``from_position`` is beyond head + 1.

        """
        ...

    def subscribe(
        self, log: str, query: SubscribeQuery, *, timeout: timedelta | None = None
    ) -> AsyncIterator[SubscriptionBatch]:
        """Every matching event from a position on, in order, each once, as long as it is iterated.

        First what is there, then what comes, without a seam. While nothing matches, batches without
        events still say how far the subscription has come; while nothing happens, one comes about
        every five seconds.

        Raises:
            OutOfRange: ``from_position`` is beyond head + 1, or no longer there.

        """
        ...

    async def get_entity(
        self, log: str, entity_type: str, entity_id: str, *, timeout: timedelta | None = None
    ) -> Entity:
        """Describes one entity. Raises `EntityNotFound` when it never had an event."""
        ...

    async def list_entities(
        self,
        log: str,
        entity_type: str = "",
        id_prefix: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
        timeout: timedelta | None = None,
    ) -> EntityPage:
        """A page of entities by type and id (byte order of UTF-8)."""
        ...

    async def get_log(self, log: str, *, timeout: timedelta | None = None) -> LogInfo:
        """Describes a log."""
        ...

    async def list_logs(self, *, timeout: timedelta | None = None) -> tuple[LogInfo, ...]:
        """All logs by name."""
        ...

    async def create_log(
        self, log: str, chunk_size: int = 0, *, timeout: timedelta | None = None
    ) -> LogInfo:
        """Makes a log. Raises `LogExists` when there is one of that name."""
        ...

    async def position_at(
        self, log: str, time_us: int, *, timeout: timedelta | None = None
    ) -> tuple[int, int]:
        """The first position recorded at or after a time (head + 1 when none is), and the head."""
        ...

    def verify(
        self,
        log: str,
        from_position: int = 0,
        to_position: int = 0,
        *,
        timeout: timedelta | None = None,
    ) -> AsyncIterator[VerifyProgress]:
        """Reads the log and proves invariants 1–3 over the range; the last item has the report."""
        ...
