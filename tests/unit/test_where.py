"""The search language: what it takes, what it says of what it does not, text and back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import clock
from kernel.errors import InvalidArgument
from operations.where import (
    MAX_AGE_S,
    MAX_CHARS,
    MAX_NUMBER,
    OLDEST_US,
    SNAPSHOT,
    STATES,
    Between,
    Instant,
    Where,
    parse,
    parse_time,
)

MAY_2024 = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", Where()),
        ("  \t ", Where()),
        ("type:cart", Where(types=("cart",))),
        ("type:order,cart,cart", Where(types=("cart", "order"))),
        ('type:"a,b",c', Where(types=("a,b", "c"))),
        ("TYPE:Cart", Where(types=("Cart",))),
        ("id:c-7", Where(id="c-7")),
        ("id:a,b", Where(id="a,b")),
        ("id:eu-*", Where(prefix="eu-")),
        ('id:"a b*"', Where(prefix="a b")),
        (r'id:"a b\*"', Where(id="a b*")),
        (r"id:a\ b\"", Where(id='a b"')),
        ("id:type:cart", Where(id="type:cart")),
        ("id:*", Where()),
        ("events>1000", Where(events=Between(1001))),
        ("events:<=5 events>=2", Where(events=Between(2, 5))),
        ("events=3", Where(events=Between(3, 3))),
        ("sequence:12", Where(sequence=Between(12, 12))),
        ("size>10MB", Where(size=Between(10_000_001))),
        ("size<1.5kb", Where(size=Between(None, 1_499))),
        ("size>=7", Where(size=Between(7))),
        ("last:<2024-05-01", Where(before=Instant(MAY_2024))),
        ("last:<=2024-05-01", Where(before=Instant(MAY_2024 + 1))),
        ("last:>2024-05-01T02:00:00+02:00", Where(since=Instant(MAY_2024 + 1))),
        ("last:>=2024-05-01T00:00:00.5Z", Where(since=Instant(MAY_2024 + 500_000))),
        ("last:<90d", Where(before=Instant(age_s=90 * 86_400))),
        ("last:>2w last:<1h", Where(since=Instant(age_s=1_209_600),
                                    before=Instant(age_s=3_600))),
        ("snapshot:none", Where(snapshot="none")),
        ("snapshot:DUE held:yes state:tombstoned",
         Where(snapshot="due", held=True, state="tombstoned")),
        ("held:no", Where(held=False)),
    ],
)  # fmt: skip
def test_a_line_says_what_an_entity_has_to_be(text: str, found: Where) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cart", "word 1 (column 1), 'cart': a word is a field and a value"),
        ("type:cart evets>5", "word 2 (column 11), 'evets>5': there is no field 'evets'; did"),
        ("evets>5", "did you mean 'events'? (fields: type, id, events, sequence, size, last, "),
        ("type:", "nothing follows 'type:'; write type:cart"),
        ("type:a,,b", "a type is empty"),
        ("type>5", "type takes no '>'"),
        ("type:a type:b", "word 2 (column 8), 'type:b': type is there twice"),
        ("id:a*b", r"a * stands at the end only; write \* for the character"),
        ("id:" + "x" * 513, "an id has at most 512 characters"),
        ('id:"a b', "the quotation mark at column 4 is not closed"),
        ("id:a\\", "nothing follows the backslash"),
        ("id:a\x00b", "has control characters"),
        ("id:\ud800", "has control characters"),
        ("events>many", "'many' is not a whole number; write events>1000"),
        ("events>1.5", "is not a whole number"),
        ("events>٣", "is not a whole number"),
        ("events>9999999999999999999", "is not below 1000000000000000000"),
        ("events<0", "nothing is below 0"),
        ("events>5 events>6", "a lower bound of events is there twice"),
        ("events>5 events<3", "no number is both at least 6 and at most 2"),
        ("size>10XB", "'10XB' is not a size: a number with B, kB, MB or GB"),
        ("size>0.0001kB", "is not a whole number of bytes"),
        ("last:2023-01-01", "last needs < (before) or > (after)"),
        ("last:<2023-01-01T12:00:00", "has no UTC offset"),
        ("last:<yesterday", "write a date, a time with its offset, or an age such as 90d"),
        ("last:<2023-02-30", "is not a time"),
        ("last:<0001-01-01T00:00:00+23:00", "is not within the years 1 to 9999"),
        ("last:<99999d", "an age is at most 10,000 days"),
        ("last:>2024-01-01 last:<2023-01-01", "no time is both before the one and after the other"),
        ("last:>1d last:<2d", "no time is both before the one and after the other"),
        ("snapshot:duo", "snapshot is one of none, any, due; did you mean 'due'?"),
        ("held:maybe", "held is one of yes, no"),
        ("state:gone", "state is one of active, deleted, tombstoned"),
        ("x" * (MAX_CHARS + 1), "has 4001 characters, the limit is 4000"),
        ("id:a id:a", "word 2 (column 6), 'id:a': id is there twice"),
        (" ".join(f"type:t{i}" for i in range(60)), "one too many: the limit is 50 words"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_language_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as failure:
        parse(text)
    assert failure.value.field == "where"
    assert said in failure.value.problem


def test_an_age_counts_from_the_search_and_a_time_does_not() -> None:
    assert Instant(age_s=60).at(MAY_2024) == MAY_2024 - 60_000_000
    assert Instant(7).at(MAY_2024) == 7


@pytest.mark.parametrize("text", ["2023-01-01", "2023-01-01T00:00:00Z", "2023-01-01T01:00+01:00"])
def test_a_date_is_its_midnight_in_utc(text: str) -> None:
    assert parse_time("at", text) == clock.parse_us("at", "2023-01-01T00:00:00Z")


ALPHABET = st.sampled_from(list('type:id"*\\,<>=5 \tevnslaz-09.kMB\x00é\U0010ffffd'))


@given(st.one_of(st.text(max_size=60), st.text(ALPHABET, max_size=60)))
def test_whatever_is_written_it_is_understood_or_refused_as_where(text: str) -> None:
    refused: InvalidArgument | None = None
    try:
        found = parse(text)
    except InvalidArgument as error:
        refused = error
    if refused is None:
        assert parse(str(found)) == found
    else:
        assert refused.field == "where"
        refused.message.encode()  # it can be sent


names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=40)
numbers = st.integers(0, MAX_NUMBER - 1)


@st.composite
def betweens(draw: st.DrawFn) -> Between:
    low, high = draw(st.none() | numbers), draw(st.none() | numbers)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return Between(low, high)


@st.composite
def wheres(draw: st.DrawFn) -> Where:
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        since, before = sorted(
            draw(st.tuples(*[st.integers(OLDEST_US, clock.MAX_MICROSECONDS - 1)] * 2))
        )
        changes = {"since": Instant(since), "before": Instant(before + 1)}
    elif draw(st.booleans()):
        changes = {"before": Instant(age_s=draw(st.integers(0, MAX_AGE_S)))}
    return Where(
        types=tuple(sorted(draw(st.sets(names, max_size=3)))),
        id=draw(st.just("") | names),
        events=draw(betweens()),
        sequence=draw(betweens()),
        size=draw(betweens()),
        snapshot=draw(st.sampled_from(("", *SNAPSHOT))),
        held=draw(st.sampled_from((None, True, False))),
        state=draw(st.sampled_from(("", *STATES))),
        **changes,
    )


@given(wheres())
def test_text_and_back_is_the_same(where: Where) -> None:
    assert parse(str(where)) == where


@given(names)
def test_a_prefix_goes_through_text_too(prefix: str) -> None:
    assert parse(str(Where(prefix=prefix))) == Where(prefix=prefix)


def test_the_command_line_may_import_it_without_a_database() -> None:
    code = (
        "import sys, operations.where;"
        "print(sorted({'asyncpg', 'journal', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
