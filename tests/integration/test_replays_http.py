"""Replays over HTTP."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from journal.store import StoreJournal
from kernel.principals import Role
from kernel.token_store import Tokens
from projections import replay, sqlfile
from tests.asgi import Asgi
from tests.by_hand import Hand
from tests.integration.test_projections_http import app_of
from tests.integration.test_replay import DELETION, SUMS, rows

ALL = "/api/v1/projections/sums/replays"


@pytest.fixture
async def hand(store: StoreJournal) -> Hand:
    made = await Hand.start(
        store, sqlfile.parse(SUMS.format(segments=1, deletion=DELETION), "sums.sql")
    )
    for n in range(6):
        await made.append(f"thing-{n % 3}", by=n)
    await made.catch_up()
    return made


@pytest.fixture
async def http(hand: Hand) -> Asgi:
    return await app_of(hand.database)


async def test_a_replay_is_ordered_carried_out_and_shown(http: Asgi, hand: Hand) -> None:
    async with hand.database.connection() as connection:
        await connection.execute("UPDATE rm_sums_v1.sums SET total = 0")
    body = {"reason": "damaged", "entities": [["thing", "thing-1"]], "rate": 100}
    row = (await http.post(ALL, body)).ok()
    assert (row["state"], row["principal"], row["rate"]) == ("running", "op", 100)
    counted = row | {"selection": {"entities_count": 1}}
    assert (await http.get(ALL)).ok()["rows"] == [counted], "not which: there may be many"
    await hand.replay_all()
    done = (await http.get(f"{ALL}/{row['replay_id']}")).ok()
    assert (done["state"], done["entities"], done["events"]) == ("done", 1, 2)
    assert ("thing-1", 2, 5) in await rows(hand.database)


async def test_replays_are_paged_to_the_last_one(http: Asgi) -> None:
    made = []
    for _ in range(5):
        row = (await http.post(ALL, {"reason": "x", "types": ["thing"]})).ok()
        made.append(row["replay_id"])
        (await http.post(f"{ALL}/{row['replay_id']}/cancel", {})).ok()
    found: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await http.get(ALL, query)).ok()
        found += [row["replay_id"] for row in page["rows"]]
        assert all(row["selection"] == {"types_count": 1} for row in page["rows"])
        if page["next"] is None:
            break
        query["next"] = page["next"]
    assert found == made[::-1]
    (await http.get(ALL, {"next": "x"})).problem(400, "INVALID_ARGUMENT")


async def test_a_worker_asks_only_for_the_replays_of_its_segments(http: Asgi, hand: Hand) -> None:
    (await http.post(ALL, {"reason": "x", "entities": [["thing", "thing-1"]]})).ok()
    [task] = await replay.tasks(hand.database)
    assert "thing-1" not in repr(task), "what may be large is read when it is replayed"
    [segment] = [segment.key for segment in await hand.segments()]
    assert await replay.tasks(hand.database, [segment]) == [task]
    assert await replay.tasks(hand.database, [dataclasses.replace(segment, build=2)]) == []
    assert await replay.tasks(hand.database, []) == []


async def test_a_replay_is_cancelled(http: Asgi) -> None:
    row = (await http.post(ALL, {"reason": "x", "types": ["thing"]})).ok()
    (await http.post(ALL, {"reason": "x", "types": ["thing"]})).problem(409, "CONFLICT")
    cancelled = (await http.post(f"{ALL}/{row['replay_id']}/cancel", {})).ok()
    assert cancelled["state"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"types": ["thing"]}, "reason"),
        ({"reason": "x"}, "selection"),
        ({"reason": "x", "types": ["other"]}, "types"),
        ({"reason": "x", "entities": [["thing"]]}, "entities"),
        ({"reason": "x", "types": ["thing"], "rate": 0}, "rate"),
        ({"reason": "x", "from_position": 2, "to_position": 99}, "to_position"),
    ],
)
async def test_bad_orders_are_refused_with_their_field(
    http: Asgi, body: dict[str, Any], field: str
) -> None:
    said = (await http.post(ALL, body)).problem(400, "INVALID_ARGUMENT")
    assert field in said["field"]
    assert (await http.get(ALL)).ok()["rows"] == []


async def test_what_is_not_there_is_not_found(http: Asgi) -> None:
    (await http.get(f"{ALL}/01900000-0000-7000-8000-000000000000")).problem(404, "NOT_FOUND")
    (await http.get(f"{ALL}/nonsense")).problem(400, "INVALID_ARGUMENT")
    (await http.get("/api/v1/projections/none/replays")).problem(404, "NOT_FOUND")


async def test_a_viewer_looks_and_does_not_order(http: Asgi, hand: Hand) -> None:
    token, _ = await Tokens(hand.database).create("viewer", Role.VIEWER, by="test")
    viewer = http.with_token(token)
    assert (await viewer.get(ALL)).ok() == {"rows": [], "next": None}
    refused = await viewer.post(ALL, {"reason": "x", "types": ["thing"]})
    refused.problem(403, "PERMISSION_DENIED")
