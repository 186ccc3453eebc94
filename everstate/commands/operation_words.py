"""What the command line says about operations, to someone who is tired."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from everstate.commands.common import printable, said

if TYPE_CHECKING:
    from everstate.control import Control

_ENDED = frozenset({"expired", "review", "done", "failed", "cancelled", "undone"})
_STANDS = {
    "planned": "was not applied: nothing has been changed",
    "awaiting": "waits for a second person to apply it too: nothing has been changed",
    "paused": "is paused until somebody resumes it",
}
_HOLDS = {"hold": "held", "release": "released"}
_CAN_BE_UNDONE = frozenset({"done", "failed", "cancelled", "review", "undone"})
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_NOTES = {
    "planned": "not applied: nothing has been changed",
    "expired": "the plan has expired and acts never; plan anew",
    "awaiting": "waits for a second person to apply it too",
    "queued": "a worker will begin with it",
    "review": "too much has changed since the plan; it acts never. Plan anew, and read it again",
    "cancelled": "what was done before stays",
}


def plan(row: dict[str, Any]) -> None:
    """A plan: what would happen, what is left out and why, and how to apply it."""
    say = typer.echo
    say(f"Plan {row['id']}: {row['kind']}. NOTHING HAS BEEN CHANGED YET.")
    about(row)
    if row["items"] == 0:
        say("\nThere is nothing to do.")
        return
    say(f"  expires     {row['expires_at'][:19]}Z")
    typed = f" --typed {shlex.quote(row['typed'])}" if row.get("typed") else ""
    confirm = " --confirm" if row.get("confirmations") else ""
    say("\nTo apply exactly this plan:")
    say(
        f"  everstate operation apply {row['id']} --digest {row['digest']}"
        f'{printable(typed)}{confirm} --reason "…" --wait'
    )


def about(row: dict[str, Any]) -> None:
    """What a plan says of its effect: items, what is left out and why, warnings, undo."""
    say = typer.echo
    say(f"\n  {printable(row['sentence'])}\n")
    about = " (estimated)" if row.get("bytes_estimated") else ""
    what = f"{row['items']:,} of {row['entities']:,} entities: "
    if row["target"]:  # a task: its items need not be entities
        some = f"{row['entities']:,} entities, " if row["entities"] else ""
        what = f"{printable(row['target'])}: {some}"
    size = f", {_size(row['bytes'])}{about}" if row["bytes"] else ""
    say(f"  acts on     {what}{row['events']:,} events{size}")
    left = sum(row["excluded"].values())
    say(f"  leaves out  {left:,}, because" if left else "  leaves out  nothing")
    for code, count in sorted(row["excluded"].items(), key=lambda pair: -pair[1]):
        say(f"    {count:>10,}  {why(code)}")
    for consumer in row["consumers"]:
        say(f"  {printable(_reader(consumer))}")
    for warning in row["warnings"]:
        say(f"  WARNING     {printable(warning)}")
    if row["undoable"]:
        span = f"for {_span(row['undo_seconds'])}" if row["undo_seconds"] else "possible"
        say(f"  undo        {span} after it has ended")
    else:
        say("  undo        NO: this cannot be undone")
    if row["estimated_seconds"]:
        say(f"  takes       about {_span(max(1, round(row['estimated_seconds'])))}")


def _reader(row: dict[str, Any]) -> str:
    """Who needs events that would go, or the group that a task is about."""
    if "entities" in row:
        at = "" if row["position"] is None else f", which is at position {row['position']:,}"
        return f"needed by   {row['name']}{at}: keeps {row['entities']:,} entities out"
    words = {"members": "members", "again": "events come again", "skipped": "events never come"}
    parts = [f"{row[key]:,} {words.get(key, key)}" for key in row if key != "name"]
    return f"group       {row['name']}: {', '.join(parts)}"


def why(code: str) -> str:
    """A reason in words."""
    from operations import model

    meaning = model.REASONS.get(code)
    return printable(f"{meaning} ({code})" if meaning else code)


def whole(row: dict[str, Any]) -> None:
    """An operation with its plan and its receipt."""
    end(row)
    about(row)
    for word, who, when, text in (
        ("planned", "planned_by", "planned_at", None),
        ("applied", "applied_by", "applied_at", "reason"),
        ("seconded", "seconded_by", "seconded_at", None),
        ("started", None, "started_at", None),
        ("ended", None, "finished_at", None),
        ("undone", "undone_by", None, "undo_reason"),
    ):
        if not row[who or when or ""]:
            continue
        parts = [f"by {row[who]}"] if who else []
        parts += [row[when][:19] + "Z"] if when and row[when] else []
        parts += [f"“{row[text]}”"] if text and row[text] else []
        typer.echo(printable(f"  {word:<11} {', '.join(parts)}"))
    typer.echo(f"  digest      {row['digest']}")


def end(row: dict[str, Any]) -> None:
    """An operation's state in a few lines, and what can be done next."""
    at = row["progress"]
    parts = [f"{at[name]:,} {name}" for name in ("done", "skipped", "failed", "undone") if at[name]]
    text = f"{row['id']}  {row['kind']}: {row['state'].upper()}"
    if parts:
        text += f"  ({', '.join(parts)} of {row['items']:,})"
    typer.echo(text)
    if row["wish"]:
        typer.echo(f"  a {row['wish']} comes at the next safe point")
    if row["state"] in _NOTES:
        typer.echo(f"  {_NOTES[row['state']]}")
    if row["waits"] and row["state"] not in _ENDED:
        typer.echo(f"  {printable(row['waits'])}")
    if row["error"]:
        typer.echo(f"  {printable(said(row['error']))}")
    if at["failed"] or at["skipped"] or (row["state"] == "undone" and at["done"] > at["undone"]):
        typer.echo(f"  why: everstate operation show {row['id']} --failures")
    left = at["done"] - at["undone"]
    if row["state"] == "undone" and left > 0:
        typer.echo(f"  {left:,} of {at['done']:,} that were done could not be undone")
    if row["state"] in _CAN_BE_UNDONE and row["undo_until"] and left > 0:
        typer.echo(
            f"  until {row['undo_until'][:19]}Z: everstate operation undo {row['id']} --reason …"
        )


