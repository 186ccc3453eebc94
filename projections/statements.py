"""Reads SQL just well enough: where statements end, what they begin with, where parameters are.

Knows string literals, quoted names, dollar quotes and comments (PostgreSQL manual, 4.1 "Lexical
Structure"), so that a semicolon or a colon inside them is not taken for more than it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    found: list[Statement] = []
    start: int | None = None
    end = 0
    depth = 0  # of BEGIN ATOMIC and CASE inside it
    before = ""
    for token in tokens(text):
        if token.kind in ("space", "comment"):
            continue
        if token.kind == "end" and depth == 0:
            if start is not None:
                found.append(_statement(text, start, end, first_line))
            start, before = None, ""
            continue
        if start is None:
            start = token.at
        end = token.at + len(token.text)
        if token.kind == "word":
            word = token.text.upper()
            if (word == "ATOMIC" and before == "BEGIN") or (depth and word == "CASE"):
                depth += 1
            elif depth and word == "END":
                depth -= 1
            before = word
        else:
            before = ""
    if start is not None:
        found.append(_statement(text, start, end, first_line))
    return found


def _statement(text: str, start: int, end: int, first_line: int) -> Statement:
    return Statement(text[start:end], first_line + text.count("\n", 0, start))


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
     "END", "EXECUTE", "FETCH", "LISTEN", "LOAD", "MOVE", "NOTIFY", "PREPARE", "REASSIGN",
     "REINDEX", "RELEASE", "RESET", "ROLLBACK", "SAVEPOINT", "SET", "START", "UNLISTEN", "VACUUM")
)  # fmt: skip
_LEAVING_CALLS = frozenset({"set_config", "pg_notify", "dblink", "dblink_exec", "lo_import"})
MANIPULATING = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "SELECT", "WITH", "VALUES"})
"""What a handler's statement may begin with."""


def check_confined(text: str) -> None:
    """Refuses text with a statement that would leave the projection's transaction, role or schema.

    The role is what confines: this gives early and clear errors, and closes the ways by which SQL
    changes its own role.

    Raises:
        StatementError: names the word.

    """
    begins = True
    for token in tokens(text):
        if token.kind in ("space", "comment"):
            continue
        if token.kind == "end":
            begins = True
            continue
        if token.kind in ("word", "quoted"):
            word = token.text.strip('"')
            if begins and token.kind == "word" and word.upper() in _LEAVING:
                raise StatementError(
                    f"{word.upper()} is not allowed here: the batch is one transaction, as one"
                    " role, in one schema",
                    position=token.at + 1,
                )
            if word.lower() in _LEAVING_CALLS:
                raise StatementError(
                    f"{word.lower()} is not allowed in a projection", position=token.at + 1
                )
        begins = False


def line_of(statement: Statement, position: int) -> int:
    """The line in the file of character ``position`` (1-based, 0: unknown) of a statement."""
    return statement.line + statement.text.count("\n", 0, max(position - 1, 0))
