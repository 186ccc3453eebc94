"""Between the model's dataclasses and protocol messages, on the client's side.

Events that come back stay messages: a protobuf ``Event`` has every attribute of
`journal.model.EventView` and decodes nothing before it is touched. `to_event` makes a dataclass.
"""

from __future__ import annotations

from journal.model import (
    FROM_NOW,
    Append,
    Appended,
    AppendedEntity,
    Entity,
    Event,
    EventView,
    Expectation,
    LogInfo,
    ReadQuery,
    Snapshot,
    SubscribeQuery,
    VerifyProgress,
    VerifyReport,
)
from kernel.errors import InvalidArgument
from kernel.ids import new_id
from sidecar_api.generated import journal_pb2 as pb

_ANY = pb.Expected(any=True)
_EXISTS = pb.Expected(exists=True)


def append_message(
    log: str, append: Append, *, auto_append_id: bool
) -> tuple[pb.AppendRequest, bool]:
    """The request of an append, and whether it may be sent twice.

    Events get ids (the server's, when the append has an id); an append that is not exact gets an
    append id when ``auto_append_id``.

    Raises:
        InvalidArgument: a value that no message can hold (a negative index, half a surrogate pair).

    """
    request = pb.AppendRequest(log=log, append_id=append.append_id)
    exact = True
    try:
        for entity in append.entities:
            expected = entity.expected
            item = request.entities.add(
                entity_type=entity.entity_type,
                entity_id=entity.entity_id,
                first_sequence=entity.first_sequence,
            )
            if isinstance(expected, Expectation):
                item.expected.CopyFrom(_ANY if expected is Expectation.ANY else _EXISTS)
                exact = exact and bool(entity.first_sequence)
            else:
                item.expected.sequence = expected
            if entity.snapshot is not None:
                item.snapshot.type = entity.snapshot.type
                item.snapshot.content_type = entity.snapshot.content_type
                item.snapshot.payload = entity.snapshot.payload
        add = request.events.add
        for event in append.events:
            message = add(
                type=event.type,
                content_type=event.content_type,
                payload=event.payload,
                # Under a caller's append id, ids made here would make a retry another append.
                event_id=event.event_id or ("" if append.append_id else new_id()),
            )
            if event.entity:
                message.entity = event.entity
            if event.metadata_json:
                message.metadata_json = event.metadata_json
            if event.correlation_id:
                message.correlation_id = event.correlation_id
            if event.causation_id:
                message.causation_id = event.causation_id
            if event.traceparent:
                message.traceparent = event.traceparent
            if event.subject:
                message.subject = event.subject
            if event.client_time_us:
                message.client_time_us = event.client_time_us
            if event.schema_version:
                message.schema_version = event.schema_version
    except (ValueError, TypeError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidArgument("append", f"cannot be sent: {error}") from None
    if not exact and not request.append_id and auto_append_id:
        request.append_id = new_id()
    return request, exact or bool(request.append_id)


def to_appended(message: pb.AppendResponse) -> Appended:
    """The model's result of an append."""
    return Appended(
        message.first_position,
        message.last_position,
        message.recorded_at_us,
        tuple(
            [
                AppendedEntity(e.first_sequence, e.last_sequence, e.snapshot_due)
                for e in message.entities
            ]
        ),
        message.duplicate,
    )


def to_event(view: EventView) -> Event:
    """A dataclass with everything a view shows."""
    return Event(
        position=view.position,
        sequence=view.sequence,
        entity_type=view.entity_type,
        entity_id=view.entity_id,
        type=view.type,
        content_type=view.content_type,
        payload=view.payload,
        event_id=view.event_id,
        recorded_at_us=view.recorded_at_us,
        metadata_json=view.metadata_json,
        correlation_id=view.correlation_id,
        causation_id=view.causation_id,
        traceparent=view.traceparent,
        subject=view.subject,
        client_time_us=view.client_time_us,
        schema_version=view.schema_version,
        slice=view.slice,
        previous_position=view.previous_position,
    )


def to_entity(message: pb.Entity) -> Entity:
    """The model's entity."""
    return Entity(
        message.entity_type,
        message.entity_id,
        message.sequence,
        message.floor,
        message.state,
        message.event_count,
        message.first_position,
        message.last_position,
        message.slice,
        message.snapshot_sequence,
    )


def to_snapshot(message: pb.Snapshot) -> Snapshot:
    """The model's snapshot."""
    return Snapshot(
        message.sequence,
        message.type,
        message.content_type,
        message.payload,
        message.recorded_at_us,
    )


def to_log(message: pb.Log) -> LogInfo:
    """The model's log."""
    return LogInfo(
        message.log,
        message.head,
        message.first,
        message.chunk_size,
        message.chunks,
        message.chunks_ahead,
        message.recorded_at_us,
        message.bytes_total,
        message.entities,
    )


def read_message(log: str, query: ReadQuery) -> pb.ReadLogRequest:
    """The request of a read. Raises `InvalidArgument` for what no message can hold."""
    try:
        return pb.ReadLogRequest(
            log=log,
            from_position=query.from_position,
            to_position=query.to_position,
            backwards=query.backwards,
            max_events=query.max_events,
            entity_types=query.entity_types,
            event_types=query.event_types,
            slices=[pb.SliceRange(first=low, last=high) for low, high in query.slices],
            from_time_us=query.from_time_us,
            to_time_us=query.to_time_us,
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgument("query", f"cannot be sent: {error}") from None


def subscribe_message(log: str, query: SubscribeQuery) -> pb.SubscribeRequest:
    """The request of a subscription. Raises `InvalidArgument` for what no message can hold."""
    try:
        request = pb.SubscribeRequest(
            log=log,
            entity_types=query.entity_types,
            event_types=query.event_types,
            slices=[pb.SliceRange(first=low, last=high) for low, high in query.slices],
            from_time_us=query.from_time_us,
        )
        if query.from_position == FROM_NOW:
            request.from_now = True
        elif query.from_position:
            request.from_position = query.from_position
    except (ValueError, TypeError) as error:
        raise InvalidArgument("query", f"cannot be sent: {error}") from None
    return request


def to_verify(message: pb.VerifyLogResponse) -> VerifyProgress:
    """The model's progress of a verification."""
    report = None
    if message.HasField("report"):
        found = message.report
        report = VerifyReport(
            found.ok,
            found.from_position,
            found.to_position,
            found.events,
            found.removed,
            found.entities,
            found.holes,
            tuple(found.findings),
            found.findings_total,
        )
    return VerifyProgress(message.verified_to, message.head, report)
