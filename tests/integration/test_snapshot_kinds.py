"""The kinds `snapshot` and `snapshot-prune`, step by step, without the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from journal.model import NewSnapshot
from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import InvalidArgument
from kernel.ids import new_id
from operations.kinds import kind_named
from snapshots.folding import Folding
from snapshots.folds import canonical
from snapshots.model import TypeSettings
from snapshots.store import SnapshotStore, TypeStore
from snapshots.verification import verify
from tests import operating
from tests.folding import Total, append, at, fold_of, folding_of
from tests.integration.test_folds import Lossy, Spinning, by, compact, put, stored
from tests.operating import Operation

DONE = ("DONE", "")


async def plan(
    store: StoreJournal, kind: str = "snapshot", folding: Folding | None = None, **more: Any
) -> Operation:
    return await operating.plan(store, kind, folds=folding or folding_of(), **more)


async def configure(store: StoreJournal, **given: Any) -> Mapping[str, TypeSettings]:
    """Settings of the type `account`, in the database and as a context has them."""
    settings = TypeSettings(**given)
    types = TypeStore(store.database, store)
    await types.put("account", settings, version=None, principal="test")
    return {"account": settings}


async def shown(database: Database, name: str = "a") -> list[int]:
    """Snapshots that are there for readers."""
    return [n for n, row in (await stored(database, name)).items() if row["removed_at"] is None]


# snapshot


async def test_a_snapshot_of_the_head_is_saved_verified_and_loads_begin_with_it(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3]), times=[at(2020), at(2021), at(2022)])
    await append(store, "b", *by([7]))
    operation = await plan(store)
    assert [(i.entity_id, i.target, i.position, i.events) for i in operation.items] == [
        ("a", 3, 3, 3), ("b", 1, 4, 1),
    ]  # fmt: skip
    assert "Save a snapshot of 2 entities, folded from" in operation.sentence
    assert await operation.apply() == {"a": DONE, "b": DONE}
    info, payload = await SnapshotStore(store.database, store).get("default", "account", "a")
    assert (info.sequence, info.position, info.event_at_us) == (3, 3, at(2022))
    assert (info.type, info.content_type, info.source.name) == (
        "account.v1", "application/json", "FOLD",
    )  # fmt: skip
    assert info.verified_at_us > 0
    assert orjson.loads(payload) == fold_of([1, 2, 3])
    assert (await verify(folding_of(), store, "default", "account", "a")).ok
    again = await plan(store)
    assert (again.items, again.excluded) == ([], {"a": "current", "b": "current"})


async def test_a_snapshot_of_a_time_is_taken_before_the_first_event_that_is_not_before_it(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 4]), times=[at(2020), at(2022), at(2021)])
    await append(store, "b", *by([1]), times=[at(2023)])
    await append(store, "c", *by([1, 2]), times=[at(2019), at(2020)])
    operation = await plan(store, at="2021-06-01T00:00:00Z")
    assert {i.entity_id: (i.target, i.position) for i in operation.items} == {
        "a": (1, 1), "c": (2, 6),
    }  # fmt: skip
    assert operation.excluded == {"b": "no_events"}
    assert "as of before 2021-06-01T00:00:00" in operation.sentence
    assert await operation.apply() == {"a": DONE, "c": DONE}
    rows = await stored(store.database)
    assert orjson.loads(rows[1]["payload"]) == fold_of([1])
    assert (rows[1]["position"], rows[1]["event_at"].year) == (1, 2020)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"needs_full_replay": True}, "needs_full_replay"),
        ({"snapshot_types": ("owner.total",)}, "unusable"),
        ({"snapshot_types": ("account.v1",)}, None),
    ],
)
async def test_types_that_cannot_use_it_are_left_out(
    store: StoreJournal, settings: dict[str, Any], reason: str | None
) -> None:
    await append(store, "a", *by([1]))
    operation = await plan(store, settings=await configure(store, **settings))
    assert operation.excluded == ({"a": reason} if reason else {})


async def test_what_has_no_fold_is_left_out_and_nobody_guesses(store: StoreJournal) -> None:
    await append(store, "a", {}, entity_type="cart")
    assert (await plan(store)).excluded == {"a": "no_fold"}
    assert (await operating.plan(store, "snapshot")).excluded == {"a": "no_fold"}
    await append(store, "b", *by([1]))
    operation = await plan(store)
    operation.context.environment.folds = None  # a worker without the user's code
    assert await operation.apply() == {"b": ("FAILED", "no_fold")}


async def test_an_entity_that_fails_fails_alone(store: StoreJournal) -> None:
    await append(store, "a", *by([1]))
    await append(store, "b", {"by": "fail", "secret": "x"})
    await append(store, "c", *by([7]))
    operation = await plan(store, folding=folding_of(Spinning, batch_seconds=0.3))
    assert await operation.apply() == {
        "a": DONE, "b": ("FAILED", "fold_failed"), "c": ("FAILED", "fold_failed"),
    }  # fmt: skip
    lossy = await plan(store, folding=folding_of(Lossy), ids=["b"])
    assert await lossy.apply() == {"b": ("FAILED", "fold_failed")}


class Large(Total):
    def dump(self, state: dict[str, Any]) -> bytes:
        return canonical(state | {"fill": "x" * 4_000_000})

    def load(self, payload: bytes, type: str) -> dict[str, Any]:  # noqa: A002
        state = super().load(payload, type)
        del state["fill"]
        return state


async def test_a_snapshot_that_is_too_large_is_not_saved(store: StoreJournal) -> None:
    await append(store, "a", *by([1]))
    operation = await plan(store, folding=folding_of(Large))
    assert await operation.apply() == {"a": ("FAILED", "too_large")}
    assert await shown(store.database) == []


async def test_entities_that_changed_since_the_plan_are_saved_as_planned_or_passed_over(
    store: StoreJournal,
) -> None:
    for name in ("a", "b", "c", "d"):
        await append(store, name, *by([1, 2, 3]))
    operation = await plan(store)
    await append(store, "a", *by([4]))
    await put(store.database, 3, fold_of([1, 2, 3]), name="c")
    await put(store.database, 3, fold_of([1, 2, 3]), name="d")
    await compact(store.database, floor=4, name="d")
    async with store.database.connection() as connection:
        await connection.execute("UPDATE everstate.entities SET state = 2 WHERE entity_id = 'b'")
    assert await operation.apply() == {
        "a": DONE, "b": ("SKIPPED", "tombstoned"), "c": DONE, "d": DONE,
    }  # fmt: skip
    assert (await stored(store.database, "c"))[3]["verified_at"] is not None, "it was proven"
    assert (await plan(store)).excluded["b"] == "tombstoned"


async def test_a_snapshot_of_the_owner_at_that_place_is_proven_or_told_apart(
    store: StoreJournal,
) -> None:
    right, wrong = canonical(fold_of([1])), canonical(fold_of([2]))
    for name, kind, payload in (
        ("right", "owner.total", right), ("wrong", "owner.total", wrong),
        ("foreign", "pickled", b"x"), ("nonsense", "owner.total", b"{"),
    ):  # fmt: skip
        snapshot = NewSnapshot(kind, payload, "application/json")
        await append(store, name, *by([1]), snapshot=snapshot)
    operation = await plan(store)
    assert operation.excluded == {"foreign": "taken"}
    assert await operation.apply() == {
        "right": DONE, "wrong": ("FAILED", "differs"), "nonsense": ("FAILED", "differs"),
    }  # fmt: skip
    [row] = (await stored(store.database, "right")).values()
    assert (row["type"], row["source"]) == ("owner.total", 0), "it stays the owner's"
    assert row["verified_at"] is not None
    await operation.undo()
    [row] = (await stored(store.database, "right")).values()
    assert (row["verified_at"], row["removed_at"]) == (None, None)


async def test_below_the_floor_there_is_nothing_to_take(store: StoreJournal) -> None:
    await append(store, "a", *by([1, 2, 3]), times=[at(2020), at(2021), at(2022)])
    await put(store.database, 2, fold_of([1, 2]))
    await compact(store.database, floor=3)
    assert (await plan(store, at="2020-06-01T00:00:00Z")).excluded == {"a": "compacted"}
    operation = await plan(store)
    assert (operation.items[0].target, operation.items[0].events) == (3, 1)
    assert await operation.apply() == {"a": DONE}
    assert orjson.loads((await stored(store.database))[3]["payload"]) == fold_of([1, 2, 3])


async def test_only_what_is_due_by_its_policy(store: StoreJournal) -> None:
    await append(store, "few", *by([1]), times=[at(2020)])
    await append(store, "many", *by([1, 2, 3]), times=[at(2020)] * 3)
    every = await configure(store, snapshot_every=3)
    assert [i.entity_id for i in (await plan(store, due=True, settings=every)).items] == ["many"]
    aged = await configure(store, snapshot_age_s=86_400)
    operation = await plan(store, due=True, settings=aged)
    assert [i.entity_id for i in operation.items] == ["few", "many"]
    await operation.apply()
    assert (await plan(store, due=True, settings=aged)).items == []
    await append(store, "few", *by([2]))
    assert (await plan(store, due=True, settings=aged)).items == [], "it is new"
    none = await configure(store)
    assert (await plan(store, due=True, settings=none)).items == []


async def test_a_kill_before_the_commit_leaves_nothing_and_the_next_try_the_same(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2]))
    operation = await plan(store)
    await operation.killed()
    assert await stored(store.database) == {}
    assert await operation.apply() == {"a": DONE}


async def test_undo_takes_the_snapshots_away_unless_a_floor_rests_on_them(
    store: StoreJournal,
) -> None:
    for name in ("a", "b", "c"):
        await append(store, name, *by([1, 2]))
    await put(store.database, 1, fold_of([1]))
    operation = await plan(store)
    await operation.apply()
    await compact(store.database, floor=3, name="b")
    async with store.database.connection() as connection:
        await connection.execute(
            """UPDATE everstate.snapshots s SET payload = '1' FROM everstate.entities e
               WHERE e.entity_key = s.entity_key AND e.entity_id = 'c'"""
        )
    assert await operation.undo() == {
        "a": ("UNDONE", ""), "b": ("NOT_UNDONE", "covers"), "c": ("NOT_UNDONE", "changed"),
    }  # fmt: skip
    assert await shown(store.database) == [1]
    assert await shown(store.database, "b") == [2], "a floor rests on it"
    row = (await stored(store.database))[2]
    assert row["removed_at"] is not None
    assert row["removed_by"] is None, "nothing brings it back: it is no operation's to keep"


async def test_undo_takes_nothing_away_from_what_is_held(store: StoreJournal) -> None:
    for name in ("held", "proven", "free"):
        await append(store, name, *by([1, 2]))
    await put(store.database, 2, fold_of([1, 2]), name="proven")
    operation = await plan(store)
    assert set((await operation.apply()).values()) == {DONE}
    await (await operating.plan(store, "hold", ["held", "proven"])).apply()
    assert await operation.undo() == {
        "held": ("NOT_UNDONE", "held"), "proven": ("NOT_UNDONE", "held"), "free": ("UNDONE", ""),
    }  # fmt: skip
    for name, there in (("held", [2]), ("proven", [2]), ("free", [])):
        assert await shown(store.database, name) == there
    await (await plan(store, "snapshot", ids=["free"])).apply()
    assert await shown(store.database, "free") == [2], "what was taken back can be taken again"


async def test_a_snapshot_is_saved_over_no_removed_one_that_must_stay(store: StoreJournal) -> None:
    for name in ("pruned", "held", "free"):
        await taken(store, name, [8, 9])
        await append(store, name, {"by": 1}, {"by": 2})
        for n in (11, 12):
            await put(store.database, n, b"x", "pickled", name)
    by_whom = new_id()
    await store.database.fetch(
        """INSERT INTO everstate.operations (operation_id, kind, state, selection, parameters, plan,
          digest, head, items, planned_by, expires_at)
        VALUES ($1, 'snapshot-prune', 'paused', '{}', '{}', '{}', '', 0, 0, 'me', now())""",
        by_whom,
    )
    await store.database.fetch(
        """UPDATE everstate.snapshots s SET removed_at = now(), payload = 'old',
          removed_by = CASE WHEN e.entity_id = 'pruned' THEN $1::uuid END
        FROM everstate.entities e WHERE e.entity_key = s.entity_key AND s.seq = 12""",
        by_whom,
    )
    operation = await plan(store)
    await (await operating.plan(store, "hold", ["held"])).apply()
    assert await operation.apply() == {
        "pruned": ("SKIPPED", "removed"), "held": ("SKIPPED", "held"), "free": DONE,
    }  # fmt: skip
    payloads = {
        name: (await stored(store.database, name))[12]["payload"] for name in ("pruned", "held")
    }
    assert payloads == {"pruned": b"old", "held": b"old"}


@pytest.mark.parametrize(
    ("kind", "parameters", "named"),
    [
        ("snapshot", {"at": "2020"}, "parameters.at"),
        ("snapshot", {"at": 2020}, "parameters.at"),
        ("snapshot", {"due": 1}, "parameters.due"),
        ("snapshot", {"due": True, "at": "2020-01-01T00:00:00Z"}, "parameters.due"),
        ("snapshot", {"keep": 2}, "parameters.keep"),
        ("snapshot-prune", {"keep": 1}, "parameters.keep"),
        ("snapshot-prune", {"keep": 1_001}, "parameters.keep"),
        ("snapshot-prune", {"at": "x"}, "parameters.at"),
    ],
)
def test_wrong_parameters_are_named(kind: str, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        kind_named(kind).parameters(parameters)
    assert caught.value.field == named


# snapshot-prune


async def taken(store: StoreJournal, name: str, sequences: Sequence[int]) -> None:
    """An entity of ten events with these snapshots."""
    await append(store, name, *by(range(10)))
    for n in sequences:
        await put(store.database, n, fold_of(range(n)), name=name)


async def test_old_snapshots_are_removed_and_undo_brings_the_same_ones_back(
    store: StoreJournal,
) -> None:
    await taken(store, "a", [1, 2, 3, 4, 5])
    await taken(store, "b", [1, 2])
    before = await stored(store.database)
    operation = await plan(store, "snapshot-prune", keep=3)
    assert [(i.entity_id, i.target) for i in operation.items] == [("a", 2)]
    assert operation.items[0].bytes == sum(len(before[n]["payload"]) for n in (1, 2))
    assert operation.excluded == {"b": "current"}
    assert "keep the newest 3 of each" in operation.sentence
    assert await operation.apply() == {"a": DONE}
    assert await shown(store.database) == [3, 4, 5]
    assert await operation.undo() == {"a": ("UNDONE", "")}
    assert await stored(store.database) == before


async def test_the_settings_of_the_type_say_how_many_stay(store: StoreJournal) -> None:
    await taken(store, "a", [1, 2, 3, 4, 5])
    operation = await plan(
        store, "snapshot-prune", settings=await configure(store, keep_snapshots=4)
    )
    await operation.apply()
    assert await shown(store.database) == [2, 3, 4, 5]
    await (await plan(store, "snapshot-prune")).apply()
    assert await shown(store.database) == [4, 5]


async def test_what_a_floor_rests_on_and_what_is_held_stays(store: StoreJournal) -> None:
    await taken(store, "a", [1, 2, 3, 4, 5])
    await compact(store.database, floor=3)
    await taken(store, "held", [1, 2, 3])
    await taken(store, "later", [1, 2, 3])
    await (await operating.plan(store, "hold", ["held"])).apply()
    operation = await plan(store, "snapshot-prune")
    assert operation.excluded == {"held": "held"}
    await (await operating.plan(store, "hold", ["later"])).apply()
    assert await operation.apply() == {"a": DONE, "later": ("SKIPPED", "held")}
    assert await shown(store.database) == [2, 4, 5]
    assert await shown(store.database, "held") == await shown(store.database, "later") == [1, 2, 3]


async def test_the_newest_that_the_owner_can_load_stay_as_well(store: StoreJournal) -> None:
    await taken(store, "a", [1, 2, 3])
    for n in (4, 5, 6):
        await put(store.database, n, b"x", "pickled")
    settings = await configure(store, snapshot_types=("account.v1",))
    await (await plan(store, "snapshot-prune", settings=settings)).apply()
    assert await shown(store.database) == [2, 3, 5, 6]


async def test_what_was_saved_since_the_plan_is_not_removed(store: StoreJournal) -> None:
    await taken(store, "a", [1, 2, 3, 4])
    operation = await plan(store, "snapshot-prune")
    for n in (5, 6):
        await put(store.database, n, fold_of(range(n)))
    await operation.apply()
    assert await shown(store.database) == [3, 4, 5, 6], "no more than was planned"
    again = await plan(store, "snapshot-prune")
    await SnapshotStore(store.database, store).delete("default", "account", "a", 4)
    await SnapshotStore(store.database, store).delete("default", "account", "a", 3)
    assert await again.apply() == {"a": ("SKIPPED", "current")}
    assert await shown(store.database) == [5, 6]


async def test_undo_does_not_overwrite_what_was_saved_since(store: StoreJournal) -> None:
    await taken(store, "a", [1, 2, 3])
    operation = await plan(store, "snapshot-prune")
    await operation.apply()
    new = NewSnapshot("owner.total", b"new", "text/plain")
    await SnapshotStore(store.database, store).save("default", "account", "a", 1, new)
    assert await operation.undo() == {"a": ("NOT_UNDONE", "changed")}
    assert (await stored(store.database))[1]["payload"] == b"new"
