"""`everstate log …`: logs as wholes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from everstate.commands.common import (
    Json,
    Log,
    Upcast,
    Url,
    Wait,
    event_line,
    position_of,
    printable,
    run,
    show,
)

if TYPE_CHECKING:
    from sidecar_api.client import Client, EventView, LogInfo


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Logs as wholes.", no_args_is_help=True)
    group.command("show")(show_log)
    group.command("list")(list_logs)
    group.command("create")(create_log)
    group.command("tail")(tail)
    group.command("verify")(verify)
    group.command("position-at")(position_at)
    app.add_typer(group, name="log")


def _line(info: LogInfo) -> dict[str, object]:
    from kernel import clock

    line = dataclasses.asdict(info)
    at = line.pop("recorded_at_us")
    line["recorded_at"] = clock.format_us(at) if at else None
    return line


def _text(info: LogInfo) -> str:
    from kernel import clock

    newest = clock.format_us(info.recorded_at_us) if info.recorded_at_us else "never"
    return (
        f"{info.log}: {info.head} events of {info.entities} entities, newest {newest}; "
        f"readable from {info.first}; {info.bytes_total} bytes of payload; "
        f"{info.chunks} chunks of {info.chunk_size}, {info.chunks_ahead} ahead"
    )


def show_log(log: Log = "", as_json: Json = False, url: Url = None, wait: Wait = 0.0) -> None:
    """Show a log's head, first readable position and chunks."""

    async def work(client: Client) -> None:
        info = await client.get_log(log)
        if as_json:
            show(_line(info))
        else:
            typer.echo(_text(info))

    run(work, url, wait)


def list_logs(as_json: Json = False, url: Url = None, wait: Wait = 0.0) -> None:
    """List all logs."""

    async def work(client: Client) -> None:
        for info in await client.list_logs():
            if as_json:
                show(_line(info))
            else:
                typer.echo(_text(info))

    run(work, url, wait)


def create_log(
    name: Annotated[str, typer.Argument(help="[a-z][a-z0-9_]{0,39}")],
    chunk_size: Annotated[
        int, typer.Option(help="Positions a chunk; 0: the server's default.")
    ] = 0,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Make a log."""

    async def work(client: Client) -> None:
        info = await client.create_log(name, chunk_size)
        if as_json:
            show(_line(info))
        else:
            typer.echo(f"made log {info.log}")

    run(work, url, wait)


def tail(
    log: Log = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new events until Ctrl-C.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many of the newest.")] = 10,
    upcast: Upcast = False,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Show the newest events of a log, oldest first."""
    from everstate.commands.reading import Reading
    from sidecar_api.client import ReadQuery, SubscribeQuery

    async def work(client: Client) -> None:
        reading = Reading.through(client, upcast=upcast)

        async def put(events: Sequence[EventView]) -> None:
            if as_json:
                await reading.prepare(events)
            for event in events:
                if as_json:
                    show(event_line(event, reading.body(event)))
                else:
                    entity = printable(f"{event.entity_type}/{event.entity_id}")
                    kind = printable(reading.type(event))
                    typer.echo(f"{event.position:>8}  {entity}  {event.sequence}  {kind}")

        newest: list[EventView] = []
        head = 0
        query = ReadQuery(backwards=True, max_events=max(limit, 1))
        async for batch in client.read(log, query):
            head = max(head, batch.head)
            newest += batch.events
        await put(newest[:limit][::-1])
        if not follow:
            return
        position = (newest[0].position if newest else head) + 1
        async for more in client.subscribe(log, SubscribeQuery(from_position=position)):
            await put(more.events)

    run(work, url, wait)


def verify(
    log: Log = "",
    from_: Annotated[str, typer.Option("--from", help="First position or time.")] = "",
    to: Annotated[str, typer.Option("--to", help="Last position or time.")] = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Prove that a log has no hole, in positions or in entities. Exit 1 when it has."""
    from kernel.errors import InvalidArgument

    async def work(client: Client) -> int:
        report = None
        low = await position_of(client, log, from_)
        high = await position_of(client, log, to, last=True)
        if high is None:
            raise InvalidArgument("--to", "is before the first event")
        async for progress in client.verify(log, low or 0, high):
            report = progress.report or report
        if report is None:
            raise RuntimeError("the verification ended without a report")
        if as_json:
            line = dataclasses.asdict(report)
            show({"log": log or client.target.log} | line)
        elif report.ok:
            typer.echo(
                f"ok: {report.events} events at positions {report.from_position}.."
                f"{report.to_position}, {report.entities} entities, no hole"
            )
        else:
            for finding in report.findings:
                typer.echo(f"finding: {printable(finding)}")
            typer.echo(
                f"NOT ok: {report.findings_total} findings, {report.holes} positions missing"
            )
        return 0 if report.ok else 1

    run(work, url, wait)


def position_at(
    time: Annotated[str, typer.Argument(help="RFC 3339, as 2024-05-01T12:00:00Z")],
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Show the first position recorded at or after a time."""
    from kernel import clock

    moment = clock.parse_us("time", time)

    async def work(client: Client) -> None:
        position, head = await client.position_at(log, moment)
        if as_json:
            show({"log": log or client.target.log, "position": position, "head": head})
        else:
            typer.echo(str(position))

    run(work, url, wait)
