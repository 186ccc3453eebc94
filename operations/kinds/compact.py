"""compact: the floor of entities moves to where a snapshot covers everything before.

Logical only: loads begin at the floor, while the log, subscriptions and projections go on reading
every event. What is below the floor is what a later rewrite of the chunks may take out.
docs/explanation/compaction.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kernel import sql
from kernel.database import Connection
from kernel.errors import InvalidArgument
from operations import marks, needs, selection
from operations.kinds.base import Candidate, Context, Need
from operations.kinds.common import average_bytes, count, entities, only, running, uuid_of
from operations.model import Excluded, Item, ItemState, Outcome, PlanBody, Planned, Policy
from operations.where import parse_time
from snapshots.folding import before

STEP_ITEMS = 500
_SECONDS = 30.0
_NAMED = 5
_UNITS = ("B", "kB", "MB", "GB", "TB")
_BEFORE = ("floor", "floor_position", "snapshot_seq", "changed_by")


@dataclass(frozen=True, slots=True)
class CompactParameters:
    """``at_us``: only what comes before the first event of this time or later goes; None: all."""

    at_us: int | None = None


class Compact:
    """Moves floors. A step is three statements, however many entities it takes."""

    name: ClassVar[str] = "compact"
    typed_for_all: ClassVar[bool] = True
    title: ClassVar[str] = "Move the floor of entities to where a verified snapshot covers them."
    policy: ClassVar[Policy] = Policy()
    undoable: ClassVar[bool] = True
    irreversible: ClassVar[str] = ""
    step_items: ClassVar[int] = STEP_ITEMS
    reads_snapshots: ClassVar[bool] = False
    items_per_second: ClassVar[float] = 10_000.0

    def parameters(self, given: Mapping[str, Any]) -> CompactParameters:
        """``at``: a time (RFC 3339) or a date; the first event at or after it stays, and all that
        follow.
        """
        only(given, ("at",))
        at = given.get("at")
        if at is None:
            return CompactParameters()
        if not isinstance(at, str):
            raise InvalidArgument("parameters.at", "is not a text: a time (RFC 3339) or a date")
        return CompactParameters(parse_time("parameters.at", at))

    def describe(self, body: PlanBody, context: Context) -> str:
        """The effect in a sentence."""
        where = "their floors"
        if body.items == 1:
            where = "its floor"
        return (
            f"Compact {entities(body, context)}: {count(body.events, 'event', 'events')}"
            f" (about {_size(body.bytes)}) go below {where}; loads begin at a snapshot, the log"
            " stays as it is."
        )

    def warnings(self, entity_types: frozenset[str], context: Context) -> Mapping[str, str]:
        """Which projections would miss what goes, if they were rebuilt after a rewrite."""
        names = sorted(
            {
                need.name.removeprefix("projection ").partition(" ")[0]
                for need in context.needs
                if need.name.startswith("projection ")
                and (not need.entity_types or need.entity_types & entity_types)
            }
        )
        if not names or not entity_types:
            return {}
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        said = f"{', '.join(names[:_NAMED])}{more} would miss these events in a rebuild"
        return {
            "rebuilds_miss_events": f"Must be confirmed: {said} once their chunks are rewritten, as"
            " no archive has them."
        }

    async def judge(
        self, page: Sequence[Candidate], context: Context
    ) -> Sequence[Planned | Excluded]:
        """An item: a newer verified snapshot covers it within the bounds, and nobody needs it."""
        settings = context.settings
        full = {name for name, each in settings.items() if each.needs_full_replay}
        wanted = [each for each in page if not each.held and each.entity_type not in full]
        bound = await selection.last_position(context.journal, context.log_id, context.selection)
        last = await _last(wanted, context)
        covering = await self._covering(wanted, context, last, bound)
        bare = [
            each
            for each in wanted
            if (found := covering.get(each.entity_key)) is None or found[0] < each.floor
        ]
        nothing = await self._nothing(bare, context, last, bound)
        average = await average_bytes(context, context.log_id)
        lowest = {name: _lowest(context.needs, name) for name in {e.entity_type for e in page}}
        judged: list[Planned | Excluded] = []
        for each in page:
            found = covering.get(each.entity_key)
            if found is None or found[0] < each.floor:
                judged.append(_left_out(each, full, nothing))
                continue
            sequence, position = found
            need = lowest[each.entity_type]
            if need is not None and need.position < position:
                judged.append(Excluded("needed", need.name))
                continue
            events = sequence + 1 - each.floor
            judged.append(Planned(sequence + 1, position, events, int(events * average)))
        return judged

    async def _covering(
        self,
        page: Sequence[Candidate],
        context: Context,
        last: Mapping[int, int],
        bound: int | None,
    ) -> dict[int, tuple[int, int]]:
        """(sequence number, position) of the newest covering snapshot, by entity key."""
        by_type: dict[int, list[int]] = {}
        for each in page:
            by_type.setdefault(each.entity_type_id, []).append(each.entity_key)
        text = sql.load("operations", "compact_covering", context.database.schema)
        found: dict[int, tuple[int, int]] = {}
        for type_id, keys in by_type.items():
            rows = await context.database.fetch(
                text, context.log_id, type_id, keys, [last[key] for key in keys], bound,
                timeout=_SECONDS,
            )  # fmt: skip
            found.update((key, (sequence, position)) for key, sequence, position in rows)
        return found

    async def _nothing(
        self,
        page: Sequence[Candidate],
        context: Context,
        last: Mapping[int, int],
        bound: int | None,
    ) -> set[int]:
        """Entities without an event from their floor to the bounds, by key; others lack a snapshot
        that covers.
        """
        found = {each.entity_key for each in page if each.floor > last[each.entity_key]}
        rest = [each for each in page if each.entity_key not in found]
        if bound is None or not rest:
            return found
        rows = await context.database.fetch(
            sql.load("operations", "compact_nothing", context.database.schema), context.log_id,
            [each.entity_key for each in rest], [each.floor for each in rest],
            [each.first_position for each in rest], [each.last_position for each in rest], bound,
            timeout=_SECONDS,
        )  # fmt: skip
        return found.union(row[0] for row in rows)

    async def prepare(self, items: Sequence[Item], context: Context) -> None:
        """Nothing takes long."""

    async def apply(
        self, connection: Connection, items: Sequence[Item], prepared: Any, context: Context
    ) -> Sequence[Outcome]:
        """Moves floors, under the marks' locks; holds, needs and snapshots are looked at again."""
        schema, log_id = context.database.schema, context.log_id
        await _lock(connection, schema, log_id, items)
        behind = await needs.current_in(connection, schema, log_id)
        lowest = {name: _lowest(behind, name) for name in {item.entity_type for item in items}}
        going: list[Item] = []
        outcomes: list[Outcome] = []
        for item in items:
            need = lowest[item.entity_type]
            if need is not None and need.position < item.position:
                outcomes.append(Outcome(item.no, ItemState.SKIPPED, "needed"))
            else:
                going.append(item)
        rows = await connection.fetch(
            sql.load("operations", "compact_move", schema), log_id,
            [item.entity_type_id for item in going], [item.entity_id for item in going],
            [item.entity_key for item in going], [item.target for item in going],
            [item.position for item in going], uuid_of(running(context)),
        )  # fmt: skip
        outcomes += _moved(going, rows)
        return outcomes

    async def undo(
        self, connection: Connection, items: Sequence[Item], context: Context
    ) -> Sequence[Outcome]:
        """Puts floors back that nobody has moved since."""
        schema, log_id = context.database.schema, context.log_id
        await _lock(connection, schema, log_id, items)
        before = [[item.before[name] for item in items] for name in _BEFORE]
        rows = await connection.fetch(
            sql.load("operations", "compact_restore", schema), log_id, uuid_of(running(context)),
            [item.entity_key for item in items], [item.target for item in items], *before,
            [item.entity_type_id for item in items],
        )  # fmt: skip
        back = {row[0] for row in rows}
        return [
            Outcome(item.no, ItemState.UNDONE)
            if item.entity_key in back
            else Outcome(item.no, ItemState.NOT_UNDONE, "changed")
            for item in items
        ]


