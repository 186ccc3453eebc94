"""Deliveries of subscriptions as messages: every event of the tail is encoded once, for everybody.

Messages are put together from bytes. A field that repeats may be sent in pieces, and of a field
that does not the last one counts (protobuf's encoding guide, "Last One Wins"), so the encoded
events of several commits and a few bytes about positions, one after the other, are one message.
"""

from __future__ import annotations

from itertools import chain

from journal.rows import Names
from journal.subscriptions import Delivery
from journal.tail import Segment
from kernel import telemetry
from sidecar_api import convert
from sidecar_api.generated import journal_pb2 as pb

_EVENTS = bytes([pb.SubscribeResponse.EVENTS_FIELD_NUMBER << 3 | 2])


class TailEncoder:
    """Makes the messages of one log's subscriptions."""

    def __init__(self, log: str, names: Names) -> None:
        self._names = names
        self._encoded = telemetry.tail_encoded.labels(log)

    def message(self, delivery: Delivery) -> tuple[bytes, int]:
        """The encoded SubscribeResponse of a delivery, and how many events it has."""
        slices = delivery.slices
        if slices is None:
            return self._from_rows(delivery)
        if delivery.match is None:
            if delivery.encoded is None:
                parts = [self._parts(segment)[low:high] for segment, low, high in slices]
                message = b"".join(chain(*parts, (_trailer(delivery),)))
                delivery.encoded = message, sum(map(len, parts))
            encoded: tuple[bytes, int] = delivery.encoded
            return encoded
        match = delivery.match
        chosen = [
            part
            for segment, low, high in slices
            for row, part in zip(
                segment.rows[low:high], self._parts(segment)[low:high], strict=True
            )
            if match(row)
        ]
        return b"".join((*chosen, _trailer(delivery))), len(chosen)

    def _parts(self, segment: Segment) -> list[bytes]:
        """Each event of a segment as a field of the message."""
        parts: list[bytes] | None = segment.encoded
        if parts is None:
            message = pb.SubscribeResponse()
            convert.add_events(message.events, segment.rows, self._names)
            parts = []
            for event in message.events:
                data = event.SerializeToString()
                parts.append(_EVENTS + _varint(len(data)) + data)
            segment.encoded = parts
            self._encoded.inc(len(parts))
        return parts

    def _from_rows(self, delivery: Delivery) -> tuple[bytes, int]:
        message = pb.SubscribeResponse(
            next_position=delivery.next_position,
            head=delivery.head,
            caught_up=delivery.caught_up,
            fell_behind=delivery.fell_behind,
        )
        convert.add_events(message.events, delivery.rows, self._names)
        for first, last in delivery.removed:
            message.removed.add(first=first, last=last)
        return message.SerializeToString(), len(delivery.rows)


def _trailer(delivery: Delivery) -> bytes:
    return pb.SubscribeResponse(
        next_position=delivery.next_position,
        head=delivery.head,
        caught_up=delivery.caught_up,
        fell_behind=delivery.fell_behind,
    ).SerializeToString()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
