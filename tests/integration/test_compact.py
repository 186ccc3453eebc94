"""compact: floors move where a verified snapshot covers; guards; readers notice nothing; undo."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from journal.model import (
    ANY,
    Append,
    EntityAppend,
    EntityPart,
    LoadQuery,
    NewEvent,
    NewSnapshot,
    SubscribeQuery,
)
from journal.store import StoreJournal, StoreSettings
from kernel import clock
from kernel.database import Database, DatabaseSettings
from kernel.errors import Compacted, Conflict, InvalidArgument
from kernel.ids import new_id
from operations import control
from operations.kinds import kind_named
from operations.model import REASONS, ItemState, Moment, OperationRow, Policy, Selection, State
from snapshots.model import Source, TypeSettings
from snapshots.store import SnapshotStore, TypeStore
from tests.engine_support import ANN, Bench
from tests.operating import table
from tests.support import eventually_async

YEAR_US = 365 * 86_400_000_000
CARTS = Selection(types=("cart",))

HOLES = """
SELECT t.name || '/' || e.entity_id FROM everstate.entity_marks m
JOIN everstate.entities e USING (log_id, entity_key)
JOIN everstate.entity_types t USING (type_id)
WHERE m.floor > e.last_seq - e.event_count + 1 AND NOT EXISTS (
  SELECT FROM everstate.snapshots s WHERE s.log_id = m.log_id AND s.entity_key = m.entity_key
    AND s.seq = m.floor - 1 AND s.seq = m.snapshot_seq AND s.position = m.floor_position
    AND s.removed_at IS NULL AND s.verified_at IS NOT NULL)
