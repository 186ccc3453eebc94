"""What is stored comes back as it was sent: every field, every size up to its limit."""

from __future__ import annotations

import json

import pytest

from journal.model import OCTET_STREAM, Limits, NewEvent, NewSnapshot
from tests.conformance.subject import Subject, entity, event, events

LIMITS = Limits()


async def only(subject: Subject, sent: NewEvent, name: str = "a") -> object:
    await subject.append(entity(name), events=(sent,))
    (found,) = await subject.read()
    _, _, (loaded,) = await subject.load(name)
    assert loaded == found
    return found


async def test_every_field_of_an_event_comes_back(subject: Subject) -> None:
    sent = event(
        payload=bytes(range(256)),
        kind="ItemAdded",
        content_type="application/x-protobuf",
        metadata_json='{"user":"u-1","tags":["a",1,null,true,{"$deep":"$x"}]}',
        correlation_id="corr-1",
        causation_id="cause-1",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        subject="person/7",
        client_time_us=1_700_000_000_123_456,
        schema_version=2**31 - 1,
    )
    found = await only(subject, sent)
    for name in (
        "event_id", "type", "content_type", "payload", "correlation_id", "causation_id",
        "traceparent", "subject", "client_time_us", "schema_version",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(sent, name), name
    assert json.loads(found.metadata_json) == json.loads(sent.metadata_json)


async def test_fields_that_were_not_given_come_back_empty(subject: Subject) -> None:
    found = await only(subject, event(content_type=""))
    assert found.content_type == OCTET_STREAM
    for name in ("metadata_json", "correlation_id", "causation_id", "traceparent", "subject"):
        assert getattr(found, name) == "", name
    assert (found.client_time_us, found.schema_version) == (0, 0)


@pytest.mark.parametrize(
    "field", ["correlation_id", "causation_id", "traceparent", "subject", "client_time_us"]
)
@pytest.mark.parametrize("metadata", ["", "{}", ' {"a": "b"} ', '\n{"a":{"b":"$correlation_id"}}'])
async def test_a_field_comes_back_with_and_without_metadata(
    subject: Subject, field: str, metadata: str
) -> None:
    value = -62_000_000_000_000_001 if field == "client_time_us" else "é\U0001d11e x"
    found = await only(subject, event(metadata_json=metadata, **{field: value}))
    assert getattr(found, field) == value
    own = json.loads(metadata) if metadata else {}
    assert json.loads(found.metadata_json or "{}") == own
    assert bool(found.metadata_json) == bool(own)


@pytest.mark.parametrize(
    "metadata",
    [
        '{"":"","é":"\U0001d11e","q":"\\"\\\\/\\n\\u00e9"}',
        '{"big":9007199254740993,"small":-9223372036854775808,"float":1.5e-7,"zero":-0.0}',
        '{"no nul":"\\\\u0000"}',
        '{"a":1,"a":2}',
    ],
)
@pytest.mark.parametrize("correlated", ["", "c"])
async def test_metadata_keeps_its_meaning(subject: Subject, metadata: str, correlated: str) -> None:
    found = await only(subject, event(metadata_json=metadata, correlation_id=correlated))
    assert json.loads(found.metadata_json) == json.loads(metadata)


@pytest.mark.parametrize(
    "name",
    [
        "x",
        " ",
        "a/b/c",
        "é",
        "e\u0301",
        "日本語",
        "\U0001f469\u200d\U0001f4bb",
        "\u00a0\u3000",
        "\u202e\ufeff",
        "'; DROP TABLE events; --",
        "%_\\",
        "\U0010ffff",
    ],
)
async def test_an_entity_id_may_be_any_text(subject: Subject, name: str) -> None:
    await subject.append(entity(name, kind=name.replace("/", "-")), events=(event(kind=name),))
    kind = name.replace("/", "-")
    found, _, (loaded,) = await subject.load(name, kind=kind)
    assert (found.entity_type, found.entity_id) == (kind, name)
    assert (loaded.entity_type, loaded.entity_id, loaded.type) == (kind, name, name)
    assert await subject.positions(entity_types=(kind,), event_types=(name,)) == [1]
    assert [p async for p in subject.list_all(kind, name)] == [[f"{kind}/{name}"]]


async def test_names_that_look_alike_are_different_entities(subject: Subject) -> None:
    names = ["a", "A", "a ", " a", "é", "e\u0301", "\ufb01", "fi"]
    for name in names:
        await subject.put(name, 1, 0)
    assert (await subject.journal.get_log(subject.log)).entities == len(names)


async def test_the_empty_payload_comes_back(subject: Subject) -> None:
    assert (await only(subject, event(payload=b""))).payload == b""


async def test_everything_at_its_limit_is_accepted(subject: Subject) -> None:
    top = "\U0001d11e"
    name, kind = top * LIMITS.entity_id_chars, top * LIMITS.entity_type_chars
    wide = '{"a":"' + "x" * (LIMITS.metadata_bytes - 8) + '"}'
    assert len(wide) == LIMITS.metadata_bytes
    sent = event(
        payload=b"\xff" * LIMITS.event_bytes,
        kind=top * LIMITS.event_type_chars,
        content_type=top * 255,
        metadata_json=wide,
    )
    await subject.append(entity(name, kind=kind), events=(sent,))
    found, _, (loaded,) = await subject.load(name, kind=kind)
    assert (found.entity_type, found.entity_id) == (kind, name)
    assert loaded.payload == sent.payload
    assert (loaded.type, loaded.content_type) == (sent.type, sent.content_type)
    assert json.loads(loaded.metadata_json) == json.loads(wide)


async def test_an_append_of_four_megabytes_and_one_of_a_thousand_events_are_accepted(
    subject: Subject,
) -> None:
    large = tuple(event(payload=b"x" * 800_000) for _ in range(4))
    snapshot = NewSnapshot("S", b"y" * (LIMITS.append_bytes - 3_200_000))
    await subject.append(entity("a", snapshot=snapshot), events=large)
    done = await subject.append(entity("b"), events=events(LIMITS.append_events))
    assert (done.first_position, done.last_position) == (5, 1004)
    _, stored, _ = await subject.load("a")
    assert stored is not None
    assert stored.payload == snapshot.payload
    assert [len(e.payload) for e in await subject.read(to_position=4)] == [800_000] * 4
    assert await subject.sequences("b") == list(range(1, 1001))


async def test_an_append_may_name_a_thousand_entities(subject: Subject) -> None:
    members = [entity(f"c-{n}", 0) for n in range(1000)]
    done = await subject.append(*members, events=tuple(event(999 - n) for n in range(1000)))
    assert done.last_position == 1000
    assert {e.entity_id: e.position for e in await subject.read()} == {
        f"c-{n}": 1000 - n for n in range(1000)
    }
