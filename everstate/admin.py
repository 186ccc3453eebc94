"""Wiring of `everstate admin`: database, application, uvicorn; checked before it serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

from admin_ui import app as admin_app
from admin_ui import errors
from admin_ui.guard import SECURITY_HEADERS, Limits
from admin_ui.services import AdminSettings as AppSettings
from everstate import __version__, folding, health
from everstate.container import check_database
from everstate.settings import AdminSettings, dev_variables
from kernel import database as db
from kernel.errors import InvalidArgument
from kernel.members import membership
from kernel.principals import Role
from kernel.token_store import Tokens, TokenView


@dataclass(frozen=True, slots=True)
class RunningAdmin:
    """Where the admin listens."""

    port: int
    tls: bool


@contextlib.asynccontextmanager
async def _database(settings: AdminSettings) -> AsyncIterator[db.Database]:
    database = await db.Database.open(
        db.DatabaseSettings(
            settings.database_url,
            settings.schema_name,
            max_connections=settings.database_connections,
            application_name="everstate-admin",
            # Reads of read models may take longer than other statements.
            answer_timeout=timedelta(seconds=max(5.0, settings.read_seconds)),
        )
    )
    try:
        await check_database(database, lenient=settings.dev)
        yield database
    finally:
        await asyncio.shield(database.close())


@contextlib.asynccontextmanager
async def admin(settings: AdminSettings, host: str) -> AsyncIterator[RunningAdmin]:
    """A running admin; on exit it finishes what is under way and closes in reverse order."""
    listener = health.bind(host, settings.admin_port, "admin")
    with contextlib.closing(listener):
        async with _database(settings) as database:
            tls = (
                (settings.tls_cert, settings.tls_key)
                if settings.tls_cert and settings.tls_key
                else None
            )
            user = await folding.lenient(database, settings.app)
            services = admin_app.services(
                database,
                AppSettings(
                    version=__version__,
                    dev=settings.dev,
                    dev_token=dev_variables().get("EVERSTATE_TOKEN", "") if settings.dev else "",
                    tls=tls is not None,
                    limits=Limits(requests=settings.admin_requests),
                    read_seconds=settings.read_seconds,
                    # The others are for tokens, heartbeats and operators.
                    reads=max(1, settings.database_connections - 3),
                ),
                user,
            )
            app = admin_app.application(services)
            port = listener.getsockname()[1]
            async with (
                membership(database, "admin", version=__version__, address=f"{host}:{port}"),
                health.serving(listener, app, tls=tls, answer_to_nonsense=_nonsense),
            ):
                yield RunningAdmin(port, tls is not None)


def _nonsense() -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    status, headers, body = errors.answer(InvalidArgument("request", "is not HTTP"))
    return status, [*headers, *SECURITY_HEADERS], body


async def create_token(
    settings: AdminSettings, name: str, role: str, grants: frozenset[str], days: int
) -> tuple[str, TokenView]:
    """A token made by who may open the database: the first one, or after the last was lost."""
    async with _database(settings) as database:
        return await Tokens(database).create(
            name, Role.of(role, "--role"), by="who has the database", grants=grants, days=days
        )
