"""Operations over HTTP: plan, read, apply, watch, stop, undo."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from admin_ui.access import caller, needs
from admin_ui.operation_shapes import (
    Applying,
    Excuse,
    FailureShape,
    ItemShape,
    ItemWord,
    KindShape,
    NewPlan,
    Operation,
    Wire,
    failure_shown,
    item_shown,
    kind_shown,
    kinds,
    shown,
)
from admin_ui.routes.projections import Limit, Next, answer, database_of
from admin_ui.services import services_of
from admin_ui.shapes import Page
from kernel.errors import InvalidArgument
from kernel.principals import Role
from operations import control
from operations.model import ItemState, OperationRow, State

ALL = "/api/v1/operations"
ONE = f"{ALL}/{{operation_id}}"


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["operations"]}
    one: dict[str, Any] = {"response_model": Operation, **tags}
    app.get("/api/v1/operation-kinds", response_model=Page[KindShape], **tags)(list_kinds)
    app.post(ALL, status_code=201, **one)(plan)
    app.get(ALL, response_model=Page[Operation], **tags)(list_operations)
    app.get(ONE, **one)(get_operation)
    app.get(f"{ONE}/items", response_model=Page[ItemShape], **tags)(list_items)
    app.get(f"{ONE}/failures", response_model=Page[FailureShape], **tags)(failures)
    app.post(f"{ONE}/apply", status_code=202, **one)(apply)
    for act in (pause, resume, cancel, retry):
        app.post(f"{ONE}/{act.__name__}", status_code=202, **one)(act)
    app.post(f"{ONE}/undo", status_code=202, **one)(undo)
    app.post(f"{ONE}/replan", status_code=201, **one)(replan)


@needs(Role.VIEWER)
async def list_kinds(request: Request) -> Response:
    """The kinds of operations by name, each with the policy that holds for it."""
    set_ = {row.kind: row.policy for row in await control.list_policies(database_of(request))}
    rows = [kind_shown(kind, set_.get(kind.name, kind.policy)) for kind in kinds()]
    return answer(request, {"rows": rows, "next": None})


@needs(Role.OPERATOR)
async def plan(request: Request, body: NewPlan) -> Response:
    """Finds out what an operation would do, and keeps that for a while; changes nothing else.

    A plan with nothing to do is a plan.
    """
    services = services_of(request)
    row = await control.plan(
        services.database, services.journal, services.environment, body.request(), caller(request)
    )
    return told(request, row, 201)


@needs(Role.VIEWER)
async def list_operations(
    request: Request,
    state: Annotated[
        list[Wire] | None, Query(max_length=12, description="Only in these states.")
    ] = None,
    kind: Annotated[str, Query(max_length=40, description="Only of this kind.")] = "",
    limit: Limit = 100,
    after: Next = "",
) -> Response:
    """Operations, newest first."""
    if after:
        control.check_id("next", after)
    rows = await control.list_operations(
        database_of(request), states=tuple(State(word) for word in state or ()), kind=kind,
        before=after or None, limit=limit,
    )  # fmt: skip
    who = caller(request)
    last = rows[-1].id if len(rows) == limit else None
    return answer(request, {"rows": [shown(row, who) for row in rows], "next": last})


@needs(Role.VIEWER)
async def get_operation(request: Request, operation_id: str) -> Response:
    """An operation: what its plan says, how far it is, its receipt."""
    return told(request, await control.get(database_of(request), operation_id))


@needs(Role.VIEWER)
async def list_items(
    request: Request,
    operation_id: str,
    state: Annotated[ItemWord | None, Query(description="Only in this state.")] = None,
    limit: Limit = 100,
    after: Next = "",
) -> Response:
    """What an operation acts on, in order; nothing of what is inside of events."""
    wanted = ItemState[state.upper()] if state else None
    rows = await control.list_items(
        database_of(request), operation_id, state=wanted, after=_number(after), limit=limit
    )
    last = str(rows[-1].no) if len(rows) == limit else None
    return answer(request, {"rows": [item_shown(row) for row in rows], "next": last})


@needs(Role.VIEWER)
async def failures(request: Request, operation_id: str) -> Response:
    """Why items were skipped, failed or not undone: each reason with its number, at most 100."""
    rows = await control.failures(database_of(request), operation_id)
    return answer(request, {"rows": [failure_shown(row) for row in rows], "next": None})


@needs(Role.OPERATOR)
async def apply(request: Request, operation_id: str, body: Applying) -> Response:
    """Lets a plan be carried out, as it was read (its digest). Sent again, it acts once.

    Where the policy of its kind wants a second person, it waits for another one to do the same.
    """
    row = await control.apply(
        database_of(request), operation_id, digest=body.digest, reason=body.reason,
        principal=caller(request), typed=body.typed, confirmed=body.confirmed,
    )  # fmt: skip
    return told(request, row, 202)


@needs(Role.OPERATOR)
async def pause(request: Request, operation_id: str) -> Response:
    """Lets an operation stand still from the next safe point on."""
    row = await control.pause(database_of(request), operation_id, principal=caller(request))
    return told(request, row, 202)


@needs(Role.OPERATOR)
async def resume(request: Request, operation_id: str) -> Response:
    """Lets a paused operation go on."""
    row = await control.resume(database_of(request), operation_id, principal=caller(request))
    return told(request, row, 202)


@needs(Role.OPERATOR)
async def cancel(request: Request, operation_id: str) -> Response:
    """Ends an operation at the next safe point; what is done stays, and may be undone."""
    row = await control.cancel(database_of(request), operation_id, principal=caller(request))
    return told(request, row, 202)


@needs(Role.OPERATOR)
async def retry(request: Request, operation_id: str) -> Response:
    """Lets an operation try the items once more that failed."""
    row = await control.retry(database_of(request), operation_id, principal=caller(request))
    return told(request, row, 202)


@needs(Role.OPERATOR)
async def undo(request: Request, operation_id: str, body: Excuse) -> Response:
    """Lets what an operation did be taken back, as long as it can be."""
    row = await control.undo(
        database_of(request), operation_id, reason=body.reason, principal=caller(request)
    )
    return told(request, row, 202)


@needs(Role.OPERATOR)
async def replan(request: Request, operation_id: str) -> Response:
    """Plans the same anew: another operation, with another id and another digest."""
    services = services_of(request)
    row = await control.replan(
        services.database, services.journal, services.environment, operation_id, caller(request)
    )
    return told(request, row, 201)


def told(request: Request, row: OperationRow, status: int = 200) -> Response:
    """An operation as an answer."""
    return answer(request, shown(row, caller(request)), status)


def _number(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidArgument("next", "is not a token of a page before")
    return int(token)
