"""`SnapshotClient`: snapshots and entity types over gRPC."""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from journal.model import NewSnapshot
from kernel.errors import InvalidArgument
from sidecar_api.generated import journal_pb2 as journal_pb
from sidecar_api.generated import snapshot_pb2 as pb
from snapshots.model import (
    DueEntity,
    DuePage,
    EntityType,
    SnapshotInfo,
    Source,
    TypeSettings,
)

_SERVICE = "/everstate.snapshot.v1.SnapshotService/"

Unary = Callable[..., Awaitable[Any]]


class _Calls:
    def __init__(self, unary: Unary, log: str = "") -> None:
        self._unary = unary
        self._log = log

    async def _call(
        self,
        name: str,
        request: type[Any],
        response: type[Any],
        timeout: timedelta | None,
        *,
        retried: bool = True,
        **fields: Any,
    ) -> Any:
        try:
            message = request(**fields)
        except (ValueError, TypeError) as error:
            raise InvalidArgument("request", f"cannot be sent: {error}") from None
        return await self._unary(_SERVICE + name, response, message, timeout, retried=retried)


class SnapshotClient(_Calls):
    """The snapshots of a node's entities; see protocols/everstate/snapshot/v1.

    Comes from `Client.snapshots`. ``log`` may be empty: the log of the URL is meant then. Raises
    what the node raises, as the error tree.
    """

    async def save(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        sequence: int,
        snapshot: NewSnapshot,
        *,
        replace: bool = False,
        timeout: timedelta | None = None,
    ) -> SnapshotInfo:
        """Saves the state of an entity as it is after the event ``sequence``.

        Raises:
            EntityNotFound, InvalidArgument, TooLarge: it cannot be saved there.
            AlreadyExists: another one is there, and ``replace`` is not set.
            Conflict: the events up to there are compacted; another one would go, and a hold is on
                the entity; an operation removed one there and may bring it back.

        """
        reply = await self._call(
            "SaveSnapshot", pb.SaveSnapshotRequest, pb.SaveSnapshotResponse, timeout,
            log=log or self._log, entity_type=entity_type, entity_id=entity_id, sequence=sequence,
            snapshot=_new(snapshot), replace=replace,
        )  # fmt: skip
        return _info(reply.snapshot)

    async def get(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        sequence: int = 0,
        time_us: int = 0,
        timeout: timedelta | None = None,
    ) -> tuple[SnapshotInfo, bytes]:
        """The newest snapshot of an entity with its payload; 0: any sequence number, any time.

        Raises:
            EntityNotFound, NotFound: there is none.

        """
        reply = await self._call(
            "GetSnapshot", pb.GetSnapshotRequest, pb.GetSnapshotResponse, timeout,
            log=log or self._log, entity_type=entity_type, entity_id=entity_id, sequence=sequence,
            time_us=time_us,
        )  # fmt: skip
        return _info(reply.snapshot), reply.payload

    async def list(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        *,
        before: int = 0,
        limit: int = 100,
        timeout: timedelta | None = None,
    ) -> builtins.list[SnapshotInfo]:
        """A page of an entity's snapshots, newest first; go on ``before`` the last one's sequence.

        Raises:
            EntityNotFound: it never had an event.
            InvalidArgument: ``limit`` is not from 1 to 1,000.

        """
        _check_limit(limit)
        reply = await self._call(
            "ListSnapshots", pb.ListSnapshotsRequest, pb.ListSnapshotsResponse, timeout,
            log=log or self._log, entity_type=entity_type, entity_id=entity_id, page_size=limit,
            page_token=str(before) if before else "",
        )  # fmt: skip
        return [_info(found) for found in reply.snapshots]

    async def delete(
        self,
        log: str,
        entity_type: str,
        entity_id: str,
        sequence: int,
        *,
        timeout: timedelta | None = None,
    ) -> None:
        """Deletes a snapshot. Not retried: a second time it would not be found.

        Raises:
            EntityNotFound, NotFound: there is none.
            Conflict: the floor rests on it, it is one of the newest two, or a hold is on the
                entity.

        """
        await self._call(
            "DeleteSnapshot", pb.DeleteSnapshotRequest, pb.DeleteSnapshotResponse, timeout,
            retried=False,
            log=log or self._log, entity_type=entity_type, entity_id=entity_id, sequence=sequence,
        )  # fmt: skip

    async def due(
        self,
        log: str,
        entity_type: str,
        after: str = "",
        limit: int = 100,
        *,
        timeout: timedelta | None = None,
    ) -> DuePage:
        """Entities of a type whose policy wants a snapshot, those ``after`` an id.

        Raises:
            NotFound: there is no such entity type.
            InvalidArgument: ``limit`` is not from 1 to 1,000.

        """
        _check_limit(limit)
        reply = await self._call(
            "ListDueEntities", pb.ListDueEntitiesRequest, pb.ListDueEntitiesResponse, timeout,
            log=log or self._log, entity_type=entity_type, page_size=limit, page_token=after,
        )  # fmt: skip
        found = (
            DueEntity(e.entity_type, e.entity_id, e.sequence, e.snapshot_sequence, e.reason)
            for e in reply.entities
        )
        return DuePage(tuple(found), reply.next_page_token)


