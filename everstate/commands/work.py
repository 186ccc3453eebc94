"""`everstate work`: a worker, which keeps projections up to date."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("work")(work)


def work(
    host: Annotated[str, typer.Option(help="Address of metrics and health.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Metrics port [EVERSTATE_WORKER_METRICS_PORT, 7491]; 0: any."),
    ] = None,
    app: Annotated[
        Path | None,
        typer.Option(
            "--app",
            help="Your everstate.toml or pyproject.toml, or its folder [EVERSTATE_APP]; default: in"
            " this folder.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback: anyone may see the metrics.")
    ] = False,
    ready_fd: Annotated[
        int | None, typer.Option(hidden=True, help="Write a JSON line here when ready.")
    ] = None,
) -> None:
    """Run a worker: it registers your projections and keeps their tables up to date.

    Run as many as you like: they share the work, and when one dies the others take it over within
    EVERSTATE_LEASE_SECONDS.
    """
    import asyncio

    from everstate import lifecycle
    from everstate.settings import is_loopback, load_database_choice, load_worker_settings
    from kernel.errors import ConfigurationError
    from kernel.telemetry import configure_logging

    if not is_loopback(host) and not insecure:
        raise ConfigurationError(
            f"--host {host}: anyone who reaches it could read the metrics; "
            "add --insecure if the network keeps others out"
        )
    load_database_choice()
    settings = load_worker_settings(worker_metrics_port=metrics_port, app=app)
    configure_logging(json_lines=settings.log_json, level=settings.log_level)

    async def run() -> int:
        from everstate.worker import worker

        async with lifecycle.termination() as asked, worker(settings, host) as running:
            shown = f"[{host}]" if ":" in host else host
            metrics = f"http://{shown}:{running.metrics_port}"
            if ready_fd is None:
                typer.echo(
                    f"worker ready  projections {running.projections}  metrics {metrics}/metrics"
                )
            else:
                with os.fdopen(ready_fd, "w") as pipe:
                    said = {"metrics": metrics, "projections": str(running.projections)}
                    pipe.write(json.dumps(said) + "\n")
            number = await asked
        return lifecycle.exit_code_of(number)

    raise typer.Exit(asyncio.run(run()))
