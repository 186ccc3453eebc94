"""`everstate.snapshot.v1.SnapshotService` on `snapshots.store`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from journal.model import NewSnapshot
from journal.preparation import check_written_log
from journal.queries import check_page_size
from kernel.errors import InvalidArgument, NotFound, PermissionDenied
from operations.doors import check
from sidecar_api.generated import snapshot_pb2 as pb
from sidecar_api.services.calls import Method, caller_of
from snapshots.model import KEPT_AT_LEAST, EntityType, SnapshotInfo, TypeSettings
from snapshots.store import SnapshotStore, TypeStore

Context = Any  # grpc.aio.ServicerContext; its stubs know nothing of our messages

DEFAULT_TIMEOUT = 30.0


class SnapshotService:
    """The calls of the service; `sidecar_api.server` registers them."""

    name = pb.DESCRIPTOR.services_by_name["SnapshotService"].full_name

    def __init__(self, snapshots: SnapshotStore, types: TypeStore) -> None:
        self._snapshots = snapshots
        self._types = types

    def methods(self) -> Sequence[Method]:
        """See `sidecar_api.services.calls.Service.methods`."""
        return (
            Method("SaveSnapshot", "unary", pb.SaveSnapshotRequest, self.save),
            Method("GetSnapshot", "unary", pb.GetSnapshotRequest, self.get),
            Method("ListSnapshots", "unary", pb.ListSnapshotsRequest, self.list),
            Method("DeleteSnapshot", "unary", pb.DeleteSnapshotRequest, self.delete),
            Method("ListDueEntities", "unary", pb.ListDueEntitiesRequest, self.due),
            Method("GetEntityType", "unary", pb.GetEntityTypeRequest, self.get_type),
            Method("ListEntityTypes", "unary", pb.ListEntityTypesRequest, self.list_types),
            Method("SetEntityType", "unary", pb.SetEntityTypeRequest, self.set_type),
        )

    def drain(self) -> None:
        """Its calls are short."""

    async def save(
        self, request: pb.SaveSnapshotRequest, context: Context
    ) -> pb.SaveSnapshotResponse:
        if not request.HasField("snapshot"):
            raise InvalidArgument("snapshot", "is missing")
        check_written_log(request.log)
        if request.replace:
            await self._allowed()
        given = request.snapshot
        info = await self._snapshots.save(
            request.log, request.entity_type, request.entity_id, request.sequence,
            NewSnapshot(given.type, given.payload, given.content_type),
            replace=request.replace, principal=caller_of(context), timeout=_timeout(context),
        )  # fmt: skip
        return pb.SaveSnapshotResponse(snapshot=_info(info))

    async def _allowed(self) -> None:
        """What removes a snapshot is guarded as the operation that does it for many is."""
        await check(self._snapshots.database, "snapshot-prune")

    async def get(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        info, payload = await self._snapshots.get(
            request.log, request.entity_type, request.entity_id,
            sequence=request.sequence, time_us=request.time_us, timeout=_timeout(context),
        )  # fmt: skip
        return pb.GetSnapshotResponse(snapshot=_info(info), payload=payload)

    async def list(
        self, request: pb.ListSnapshotsRequest, context: Context
    ) -> pb.ListSnapshotsResponse:
        size = check_page_size(request.page_size)
        before = _number_of(request.page_token)
        found = await self._snapshots.list(
            request.log, request.entity_type, request.entity_id,
            before=before, limit=size, timeout=_timeout(context),
        )  # fmt: skip
        return pb.ListSnapshotsResponse(
            snapshots=map(_info, found),
            next_page_token=str(found[-1].sequence) if len(found) == size else "",
        )

    async def delete(
        self, request: pb.DeleteSnapshotRequest, context: Context
    ) -> pb.DeleteSnapshotResponse:
        check_written_log(request.log)
        await self._allowed()
        await self._snapshots.delete(
            request.log, request.entity_type, request.entity_id, request.sequence,
            principal=caller_of(context), timeout=_timeout(context),
        )  # fmt: skip
        return pb.DeleteSnapshotResponse()

    async def due(
        self, request: pb.ListDueEntitiesRequest, context: Context
    ) -> pb.ListDueEntitiesResponse:
        page = await self._snapshots.due(
            request.log, request.entity_type, request.page_token,
            check_page_size(request.page_size), timeout=_timeout(context),
        )  # fmt: skip
        return pb.ListDueEntitiesResponse(
            entities=[
                pb.DueEntity(
                    entity_type=found.entity_type,
                    entity_id=found.entity_id,
                    sequence=found.sequence,
                    snapshot_sequence=found.snapshot_sequence,
                    reason=found.reason,
                )
                for found in page.entities
            ],
            next_page_token=page.after,
        )

    async def get_type(self, request: pb.GetEntityTypeRequest, context: Context) -> pb.EntityType:
        return _type(await self._types.get(request.entity_type, timeout=_timeout(context)))

    async def list_types(
        self, request: pb.ListEntityTypesRequest, context: Context
    ) -> pb.ListEntityTypesResponse:
        size = check_page_size(request.page_size)
        found = await self._types.list(request.page_token, size, timeout=_timeout(context))
        return pb.ListEntityTypesResponse(
            entity_types=map(_type, found),
            next_page_token=found[-1].name if len(found) == size else "",
        )

    async def set_type(self, request: pb.SetEntityTypeRequest, context: Context) -> pb.EntityType:
        given = request.settings
        settings = TypeSettings(
            given.needs_full_replay,
            tuple(given.snapshot_types),
            given.trust_snapshots,
            given.snapshot_every,
            given.snapshot_age_s,
            given.keep_snapshots or KEPT_AT_LEAST,
        )
        expected = request.expected_version if request.HasField("expected_version") else None
        settings.check()
        try:  # before a type is made
            _permitted((await self._types.get(request.entity_type)).settings, settings)
        except NotFound:
            _permitted(TypeSettings(), settings)
        return _type(
            await self._types.change(
                request.entity_type, lambda before: _permitted(before, settings),
                version=expected, principal=caller_of(context), timeout=_timeout(context),
            )
        )  # fmt: skip


def _permitted(before: TypeSettings, after: TypeSettings) -> TypeSettings:
    """``after``, where whoever reaches the port may change ``before`` to it.

    Raises:
        PermissionDenied: compaction would trust what nobody has proven.

    """
    if after.trust_snapshots and not before.trust_snapshots:
        denied = "trust_snapshots cannot be set"
    elif before.needs_full_replay and not after.needs_full_replay:
        denied = "needs_full_replay cannot be taken away"
    else:
        return after
    raise PermissionDenied(
        f"{denied} over gRPC, where callers have no role: an admin does it by PUT"
        " /api/v1/entity-types/{name} (`everstate entity-type set`)"
    )


def _info(info: SnapshotInfo) -> pb.SnapshotInfo:
    return pb.SnapshotInfo(
        entity_type=info.entity_type,
        entity_id=info.entity_id,
        sequence=info.sequence,
        position=info.position,
        event_time_us=info.event_at_us,
        type=info.type,
        content_type=info.content_type,
        size_bytes=info.size_bytes,
        recorded_at_us=info.recorded_at_us,
        verified_at_us=info.verified_at_us,
        source=pb.SnapshotInfo.Source.ValueType(int(info.source)),
        covers=info.covers,
        usable=info.usable,
    )


def _type(found: EntityType) -> pb.EntityType:
    settings = found.settings
    return pb.EntityType(
        entity_type=found.name,
        settings=pb.EntityTypeSettings(
            needs_full_replay=settings.needs_full_replay,
            snapshot_types=settings.snapshot_types,
            trust_snapshots=settings.trust_snapshots,
            snapshot_every=settings.snapshot_every,
            snapshot_age_s=settings.snapshot_age_s,
            keep_snapshots=settings.keep_snapshots,
        ),
        version=found.version,
        updated_at_us=found.updated_at_us,
        updated_by=found.updated_by,
    )


def _number_of(token: str) -> int:
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidArgument("page_token", "is not one this server made")
    return int(token or 0)


def _timeout(context: Context) -> float:
    remaining = context.time_remaining()
    return DEFAULT_TIMEOUT if remaining is None else max(0.001, float(remaining))
