"""Payloads as JSON values.

| content type | value |
| --- | --- |
| ``application/json`` | what it says |
| ``application/protobuf`` | `schemas.values`; the event type is the message's full name |
| ``text/plain`` | a string |
| anything else | None: bytes mean nothing to us |

Descriptors are loaded when a type is first met and kept until the registry changes, which is looked
at every few seconds of use, or for every batch where the reader wants that. Decoding itself does no
I/O.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from journal.model import JSON
from kernel.errors import InvalidArgument, Undecodable, UnknownType
from schemas.model import PROTOBUF, TEXT, DescriptorSource, Loaded, SchemaLimits
from schemas.registry import build_pool
from schemas.upcasters import Upcasters
from schemas.values import NotConvertible, Values

POLL_SECONDS: Final = 5.0
"""How old the known version of the registry may be while everything is known."""
POLL_UNKNOWN_SECONDS: Final = 0.5
"""How old it may be while a type is not known."""


class Decoded(NamedTuple):
    """An event's data in its present shape."""

    type: str
    schema_version: int
    data: Any


class Decoder:
    """Decodes payloads and applies upcasters.

    A reader calls `prepare` with the types of what it has read, then `decode` or `read` for each
    event. ``source`` None: no protobuf type is known. For one event loop.
    """

    def __init__(
        self,
        source: DescriptorSource | None = None,
        upcasters: Upcasters | None = None,
        limits: SchemaLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upcasters = upcasters or Upcasters()
        self._upcast = self.upcasters.apply if self.upcasters else None
        self._source = source
        self._limits = limits or SchemaLimits()
        self._clock = clock
        self._version = -1
        self._looked = float("-inf")
        self._wanted: set[str] = set()
        self._parsers: dict[str, Callable[[bytes], Any]] = {}
        self._lock = asyncio.Lock()

    # Loading

    async def prepare(self, kinds: Iterable[tuple[str, str]], *, current: bool = False) -> None:
        """Loads what decoding events of these (type, content type) needs, if it is registered.

        Costs nothing while all of them are known and the registry was looked at lately. A type that
        is not registered is no error here: decoding its events is.

        ``current``: the registry is looked at after this was called, whatever is known. What was
        registered before the events were written is then used for them.

        Raises:
            Unavailable and the like: the registry cannot be reached; what is known stays.

        """
        if self._source is None:
            return
        names = {message_name(kind) for kind, content_type in kinds if content_type == PROTOBUF}
        if not names:
            return
        unknown = bool(names - self._parsers.keys())
        called = self._clock()

        def known() -> bool:
            seen = self._looked > called if current else not self._stale(unknown=unknown)
            return names <= self._wanted and seen

        if known():
            return
        async with self._lock:
            if known():
                return  # another task has just done it
            fresh = not names <= self._wanted
            looked = self._clock()
            wanted = self._wanted | names
            if fresh or await self._source.version() != self._version:
                self._learn(wanted, await self._source.load(sorted(wanted)))
            self._looked = looked

    def _stale(self, *, unknown: bool) -> bool:
        age = self._clock() - self._looked
        return age > (POLL_UNKNOWN_SECONDS if unknown else POLL_SECONDS)

    def _learn(self, wanted: set[str], loaded: Loaded) -> None:
        files = {}
        for content in loaded.files:
            file = FileDescriptorProto.FromString(content)
            files[file.name] = file
        try:
            values = Values(build_pool(files), self._limits)
        except InvalidArgument as error:
            raise Undecodable(
                f"the registered descriptors cannot be used: {error.problem}"
            ) from None
        found = ((name, values.parser(name)) for name in wanted)
        self._parsers = {name: parser for name, parser in found if parser is not None}
        self._wanted, self._version = wanted, loaded.version

    # Decoding

    def decode(self, type: str, content_type: str, schema_version: int, payload: bytes) -> Any:  # noqa: A002
        """The JSON value of a payload in the event's present shape; None: it has none.

        Raises:
            UnknownType: no descriptor of the message is registered (or `prepare` was not called).
            Undecodable: the payload is not what its type says, or an upcaster failed.

        """
        return self.read(type, content_type, schema_version, payload).data

    def read(self, type: str, content_type: str, schema_version: int, payload: bytes) -> Decoded:  # noqa: A002
        """As `decode`, with the present type and version, which upcasters may have changed."""
        if content_type == JSON:
            try:
                data = orjson.loads(payload)
            except orjson.JSONDecodeError as error:
                raise _undecodable(type, f"is not JSON: {error.msg}") from None
        elif content_type == PROTOBUF:
            name = message_name(type)
            parser = self._parsers.get(name)
            if parser is None:
                raise UnknownType(f"{type}: no descriptor of the message {name} is registered")
            try:
                data = parser(payload)
            except NotConvertible as error:
                raise _undecodable(type, str(error)) from None
        elif content_type == TEXT:
            try:
                data = payload.decode()
            except UnicodeDecodeError:
                raise _undecodable(type, "is not UTF-8 text") from None
        else:
            return Decoded(type, schema_version, None)
        if self._upcast is None:
            return Decoded(type, schema_version, data)
        shape, data = self._upcast(type, schema_version, data)
        return Decoded(shape.type, shape.version, data)


def _undecodable(kind: str, reason: str) -> Undecodable:
    return Undecodable(f"the payload of {kind} {reason}")


def message_name(event_type: str) -> str:
    """The message of an event type: what follows the last ``/`` of a type URL."""
    return event_type.rpartition("/")[2]
