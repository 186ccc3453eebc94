"""What a change of registered types does to payloads that are stored already.

Compatible is what leaves every stored payload readable as the same JSON value, but for fields that
are new. The rules follow from the wire format (protobuf.dev, "Encoding" and "Updating a message
type") and from the JSON names that projections use:

- a field keeps number, name, type and cardinality; int32 may become int64, uint32 may become uint64
  or int64, sint32 may become sint64;
- a field goes only when its number is reserved, and a reserved number is not used again;
- a value of an enum keeps number and name;
- a message or enum does not go away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

_F = FieldDescriptorProto
_WIDER: Final = {
    (_F.TYPE_INT32, _F.TYPE_INT64),
    (_F.TYPE_UINT32, _F.TYPE_UINT64),
    (_F.TYPE_UINT32, _F.TYPE_INT64),
    (_F.TYPE_SINT32, _F.TYPE_SINT64),
}


_NAME: Final = itemgetter(0)


def messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    """All messages of a file with their full names, nested ones and map entries too."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _nested(prefix + message.name, message)


def _nested(name: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    yield name, message
    for inner in message.nested_type:
        yield from _nested(f"{name}.{inner.name}", inner)


def enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    """All enums of a file with their full names."""
    prefix = f"{file.package}." if file.package else ""
    for enum in file.enum_type:
        yield prefix + enum.name, enum
    for name, message in messages(file):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def breaking(
    before: Iterable[FileDescriptorProto], after: Iterable[FileDescriptorProto]
) -> list[str]:
    """The incompatible changes from ``before`` to ``after``, as sentences, by type name."""
    before, after = list(before), list(after)
    found: list[str] = []
    new_messages = dict(pair for file in after for pair in messages(file))
    for name, message in sorted((pair for file in before for pair in messages(file)), key=_NAME):
        new = new_messages.get(name)
        if new is None:
            found.append(f"{name}: is gone")
        elif new != message:
            found += _fields(name, message, new)
    new_enums = dict(pair for file in after for pair in enums(file))
    for name, enum in sorted((pair for file in before for pair in enums(file)), key=_NAME):
        new_enum = new_enums.get(name)
        if new_enum is None:
            found.append(f"{name}: is gone")
        elif new_enum != enum:
            found += _values(name, enum, new_enum)
    return found


def _by_number(message: DescriptorProto) -> Mapping[int, FieldDescriptorProto]:
    return {field.number: field for field in message.field}


def _reserved(message: DescriptorProto, number: int) -> bool:
    return any(part.start <= number < part.end for part in message.reserved_range)


def _fields(name: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    fields = _by_number(new)
    for number, was in sorted(_by_number(old).items()):
        now = fields.get(number)
        if now is None:
            if not _reserved(new, number):
                yield f"{name}: field {was.name} = {number} is gone and its number is not reserved"
        else:
            yield from _field(name, was, now)
    known = _by_number(old)
    for number, now in sorted(fields.items()):
        if number in known:
            continue
        if _reserved(old, number):
            yield f"{name}: field {now.name} = {number} uses a number that was reserved"
        if now.label == _F.LABEL_REQUIRED:
            yield f"{name}: field {now.name} = {number} is new and required"


def _field(name: str, was: FieldDescriptorProto, now: FieldDescriptorProto) -> Iterator[str]:
    field = f"{name}: field {was.name} = {was.number}"
    if was.name != now.name:
        yield f"{field} was renamed to {now.name}"
    same = was.type == now.type and was.type_name == now.type_name
    if not same and (was.type, now.type) not in _WIDER:
        yield f"{field} was {_type(was)} and is {_type(now)}"
    repeated = _F.LABEL_REPEATED
    if (was.label == repeated) != (now.label == repeated):
        yield f"{field} was {'' if was.label == repeated else 'not '}repeated"
    if now.label == _F.LABEL_REQUIRED != was.label:
        yield f"{field} became required"


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name.lstrip(".") or _F.Type.Name(field.type)[5:].lower()


def _values(name: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    names: dict[int, str] = {}
    for value in new.value:
        names.setdefault(value.number, value.name)
    seen: set[int] = set()
    for value in old.value:
        if value.number in seen:  # an alias: readers see the first name
            continue
        seen.add(value.number)
        now = names.get(value.number)
        if now is None:
            # The end of an enum's reserved range is inclusive, unlike a message's.
            if not any(part.start <= value.number <= part.end for part in new.reserved_range):
                yield (
                    f"{name}: value {value.name} = {value.number} is gone and its number is not "
                    "reserved"
                )
        elif now != value.name:
            yield f"{name}: value {value.name} = {value.number} was renamed to {now}"
