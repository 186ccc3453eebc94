"""ETag and If-Match: who changes settings has seen what they were (RFC 9110, 6585)."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from fastapi import Request

from kernel.errors import Conflict, EverstateError, InvalidArgument

HEADER: Final = "If-Match"
PARAMETER: Final[dict[str, Any]] = {
    "name": HEADER,
    "in": "header",
    "required": True,
    "schema": {"type": "string", "pattern": r'^("[0-9]{1,18}"|\*)$'},
    "description": "The ETag of what was read (412 when it has changed since), or *.",
}
_TAG: Final = re.compile(r'"([0-9]{1,18})"')

Result = TypeVar("Result")


class Refused(Exception):
    """An error with another status than the one of its class."""

    def __init__(self, error: EverstateError, status: int) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status


def tagged(version: int) -> dict[str, str]:
    """The header that says which version an answer shows."""
    return {"ETag": f'"{version}"'}


def seen(request: Request) -> int | None:
    """The version that the caller has seen; None: it does not matter to them (``*``).

    Raises:
        Refused: the header is missing (428). InvalidArgument: it is not one ETag of ours.

    """
    given = request.headers.getlist(HEADER)
    if not given:
        problem = "send the ETag of what you have read, or * to overwrite whatever is there"
        raise Refused(InvalidArgument(HEADER, problem), 428)
    if given == ["*"]:
        return None
    found = _TAG.fullmatch(given[0]) if len(given) == 1 else None
    if found is None:
        raise InvalidArgument(HEADER, 'is one ETag, like "3", or *')
    return int(found[1])


async def matched(change: Awaitable[Result]) -> Result:
    """What a change gives; that it met another version is a failed precondition.

    Raises:
        Refused: it has changed since it was read (412).

    """
    try:
        return await change
    except Conflict as error:
        raise Refused(error, 412) from None
