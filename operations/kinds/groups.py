"""seek, replay-parked, discard-parked: what is done with consumer groups, as operations.

A step locks the group's partitions, so that no holder writes meanwhile, acts, and keeps in the same
transaction what became of the items: a worker that is killed has done a step wholly or not at all,
and one that takes over finds which items are settled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import orjson

from journal.groups import parked
from journal.groups.model import FROM_NOW, REASON_CHARS, Group
from journal.groups.node import watermark_of
from journal.groups.parked import Chosen
from journal.groups.store import GroupStore
from kernel import clock, sql
from kernel.database import Connection, transaction
from kernel.errors import Conflict, InvalidArgument, NotFound
from operations import store
from operations.kinds.base import Advance, Context
from operations.kinds.common import count, no_selection, number, only, positions_of, text, uuid_of
from operations.model import Item, ItemState, OperationRow, Outcome, PlanBody, Policy, State

STEP_ITEMS = 2_000
"""Holders of the group's partitions wait for a step."""
MAX_POSITIONS = 1_000
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SeekParameters:
    """The first position to deliver; or a time, in microseconds; or `FROM_NOW`."""

    position: int = 0
    time_us: int | None = None


class Seek:
    """Has a group go on somewhere else."""

    name: ClassVar[str] = "seek"
    title: ClassVar[str] = "Move a consumer group to another place in the log."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    pausable: ClassVar[bool] = True

    def parameters(self, given: Mapping[str, Any]) -> SeekParameters:
        """One of ``position`` (from 1), ``time`` (RFC 3339), ``to`` (``beginning``, ``now``)."""
        only(given, ("position", "time", "to"))
        if len(given) != 1:
            raise InvalidArgument("parameters.position", "give one of position, time, to")
        if "to" in given:
            if given["to"] not in ("beginning", "now"):
                raise InvalidArgument("parameters.to", "is neither beginning nor now")
            return SeekParameters(0 if given["to"] == "beginning" else FROM_NOW)
        if "time" in given:
            if not isinstance(given["time"], str):
                raise InvalidArgument("parameters.time", "is not a text: write it as RFC 3339")
            return SeekParameters(time_us=clock.parse_us("parameters.time", given["time"]))
        position = number(given, "position", 1, 2**63 - 1)
        if position is None:
            raise InvalidArgument("parameters.position", "is not a whole number")
        return SeekParameters(position)

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return body.sentence

    async def plan(self, context: Context, target: str) -> AsyncIterator[Item | PlanBody]:
        """One item: the group, with the position before the first that it is to get."""
        no_selection(context)
        group = await GroupStore(context.database).get(target)
        wanted = await _watermark(context, group)
        reached = max((p.watermark for p in group.partitions), default=0)
        again, skipped = max(0, reached - wanted), max(0, wanted - group.position)
        yield Item(
            0, entity_id=target, sequence=group.group_id, target=wanted, position=group.position,
            events=again + skipped,
        )  # fmt: skip
        body = PlanBody(
            samples=[
                {"group": target, "group_id": group.group_id, "from": group.position, "to": wanted}
            ],
            consumers=[
                {"name": target, "members": group.members_total, "again": again, "skipped": skipped}
            ],
            sentence=(
                f"Group {target!r} goes on after position {wanted} of log {group.log!r}; it is at"
                f" {group.position} now. Undo puts it back to where it was, and what it has done"
                " meanwhile comes again."
            ),
        )
        if again:
            body.warnings.append(
                f"Up to {count(again, 'event', 'events')} that it had before it gets again: its"
                " members have to stand that."
            )
        if skipped:
            body.warnings.append(
                f"Up to {count(skipped, 'event', 'events')} it never gets, unless this is undone."
            )
        if group.members_total:
            body.warnings.append(
                "What its members are working on is taken from them, and may come again."
            )
        if group.parked + group.held + group.replaying:
            body.warnings.append("What it has put aside stays on its list.")
        yield body

    async def check(self, operation: OperationRow, context: Context) -> float:
        """1 when the group is gone. That it goes on consuming is no change."""
        return await _gone(operation, context)

    async def advance(self, operation: OperationRow, context: Context) -> Advance:
        """Moves it, once."""
        group = await _group(operation, context)
        schema = context.database.schema
        async with _step(operation, context, group, State.RUNNING) as connection:
            if connection is None:
                return Advance(finished=False, done=operation.done)
            item = (await store.items_after(connection, schema, operation.id, 0, 1))[0]
            if operation.wish == "cancel":  # a worker that was killed may have moved it
                done = int(item.state is ItemState.DONE)
                return Advance(finished=True, done=done, events=done * item.events)
            if item.state is ItemState.PLANNED:
                before = await parked.seek(
                    connection, schema, group.group_id, item.target, UUID(uuid_of(operation))
                )
                await store.settle(
                    connection, schema, operation.id,
                    [Outcome(item.no, ItemState.DONE, before=before)],
                )  # fmt: skip
            return Advance(finished=True, done=1, events=item.events)

    async def cancel(self, operation: OperationRow, context: Context) -> None:
        """It is one step: done or not."""

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        """Moves it back, unless somebody has moved it since."""
        group = await _group(operation, context)
        schema = context.database.schema
        async with _step(operation, context, group, State.UNDOING) as connection:
            if connection is None:
                return Advance(finished=False)
            item = (await store.items_after(connection, schema, operation.id, 0, 1))[0]
            state = item.state
            if state is ItemState.DONE:
                back = await parked.restore(
                    connection, schema, group.group_id, item.before, UUID(uuid_of(operation))
                )
                state = ItemState.UNDONE if back else ItemState.NOT_UNDONE
                await store.settle(
                    connection, schema, operation.id,
                    [Outcome(item.no, state, "" if back else "changed")],
                )  # fmt: skip
            return Advance(finished=True, done=int(state is ItemState.UNDONE))


