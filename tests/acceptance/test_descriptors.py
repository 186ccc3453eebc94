"""`everstate descriptor`, and the commands that show decoded payloads, against a running node."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from everstate.commands import descriptor
from everstate.commands.database import upgrade
from schemas.model import SchemaLimits
from tests.protos import CART, descriptor_set, field, file, message
from tests.support import EVERSTATE, Node, Said, clean_env, make_database

ADDED = b"\x0a\x01a\x10\x02\x18\xc8\x01"


@pytest.fixture(scope="module")
def node(postgres18: SimpleNamespace) -> Iterator[Node]:
    url = make_database(postgres18, "descriptors")
    upgrade(url, "everstate")
    with Node(url) as running:
        yield running


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("protos") / "shop.binpb"
    path.write_bytes(descriptor_set(CART))
    return path


def put(node: Node, entity: str, payload: bytes, kind: str = "shop.ItemAdded") -> None:
    node.cli(
        "entity", "append", f"cart/{entity}", "--event-type", kind, "--payload", "-",
        "--content-type", "application/protobuf", stdin=payload,
    ).ok()  # fmt: skip


def test_payloads_are_shown_decoded_once_their_descriptor_is_registered(
    node: Node, shop: Path
) -> None:
    put(node, "one", ADDED)
    before = node.cli("entity", "show", "cart/one", "--json").ok().json()["events"][0]
    assert before["payload_base64"] == base64.b64encode(ADDED).decode()
    assert "data" not in before
    assert "8 bytes" in node.cli("entity", "show", "cart/one").ok().out

    said = node.cli("descriptor", "add", shop, "--json").ok().json()
    assert said == {
        "version": 1, "changed": True, "files": ["shop/cart.proto"],
        "types": ["shop.ItemAdded", "shop.ItemRemoved"], "types_total": 2,
        "superseded_files": [], "breaking_changes": [], "breaking_changes_total": 0,
    }  # fmt: skip
    data = {"product_id": "a", "quantity": 2, "price_cents": 200}
    after = node.cli("entity", "show", "cart/one", "--json").ok().json()["events"][0]
    assert after == before | {"data": data}
    assert '"price_cents":200' in node.cli("entity", "show", "cart/one").ok().out
    assert node.cli("log", "tail", "--json").ok().lines()[-1]["data"] == data
    exported = node.cli("export", "-", "--entity", "cart/one").ok().lines()[0]
    assert "data" not in exported
    assert exported["payload_base64"] == before["payload_base64"]


def test_what_cannot_be_decoded_is_shown_with_the_reason(node: Node, shop: Path) -> None:
    node.cli("descriptor", "add", shop).ok()
    put(node, "two", b"\xff")
    shown = node.cli("entity", "show", "cart/two", "--json").ok().json()["events"][0]
    reason = "the payload of shop.ItemAdded is not the bytes of a shop.ItemAdded"
    assert (shown["undecodable"], shown["payload_base64"]) == (reason, "/w==")
    assert f"1 bytes ({reason})" in node.cli("entity", "show", "cart/two").ok().out


def test_adding_again_listing_and_checking(node: Node, shop: Path, tmp_path: Path) -> None:
    node.cli("descriptor", "add", shop).ok()
    again = node.cli("descriptor", "add", shop).ok()
    assert again.out == "nothing new: all of it is registered\n"
    lines = node.cli("descriptor", "list", "--json").ok().lines()
    assert [line["type"] for line in lines] == ["shop.ItemAdded", "shop.ItemRemoved"]
    assert lines[0] == {
        "type": "shop.ItemAdded", "file": "shop/cart.proto", "fields": 4, "version": 1,
    }  # fmt: skip
    assert len(node.cli("descriptor", "list", "--limit", "1").ok().out.splitlines()) == 1
    assert node.cli("descriptor", "list", "--prefix", "other").ok().out == ""

    other = tmp_path / "other.binpb"
    other.write_bytes(
        descriptor_set(file("shop/cart.proto", message("ItemAdded", field(1, "sku", "string"))))
    )
    refused = node.cli("descriptor", "add", other)
    assert refused.code == 4
    assert "field product_id = 1 was renamed to sku" in refused.sentence()
    checked = node.cli("descriptor", "add", other, "--check")
    assert checked.code == 1
    assert "breaking: shop.ItemAdded: field product_id = 1 was renamed to sku\n" in checked.out
    assert len(node.cli("descriptor", "list", "--json").ok().lines()) == 2


@pytest.mark.parametrize(
    ("content", "code", "error", "said"),
    [
        (None, 2, "INVALID_ARGUMENT", "No such file"),
        (b"", 2, "INVALID_ARGUMENT", "has no files"),
        (b"\xff", 2, "INVALID_ARGUMENT", "is not a FileDescriptorSet"),
        (b"\0" * 4_000_001, 2, "TOO_LARGE", "4000001 bytes, the limit is 4000000"),
    ],
)
def test_a_wrong_file_is_refused(
    node: Node, tmp_path: Path, content: bytes | None, code: int, error: str, said: str
) -> None:
    path = tmp_path / "set"
    if content is not None:
        path.write_bytes(content)
    done = node.cli("descriptor", "add", path, "--json")
    assert done.code == code
    assert done.error()["code"] == error
    assert said in done.error()["message"]


def test_the_command_line_and_the_node_have_one_limit() -> None:
    assert SchemaLimits().set_bytes == descriptor.LARGEST_BYTES


# -- upcasters -----------------------------------------------------------------------------------

UPCASTERS = """
from everstate.upcasters import upcaster