async def _lock(connection: Connection, schema: str, log_id: int, items: Sequence[Item]) -> None:
    """Locks the marks, then the settings of the types: no setting makes a snapshot useless while a
    floor comes to rest on it. Who sets a type locks that alone, so nobody waits in a circle.
    """
    await marks.lock(connection, schema, log_id, items)
    types = sorted({item.entity_type_id or 0 for item in items})
    await connection.fetch(sql.load("operations", "types_share", schema), types)


async def _last(page: Sequence[Candidate], context: Context) -> dict[int, int]:
    """By entity key: the last sequence number that may go. With ``at`` that of a snapshot as of
    before that time, by the same statement.
    """
    at_us = context.parameters.at_us
    if at_us is None or not page:
        return {each.entity_key: each.sequence for each in page}
    found = await before(
        context.database, context.log_id,
        [each.entity_key for each in page], [each.first_position for each in page],
        [each.last_position for each in page], [each.sequence for each in page], at_us,
        timeout=_SECONDS,
    )  # fmt: skip
    return {key: sequence for key, (sequence, _) in found.items()}


def _left_out(each: Candidate, full: set[str], nothing: set[int]) -> Excluded:
    """Why an entity that no snapshot covers, or that was not looked at, is left out."""
    if each.entity_type in full:
        return Excluded("needs_full_replay")
    if each.held:
        return Excluded("held")
    return Excluded("current" if each.entity_key in nothing else "uncovered")


def _moved(items: Sequence[Item], rows: Sequence[Any]) -> Iterator[Outcome]:
    """What became of items; see compact_move.sql."""
    found = {row["key"]: row for row in rows}
    for item in items:
        row = found[item.entity_key]
        if row["reason"]:
            yield Outcome(item.no, ItemState.SKIPPED, row["reason"])
            continue
        changed_by = row["changed_by"]
        yield Outcome(
            item.no, ItemState.DONE,
            before={
                "floor": row["floor"], "floor_position": row["floor_position"],
                "snapshot_seq": row["snapshot_seq"],
                "changed_by": None if changed_by is None else str(changed_by),
            },
        )  # fmt: skip


def _lowest(behind: Sequence[Need], entity_type: str) -> Need | None:
    """Who, of those that read a type, has come the least far."""
    return min(
        (need for need in behind if not need.entity_types or entity_type in need.entity_types),
        key=lambda need: need.position,
        default=None,
    )


def _size(size: float) -> str:
    """``3.1 MB``: three figures and a unit of 1,000."""
    power = 0
    while size >= 1_000 and power < len(_UNITS) - 1:
        size, power = size / 1_000, power + 1
    return f"{size:.3g} {_UNITS[power]}" if size < 1_000 else f"{size:,.0f} {_UNITS[power]}"
