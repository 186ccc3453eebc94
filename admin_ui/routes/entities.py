"""Entities over HTTP: found by the search language, with their marks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from admin_ui.access import needs
from admin_ui.entity_shapes import EntityShape
from admin_ui.operation_shapes import MAX_WHERE
from admin_ui.routes.projections import Limit, answer
from admin_ui.services import services_of
from admin_ui.shapes import Page
from kernel.principals import Role
from operations.kinds.base import Candidate
from operations.model import Selection
from operations.selection import search

STATES = ("active", "deleted", "tombstoned")

Log = Annotated[str, Query(max_length=40, description="The log.")]
Next = Annotated[str, Query(alias="next", max_length=2_000, description="Of the page before.")]


def register(app: FastAPI) -> None:
    """Adds the route."""
    tags: dict[str, Any] = {"tags": ["entities"]}
    app.get("/api/v1/entities", response_model=Page[EntityShape], **tags)(list_entities)


@needs(Role.VIEWER)
async def list_entities(
    request: Request,
    log: Log = "default",
    where: Annotated[str, Query(max_length=MAX_WHERE, description="In the search language.")] = "",
    limit: Limit = 100,
    after: Next = "",
) -> Response:
    """Entities of a log that the search language describes; nothing of what is inside of events.

    A page may have fewer rows than asked for, even none, and a next one.
    """
    services = services_of(request)
    found = await search(
        services.database, services.journal, Selection(log=log, where=where), token=after,
        limit=limit,
    )  # fmt: skip
    rows = [entity_shown(candidate) for candidate in found.candidates]
    return answer(request, {"rows": rows, "next": found.next_token or None})


def entity_shown(found: Candidate) -> dict[str, Any]:
    """An entity of a search."""
    return {
        "entity_type": found.entity_type,
        "entity_id": found.entity_id,
        "state": STATES[found.state],
        "sequence": found.sequence,
        "events": found.event_count,
        "first_position": found.first_position,
        "last_position": found.last_position,
        "floor": found.floor,
        "snapshot": found.snapshot,
        "held": found.held,
    }