def nothing(row: dict[str, Any], *, quiet: bool) -> None:
    """Says that a plan of a hold or a release acts on nothing because all is as it should be.

    Raises:
        Conflict: it is not; names the reasons with their numbers.

    """
    from kernel.errors import Conflict

    excluded = row["excluded"]
    if row["kind"] == "hold" and excluded.keys() == {"current"}:
        if not quiet:
            typer.echo(f"\n{excluded['current']:,} are held under this label already.")
        return
    because = ", ".join(f"{count:,}: {why(code)}" for code, count in excluded.items())
    raise Conflict(
        f"nothing was {_HOLDS[row['kind']]}: " + (because or "the selection finds no entity")
    )


def line(row: dict[str, Any]) -> None:
    """An operation as a line of a list."""
    typer.echo(
        f"{row['id']}  {row['state']:<9} {row['kind']:<14} {row['planned_at'][:19]}Z  "
        f"{printable(row['planned_by'])}  {printable(row['sentence'])}"
    )


def item(row: dict[str, Any]) -> None:
    """An item as a line."""
    about = printable(f"{row['entity_type']}/{row['entity_id']}" if row["entity_type"] else "")
    reason = f": {why(row['reason'])}" if row["reason"] else ""
    typer.echo(f"{row['no']:>8}  {row['state']:<10} {about}  {row['events']:,} events{reason}")


def failure(row: dict[str, Any]) -> None:
    """A group of failures as a line."""
    typer.echo(f"{row['count']:>8,}  {row['state']:<10} {why(row['reason'])}")
    for example in row["examples"]:
        typer.echo(f"{'':>21}{printable(example)}")


def kind(row: dict[str, Any]) -> None:
    """A kind as a line."""
    typer.echo(f"{row['name']:<16} {printable(row['title'])}")
    if row["irreversible"]:
        typer.echo(f"{'':<16} {printable(row['irreversible'])}")


def judge(row: dict[str, Any]) -> None:
    """Returns when an operation has done, or taken back, what was asked.

    Raises:
        Conflict: it ended in another way, or goes on only when a person says so.

    """
    from kernel.errors import Conflict

    at = row["progress"]
    if row["state"] in _STANDS:
        raise Conflict(f"{row['id']} {_STANDS[row['state']]}")
    if row["state"] == "done" and row.get("kind") in _HOLDS and not at["done"]:
        raise Conflict(f"{row['id']}: of {row['items']:,} entities none was {_HOLDS[row['kind']]}")
    if row["state"] == "undone" and at["done"] and not at["undone"]:
        raise Conflict(f"{row['id']}: none of {at['done']:,} could be undone")
    if row["state"] in ("done", "undone"):
        return
    what = f": {said(row['error'])}" if row["error"] else ""
    raise Conflict(f"{row['id']} ended as {row['state']}{what}")


def followed(
    admin: Control,
    stream: str,
    timeout: float | None,
    each: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Watches an operation until it ends or waits for a person; its row then. ``each`` sees every
    row that comes.

    Raises:
        DeadlineExceeded: not within ``timeout`` seconds. It goes on, whatever happens here.

    """
    deadline = None if timeout is None else time.monotonic() + timeout
    row: dict[str, Any] = {}
    with _bar() as at:
        try:
            for name, row in admin.events(stream, deadline):
                at(row)
                if each is not None:
                    each(row)
                if name == "end" or row["state"] in _STANDS:
                    return row
        except KeyboardInterrupt:
            _interrupted(row)
    raise _late(row, timeout)


def _late(row: dict[str, Any], timeout: float | None) -> Exception:
    from kernel.errors import DeadlineExceeded

    about = f"{row['id']} is {row['state']}" if row else "it did not tell"
    return DeadlineExceeded(f"not ended within {timeout or 0:g} s: {about}; it goes on")


def _interrupted(row: dict[str, Any]) -> NoReturn:
    if row:
        goes_on = row["state"] in ("queued", "running", "undoing")
        what = "goes on in the workers" if goes_on else f"stays {row['state']}"
        sys.stderr.write(
            f"\n{row['id']} {what}. Look again: everstate operation watch "
            f"{row['id']}; end it: everstate operation cancel {row['id']}\n"
        )
    raise KeyboardInterrupt


@contextmanager
def _bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on standard error, only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
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
        task = progress.add_task("", total=None)

        def at(row: dict[str, Any]) -> None:
            waits = f" ({row['waits']})" if row["waits"] else ""
            progress.update(
                task, description=printable(f"{row['kind']} {row['state']}{waits}"),
                total=row["items"], completed=row["progress"]["settled"],
            )  # fmt: skip

        yield at


def _span(seconds: int) -> str:
    """Seconds in the largest unit that says it well."""
    for size, unit in _UNITS:
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            count = round(seconds / size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{seconds} seconds"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1_000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1_000
    raise AssertionError
