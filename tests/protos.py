"""Descriptor sets for tests, made without protoc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kernel.errors import Unavailable
from schemas.model import Loaded
from schemas.registry import build_pool, encoded

F = FieldDescriptorProto
KINDS = {name[5:].lower(): number for name, number in F.Type.items()}


def field(number: int, name: str, kind: str, **more: Any) -> FieldDescriptorProto:
    """A field of a scalar kind ("int32"), or of a message (".shop.Item")."""
    made = F(name=name, number=number, label=more.pop("label", F.LABEL_OPTIONAL))
    if kind in KINDS:
        made.type = KINDS[kind]
    else:
        made.type, made.type_name = more.pop("type", F.TYPE_MESSAGE), kind
    for key, value in more.items():
        setattr(made, key, value)
    return made


def message(name: str, *fields: FieldDescriptorProto, **more: Any) -> DescriptorProto:
    return DescriptorProto(name=name, field=fields, **more)


def enum(name: str, *values: str, **more: Any) -> EnumDescriptorProto:
    made = EnumDescriptorProto(name=name, **more)
    for number, value in enumerate(values):
        made.value.add(name=value, number=number)
    return made


def map_of(owner: str, number: int, name: str, key: str, value: str) -> Any:
    """A map field and its entry message, for `message(..., nested_type=[entry])`."""
    entry_name = "".join(part.title() for part in name.split("_")) + "Entry"
    entry = message(entry_name, field(1, "key", key), field(2, "value", value))
    entry.options.map_entry = True
    return field(number, name, f".{owner}.{entry_name}", label=F.LABEL_REPEATED), entry


def file(name: str, *messages: DescriptorProto, **more: Any) -> FileDescriptorProto:
    more.setdefault("package", "shop")
    more.setdefault("syntax", "proto3")
    return FileDescriptorProto(name=name, message_type=messages, **more)


def descriptor_set(*files: FileDescriptorProto) -> bytes:
    return FileDescriptorSet(file=files).SerializeToString()


def kind_of(name: str, *files: FileDescriptorProto) -> type[Message]:
    """The class of a message."""
    pool = build_pool({made.name: made for made in files})
    return GetMessageClass(pool.FindMessageTypeByName(name))


CART = file(
    "shop/cart.proto",
    message(
        "ItemAdded",
        field(1, "product_id", "string"),
        field(2, "quantity", "int32"),
        field(3, "price_cents", "int64"),
        field(4, "note", "string", proto3_optional=True, oneof_index=0),
        oneof_decl=[{"name": "_note"}],
    ),
    message("ItemRemoved", field(1, "product_id", "string")),
)
"""Two messages of a shopping cart."""


class Source:
    """A registry in memory that counts what it is asked."""

    def __init__(self, *files: FileDescriptorProto) -> None:
        self.files = {made.name: made for made in files}
        self.number, self.versions, self.loads, self.broken = 1, 0, 0, False

    def put(self, made: FileDescriptorProto) -> None:
        self.files[made.name] = made
        self.number += 1

    async def version(self) -> int:
        self.versions += 1
        if self.broken:
            raise Unavailable
        return self.number

    async def load(self, types: Sequence[str]) -> Loaded:
        self.loads += 1
        if self.broken:
            raise Unavailable
        return Loaded(self.number, [encoded(made) for made in self.files.values()])
