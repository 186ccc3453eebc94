"""Members and vitals: processes announce themselves, are found missing, are forgotten."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from admin_ui import app as admin_app
from admin_ui.services import AdminSettings
from kernel import clock, members, telemetry
from kernel.database import Database, DatabaseSettings
from kernel.errors import EverstateError
from kernel.ids import new_id
from kernel.members import list_members, membership, process_name
from kernel.principals import Role
from kernel.token_store import Tokens
from tests.asgi import Asgi
from tests.support import eventually_async

QUICK = timedelta(milliseconds=20)


async def beats(database: Database, member_id: str) -> int:
    return len(await members.vitals(database, member_id, clock.EPOCH))


async def test_a_process_is_there_while_it_runs_and_gone_afterwards(database: Database) -> None:
    async with membership(
        database, "worker", version="1.2", address="127.0.0.1:7491", details=lambda: {"segments": 3}
    ) as member_id:
        (member,) = await list_members(database)
        assert (member.member_id, member.kind, member.name) == (member_id, "worker", process_name())
        assert (member.address, member.version) == ("127.0.0.1:7491", "1.2")
        assert (member.alive, member.details) == (True, {"segments": 3})
        assert member.figures["process_resident_bytes"] > 10_000_000
    assert await list_members(database) == []


async def test_figures_are_those_of_the_metrics_at_that_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests of this process have left figures of their logs and projections.
    monkeypatch.setattr(members, "MAX_FIGURES", 1_000_000)
    telemetry.head.labels("figures").set(1)

    def refresh() -> None:
        telemetry.head.labels("figures").inc(5)

    async with membership(database, "node", version="1", refresh=refresh, beat=QUICK) as member_id:

        async def three() -> bool:
            return await beats(database, member_id) >= 3

        await eventually_async(three, "three sets of figures")
        kept = await members.vitals(database, member_id, clock.EPOCH, 3)
    heads = [figures["everstate_log_head{log=figures}"] for _, figures in kept]
    assert heads == [6, 11, 16]
    assert [at for at, _ in kept] == sorted(at for at, _ in kept)
    later = await members.vitals(database, member_id, kept[0][0], 2)
    assert later == kept[1:3]


async def test_figures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_FIGURES", 7)
    names = [f"bounded{i}" for i in range(20)]
    for name in names:
        telemetry.head.labels(name).set(1)
    assert len(members.figures()) == 7
    for name in names:
        telemetry.head.remove(name)


async def test_a_process_that_was_killed_is_found_missing_and_forgotten_later(
    database: Database,
) -> None:
    lost = members._Member(database, "worker", "1", "", dict, lambda: None)
    await lost.announce()
    age = "UPDATE everstate.members SET seen_at = clock_timestamp() - $1::interval"
    await database.fetchrow(age, timedelta(seconds=29))
    assert [m.alive for m in await list_members(database)] == [True]
    await database.fetchrow(age, timedelta(seconds=31))
    assert [m.alive for m in await list_members(database)] == [False]
    await database.fetchrow(age, timedelta(minutes=61))
    async with membership(database, "node", version="1", beat=QUICK) as ours:

        async def alone() -> bool:
            return [m.member_id for m in await list_members(database)] == [ours]

        await eventually_async(alone, "the lost one is forgotten")
    # It was only frozen: it is there again, as old as it is.
    began = lost._started_at
    await lost.announce()
    (back,) = await list_members(database)
    assert (back.member_id, back.started_at, back.alive) == (lost.member_id, began, True)


async def test_figures_are_kept_for_48_hours(database: Database) -> None:
    add = (
        "INSERT INTO everstate.vitals (at, member_id, figures) "
        "SELECT now() - i * interval '1 hour', $1, '{}' FROM generate_series(1, 2500) i"
    )
    old = new_id()
    await database.fetchrow(add, UUID(old))
    async with membership(database, "node", version="1", beat=QUICK):

        async def pruned() -> bool:
            row = await database.fetchrow(
                "SELECT count(*) FROM everstate.vitals WHERE member_id = $1", UUID(old)
            )
            return bool(row[0] == 47)

        await eventually_async(pruned, "old figures go, in pieces of a thousand")


async def test_a_database_that_is_away_stops_nothing(
    database: Database, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = await Database.open(DatabaseSettings(database_url))
    async with membership(own, "node", version="1", beat=QUICK) as member_id:
        failing = asyncio.Event()
        real = own.fetchrow
        away = True

        async def fetchrow(*args: object, **more: object) -> object:
            if away:
                failing.set()
                raise EverstateError("away")
            return await real(*args, **more)  # type: ignore[arg-type]

        own.fetchrow = fetchrow  # type: ignore[method-assign]
        await failing.wait()
        before = await beats(database, member_id)
        away = False

        async def goes_on() -> bool:
            return await beats(database, member_id) > before + 1

        await eventually_async(goes_on, "figures are kept again")
    await own.close()
    assert await list_members(database) == []


async def test_members_are_paged_over_http(database: Database) -> None:
    token, _ = await Tokens(database).create("viewer", Role.VIEWER, by="test")
    app = admin_app.application(admin_app.services(database, AdminSettings()))
    http = Asgi(app, token=token)
    for kind in ("node", "worker", "admin"):
        await members._Member(database, kind, "1", "", dict, lambda: None).announce()  # type: ignore[arg-type]
    first = (await http.get("/api/v1/members", {"limit": 2})).ok()
    assert [row["kind"] for row in first["rows"]] == ["node", "worker"]
    rest = (await http.get("/api/v1/members", {"limit": 2, "next": first["next"]})).ok()
    assert [row["kind"] for row in rest["rows"]] == ["admin"]
    assert rest["next"] is None
    assert rest["rows"][0]["seen_at"].endswith("Z")
    path = f"/api/v1/members/{rest['rows'][0]['id']}/vitals"
    page = (await http.get(path)).ok()
    assert page["rows"][0]["figures"]["process_resident_bytes"] > 0
    assert (await http.get(path, {"next": page["rows"][0]["at"]})).ok()["rows"] == []
    (await http.get("/api/v1/members/x/vitals")).problem(400, "INVALID_ARGUMENT")
