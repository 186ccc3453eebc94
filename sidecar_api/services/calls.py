"""What a gRPC service of the node is made of, for the server to register."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from google.protobuf.message import Message


class BadMessage:
    """Stands for a request that is not a message of its type."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Method:
    """A call: ``unary`` returns its response, ``stream`` and ``both`` write through the context.

    ``both`` (bidirectional) reads its requests from the context too.
    """

    name: str
    kind: Literal["unary", "stream", "both"]
    request: type[Message]
    call: Callable[[Any, Any], Awaitable[Any]]


class Service(Protocol):
    """A service; ``name`` is its full name in the protocol."""

    @property
    def name(self) -> str: ...

    def methods(self) -> Sequence[Method]:
        """Its calls."""
        ...

    def drain(self) -> None:
        """The node stops: long calls end as soon as they can."""
        ...


def caller_of(context: Any) -> str:
    """Who calls, for the audit: the network it comes from, and its certificate's name if any."""
    address = str(context.peer()).rsplit(":", 1)[0]
    names = context.auth_context().get("x509_common_name") or ()
    name = b"".join(names).decode(errors="replace")[:64]
    return f"grpc:{name}@{address}" if name else f"grpc:{address}"
