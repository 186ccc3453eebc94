"""Tokens: made, listed, revoked by administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from admin_ui.access import caller, needs
from admin_ui.once import WithSecret
from admin_ui.services import services_of
from admin_ui.shapes import MadeToken, Page, Token
from kernel import clock
from kernel.principals import Role, check_grants
from kernel.token_store import TokenView
from kernel.tokens import DEFAULT_DAYS, MAX_DAYS


class NewToken(BaseModel):
    """What a new token is to be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=80, description="Unique among valid tokens.")
    role: str = Field(description="viewer, operator or admin.")
    grants: list[str] = Field([], max_length=8, description="`payload`: may see payloads.")
    days: int = Field(DEFAULT_DAYS, ge=1, le=MAX_DAYS, description="How long it is valid.")


def register(app: FastAPI) -> None:
    """Adds the routes."""
    tags: dict[str, Any] = {"tags": ["tokens"]}
    app.get("/api/v1/tokens", response_model=Page[Token], **tags)(list_tokens)
    app.post("/api/v1/tokens", response_model=MadeToken, status_code=201, **tags)(create_token)
    app.post("/api/v1/tokens/{name}/revoke", response_model=Token, **tags)(revoke_token)


@needs(Role.ADMIN)
async def list_tokens(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    after: Annotated[
        str, Query(alias="next", max_length=36, description="Of the page before.")
    ] = "",
) -> Response:
    """Tokens in the order they were made, also those that have ended; never their secrets."""
    tokens = await services_of(request).tokens.list(after, limit + 1)
    more = tokens[limit - 1].token_id if len(tokens) > limit else None
    page = {"rows": [shown(token) for token in tokens[:limit]], "next": more}
    return Response(orjson.dumps(page), media_type="application/json")


@needs(Role.ADMIN)
async def create_token(request: Request, new: NewToken) -> Response:
    """A new token. The answer is the only place where it is ever shown.

    Sent again with the same Idempotency-Key, the request makes no second token, and its answer has
    null in the place of the first one: nobody keeps it.
    """
    principal = caller(request)
    grants = check_grants(frozenset(new.grants))
    for grant in grants:
        principal.require_grant(grant)  # nobody hands out more than they have
    token, view = await services_of(request).tokens.create(
        new.name, Role.of(new.role), by=principal.name, grants=grants, days=new.days
    )
    members = shown(view)
    response = WithSecret(
        orjson.dumps({"token": token} | members), 201, media_type="application/json"
    )
    response.kept = orjson.dumps({"token": None} | members)
    return response


@needs(Role.ADMIN)
async def revoke_token(request: Request, name: str) -> Response:
    """Ends a token at once, named by its name or id."""
    view = await services_of(request).tokens.revoke(name, by=caller(request).name)
    return Response(orjson.dumps(shown(view)), media_type="application/json")


def shown(view: TokenView) -> dict[str, Any]:
    """A token as lists show it."""

    def at(moment: datetime | None) -> str | None:
        return clock.format_us(clock.to_us(moment)) if moment else None

    return {
        "id": view.token_id,
        "name": view.name,
        "role": view.role.word,
        "grants": sorted(view.grants),
        "state": view.state(clock.now()),
        "created_at": at(view.created_at),
        "created_by": view.created_by,
        "expires_at": at(view.expires_at),
        "revoked_at": at(view.revoked_at),
        "revoked_by": view.revoked_by,
        "last_used_at": at(view.last_used_at),
    }
