"""Import lines: what each becomes, what is wrong with a bad one, ids that never change."""

from __future__ import annotations

import gzip
import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from everstate import transfer
from everstate.transfer import NAMESPACE, Line, Parser, parsed, raw_lines
from journal.model import ANY, JSON, OCTET_STREAM, EntityAppend, Limits
from kernel.errors import InvalidArgument, NotFound
from kernel.ids import new_id

GOOD: dict[str, Any] = {
    "entity_type": "cart",
    "entity_id": "c-1",
    "type": "Added",
    "data": {"n": 1},
}


def text(**change: Any) -> bytes:
    """The good line with changes; None takes a field out."""
    row = {k: v for k, v in (GOOD | change).items() if v is not None}
    return json.dumps(row).encode()


def parse(*lines: bytes) -> list[Line]:
    parser = Parser(Limits())
    return [parser.parse(number, line) for number, line in enumerate(lines, 1)]


def complaint(*lines: bytes) -> str:
    """What is wrong with the last line."""
    parser = Parser(Limits())
    for number, line in enumerate(lines[:-1], 1):
        parser.parse(number, line)
    with pytest.raises(InvalidArgument) as caught:
        parser.parse(len(lines), lines[-1])
    assert caught.value.field == f"line {len(lines)}"
    return caught.value.problem


# Good lines


def test_a_line_of_json_data_becomes_an_event() -> None:
    (line,) = parse(text(time="2024-02-29T12:00:00.5+01:00", metadata={"a": 1}, schema_version=3))
    assert (line.number, line.entity, line.ordinal, line.sequence) == (1, ("cart", "c-1"), 1, 0)
    assert line.stored_sequence == 1
    event = line.event
    assert (event.type, event.content_type, event.payload) == ("Added", JSON, b'{"n":1}')
    assert (event.client_time_us, event.schema_version) == (1_709_204_400_500_000, 3)
    assert json.loads(event.metadata_json) == {"a": 1}


def test_a_line_of_bytes_becomes_an_event() -> None:
    for encoded, payload in (("AP/+", b"\x00\xff\xfe"), ("", b"")):
        (line,) = parse(text(data=None, payload_base64=encoded))
        assert (line.event.payload, line.event.content_type) == (payload, OCTET_STREAM)
    (line,) = parse(text(data=None, payload_base64="AA==", content_type="image/png"))
    assert line.event.content_type == "image/png"


@pytest.mark.parametrize("data", [None, 0, "", [], {}, False, {"é": [1.5, None]}])
def test_data_may_be_any_json(data: Any) -> None:
    line = json.dumps(GOOD | {"data": data}).encode()
    assert json.loads(parse(line)[0].event.payload) == data


def test_the_texts_of_a_line_reach_the_event() -> None:
    names = ("correlation_id", "causation_id", "traceparent", "subject", "content_type")
    (line,) = parse(text(**{name: f"x-{name}" for name in names}))
    assert [getattr(line.event, name) for name in names] == [f"x-{name}" for name in names]


