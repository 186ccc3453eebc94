"""What the room speaks of: limits, registered types, and where descriptors come from. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

PROTOBUF: Final = "application/protobuf"
TEXT: Final = "text/plain"


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """What may be registered, and what one payload may become.

    ``total_bytes`` bounds all registered files together: checking a change of them takes a node
    some thirty times as much memory for a moment, one change at a time.
    ``decoded_bytes`` and ``depth`` bound the JSON value of one payload.
    """

    set_bytes: int = 4_000_000
    files: int = 2_000
    total_bytes: int = 8_000_000
    decoded_bytes: int = 16_000_000
    depth: int = 100


@dataclass(frozen=True, slots=True)
class Registration:
    """What adding a descriptor set did, or with a dry run would do.

    ``version`` is that of the registry afterwards; ``changed`` is false when everything of the set
    was registered already. ``types`` are the messages of the files that changed, ``superseded`` the
    registered files whose messages the set brings under another file name, ``breaking`` the changes
    after which stored payloads read otherwise, as sentences.
    """

    version: int
    changed: bool
    files: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    breaking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A registered message type; ``version`` is that which its file came with."""

    name: str
    file: str
    fields: int
    version: int


@dataclass(frozen=True, slots=True)
class TypePage:
    """Types by name; an empty token: there are no more."""

    types: tuple[TypeInfo, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Files (serialised FileDescriptorProto) at a version of the registry, imports included but for
    those of protobuf itself; in no special order.
    """

    version: int
    files: Sequence[bytes]


class DescriptorSource(Protocol):
    """Where registered descriptors are: the database, or a node."""

    async def version(self) -> int:
        """The registry's version: it grows with every change; 0: nothing was ever registered."""
        ...

    async def load(self, types: Sequence[str]) -> Loaded:
        """The files that define these message types, and what they import. Unknown types are passed
        over.
        """
        ...
