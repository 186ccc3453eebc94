"""`everstate snapshot …`, and what commands say of compacted entities, against a running node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from everstate.commands.database import upgrade
from tests.support import Node, make_database

SNAPSHOT_KEYS = {
    "entity_type", "entity_id", "sequence", "position", "event_at_us", "type", "content_type",
    "size_bytes", "recorded_at_us", "verified_at_us", "source", "covers", "usable",
}  # fmt: skip


@pytest.fixture(scope="module")
def node(postgres18: SimpleNamespace) -> Iterator[Node]:
    url = make_database(postgres18, "snapshots")
    upgrade(url, "everstate")
    with Node(url) as running:
        yield running


def lines(name: str, first: int, last: int) -> bytes:
    """Events of an entity, as a file of `everstate import` has them."""
    rows = (
        {
            "entity_type": "cart", "entity_id": name, "type": "Added", "data": n,
            "time": f"2020-01-{n:02}T00:00:00Z",
        }
        for n in range(first, last + 1)
    )  # fmt: skip
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def put(node: Node, name: str, count: int) -> None:
    node.cli("import", "-", stdin=lines(name, 1, count)).ok()


def compact(node: Node, name: str, floor: int) -> None:
    """As the operation leaves it."""
    with psycopg.connect(node.database_url) as connection:
        done = connection.execute(
            "INSERT INTO everstate.entity_marks (log_id, entity_key, floor, floor_position,"
            " snapshot_seq) SELECT s.log_id, s.entity_key, %s, s.position, s.seq"
            " FROM everstate.snapshots s JOIN everstate.entities e USING (log_id, entity_key)"
            " WHERE e.entity_id = %s AND s.seq = %s"
            " ON CONFLICT (log_id, entity_key) DO UPDATE SET floor = excluded.floor,"
            " floor_position = excluded.floor_position, snapshot_seq = excluded.snapshot_seq",
            [floor, name, floor - 1],
        )
        assert done.rowcount == 1


def listed(node: Node, name: str) -> list[dict[str, Any]]:
    return node.cli("snapshot", "list", f"cart/{name}", "--json").ok().lines()


def test_snapshots_are_saved_listed_shown_and_deleted(node: Node, tmp_path: Path) -> None:
    put(node, "a", 8)
    for sequence in (2, 4, 6):
        said = node.cli(
            "snapshot", "save", "cart", "a", "--type", "Cart", "--data", f"[{sequence}]",
            f"--sequence={sequence}", "--json",
        ).ok().json()  # fmt: skip
        assert said.keys() == SNAPSHOT_KEYS
        assert (said["sequence"], said["source"], said["usable"]) == (sequence, "owner", True)
    file = tmp_path / "state"
    file.write_bytes(b"\x00\xff")
    node.cli("snapshot", "save", "cart/a", "--type", "Cart", "--payload", file).ok()
    assert [line["sequence"] for line in listed(node, "a")] == [8, 6, 4, 2]
    assert [
        line.split()[0]
        for line in node.cli("snapshot", "list", "cart/a", "--limit", "2").ok().out.splitlines()
    ] == ["8", "6"]
    shown = node.cli("snapshot", "show", "cart/a", "--sequence", "7", "--json").ok().json()
    assert shown.keys() == SNAPSHOT_KEYS | {"data"}
    assert (shown["sequence"], shown["data"]) == (6, [6])
    shown = node.cli("snapshot", "show", "cart/a", "--at", "2020-01-05T00:00:00Z", "--json")
    assert shown.ok().json()["data"] == [4]
    shown = node.cli("snapshot", "show", "cart", "a", "--json").ok().json()
    assert shown["payload_base64"] == "AP8="
    copy = tmp_path / "copy"
    node.cli("snapshot", "show", "cart/a", "--payload", copy).ok()
    assert copy.read_bytes() == b"\x00\xff"
    node.cli("snapshot", "delete", "cart/a", "--sequence", "2").ok()
    assert [line["sequence"] for line in listed(node, "a")] == [8, 6, 4]


def test_what_cannot_be_done_is_said_with_its_exit_code(node: Node) -> None:
    put(node, "b", 2)
    save = ("snapshot", "save", "cart/b", "--type", "Cart", "--json")
    node.cli(*save, "--data", "1").ok()
    node.cli(*save, "--data", "1").ok()
    for code, name, command in (
        (4, "ALREADY_EXISTS", (*save, "--data", "2")),
        (2, "INVALID_ARGUMENT", (*save, "--data", "1", "--sequence", "3")),
        (2, "INVALID_ARGUMENT", (*save,)),
        (2, "INVALID_ARGUMENT", (*save, "--data", "{")),
        (2, "INVALID_ARGUMENT", ("snapshot", "save", "cart/b", "--data", "1", "--json")),
        (2, "INVALID_ARGUMENT", ("snapshot", "delete", "cart/b", "--json")),
        (4, "CONFLICT", ("snapshot", "delete", "cart/b", "--sequence", "2", "--json")),
        (3, "NOT_FOUND", ("snapshot", "delete", "cart/b", "--sequence", "1", "--json")),
        (3, "NOT_FOUND", ("snapshot", "show", "cart/b", "--sequence", "1", "--json")),
        (3, "ENTITY_NOT_FOUND", ("snapshot", "list", "cart/none", "--json")),
        (2, "INVALID_ARGUMENT", ("snapshot", "show", "cart/b", "--at", "yesterday", "--json")),
    ):
        said = node.cli(*command)
        assert (said.code, said.error()["code"]) == (code, name), command
    replaced = node.cli(*save, "--data", "2", "--replace").ok().json()
    assert replaced["sequence"] == 2


def test_a_compacted_entity_is_shown_from_its_floor_on_and_exported_whole(
    node: Node, tmp_path: Path
) -> None:
    put(node, "c", 6)
    node.cli("snapshot", "save", "cart/c", "--type=Cart", "--data=4", "--sequence=4").ok()
    compact(node, "c", 5)
    shown = node.cli("entity", "show", "cart/c").ok().out.splitlines()
    assert "readable from 5" in shown[0]
    assert shown[1] == "events 1 to 4 are compacted: the snapshot at 4 stands for them"
    assert [line.split()[0] for line in shown[2:]] == ["5", "6"]
    body = node.cli("entity", "show", "cart/c", "--json").ok().json()
    assert (body["floor"], [e["sequence"] for e in body["events"]]) == (5, [5, 6])
    (only,) = listed(node, "c")
    assert (only["covers"], only["sequence"]) == (True, 4)
    file = tmp_path / "c.jsonl"
    node.cli("export", file, "--entity", "cart/c").ok()
    exported = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["sequence"] for line in exported] == [1, 2, 3, 4, 5, 6]


def test_importing_again_into_compacted_entities_goes_on_as_before(node: Node) -> None:
    put(node, "d", 5)
    node.cli("snapshot", "save", "cart/d", "--type=Cart", "--data=4", "--sequence=4").ok()
    compact(node, "d", 5)
    said = node.cli("import", "-", "--json", stdin=lines("d", 1, 5)).ok().lines()[-1]
    assert (said["appended"], said["duplicates"]) == (0, 5)
    # Cut into other runs than before: it has to look at what is there.
    said = node.cli("import", "-", "--json", stdin=lines("d", 1, 8)).ok().lines()[-1]
    assert (said["appended"], said["duplicates"]) == (3, 5)
    body = node.cli("entity", "show", "cart/d", "--json").ok().json()
    assert [e["sequence"] for e in body["events"]] == [5, 6, 7, 8]
