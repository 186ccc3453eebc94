"""The registry of descriptors: in the database, and through a node."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from everstate.commands.reading import NodeDescriptors
from kernel.database import Database, DatabaseSettings
from kernel.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    TooLarge,
    Unavailable,
    Undecodable,
    UnknownType,
)
from schemas.descriptors import Decoder
from schemas.model import PROTOBUF, SchemaLimits
from schemas.registry import encoded
from schemas.store import PART_BYTES, DescriptorStore
from sidecar_api.client import Client
from sidecar_api.generated import schema_pb2 as pb
from sidecar_api.server import NodeServer
from tests.protos import CART, descriptor_set, field, file, message

SHOP = descriptor_set(CART)
BROKEN = descriptor_set(
    file("shop/cart.proto", message("ItemAdded", field(1, "product_id", "int32")))
)
BROKEN_CHANGES = (
    "shop.ItemAdded: field product_id = 1 was string and is int32",
    "shop.ItemAdded: field quantity = 2 is gone and its number is not reserved",
    "shop.ItemAdded: field price_cents = 3 is gone and its number is not reserved",
    "shop.ItemAdded: field note = 4 is gone and its number is not reserved",
    "shop.ItemRemoved: is gone",
)


@pytest.fixture
async def registry(any_database_url: str) -> AsyncIterator[DescriptorStore]:
    """A registry on PostgreSQL 18 and on 15."""
    database = await Database.open(DatabaseSettings(any_database_url))
    yield DescriptorStore(database)
    await database.close()


async def contents(registry: DescriptorStore) -> tuple[object, ...]:
    """Everything that is registered."""
    loaded = await registry.load([])
    return (loaded.version, sorted(loaded.files), await registry.list_types(page_size=1_000))


async def names(registry: DescriptorStore, prefix: str = "") -> list[str]:
    return [item.name for item in (await registry.list_types(prefix)).types]


# -- adding --------------------------------------------------------------------------------------


async def test_a_set_is_registered_once_and_the_second_time_changes_nothing(
    registry: DescriptorStore,
) -> None:
    assert await registry.version() == 0
    done = await registry.add(SHOP)
    assert (done.version, done.changed, done.files) == (1, True, ("shop/cart.proto",))
    assert done.types == ("shop.ItemAdded", "shop.ItemRemoved")
    before = await contents(registry)
    again = await registry.add(SHOP)
    assert (again.version, again.changed, again.types) == (1, False, ())
    assert await contents(registry) == before
    page = await registry.list_types()
    assert [(t.name, t.file, t.fields, t.version) for t in page.types] == [
        ("shop.ItemAdded", "shop/cart.proto", 4, 1),
        ("shop.ItemRemoved", "shop/cart.proto", 1, 1),
    ]


async def test_a_compatible_change_is_taken_and_its_types_follow(registry: DescriptorStore) -> None:
    await registry.add(SHOP)
    newer = file(CART.name, *CART.message_type, message("ItemMoved"))
    newer.message_type[1].field.add(name="reason", number=2, type=9, label=1)
    done = await registry.add(descriptor_set(newer))
    assert (done.version, done.changed, done.breaking) == (2, True, ())
    assert await names(registry) == ["shop.ItemAdded", "shop.ItemMoved", "shop.ItemRemoved"]
    assert [t.fields for t in (await registry.list_types("shop.ItemR")).types] == [2]


async def test_a_breaking_change_is_refused_with_the_names_and_changes_nothing(
    registry: DescriptorStore,
) -> None:
    await registry.add(SHOP)
    before = await contents(registry)
    with pytest.raises(Conflict) as found:
        await registry.add(BROKEN)
    assert all(change in found.value.message for change in BROKEN_CHANGES)
    assert await contents(registry) == before


async def test_a_breaking_change_that_is_allowed_is_written_down(registry: DescriptorStore) -> None:
    await registry.add(SHOP)
    done = await registry.add(BROKEN, allow_breaking=True)
    assert (done.version, done.breaking) == (2, BROKEN_CHANGES)
    assert await names(registry) == ["shop.ItemAdded"]
    row = await registry._database.fetchrow(
        "SELECT digest, files, breaking FROM everstate.descriptor_versions WHERE version = 2"
    )
    assert row["digest"] == hashlib.sha256(BROKEN).digest()
    assert (row["files"], tuple(row["breaking"])) == (["shop/cart.proto"], BROKEN_CHANGES)


async def test_a_dry_run_says_everything_and_writes_nothing(registry: DescriptorStore) -> None:
    done = await registry.add(SHOP, dry_run=True)
    assert (done.version, done.changed, len(done.types)) == (0, True, 2)
    assert await contents(registry) == (0, [], (await registry.list_types()))
    await registry.add(SHOP)
    assert (await registry.add(BROKEN, dry_run=True)).breaking == BROKEN_CHANGES
    assert await registry.version() == 1


async def test_a_file_under_another_name_takes_the_place_of_the_old_one(
    registry: DescriptorStore,
) -> None:
    await registry.add(SHOP)
    done = await registry.add(descriptor_set(file("cart.proto", *CART.message_type)))
    assert done.superseded == ("shop/cart.proto",)
    assert {t.file for t in (await registry.list_types()).types} == {"cart.proto"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff", "is not a FileDescriptorSet"),
        (descriptor_set(file("a.proto", dependency=["b.proto"])), "imports 'b.proto'"),
        (descriptor_set(file("a.proto", message("A", field(1, "b", ".X")))), "is not valid"),
    ],
)
async def test_a_set_that_is_refused_leaves_nothing_behind(
    registry: DescriptorStore, data: bytes, said: str
) -> None:
    await registry.add(SHOP)
    before = await contents(registry)
    with pytest.raises(InvalidArgument, match=said):
        await registry.add(data)
    assert await contents(registry) == before


async def test_many_at_once_are_taken_one_after_the_other(registry: DescriptorStore) -> None:
    sets = [descriptor_set(file(f"{i}.proto", message(f"M{i}"))) for i in range(8)]
    done = await asyncio.gather(*(registry.add(each) for each in sets for _ in range(2)))
    assert sorted(item.version for item in done if item.changed) == list(range(1, 9))
    assert await names(registry) == [f"shop.M{i}" for i in range(8)]
    same = [descriptor_set(file("x.proto", message("X", field(i, "a", "int32")))) for i in (1, 2)]
    results = await asyncio.gather(*map(registry.add, same), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "Registration"]


# -- listing and loading -------------------------------------------------------------------------


async def test_types_come_in_pages(registry: DescriptorStore) -> None:
    await registry.add(descriptor_set(file("a.proto", *(message(f"M{i:03}") for i in range(25)))))
    found, token, pages = [], "", 0
    while pages == 0 or token:
        page = await registry.list_types("shop.M", page_size=10, page_token=token)
        found += [item.name for item in page.types]
        token, pages = page.next_page_token, pages + 1
    assert (found, pages) == ([f"shop.M{i:03}" for i in range(25)], 3)
    assert await names(registry, "shop.M02") == [f"shop.M02{i}" for i in range(5)]
    assert await names(registry, "other") == []


async def test_loading_a_type_brings_its_file_and_what_that_imports_and_no_other(
    registry: DescriptorStore,
) -> None:
    base = file("base.proto", message("Base"))
    middle = file(
        "middle.proto",
        message("Middle", field(1, "base", ".shop.Base")),
        dependency=["base.proto", "google/protobuf/any.proto"],
    )
    top = file(
        "top.proto", message("Top", field(1, "m", ".shop.Middle")), dependency=["middle.proto"]
    )
    await registry.add(descriptor_set(top, middle, base, CART))

    async def loaded(*types: str) -> set[str]:
        files = (await registry.load(types)).files
        return {FileDescriptorProto.FromString(content).name for content in files}

    assert await loaded("shop.Top") == {"top.proto", "middle.proto", "base.proto"}
    assert await loaded("shop.Base", "shop.Nothing") == {"base.proto"}
    assert await loaded("shop.Nothing") == set()
    assert len(await loaded()) == 4


def large(i: int) -> FileDescriptorProto:
    """A file of about 300 kB."""
    fields = (field(n, f"field_{n}_{'x' * 200}", "int32") for n in range(1, 1_400))
    return file(f"large{i}.proto", message(f"Large{i}", *fields))


async def test_many_files_come_in_parts_and_a_change_meanwhile_is_noticed(
    registry: DescriptorStore,
) -> None:
    for i in range(8):
        await registry.add(descriptor_set(large(i)))
    sizes = [sum(map(len, part.files)) async for part in registry.parts([])]
    assert len(sizes) > 2
    assert max(sizes) <= PART_BYTES
    assert sum(sizes) == sum(len(encoded(large(i))) for i in range(8))
    parts = registry.parts([])
    await anext(parts)
    newer = large(7)
    newer.message_type.add(name="More")
    await registry.add(descriptor_set(newer))
    with pytest.raises(Unavailable, match="changed while they were read"):
        [part async for part in parts]


# -- decoding from the database ------------------------------------------------------------------


async def test_a_decoder_on_the_database_finds_what_is_registered_later(
    registry: DescriptorStore,
) -> None:
    now = [0.0]
    decoder = Decoder(registry, clock=lambda: now[0])
    kind = ("shop.ItemAdded", PROTOBUF)
    await decoder.prepare([kind])
    with pytest.raises(UnknownType):
        decoder.decode(*kind, 0, b"")
    await registry.add(SHOP)
    now[0] += 1
    await decoder.prepare([kind])
    assert decoder.decode(*kind, 0, b"\x0a\x01a\x10\x02\x18\x03") == {
        "product_id": "a", "quantity": 2, "price_cents": 3,
    }  # fmt: skip
    with pytest.raises(Undecodable):
        decoder.decode(*kind, 0, b"\xff")


# -- through a node ------------------------------------------------------------------------------


async def test_a_client_registers_lists_and_gets_descriptors(client: Client) -> None:
    assert await client.schemas.version() == 0
    assert await client.schemas.descriptors() == (0, [])
    reply = await client.schemas.add(SHOP)
    assert (reply.version, reply.changed, reply.types_total) == (1, True, 2)
    assert list(reply.types) == ["shop.ItemAdded", "shop.ItemRemoved"]
    assert [item.name async for item in client.schemas.types(page_size=1)] == list(reply.types)
    assert await client.schemas.version() == 1
    assert await client.schemas.descriptors(["shop.ItemAdded"]) == (1, [encoded(CART)])
    assert await client.schemas.descriptors(["nothing"]) == (1, [])


async def test_a_client_gets_files_of_more_types_than_fit_a_call_and_of_many_parts(
    client: Client,
) -> None:
    for i in range(5):
        await client.schemas.add(descriptor_set(large(i)))
    ours = [f"shop.Large{i}" for i in range(5)]
    many = [*ours[:3], *(f"x.T{i}" for i in range(1_500)), *ours[2:]]
    version, files = await client.schemas.descriptors(many)
    assert version == 5
    assert sorted(files) == sorted(encoded(large(i)) for i in range(5))


async def test_a_decoder_reads_through_a_node(client: Client) -> None:
    await client.schemas.add(SHOP)
    decoder = Decoder(NodeDescriptors(client))
    await decoder.prepare([("shop.ItemRemoved", PROTOBUF)])
    found = decoder.decode("shop.ItemRemoved", PROTOBUF, 0, b"\x0a\x01p")
    assert found == {"product_id": "p"}


async def test_the_node_refuses_with_the_same_errors(client: Client) -> None:
    await client.schemas.add(SHOP)
    with pytest.raises(Conflict, match="product_id = 1 was string and is int32"):
        await client.schemas.add(BROKEN)
    reply = await client.schemas.add(BROKEN, dry_run=True)
    assert (tuple(reply.breaking_changes), reply.breaking_changes_total) == (BROKEN_CHANGES, 5)
    with pytest.raises(InvalidArgument) as found:
        await client.schemas.add(b"\xff")
    assert found.value.field == "descriptor_set"
    with pytest.raises(TooLarge) as large_one:
        await client.schemas.add(b"\0" * (SchemaLimits().set_bytes + 1))
    assert (large_one.value.field, large_one.value.limit) == ("descriptor_set", 4_000_000)
    assert (await client.schemas.add(BROKEN, allow_breaking=True)).version == 2


@pytest.mark.parametrize(
    ("call", "request_", "field_name"),
    [
        ("ListTypes", pb.ListTypesRequest(page_size=1_001), "page_size"),
        ("ListTypes", pb.ListTypesRequest(prefix="x" * 256), "prefix"),
        ("ListTypes", pb.ListTypesRequest(page_token="\n"), "page_token"),
        ("GetDescriptors", pb.GetDescriptorsRequest(types=["a"] * 1_001), "types"),
        ("GetDescriptors", pb.GetDescriptorsRequest(types=["a", ""]), r"types\[1\]"),
    ],
)
async def test_wrong_requests_name_the_field(
    node: NodeServer, call: str, request_: object, field_name: str
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        path = f"/everstate.schema.v1.SchemaService/{call}"
        make = channel.unary_stream if call == "GetDescriptors" else channel.unary_unary
        done = make(path, type(request_).SerializeToString)(request_)
        with pytest.raises(grpc.aio.AioRpcError, match=field_name) as found:
            await (done.read() if call == "GetDescriptors" else done)
    assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_deadline_that_has_passed_leaves_nothing_behind(
    client: Client, database: Database
) -> None:
    async with database.connection() as connection, connection.transaction():
        await connection.execute("LOCK TABLE everstate.descriptor_versions IN EXCLUSIVE MODE")
        with pytest.raises(DeadlineExceeded):
            await client.schemas.add(SHOP, timeout=timedelta(milliseconds=300))
    assert await client.schemas.version() == 0
