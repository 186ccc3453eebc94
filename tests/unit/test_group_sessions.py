"""A session against a store that answers when the test says so: what interleaves with its I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

import pytest

from journal.groups.model import Group, GroupSettings, NodeGroupSettings
from journal.groups.partition import Partition, Rules
from journal.groups.session import Session
from journal.groups.store import Save, Saved
from journal.rows import EventRow
from kernel.errors import Unavailable

NOW = datetime(2024, 1, 1, tzinfo=UTC)
GROUP = Group(1, "mail", "default", GroupSettings(), 1, 0, 0, 0, 0, 0.0, 0, 0, 0, 0)


def event(position: int, entity: str = "a") -> EventRow:
    return EventRow(position, position, NOW, None, "id", 1, 1, 0, entity, b"{}", None)


class Names:
    """One entity type, "t", which is 1."""

    entity_ids: ClassVar = {"t": 1}

    async def find_entity_types(self, names: Collection[str], timeout: float) -> None:
        assert set(names) <= {"t"}

    async def learn_rows(self, rows: Sequence[EventRow], timeout: float) -> None:
        pass


class Store:
    """The list of parked events; ``meanwhile`` runs while the named statement is under way, after
    it has read.
    """

    def __init__(self) -> None:
        self.parked: dict[int, str] = {}  # position → state
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}
        self.refused = False
        self.broken = False

    async def _pause(self, name: str) -> None:
        then = self.meanwhile.pop(name, None)
        if then is not None:
            await then()

    async def save(
        self, _group: int, _member: UUID, saves: Sequence[Save], _names: object, *, hold: bool
    ) -> dict[int, Saved]:
        await self._pause("save")
        if self.broken:
            raise Unavailable("no database")
        if self.refused:
            return {}
        for save in saves:
            for parking in save.changes.parkings:
                self.parked[parking.row.position] = "held" if parking.held else "parked"
        return {save.partition: Saved(len(self.parked)) for save in saves}

    async def parked_version(self, _group: int, _partition: int) -> tuple[int, int]:
        found = len(self.parked), 7
        await self._pause("parked_version")
        return found

    async def held(self, _group: int, _partition: int) -> list[tuple[str, str]]:
        found = [("t", "a")] if self.parked else []
        await self._pause("held")
        return found

    async def on_list(self, _group: int, positions: Collection[int]) -> set[int]:
        return {p for p in positions if self.parked.get(p) == "replaying"}

    async def replays(
        self, _group: int, _partition: int, without: Collection[int], _most: int
    ) -> dict[int, int]:
        found = {p: 0 for p in sorted(self.parked) if self.parked[p] == "replaying"}
        found = {p: n for p, n in found.items() if p not in without}
        await self._pause("replays")
        return found

    async def events(self, _log: int, positions: Sequence[int], _most: int) -> list[EventRow]:
        await self._pause("events")
        return [event(position) for position in positions]


class Runner:
    """What a session needs."""

    def __init__(self) -> None:
        self.group = GROUP
        self.log_id = 1
        self.store: Any = Store()
        self.settings = NodeGroupSettings()
        self.commits = asyncio.Semaphore(2)
        self.names: Any = Names()
        self.nudges = 0

    def subscribe(self, _query: object) -> Any:
        raise AssertionError("nothing is read here")

    def nudge(self, *, others: bool = False) -> None:
        self.nudges += 1

    def budget(self) -> int:
        return 1_000_000


def made(part: Partition) -> tuple[Session, Runner]:
    runner = Runner()
    session = Session(runner, UUID(int=1), "worker", 100)
    session.work.add(part)
    return session, runner


def partition(watermark: int = 0, **more: Any) -> Partition:
    return Partition(0, (0, 1023), 1, Rules(), watermark, **more)


async def given(session: Session) -> list[int]:
    output = await session.output()
    assert output is not None
    return [item.position for item in output.items]


async def turns() -> None:
    """Everything that can go on without the store goes on."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("broken", [False, True])
async def test_when_a_partition_is_lost_during_a_commit_every_settlement_is_answered(
    broken: bool,
) -> None:
    part = partition()
    session, runner = made(part)
    part.take([event(1, "a"), event(2, "b"), event(3, "c")], 3)
    assert await given(session) == [1, 2, 3]
    session.ack([1])

    async def meanwhile() -> None:
        session.ack([2])
        if broken:
            session.lose(0)

    runner.store.meanwhile["save"] = meanwhile
    runner.store.refused, runner.store.broken = not broken, broken
    if broken:
        with pytest.raises(Unavailable):
            await session.flush()
    else:
        await session.flush()
    output = await session.output()
    assert output is not None
    assert output.confirmed == []
    assert sorted(output.lost) == [1, 2, 3]


async def test_a_replay_does_not_pass_an_event_that_is_parked_while_it_is_fetched() -> None:
    part = partition(20, held=[(1, "a")], parked=2)
    session, runner = made(part)
    part.replay(event(10))
    assert await given(session) == [10]
    runner.store.parked = {10: "replaying", 12: "replaying"}

    async def meanwhile() -> None:
        session.park(1, "bad")
        await turns()

    runner.store.meanwhile["events"] = meanwhile
    await session.replay()
    assert session.work.deliver(0.0, 10, 10**6) == []


async def test_a_replay_does_not_pass_an_event_whose_parking_is_committed_while_it_is_fetched() -> (
    None
):
    part = partition(20, held=[(1, "a")], parked=2)
    session, runner = made(part)
    part.replay(event(10))
    assert await given(session) == [10]
    runner.store.parked = {10: "replaying", 12: "replaying"}
    commits: list[asyncio.Task[None]] = []

    async def meanwhile() -> None:
        session.park(1, "bad")
        commits.append(asyncio.create_task(session.flush()))
        await turns()

    runner.store.meanwhile["events"] = meanwhile
    await session.replay()
    assert session.work.deliver(0.0, 10, 10**6) == []
    await commits[0]
    assert runner.store.parked[10] == "parked"


@pytest.mark.parametrize("when", ["parked_version", "held"])
async def test_what_is_parked_while_the_list_is_read_stays_parked(when: str) -> None:
    part = partition()
    session, runner = made(part)
    part.take([event(1)], 1)
    assert await given(session) == [1]
    commits: list[asyncio.Task[None]] = []

    async def meanwhile() -> None:
        session.park(1, "bad")
        commits.append(asyncio.create_task(session.flush()))
        await turns()

    runner.store.meanwhile[when] = meanwhile
    await session.reload(0)
    await commits[0]
    assert session.versions == {0: 7}
    assert part.parked == 1
    part.take([event(2)], 2)
    assert session.work.deliver(0.0, 10, 10**6) == [], "it waits behind the parked one"