@dataclass(frozen=True, slots=True)
class ParkedParameters:
    """Which events of the list, beside what the selection says; empty: any."""

    event_type: str = ""
    reason_contains: str = ""
    positions: tuple[int, ...] = ()


class _Parked:
    """A kind that acts on events of a group's list, `STEP_ITEMS` in a transaction."""

    name: ClassVar[str]
    pausable: ClassVar[bool] = True
    policy: ClassVar[Policy]
    states: ClassVar[tuple[str, ...]]
    """What it acts on; the rest is left out."""

    def parameters(self, given: Mapping[str, Any]) -> ParkedParameters:
        """``event_type``, ``reason_contains``, ``positions`` (at most 1,000)."""
        only(given, ("event_type", "reason_contains", "positions"))
        positions = given.get("positions", [])
        if not isinstance(positions, list) or len(positions) > MAX_POSITIONS:
            raise InvalidArgument(
                "parameters.positions", f"is not a list of at most {MAX_POSITIONS} positions"
            )
        for i, position in enumerate(positions):
            number({f"positions[{i}]": position}, f"positions[{i}]", 1, 2**63 - 1)
        return ParkedParameters(
            text(given, "event_type", 255), text(given, "reason_contains", REASON_CHARS),
            tuple(positions),
        )  # fmt: skip

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return body.sentence

    def _say(self, events: int, entities: int, group: Group, body: PlanBody) -> None:
        """Puts sentence and warnings into the plan."""
        raise NotImplementedError

    async def plan(self, context: Context, target: str) -> AsyncIterator[Item | PlanBody]:
        """An item for each event on the list that is chosen."""
        group = await GroupStore(context.database).get(target)
        chosen = await _chosen(context, group)
        names = context.journal.names
        body = PlanBody()
        after = events = 0
        while True:
            page = await parked.choose(context.database, group.group_id, chosen, after, STEP_ITEMS)
            await names.find_entity_types({row["entity_type"] for row in page}, _SECONDS)
            for row in page:
                if row["state"] not in self.states:
                    reason = "waiting" if row["state"] == "held" else "replaying"
                    body.excluded[reason] = body.excluded.get(reason, 0) + 1
                    continue
                events += 1
                if len(body.samples) < 10:
                    # Not the reason: a member's own words, and they may quote the event.
                    shown = ("position", "entity_type", "entity_id", "event_type")
                    body.samples.append(
                        {"group_id": group.group_id, **{name: row[name] for name in shown}}
                    )
                yield Item(
                    0, entity_type=row["entity_type"],
                    entity_type_id=names.entity_ids.get(row["entity_type"]),
                    entity_id=row["entity_id"], sequence=row["sequence"],
                    position=row["position"], events=1,
                )  # fmt: skip
            if len(page) < STEP_ITEMS:
                break
            after = page[-1]["position"]
        body.entities = await parked.count_entities(
            context.database, group.group_id, chosen, self.states
        )
        body.consumers = [
            {
                "name": target, "members": group.members_total, "parked": group.parked,
                "held": group.held, "replaying": group.replaying,
            }
        ]  # fmt: skip
        self._say(events, body.entities, group, body)
        yield body

    async def check(self, operation: OperationRow, context: Context) -> float:
        """The share of the events that are not on the list any more, or in another state."""
        if await _gone(operation, context):
            return 1.0
        group = await _group(operation, context)
        row = await context.database.fetchrow(
            sql.load("operations", "parked_gone", context.database.schema), group.group_id,
            uuid_of(operation), self.states, timeout=_SECONDS,
        )  # fmt: skip
        return float(row["gone"] / max(operation.items, 1))

    async def _act(
        self, connection: Connection, schema: str, group: Group, items: Sequence[Item],
        operation: OperationRow,
    ) -> list[Outcome]:  # fmt: skip
        """Acts on planned items; the partitions are locked."""
        raise NotImplementedError

    async def advance(self, operation: OperationRow, context: Context) -> Advance:
        """One step. Items that a killed worker has settled are counted, not acted on again."""
        done, skipped = operation.note.get("done", 0), operation.note.get("skipped", 0)
        group = await _group(operation, context)
        schema, last = context.database.schema, operation.note.get("no", 0)
        async with _step(operation, context, group, State.RUNNING) as connection:
            if connection is None:
                return Advance(finished=False, done=done, skipped=skipped, events=done)
            page = await store.items_after(connection, schema, operation.id, last, STEP_ITEMS)
            planned = [item for item in page if item.state is ItemState.PLANNED]
            outcomes: list[Outcome] = []
            if planned and operation.wish != "cancel":
                outcomes = await self._act(connection, schema, group, planned, operation)
            await store.settle(connection, schema, operation.id, outcomes)
        settled = [item.state for item in page] + [outcome.state for outcome in outcomes]
        done += settled.count(ItemState.DONE)
        skipped += settled.count(ItemState.SKIPPED)
        return Advance(
            finished=len(page) < STEP_ITEMS or operation.wish == "cancel",
            done=done, skipped=skipped, events=done,
            note={"no": page[-1].no if page else last, "done": done, "skipped": skipped},
        )  # fmt: skip

    async def cancel(self, operation: OperationRow, context: Context) -> None:
        """Every step is a safe point."""

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        """Nothing."""
        return Advance(finished=True)


