"""Idempotency keys: a POST that is sent again acts once and gets the first answer.

The key is the caller's, unique to it and to one request. The first request with a key claims it;
another one meanwhile is told to come back; another one afterwards gets the kept answer, with the
header ``Idempotency-Replayed``. The same key with another request is refused. A request that
changed nothing (an error) leaves no answer behind and may be sent again.

A process that is killed at work leaves a claim that lapses; whoever sends the request again then
does the work again. So every act behind a POST has to be one that is safe to do twice: by a name
that is taken, by a state that is reached already.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from fastapi import Request, Response

from kernel import sql
from kernel.database import Database
from kernel.errors import Conflict, DeadlineExceeded, InvalidArgument, Unavailable
from kernel.principals import Principal

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
ACT_SECONDS: Final = 90.0
"""The longest that a POST may work."""
_LOCK: Final = timedelta(seconds=ACT_SECONDS + 30)
_KEPT: Final = timedelta(days=1)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")

Act = Callable[[], Awaitable[Response]]


class WithSecret(Response):
    """An answer that shows a secret once: a repetition gets ``kept``, which is without it."""

    kept: bytes = b""


async def once(database: Database, principal: Principal, request: Request, act: Act) -> Response:
    """The answer of ``act``, which is not called when an answer is kept.

    Raises:
        InvalidArgument: the key is not 1 to 200 printable ASCII characters.
        Conflict: the key was used for another request.
        Unavailable: the same request is being worked on.

    """
    key = request.headers.get(HEADER)
    if key is None:
        return await _bounded(act)
    if not _KEY.fullmatch(key) or len(request.headers.getlist(HEADER)) > 1:
        raise InvalidArgument(HEADER, "is one value of 1 to 200 printable ASCII characters")
    digest = _digest(request, await request.body())
    who = principal.identity
    await database.fetchrow(sql.load("admin_ui", "requests_prune", database.schema), _KEPT)
    begun = await database.fetchrow(
        sql.load("admin_ui", "request_claim", database.schema), who, key, digest, _LOCK
    )
    if begun is None:
        return await _kept(database, who, key, digest)
    try:
        response = await _bounded(act)
    except BaseException:
        await asyncio.shield(_drop(database, who, key))
        raise
    if response.status_code >= 300:
        await _drop(database, who, key)
        return response
    body = response.kept if isinstance(response, WithSecret) else bytes(response.body)
    await database.fetchrow(
        sql.load("admin_ui", "request_done", database.schema), who, key, response.status_code, body
    )
    return response


async def _kept(database: Database, who: str, key: str, digest: bytes) -> Response:
    row = await database.fetchrow(sql.load("admin_ui", "request_found", database.schema), who, key)
    if row is None:  # it failed this very moment
        raise Unavailable(f"{HEADER}: the first request with this key has just failed")
    if row["digest"] != digest:
        raise Conflict(f"{HEADER}: this key was used for another request")
    if row["status"] is None:
        raise Unavailable(
            f"{HEADER}: the request is being worked on", retry_after=timedelta(seconds=1)
        )
    return Response(row["body"], row["status"], {REPLAYED: "true"}, media_type="application/json")


async def _drop(database: Database, who: str, key: str) -> None:
    await database.fetchrow(sql.load("admin_ui", "request_drop", database.schema), who, key)


async def _bounded(act: Act) -> Response:
    try:
        async with asyncio.timeout(ACT_SECONDS):
            return await act()
    except TimeoutError:
        raise DeadlineExceeded(f"not done within {ACT_SECONDS:g} s") from None


def _digest(request: Request, body: bytes) -> bytes:
    parts = (request.method.encode(), request.url.path.encode(), request.url.query.encode(), body)
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()
