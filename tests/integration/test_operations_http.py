"""Operations over HTTP: planned, read, applied by one or two, watched, undone; by a real runner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import orjson
import pytest

from admin_ui import app as admin_app
from admin_ui.services import AdminSettings
from journal.model import NewSnapshot
from journal.store import StoreJournal
from kernel.database import Database
from kernel.principals import Role
from kernel.token_store import Tokens
from operations.kinds.base import Environment
from operations.runner import Runner, RunnerSettings
from snapshots.store import SnapshotStore
from tests.asgi import Answer, Asgi
from tests.support import eventually_async, one, running

ALL = "/api/v1/operations"
CARTS = 5
HOLD = {"kind": "hold", "selection": {"types": ["cart"]}, "parameters": {"label": "audit"}}
ENDED = {"expired", "review", "done", "failed", "cancelled", "undone"}


@pytest.fixture
async def http(store: StoreJournal) -> Asgi:
    for n in range(CARTS):
        await store.append("default", one(f"eu-{n}", entity_type="cart"))
    return await app_of(store.database)


async def app_of(database: Database, **settings: Any) -> Asgi:
    token = await token_of(database, "ann")
    made = admin_app.services(database, AdminSettings(**settings))
    return Asgi(admin_app.application(made), token=token)


async def token_of(database: Database, name: str, role: Role = Role.OPERATOR) -> str:
    token, _ = await Tokens(database).create(name, role, by="test")
    return token


@pytest.fixture
async def runner(store: StoreJournal) -> AsyncIterator[None]:
    settings = RunnerSettings(look=timedelta(milliseconds=20))
    worker = Runner(store.database, store, Environment(), settings)
    async with running(worker.run()):
        yield


async def planned(http: Asgi, body: dict[str, Any] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = (await http.post(ALL, body or HOLD)).ok()
    return row


async def applied(http: Asgi, row: dict[str, Any], **more: Any) -> Answer:
    body = {"digest": row["digest"], "reason": "because"} | more
    return await http.post(f"{ALL}/{row['id']}/apply", body)


def events(answer: Answer) -> list[tuple[str, Any]]:
    """The events of a stream."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            found.append((fields["event"], orjson.loads(fields["data"])))
    return found


async def ended(http: Asgi, operation_id: str) -> dict[str, Any]:
    """The operation at its end, as a watcher sees it."""
    name, row = events(await http.get(f"{ALL}/{operation_id}/watch"))[-1]
    assert name == "end", row
    return dict(row)


async def count(database: Database, table: str) -> int:
    row = await database.fetchrow(f"SELECT count(*) FROM everstate.{table}")
    assert row is not None
    return int(row[0])


# -- planning ------------------------------------------------------------------------------------


async def test_a_plan_says_what_would_happen_and_changes_nothing(http: Asgi, store: Any) -> None:
    answer = await http.post(ALL, HOLD)
    assert answer.status == 201
    row = answer.ok()
    assert row["id"].startswith("op-")
    assert (row["state"], row["kind"], row["log"]) == ("planned", "hold", "default")
    assert (row["entities"], row["items"], row["events"]) == (CARTS, CARTS, CARTS)
    assert (row["excluded"], row["undoable"], row["planned_by"]) == ({}, True, "ann")
    assert row["selection"] == {"log": "default", "types": ["cart"]}
    assert "audit" in row["sentence"]
    assert row["expires_at"].endswith("Z")
    assert await count(store.database, "holds") == 0
    assert (await http.get(f"{ALL}/{row['id']}")).ok() == row
    [item, *rest] = (await http.get(f"{ALL}/{row['id']}/items")).ok()["rows"]
    assert (item["no"], item["entity_type"], item["entity_id"]) == (1, "cart", "eu-0")
    assert (item["state"], len(rest)) == ("planned", CARTS - 1)
    assert "before" not in item


