"""Replays of entities into live projections, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import Field

from admin_ui.access import caller, needs
from admin_ui.routes.projections import Body, Limit, Next, answer, database_of, door
from admin_ui.shapes import Page
from kernel.errors import InvalidArgument
from kernel.ids import check_uuid
from kernel.principals import Role
from projections import control
from projections.replay import MAX_ENTITIES, MAX_TYPES, ReplayRow, Selection

_ALL = "/api/v1/projections/{name}/replays"


class Order(Body):
    """Which entities to replay: ``entities``, ``types``, or a range of positions."""

    reason: str = Field(min_length=1, max_length=control.MAX_REASON)
    entities: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [], max_length=MAX_ENTITIES, description="Entity type and entity id of each."
    )
    types: list[str] = Field([], max_length=MAX_TYPES, description="All entities of these types.")
    from_position: int = Field(0, ge=0, description="Entities with an event from here")
    to_position: int = Field(0, ge=0, description="to here.")
    rate: float | None = Field(
        None, gt=0, le=1e6, strict=False, description="Events a second for each segment."
    )


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["projections"]}
    app.post(_ALL, status_code=202, response_model=ReplayRow, **tags)(order)
    app.get(_ALL, response_model=Page[ReplayRow], **tags)(list_replays)
    app.get(f"{_ALL}/{{replay_id}}", response_model=ReplayRow, **tags)(get_replay)
    app.post(f"{_ALL}/{{replay_id}}/cancel", response_model=ReplayRow, **tags)(cancel)


@needs(Role.OPERATOR)
async def order(request: Request, name: str, body: Order) -> Response:
    """Deletes entities from the live tables and makes them again from their events; see the row's
    ``state`` for when it is done.
    """
    selection = Selection(
        tuple((kind, entity_id) for kind, entity_id in body.entities),
        tuple(body.types),
        body.from_position,
        body.to_position,
    )
    row = await control.replay(
        database_of(request), name, selection,
        reason=body.reason, principal=caller(request).name, rate=body.rate,
        first=door(request, name, "replay", "ProjectionReplayOrdered"),
    )  # fmt: skip
    return answer(request, row, 202)


@needs(Role.VIEWER)
async def list_replays(
    request: Request, name: str, limit: Limit = 100, after: Next = ""
) -> Response:
    """Replays of a projection, newest first, with how many entities or types each was ordered for;
    the replay itself says which.
    """
    before = check_uuid("next", after) if after else None
    rows = await control.list_replays(database_of(request), name, limit, before)
    last = rows[-1].replay_id if len(rows) == limit else None
    return answer(request, {"rows": rows, "next": last})


@needs(Role.VIEWER)
async def get_replay(request: Request, name: str, replay_id: str) -> Response:
    """A replay and how far it is."""
    return answer(request, await control.get_replay(database_of(request), name, _id(replay_id)))


@needs(Role.OPERATOR)
async def cancel(request: Request, name: str, replay_id: str) -> Response:
    """Ends a replay after the entities it is at; what was replayed stays."""
    return answer(request, await control.cancel_replay(database_of(request), name, _id(replay_id)))


def _id(text: str) -> str:
    if len(text) > 36:
        raise InvalidArgument("replay_id", "is not a UUID in lower case with hyphens")
    return check_uuid("replay_id", text)
