"""A worker by hand: tests apply events to projections step by step, in any order they like."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from journal.model import ANY, Append, EntityAppend, NewEvent, ReadQuery
from journal.store import StoreJournal
from kernel.database import Database
from kernel.ids import new_id
from kernel.leases import Lease, Leases
from projections import registration, replay, store
from projections.execute import Applier, Target, commit
from projections.model import Definition
from projections.store import Runnable
from projections.upkeep import Upkeep
from schemas.descriptors import Decoder


@dataclass
class Hand:
    """Applies events as a worker does, when told to."""

    database: Database
    journal: StoreJournal
    definitions: Mapping[tuple[str, int], Definition]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    decoder: Decoder = field(default_factory=Decoder)
    _leases: dict[str, Lease] = field(default_factory=dict)

    @classmethod
    async def start(cls, journal: StoreJournal, *definitions: Definition) -> Hand:
        """Registers ``definitions``."""
        database = journal.database
        await registration.register(database, definitions)
        return cls(database, journal, {(d.name, d.version): d for d in definitions})

    @property
    def upkeep(self) -> Upkeep:
        return Upkeep(self.database, lambda *key: self.definitions.get(key))

    async def append(self, entity_id: str, event_type: str = "Happened", **data: Any) -> int:
        """Appends an event of an entity of type ``thing``; its position."""
        event = NewEvent(
            event_type, orjson.dumps(data), content_type="application/json", event_id=new_id()
        )
        append = Append((EntityAppend("thing", entity_id, ANY),), (event,))
        return (await self.journal.append("default", append)).last_position

    async def segments(self, name: str = "") -> list[Runnable]:
        return [s for s in await store.runnable(self.database) if name in ("", s.name)]

    async def target(self, segment: Runnable) -> Target:
        lease = self._leases.get(segment.key.lease_name)
        if lease is None:
            leases = Leases(self.database, "segment", "hand")
            lease = await leases.acquire(segment.key.lease_name)
            assert lease is not None
            self._leases[segment.key.lease_name] = lease
        return Target(segment.key, segment.schema_name, segment.role_name, lease)

    def applier(self, segment: Runnable) -> Applier:
        definition = self.definitions[segment.name, segment.version]
        return Applier(definition, self.journal.names, self.decoder)

    async def catch_up(self, name: str = "", *, to: int = 0) -> None:
        """Applies everything to every segment, up to where it is told to stop."""
        for segment in await self.segments(name):
            end = min(to or 2**62, segment.stop_position or 2**62)
            if segment.position < end:
                await self._advance(segment, end)

    async def _advance(self, segment: Runnable, end: int) -> None:
        definition = self.definitions[segment.name, segment.version]
        query = ReadQuery(
            from_position=segment.position + 1,
            entity_types=definition.entity_types,
            event_types=self.decoder.upcasters.sources(definition.event_types),
            slices=((segment.first_slice, segment.last_slice),),
        )
        head = (await self.journal.get_log("default")).head
        if segment.position >= head:
            return
        async for batch in self.journal.read_rows("default", query, 30):
            rows = [row for row in batch.rows if row[0] <= end]
            target = await self.target(segment)
            to = min(batch.next_position - 1, end)
            await commit(self.database, target, self.applier(segment), rows, to, replaying=True)
            segment = segment._replace(position=to)
            if to == end:
                return

    async def replays(self) -> list[tuple[replay.SegmentReplay, Target]]:
        """What a worker would do for the replays that run."""
        segments = {(s.name, s.version, s.build, s.segment): s for s in await self.segments()}
        found = []
        for task in await replay.tasks(self.database):
            segment = segments[task.name, task.version, task.build, task.segment]
            doing = replay.SegmentReplay(
                self.database, self.journal, self.journal.names,
                self.definitions[task.name, task.version], self.applier(segment),
                log="default", slices=(segment.first_slice, segment.last_slice), task=task,
                turn=self.turn,
            )  # fmt: skip
            found.append((doing, await self.target(segment)))
        return found

    async def replay_all(self) -> None:
        """Carries the replays out."""
        for doing, target in await self.replays():
            while not doing.ended:
                await doing.step(target)
        await replay.finish(self.database)
