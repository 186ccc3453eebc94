"""Identifiers, slices, times."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import clock
from kernel.errors import InvalidArgument
from kernel.ids import SLICES, check_uuid, new_id, slice_of, time_of_uuid7


def bitwise_crc32(data: bytes) -> int:
    """CRC-32 as IEEE 802.3 defines it, bit by bit: what a sidecar in another language computes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [("cart", "c-1", 521), ("order", "é", 731), ("file", "psycopg/docs/news.rst", 856)],
)
def test_the_slice_of_an_entity_never_changes(kind: str, name: str, expected: int) -> None:
    assert slice_of(kind, name) == expected


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_a_slice_is_the_lowest_ten_bits_of_the_crc(kind: str, name: str) -> None:
    assert slice_of(kind, name) == bitwise_crc32(f"{kind}\0{name}".encode()) % 1024
    assert 0 <= slice_of(kind, name) < SLICES


def test_type_and_id_do_not_run_into_each_other() -> None:
    assert slice_of("ab", "c") != slice_of("a", "bc")


def test_fresh_ids_are_uuids_of_version_7_in_order() -> None:
    made = [new_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {uuid.UUID(text).version for text in made} == {7}
    assert [text[:13] for text in made] == sorted(text[:13] for text in made)
    assert all(check_uuid("id", text) == text for text in made)


def test_a_fresh_id_holds_the_present_to_the_millisecond() -> None:
    before = clock.now() - timedelta(milliseconds=1)
    made = time_of_uuid7("id", new_id())
    assert before <= made <= clock.now()
    assert made.tzinfo is UTC


def test_the_time_of_the_example_of_rfc_9562() -> None:
    made = time_of_uuid7("id", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
    assert made == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "017F22E2-79B0-7CC3-98C4-DC0C0C07398F",
        "017f22e279b07cc398c4dc0c0c07398f",
        "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n",
        " 017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        "٠17f22e2-79b0-7cc3-98c4-dc0c0c07398f",
    ],
)
def test_another_form_of_a_uuid_is_refused(text: str) -> None:
    for check in (check_uuid, time_of_uuid7):
        with pytest.raises(InvalidArgument) as caught:
            check("the_field", text)
        assert caught.value.field == "the_field"


def test_the_time_of_another_version_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a UUID of version 7"):
        time_of_uuid7("id", str(uuid.uuid4()))


def test_the_highest_time_of_a_uuid_7_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="out of range"):
        time_of_uuid7("id", "ffffffff-ffff-7000-8000-000000000000")


# Times


@given(st.integers(0, clock.MAX_MICROSECONDS))
def test_microseconds_survive_every_form(microseconds: int) -> None:
    assert clock.to_us(clock.from_us(microseconds)) == microseconds
    assert clock.parse_us("t", clock.format_us(microseconds)) == microseconds


def test_the_extremes_are_exact() -> None:
    assert clock.format_us(0) == "1970-01-01T00:00:00.000000Z"
    assert clock.format_us(clock.MAX_MICROSECONDS) == "9999-12-31T23:59:59.999999Z"
    assert clock.to_us(clock.from_us(-1)) == -1
    with pytest.raises(OverflowError):
        clock.from_us(clock.MAX_MICROSECONDS + 1)


def test_the_present_has_an_offset_and_one_clock() -> None:
    assert clock.now().tzinfo is UTC
    assert abs(clock.to_us(clock.now()) - clock.now_us()) < 1_000_000


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-02-29T12:00:00Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("2024-02-29T12:00:00.5+00:00", datetime(2024, 2, 29, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2024-02-29 14:30:00+02:30", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("2024-02-28T23:00:00-13:00", datetime(2024, 2, 29, 12, tzinfo=UTC)),
    ],
)
def test_a_time_with_an_offset_is_read(text: str, moment: datetime) -> None:
    assert clock.parse_us("t", text) == clock.to_us(moment)


def test_a_moment_of_any_zone_is_the_same_number() -> None:
    there = datetime(2024, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    assert clock.to_us(there) == clock.to_us(datetime(2024, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "text", ["", "now", "2024-02-30T00:00:00Z", "2024-02-29T25:00:00Z", "2024", None, 5]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a time") as caught:
        clock.parse_us("time", text)
    assert caught.value.field == "time"


@pytest.mark.parametrize("text", ["2024-02-29T12:00:00", "2024-02-29"])
def test_a_time_without_an_offset_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no UTC offset"):
        clock.parse_us("time", text)