async def test_a_plan_with_nothing_to_do_is_a_plan(http: Asgi) -> None:
    body = HOLD | {"selection": {"types": ["cart"], "where": "events>100"}}
    row = await planned(http, body)
    assert (row["state"], row["items"]) == ("planned", 0)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"kind": "no-such"}, "kind", "hold"),
        ({"kind": "hold", "selection": {"where": "colour>1"}}, "where", "colour"),
        ({"kind": "hold", "selection": {"where": "events>many"}}, "where", "many"),
        ({"kind": "hold", "selection": {"from": "yesterday"}}, "selection.from", ""),
        ({"kind": "hold", "selection": {"from": "2020-01-01T00:00:00"}}, "selection.from", ""),
        ({"kind": "hold", "target": "letters"}, "target", "no target"),
        ({"kind": "seek", "parameters": {"to": "now"}}, "target", "consumer group"),
        ({"kind": "hold", "selection": {"entities": [["cart"]]}}, "selection.entities", ""),
        ({"kind": "hold", "selection": {"nosuch": 1}}, "selection.nosuch", ""),
        ({"kind": "hold", "parameters": {"label": "Not A Label"}}, "parameters.label", ""),
        ({"kind": "hold", "parameters": {"colour": "x"}}, "parameters.colour", ""),
        ({"kind": "hold", "rate": 0}, "rate", ""),
        ({}, "kind", ""),
    ],
)
async def test_bad_plans_are_refused_with_their_field_and_leave_nothing(
    http: Asgi, store: Any, body: dict[str, Any], field: str, says: str
) -> None:
    said = (await http.post(ALL, body)).problem(400, "INVALID_ARGUMENT")
    assert field in said["field"], said
    assert says in said["detail"]
    assert await count(store.database, "operations") == 0
    assert await count(store.database, "operation_items") == 0


async def test_a_field_is_named_as_the_request_names_it(http: Asgi) -> None:
    for bound in (0, "x" * 41):
        said = await http.post(ALL, {"kind": "hold", "selection": {"from": bound}})
        assert said.problem(400, "INVALID_ARGUMENT")["field"] == "selection.from"
    said = await http.get(ALL, {"next": "bogus"})
    assert said.problem(400, "INVALID_ARGUMENT")["field"] == "next"


@pytest.mark.parametrize("since", ["1970-01-01T00:00:00Z", "1969-12-31", "2023-01-01"])
async def test_a_range_begins_at_a_date_or_since_ever(http: Asgi, since: str) -> None:
    assert (await planned(http, HOLD | {"selection": {"from": since}}))["items"] == CARTS


async def test_who_types_types_what_it_is_about(http: Asgi, store: Any) -> None:
    admin = http.with_token(await token_of(store.database, "root", Role.ADMIN))
    header = {"If-Match": '"0"'}
    (await admin("PUT", "/api/v1/policies/hold", json={"typed": True}, headers=header)).ok()
    for selection, typed in (
        ({"entities": [["cart", "eu-1"]]}, "cart/eu-1"),
        ({"entities": [["cart", "eu-1"], ["cart", "eu-2"]]}, "cart"),
        ({"types": ["cart"]}, "cart"),
        ({"where": "held:no"}, "default"),
    ):
        row = await planned(http, HOLD | {"selection": selection})
        assert row["typed"] == typed
        said = (await applied(http, row, typed=typed[:-1])).problem(400, "INVALID_ARGUMENT")
        assert (said["field"], repr(typed) in said["detail"]) == ("typed", True)


async def test_a_log_or_an_operation_that_is_not_there_is_not_found(http: Asgi) -> None:
    (await http.post(ALL, HOLD | {"log": "nosuch"})).problem(404, "LOG_NOT_FOUND")
    gone = f"{ALL}/op-01900000-0000-7000-8000-000000000000"
    for path in ("", "/items", "/failures", "/watch"):
        (await http.get(gone + path)).problem(404, "NOT_FOUND")
    (await http.get(f"{ALL}/nonsense")).problem(400, "INVALID_ARGUMENT")


async def test_the_same_request_with_one_idempotency_key_plans_once(http: Asgi) -> None:
    first = await http.post(ALL, HOLD, headers={"Idempotency-Key": "k1"})
    again = await http.post(ALL, HOLD, headers={"Idempotency-Key": "k1"})
    assert again.ok() == first.ok()
    assert again.headers["idempotency-replayed"] == "true"
    assert len((await http.get(ALL)).ok()["rows"]) == 1


# -- applying ------------------------------------------------------------------------------------