def test_lines_count_their_ordinal_within_their_entity() -> None:
    lines = parse(
        text(),
        text(entity_id="c-2"),
        text(),
        text(entity_type="order"),
        text(entity_id="c-2"),
        text(),
    )
    assert [line.ordinal for line in lines] == [1, 1, 2, 1, 2, 3]
    assert [line.number for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_bad_line_counts_for_nothing() -> None:
    parser = Parser(Limits())
    parser.parse(1, text())
    for bad in (text(type=None), text(event_id="x"), text(sequence=9), text(type="a\0")):
        with pytest.raises(InvalidArgument):
            parser.parse(2, bad)
    assert parser.parse(3, text()).ordinal == 2


def test_a_line_of_an_export_can_be_read_again() -> None:
    (line,) = parse(
        text(position=7, recorded_at="2024-01-01T00:00:00Z", event_id=new_id(), sequence=3)
    )
    assert line.stored_sequence == 3


# Ids


def test_the_id_of_a_line_never_changes() -> None:
    # A change of this id would make every import of an older version a foreign one.
    assert parse(text())[0].event.event_id == "f02a1a64-6450-5164-a687-bac8298838c5"


def test_an_id_is_uuid5_of_the_ordinal_and_the_sorted_content() -> None:
    content = '{"data":{"n":1},"entity_id":"c-1","entity_type":"cart","type":"Added"}'
    lines = parse(text(), text())
    for line in lines:
        assert line.event.event_id == str(uuid.uuid5(NAMESPACE, f"{line.ordinal} {content}"))


def test_an_id_does_not_hang_on_how_the_line_is_written() -> None:
    plain = parse(text())[0].event.event_id
    spaced = json.dumps(dict(reversed(GOOD.items())), indent=1).replace("\n", " ").encode()
    exported = text(position=5, recorded_at="2024-01-01T00:00:00Z")
    for other in (spaced, exported):
        assert parse(other)[0].event.event_id == plain


def test_ids_differ_by_ordinal_and_by_every_part_of_the_content() -> None:
    same = [line.event.event_id for line in parse(text(), text(), text())]
    others = [
        text(type="Other"), text(entity_id="c-2"), text(entity_type="x"), text(data={"n": 2}),
        text(metadata={"a": 1}), text(time="2024-01-01T00:00:00Z"), text(subject="s"),
        text(schema_version=1), text(content_type="a/b"), text(sequence=1),
    ]  # fmt: skip
    ids = {*same, *(parse(other)[0].event.event_id for other in others)}
    assert len(ids) == 3 + len(others)


def test_an_id_that_is_given_is_kept() -> None:
    given = new_id()
    assert parse(text(event_id=given))[0].event.event_id == given


# Sequence numbers


def test_an_entity_may_begin_at_any_number_and_goes_on_from_there() -> None:
    lines = parse(text(sequence=41), text(entity_id="c-2"), text(sequence=42), text(sequence=43))
    assert [line.stored_sequence for line in lines] == [41, 1, 42, 43]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (41, 43, "43"),
        (41, 41, "41"),
        (41, 40, "40"),
        (41, None, "none"),
        (None, 2, "2"),
        (None, 1, "1"),
    ],
)
def test_numbers_with_a_hole_or_only_here_and_there_are_refused(
    before: int | None, after: int | None, said: str
) -> None:
    assert (
        complaint(text(sequence=before), text(sequence=after))
        == f"sequence: {said} does not follow the entity's line before"
    )


# Bad lines


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "line: is not JSON"),
        (b"{", "line: is not JSON"),
        (b"not json", "line: is not JSON"),
        (b'{"a":1} x', "line: is not JSON"),
        (text().replace(b"Added", b"\xff\xfe"), "line: is not JSON"),
        (b"[]", "line: is not a JSON object"),
        (b"null", "line: is not a JSON object"),
        (b" " * 8_000_001, "line: is longer than 8000000 bytes"),
        (text(extra=1), "extra: is not a field of import lines"),
        (text(entity_type=None), "entity_type: is missing"),
        (text(entity_id=None), "entity_id: is missing"),
        (text(type=None), "type: is missing"),
        (text(type=""), "type: is empty"),
        (text(entity_id=""), "entity_id: is empty"),
        (text(type=5), "type: is not a text"),
        (text(entity_id=["a"]), "entity_id: is not a text"),
        (text(type="a\0"), "events[0].type: has control characters"),
        (text(type="a" * 256), "events[0].type: has 256 characters, the limit is 255"),
        (text(entity_id="a" * 513), "entities[0].entity_id: has 513 characters, the limit is 512"),
        (text(entity_id="a\n"), "entities[0].entity_id: has control characters"),
        (text(entity_type="a/b"), "entities[0].entity_type: has a '/'"),
        (text(data=None), "data: give either data or payload_base64"),
        (text(payload_base64=""), "data: give either data or payload_base64"),
        (text(data=None, payload_base64="A"), "payload_base64: is not base64"),
        (text(data=None, payload_base64="AA=A"), "payload_base64: is not base64"),
        (text(data=None, payload_base64="A\nA="), "payload_base64: is not base64"),
        (text(data=None, payload_base64=5), "payload_base64: is not a text"),
        (text(data="x" * 1_000_001), "events[0].payload: 1000003 bytes, the limit is 1000000"),
        (text(time="yesterday"), "time: 'yesterday' is not a time (RFC 3339)"),
        (text(time=5), "time: 5 is not a time (RFC 3339)"),
        (text(time="2024-01-01T00:00:00"), "time: '2024-01-01T00:00:00' has no UTC offset"),
        (text(event_id="one"), "events[0].event_id: is not a UUID in lower case with hyphens"),
        (text(event_id=""), "event_id: is empty"),
        (text(metadata=[]), "metadata: is not a JSON object"),
        (text(metadata="{}"), "metadata: is not a JSON object"),
        (text(metadata={"$x": 1}), "events[0].metadata_json: the key '$x' is reserved"),
        (text(metadata={"a": "\0"}), "events[0].metadata_json: has a NUL character"),
        (text(metadata={"a": "x" * 17_000}), "events[0].metadata_json: 17008 bytes, the limit is"),
        (text(subject="a\x07"), "events[0].subject: has control characters"),
        (text(correlation_id=5), "correlation_id: is not a text"),
        (text(content_type=""), "content_type: is empty"),
        (text(sequence=0), "sequence: is not a whole number"),
        (text(sequence=-1), "sequence: is not a whole number"),
        (text(sequence=1.0), "sequence: is not a whole number"),
        (text(sequence=True), "sequence: is not a whole number"),
        (text(sequence="1"), "sequence: is not a whole number"),
        (text(sequence=2**62 + 1), "entities[0].first_sequence: "),
        (text(schema_version=-1), "schema_version: is not a whole number"),
        (text(schema_version=2**31), "events[0].schema_version: "),
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_with_its_number_and_the_reason(line: bytes, problem: str) -> None:
    assert complaint(text(entity_id="other"), text(entity_id="other"), line).startswith(problem)


