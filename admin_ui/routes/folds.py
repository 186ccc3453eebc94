"""States of entities over HTTP, as folds give them; verifying snapshots; the folds there are."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from admin_ui.access import caller, needs
from admin_ui.routes.projections import Body, Limit, answer, database_of
from admin_ui.services import Services, services_of
from admin_ui.shapes import Page
from journal.model import DEFAULT_LOG
from kernel import clock
from kernel.errors import InvalidArgument
from kernel.principals import PAYLOAD, Role
from schemas.descriptors import Decoder
from snapshots import fold_registry
from snapshots.folding import Folding
from snapshots.folds import MAX_VERSION, Folds
from snapshots.verification import Verification, verify

STATE_SECONDS = 25.0
VERIFY_SECONDS = 60.0
_LARGEST = 2**63 - 1

Log = Annotated[str, Query(max_length=40, description="The log.")]
Type = Annotated[str, Query(alias="type", min_length=1, max_length=255)]
Id = Annotated[str, Query(alias="id", min_length=1, max_length=512)]


class State(BaseModel):
    """The state of an entity after the event ``sequence``, at ``position`` and ``time``.

    ``state`` is null for callers without the grant payload (``withheld`` is true then).
    """

    entity_type: str
    entity_id: str
    sequence: int
    floor: int
    position: int | None
    time: datetime | None
    fold_version: int
    from_snapshot: int | None
    events_folded: int
    withheld: bool
    state: Any


class FoldRow(BaseModel):
    """A registered fold. ``loaded``: the admin has its code, and uses it."""

    entity_type: str
    version: int
    digest: str
    snapshot_type: str
    content_type: str
    registered_at: datetime
    loaded: bool


class Which(Body):
    """An entity."""

    log: str = Field(DEFAULT_LOG, max_length=40)
    type: str = Field(min_length=1, max_length=255)
    id: str = Field(min_length=1, max_length=512)


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["entities"]}
    app.get("/api/v1/entities/state", response_model=State, **tags)(state)
    app.post("/api/v1/entities/verify", response_model=Verification, **tags)(verify_entity)
    app.get("/api/v1/folds", response_model=Page[FoldRow], **tags)(list_folds)


@needs(Role.VIEWER)
async def state(
    request: Request,
    entity_type: Type,
    entity_id: Id,
    log: Log = DEFAULT_LOG,
    sequence: Annotated[
        int | None, Query(ge=1, le=_LARGEST, description="After this event; default: the last.")
    ] = None,
    at: Annotated[
        str | None,
        Query(max_length=64, description="RFC 3339: before the first event then or later."),
    ] = None,
    full: Annotated[
        bool, Query(description="Of all readable events, past snapshots.")
    ] = False,
) -> Response:  # fmt: skip
    """The state of an entity at a sequence number or time, by the fold of its type."""
    services = services_of(request)
    with services.waits:
        found = await folding_of(services).state_at(
            services.journal, log, entity_type, entity_id, sequence=sequence or 0,
            time_us=None if at is None else clock.parse_us("at", at), full=full,
            seconds=STATE_SECONDS,
        )  # fmt: skip
    may = PAYLOAD in caller(request).grants
    shown = {
        "entity_type": found.entity_type,
        "entity_id": found.entity_id,
        "sequence": found.sequence,
        "floor": found.floor,
        "position": found.position or None,
        "time": clock.format_us(found.time_us) if found.position else None,
        "fold_version": found.fold_version,
        "from_snapshot": found.from_snapshot or None,
        "events_folded": found.events_folded,
        "withheld": not may,
        "state": found.json if may else None,
    }
    return answer(request, shown)


@needs(Role.OPERATOR)
async def verify_entity(request: Request, body: Which) -> Response:
    """Holds an entity's snapshots against its events, and notes in them what was found."""
    services = services_of(request)
    with services.waits:
        found = await verify(
            folding_of(services), services.journal, body.log, body.type, body.id,
            seconds=VERIFY_SECONDS,
        )  # fmt: skip
    return answer(request, found)


@needs(Role.VIEWER)
async def list_folds(
    request: Request,
    limit: Limit = 100,
    after: Annotated[
        str, Query(alias="next", max_length=300, description="Of the page before.")
    ] = "",
) -> Response:
    """The folds that workers have registered, by entity type and version."""
    folds = folding_of(services_of(request)).folds
    rows = await fold_registry.list_folds(database_of(request), _after(after), limit)
    found = [
        {**row, "loaded": (own := folds.get(row["entity_type"])) is not None
         and (own.version, own.digest) == (row["version"], row["digest"])}
        for row in rows
    ]  # fmt: skip
    last = f"{rows[-1]['version']}/{rows[-1]['entity_type']}" if len(rows) == limit else None
    return answer(request, {"rows": found, "next": last})


def _after(token: str) -> tuple[str, int]:
    if not token:
        return "", 0
    version, slash, entity_type = token.partition("/")
    if not (slash and entity_type and version.isascii() and version.isdigit() and "\0" not in token
            and len(version) < 11 and int(version) <= MAX_VERSION):  # fmt: skip
        raise InvalidArgument("next", "is not a token of a page before")
    return entity_type, int(version)


def folding_of(services: Services) -> Folding:
    """The folds of the admin; where it has loaded none, none that says so."""
    found: Folding | None = services.environment.folds
    return found if found is not None else Folding(Folds(), Decoder)