async def test_it_is_applied_watched_and_undone(http: Asgi, store: Any, runner: None) -> None:
    row = await planned(http)
    watching = asyncio.create_task(http.get(f"{ALL}/{row['id']}/watch"))
    answer = await applied(http, row)
    assert answer.status == 202
    assert answer.ok()["state"] in ("queued", "running", "done")
    seen = events(await watching)
    assert seen[0][0] == "progress"
    assert seen[-1][0] == "end"
    done = seen[-1][1]
    assert (done["state"], done["applied_by"], done["reason"]) == ("done", "ann", "because")
    assert done["progress"]["done"] == CARTS
    assert done == (await http.get(f"{ALL}/{row['id']}")).ok()
    assert len((await http.get("/api/v1/holds", {"label": "audit"})).ok()["rows"]) == CARTS
    held = (await http.get("/api/v1/entities", {"where": "held:yes"})).ok()["rows"]
    assert [entity["entity_id"] for entity in held] == [f"eu-{n}" for n in range(CARTS)]
    undone = await http.post(f"{ALL}/{row['id']}/undo", {"reason": "a mistake"})
    assert undone.status == 202
    back = await ended(http, row["id"])
    assert (back["state"], back["undo_reason"]) == ("undone", "a mistake")
    assert (await http.get("/api/v1/holds")).ok()["rows"] == []


async def test_applied_twice_it_acts_once(http: Asgi, runner: None) -> None:
    row = await planned(http)
    (await applied(http, row)).ok()
    (await applied(http, row)).ok()
    assert (await ended(http, row["id"]))["progress"]["done"] == CARTS
    assert (await applied(http, row)).ok()["state"] == "done"


async def test_another_digest_is_refused_and_does_nothing(http: Asgi) -> None:
    row = await planned(http)
    (await applied(http, row, digest="0" * 64)).problem(409, "CONFLICT")
    said = (await applied(http, row, reason="")).problem(400, "INVALID_ARGUMENT")
    assert said["field"] == "reason"
    assert (await http.get(f"{ALL}/{row['id']}")).ok()["state"] == "planned"


async def test_an_expired_plan_acts_never_and_is_planned_anew(
    http: Asgi, store: Any, runner: None
) -> None:
    row = await planned(http)
    await store.database.fetchrow(
        "UPDATE everstate.operations SET expires_at = clock_timestamp() - interval '1 second'"
    )
    (await applied(http, row)).problem(409, "CONFLICT")
    assert (await http.get(f"{ALL}/{row['id']}")).ok()["state"] == "expired"
    anew = await http.post(f"{ALL}/{row['id']}/replan")
    assert anew.status == 201
    assert anew.ok()["id"] != row["id"]
    assert anew.ok()["digest"] == row["digest"], "nothing has changed since"
    (await applied(http, anew.ok())).ok()
    assert (await ended(http, anew.ok()["id"]))["state"] == "done"


async def test_of_two_persons_at_once_one_acts_and_both_are_told(
    http: Asgi, store: Any, runner: None
) -> None:
    other = http.with_token(await token_of(store.database, "bob"))
    row = await planned(http)
    answers = await asyncio.gather(applied(http, row), applied(other, row))
    assert [answer.status for answer in answers] == [202, 202]
    done = await ended(http, row["id"])
    assert done["progress"]["done"] == CARTS
    assert done["seconded_by"] is None


async def test_a_second_person_has_to_apply_it_too_where_policy_wants_that(
    http: Asgi, store: Any, runner: None
) -> None:
    admin = http.with_token(await token_of(store.database, "root", Role.ADMIN))
    policy = await admin.get("/api/v1/policies/hold")
    headers = {"If-Match": policy.headers["etag"]}
    body = {"second_person": True}
    changed = await admin("PUT", "/api/v1/policies/hold", json=body, headers=headers)
    assert changed.ok()["second_person"] is True
    row = await planned(http)
    assert (await applied(http, row)).ok()["state"] == "awaiting"
    assert (await applied(http, row)).ok()["state"] == "awaiting"
    assert (await http.get("/api/v1/holds")).ok()["rows"] == []
    other = http.with_token(await token_of(store.database, "bob"))
    assert (await applied(other, row)).status == 202
    done = await ended(http, row["id"])
    assert (done["applied_by"], done["seconded_by"], done["state"]) == ("ann", "bob", "done")


async def test_a_viewer_looks_and_changes_nothing(http: Asgi, store: Any) -> None:
    viewer = http.with_token(await token_of(store.database, "eve", Role.VIEWER))
    row = await planned(http)
    for path in ("", f"/{row['id']}", f"/{row['id']}/items", f"/{row['id']}/failures"):
        (await viewer.get(ALL + path)).ok()
    for path in ("entities", "holds", "policies", "operation-kinds"):
        (await viewer.get(f"/api/v1/{path}")).ok()
    (await viewer.post(ALL, HOLD)).problem(403, "PERMISSION_DENIED")
    (await applied(viewer, row)).problem(403, "PERMISSION_DENIED")
    for act in ("pause", "resume", "cancel", "retry", "replan", "undo"):
        answer = await viewer.post(f"{ALL}/{row['id']}/{act}", {"reason": "x"})
        answer.problem(403, "PERMISSION_DENIED")
    for who in (viewer, http):  # an operator neither
        answer = await who("PUT", "/api/v1/policies/hold", json={}, headers={"If-Match": "*"})
        answer.problem(403, "PERMISSION_DENIED")
    assert [found["id"] for found in (await http.get(ALL)).ok()["rows"]] == [row["id"]]
    assert (await http.get(f"{ALL}/{row['id']}")).ok() == row


