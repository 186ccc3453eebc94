"""The kinds under SIGKILL: a worker is killed at every checkpoint of an operation and of its undo,
another one goes on: the tables are those of an operation that nobody has disturbed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from journal.groups.model import GroupSettings
from journal.groups.store import GroupStore
from journal.model import NewSnapshot
from journal.store import StoreJournal
from kernel.database import Database
from operations import control
from operations.kinds.base import Environment
from operations.model import OperationRow, Selection, State
from snapshots.folds import canonical
from snapshots.store import SnapshotStore
from tests.engine_support import ANN, Bench, bench
from tests.faults.test_operations import MOST, Killer
from tests.folding import append, fold_of, folding_of
from tests.operating import put_many

ITEMS, FOLDED = 7, 4
SNAPSHOTS = ("snapshot", "snapshot-prune")
CARTS, ACCOUNTS = Selection(types=("cart",)), Selection(types=("account",))
WHAT = {
    "states": "SELECT entity_id, state FROM everstate.entities ORDER BY 1",
    "holds": "SELECT entity_id, label, reason, principal FROM everstate.holds ORDER BY 1, 2",
    "marks": "SELECT entity_key, held FROM everstate.entity_marks WHERE held ORDER BY 1",
    "snapshots": "SELECT entity_key, seq, type, position, source, verified_at IS NULL, payload"
    " FROM everstate.snapshots WHERE removed_at IS NULL ORDER BY 1, 2",
    "list": "SELECT position, state, reason, tries FROM everstate.parked_events ORDER BY 1",
    "places": "SELECT partition, watermark, pending, parked FROM everstate.group_partitions"
    " ORDER BY 1",
}


@pytest.fixture
def killer(database_url: str) -> Any:
    made = Killer(database_url)
    yield made
    made.close()


@pytest.fixture
async def desk(database: Database, store: StoreJournal) -> AsyncIterator[Bench]:
    """Seven carts, each of whose events is parked in the group `mail`, and four accounts of four
    events, which have a fold, and snapshots of what it makes of the first ones.
    """
    async with bench(database, store) as made:
        made.environment = Environment(folding_of())
        await put_many(store, ITEMS)
        opened = await store.open_log("default")
        groups = GroupStore(database)
        group = await groups.create("mail", opened.log_id, GroupSettings(partitions=2), ITEMS)
        await database.fetch(
            "INSERT INTO everstate.parked_events (group_id, position, partition, sequence,"
            " entity_type, entity_id, event_type, state, reason, attempts)"
            " SELECT $1, n, n % 2, 1, 'cart', 'e' || n, 'Added', 'parked', 'no ' || n, 3"
            " FROM generate_series(1, $2) n",
            group, ITEMS,
        )  # fmt: skip
        await database.fetch(
            "UPDATE everstate.group_partitions p SET parked = (SELECT count(*)"
            " FROM everstate.parked_events e WHERE e.partition = p.partition)"
        )
        for n in range(FOLDED):
            await append(store, f"a{n}", *({"by": n + each} for each in range(4)))
            for sequence in (1, 2, 3):
                state = fold_of(n + each for each in range(sequence))
                await SnapshotStore(database, store).save(
                    "default", "account", f"a{n}", sequence,
                    NewSnapshot("account.v1", canonical(state), "application/json"),
                )  # fmt: skip
        yield made


async def tables(desk: Bench) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: [tuple(row) for row in await desk.database.fetch(query)]
        for name, query in WHAT.items()
    }


async def applied(desk: Bench, kind: str, given: dict[str, Any]) -> OperationRow:
    task = kind in ("seek", "replay-parked", "discard-parked")
    entities = ACCOUNTS if kind in SNAPSHOTS else CARTS
    plan = await desk.plan(
        kind, target="mail" if task else "", parameters=given,
        selection=Selection() if task else entities,
    )  # fmt: skip
    return await desk.apply(plan)


async def finished(desk: Bench, row: OperationRow) -> OperationRow:
    async with desk.running():
        return await desk.ended(row)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("kind", "given", "before"),
    [
        ("hold", {"label": "legal"}, ""),
        ("release", {"all": True}, "hold"),
        ("soft-delete", {}, ""),
        ("undelete", {}, "soft-delete"),
        ("snapshot", {}, ""),
        ("snapshot-prune", {}, ""),
        ("seek", {"position": 3}, ""),
        ("discard-parked", {}, ""),
    ],
)
async def test_a_worker_killed_at_any_checkpoint_of_a_kind_or_its_undo_changes_nothing(
    desk: Bench, killer: Killer, kind: str, given: dict[str, Any], before: str
) -> None:
    if before:
        await finished(desk, await applied(desk, before, {}))
    start = await tables(desk)
    row = await finished(desk, await applied(desk, kind, given))
    expected = await tables(desk)
    assert expected != start
    await control.undo(desk.database, row.id, reason="back", principal=ANN)
    assert (await finished(desk, row)).undone == row.done
    assert await tables(desk) == start
    mode = "snapshots" if kind in SNAPSHOTS else "kinds"
    met: set[str] = set()
    ends: set[str] = set()
    for number in range(1, MOST):
        row = await applied(desk, kind, given)
        ends = {await killer.kill_at(mode, number, row)}
        row = await finished(desk, row)
        assert (row.state, row.done, row.skipped) == (State.DONE, row.items, 0), (number, ends)
        assert await tables(desk) == expected, (number, ends)
        await control.undo(desk.database, row.id, reason="back", principal=ANN)
        ends.add(await killer.kill_at(mode, number, row))
        back = await finished(desk, row)
        assert (back.state, back.undone) == (State.UNDONE, row.done), (number, ends)
        assert await tables(desk) == start, (number, ends)
        if ends == {"end"}:
            break
        met |= ends
    assert ends == {"end"}
    assert {"before commit", "after commit"} <= met
    if kind == "snapshot":
        assert {"before prepare", "after prepare"} <= met
    if kind in ("seek", "discard-parked"):
        assert {"before its commit", "after its commit"} <= met
