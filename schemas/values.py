"""Protobuf messages as JSON values: the canonical JSON of proto3, with three choices of ours.

- 64-bit integers are JSON numbers, as everywhere in our API (canonical: strings).
- Fields keep the names of the .proto file (canonical also writes lowerCamelCase), since SQL names
  them: ``:data.line_total``.
- Fields that know no absence (no ``optional``, no message, no ``oneof``) are always there, with
  their zero, so that a count of 0 is 0 and not NULL. Absent fields are absent.

Everything else is as in https://protobuf.dev/programming-guides/json/: bytes are base64, enums
their names (unknown ones their numbers), map keys strings, NaN and infinities strings, well-known
types in their special forms.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from schemas.model import SchemaLimits

Convert = Callable[[Any, "Room"], Any]


class NotConvertible(Exception):
    """A message has no JSON value; the reason holds nothing of its content."""


class Room:
    """What is left to one conversion: depth, and bytes beside the texts that the payload holds
    itself. A payload of a few bytes can stand for many: an empty message in a list takes two, and
    has all its zeros as JSON.
    """

    __slots__ = ("bytes", "depth")

    def __init__(self, limits: SchemaLimits) -> None:
        self.bytes = limits.decoded_bytes
        self.depth = limits.depth

    def take(self, count: int) -> None:
        """Raises `NotConvertible` when too little is left."""
        self.bytes -= count
        if self.bytes < 0:
            raise NotConvertible("its JSON value would be too large")


class Values:
    """Converters of the messages of one pool, made when first needed."""

    def __init__(self, pool: DescriptorPool, limits: SchemaLimits) -> None:
        self._pool = pool
        self._limits = limits
        self._plans: dict[str, Convert] = {}
        self._special: dict[str, Convert] = {
            "google.protobuf.Any": self._any,
            "google.protobuf.Struct": _struct,
            "google.protobuf.ListValue": _struct,
            "google.protobuf.Value": _struct,
            "google.protobuf.Timestamp": _text,
            "google.protobuf.Duration": _text,
            "google.protobuf.FieldMask": _text,
        }

    def parser(self, name: str) -> Callable[[bytes], Any] | None:
        """A function from the wire bytes of the message ``name`` to its JSON value; None: the pool
        has no such message.

        The function raises `NotConvertible`.
        """
        try:
            descriptor = self._pool.FindMessageTypeByName(name)
        except KeyError:
            return None
        parse = GetMessageClass(descriptor).FromString
        convert = self._message(descriptor)
        limits = self._limits

        def decode(payload: bytes) -> Any:
            try:
                return convert(parse(payload), Room(limits))
            except DecodeError:
                raise NotConvertible(f"is not the bytes of a {name}") from None
            except RecursionError:
                raise NotConvertible("is nested too deeply") from None

        return decode

    def _message(self, descriptor: Descriptor) -> Convert:
        name = descriptor.full_name
        convert = self._special.get(name) or self._plans.get(name)
        if convert is None and name in _WRAPPERS:
            inner = _scalar(descriptor.fields_by_name["value"])
            convert = self._plans[name] = lambda message, room: inner(message.value, room)
        if convert is None:
            plan = _Plan()
            # Known before its fields are looked at: messages may hold themselves.
            convert = self._plans[name] = plan
            plan.build(descriptor, self)
        return convert

    def field(self, field: FieldDescriptor) -> Convert:
        """The converter of one value of a field."""
        if field.message_type is not None:
            return self._message(field.message_type)
        return _scalar(field)

    def _any(self, message: Any, room: Room) -> Any:
        url: str = message.type_url
        if not url and not message.value:
            return {}
        name = url.rpartition("/")[2]
        try:
            descriptor = self._pool.FindMessageTypeByName(name)
        except KeyError:
            raise NotConvertible(f"holds a {name!r}, which is not registered") from None
        room.depth -= 1
        room.take(len(url) + 16)
        if room.depth < 0:
            raise NotConvertible("is nested too deeply")
        try:
            inner = GetMessageClass(descriptor).FromString(message.value)
        except DecodeError:
            raise NotConvertible(f"holds what is not the bytes of a {name}") from None
        convert = self._message(descriptor)
        value = convert(inner, room)
        room.depth += 1
        # A message in a special form has no fields to stand beside its type.
        return {"@type": url} | (value if isinstance(convert, _Plan) else {"value": value})


class _Plan:
    """The converter of a message type: its fields by kind, looked up once."""

    __slots__ = (
        "cost", "extendable", "has", "implicit", "list_fields", "maps", "present", "repeated",
        "values",
    )  # fmt: skip

    def build(self, descriptor: Descriptor, values: Values) -> None:
        self.values = values
        # From the class: a field may be called HasField, and hides it on the message.
        kind: Any = GetMessageClass(descriptor)
        self.has, self.list_fields = kind.HasField, kind.ListFields
        self.extendable = bool(descriptor.is_extendable)
        self.implicit: list[tuple[str, Convert | None]] = []
        self.present: list[tuple[str, Convert]] = []
        self.repeated: list[tuple[str, Convert, int]] = []
        self.maps: list[tuple[str, FieldDescriptor, Convert]] = []
        self.cost = 16
        for field in descriptor.fields:
            name = field.name
            inner = field.message_type
            if inner is not None and inner.GetOptions().map_entry:
                entry = inner.fields_by_name
                self.maps.append((name, entry["key"], values.field(entry["value"])))
            elif field.is_repeated:
                self.repeated.append((name, values.field(field), _cost(field)))
            elif field.has_presence:
                self.present.append((name, values.field(field)))
                continue
            else:
                plain = field.cpp_type in _PLAIN or field.type == FieldDescriptor.TYPE_STRING
                self.implicit.append((name, None if plain else values.field(field)))
            self.cost += len(name) + _cost(field)

    def __call__(self, message: Any, room: Room) -> dict[str, Any]:
        room.take(self.cost)
        room.depth -= 1
        if room.depth < 0:
            raise NotConvertible("is nested too deeply")
        found: dict[str, Any] = {}
        for name, convert in self.implicit:
            value = getattr(message, name)
            found[name] = value if convert is None else convert(value, room)
        for name, convert in self.present:
            if self.has(message, name):
                room.take(len(name) + 24)
                found[name] = convert(getattr(message, name), room)
        for name, convert, cost in self.repeated:
            items = getattr(message, name)
            if items:
                room.take(len(items) * cost)
                found[name] = [convert(item, room) for item in items]
            else:
                found[name] = []
        for name, key, convert in self.maps:
            entries = getattr(message, name)
            room.take(len(entries) * 32)
            text = _KEYS.get(key.cpp_type, str)
            found[name] = {text(k): convert(v, room) for k, v in entries.items()}
        if self.extendable:
            for field, value in self.list_fields(message):
                if field.is_extension:
                    found[f"[{field.full_name}]"] = self._extension(field, value, room)
        room.depth += 1
        return found

    def _extension(self, field: FieldDescriptor, value: Any, room: Room) -> Any:
        convert = self.values.field(field)
        if field.is_repeated:
            room.take(len(value) * _cost(field))
            return [convert(item, room) for item in value]
        room.take(_cost(field))
        return convert(value, room)


_PLAIN: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_BOOL,
    }
)  # fmt: skip
"""Values that are their JSON value; so are strings, but ``bytes`` have the same C++ type."""

_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)

_KEYS: Final[dict[int, Callable[[Any], str]]] = {
    FieldDescriptor.CPPTYPE_BOOL: lambda key: "true" if key else "false"
}


def _cost(field: FieldDescriptor) -> int:
    """Bytes of JSON of one value, without what its payload holds itself."""
    if field.enum_type is not None:
        return max((len(value.name) for value in field.enum_type.values), default=0) + 4
    return 24


def _scalar(field: FieldDescriptor) -> Convert:
    kind = field.type
    if kind == FieldDescriptor.TYPE_BYTES:
        return _bytes
    if kind == FieldDescriptor.TYPE_FLOAT:
        return _float
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return _double
    if kind == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return _enum(field.enum_type)
    return _same


def _same(value: Any, _room: Room) -> Any:
    return value


def _bytes(value: bytes, _room: Room) -> str:
    return base64.b64encode(value).decode()


def _double(value: float, _room: Room) -> Any:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _float(value: float, room: Room) -> Any:
    if not math.isfinite(value):
        return _double(value, room)
    # The shortest decimal that reads back as the same 32 bits: 0.1, not 0.10000000149011612.
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.unpack("f", struct.pack("f", short))[0] == value:
                return short
        except OverflowError:  # rounded up beyond what 32 bits hold
            continue
    return float(f"{value:.9g}")


def _enum(enum: EnumDescriptor) -> Convert:
    if enum.full_name == "google.protobuf.NullValue":
        return lambda _value, _room: None
    names = {number: value.name for number, value in enum.values_by_number.items()}
    return lambda value, _room: names.get(value, value)


def _text(message: Any, room: Room) -> str:
    try:
        text: str = message.ToJsonString()
    except ValueError:
        raise NotConvertible(f"holds a {message.DESCRIPTOR.full_name} out of range") from None
    room.take(len(text))
    return text


def _struct(message: Message, room: Room) -> Any:
    room.take(message.ByteSize() * 2)
    try:
        return json_format.MessageToDict(message)
    except (json_format.Error, ValueError):
        raise NotConvertible(
            f"holds a {message.DESCRIPTOR.full_name} without a JSON value"
        ) from None
