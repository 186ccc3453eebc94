"""`everstate projection …`: what the admin's API does with projections."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from everstate.commands import replay
from everstate.commands.common import AdminUrl, Json, Limit, Wait, control, printable, said, show

if TYPE_CHECKING:
    from everstate.control import Control

Name = Annotated[str, typer.Argument(help="The projection.")]
Version = Annotated[
    int | None, typer.Option("--version", min=1, help="Of the build; default: the one under way.")
]
Build = Annotated[int, typer.Option("--build", min=1, help="Of the version.")]
_LOOK_EVERY = 0.5
_ROUND_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Projections and their read models.", no_args_is_help=True)
    group.command("list")(list_projections)
    group.command("show")(show_projection)
    group.command("parked")(parked)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("rebuild")(rebuild)
    group.command("switch")(switch)
    group.command("rollback")(rollback)
    group.command("discard")(discard)
    group.command("compare")(compare)
    group.command("wait")(wait_for)
    replay.register(group)
    app.add_typer(group, name="projection")


def _path(name: str, act: str = "") -> str:
    from urllib.parse import quote

    return f"/api/v1/projections/{quote(name, safe='')}" + (f"/{act}" if act else "")


def _say(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(row)
        return
    build = f" build {row['build']}" if row["build"] > 1 else ""
    text = (
        f"{printable(row['name'])} version {row['version']}{build}: {row['status']}, "
        f"position {row['position']} of {row['head']}"
    )
    if row["lag_events"]:
        text += f", behind by {row['lag_events']} events, {row['lag_seconds']:.1f} s"
    if row["parked"]:
        text += f", {row['parked']} parked"
    if row["paused"]:
        text += f"; paused: {printable(row['pause_reason'])}"
    typer.echo(text)


def list_projections(
    as_json: Json = False, limit: Limit = None, url: AdminUrl = None, wait: Wait = 0.0
) -> None:
    """List projections, each as the build that readers see."""
    with control(url, wait) as admin:
        for row in admin.rows("/api/v1/projections", limit=limit):
            _say(row, as_json)


def show_projection(
    name: Name, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0
) -> None:
    """Show a projection: its builds and the segments of the live one."""
    with control(url, wait) as admin:
        row = admin.get(_path(name))
        builds = list(admin.rows(_path(name, "builds")))
        segments = list(admin.rows(_path(name, "segments")))
    if as_json:
        show(row | {"builds": builds, "segments_list": segments})
        return
    _say(row, as_json=False)
    for build in builds:
        if build["state"] != "live":
            typer.echo(
                f"  build {build['version']}.{build['build']}: {build['state']}, "
                f"position {build['position']}"
            )
    for segment in segments:
        text = f"  segment {segment['segment']}: {segment['state']}, position {segment['position']}"
        text += f", {segment['holder']}" if segment["holder"] else ", no worker has it"
        if segment["error"]:
            text += f": {printable(said(segment['error']))}"
        typer.echo(text)


def parked(
    name: Name,
    as_json: Json = False,
    limit: Limit = None,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """List the events that the live build passed over, and why."""
    with control(url, wait) as admin:
        for row in admin.rows(_path(name, "parked"), limit=limit):
            if as_json:
                show(row)
                continue
            entity = printable(f"{row['entity_type']}/{row['entity_id']}")
            reason = said(row["error"]) if isinstance(row["error"], dict) else ""
            about = f"{entity}  {printable(row['event_type'])}  {printable(reason)}"
            typer.echo(f"{row['position']:>8}  {about}")


def pause(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Operators will read it.")],
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Stop a projection until it is resumed."""
    with control(url, wait) as admin:
        _say(admin.post(_path(name, "pause"), {"reason": reason}), as_json)


