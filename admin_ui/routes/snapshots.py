"""Snapshots of entities over HTTP, to look at; without their payloads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from admin_ui.access import needs
from admin_ui.entity_shapes import SnapshotShape
from admin_ui.page_tokens import parts_of, token_of
from admin_ui.routes.entities import Log, Next
from admin_ui.routes.projections import Limit, answer
from admin_ui.services import services_of
from admin_ui.shapes import Page
from kernel import clock
from kernel.principals import Role
from snapshots.model import SnapshotInfo
from snapshots.store import SnapshotStore


def register(app: FastAPI) -> None:
    """Adds the route."""
    tags: dict[str, Any] = {"tags": ["entities"]}
    app.get("/api/v1/snapshots", response_model=Page[SnapshotShape], **tags)(list_snapshots)


@needs(Role.VIEWER)
async def list_snapshots(
    request: Request,
    entity_type: Annotated[str, Query(alias="type", min_length=1, max_length=255)],
    entity_id: Annotated[str, Query(alias="id", min_length=1, max_length=512)],
    log: Log = "default",
    limit: Limit = 100,
    after: Next = "",
) -> Response:
    """The snapshots of an entity, newest first, without their payloads."""
    services = services_of(request)
    [before] = parts_of(after, (0,))
    rows = await SnapshotStore(services.database, services.journal).list(
        log, entity_type, entity_id, before=before, limit=limit
    )
    last = token_of(rows[-1].sequence) if len(rows) == limit else None
    return answer(request, {"rows": [snapshot_shown(row) for row in rows], "next": last})


def snapshot_shown(info: SnapshotInfo) -> dict[str, Any]:
    """A snapshot without its payload."""
    shown = asdict(info) | {"source": info.source.name.lower()}
    for name in ("event_at", "recorded_at", "verified_at"):
        moment = shown.pop(f"{name}_us")
        shown[name] = clock.format_us(moment) if moment else None
    return shown
