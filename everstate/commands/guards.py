"""`everstate policy …`, `hold …` and `entity-type …`: what guards entities and operations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everstate.commands import operation as operations
from everstate.commands import operation_words as words
from everstate.commands.common import AdminUrl, Json, Limit, Wait, control, printable, show
from everstate.commands.operation import (
    Entities,
    From,
    OfLog,
    Reason,
    Timeout,
    To,
    Typed,
    Types,
    WaitForEnd,
    Where,
)

if TYPE_CHECKING:
    from everstate.control import Control

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_POLICIES = "/api/v1/policies"
_TYPES = "/api/v1/entity-types"

Kind = Annotated[str, typer.Argument(metavar="KIND", help="Of `everstate operation kinds`.")]
TypeName = Annotated[str, typer.Argument(metavar="TYPE", help="The entity type.")]
Label = Annotated[str, typer.Option("--label", help="What the hold is called: why it is there.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    policy = typer.Typer(help="How operations of a kind are guarded.", no_args_is_help=True)
    policy.command("list")(list_policies)
    policy.command("show")(show_policy)
    policy.command("set")(set_policy)
    app.add_typer(policy, name="policy")
    hold = typer.Typer(help="What keeps entities from being removed.", no_args_is_help=True)
    hold.command("list")(list_holds)
    hold.command("add")(add_hold)
    hold.command("release")(release_hold)
    app.add_typer(hold, name="hold")
    types = typer.Typer(help="What is set for entity types.", no_args_is_help=True)
    types.command("list")(list_types)
    types.command("show")(show_type)
    types.command("set")(set_type)
    app.add_typer(types, name="entity-type")


def seconds(option: str, text: str) -> int:
    """``90``, ``90s``, ``15m``, ``12h``, ``7d`` in seconds.

    Raises:
        InvalidArgument: it is none of these; names the option.

    """
    from kernel.errors import InvalidArgument

    found = re.fullmatch(r"([0-9]{1,12})([smhd]?)", text)
    if found is None:
        raise InvalidArgument(option, f"{text!r:.40} is not like 90s, 15m, 12h or 7d")
    return int(found[1]) * _SECONDS[found[2] or "s"]


def _one(base: str, name: str) -> str:
    from urllib.parse import quote

    return f"{base}/{quote(name, safe='')}"


def _changed(admin: Control, path: str, keys: tuple[str, ...], new: dict[str, Any]) -> Any:
    """What is there with ``new`` in it, provided that nobody changes it meanwhile."""
    from kernel.errors import NotFound

    try:
        row = admin.get(path)
    except NotFound:  # a type that has no events yet
        row = {"version": 0}
    body = {key: row[key] for key in keys if key in row}
    return admin.put(path, body | new, f'"{row["version"]}"')


# Policies

_POLICY = ("second_person", "expires_s", "max_drift", "undo_s", "typed")


def list_policies(as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """List the policies of all kinds of operations."""
    with control(url, wait) as admin:
        for row in admin.rows(_POLICIES):
            _say_policy(row, as_json)


def show_policy(kind: Kind, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0) -> None:
    """Show the policy of a kind of operation."""
    with control(url, wait) as admin:
        _say_policy(admin.get(_one(_POLICIES, kind)), as_json)


def set_policy(
    kind: Kind,
    second_person: Annotated[
        bool | None,
        typer.Option("--second-person/--no-second-person", help="Another one has to apply it too."),
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", help="A plan not applied by then is void: 15m.")
    ] = "",
    max_drift: Annotated[
        float | None,
        typer.Option(
            "--max-drift", help="Share of items that may have changed at the start, 0..1."
        ),
    ] = None,
    undo: Annotated[str, typer.Option("--undo", help="How long it can be undone: 7d.")] = "",
    typed: Annotated[
        bool | None,
        typer.Option("--typed/--no-typed", help="Apply has to repeat what the plan asks for."),
    ] = None,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Set how operations of a kind are guarded; what is not named stays as it is."""
    new: dict[str, Any] = {
        "second_person": second_person,
        "expires_s": seconds("--expires", expires) if expires else None,
        "max_drift": max_drift,
        "undo_s": seconds("--undo", undo) if undo else None,
        "typed": typed,
    }
    new = {key: value for key, value in new.items() if value is not None}
    with control(url, wait) as admin:
        _say_policy(_changed(admin, _one(_POLICIES, kind), _POLICY, new), as_json)


