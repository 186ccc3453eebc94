"""Projections over HTTP: look, pause, resume, rebuild, switch, compare, wait."""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime, timedelta
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from admin_ui.access import caller, needs
from admin_ui.services import services_of
from admin_ui.shapes import Compared, Page
from kernel import clock
from kernel.database import Database
from kernel.errors import InvalidArgument
from kernel.principals import PAYLOAD, Role
from operations.doors import Through, through
from projections import control
from projections.control import ParkedRow, Passed, ProjectionRow, SegmentRow

_TAGS: dict[str, Any] = {"tags": ["projections"]}
_ONE = "/api/v1/projections/{name}"
_NO_VALUES = frozenset(
    {"code", "sqlstate", "where", "position", "at", "worker", "entity_type", "entity_id",
     "event_type"}
)  # fmt: skip
"""Keys of an error that hold nothing of what is inside of events."""

Limit = Annotated[int, Query(ge=1, le=control.MAX_PAGE)]
Next = Annotated[str, Query(alias="next", max_length=40, description="Of the page before.")]
Version = Annotated[int | None, Query(ge=1, description="Of the build; default: the live one.")]
Build = Annotated[int, Query(ge=1, description="Of the version; with `version`.")]


class Body(BaseModel):
    """The body of a request: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reason(Body):
    """Why something is done; operators will read it."""

    reason: str = Field(min_length=1, max_length=control.MAX_REASON)


class Order(Body):
    """How a rebuild goes on once it has caught up."""

    auto_switch: bool = Field(False, description="Show it to readers as soon as it has caught up.")


class Which(Body):
    """A build; none named: the one that the act is usually about."""

    version: int | None = Field(None, ge=1)
    build: int = Field(1, ge=1)


_NONE = Which(version=None, build=1)


def register(app: FastAPI) -> None:
    """Adds the routes."""
    one: dict[str, Any] = {"response_model": ProjectionRow, **_TAGS}
    many: dict[str, Any] = {"response_model": Page[ProjectionRow], **_TAGS}
    app.get("/api/v1/projections", **many)(list_projections)
    app.get(_ONE, **one)(get_projection)
    app.get(f"{_ONE}/builds", **many)(list_builds)
    app.get(f"{_ONE}/segments", response_model=Page[SegmentRow], **_TAGS)(list_segments)
    app.get(f"{_ONE}/parked", response_model=Page[ParkedRow], **_TAGS)(list_parked)
    app.get(f"{_ONE}/wait", response_model=Passed, **_TAGS)(wait)
    app.post(f"{_ONE}/pause", **one)(pause)
    app.post(f"{_ONE}/resume", **one)(resume)
    app.post(f"{_ONE}/rebuild", status_code=202, **one)(rebuild)
    app.post(f"{_ONE}/switch", **one)(switch)
    app.post(f"{_ONE}/rollback", **one)(rollback)
    app.post(f"{_ONE}/discard", **one)(discard)
    app.post(f"{_ONE}/compare", response_model=Compared, **_TAGS)(compare)


@needs(Role.VIEWER)
async def list_projections(request: Request, limit: Limit = 100, after: Next = "") -> Response:
    """Projections by name, each as the build that readers see."""
    found = await control.list_projections(database_of(request), after, min(limit + 1, 1_000))
    more = len(found) > limit or (limit == control.MAX_PAGE == len(found))
    rows = found[:limit]
    return answer(request, {"rows": rows, "next": rows[-1].name if more else None})


@needs(Role.VIEWER)
async def get_projection(request: Request, name: str) -> Response:
    """A projection as the build that readers see."""
    return answer(request, await control.get_projection(database_of(request), name))


@needs(Role.VIEWER)
async def list_builds(
    request: Request, name: str, limit: Limit = 100, after: Next = ""
) -> Response:
    """The builds of a projection, newest version first, retired ones too."""
    rows = await control.list_builds(database_of(request), name, limit, _pair(after))
    last = f"{rows[-1].version}.{rows[-1].build}" if len(rows) == limit else None
    return answer(request, {"rows": rows, "next": last})


@needs(Role.VIEWER)
async def list_segments(
    request: Request, name: str, version: Version = None, build: Build = 1, limit: Limit = 100,
    after: Next = "",
) -> Response:  # fmt: skip
    """The segments of a build: up to where each has come, and which worker has it."""
    key = await _build(request, name, version, build)
    rows = await control.list_segments(database_of(request), name, *key, _number(after, -1), limit)
    return answer(
        request, {"rows": rows, "next": str(rows[-1].segment) if len(rows) == limit else None}
    )


@needs(Role.VIEWER)
async def list_parked(
    request: Request, name: str, version: Version = None, build: Build = 1, limit: Limit = 100,
    after: Next = "",
) -> Response:  # fmt: skip
    """Events that a build passed over, by position, and why; without their payloads."""
    key = await _build(request, name, version, build)
    rows = await control.list_parked(database_of(request), name, *key, _number(after, 0), limit)
    return answer(
        request, {"rows": rows, "next": str(rows[-1].position) if len(rows) == limit else None}
    )


@needs(Role.VIEWER)
async def wait(
    request: Request,
    name: str,
    position: Annotated[int, Query(ge=0, description="That of one's write.")],
    timeout: Annotated[float, Query(ge=0, description="Seconds.")] = 10.0,
) -> Response:
    """Answers when readers see everything up to a position (read your writes)."""
    services = services_of(request)
    if timeout > services.settings.wait_seconds:
        raise InvalidArgument("timeout", f"is above {services.settings.wait_seconds:g} seconds")
    patience = timedelta(seconds=max(timeout, 0.001))
    with services.waits:
        return answer(request, await control.wait_for(services.database, name, position, patience))


@needs(Role.OPERATOR)
async def pause(request: Request, name: str, body: Reason) -> Response:
    """Stops a projection until it is resumed; nothing of it commits after the answer."""
    return answer(request, await control.pause(database_of(request), name, body.reason))


@needs(Role.OPERATOR)
async def resume(request: Request, name: str) -> Response:
    """Ends a pause, and lets halted segments try again."""
    return answer(request, await control.resume(database_of(request), name))


@needs(Role.OPERATOR)
async def rebuild(request: Request, name: str, body: Order | None = None) -> Response:
    """Orders another build beside the live one; the answer is the new build."""
    order = body or Order(auto_switch=False)
    made = await control.rebuild(
        database_of(request),
        name,
        auto_switch=order.auto_switch,
        first=door(request, name, "rebuild", "ProjectionRebuildOrdered"),
    )
    return answer(request, made, 202)


@needs(Role.OPERATOR)
async def switch(request: Request, name: str, body: Which | None = None) -> Response:
    """Shows readers the build that is ready, or the named one."""
    which = body or _NONE
    return answer(
        request,
        await control.switch(
            database_of(request), name, which.version, which.build,
            first=door(request, name, "rebuild", "ProjectionSwitched"),
        ),
    )  # fmt: skip


@needs(Role.OPERATOR)
async def rollback(request: Request, name: str) -> Response:
    """Shows readers the build that was live before."""
    return answer(
        request,
        await control.rollback(
            database_of(request), name, first=door(request, name, "rebuild", "ProjectionRolledBack")
        ),
    )


@needs(Role.OPERATOR)
async def discard(request: Request, name: str, body: Which | None = None) -> Response:
    """Gives up a build that is not live: by default the one under way."""
    which = body or _NONE
    return answer(
        request,
        await control.discard(
            database_of(request), name, which.version, which.build,
            first=door(request, name, "rebuild", "ProjectionBuildDiscarded"),
        ),
    )  # fmt: skip


@needs(Role.OPERATOR)
async def compare(request: Request, name: str, body: Which | None = None) -> Response:
    """Compares the live build with another one at one position, table by table."""
    which = body or _NONE
    found = await control.compare(database_of(request), name, which.version, which.build)
    return answer(request, {**plain(found), "equal": found.equal})


def door(request: Request, name: str, kind: str, type_: str) -> Through:
    """What a direct order about a projection does first: policy and audit of the kind."""
    schema, data = database_of(request).schema, {"projection": name, "direct": True}
    return through(schema, kind, ("projection", name), type_, data, caller(request).identity)


def database_of(request: Request) -> Database:
    """The database of the admin."""
    return services_of(request).database


async def _build(request: Request, name: str, version: int | None, build: int) -> tuple[int, int]:
    if version is not None:
        found = await control.get_build(database_of(request), name, version, build)
    else:
        found = await control.get_projection(database_of(request), name)
    return found.version, found.build


def _number(token: str, first: int) -> int:
    if not token:
        return first
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidArgument("next", "is not a token of a page before")
    return int(token)


def _pair(token: str) -> tuple[int, int] | None:
    """Version and build of a token like ``3.1``."""
    if not token:
        return None
    found = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", token, re.ASCII)
    if found is None:
        raise InvalidArgument("next", "is not a token of a page before")
    return int(found[1]), int(found[2])


def answer(request: Request, value: object, status: int = 200) -> Response:
    """``value`` as JSON for who asks; see `plain`."""
    return Response(written(request, value), status, media_type="application/json")


def written(request: Request, value: object) -> bytes:
    """``value`` as JSON for who asks; see `plain`."""
    return orjson.dumps(plain(value, payload=PAYLOAD in caller(request).grants), default=str)


def without_values(error: dict[str, Any]) -> dict[str, Any]:
    """An error without its message and what else may quote events."""
    return {key: item for key, item in error.items() if key in _NO_VALUES} | {"message": None}


def plain(value: Any, *, payload: bool = False) -> Any:
    """Dataclasses as objects, times as RFC 3339 with Z. Without the grant ``payload``, errors are
    without their message: what raised it has seen events and may quote them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if not payload and isinstance(found.get("error"), dict):
            found["error"] = without_values(found["error"])
        value = found
    if isinstance(value, dict):
        return {key: plain(item, payload=payload) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, payload=payload) for item in value]
    if isinstance(value, datetime) and value.tzinfo is not None:
        return clock.format_us(clock.to_us(value))
    return value