# Files


def test_lines_are_numbered_as_an_editor_does() -> None:
    file = io.BytesIO(b"one\n\n \t\ntwo\r\n\r\nthree")
    assert list(raw_lines(file)) == [(1, b"one"), (4, b"two"), (6, b"three")]
    assert list(raw_lines(io.BytesIO(b""))) == []


def test_a_line_too_long_is_given_on_cut_so_that_memory_stays_bounded() -> None:
    limit = transfer.MAX_LINE_BYTES
    (first, cut), (second, after) = raw_lines(io.BytesIO(b"x" * (3 * limit) + b"\nnext\n"))
    assert (first, second, after) == (1, 2, b"next")
    assert limit < len(cut) <= limit + 2


def test_a_line_just_within_the_limit_is_whole() -> None:
    limit = transfer.MAX_LINE_BYTES
    lines = list(raw_lines(io.BytesIO(b"x" * limit + b"\r\n" + b"y" * limit)))
    assert [(n, len(t)) for n, t in lines] == [(1, limit), (2, limit)]


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:20], lambda _: b"no"])
def test_a_broken_archive_is_a_bad_line(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "broken.jsonl.gz"
    path.write_bytes(spoil(gzip.compress((text() + b"\n") * 50)))
    with (
        transfer.opened(path) as file,
        pytest.raises(InvalidArgument, match=r"line \d+: the file cannot be read on"),
    ):
        list(raw_lines(file))


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"), transfer.opened(tmp_path / "none"):
        pass


def test_bad_lines_go_into_a_file_and_the_rest_is_read(tmp_path: Path) -> None:
    good = [text(), text(entity_id="c-2"), text()]
    bad = [b"{", text(type=None)]
    file = io.BytesIO(b"\n".join([good[0], bad[0], good[1], bad[1], good[2]]))
    with transfer._Skipped(tmp_path / "bad") as skipped:
        lines = list(parsed(file, Limits(), skipped))
    assert [(line.number, line.ordinal) for line in lines] == [(1, 1), (3, 1), (5, 2)]
    assert skipped.count == 2
    assert (tmp_path / "bad").read_bytes().splitlines() == bad


def test_without_such_a_file_the_first_bad_line_ends_it() -> None:
    file = io.BytesIO(b"\n".join([text(), b"{", text()]))
    read = []
    with transfer._Skipped(None) as skipped, pytest.raises(InvalidArgument, match="line 2"):
        read.extend(line.number for line in parsed(file, Limits(), skipped))
    assert skipped.count == 0


def test_a_run_of_lines_becomes_one_append_with_exact_states() -> None:
    lines = parse(
        text(), text(entity_id="c-2", sequence=7), text(), text(entity_id="c-2", sequence=8), text()
    )
    append = transfer._run(lines[2:])
    assert append.entities == (
        EntityAppend("cart", "c-1", 1, 0),
        EntityAppend("cart", "c-2", ANY, 8),
    )
    assert [event.entity for event in append.events] == [0, 1, 0]
    assert [e.event_id for e in append.events] == [line.event.event_id for line in lines[2:]]
    assert append.append_id == ""


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "1" * 100])
def test_a_number_that_would_lose_digits_is_refused_and_named(number: str) -> None:
    line = f'{{"entity_type":"t","entity_id":"a","type":"E","data":{{"n":{number}}}}}'
    with pytest.raises(InvalidArgument, match=r"line 7: number: .* does not fit into 64 bits"):
        Parser(Limits()).parse(7, line.encode())


def test_numbers_of_64_bits_and_long_digits_in_text_are_kept() -> None:
    data = b'{"n":18446744073709551615,"m":-9223372036854775808,"t":"' + b"1" * 40 + b'"}'
    line = b'{"entity_type":"t","entity_id":"a","type":"E","data":' + data + b"}"
    assert Parser(Limits()).parse(1, line).event.payload == data
