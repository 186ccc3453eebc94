"""Selections: who matches, in which order, page by page; what is refused; who needs events."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from journal.model import ANY, Append, EntityAppend, NewEvent
from journal.store import StoreJournal, StoreSettings
from kernel import clock
from kernel.database import Database, DatabaseSettings
from kernel.errors import EntityNotFound, InvalidArgument, LogNotFound, NotFound, TooLarge
from kernel.ids import new_id
from operations import needs, selection
from operations.kinds.base import Candidate
from operations.model import Moment, Selection

SQL = Path(__file__).parents[2] / "operations" / "sql"
DAY_US = 86_400_000_000


@pytest.fixture
async def any_store(any_database_url: str) -> AsyncIterator[StoreJournal]:
    """A store on PostgreSQL 18 and on 15."""
    database = await Database.open(DatabaseSettings(any_database_url))
    journal = StoreJournal(database, StoreSettings(node="test"))
    await journal.start()
    yield journal
    await journal.close()
    await database.close()


async def put(
    store: StoreJournal, kind: str, entity_id: str, *sizes: int, time_us: int = 0
) -> tuple[int, int]:
    """Appends events with payloads of these sizes; the first and the last position."""
    events = tuple(
        NewEvent("Added", b"x" * size, event_id=new_id(), client_time_us=time_us) for size in sizes
    )
    done = await store.append("default", Append((EntityAppend(kind, entity_id, ANY),), events))
    return done.first_position, done.last_position


async def run(store: StoreJournal, text: str) -> None:
    async with store.database.connection() as connection:
        await connection.execute(text)


async def everything(store: StoreJournal, chosen: Selection, limit: int = 1_000) -> list[Candidate]:
    """All candidates, read ``limit`` at a time."""
    resolved = await selection.resolve(store.database, store, chosen)
    found: list[Candidate] = []
    while True:
        after = selection.Cursor(found[-1].entity_type_id, found[-1].entity_id) if found else None
        page = await selection.candidates(store.database, resolved.log_id, resolved, after, limit)
        assert len(page) <= limit
        found += page
        if len(page) < limit:
            return found


async def names(store: StoreJournal, chosen: Selection, limit: int = 1_000) -> list[str]:
    return [f"{c.entity_type}/{c.entity_id}" for c in await everything(store, chosen, limit)]


async def test_pages_of_any_size_come_in_the_order_of_type_and_id(any_store: StoreJournal) -> None:
    for kind, entity_id in (
        ("order", "b"), ("cart", "z"), ("order", "a"), ("cart", "é"), ("cart", "a"), ("cart", "Z"),
        ("other", "\U0010ffff" * 512), ("cart", "a b"),
    ):  # fmt: skip
        await put(any_store, kind, entity_id, 1)
    # By type as they were first seen, then by code point.
    expected = [
        "order/a", "order/b", "cart/Z", "cart/a", "cart/a b", "cart/z", "cart/é",
        "other/" + "\U0010ffff" * 512,
    ]  # fmt: skip
    for limit in (1, 2, 3, 100):
        assert await names(any_store, Selection(), limit) == expected
    only = [name for name in expected if name.startswith("cart/")]
    assert await names(any_store, Selection(types=("cart",)), 2) == only
    listed = Selection(entities=(("cart", "z"), ("order", "b"), ("cart", "z"), ("cart", "Z")))
    assert await names(any_store, listed, 1) == ["order/b", "cart/Z", "cart/z"]


async def test_a_candidate_says_what_heads_marks_and_snapshots_say(store: StoreJournal) -> None:
    await put(store, "cart", "other", 1)
    first, last = await put(store, "cart", "a", 1, 1, 1)
    await run(
        store,
        "INSERT INTO everstate.snapshots (entity_key, seq, recorded_at, log_id, type, content_type,"
        " payload, removed_at) SELECT 2, s, now(), 1, 'S', 'text/plain', '',"
        " CASE WHEN s = 3 THEN now() END FROM generate_series(1, 3) s;"
        "INSERT INTO everstate.entity_marks (log_id, entity_key, floor, floor_position,"
        " snapshot_seq, held) VALUES (1, 2, 2, 2, 1, true)",
    )
    found = (await everything(store, Selection(where="id:a")))[0]
    kind = store.names.entity_ids["cart"]
    assert found == Candidate(
        entity_key=2, entity_type="cart", entity_type_id=kind, entity_id="a", slice=found.slice,
        state=0, sequence=3, event_count=3, first_position=first, last_position=last, floor=2,
        floor_position=2, floor_snapshot=1, held=True, snapshot=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 1, ["early"]),
        (2, 3, ["early", "wide"]),
        (4, 4, ["wide"]),
        (5, 7, ["late"]),  # `wide` goes on on both sides of it
        (5, 8, ["late", "wide"]),
        (1, 8, ["early", "late", "wide"]),
        (8, 8, ["wide"]),
    ],
)
@pytest.mark.parametrize("short", [True, False])
async def test_a_range_finds_the_entities_that_have_an_event_there(
    any_store: StoreJournal, monkeypatch: pytest.MonkeyPatch, first: int, last: int,
    expected: list[str], short: bool,
) -> None:  # fmt: skip
    """Those that have events on both sides but none inside are not among them, whichever way."""
    if not short:
        monkeypatch.setattr(selection, "SHORT_RANGE", 0)
    store = any_store
    await put(store, "cart", "early", 1, 1)  # 1, 2
    await put(store, "cart", "wide", 1, 1)  # 3, 4
    await put(store, "cart", "late", 1, 1, 1)  # 5, 6, 7
    await put(store, "cart", "wide", 1)  # 8
    chosen = Selection(from_=Moment(first), to=Moment(last))
    resolved = await selection.resolve(store.database, store, chosen)
    assert (resolved.entities is not None) is short
    assert await names(store, chosen, 2) == [f"cart/{name}" for name in expected]
    one = Selection(entities=(("cart", "wide"),), from_=Moment(first), to=Moment(last))
    assert await names(store, one) == (["cart/wide"] if "wide" in expected else [])


async def test_times_of_a_range_are_the_logs_own_and_its_end_is_not_in_it(
    store: StoreJournal,
) -> None:
    for entity_id in ("a", "b", "c"):
        await put(store, "cart", entity_id, 1, time_us=1)  # the writer's time does not count
    rows = await store.database.fetch(
        "SELECT recorded_at FROM everstate.batches WHERE log_id = 1 AND last_position > 0"
        " ORDER BY last_position"
    )
    times = [clock.to_us(row[0]) for row in rows]
    assert len(set(times)) == 3

    async def between(start: int, end: int) -> list[str]:
        moments = {"from_": Moment(time_us=start) if start else None,
                   "to": Moment(time_us=end) if end else None}  # fmt: skip
        return await names(store, Selection(**moments))

    assert await between(times[1], 0) == ["cart/b", "cart/c"]
    assert await between(0, times[1]) == ["cart/a"]
    assert await between(times[1], times[2]) == ["cart/b"]
    assert await between(times[2] + 1, 0) == []
    assert await between(0, times[0]) == []


@pytest.mark.parametrize("listed", [False, True])
async def test_every_word_of_the_language_is_judged_in_the_database(
    any_store: StoreJournal, listed: bool
) -> None:
    store = any_store
    now = clock.now_us()
    await put(store, "cart", "eu-1", 10, 20, time_us=now - 100 * DAY_US)
    await put(store, "cart", "eu-2", 1_000)
    await put(store, "cart", "us-1", 1, 1, 1, 1, time_us=now - 50 * DAY_US)
    await put(store, "order", "eu-9", 5_000, time_us=now - 10 * DAY_US)
    await run(
        store,
        "INSERT INTO everstate.snapshots (entity_key, seq, recorded_at, log_id, type, content_type,"
        " payload) VALUES (1, 2, now(), 1, 'S', 'text/plain', ''), (3, 1, now(), 1, 'S',"
        " 'text/plain', ''), (4, 1, now(), 1, 'Old', 'text/plain', '');"
        "INSERT INTO everstate.entity_marks (log_id, entity_key, held) VALUES (1, 2, true),"
        " (1, 3, false);"
        "UPDATE everstate.entity_types SET version = 1, settings = CASE name"
        " WHEN 'cart' THEN '{\"snapshot_every\": 3}'::jsonb"
        ' ELSE \'{"snapshot_age_s": 864, "snapshot_types": ["New"]}\'::jsonb END;'
        "SELECT everstate.set_entity_states_v1(1, ARRAY[type_id], ARRAY['us-1'],"
        " ARRAY[0::smallint], ARRAY[1::smallint]) FROM everstate.entity_types WHERE name = 'cart'",
    )
    all_of_them = (("cart", "eu-1"), ("cart", "eu-2"), ("cart", "us-1"), ("order", "eu-9"))
    day = datetime.fromtimestamp((now - 60 * DAY_US) / 1e6, UTC).date()
    for text, expected in (
        ("", "eu-1 eu-2 us-1 eu-9"),
        ("type:cart", "eu-1 eu-2 us-1"),
        ("type:order,cart id:eu-*", "eu-1 eu-2 eu-9"),
        ("id:eu-1", "eu-1"),
        ("id:eu-", ""),
        ("events>1", "eu-1 us-1"),
        ("events<=1", "eu-2 eu-9"),
        ("sequence=2", "eu-1"),
        ("size>1kB", "eu-9"),
        ("size=30", "eu-1"),
        ("size>=4 size<=1kB", "eu-1 eu-2 us-1"),
        ("last:<90d", "eu-1"),
        ("last:>=60d", "eu-2 us-1 eu-9"),
        ("last:<20d last:>60d", "us-1"),
        (f"last:<{day}", "eu-1"),
        ("snapshot:none", "eu-2"),
        ("snapshot:any", "eu-1 us-1 eu-9"),
        ("snapshot:due", "us-1 eu-9"),  # three events since; none that its owner can load
        ("held:yes", "eu-2"),
        ("held:no", "eu-1 us-1 eu-9"),
        ("state:deleted", "us-1"),
        ("state:active held:no", "eu-1 eu-9"),
        ("type:cart size>100 held:yes snapshot:none", "eu-2"),
    ):
        chosen = Selection(where=text, entities=all_of_them if listed else ())
        found = [name.partition("/")[2] for name in await names(store, chosen, 2)]
        assert found == expected.split(), text


async def test_ages_count_from_the_moment_that_is_said(store: StoreJournal) -> None:
    now = clock.now_us()
    await put(store, "cart", "a", 1, time_us=now - 89 * DAY_US)
    chosen = Selection(where="last:<90d")
    for later, count in ((0, 0), (2 * DAY_US, 1)):
        resolved = await selection.resolve(store.database, store, chosen, now_us=now + later)
        page = await selection.candidates(store.database, resolved.log_id, resolved, None, 9)
        assert len(page) == count


async def test_the_selection_and_the_search_both_have_to_hold(store: StoreJournal) -> None:
    await put(store, "cart", "a", 1)
    await put(store, "order", "a", 1)
    assert await names(store, Selection(types=("cart",), where="type:order")) == []
    assert await names(store, Selection(types=("cart", "order"), where="type:order")) == ["order/a"]


@pytest.mark.parametrize(
    ("chosen", "error", "said"),
    [
        (Selection(log="nope"), LogNotFound, "there is no log 'nope'"),
        (Selection(types=("crat",)), NotFound,
         "types: there is no entity type 'crat'; did you mean 'cart'?"),
        (Selection(where="type:order2"), NotFound, "where: there is no entity type 'order2'"),
        (Selection(entities=(("crat", "a"),)), NotFound, "entities: there is no entity type"),
        (Selection(entities=(("cart", "a"), ("cart", "nope"))), EntityNotFound,
         "there is no entity cart/nope"),
        (Selection(where="evens>5"), InvalidArgument, "where: word 1 (column 1), 'evens>5'"),
        (Selection(from_=Moment(9)), InvalidArgument, "from: position 9 is not from 1 to 2"),
        (Selection(to=Moment(3)), InvalidArgument, "to: position 3 is not from 1 to 2"),
        (Selection(from_=Moment(2), to=Moment(1)), InvalidArgument,
         "from: position 2 is after to (position 1)"),
        (Selection(to=Moment()), InvalidArgument, "to: is a position or a time: exactly one"),
        (Selection(from_=Moment(1, 1)), InvalidArgument, "from: is a position or a time"),
        (Selection(entities=tuple(("cart", str(n)) for n in range(10_001))), TooLarge,
         "entities: 10001 entities, the limit is 10000"),
        (Selection(types=tuple(map(str, range(1_001)))), TooLarge,
         "types: 1001 types, the limit is 1000"),
    ],
)  # fmt: skip
async def test_what_cannot_be_selected_is_named(
    store: StoreJournal, chosen: Selection, error: type[Exception], said: str
) -> None:
    await put(store, "cart", "a", 1)
    await put(store, "order", "a", 1)
    with pytest.raises(error, match=re.escape(said)):
        await selection.resolve(store.database, store, chosen)


async def test_a_search_goes_on_at_its_token_and_looks_at_a_bounded_number(
    store: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(7):
        await put(store, "cart", f"c{n}", 1, *([1] if n % 3 == 0 else []))
    await put(store, "order", "o", 1, 1)
    monkeypatch.setattr(selection, "_LOOKED_AT", 2)

    async def walk(limit: int, where: str) -> tuple[list[str], int]:
        found: list[str] = []
        token, calls = "", 0
        while True:
            page = await selection.search(
                store.database, store, Selection(where=where), token=token, limit=limit
            )
            assert len(page.candidates) <= limit
            found += [each.entity_id for each in page.candidates]
            calls += 1
            token = page.next_token
            if not token:
                return found, calls

    for limit in (1, 2, 3, 100):
        assert (await walk(limit, "events>1"))[0] == ["c0", "c3", "c6", "o"]
        assert (await walk(limit, ""))[0] == [*(f"c{n}" for n in range(7)), "o"]
    assert (await walk(1, "events>9")) == ([], 5)  # two heads a call, and an empty last one
    for token in ("x", "W10=", "WyJub3BlIiwiYSJd"):
        with pytest.raises(InvalidArgument, match="page_token"):
            await selection.search(store.database, store, Selection(), token=token)
    with pytest.raises(InvalidArgument, match="limit: 0 is not from 1 to 1000"):
        await selection.search(store.database, store, Selection(), limit=0)


def test_both_statements_have_the_same_conditions() -> None:
    def conditions(name: str) -> str:
        text = (SQL / f"{name}.sql").read_text(encoding="utf-8")
        found = re.search(r"-- conditions: .*?\) AS matches\n", text, re.DOTALL)
        assert found is not None
        assert len(found[0]) > 2_000
        return found[0]

    assert conditions("candidates_scan") == conditions("candidates_listed")


async def test_needs_are_the_slowest_segment_or_partition_of_all_that_read_a_log(
    any_store: StoreJournal,
) -> None:
    await run(
        any_store,
        """
        INSERT INTO everstate.projections (name, live_version, live_build) VALUES
          ('files', 2, 1), ('elsewhere', 1, 1);
        INSERT INTO everstate.projection_versions (name, version, kind, digest, log_id,
          entity_types, event_types, segments, on_poison, replayable)
        SELECT n, v, 'sql', '', l, t, '{}', 2, 'halt', true FROM (VALUES
          ('files', 1, 1, '{}'::text[]), ('files', 2, 1, '{cart}'), ('files', 3, 1, '{cart,order}'),
          ('elsewhere', 1, 2, '{}')) x(n, v, l, t);
        INSERT INTO everstate.projection_builds (name, version, build, state, schema_name,
          role_name, tables, target_position)
        SELECT n, v, b, s, n || v || b, 'r', '{}', 0 FROM (VALUES ('files', 1, 1, 'previous'),
          ('files', 1, 2, 'retired'), ('files', 2, 1, 'live'), ('files', 2, 2, 'ordered'),
          ('files', 2, 3, 'failed'), ('files', 3, 1, 'building'), ('files', 3, 2, 'ready'),
          ('elsewhere', 1, 1, 'live')) x(n, v, b, s);
        INSERT INTO everstate.projection_checkpoints (name, version, build, segment, first_slice,
          last_slice, position)
        SELECT n, v, b, s, 0, 1, p FROM (VALUES ('files', 1, 1, 0, 50), ('files', 1, 1, 1, 40),
          ('files', 2, 1, 0, 70), ('files', 3, 1, 0, 5), ('files', 3, 2, 0, 60)) x(n, v, b, s, p);
        INSERT INTO everstate.consumer_groups (name, log_id, entity_types, event_types,
          global_order, entity_window, ack_timeout, max_attempts, backoff_min, backoff_max,
          skip_parked, max_parked)
        SELECT n, l, t, '{}', false, 1, '1 s', 1, '1 s', '1 s', false, 1 FROM (VALUES
          ('mail', 1, '{order}'::text[]), ('new', 1, '{}'), ('other', 2, '{}')) x(n, l, t);
        INSERT INTO everstate.group_partitions (group_id, partition, first_slice, last_slice,
          watermark, pending)
        SELECT g.group_id, p, 0, 1, w, e FROM everstate.consumer_groups g, (VALUES
          (0, 90, '{}'::bigint[]), (1, 95, '{31,44}')) x(p, w, e) WHERE g.name = 'mail'
        """,
    )
    found = await needs.current(any_store.database, 1)
    assert [(n.name, set(n.entity_types), n.position) for n in found] == [
        ("group mail", {"order"}, 30),
        ("group new", set(), 0),
        ("projection files v1 (previous)", set(), 40),
        ("projection files v2", {"cart"}, 70),
        ("projection files v2 (ordered)", {"cart"}, 0),
        ("projection files v3 (building)", {"cart", "order"}, 5),
        ("projection files v3 (ready)", {"cart", "order"}, 60),
    ]