def resume(name: Name, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """End a pause, and let halted segments try again."""
    with control(url, wait) as admin:
        _say(admin.post(_path(name, "resume")), as_json)


def rebuild(
    name: Name,
    auto_switch: Annotated[
        bool, typer.Option("--auto-switch", help="Show it to readers once it has caught up.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait until it has caught up.")
    ] = False,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Fill new tables beside the live ones from the whole log; `switch` shows them to readers.

    It goes on in the workers when this command is interrupted.
    """
    with control(url, wait) as admin:
        row = admin.post(_path(name, "rebuild"), {"auto_switch": auto_switch})
        if follow:
            row = _followed(admin, row, auto_switch)
    _say(row, as_json)


def _followed(admin: Control, row: dict[str, Any], auto_switch: bool) -> dict[str, Any]:
    """Watches a build until it is ready (or live), failed or given up; the row it has then."""
    from kernel.errors import Conflict

    done = {"live", "previous"} if auto_switch else {"ready", "live", "previous"}
    with _progress(f"rebuild of {row['name']}", row["target_position"]) as bar:
        while True:
            bar.at(row["position"], max(row["target_position"], row["position"]))
            if row["state"] in done:
                return row
            if row["state"] in ("failed", "retired"):
                message = said(row["error"]) if row["error"] else "it was given up"
                raise Conflict(f"the rebuild of {row['name']!r} ended: {message}")
            if row["status"] == "halted":
                raise Conflict(
                    f"the rebuild of {row['name']!r} halted at position {row['position']}; "
                    f"`everstate projection show {row['name']}` says why"
                )
            time.sleep(_LOOK_EVERY)  # the admin cannot announce progress yet
            builds = admin.rows(_path(row["name"], "builds"))
            row = next(b for b in builds if _key(b) == _key(row))


def _key(row: dict[str, Any]) -> tuple[int, int]:
    return row["version"], row["build"]


def switch(
    name: Name,
    version: Version = None,
    build: Build = 1,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Show readers the build that is ready."""
    with control(url, wait) as admin:
        _say(admin.post(_path(name, "switch"), {"version": version, "build": build}), as_json)


def rollback(name: Name, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """Show readers the build that was live before."""
    with control(url, wait) as admin:
        _say(admin.post(_path(name, "rollback")), as_json)


def discard(
    name: Name,
    version: Version = None,
    build: Build = 1,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Give up a build that is not live."""
    with control(url, wait) as admin:
        _say(admin.post(_path(name, "discard"), {"version": version, "build": build}), as_json)


def compare(
    name: Name,
    version: Version = None,
    build: Build = 1,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Compare the live tables with those of another build, at one position. Exit 1: they differ."""
    with control(url, wait) as admin:
        found = admin.post(_path(name, "compare"), {"version": version, "build": build})
    equal = found["equal"]
    if as_json:
        show(found)
    else:
        for table in found["tables"]:
            verdict = "equal" if table["equal"] else "DIFFERS"
            typer.echo(
                f"{printable(table['table'])}: {verdict}, "
                f"{table['old_rows']} rows live, {table['new_rows']} new"
            )
        for word, names in (("missing", found["missing"]), ("added", found["added"])):
            for table in names:
                typer.echo(f"{printable(table)}: {word}")
        typer.echo(f"{'equal' if equal else 'NOT equal'} at position {found['position']}")
    raise typer.Exit(0 if equal else 1)


def wait_for(
    name: Name,
    position: Annotated[int, typer.Option("--position", min=0, help="That of one's write.")],
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds.")] = 30.0,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Wait until readers see everything up to a position. Exit 6: not in time."""
    from kernel.errors import DeadlineExceeded

    deadline = time.monotonic() + timeout
    with control(url, wait) as admin, _progress(name, position) as bar:
        while True:
            left = max(0.0, deadline - time.monotonic())
            asked = {"position": position, "timeout": round(min(left, _ROUND_SECONDS), 3)}
            try:
                passed = admin.get(_path(name, "wait"), asked)
                break
            except DeadlineExceeded:
                if time.monotonic() >= deadline:
                    raise
                bar.at(admin.get(_path(name))["position"], position)
    if as_json:
        show(passed)
    else:
        typer.echo(f"{printable(name)} version {passed['version']}: position {passed['position']}")


class _Bar(Protocol):
    def at(self, done: int, total: int) -> None: ...


class _Silent:
    def at(self, done: int, total: int) -> None: ...


@contextmanager
def _progress(what: str, total: int) -> Iterator[_Bar]:
    """A bar on standard error, only on a terminal."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(what), total=total)

        class _Shown:
            def at(self, done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

        yield _Shown()
