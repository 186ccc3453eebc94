"""Direct orders, beside operations: shut where policy wants more than one person, else audited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from journal.store import StoreJournal
from kernel.errors import PermissionDenied
from kernel.principals import Principal, Role
from operations import policies
from operations.doors import through
from operations.model import Policy
from projections import control, sqlfile
from projections.replay import Selection
from sidecar_api.client import (
    ANY,
    Append,
    Client,
    EntityAppend,
    NewEvent,
    NewSnapshot,
    ParkedSelection,
)
from tests.by_hand import Hand
from tests.integration.test_kind_projections import SUMS

ADA = Principal("token", "ada", Role.ADMIN, key="1")
ALL = ParkedSelection(all=True)


async def audited(store: StoreJournal) -> list[tuple[str, str, str]]:
    rows = await store.database.fetch(
        "SELECT entity_type, entity_id, type FROM everstate.audit_outbox"
        " WHERE entity_type <> 'policy' ORDER BY audit_id"
    )
    return [tuple(row) for row in rows]


async def close_doors(store: StoreJournal, kind: str, **policy: Any) -> None:
    await policies.set_policy(store.database, kind, Policy(**policy), version=None, principal=ADA)


@pytest.fixture
async def grouped(client: Client) -> Client:
    """A log with three events and a group."""
    await client.append(
        "default",
        Append((EntityAppend("cart", "a", ANY),), tuple(NewEvent("Added", b"1") for _ in range(3))),
    )
    await client.groups.create("mail")
    return client


@pytest.mark.parametrize("guard", ["second_person", "typed"])
@pytest.mark.parametrize(
    ("kind", "order", "event"),
    [
        ("seek", lambda c: c.groups.seek("mail", 2), "GroupSought"),
        ("replay-parked", lambda c: c.groups.replay("mail", ALL), "ParkedReplayed"),
        ("discard-parked", lambda c: c.groups.discard("mail", ALL), "ParkedDiscarded"),
    ],
)
async def test_groups_are_guarded_as_their_operations_are(
    grouped: Client, store: StoreJournal, kind: str, event: str, guard: str,
    order: Callable[[Client], Awaitable[Any]],
) -> None:  # fmt: skip
    await order(grouped)
    assert await audited(store) == [("group", "mail", event)]
    await close_doors(store, kind, **{guard: True})
    with pytest.raises(PermissionDenied, match=f"policy of {kind} wants .* plan the operation"):
        await order(grouped)
    assert len(await audited(store)) == 1, "a refusal changes nothing and tells nothing"


async def test_snapshots_are_removed_and_replaced_as_policy_of_prune_says(
    grouped: Client, store: StoreJournal
) -> None:
    snapshot = NewSnapshot("Sum", b"1", "text/plain")
    for sequence in (1, 2, 3):
        await grouped.snapshots.save("default", "cart", "a", sequence, snapshot)
    await close_doors(store, "snapshot-prune", second_person=True)
    with pytest.raises(PermissionDenied, match="policy of snapshot-prune wants a second person"):
        await grouped.snapshots.delete("default", "cart", "a", 1)
    with pytest.raises(PermissionDenied, match="plan the operation"):
        await grouped.snapshots.save("default", "cart", "a", 1, snapshot, replace=True)
    await close_doors(store, "snapshot-prune")
    await grouped.snapshots.save("default", "cart", "a", 1, snapshot, replace=True)
    await grouped.snapshots.delete("default", "cart", "a", 1)


@pytest.fixture
async def hand(store: StoreJournal) -> Hand:
    made = await Hand.start(store, sqlfile.parse(SUMS, "sums.sql"))
    await made.append("thing-1", by=1)
    await made.catch_up()
    return made


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("rebuild", lambda d, first: control.rebuild(d, "sums", first=first)),
        ("rebuild", lambda d, first: control.switch(d, "sums", 1, 1, first=first)),
        (
            "replay",
            lambda d, first: control.replay(
                d, "sums", Selection(types=("thing",)), reason="r", first=first
            ),
        ),
    ],
)
async def test_projections_are_guarded_in_the_transaction_of_the_order(
    hand: Hand, kind: str, order: Callable[..., Awaitable[Any]]
) -> None:
    database, store = hand.database, hand.journal
    first = through(
        database.schema, kind, ("projection", "sums"), "Ordered", {"direct": True}, "token/ada"
    )
    await close_doors(store, kind, typed=True)
    with pytest.raises(PermissionDenied, match=f"policy of {kind} wants something to be typed"):
        await order(database, first)
    assert await audited(store) == []
    assert len(await control.list_builds(database, "sums")) == 1
    assert await control.list_replays(database, "sums", 10, None) == []
    await close_doors(store, kind)
    await order(database, first)
    assert await audited(store) == [("projection", "sums", "Ordered")]
    [row] = await database.fetch(
        "SELECT data, principal FROM everstate.audit_outbox WHERE entity_type = 'projection'"
    )
    assert (orjson.loads(row[0]), row[1]) == ({"direct": True}, "token/ada")
