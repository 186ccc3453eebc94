"""Random histories, played to the store and to the reference model: both say the same, always.

Times are left out of what is compared; everything else is equal, errors and their details too.
The store runs on a loop of its own, because the rules of a state machine are plain functions.

A failure shows the history as it was found; with SHRINK=1 in the environment it is made small
first, which may take minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from journal.journal import Journal
from journal.memory import MemoryJournal
from journal.model import (
    ANY,
    EXISTS,
    Append,
    Appended,
    EntityAppend,
    Event,
    LoadQuery,
    NewEvent,
    NewSnapshot,
    ReadQuery,
)
from journal.store import StoreJournal, StoreSettings
from kernel.database import Database, DatabaseSettings
from kernel.errors import EverstateError
from kernel.ids import new_id
from snapshots.memory import MemorySnapshots, MemoryTypes
from snapshots.model import SnapshotInfo
from snapshots.store import SnapshotStore
from tests.conformance.subject import set_floor_in, set_state_in

NAMES = [(kind, name) for kind in ("cart", "order") for name in ("a", "ab", "b", "é")]
KINDS = ["One", "Two", "Three"]
_logs = itertools.count(1)


class Stores:
    """The store under test and the loop it lives on."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = self.run(self._open(url))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def _open(self, url: str) -> StoreJournal:
        store = StoreJournal(
            await Database.open(DatabaseSettings(url)), StoreSettings(node="machine")
        )
        await store.start()
        return store

    async def _close(self) -> None:
        await self.store.close()
        await self.store.database.close()

    def close(self) -> None:
        self.run(self._close())
        self.loop.close()


def timeless(event: Event) -> Event:
    metadata = json.dumps(json.loads(event.metadata_json or "{}"), sort_keys=True)
    return replace(event, recorded_at_us=0, metadata_json=metadata)


def without_times(result: Any) -> Any:
    """What is said of snapshots, without when they were saved and when their events were."""
    if isinstance(result, list | tuple):
        return [without_times(each) for each in result]
    if isinstance(result, SnapshotInfo):
        return replace(result, recorded_at_us=0, event_at_us=0)
    return result


async def said(work: Coroutine[Any, Any, Any]) -> Any:
    """A result without its time, or an error with all it says."""
    try:
        result = await work
    except EverstateError as error:
        return type(error), error.message, vars(error)
    return result._replace(recorded_at_us=0) if isinstance(result, Appended) else result


