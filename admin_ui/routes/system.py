"""Health, metrics, the OpenAPI document, and who one is."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from admin_ui.access import caller, needs
from admin_ui.services import services_of
from admin_ui.shapes import WhoAmI
from kernel import telemetry
from kernel.errors import Unavailable
from kernel.principals import Role

VIEWER = Role.VIEWER


def register(app: FastAPI) -> None:
    """Adds the routes."""
    text: dict[str, Any] = {"response_class": PlainTextResponse, "tags": ["system"]}
    app.get("/healthz", **text)(healthz)
    app.get("/readyz", **text)(readyz)
    app.get("/metrics", **text)(metrics)
    app.get("/openapi.json", response_model=dict[str, Any], tags=["system"])(openapi)
    app.get("/api/v1/whoami", response_model=WhoAmI, tags=["system"])(whoami)


@needs(VIEWER, open_in_dev=True)
async def healthz() -> Response:
    """The process is alive."""
    return PlainTextResponse("ok\n")


@needs(VIEWER)
async def readyz(request: Request) -> Response:
    """The database answers."""
    database = services_of(request).database
    try:
        async with asyncio.timeout(2):
            await database.fetchrow("SELECT 1", timeout=2)
    except TimeoutError:
        raise Unavailable("no answer from the database") from None
    return PlainTextResponse("ready\n")


@needs(VIEWER)
async def metrics(request: Request) -> Response:
    """The metrics of this process, in the text format of Prometheus."""
    opened, idle = services_of(request).database.connections
    telemetry.pool_connections.labels("open").set(opened)
    telemetry.pool_connections.labels("idle").set(idle)
    return Response(generate_latest(telemetry.REGISTRY), media_type=CONTENT_TYPE_LATEST)


@needs(VIEWER, open_in_dev=True)
async def openapi(request: Request) -> Response:
    """The OpenAPI document of this API."""
    app: FastAPI = request.app
    return Response(orjson.dumps(app.openapi_schema), media_type="application/json")


@needs(VIEWER)
async def whoami(request: Request) -> Response:
    """The principal of the token."""
    principal = caller(request)
    shown = {
        "kind": principal.kind,
        "name": principal.name,
        "role": principal.role.word,
        "grants": sorted(principal.grants),
    }
    return Response(orjson.dumps(shown), media_type="application/json")
