"""`everstate entity state|verify`, `everstate fold list`: what folds say."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from everstate.commands.common import AdminUrl, Json, Limit, Wait, control, printable, show

EntityType = Annotated[str, typer.Argument(metavar="TYPE", help="Entity type, or TYPE/ID.")]
EntityId = Annotated[str | None, typer.Argument(metavar="[ID]", help="Entity id.")]
AdminLog = Annotated[str, typer.Option("--log", help="Log.")]

_VERIFY_SECONDS = 100.0


def register(group: typer.Typer, app: typer.Typer) -> None:
    """Adds the commands to `everstate entity`, and `everstate fold`."""
    group.command("state")(state)
    group.command("verify")(verify)
    folds = typer.Typer(help="Folds: how events become the state.", no_args_is_help=True)
    folds.command("list")(list_folds)
    app.add_typer(folds, name="fold")


def _named(entity_type: str, entity_id: str | None) -> tuple[str, str]:
    from everstate.commands.entity import named

    return named(entity_type, entity_id)


def state(
    entity_type: EntityType,
    entity_id: EntityId = None,
    sequence: Annotated[
        int | None, typer.Option("--sequence", min=1, help="After this event; default: the last.")
    ] = None,
    at: Annotated[
        str, typer.Option("--at", help="RFC 3339: before the first event then or later.")
    ] = "",
    full: Annotated[
        bool, typer.Option("--full", help="Of all readable events, past snapshots.")
    ] = False,
    log: AdminLog = "default",
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Show the state of an entity, now or at a sequence number or time, by the fold of its type."""
    import orjson

    kind, name = _named(entity_type, entity_id)
    query: dict[str, Any] = {"log": log, "type": kind, "id": name}
    if sequence is not None:
        query["sequence"] = sequence
    if at:
        query["at"] = at
    if full:
        query["full"] = "true"
    with control(url, wait) as admin:
        found = admin.get("/api/v1/entities/state", query)
    if as_json:
        show(found)
        return
    when = f", {found['time'][:19]}Z" if found["time"] else ""
    since = f"snapshot {found['from_snapshot']} and " if found["from_snapshot"] else ""
    typer.echo(
        f"{printable(kind)}/{printable(name)}: sequence {found['sequence']}{when}; fold version"
        f" {found['fold_version']} of {since}{found['events_folded']} events"
    )
    if found["withheld"]:
        typer.echo("the state needs a token with the grant payload")
        return
    text = orjson.dumps(found["state"], option=orjson.OPT_INDENT_2).decode()
    typer.echo("\n".join(printable(line) for line in text.splitlines()))


def verify(
    entity_type: EntityType,
    entity_id: EntityId = None,
    log: AdminLog = "default",
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Hold an entity's snapshots against the fold of its events. Exit 1: one differs.

    Those that agree are noted as verified, so that compaction may rely on them; of those that
    differ the note is taken away.
    """
    kind, name = _named(entity_type, entity_id)
    body = {"log": log, "type": kind, "id": name}
    with control(url, wait) as admin:
        found = admin.post("/api/v1/entities/verify", body, timeout=_VERIFY_SECONDS)
    if as_json:
        show(found)
    else:
        for each in found["snapshots"]:
            problem = f": {printable(each['problem'])}" if each["problem"] else ""
            typer.echo(
                f"{each['sequence']:>8}  {each['verdict']:<8}  {printable(each['type'])}{problem}"
            )
        load = {None: "no snapshot to load", True: "load = replay", False: "load DIFFERS"}
        typer.echo(
            f"{printable(kind)}/{printable(name)}: sequence {found['sequence']}, {found['events']}"
            f" events folded, {load[found['load']]}, {found['agree']} snapshots agree,"
            f" {found['differ']} differ, {found['foreign']} are not the fold's"
        )
    raise typer.Exit(0 if found["ok"] else 1)


def list_folds(
    as_json: Json = False, limit: Limit = None, url: AdminUrl = None, wait: Wait = 0.0
) -> None:
    """List the folds that workers have registered."""
    with control(url, wait) as admin:
        for row in admin.rows("/api/v1/folds", limit=limit):
            if as_json:
                show(row)
                continue
            loaded = "" if row["loaded"] else ", not loaded by the admin"
            typer.echo(
                f"{printable(row['entity_type'])} version {row['version']}: snapshots"
                f" {printable(row['snapshot_type'])}{loaded}"
            )
