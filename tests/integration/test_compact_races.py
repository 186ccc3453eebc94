"""What a floor rests on stays of use, whatever is set or found out in the same moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from journal.store import StoreJournal
from kernel import sql
from kernel.database import Connection, Database, transaction
from kernel.errors import Conflict
from operations.model import ItemState
from snapshots.model import TypeSettings
from snapshots.policy import settings_json
from snapshots.store import SnapshotStore, TypeStore
from snapshots.verification import verify
from tests import operating
from tests.folding import append, fold_of, folding_of
from tests.integration.test_folds import by, put, stored
from tests.operating import Operation

DONE = ("DONE", "")
WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted"


async def waiting(database: Database, task: asyncio.Task[Any]) -> None:
    """Until somebody waits for a lock; ``task`` may not end before."""
    async with asyncio.timeout(10):
        while await database.fetchrow(WAITS) != (1,):
            assert not task.done(), task.exception() or task.result()


async def compaction(store: StoreJournal, *right: int, wrong: int = 0) -> Operation:
    """The plan of a compaction of `a`: three events, and verified snapshots after some of them,
    one of which says what its events do not.
    """
    await append(store, "a", *by([1, 2, 3]))
    for n in (*right, *filter(None, (wrong,))):
        await put(store.database, n, fold_of([7] if n == wrong else range(1, n + 1)))
    await store.database.fetch(
        "UPDATE everstate.snapshots s SET verified_at = now(), position = s.seq"
    )
    return await operating.plan(store, "compact")


@contextlib.asynccontextmanager
async def uncommitted(operation: Operation) -> AsyncIterator[Connection]:
    """Inside, the operation's step is done and not committed yet."""
    async with operating.transaction(operation.context.database) as connection:
        (outcome,) = await operation.step(connection, operation.items)
        assert outcome.state is ItemState.DONE
        item = operation.items[0]
        item.state, item.before = outcome.state, outcome.before
        yield connection


async def rests(database: Database) -> list[tuple[Any, ...]]:
    rows = await database.fetch(
        "SELECT m.floor, m.snapshot_seq, t.name, m.floor_snapshot, s.verified_at IS NOT NULL"
        " FROM everstate.entity_marks m"
        " LEFT JOIN everstate.entity_types t ON t.type_id = m.floor_type_id"
        " LEFT JOIN everstate.snapshots s ON s.log_id = m.log_id AND s.entity_key = m.entity_key"
        "   AND s.seq = m.snapshot_seq"
    )
    return [tuple(row) for row in rows]


async def test_a_verdict_waits_for_a_compaction_and_leaves_what_it_rests_on_verified(
    store: StoreJournal,
) -> None:
    operation = await compaction(store, wrong=2)
    async with uncommitted(operation):
        verifying = asyncio.create_task(verify(folding_of(), store, "default", "account", "a"))
        await waiting(store.database, verifying)
    found = await verifying
    assert (found.ok, found.differ) == (False, 1), "and it is said"
    assert await rests(store.database) == [(3, 2, "account", "account.v1", True)]


async def test_a_compaction_waits_for_a_verdict_and_does_not_rest_on_what_differs(
    store: StoreJournal,
) -> None:
    operation = await compaction(store, wrong=2)
    opened = await store.open_log("default")
    async with store.database.connection() as connection, transaction(connection, 20):
        [row] = (await stored(store.database)).values()
        await SnapshotStore(store.database, store).lock(
            connection, opened.log_id, [row["entity_key"]]
        )
        compacting = asyncio.create_task(operation.apply())
        await waiting(store.database, compacting)
        await connection.fetch(
            sql.load("snapshots", "fold_verdicts", store.database.schema), opened.log_id,
            row["entity_key"], [2], [row["recorded_at"]], [False], [2], [row["recorded_at"]],
        )  # fmt: skip
    assert await compacting == {"a": ("SKIPPED", "changed")}
    assert await rests(store.database) == [(None, None, None, None, False)]


WRONG = [
    (TypeSettings(needs_full_replay=True), "needs_full_replay"),
    (TypeSettings(snapshot_types=("account.v2",)), "changed"),
]


@pytest.mark.parametrize("settings", [each for each, _ in WRONG])
async def test_a_setting_waits_for_a_compaction_and_is_refused(
    store: StoreJournal, settings: TypeSettings
) -> None:
    operation = await compaction(store, 2)
    types = TypeStore(store.database, store)
    async with uncommitted(operation):
        setting = asyncio.create_task(types.put("account", settings, version=None, principal="ann"))
        await waiting(store.database, setting)
    with pytest.raises(Conflict, match="1 entities of the type 'account' are compacted"):
        await setting
    assert (await types.get("account")).version == 0
    assert await operation.undo() == {"a": ("UNDONE", "")}
    await types.put("account", settings, version=None, principal="ann")


@pytest.mark.parametrize(("settings", "reason"), WRONG)
async def test_a_compaction_waits_for_a_setting_and_goes_by_it(
    store: StoreJournal, settings: TypeSettings, reason: str
) -> None:
    operation = await compaction(store, 2)
    types = TypeStore(store.database, store)
    given = orjson.dumps(settings_json(settings)).decode()
    async with store.database.connection() as connection, transaction(connection, 20):
        await connection.fetch(
            sql.load("snapshots", "type_put", store.database.schema), "account", given, "ann"
        )
        compacting = asyncio.create_task(operation.apply())
        await waiting(store.database, compacting)
    assert await compacting == {"a": ("SKIPPED", reason)}
    assert (await types.get("account")).settings == settings


async def test_an_undo_goes_back_to_no_snapshot_that_settings_have_ruled_out_since(
    store: StoreJournal,
) -> None:
    first = await compaction(store, 1)
    assert await first.apply() == {"a": DONE}
    await put(store.database, 2, fold_of([1, 2]), "account.v2")
    await store.database.fetch(
        "UPDATE everstate.snapshots s SET verified_at = now(), position = s.seq"
    )
    second = await operating.plan(store, "compact")
    assert await second.apply() == {"a": DONE}
    assert await rests(store.database) == [(3, 2, "account", "account.v2", True)]
    types = TypeStore(store.database, store)
    settings = TypeSettings(snapshot_types=("account.v2",))
    await types.put("account", settings, version=None, principal="ann")
    assert await second.undo() == {"a": ("NOT_UNDONE", "changed")}
    await types.put("account", TypeSettings(), version=None, principal="ann")
    second.items[0].state = ItemState.DONE
    assert await second.undo() == {"a": ("UNDONE", "")}
    assert await rests(store.database) == [(2, 1, "account", "account.v1", True)]
    assert await first.undo() == {"a": ("UNDONE", "")}
    assert await rests(store.database) == [(None, None, None, None, False)]