class ReplayParked(_Parked):
    """Has parked events delivered again."""

    name: ClassVar[str] = "replay-parked"
    title: ClassVar[str] = "Deliver parked events of a consumer group again."
    policy: ClassVar[Policy] = Policy(undo_s=0)
    undoable: ClassVar[bool] = False
    irreversible: ClassVar[str] = "A delivery is not undone: the group's members get the events."
    states: ClassVar[tuple[str, ...]] = ("parked",)

    def _say(self, events: int, entities: int, group: Group, body: PlanBody) -> None:
        body.sentence = (
            f"Deliver {count(events, 'parked event', 'parked events')} of"
            f" {count(entities, 'entity', 'entities')} to group {group.name!r} again; events that"
            " wait behind them follow."
        )
        if not group.members_total:
            body.warnings.append(f"Group {group.name!r} has no members now: they wait for one.")

    async def _act(
        self, connection: Connection, schema: str, group: Group, items: Sequence[Item],
        operation: OperationRow,
    ) -> list[Outcome]:  # fmt: skip
        # The pace counts from the operation's start, so a step that is done again changes nothing.
        gap = timedelta(seconds=1 / operation.rate) if operation.rate else timedelta()
        start = operation.started_at or datetime.now(UTC)
        due = {item.position: start + (item.no - 1) * gap for item in items}
        done = await parked.replay(
            connection, schema, group.group_id, due, hold=not group.settings.skip_parked
        )
        return [
            Outcome(item.no, ItemState.DONE)
            if item.position in done
            else Outcome(item.no, ItemState.SKIPPED, "changed")
            for item in items
        ]


