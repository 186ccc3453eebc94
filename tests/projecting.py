"""What tests of projections share: workers in this process, events, folds."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from journal.model import JSON, Append, EntityAppend, NewEvent
from journal.store import StoreJournal, StoreSettings
from journal.subscriptions import SubscriptionSettings
from kernel.database import Database
from projections import control, sqlfile
from projections.model import Definition, Projection
from projections.registration import register
from projections.registry import define
from projections.worker import Worker, WorkerSettings
from schemas.descriptors import Decoder

QUICK = WorkerSettings(lease=timedelta(seconds=2), look=timedelta(milliseconds=50))

COUNTS = """\
-- projection: counts
-- version: 1
-- entity types: thing
CREATE TABLE counts (id text PRIMARY KEY, events bigint NOT NULL, total bigint NOT NULL);
-- on: Added
INSERT INTO counts VALUES (:meta.entity_id, 1, coalesce(:data.n, 0))
ON CONFLICT (id) DO UPDATE SET events = counts.events + 1, total = counts.total + excluded.total;
-- on: Cleared
UPDATE counts SET events = events + 1, total = 0 WHERE id = :meta.entity_id;
"""


class Totals(Projection):
    """The same in Python."""

    name = "totals"
    version = 1
    entity_types = ("thing",)
    event_types = ("Added", "Cleared")
    tables = (
        "CREATE TABLE totals (id text PRIMARY KEY, events bigint NOT NULL, total bigint NOT NULL);"
    )

    async def apply(self, events, tx) -> None:
        for event in events:
            if event.type == "Added":
                await tx.execute(
                    "INSERT INTO totals VALUES ($1, 1, $2) ON CONFLICT (id) DO UPDATE"
                    " SET events = totals.events + 1, total = totals.total + excluded.total",
                    event.entity_id,
                    event.data.get("n") or 0,
                )
            else:
                await tx.execute(
                    "UPDATE totals SET events = events + 1, total = 0 WHERE id = $1",
                    event.entity_id,
                )


def counts(*changes: tuple[str, str], name: str = "counts", text: str = COUNTS) -> Definition:
    """The SQL-only projection, with changes."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    if name != "counts":
        text = text.replace("projection: counts", f"projection: {name}")
    return sqlfile.parse(text, f"{name}.sql")


def python(kind: type[Projection], **changes: Any) -> Definition:
    """The definition of a class of a test."""
    return replace(define(kind, Path(__file__).parent), **changes)


def event(kind: str, data: object) -> NewEvent:
    payload = data if isinstance(data, bytes) else orjson.dumps(data)
    return NewEvent(kind, payload, JSON, event_id=str(uuid.uuid4()))


async def append(
    journal: StoreJournal, entity: str, *events: tuple[str, object], entity_type: str = "thing"
) -> int:
    """Appends events to an entity; the last position."""
    new = tuple(event(kind, data) for kind, data in events)
    done = await journal.append("default", Append((EntityAppend(entity_type, entity),), new))
    return done.last_position


async def fill(journal: StoreJournal, events: int, entities: int = 50, each: int = 100) -> int:
    """Appends many events, Added and now and then Cleared; the last position."""
    made = 0
    last = 0
    while made < events:
        number = min(each, events - made)
        last = await append(
            journal,
            f"e{made // each % entities}",
            *(
                ("Cleared", {}) if (made + i) % 37 == 0 else ("Added", {"n": (made + i) % 11})
                for i in range(number)
            ),
        )
        made += number
    return last


def fold(events: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """id → (events, total), apart from the projections."""
    number: Counter[str] = Counter()
    total: dict[str, int] = {}
    for e in events:
        if e.entity_type != "thing" or e.type not in ("Added", "Cleared"):
            continue
        if e.type == "Added":
            number[e.entity_id] += 1
            total[e.entity_id] = total.get(e.entity_id, 0) + (orjson.loads(e.payload).get("n") or 0)
        elif e.entity_id in number:
            number[e.entity_id] += 1
            total[e.entity_id] = 0
    return {key: (number[key], total[key]) for key in number}


async def folded(journal: StoreJournal) -> dict[str, tuple[int, int]]:
    from journal.model import ReadQuery

    return fold([e async for b in journal.read("default", ReadQuery()) for e in b.events])


async def table(database: Database, name: str = "counts") -> dict[str, tuple[int, int]]:
    """What the views show."""
    kind = name if name in ("counts", "totals") else "counts"
    rows = await database.fetch(f"SELECT id, events, total FROM rm_{name}.{kind}")
    return {row[0]: (row[1], row[2]) for row in rows}


async def reached(database: Database, name: str, position: int, timeout: float = 20) -> None:
    await control.wait_for(database, name, position, timedelta(seconds=timeout))


@contextlib.asynccontextmanager
async def journal_on(database: Database) -> AsyncIterator[StoreJournal]:
    """A journal whose subscriptions beat quickly."""
    settings = SubscriptionSettings(
        poll=timedelta(milliseconds=50), heartbeat=timedelta(milliseconds=100)
    )
    journal = StoreJournal(database, StoreSettings(node="test", subscriptions=settings))
    await journal.start()
    try:
        yield journal
    finally:
        await journal.close()


@contextlib.asynccontextmanager
async def working(
    journal: StoreJournal,
    *definitions: Definition,
    settings: WorkerSettings = QUICK,
    registered: Sequence[Definition] | None = None,
    decoder: Decoder | None = None,
) -> AsyncIterator[Worker]:
    """A worker in this process, its projections registered."""
    database = journal.database
    await register(database, definitions if registered is None else registered)
    worker = Worker(
        database, journal.subscriptions, journal.names, decoder or Decoder(), definitions, settings
    )
    await worker.start()
    try:
        yield worker
    finally:
        await asyncio.shield(worker.close())
