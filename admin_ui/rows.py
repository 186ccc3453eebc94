"""Rows of read models as JSON and as CSV, without loss.

JSON: whole numbers and floating point numbers are numbers (NaN and infinities, which JSON has not,
are strings); ``numeric`` is a string, because most readers would round it; times are RFC 3339 with
``Z`` and microseconds; ``bytea`` is base64; json is itself; arrays and composites are what
PostgreSQL's ``to_json`` makes of them; everything else is PostgreSQL's text.

CSV (RFC 4180): the same values as text; NULL is an empty field, an empty text is ``""``. A text
that a spreadsheet would take for a formula gets a ``'`` in front, unless that is switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from admin_ui.read_models import Column

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def json_row(columns: Sequence[Column], values: Sequence[Any]) -> bytes:
    """A row as a JSON object."""
    return orjson.dumps(
        {
            column.name: _json_value(column.kind, value)
            for column, value in zip(columns, values, strict=False)
        }
    )


def _json_value(kind: str, value: Any) -> Any:
    if value is None or kind in ("whole", "bool", "text"):
        return value
    if kind == "float" and not math.isfinite(float(value)):
        return value
    return orjson.Fragment(value)


def csv_head(columns: Sequence[Column], *, formulas: bool) -> bytes:
    """The first line of a CSV file."""
    return _line(_csv_text(column.name, guarded=not formulas) for column in columns)


def csv_row(columns: Sequence[Column], values: Sequence[Any], *, formulas: bool) -> bytes:
    """A row as a line of CSV; ``formulas``: texts stay as they are."""
    return _line(
        _csv_value(column, value, formulas) for column, value in zip(columns, values, strict=False)
    )


def _csv_value(column: Column, value: Any, formulas: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    number = column.kind in ("whole", "float") or column.base == "numeric"
    return _csv_text(str(value), guarded=not (formulas or number))


def _csv_text(text: str, *, guarded: bool) -> str:
    if guarded and text.startswith(_FORMULA):
        text = "'" + text
    if not text or any(mark in text for mark in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _line(fields: Iterable[str]) -> bytes:
    return (",".join(fields) + "\r\n").encode()