def _say_policy(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(row)
        return
    text = (
        f"{row['kind']:<16} {'two persons' if row['second_person'] else 'one person':<12} "
        f"plans expire after {row['expires_s']} s, undo for {row['undo_s']} s, "
        f"drift up to {row['max_drift']:.1%}"
    )
    typer.echo(text + (", typed" if row["typed"] else ""))


# Holds


def list_holds(
    label: Annotated[str, typer.Option("--label", help="Only of this label.")] = "",
    log: OfLog = "default",
    limit: Limit = None,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """List holds by label, entity type and id."""
    query = {"log": log, **({"label": label} if label else {})}
    with control(url, wait) as admin:
        for row in admin.rows("/api/v1/holds", query, limit):
            if as_json:
                show(row)
                continue
            entity = printable(f"{row['entity_type']}/{row['entity_id']}")
            by = printable(f"{row['principal']}: {row['reason']}")
            typer.echo(f"{row['label']:<16} {entity}  {row['held_at'][:19]}Z  {by}")


def add_hold(
    reason: Reason,
    entity: Entities = None,
    type_: Types = None,
    from_: From = "",
    to: To = "",
    where: Where = "",
    label: Label = "operator",
    log: OfLog = "default",
    typed: Typed = "",
    wait_for_end: WaitForEnd = False,
    timeout: Timeout = None,
    as_json: Json = False,
    url: AdminUrl = None,
) -> None:
    """Hold entities: nothing of them can be removed. Plans and applies in one go.

    Exit 4: the selection has no entity.
    """
    chosen = operations.selection(entity, type_, from_, to, where)
    _hold("hold", reason, chosen, label, log, typed, wait_for_end, timeout, as_json, url)


def release_hold(
    reason: Reason,
    entity: Entities = None,
    type_: Types = None,
    from_: From = "",
    to: To = "",
    where: Where = "",
    label: Label = "operator",
    log: OfLog = "default",
    typed: Typed = "",
    wait_for_end: WaitForEnd = False,
    timeout: Timeout = None,
    as_json: Json = False,
    url: AdminUrl = None,
) -> None:
    """End holds of a label. Plans and applies in one go. Exit 4: there is no such hold."""
    chosen = operations.selection(entity, type_, from_, to, where)
    _hold("release", reason, chosen, label, log, typed, wait_for_end, timeout, as_json, url)


def _hold(
    kind: str, reason: str, chosen: dict[str, Any], label: str, log: str, typed: str,
    wait_for_end: bool, timeout: float | None, as_json: bool, url: str | None,
) -> None:  # fmt: skip
    from kernel.errors import InvalidArgument

    if not any(chosen.values()):
        raise InvalidArgument("selection", "name entities, a type, a range or --where")
    body = {"kind": kind, "log": log, "selection": chosen, "parameters": {"label": label}}
    with control(url) as admin:
        planned = admin.post(operations.ALL, body)
        if as_json and not planned["items"]:
            show(planned)
        elif not as_json:
            words.about(planned)
        if not planned["items"]:
            words.nothing(planned, quiet=as_json)
            return
        row = operations.applied(admin, planned["id"], reason, planned["digest"], typed)
        operations.finish(admin, row, wait_for_end, timeout, as_json)


# Entity types

_TYPE = (
    "needs_full_replay", "snapshot_types", "trust_snapshots", "snapshot_every", "snapshot_age_s",
    "keep_snapshots",
)  # fmt: skip


def list_types(
    limit: Limit = None, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0
) -> None:
    """List entity types and what is set for them."""
    with control(url, wait) as admin:
        for row in admin.rows(_TYPES, limit=limit):
            _say_type(row, as_json)


def show_type(
    name: TypeName, as_json: Json = False, url: AdminUrl = None, wait: Wait = 0.0
) -> None:
    """Show what is set for an entity type."""
    with control(url, wait) as admin:
        _say_type(admin.get(_one(_TYPES, name)), as_json)


def set_type(
    name: TypeName,
    full_replay: Annotated[
        bool | None,
        typer.Option(
            "--full-replay/--no-full-replay",
            help="Its owner cannot load a snapshot: none is sent, nothing is compacted.",
        ),
    ] = None,
    trust_snapshots: Annotated[
        bool | None,
        typer.Option(
            "--trust-snapshots/--no-trust-snapshots",
            help="Its owner's snapshots count as verified without a fold.",
        ),
    ] = None,
    snapshot_type: Annotated[
        list[str] | None,
        typer.Option("--snapshot-type", help="A type its owner can load; may be given again."),
    ] = None,
    any_snapshot_type: Annotated[
        bool, typer.Option("--any-snapshot-type", help="Its owner can load all of them.")
    ] = False,
    snapshot_every: Annotated[
        int | None, typer.Option("--snapshot-every", min=0, help="Events; 0: never due by number.")
    ] = None,
    snapshot_age: Annotated[
        str, typer.Option("--snapshot-age", help="Like 7d; 0: never due by age.")
    ] = "",
    keep_snapshots: Annotated[
        int | None, typer.Option("--keep-snapshots", help="Pruning leaves so many newest ones.")
    ] = None,
    as_json: Json = False,
    url: AdminUrl = None,
    wait: Wait = 0.0,
) -> None:
    """Set what holds for an entity type; what is not named stays as it is."""
    new: dict[str, Any] = {
        "needs_full_replay": full_replay,
        "trust_snapshots": trust_snapshots,
        "snapshot_types": snapshot_type or ([] if any_snapshot_type else None),
        "snapshot_every": snapshot_every,
        "snapshot_age_s": seconds("--snapshot-age", snapshot_age) if snapshot_age else None,
        "keep_snapshots": keep_snapshots,
    }
    new = {key: value for key, value in new.items() if value is not None}
    with control(url, wait) as admin:
        _say_type(_changed(admin, _one(_TYPES, name), _TYPE, new), as_json)


def _say_type(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(row)
        return
    said = ["full replay only"] if row["needs_full_replay"] else []
    if row["snapshot_every"]:
        said.append(f"a snapshot every {row['snapshot_every']:,} events")
    if row["snapshot_age_s"]:
        said.append(f"a snapshot after {row['snapshot_age_s']} s")
    said.append(f"keeps {row['keep_snapshots']} snapshots")
    if row["snapshot_types"]:
        said.append(f"loads {', '.join(row['snapshot_types'])}")
    if row["trust_snapshots"]:
        said.append("its owner's snapshots are trusted")
    typer.echo(printable(f"{row['name']}: {'; '.join(said)}"))
