"""Snapshots of many entities at once are those that each would have by itself."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journal.store import StoreJournal
from kernel.errors import EverstateError, FoldFailed, TooLarge
from schemas.descriptors import Decoder
from schemas.upcasters import Upcasters, upcaster
from snapshots import batches
from snapshots.batches import Batches, Wanted
from snapshots.folding import Folded, Folding
from snapshots.folds import Folds, canonical
from tests.folding import Total, append, definition_of, fold_of, folding_of
from tests.integration.test_folds import Spinning, by, compact, put

_serial = itertools.count()


async def wanted_of(store: StoreJournal) -> list[Wanted]:
    """The heads of all entities."""
    rows = await store.database.fetch(
        """SELECT e.entity_key, e.type_id, t.name, e.entity_id, e.last_seq
           FROM everstate.entities e JOIN everstate.entity_types t USING (type_id)
           WHERE t.name = 'account' ORDER BY e.entity_key"""
    )
    return [Wanted(*row) for row in rows]


async def make(
    store: StoreJournal, wanted: list[Wanted], folding: Folding | None = None, **given: Any
) -> list[Any]:
    log = await store.open_log("default")
    limits: dict[str, Any] = {
        "largest": 4_000_000, "enough_bytes": 16_000_000, "enough_seconds": 30.0,
        "alone_seconds": 60.0,
    }  # fmt: skip
    made = Batches(folding or folding_of(), store, "default", log.log_id, **limits | given)
    return list(await made.make(wanted))


async def alone(store: StoreJournal, each: Wanted, folding: Folding) -> Folded | EverstateError:
    try:
        return await folding.snapshot_at(
            store, "default", each.entity_type, each.entity_id, each.sequence
        )
    except EverstateError as failed:
        return failed


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    floors=st.sets(st.integers(0, 7)),
    few=st.integers(1, 12),
    room=st.integers(1, 400),
)
async def test_they_are_those_of_the_streamed_path_whatever_the_sizes_and_floors(
    store: StoreJournal, sizes: list[int], floors: set[int], few: int, room: int
) -> None:
    run = next(_serial)
    for n, size in enumerate(sizes):
        name = f"{run}-{n}"
        await append(store, name, *by(range(size)))
        if n in floors and size > 1:
            await put(store.database, size // 2, fold_of(range(size // 2)), name=name)
            await compact(store.database, floor=size // 2 + 1, name=name)
    wanted = [each for each in await wanted_of(store) if each.entity_id.startswith(f"{run}-")]
    folding = folding_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "FEW", few)
        patch.setattr(batches, "READ_BYTES", room)
        made = await make(store, wanted, folding)
    assert made == [await alone(store, each, folding) for each in wanted]
    assert [each.sequence for each in made] == sizes


async def test_one_that_fails_and_one_that_hangs_fail_alone_and_the_loop_goes_on(
    store: StoreJournal,
) -> None:
    for n in range(40):
        await append(store, f"e{n:02}", *by([7] if n == 20 else [1, 2]))
    await append(store, "e40", {"by": "fail", "secret": "hunter2"})
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    beside = asyncio.create_task(tick())
    made = await make(store, await wanted_of(store), folding_of(Spinning, batch_seconds=0.3))
    beside.cancel()
    assert [n for n, each in enumerate(made) if isinstance(each, FoldFailed)] == [20, 40]
    assert "account/e20: gave no answer within 0.3 s" in made[20].message
    assert "hunter2" not in made[40].message
    assert len(made) == 41
    assert ticks > 5


class Exiting(Total):
    def apply(self, state: dict[str, Any], event: Any) -> dict[str, Any]:
        if event.data["by"] == 7:
            raise SystemExit
        return super().apply(state, event)


async def test_one_that_would_end_the_program_fails_alone(store: StoreJournal) -> None:
    for name, number in (("a", 1), ("b", 7), ("c", 2)):
        await append(store, name, *by([number]))
    made = await make(store, await wanted_of(store), folding_of(Exiting))
    assert [isinstance(each, FoldFailed) for each in made] == [False, True, False]


class Wide(Total):
    def dump(self, state: dict[str, Any]) -> bytes:
        return canonical(state | {"fill": "x" * 1_000})

    def load(self, payload: bytes, type: str) -> dict[str, Any]:  # noqa: A002
        state = super().load(payload, type)
        del state["fill"]
        return state


async def test_it_stops_when_enough_is_made_and_never_before_the_first(
    store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        await append(store, f"e{n:02}", *by([n]))
    wanted = await wanted_of(store)
    monkeypatch.setattr(batches, "READ_BYTES", 2_000)
    made = await make(store, wanted, folding_of(Wide), enough_bytes=6_000)
    assert 6 <= len(made) <= 12
    assert [each.sequence for each in made] == [1] * len(made)
    assert len(await make(store, wanted, folding_of(Wide), enough_bytes=1, largest=10)) >= 1
    assert len(await make(store, wanted, enough_seconds=0)) >= 1
    [first, *_] = await make(store, wanted[:1], folding_of(Wide), largest=10)
    assert isinstance(first, TooLarge)


async def test_events_come_in_their_present_shape(store: StoreJournal) -> None:
    @upcaster("Added", from_version=0)
    def tenfold(data: Any) -> Any:
        return data | {"by": data["by"] * 10}

    await append(store, "a", *by([1, 2]))
    upcasters = Upcasters([tenfold])
    folding = Folding(Folds([definition_of(Total)]), lambda: Decoder(upcasters=upcasters))
    [made] = await make(store, await wanted_of(store), folding)
    assert made.payload == canonical(fold_of([10, 20]))


async def test_a_few_small_entities_cost_a_few_statements(
    store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(50):
        await append(store, f"e{n:02}", *by([n]))
    wanted = await wanted_of(store)
    asked = 0
    fetch = type(store.database).fetch

    async def counted(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        return await fetch(self, *args, **more)

    await store.open_log("default")
    monkeypatch.setattr(type(store.database), "fetch", counted)
    assert len(await make(store, wanted)) == 50
    assert asked <= 4
