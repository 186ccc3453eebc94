"""`everstate import` and `everstate export`: events as lines of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everstate.commands.common import Json, Limit, Log, Url, Wait, run


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    file: Annotated[Path, typer.Argument(help="Lines of JSON, plain or .gz; -: standard input.")],
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, help="Events a second at most.")
    ] = None,
    skip_bad: Annotated[
        Path | None,
        typer.Option("--skip-bad", help="Write bad lines to this file and import the others."),
    ] = None,
    log: Log = "",
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Import events in the order of the file. Run again, it finds what is in and adds the rest.

    A file is checked before the first event is appended; a pipe stops at its first bad line.
    """
    from everstate.transfer import import_file

    run(
        lambda client: import_file(
            client, file, log=log, rate=rate, skip_bad=skip_bad, as_json=as_json
        ),
        url,
        wait,
    )


def export(
    file: Annotated[
        Path, typer.Argument(help="Where to; plain or .gz; -: standard output.")
    ] = Path("-"),
    entity: Annotated[str, typer.Option("--entity", help="Only TYPE/ID.")] = "",
    type_: Annotated[str, typer.Option("--type", help="Only entities of this type.")] = "",
    from_: Annotated[str, typer.Option("--from", help="First position or time.")] = "",
    to: Annotated[str, typer.Option("--to", help="Last position or time.")] = "",
    limit: Limit = None,
    log: Log = "",
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Export events in log order, as `import` reads them."""
    from everstate.transfer import export_file

    run(
        lambda client: export_file(
            client,
            file,
            log=log,
            entity=entity,
            entity_type=type_,
            from_=from_,
            to=to,
            limit=limit,
        ),
        url,
        wait,
    )
