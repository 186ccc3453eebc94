"""Between stored rows or model dataclasses and protocol messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from journal.model import (
    FROM_NOW,
    Appended,
    Entity,
    Limits,
    LogInfo,
    ReadQuery,
    Snapshot,
    SubscribeQuery,
    VerifyProgress,
)
from journal.rows import EventRow, Names, split_metadata
from kernel import clock
from kernel.errors import InvalidArgument
from sidecar_api.generated import journal_pb2 as pb


def add_events(target: Any, rows: Iterable[EventRow], names: Names) -> None:
    """Appends the events of ``rows`` to a repeated field of ``Event``.

    The hot path of every read: one call of ``add`` an event, times converted once a commit.
    """
    add = target.add
    kinds = names.event_types
    entity_types = names.entity_types
    last_at = None
    at_us = 0
    for (position, sequence, at, previous, event_id, type_id, entity_type_id, part, entity_id,
         payload, metadata) in rows:  # fmt: skip
        if at != last_at:
            at_us = clock.to_us(at)
            last_at = at
        kind = kinds[type_id]
        event = add(
            position=position,
            sequence=sequence,
            entity_type=entity_types[entity_type_id],
            entity_id=entity_id,
            type=kind[0],
            content_type=kind[1],
            payload=payload,
            event_id=str(event_id),
            recorded_at_us=at_us,
            slice=part,
        )
        if previous is not None:
            event.previous_position = previous
        if kind[2]:
            event.schema_version = kind[2]
        if metadata is not None:
            event.metadata_json, extras = split_metadata(metadata)
            for name, value in extras.items():
                setattr(event, name, value)


def set_appended(message: pb.AppendResponse, appended: Appended) -> None:
    """Fills an AppendResponse."""
    message.first_position = appended.first_position
    message.last_position = appended.last_position
    message.recorded_at_us = appended.recorded_at_us
    add = message.entities.add
    for first, last, due in appended.entities:
        if due:
            add(first_sequence=first, last_sequence=last, snapshot_due=True)
        else:
            add(first_sequence=first, last_sequence=last)
    if appended.duplicate:
        message.duplicate = True


def entity_message(entity: Entity) -> pb.Entity:
    """The message of an entity."""
    return pb.Entity(
        entity_type=entity.entity_type,
        entity_id=entity.entity_id,
        sequence=entity.sequence,
        floor=entity.floor,
        state=entity.state,
        event_count=entity.event_count,
        first_position=entity.first_position,
        last_position=entity.last_position,
        slice=entity.slice,
        snapshot_sequence=entity.snapshot_sequence,
    )


def snapshot_message(snapshot: Snapshot) -> pb.Snapshot:
    """The message of a snapshot."""
    return pb.Snapshot(
        sequence=snapshot.sequence,
        type=snapshot.type,
        content_type=snapshot.content_type,
        payload=snapshot.payload,
        recorded_at_us=snapshot.recorded_at_us,
    )


def log_message(info: LogInfo) -> pb.Log:
    """The message of a log."""
    return pb.Log(
        log=info.log,
        head=info.head,
        first=info.first,
        chunk_size=info.chunk_size,
        chunks=info.chunks,
        chunks_ahead=info.chunks_ahead,
        recorded_at_us=info.recorded_at_us,
        bytes_total=info.bytes_total,
        entities=info.entities,
    )


def limits_message(limits: Limits) -> pb.Limits:
    """The message of the limits."""
    return pb.Limits(
        entity_type_chars=limits.entity_type_chars,
        event_type_chars=limits.event_type_chars,
        entity_id_chars=limits.entity_id_chars,
        metadata_bytes=limits.metadata_bytes,
        event_bytes=limits.event_bytes,
        append_events=limits.append_events,
        append_bytes=limits.append_bytes,
        message_bytes=limits.message_bytes,
    )


def verify_message(progress: VerifyProgress) -> pb.VerifyLogResponse:
    """The message of a verification's progress or report."""
    message = pb.VerifyLogResponse(verified_to=progress.verified_to, head=progress.head)
    report = progress.report
    if report is not None:
        message.report.CopyFrom(
            pb.VerifyReport(
                ok=report.ok,
                from_position=report.from_position,
                to_position=report.to_position,
                events=report.events,
                removed=report.removed,
                entities=report.entities,
                holes=report.holes,
                findings=report.findings,
                findings_total=report.findings_total,
            )
        )
    return message


def read_query(request: pb.ReadLogRequest) -> ReadQuery:
    """The query of a request; checks are the reader's."""
    return ReadQuery(
        from_position=request.from_position,
        to_position=request.to_position,
        backwards=request.backwards,
        max_events=request.max_events,
        entity_types=tuple(request.entity_types),
        event_types=tuple(request.event_types),
        slices=tuple((part.first, part.last) for part in request.slices),
        from_time_us=request.from_time_us,
        to_time_us=request.to_time_us,
    )


def subscribe_query(request: pb.SubscribeRequest) -> SubscribeQuery:
    """The query of a request. Raises `InvalidArgument` for a position that cannot be."""
    start = request.WhichOneof("start")
    if start == "from_position" and request.from_position < 1:
        raise InvalidArgument("from_position", f"{request.from_position} is not a position")
    now = start == "from_now" and request.from_now
    return SubscribeQuery(
        from_position=FROM_NOW if now else request.from_position,
        entity_types=tuple(request.entity_types),
        event_types=tuple(request.event_types),
        slices=tuple((part.first, part.last) for part in request.slices),
        from_time_us=request.from_time_us,
    )
