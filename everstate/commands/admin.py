"""`everstate admin`: the HTTP API (and console) of an installation."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("admin")(admin)


def admin(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="HTTP port [EVERSTATE_ADMIN_PORT, 7480]; 0: any.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS.")
    ] = False,
    create_token: Annotated[
        str,
        typer.Option(
            "--create-token", metavar="NAME", help="Print a new token for this name, then end."
        ),
    ] = "",
    role: Annotated[
        str, typer.Option(help="With --create-token: viewer, operator or admin.")
    ] = "admin",
    grant: Annotated[
        list[str] | None, typer.Option("--grant", help="With --create-token: payload.")
    ] = None,
    days: Annotated[
        int, typer.Option("--days", help="With --create-token: how long it is valid.")
    ] = 90,
    ready_fd: Annotated[
        int | None, typer.Option(hidden=True, help="Write a JSON line here when ready.")
    ] = None,
) -> None:
    """Run the HTTP API: read models, projections, groups, tokens; metrics and health beside them.

    Everything needs a token. The first one is made by who may open the database, with
    --create-token; more with `everstate token create`.
    """
    import asyncio

    from everstate import lifecycle
    from everstate.settings import is_loopback, load_admin_settings, load_database_choice
    from kernel.errors import ConfigurationError
    from kernel.telemetry import configure_logging

    if not is_loopback(host) and not insecure and not os.environ.get("EVERSTATE_TLS_CERT"):
        raise ConfigurationError(
            f"--host {host}: tokens and rows would travel in the clear; set EVERSTATE_TLS_CERT and "
            "EVERSTATE_TLS_KEY, or add --insecure if the network keeps others out"
        )
    load_database_choice()
    settings = load_admin_settings(admin_port=port)
    configure_logging(json_lines=settings.log_json, level=settings.log_level)
    from everstate import admin as wiring

    if create_token:
        token, view = asyncio.run(
            wiring.create_token(settings, create_token, role, frozenset(grant or ()), days)
        )
        typer.echo(f"{view.role.word} token {view.name!r}, valid until {view.expires_at}", err=True)
        typer.echo(token)
        return

    async def run() -> int:
        async with lifecycle.termination() as asked, wiring.admin(settings, host) as running:
            shown = f"[{host}]" if ":" in host else host
            url = f"{'https' if running.tls else 'http'}://{shown}:{running.port}"
            if ready_fd is None:
                typer.echo(f"admin ready  {url}")
            else:
                with os.fdopen(ready_fd, "w") as pipe:
                    pipe.write(json.dumps({"http": url}) + "\n")
            number = await asked
        return lifecycle.exit_code_of(number)

    raise typer.Exit(asyncio.run(run()))
