"""Protobuf payloads and old shapes in projections: decoded, upcast, halted on with the cause."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from journal.model import JSON, Append, EntityAppend, NewEvent
from journal.store import StoreJournal
from kernel.database import Database
from projections import control, sqlfile
from projections.control import SegmentRow
from projections.model import ProjectedEvent, Projection, Tx
from schemas.descriptors import Decoder
from schemas.model import PROTOBUF
from schemas.store import DescriptorStore
from schemas.upcasters import Upcaster, Upcasters, upcaster
from tests.projecting import journal_on, python, reached, working
from tests.protos import CART, descriptor_set
from tests.support import eventually_async

PRICES = """\
-- projection: prices
-- version: 1
-- entity types: cart
CREATE TABLE prices (id text PRIMARY KEY, items bigint NOT NULL, cents bigint NOT NULL, note text);
-- on: shop.ItemAdded
INSERT INTO prices AS p VALUES (
  :meta.entity_id, (:data.quantity)::bigint, (:data.price_cents)::bigint, :data.note)
ON CONFLICT (id) DO UPDATE SET items = p.items + EXCLUDED.items, cents = p.cents + EXCLUDED.cents;
"""

ADDED = b"\x0a\x01a\x10\x02\x18\xc8\x01"
"""product_id a, quantity 2, price_cents 200."""
GIFT = b"\x0a\x01b\x10\x01\x22\x04free"
"""product_id b, quantity 1, no price, note free."""


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[StoreJournal]:
    async with journal_on(database) as opened:
        yield opened


async def put(
    journal: StoreJournal,
    entity: str,
    kind: str,
    payload: bytes,
    content_type: str = PROTOBUF,
    version: int = 0,
) -> int:
    new = NewEvent(kind, payload, content_type, event_id=str(uuid.uuid4()), schema_version=version)
    done = await journal.append("default", Append((EntityAppend("cart", entity),), (new,)))
    return done.last_position


def decoder(journal: StoreJournal, *upcasters: Upcaster) -> Decoder:
    return Decoder(DescriptorStore(journal.database), Upcasters(upcasters))


async def prices(journal: StoreJournal) -> dict[str, tuple[Any, ...]]:
    rows = await journal.database.fetch("SELECT id, items, cents, note FROM rm_prices.prices")
    return {row[0]: tuple(row)[1:] for row in rows}


async def halted(journal: StoreJournal, name: str) -> SegmentRow:
    """The segment, once it has halted."""
    found: list[SegmentRow] = []

    async def done() -> bool:
        found[:] = await control.list_segments(journal.database, name, 1, 1)
        return bool(found) and found[0].state == "halted"

    await eventually_async(done, "the segment halts")
    return found[0]


async def test_fields_of_protobuf_messages_are_parameters_of_sql(journal: StoreJournal) -> None:
    await DescriptorStore(journal.database).add(descriptor_set(CART))
    async with working(journal, sqlfile.parse(PRICES, "prices.sql"), decoder=decoder(journal)):
        for _ in range(3):
            await put(journal, "one", "shop.ItemAdded", ADDED)
        last = await put(journal, "two", "shop.ItemAdded", GIFT)
        await reached(journal.database, "prices", last)
    # A price that is not set is 0, a note that is not set is NULL.
    assert await prices(journal) == {"one": (6, 600, None), "two": (1, 0, "free")}


async def test_a_projection_halts_on_an_unknown_type_and_goes_on_once_it_is_registered(
    journal: StoreJournal,
) -> None:
    async with working(journal, sqlfile.parse(PRICES, "prices.sql"), decoder=decoder(journal)):
        await put(journal, "other", "Ignored", b"{}", JSON)
        first = await put(journal, "one", "shop.ItemAdded", ADDED)
        segment = await halted(journal, "prices")
        assert segment.position == first - 1
        assert segment.error["code"] == "UNKNOWN_TYPE"
        assert "no descriptor of the message shop.ItemAdded" in segment.error["message"]
        last = await put(journal, "one", "shop.ItemAdded", ADDED)
        await DescriptorStore(journal.database).add(descriptor_set(CART))
        await control.resume(journal.database, "prices")
        await reached(journal.database, "prices", last)
    assert await prices(journal) == {"one": (4, 400, None)}


async def test_an_event_is_decoded_with_what_was_registered_before_it_was_appended(
    journal: StoreJournal,
) -> None:
    store = DescriptorStore(journal.database)
    older = FileDescriptorProto()
    older.CopyFrom(CART)
    message = older.message_type[0]
    assert message.field.pop().name == "note"
    del message.oneof_decl[:]
    await store.add(descriptor_set(older))
    async with working(journal, sqlfile.parse(PRICES, "prices.sql"), decoder=decoder(journal)):
        first = await put(journal, "one", "shop.ItemAdded", ADDED)
        await reached(journal.database, "prices", first)
        await store.add(descriptor_set(CART))
        last = await put(journal, "two", "shop.ItemAdded", GIFT)
        await reached(journal.database, "prices", last)
    assert await prices(journal) == {"one": (2, 200, None), "two": (1, 0, "free")}


async def test_a_payload_that_is_not_its_type_halts_with_a_cause_that_tells_nothing_of_it(
    journal: StoreJournal,
) -> None:
    await DescriptorStore(journal.database).add(descriptor_set(CART))
    async with working(journal, sqlfile.parse(PRICES, "prices.sql"), decoder=decoder(journal)):
        await put(journal, "one", "shop.ItemAdded", ADDED)
        last = await put(journal, "one", "shop.ItemAdded", b"\x0a\x7fhunter2")
        segment = await halted(journal, "prices")
    assert segment.position == last - 1
    assert segment.error["code"] == "UNDECODABLE"
    assert "is not the bytes of a shop.ItemAdded" in segment.error["message"]
    assert "hunter2" not in str(segment.error)
    assert await prices(journal) == {"one": (2, 200, None)}


# -- old shapes ----------------------------------------------------------------------------------


@upcaster("ItemPut", to="shop.ItemAdded", to_version=1)
def renamed(data: Any) -> Any:
    return {"quantity": data["count"], "price_cents": 0}


@upcaster("shop.ItemAdded", from_version=0)
def versioned(data: Any) -> Any:
    return data


@upcaster("shop.ItemAdded", from_version=1)
def dearer(data: Any) -> Any:
    return data | {"price_cents": data["price_cents"] + 1}


ALL = (renamed, versioned, dearer)


class Seen(Projection):
    """What a projection in Python is given."""

    name = "seen"
    version = 1
    entity_types = ("cart",)
    event_types = ("shop.ItemAdded",)
    tables = "CREATE TABLE seen (position bigint PRIMARY KEY, said text NOT NULL);"

    async def apply(self, events: Any, tx: Tx) -> None:
        def said(event: ProjectedEvent) -> str:
            data = event.data
            return f"{event.type} {event.schema_version} {data['quantity']} {data['price_cents']}"

        await tx.executemany(
            "INSERT INTO seen VALUES ($1, $2)", [(e.position, said(e)) for e in events]
        )


async def test_old_shapes_reach_the_handlers_of_the_present_one_in_sql_and_in_python(
    journal: StoreJournal,
) -> None:
    await DescriptorStore(journal.database).add(descriptor_set(CART))
    definitions = (sqlfile.parse(PRICES, "prices.sql"), python(Seen))
    async with working(journal, *definitions, decoder=decoder(journal, *ALL)):
        await put(journal, "one", "ItemPut", b'{"count": 5}', JSON)
        await put(journal, "one", "shop.ItemAdded", ADDED)
        await put(journal, "one", "shop.ItemAdded", ADDED, version=1)
        await put(journal, "one", "Ignored", b'{"count": 5}', JSON)
        last = await put(journal, "one", "shop.ItemAdded", ADDED, version=2)
        for name in ("prices", "seen"):
            await reached(journal.database, name, last)
    assert await prices(journal) == {"one": (11, 603, None)}
    rows = await journal.database.fetch("SELECT said FROM rm_seen.seen ORDER BY position")
    assert [row[0] for row in rows] == [
        "shop.ItemAdded 2 5 1", "shop.ItemAdded 2 2 201", "shop.ItemAdded 2 2 201",
        "shop.ItemAdded 2 2 200",
    ]  # fmt: skip
    # Stored bytes stay as they are.
    found = await journal.database.fetch("SELECT payload FROM everstate.events WHERE position = 1")
    assert found[0][0] == b'{"count": 5}'


async def test_an_upcaster_that_fails_is_poison_with_its_name_and_the_shape(
    journal: StoreJournal,
) -> None:
    definition = sqlfile.parse(PRICES, "prices.sql")
    async with working(journal, definition, decoder=decoder(journal, *ALL)):
        last = await put(journal, "one", "ItemPut", b'{"secret": "hunter2"}', JSON)
        segment = await halted(journal, "prices")
    assert (segment.position, segment.error["code"]) == (last - 1, "UNDECODABLE")
    assert "ItemPut version 0: the upcaster" in segment.error["message"]
    assert "renamed raised KeyError at" in segment.error["message"]
    assert "hunter2" not in str(segment.error)


async def test_an_upcaster_whose_value_is_no_json_deep_inside_is_poison_too(
    journal: StoreJournal,
) -> None:
    @upcaster("ItemPut", to="shop.ItemAdded", to_version=2)
    def wrong(data: Any) -> Any:
        return {"quantity": {1, 2}, "price_cents": 0}

    definition = sqlfile.parse(PRICES, "prices.sql")
    async with working(journal, definition, decoder=decoder(journal, wrong)):
        last = await put(journal, "one", "ItemPut", b"{}", JSON)
        segment = await halted(journal, "prices")
    assert (segment.position, segment.error["code"]) == (last - 1, "UNDECODABLE")