class Machine(RuleBasedStateMachine):
    """``stores`` is set by the test."""

    stores: Stores

    def __init__(self) -> None:
        super().__init__()
        self.model = MemoryJournal()
        self.kept = MemorySnapshots(self.model, MemoryTypes(self.model))
        self.log = f"m{next(_logs)}"
        self.sent: list[Append] = []
        self.numbers = itertools.count(1)
        for journal in (self.model, self.stores.store):
            self.stores.run(journal.create_log(self.log, 64))  # small chunks: many roll over
        self.both(lambda journal: journal.append(self.log, self.warm()))

    def warm(self) -> Append:
        """The first append meets the log and its types; then concurrent ones keep their order."""
        event = NewEvent("One", b"", event_id=str(uuid.UUID(int=0)))
        return Append((EntityAppend("warm", "warm", 0),), (event,))

    def both(self, work: Callable[[Journal], Coroutine[Any, Any, Any]]) -> Any:
        """Does the same in the model and in the store, which have to agree; returns the result."""
        expected = self.stores.run(said(work(self.model)))
        found = self.stores.run(said(work(self.stores.store)))
        assert found == expected
        return expected

    def sequence(self, name: tuple[str, str]) -> int:
        return self.model._log(self.log).last_sequence(name)

    def draw_append(self, data: st.DataObject, names: list[tuple[str, str]]) -> Append:
        draw = data.draw
        members = []
        for name in names:
            found = self.sequence(name)
            # Mostly what is true, so that histories grow; often enough what is not.
            expected = draw(st.sampled_from([ANY, EXISTS, 0, found, found, found, found + 1, 2]))
            first = draw(st.sampled_from([0, 0, 0, 0, 0, found + 1, found + 1, found + 3, 7]))
            if isinstance(expected, int) and expected > 0 and first:
                first = expected + 1
            snapshot = NewSnapshot("S", b"%d" % found) if draw(st.integers(0, 2)) == 0 else None
            members.append(EntityAppend(*name, expected, first, snapshot))
        order = draw(st.lists(st.integers(0, len(names) - 1), max_size=5))
        order = draw(st.permutations([*range(len(names)), *order]))
        events = tuple(self.draw_event(draw, member) for member in order)
        used = [a.append_id for a in self.sent if a.append_id]
        given = draw(st.integers(0, 9))
        append_id = new_id() if given < 2 else ""
        if given == 2 and used:
            append_id = draw(st.sampled_from(used))
        return Append(tuple(members), events, append_id)

    def draw_event(self, draw: Callable[[Any], Any], member: int) -> NewEvent:
        return NewEvent(
            draw(st.sampled_from(KINDS)),
            draw(st.binary(max_size=5)),
            entity=member,
            event_id=str(uuid.UUID(int=next(self.numbers))),
            metadata_json=draw(st.sampled_from(["", "", '{"a":1}'])),
            correlation_id=draw(st.sampled_from(["", "", "c"])),
            schema_version=draw(st.sampled_from([0, 0, 2])),
        )

    def append(self, append: Append) -> Any:
        return self.both(lambda journal: journal.append(self.log, append))

    @rule(data=st.data())
    def appends(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
        append = self.draw_append(data, names)
        self.sent.append(append)
        self.append(append)

    @rule(data=st.data())
    def appends_many_at_once(self, data: st.DataObject) -> None:
        """Distinct entities: one batch, which is judged like one append after the other."""
        names = data.draw(st.permutations(NAMES))
        sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=5))
        appends: list[Append] = []
        for size in sizes:
            mine, names = names[:size], names[size:]
            if mine:
                append = self.draw_append(data, mine)
                taken = {other.append_id for other in appends}
                appends.append(
                    replace(append, append_id="") if append.append_id in taken else append
                )
        self.sent += appends

        async def at_once(journal: Journal) -> list[Any]:
            works = [said(journal.append(self.log, append)) for append in appends]
            return list(await asyncio.gather(*works))

        self.both(at_once)

    @rule(data=st.data())
    def retries(self, data: st.DataObject) -> None:
        if self.sent:
            self.append(data.draw(st.sampled_from(self.sent)))

    @rule(data=st.data())
    def retries_with_a_change(self, data: st.DataObject) -> None:
        if not self.sent:
            return
        old = data.draw(st.sampled_from(self.sent))
        changed = [
            replace(old, events=(replace(old.events[0], payload=b"changed"), *old.events[1:])),
            replace(old, append_id=""),
            replace(old, append_id=old.append_id or new_id()),
            replace(old, events=(*old.events, self.draw_event(data.draw, 0))),
            replace(old, events=old.events[::-1]),
        ]
        if all(e.entity in {o.entity for o in old.events[:-1]} for e in old.events):
            changed.append(replace(old, events=old.events[:-1]))
        self.append(data.draw(st.sampled_from(changed)))

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(["deleted", "tombstoned"]))
    def ends_or_begins_again(self, name: tuple[str, str], state: str) -> None:
        """What operations do between appends: an active entity is not, any other one is again."""
        if not self.sequence(name):
            return
        there = self.model._log(self.log)
        state = "active" if name in there.states else state
        self.model.set_entity_state(self.log, name, state)
        self.stores.run(set_state_in(self.stores.store, self.log, name, state))

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def saves_a_snapshot(self, data: st.DataObject, name: tuple[str, str]) -> None:
        """At any sequence number, so below the floor and beyond the end too."""
        sequence = data.draw(st.integers(1, self.sequence(name) + 1))
        snapshot = NewSnapshot("S", data.draw(st.sampled_from([b"%d" % sequence, b"x"])))
        replace_ = data.draw(st.booleans())
        self.both_kept(
            lambda kept: kept.save(self.log, *name, sequence, snapshot, replace=replace_)
        )

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def deletes_a_snapshot(self, data: st.DataObject, name: tuple[str, str]) -> None:
        known = sorted(self.model._log(self.log).snapshots.get(name, {}))
        sequence = data.draw(st.sampled_from([*known, 1]))
        self.both_kept(lambda kept: kept.delete(self.log, *name, sequence))

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def moves_a_floor(self, data: st.DataObject, name: tuple[str, str]) -> None:
        """To what a snapshot covers, or back, as compaction and its undo do."""
        there = self.model._log(self.log)
        if not self.sequence(name):
            return
        first = there.entities[name][0].sequence
        floors = [n + 1 for n, kept in there.snapshots.get(name, {}).items() if not kept.removed]
        floor = data.draw(st.sampled_from([first, *floors]))
        self.model.set_floor(self.log, name, floor)
        self.stores.run(set_floor_in(self.stores.store, self.log, name, floor))

    @rule(name=st.sampled_from([*NAMES, ("cart", "never")]), sequence=st.integers(0, 12))
    def looks_at_snapshots(self, name: tuple[str, str], sequence: int) -> None:
        self.both_kept(lambda kept: kept.list(self.log, *name))
        self.both_kept(lambda kept: kept.get(self.log, *name, sequence=sequence))

    def both_kept(self, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        """As `both`, for snapshots."""
        expected = self.stores.run(said(work(self.kept)))
        found = self.stores.run(
            said(work(SnapshotStore(self.stores.store.database, self.stores.store)))
        )
        assert without_times(found) == without_times(expected)

    @rule(data=st.data())
    def reads(self, data: st.DataObject) -> None:
        draw = data.draw
        head = self.model._log(self.log).head
        position = st.one_of(st.just(0), st.integers(0, head + 2))
        query = ReadQuery(
            from_position=draw(position),
            to_position=draw(position),
            backwards=draw(st.booleans()),
            max_events=draw(st.sampled_from([0, 0, 1, 3, 10])),
            entity_types=tuple(draw(st.lists(st.sampled_from(["cart", "order", "x"]), max_size=2))),
            event_types=tuple(draw(st.lists(st.sampled_from([*KINDS, "x"]), max_size=2))),
            slices=draw(st.sampled_from([(), (), ((0, 511),), ((100, 200), (150, 900))])),
        )
        self.both(lambda journal: self.read(journal, query))

    async def read(self, journal: Journal, query: ReadQuery) -> Any:
        batches = [batch async for batch in journal.read(self.log, query)]
        events = [timeless(e) for b in batches for e in b.events]  # type: ignore[arg-type]
        return events, batches[-1].next_position, {b.head for b in batches}

    @rule(data=st.data(), name=st.sampled_from([*NAMES, ("cart", "never")]))
    def loads(self, data: st.DataObject, name: tuple[str, str]) -> None:
        number = st.one_of(st.just(0), st.integers(0, 12))
        query = LoadQuery(*name, data.draw(number), data.draw(number), data.draw(st.booleans()))
        self.both(lambda journal: self.load(journal, query))

    async def load(self, journal: Journal, query: LoadQuery) -> Any:
        parts = [part async for part in journal.load(self.log, query)]
        snapshot = parts[0].snapshot
        events = [timeless(e) for p in parts for e in p.events]  # type: ignore[arg-type]
        entity = await journal.get_entity(self.log, query.entity_type, query.entity_id)
        assert entity == parts[0].entity
        return entity, snapshot and replace(snapshot, recorded_at_us=0), events

    @rule(
        kind=st.sampled_from(["", "cart", "order", "none"]),
        prefix=st.sampled_from(["", "a", "é", "x"]),
        size=st.integers(1, 9),
    )
    def lists(self, kind: str, prefix: str, size: int) -> None:
        async def pages(journal: Journal) -> list[Any]:
            found, token = [], ""
            while True:
                page = await journal.list_entities(
                    self.log, kind, prefix, page_size=size, page_token=token
                )
                found.append(page)
                token = page.next_page_token
                if not token:
                    return found

        self.both(pages)

    @rule(data=st.data())
    def verifies(self, data: st.DataObject) -> None:
        bound = st.integers(0, self.model._log(self.log).head + 1)
        first, last = data.draw(bound), data.draw(bound)

        async def report(journal: Journal) -> Any:
            return [p async for p in journal.verify(self.log, first, last)][-1]

        self.both(report)

    def teardown(self) -> None:
        """At the end of every history: the same log, without a fault."""

        async def everything(journal: Journal) -> Any:
            info = await journal.get_log(self.log)
            progress = [p async for p in journal.verify(self.log)][-1]
            assert progress.report is not None
            assert progress.report.ok, progress.report.findings
            page = await journal.list_entities(self.log, page_size=1000)
            facts = (info.head, info.entities, info.bytes_total)
            queries = [
                LoadQuery(e.entity_type, e.entity_id, ignore_snapshot=ignored)
                for e in page.entities
                for ignored in (False, True)
            ]
            loaded = [await self.load(journal, query) for query in queries]
            return facts, page, progress.report, loaded, await self.read(journal, ReadQuery())

        self.both(everything)


@pytest.fixture
def stores(database_url: str) -> Any:
    opened = Stores(database_url)
    yield opened
    opened.close()


def test_store_and_reference_model_agree_on_random_histories(stores: Stores) -> None:
    machine = type("StoreMachine", (Machine,), {"stores": stores})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize="CI" in os.environ,
            report_multiple_bugs=False,
            phases=[Phase.generate, *([Phase.shrink] if "SHRINK" in os.environ else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
