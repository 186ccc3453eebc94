"""`SchemaClient`: registered descriptors over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

from kernel.errors import InvalidArgument
from sidecar_api.generated import schema_pb2 as pb

_SERVICE = "/everstate.schema.v1.SchemaService/"
_AT_ONCE = 1_000

Unary = Callable[..., Awaitable[Any]]


class Streamed(Protocol):
    """Opens a streamed call."""

    def __call__(
        self, name: str, response: type[Any], request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]: ...


class SchemaClient:
    """The calls of the schema service; see protocols/everstate/schema/v1.

    Comes from `Client.schemas`. Raises what the node raises, as the error tree.
    """

    def __init__(self, unary: Unary, streamed: Streamed, timeout: timedelta) -> None:
        self._unary = unary
        self._streamed = streamed
        self._timeout = timeout

    async def add(
        self,
        descriptor_set: bytes,
        *,
        allow_breaking: bool = False,
        dry_run: bool = False,
        timeout: timedelta | None = None,
    ) -> pb.AddDescriptorsResponse:
        """Registers a serialised FileDescriptorSet. Adding it again changes nothing, so it is
        retried.

        Raises:
            InvalidArgument, TooLarge: it cannot be registered.
            Conflict: stored events would read otherwise, and it was not allowed.

        """
        request = pb.AddDescriptorsRequest(
            descriptor_set=descriptor_set, allow_breaking=allow_breaking, dry_run=dry_run
        )
        reply: pb.AddDescriptorsResponse = await self._unary(
            _SERVICE + "AddDescriptors", pb.AddDescriptorsResponse, request, timeout
        )
        return reply

    async def types(
        self, prefix: str = "", *, page_size: int = 1_000, timeout: timedelta | None = None
    ) -> AsyncIterator[pb.MessageType]:
        """All registered message types by name, page after page."""
        token = ""
        while True:
            try:
                request = pb.ListTypesRequest(prefix=prefix, page_size=page_size, page_token=token)
            except (ValueError, TypeError) as error:
                raise InvalidArgument("request", f"cannot be sent: {error}") from None
            page = await self._unary(_SERVICE + "ListTypes", pb.ListTypesResponse, request, timeout)
            for item in page.types:
                yield item
            token = page.next_page_token
            if not token:
                return

    async def version(self, *, timeout: timedelta | None = None) -> int:
        """The registry's version; 0: nothing was ever registered."""
        request = pb.GetDescriptorsRequest(version_only=True)
        return (await self._files(request, timeout))[0]

    async def descriptors(
        self, types: Sequence[str] = (), *, timeout: timedelta | None = None
    ) -> tuple[int, list[bytes]]:
        """The registry's version, and the serialised files that define ``types`` (none: all files)
        with their imports.

        Raises:
            Unavailable: the registry changed meanwhile; ask again.

        """
        version, files = await self._files(
            pb.GetDescriptorsRequest(types=types[:_AT_ONCE]), timeout
        )
        for i in range(_AT_ONCE, len(types), _AT_ONCE):
            request = pb.GetDescriptorsRequest(types=types[i : i + _AT_ONCE])
            known = set(files)
            files += [
                file for file in (await self._files(request, timeout))[1] if file not in known
            ]
        return version, files

    async def _files(
        self, request: pb.GetDescriptorsRequest, timeout: timedelta | None
    ) -> tuple[int, list[bytes]]:
        seconds = (timeout or self._timeout).total_seconds()
        version, files = 0, list[bytes]()
        name = _SERVICE + "GetDescriptors"
        async for part in self._streamed(name, pb.GetDescriptorsResponse, request, seconds):
            version = part.version
            files += part.files
        return version, files
