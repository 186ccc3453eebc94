"""Projections over HTTP and by `everstate projection …`, on rows as workers leave them."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from admin_ui import app as admin_app
from admin_ui.guard import Limits
from admin_ui.services import AdminSettings
from everstate.commands.group import _line
from journal.groups.model import GroupSettings
from journal.groups.store import GroupStore
from kernel.database import Database
from kernel.principals import PAYLOAD, Role
from kernel.token_store import Tokens
from tests.asgi import Asgi
from tests.readmodels import make_read_model, reach
from tests.support import EVERSTATE, ROOT, Running, Said, clean_env, cli, eventually_async, start

ONE = "/api/v1/projections/repo"
TABLES = "CREATE TABLE files (path text PRIMARY KEY)"
PARK = """INSERT INTO everstate.projection_parked (name, version, build, position, segment,
  entity_type, entity_id, event_type, error)
  SELECT 'repo', 1, 1, i, 0, 'file', 'f' || i, 'FileAdded', '{"message": "no"}'
  FROM generate_series(1, 5) i"""


async def app_of(database: Database, **settings: Any) -> Asgi:
    token, _ = await Tokens(database).create("op", Role.OPERATOR, by="test")
    made = admin_app.services(database, replace(AdminSettings(), **settings))
    return Asgi(admin_app.application(made), token=token)


@pytest.fixture
async def http(database: Database) -> Asgi:
    await make_read_model(database, "repo", TABLES)
    return await app_of(database)


async def test_projections_are_listed_page_by_page(http: Asgi, database: Database) -> None:
    for name in ("aaa", "zzz"):
        await make_read_model(database, name, TABLES)
    first = (await http.get("/api/v1/projections", {"limit": 2})).ok()
    assert [row["name"] for row in first["rows"]] == ["aaa", "repo"]
    assert {"name", "version", "state", "position", "lag_events", "lag_bytes", "lag_seconds",
            "segments", "status", "paused", "parked"} <= first["rows"][0].keys()  # fmt: skip
    rest = (await http.get("/api/v1/projections", {"limit": 2, "next": first["next"]})).ok()
    assert [row["name"] for row in rest["rows"]] == ["zzz"]
    assert rest["next"] is None
    assert rest["rows"][0]["created_at"].endswith("Z")


async def test_a_projection_is_paused_with_a_reason_and_resumed(http: Asgi) -> None:
    (await http.post(f"{ONE}/pause", {})).problem(400, "INVALID_ARGUMENT")
    said = (await http.post(f"{ONE}/pause", {"reason": ""})).problem(400, "INVALID_ARGUMENT")
    assert said["field"] == "reason"
    row = (await http.post(f"{ONE}/pause", {"reason": "a migration"})).ok()
    assert (row["status"], row["pause_reason"]) == ("paused", "a migration")
    assert (await http.get(ONE)).ok()["paused"] is True
    assert (await http.post(f"{ONE}/resume")).ok()["paused"] is False
    (await http.post("/api/v1/projections/nosuch/resume")).problem(404, "NOT_FOUND")


async def test_segments_and_parked_events_are_paged(http: Asgi, database: Database) -> None:
    await database.fetchrow(PARK)
    assert (await http.get(f"{ONE}/segments")).ok()["rows"][0]["position"] == 0
    found: list[int] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await http.get(f"{ONE}/parked", query)).ok()
        found += [row["position"] for row in page["rows"]]
        if page["next"] is None:
            break
        query["next"] = page["next"]
    assert found == [1, 2, 3, 4, 5]
    assert "payload" not in page
    for bad in ("x", "-1", "1" * 30):
        said = (await http.get(f"{ONE}/parked", {"next": bad})).problem(400, "INVALID_ARGUMENT")
        assert said["field"] == "next"
    (await http.get(f"{ONE}/parked", {"version": 7})).problem(404, "NOT_FOUND")


SECRET = "card 4111 1111 1111 1111"
ERROR = {
    "code": "STATEMENT", "message": SECRET, "sqlstate": "22P02", "where": "files.sql:7",
    "at": "2026-01-01T00:00:00Z", "worker": "w-1", "position": 1, "entity_type": "file",
    "entity_id": "f1", "event_type": "FileAdded", "detail": SECRET,
}  # fmt: skip


async def test_what_an_error_quotes_of_an_event_needs_the_grant_payload(
    http: Asgi, database: Database
) -> None:
    tokens = Tokens(database)
    token, _ = await tokens.create("seeing", Role.VIEWER, by="test", grants=frozenset({PAYLOAD}))
    seeing = http.with_token(token)
    error = orjson.dumps(ERROR).decode()
    await database.fetchrow(PARK)
    for table in ("projection_parked", "projection_checkpoints", "projection_builds"):
        await database.fetchrow(f"UPDATE everstate.{table} SET error = $1", error)
    await database.fetchrow(
        """INSERT INTO everstate.projection_replays (replay_id, name, version, build, state,
          selection, reason, principal, error)
          VALUES (gen_random_uuid(), 'repo', 1, 1, 'failed', '{"types": []}', 'x', 'op', $1)""",
        error,
    )
    group_id = await GroupStore(database).create("mail", 1, GroupSettings(partitions=1), 0)
    await database.fetchrow(
        """INSERT INTO everstate.parked_events (group_id, position, partition, sequence,
          entity_type, entity_id, event_type, state, reason, attempts)
          VALUES ($1, 1, 0, 1, 'file', 'f1', 'FileAdded', 'parked', $2, 3)""",
        group_id, SECRET,
    )  # fmt: skip
    shown = {**ERROR, "message": None}
    del shown["detail"]
    for path in (
        "/api/v1/projections",
        ONE,
        f"{ONE}/builds",
        f"{ONE}/segments",
        f"{ONE}/parked",
        f"{ONE}/replays",
    ):
        for asking, expected in ((http, shown), (seeing, ERROR)):
            found = (await asking.get(path)).ok()
            row = found["rows"][0] if "rows" in found else found
            assert row["error"] == expected, path
            assert "next" not in row
    for act in ("pause", "resume"):
        body = {"reason": "x"} if act == "pause" else None
        assert (await http.post(f"{ONE}/{act}", body)).ok()["error"] == shown
    for asking, reason in ((http, None), (seeing, SECRET)):
        [row] = (await asking.get("/api/v1/groups/mail/parked")).ok()["rows"]
        assert (row["reason"], row["entity_id"]) == (reason, "f1")


async def test_builds_are_paged_to_the_last_one(http: Asgi) -> None:
    for _ in range(4):
        (await http.post(f"{ONE}/rebuild")).ok()
        (await http.post(f"{ONE}/discard")).ok()
    found: list[int] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await http.get(f"{ONE}/builds", query)).ok()
        found += [row["build"] for row in page["rows"]]
        if page["next"] is None:
            break
        query["next"] = page["next"]
    assert found == [5, 4, 3, 2, 1]
    for bad in ("x", "1", "1.1.1", "9999999999.1"):
        said = (await http.get(f"{ONE}/builds", {"next": bad})).problem(400, "INVALID_ARGUMENT")
        assert said["field"] == "next"


async def test_a_wait_ends_when_the_position_is_reached_or_at_its_time(
    http: Asgi, database: Database
) -> None:
    waiting = asyncio.create_task(http.get(f"{ONE}/wait", {"position": 7, "timeout": 30}))
    said = (await http.get(f"{ONE}/wait", {"position": 7, "timeout": 0.05})).problem(
        504, "DEADLINE_EXCEEDED"
    )
    assert "at position 0, not yet at 7" in said["detail"]
    assert not waiting.done()
    await reach(database, "repo", 8)
    assert (await waiting).ok() == {"name": "repo", "version": 1, "position": 8}
    said = await http.get(f"{ONE}/wait", {"position": 1, "timeout": 61})
    assert said.problem(400, "INVALID_ARGUMENT")["field"] == "timeout"


async def test_those_who_wait_leave_room_for_those_who_do_not(database: Database) -> None:
    await make_read_model(database, "repo", TABLES)
    http = await app_of(database, limits=Limits(requests=4))
    waiting = [
        asyncio.create_task(http.get(f"{ONE}/wait", {"position": 7, "timeout": 30}))
        for _ in range(2)
    ]
    waits = http.app._app.state.services.waits

    async def both() -> bool:
        return bool(waits._inside == 2)

    await eventually_async(both, "both are inside")
    refused = await http.get(f"{ONE}/wait", {"position": 7, "timeout": 0})
    refused.problem(503, "OVERLOADED")
    assert (await http.get(ONE)).ok()
    await reach(database, "repo", 7)
    for answer in await asyncio.gather(*waiting):
        answer.ok()
    (await http.get(f"{ONE}/wait", {"position": 7, "timeout": 0})).ok()


async def test_a_rebuild_is_ordered_once_and_can_be_given_up(http: Asgi) -> None:
    key = {"idempotency-key": "k"}
    made = await http.post(f"{ONE}/rebuild", {"auto_switch": False}, headers=key)
    assert made.status == 202
    assert (made.json()["build"], made.json()["state"]) == (2, "ordered")
    again = await http.post(f"{ONE}/rebuild", {"auto_switch": False}, headers=key)
    assert (again.status, again.json()) == (202, made.json())
    (await http.post(f"{ONE}/rebuild")).problem(409, "CONFLICT")
    builds = (await http.get(f"{ONE}/builds")).ok()["rows"]
    assert [(b["version"], b["build"], b["state"]) for b in builds] == [
        (1, 2, "ordered"), (1, 1, "live"),
    ]  # fmt: skip
    (await http.post(f"{ONE}/switch")).problem(409, "CONFLICT")
    (await http.post(f"{ONE}/rollback")).problem(409, "CONFLICT")
    (await http.post(f"{ONE}/switch", {"version": 9})).problem(404, "NOT_FOUND")
    assert (await http.post(f"{ONE}/discard")).ok()["state"] in ("failed", "retired")
    assert (await http.post(f"{ONE}/rebuild")).status == 202


async def test_groups_are_looked_at(http: Asgi, database: Database) -> None:
    store = GroupStore(database)
    for name in ("billing", "mail", "search"):
        await store.create(name, 1, GroupSettings(entity_types=("order",), partitions=4), 0)
    first = (await http.get("/api/v1/groups", {"limit": 2})).ok()
    assert [row["name"] for row in first["rows"]] == ["billing", "mail"]
    rest = (await http.get("/api/v1/groups", {"next": first["next"]})).ok()
    assert ([row["name"] for row in rest["rows"]], rest["next"]) == (["search"], None)
    row = rest["rows"][0]
    assert row["settings"]["entity_types"] == ["order"]
    assert row["settings"]["ack_timeout_ms"] == 30_000
    assert row.keys() == _line(await store.get("search")).keys(), "as the command line has it"
    one = (await http.get("/api/v1/groups/search")).ok()
    assert len(one["partitions"]) == 4
    assert (await http.get("/api/v1/groups/search/parked")).ok() == {"rows": [], "next": None}
    (await http.get("/api/v1/groups/nosuch")).problem(404, "NOT_FOUND")
    (await http.get("/api/v1/groups/Bad-Name")).problem(400, "INVALID_ARGUMENT")


# -- the command line ----------------------------------------------------------------------------


class Admin:
    """`everstate admin` with a token of an operator."""

    def __init__(self, running: Running, token: str) -> None:
        self.running = running
        url = running.until(r"^admin ready  (http://\S+)$")[1]
        self.env = clean_env(EVERSTATE_ADMIN_URL=url, EVERSTATE_TOKEN=token)

    async def cli(self, *arguments: str) -> Said:
        return await asyncio.to_thread(cli, "projection", *arguments, env=self.env)


@pytest.fixture
async def admin(http: Asgi, database_url: str) -> AsyncIterator[Admin]:
    env = clean_env(EVERSTATE_DATABASE_URL=database_url)
    running = start("admin", "--port", "0", env=env)
    yield Admin(running, http.token)
    assert await asyncio.to_thread(running.end, signal.SIGTERM) == 0


async def test_the_commands_do_what_the_api_does(admin: Admin, database: Database) -> None:
    await database.fetchrow(PARK)
    rows = (await admin.cli("list", "--json")).ok().lines()
    assert [row["name"] for row in rows] == ["repo"]
    assert {"name", "version", "state", "position", "lag_events"} <= rows[0].keys()
    assert (await admin.cli("list")).ok().out == "repo version 1: live, position 0 of 0, 5 parked\n"
    shown = (await admin.cli("show", "repo")).ok().out
    assert "  segment 0: running, position 0, no worker has it\n" in shown
    parked = (await admin.cli("parked", "repo", "--json", "--limit", "3")).ok().lines()
    assert [row["position"] for row in parked] == [1, 2, 3]
    assert (
        "file/f1  FileAdded   (the message needs the grant"
        in (await admin.cli("parked", "repo")).ok().out
    )
    paused = (await admin.cli("pause", "repo", "--reason", "tea")).ok().out
    assert paused.endswith("; paused: tea\n")
    assert (await admin.cli("resume", "repo", "--json")).ok().json()["paused"] is False
    missing = await admin.cli("show", "nosuch", "--json")
    assert (missing.code, missing.error()["code"]) == (3, "NOT_FOUND")
    refused = await admin.cli("rollback", "repo")
    assert refused.code == 4
    assert refused.sentence()


async def test_wait_ends_with_0_or_with_6(admin: Admin, database: Database) -> None:
    late = await admin.cli("wait", "repo", "--position", "5", "--timeout", "0.2", "--json")
    assert (late.code, late.error()["code"]) == (6, "DEADLINE_EXCEEDED")
    waiting = asyncio.create_task(admin.cli("wait", "repo", "--position", "5", "--json"))
    await reach(database, "repo", 6)
    assert (await waiting).ok().json() == {"name": "repo", "version": 1, "position": 6}


async def test_a_followed_rebuild_ends_when_it_is_ready_and_shows_progress_on_a_terminal_only(
    admin: Admin, database: Database
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*EVERSTATE, "projection", "rebuild", "repo", "--follow", "--json"],
        env=admin.env | {"TERM": "xterm", "COLUMNS": "80"}, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)

    def until(words: bytes) -> bytes:
        seen = b""
        while words not in seen:
            assert select.select([ours], [], [], 30)[0], seen
            seen += os.read(ours, 65536)
        return seen

    await asyncio.to_thread(until, b"0 of 0")
    # What a worker does.
    await database.fetchrow(
        """UPDATE everstate.projection_builds SET state = 'building', target_position = 40
          WHERE build = 2"""
    )
    await database.fetchrow(
        """INSERT INTO everstate.projection_checkpoints (name, version, build, segment, first_slice,
          last_slice, position) VALUES ('repo', 1, 2, 0, 0, 1023, 30)"""
    )
    assert b"rebuild of repo" in await asyncio.to_thread(until, b"30 of 40")
    await database.fetchrow(
        "UPDATE everstate.projection_builds SET state = 'ready', ready_at = now() WHERE build = 2"
    )
    out, _ = await asyncio.to_thread(process.communicate)
    os.close(ours)
    assert process.returncode == 0
    assert b'"state":"ready"' in out
    assert b"\x1b" not in out
