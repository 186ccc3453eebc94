"""Holds over HTTP, to look at; operations make and end them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from admin_ui.access import needs
from admin_ui.entity_shapes import HoldShape
from admin_ui.page_tokens import parts_of, token_of
from admin_ui.routes.projections import Limit, answer, database_of
from admin_ui.shapes import Page
from kernel.principals import Role
from operations import holds

Log = Annotated[str, Query(min_length=1, max_length=40, description="The log.")]
Next = Annotated[str, Query(alias="next", max_length=4_000, description="Of the page before.")]


def register(app: FastAPI) -> None:
    """Adds the route."""
    tags: dict[str, Any] = {"tags": ["entities"]}
    app.get("/api/v1/holds", response_model=Page[HoldShape], **tags)(list_holds)


@needs(Role.VIEWER)
async def list_holds(
    request: Request,
    log: Log = "default",
    label: Annotated[str, Query(max_length=40, description="Only of this label.")] = "",
    limit: Limit = 100,
    after: Next = "",
) -> Response:
    """Holds of a log by label, entity type and id: why nothing of these entities is removed."""
    start = parts_of(after, ("", "", ""))
    rows = await holds.list_holds(database_of(request), log, label, start, limit)
    last = rows[-1] if len(rows) == limit else None
    token = token_of(last.label, last.entity_type, last.entity_id) if last else None
    return answer(request, {"rows": [asdict(row) for row in rows], "next": token})
