"""`everstate serve`: a journal node."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("serve")(serve)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port [EVERSTATE_GRPC_PORT, 7400]; 0: any.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Metrics port [EVERSTATE_METRICS_PORT, 7490]; 0: any.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS and tokens.")
    ] = False,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring the schema up to date first.")
    ] = False,
    ready_fd: Annotated[
        int | None, typer.Option(hidden=True, help="Write a JSON line here when ready.")
    ] = None,
) -> None:
    """Run a journal node: gRPC for sidecars and clients, metrics and health over HTTP."""
    import asyncio

    from everstate import lifecycle
    from everstate.settings import is_loopback, load_database_choice, load_node_settings
    from kernel.errors import ConfigurationError
    from kernel.telemetry import configure_logging

    if not is_loopback(host) and not insecure:
        raise ConfigurationError(
            f"--host {host}: anyone who reaches it could read and write; "
            "add --insecure if the network keeps others out"
        )
    load_database_choice()
    settings = load_node_settings(grpc_port=grpc_port, metrics_port=metrics_port)
    configure_logging(json_lines=settings.log_json, level=settings.log_level)
    if migrate:
        from everstate.commands.database import upgrade

        upgrade(settings.database_url, settings.schema_name)

    async def run() -> int:
        from everstate.container import node

        async with lifecycle.termination() as asked, node(settings, host) as running:
            shown = f"[{host}]" if ":" in host else host
            addresses = {
                "grpc": f"{shown}:{running.grpc_port}",
                "metrics": f"http://{shown}:{running.metrics_port}",
            }
            if ready_fd is None:
                typer.echo(
                    f"node ready  grpc {addresses['grpc']}  metrics {addresses['metrics']}/metrics"
                )
            else:
                with os.fdopen(ready_fd, "w") as pipe:
                    pipe.write(json.dumps(addresses) + "\n")
            number = await asked
        return lifecycle.exit_code_of(number)

    raise typer.Exit(asyncio.run(run()))
