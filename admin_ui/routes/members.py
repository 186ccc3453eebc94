"""The running processes and their figures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from admin_ui.access import needs
from admin_ui.routes.projections import answer
from admin_ui.services import services_of
from admin_ui.shapes import Member, Page, Vital
from kernel import clock, members
from kernel.ids import check_uuid
from kernel.principals import Role


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["members"]}
    app.get("/api/v1/members", response_model=Page[Member], **tags)(list_members)
    app.get("/api/v1/members/{member_id}/vitals", response_model=Page[Vital], **tags)(vitals)


@needs(Role.VIEWER)
async def list_members(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    after: Annotated[
        str, Query(alias="next", max_length=36, description="Of the page before.")
    ] = "",
) -> Response:
    """Running processes, oldest first, with their newest figures.

    One that was killed stays in the list for an hour, with `alive` false after 30 seconds.
    """
    found = await members.list_members(services_of(request).database, after, limit + 1)
    rows = [
        {
            "id": member.member_id,
            "kind": member.kind,
            "name": member.name,
            "address": member.address,
            "version": member.version,
            "alive": member.alive,
            "started_at": clock.format_us(clock.to_us(member.started_at)),
            "seen_at": clock.format_us(clock.to_us(member.seen_at)),
            "details": member.details,
            "figures": member.figures,
        }
        for member in found[:limit]
    ]
    last = rows[-1]["id"] if len(found) > limit else None
    return answer(request, {"rows": rows, "next": last})


@needs(Role.VIEWER)
async def vitals(
    request: Request,
    member_id: str,
    limit: Annotated[int, Query(ge=1, le=5_000)] = 360,
    after: Annotated[
        str, Query(alias="next", max_length=40, description="A time; of the page before.")
    ] = "",
) -> Response:
    """The figures of a process every ten seconds, oldest first, of the last 48 hours."""
    check_uuid("member_id", member_id)
    start = clock.from_us(clock.parse_us("next", after)) if after else clock.EPOCH
    found = await members.vitals(services_of(request).database, member_id, start, limit + 1)
    rows = [
        {"at": clock.format_us(clock.to_us(at)), "figures": figures}
        for at, figures in found[:limit]
    ]
    last = rows[-1]["at"] if len(found) > limit else None
    return answer(request, {"rows": rows, "next": last})
