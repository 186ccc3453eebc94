"""`everstate.schema.v1.SchemaService` on a `schemas.store.DescriptorStore`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from journal.preparation import check_text
from journal.queries import check_page_size
from kernel.errors import InvalidArgument
from schemas.store import DescriptorStore
from sidecar_api.generated import schema_pb2 as pb
from sidecar_api.services.calls import Method
from sidecar_api.services.journal import STALLED_READ_SECONDS, write

Context = Any  # grpc.aio.ServicerContext; its stubs know nothing of our messages

DEFAULT_TIMEOUT = 30.0
MAX_NAMES = 1_000


class SchemaService:
    """The calls of the service; `sidecar_api.server` registers them."""

    name = pb.DESCRIPTOR.services_by_name["SchemaService"].full_name

    def __init__(self, store: DescriptorStore) -> None:
        self._store = store

    def methods(self) -> Sequence[Method]:
        """See `sidecar_api.services.calls.Service.methods`."""
        return (
            Method("AddDescriptors", "unary", pb.AddDescriptorsRequest, self.add_descriptors),
            Method("ListTypes", "unary", pb.ListTypesRequest, self.list_types),
            Method("GetDescriptors", "stream", pb.GetDescriptorsRequest, self.get_descriptors),
        )

    def drain(self) -> None:
        """Its calls are short."""

    async def add_descriptors(
        self, request: pb.AddDescriptorsRequest, context: Context
    ) -> pb.AddDescriptorsResponse:
        done = await self._store.add(
            request.descriptor_set,
            allow_breaking=request.allow_breaking,
            dry_run=request.dry_run,
            timeout=_timeout(context),
        )
        return pb.AddDescriptorsResponse(
            version=done.version,
            changed=done.changed,
            files=done.files,
            types=done.types[:MAX_NAMES],
            types_total=len(done.types),
            superseded_files=done.superseded,
            breaking_changes=done.breaking[:MAX_NAMES],
            breaking_changes_total=len(done.breaking),
        )

    async def list_types(
        self, request: pb.ListTypesRequest, context: Context
    ) -> pb.ListTypesResponse:
        check_text("prefix", request.prefix, 255, empty=True)
        check_text("page_token", request.page_token, 1_000, empty=True)
        page = await self._store.list_types(
            request.prefix,
            page_size=check_page_size(request.page_size),
            page_token=request.page_token,
            timeout=_timeout(context),
        )
        return pb.ListTypesResponse(
            types=[
                pb.MessageType(name=t.name, file=t.file, fields=t.fields, version=t.version)
                for t in page.types
            ],
            next_page_token=page.next_page_token,
        )

    async def get_descriptors(self, request: pb.GetDescriptorsRequest, context: Context) -> None:
        timeout = _timeout(context)
        if len(request.types) > MAX_NAMES:
            raise InvalidArgument(
                "types", f"has {len(request.types)} items, the limit is {MAX_NAMES}"
            )
        for i, name in enumerate(request.types):
            check_text(f"types[{i}]", name, 255)
        if request.version_only:
            version = await self._store.version(timeout)
            await write(context, pb.GetDescriptorsResponse(version=version), STALLED_READ_SECONDS)
            return
        parts = self._store.parts(list(request.types), timeout=timeout)
        async with contextlib.aclosing(parts):
            async for part in parts:
                response = pb.GetDescriptorsResponse(version=part.version, files=part.files)
                await write(context, response, STALLED_READ_SECONDS)


def _timeout(context: Context) -> float:
    remaining = context.time_remaining()
    return DEFAULT_TIMEOUT if remaining is None else max(0.001, float(remaining))
