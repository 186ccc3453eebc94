"""`everstate operation …`: plan, read, apply, watch, stop, undo."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everstate.commands import operation_words as words
from everstate.commands.common import AdminUrl, Json, Limit, Wait, control, show

if TYPE_CHECKING:
    from everstate.control import Control

Id = Annotated[str, typer.Argument(metavar="ID", help="The operation: op-….")]
Reason = Annotated[str, typer.Option("--reason", help="Why; others will read it.")]
WaitForEnd = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Wait until it has ended. Exit 4: it did not get done, or waits for a person.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Seconds to wait for its end; exit 6: not in time."),
]
Digest = Annotated[
    str, typer.Option("--digest", help="Of the plan that was read; default: the plan as it is now.")
]
Typed = Annotated[str, typer.Option("--typed", help="What the plan asks to be typed.")]
Confirm = Annotated[
    bool, typer.Option("--confirm", help="The warnings that must be confirmed were read.")
]
OfLog = Annotated[str, typer.Option("--log", help="Log; default: default.")]
Entities = Annotated[
    list[str] | None, typer.Option("--entity", help="TYPE/ID; may be given again.")
]
Types = Annotated[
    list[str] | None, typer.Option("--type", help="Entities of this type; may be given again.")
]
From = Annotated[
    str, typer.Option("--from", help="Entities with an event from this position or time")
]
To = Annotated[str, typer.Option("--to", help="to this one (a time itself is not included).")]
Where = Annotated[
    str, typer.Option("--where", help="Search language, like: events>1000 last:<90d held:no")
]

ALL = "/api/v1/operations"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="What changes much at once: planned, read, applied, watched, undone.",
        no_args_is_help=True,
    )
    group.command("plan")(plan)
    group.command("apply")(apply)
    group.command("undo")(undo)
    group.command("watch")(watch)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("cancel")(cancel)
    group.command("retry")(retry)
    group.command("replan")(replan)
    group.command("list")(list_operations)
    group.command("show")(show_operation)
    group.command("kinds")(kinds)
    app.add_typer(group, name="operation")


def path(operation_id: str, act: str = "") -> str:
    """The resource of an operation."""
    from urllib.parse import quote

    return f"{ALL}/{quote(operation_id, safe='')}" + (f"/{act}" if act else "")


def selection(
    entity: list[str] | None, type_: list[str] | None, from_: str, to: str, where: str
) -> dict[str, Any]:
    """The selection of a request's body."""
    from everstate.commands.entity import named

    made: dict[str, Any] = {
        "entities": [list(named(text, None)) for text in entity or ()],
        "types": type_ or [],
        "where": where,
    }
    for name, text in (("from", from_), ("to", to)):
        if text:
            made[name] = int(text) if text.isascii() and text.isdigit() else text
    return made