# -- stopping, looking ---------------------------------------------------------------------------


async def test_what_is_queued_is_paused_resumed_and_cancelled(http: Asgi) -> None:
    row = await planned(http)
    (await http.post(f"{ALL}/{row['id']}/pause")).problem(409, "CONFLICT")
    (await applied(http, row)).ok()
    assert (await http.post(f"{ALL}/{row['id']}/pause")).ok()["state"] == "paused"
    assert (await http.post(f"{ALL}/{row['id']}/resume")).ok()["state"] == "queued"
    assert (await http.post(f"{ALL}/{row['id']}/cancel")).ok()["state"] == "cancelled"
    assert (await ended(http, row["id"]))["progress"]["done"] == 0
    assert (await http.get("/api/v1/holds")).ok()["rows"] == []


async def test_operations_and_items_are_paged_and_filtered(http: Asgi) -> None:
    made = [(await planned(http))["id"] for _ in range(3)]
    (await http.post(f"{ALL}/{made[1]}/cancel")).ok()
    assert await pages(http, ALL, {}, "id") == made[::-1]
    assert await pages(http, ALL, {"state": ["planned", "done"]}, "id") == [made[2], made[0]]
    assert await pages(http, ALL, {"kind": "release"}, "id") == []
    (await http.get(ALL, {"state": "nosuch"})).problem(400, "INVALID_ARGUMENT")
    items = f"{ALL}/{made[0]}/items"
    assert await pages(http, items, {"state": "planned"}, "no") == [1, 2, 3, 4, 5]
    assert await pages(http, items, {"state": "failed"}, "no") == []
    for bad in ("x", "-1", "9" * 30):
        (await http.get(items, {"next": bad})).problem(400, "INVALID_ARGUMENT")


async def pages(http: Asgi, path: str, query: dict[str, Any], key: str) -> list[Any]:
    """A column of all rows, two rows a page."""
    found: list[Any] = []
    asked = query | {"limit": 2}
    while True:
        page = (await http.get(path, asked)).ok()
        found += [row[key] for row in page["rows"]]
        if page["next"] is None:
            return found
        asked["next"] = page["next"]


async def test_entities_are_searched_page_by_page(http: Asgi) -> None:
    found = await pages(http, "/api/v1/entities", {"where": "type:cart id:eu-*"}, "entity_id")
    assert found == [f"eu-{n}" for n in range(CARTS)]
    said = (await http.get("/api/v1/entities", {"where": "type:"})).problem(400, "INVALID_ARGUMENT")
    assert said["field"] == "where"
    (await http.get("/api/v1/entities", {"next": "x"})).problem(400, "INVALID_ARGUMENT")


async def test_holds_are_paged(http: Asgi, runner: None) -> None:
    row = await planned(http)
    (await applied(http, row)).ok()
    await ended(http, row["id"])
    found = await pages(http, "/api/v1/holds", {}, "entity_id")
    assert found == [f"eu-{n}" for n in range(CARTS)]
    for bad in ("x", "WzFd", "e30"):
        (await http.get("/api/v1/holds", {"next": bad})).problem(400, "INVALID_ARGUMENT")


# -- watching ------------------------------------------------------------------------------------


async def test_a_stream_ends_in_time_and_watchers_leave_room_for_others(http: Asgi) -> None:
    row = await planned(http)
    narrow = await app_of_same(http, watch_seconds=0.5)
    seen = events(await narrow.get(f"{ALL}/{row['id']}/watch"))
    assert [name for name, _ in seen] == ["progress"], "as it is, and no end"
    from admin_ui.guard import Limits

    narrow = await app_of_same(http, watch_seconds=1.0, limits=Limits(requests=4))
    path = f"{ALL}/{row['id']}/watch"
    answers = await asyncio.gather(*(narrow.get(path) for _ in range(3)), narrow.get(ALL))
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503]
    assert answers[-1].status == 200
    assert (await narrow.get(path)).status == 200, "places are given back"


