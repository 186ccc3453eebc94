r"""The search language: which entities, in one line. Pure; CLI, HTTP and console share it.

Words separated by blanks, all of which must hold::

    type:cart,order  id:eu-*  events>1000  last:<90d  snapshot:none

``"…"`` keeps blanks and commas, a backslash makes the character after it an ordinary one (``\*``,
``\"``). docs/how-to/select-entities.md has the whole table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, NamedTuple, NoReturn

from kernel import clock
from kernel.errors import InvalidArgument

MAX_CHARS = 4_000
MAX_WORDS = 50
MAX_NUMBER = 10**18
MAX_AGE_S = 10_000 * 86_400
OLDEST_US = -62_135_596_800_000_000
"""The first microsecond of the year 1."""

SNAPSHOT = ("none", "any", "due")
STATES = ("active", "deleted", "tombstoned")

_NUMBERS = ("events", "sequence", "size")
_FIELDS: Final[Mapping[str, str]] = {
    "type": "type:cart or type:cart,order",
    "id": "id:exact or id:prefix*",
    "events": "events>1000",
    "sequence": "sequence>=100",
    "size": "size>10MB",
    "last": "last:<2023-01-01 or last:<90d",
    "snapshot": "snapshot:none, any or due",
    "held": "held:yes or no",
    "state": "state:active, deleted or tombstoned",
}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_AGES = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}

_HEAD = re.compile(r"([A-Za-z_]*)(:?)(<=|>=|<|>|=|)")
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([a-z]{0,2})")
_AGE = re.compile(r"([0-9]{1,12})([a-z])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PLAIN = re.compile(r"[A-Za-z0-9_./@:+-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Between:
    """Numbers from ``low`` to ``high``, both included; None: no bound."""

    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Instant:
    """A time: microseconds since the Unix epoch, or so many seconds before the search."""

    time_us: int | None = None
    age_s: int | None = None

    def at(self, now_us: int) -> int:
        """The time, in microseconds, for a search made at ``now_us``."""
        if self.time_us is not None:
            return self.time_us
        return now_us - (self.age_s or 0) * 1_000_000


@dataclass(frozen=True, slots=True)
class Where:
    """What an entity has to be; a field's default: no condition.

    types: one of these. id: this one. prefix: begins with it. events: how many it has.
    sequence: of its last event. size: bytes of its payloads. since, before: the event time of its
    last event is at or after, and before. snapshot: none, any, due. held: a hold is on it.
    state: active, deleted, tombstoned.
    """

    types: tuple[str, ...] = ()
    id: str = ""
    prefix: str = ""
    events: Between = Between()
    sequence: Between = Between()
    size: Between = Between()
    since: Instant | None = None
    before: Instant | None = None
    snapshot: str = ""
    held: bool | None = None
    state: str = ""

    def __str__(self) -> str:
        """As text in the search language; `parse` makes the same of it."""
        return " ".join(_words_of(self))


class _Char(NamedTuple):
    text: str
    quoted: bool
    escaped: bool


@dataclass(frozen=True, slots=True)
class _Word:
    """A word and where it stands; both numbers from 1."""

    number: int
    column: int
    raw: str
    chars: tuple[_Char, ...]

    def fail(self, problem: str) -> NoReturn:
        shown = self.raw if len(self.raw) <= 60 else f"{self.raw[:60]}…"
        shown = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", shown)
        raise InvalidArgument(
            "where", f"word {self.number} (column {self.column}), {shown!r}: {problem}"
        )


def parse(text: str) -> Where:
    """What ``text`` asks for; empty: everything.

    Raises:
        InvalidArgument: it is not in the language. Names the word, its number and column, and what
            could stand there.

    """
    if len(text) > MAX_CHARS:
        raise InvalidArgument("where", f"has {len(text)} characters, the limit is {MAX_CHARS}")
    found = Where()
    words = _split(text)
    if len(words) > MAX_WORDS:
        words[MAX_WORDS].fail(f"is one too many: the limit is {MAX_WORDS} words")
    seen: set[str] = set()
    for word in words:
        found = _add(found, word, seen)
    return found


def parse_time(field: str, text: str) -> int:
    """Microseconds since the Unix epoch of an RFC 3339 time or a date (its midnight in UTC).

    Raises:
        InvalidArgument: it is neither, has no offset, or is outside of the years 1 to 9999.

    """
    whole = f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text
    try:
        time_us = clock.parse_us(field, whole)
    except OverflowError:
        time_us = OLDEST_US - 1
    if not OLDEST_US <= time_us <= clock.MAX_MICROSECONDS:
        raise InvalidArgument(field, f"{text!r:.60} is not within the years 1 to 9999")
    return time_us


def near(name: str, names: Sequence[str]) -> str:
    """``; did you mean 'x'?`` when one of ``names`` is nearly ``name``, else nothing."""
    found = difflib.get_close_matches(name[:100], names, 1, 0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


# Words


def _split(text: str) -> list[_Word]:
    words: list[_Word] = []
    chars: list[_Char] = []
    start = opened = -1
    index = 0
    while index <= len(text):
        char = text[index] if index < len(text) else ""
        if opened < 0 and (char.isspace() or not char):
            if start >= 0:
                raw = text[start:index]
                words.append(_Word(len(words) + 1, start + 1, raw, tuple(chars)))
                start, chars = -1, []
            index += 1
            continue
        if not char:
            _Word(len(words) + 1, start + 1, text[start:], ()).fail(
                f"the quotation mark at column {opened + 1} is not closed"
            )
        if start < 0:
            start = index
        if char == '"':
            opened = index if opened < 0 else -1
        elif char == "\\":
            index += 1
            if index == len(text):
                _Word(len(words) + 1, start + 1, text[start:], ()).fail(
                    "nothing follows the backslash"
                )
            chars.append(_Char(text[index], opened >= 0, True))
        else:
            chars.append(_Char(char, opened >= 0, False))
        index += 1
    return words


def _add(found: Where, word: _Word, seen: set[str]) -> Where:
    """``found`` with one more word."""
    bare = "".join(c.text if not (c.quoted or c.escaped) else "\0" for c in word.chars)
    head = _HEAD.match(bare)
    name, colon, operator = head.groups() if head else ("", "", "")
    name = name.lower()
    if not name or not (colon or operator) or name not in _FIELDS:
        listed = ", ".join(_FIELDS)
        if name and (colon or operator):
            word.fail(f"there is no field {name!r}{near(name, list(_FIELDS))} (fields: {listed})")
        word.fail(f"a word is a field and a value, such as type:cart (fields: {listed})")
    assert head is not None
    chars = word.chars[head.end() :]
    value = "".join(c.text for c in chars)
    if not value:
        word.fail(f"nothing follows {head[0]!r}; write {_FIELDS[name]}")
    if _CONTROL.search(value):
        word.fail("has control characters")
    if name in _NUMBERS:
        return _number(found, word, seen, name, operator or "=", value)
    if name == "last":
        return _last(found, word, seen, operator, value)
    if operator not in ("", "="):
        word.fail(f"{name} takes no {operator!r}; write {_FIELDS[name]}")
    _once(word, seen, name)
    if name == "type":
        return replace(found, types=_types(word, chars))
    if name == "id":
        return _id(found, word, chars)
    if name == "held":
        return replace(found, held=_choice(word, name, value, ("yes", "no")) == "yes")
    if name == "snapshot":
        return replace(found, snapshot=_choice(word, name, value, SNAPSHOT))
    return replace(found, state=_choice(word, name, value, STATES))


def _once(word: _Word, seen: set[str], what: str) -> None:
    if what in seen:
        word.fail(f"{what} is there twice; all words must hold")
    seen.add(what)


def _choice(word: _Word, name: str, value: str, choices: Sequence[str]) -> str:
    if value.lower() not in choices:
        listed = ", ".join(choices)
        word.fail(f"{name} is one of {listed}{near(value.lower(), choices)}")
    return value.lower()


def _types(word: _Word, chars: Sequence[_Char]) -> tuple[str, ...]:
    types = [""]
    for char in chars:
        if char.text == "," and not (char.quoted or char.escaped):
            types.append("")
        else:
            types[-1] += char.text
    if not all(types):
        word.fail("a type is empty; write type:cart,order")
    if any(len(each) > 255 for each in types):
        word.fail("a type has at most 255 characters")
    return tuple(sorted(set(types)))


def _id(found: Where, word: _Word, chars: Sequence[_Char]) -> Where:
    stars = [i for i, c in enumerate(chars) if c.text == "*" and not c.escaped]
    if stars and stars != [len(chars) - 1]:
        word.fail(r"a * stands at the end only; write \* for the character")
    text = "".join(c.text for c in (chars[:-1] if stars else chars))
    if len(text) > 512:
        word.fail("an id has at most 512 characters")
    return replace(found, prefix=text) if stars else replace(found, id=text)


def _number(
    found: Where, word: _Word, seen: set[str], name: str, operator: str, value: str
) -> Where:
    number = _size(word, value) if name == "size" else _whole(word, name, value)
    if number >= MAX_NUMBER:
        word.fail(f"{number} is not below {MAX_NUMBER}")
    low = {">": number + 1, ">=": number, "=": number}.get(operator)
    high = {"<": number - 1, "<=": number, "=": number}.get(operator)
    old: Between = getattr(found, name)
    if low is not None:
        _once(word, seen, f"a lower bound of {name}")
    if high is not None:
        _once(word, seen, f"an upper bound of {name}")
        if high < 0:
            word.fail("nothing is below 0")
    new = Between(old.low if low is None else low, old.high if high is None else high)
    if new.low is not None and new.high is not None and new.low > new.high:
        word.fail(f"no number is both at least {new.low} and at most {new.high}")
    changes: dict[str, Between] = {name: new}
    return replace(found, **changes)  # type: ignore[arg-type]  # the fields of _NUMBERS


def _whole(word: _Word, name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", value):
        word.fail(f"{value!r:.40} is not a whole number; write {_FIELDS[name]}")
    return int(value)


def _size(word: _Word, value: str) -> int:
    match = _SIZE.fullmatch(value.lower())
    if match is None or match[2] not in _UNITS:
        word.fail(f"{value!r:.40} is not a size: a number with B, kB, MB or GB")
    size = Decimal(match[1]) * _UNITS[match[2]]
    if size != int(size):
        word.fail(f"{value!r:.40} is not a whole number of bytes")
    return int(size)


def _last(found: Where, word: _Word, seen: set[str], operator: str, value: str) -> Where:
    if operator in ("", "="):
        word.fail(f"last needs < (before) or > (after); write {_FIELDS['last']}")
    instant = _instant(word, value, 1 if operator in (">", "<=") else 0)
    if operator[0] == ">":
        _once(word, seen, "last:>")
        new = replace(found, since=instant)
    else:
        _once(word, seen, "last:<")
        new = replace(found, before=instant)
    since, before = new.since, new.before
    if since is None or before is None:
        return new
    empty = None not in (since.time_us, before.time_us) and since.at(0) >= before.at(0)
    empty = empty or (None not in (since.age_s, before.age_s) and since.at(0) >= before.at(0))
    if empty:
        word.fail("no time is both before the one and after the other")
    return new


def _instant(word: _Word, value: str, plus_us: int) -> Instant:
    match = _AGE.fullmatch(value)
    if match is not None and match[2] in _AGES:
        age = int(match[1]) * _AGES[match[2]]
        if age > MAX_AGE_S:
            word.fail("an age is at most 10,000 days")
        return Instant(age_s=age)  # to the microsecond, < and <= of an age are one
    try:
        time_us = parse_time("where", value)
    except InvalidArgument as error:
        word.fail(f"{error.problem}; write a date, a time with its offset, or an age such as 90d")
    return Instant(time_us=min(time_us + plus_us, clock.MAX_MICROSECONDS))


# Text


def _words_of(where: Where) -> list[str]:
    words: list[str] = []
    if where.types:
        words.append("type:" + ",".join(map(_quote, where.types)))
    if where.id:
        words.append("id:" + _quote(where.id))
    if where.prefix:
        words.append("id:" + _quote(where.prefix) + "*")
    for name in _NUMBERS:
        between: Between = getattr(where, name)
        if between.low is not None and between.low == between.high:
            words.append(f"{name}={between.low}")
            continue
        if between.low is not None:
            words.append(f"{name}>={between.low}")
        if between.high is not None:
            words.append(f"{name}<={between.high}")
    if where.since is not None:
        words.append("last:>=" + _time(where.since))
    if where.before is not None:
        words.append("last:<" + _time(where.before))
    if where.snapshot:
        words.append(f"snapshot:{where.snapshot}")
    if where.held is not None:
        words.append("held:yes" if where.held else "held:no")
    if where.state:
        words.append(f"state:{where.state}")
    return words


def _time(instant: Instant) -> str:
    if instant.time_us is None:
        return f"{instant.age_s}s"
    return clock.from_us(instant.time_us).isoformat().replace("+00:00", "Z")


def _quote(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return '"' + re.sub(r'([\\"*])', r"\\\1", text) + '"'
