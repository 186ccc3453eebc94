"""`everstate projection replay` and what goes with it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from everstate.commands.common import AdminUrl, Json, Limit, Wait, control, printable, said, show

Name = Annotated[str, typer.Argument(help="The projection.")]
_LOOK_EVERY = 0.5


def register(group: typer.Typer) -> None:
    """Adds the commands to those of projections."""
    group.command("replay")(replay)
    group.command("replays")(replays)
    group.command("cancel-replay")(cancel_replay)


def _path(name: str, *parts: str) -> str:
    from urllib.parse import quote

    return "/".join(
        ["/api/v1/projections", *(quote(p, safe="") for p in (name, "replays", *parts))]
    )


def _say(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(row)
        return
    text = f"{row['replay_id']}  {row['state']}: {row['entities']} entities, {row['events']} events"
    if row["error"]:
        error = row["error"]
        where = f" at {error['entity_type']}/{error['entity_id']}" if "entity_id" in error else ""
        text += printable(f"; failed{where}: {said(error)}")
    typer.echo(text)


def replay(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Operators will read it.")],
    entity: Annotated[
        list[str] | None, typer.Option("--entity", help="TYPE/ID; may be given again.")
    ] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="All entities of it; may be given again.")
    ] = None,
    from_: Annotated[
        int, typer.Option("--from", min=0, help="Entities with an event from this position")
    ] = 0,
    to: Annotated[int, typer.Option("--to", min=0, help="to this one.")] = 0,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Events a second at most, for each segment.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait until it is done.")] = False,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Delete entities from the live tables and make them again from their events.

    For projections that say how an entity is deleted. It goes on in the workers when this command
    is interrupted.
    """
    from everstate.commands.entity import named
    from kernel.errors import Conflict

    body = {
        "reason": reason,
        "entities": [list(named(text, None)) for text in entity or ()],
        "types": type_ or [],
        "from_position": from_,
        "to_position": to,
        "rate": rate,
    }
    with control(url, wait) as admin:
        row = admin.post(_path(name), body)
        while follow and row["state"] == "running":
            time.sleep(_LOOK_EVERY)  # the admin cannot announce progress yet
            row = admin.get(_path(name, row["replay_id"]))
    _say(row, as_json)
    if row["state"] in ("failed", "cancelled"):
        raise Conflict(f"the replay {row['replay_id']} {row['state']}")


def replays(
    name: Name,
    limit: Limit = None,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """List the replays of a projection, newest first."""
    with control(url, wait) as admin:
        for row in admin.rows(_path(name), limit=limit):
            _say(row, as_json)


def cancel_replay(
    name: Name,
    replay_id: Annotated[str, typer.Argument(help="The replay.")],
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """End a replay after the entities it is at; what was replayed stays."""
    with control(url, wait) as admin:
        _say(admin.post(_path(name, replay_id, "cancel")), as_json)