"""


class Shop(Bench):
    """Carts whose state is the sum of the numbers in their events."""

    async def put(
        self, entity_id: str, *numbers: int, kind: str = "cart", time_us: int = 0
    ) -> None:
        events = tuple(
            NewEvent("Added", str(n).encode(), event_id=new_id(), client_time_us=time_us)
            for n in numbers
        )
        await self.journal.append("default", Append((EntityAppend(kind, entity_id, ANY),), events))

    async def snapshot(
        self, entity_id: str, sequence: int, *, kind: str = "cart", verified: bool = True,
        source: Source = Source.FOLD, type_: str = "Sum",
    ) -> None:  # fmt: skip
        """The sum up to a sequence number."""
        total = await self.sum(entity_id, to=sequence, kind=kind)
        await SnapshotStore(self.database, self.journal).save(
            "default", kind, entity_id, sequence,
            NewSnapshot(type_, str(total).encode(), "text/plain"), source=source,
            verified=verified,
        )  # fmt: skip

    async def parts(self, entity_id: str, kind: str = "cart", **query: Any) -> list[EntityPart]:
        return [
            part async for part in self.journal.load("default", LoadQuery(kind, entity_id, **query))
        ]

    async def sum(self, entity_id: str, *, to: int = 0, kind: str = "cart") -> int:
        """As a reader sees it: the snapshot and what follows."""
        total = sequence = 0
        for part in await self.parts(entity_id, kind, to_sequence=to):
            if part.snapshot is not None:
                total, sequence = int(part.snapshot.payload), part.snapshot.sequence
            for event in part.events:
                assert event.sequence in (sequence + 1, *([] if sequence else [event.sequence]))
                total, sequence = total + int(event.payload), event.sequence
        return total

    async def answers(self, kind: str = "cart") -> list[Any]:
        """Everything that loads of all entities can say."""
        said: list[Any] = []
        for entity in (await self.journal.list_entities("default", kind)).entities:
            for query in (
                {}, {"ignore_snapshot": True}, {"to_sequence": 2}, {"after_sequence": 1},
                {"to_sequence": entity.sequence, "after_sequence": entity.sequence - 1},
            ):  # fmt: skip
                try:
                    said.append(await self.parts(entity.entity_id, kind, **query))
                except Compacted as error:
                    said.append(error.message)
        return said

    async def compact(self, selection: Selection = CARTS, **parameters: Any) -> OperationRow:
        return await self.plan("compact", selection=selection, parameters=parameters)

    async def floors(self, kind: str = "cart") -> dict[str, int]:
        found = (await self.journal.list_entities("default", kind)).entities
        return {entity.entity_id: entity.floor for entity in found}

    async def said(self, row: OperationRow) -> dict[str, tuple[str, str]]:
        items = await control.list_items(self.database, row.id)
        return {item.entity_id: (item.state.name, item.reason) for item in items}

    async def undone(self, row: OperationRow) -> OperationRow:
        await control.undo(self.database, row.id, reason="a test", principal=ANN)
        async with self.running():
            return await self.ended(row)

    async def run(self, text: str) -> None:
        async with self.database.connection() as connection:
            await connection.execute(text)

    async def check(self) -> None:
        """Invariant 9: no floor without a verified snapshot that is there."""
        assert [row[0] for row in await self.database.fetch(HOLES)] == []


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Shop]:
    database = await Database.open(DatabaseSettings(url))
    journal = StoreJournal(database, StoreSettings(node="test"))
    await journal.start()
    yield Shop(database, journal)
    await journal.close()
    await database.close()


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with opened(database_url) as made:
        yield made


@pytest.fixture
async def any_shop(any_database_url: str) -> AsyncIterator[Shop]:
    """On PostgreSQL 18 and 15."""
    async with opened(any_database_url) as made:
        yield made


async def test_floors_move_to_the_newest_verified_snapshot_and_nothing_else_changes(
    any_shop: Shop,
) -> None:
    shop = any_shop
    await shop.put("a", 1, 2, 3, 4, 5)
    await shop.put("b", 10, 20)
    await shop.snapshot("a", 2)
    await shop.snapshot("a", 4)
    await shop.snapshot("a", 5, verified=False)
    await shop.snapshot("b", 2)
    names = ("logs", "batches", "events", "entities", "snapshots", "entity_types")
    before = [await table(shop.database, name, "1") for name in names]
    plan = await shop.compact()
    assert (plan.items, plan.plan["events"], plan.plan["entities"]) == (2, 6, 2)
    assert plan.plan["sentence"] == (
        "Compact 2 entities of type cart: 6 events (about 7 B) go below their floors;"
        " loads begin at a snapshot, the log stays as it is."
    )
    assert [(s["entity_id"], s["target"], s["events"]) for s in plan.plan["samples"]] == [
        ("a", 5, 4), ("b", 3, 2),
    ]  # fmt: skip
    assert await shop.floors() == {"a": 1, "b": 1}
    receipt = await shop.done(plan)
    assert (receipt.state, receipt.done, receipt.events) == (State.DONE, 2, 6)
    assert await shop.floors() == {"a": 5, "b": 3}
    await shop.check()
    assert [await table(shop.database, name, "1") for name in names] == before
    assert [await shop.sum("a"), await shop.sum("b")] == [15, 30]
    with pytest.raises(Compacted):
        await shop.parts("a", ignore_snapshot=True)
    marks = await shop.database.fetch(
        "SELECT floor_position, snapshot_seq, changed_by FROM everstate.entity_marks ORDER BY 1"
    )
    number = plan.id.removeprefix("op-")
    assert [(m[0], m[1], str(m[2])) for m in marks] == [(4, 4, number), (7, 2, number)]


async def test_undo_gives_back_equal_answers(any_shop: Shop) -> None:
    shop = any_shop
    for n in range(12):
        await shop.put(f"c{n}", *range(n + 2))
        for sequence in range(1, n + 2, 3):
            await shop.snapshot(f"c{n}", sequence)
    await shop.run("DELETE FROM everstate.entity_marks WHERE entity_key % 2 = 0")
    first = await shop.answers()
    plan = await shop.compact(Selection(types=("cart",), where="events>5"))
    await shop.done(plan)
    middle = await shop.answers()
    assert middle != first
    for n in range(12):
        await shop.snapshot(f"c{n}", n + 2)
    second = await shop.answers()
    again = await shop.compact()
    await shop.done(again)
    assert set((await shop.floors()).values()) == {n + 3 for n in range(12)}
    # The floors are another's now: the first one takes nothing back.
    held_up = await shop.undone(plan)
    assert (held_up.state, held_up.undone) == (State.UNDONE, 0)
    assert set((await shop.said(plan)).values()) == {("NOT_UNDONE", "changed")}
    assert (await shop.undone(again)).undone == 12
    await shop.check()
    assert await shop.answers() == second
    assert (await shop.floors())["c11"] == 11  # where the first one had put it


async def test_what_was_undone_can_be_undone_back_to_the_first_one(shop: Shop) -> None:
    await shop.put("a", 1, 2, 3)
    before = await shop.answers()
    await shop.snapshot("a", 1)
    first = await shop.compact()
    await shop.done(first)
    await shop.snapshot("a", 2)
    second = await shop.compact()
    await shop.done(second)
    await shop.undone(second)
    assert await shop.floors() == {"a": 2}
    assert (await shop.undone(first)).undone == 1
    assert await shop.floors() == {"a": 1}
    await shop.run("DELETE FROM everstate.snapshots")
    assert await shop.answers() == before


async def test_undo_leaves_a_floor_whose_old_snapshot_is_gone(shop: Shop) -> None:
    await shop.put("a", 1, 2, 3)
    await shop.snapshot("a", 1)
    await shop.done(await shop.compact())
    await shop.snapshot("a", 3)
    second = await shop.compact()
    await shop.done(second)
    await shop.run("UPDATE everstate.snapshots SET removed_at = now() WHERE seq = 1")
    assert (await shop.undone(second)).undone == 0
    assert await shop.said(second) == {"a": ("NOT_UNDONE", "changed")}
    assert await shop.floors() == {"a": 4}
    await shop.check()


async def test_each_guard_is_counted_with_its_reason(any_shop: Shop) -> None:
    shop = any_shop
    types = TypeStore(shop.database, shop.journal)
    for name in ("good", "held", "bare", "unverified", "old-type", "done"):
        await shop.put(name, 1, 2)
    for kind in ("full", "trusted", "order"):
        await shop.put("x", 1, 2, kind=kind)
        await shop.snapshot("x", 1, kind=kind, verified=kind != "trusted", source=Source.OWNER)
    await types.put("cart", TypeSettings(snapshot_types=("Sum",)), version=None, principal="ann")
    await types.put("full", TypeSettings(needs_full_replay=True), version=None, principal="ann")
    await types.put("trusted", TypeSettings(trust_snapshots=True), version=None, principal="ann")
    for name in ("good", "held", "done"):
        await shop.snapshot(name, 1)
    await shop.snapshot("unverified", 1, verified=False, source=Source.OWNER)
    await shop.snapshot("old-type", 1, type_="Older")
    await shop.done(await shop.compact(Selection(entities=(("cart", "done"),))))
    await shop.run("UPDATE everstate.entity_marks SET held = true WHERE entity_key = 2")
    await group(shop, "mail", "order", 0)
    plan = await shop.compact(Selection())
    assert plan.plan["excluded"] == {
        "uncovered": 4, "held": 1, "needs_full_replay": 1, "needed": 1,
    }  # fmt: skip
    assert plan.plan["consumers"] == [{"name": "group mail", "position": 0, "entities": 1}]
    assert (plan.plan["entities"], plan.items) == (9, 2)
    await shop.done(plan)
    assert await shop.said(plan) == {"good": ("DONE", ""), "x": ("DONE", "")}
    assert await shop.floors("trusted") == {"x": 2}


async def group(shop: Shop, name: str, kind: str, watermark: int, pending: str = "{}") -> None:
    await shop.run(
        f"""
        WITH made AS (
          INSERT INTO everstate.consumer_groups (name, log_id, entity_types, event_types,
            global_order, entity_window, ack_timeout, max_attempts, backoff_min, backoff_max,
            skip_parked, max_parked)
          VALUES ('{name}', 1, '{{{kind}}}', '{{}}', false, 1, '1 s', 1, '1 s', '1 s', false, 1)
          RETURNING group_id)
        INSERT INTO everstate.group_partitions (group_id, partition, first_slice, last_slice,
          watermark, pending) SELECT group_id, 0, 0, 1023, {watermark}, '{pending}' FROM made
        """
    )


async def projection(shop: Shop, name: str, position: int, *, paused: bool = False) -> None:
    await shop.run(
        f"""
        INSERT INTO everstate.projections (name, live_version, live_build, paused)
          VALUES ('{name}', 1, 1, {paused});
        INSERT INTO everstate.projection_versions (name, version, kind, digest, log_id,
          entity_types, event_types, segments, on_poison, replayable)
          VALUES ('{name}', 1, 'sql', '', 1, '{{cart}}', '{{}}', 1, 'halt', true);
        INSERT INTO everstate.projection_builds (name, version, build, state, schema_name,
          role_name, tables, target_position)
          VALUES ('{name}', 1, 1, 'live', 's', 'r', '{{}}', 0);
        INSERT INTO everstate.projection_checkpoints (name, version, build, segment, first_slice,
          last_slice, position) VALUES ('{name}', 1, 1, 0, 0, 1023, {position})
        """
    )


async def test_what_a_paused_projection_or_a_group_behind_needs_stays(shop: Shop) -> None:
    for entity_id in ("a", "b", "c"):
        await shop.put(entity_id, 1, 2)
        await shop.snapshot(entity_id, 2)
    await projection(shop, "files", 4, paused=True)
    await group(shop, "mail", "cart", 6, "{2}")
    plan = await shop.compact()
    assert plan.plan["excluded"] == {"needed": 3}
    assert plan.plan["consumers"] == [{"name": "group mail", "position": 1, "entities": 3}]
    await shop.run("UPDATE everstate.group_partitions SET pending = '{}'")
    plan = await shop.compact()
    assert plan.plan["excluded"] == {"needed": 1}
    assert plan.plan["consumers"] == [{"name": "projection files v1", "position": 4, "entities": 1}]
    (warning,) = plan.plan["warnings"]
    assert plan.plan["confirmations"] == ["rebuilds_miss_events"]
    with pytest.raises(Conflict, match=r"must be confirmed \(rebuilds_miss_events\)"):
        await control.apply(shop.database, plan.id, digest=plan.digest, reason="r", principal=ANN)
    assert (await control.get(shop.database, plan.id)).state is State.PLANNED
    assert warning.startswith("Must be confirmed: files would miss these events in a rebuild once")
    await shop.run("UPDATE everstate.projection_checkpoints SET position = 6")
    assert (await shop.compact()).plan["excluded"] == {}


async def test_guards_are_looked_at_again_under_the_locks(shop: Shop) -> None:
    """Whatever comes between the plan and the step: the entity stays as it is, and it is said."""
    for name in ("held", "gone", "further", "fine"):
        await shop.put(name, 1, 2, 3)
        await shop.snapshot(name, 2)
    for kind in ("needed", "full"):
        await shop.put("x", 1, 2, kind=kind)
        await shop.snapshot("x", 2, kind=kind)
    plan = await shop.compact(Selection())
    assert plan.items == 6
    await control.set_policy(
        shop.database, "compact", Policy(max_drift=1.0), version=None, principal=ANN
    )
    await shop.run(
        """
        UPDATE everstate.entity_marks SET held = true WHERE entity_key = 1;
        UPDATE everstate.entity_marks SET floor = 4, floor_position = 9, snapshot_seq = 3
          WHERE entity_key = 3;
        UPDATE everstate.snapshots SET removed_at = now() WHERE entity_key = 2;
        UPDATE everstate.entity_types SET version = 1, settings = '{"needs_full_replay": true}'
          WHERE name = 'full';
        """
    )
    await group(shop, "mail", "needed", 0)
    receipt = await shop.done(plan)
    assert (receipt.done, receipt.skipped, receipt.failed) == (1, 5, 0)
    items = await control.list_items(shop.database, plan.id)
    assert {(i.entity_type, i.entity_id): (i.state, i.reason) for i in items} == {
        ("cart", "held"): (ItemState.SKIPPED, "held"),
        ("cart", "gone"): (ItemState.SKIPPED, "changed"),
        ("cart", "further"): (ItemState.SKIPPED, "current"),
        ("cart", "fine"): (ItemState.DONE, ""),
        ("needed", "x"): (ItemState.SKIPPED, "needed"),
        ("full", "x"): (ItemState.SKIPPED, "needs_full_replay"),
    }
    assert await shop.floors() == {"fine": 3, "further": 4, "gone": 1, "held": 1}


async def test_nothing_goes_at_or_after_a_time_or_beyond_a_position(shop: Shop) -> None:
    now = clock.now_us()
    for name in ("a", "b"):
        await shop.put(name, 1, time_us=now - 3 * YEAR_US)
        await shop.put(name, 2, time_us=now - 2 * YEAR_US)
        await shop.put(name, 3)
        for sequence in (1, 2, 3):
            await shop.snapshot(name, sequence)
    await shop.put("new", 1)
    await shop.put("old", 1, time_us=now - 5 * YEAR_US)

    async def targets(plan: OperationRow) -> dict[str, int]:
        items = await control.list_items(shop.database, plan.id)
        return {item.entity_id: item.target for item in items}

    def at(years: float) -> str:
        return clock.format_us(now - int(years * YEAR_US))

    assert await targets(await shop.compact()) == {"a": 4, "b": 4}
    old = await shop.compact(at=at(1))
    assert await targets(old) == {"a": 3, "b": 3}
    assert old.plan["excluded"] == {"current": 1, "uncovered": 1}  # `new` has nothing so old
    assert await targets(await shop.compact(at=at(2))) == {"a": 2, "b": 2}  # not "or at"
    assert await targets(await shop.compact(at=at(2 - 1e-9))) == {"a": 3, "b": 3}
    assert (await shop.compact(at=at(4))).plan["excluded"] == {"current": 3, "uncovered": 1}
    for position, expected in ((2, {"a": 3}), (5, {"a": 4, "b": 3}), (6, {"a": 4, "b": 4})):
        chosen = Selection(types=("cart",), to=Moment(position))
        assert await targets(await shop.compact(chosen)) == expected
    await shop.done(old)
    again = await shop.compact(at=at(1))
    assert (again.items, again.plan["excluded"]) == (0, {"current": 3, "uncovered": 1})
    assert await targets(await shop.compact()) == {"a": 4, "b": 4}


async def test_what_follows_the_first_event_of_that_time_stays_whatever_time_it_says(
    any_shop: Shop,
) -> None:
    """The rule of `snapshot`: times of writers do not always grow."""
    shop, now = any_shop, clock.now_us()
    for name, ages in (("mixed", (2, 4, 1)), ("late", (2, 4, 5)), ("early", (5, 2, 4))):
        for age in ages:
            await shop.put(name, age, time_us=now - age * YEAR_US)
        for sequence in (1, 2, 3):
            await shop.snapshot(name, sequence)
    plan = await shop.compact(at=clock.format_us(now - 3 * YEAR_US))
    items = await control.list_items(shop.database, plan.id)
    assert [(item.entity_id, item.target, item.events) for item in items] == [("early", 2, 1)]
    assert plan.plan["excluded"] == {"current": 2}
    assert await shop.floors() == {"mixed": 1, "late": 1, "early": 1}


async def test_what_lacks_a_snapshot_is_never_called_current(shop: Shop) -> None:
    now = clock.now_us()
    for name in ("whole", "more"):
        await shop.put(name, 1, 2, time_us=now - 2 * YEAR_US)
        await shop.snapshot(name, 2)
    await shop.done(await shop.compact())
    assert (await shop.compact()).plan["excluded"] == {"current": 2}
    await shop.put("more", 3)
    assert (await shop.compact()).plan["excluded"] == {"current": 1, "uncovered": 1}
    before_it = await shop.compact(at=clock.format_us(now - YEAR_US))
    assert before_it.plan["excluded"] == {"current": 2}
    up_to = await shop.compact(Selection(types=("cart",), to=Moment(4)))
    assert up_to.plan["excluded"] == {"current": 2}
    assert "plan `snapshot` first" in REASONS["uncovered"]


async def test_a_range_of_times_without_events_says_when_the_log_begins(shop: Shop) -> None:
    await shop.put("a", 1, time_us=clock.now_us() - 9 * YEAR_US)
    await shop.snapshot("a", 1)
    (oldest,) = await shop.database.fetch("SELECT min(recorded_at) FROM everstate.events")
    begin = clock.to_us(oldest[0])
    ago = begin - YEAR_US
    for bounds in (
        {"to": Moment(time_us=ago)},
        {"from_": Moment(time_us=ago - YEAR_US), "to": Moment(time_us=ago)},
        {"from_": Moment(time_us=begin + YEAR_US)},
    ):
        plan = (await shop.compact(Selection(**bounds))).plan
        assert (plan["entities"], plan["items"]) == (0, 0)
        (warning,) = plan["warnings"]
        assert warning.startswith("The range has no events: log 'default' begins at ")
        assert clock.format_us(begin) in warning
    assert (await shop.compact(Selection(to=Moment(time_us=begin + 1)))).items == 1
    with pytest.raises(InvalidArgument, match="from: position 1 is after to"):
        await shop.compact(Selection(from_=Moment(time_us=ago), to=Moment(time_us=ago - 1)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"at": "2023-01-01T00:00:00"}, "parameters.at: .* has no UTC offset"),
        ({"at": "last year"}, "parameters.at: 'last year' is not a time"),
        ({"at": 5}, "parameters.at: is not a text"),
        ({"when": "2023-01-01"}, "parameters.when: is not one of at"),
    ],
)
def test_parameters_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        kind_named("compact").parameters(given)


async def test_drift_counts_what_is_lost_changed_or_new(shop: Shop) -> None:
    for n in range(8):
        await shop.put(f"c{n}", 1, 2, 3)
        if n < 6:
            await shop.snapshot(f"c{n}", 1)
    plan = await shop.compact()
    assert plan.items == 6
    await shop.run("UPDATE everstate.snapshots SET removed_at = now() WHERE entity_key = 1")
    await shop.snapshot("c3", 2)
    await shop.snapshot("c6", 1)
    await shop.put("c4", 5)  # more events alone change nothing
    receipt = await shop.done(plan)
    assert receipt.state is State.REVIEW
    assert receipt.error is not None
    assert receipt.error["message"].startswith("50.0% of the items have changed")
    assert set((await shop.floors()).values()) == {1}


async def test_the_same_plan_has_the_same_digest_and_another_one_another(shop: Shop) -> None:
    await shop.put("a", 1, 2)
    await shop.put("b", 1, 2)
    await shop.snapshot("a", 1)
    first = await shop.compact()
    assert (await shop.compact()).digest == first.digest
    assert (await shop.compact(Selection())).digest != first.digest
    assert (await shop.compact(at="2999-01-01")).digest != first.digest
    await shop.snapshot("b", 1)
    second = await shop.compact()
    assert second.digest != first.digest
    await shop.put("b", 3)
    assert (await shop.compact()).digest != second.digest


async def test_readers_subscribers_and_writers_notice_nothing(shop: Shop) -> None:
    """Loads equal replay at every moment of compactions and undos."""
    ids = [f"c{n}" for n in range(40)]
    sums: dict[str, list[int]] = {name: [0] for name in ids}

    async def write(name: str) -> None:
        value = random.randrange(1_000)
        sums[name].append(sums[name][-1] + value)  # before it is there: never seen too early
        await shop.put(name, value)

    for name in ids:
        for _ in range(4):
            await write(name)
        await shop.snapshot(name, 2)
    stop = asyncio.Event()
    counts = {"loads": 0, "moved": 0}

    async def writer(mine: list[str]) -> None:
        while not stop.is_set():
            await write(random.choice(mine))

    async def reader() -> None:
        while not stop.is_set():
            name = random.choice(ids)
            total = sequence = 0
            for part in await shop.parts(name):
                if part.snapshot is not None:
                    total, sequence = int(part.snapshot.payload), part.snapshot.sequence
                for event in part.events:
                    assert event.sequence == sequence + 1, "a load has a hole"
                    total, sequence = total + int(event.payload), event.sequence
                if part.entity is not None:
                    counts["moved"] += part.entity.floor > 1
            assert total == sums[name][sequence], "load is not replay"
            counts["loads"] += 1

    received: list[int] = []

    async def subscriber() -> None:
        async for batch in shop.journal.subscribe("default", SubscribeQuery(1)):
            received.extend(event.position for event in batch.events)

    subscribing = asyncio.create_task(subscriber())
    async with shop.running(), asyncio.TaskGroup() as group_:
        group_.create_task(writer(ids[::2]))
        group_.create_task(writer(ids[1::2]))
        group_.create_task(reader())
        group_.create_task(reader())
        for turn in range(3):
            for name in ids:
                await shop.snapshot(name, 3 + turn)
            # Writers go on: more entities would qualify by the start, none of them differently.
            plan = await shop.compact()
            assert plan.items == 40
            await shop.apply(plan)
            receipt = await shop.ended(plan)
            assert (receipt.state, receipt.done) == (State.DONE, 40)
            await shop.check()
            if turn == 1:
                await control.undo(shop.database, plan.id, reason="a test", principal=ANN)
                assert (await shop.ended(plan)).undone == 40
                await shop.check()
        loads = counts["loads"]

        async def more_loads() -> bool:
            return counts["loads"] > loads + 20

        await eventually_async(more_loads, "loads go on")
        stop.set()
    head = (await shop.journal.get_log("default")).head

    async def all_there() -> bool:
        return len(received) >= head

    await eventually_async(all_there, "the subscriber has everything")
    subscribing.cancel()
    await asyncio.gather(subscribing, return_exceptions=True)
    assert received == list(range(1, head + 1))
    assert counts["moved"] > 20
    report = [item async for item in shop.journal.verify("default")][-1].report
    assert report is not None
    assert report.ok, report.findings


async def test_what_an_older_version_of_the_fold_verified_covers_nothing(shop: Shop) -> None:
    await shop.put("a", 1, 2, 3, 4)
    await shop.snapshot("a", 2)
    assert (await shop.compact()).items == 1
    await shop.run(
        "INSERT INTO everstate.folds (entity_type, version, digest, snapshot_type, content_type)"
        " VALUES ('cart', 2, 'corrected', 'Sum', 'text/plain')"
    )
    assert (await shop.compact()).plan["excluded"] == {"uncovered": 1}
    await shop.snapshot("a", 2)  # verified again, by the version that is there now
    assert (await shop.compact()).items == 1
