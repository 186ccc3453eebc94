"""The reference twin of `snapshots.store`: the same promises on a `journal.memory.MemoryJournal`.

It is meant to be read: where the store and this disagree, one of them has a bug. A timeout is
ignored: nothing here waits.
"""
# ruff: noqa: ARG002 - timeouts and principals belong to the port

from __future__ import annotations

from collections.abc import Callable, Sequence

from journal.memory import MemoryJournal, StoredSnapshot, TypeRules, event_time_us
from journal.model import Limits, NewSnapshot, Snapshot
from journal.preparation import check_entity
from kernel import clock
from kernel.errors import NotFound
from snapshots import policy
from snapshots.model import (
    KEPT_AT_LEAST,
    DueEntity,
    DuePage,
    EntityType,
    SnapshotInfo,
    Source,
    TypeSettings,
)
from snapshots.policy import Saved


class MemorySnapshots:
    """`snapshots.store.SnapshotStore` in memory."""

    def __init__(
        self,
        journal: MemoryJournal,
        types: MemoryTypes,
        *,
        limits: Limits | None = None,
        now_us: Callable[[], int] = clock.now_us,
    ) -> None:
        self._journal = journal
        self._types = types
        self._limits = limits or Limits()
        self._now_us = now_us

    async def save(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        sequence: int,
        snapshot: NewSnapshot,
        *,
        source: Source = Source.OWNER,
        verified: bool = False,
        replace: bool = False,
        principal: str = "",
        timeout: float = 0,
    ) -> SnapshotInfo:
        """See `snapshots.store.SnapshotStore.save`."""
        kept = policy.check_snapshot(entity_type, entity_id, sequence, snapshot, self._limits)
        name = (entity_type, entity_id)
        entity = self._journal.entity(log, name)
        first = entity.sequence - entity.event_count + 1
        stored = self._journal.snapshots(log, name)
        there = stored.get(sequence)
        if there is not None and there.removed:
            there = None
        now = self._now_us()
        said = Saved.SAVED
        if there is not None and _same(there.snapshot, kept):
            if verified:
                there.verified_at_us = now
        elif first < entity.floor and sequence < entity.floor:
            said = Saved.BELOW_FLOOR
        elif not first <= sequence <= entity.sequence:
            said = Saved.NO_EVENT
        elif there is not None and not replace:
            said = Saved.OTHER
        else:
            newest = self._journal.event(log, name, sequence)
            stored[sequence] = StoredSnapshot(
                Snapshot(sequence, kept.type, kept.content_type, kept.payload, now),
                newest.position,
                event_time_us(newest),
                int(source),
                now if verified else 0,
            )
        if said is not Saved.SAVED:
            raise policy.refused(said, name, sequence, first, entity.sequence)
        return self._info(log, name, stored[sequence])

    async def get(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        sequence: int = 0,
        time_us: int = 0,
        timeout: float = 0,
    ) -> tuple[SnapshotInfo, bytes]:
        """See `snapshots.store.SnapshotStore.get`."""
        policy.check_sequence("sequence", sequence)
        policy.check_time("time_us", time_us)
        for stored in self._newest_first(log, entity_type, entity_id):
            if sequence and stored.snapshot.sequence > sequence:
                continue
            if time_us and stored.event_at_us > time_us:
                continue
            return self._info(log, (entity_type, entity_id), stored), stored.snapshot.payload
        raise NotFound(policy.no_such(entity_type, entity_id, sequence, time_us))

    async def list(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        before: int = 0,
        limit: int = 100,
        timeout: float = 0,
    ) -> list[SnapshotInfo]:
        """See `snapshots.store.SnapshotStore.list`."""
        policy.check_limit(limit)
        policy.check_sequence("before", before)
        return [
            self._info(log, (entity_type, entity_id), stored)
            for stored in self._newest_first(log, entity_type, entity_id)
            if not before or stored.snapshot.sequence < before
        ][:limit]

    async def delete(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        sequence: int,
        *,
        principal: str = "",
        timeout: float = 0,
    ) -> None:
        """See `snapshots.store.SnapshotStore.delete`."""
        policy.check_sequence("sequence", sequence, lowest=1)
        kept = self._newest_first(log, entity_type, entity_id)
        mine = [stored for stored in kept if stored.snapshot.sequence == sequence]
        found = None
        if mine:
            covers = self._covers(log, (entity_type, entity_id), sequence)
            found = (covers, mine[0] in kept[:KEPT_AT_LEAST], False)  # it knows no holds
        policy.check_removed(entity_type, entity_id, sequence, found)
        mine[0].removed = True

    async def due(
        self, log: str, entity_type: str, after: str = "", limit: int = 100, *, timeout: float = 0
    ) -> DuePage:
        """See `snapshots.store.SnapshotStore.due`."""
        policy.check_limit(limit)
        policy.check_after(after)
        await self._journal.get_log(log)
        settings = (await self._types.get(entity_type)).settings
        found: list[DueEntity] = []
        token = ""
        while True:
            page = await self._journal.list_entities(log, entity_type, page_token=token)
            for entity in page.entities:
                name = (entity_type, entity.entity_id)
                covered = entity.snapshot_sequence or entity.sequence - entity.event_count
                oldest = None
                if covered < entity.sequence:
                    oldest = event_time_us(self._journal.event(log, name, covered + 1))
                reason = policy.due(
                    settings,
                    sequence=entity.sequence,
                    covered=covered,
                    oldest_us=oldest,
                    now_us=self._now_us(),
                )
                if reason and entity.state == "active" and entity.entity_id > after:
                    newest = entity.snapshot_sequence
                    found.append(DueEntity(*name, entity.sequence, newest, reason))
                    if len(found) == limit:
                        return DuePage(tuple(found), entity.entity_id)
            token = page.next_page_token
            if not token:
                return DuePage(tuple(found))

    def _newest_first(self, log: str, entity_type: str, entity_id: str) -> Sequence[StoredSnapshot]:
        check_entity("", entity_type, entity_id, self._limits)
        found = self._journal.snapshots(log, (entity_type, entity_id))
        return [found[n] for n in sorted(found, reverse=True) if not found[n].removed]

    def _covers(self, log: str, name: tuple[str, str], sequence: int) -> bool:
        entity = self._journal.entity(log, name)
        return entity.sequence - entity.event_count + 1 < entity.floor == sequence + 1

    def _info(self, log: str, name: tuple[str, str], stored: StoredSnapshot) -> SnapshotInfo:
        found = stored.snapshot
        return SnapshotInfo(
            *name, found.sequence, stored.position, stored.event_at_us, found.type,
            found.content_type, len(found.payload), found.recorded_at_us, stored.verified_at_us,
            Source(stored.source), self._covers(log, name, found.sequence),
            self._types.rules(name[0]).uses(found.type),
        )  # fmt: skip