def parameters(given: list[str] | None, at: str) -> dict[str, Any]:
    """``KEY=VALUE`` each; a value that is JSON is taken as such, any other one as text.

    Raises:
        InvalidArgument: one has no ``=``, or is given twice.

    """
    import orjson

    from kernel.errors import InvalidArgument

    found: dict[str, Any] = {"at": at} if at else {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument("--param", "is KEY=VALUE")
        if name in found:
            raise InvalidArgument("--param", f"{name} is given twice")
        try:
            found[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            found[name] = value
    return found


def plan(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Of `everstate operation kinds`.")],
    entity: Entities = None,
    type_: Types = None,
    from_: From = "",
    to: To = "",
    where: Where = "",
    target: Annotated[
        str, typer.Option("--target", help="The projection or group that it is about.")
    ] = "",
    at: Annotated[str, typer.Option("--at", help="A time, for kinds that take one.")] = "",
    param: Annotated[
        list[str] | None, typer.Option("--param", help="KEY=VALUE of the kind; may be given again.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Items a second at most.")] = None,
    log: OfLog = "default",
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Find out what an operation would do, and keep the plan for a while. Nothing is changed.

    Without a selection: every entity of the log. A plan with nothing to do is a plan, exit 0.
    """
    body = {
        "kind": kind,
        "log": log,
        "target": target,
        "selection": selection(entity, type_, from_, to, where),
        "parameters": parameters(param, at),
        "rate": rate,
    }
    with control(url, wait) as admin:
        row = admin.post(ALL, body, timeout=150)
    _say_plan(row, as_json)


def replan(id_: Id, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """Plan the same anew: another operation, with another id."""
    with control(url, wait) as admin:
        row = admin.post(path(id_, "replan"), timeout=150)
    _say_plan(row, as_json)


def _say_plan(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(row)
    else:
        words.plan(row)


def apply(
    id_: Id,
    reason: Reason,
    digest: Digest = "",
    typed: Typed = "",
    confirm: Confirm = False,
    wait_for_end: WaitForEnd = False,
    timeout: Timeout = None,
    as_json: Json = False,
    url: AdminUrl = None,
) -> None:
    """Carry out a plan. It goes on in the workers when this command is interrupted.

    With the digest of the plan that you have read, exactly that plan is applied or none.
    """
    with control(url) as admin:
        row = applied(admin, id_, reason, digest, typed, confirmed=confirm)
        finish(admin, row, wait_for_end, timeout, as_json)


def applied(
    admin: Control,
    operation_id: str,
    reason: str,
    digest: str = "",
    typed: str = "",
    *,
    confirmed: bool = False,
) -> dict[str, Any]:
    """The operation after it was applied."""
    digest = digest or admin.get(path(operation_id))["digest"]
    row: dict[str, Any] = admin.post(
        path(operation_id, "apply"),
        {"digest": digest, "reason": reason, "typed": typed, "confirmed": confirmed},
    )
    return row


def undo(
    id_: Id,
    reason: Reason,
    wait_for_end: WaitForEnd = False,
    timeout: Timeout = None,
    as_json: Json = False,
    url: AdminUrl = None,
) -> None:
    """Take back what an operation did, as long as that can be done."""
    with control(url) as admin:
        row = admin.post(path(id_, "undo"), {"reason": reason})
        finish(admin, row, wait_for_end, timeout, as_json)


def watch(id_: Id, timeout: Timeout = None, as_json: Json = False, url: AdminUrl = None) -> None:
    """Follow an operation until it has ended. Exit 4: it did not get done.

    One that is planned, awaiting or paused waits for a person: that is exit 4, at once.
    With --json: a line for every change.
    """
    with control(url) as admin:
        row = words.followed(admin, path(id_, "watch"), timeout, _line if as_json else None)
    if not as_json:
        words.end(row)
    words.judge(row)


def _line(row: dict[str, Any]) -> None:
    """A line of JSON that a reader of a pipe sees at once."""
    show(row)
    sys.stdout.flush()


def finish(
    admin: Control, row: dict[str, Any], wait_for_end: bool, timeout: float | None, as_json: bool
) -> None:
    """Says where an operation is, after its end if that is to be waited for."""
    if wait_for_end:
        row = words.followed(admin, path(row["id"], "watch"), timeout)
    if as_json:
        show(row)
    else:
        words.end(row)
    if wait_for_end:
        words.judge(row)


def _act(id_: str, act: str, url: str | None, wait: float, as_json: bool) -> None:
    with control(url, wait) as admin:
        row = admin.post(path(id_, act))
    if as_json:
        show(row)
    else:
        words.end(row)


def pause(id_: Id, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """Let an operation stand still from the next safe point on."""
    _act(id_, "pause", url, wait, as_json)


def resume(id_: Id, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """Let a paused operation go on."""
    _act(id_, "resume", url, wait, as_json)


def cancel(id_: Id, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """End an operation at the next safe point; what is done stays, and may be undone."""
    _act(id_, "cancel", url, wait, as_json)


def retry(id_: Id, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """Let an operation try the items once more that failed."""
    _act(id_, "retry", url, wait, as_json)


def list_operations(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only in it; may be given again.")
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="Only of this kind.")] = "",
    limit: Limit = None,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """List operations, newest first."""
    query: dict[str, Any] = {"state": state or [], **({"kind": kind} if kind else {})}
    with control(url, wait) as admin:
        for row in admin.rows(ALL, query, limit):
            if as_json:
                show(row)
            else:
                words.line(row)


def show_operation(
    id_: Id,
    items: Annotated[bool, typer.Option("--items", help="List what it acts on.")] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="List why items were left or failed.")
    ] = False,
    limit: Limit = None,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Show an operation: its plan, how far it is, its receipt; or its items, or its failures."""
    from kernel.errors import InvalidArgument

    if items and failures:
        raise InvalidArgument("--items", "cannot be together with --failures")
    with control(url, wait) as admin:
        if items or failures:
            for row in admin.rows(path(id_, "items" if items else "failures"), limit=limit):
                if as_json:
                    show(row)
                else:
                    (words.item if items else words.failure)(row)
            return
        row = admin.get(path(id_))
    if as_json:
        show(row)
    else:
        words.whole(row)


def kinds(as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """List the kinds of operations there are."""
    with control(url, wait) as admin:
        for row in admin.rows("/api/v1/operation-kinds"):
            if as_json:
                show(row)
            else:
                words.kind(row)