async def test_who_watches_much_shuts_out_neither_others_nor_those_who_wait(
    http: Asgi, store: Any
) -> None:
    row = await planned(http)
    path = f"{ALL}/{row['id']}/watch"
    wide = await app_of_same(http, watch_seconds=3.0)
    services = wide.app._app.state.services
    other = wide.with_token(await token_of(store.database, "bob", Role.VIEWER))

    async def inside(wanted: int) -> None:
        async def there() -> bool:
            return bool(services.streams._inside.total() == wanted)

        await eventually_async(there, f"{wanted} watch")

    watching = [asyncio.create_task(wide.get(path)) for _ in range(8)]
    await inside(8)
    said = (await wide.get(path)).problem(503, "OVERLOADED")
    assert "'ann' watches 8 streams already" in said["detail"]
    watching += [asyncio.create_task(other.get(path)) for _ in range(8)]
    await inside(16)
    third = wide.with_token(await token_of(store.database, "cid", Role.VIEWER))
    (await third.get(path)).problem(503, "OVERLOADED")
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(services.waits)
    assert {answer.status for answer in await asyncio.gather(*watching)} == {200}
    assert services.streams._inside == {}


async def app_of_same(http: Asgi, **settings: Any) -> Asgi:
    guard = http.app
    database = guard._app.state.services.database
    made = admin_app.services(database, AdminSettings(**settings))
    return Asgi(admin_app.application(made), token=http.token)


async def test_head_of_a_stream_does_not_wait(http: Asgi) -> None:
    row = await planned(http)
    async with asyncio.timeout(5):
        answer = await http("HEAD", f"{ALL}/{row['id']}/watch")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


# -- policies ------------------------------------------------------------------------------------


async def test_a_policy_is_changed_by_who_has_seen_it(http: Asgi, store: Any) -> None:
    admin = http.with_token(await token_of(store.database, "root", Role.ADMIN))
    path = "/api/v1/policies/hold"
    was = await admin.get(path)
    assert (was.headers["etag"], was.ok()["version"]) == ('"0"', 0)
    body = {"expires_s": 3600, "max_drift": 0.5}
    assert (await admin("PUT", path, json=body)).status == 428
    tag = {"If-Match": was.headers["etag"]}
    now = await admin("PUT", path, json=body, headers=tag)
    assert (now.ok()["expires_s"], now.ok()["updated_by"]) == (3600, "root")
    stale = await admin("PUT", path, json={"expires_s": 60}, headers=tag)
    stale.problem(412, "CONFLICT")
    assert (await admin.get(path)).ok() == now.ok()
    assert (await admin("PUT", path, json=body, headers={"If-Match": "*"})).status == 200
    for wrong in ({"expires_s": 1}, {"max_drift": 2}, {"undo_s": -1}):
        answer = await admin("PUT", path, json=wrong, headers={"If-Match": "*"})
        said = answer.problem(400, "INVALID_ARGUMENT")
        assert said["field"] == next(iter(wrong))
    for tag in ({"If-Match": "x"}, {"If-Match": 'W/"1"'}, {"If-Match": '"1", "2"'}):
        answer = await admin("PUT", path, json=body, headers=tag)
        assert answer.problem(400, "INVALID_ARGUMENT")["field"] == "If-Match"
    (await admin.get("/api/v1/policies/nosuch")).problem(404, "NOT_FOUND")
    listed = (await admin.get("/api/v1/policies")).ok()["rows"]
    kinds = (await admin.get("/api/v1/operation-kinds")).ok()["rows"]
    assert [row["kind"] for row in listed] == [kind["name"] for kind in kinds]
    [hold] = [kind for kind in kinds if kind["name"] == "hold"]
    assert (hold["policy"]["expires_s"], hold["family"], hold["undoable"]) == (
        3600, "entities", True,
    )  # fmt: skip


