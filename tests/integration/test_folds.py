"""Folds at work: states at any sequence number, and snapshots held against events (invariant 8)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journal.model import NewSnapshot
from journal.store import StoreJournal
from kernel.database import Database
from kernel.errors import (
    Compacted,
    Conflict,
    DeadlineExceeded,
    EntityNotFound,
    FoldFailed,
    InvalidArgument,
    LogNotFound,
    NoFold,
    TooLarge,
    Undecodable,
)
from snapshots import fold_registry
from snapshots.folding import Folding
from snapshots.folds import Fold, FoldEvent, canonical
from snapshots.model import TypeSettings
from snapshots.store import TypeStore
from snapshots.verification import Verification, verify
from tests.folding import Total, append, at, definition_of, fold_of, folding_of

ONE = ("default", "account", "a")
_serial = itertools.count()


def by(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [{"by": number} for number in numbers]


async def put(
    database: Database, sequence: int, state: object, kind: str = "account.v1", name: str = "a"
) -> None:
    """Stores a snapshot as a client of old would have: without position and time."""
    payload = state if isinstance(state, bytes) else canonical(state)
    async with database.connection() as connection:
        await connection.execute(
            """INSERT INTO everstate.snapshots
                 (entity_key, seq, recorded_at, log_id, type, content_type, payload)
               SELECT entity_key, $2, clock_timestamp(), log_id, $3, 'application/json', $4
               FROM everstate.entities WHERE entity_id = $1""",
            name, sequence, kind, payload,
        )  # fmt: skip


async def stored(database: Database, name: str = "a") -> dict[int, Any]:
    rows = await database.fetch(
        """SELECT s.* FROM everstate.snapshots s
           JOIN everstate.entities e USING (log_id, entity_key)
           WHERE e.entity_id = $1 ORDER BY s.seq""",
        name,
    )
    return {row["seq"]: row for row in rows}


async def compact(database: Database, floor: int, name: str = "a") -> None:
    """Moves a floor as a compaction does."""
    async with database.connection() as connection:
        await connection.execute(
            """INSERT INTO everstate.entity_marks
                 (log_id, entity_key, floor, snapshot_seq, floor_position)
               SELECT s.log_id, s.entity_key, s.seq + 1, s.seq, coalesce(s.position, 0)
               FROM everstate.snapshots s JOIN everstate.entities e USING (log_id, entity_key)
               WHERE e.entity_id = $1 AND s.seq = $2 - 1
               ON CONFLICT (log_id, entity_key) DO UPDATE SET floor = excluded.floor,
                 snapshot_seq = excluded.snapshot_seq, floor_position = excluded.floor_position""",
            name, floor,
        )  # fmt: skip


# States


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    numbers=st.lists(st.integers(-50, 50), min_size=1, max_size=30),
    taken=st.sets(st.integers(1, 30), max_size=5),
    removed=st.sets(st.integers(1, 30), max_size=5),
)
async def test_the_state_at_n_is_the_fold_of_the_first_n_events_whatever_snapshots_there_are(
    store: StoreJournal, numbers: list[int], taken: set[int], removed: set[int]
) -> None:
    name = f"entity-{next(_serial)}"
    await append(store, name, *by(numbers))
    database = store.database
    taken = {n for n in taken if n <= len(numbers)}
    for n in taken:
        await put(database, n, fold_of(numbers[:n]), name=name)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE everstate.snapshots SET removed_at = now() WHERE seq = ANY($1::bigint[])",
            sorted(removed),
        )
    folding = folding_of()
    for n in range(1, len(numbers) + 1):
        state = await folding.state_at(store, "default", "account", name, sequence=n)
        assert state.json == fold_of(numbers[:n])
        before = max((t for t in taken - removed if t <= n), default=0)
        assert (state.sequence, state.from_snapshot, state.events_folded) == (n, before, n - before)
        full = await folding.state_at(store, "default", "account", name, sequence=n, full=True)
        assert (full.json, full.from_snapshot, full.events_folded) == (state.json, 0, n)
    found = await verify(folding, store, "default", "account", name)
    assert (found.ok, found.agree, found.differ) == (True, len(taken - removed), 0)


async def test_the_state_says_where_and_when_it_is(store: StoreJournal) -> None:
    await append(store, "other", *by([1]))
    await append(store, "a", *by([1, 2]), times=[at(2020), at(2021)])
    state = await folding_of().state_at(store, *ONE)
    assert (state.sequence, state.position, state.time_us) == (2, 3, at(2021))
    assert (state.floor, state.fold_version) == (1, 1)
    first = await folding_of().state_at(store, *ONE, sequence=1)
    assert (first.position, first.time_us) == (2, at(2020))


async def test_the_state_at_a_time_ends_before_the_first_event_that_is_not_before_it(
    store: StoreJournal,
) -> None:
    times = [at(2020), at(2022), at(2021), at(2024), at(2019)]  # clocks of writers may run back
    await append(store, "a", *by([1, 2, 4, 8, 16]), times=times)
    folding = folding_of()
    for time_us, sequence in (
        (at(2020) + 1, 1), (at(2021, 6), 1), (at(2022), 1), (at(2022) + 1, 3), (at(2024), 3),
        (at(2024) + 1, 5),
    ):  # fmt: skip
        state = await folding.state_at(store, *ONE, time_us=time_us)
        assert state.sequence == sequence
    with pytest.raises(InvalidArgument, match="at: account/a had no event before that time"):
        await folding.state_at(store, *ONE, time_us=at(2020))
    with pytest.raises(InvalidArgument, match="either"):
        await folding.state_at(store, *ONE, time_us=at(2020), sequence=1)


async def test_many_events_are_folded_batch_by_batch(store: StoreJournal) -> None:
    for _ in range(3):
        await append(store, "a", *by(range(1_000)))
    state = await folding_of().state_at(store, *ONE, sequence=2_500)
    assert state.json == fold_of([*range(1_000), *range(1_000), *range(500)])


async def test_what_cannot_be_told_is_said_in_a_sentence(store: StoreJournal) -> None:
    await append(store, "a", *by([1, 2]))
    await append(store, "a", {}, entity_type="cart")
    folding = folding_of()
    with pytest.raises(NoFold, match="there is no fold of entity type 'cart'"):
        await folding.state_at(store, "default", "cart", "a")
    with pytest.raises(EntityNotFound):
        await folding.state_at(store, "default", "account", "b")
    with pytest.raises(LogNotFound):
        await folding.state_at(store, "nowhere", "account", "a")
    with pytest.raises(InvalidArgument, match="3 is not from 1 to 2, the last of account/a"):
        await folding.state_at(store, *ONE, sequence=3)
    with pytest.raises(InvalidArgument, match="sequence"):
        await folding.state_at(store, *ONE, sequence=-1)
    with pytest.raises(InvalidArgument, match="entity_id"):
        await folding.state_at(store, "default", "account", "")


async def test_a_fold_that_fails_is_named_with_entity_sequence_and_line_and_never_with_values(
    store: StoreJournal,
) -> None:
    await append(store, "a", {"by": 1}, {"by": "fail", "secret": "hunter2"})
    with pytest.raises(FoldFailed) as caught:
        await folding_of().state_at(store, *ONE)
    said = caught.value.message
    assert "fold of account version 1: account/a: sequence 2: KeyError (" in said
    assert "tests/folding.py:" in said
    assert "hunter2" not in said
    assert caught.value.__suppress_context__, "a traceback would quote it"
    assert (await folding_of().state_at(store, *ONE, sequence=1)).json == fold_of([1])


async def test_a_payload_that_is_not_what_it_says_is_named(store: StoreJournal) -> None:
    await append(store, "a", {"by": 1})
    async with store.database.connection() as connection:
        await connection.execute("UPDATE everstate.events SET payload = '{' WHERE seq = 1")
    with pytest.raises(Undecodable, match="account/a: sequence 1: the payload of Added"):
        await folding_of().state_at(store, *ONE)


class Spinning(Total):
    def apply(self, state: dict[str, Any], event: FoldEvent) -> dict[str, Any]:
        while event.data["by"] == 7:
            pass
        return super().apply(state, event)


async def test_a_fold_that_hangs_is_given_up_while_others_go_on(store: StoreJournal) -> None:
    await append(store, "a", *by([7]))
    await append(store, "b", *by([1]))
    folding = folding_of(Spinning, batch_seconds=0.5)
    hanging = asyncio.gather(
        *(folding.state_at(store, *ONE) for _ in range(4)), return_exceptions=True
    )
    for error in await hanging:
        assert isinstance(error, FoldFailed), error
        assert error.message == "fold of account version 1: gave no answer within 0.5 s"
    assert (await folding.state_at(store, "default", "account", "b")).sequence == 1


async def test_more_events_than_there_is_time_for_are_given_up(store: StoreJournal) -> None:
    await append(store, "a", *by([7]))
    with pytest.raises(DeadlineExceeded, match="not all events were folded"):
        await folding_of(Spinning).state_at(store, *ONE, seconds=0.2)


class Huge(Total):
    def to_json(self, state: dict[str, Any]) -> Any:
        return "x" * 9_000_000


async def test_a_state_that_is_too_large_is_not_shown(store: StoreJournal) -> None:
    await append(store, "a", *by([1]))
    with pytest.raises(TooLarge, match="state: 9000002 bytes, the limit is 8000000"):
        await folding_of(Huge).state_at(store, *ONE)


async def test_below_the_floor_nothing_is_folded_and_above_it_the_snapshot_begins(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3, 4]), times=[at(year) for year in range(2023, 2027)])
    await put(store.database, 1, fold_of([1]))
    await put(store.database, 2, fold_of([1, 2]))
    await compact(store.database, floor=3)
    folding = folding_of()
    with pytest.raises(Compacted, match="floor 3"):
        await folding.state_at(store, *ONE, sequence=1)
    for full in (False, True):
        state = await folding.state_at(store, *ONE, sequence=2, full=full)
        assert (state.json, state.from_snapshot, state.events_folded) == (fold_of([1, 2]), 2, 0)
        state = await folding.state_at(store, *ONE, full=full)
        assert (state.json, state.from_snapshot, state.floor) == (fold_of([1, 2, 3, 4]), 2, 3)
    with pytest.raises(Compacted):
        await folding.state_at(store, *ONE, time_us=at(2024), full=True)


async def test_a_floor_that_rests_on_a_snapshot_of_another_kind_is_said(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3, 4]))
    await put(store.database, 2, b"bytes of the owner", "pickled")
    await compact(store.database, floor=3)
    for act in (folding_of().state_at(store, *ONE), verify(folding_of(), store, *ONE)):
        with pytest.raises(Compacted):
            await act


# Snapshots by the fold


async def test_a_snapshot_is_made_of_all_events_though_a_wrong_one_is_there(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3]), times=[at(2020), at(2021), at(2022)])
    await put(store.database, 1, fold_of([100]))
    made = await folding_of().snapshot_at(store, *ONE, 2)
    assert orjson.loads(made.payload) == fold_of([1, 2])
    assert (made.sequence, made.position, made.time_us) == (2, 2, at(2021))


class Lossy(Total):
    def load(self, payload: bytes, type: str) -> dict[str, Any]:  # noqa: A002
        return super().load(payload, type) | {"count": 0}


async def test_a_snapshot_that_does_not_load_as_it_was_dumped_is_not_made(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3]))
    with pytest.raises(FoldFailed, match="what `dump` gives loads as another state"):
        await folding_of(Lossy).snapshot_at(store, *ONE, 2)


class Tuples(Total):
    def initial(self) -> Any:
        return (0, 0)

    def apply(self, state: Any, event: FoldEvent) -> Any:
        return (state[0] + event.data["by"], state[1] + 1)


class Opaque:
    """A state that nobody can compare."""

    def __init__(self, total: int, step: int) -> None:
        self.total, self.step = total, step


class Forgets(Fold[Opaque]):
    """Adds each number so many times as there were events; how many there were is not dumped."""

    entity_type = "account"

    def initial(self) -> Opaque:
        return Opaque(0, 0)

    def apply(self, state: Opaque, event: FoldEvent) -> Opaque:
        return Opaque(state.total + event.data["by"] * (state.step + 1), state.step + 1)

    def dump(self, state: Opaque) -> bytes:
        return canonical(state.total)

    def load(self, payload: bytes, type: str) -> Opaque:  # noqa: A002
        return Opaque(orjson.loads(payload), 0)


@pytest.mark.parametrize(
    ("fold", "count", "said"),
    [
        (Tuples, 2, "loads as list, and the state is tuple"),
        (Forgets, 2, "folding on from the state at 1, "),
        (Forgets, 3, "folding on from the state at 1, "),
        (Forgets, 40, "folding on from the state at 24, "),
    ],
)
async def test_a_snapshot_from_which_folding_on_gives_another_state_is_not_made(
    store: StoreJournal, fold: type[Fold[Any]], count: int, said: str
) -> None:
    await append(store, "a", *by(range(1, count + 1)))
    with pytest.raises(FoldFailed, match=said):
        await folding_of(fold).snapshot_at(store, *ONE, count)


# Verifying


def told(found: Verification) -> list[tuple[int, str]]:
    return [(each.sequence, each.verdict.value) for each in found.snapshots]


async def test_snapshots_that_agree_are_noted_with_position_and_time(store: StoreJournal) -> None:
    await append(store, "other", *by([1]))
    await append(store, "a", *by([1, 2, 3]), times=[at(2020), at(2021), at(2022)])
    await put(store.database, 2, fold_of([1, 2]))
    await put(store.database, 3, fold_of([1, 2, 3]), "owner.total")
    found = await verify(folding_of(), store, *ONE)
    assert (found.ok, found.load, found.agree, found.events) == (True, True, 2, 3)
    assert told(found) == [(2, "agrees"), (3, "agrees")]
    rows = await stored(store.database)
    assert [rows[n]["position"] for n in (2, 3)] == [3, 4]
    assert [rows[n]["event_at"].year for n in (2, 3)] == [2021, 2022]
    assert all(row["verified_at"] is not None for row in rows.values())


@pytest.mark.parametrize("wrong", [1, 2, 3])
async def test_a_wrong_snapshot_is_found_wherever_it_is_and_verified_no_longer(
    store: StoreJournal, wrong: int
) -> None:
    await append(store, "a", *by([1, 2, 3, 4]))
    for n in (1, 2, 3):
        await put(store.database, n, fold_of([1, 2, 3][:n]))
    assert (await verify(folding_of(), store, *ONE)).ok
    async with store.database.connection() as connection:
        await connection.execute(
            "UPDATE everstate.snapshots SET payload = $2 WHERE seq = $1",
            wrong, canonical(fold_of([9, 9, 9][:wrong])),
        )  # fmt: skip
    found = await verify(folding_of(), store, *ONE)
    assert (found.ok, found.differ, found.agree) == (False, 1, 2)
    assert found.load is (wrong != 3), "a load begins with the newest one"
    assert (wrong, "differs") in told(found)
    rows = await stored(store.database)
    assert [n for n, row in rows.items() if row["verified_at"] is None] == [wrong]


class Forgetful(Total):
    """Dumps less than it has: equal bytes, but what follows goes another way."""

    def dump(self, state: dict[str, Any]) -> bytes:
        return canonical({"sum": state["sum"], "count": state["count"]})

    def load(self, payload: bytes, type: str) -> dict[str, Any]:  # noqa: A002
        return super().load(payload, type) | {"last": []}

    def apply(self, state: dict[str, Any], event: FoldEvent) -> dict[str, Any]:
        state = super().apply(state, event)
        state["sum"] += len(state["last"])
        return state


async def test_a_snapshot_that_forgets_what_later_events_need_is_found_by_going_on_from_it(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3, 4]))
    folding = folding_of(Forgetful)
    with pytest.raises(FoldFailed, match="loads as another state"):
        await folding.snapshot_at(store, *ONE, 2)
    await put(store.database, 2, Forgetful().dump(fold_of([1, 2]) | {"sum": 6}))
    found = await verify(folding, store, *ONE)
    assert (found.ok, found.agree, found.load) == (False, 1, False)


async def test_of_types_that_the_fold_does_not_load_nothing_is_said(store: StoreJournal) -> None:
    await append(store, "a", *by([1, 2]))
    await put(store.database, 1, b"pickled", "pickled")
    await put(store.database, 2, b"not JSON")
    found = await verify(folding_of(), store, *ONE)
    assert told(found) == [(1, "foreign"), (2, "differs")]
    assert (found.ok, found.foreign, found.load) == (False, 1, False)
    assert "JSONDecodeError" in found.snapshots[1].problem
    assert (await stored(store.database))[1]["verified_at"] is None


async def test_an_entity_without_snapshots_verifies_when_its_events_fold(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2]))
    found = await verify(folding_of(), store, *ONE)
    assert (found.ok, found.load, found.snapshots) == (True, None, [])
    await append(store, "a", {"by": "fail", "secret": "x"})
    with pytest.raises(FoldFailed):
        await verify(folding_of(), store, *ONE)


async def test_above_a_floor_the_replay_begins_with_the_snapshot_that_it_rests_on(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3, 4]))
    for n in (1, 2, 3):
        await put(store.database, n, fold_of([1, 2, 3][:n]))
    await compact(store.database, floor=3)
    found = await verify(folding_of(), store, *ONE)
    assert (found.ok, found.load, told(found)) == (True, True, [(2, "floor"), (3, "agrees")])
    assert found.events == 2


async def test_more_snapshots_than_a_page_are_all_looked_at(store: StoreJournal) -> None:
    numbers = list(range(1, 251))
    await append(store, "a", *by(numbers))
    for n in numbers:
        await put(store.database, n, fold_of(numbers[:n] if n != 217 else [0]))
    found = await verify(folding_of(), store, *ONE)
    assert (found.agree, found.differ, len(found.snapshots)) == (249, 1, 250)


async def test_a_snapshot_that_is_saved_anew_meanwhile_is_not_noted(
    store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(store, "a", *by([1, 2]))
    await put(store.database, 1, fold_of([1]))
    feed = Folding.feed

    async def slowly(*args: Any) -> None:
        await feed(*args)
        async with store.database.connection() as connection:
            await connection.execute(
                "UPDATE everstate.snapshots SET recorded_at = clock_timestamp(), payload = '1'"
            )

    page = await stored(store.database)
    monkeypatch.setattr(Folding, "feed", slowly)
    await verify(folding_of(), store, *ONE)
    rows = await stored(store.database)
    assert rows[1]["recorded_at"] > page[1]["recorded_at"]
    assert rows[1]["verified_at"] is None


async def test_an_owners_snapshot_of_an_append_is_verified(store: StoreJournal) -> None:
    snapshot = NewSnapshot("owner.total", canonical(fold_of([1, 2])), "application/json")
    await append(store, "a", *by([1, 2]), snapshot=snapshot)
    found = await verify(folding_of(), store, *ONE)
    assert [(each.source, each.verdict.value) for each in found.snapshots] == [("owner", "agrees")]


# Registration


class Totals2(Total):
    version = 2


async def test_folds_are_registered_once_and_other_code_is_refused(database: Database) -> None:
    first, second = definition_of(Total), definition_of(Totals2)
    await asyncio.gather(*(fold_registry.register(database, [first]) for _ in range(3)))
    await fold_registry.register(database, [second])
    object.__setattr__(first, "digest", "another")
    with pytest.raises(Conflict, match="Total: fold of account version 1 has other code than was"):
        await fold_registry.register(database, [first])
    checked = await fold_registry.checked(database, [first])
    with pytest.raises(NoFold, match="has other code"):
        checked.named("account")
    rows = await fold_registry.list_folds(database)
    assert [(row["entity_type"], row["version"], row["digest"]) for row in rows] == [
        ("account", 1, "digest"),
        ("account", 2, "digest"),
    ]
    assert len(await fold_registry.list_folds(database, ("account", 1))) == 1
    assert len(await fold_registry.list_folds(database, limit=1)) == 1
    with pytest.raises(InvalidArgument, match="limit"):
        await fold_registry.list_folds(database, limit=1_001)


async def test_a_fold_that_no_worker_has_registered_yet_may_be_used(database: Database) -> None:
    checked = await fold_registry.checked(database, [definition_of(Total)])
    assert checked.get("account") is not None
    assert isinstance(checked.named("account").fold, Fold)


async def test_a_snapshot_that_loads_begin_with_and_the_fold_cannot_read_is_no_proof(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3]))
    folding = folding_of()
    await put(store.database, 1, (await folding.snapshot_at(store, *ONE, 1)).payload)
    await put(store.database, 2, b"pickled", "pickled")
    found = await verify(folding, store, *ONE)
    assert told(found) == [(1, "agrees"), (2, "foreign")]
    assert (found.ok, found.load) == (False, False)
    assert found.snapshots[1].problem.startswith("loads begin with it")
    # Where the type's settings pass it over, loads begin with the other one.
    types = TypeStore(store.database, store)
    kind = ONE[1]
    await types.put(
        kind, TypeSettings(snapshot_types=(f"{kind}.v1",)), version=None, principal="ann"
    )
    found = await verify(folding, store, *ONE)
    assert (found.ok, found.load) == (True, True)


async def test_what_an_older_version_of_a_fold_verified_is_nothing_to_begin_with(
    store: StoreJournal,
) -> None:
    await append(store, "a", *by([1, 2, 3]))
    folding = folding_of()
    made = await folding.snapshot_at(store, *ONE, 2)
    await put(store.database, 2, made.payload)
    await verify(folding, store, *ONE)
    async with store.database.connection() as connection:
        await connection.execute("UPDATE everstate.snapshots SET source = 1")
    assert (await folding.state_at(store, *ONE)).from_snapshot == 2
    async with store.database.connection() as connection:
        await connection.execute(
            "INSERT INTO everstate.folds"
            " (entity_type, version, digest, snapshot_type, content_type)"
            " VALUES ($1, 9, 'other', 'x', 'application/json')",
            ONE[1],
        )
    assert (await folding.state_at(store, *ONE)).from_snapshot == 0
    await verify(folding, store, *ONE)  # proven anew
    assert (await folding.state_at(store, *ONE)).from_snapshot == 2
