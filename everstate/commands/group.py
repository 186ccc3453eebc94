"""`everstate group …`: consumer groups, and the events they have put aside."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everstate.commands.common import (
    Json,
    Limit,
    Log,
    Url,
    Wait,
    position_of,
    printable,
    run,
    show,
)

if TYPE_CHECKING:
    from journal.groups.model import Group, ParkedCount, ParkedEvent, ParkedSelection
    from sidecar_api.client import Client

Name = Annotated[str, typer.Argument(help="The group: [a-z][a-z0-9_]{0,39}")]
All = Annotated[bool, typer.Option("--all", help="All that fit the other options.")]
Entity = Annotated[str, typer.Option("--entity", help="TYPE/ID, or TYPE for all of a type.")]
Type = Annotated[str, typer.Option("--type", help="Event type.")]
Positions = Annotated[list[int] | None, typer.Option("--position", help="May be repeated.")]
Reason = Annotated[str, typer.Option("--reason-contains", help="A part of the reason.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Consumer groups.", no_args_is_help=True)
    group.command("list")(list_groups)
    group.command("show")(show_group)
    group.command("create")(create_group)
    group.command("delete")(delete_group)
    group.command("parked")(parked)
    group.command("replay")(replay)
    group.command("discard")(discard)
    group.command("seek")(seek)
    app.add_typer(group, name="group")


def _line(group: Group, *, whole: bool = False) -> dict[str, Any]:
    from kernel import clock

    settings: dict[str, Any] = {}
    for field in dataclasses.fields(group.settings):
        value = getattr(group.settings, field.name)
        if isinstance(value, timedelta):
            settings[f"{field.name}_ms"] = round(value.total_seconds() * 1000)
        else:
            settings[field.name] = value
    line: dict[str, Any] = {
        "name": group.name,
        "log": group.log,
        "position": group.position,
        "head": group.head,
        "lag_events": group.lag_events,
        "lag_bytes": group.lag_bytes,
        "lag_seconds": group.lag_seconds,
        "parked": group.parked,
        "held": group.held,
        "replaying": group.replaying,
        "members": group.members_total,
        "version": group.version,
        "created_at": clock.format_us(group.created_at_us),
        "settings": settings,
    }
    if whole:
        line["members_list"] = [
            {
                "member_id": member.member_id,
                "name": member.name,
                "node": member.node,
                "joined_at": clock.format_us(member.joined_at_us),
                "partitions": member.partitions,
            }
            for member in group.members
        ]
        line["partitions"] = [dataclasses.asdict(partition) for partition in group.partitions]
    return line


def _text(group: Group) -> str:
    aside = group.parked + group.held + group.replaying
    states = f" ({group.parked} parked, {group.held} held, {group.replaying} replaying)"
    return (
        f"{group.name}: at {group.position} of {group.head} in {group.log}, "
        f"{group.lag_seconds:.0f} s behind; {group.members_total} members; "
        f"{aside} events put aside{states if aside else ''}"
    )


def list_groups(
    limit: Limit = None, as_json: Json = False, url: Url = None, wait: Wait = 0.0
) -> None:
    """List the consumer groups."""

    async def work(client: Client) -> None:
        left = limit
        token = ""
        while left is None or left > 0:
            size = min(100, left or 100)
            page = await client.groups.list_page(page_size=size, page_token=token)
            for group in page.groups:
                show(_line(group)) if as_json else typer.echo(_text(group))
            left = None if left is None else left - len(page.groups)
            token = page.next_page_token
            if not token:
                return

    run(work, url, wait)


def show_group(name: Name, as_json: Json = False, url: Url = None, wait: Wait = 0.0) -> None:
    """Show a group: its place, its lag, who has which partitions."""

    async def work(client: Client) -> None:
        group = await client.groups.get(name)
        if as_json:
            show(_line(group, whole=True))
            return
        typer.echo(_text(group))
        names = {member.member_id: printable(member.name) for member in group.members}
        for member in group.members:
            called = names[member.member_id] or "(no name)"
            typer.echo(f"  {called} at {member.node}: {member.partitions} partitions")
        for part in group.partitions:
            whose = names.get(part.member_id, part.member_id) if part.member_id else "nobody"
            typer.echo(
                f"  partition {part.partition:>3}, slices {part.first_slice}..{part.last_slice}: "
                f"at {part.watermark}, {part.pending} pending, with {whose}"
            )

    run(work, url, wait)


def create_group(
    name: Name,
    log: Log = "",
    from_: Annotated[
        str, typer.Option("--from", help="Position, time, `beginning` or `end`.")
    ] = "beginning",
    entity_types: Annotated[
        list[str] | None, typer.Option("--entity-type", help="Only these; may be repeated.")
    ] = None,
    event_types: Annotated[
        list[str] | None, typer.Option("--type", help="Only these; may be repeated.")
    ] = None,
    partitions: Annotated[
        int, typer.Option(help="Parts, 1..256: the most members that can be busy.")
    ] = 16,
    global_order: Annotated[
        bool, typer.Option("--global-order", help="Everything in log order, to one member.")
    ] = False,
    entity_window: Annotated[
        int, typer.Option(help="Events of one entity that may be out at once.")
    ] = 1,
    ack_timeout: Annotated[
        float, typer.Option(help="Seconds after which an unsettled delivery has failed.")
    ] = 30.0,
    max_attempts: Annotated[int, typer.Option(help="Failures after which it is parked.")] = 10,
    skip_parked: Annotated[
        bool, typer.Option("--skip-parked", help="Do not hold back an entity's later events.")
    ] = False,
    max_parked: Annotated[
        int, typer.Option(help="The group stands still while so many are put aside.")
    ] = 100_000,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Make a consumer group."""
    from journal.groups.model import GroupSettings

    settings = GroupSettings(
        tuple(entity_types or ()), tuple(event_types or ()), partitions, global_order,
        entity_window, timedelta(seconds=ack_timeout), max_attempts, skip_parked=skip_parked,
        max_parked=max_parked,
    )  # fmt: skip

    async def work(client: Client) -> None:
        position = await _position(client, log, from_)
        group = await client.groups.create(name, settings, log=log, from_position=position)
        if as_json:
            show(_line(group))
        else:
            typer.echo(f"made group {group.name} on log {group.log}, after {group.position}")

    run(work, url, wait)


