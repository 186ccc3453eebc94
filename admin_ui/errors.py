"""The error tree over HTTP: problem+json (RFC 9457), mapped once.

A problem has ``type`` (a URN with the code), ``title`` (what kind of thing it is), ``status``,
``code`` (of the error tree, the same over gRPC), ``detail`` (what happened here), ``field`` (which
part of the request, or null) and ``hint`` (what to do next).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from kernel import errors as e

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[type[e.EverstateError], int] = {
    e.EverstateError: 500,
    e.InternalError: 500,
    e.InvalidArgument: 400,
    e.TooLarge: 413,
    e.NotFound: 404,
    e.LogNotFound: 404,
    e.EntityNotFound: 404,
    e.AlreadyExists: 409,
    e.LogExists: 409,
    e.WrongExpectedState: 409,
    e.EntityDeleted: 409,
    e.ForeignEvents: 409,
    e.AppendIdReused: 409,
    e.OutOfRange: 400,
    e.Compacted: 410,
    e.DeadlineExceeded: 504,
    e.Cancelled: 499,
    e.Overloaded: 503,
    e.Unavailable: 503,
    e.OutcomeUnknown: 502,
    e.ClockSkew: 503,
    e.SchemaMismatch: 503,
    e.UnsafeServer: 503,
    e.UnsupportedServer: 503,
    e.ConfigurationError: 500,
    e.AddressInUse: 500,
    e.FolderInUse: 500,
    e.CorruptLog: 500,
    e.LeaseLost: 409,
    e.Unauthenticated: 401,
    e.PermissionDenied: 403,
    e.Conflict: 409,
    e.UnknownType: 404,
    e.Undecodable: 422,
    e.NoFold: 404,
    e.FoldFailed: 422,
}


def problem(error: e.EverstateError, status: int | None = None) -> dict[str, Any]:
    """The members of the problem of an error; ``status`` stands in for the one of the map."""
    title = (type(error).__doc__ or error.code).strip().splitlines()[0]
    return {
        "type": f"urn:everstate:error:{error.code}",
        "title": title,
        "status": status or STATUSES[type(error)],
        "code": error.code,
        "detail": error.message,
        "field": getattr(error, "field", None),
        "hint": error.hint,
    }


def answer(
    error: e.EverstateError, status: int | None = None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error's response."""
    members = problem(error, status)
    body = orjson.dumps(members)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    if isinstance(error, e.Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="everstate"'))
    if isinstance(error, e.Overloaded | e.Unavailable) and error.retryable:
        seconds = max(1, math.ceil(error.retry_after.total_seconds()))
        headers.append((b"retry-after", str(seconds).encode()))
    return members["status"], headers, body