async def test_what_a_put_does_not_name_stays_as_it_is(http: Asgi, store: Any) -> None:
    admin = http.with_token(await token_of(store.database, "root", Role.ADMIN))
    path = "/api/v1/policies/tombstone"
    was = await admin.get(path)
    strict = {"second_person": True, "typed": False, "max_drift": 0.25}
    first = await admin("PUT", path, json=strict, headers={"If-Match": was.headers["etag"]})
    now = await admin("PUT", path, json={"expires_s": 3600}, headers={"If-Match": '"1"'})
    same = ("second_person", "typed", "max_drift", "undo_s")
    assert [now.ok()[key] for key in same] == [first.ok()[key] for key in same]
    assert (now.ok()["second_person"], now.ok()["typed"], now.ok()["expires_s"]) == (
        True, False, 3600,
    )  # fmt: skip
    answers = await asyncio.gather(
        *(
            admin("PUT", path, json=body, headers={"If-Match": "*"})
            for body in ({"typed": True}, {"max_drift": 0.5}, {"expires_s": 60}, {"undo_s": 5})
        )
    )
    assert {answer.status for answer in answers} == {200}
    last = (await admin.get(path)).ok()
    assert [last[key] for key in (*same, "expires_s")] == [True, True, 0.5, 5, 60]

    path = "/api/v1/entity-types/cart"
    whole = {"needs_full_replay": True, "snapshot_types": ["Cart"], "keep_snapshots": 9}
    (await admin("PUT", path, json=whole, headers={"If-Match": '"0"'})).ok()
    now = await admin("PUT", path, json={"snapshot_every": 5}, headers={"If-Match": '"1"'})
    assert {key: now.ok()[key] for key in whole} == whole
    empty = await admin("PUT", path, json={"snapshot_types": []}, headers={"If-Match": '"2"'})
    assert (empty.ok()["snapshot_types"], empty.ok()["snapshot_every"]) == ([], 5)
    wrong = await admin(
        "PUT", "/api/v1/entity-types/new", json={"keep_snapshots": 1}, headers={"If-Match": '"0"'}
    )
    wrong.problem(400, "INVALID_ARGUMENT")
    (await admin.get("/api/v1/entity-types/new")).problem(404, "NOT_FOUND")


# -- entity types, snapshots ---------------------------------------------------------------------


async def test_settings_of_a_type_are_changed_by_who_has_seen_them(http: Asgi, store: Any) -> None:
    admin = http.with_token(await token_of(store.database, "root", Role.ADMIN))
    path = "/api/v1/entity-types/cart"
    was = await admin.get(path)
    assert (was.headers["etag"], was.ok()["snapshot_every"]) == ('"0"', 0)
    body = {"snapshot_every": 50, "keep_snapshots": 3}
    assert (await admin("PUT", path, json=body)).status == 428
    tag = {"If-Match": was.headers["etag"]}
    now = await admin("PUT", path, json=body, headers=tag)
    assert (now.ok()["snapshot_every"], now.headers["etag"]) == (50, '"1"')
    (await admin("PUT", path, json={}, headers=tag)).problem(412, "CONFLICT")
    assert (await admin.get(path)).ok() == now.ok()
    answer = await admin("PUT", path, json={"keep_snapshots": 1}, headers={"If-Match": "*"})
    assert answer.problem(400, "INVALID_ARGUMENT")["field"] == "keep_snapshots"
    answer = await http("PUT", path, json=body, headers={"If-Match": "*"})
    answer.problem(403, "PERMISSION_DENIED")
    (await admin.get("/api/v1/entity-types/nosuch")).problem(404, "NOT_FOUND")
    new = await admin("PUT", "/api/v1/entity-types/new", json={}, headers={"If-Match": '"0"'})
    assert new.ok()["version"] == 1
    assert await pages(http, "/api/v1/entity-types", {}, "name") == ["cart", "new"]


async def test_snapshots_of_an_entity_are_listed_without_their_payloads(
    http: Asgi, store: Any
) -> None:
    for _ in range(4):
        await store.append("default", one("eu-0", entity_type="cart"))
    snapshots = SnapshotStore(store.database, store)
    for sequence in (2, 3, 5):
        await snapshots.save(
            "default", "cart", "eu-0", sequence, NewSnapshot("Cart", b"secret-payload")
        )
    query = {"type": "cart", "id": "eu-0"}
    assert await pages(http, "/api/v1/snapshots", query, "sequence") == [5, 3, 2]
    answer = await http.get("/api/v1/snapshots", query)
    assert b"secret-payload" not in answer.body
    [newest, *_] = answer.ok()["rows"]
    assert (newest["type"], newest["source"], newest["covers"]) == ("Cart", "owner", False)
    assert newest["event_at"].endswith("Z")
    gone = await http.get("/api/v1/snapshots", query | {"id": "nosuch"})
    gone.problem(404, "ENTITY_NOT_FOUND")
    said = (await http.get("/api/v1/snapshots", {"type": "cart"})).problem(400, "INVALID_ARGUMENT")
    assert said["field"] == "id"
