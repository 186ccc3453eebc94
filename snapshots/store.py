"""Snapshots and entity types in the database.

Whatever changes the snapshots of an entity, what is known of them, or its floor, holds the lock of
its marks; appends, which only add snapshots beyond all there are, do not. So the snapshot that a
floor rests on is never replaced, removed or raced. Only `purge` goes without: it deletes what
nobody sees and nobody can bring back. What a client takes away is audited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson

from journal.model import NewSnapshot
from journal.preparation import check_entity, check_log_name
from journal.rows import too_many_types
from journal.store import StoreJournal
from kernel import audit, clock, sql
from kernel.database import Connection, Database, transaction
from kernel.errors import (
    EntityNotFound,
    NotFound,
)
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

_SECONDS = 10.0
_DUE_ROWS, _DUE_ROUNDS = 1_000, 10
"""A page of what is due looks at so many entities a statement, in so many statements, at most."""
KEPT_REMOVED = timedelta(days=7)
"""How long a removed snapshot is kept at least."""
_PURGE_ROWS = 200
UNKNOWN = "unknown"
"""Who is named in the audit where the caller names nobody."""


class Purged(NamedTuple):
    """A piece of a purge. ``after``: where the next one goes on; None: there are no more."""

    deleted: int
    after: tuple[datetime, int, int, int] | None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot for `SnapshotStore.save_rows`.

    ``low`` and ``high`` are bounds of the position of the event with this sequence number, both the
    position itself where it is known (else those of the entity).
    """

    entity_key: int
    sequence: int
    low: int
    high: int
    type: str
    content_type: str
    payload: bytes
    verified: bool = False


def audited_as(log: str, entity_type: str, entity_id: str, limit: int) -> str:
    """The id in the log `_system` of what happens to an entity's snapshots, ``limit`` characters at
    most: its name, or as much of it as fits and a digest of the whole.
    """
    name = f"{log}/{entity_type}/{entity_id}"
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{name[: limit - len(digest) - 1]}#{digest}"


async def lock_marks(
    connection: Connection, schema: str, log_id: int, entity_keys: Sequence[int]
) -> None:
    """Locks the marks of entities until the transaction ends, by key; makes those that are missing.

    They come first. After them: settings of entity types, snapshots, the rest; the log's row last.
    """
    keys = sorted(set(entity_keys))
    await connection.execute(sql.load("snapshots", "marks_make", schema), log_id, keys)
    await connection.execute(sql.load("snapshots", "marks_lock", schema), log_id, keys)


