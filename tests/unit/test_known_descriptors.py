"""When a decoder loads descriptors, and how old those may be that it uses."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from journal.model import JSON
from kernel.errors import Unavailable, UnknownType
from schemas.descriptors import POLL_SECONDS, POLL_UNKNOWN_SECONDS, Decoder
from schemas.model import PROTOBUF, TEXT
from schemas.registry import encoded
from tests.protos import CART, F, Source


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


ADDED = ("shop.ItemAdded", PROTOBUF)


def watched(source: Source) -> tuple[Decoder, Clock]:
    clock = Clock()
    return Decoder(source, clock=clock), clock


async def test_an_unknown_type_says_what_to_do_and_is_found_once_it_is_registered() -> None:
    source = Source()
    made, clock = watched(source)
    await made.prepare([ADDED])
    with pytest.raises(UnknownType) as found:
        made.decode(*ADDED, 0, b"")
    assert found.value.message == (
        "shop.ItemAdded: no descriptor of the message shop.ItemAdded is registered"
    )
    assert "everstate descriptor add" in found.value.hint
    source.put(CART)
    await made.prepare([ADDED])
    with pytest.raises(UnknownType):
        made.decode(*ADDED, 0, b"")
    clock.now += POLL_UNKNOWN_SECONDS + 0.1
    await made.prepare([ADDED])
    assert made.decode(*ADDED, 0, b"")["quantity"] == 0


async def test_while_all_is_known_the_registry_is_looked_at_every_few_seconds_only() -> None:
    source = Source(CART)
    made, clock = watched(source)
    for _ in range(100):
        await made.prepare([ADDED, ("E", JSON)])
        clock.now += POLL_SECONDS / 100
    assert (source.versions, source.loads) == (0, 1)
    clock.now += POLL_SECONDS
    for _ in range(10):
        await made.prepare([ADDED])
    assert (source.versions, source.loads) == (1, 1)


async def test_a_type_that_is_new_to_the_decoder_is_loaded_at_once() -> None:
    made, _ = watched(Source(CART))
    await made.prepare([ADDED])
    await made.prepare([("shop.ItemRemoved", PROTOBUF)])
    assert made.decode("shop.ItemRemoved", PROTOBUF, 0, b"") == {"product_id": ""}


async def test_a_changed_descriptor_is_used_soon() -> None:
    source = Source(CART)
    made, clock = watched(source)
    await made.prepare([ADDED])
    newer = FileDescriptorProto.FromString(encoded(CART))
    newer.message_type[0].field.add(name="more", number=9, type=F.TYPE_INT32, label=1)
    source.put(newer)
    clock.now += POLL_SECONDS + 0.1
    await made.prepare([ADDED])
    assert made.decode(*ADDED, 0, b"\x48\x05")["more"] == 5


async def test_a_reader_that_wants_the_registry_as_it_is_now_gets_it() -> None:
    source = Source()
    made, clock = watched(source)
    await made.prepare([ADDED], current=True)
    source.put(CART)
    await made.prepare([ADDED], current=True)
    assert made.decode(*ADDED, 0, b"\x10\x02")["quantity"] == 2
    newer = FileDescriptorProto.FromString(encoded(CART))
    newer.message_type[0].field.add(name="more", number=9, type=F.TYPE_INT32, label=1)
    source.put(newer)
    await made.prepare([ADDED], current=True)
    assert made.decode(*ADDED, 0, b"\x48\x05")["more"] == 5
    # It costs one look each time, and nothing where no descriptor is needed.
    loads, source.versions = source.loads, 0
    for _ in range(3):
        clock.now += 0.001
        await made.prepare([ADDED], current=True)
        await made.prepare([("E", JSON)], current=True)
    assert (source.versions, source.loads) == (3, loads)


async def test_a_registry_that_cannot_be_reached_leaves_what_is_known() -> None:
    source = Source(CART)
    made, clock = watched(source)
    await made.prepare([ADDED])
    source.broken = True
    clock.now += POLL_SECONDS + 0.1
    removed = ("shop.ItemRemoved", PROTOBUF)
    for kind in (ADDED, removed):
        with pytest.raises(Unavailable):
            await made.prepare([kind])
    assert made.decode(*ADDED, 0, b"")["quantity"] == 0
    source.broken = False
    await made.prepare([removed])
    assert made.decode(*removed, 0, b"") == {"product_id": ""}


async def test_json_asks_no_registry() -> None:
    source = Source()
    made, _ = watched(source)
    await made.prepare([("E", JSON), ("F", TEXT), ("G", "")])
    assert (source.versions, source.loads) == (0, 0)
