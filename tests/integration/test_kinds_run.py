"""The kinds through the engine: planned, applied by a person, run by a runner, undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import Conflict, InvalidArgument
from operations import control
from operations.holds import list_holds
from operations.kinds.base import Environment
from operations.model import OperationRow, Selection, State
from snapshots.store import SnapshotStore
from tests.engine_support import ANN, Bench, bench
from tests.folding import append, folding_of
from tests.operating import put, put_many, table


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> AsyncIterator[Bench]:
    async with bench(database, store) as made:
        yield made


CARTS = Selection(types=("cart",))


async def undone(desk: Bench, row: OperationRow) -> OperationRow:
    await control.undo(desk.database, row.id, reason="back", principal=ANN)
    async with desk.running():
        return await desk.ended(row)


async def states(desk: Bench) -> set[str]:
    page = await desk.journal.list_entities("default", "cart", page_size=1000)
    return {entity.state for entity in page.entities}


async def done(desk: Bench, kind: str, **parameters: Any) -> OperationRow:
    """An operation on all carts, done."""
    plan = await desk.plan(kind, selection=CARTS, parameters=parameters)
    return await desk.done(plan)


async def test_hold_and_release_and_back(desk: Bench) -> None:
    await put_many(desk.journal, 700)
    plan = await desk.plan("hold", selection=CARTS, parameters={"label": "legal"})
    assert plan.plan["sentence"] == (
        "Hold 700 entities of type cart under 'legal': nothing of them can be removed until they"
        " are released."
    )
    held = await desk.done(plan)
    assert (held.state, held.done, held.skipped) == (State.DONE, 700, 0)
    page = await list_holds(desk.database, "default", limit=1000)
    assert {(h.label, h.reason, h.principal, h.operation) for h in page} == {
        ("legal", "a test", "ann", held.id)
    }
    assert len(page) == 700
    refused = await desk.plan("soft-delete", selection=CARTS)
    assert (refused.items, refused.plan["excluded"]) == (0, {"held": 700})
    holds = await table(desk.database, "holds", "entity_key")
    released = await done(desk, "release", label="legal")
    assert (released.done, await list_holds(desk.database, "default")) == (700, [])
    back = await undone(desk, released)
    assert (back.state, back.undone) == (State.UNDONE, 700)
    assert await table(desk.database, "holds", "entity_key") == holds
    assert (await undone(desk, held)).undone == 700
    assert await list_holds(desk.database, "default") == []


async def test_soft_delete_and_undelete_and_back(desk: Bench) -> None:
    await put_many(desk.journal, 450)
    before = await table(desk.database, "entities", "entity_key")
    deleted = await done(desk, "soft-delete")
    assert (deleted.state, deleted.done) == (State.DONE, 450)
    assert await states(desk) == {"deleted"}
    restored = await done(desk, "undelete")
    assert await states(desk) == {"active"}
    for row in (restored, deleted):
        back = await undone(desk, row)
        assert (back.state, back.undone) == (State.UNDONE, 450)
    assert await table(desk.database, "entities", "entity_key") == before


async def test_a_tombstone_is_typed_and_stays(desk: Bench) -> None:
    await put(desk.journal, "a", "b")
    plan = await desk.plan("tombstone", selection=CARTS)
    assert plan.plan["undoable"] is False
    assert "for ever" in plan.plan["warnings"][0]
    with pytest.raises(InvalidArgument, match="typed"):
        await desk.apply(plan)
    await desk.apply(plan, typed=plan.plan["typed"])
    async with desk.running():
        receipt = await desk.ended(plan)
    assert (receipt.state, receipt.done, await states(desk)) == (State.DONE, 2, {"tombstoned"})
    with pytest.raises(Conflict):
        await control.undo(desk.database, plan.id, reason="no", principal=ANN)


async def test_what_was_held_since_the_plan_goes_to_review_or_is_skipped(desk: Bench) -> None:
    await put_many(desk.journal, 100)
    plan = await desk.plan("soft-delete", selection=CARTS)
    few = tuple(("cart", f"e{n:06}") for n in range(3))
    hold = await desk.plan("hold", selection=Selection(entities=few))
    await desk.done(hold)
    receipt = await desk.done(plan)
    assert (receipt.state, receipt.done, receipt.skipped) == (State.DONE, 97, 3)
    groups = await control.failures(desk.database, plan.id)
    assert [(g.reason, g.count) for g in groups] == [("held", 3)]
    plan = await desk.plan("undelete", selection=CARTS)
    await undone(desk, receipt)
    receipt = await desk.done(plan)
    assert (receipt.state, receipt.done) == (State.REVIEW, 0)


async def test_snapshots_of_entities_that_go_on_are_saved_as_they_were_planned(desk: Bench) -> None:
    """That others write to what was reviewed is no reason to review it again."""
    for name in "abcd":
        await append(desk.journal, name, *({"by": n} for n in (1, 2, 3)))
    desk.environment = Environment(folds=folding_of())
    plan = await desk.plan("snapshot", selection=Selection(types=("account",)))
    for name in "abc":
        await append(desk.journal, name, {"by": 5})
    row = await desk.done(plan)
    assert (row.state, row.done, row.error) == (State.DONE, 4, None)
    found = await SnapshotStore(desk.database, desk.journal).list("default", "account", "a")
    assert [(each.sequence, each.verified_at_us > 0) for each in found] == [(3, True)]
