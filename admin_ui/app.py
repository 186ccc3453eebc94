"""The FastAPI application of `everstate admin`: HTTP API now, console later.

`application` gives the whole ASGI application; `api` the FastAPI part of it, whose routes and
OpenAPI document tests and tools look at.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from admin_ui import errors, preconditions
from admin_ui.access import Route
from admin_ui.guard import Application, Guard
from admin_ui.routes import (
    entities,
    entity_types,
    folds,
    groups,
    holds,
    members,
    operations,
    policies,
    projections,
    read,
    replays,
    snapshots,
    system,
    tokens,
    watching,
)
from admin_ui.services import AdminSettings, Gate, Queue, Services, Streams
from kernel.database import Database
from kernel.errors import EverstateError, InternalError, InvalidArgument, NotFound
from kernel.token_store import Tokens
from operations.kinds.base import Environment

ROUTES = (
    *(system, tokens, members),
    *(projections, replays, groups),
    *(operations, watching, policies),
    *(entities, entity_types, snapshots, folds, holds, read),
)

_STREAMS_OF_EACH = 8
"""So many operations one principal watches at once in this process."""


def application(services: Services) -> Application:
    """The ASGI application, guarded."""
    app = cast(Application, api(services))
    return Guard(app, services.settings.limits, tls=services.settings.tls)


def api(services: Services) -> FastAPI:
    """The routes, every one of which states who may call it."""
    app = FastAPI(
        title="Everstate",
        version=services.settings.version,
        summary="Control of an Everstate installation, and its read models.",
        openapi_url=None,  # a route of ours serves it, to who may see it
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=_HANDLERS,
    )
    app.router.route_class = Route
    app.state.services = services
    for module in ROUTES:
        module.register(app)
    app.openapi_schema = _document(app.openapi())
    return app


def services(
    database: Database, settings: AdminSettings, environment: Environment | None = None
) -> Services:
    """The services of a database."""
    waits = Gate(max(1, settings.limits.requests // 2))
    streams = Streams(max(1, settings.limits.requests // 4), _STREAMS_OF_EACH)
    queue = Queue(settings.reads)
    return Services(
        database, settings, Tokens(database), waits, streams, queue, environment or Environment()
    )


def _response(error: EverstateError, status: int | None = None) -> Response:
    code, headers, body = errors.answer(error, status)
    response = Response(body, code)
    response.raw_headers = headers
    return response


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, EverstateError)
    return _response(error)


async def _of_the_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return _response(NotFound(f"there is nothing at {path[:200]!r}"))
    response = _response(InvalidArgument("request", str(error.detail)), error.status_code)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _unforeseen(_: Request, __: Exception) -> Response:
    return _response(InternalError())


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, preconditions.Refused)
    return _response(error.error, error.status)


_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    EverstateError: _ours,
    preconditions.Refused: _refused,
    HTTPException: _of_the_framework,
    Exception: _unforeseen,
}


def _document(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with what holds for all routes: tokens, problems, idempotency keys."""
    parts = document.setdefault("components", {})
    parts["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of `everstate token create`: est_…",
        }
    }
    document["security"] = [{"token": []}]
    schemas = parts.setdefault("schemas", {})
    for ours in ("HTTPValidationError", "ValidationError"):  # FastAPI's; we answer with problems
        schemas.pop(ours, None)
    text = {"type": "string"}
    schemas["Problem"] = {
        "type": "object",
        "required": ["type", "title", "status", "code", "detail", "field", "hint"],
        "properties": {
            **dict.fromkeys(("type", "title", "code", "detail", "hint"), text),
            "status": {"type": "integer"},
            "field": {"type": ["string", "null"]},
        },
    }
    wrong = {
        "description": "What is wrong, with a code of the error tree",
        "content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
        "description": "The same key with the same request acts once.",
    }
    for path in document["paths"].values():
        for method, operation in path.items():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = wrong
            if method == "post":
                operation.setdefault("parameters", []).append(key)
            if method == "put":
                operation.setdefault("parameters", []).append(preconditions.PARAMETER)
    return document
