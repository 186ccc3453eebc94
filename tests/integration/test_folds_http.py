"""Folds over HTTP: states, verifying, the list; who may see what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from admin_ui import app as admin_app
from admin_ui.services import AdminSettings
from journal.model import NewSnapshot
from journal.store import StoreJournal
from kernel.ids import new_id
from kernel.principals import PAYLOAD, Role
from kernel.token_store import Tokens
from operations.kinds.base import Environment
from snapshots import fold_registry
from snapshots.folding import Folding
from snapshots.folds import canonical
from tests.asgi import Asgi
from tests.folding import Total, append, at, definition_of, fold_of, folding_of

STATE, VERIFY, FOLDS = "/api/v1/entities/state", "/api/v1/entities/verify", "/api/v1/folds"
ONE = {"type": "account", "id": "a"}


async def app_of(
    store: StoreJournal, folding: Folding | None, role: Role = Role.OPERATOR, *grants: str
) -> Asgi:
    database = store.database
    token, _ = await Tokens(database).create(
        f"me-{new_id()}", role, by="test", grants=frozenset(grants)
    )
    made = admin_app.services(database, AdminSettings(), Environment(folds=folding))
    return Asgi(admin_app.application(made), token=token)


@pytest.fixture
async def http(store: StoreJournal) -> Asgi:
    snapshot = NewSnapshot("owner.total", canonical(fold_of([1, 2])), "application/json")
    await append(store, "a", {"by": 1}, {"by": 2}, times=[at(2020), at(2021)], snapshot=snapshot)
    await append(store, "a", {"by": 3}, times=[at(2022)])
    return await app_of(store, folding_of(), Role.OPERATOR, PAYLOAD)


async def test_a_state_is_shown_now_then_and_at_a_time(http: Asgi) -> None:
    now = (await http.get(STATE, ONE)).ok()
    assert now == {
        "entity_type": "account", "entity_id": "a", "sequence": 3, "floor": 1, "position": 3,
        "time": "2022-01-01T00:00:00.000000Z", "fold_version": 1, "from_snapshot": 2,
        "events_folded": 1, "withheld": False, "state": fold_of([1, 2, 3]),
    }  # fmt: skip
    then = (await http.get(STATE, ONE | {"sequence": 1})).ok()
    assert (then["state"], then["from_snapshot"]) == (fold_of([1]), None)
    moment = (await http.get(STATE, ONE | {"at": "2021-06-01T02:00:00+02:00"})).ok()
    assert (moment["sequence"], moment["state"]) == (2, fold_of([1, 2]))
    full = (await http.get(STATE, ONE | {"full": "true"})).ok()
    assert full == now | {"from_snapshot": None, "events_folded": 3}


async def test_without_the_grant_payload_the_state_itself_is_withheld(
    http: Asgi, store: StoreJournal
) -> None:
    viewer = await app_of(store, folding_of(), Role.VIEWER)
    found = (await viewer.get(STATE, ONE)).ok()
    assert found == (await http.get(STATE, ONE)).ok() | {"withheld": True, "state": None}
    (await viewer.post(VERIFY, ONE)).problem(403, "PERMISSION_DENIED")


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ({"type": "cart", "id": "a"}, 404, "NO_FOLD", None),
        (ONE | {"id": "b"}, 404, "ENTITY_NOT_FOUND", None),
        (ONE | {"log": "nowhere"}, 404, "LOG_NOT_FOUND", None),
        (ONE | {"sequence": 4}, 400, "INVALID_ARGUMENT", "sequence"),
        (ONE | {"sequence": 0}, 400, "INVALID_ARGUMENT", "sequence"),
        (ONE | {"at": "2021-06-01"}, 400, "INVALID_ARGUMENT", "at"),
        (ONE | {"at": "1970-01-01T00:00:00Z"}, 400, "INVALID_ARGUMENT", "at"),
        (ONE | {"at": "2021-06-01T00:00:00Z", "sequence": 1}, 400, "INVALID_ARGUMENT", "at"),
        (ONE | {"id": "a\0"}, 400, "INVALID_ARGUMENT", "entity_id"),
        ({"type": "account"}, 400, "INVALID_ARGUMENT", "id"),
    ],
)
async def test_what_is_wrong_is_named(
    http: Asgi, query: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    assert (await http.get(STATE, query)).problem(status, code)["field"] == field


async def test_an_admin_without_user_code_says_where_folds_are_named(
    http: Asgi, store: StoreJournal
) -> None:
    bare = await app_of(store, None)
    problem = (await bare.get(STATE, ONE)).problem(404, "NO_FOLD")
    assert "everstate.toml" in problem["hint"]


async def test_a_fold_that_fails_is_a_problem_without_values(
    http: Asgi, store: StoreJournal
) -> None:
    await append(store, "a", {"by": "fail", "secret": "hunter2"})
    problem = (await http.get(STATE, ONE)).problem(422, "FOLD_FAILED")
    assert "account/a: sequence 4: KeyError" in problem["detail"]
    assert "hunter2" not in str(problem)


async def test_snapshots_are_verified(http: Asgi, store: StoreJournal) -> None:
    found = (await http.post(VERIFY, ONE)).ok()
    assert found == {
        "entity_type": "account", "entity_id": "a", "sequence": 3, "floor": 1, "fold_version": 1,
        "events": 3, "ok": True, "load": True, "agree": 1, "differ": 0, "foreign": 0,
        "snapshots": [
            {"sequence": 2, "type": "owner.total", "source": "owner", "verdict": "agrees",
             "problem": ""}
        ],
    }  # fmt: skip
    async with store.database.connection() as connection:
        await connection.execute(
            "UPDATE everstate.snapshots SET payload = $1", canonical(fold_of([5, 5]))
        )
    found = (await http.post(VERIFY, ONE)).ok()
    assert (found["ok"], found["load"], found["snapshots"][0]["verdict"]) == (
        False, False, "differs",
    )  # fmt: skip
    (await http.post(VERIFY, ONE | {"id": "b"})).problem(404, "ENTITY_NOT_FOUND")
    (await http.post(VERIFY, ONE | {"more": 1})).problem(400, "INVALID_ARGUMENT")


async def test_folds_are_listed_page_by_page_with_whether_the_admin_has_them(
    http: Asgi, store: StoreJournal
) -> None:
    assert (await http.get(FOLDS)).ok() == {"rows": [], "next": None}
    mine = definition_of(Total)
    others = [replace(mine, entity_type="a/b"), replace(mine, version=2)]
    await fold_registry.register(store.database, [mine, *others])
    found: list[tuple[str, int, bool]] = []
    query: dict[str, Any] = {"limit": 1}
    while True:
        page = (await http.get(FOLDS, query)).ok()
        found += [(row["entity_type"], row["version"], row["loaded"]) for row in page["rows"]]
        if page["next"] is None:
            break
        query["next"] = page["next"]
    assert found == [("a/b", 1, False), ("account", 1, True), ("account", 2, False)]
    (await http.get(FOLDS, {"next": "x"})).problem(400, "INVALID_ARGUMENT")