class MemoryTypes:
    """`snapshots.store.TypeStore` in memory."""

    def __init__(self, journal: MemoryJournal, *, now_us: Callable[[], int] = clock.now_us) -> None:
        self._journal = journal
        self._now_us = now_us
        self._set: dict[str, EntityType] = {}

    def rules(self, name: str) -> TypeRules:
        """What the journal goes by."""
        found = self._set[name].settings if name in self._set else TypeSettings()
        return _rules(found)

    async def _names(self) -> set[str]:
        names = set(self._set)
        for info in await self._journal.list_logs():
            token = ""
            while True:
                page = await self._journal.list_entities(info.log, page_token=token)
                names |= {entity.entity_type for entity in page.entities}
                token = page.next_page_token
                if not token:
                    break
        return names

    async def _useless(self, name: str, settings: TypeSettings) -> list[tuple[str, int]]:
        """Types of snapshots that floors rest on and that settings rule out, with how many do."""
        rules = _rules(settings)
        found: dict[str, int] = {}
        for info in await self._journal.list_logs():
            token = ""
            while True:
                page = await self._journal.list_entities(info.log, name, page_token=token)
                for entity in page.entities:
                    if entity.floor > entity.sequence - entity.event_count + 1:
                        stored = self._journal.snapshots(info.log, (name, entity.entity_id))
                        kind = stored[entity.floor - 1].snapshot.type
                        if not rules.uses(kind):
                            found[kind] = min(found.get(kind, 0) + 1, policy.COUNTED)
                token = page.next_page_token
                if not token:
                    break
        return sorted(found.items())

    async def get(self, name: str, *, timeout: float = 0) -> EntityType:
        """See `snapshots.store.TypeStore.get`."""
        policy.check_type_name(name)
        if name not in await self._names():
            raise policy.no_type(name)
        return self._set.get(name, EntityType(name))

    async def list(
        self, after: str = "", limit: int = 100, *, timeout: float = 0
    ) -> list[EntityType]:
        """See `snapshots.store.TypeStore.list`."""
        policy.check_limit(limit)
        policy.check_after(after)
        names = sorted(name for name in await self._names() if name > after)
        return [self._set.get(name, EntityType(name)) for name in names[:limit]]

    async def put(
        self,
        name: str,
        settings: TypeSettings,
        *,
        version: int | None,
        principal: str,
        timeout: float = 0,
    ) -> EntityType:
        """See `snapshots.store.TypeStore.put`."""
        policy.check_type_name(name)
        settings.check()
        before = self._set.get(name, EntityType(name))
        if version is not None:
            policy.check_sequence("version", version)
            if before.version != version:
                raise policy.changed(name, before.version, version)
        policy.check_rests(name, await self._useless(name, settings))
        self._set[name] = EntityType(name, settings, before.version + 1, self._now_us(), principal)
        self._journal.set_rules(name, self.rules(name))
        return self._set[name]


def _rules(found: TypeSettings) -> TypeRules:
    return TypeRules(found.needs_full_replay, found.snapshot_types, found.snapshot_every)


def _same(stored: Snapshot, wanted: NewSnapshot) -> bool:
    return (stored.type, stored.content_type, stored.payload) == (
        wanted.type,
        wanted.content_type,
        wanted.payload,
    )
