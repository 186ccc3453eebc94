"""`everstate entity …`: entities and their events."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everstate.commands import state
from everstate.commands.common import (
    Json,
    Limit,
    Log,
    Upcast,
    Url,
    Wait,
    event_line,
    event_text,
    printable,
    run,
    show,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sidecar_api.client import Client, EntityPart, Expected

EntityType = Annotated[str, typer.Argument(metavar="TYPE", help="Entity type, or TYPE/ID.")]
EntityId = Annotated[str | None, typer.Argument(metavar="[ID]", help="Entity id.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Entities and their events.", no_args_is_help=True)
    group.command("list")(list_entities)
    group.command("show")(show_entity)
    group.command("append")(append)
    state.register(group, app)
    app.add_typer(group, name="entity")


def named(entity_type: str, entity_id: str | None) -> tuple[str, str]:
    """An entity given as two words, or as one with a ``/`` (types have none)."""
    from kernel.errors import InvalidArgument

    if entity_id is not None:
        return entity_type, entity_id
    kind, slash, name = entity_type.partition("/")
    if not slash:
        raise InvalidArgument("entity", "give TYPE ID, or TYPE/ID")
    return kind, name


def list_entities(
    entity_type: Annotated[str, typer.Argument(metavar="[TYPE]", help="Only of this type.")] = "",
    type_: Annotated[str, typer.Option("--type", help="The same, as an option.")] = "",
    prefix: Annotated[str, typer.Option("--prefix", help="Only ids that begin so.")] = "",
    limit: Limit = None,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """List entities by type and id."""
    from kernel.errors import InvalidArgument

    if entity_type and type_ and entity_type != type_:
        raise InvalidArgument(
            "--type", f"{type_!r} is not the type {entity_type!r} named before it"
        )

    async def work(client: Client) -> None:
        token, left = "", limit
        while True:
            size = 1000 if left is None else min(1000, left)
            page = await client.list_entities(
                log, entity_type or type_, prefix, page_size=size, page_token=token
            )
            for entity in page.entities:
                if as_json:
                    show(dataclasses.asdict(entity))
                else:
                    name = printable(f"{entity.entity_type}/{entity.entity_id}")
                    typer.echo(f"{entity.sequence:>8}  {entity.state:<10}  {name}")
            token = page.next_page_token
            left = None if left is None else left - len(page.entities)
            if not token or left == 0:
                return

    run(work, url, wait)


def show_entity(
    entity_type: EntityType,
    entity_id: EntityId = None,
    limit: Limit = None,
    upcast: Upcast = False,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Show an entity's head and its events, oldest first; of a compacted one, the readable ones."""
    from everstate.commands.reading import Reading
    from kernel.errors import Compacted
    from sidecar_api.client import LoadQuery

    kind, name = named(entity_type, entity_id)

    async def parts(client: Client) -> AsyncIterator[EntityPart]:
        try:
            async for part in client.load(log, LoadQuery(kind, name, ignore_snapshot=True)):
                yield part
        except Compacted as compacted:  # before anything was sent
            query = LoadQuery(kind, name, after_sequence=compacted.floor - 1)
            async for part in client.load(log, query):
                yield part

    async def work(client: Client) -> None:
        reading = Reading.through(client, upcast=upcast)
        head: dict[str, Any] = {}
        events: list[dict[str, Any]] = []
        shown = 0
        async for part in parts(client):
            if part.entity is not None:
                head = dataclasses.asdict(part.entity)
                if not as_json:
                    typer.echo(
                        f"{printable(kind)}/{printable(name)}: sequence {part.entity.sequence}, "
                        f"{part.entity.event_count} events, readable from {part.entity.floor}, "
                        f"{part.entity.state}, slice {part.entity.slice}"
                    )
                    first = part.entity.sequence - part.entity.event_count + 1
                    if first < part.entity.floor:
                        typer.echo(
                            f"events {first} to {part.entity.floor - 1} are compacted: "
                            f"the snapshot at {part.entity.floor - 1} stands for them"
                        )
            await reading.prepare(part.events)
            for event in part.events:
                if limit is not None and shown >= limit:
                    break
                shown += 1
                if as_json:
                    events.append(event_line(event, reading.body(event)))
                else:
                    typer.echo(event_text(event, reading.body(event)))
            if limit is not None and shown >= limit:
                break
        if as_json:
            show(head | {"events": events})

    run(work, url, wait)


def append(
    entity_type: EntityType,
    entity_id: EntityId = None,
    event_type: Annotated[str, typer.Option("--event-type", help="Event type.")] = "",
    data: Annotated[str | None, typer.Option("--data", help="Payload as JSON.")] = None,
    payload_file: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--payload", help="Payload from a file; -: stdin."),
    ] = None,
    content_type: Annotated[
        str, typer.Option("--content-type", help="Of --payload; --data is application/json.")
    ] = "application/octet-stream",
    metadata: Annotated[str, typer.Option("--metadata", help="A JSON object.")] = "",
    expect: Annotated[
        str, typer.Option("--expect", help="any, none, exists, or the last sequence number.")
    ] = "any",
    event_id: Annotated[str, typer.Option("--event-id", help="A UUID; for safe retries.")] = "",
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Append one event to an entity."""
    import orjson

    from kernel.errors import InvalidArgument
    from sidecar_api.client import Append, EntityAppend, NewEvent

    kind, name = named(entity_type, entity_id)
    if not event_type:
        raise InvalidArgument("--event-type", "is empty")
    if (data is None) == (payload_file is None):
        raise InvalidArgument("--data", "give either --data or --payload")
    if data is not None:
        try:
            payload = orjson.dumps(orjson.loads(data))
        except orjson.JSONDecodeError as error:
            raise InvalidArgument("--data", f"is not JSON: {error.msg}") from None
        content_type = "application/json"
    else:
        assert payload_file is not None
        payload = payload_file.read()
    event = NewEvent(event_type, payload, content_type, event_id=event_id, metadata_json=metadata)

    async def work(client: Client) -> None:
        done = await client.append(
            log, Append((EntityAppend(kind, name, _expected(expect)),), (event,))
        )
        sequence = done.entities[0].last_sequence
        if as_json:
            show(
                {
                    "entity_type": kind,
                    "entity_id": name,
                    "sequence": sequence,
                    "position": done.last_position,
                    "duplicate": done.duplicate,
                }
            )
        else:
            again = " (written before)" if done.duplicate else ""
            typer.echo(f"{kind}/{name}: sequence {sequence}, position {done.last_position}{again}")

    run(work, url, wait)


def _expected(text: str) -> Expected:
    from kernel.errors import InvalidArgument
    from sidecar_api.client import ANY, EXISTS, NO_ENTITY

    words: dict[str, Expected] = {"any": ANY, "exists": EXISTS, "none": NO_ENTITY}
    if text in words:
        return words[text]
    if text.isascii() and text.isdigit():
        return int(text)
    raise InvalidArgument("--expect", f"{text!r} is not any, none, exists or a sequence number")