class EntityTypes(_Calls):
    """Entity types and what is set for them. Comes from `Client.entity_types`."""

    async def get(self, name: str, *, timeout: timedelta | None = None) -> EntityType:
        """An entity type. Raises `NotFound`."""
        reply = await self._call(
            "GetEntityType", pb.GetEntityTypeRequest, pb.EntityType, timeout, entity_type=name
        )
        return _type(reply)

    async def list(
        self, after: str = "", limit: int = 100, *, timeout: timedelta | None = None
    ) -> builtins.list[EntityType]:
        """A page of the entity types by name, those ``after`` a name. Raises `InvalidArgument`."""
        _check_limit(limit)
        reply = await self._call(
            "ListEntityTypes", pb.ListEntityTypesRequest, pb.ListEntityTypesResponse, timeout,
            page_size=limit, page_token=after,
        )  # fmt: skip
        return [_type(found) for found in reply.entity_types]

    async def put(
        self,
        name: str,
        settings: TypeSettings,
        *,
        version: int | None,
        timeout: timedelta | None = None,
    ) -> EntityType:
        """Sets all that holds for an entity type; ``version`` is the one that was looked at.

        Not retried with a version: a second time it would be another one.

        Raises:
            InvalidArgument: names the setting and the limit.
            Conflict: it was set since, or compacted entities rest on snapshots it rules out.

        """
        reply = await self._call(
            "SetEntityType", pb.SetEntityTypeRequest, pb.EntityType, timeout,
            retried=version is None,
            entity_type=name, expected_version=version,
            settings=_settings(settings),
        )  # fmt: skip
        return _type(reply)


def _new(snapshot: NewSnapshot) -> journal_pb.NewSnapshot:
    try:
        return journal_pb.NewSnapshot(
            type=snapshot.type, content_type=snapshot.content_type, payload=snapshot.payload
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgument("snapshot", f"cannot be sent: {error}") from None


def _settings(settings: TypeSettings) -> pb.EntityTypeSettings:
    try:
        return pb.EntityTypeSettings(
            needs_full_replay=settings.needs_full_replay,
            snapshot_types=settings.snapshot_types,
            trust_snapshots=settings.trust_snapshots,
            snapshot_every=settings.snapshot_every,
            snapshot_age_s=settings.snapshot_age_s,
            keep_snapshots=settings.keep_snapshots,
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgument("settings", f"cannot be sent: {error}") from None


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= 1_000:
        raise InvalidArgument("limit", f"{limit} is not from 1 to 1000")


def _info(message: pb.SnapshotInfo) -> SnapshotInfo:
    return SnapshotInfo(
        message.entity_type,
        message.entity_id,
        message.sequence,
        message.position,
        message.event_time_us,
        message.type,
        message.content_type,
        message.size_bytes,
        message.recorded_at_us,
        message.verified_at_us,
        Source(message.source),
        message.covers,
        message.usable,
    )


def _type(message: pb.EntityType) -> EntityType:
    settings = message.settings
    return EntityType(
        message.entity_type,
        TypeSettings(
            settings.needs_full_replay,
            tuple(settings.snapshot_types),
            settings.trust_snapshots,
            settings.snapshot_every,
            settings.snapshot_age_s,
            settings.keep_snapshots,
        ),
        message.version,
        message.updated_at_us,
        message.updated_by,
    )
