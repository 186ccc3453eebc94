"""`everstate group …` against a running node: what it prints, and the code it ends with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sidecar_api.client import GroupSettings
from tests.support import Node, eventually, one

GROUP_KEYS = {
    "name", "log", "position", "head", "lag_events", "lag_bytes", "lag_seconds", "parked", "held",
    "replaying", "members", "version", "created_at", "settings",
}  # fmt: skip
PARKED_KEYS = {
    "position", "sequence", "entity_type", "entity_id", "type", "state", "reason", "attempts",
    "parked_at", "partition",
}  # fmt: skip


@pytest.fixture
def node(database_url: str) -> Iterator[Node]:
    with Node(database_url) as running:
        yield running


async def park(node: Node, group: str, count: int) -> None:
    """Parks the next events that the group delivers."""
    async with node.client() as client, client.groups.join(group, name="parker") as member:
        for _ in range(count):
            delivery = await anext(member)
            assert await delivery.park(f"cannot do {delivery.event.type}")


async def test_groups_are_made_shown_listed_moved_and_deleted(node: Node) -> None:
    async with node.client() as client:
        for i in range(5):
            await client.append("", one(f"e{i}"))
    made = node.cli("group", "create", "mail", "--json", "--type", "Happened", "--from", "3").ok()
    line = made.json()
    assert line.keys() == GROUP_KEYS
    assert (line["name"], line["position"], line["head"], line["lag_events"]) == ("mail", 2, 5, 3)
    assert line["settings"]["event_types"] == ["Happened"]
    assert line["settings"]["ack_timeout_ms"] == 30_000
    again = node.cli("group", "create", "mail")
    assert (again.code, again.sentence()) == (4, "the consumer group 'mail' exists already")
    assert node.cli("group", "create", "late", "--from", "end").ok().out.endswith("after 5\n")
    one_order = node.cli("group", "create", "ordered", "--global-order", "--json").ok().json()
    assert one_order["settings"]["partitions"] == 1
    assert [g["name"] for g in node.cli("group", "list", "--json").ok().lines()] == [
        "late", "mail", "ordered",
    ]  # fmt: skip
    assert len(node.cli("group", "list", "--limit", "1").ok().out.splitlines()) == 1
    shown = node.cli("group", "show", "mail", "--json").ok().json()
    assert shown.keys() == GROUP_KEYS | {"members_list", "partitions"}
    assert len(shown["partitions"]) == 16
    assert "partition   0, slices 0..63: at 2, 0 pending" in node.cli("group", "show", "mail").out
    moved = node.cli("group", "seek", "mail", "end", "--json").ok().json()
    assert (moved["position"], moved["lag_events"]) == (5, 0)
    far = node.cli("group", "seek", "mail", "7")
    assert (far.code, far.sentence()) == (2, "position 7 is out of range: first 1, head 5")
    assert node.cli("group", "delete", "mail", "--json").ok().json() == {
        "name": "mail",
        "parked": 0,
    }
    gone = node.cli("group", "show", "mail", "--json")
    assert gone.code == 3
    assert gone.error()["code"] == "NOT_FOUND"
    bad = node.cli("group", "create", "many", "--partitions", "300")
    assert (bad.code, bad.sentence()) == (2, "settings.partitions: 300 is not within 1..256")


async def test_parked_events_are_listed_replayed_and_discarded(node: Node) -> None:
    async with node.client() as client:
        for i in range(4):
            await client.append("", one(f"e{i}", event_type=f"Kind{i % 2}"))
        await client.append("", one("e0"))
        await client.groups.create("mail", GroupSettings())
    await park(node, "mail", 4)

    def listed(*more: str) -> list[dict[str, object]]:
        lines: list[dict[str, object]] = node.cli(
            "group", "parked", "mail", "--json", *more
        ).lines()
        return lines

    eventually(lambda: len(listed()) == 5, "the event behind a parked one is held")
    first = listed()[0]
    assert first.keys() == PARKED_KEYS
    assert (first["state"], first["reason"]) == ("parked", "cannot do Kind0")
    assert [e["position"] for e in listed("--entity", "thing/e0")] == [1, 5]
    assert [e["position"] for e in listed("--type", "Kind1", "--limit", "1")] == [2]
    text = node.cli("group", "parked", "mail").ok().out
    assert "       1  parked     thing/e0  1  Kind0: cannot do Kind0\n" in text
    none = node.cli("group", "discard", "mail")
    assert (none.code, none.sentence()) == (2, "selection: is empty: say which events, or all")
    dry = node.cli("group", "discard", "mail", "--all", "--type", "Kind1", "--dry-run", "--json")
    assert dry.ok().json() == {
        "name": "mail", "dry_run": True, "events": 2, "entities": 2, "held": 0,
    }  # fmt: skip
    assert len(listed()) == 5
    said = node.cli("group", "discard", "mail", "--type", "Kind1").ok().out
    assert said == "2 events of 2 entities discarded; 0 held back behind them follow\n"
    said = node.cli("group", "replay", "mail", "--position", "1", "--rate", "100").ok().out
    assert said == "1 events of 1 entities delivered again; 1 held back behind them follow\n"
    async with node.client() as client, client.groups.join("mail") as member:
        for position in (1, 5):
            delivery = await anext(member)
            assert (delivery.event.position, delivery.replayed) == (position, True)
            assert await delivery.ack()
    assert [e["position"] for e in listed()] == [3]
