"""`everstate descriptor …`: what the payloads of protobuf events mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everstate.commands.common import Json, Limit, Url, Wait, printable, run, show

if TYPE_CHECKING:
    from sidecar_api.client import Client

LARGEST_BYTES = 4_000_000
"""What a node takes: `schemas.model.SchemaLimits.set_bytes`; a test holds them equal."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Descriptors of protobuf payloads.", no_args_is_help=True)
    group.command("add")(add)
    group.command("list")(list_types)
    app.add_typer(group, name="descriptor")


def add(
    file: Annotated[Path, typer.Argument(help="Made by `protoc --include_imports -o FILE …`.")],
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Though stored events then read otherwise.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a change is breaking.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Register the message types of a descriptor set, so that their payloads can be read."""
    from kernel.errors import InvalidArgument, TooLarge

    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise InvalidArgument("FILE", f"{file}: {error.strerror}") from None
    if len(content) > LARGEST_BYTES:
        raise TooLarge("FILE", file.stat().st_size, LARGEST_BYTES)

    async def work(client: Client) -> int:
        done = await client.schemas.add(content, allow_breaking=allow_breaking, dry_run=check)
        if as_json:
            show(
                {
                    "version": done.version,
                    "changed": done.changed,
                    "files": list(done.files),
                    "types": list(done.types),
                    "types_total": done.types_total,
                    "superseded_files": list(done.superseded_files),
                    "breaking_changes": list(done.breaking_changes),
                    "breaking_changes_total": done.breaking_changes_total,
                }
            )
        else:
            for sentence in done.breaking_changes:
                typer.echo(f"breaking: {printable(sentence)}")
            for name in done.superseded_files:
                typer.echo(f"replaced under another name: {printable(name)}")
            if not done.changed:
                typer.echo("nothing new: all of it is registered")
            else:
                would = "would be " if check else ""
                typer.echo(f"{done.types_total} types of {len(done.files)} files {would}registered")
        return 1 if check and done.breaking_changes_total else 0

    run(work, url, wait)


def list_types(
    prefix: Annotated[str, typer.Option("--prefix", help="Only names that begin so.")] = "",
    limit: Limit = None,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """List the registered message types by name."""

    async def work(client: Client) -> None:
        left = limit
        async for item in client.schemas.types(prefix, page_size=min(left or 1_000, 1_000)):
            if as_json:
                show(
                    {
                        "type": item.name,
                        "file": item.file,
                        "fields": item.fields,
                        "version": item.version,
                    }
                )
            else:
                typer.echo(f"{item.name}  {item.fields} fields  {printable(item.file)}")
            left = None if left is None else left - 1
            if left == 0:
                return

    run(work, url, wait)
