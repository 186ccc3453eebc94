"""replay and rebuild: what the room of projections does, as operations.

Both are started once, whatever is killed: the replay has the operation's UUID for its id, and the
build keeps it. Workers that have the projection's code do the work; here it is ordered and watched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import orjson

from kernel import sql
from kernel.errors import Conflict, EverstateError, InvalidArgument, NotFound, Unavailable
from operations.kinds.base import Advance, Context
from operations.kinds.common import (
    average_bytes,
    count,
    flag,
    no_selection,
    only,
    positions_of,
    uuid_of,
)
from operations.model import Item, OperationRow, PlanBody, Policy, Selection
from projections import control
from projections import replay as replays
from projections.control import ProjectionRow
from projections.rebuild import GRACE, Ordered, Rebuilds
from projections.replay import ReplayRow

_SECONDS = 30.0
_UNDER_WAY = ("ordered", "building", "ready")


class Replay:
    """Makes entities of a live projection again from their events."""

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "Make entities of a projection again from their events."
    policy: ClassVar[Policy] = Policy(undo_s=0)
    undoable: ClassVar[bool] = False
    irreversible: ClassVar[str] = (
        "A replay is not undone: it makes the rows that the events say, and keeps none that they"
        " do not."
    )
    pausable: ClassVar[bool] = False
    events_per_second: ClassVar[float] = 20_000.0

    def parameters(self, given: Mapping[str, Any]) -> None:
        """None are taken; the operation's rate is events a second for each segment."""
        only(given, ())

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return body.sentence

    async def plan(self, context: Context, target: str) -> AsyncIterator[Item | PlanBody]:
        """One item for each entity or type that was named, or for the range."""
        row = await control.get_projection(context.database, target)
        chosen = await _chosen(row, context, context.head)
        if chosen.entities:
            for kind, entity_id in chosen.entities:
                yield Item(0, entity_type=kind, entity_id=entity_id)
            body = await _named(context, chosen.entities)
            what = count(body.entities, "entity", "entities")
        elif chosen.types:
            for kind in chosen.types:
                yield Item(0, entity_type=kind)
            found = await context.database.fetchrow(
                sql.load("operations", "entities_of_types", context.database.schema),
                context.log_id, list(chosen.types), timeout=30,
            )  # fmt: skip
            body = PlanBody(entities=found["entities"], events=found["events"])
            what = f"{count(body.entities, 'entity', 'entities')} of type {', '.join(chosen.types)}"
        else:
            low, high = chosen.from_position, chosen.to_position
            yield Item(0, position=low, target=high)
            body = PlanBody(events=high - low + 1)
            what = f"every entity that has an event at positions {low} to {high}"
        body.sentence = (
            f"Delete the rows of {what} from projection {target!r} and make them again from their"
            " events; readers see either, whole."
        )
        body.bytes = int(body.events * await average_bytes(context, context.log_id))
        body.warnings = _standing(row)
        yield body

    async def check(self, operation: OperationRow, context: Context) -> float:
        """1 when the projection cannot do it any more."""
        try:
            row = await control.get_projection(context.database, operation.target)
            await _chosen(row, context, operation.head)
        except (NotFound, Conflict, InvalidArgument):
            return 1.0
        return 0.0

    async def advance(self, operation: OperationRow, context: Context) -> Advance:
        """Orders the replay, or looks how far it is."""
        database, name = context.database, operation.target
        replay_id = uuid_of(operation)
        try:
            row = await replays.get(database, name, replay_id)
        except NotFound:
            if operation.wish == "cancel":
                return Advance(finished=True)
            other = await self._running(operation, context)
            if other is not None:
                return Advance(finished=False, waits=f"replay {other} of the projection runs")
            projection = await control.get_projection(database, name)
            row = await replays.order(
                database, name, await _chosen(projection, context, operation.head),
                reason=operation.reason or "", principal=operation.applied_by or "",
                rate=operation.rate, replay_id=replay_id,
            )  # fmt: skip
        return _watched(row, operation)

    async def cancel(self, operation: OperationRow, context: Context) -> None:
        """The replay ends after the entities it is at; what it made stays."""
        try:
            await replays.cancel(context.database, operation.target, uuid_of(operation))
        except NotFound:
            return  # it was not ordered yet, and `advance` will not order it now

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        """There is nothing to take back."""
        return Advance(finished=True, skipped=operation.items)

    async def _running(self, operation: OperationRow, context: Context) -> str | None:
        newest = await replays.list_replays(context.database, operation.target, 1)
        return newest[0].replay_id if newest and newest[0].state == "running" else None


