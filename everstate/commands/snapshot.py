"""`everstate snapshot …`: the snapshots of an entity."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everstate.commands.common import Json, Limit, Log, Url, Wait, printable, run, show
from everstate.commands.entity import EntityId, EntityType, named

if TYPE_CHECKING:
    from sidecar_api.client import Client, SnapshotInfo

_PAGE = 100


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Snapshots of entities.", no_args_is_help=True)
    group.command("list")(list_snapshots)
    group.command("show")(show_snapshot)
    group.command("save")(save)
    group.command("delete")(delete)
    app.add_typer(group, name="snapshot")


def list_snapshots(
    entity_type: EntityType,
    entity_id: EntityId = None,
    limit: Limit = None,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """List an entity's snapshots, newest first."""
    kind, name = named(entity_type, entity_id)

    async def work(client: Client) -> None:
        before, left = 0, limit
        while True:
            size = _PAGE if left is None else min(_PAGE, left)
            found = await client.snapshots.list(log, kind, name, before=before, limit=size)
            for info in found:
                if as_json:
                    show(_line(info))
                else:
                    typer.echo(_text(info))
            left = None if left is None else left - len(found)
            if len(found) < size or left == 0:
                return
            before = found[-1].sequence

    run(work, url, wait)


def show_snapshot(
    entity_type: EntityType,
    entity_id: EntityId = None,
    sequence: Annotated[
        int, typer.Option("--sequence", min=0, help="The newest up to this sequence number.")
    ] = 0,
    at: Annotated[
        str, typer.Option("--at", help="The newest whose events happened until this time.")
    ] = "",
    payload: Annotated[
        Path | None, typer.Option("--payload", help="Write the payload to this file; -: stdout.")
    ] = None,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Show an entity's newest snapshot, or the one of a sequence number or a time."""
    from kernel import clock

    kind, name = named(entity_type, entity_id)
    time_us = clock.parse_us("--at", at) if at else 0

    async def work(client: Client) -> None:
        info, content = await client.snapshots.get(
            log, kind, name, sequence=sequence, time_us=time_us
        )
        if payload is not None:
            if str(payload) == "-":
                sys.stdout.buffer.write(content)
                return
            payload.write_bytes(content)
        if as_json:
            show(_line(info) | _body(info, content))
        else:
            typer.echo(_text(info))
            body = _body(info, content)
            if "data" in body and payload is None:
                import orjson

                typer.echo(printable(orjson.dumps(body["data"]).decode()))

    run(work, url, wait)


def save(
    entity_type: EntityType,
    entity_id: EntityId = None,
    snapshot_type: Annotated[str, typer.Option("--type", help="Type of the snapshot.")] = "",
    data: Annotated[str | None, typer.Option("--data", help="The state as JSON.")] = None,
    payload: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--payload", help="The state from a file; -: stdin."),
    ] = None,
    content_type: Annotated[
        str, typer.Option("--content-type", help="Of --payload; --data is application/json.")
    ] = "application/octet-stream",
    sequence: Annotated[
        int | None,
        typer.Option("--sequence", min=1, help="Of the newest event covered; default: the last."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of another one there.")
    ] = False,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Save the state of an entity as it is after one of its events."""
    import orjson

    from kernel.errors import InvalidArgument
    from sidecar_api.client import NewSnapshot

    kind, name = named(entity_type, entity_id)
    if not snapshot_type:
        raise InvalidArgument("--type", "is empty")
    if (data is None) == (payload is None):
        raise InvalidArgument("--data", "give either --data or --payload")
    if data is not None:
        try:
            content = orjson.dumps(orjson.loads(data))
        except orjson.JSONDecodeError as error:
            raise InvalidArgument("--data", f"is not JSON: {error.msg}") from None
        content_type = "application/json"
    else:
        assert payload is not None
        content = payload.read()

    async def work(client: Client) -> None:
        last = sequence or (await client.get_entity(log, kind, name)).sequence
        snapshot = NewSnapshot(snapshot_type, content, content_type)
        info = await client.snapshots.save(log, kind, name, last, snapshot, replace=replace)
        if as_json:
            show(_line(info))
        else:
            typer.echo(_text(info))

    run(work, url, wait)


def delete(
    entity_type: EntityType,
    entity_id: EntityId = None,
    sequence: Annotated[int, typer.Option("--sequence", min=0, help="Which one.")] = 0,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Delete a snapshot. The newest two stay, and the one that compacted events rest on."""
    from kernel.errors import InvalidArgument

    kind, name = named(entity_type, entity_id)
    if not sequence:
        raise InvalidArgument("--sequence", "say which snapshot")

    async def work(client: Client) -> None:
        await client.snapshots.delete(log, kind, name, sequence)
        if as_json:
            show({"entity_type": kind, "entity_id": name, "sequence": sequence, "deleted": True})
        else:
            typer.echo(f"{printable(f'{kind}/{name}')}: snapshot {sequence} deleted")

    run(work, url, wait)


def _line(info: SnapshotInfo) -> dict[str, Any]:
    return dataclasses.asdict(info) | {"source": info.source.name.lower()}


def _body(info: SnapshotInfo, content: bytes) -> dict[str, Any]:
    from base64 import b64encode

    import orjson

    if info.content_type == "application/json":
        try:
            return {"data": orjson.loads(content)}
        except orjson.JSONDecodeError:
            pass
    return {"payload_base64": b64encode(content).decode()}


def _text(info: SnapshotInfo) -> str:
    from kernel import clock

    moment = clock.format_us(info.event_at_us)[:19] + "Z" if info.event_at_us else "-" * 20
    words = [
        word
        for word, true in (
            ("verified", info.verified_at_us),
            ("covers", info.covers),
            ("not used", not info.usable),
            ("by a fold", info.source),
        )
        if true
    ]
    about = f"  ({', '.join(words)})" if words else ""
    return (
        f"{info.sequence:>8}  {moment}  {info.size_bytes:>9} bytes  {printable(info.type)}{about}"
    )
