"""soft-delete, undelete, tombstone: guards, undo, and what writers and readers beside them see."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from journal.model import (
    ANY,
    Append,
    Appended,
    EntityAppend,
    LoadQuery,
    NewEvent,
    ReadQuery,
    SubscribeQuery,
)
from journal.store import StoreJournal
from kernel.errors import EntityDeleted, InternalError, InvalidArgument
from kernel.ids import new_id
from operations.kinds import kind_named
from tests.operating import candidates, plan, put, put_many, table, transaction
from tests.support import running

ENTITIES = ("entities", "entity_key")


async def apply(store: StoreJournal, kind: str, *ids: str, **parameters: Any) -> Any:
    made = await plan(store, kind, list(ids) or None, **parameters)
    await made.apply()
    return made


async def states(store: StoreJournal) -> dict[str, str]:
    page = await store.list_entities("default", page_size=1000)
    return {e.entity_id: e.state for e in page.entities}


async def put_in_all_states(store: StoreJournal) -> None:
    await put(store, "active", "deleted", "tombstoned", "held", "held_deleted")
    await apply(store, "soft-delete", "deleted", "held_deleted")
    await apply(store, "tombstone", "tombstoned")
    await apply(store, "hold", "held", "held_deleted")


async def test_what_is_left_out_of_each_kind_and_why(store: StoreJournal) -> None:
    await put_in_all_states(store)
    found = {
        kind: (await plan(store, kind)).excluded
        for kind in ("soft-delete", "undelete", "tombstone")
    }
    ended = {"deleted": "deleted", "held_deleted": "deleted", "tombstoned": "tombstoned"}
    assert found == {
        "soft-delete": {**ended, "held": "held"},
        "undelete": {"active": "active", "held": "active", "tombstoned": "tombstoned"},
        "tombstone": {"tombstoned": "tombstoned", "held": "held", "held_deleted": "held"},
    }


async def test_each_kind_says_what_it_does(store: StoreJournal) -> None:
    await put(store, "a")
    assert (await plan(store, "soft-delete")).sentence == (
        "Delete 1 entity softly: appends to it are refused, loads and reads go on as before."
    )
    assert (await plan(store, "tombstone")).sentence == (
        "Tombstone 1 entity: appends to it are refused for ever, loads and reads go on as before."
    )
    await apply(store, "soft-delete")
    made = await plan(store, "undelete")
    assert made.sentence == "Undelete 1 entity: it takes events again."
    tombstone = kind_named("tombstone")
    assert (tombstone.undoable, tombstone.policy.typed) == (False, True)
    assert "for ever" in tombstone.irreversible


@pytest.mark.parametrize("kind", ["soft-delete", "undelete", "tombstone"])
def test_the_kinds_take_no_parameters(kind: str) -> None:
    with pytest.raises(InvalidArgument, match=r"parameters\.label: is not any"):
        kind_named(kind).parameters({"label": "x"})


async def test_what_changed_since_the_plan_is_skipped_with_the_reason(store: StoreJournal) -> None:
    await put(store, "a", "b", "c", "d")
    late = await plan(store, "soft-delete")
    await apply(store, "hold", "a")
    await apply(store, "soft-delete", "b")
    await apply(store, "tombstone", "c")
    assert await late.apply() == {
        "a": ("SKIPPED", "held"),
        "b": ("SKIPPED", "deleted"),
        "c": ("SKIPPED", "tombstoned"),
        "d": ("DONE", ""),
    }
    assert await states(store) == {
        "a": "active", "b": "deleted", "c": "tombstoned", "d": "deleted"
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "before"), [("soft-delete", "active"), ("undelete", "deleted")])
async def test_undo_puts_states_back_byte_by_byte(
    store: StoreJournal, kind: str, before: str
) -> None:
    await put_many(store, 30)
    if before == "deleted":
        await apply(store, "soft-delete")
    rows = await table(store.database, *ENTITIES)
    marks = await table(store.database, "entity_marks", "entity_key")
    made = await plan(store, kind, steps=7)
    await made.apply()
    assert set((await states(store)).values()) == {"active", "deleted"} - {before}
    await made.undo()
    assert await table(store.database, *ENTITIES) == rows
    if before == "deleted":  # the marks were there
        assert await table(store.database, "entity_marks", "entity_key") == marks


async def test_undo_leaves_what_somebody_else_has_set_since(store: StoreJournal) -> None:
    await put(store, "a", "b", "c", "d")
    first = await apply(store, "soft-delete")
    await apply(store, "undelete", "a", "b")
    await apply(store, "soft-delete", "a")  # deleted again, but not by the first
    await apply(store, "tombstone", "c")
    assert await first.undo() == {
        "a": ("NOT_UNDONE", "changed"),
        "b": ("NOT_UNDONE", "changed"),
        "c": ("NOT_UNDONE", "changed"),
        "d": ("UNDONE", ""),
    }
    assert await states(store) == {
        "a": "deleted", "b": "active", "c": "tombstoned", "d": "active"
    }  # fmt: skip


async def test_undo_of_an_undelete_does_not_delete_what_is_held_since(store: StoreJournal) -> None:
    await put(store, "a", "b")
    await apply(store, "soft-delete")
    undelete = await apply(store, "undelete")
    await apply(store, "hold", "a")
    assert await undelete.undo() == {"a": ("NOT_UNDONE", "held"), "b": ("UNDONE", "")}


async def test_undos_of_two_operations_one_after_the_other_go_back_the_whole_way(
    store: StoreJournal,
) -> None:
    await put(store, "a")
    delete = await apply(store, "soft-delete")
    undelete = await apply(store, "undelete")
    assert await undelete.undo() == {"a": ("UNDONE", "")}
    assert await delete.undo() == {"a": ("UNDONE", "")}
    assert await states(store) == {"a": "active"}


async def test_a_tombstone_is_not_undone(store: StoreJournal) -> None:
    await put(store, "a")
    made = await apply(store, "tombstone")
    assert await made.undo() == {"a": ("NOT_UNDONE", "tombstoned")}
    assert await states(store) == {"a": "tombstoned"}


async def test_an_event_appended_since_the_plan_keeps_nothing_from_being_deleted(
    store: StoreJournal,
) -> None:
    await put(store, "a")
    made = await plan(store, "soft-delete")
    await put(store, "a")
    assert await made.apply() == {"a": ("DONE", "")}
    assert (await store.get_entity("default", "cart", "a")).sequence == 2


async def test_a_step_that_is_rolled_back_leaves_nothing(store: StoreJournal) -> None:
    await put(store, "a")
    before = await table(store.database, *ENTITIES)
    made = await plan(store, "soft-delete")
    await made.killed()
    assert await table(store.database, *ENTITIES) == before
    await put(store, "a")


async def test_a_hold_that_is_being_made_is_waited_for(store: StoreJournal) -> None:
    """A held entity is never deleted, though both were planned before either was done."""
    await put(store, "a")
    hold, delete = await plan(store, "hold"), await plan(store, "soft-delete")
    async with transaction(store.database) as connection:
        await hold.step(connection, hold.items)
        deleting = asyncio.create_task(delete.apply())
        while not await store.database.fetch(
            "SELECT FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
        ):
            await asyncio.sleep(0.005)
        await put(store, "a", "b")  # and appends do not wait with it
    assert await deleting == {"a": ("SKIPPED", "held")}


async def test_states_that_are_set_past_the_marks_stop_the_step(store: StoreJournal) -> None:
    await put(store, "a")
    made = await plan(store, "soft-delete")
    candidate = (await candidates(made.context))[0]

    async with transaction(store.database) as connection:
        outcomes = await made.kind.apply(connection, made.items, None, made.context)
        assert [o.state.name for o in outcomes] == ["DONE"]
        await store.database.fetch(
            "SELECT FROM everstate.set_entity_states_v1($1, $2, $3, $4, $5)",
            made.context.log_id, [candidate.entity_type_id], ["a"], [0], [2],
        )  # fmt: skip
        with pytest.raises(InternalError, match="holds no mark"):
            await made.seal(connection, made.items, outcomes)


async def test_the_log_is_locked_by_nothing_but_the_last_statement(store: StoreJournal) -> None:
    """Appends go on while the rest of a step is judged and written."""
    await put(store, "a", "b")
    for kind in ("soft-delete", "undelete"):
        made = await plan(store, kind, ["a"])
        async with transaction(store.database) as connection:
            outcomes = await made.kind.apply(connection, made.items, None, made.context)
            await put(store, "b")  # would wait for the transaction
            await made.seal(connection, made.items, outcomes)


async def test_writers_readers_and_subscribers_beside_the_kinds_notice_nothing_wrong(
    store: StoreJournal,
) -> None:
    """Every append is written or refused with a word for it; reads show what is written, once."""
    ids = await put_many(store, 300)
    written: list[int] = [300]
    refused = 0
    stop = asyncio.Event()

    async def write(number: int) -> None:
        nonlocal refused
        turn = number
        while not stop.is_set():
            turn += 1
            live, other = f"live{number}", ids[turn * 7 % len(ids)]
            mine = (EntityAppend("cart", live, ANY),)
            both = (*mine, EntityAppend("cart", other, ANY))
            event = NewEvent("Added", b"{}", event_id=new_id())
            append = Append(both, (event, NewEvent("Added", b"{}", entity=1, event_id=new_id())))
            results = await asyncio.gather(
                store.append("default", append),
                store.append("default", Append(mine, (NewEvent("Added", b"{}"),))),
                return_exceptions=True,
            )
            assert isinstance(results[1], Appended), "an active entity is never refused"
            for result in results:
                if isinstance(result, EntityDeleted):
                    assert result.entities == (("cart", other),)
                    refused += 1
                else:
                    assert isinstance(result, Appended), result
                    written.append(result.last_position)

    async def load() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            query = LoadQuery("cart", ids[turn * 11 % len(ids)])
            parts = [p async for p in store.load("default", query)]
            events = [e for p in parts for e in p.events]
            assert parts[0].entity is not None
            assert len(events) == parts[0].entity.sequence

    seen: list[int] = []

    async def subscribe() -> None:
        async for batch in store.subscribe("default", SubscribeQuery(from_position=1)):
            seen.extend(e.position for e in batch.events)

    async def change() -> None:
        for _ in range(3):
            made = await plan(store, "soft-delete", ids)
            await made.apply()
            await (await plan(store, "undelete", ids[:100])).apply()
            await made.undo()
            await (await plan(store, "undelete", ids)).apply()

    async with running(subscribe()):
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(write(number))
            group.create_task(load())
            await change()
            stop.set()
        head = (await store.get_log("default")).head
        assert head == max(written)
        while not seen or seen[-1] < head:
            await asyncio.sleep(0.01)
    assert refused > 0
    assert seen == list(range(1, head + 1))
    read = [b async for b in store.read("default", ReadQuery())]
    assert [e.position for b in read for e in b.events] == seen
    report = [p async for p in store.verify("default")][-1].report
    assert report is not None
    assert report.ok, report.findings
    assert set((await states(store)).values()) == {"active"}


async def test_appends_wait_for_no_more_than_a_step(store: StoreJournal) -> None:
    """No append waits for the operation: at most for the end of a step of some entities."""
    ids = await put_many(store, 3_000)
    made = await plan(store, "soft-delete", ids)
    times: list[float] = []
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            began = time.perf_counter()
            await put(store, "live")
            times.append(time.perf_counter() - began)

    writing = asyncio.create_task(write())
    began = time.perf_counter()
    await made.apply()
    took = time.perf_counter() - began
    done.set()
    await writing
    assert len(times) > 15, "appends went on between the steps"
    assert max(times) < took / 3, "no append waited for the operation"
