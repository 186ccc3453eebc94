"""What an append becomes before it is written; what is refused is in tests/conformance too."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal.model import (
    ANY,
    EXISTS,
    OCTET_STREAM,
    Append,
    EntityAppend,
    Expected,
    Limits,
    NewEvent,
    NewSnapshot,
)
from journal.preparation import (
    EVENT_OVERHEAD_BYTES,
    MAX_SEQUENCE,
    MODE_ANY,
    MODE_EXISTS,
    PreparedAppend,
    Preparer,
    check_log_name,
    check_text,
)
from journal.rows import split_metadata
from kernel.errors import InvalidArgument, TooLarge
from kernel.ids import new_id, slice_of
from sidecar_api.client.messages import append_message

ID = "018f3c5e-0000-7000-8000-000000000000"
OTHER = "018f3c5e-0000-7000-8000-000000000001"


def ids(count: int) -> list[str]:
    return [f"018f3c5e-0000-7000-8000-{n:012x}" for n in range(count)]


def prepare(append: Append, **limits: int) -> PreparedAppend:
    return Preparer(Limits(**limits)).prepare(append)


def single(
    expected: Expected = ANY, *, append_id: str = "", first: int = 0, **of: object
) -> Append:
    fields = {"event_id": ID, **of}
    return Append(
        (EntityAppend("cart", "c-1", expected, first),),
        (NewEvent("Added", b"abc", **fields),),  # type: ignore[arg-type]
        append_id,
    )


# Rows


def test_members_and_events_become_rows() -> None:
    one, two, three = ids(3)
    prepared = prepare(
        Append(
            (EntityAppend("cart", "a", 4), EntityAppend("order", "b", EXISTS, 8)),
            (
                NewEvent("One", b"12", entity=1, event_id=one),
                NewEvent("Two", b"345", "text/plain", 0, two, schema_version=2),
                NewEvent("One", b"6789", "", 1, three, metadata_json='{"a":1}'),
            ),
        )
    )
    assert prepared.members == [
        ("cart", "a", slice_of("cart", "a"), 4, 0, 1, 3),
        ("order", "b", slice_of("order", "b"), MODE_EXISTS, 8, 2, 2 + 4 + 7),
    ]
    assert prepared.events == [
        (1, 1, 0, one, ("One", OCTET_STREAM, 0), b"12", None),
        (0, 1, 0, two, ("Two", "text/plain", 2), b"345", None),
        (1, 2, 2, three, ("One", OCTET_STREAM, 0), b"6789", '{"a":1}'),
    ]
    assert prepared.keys == ("cart\0a", "order\0b")


def test_an_event_knows_how_far_back_its_entitys_event_before_is() -> None:
    order = [0, 1, 0, 0, 2, 1, 2, 0]
    entities = tuple(EntityAppend("t", name) for name in "abc")
    events = tuple(
        NewEvent("E", b"", entity=m, event_id=i) for m, i in zip(order, ids(8), strict=True)
    )
    rows = prepare(Append(entities, events)).events
    assert [row[2] for row in rows] == [0, 0, 2, 1, 0, 4, 2, 4]
    assert [row[1] for row in rows] == [1, 1, 2, 3, 1, 2, 2, 4]


@pytest.mark.parametrize(
    ("expected", "mode"),
    [(ANY, MODE_ANY), (EXISTS, MODE_EXISTS), (0, 0), (MAX_SEQUENCE, MAX_SEQUENCE)],
)
def test_an_expected_state_becomes_a_mode(expected: Expected, mode: int) -> None:
    append = single(expected)
    message, _ = append_message("", append, auto_append_id=False)
    for form in (append, message):
        assert Preparer().prepare(form).members[0][3] == mode


def test_a_message_without_an_expected_state_expects_any() -> None:
    message, _ = append_message("", single(5), auto_append_id=False)
    message.entities[0].ClearField("expected")
    assert Preparer().prepare(message).members[0][3] == MODE_ANY
    message.entities[0].expected.no_entity = True
    assert Preparer().prepare(message).members[0][3] == 0


texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=9
)
names = texts.filter(bool)


@st.composite
def appends(draw: st.DrawFn) -> Append:
    kinds = draw(st.lists(names.map(lambda t: t.replace("/", "-")), min_size=1, max_size=3))
    entities = tuple(
        EntityAppend(
            kind,
            f"{n}{draw(texts)}",
            draw(st.one_of(st.sampled_from([ANY, EXISTS]), st.integers(0, MAX_SEQUENCE))),
            snapshot=draw(st.none() | st.builds(NewSnapshot, names, st.binary(max_size=9), texts)),
        )
        for n, kind in enumerate(kinds)
    )
    order = draw(st.lists(st.integers(0, len(kinds) - 1), max_size=6))
    events = tuple(
        NewEvent(
            draw(names),
            draw(st.binary(max_size=9)),
            draw(texts),
            member,
            i,
            draw(st.sampled_from(["", "{}", '{"a": [1, "$x"]}'])),
            draw(texts),
            draw(texts),
            draw(texts),
            draw(texts),
            draw(st.integers(-(2**50), 2**50)),
            draw(st.integers(0, 2**31 - 1)),
        )
        for member, i in zip([*range(len(kinds)), *order], ids(9), strict=False)
    )
    return Append(entities, events, draw(st.sampled_from(["", new_id()])))


@given(appends())
def test_dataclasses_and_messages_become_the_same(append: Append) -> None:
    message, _ = append_message("", append, auto_append_id=False)
    one, two = Preparer().prepare(append), Preparer().prepare(message)
    for name in ("members", "events", "keys", "held_bytes", "retry_safe", "snapshots", "append_id",
                 "append_day", "content_hash"):  # fmt: skip
        assert getattr(one, name) == getattr(two, name), name


@given(appends())
def test_an_event_gets_back_from_its_metadata_what_was_put_into_it(append: Append) -> None:
    for sent, row in zip(append.events, prepare(append).events, strict=True):
        own, extras = split_metadata(row[6])
        assert json.loads(own or "{}") == json.loads(sent.metadata_json or "{}")
        for name in ("correlation_id", "causation_id", "traceparent", "subject"):
            assert extras.get(name, "") == getattr(sent, name)
        assert extras.get("client_time_us", 0) == sent.client_time_us


def test_a_waiting_append_is_counted_with_all_it_holds() -> None:
    plain = prepare(single()).held_bytes
    assert plain == 3 + EVENT_OVERHEAD_BYTES
    assert prepare(single(metadata_json='{"a":1}')).held_bytes == plain + 7
    with_snapshot = replace(
        single(), entities=(EntityAppend("cart", "c-1", snapshot=NewSnapshot("S", b"x" * 50)),)
    )
    assert prepare(with_snapshot).held_bytes == plain + 50


def test_the_cache_of_types_is_bounded() -> None:
    preparer = Preparer()
    for n in range(5000):
        preparer.prepare(single(schema_version=n))
    assert len(preparer._types) == 4096
    assert preparer.prepare(single(schema_version=4999)).events[0][4][2] == 4999


# Retries


@pytest.mark.parametrize(
    ("append", "safe"),
    [
        (single(0), True),
        (single(7), True),
        (single(ANY), False),
        (single(EXISTS), False),
        (single(ANY, first=4), True),
        (single(EXISTS, first=4), True),
        (single(ANY, append_id=new_id()), True),
    ],
)
def test_an_append_may_be_sent_again_when_it_would_be_recognised(
    append: Append, safe: bool
) -> None:
    assert prepare(append).retry_safe is safe
    assert append_message("", append, auto_append_id=False)[1] is safe
    request, safe_with_id = append_message("", append, auto_append_id=True)
    assert safe_with_id
    assert bool(request.append_id) is (bool(append.append_id) or not safe)


def test_one_entity_without_an_exact_state_makes_the_whole_append_unsafe() -> None:
    mixed = Append(
        (EntityAppend("t", "a", 1), EntityAppend("t", "b", ANY)),
        tuple(NewEvent("E", b"", entity=n, event_id=i) for n, i in enumerate(ids(2))),
    )
    assert prepare(mixed).retry_safe is False


def test_an_append_id_is_a_key_too() -> None:
    append_id = new_id()
    assert prepare(single(append_id=append_id)).keys == ("cart\0c-1", append_id)


def test_the_content_hash_tells_contents_apart() -> None:
    append_id = new_id()
    base = replace(
        single(append_id=append_id), events=(*single().events, NewEvent("E", b"", event_id=OTHER))
    )
    first, second = base.events
    snapshot = NewSnapshot("S", b"x")
    member = base.entities[0]
    changed = [
        base,
        replace(base, events=(first,)),
        replace(base, events=(second, first)),
        replace(base, events=(replace(first, payload=b"abd"), second)),
        replace(base, events=(replace(first, payload=b"ab"), replace(second, payload=b"c"))),
        replace(base, events=(replace(first, type="X"), second)),
        replace(base, events=(replace(first, content_type="a/b"), second)),
        replace(base, events=(replace(first, schema_version=1), second)),
        replace(base, events=(replace(first, subject="s"), second)),
        replace(base, events=(replace(first, event_id=ids(3)[2]), second)),
        replace(base, entities=(replace(member, entity_id="c-2"),)),
        replace(base, entities=(replace(member, entity_type="x"),)),
        replace(base, entities=(replace(member, expected=EXISTS),)),
        replace(base, entities=(replace(member, first_sequence=1),)),
        replace(base, entities=(replace(member, snapshot=snapshot),)),
        replace(base, entities=(replace(member, snapshot=replace(snapshot, payload=b"y")),)),
        replace(base, entities=(replace(member, snapshot=replace(snapshot, type="T")),)),
    ]
    assert len({prepare(append).content_hash for append in changed}) == len(changed)
    assert prepare(base).content_hash == prepare(base).content_hash


def test_ids_that_we_made_are_no_part_of_the_content() -> None:
    append = single(append_id=new_id(), event_id="")
    one, two = prepare(append), prepare(append)
    assert one.events[0][3] != two.events[0][3]
    assert one.content_hash == two.content_hash


def test_the_window_of_append_ids_is_a_setting() -> None:
    append = single(append_id=ID)  # made in May 2024
    with pytest.raises(InvalidArgument, match="remembered for 2 days"):
        Preparer().prepare(append)
    prepared = Preparer(append_id_window=timedelta(days=36_500)).prepare(append)
    assert str(prepared.append_day) == "2024-05-03"


# Limits


@pytest.mark.parametrize(
    ("limits", "field", "unit"),
    [
        ({"event_bytes": 2}, "events[0].payload", "bytes"),
        ({"append_bytes": 2}, "append", "bytes"),
        ({"metadata_bytes": 6}, "events[0].metadata_json", "bytes"),
    ],
)
def test_limits_are_settings(limits: dict[str, int], field: str, unit: str) -> None:
    append = single(metadata_json='{"a":1}')
    with pytest.raises(TooLarge) as caught:
        prepare(append, **limits)
    assert (caught.value.field, caught.value.unit) == (field, unit)
    assert caught.value.actual > caught.value.limit == next(iter(limits.values()))
    raised = {name: limit + 8 for name, limit in limits.items()}
    assert prepare(append, **raised).members


def test_text_limits_count_characters() -> None:
    assert prepare(single(), entity_id_chars=3).members
    with pytest.raises(InvalidArgument, match="has 3 characters, the limit is 2"):
        prepare(single(), entity_id_chars=2)
    assert check_text("x", "\U0001d11e" * 5, 5)


@pytest.mark.parametrize("code", [0, 1, 0x1F, 0x7F, 0x80, 0x9F, 0x2028, 0x2029, 0xD800, 0xDFFF])
def test_control_characters_and_half_pairs_are_refused(code: int) -> None:
    with pytest.raises(InvalidArgument, match="x: has control characters"):
        check_text("x", f"a{chr(code)}b", 10)


@pytest.mark.parametrize("code", [0x20, 0x7E, 0xA0, 0xAD, 0x200B, 0x202E, 0xFEFF, 0xFFFF, 0x10FFFF])
def test_other_characters_are_taken(code: int) -> None:
    assert check_text("x", f"a{chr(code)}b", 10) == f"a{chr(code)}b"


def test_the_empty_name_of_a_log_means_the_default() -> None:
    assert check_log_name("") == "default"
    assert check_log_name("_system") == "_system"
    assert check_log_name("a" * 40) == "a" * 40


@pytest.mark.parametrize("name", ["A", "_x", "1", "a-b", "a" * 41, "a\n", " a", "é", "__system"])
def test_other_names_of_logs_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="log: names are"):
        check_log_name(name)