async def _named(context: Context, entities: Sequence[tuple[str, str]]) -> PlanBody:
    """How many entities were named, and the events of those that are there."""
    kinds, ids = zip(*entities, strict=True)
    row = await context.database.fetchrow(
        sql.load("operations", "entities_events", context.database.schema),
        context.log_id, kinds, ids, timeout=_SECONDS,
    )  # fmt: skip
    return PlanBody(entities=len(entities), events=row["events"])


def _watched(row: ReplayRow, operation: OperationRow) -> Advance:
    """How far a replay is, as the operation keeps it."""
    listed = row.segments and "entities" in row.selection
    note = {
        "replay": row.replay_id, "version": row.version, "build": row.build,
        "entities": row.entities, "segments": row.segments, "segments_done": row.segments_done,
    }  # fmt: skip
    so_far = Advance(
        finished=row.state != "running",
        done=min(row.entities, operation.items) if listed else 0,
        events=row.events,
        note=note,
    )
    if row.state == "done":
        return replace(so_far, done=operation.items)
    if row.state == "failed":
        return replace(so_far, error=row.error or {"code": "INTERNAL", "message": "it failed"})
    if row.state == "cancelled" and operation.wish != "cancel":
        return replace(so_far, error={"code": "CANCELLED", "message": "the replay was cancelled"})
    return so_far


async def _chosen(row: ProjectionRow, context: Context, head: int) -> replays.Selection:
    """What a selection is to a replay.

    Raises:
        InvalidArgument: names the field and the limit. Conflict: the projection cannot replay.

    """
    selection = context.selection
    if not row.replayable:
        raise replays.not_replayable(row.name)
    if selection.log != row.log:
        raise InvalidArgument(
            "selection.log", f"projection {row.name!r} is of log {row.log!r}: name that one"
        )
    if selection.where:
        raise InvalidArgument(
            "selection.where", "a replay takes entities, types, or a range of positions"
        )
    low = high = 0
    if _is_ranged(selection):
        low, high = await positions_of(context, head)
    chosen = replays.Selection(selection.entities, selection.types, low, high)
    replays.check(chosen, row.entity_types, head)
    return chosen


def _is_ranged(selection: Selection) -> bool:
    """Whether a selection has a range of positions, or none of the other conditions."""
    if selection.from_ is not None or selection.to is not None:
        return True
    return not (selection.entities or selection.types)


def _standing(row: ProjectionRow) -> list[str]:
    """Why nothing would happen now."""
    if row.paused:
        return [f"Projection {row.name!r} is paused ({row.pause_reason}): it waits for that."]
    if row.halted:
        return [f"{row.halted} segments of projection {row.name!r} halted: they wait for a resume."]
    return []


@dataclass(frozen=True, slots=True)
class RebuildParameters:
    """``auto_switch``: readers are switched to the new build as soon as it has caught up."""

    auto_switch: bool = False


