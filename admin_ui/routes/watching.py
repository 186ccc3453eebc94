"""The progress of an operation as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from admin_ui.access import caller, needs
from admin_ui.operation_shapes import shown
from admin_ui.routes.operations import ONE
from admin_ui.routes.projections import database_of, written
from admin_ui.services import services_of
from kernel.errors import EverstateError
from kernel.principals import Role
from operations import control
from operations.model import ENDED, OperationRow

_FIRST_LOOK_S: Final = 0.1
_LONGEST_S: Final = 1.0


def register(app: FastAPI) -> None:
    """Adds the route."""
    app.get(f"{ONE}/watch", response_class=EventSourceResponse, tags=["operations"])(watch)


async def _found(request: Request, operation_id: str) -> AsyncIterator[OperationRow]:
    """The operation, before any answer has begun; and a place among those who watch."""
    with services_of(request).streams.place(caller(request)):
        yield await control.get(database_of(request), operation_id)


@needs(Role.VIEWER)
async def watch(
    request: Request, row: Annotated[OperationRow, Depends(_found)]
) -> AsyncIterator[ServerSentEvent]:
    """The operation at once and after every change, as events `progress`; `end` when it has ended.

    The data of both is the operation as `GET` shows it. The stream ends after a minute at the
    latest: connect again for more.
    """
    if request.scope.get("everstate.head"):
        return
    services = services_of(request)
    loop = asyncio.get_running_loop()
    end = loop.time() + services.settings.watch_seconds
    pause = _FIRST_LOOK_S
    told = -1
    while True:
        if row.version != told:
            told, pause = row.version, _FIRST_LOOK_S
            name = "end" if row.state in ENDED else "progress"
            data = written(request, shown(row, caller(request))).decode()
            yield ServerSentEvent(raw_data=data, event=name, id=str(row.version), retry=1_000)
            if row.state in ENDED:
                return
        if loop.time() + pause > end:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_S)
        try:
            row = await control.get(services.database, row.id)
        except EverstateError:  # the database is away: the watcher comes again
            return
