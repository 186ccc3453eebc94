"""Policies: how operations of a kind are guarded. Who changes one has seen what it was."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import Field

from admin_ui.access import caller, needs
from admin_ui.operation_shapes import PolicyShape
from admin_ui.preconditions import matched, seen, tagged
from admin_ui.routes.projections import Body, answer, database_of
from admin_ui.shapes import Page
from kernel.errors import NotFound
from kernel.principals import Role
from operations import control, policies
from operations.control import PolicyRow
from operations.kinds import KINDS

ALL = "/api/v1/policies"


class NewPolicy(Body):
    """How operations of a kind are to be guarded; what is not given stays as it is."""

    second_person: bool | None = Field(None, description="Another one has to apply it too.")
    expires_s: int | None = Field(None, description="A plan not applied by then is void.")
    max_drift: float | None = Field(
        None, strict=False, description="Share of the items that may have changed at the start."
    )
    undo_s: int | None = Field(None, description="How long it can be undone.")
    typed: bool | None = Field(None, description="Apply has to repeat what the plan asks for.")


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["operations"]}
    app.get(ALL, response_model=Page[PolicyShape], **tags)(list_policies)
    app.get(f"{ALL}/{{kind}}", response_model=PolicyShape, **tags)(get_policy)
    app.put(f"{ALL}/{{kind}}", response_model=PolicyShape, **tags)(set_policy)


@needs(Role.VIEWER)
async def list_policies(request: Request) -> Response:
    """The policies of all kinds of operations; version 0: the kind's own."""
    rows = [_shown(row) for row in await control.list_policies(database_of(request))]
    return answer(request, {"rows": rows, "next": None})


@needs(Role.VIEWER)
async def get_policy(request: Request, kind: str) -> Response:
    """The policy of a kind, with its version as ETag."""
    return _one(request, await control.get_policy(database_of(request), _there(kind)))


@needs(Role.ADMIN)
async def set_policy(request: Request, kind: str, body: NewPolicy) -> Response:
    """Sets the policy of a kind; what is not given stays as it is.

    Plans that are there keep the time they were given.
    """
    version = seen(request)
    given = {name: value for name, value in body.model_dump().items() if value is not None}
    row = await matched(
        policies.change_policy(
            database_of(request), _there(kind), given, version=version, principal=caller(request)
        )
    )
    return _one(request, row)


def _there(kind: str) -> str:
    if kind not in KINDS:
        raise NotFound(f"there is no kind {kind[:40]!r}; there are {', '.join(sorted(KINDS))}")
    return kind


def _one(request: Request, row: PolicyRow) -> Response:
    response = answer(request, _shown(row))
    response.headers.update(tagged(row.version))
    return response


def _shown(row: PolicyRow) -> dict[str, Any]:
    return {
        "kind": row.kind,
        **asdict(row.policy),
        "version": row.version,
        "updated_at": row.updated_at,
        "updated_by": row.updated_by,
    }
