"""What is set for entity types, over HTTP. Who changes it has seen what it was."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import Field

from admin_ui.access import caller, needs
from admin_ui.entity_shapes import TypeShape
from admin_ui.preconditions import matched, seen, tagged
from admin_ui.routes.projections import Body, Limit, answer
from admin_ui.services import services_of
from admin_ui.shapes import Page
from kernel import clock
from kernel.principals import Role
from snapshots.model import EntityType, TypeSettings
from snapshots.store import TypeStore

ALL = "/api/v1/entity-types"

Name = Annotated[str, Path(min_length=1, max_length=255)]
Next = Annotated[str, Query(alias="next", max_length=255, description="Of the page before.")]


class NewSettings(Body):
    """What is to be set for an entity type; what is not given stays as it is."""

    needs_full_replay: bool | None = Field(None, description="Its owner cannot load a snapshot.")
    snapshot_types: list[str] | None = Field(
        None, description="Those its owner can load; empty: all."
    )
    trust_snapshots: bool | None = Field(None, description="Its owner's count as verified.")
    snapshot_every: int | None = Field(None, description="Due after so many events; 0: never.")
    snapshot_age_s: int | None = Field(None, description="Due after so many seconds; 0: never.")
    keep_snapshots: int | None = Field(None, description="Pruning leaves so many newest ones.")


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["entities"]}
    app.get(ALL, response_model=Page[TypeShape], **tags)(list_types)
    app.get(f"{ALL}/{{name}}", response_model=TypeShape, **tags)(get_type)
    app.put(f"{ALL}/{{name}}", response_model=TypeShape, **tags)(set_type)


@needs(Role.VIEWER)
async def list_types(request: Request, limit: Limit = 100, after: Next = "") -> Response:
    """Entity types by name, and what is set for them."""
    rows = await _store(request).list(after, limit)
    last = rows[-1].name if len(rows) == limit else None
    return answer(request, {"rows": [shown(row) for row in rows], "next": last})


@needs(Role.VIEWER)
async def get_type(request: Request, name: Name) -> Response:
    """What is set for an entity type, with its version as ETag."""
    return _one(request, await _store(request).get(name))


@needs(Role.ADMIN)
async def set_type(request: Request, name: Name, body: NewSettings) -> Response:
    """Sets what holds for an entity type; what is not given stays as it is. One that has no events
    yet is made.
    """
    given = {name: value for name, value in body.model_dump().items() if value is not None}
    if "snapshot_types" in given:
        given["snapshot_types"] = tuple(given["snapshot_types"])
    replace(TypeSettings(), **given).check()  # before a type is made
    row = await matched(
        _store(request).change(
            name,
            lambda before: replace(before, **given),
            version=seen(request),
            principal=caller(request).identity,
        )
    )
    return _one(request, row)


def _store(request: Request) -> TypeStore:
    services = services_of(request)
    return TypeStore(services.database, services.journal)


def _one(request: Request, row: EntityType) -> Response:
    response = answer(request, shown(row))
    response.headers.update(tagged(row.version))
    return response


def shown(row: EntityType) -> dict[str, Any]:
    """An entity type with its settings."""
    return {
        "name": row.name,
        **asdict(row.settings),
        "version": row.version,
        "updated_at": clock.format_us(row.updated_at_us) if row.updated_at_us else None,
        "updated_by": row.updated_by,
    }
