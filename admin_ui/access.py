"""Routes that say who may call them. The application takes no other ones."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from admin_ui import auth, once
from admin_ui.services import services_of
from kernel.errors import InvalidArgument
from kernel.principals import Principal, Role

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_NO_FIELDS = frozenset(
    {"body", "query", "path", "header", "constrained-int", "constrained-str"}  # a union's members
)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a route: a role; ``open_in_dev``: in `everstate dev` anyone at the machine."""

    role: Role
    open_in_dev: bool = False


def needs(role: Role, *, open_in_dev: bool = False) -> Callable[[Endpoint], Endpoint]:
    """States on an endpoint who may call it."""

    def state(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["access"] = Access(role, open_in_dev)
        return endpoint

    return state


class Route(APIRoute):
    """A route that knows its principal before it looks at anything else of the request."""

    @property
    def access(self) -> Access:
        """Who may call it; a route without it stops the application from being made."""
        access: Access = self.endpoint.__dict__["access"]
        return access

    def get_route_handler(self) -> Handler:
        """FastAPI's handler behind the principal and, for POST, behind the idempotency key."""
        handle = super().get_route_handler()
        access = self.access

        async def answer(request: Request) -> Response:
            open_in_dev = access.open_in_dev and request.method == "GET"
            principal = await auth.principal_of(request, open_in_dev=open_in_dev)
            principal.require(access.role)
            request.state.principal = principal
            try:
                if request.method == "POST":
                    # Here, and kept: FastAPI would make its own words of what our limits raise.
                    await request.body()
                    return await once.once(
                        services_of(request).database, principal, request, lambda: handle(request)
                    )
                if request.method == "PUT":
                    await request.body()
                return await handle(request)
            except RequestValidationError as error:
                raise explained(error) from None

        return answer


def caller(request: Request) -> Principal:
    """The principal of a request that a route has let in."""
    principal: Principal = request.state.principal
    return principal


def explained(error: RequestValidationError) -> InvalidArgument:
    """The first thing that is wrong with a request, without what the request held there."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in _NO_FIELDS]
    return InvalidArgument(".".join(place) or "body", str(first["msg"]))