def delete_group(name: Name, as_json: Json = False, url: Url = None, wait: Wait = 0.0) -> None:
    """Delete a group with its place and its parked events; the log stays as it is."""

    async def work(client: Client) -> None:
        gone = await client.groups.delete(name)
        if as_json:
            show({"name": name, "parked": gone})
        else:
            typer.echo(f"deleted group {name}; {gone} events were put aside")

    run(work, url, wait)


def seek(
    name: Name,
    to: Annotated[str, typer.Argument(help="Position, time, `beginning` or `end`.")],
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Move a group: the next event delivered is the first at or after TO."""

    async def work(client: Client) -> None:
        log = (await client.groups.get(name)).log
        group = await client.groups.seek(name, await _position(client, log, to))
        if as_json:
            show(_line(group))
        else:
            typer.echo(f"group {group.name} goes on after {group.position}")

    run(work, url, wait)


async def _position(client: Client, log: str, text: str) -> int:
    from journal.groups.model import FROM_NOW

    if text == "end":
        return FROM_NOW
    if text in ("", "beginning"):
        return 0
    return await position_of(client, log, text) or 0


# -- parked events -------------------------------------------------------------------------------


def _selection(
    chosen: bool, entity: str, event_type: str, positions: list[int] | None, reason: str
) -> ParkedSelection:
    from journal.groups.model import ParkedSelection

    entity_type, _, entity_id = entity.partition("/")
    return ParkedSelection(
        chosen, entity_type, entity_id, event_type, tuple(positions or ()), reason
    )


def _parked_line(event: ParkedEvent) -> dict[str, Any]:
    from kernel import clock

    line = dataclasses.asdict(event)
    line["parked_at"] = clock.format_us(line.pop("parked_at_us"))
    return line


def parked(
    name: Name,
    entity: Entity = "",
    event_type: Type = "",
    positions: Positions = None,
    reason: Reason = "",
    limit: Limit = None,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """List the events that a group has put aside, by position."""
    selection = _selection(False, entity, event_type, positions, reason)

    async def work(client: Client) -> None:
        left = limit
        token = ""
        while left is None or left > 0:
            page = await client.groups.parked(
                name, selection, page_size=min(1_000, left or 1_000), page_token=token
            )
            for event in page.events:
                if as_json:
                    show(_parked_line(event))
                    continue
                thing = printable(f"{event.entity_type}/{event.entity_id}")
                why = f": {printable(event.reason)}" if event.reason else ""
                typer.echo(
                    f"{event.position:>8}  {event.state:9}  {thing}  {event.sequence}  "
                    f"{printable(event.type)}{why}"
                )
            left = None if left is None else left - len(page.events)
            token = page.next_page_token
            if not token:
                return

    run(work, url, wait)


def _tell(name: str, done: str, count: ParkedCount, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        show({"name": name, "dry_run": dry_run} | dataclasses.asdict(count))
        return
    would = "would be " if dry_run else ""
    typer.echo(
        f"{count.events} events of {count.entities} entities {would}{done}; "
        f"{count.held} held back behind them follow"
    )


def replay(
    name: Name,
    chosen: All = False,
    entity: Entity = "",
    event_type: Type = "",
    positions: Positions = None,
    reason: Reason = "",
    rate: Annotated[float, typer.Option(help="Events a second; 0: at once.")] = 0.0,
    dry_run: DryRun = False,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Deliver parked events again; an event leaves the list when it is acked."""
    selection = _selection(chosen, entity, event_type, positions, reason)

    async def work(client: Client) -> None:
        count = await client.groups.replay(name, selection, rate=rate, dry_run=dry_run)
        _tell(name, "delivered again", count, dry_run=dry_run, as_json=as_json)

    run(work, url, wait)


def discard(
    name: Name,
    chosen: All = False,
    entity: Entity = "",
    event_type: Type = "",
    positions: Positions = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    url: Url = None,
    wait: Wait = 0.0,
) -> None:
    """Take events off the list of parked ones for good; their consumers never get them."""
    selection = _selection(chosen, entity, event_type, positions, reason)

    async def work(client: Client) -> None:
        count = await client.groups.discard(name, selection, dry_run=dry_run)
        _tell(name, "discarded", count, dry_run=dry_run, as_json=as_json)

    run(work, url, wait)