class SnapshotStore:
    """The snapshots of a database's entities."""

    def __init__(self, database: Database, journal: StoreJournal) -> None:
        self._database = self.database = database
        self._journal = journal

    def _sql(self, name: str) -> str:
        return sql.load("snapshots", name, self._database.schema)

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
        principal: str = UNKNOWN,
        timeout: float = _SECONDS,
    ) -> SnapshotInfo:
        """Saves the state of an entity as it is after the event with a sequence number.

        Saving the same snapshot again is a success. Another one at that sequence number is put in
        its place when ``replace`` says so; it is verified only if ``verified`` does, and the audit
        says that ``principal`` replaced one.

        Raises:
            EntityNotFound: it never had an event.
            InvalidArgument: the entity has no such event, or a text is not valid.
            TooLarge: the payload is over the limit of an append.
            AlreadyExists: another one is there.
            Conflict: the events up to there are compacted; another one would go, and a hold is on
                the entity; an operation that can be undone removed one there.

        """
        kept = policy.check_snapshot(
            entity_type, entity_id, sequence, snapshot, self._journal.settings.limits
        )
        opened = await self._journal.open_log(log, timeout)
        name = (entity_type, entity_id)
        async with (
            self._database.connection(timeout) as connection,
            transaction(connection, timeout + 5),
        ):
            entity = await self._entity(connection, opened.log_id, name)
            row = SnapshotRow(
                entity["entity_key"], sequence, entity["first_position"], entity["last_position"],
                kept.type, kept.content_type, kept.payload, verified,
            )  # fmt: skip
            ((verdict, by),) = await self._save(
                connection, opened.log_id, [row], source=source, replace=replace
            )
            said = Saved(verdict)
            if said not in (Saved.SAVED, Saved.SAME, Saved.REPLACED):  # rolls back the marks too
                raise policy.refused(
                    said, name, sequence, entity["first"], entity["last_seq"], f"op-{by}"
                )
            if said is Saved.REPLACED:
                data = {"type": kept.type, "size_bytes": len(kept.payload), "source": source.name}
                await self._audit(
                    connection, "SnapshotReplaced", (log, *name), sequence, data, principal
                )
            found = await connection.fetch(
                self._sql("snapshots_list"), opened.log_id, *name, sequence + 1, 1
            )
            return _info(*name, found[0])

    async def save_rows(
        self,
        connection: Connection,
        log_id: int,
        rows: Sequence[SnapshotRow],
        *,
        source: Source = Source.OWNER,
        replace: bool = False,
    ) -> list[Saved]:
        """Saves snapshots, at most one of an entity, within the transaction of ``connection``.

        It locks the marks of the entities, by key, until the transaction ends. What became of
        each comes in the order of ``rows``; one that was not saved changes nothing. The caller has
        checked texts and sizes.
        """
        if not rows:
            return []
        found = await self._save(connection, log_id, rows, source=source, replace=replace)
        return [Saved(row["verdict"]) for row in found]

    async def _save(
        self,
        connection: Connection,
        log_id: int,
        rows: Sequence[SnapshotRow],
        *,
        source: Source,
        replace: bool,
    ) -> Sequence[Any]:
        await self.lock(connection, log_id, [row.entity_key for row in rows])
        found: Sequence[Any] = await connection.fetch(
            self._sql("snapshot_save"), log_id, [row.entity_key for row in rows],
            [row.sequence for row in rows], [row.low for row in rows], [row.high for row in rows],
            [row.type for row in rows], [row.content_type for row in rows],
            [row.payload for row in rows], [row.verified for row in rows], int(source), replace,
        )  # fmt: skip
        return found

    async def _audit(
        self,
        connection: Connection,
        type_: str,
        name: tuple[str, str, str],
        sequence: int,
        data: dict[str, Any],
        principal: str,
    ) -> None:
        """Keeps what happened to a snapshot of (log, entity type, entity id)."""
        log, entity_type, entity_id = check_log_name(name[0]), *name[1:]
        data |= {
            "log": log, "entity_type": entity_type, "entity_id": entity_id, "sequence": sequence,
        }  # fmt: skip
        await audit.record(
            connection, self._database.schema, "snapshot",
            audited_as(log, entity_type, entity_id, self._journal.settings.limits.entity_id_chars),
            type_, data, principal,
        )  # fmt: skip

    async def lock(self, connection: Connection, log_id: int, entity_keys: Sequence[int]) -> None:
        """Locks the marks of entities until the transaction ends; makes those that are missing.

        See `lock_marks` for what may be locked after them.
        """
        await lock_marks(connection, self._database.schema, log_id, entity_keys)

    async def get(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        sequence: int = 0,
        time_us: int = 0,
        timeout: float = _SECONDS,
    ) -> tuple[SnapshotInfo, bytes]:
        """The newest snapshot of an entity with its payload.

        ``sequence``: of at most this sequence number; ``time_us``: whose newest event happened
        then or before (0: any); those of which that is not known are passed over for it.

        Raises:
            EntityNotFound: it never had an event.
            NotFound: it has no such snapshot.

        """
        policy.check_sequence("sequence", sequence)
        policy.check_time("time_us", time_us)
        opened, name = await self._open(log, entity_type, entity_id, timeout)
        row = await self._database.fetchrow(
            self._sql("snapshot_get"), opened, *name, sequence or policy.MAX_SEQUENCE,
            clock.from_us(time_us) if time_us else None, timeout=timeout,
        )  # fmt: skip
        if row is None:
            raise EntityNotFound(*name)
        if row["seq"] is None:
            raise NotFound(policy.no_such(*name, sequence, time_us))
        return _info(*name, row), row["payload"]

    async def list(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        before: int = 0,
        limit: int = 100,
        timeout: float = _SECONDS,
    ) -> list[SnapshotInfo]:
        """A page of an entity's snapshots, newest first; go on ``before`` the last one's sequence.

        Raises:
            EntityNotFound: it never had an event.
            InvalidArgument: ``limit`` is not from 1 to 1,000.

        """
        policy.check_limit(limit)
        policy.check_sequence("before", before)
        opened, name = await self._open(log, entity_type, entity_id, timeout)
        rows = await self._database.fetch(
            self._sql("snapshots_list"), opened, *name, before or policy.MAX_SEQUENCE, limit,
            timeout=timeout,
        )  # fmt: skip
        if not rows:
            raise EntityNotFound(*name)
        return [_info(*name, row) for row in rows if row["seq"] is not None]

    async def delete(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        sequence: int,
        *,
        principal: str = UNKNOWN,
        timeout: float = _SECONDS,
    ) -> None:
        """Takes a snapshot away; the audit says that ``principal`` did. It is kept unseen for
        `KEPT_REMOVED`, then deleted.

        Raises:
            EntityNotFound: it never had an event.
            NotFound: it has no such snapshot.
            Conflict: the floor rests on it, it is one of the newest `KEPT_AT_LEAST`, or a hold is
                on the entity.

        """
        policy.check_sequence("sequence", sequence, lowest=1)
        opened, name = await self._open(log, entity_type, entity_id, timeout)
        async with (
            self._database.connection(timeout) as connection,
            transaction(connection, timeout + 5),
        ):
            entity = await self._entity(connection, opened, name)
            await self.lock(connection, opened, [entity["entity_key"]])
            row = await connection.fetchrow(
                self._sql("snapshot_remove"), opened, entity["entity_key"], sequence, KEPT_AT_LEAST
            )
            policy.check_removed(*name, sequence, None if row is None else tuple(row[:3]))
            data = {"type": row["type"], "size_bytes": row["size"]}
            await self._audit(
                connection, "SnapshotDeleted", (log, *name), sequence, data, principal
            )

    async def due(
        self,
        log: str,
        entity_type: str,
        after: str = "",
        limit: int = 100,
        *,
        timeout: float = _SECONDS,
    ) -> DuePage:
        """Entities of a type whose policy wants a snapshot, by id, those ``after`` an id.

        A page looks at 10,000 entities at most, so it may be short.

        Raises:
            NotFound: there is no such entity type.
            InvalidArgument: ``limit`` is not from 1 to 1,000.

        """
        policy.check_limit(limit)
        policy.check_after(after)
        opened = await self._journal.open_log(log, timeout)
        settings = (await TypeStore(self._database, self._journal).get(entity_type)).settings
        if settings.needs_full_replay or not (settings.snapshot_every or settings.snapshot_age_s):
            return DuePage(())
        found: list[DueEntity] = []
        now = clock.now_us()
        for _ in range(_DUE_ROUNDS):
            rows = await self._database.fetch(
                self._sql("snapshots_due"), opened.log_id, entity_type, after, _DUE_ROWS,
                settings.snapshot_age_s > 0, timeout=timeout,
            )  # fmt: skip
            for row in rows:
                after = row["entity_id"]
                oldest = row["event_at"]
                reason = policy.due(
                    settings,
                    sequence=row["last_seq"],
                    covered=row["snapshot_seq"] or row["first"] - 1,
                    oldest_us=clock.to_us(oldest) if oldest else None,
                    now_us=now,
                )
                if reason and row["state"] == 0:
                    found.append(
                        DueEntity(
                            entity_type, after, row["last_seq"], row["snapshot_seq"] or 0, reason
                        )
                    )
                    if len(found) == limit:
                        return DuePage(tuple(found), after)
            if len(rows) < _DUE_ROWS:
                return DuePage(tuple(found))
        return DuePage(tuple(found), after)

    async def purge(
        self,
        kept: timedelta = KEPT_REMOVED,
        after: tuple[datetime, int, int, int] | None = None,
        limit: int = _PURGE_ROWS,
    ) -> Purged:
        """Looks at the next ``limit`` snapshots that were removed longer ago than ``kept``, by the
        database's clock. Deletes those that no undo can bring back and that no hold is on.
        """
        row = await self._database.fetchrow(
            self._sql("snapshots_purge"), kept, *(after or (None, 0, 0, 0)), limit,
            timeout=_SECONDS,
        )  # fmt: skip
        if row is None:
            return Purged(0, None)
        return Purged(row["gone"], tuple(row[:4]) if row["looked"] == limit else None)

    async def _open(
        self, log: str, entity_type: str, entity_id: str, timeout: float
    ) -> tuple[int, tuple[str, str]]:
        check_entity("", entity_type, entity_id, self._journal.settings.limits)
        return (await self._journal.open_log(log, timeout)).log_id, (entity_type, entity_id)

    async def _entity(self, connection: Connection, log_id: int, name: tuple[str, str]) -> Any:
        row = await connection.fetchrow(self._sql("snapshot_entity"), log_id, *name)
        if row is None:
            raise EntityNotFound(*name)
        return row


