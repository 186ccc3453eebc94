"""Progress: an operation's row whenever it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from kernel.database import Database
from operations import store
from operations.model import ENDED, OperationRow

POLL_S: Final = 0.3


async def watch(
    database: Database, operation_id: str, since_version: int = 0
) -> AsyncIterator[OperationRow]:
    """The operation as it is (when its version is above ``since_version``), then each time that it
    has changed, not faster than some times a second; ends when the operation has ended.

    An undo or a retry begins later: watch again. One statement a look; nothing is held between
    two looks.

    Raises:
        InvalidArgument, NotFound: as `control.get`. Unavailable: the database does not serve.

    """
    seen = since_version
    known: OperationRow | None = None
    while True:
        version, state = await store.seen(database, operation_id)
        if version > seen:
            row = known = await store.fetch(database, operation_id, known)
            seen, state = row.version, row.state
            yield row
        if state in ENDED:
            return
        await asyncio.sleep(POLL_S)
