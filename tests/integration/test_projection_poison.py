"""Events that cannot be applied, and code that wants more than its schema."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel.database import Database, DatabaseSettings
from kernel.errors import Conflict, Unavailable
from projections import control
from projections.model import ProjectedEvent, StatementError, Tx
from tests.projecting import (
    Totals,
    append,
    counts,
    fill,
    folded,
    journal_on,
    python,
    reached,
    table,
    working,
)
from tests.support import eventually_async


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[StoreJournal]:
    async with journal_on(database) as opened:
        yield opened


@pytest.fixture
async def any_journal(any_database_url: str) -> AsyncIterator[StoreJournal]:
    database = await Database.open(DatabaseSettings(any_database_url))
    async with journal_on(database) as opened:
        yield opened
    await database.close()


async def status(database: Database, name: str) -> str:
    return (await control.get_projection(database, name)).status


async def halted(database: Database, name: str) -> Any:
    """The error of the first halted segment, once there is one."""

    async def is_halted() -> bool:
        return await status(database, name) == "halted"

    await eventually_async(is_halted, "the segment halts")
    row = await control.get_projection(database, name)
    segments = await control.list_segments(database, name, row.version, row.build)
    return next(s for s in segments if s.state == "halted")


# -- poison --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "code", "where", "message"),
    [
        (b"{not json", "UNDECODABLE", None, "is not JSON"),
        (b"\xff\xfe", "UNDECODABLE", None, "JSON"),
        (b'{"n": "abc"}', "STATEMENT", "counts.sql:6", "invalid input syntax for type numeric"),
        (b'{"n": 1.5}', "STATEMENT", "counts.sql:6", "invalid input syntax for type bigint"),
    ],
)
async def test_a_poison_event_halts_its_segment_with_the_reason_and_what_came_before_is_applied(
    journal: StoreJournal, payload: bytes, code: str, where: str | None, message: str
) -> None:
    await fill(journal, 250)
    bad = await append(journal, "bad", ("Added", payload))
    last = await fill(journal, 50)
    async with working(journal, counts()):
        segment = await halted(journal.database, "counts")
        assert segment.position == bad - 1
        error = segment.error
        assert (error["code"], error["position"], error["entity_id"]) == (code, bad, "bad")
        assert error.get("where") == where
        assert message in error["message"]
        with pytest.raises(Conflict, match=rf"halted after position {bad - 1} \({code}") as caught:
            await reached(journal.database, "counts", last)
        assert "abc" not in str(caught.value), "what PostgreSQL says may hold values of the event"
        await reached(journal.database, "counts", bad - 1)
        row = await control.get_projection(journal.database, "counts")
        assert (row.status, row.events, row.halted) == ("halted", 250, 1)
        # It tries again when told to, and halts again: nothing has changed.
        await control.resume(journal.database, "counts")
        assert (await halted(journal.database, "counts")).position == bad - 1


async def test_a_halted_segment_goes_on_after_a_fix(journal: StoreJournal) -> None:
    broken = True

    class Fixed(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            if broken and any(e.entity_id == "bad" for e in events):
                raise ValueError("what a pity")
            await super().apply(events, tx)

    await fill(journal, 30)
    bad = await append(journal, "bad", ("Added", {"n": 1}))
    async with working(journal, python(Fixed)):
        segment = await halted(journal.database, "totals")
        assert segment.error["code"] == "EXCEPTION"
        assert segment.error["message"] == "ValueError: what a pity"
        assert segment.error["where"].rpartition(":")[0].endswith("test_projection_poison.py")
        broken = False
        await control.resume(journal.database, "totals")
        await reached(journal.database, "totals", bad)
    assert await table(journal.database, "totals") == await folded(journal)


async def test_poison_events_are_parked_when_the_policy_says_so_and_the_rest_is_applied(
    any_journal: StoreJournal,
) -> None:
    journal = any_journal
    parking = counts(("-- version: 1", "-- version: 1\n-- on poison: park"))
    bad = []
    for n in range(3):
        await fill(journal, 40 * n + 1)
        bad.append(await append(journal, f"bad{n}", ("Added", b'{"n": []}')))
    last = await fill(journal, 10)
    async with working(journal, parking):
        await reached(journal.database, "counts", last)
    parked = await control.list_parked(journal.database, "counts", 1, 1)
    assert [(p.position, p.entity_type, p.entity_id, p.event_type) for p in parked] == [
        (position, "thing", f"bad{n}", "Added") for n, position in enumerate(bad)
    ]
    assert all(p.error["sqlstate"] == "22P02" and p.attempts > 1 for p in parked)
    row = await control.get_projection(journal.database, "counts")
    assert (row.parked, row.status, row.position) == (3, "live", last)
    table_now = await table(journal.database)
    assert table_now.keys().isdisjoint({"bad0", "bad1", "bad2"})
    page = await control.list_parked(journal.database, "counts", 1, 1, after=bad[0], limit=1)
    assert [p.position for p in page] == [bad[1]]


async def test_more_parked_events_than_the_limit_halt_the_segment(
    journal: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.segment.MAX_PARKED", 2)
    parking = counts(("-- version: 1", "-- version: 1\n-- on poison: park"))
    for _ in range(3):
        last = await append(journal, "bad", ("Added", b"{"))
    async with working(journal, parking):
        segment = await halted(journal.database, "counts")
    assert segment.position == last - 1
    assert segment.error["message"].startswith("2 events are parked, which is the limit")


async def test_a_database_that_is_away_or_slow_is_no_poison(journal: StoreJournal) -> None:
    failures: list[str] = []

    class Unlucky(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await super().apply(events, tx)
            if len(failures) < 2:
                failures.append("deadlock")
                await tx.execute("DO $$ BEGIN RAISE 'x' USING ERRCODE = '40P01'; END $$")
            elif len(failures) < 3:
                failures.append("swallowed")
                try:
                    await tx.execute("DO $$ BEGIN RAISE 'x' USING ERRCODE = '40001'; END $$")
                except Unavailable:
                    raise ValueError("something else") from None

    last = await fill(journal, 40)
    async with working(journal, python(Unlucky)):
        await reached(journal.database, "totals", last)
    assert failures == ["deadlock", "deadlock", "swallowed"]
    assert await table(journal.database, "totals") == await folded(journal)


async def test_a_failed_statement_fails_the_batch_though_the_code_swallows_it(
    journal: StoreJournal,
) -> None:
    class Swallowing(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            with pytest.raises(StatementError, match="nothing_like_this"):
                await tx.execute("SELECT nothing_like_this")

    await append(journal, "a", ("Added", {}))
    async with working(journal, python(Swallowing)):
        segment = await halted(journal.database, "totals")
    assert segment.error["code"] == "STATEMENT"
    assert segment.position == 0


# -- confinement ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "args", "sqlstate", "message"),
    [
        ("INSERT INTO rm_counts_v1.counts VALUES ('x', 1, 1)", (), "42501", "permission denied"),
        ("DELETE FROM everstate.leases", (), "42501", "permission denied"),
        ("SELECT * FROM everstate.events", (), "42501", "permission denied"),
        ("CREATE TABLE public.x (a int)", (), "42501", "permission denied"),
        ("CREATE SCHEMA other", (), "42501", "permission denied"),
        ("COMMIT", (), "", "COMMIT is not allowed"),
        ("SELECT 1; COMMIT; SELECT 1", (), "", "COMMIT is not allowed"),
        ("RESET ROLE", (), "", "RESET is not allowed"),
        ("SELECT set_config('role', 'none', true)", (), "", "set_config is not allowed"),
        ("INSERT INTO totals VALUES ($1, 1, 1)", (), "42P02", "there is no parameter $1"),
        ("INSERT INTO totals VALUES ($1, 1, 1)", ("a", 2), "", "expects 1 argument"),
        ("INSERT INTO totals VALUES ($1, 1, 1)", (1,), "22000", "invalid input for query argument"),
    ],
)
async def test_a_projection_cannot_write_elsewhere_nor_leave_its_transaction(
    any_journal: StoreJournal,
    statement: str,
    args: tuple[object, ...],
    sqlstate: str,
    message: str,
) -> None:
    journal = any_journal

    class Leaving(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await super().apply(events, tx)
            await tx.execute(statement, *args)

    await append(journal, "a", ("Added", {"n": 1}))
    async with working(journal, counts(), python(Leaving)):
        segment = await halted(journal.database, "totals")
    assert segment.error["code"] == "STATEMENT"
    assert segment.error.get("sqlstate", "") == sqlstate
    assert message in segment.error["message"]
    assert await table(journal.database, "totals") == {}, "nothing of the batch stayed"


async def test_a_transaction_is_of_no_use_after_apply(journal: StoreJournal) -> None:
    kept: list[Tx] = []

    class Keeping(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            kept.append(tx)

    last = await append(journal, "a", ("Added", {"n": 1}))
    async with working(journal, python(Keeping)):
        await reached(journal.database, "totals", last)
    with pytest.raises(RuntimeError, match="the transaction is over"):
        await kept[0].execute("SELECT 1")


async def test_why_a_segment_waits_is_shown_beside_it_until_it_gets_on(
    journal: StoreJournal,
) -> None:
    away = True

    class Away(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            if away:
                raise Unavailable("the other service is away")
            await super().apply(events, tx)

    last = await fill(journal, 10)
    async with working(journal, python(Away)):

        async def shown() -> Any:
            (segment,) = await control.list_segments(journal.database, "totals", 1, 1)
            assert segment.state == "running", "it is no poison"
            return segment.error and segment.error["message"] == "the other service is away"

        await eventually_async(shown, "the reason is shown")
        away = False
        await reached(journal.database, "totals", last)
        (segment,) = await control.list_segments(journal.database, "totals", 1, 1)
        assert segment.error is None


# -- what is no fault of an event ----------------------------------------------------------------


async def test_an_apply_that_is_too_slow_is_tried_with_fewer_events(
    journal: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.execute.APPLY_SECONDS", 0.2)
    sizes: list[int] = []

    class Slow(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            sizes.append(len(events))
            if len(events) > 2:
                await asyncio.Event().wait()
            await super().apply(events, tx)

    last = await append(journal, "a", *[("Added", {"n": 1})] * 8)
    async with working(journal, python(Slow)):
        await reached(journal.database, "totals", last)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert await table(journal.database, "totals") == await folded(journal)


async def test_an_apply_may_compute_for_longer_than_other_transactions_may_idle(
    database_url: str,
) -> None:
    settings = DatabaseSettings(database_url, idle_transaction_timeout=timedelta(milliseconds=50))
    calls = 0

    class Computing(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            nonlocal calls
            calls += 1
            await super().apply(events, tx)
            await asyncio.sleep(0.2)

    database = await Database.open(settings)
    try:
        async with journal_on(database) as journal:
            last = await append(journal, "a", ("Added", {"n": 1}))
            async with working(journal, python(Computing)):
                await reached(database, "totals", last, 5)
    finally:
        await database.close()
    assert calls == 1


@pytest.mark.parametrize("kind", ["a statement of apply", "the end of the batch"])
async def test_a_server_that_falls_silent_in_a_batch_is_given_up_and_the_batch_tried_again(
    database_url: str, kind: str
) -> None:
    settings = DatabaseSettings(
        database_url,
        connect_timeout=timedelta(seconds=1),
        statement_timeout=timedelta(seconds=1),
        answer_timeout=timedelta(milliseconds=200),
    )
    stopped: list[int] = []
    calls = 0

    class Silenced(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            nonlocal calls
            calls += 1
            await super().apply(events, tx)
            if not stopped:
                stopped.append(await tx.fetchval("SELECT pg_backend_pid()"))
                os.kill(stopped[0], signal.SIGSTOP)
                if kind == "a statement of apply":
                    await tx.execute("SELECT 1")

    database = await Database.open(settings)
    try:
        async with journal_on(database) as journal:
            last = await append(journal, "a", ("Added", {"n": 1}))
            async with working(journal, python(Silenced)):

                async def is_given_up() -> Any:
                    (segment,) = await control.list_segments(database, "totals", 1, 1)
                    return calls > 1 or segment.error

                await eventually_async(is_given_up, "the batch is tried again")
                # The silent server process still has its locks: they go with it.
                os.kill(stopped[0], signal.SIGCONT)
                await reached(database, "totals", last, 10)
            assert await table(database, "totals") == await folded(journal)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await database.close()


async def test_a_projection_that_cannot_be_made_waits_with_the_reason_and_no_other_does(
    journal: StoreJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.worker._MADE_AGAIN_SECONDS", 0.1)
    broken = True

    class Unmade(Totals):
        name = "totals"

        def __init__(self) -> None:
            if broken:
                raise ValueError("no configuration")

    last = await fill(journal, 10)
    async with working(journal, python(Unmade), counts()):
        await reached(journal.database, "counts", last)

        async def shown() -> Any:
            (segment,) = await control.list_segments(journal.database, "totals", 1, 1)
            return segment.error and segment.error["message"] == "ValueError: no configuration"

        await eventually_async(shown, "the reason is shown")
        broken = False
        await reached(journal.database, "totals", last)


async def test_where_a_statement_failed_is_a_line_of_the_projection(journal: StoreJournal) -> None:
    class Failing(Totals):
        name = "totals"

        async def apply(self, events: Sequence[ProjectedEvent], tx: Tx) -> None:
            await tx.execute("SELECT nothing_like_this")

    await append(journal, "a", ("Added", {}))
    async with working(journal, python(Failing)):
        segment = await halted(journal.database, "totals")
    assert segment.error["where"].rpartition(":")[0] == __file__
