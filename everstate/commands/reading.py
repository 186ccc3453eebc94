"""What the commands that show events do with payloads: decode them here, with the node's
descriptors, so that nodes never decode.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstate.commands.common import shown_payload
from kernel import usercode
from kernel.errors import ConfigurationError, Undecodable, UnknownType
from schemas.descriptors import Decoder
from schemas.model import PROTOBUF, Loaded
from schemas.upcasters import Upcasters, from_user_code

if TYPE_CHECKING:
    from sidecar_api.client import Client, EventView

_TIMEOUT = timedelta(seconds=10)


class NodeDescriptors:
    """The registered descriptors of a node; a `schemas.model.DescriptorSource`.

    A node without the service (an older one, or one behind a filter) has none.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def version(self) -> int:
        """See `schemas.model.DescriptorSource.version`."""
        try:
            return await self._client.schemas.version(timeout=_TIMEOUT)
        except ConfigurationError:
            return 0

    async def load(self, types: Sequence[str]) -> Loaded:
        """See `schemas.model.DescriptorSource.load`."""
        try:
            version, files = await self._client.schemas.descriptors(types, timeout=_TIMEOUT)
        except ConfigurationError:
            return Loaded(0, [])
        return Loaded(version, files)


class Reading:
    """Decodes the events that a command shows; ``upcast``: into their present shapes too."""

    def __init__(self, decoder: Decoder, *, upcast: bool) -> None:
        self._decoder = decoder
        self._upcast = upcast

    @classmethod
    def through(cls, client: Client, *, upcast: bool = False) -> Reading:
        """With the descriptors of a node. Without ``upcast`` no code of the user is run.

        Raises:
            ConfigurationError: the upcasters of EVERSTATE_APP (default: the current folder)
                cannot be used, or there are none.

        """
        upcasters = Upcasters()
        if upcast:
            app = os.environ.get("EVERSTATE_APP")
            upcasters = from_user_code(usercode.find(Path(app) if app else None))
            if not len(upcasters):
                where = f"in {app}" if app else "here"
                raise ConfigurationError(
                    f"--upcast: no everstate.toml or pyproject.toml {where} names upcasters"
                )
        return cls(Decoder(NodeDescriptors(client), upcasters), upcast=upcast)

    async def prepare(self, events: Iterable[EventView]) -> None:
        """Gets the descriptors that these events need."""
        await self._decoder.prepare({(event.type, event.content_type) for event in events})

    def type(self, event: EventView) -> str:
        """The event's type, in its present shape if that is wanted."""
        return self._decoder.upcasters.target(event.type, event.schema_version).type

    def body(self, event: EventView) -> dict[str, Any]:
        """An event's content for JSON: as in export files, and beside the bytes of a protobuf
        payload its ``data``, or ``undecodable`` and why. With upcasters: ``present`` (``type``,
        ``schema_version``, ``data``) of an event whose shape is an old one.
        """
        body = shown_payload(event)
        kind = (event.type, event.content_type, event.schema_version)
        old = self._upcast and self._decoder.upcasters.target(*kind[::2]) != kind[::2]
        if event.content_type != PROTOBUF and not old:
            return body
        try:
            found = self._decoder.read(*kind, event.payload)
            if old:
                shape = {"type": found.type, "schema_version": found.schema_version}
                return body | {"present": shape | {"data": found.data}}
        except UnknownType:
            return body
        except Undecodable as error:
            return body | {"undecodable": error.message}
        return body | {"data": found.data}
