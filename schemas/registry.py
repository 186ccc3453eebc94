"""What a descriptor set would change in what is registered: validated, compared, no I/O.

Files are kept by name as protobuf names them. Those of protobuf itself (``google/protobuf/…``) are
always this program's own, so that sets made by different compilers agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    source_context_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from kernel.errors import InvalidArgument, TooLarge
from schemas import compatibility
from schemas.model import SchemaLimits

FIELD: Final = "descriptor_set"

_BUILTIN: Final[tuple[Any, ...]] = (
    source_context_pb2, any_pb2, type_pb2, api_pb2, descriptor_pb2, duration_pb2, empty_pb2,
    field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2,
)  # fmt: skip
BUILTIN: Final[Mapping[str, bytes]] = {
    module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb for module in _BUILTIN
}
"""The files of protobuf itself, imports first."""

Files = dict[str, FileDescriptorProto]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file to be written; ``types``: (full name, fields) of its messages but for map entries."""

    name: str
    content: bytes
    imports: tuple[str, ...]
    types: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What adding a set would do; no files: nothing."""

    files: tuple[FileChange, ...]
    superseded: tuple[str, ...]
    breaking: tuple[str, ...]


def encoded(file: FileDescriptorProto) -> bytes:
    """A file as it is kept: equal for equal files."""
    return file.SerializeToString(deterministic=True)


def parse_set(data: bytes, limits: SchemaLimits) -> Files:
    """The files of a descriptor set, without comments and without protobuf's own.

    Raises:
        TooLarge: too many bytes or files.
        InvalidArgument: it is not a descriptor set, is empty, or has a file twice.

    """
    if len(data) > limits.set_bytes:
        raise TooLarge(FIELD, len(data), limits.set_bytes)
    try:
        given = FileDescriptorSet.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            FIELD, "is not a FileDescriptorSet; `protoc --include_imports -o FILE` makes one"
        ) from None
    if not given.file:
        raise InvalidArgument(FIELD, "has no files")
    if len(given.file) > limits.files:
        raise TooLarge(FIELD, len(given.file), limits.files, "files")
    files: Files = {}
    for file in given.file:
        if not file.name or len(file.name) > 255 or not file.name.isprintable():
            raise InvalidArgument(FIELD, "has a file without a printable name of 1..255 characters")
        file.ClearField("source_code_info")
        if file.name in files and files[file.name] != file:
            raise InvalidArgument(FIELD, f"has two different files {file.name!r}")
        if file.name not in BUILTIN:
            files[file.name] = file
    return files


def change(registered: Files, given: Files, limits: SchemaLimits) -> Change:
    """What adding ``given`` would do to ``registered``.

    Raises:
        InvalidArgument: an import is missing, or a file is not valid; the message names it.
        TooLarge: all files together would be too many bytes.

    """
    changed = {name: file for name, file in given.items() if registered.get(name) != file}
    superseded = _superseded(registered, given)
    after = {name: file for name, file in registered.items() if name not in superseded} | given
    contents = {name: encoded(file) for name, file in after.items()}
    total = sum(map(len, contents.values()))
    if total > limits.total_bytes:
        raise TooLarge("all registered descriptors", total, limits.total_bytes)
    if len(after) > limits.files:
        raise TooLarge("all registered descriptors", len(after), limits.files, "files")
    if changed or superseded:
        build_pool(after)
    # A message cannot have moved into a file that did not change: it would be there twice.
    touched = [file for name, file in registered.items() if name in changed or name in superseded]
    return Change(
        tuple(
            FileChange(name, contents[name], tuple(file.dependency), tuple(_types(file)))
            for name, file in sorted(changed.items())
        ),
        tuple(sorted(superseded)),
        tuple(compatibility.breaking(touched, changed.values())),
    )


def _types(file: FileDescriptorProto) -> Iterator[tuple[str, int]]:
    for name, message in compatibility.messages(file):
        if not message.options.map_entry:
            yield name, len(message.field)


def _symbols(file: FileDescriptorProto) -> set[str]:
    """What a file defines at its top, with full names."""
    prefix = f"{file.package}." if file.package else ""
    parts: tuple[Iterable[Any], ...] = (
        file.message_type, file.enum_type, file.service, file.extension,
    )  # fmt: skip
    return {prefix + item.name for part in parts for item in part}


def _superseded(registered: Files, given: Files) -> set[str]:
    """Registered files that the set brings under other names, because it was compiled from another
    folder.

    Raises:
        InvalidArgument: a symbol has two homes, and the old one cannot go.

    """
    homes = {symbol: name for name, file in given.items() for symbol in _symbols(file)}
    rest = {name: file for name, file in registered.items() if name not in given}
    gone: set[str] = set()
    for name, file in rest.items():
        symbols = _symbols(file)
        moved = sorted(symbols & homes.keys())
        if not moved:
            continue
        twice = f"{moved[0]} is defined in {homes[moved[0]]!r} and, registered before, in {name!r}"
        if symbols - homes.keys():
            raise InvalidArgument(FIELD, f"{twice}, which defines more than the set does")
        gone.add(name)
    for name, file in rest.items():
        used = gone.intersection(file.dependency)
        if used and name not in gone:
            raise InvalidArgument(
                FIELD,
                f"{min(used)!r} has another name in it, but {name!r}, registered before, "
                "imports it; add that file under its new name too",
            )
    return gone


def build_pool(files: Mapping[str, FileDescriptorProto]) -> DescriptorPool:
    """A pool of these files and protobuf's own.

    Raises:
        InvalidArgument: an import is missing or goes in a circle, or a file is not valid.

    """
    pool = DescriptorPool()
    for content in BUILTIN.values():
        pool.AddSerializedFile(content)
    for name in _ordered(files):
        try:
            pool.AddSerializedFile(files[name].SerializeToString())
        except (TypeError, ValueError) as error:
            reason = str(error).rpartition("descriptor pool: ")[2].splitlines()[0][:300]
            raise InvalidArgument(FIELD, f"{name!r} is not valid: {reason}") from None
    return pool


def _ordered(files: Mapping[str, FileDescriptorProto]) -> list[str]:
    """Names of files, imports first. Not recursive: a chain of imports may be long."""
    order: list[str] = []
    done: set[str] = set(BUILTIN)
    for root in files:
        under_way: dict[str, Iterator[str]] = {}
        stack = [root] if root not in done else []
        while stack:
            name = stack[-1]
            if name not in under_way:
                under_way[name] = iter(files[name].dependency)
            for needed in under_way[name]:
                if needed in done:
                    continue
                if needed not in files:
                    raise InvalidArgument(
                        FIELD,
                        f"{name!r} imports {needed!r}, which is neither in it nor registered; "
                        "make it with `protoc --include_imports`",
                    )
                if needed in under_way:
                    raise InvalidArgument(FIELD, f"{name!r} and {needed!r} import each other")
                stack.append(needed)
                break
            else:
                stack.pop()
                del under_way[name]
                done.add(name)
                order.append(name)
    return order
