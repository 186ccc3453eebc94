"""Plans: what an operation would do, item by item, before anybody says so; and how far that has
changed since (drift).

A plan is made in one pass over pages of candidates: what a kind judges to be an item is handed on
in batches (the engine copies them to the database while the next page is read), the rest is
counted by reason. Memory is bounded by a page.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeGuard, cast, runtime_checkable

import orjson

from journal.preparation import check_written_log
from journal.store import StoreJournal
from kernel import clock, sql
from kernel.database import Database
from kernel.errors import TooLarge
from operations import needs, selection
from operations.kinds.base import Candidate, Context, EntityKind, Environment, Lasts, TaskKind
from operations.model import (
    MAX_ITEMS,
    SAMPLES,
    Excluded,
    Item,
    ItemState,
    OperationRow,
    PlanBody,
    Planned,
    PlanRequest,
)

BATCH: Final = 2_000
ITEMS_PER_SECOND: Final = 2_000.0
"""How fast a kind is taken to be when it does not say (``items_per_second``)."""

_SECONDS = 30.0
_Judged = tuple[Sequence[Candidate], Sequence[Planned | Excluded]]


@runtime_checkable
class Warns(Protocol):
    """A kind whose plans may have to be confirmed."""

    def warnings(self, entity_types: frozenset[str], context: Context) -> Mapping[str, str]:
        """What has to be confirmed: a code and a sentence each. ``entity_types``: of the items."""
        ...


async def context_of(
    database: Database,
    journal: StoreJournal,
    kind: EntityKind | TaskKind,
    request: PlanRequest,
    environment: Environment,
    *,
    now_us: int | None = None,
) -> Context:
    """What ``kind`` works with, now: the log, its head, settings of types, and who needs events.

    ``now_us``: when the plan was made (None: it is made now), by the database's clock.

    Raises:
        InvalidArgument: a parameter, or the selection, is not valid, or the log is that of the
            audit; names the field.
        LogNotFound, NotFound, TooLarge: as `operations.selection.resolve`.

    """
    check_written_log(request.selection.log)
    parameters = kind.parameters(request.parameters)
    log_id = (await journal.open_log(request.selection.log, _SECONDS)).log_id
    settings = await selection.load_settings(database)
    _, head = await journal.reader.bounds(log_id, _SECONDS)
    if now_us is None:
        row = await database.fetchrow(
            sql.load("operations", "now", database.schema), timeout=_SECONDS
        )
        now_us = clock.to_us(row[0])
    return Context(
        database, journal, request.selection.log, log_id, head, request.selection, parameters,
        settings, await needs.current(database, log_id), environment,
        given=dict(request.parameters), now_us=now_us,
    )  # fmt: skip


class Draft:
    """A plan in the making: read `batches` to their end, then ``body`` and ``digest`` are there.

    ``rate``: items a second at most, for the estimate.
    """

    def __init__(
        self,
        context: Context,
        kind: EntityKind | TaskKind,
        target: str,
        rate: float | None = None,
    ) -> None:
        self.body = PlanBody()
        self.digest = ""
        self._context = context
        self._kind = kind
        self._target = target
        self._rate = rate
        self._sampled = False  # by the kind itself
        self._hash = hashlib.sha256(
            orjson.dumps(
                [kind.name, target, context.selection, context.given],
                default=repr,
                option=orjson.OPT_SORT_KEYS,
            )
        )

    async def batches(self) -> AsyncIterator[list[Item]]:
        """The items, numbered from 1, at most `BATCH` at a time.

        Raises:
            TooLarge: there are more than `MAX_ITEMS`. And what resolving the selection and the
            kind's own plan raise.

        """
        kind = self._kind
        made = self._of_task(kind) if is_task(kind) else self._of_entities(cast("EntityKind", kind))
        batch: list[Item] = []
        async with aclosing(made):
            async for items in made:
                batch += items
                while len(batch) >= BATCH:
                    yield self._settle(batch[:BATCH])
                    del batch[:BATCH]
        if batch:
            yield self._settle(batch)
        self._finish()

    def _settle(self, batch: list[Item]) -> list[Item]:
        """A batch with its numbers, counted and in the digest."""
        body = self.body
        if body.items + len(batch) > MAX_ITEMS:
            raise TooLarge("items", body.items + len(batch), MAX_ITEMS, "items")
        if len(body.samples) < SAMPLES and not self._sampled:
            body.samples += map(_sample, batch[: SAMPLES - len(body.samples)])
        number = body.items
        figures: list[int] = []
        for item in batch:
            number += 1
            item.no = number
            body.events += item.events
            body.bytes += item.bytes
            figures += (item.entity_key or 0, item.sequence, item.target)
            if item.entity_key is None:
                named = [item.entity_type, item.entity_id, item.position]
                self._hash.update(orjson.dumps(named))
        self._hash.update(struct.pack(f"<{len(figures)}q", *figures))
        body.items = number
        return batch

    async def _of_entities(self, kind: EntityKind) -> AsyncGenerator[list[Item], None]:
        context, body = self._context, self.body
        excluded: Counter[str] = Counter()
        blamed: Counter[str] = Counter()
        types: set[str] = set()
        async with aclosing(_judged(context, kind)) as pages:
            async for page, verdicts in pages:
                items: list[Item] = []
                for each, verdict in zip(page, verdicts, strict=True):
                    if isinstance(verdict, Excluded):
                        excluded[verdict.reason] += 1
                        if verdict.by:
                            blamed[verdict.by] += 1
                        continue
                    items.append(
                        Item(
                            0, each.entity_key, each.entity_type, each.entity_type_id,
                            each.entity_id, each.sequence, verdict.target, verdict.position,
                            verdict.events, verdict.bytes,
                        )
                    )  # fmt: skip
                types.update({item.entity_type for item in items})
                body.entities += len(page)
                yield items
        body.excluded = dict(excluded.most_common())
        body.consumers = _consumers(context, blamed)
        if isinstance(kind, Warns):
            found = kind.warnings(frozenset(types), context)
            body.confirmations += found
            body.warnings += found.values()
        if not body.entities and (empty := await selection.empty_range(context)):
            body.warnings.append(empty)

    async def _of_task(self, kind: TaskKind) -> AsyncGenerator[list[Item], None]:
        body = self.body
        items: list[Item] = []
        async for each in kind.plan(self._context, self._target):
            if isinstance(each, PlanBody):
                body.entities, body.excluded = each.entities, each.excluded
                body.consumers, body.warnings = each.consumers, list(each.warnings)
                body.estimated_seconds, body.sentence = each.estimated_seconds, each.sentence
                body.undoable = each.undoable
                body.events += each.events
                body.bytes += each.bytes
                if each.samples:
                    body.samples, self._sampled = each.samples[:SAMPLES], True
                continue
            items.append(each)
            if len(items) == BATCH:
                yield items
                items = []
        yield items

    def _finish(self) -> None:
        body, kind = self.body, self._kind
        body.undoable = body.undoable and kind.undoable
        if kind.irreversible and kind.irreversible not in body.warnings:
            body.warnings.insert(0, kind.irreversible)
        if not body.estimated_seconds:
            speed: float = getattr(kind, "items_per_second", ITEMS_PER_SECOND)
            amount = body.items
            if is_task(kind) and hasattr(kind, "events_per_second"):
                speed, amount = kind.events_per_second, body.events
            body.estimated_seconds = round(amount / min(speed, self._rate or speed), 1)
        if not body.sentence:
            body.sentence = kind.describe(body, self._context)
        self.digest = self._hash.hexdigest()


def is_task(kind: EntityKind | TaskKind) -> TypeGuard[TaskKind]:
    """Whether a kind is a task; else it acts on the entities of a selection."""
    return not hasattr(kind, "judge")


async def drift(
    context: Context,
    kind: EntityKind | TaskKind,
    operation: OperationRow,
    items: AsyncIterator[Sequence[Item]],
    left: Collection[ItemState] | None = None,
) -> float:
    """How far what an operation would act on has changed since its plan: a share, 0 is nothing.

    (Planned items that no longer qualify or have another target + new ones) / items. ``items``:
    the planned ones in order. Both are read a page at a time; ages count from the plan. ``left``:
    the operation has begun, and only its items in these states matter; new ones do not. Nor do they
    for a kind that says ``counts_new = False``: what was reviewed is acted on, nothing else.
    """
    if is_task(kind):
        return await kind.check(operation, context)
    kind = cast("EntityKind", kind)
    changed = seen = 0
    new = left is None and getattr(kind, "counts_new", True)
    async with aclosing(_qualified(context, kind)) as fresh:
        now = await anext(fresh, None)
        async for batch in items:
            for item in batch:
                key = item.entity_type_id or 0, item.entity_id
                while now is not None and now[0] < key:  # it was not in the plan
                    changed += new
                    now = await anext(fresh, None)
                same = now[1] if now is not None and now[0] == key else None
                if left is None or item.state in left:
                    seen += 1
                    changed += same is None or not _lasts(kind, item, same)
                if same is not None:
                    now = await anext(fresh, None)
        while new and now is not None:
            changed += 1
            now = await anext(fresh, None)
    return changed / max(seen, 1)


def _lasts(kind: EntityKind, item: Item, now: Planned) -> bool:
    return kind.lasts(item, now) if isinstance(kind, Lasts) else now.target == item.target


async def _qualified(
    context: Context, kind: EntityKind
) -> AsyncGenerator[tuple[tuple[int, str], Planned], None]:
    """What would be items now: ((entity type id, id), how), in order."""
    async with aclosing(_judged(context, kind)) as pages:
        async for page, verdicts in pages:
            for each, verdict in zip(page, verdicts, strict=True):
                if not isinstance(verdict, Excluded):
                    yield (each.entity_type_id, each.entity_id), verdict


async def _judged(context: Context, kind: EntityKind) -> AsyncGenerator[_Judged, None]:
    """Pages of candidates and what the kind says of each; one page is read and judged ahead."""
    resolved = await selection.resolve(
        context.database, context.journal, context.selection, now_us=context.now_us,
        snapshots=getattr(kind, "reads_snapshots", True),
    )  # fmt: skip
    async with aclosing(selection.pages(context.database, resolved)) as pages:

        async def judge() -> _Judged | None:
            page = await anext(pages, None)
            return None if page is None else (page, await kind.judge(page, context))

        ahead = asyncio.create_task(judge())
        try:
            while (judged := await ahead) is not None:
                ahead = asyncio.create_task(judge())
                yield judged
        finally:
            if not ahead.done():
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)


def _sample(item: Item) -> dict[str, Any]:
    return {
        "entity_type": item.entity_type, "entity_id": item.entity_id, "sequence": item.sequence,
        "target": item.target, "position": item.position, "events": item.events,
        "bytes": item.bytes,
    }  # fmt: skip


def _consumers(context: Context, blamed: Counter[str]) -> list[dict[str, Any]]:
    """Who kept entities out, and how many."""
    by_name = {need.name: need for need in context.needs}
    found: list[dict[str, Any]] = []
    for name, count in blamed.most_common():
        need = by_name.get(name)
        position = None if need is None else need.position
        found.append({"name": name, "position": position, "entities": count})
    return found
