"""Bad input: each kind is refused with the class and the field, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from journal.model import Append, EntityAppend, Limits, LoadQuery, NewSnapshot
from kernel.errors import InvalidArgument, LogNotFound, TooLarge
from kernel.ids import new_id
from tests.conformance.subject import Subject, entity, event, events

LIMITS = Limits()
BEL, NUL, C1, LINE, HALF = "\x07", "\0", "\x85", "\u2028", "\ud800"


@dataclass(frozen=True)
class Bad:
    """An append, the error it gets, the field named; ``unsent``: no message can hold it."""

    append: Callable[[], Append]
    error: type[Exception]
    field: str
    unsent: bool = False


def bad_entity(change: dict[str, Any], field: str, *, unsent: bool = False) -> Bad:
    given: dict[str, Any] = {"entity_type": "cart", "entity_id": "good", **change}
    return Bad(
        lambda: Append((entity("fine"), EntityAppend(**given)), (event(0), event(1))),
        InvalidArgument,
        f"entities[1].{field}",
        unsent,
    )


def bad_event(
    field: str,
    value: Any,
    error: type[Exception] = InvalidArgument,
    *,
    unsent: bool = False,
    named: str = "",
) -> Bad:
    change = {"kind" if field == "type" else field: value}
    if field == "entity":
        change = {"member": value}
    return Bad(
        lambda: Append((entity("fine"),), (event(), event(**change), event())),
        error,
        named or f"events[1].{field}",
        unsent,
    )


def append_of(*entities: EntityAppend, count: int = 1, **more: Any) -> Callable[[], Append]:
    return lambda: Append(entities, events(count), **more)


TEXTS = {
    "empty": "",
    "with a NUL": f"a{NUL}",
    "with a bell": f"{BEL}a",
    "with a C1 control": f"a{C1}b",
    "with a line separator": f"a{LINE}b",
    "with a line feed": "a\n",
}
SAME = events(1)[0]

BAD: dict[str, Bad] = {
    **{f"an entity id {k}": bad_entity({"entity_id": v}, "entity_id") for k, v in TEXTS.items()},
    **{
        f"an entity type {k}": bad_entity({"entity_type": v}, "entity_type")
        for k, v in TEXTS.items()
    },
    **{f"an event type {k}": bad_event("type", v) for k, v in TEXTS.items()},
    "an entity id too long": bad_entity({"entity_id": "x" * 513}, "entity_id"),
    "an entity type too long": bad_entity({"entity_type": "x" * 256}, "entity_type"),
    "an event type too long": bad_event("type", "x" * 256),
    "a content type too long": bad_event("content_type", "x" * 256),
    "a content type with a control character": bad_event("content_type", f"a{BEL}"),
    "an entity id with half a surrogate pair": bad_entity(
        {"entity_id": HALF}, "entity_id", unsent=True
    ),
    "an event type with half a surrogate pair": bad_event("type", HALF, unsent=True),
    "an entity type with a slash": bad_entity({"entity_type": "a/b"}, "entity_type"),
    "no entity": Bad(lambda: Append((), events(1)), InvalidArgument, "entities"),
    "no event": Bad(lambda: Append((entity("a"),), ()), InvalidArgument, "events"),
    "1001 events": Bad(append_of(entity("a"), count=1001), TooLarge, "events"),
    "10000 events": Bad(append_of(entity("a"), count=10_000), TooLarge, "events"),
    "the same event id twice": Bad(
        lambda: Append((entity("a"),), (SAME, event(), SAME)),
        InvalidArgument,
        "events[2].event_id",
    ),
    "one event id for two entities": Bad(
        lambda: Append(
            (entity("a"), entity("b")),
            (event(0, event_id=SAME.event_id), event(1, event_id=SAME.event_id)),
        ),
        InvalidArgument,
        "events[1].event_id",
    ),
    "an event id that is no UUID": bad_event("event_id", "one"),
    "an event id in upper case": bad_event("event_id", new_id().upper()),
    "an event id in braces": bad_event("event_id", "{" + new_id() + "}"),
    "an event id with a line feed": bad_event("event_id", new_id() + "\n"),
    "an index beyond the entities": bad_event("entity", 1),
    "a negative index": bad_event("entity", -1, unsent=True),
    "an entity that no event names": Bad(
        append_of(entity("a"), entity("b")), InvalidArgument, "entities[1]"
    ),
    "the same entity twice": Bad(
        lambda: Append((entity("a"), entity("b"), entity("a")), tuple(map(event, range(3)))),
        InvalidArgument,
        "entities[2]",
    ),
    "the same entity twice, expected to be different things": Bad(
        lambda: Append((entity("a", 0), entity("a", 5)), tuple(map(event, range(2)))),
        InvalidArgument,
        "entities[1]",
    ),
    "a negative expected sequence": bad_entity({"expected": -1}, "expected.sequence"),
    "an expected sequence too high": bad_entity({"expected": 2**62 + 1}, "expected.sequence"),
    "an expected sequence beyond 64 bits": bad_entity(
        {"expected": 2**63}, "expected.sequence", unsent=True
    ),
    "a negative first sequence": bad_entity({"first_sequence": -1}, "first_sequence"),
    "a first sequence too high": bad_entity({"first_sequence": 2**62 + 1}, "first_sequence"),
    "a first sequence that contradicts the expected one": bad_entity(
        {"first_sequence": 5, "expected": 3}, "first_sequence"
    ),
    "a payload over the limit": bad_event("payload", b"x" * 1_000_001, TooLarge),
    "an append over the limit": Bad(
        lambda: Append((entity("a"),), tuple(event(payload=b"x" * 900_000) for _ in range(5))),
        TooLarge,
        "append",
    ),
    "a snapshot that brings an append over the limit": Bad(
        lambda: Append(
            (entity("a", snapshot=NewSnapshot("S", b"x" * 3_500_001)),),
            (event(payload=b"x" * 500_000),),
        ),
        TooLarge,
        "append",
    ),
    "a snapshot over the limit": bad_entity(
        {"snapshot": NewSnapshot("S", b"x" * 4_000_001)}, "snapshot.payload"
    ),
    "a snapshot without a type": bad_entity({"snapshot": NewSnapshot("", b"")}, "snapshot.type"),
    "metadata that is not JSON": bad_event("metadata_json", "{a:1}"),
    "metadata that ends early": bad_event("metadata_json", '{"a":1'),
    "metadata with a number no double holds": bad_event("metadata_json", '{"a":1e999}'),
    "metadata that is NaN": bad_event("metadata_json", '{"a":NaN}'),
    "metadata that is a list": bad_event("metadata_json", "[1]"),
    "metadata that is null": bad_event("metadata_json", "null"),
    "metadata that is a text": bad_event("metadata_json", '"a"'),
    "metadata too large": bad_event("metadata_json", '{"a":"' + "x" * 16_377 + '"}', TooLarge),
    "metadata too large in bytes": bad_event(
        "metadata_json", '{"a":"' + "é" * 8_189 + '"}', TooLarge
    ),
    "metadata nested too deep": bad_event("metadata_json", '{"a":' + "[" * 5000 + "]" * 5000 + "}"),
    "metadata with a reserved key": bad_event("metadata_json", '{"$correlation_id":"x"}'),
    "metadata with a reserved key written otherwise": bad_event("metadata_json", '{"\\u0024x":1}'),
    "metadata with a NUL": bad_event("metadata_json", '{"a":"\\u0000"}'),
    "metadata with a NUL in a key": bad_event("metadata_json", '{"a\\u0000":1}'),
    "metadata with a NUL deep inside": bad_event("metadata_json", '{"a":[{"b":["\\u0000"]}]}'),
    "metadata with half a surrogate pair": bad_event("metadata_json", '{"a":"\\ud800"}'),
    **{
        f"a {name} with a control character": bad_event(name, f"a{BEL}b")
        for name in ("correlation_id", "causation_id", "traceparent", "subject")
    },
    "a correlation id too long": bad_event("correlation_id", "x" * 256),
    "a client time out of range": bad_event("client_time_us", 2**62),
    "a schema version too high": bad_event("schema_version", 2**31),
    "a negative schema version": bad_event("schema_version", -1, unsent=True),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_is_refused_and_leaves_nothing_behind(subject: Subject, bad: Bad) -> None:
    await subject.put("good", 1)
    before = await subject.contents()
    error, field = bad.error, bad.field
    if field.endswith("snapshot.payload"):
        error = TooLarge
    if bad.unsent and subject.kind == "client":
        error, field = InvalidArgument, "append"
    with pytest.raises(error) as caught:
        await subject.journal.append(subject.log, bad.append())
    assert caught.type is error
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert await subject.contents() == before
    assert (await subject.verify()).ok


@pytest.mark.parametrize(
    ("log", "error"),
    [("nosuch", LogNotFound), ("No Such", InvalidArgument), ("a\0", InvalidArgument)],
)
async def test_an_append_to_a_log_that_is_not_there_is_refused(
    subject: Subject, log: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        await subject.journal.append(log, Append((entity("a"),), events(1)))
    assert caught.type is error
    assert "nosuch" not in [info.log for info in await subject.journal.list_logs()]


async def test_a_refusal_by_size_says_size_limit_and_unit(subject: Subject) -> None:
    with pytest.raises(TooLarge) as caught:
        await subject.append(entity("a"), events=events(1001))
    assert (caught.value.actual, caught.value.limit, caught.value.unit) == (1001, 1000, "events")
    with pytest.raises(TooLarge) as caught:
        await subject.append(entity("a"), events=(event(payload=b"x" * 1_000_001),))
    assert (caught.value.actual, caught.value.limit) == (1_000_001, 1_000_000)


READS: dict[str, tuple[dict[str, Any], str]] = {
    "a negative position": ({"from_position": -1}, "from_position"),
    "a negative end": ({"to_position": -1}, "to_position"),
    "a negative count": ({"max_events": -1}, "max_events"),
    "a negative time": ({"from_time_us": -1}, "from_time_us"),
    "a time out of range": ({"to_time_us": 2**62}, "to_time_us"),
    "an empty type": ({"entity_types": ("a", "")}, "entity_types[1]"),
    "a type with a NUL": ({"event_types": (NUL,)}, "event_types[0]"),
    "a type too long": ({"event_types": ("x" * 256,)}, "event_types[0]"),
    "too many types": ({"event_types": ("x",) * 1001}, "event_types"),
    "slices in the wrong order": ({"slices": ((5, 4),)}, "slices[0]"),
    "a slice too high": ({"slices": ((0, 1), (0, 1024))}, "slices[1]"),
}
UNSENT_READS: dict[str, tuple[dict[str, Any], str]] = {
    "a position beyond 64 bits": ({"from_position": 2**63}, "from_position"),
    "a negative slice": ({"slices": ((-1, 4),)}, "slices[0]"),
    "a type with half a surrogate pair": ({"entity_types": (HALF,)}, "entity_types[0]"),
}


@pytest.mark.parametrize(("query", "field"), READS.values(), ids=READS.keys())
async def test_a_read_is_refused_for(subject: Subject, query: dict[str, Any], field: str) -> None:
    await subject.put("a")
    with pytest.raises(InvalidArgument) as caught:
        await subject.batches(**query)
    assert caught.value.field == field


@pytest.mark.parametrize(("query", "field"), UNSENT_READS.values(), ids=UNSENT_READS.keys())
async def test_a_read_that_no_message_can_hold_is_refused_for(
    subject: Subject, query: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await subject.batches(**query)
    assert caught.value.field == ("query" if subject.kind == "client" else field)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (LoadQuery("", "a"), "entity_type"),
        (LoadQuery("cart", ""), "entity_id"),
        (LoadQuery("a/b", "a"), "entity_type"),
        (LoadQuery("cart", "x" * 513), "entity_id"),
        (LoadQuery("cart", NUL), "entity_id"),
        (LoadQuery("cart", "a", after_sequence=-1), "after_sequence"),
        (LoadQuery("cart", "a", to_sequence=-1), "to_sequence"),
    ],
)
async def test_a_load_is_refused_for(subject: Subject, query: LoadQuery, field: str) -> None:
    await subject.put("a")
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(subject.journal.load(subject.log, query)))
    assert caught.value.field == field
    if not field.endswith("sequence"):
        with pytest.raises(InvalidArgument) as caught:
            await subject.journal.get_entity(subject.log, query.entity_type, query.entity_id)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"page_size": 1001}, "page_size"),
        ({"entity_type": NUL}, "entity_type"),
        ({"entity_type": "x" * 256}, "entity_type"),
        ({"id_prefix": BEL}, "id_prefix"),
        ({"id_prefix": "x" * 513}, "id_prefix"),
        ({"page_token": "?"}, "page_token"),
        ({"page_token": "AAAA"}, "page_token"),
        ({"page_token": "W10="}, "page_token"),  # []
        ({"page_token": "WzEsMl0="}, "page_token"),  # [1,2]
        ({"page_token": "WyJhIiwiXHUwMDAwIl0="}, "page_token"),  # ["a","\u0000"]
        ({"page_token": "bnVsbA=="}, "page_token"),  # null
        ({"page_token": "é"}, "page_token"),
    ],
)
async def test_a_list_is_refused_for(
    subject: Subject, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await subject.journal.list_entities(subject.log, **arguments)
    assert caught.value.field == field


async def test_a_position_is_not_sought_at_an_impossible_time(subject: Subject) -> None:
    for time in (2**62, -(2**62)):
        with pytest.raises(InvalidArgument) as caught:
            await subject.journal.position_at(subject.log, time)
        assert caught.value.field == "time_us"