@upcaster("ItemPut", to="ItemAdded", to_version=1)
def renamed(data):
    return {"sku": data["article"]}

@upcaster("ItemAdded", from_version=1)
def counted(data):
    return data | {"quantity": 1}
"""


def inside(folder: Path, node: Node, *arguments: str) -> Said:
    """A command that is run in the user's folder."""
    done = subprocess.run(
        [*EVERSTATE, *arguments], env=clean_env(EVERSTATE_URL=node.url), cwd=folder,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_old_shapes_are_shown_as_they_are_or_in_their_present_shape(
    node: Node, tmp_path: Path
) -> None:
    (tmp_path / "everstate.toml").write_text('upcasters = ["old_shapes"]')
    (tmp_path / "old_shapes.py").write_text(UPCASTERS)
    for kind, data in (("ItemPut", '{"article":"a"}'), ("ItemPut", "{}"), ("Other", "{}")):
        node.cli(
            "entity", "append", "cart/old", "--event-type", kind, "--data", data
        ).ok()  # fmt: skip
    stored = inside(tmp_path, node, "entity", "show", "cart/old", "--json").ok().json()["events"]
    assert [event["type"] for event in stored] == ["ItemPut", "ItemPut", "Other"]
    shown = inside(tmp_path, node, "entity", "show", "cart/old", "--json", "--upcast").ok()
    present, broken, other = shown.json()["events"]
    assert present == stored[0] | {
        "present": {"type": "ItemAdded", "schema_version": 2, "data": {"sku": "a", "quantity": 1}}
    }
    assert broken["undecodable"].startswith(
        "ItemPut version 0: the upcaster old_shapes.renamed raised KeyError at "
    )
    assert other == stored[2]
    text = inside(tmp_path, node, "entity", "show", "cart/old", "--upcast").ok().out
    assert 'ItemAdded  {"sku":"a","quantity":1}' in text
    tail = inside(tmp_path, node, "log", "tail", "--upcast").ok().out
    assert "cart/old  1  ItemAdded" in tail


def test_upcasting_without_upcasters_is_refused(node: Node, tmp_path: Path) -> None:
    done = inside(tmp_path, node, "entity", "show", "cart/old", "--upcast")
    assert done.code == 2
    assert "no everstate.toml or pyproject.toml here names upcasters" in done.sentence()