class TypeStore:
    """Entity types and what is set for them."""

    def __init__(self, database: Database, journal: StoreJournal) -> None:
        self._database = database
        self._journal = journal

    def _sql(self, name: str) -> str:
        return sql.load("snapshots", name, self._database.schema)

    async def get(self, name: str, *, timeout: float = _SECONDS) -> EntityType:
        """An entity type.

        Raises:
            NotFound: there is none of this name: no event and no setting.

        """
        policy.check_type_name(name)
        row = await self._database.fetchrow(self._sql("type_get"), name, timeout=timeout)
        if row is None:
            raise policy.no_type(name)
        return _type(row)

    async def list(
        self, after: str = "", limit: int = 100, *, timeout: float = _SECONDS
    ) -> list[EntityType]:
        """A page of the entity types by name, those ``after`` a name.

        Raises:
            InvalidArgument: ``limit`` is not from 1 to 1,000.

        """
        policy.check_limit(limit)
        policy.check_after(after)
        rows = await self._database.fetch(self._sql("types_list"), after, limit, timeout=timeout)
        return [_type(row) for row in rows]

    async def put(
        self,
        name: str,
        settings: TypeSettings,
        *,
        version: int | None,
        principal: str,
        timeout: float = _SECONDS,
    ) -> EntityType:
        """Sets what holds for an entity type, all of it; makes the type when it is missing.

        ``version`` is the one that was looked at (0: never set); None: whatever it is.
        ``principal`` stands in the audit event. Loads go by the new settings at once, hints in
        append replies within a few seconds.

        Raises:
            InvalidArgument: names the setting and the limit.
            Conflict: it was set since, or entities are compacted to snapshots that would be of no
                use any more; nothing was changed.
            TooLarge: there are as many types as there may be.

        """
        settings.check()
        return await self.change(
            name, lambda _: settings, version=version, principal=principal, timeout=timeout
        )

    async def change(
        self,
        name: str,
        changed: Callable[[TypeSettings], TypeSettings],
        *,
        version: int | None,
        principal: str,
        timeout: float = _SECONDS,
    ) -> EntityType:
        """As `put`: what ``changed`` makes of the settings that hold, while nobody else sets any.

        Raises:
            InvalidArgument, Conflict, TooLarge: as `put`. And what ``changed`` raises; nothing was
                changed then.

        """
        policy.check_type_name(name)
        if version is not None:
            policy.check_sequence("version", version)
        names = self._journal.names
        if await names.ensure_entity_types([name], timeout):
            raise too_many_types("entity", names.max_types + 1, names.max_types)
        schema = self._database.schema
        async with (
            self._database.connection(timeout) as connection,
            transaction(connection, timeout + 5),
        ):
            before = await connection.fetchrow(self._sql("type_lock"), name)
            if version is not None and before["version"] != version:
                raise policy.changed(name, before["version"], version)
            stored = policy.settings_json(changed(_type(before).settings).check())
            given = orjson.dumps(stored).decode()
            # A compaction holds the type's row until it is committed, so it is seen here.
            rests = await connection.fetch(self._sql("type_floors"), name, given, policy.COUNTED)
            policy.check_rests(name, [tuple(row) for row in rests])
            row = await connection.fetchrow(self._sql("type_put"), name, given, principal)
            data = {
                "version": row["version"],
                "settings": stored,
                "before": policy.settings_json(_type(before).settings),
            }
            await audit.record(
                connection, schema, "entity_type", name, "EntityTypeSet", data, principal
            )
        return _type(row)


def _info(entity_type: str, entity_id: str, row: Any) -> SnapshotInfo:
    def us(moment: datetime | None) -> int:
        return clock.to_us(moment) if moment else 0

    return SnapshotInfo(
        entity_type, entity_id, row["seq"], row["position"] or 0, us(row["event_at"]), row["type"],
        row["content_type"], row["size"], us(row["recorded_at"]), us(row["verified_at"]),
        Source(row["source"]), row["covers"], row["usable"],
    )  # fmt: skip


def _type(row: Any) -> EntityType:
    return EntityType(
        row["name"],
        policy.settings_of(row["settings"]),
        row["version"],
        clock.to_us(row["updated_at"]) if row["updated_at"] else 0,
        row["updated_by"],
    )