class Rebuild:
    """Makes all tables of a projection again, beside the live ones."""

    name: ClassVar[str] = "rebuild"
    title: ClassVar[str] = "Make a projection's tables again beside the live ones."
    policy: ClassVar[Policy] = Policy(undo_s=int(GRACE.total_seconds()))
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    pausable: ClassVar[bool] = False
    events_per_second: ClassVar[float] = 20_000.0

    def parameters(self, given: Mapping[str, Any]) -> RebuildParameters:
        """``auto_switch``, by default false."""
        only(given, ("auto_switch",))
        return RebuildParameters(flag(given, "auto_switch"))

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        return body.sentence

    async def plan(self, context: Context, target: str) -> AsyncIterator[Item | PlanBody]:
        """One item: the projection, with the version that is built and the build that is live."""
        no_selection(context)
        row = await control.get_projection(context.database, target)
        busy = await _under_way(context, target)
        if busy is not None:
            raise busy
        log_id = (await context.journal.open_log(row.log, _SECONDS)).log_id
        size = int(row.head * await average_bytes(context, log_id))
        yield Item(
            0, entity_id=target, target=row.version, position=row.build, events=row.head, bytes=size
        )
        then = (
            "and switch readers to them once they have caught up"
            if context.parameters.auto_switch
            else "readers go on with the live ones until somebody switches"
        )
        yield PlanBody(
            samples=[{"projection": target, "version": row.version, "live_build": row.build}],
            warnings=_standing(row),
            sentence=(
                f"Make the tables of projection {target!r}, version {row.version}, again from"
                f" {count(row.head, 'position', 'positions')} of log {row.log!r}, {then}."
            ),
        )

    async def check(self, operation: OperationRow, context: Context) -> float:
        """1 when another version is live than at the plan, or another build is under way."""
        try:
            row = await control.get_projection(context.database, operation.target)
        except NotFound:
            return 1.0
        if await _under_way(context, operation.target) is not None:
            return 1.0
        planned = operation.plan.get("samples") or [{}]
        return 0.0 if planned[0].get("version", row.version) == row.version else 1.0

    async def advance(self, operation: OperationRow, context: Context) -> Advance:
        """Orders the build, or looks how far it is."""
        rebuilds = Rebuilds(context.database)
        name, mine = operation.target, uuid_of(operation)
        build = await rebuilds.ordered_by(name, mine)
        if build is None:
            if operation.wish == "cancel":
                return Advance(finished=True)
            await rebuilds.order(name, auto_switch=context.parameters.auto_switch, operation=mine)
            build = await rebuilds.ordered_by(name, mine)
            assert build is not None  # it was just ordered; builds are never deleted
        return await self._watched(build, operation, context)

    async def _watched(self, build: Ordered, operation: OperationRow, context: Context) -> Advance:
        so_far = Advance(
            finished=False,
            events=min(build.low, build.target_position),
            note={
                "version": build.version, "build": build.build, "state": build.state,
                "position": build.low, "target_position": build.target_position,
            },
        )  # fmt: skip
        if build.state in ("live", "previous"):
            return replace(so_far, finished=True, done=1)
        if build.state == "ready":
            if not context.parameters.auto_switch:
                return replace(so_far, finished=True, done=1)
            return replace(so_far, waits="the switch of readers to the new build")
        if build.state == "failed":
            return replace(so_far, error=orjson.loads(build.error or "{}"))
        if build.state == "retired":
            if operation.wish == "cancel":
                return replace(so_far, finished=True)
            return replace(
                so_far, error={"code": "CANCELLED", "message": "the build was discarded"}
            )
        if build.halted:
            return replace(so_far, waits=f"{build.halted} segments of the build halted")
        if not build.held:
            return replace(so_far, waits="a worker that has the projection's code")
        return so_far

    async def cancel(self, operation: OperationRow, context: Context) -> None:
        """Gives the build up, unless readers have it already."""
        rebuilds = Rebuilds(context.database)
        build = await rebuilds.ordered_by(operation.target, uuid_of(operation))
        if build is not None and build.state in (*_UNDER_WAY, "failed"):
            await rebuilds.discard(operation.target, build.key)

    async def undo(self, operation: OperationRow, context: Context) -> Advance:
        """Readers get back the build that was live before; the new one is dropped."""
        rebuilds, name = Rebuilds(context.database), operation.target
        build = await rebuilds.ordered_by(name, uuid_of(operation))
        if build is None or build.state == "retired":
            return Advance(finished=True, done=operation.done)
        if build.state == "previous":
            live = [b for b in await rebuilds.builds(name) if b.state == "live"]
            if any(b.build > build.build for b in live):  # not by our own rollback
                message = f"projection {name!r}: another build went live since; it needs this one"
                return Advance(finished=True, error={"code": "CONFLICT", "message": message})
        if build.state == "live":
            others = [b for b in await rebuilds.builds(name) if b.state == "previous"]
            if not others:
                message = f"projection {name!r}: no build from before is kept any more"
                return Advance(finished=True, error={"code": "CONFLICT", "message": message})
            try:
                await rebuilds.rollback(name)
            except (Conflict, Unavailable) as error:  # behind, or a reader holds the views: later
                return Advance(finished=False, waits=error.message)
        await rebuilds.discard(name, build.key)
        return Advance(finished=True, done=1)


async def _under_way(context: Context, name: str) -> EverstateError | None:
    """What keeps another build from being ordered."""
    for build in await Rebuilds(context.database).builds(name):
        if build.state in _UNDER_WAY:
            return Conflict(
                f"projection {name!r}: {build.title} is {build.state}: switch to it or discard it"
                " first"
            )
    return None
