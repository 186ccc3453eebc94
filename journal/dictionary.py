"""Type dictionaries in the database: names become small numbers once, before the first use."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import itemgetter

from journal.rows import EventRow, Names
from kernel import sql
from kernel.database import Database

_TYPE, _ENTITY_TYPE = itemgetter(5), itemgetter(6)


class Dictionary(Names):
    """`Names` that asks the database for what it does not know, and makes what is missing there.

    ``max_types`` bounds each table, and so this cache: a type is a kind of thing, never an id.
    """

    __slots__ = ("_database", "_sql", "max_types")

    def __init__(self, database: Database, max_types: int = 20_000) -> None:
        super().__init__()
        self._database = database
        self.max_types = max_types
        self._sql = {
            name: sql.load("journal", name, database.schema)
            for name in (
                "entity_type_ids",
                "entity_type_names",
                "entity_type_create",
                "event_type_ids",
                "event_type_ids_by_name",
                "event_type_names",
                "event_type_create",
            )
        }

    async def ensure_entity_types(self, names: Collection[str], timeout: float | None) -> set[str]:
        """Makes entity types known; returns those that would be too many."""
        missing = [name for name in set(names) if name not in self.entity_ids]
        if not missing:
            return set()
        run = self._database.fetch
        self.learn_entity_types(await run(self._sql["entity_type_ids"], missing, timeout=timeout))
        missing = [name for name in missing if name not in self.entity_ids]
        if missing:
            await run(self._sql["entity_type_create"], missing, self.max_types, timeout=timeout)
            self.learn_entity_types(
                await run(self._sql["entity_type_ids"], missing, timeout=timeout)
            )
        return {name for name in missing if name not in self.entity_ids}

    async def ensure_event_types(
        self, types: Collection[tuple[str, str, int]], timeout: float | None
    ) -> set[tuple[str, str, int]]:
        """Makes event types known; returns those that would be too many."""
        missing = [kind for kind in set(types) if kind not in self.event_ids]
        if not missing:
            return set()
        run = self._database.fetch
        ids = self._sql["event_type_ids"]
        self.learn_event_types(
            await run(ids, *map(list, zip(*missing, strict=True)), timeout=timeout)
        )
        missing = [kind for kind in missing if kind not in self.event_ids]
        if missing:
            columns = list(map(list, zip(*missing, strict=True)))
            await run(self._sql["event_type_create"], *columns, self.max_types, timeout=timeout)
            self.learn_event_types(await run(ids, *columns, timeout=timeout))
        return {kind for kind in missing if kind not in self.event_ids}

    async def learn_rows(self, rows: Iterable[EventRow], timeout: float | None) -> None:
        """Makes every type id in ``rows`` known."""
        unknown = set(map(_TYPE, rows)) - self.event_types.keys()
        if unknown:
            self.learn_event_types(
                await self._database.fetch(
                    self._sql["event_type_names"], list(unknown), timeout=timeout
                )
            )
        unknown = set(map(_ENTITY_TYPE, rows)) - self.entity_types.keys()
        if unknown:
            self.learn_entity_types(
                await self._database.fetch(
                    self._sql["entity_type_names"], list(unknown), timeout=timeout
                )
            )

    async def find_entity_types(self, names: Collection[str], timeout: float | None) -> list[int]:
        """Ids of the entity types that exist."""
        missing = [name for name in names if name not in self.entity_ids]
        if missing:
            self.learn_entity_types(
                await self._database.fetch(self._sql["entity_type_ids"], missing, timeout=timeout)
            )
        return [self.entity_ids[name] for name in names if name in self.entity_ids]

    async def find_event_types(self, names: Collection[str], timeout: float | None) -> list[int]:
        """Ids of the event types of these names, whatever their content type and version."""
        rows = await self._database.fetch(
            self._sql["event_type_ids_by_name"], list(names), timeout=timeout
        )
        return [row[0] for row in rows]
