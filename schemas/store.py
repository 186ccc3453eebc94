"""Registered descriptors in the database."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from kernel import sql
from kernel.database import Connection, Database
from kernel.errors import Conflict, Unavailable
from schemas import registry
from schemas.model import Loaded, Registration, SchemaLimits, TypeInfo, TypePage

PART_BYTES: Final = 1_000_000
"""What is fetched at once for a reader of many files, but for a single larger file."""
MAX_BREAKING: Final = 1_000
_SHOWN: Final = 5


class DescriptorStore:
    """The registry on a database; a `schemas.model.DescriptorSource`."""

    def __init__(self, database: Database, limits: SchemaLimits | None = None) -> None:
        self._database = database
        self.limits = limits or SchemaLimits()
        self._sql = {
            name: sql.load("schemas", name, database.schema)
            for name in (
                "descriptors_lock",
                "descriptors_version",
                "descriptors_version_add",
                "descriptor_files",
                "descriptor_files_of",
                "descriptor_contents",
                "descriptor_file_put",
                "descriptor_files_delete",
                "descriptor_types",
                "descriptor_types_delete",
                "descriptor_types_put",
            )
        }

    async def add(
        self,
        descriptor_set: bytes,
        *,
        allow_breaking: bool = False,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Registration:
        """Registers the files of a serialised FileDescriptorSet; one at a time, all or nothing.

        Adding what is registered already changes nothing. A dry run says what would happen,
        incompatible changes included, and writes nothing.

        Raises:
            InvalidArgument, TooLarge: see `schemas.registry`.
            Conflict: stored payloads would read otherwise, and it was not allowed.

        """
        given = registry.parse_set(descriptor_set, self.limits)
        async with self._database.connection(timeout) as connection, connection.transaction():
            if not dry_run:
                await connection.execute(self._sql["descriptors_lock"])
            rows = await connection.fetch(self._sql["descriptor_files"])
            version = await connection.fetchval(self._sql["descriptors_version"])
            # Parsing and comparing megabytes must not stop the calls of others.
            change = await asyncio.to_thread(self._change, [row[0] for row in rows], given)
            changed = bool(change.files or change.superseded)
            if change.breaking and not (allow_breaking or dry_run):
                raise Conflict(_refusal(change.breaking))
            if changed and not dry_run:
                version = await self._write(connection, descriptor_set, change)
        return Registration(
            version,
            changed,
            tuple(file.name for file in change.files),
            tuple(sorted(name for file in change.files for name, _ in file.types)),
            change.superseded,
            change.breaking,
        )

    def _change(self, contents: Sequence[bytes], given: registry.Files) -> registry.Change:
        files = (FileDescriptorProto.FromString(content) for content in contents)
        return registry.change({file.name: file for file in files}, given, self.limits)

    async def _write(
        self, connection: Connection, descriptor_set: bytes, change: registry.Change
    ) -> int:
        run = self._sql
        version: int = await connection.fetchval(
            run["descriptors_version_add"],
            hashlib.sha256(descriptor_set).digest(),
            [file.name for file in change.files],
            change.breaking[:MAX_BREAKING],
        )
        affected = [*change.superseded, *(file.name for file in change.files)]
        await connection.execute(run["descriptor_types_delete"], affected)
        await connection.execute(run["descriptor_files_delete"], change.superseded)
        await connection.executemany(
            run["descriptor_file_put"],
            [(file.name, version, file.imports, file.content) for file in change.files],
        )
        types = [(name, file.name, fields) for file in change.files for name, fields in file.types]
        await connection.execute(
            run["descriptor_types_put"],
            [name for name, _, _ in types],
            [file for _, file, _ in types],
            [fields for _, _, fields in types],
        )
        return version

    async def list_types(
        self,
        prefix: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
        timeout: float | None = None,
    ) -> TypePage:
        """Registered message types by name (byte order); a token is the last name of a page."""
        rows = await self._database.fetch(
            self._sql["descriptor_types"], page_token, prefix, prefix + "\x7f", page_size + 1,
            timeout=timeout,
        )  # fmt: skip
        page = tuple(TypeInfo(*row) for row in rows[:page_size])
        return TypePage(page, page[-1].name if len(rows) > page_size else "")

    async def version(self, timeout: float | None = 5) -> int:
        """See `schemas.model.DescriptorSource.version`."""
        row = await self._database.fetchrow(self._sql["descriptors_version"], timeout=timeout)
        return int(row[0])

    async def load(self, types: Sequence[str]) -> Loaded:
        """See `schemas.model.DescriptorSource.load`."""
        parts = [part async for part in self.parts(types, timeout=10)]
        return Loaded(parts[-1].version, [file for part in parts for file in part.files])

    async def parts(
        self, types: Sequence[str], *, timeout: float | None = None
    ) -> AsyncGenerator[Loaded, None]:
        """As `load`, in parts of about 1 MB, so that a slow reader holds no more than that. No
        types: all files. There is at least one part.

        Raises:
            Unavailable: the registry changed meanwhile; ask again.

        """
        version = await self.version(timeout)
        rows = await self._database.fetch(
            self._sql["descriptor_files_of"], list(types) or None, timeout=timeout
        )
        names: list[str] = []
        room = PART_BYTES
        for name, size in [*rows, ("", PART_BYTES)]:
            room -= size
            if room < 0 and names:
                yield await self._part(version, names, timeout)
                names, room = [], PART_BYTES - size
            if name:
                names.append(name)
        if not rows:
            yield Loaded(version, [])

    async def _part(self, version: int, names: list[str], timeout: float | None) -> Loaded:
        rows = await self._database.fetch(self._sql["descriptor_contents"], names, timeout=timeout)
        # A file that is newer than what we began with need not fit the others.
        if len(rows) != len(names) or any(row[1] > version for row in rows):
            raise Unavailable("the registered descriptors changed while they were read")
        return Loaded(version, [row[0] for row in rows])


def _refusal(breaking: Sequence[str]) -> str:
    more = len(breaking) - _SHOWN
    rest = f"; and {more} more, which a dry run lists" if more > 0 else ""
    return (
        f"stored events would read otherwise: {'; '.join(breaking[:_SHOWN])}{rest}. "
        "Allow breaking changes to register it nevertheless"
    )
