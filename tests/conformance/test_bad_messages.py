"""Bytes that no client of ours sends: invalid UTF-8, and what is no message at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sidecar_api.generated import journal_pb2 as pb
from tests.conformance.subject import Subject

pytestmark = pytest.mark.parametrize("place", ["client-18"], indirect=True)

SERVICE = "/everstate.journal.v1.JournalService/"


async def contents(subject: Subject) -> tuple[Any, ...]:
    await subject.put("good", 1)
    return await subject.contents()


@pytest.fixture
async def channel(subject: Subject) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(subject.address) as opened:
        yield opened


def broken(message: Any) -> bytes:
    """The message with invalid UTF-8 in the place of the text ``!!!!``."""
    data: bytes = message.SerializeToString()
    assert data.count(b"!!!!") == 1
    return data.replace(b"!!!!", b"\xff\xc3\x28\xfe")


def violation(error: grpc.aio.AioRpcError) -> error_details_pb2.BadRequest.FieldViolation:
    status = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    found = error_details_pb2.BadRequest()
    assert any(packed.Unpack(found) for packed in status.details if packed.Is(found.DESCRIPTOR))
    return found.field_violations[0]


def an_append(log: str, **change: Any) -> pb.AppendRequest:
    named: dict[str, Any] = {"entity_type": "cart", "entity_id": "a", "type": "Added", **change}
    return pb.AppendRequest(
        log=log,
        entities=[pb.EntityAppend(entity_type=named["entity_type"], entity_id=named["entity_id"])],
        events=[
            pb.NewEvent(
                type=named["type"], payload=b"x", metadata_json=named.get("metadata_json", "")
            )
        ],
    )


@pytest.mark.parametrize("field", ["entity_type", "entity_id", "type", "metadata_json"])
async def test_an_append_with_invalid_utf_8_is_refused_and_names_the_message(
    subject: Subject, channel: grpc.aio.Channel, field: str
) -> None:
    before = await contents(subject)
    call = channel.unary_unary(SERVICE + "Append")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(broken(an_append(subject.log, **{field: "!!!!"})))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(caught.value).field == "message"
    assert "UTF-8" in violation(caught.value).description
    assert await subject.contents() == before


async def test_a_stream_that_gets_invalid_utf_8_ends_and_names_the_message(
    subject: Subject, channel: grpc.aio.Channel
) -> None:
    before = await contents(subject)
    item = pb.IdentifiedAppend(id=1, append=an_append(subject.log, entity_id="!!!!"))
    call = channel.stream_stream(SERVICE + "AppendStream")()
    await call.write(broken(pb.AppendStreamRequest(appends=[item])))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        assert await call.read() is not grpc.aio.EOF
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(caught.value).field == "message"
    assert await subject.contents() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GetEntity", pb.GetEntityRequest(entity_type="cart", entity_id="!!!!")),
        ("ListEntities", pb.ListEntitiesRequest(id_prefix="!!!!")),
        ("GetLog", pb.GetLogRequest(log="!!!!")),
        ("CreateLog", pb.CreateLogRequest(log="!!!!")),
    ],
)
async def test_a_call_with_invalid_utf_8_is_refused_and_names_the_message(
    channel: grpc.aio.Channel, name: str, message: Any
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(SERVICE + name)(broken(message))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(caught.value).field == "message"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ReadLog", pb.ReadLogRequest(entity_types=["!!!!"])),
        ("LoadEntity", pb.LoadEntityRequest(entity_type="cart", entity_id="!!!!")),
    ],
)
async def test_a_streamed_read_with_invalid_utf_8_is_refused_and_names_the_message(
    channel: grpc.aio.Channel, name: str, message: Any
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_stream(SERVICE + name)(broken(message)).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(caught.value).field == "message"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff", b"\x12\x05abc"])
async def test_what_is_not_a_message_is_refused(
    subject: Subject, channel: grpc.aio.Channel, data: bytes
) -> None:
    before = await contents(subject)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(SERVICE + "Append")(data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(caught.value).field == "message"
    assert await subject.contents() == before
