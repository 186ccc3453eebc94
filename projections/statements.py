"""Reads SQL just well enough: where statements end, what they begin with, where parameters are.

Knows string literals, quoted names, dollar quotes and comments (PostgreSQL manual, 4.1 "Lexical
Structure"), so that a semicolon or a colon inside them is not taken for more than it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from projections.model import Statement, StatementError

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>--[^\n]*)
  | (?P<block>/\*)
  | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
  | (?P<literal>(?:[uU]&|[bBxXnN])?'(?:[^']|'')*')
  | (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*")
  | (?P<dollar>\$(?:[A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]*)?\$)
  | (?P<argument>\$[0-9]+)
  | (?P<cast>::|:=)
  | (?P<parameter>:[A-Za-z_][A-Za-z0-9_]*(?:\.(?:[A-Za-z0-9_]+|"(?:[^"]|"")*"))*)
  | (?P<word>[A-Za-z_\x80-\uffff][A-Za-z0-9_$\x80-\uffff]*)
  | (?P<end>;)
  | (?P<other>[0-9]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE = re.compile(r"/\*|\*/")


class Token(NamedTuple):
    """A piece of SQL; all pieces together are the text."""

    kind: str
    text: str
    at: int


def tokens(text: str) -> Iterator[Token]:
    """The pieces of ``text``.

    Raises:
        StatementError: a literal, quoted name or comment does not end.

    """
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None  # `other` takes any character
        kind, end = match.lastgroup or "other", match.end()
        if kind == "block":
            kind, end = "comment", _end_of_block(text, at)
        elif kind == "dollar":
            close = text.find(match[0], end)
            if close < 0:
                raise StatementError(f"the quote {match[0]} does not end", position=at + 1)
            kind, end = "literal", close + len(match[0])
        elif kind == "escaped":
            kind = "literal"
        elif kind == "other" and match[0] in "'\"":
            raise StatementError(f"the quote {match[0]} does not end", position=at + 1)
        yield Token(kind, text[at:end], at)
        at = end


def _end_of_block(text: str, at: int) -> int:
    depth, end = 0, at
    while True:
        edge = _BLOCK_EDGE.search(text, end)
        if edge is None:
            raise StatementError("the comment /* does not end", position=at + 1)
        depth += 1 if edge[0] == "/*" else -1
        end = edge.end()
        if depth == 0:
            return end


def split(text: str, first_line: int = 1) -> list[Statement]:
    """The statements of ``text``, without the semicolons that end them and without what comes
    before them. A ``BEGIN ATOMIC … END`` body of a function counts as one.
    """
    return [
        Statement(text[start:end], first_line + text.count("\n", 0, start))
        for start, end in _bounds(tokens(text))
    ]


def _bounds(pieces: Iterable[Token]) -> Iterator[tuple[int, int]]:
    """Where statements begin and end."""
    start: int | None = None
    end = 0
    depth = 0  # of BEGIN ATOMIC and CASE inside it
    words: list[str] = []
    for token in pieces:
        if token.kind in ("space", "comment"):
            continue
        if token.kind == "end" and depth == 0:
            if start is not None:
                yield start, end
            start, words = None, []
            continue
        if start is None:
            start = token.at
        end = token.at + len(token.text)
        word = token.text.upper() if token.kind == "word" else ""
        atomic = word == "ATOMIC" and words[-1:] == ["BEGIN"]
        if (atomic and _ROUTINE.match(" ".join(words))) or (depth and word == "CASE"):
            depth += 1
        elif depth and word == "END":
            depth -= 1
        words.append(word)
    if start is not None:
        yield start, end


_ROUTINE = re.compile(
    r"(?:CREATE(?:\s+OR\s+REPLACE)?|ALTER)\s+(?:FUNCTION|PROCEDURE|ROUTINE)\b", re.IGNORECASE
)


def normal(text: str) -> str:
    """``text`` without comments and with single spaces: what a digest is made over."""
    pieces: list[str] = []
    for token in tokens(text):
        if token.kind in ("space", "comment"):
            if pieces and pieces[-1] != " ":
                pieces.append(" ")
        else:
            pieces.append(token.text)
    return "".join(pieces).strip()


# What would leave the confinement, end the transaction, or outlive it in the session.
_LEAVING = frozenset(
    ("ABORT", "BEGIN", "CHECKPOINT", "CLOSE", "CLUSTER", "COMMIT", "COPY", "DEALLOCATE", "DISCARD",
     "DO", "END", "EXECUTE", "FETCH", "LISTEN", "LOAD", "MOVE", "NOTIFY", "PREPARE", "REASSIGN",
     "REINDEX", "RELEASE", "RESET", "ROLLBACK", "SAVEPOINT", "SET", "START", "UNLISTEN", "VACUUM")
)  # fmt: skip
_LEAVING_IN_PLPGSQL = re.compile(
    r"(?:;|\b(?:BEGIN|THEN|ELSE|LOOP)\s|>>)\s*"
    r"(COMMIT|COPY|DISCARD|DO|LISTEN|LOAD|NOTIFY|RESET|ROLLBACK|SET|UNLISTEN)(?![\w$])"
    r"|\b(EXECUTE)(?![\w$])",  # text that is made as it runs cannot be looked at
    re.IGNORECASE,
)
_LEAVING_NAMES = re.compile(
    r"set_config|pg_notify|dblink|dblink_exec|lo_import|pg_temp"
    r"|pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?"
    r"|(?:query|cursor)_to_xml(?:schema|_and_xmlschema)?"
)
_OUTLIVING = (
    (
        re.compile(
            r"\bCREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\s"
            r"(?!.*\bON\s+COMMIT\s+DROP\b)",
            re.IGNORECASE | re.DOTALL,
        ),
        "TEMP is allowed only with ON COMMIT DROP: the connection's next batch would find it",
    ),
    (
        re.compile(
            r"(?:\b(?!(?:INSERT|MERGE)\b)\w+\s+|[^\w\s]\s*)INTO\s+(?:(?:GLOBAL|LOCAL)\s+)?"
            r"TEMP(?:ORARY)?\s+(?!FROM\b)[\w\"]",
            re.IGNORECASE,
        ),
        "SELECT … INTO TEMP is not allowed here: write CREATE TEMP TABLE … ON COMMIT DROP AS",
    ),
    (
        re.compile(r"\bCURSOR\s+WITH\s+HOLD\b", re.IGNORECASE),
        "WITH HOLD is not allowed here: the cursor would outlive the batch",
    ),
)
_FIRST_WORD = re.compile(r"[\w$]+")
MANIPULATING = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "SELECT", "WITH", "VALUES"})
"""What a handler's statement may begin with."""


