"""Consumer groups over HTTP, to look at; gRPC makes and changes them (`everstate group`)."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from admin_ui.access import caller, needs
from admin_ui.routes.projections import answer
from admin_ui.services import services_of
from admin_ui.shapes import Group as Shape
from admin_ui.shapes import Page, ParkedEvent, WholeGroup
from journal.groups.model import Group, ParkedSelection
from journal.groups.store import GroupStore
from kernel import clock
from kernel.principals import PAYLOAD, Role

Limit = Annotated[int, Query(ge=1, le=1_000)]
Next = Annotated[str, Query(alias="next", max_length=100, description="Of the page before.")]


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["groups"]}
    one = "/api/v1/groups/{name}"
    app.get("/api/v1/groups", response_model=Page[Shape], **tags)(list_groups)
    app.get(one, response_model=WholeGroup, **tags)(get_group)
    app.get(f"{one}/parked", response_model=Page[ParkedEvent], **tags)(list_parked)


@needs(Role.VIEWER)
async def list_groups(request: Request, limit: Limit = 100, after: Next = "") -> Response:
    """Consumer groups by name: up to where each has acked, lag, parked events."""
    page = await _store(request).list_groups(page_size=limit, page_token=after)
    rows = [shown(group) for group in page.groups]
    return answer(request, {"rows": rows, "next": page.next_page_token or None})


@needs(Role.VIEWER)
async def get_group(request: Request, name: str) -> Response:
    """A consumer group with its members and partitions."""
    group = await _store(request).get(name)
    whole = shown(group) | {
        "members_list": [_plain(member) for member in group.members],
        "partitions": [_plain(partition) for partition in group.partitions],
    }
    return answer(request, whole)


@needs(Role.VIEWER)
async def list_parked(
    request: Request, name: str, limit: Limit = 100, after: Next = ""
) -> Response:
    """Events that the group has put aside, by position, and why; without their payloads."""
    store = _store(request)
    group = await store.get(name)
    page = await store.parked(
        group.group_id, ParkedSelection(all=True), page_size=limit, page_token=after
    )
    rows = [_plain(event) for event in page.events]
    if PAYLOAD not in caller(request).grants:  # a member's own words: they may quote the event
        rows = [row | {"reason": None} for row in rows]
    return answer(request, {"rows": rows, "next": page.next_page_token or None})


def _store(request: Request) -> GroupStore:
    return GroupStore(services_of(request).database)


def shown(group: Group) -> dict[str, Any]:
    """A group as lists show it, here and on the command line."""
    return {
        "name": group.name,
        "log": group.log,
        "position": group.position,
        "head": group.head,
        "lag_events": group.lag_events,
        "lag_bytes": group.lag_bytes,
        "lag_seconds": group.lag_seconds,
        "parked": group.parked,
        "held": group.held,
        "replaying": group.replaying,
        "members": group.members_total,
        "version": group.version,
        "created_at": clock.format_us(group.created_at_us),
        "settings": _plain(group.settings),
    }


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as an object: durations as ``…_ms``, times as RFC 3339."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, timedelta):
            found[f"{field.name}_ms"] = round(item.total_seconds() * 1000)
        elif field.name.endswith("_at_us"):
            found[field.name.removesuffix("_us")] = clock.format_us(item)
        else:
            found[field.name] = item
    return found
