"""What the routes work with; one for each application."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import FastAPI, Request

from admin_ui.guard import Limits
from kernel.database import Database
from kernel.token_store import Tokens


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """How the admin answers.

    ``dev`` permits the few calls without a token that CONTRACTS.md names, from this machine only;
    ``dev_token`` is then the token of `everstate dev`, which no database knows.
    """

    version: str = "0"
    dev: bool = False
    dev_token: str = field(default="", repr=False)
    tls: bool = False
    limits: Limits = field(default_factory=Limits)
    read_seconds: float = 10.0
    """Statements of read models end after this."""
    wait_seconds: float = 60.0
    """Nobody waits longer for a projection."""
    page_bytes: int = 8_000_000
    """A page of rows ends after so many bytes, whatever its limit."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes work with."""

    database: Database
    settings: AdminSettings
    tokens: Tokens


def services_of(request: Request) -> Services:
    """The services of the application that a request came to."""
    app: FastAPI = request.app
    services: Services = app.state.services
    return services
