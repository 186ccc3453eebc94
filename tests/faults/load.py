"""A load of concurrent appends that remembers what was acknowledged, and holds the log to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta

from kernel.errors import DeadlineExceeded, OutcomeUnknown, Unavailable
from kernel.ids import new_id
from sidecar_api.client import ANY, Appended, Client, ClientSettings
from tests.support import assert_sequences_have_no_hole, everything, one, verified

PATIENT = ClientSettings(timeout=timedelta(seconds=60), retry_for=timedelta(seconds=40))
"""Retries over the restart of a node or of a database."""

WRITERS = 16


@dataclass
class Load:
    """Writers of one entity each: every other one states exact sequence numbers, the rest any.

    ``acknowledged``: event id → result; ``unknown``: ids of events whose append was reported as
    failed or of unknown outcome.
    """

    client: Client
    acknowledged: dict[str, Appended] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    _stopping: bool = False
    _failed: Exception | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, number: int) -> None:
        """One writer, until `stop`."""
        try:
            await self._write(number)
        except Exception as error:
            self._failed = error
            self._moved.set()
            raise

    def stop(self) -> None:
        """Each writer ends after the append it is at."""
        self._stopping = True

    async def _write(self, number: int) -> None:
        entity, sequence = f"writer-{number}", 0
        while not self._stopping:
            event_id = new_id()
            expected = sequence if number % 2 else ANY
            try:
                append = one(entity, b"x" * 64, expected, event_id=event_id)
                done = await self.client.append("", append)
            except (OutcomeUnknown, Unavailable, DeadlineExceeded):
                self.unknown.add(event_id)
                if expected is not ANY:
                    return  # it no longer knows where its entity stands
            else:
                self.acknowledged[event_id] = done
                sequence = done.entities[0].last_sequence
                self._moved.set()

    async def more(self, count: int, timeout: float = 40) -> None:
        """Returns when ``count`` more appends have been acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(timeout):
            while len(self.acknowledged) < wanted:
                if self._failed is not None:
                    raise self._failed
                self._moved.clear()
                await self._moved.wait()

    async def holds(self) -> None:
        """Invariant 5: what was acknowledged is there, once and where it was said to be; of what
        was not acknowledged nothing is there twice, and there is nothing else.
        """
        events = await everything(self.client)
        by_id = {event.event_id: event for event in events}
        assert len(by_id) == len(events), "an event is there twice"
        for event_id, done in self.acknowledged.items():
            event = by_id.pop(event_id, None)
            assert event is not None, f"an acknowledged event is lost: {done}"
            assert (event.position, event.sequence, event.recorded_at_us) == (
                done.first_position, done.entities[0].first_sequence, done.recorded_at_us,
            )  # fmt: skip
        assert by_id.keys() <= self.unknown
        assert_sequences_have_no_hole(events)
        report = await verified(self.client)
        assert report.events == len(events)


@contextlib.asynccontextmanager
async def loaded(client: Client) -> AsyncIterator[Load]:
    """A load that runs while inside; at the end its writers finish the append they are at."""
    load = Load(client)
    tasks = [asyncio.create_task(load.write(number)) for number in range(WRITERS)]
    try:
        yield load
        load.stop()
        async with asyncio.timeout(90):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