class DiscardParked(_Parked):
    """Takes events off a group's list."""

    name: ClassVar[str] = "discard-parked"
    title: ClassVar[str] = "Take events off the list that a consumer group has put aside."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    states: ClassVar[tuple[str, ...]] = ("parked", "held", "replaying")

    def _say(self, events: int, entities: int, group: Group, body: PlanBody) -> None:
        body.sentence = (
            f"Take {count(events, 'event', 'events')} of {count(entities, 'entity', 'entities')}"
            f" off the list of group {group.name!r}: it never gets them, unless this is undone;"
            " events that wait behind them are delivered."
        )

    async def _act(
        self, connection: Connection, schema: str, group: Group, items: Sequence[Item],
        operation: OperationRow,
    ) -> list[Outcome]:  # fmt: skip
        rows = await parked.take_off(
            connection, schema, group.group_id, [item.position for item in items],
            hold=not group.settings.skip_parked,
        )  # fmt: skip
        return [
            Outcome(item.no, ItemState.DONE, before=orjson.loads(rows[item.position]))
            if item.position in rows
            else Outcome(item.no, ItemState.SKIPPED, "gone")
            for item in items
        ]

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        """Puts a step's events back on the list, equal to what they were."""
        group = await _group(operation, context)
        schema = context.database.schema
        undone = operation.note.get("undone", 0)
        first = operation.note.get("undo_no", operation.items + 1)
        async with _step(operation, context, group, State.UNDOING) as connection:
            if connection is None:
                return Advance(finished=False, done=undone)
            page = await store.items_before(connection, schema, operation.id, first, STEP_ITEMS)
            items = [item for item in page if item.state is ItemState.DONE]
            back = await parked.put_back(
                connection, schema, group.group_id,
                [orjson.dumps(item.before).decode() for item in items],
                hold=not group.settings.skip_parked,
            )  # fmt: skip
            outcomes = [
                Outcome(item.no, ItemState.UNDONE)
                if item.position in back
                else Outcome(item.no, ItemState.NOT_UNDONE, "changed")
                for item in items
            ]
            await store.settle(connection, schema, operation.id, outcomes)
        settled = [item.state for item in page] + [outcome.state for outcome in outcomes]
        undone += settled.count(ItemState.UNDONE)
        note = {**operation.note, "undo_no": page[-1].no if page else 1, "undone": undone}
        return Advance(finished=len(page) < STEP_ITEMS, done=undone, note=note)


@asynccontextmanager
async def _step(
    operation: OperationRow, context: Context, group: Group, wanted: State
) -> AsyncIterator[Connection | None]:
    """A transaction that has the group's partitions; None: the operation is not to go on now."""
    schema = context.database.schema
    async with (
        context.database.connection(_SECONDS, writing=True) as connection,
        transaction(connection, _SECONDS),
    ):
        state, wish = await store.going(connection, schema, operation.id)
        if state is not wanted or wish != operation.wish:
            yield None
            return
        await parked.lock(connection, schema, group.group_id)
        yield connection


async def _group(operation: OperationRow, context: Context) -> Group:
    """The group that the plan was about.

    Raises:
        NotFound: it is gone. Conflict: there is another one of its name.

    """
    group = await GroupStore(context.database).get(operation.target)
    samples = operation.plan.get("samples") or [{}]
    if samples[0].get("group_id", group.group_id) != group.group_id:
        raise Conflict(f"the group {group.name!r} was deleted, and made again, since the plan")
    return group


async def _gone(operation: OperationRow, context: Context) -> float:
    try:
        await _group(operation, context)
    except (NotFound, Conflict):
        return 1.0
    return 0.0


async def _watermark(context: Context, group: Group) -> int:
    """Where a seek leads: the position before the first that is delivered."""
    wanted: SeekParameters = context.parameters
    if wanted.time_us is not None:
        return (await context.journal.position_at(group.log, wanted.time_us))[0] - 1
    opened = await context.journal.open_log(group.log, _SECONDS)
    return await watermark_of(
        context.journal, "parameters.position", opened.log_id, wanted.position
    )


async def _chosen(context: Context, group: Group) -> Chosen:
    """What a selection and the parameters are on a list of parked events."""
    selection, parameters = context.selection, context.parameters
    if selection.log != group.log:
        raise InvalidArgument(
            "selection.log", f"group {group.name!r} is of log {group.log!r}: name that one"
        )
    if selection.where:
        raise InvalidArgument(
            "selection.where", "parked events are chosen by entities, types and positions"
        )
    low, high = await positions_of(context, parked.LAST)
    return Chosen(
        selection.types, selection.entities, parameters.event_type, parameters.reason_contains,
        parameters.positions, low, high,
    )  # fmt: skip