def check_confined(text: str) -> None:
    """Refuses text with a statement that would leave the projection's transaction, role or schema,
    or leave something behind in the session; also in the bodies of functions in SQL and PL/pgSQL.

    The role is what confines: this gives early and clear errors, and closes the plain ways by which
    SQL changes its own role. It is a guard against mistakes, not against SQL that wants to get out.

    Raises:
        StatementError: names the word.

    """
    _check(text)


def _check(text: str, *, plpgsql: bool = False) -> None:
    pieces = list(tokens(text))
    for token in pieces:
        _check_name(token)
    bare = "".join(_bare(token) for token in pieces)
    if plpgsql and (found := _LEAVING_IN_PLPGSQL.search(bare)):
        raise _left(found[found.lastindex or 0], found.start(found.lastindex or 0))
    for start, end in _bounds(pieces):
        statement = bare[start:end]
        word = _FIRST_WORD.match(statement)
        if not plpgsql and word is not None and word[0].upper() in _LEAVING:
            raise _left(word[0], start)
        for pattern, problem in _OUTLIVING:
            if found := pattern.search(statement):
                raise StatementError(problem, position=start + found.start() + 1)
        if _ROUTINE.match(statement):
            _check_routine(statement, [piece for piece in pieces if start <= piece.at < end])


def _check_name(token: Token) -> None:
    if token.kind not in ("word", "quoted"):
        return
    if token.text[:2].upper() == "U&":
        raise StatementError('U&"…" is not allowed in a projection', position=token.at + 1)
    name = token.text.strip('"').lower()
    if _LEAVING_NAMES.fullmatch(name):
        raise StatementError(f"{name} is not allowed in a projection", position=token.at + 1)


def _bare(token: Token) -> str:
    """As long as the token, without what a pattern must not find."""
    if token.kind == "comment":
        return " " * len(token.text)
    filler = {"literal": "'", "quoted": '"'}.get(token.kind)
    return filler * len(token.text) if filler else token.text


def _left(word: str, at: int) -> StatementError:
    return StatementError(
        f"{word.upper()} is not allowed here: the batch is one transaction, as one role, in one"
        " schema",
        position=at + 1,
    )


def _check_routine(statement: str, pieces: Sequence[Token]) -> None:
    """A function's clauses and body. ``statement``: its text, bare; ``pieces``: its tokens."""
    clauses = re.split(r"\bBEGIN\s+ATOMIC\b", statement, maxsplit=1, flags=re.IGNORECASE)[0]
    if found := re.search(r"\bSET(?![\w$])", clauses, re.IGNORECASE):
        raise _left(found[0], pieces[0].at + found.start())
    language, body, before = "sql", None, ""
    for piece in pieces:
        if piece.kind in ("space", "comment"):
            continue
        if before == "LANGUAGE":
            language = piece.text.strip("'\"").lower()
        elif before == "AS" and piece.kind == "literal":
            body = piece
        before = piece.text.upper() if piece.kind == "word" else ""
    if body is None or language not in ("sql", "plpgsql"):
        return
    quote = body.text[: body.text.index("$", 1) + 1] if body.text[0] == "$" else "'"
    if not body.text.startswith(quote):
        raise StatementError(
            "the body of a function stands in $$ … $$ or '…'", position=body.at + 1
        )
    text = body.text[len(quote) : -len(quote)]
    try:
        _check(text.replace("''", "'") if quote == "'" else text, plpgsql=language == "plpgsql")
    except StatementError as error:
        at = body.at + len(quote) + error.position
        raise StatementError(error.message, position=at) from None


def line_of(statement: Statement, position: int) -> int:
    """The line in the file of character ``position`` (1-based, 0: unknown) of a statement."""
    return statement.line + statement.text.count("\n", 0, max(position - 1, 0))
